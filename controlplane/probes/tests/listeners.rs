//! Probes against listeners in this process: when health changes, what is shared, and how it ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use weir_health_load::Health;
use weir_identity::EndpointId;
use weir_probes::{Expect, HealthChange, Kind, Probes, Question, Reason, Target};

const SOON: Duration = Duration::from_secs(20);

fn target(endpoint: u32, address: SocketAddr, kind: Kind) -> Target {
    let question = Question { address, kind, timeout: Duration::from_secs(5), source: None, interface: None };
    Target { endpoint: EndpointId(endpoint), question, interval: Duration::from_millis(20), rise: 2, fall: 3 }
}

fn http() -> Kind {
    Kind::Http { path: "/healthy".into(), host: "service.example".into(), expect: Expect::Good }
}

async fn next(changes: &mut mpsc::Receiver<HealthChange>) -> HealthChange {
    timeout(SOON, changes.recv()).await.expect("a change comes soon").expect("the probes run")
}

fn change(endpoint: u32, health: Health, reason: Reason) -> HealthChange {
    HealthChange { endpoint: EndpointId(endpoint), health, reason }
}

/// Answers each connection with the next of these texts, the last one for ever; counts the connections.
async fn scripted(answers: Vec<&'static str>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1_024];
            let length = stream.read(&mut request).await.unwrap_or(0);
            if length > 0 {
                let text = String::from_utf8_lossy(&request[..length]);
                assert!(text.starts_with("GET /healthy HTTP/1.1\r\nHost: service.example\r\n"), "{text}");
            }
            let n = count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(answers[n.min(answers.len() - 1)].as_bytes()).await;
        }
    });
    (address, served)
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const BAD: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n";

#[tokio::test]
async fn rises_and_falls_after_so_many_answers() {
    // rise 2, fall 3: healthy with the 2nd, still healthy at the 5th, failing with the 8th, healthy with the 12th.
    let (address, served) = scripted(vec![GOOD, GOOD, BAD, BAD, GOOD, BAD, BAD, BAD, GOOD, BAD, GOOD, GOOD]).await;
    let (sender, mut changes) = mpsc::channel(8);
    let probes = Probes::spawn(vec![target(7, address, http())], sender).unwrap();
    for (after, health, reason) in [
        (2, Health::Healthy, Reason::Status(200)),
        (8, Health::Failing, Reason::Status(503)),
        (12, Health::Healthy, Reason::Status(200)),
    ] {
        assert_eq!(next(&mut changes).await, change(7, health, reason));
        assert!(served.load(Ordering::SeqCst) >= after, "{health:?} before answer {after}");
    }
    probes.stop().await;
}

#[tokio::test]
async fn a_port_that_closes_is_failing_and_rises_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut changes) = mpsc::channel(8);
    let probes = Probes::spawn(vec![target(1, address, Kind::Tcp)], sender).unwrap();
    assert_eq!(next(&mut changes).await, change(1, Health::Healthy, Reason::Accepted));
    drop(listener);
    assert_eq!(next(&mut changes).await, change(1, Health::Failing, Reason::Refused));
    let again = TcpListener::bind(address).await.unwrap();
    assert_eq!(next(&mut changes).await, change(1, Health::Healthy, Reason::Accepted));
    probes.stop().await;
    drop(again);
}

#[tokio::test]
async fn silence_and_nonsense_are_failures() {
    let (closes, _) = scripted(vec![""]).await;
    let (nonsense, _) = scripted(vec!["220 mail.example ESMTP\r\n"]).await;
    let (wrong, _) = scripted(vec![GOOD]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // the kernel accepts, nobody answers
    let mut waits = target(1, silent.local_addr().unwrap(), http());
    waits.question.timeout = Duration::from_millis(50);
    let mut particular = target(4, wrong, http());
    particular.question.kind =
        Kind::Http { path: "/healthy".into(), host: "service.example".into(), expect: Expect::Status(418) };
    let (sender, mut changes) = mpsc::channel(8);
    let targets = vec![waits, target(2, closes, http()), target(3, nonsense, http()), particular];
    let probes = Probes::spawn(targets, sender).unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(next(&mut changes).await);
    }
    seen.sort_by_key(|change| change.endpoint);
    let reasons = [Reason::Timeout, Reason::Closed, Reason::NotHttp, Reason::Status(200)];
    let expected: Vec<_> = (1..).zip(reasons).map(|(n, reason)| change(n, Health::Failing, reason)).collect();
    assert_eq!(seen, expected);
    probes.stop().await;
}

