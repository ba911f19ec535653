//! The cache, read by curl.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_health_link::Pages;
use weir_health_load::{Directive, Health};
use weir_health_protocol::CachedHost;

use crate::{Cluster, loopback};

struct Answer {
    status: String,
    etag: String,
    body: Value,
}

async fn get(pages: &Pages, path: &str, options: &[&str]) -> Answer {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-w", "\n%{http_code}\n%header{etag}"]).args(options);
    curl.arg(format!("http://{}{path}", pages.address()));
    let done = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    let mut parts = text.rsplitn(3, '\n');
    let (etag, status) = (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned());
    let body = serde_json::from_str(parts.next().unwrap()).unwrap_or(Value::Null);
    Answer { status, etag, body }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_is_read_by_host_and_by_application_and_only_when_it_is_new() {
    let cluster = Cluster::new();
    let pages = Pages::spawn(loopback(), cluster.cache()).await.unwrap();
    let (seven, eight) = (cluster.agent(7, 50), cluster.agent(8, 60));
    for speaker in [&seven, &eight] {
        cluster.until(speaker.host, "live", CachedHost::is_in_step).await;
    }
    let all = get(&pages, "/v1/hosts", &[]).await;
    let hosts = all.body["hosts"].as_array().unwrap();
    let known: Vec<(u64, &str)> =
        hosts.iter().map(|host| (host["host"].as_u64().unwrap(), host["presence"].as_str().unwrap())).collect();
    assert_eq!(known, [(7, "live"), (8, "live"), (99, known[2].1)]);
    assert!(["expected", "silent"].contains(&known[2].1));

    let one = get(&pages, "/v1/hosts/7", &[]).await;
    let row = &one.body["applications"][0];
    assert_eq!((&row["health"], &row["capacity"], &row["target"]), (&"healthy".into(), &50.into(), &"active".into()));
    let both = get(&pages, "/v1/applications/1", &[]).await;
    assert_eq!(both.body["hosts"].as_array().unwrap().len(), 2);
    assert_eq!(both.body["hosts"][1]["capacity"], 60);
    let listed = get(&pages, "/v1/applications", &[]).await;
    assert_eq!(listed.body["applications"][0]["hosts"][0]["host"], 7);

    // Nothing is new, however many heartbeats come.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let header = |etag: &str| format!("If-None-Match: {etag}");
    for (path, etag) in [("/v1/hosts/7", &one.etag), ("/v1/applications/1", &both.etag)] {
        let again = get(&pages, path, &["-H", &header(etag)]).await;
        assert_eq!((again.status.as_str(), &again.etag, again.body), ("304", etag, Value::Null), "{path}");
    }
    // Another host's change is none of this host's.
    eight.say(Health::Failing, 0);
    let failing = |cached: &CachedHost| cached.table().rows().any(|row| row.status.health == Health::Failing);
    cluster.until(eight.host, "failing", failing).await;
    assert_eq!(get(&pages, "/v1/hosts/7", &["-H", &header(&one.etag)]).await.status, "304");
    let both_now = get(&pages, "/v1/applications/1", &["-H", &header(&both.etag)]).await;
    assert_eq!((both_now.status.as_str(), &both_now.body["hosts"][1]["health"]), ("200", &"failing".into()));
    assert_ne!(get(&pages, "/v1/hosts", &[]).await.etag, all.etag);

    // Who waits is answered when there is something new.
    let begun = Instant::now();
    let known = header(&one.etag);
    let options = ["-H", known.as_str()];
    let (waited, ()) = tokio::join!(get(&pages, "/v1/hosts/7?wait=20", &options), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        seven.direct(Directive::Draining);
    });
    assert_eq!((waited.status.as_str(), &waited.body["applications"][0]["target"]), ("200", &"draining".into()));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    for (path, options, status) in [
        ("/v1/hosts/12", &[][..], "404"),
        ("/v1/hosts/many", &[], "400"),
        ("/v1/hosts?weight=1", &[], "400"),
        ("/v1/applications/9", &[], "404"),
        ("/v1/hosts/7", &["-X", "DELETE"], "405"),
        ("/", &[], "404"),
    ] {
        assert_eq!(get(&pages, path, options).await.status, status, "{path} {options:?}");
    }
}
