//! `weir-host` as a process against a unit's listener: proxies, restarts, nonsense, clocks, and the documented examples.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

mod examples;
mod farm;
mod group;

use std::process::Command;
use std::time::Duration;

use weir_health_load::{Directive, Health};
use weir_health_protocol::Presence;
use weir_identity::ApplicationId;

use crate::farm::{Farm, Watched};

const APPLICATION: ApplicationId = ApplicationId(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_proxies_one_is_killed_and_the_machine_is_served_on() {
    let farm = Farm::new().await;
    let target = Watched::serve();
    let proxied = |rank: u8| {
        format!(
            "proxied: [{{host: 41, rank: {rank}, applications: [{{application: 1, capacity: 60, endpoint: '{}', probe: {{interval: 50ms, fall: 1}}}}]}}]",
            target.address()
        )
    };
    let second = farm.agent("proxy-2", &[22, 41], &proxied(2));
    farm.until(41, "known by the second", |cached| cached.rank().number() == 2).await;
    let first = farm.agent("proxy-1", &[21, 41], &proxied(1));
    farm.until(41, "known by the first", |cached| cached.rank().number() == 1).await;
    farm.until(41, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;

    // Whoever knows more of it may say so to the proxy.
    first.ask(&["report", "1", "--host", "41", "--load", "60"]);
    farm.until(41, "loaded", |cached| cached.table().row(APPLICATION).is_some_and(|row| row.status.load > 6)).await;

    let seen = farm.watch(41, APPLICATION);
    first.kill();
    farm.until(41, "known by the second", |cached| cached.rank().number() == 2).await;
    target.close();
    farm.until(41, "failing", |cached| farm::health(cached, APPLICATION) == Some(Health::Failing)).await;
    target.open();
    farm.until(41, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;
    let first = farm.agent("proxy-1", &[21, 41], &proxied(1));
    farm.until(41, "known by the first again", |cached| cached.rank().number() == 1).await;
    // The second comes and goes, and nobody takes notice.
    second.kill();
    let second = farm.agent("proxy-2", &[22, 41], &proxied(2));
    farm.until(22, "back", |cached| cached.presence() == Presence::Live).await;
    // The first is stopped: it is not the machine that ends.
    first.terminate();
    farm.until(21, "gone", |cached| cached.presence() == Presence::Gone).await;
    farm.until(41, "known by the second", |cached| cached.rank().number() == 2).await;

    let seen = seen.end();
    let ranks: Vec<u8> = farm::steps(&seen, |state| state.rank);
    assert_eq!(ranks, [1, 2, 1, 2], "{seen:?}");
    let health: Vec<Option<Health>> = farm::steps(&seen, |state| state.health);
    assert_eq!(health, [Health::Healthy, Health::Failing, Health::Healthy].map(Some), "{seen:?}");
    second.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_replaced_and_nothing_is_seen_of_it() {
    let farm = Farm::new().await;
    let target = Watched::serve();
    let yaml =
        format!("applications: [{{application: 1, endpoint: '{}', probe: {{interval: 50ms}}}}]", target.address());
    let agent = farm.agent("host-7", &[7], &yaml);
    agent.ask(&["report", "5", "--capacity", "40", "--lease", "600", "--health", "healthy"]);
    agent.ask(&["report", "5", "--load", "40"]);
    agent.ask(&["drain", "5"]);
    let other = ApplicationId(5);
    farm.until(7, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;
    farm.until(7, "loaded", |cached| cached.table().row(other).is_some_and(|row| row.status.load == 40)).await;
    let seen = (farm.watch(7, APPLICATION), farm.watch(7, other));
    let life = farm.life(7);
    agent.hand_over();
    let agent = farm.agent("host-7", &[7], &yaml);
    farm.until(7, "back", |cached| cached.incarnation() > life).await;
    let life = farm.life(7);
    agent.kill();
    let agent = farm.agent("host-7", &[7], &yaml);
    farm.until(7, "back", |cached| cached.incarnation() > life && cached.is_in_step()).await;
    let row =
        farm.cache.with(|end, _| end.host(weir_identity::HostId(7)).unwrap().table().row(other).cloned()).unwrap();
    assert_eq!((row.directives.target, row.status.load, row.status.capacity), (Directive::Draining, 40, 40));
    for seen in [seen.0.end(), seen.1.end()] {
        assert_eq!(farm::steps(&seen, |state| state.health), [Some(Health::Healthy)], "{seen:?}");
    }
    // Only the end of the host is the end.
    agent.terminate();
    farm.until(7, "gone", |cached| cached.presence() == Presence::Gone).await;
    assert!(!farm.folder("host-7").join("agent.sock.state").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_answered_and_nothing_of_it_is_sent() {
    let farm = Farm::new().await;
    let agent = farm.agent("host-7", &[7], "applications: [{application: 1, capacity: 50}]");
    agent.ask(&["report", "1", "--health", "healthy"]);
    farm.until(7, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;
    let before = (farm.generation(), agent.status()["hosts"][0]["digest"].clone());
    for (method, path, body, status, why) in [
        ("PUT", "1/load", r#"{"load": 51}"#, "422", "load 51 is above the capacity of 50"),
        ("PUT", "1/load", r#"{"load": 300}"#, "422", "300"),
        ("PUT", "1/load", r#"{"load": -1}"#, "422", "-1"),
        ("PUT", "1/load", "{", "400", "JSON"),
        ("PUT", "1/capacity", r#"{"capacity": 100}"#, "422", "capacity 100 is not within 0–99"),
        ("PUT", "1/health", r#"{"health": "splendid"}"#, "422", "splendid"),
        ("PUT", "1/health", r#"{"helth": "healthy"}"#, "422", "helth"),
        ("PUT", "9/health", r#"{"health": "healthy"}"#, "404", "no application 9 is registered"),
        ("PUT", "9/directive", r#"{"target": "draining"}"#, "404", "no application 9 is registered"),
        ("DELETE", "9", "", "404", "no application 9 is registered"),
        ("PUT", "1", r#"{"capacity": 50, "detail": "another"}"#, "409", "registered already"),
        ("PUT", "2", r#"{"capacity": 50, "lease": 0}"#, "422", "lease 0 is not within"),
        ("PUT", "1/load?host=9", r#"{"load": 1}"#, "404", "does not speak for host 9"),
    ] {
        let (answered, text) = agent.curl(method, &format!("/v1/applications/{path}"), body);
        let error =
            serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|_| panic!("{path} {body}: {text}"));
        let error = error["error"].as_str().unwrap_or_default();
        assert!(answered == status && error.contains(why), "{method} {path} {body}: {answered} {error}");
    }
    // A heartbeat later the unit still has what it had.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((farm.generation(), agent.status()["hosts"][0]["digest"].clone()), before);
    agent.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_changes_nothing() {
    let farm = Farm::new().await;
    let yaml = "applications: [{application: 1}]";
    let clock = farm.folder("clock").with_extension("txt");
    let set = |offset: &str| std::fs::write(&clock, offset).unwrap();
    set("+0");
    let agent = farm.agent_with_clock("host-7", &[7], yaml, &clock);
    agent.ask(&["report", "1", "--health", "healthy"]);
    farm.until(7, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;
    let (seen, life) = (farm.watch(7, APPLICATION), farm.life(7));
    for offset in ["+3600", "-3600", "+40000", "-40000"] {
        set(offset);
        // Longer than three heartbeats: it would be silent if it waited for the clock.
        tokio::time::sleep(Duration::from_millis(2_000)).await;
    }
    let heard = farm.cache.with(|end, now| now.since(end.host(weir_identity::HostId(7)).unwrap().heard()));
    assert!(heard < Duration::from_millis(1_000), "{heard:?}");
    assert_eq!(farm.life(7), life);
    let faked = clock_of(&clock);
    assert!((39_000..41_000).contains(&faked), "the clock was not another: {faked}");
    // Started again eleven hours in the past, it takes a later life than the units know.
    agent.hand_over();
    let agent = farm.agent_with_clock("host-7", &[7], yaml, &clock);
    farm.until(7, "back", |cached| cached.incarnation() > life && cached.is_in_step()).await;
    let seen = seen.end();
    assert_eq!(farm::steps(&seen, |state| state.health), [Some(Health::Healthy)], "{seen:?}");
    agent.terminate();
}

/// How far in the past this clock is, in seconds.
fn clock_of(file: &std::path::Path) -> u64 {
    let mut date = Command::new("date");
    farm::with_clock(&mut date, file);
    let said = date.arg("+%s").output().unwrap();
    let said: u64 = String::from_utf8(said.stdout).unwrap().trim().parse().unwrap();
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - said
}