#[tokio::test]
async fn the_same_question_is_asked_once_for_all() {
    let (address, served) = scripted(vec![GOOD]).await;
    let (sender, mut changes) = mpsc::channel(1_000);
    let targets = |n: u32| (0..n).map(|i| Target { rise: 5, ..target(i, address, http()) }).collect();
    let mut probes = Probes::spawn(targets(300), sender).unwrap();
    assert_eq!(probes.len(), 1);
    for endpoint in 0..300 {
        assert_eq!(next(&mut changes).await, change(endpoint, Health::Healthy, Reason::Status(200)));
    }
    let asked = served.load(Ordering::SeqCst);
    assert!((5..50).contains(&asked), "{asked} probes for 300 endpoints");
    // Those that stay are not told again; the new one counts from the beginning.
    probes.update(targets(301)).unwrap();
    assert_eq!(next(&mut changes).await, change(300, Health::Healthy, Reason::Status(200)));
    assert!(served.load(Ordering::SeqCst) >= asked + 5);
    probes.stop().await;
    assert_eq!(changes.recv().await, None);
}

#[tokio::test]
async fn nothing_is_asked_after_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (sender, mut changes) = mpsc::channel(8);
    // One probe waits for an answer that never comes when it is stopped.
    let mut waits = target(1, silent.local_addr().unwrap(), http());
    waits.question.timeout = Duration::from_secs(3_600);
    let here = target(2, listener.local_addr().unwrap(), Kind::Tcp);
    let mut probes = Probes::spawn(vec![waits.clone(), here], sender).unwrap();
    assert_eq!(next(&mut changes).await.endpoint, EndpointId(2));
    timeout(SOON, silent.accept()).await.expect("it is asked").unwrap();
    probes.update(vec![waits]).unwrap();
    assert_eq!(probes.len(), 1);
    timeout(SOON, probes.stop()).await.expect("it does not wait for the answer");
    assert_eq!(changes.recv().await, None, "no probe is left to send");
    assert!(
        Probes::spawn(
            vec![Target { rise: 0, ..target(1, listener.local_addr().unwrap(), Kind::Tcp) }],
            mpsc::channel(1).0
        )
        .is_err()
    );
}

#[tokio::test]
async fn a_receiver_that_does_not_receive_does_not_keep_it_alive() {
    let (address, _) = scripted(vec![GOOD, BAD]).await;
    let (sender, changes) = mpsc::channel(1);
    let targets = (0..10).map(|i| Target { rise: 1, fall: 1, ..target(i, address, http()) }).collect();
    let probes = Probes::spawn(targets, sender.clone()).unwrap();
    timeout(SOON, async {
        while sender.capacity() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the channel fills");
    timeout(SOON, probes.stop()).await.expect("it stops while it waits to send");
    drop(changes);
}

#[tokio::test]
async fn the_source_is_the_one_that_was_given() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (sender, mut changes) = mpsc::channel(8);
    let mut here = target(1, listener.local_addr().unwrap(), Kind::Tcp);
    here.question.source = Some(IpAddr::from([127, 0, 0, 2]));
    // An address that is not ours cannot be a source; that is no fault of the endpoint's.
    let mut not_ours = target(2, listener.local_addr().unwrap(), Kind::Tcp);
    not_ours.question.source = Some(IpAddr::from([192, 0, 2, 1]));
    not_ours.rise = 1;
    not_ours.fall = 1;
    let probes = Probes::spawn(vec![here, not_ours], sender).unwrap();
    let (_, peer) = timeout(SOON, listener.accept()).await.expect("it is asked").unwrap();
    assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 2]));
    assert_eq!(next(&mut changes).await, change(1, Health::Healthy, Reason::Accepted));
    probes.stop().await;
    assert_eq!(changes.recv().await, None);
}

#[tokio::test]
async fn ipv6_is_asked_alike() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let (sender, mut changes) = mpsc::channel(8);
    let probes = Probes::spawn(vec![target(6, listener.local_addr().unwrap(), Kind::Tcp)], sender).unwrap();
    assert_eq!(next(&mut changes).await, change(6, Health::Healthy, Reason::Accepted));
    drop(listener);
    assert_eq!(next(&mut changes).await, change(6, Health::Failing, Reason::Refused));
    probes.stop().await;
}
