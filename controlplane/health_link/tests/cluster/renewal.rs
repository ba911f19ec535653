//! Certificates change while both ends run.

use std::time::Duration;

use weir_health_protocol::{CachedHost, Presence};
use weir_identity::HostId;
use weir_pki::Node;

use crate::Cluster;

fn live(cached: &CachedHost) -> bool {
    cached.is_in_step()
}

fn silent(cached: &CachedHost) -> bool {
    cached.presence() == Presence::Silent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_shut_out_at_once_and_a_renewed_one_let_in() {
    let cluster = Cluster::new();
    let speaker = cluster.agent(7, 50);
    cluster.until(speaker.host, "live", live).await;
    cluster.authority.revoke("host-7").unwrap();
    let shut = cluster.until(speaker.host, "silent", silent).await;
    println!("silent {shut:?} after it was revoked, with heartbeats each 200 ms");
    assert!(shut < Duration::from_secs(5), "{shut:?}");
    // It knocks all the time, and is not let in.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.cache().with(|end, _| end.host(speaker.host).is_some_and(silent)));
    // The agent takes its new certificate by itself.
    cluster.authority.renew("host-7", 1).unwrap();
    speaker.agent.look_at_keys();
    cluster.until(speaker.host, "live again", live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_unit_is_left_at_once_and_a_renewed_one_found_again() {
    let cluster = Cluster::new();
    let speaker = cluster.agent(7, 50);
    cluster.until(speaker.host, "live", live).await;
    cluster.authority.revoke("unit-1").unwrap();
    cluster.until(speaker.host, "silent", silent).await;
    assert!(speaker.agent.links().is_empty());
    cluster.authority.renew("unit-1", 1).unwrap();
    cluster.until(speaker.host, "live again", live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_is_not_noticed_by_anybody_and_what_is_half_a_renewal_is_not_taken() {
    let cluster = Cluster::new();
    let speaker = cluster.agent(7, 50);
    cluster.until(speaker.host, "live", live).await;
    let life = cluster.cache().with(|end, _| end.host(speaker.host).map(CachedHost::incarnation));
    let directory = cluster.authority.renew("host-7", 1).unwrap();
    cluster.authority.renew("unit-1", 1).unwrap();
    // A certificate without its key, as while it is copied: the one before stays good.
    std::fs::copy(directory.join("../unit-1/node.key"), directory.join("node.key")).unwrap();
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(cluster.cache().with(|end, _| end.host(speaker.host).is_some_and(live)));
    }
    assert_eq!(cluster.cache().with(|end, _| end.host(speaker.host).map(CachedHost::incarnation)), life);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_that_does_not_know_it_is_shut_out_whatever_ticket_it_has() {
    let cluster = Cluster::new();
    // With files of its own, which nobody renews: it goes on with the tickets of its first connection.
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = cluster.authority.issue("host-7", &Node::Hosts([HostId(7)].into()), 1).unwrap();
    for file in ["authority.pem", "node.pem", "node.key"] {
        std::fs::copy(directory.join(file), elsewhere.path().join(file)).unwrap();
    }
    let speaker = cluster.agent_of(7, 50, elsewhere.path());
    cluster.until(speaker.host, "live", live).await;
    cluster.authority.revoke("host-7").unwrap();
    cluster.until(speaker.host, "silent", silent).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(cluster.cache().with(|end, _| end.host(speaker.host).is_some_and(silent)));
    }
}
