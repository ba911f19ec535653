//! A group of agents as processes: one leads, and another one when that is killed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use weir_health_load::Health;
use weir_health_protocol::Presence;
use weir_identity::HostId;

use crate::APPLICATION;
use crate::farm::{self, Agent, Farm, HEARTBEAT};

/// Waits until the unit hears of all members by one of them; which one that is.
fn led(farm: &Farm, members: &BTreeMap<u32, Agent>) -> u32 {
    let leader = || {
        farm.cache.with(|end, _| {
            let known = |host: &u32| end.host(HostId(*host)).filter(|cached| cached.presence() == Presence::Live);
            let leaders: Option<Vec<_>> =
                members.keys().map(|host| known(host).map(|cached| cached.leader())).collect();
            let leaders = leaders?;
            let leader = leaders.iter().flatten().next()?.0;
            let by = |(host, said): (&u32, &Option<HostId>)| *said == Some(HostId(leader)).filter(|_| *host != leader);
            members.keys().zip(&leaders).all(by).then_some(leader)
        })
    };
    farm::wait("all are live by one leader", || leader().is_some());
    leader().expect("it has just been so")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_is_replaced_and_nobody_else_is_missed() {
    let farm = Farm::new().await;
    // Addresses of their own on the loopback, so that the port is free.
    let address = |host: u8| (u32::from(host), SocketAddr::from(([127, 0, 31, host], 7301)));
    let addresses: BTreeMap<u32, SocketAddr> = (31..=35).map(address).collect();
    let mut members: BTreeMap<u32, Agent> =
        addresses.keys().map(|host| (*host, farm.member(*host, "rack-3", &addresses))).collect();
    let leader = led(&farm, &members);
    for agent in members.values() {
        agent.ask(&["report", "1", "--health", "healthy"]);
    }
    for host in members.keys() {
        farm.until(*host, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;
    }
    let status = members[&leader].status();
    assert_eq!((&status["group"]["role"], &status["group"]["members"]), (&"leading".into(), &5.into()), "{status}");

    let dead = members.remove(&leader).expect("it is one of them");
    let seen: Vec<_> = members.keys().map(|host| farm.watch(*host, APPLICATION)).collect();
    dead.kill();
    let killed = Instant::now();
    farm::wait("another one leads", || members.values().any(|agent| agent.status()["group"]["role"] == "leading"));
    let replaced = killed.elapsed();
    println!("leader {leader} was replaced after {:.1} heartbeats", replaced.as_secs_f64() / HEARTBEAT.as_secs_f64());
    // Three heartbeats, and one for the machine that all of this runs on.
    assert!(replaced < HEARTBEAT * 4, "{replaced:?}");
    let next = led(&farm, &members);
    assert_ne!(next, leader);
    farm.until(leader, "silent", |cached| cached.presence() == Presence::Silent).await;
    for seen in seen {
        let seen = seen.end();
        assert_eq!(farm::steps(&seen, |state| state.health), [Some(Health::Healthy)], "{seen:?}");
    }

    // It comes back as one of the others.
    members.insert(leader, farm.member(leader, "rack-3", &addresses));
    assert_eq!(led(&farm, &members), next);
}
