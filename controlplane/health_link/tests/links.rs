//! Agents and listeners over real QUIC with mutual TLS, on the loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weir_health_link::{Agent, Cache, GroupPlan, Keys, ListenError, ListenSettings, Listener};
use weir_health_load::{Directive, Health};
use weir_health_protocol::{CachedHost, HostSettings, Identity, Presence, Role, Status, UnitSettings};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};
use weir_pki::{Authority, Node};

const HOST: HostId = HostId(7);
const APPLICATION: ApplicationId = ApplicationId(1);

struct Cluster {
    authority: Authority,
    _directory: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        Cluster { authority: Authority::create(directory.path()).unwrap(), _directory: directory }
    }

    fn host(&self) -> Keys {
        Keys::load(&self.authority.issue("host-7", &Node::Hosts([HOST].into()), 1).unwrap()).unwrap()
    }

    fn listen(&self, unit: u32, address: SocketAddr, peers: &[(u32, SocketAddr)]) -> Result<Listener, ListenError> {
        let name = format!("unit-{unit}");
        let unit = UnitId(unit);
        let keys = match self.authority.renew(&name, 1) {
            Ok(directory) => directory,
            Err(_) => self.authority.issue(&name, &Node::Unit(unit), 1).unwrap(),
        };
        let settings = ListenSettings {
            unit: UnitSettings::new(unit, Incarnation(1)),
            address,
            peers: peers.iter().map(|(peer, address)| (UnitId(*peer), *address)).collect(),
            expected: Vec::new(),
        };
        Listener::spawn(settings, &Keys::load(&keys).unwrap())
    }
}

fn agent(keys: &Keys, units: &[(u32, SocketAddr)]) -> Agent {
    let settings = HostSettings { interval: Duration::from_millis(200), ..HostSettings::new(HOST) };
    let units: BTreeMap<UnitId, SocketAddr> = units.iter().map(|(unit, at)| (UnitId(*unit), *at)).collect();
    let agent = Agent::spawn(vec![settings], units, keys).unwrap();
    agent.with(HOST, |end, _| end.register(APPLICATION, Identity::default(), 50, Directive::Active)).unwrap().unwrap();
    agent
}

fn report(agent: &Agent, health: Health) {
    let status = Status { health, load: 0, capacity: 50 };
    agent.with(HOST, |end, _| end.report(APPLICATION, status)).unwrap().unwrap();
}

/// Waits until the cache says so of the host; how long that took.
async fn until(cache: &Cache, what: &str, is: impl Fn(&CachedHost) -> bool) -> Duration {
    let begun = Instant::now();
    let mut cache = cache.clone();
    loop {
        if cache.with(|end, _| end.host(HOST).is_some_and(&is)) {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "never {what}: {:?}",
            cache.with(|end, _| format!("{:?}", end.host(HOST)))
        );
        let _ = tokio::time::timeout(Duration::from_millis(20), cache.changed()).await;
    }
}

fn health(cached: &CachedHost) -> Option<Health> {
    let live = cached.presence() == Presence::Live;
    cached.table().row(APPLICATION).filter(|_| live).map(|row| row.status.health)
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_says_is_known_to_units_it_has_no_link_to() {
    let cluster = Cluster::new();
    let third = cluster.listen(3, loopback(), &[(1, loopback()), (2, loopback())]).unwrap();
    let second = cluster.listen(2, loopback(), &[(1, loopback()), (3, third.address())]).unwrap();
    let first = cluster.listen(1, loopback(), &[(2, second.address()), (3, third.address())]).unwrap();
    let agent = agent(&cluster.host(), &[(1, first.address()), (2, second.address())]);
    report(&agent, Health::Healthy);
    for listener in [&first, &second, &third] {
        until(&listener.cache(), "healthy", |cached| health(cached) == Some(Health::Healthy)).await;
    }
    let begun = Instant::now();
    report(&agent, Health::Failing);
    until(&third.cache(), "failing", |cached| health(cached) == Some(Health::Failing)).await;
    println!("through another unit: {:?}", begun.elapsed());
    // Drained: the directive becomes current once all three know it.
    agent.with(HOST, |end, now| end.direct(APPLICATION, Directive::Draining, now)).unwrap().unwrap();
    for listener in [&first, &second, &third] {
        let current = |cached: &CachedHost| cached.table().row(APPLICATION).map(|row| row.directives.current);
        until(&listener.cache(), "drained", |cached| current(cached) == Some(Directive::Draining)).await;
    }
    agent.goodbye().await;
    for listener in [&first, &second, &third] {
        until(&listener.cache(), "gone", |cached| cached.presence() == Presence::Gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_arrive_at_once_and_silence_is_noticed() {
    let cluster = Cluster::new();
    let unit = cluster.listen(1, loopback(), &[]).unwrap();
    let cache = unit.cache();
    let agent = agent(&cluster.host(), &[(1, unit.address())]);
    let mut times = Vec::new();
    for n in 0..200 {
        let next = if n % 2 == 0 { Health::Healthy } else { Health::Failing };
        let begun = Instant::now();
        report(&agent, next);
        until(&cache, "changed", |cached| health(cached) == Some(next)).await;
        times.push(begun.elapsed());
    }
    times.remove(0); // waits for the link
    times.sort_unstable();
    println!("health from host to cache: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    assert!(times[times.len() * 9 / 10] < Duration::from_millis(50), "{times:?}");
    drop(agent);
    let silent = until(&cache, "silent", |cached| cached.presence() == Presence::Silent).await;
    assert!(silent < Duration::from_secs(3), "three heartbeats of 200 ms are missed after {silent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_starts_again_knows_all_soon() {
    let cluster = Cluster::new();
    let unit = cluster.listen(1, loopback(), &[]).unwrap();
    let address = unit.address();
    let agent = agent(&cluster.host(), &[(1, address)]);
    report(&agent, Health::Healthy);
    until(&unit.cache(), "healthy", |cached| health(cached) == Some(Health::Healthy)).await;
    drop(unit);
    let begun = Instant::now();
    let unit = loop {
        // The old socket closes with its last task.
        match cluster.listen(1, address, &[]) {
            Ok(unit) => break unit,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    };
    until(&unit.cache(), "healthy again", |cached| health(cached) == Some(Health::Healthy)).await;
    println!("known again after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_the_revoked_are_kept_out() {
    let cluster = Cluster::new();
    let stranger = Cluster::new().host();
    let former = cluster.authority.issue("former", &Node::Hosts([HOST].into()), 1).unwrap();
    let former = Keys::load(&former).unwrap();
    cluster.authority.revoke("former").unwrap();
    let unit = cluster.listen(1, loopback(), &[]).unwrap();
    let agents = [agent(&stranger, &[(1, unit.address())]), agent(&former, &[(1, unit.address())])];
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(unit.cache().with(|end, _| end.host(HOST).is_none()));
    drop(agents);
    let known = agent(&cluster.host(), &[(1, unit.address())]);
    until(&unit.cache(), "live", |cached| cached.presence() == Presence::Live).await;
    drop(known);
    // A certificate for host 7 does not speak for host 8.
    let settings = vec![HostSettings::new(HostId(8))];
    assert!(Agent::spawn(settings, BTreeMap::from([(UnitId(1), unit.address())]), &cluster.host()).is_err());
}

#[test]
fn a_list_that_another_authority_has_signed_is_not_taken() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let directory = ours.authority.issue("host-7", &Node::Hosts([HOST].into()), 1).unwrap();
    let stranger = theirs.authority.issue("host-7", &Node::Hosts([HOST].into()), 1).unwrap();
    Keys::load(&directory).unwrap();
    std::fs::copy(stranger.join("revoked.pem"), directory.join("revoked.pem")).unwrap();
    let error = Keys::load(&directory).unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

/// Five hosts of a group, and where they listen.
fn members(cluster: &Cluster, unit: SocketAddr) -> Vec<Agent> {
    let sockets: Vec<std::net::UdpSocket> = (0..5).map(|_| std::net::UdpSocket::bind(loopback()).unwrap()).collect();
    let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap());
    let peers: BTreeMap<HostId, SocketAddr> = (5..10).map(HostId).zip(addresses).collect();
    drop(sockets);
    let join = |(host, listen): (&HostId, &SocketAddr)| {
        let (group, hosts) = ("rack-3".to_owned(), [*host].into());
        let node = Node::Member { hosts, group: group.clone(), vouches: vec![(HostId(5), HostId(9))] };
        let keys = Keys::load(&cluster.authority.issue(&format!("member-{host}"), &node, 1).unwrap()).unwrap();
        let settings = HostSettings { interval: Duration::from_millis(300), ..HostSettings::new(*host) };
        let plan = GroupPlan { group, host: *host, listen: *listen, peers: peers.clone() };
        let units = BTreeMap::from([(UnitId(1), unit)]);
        let agent = Agent::spawn_in_group(vec![settings], units, Some(plan), &keys).unwrap();
        agent
            .with(*host, |end, _| end.register(APPLICATION, Identity::default(), 50, Directive::Active))
            .unwrap()
            .unwrap();
        agent
    };
    peers.iter().map(join).collect()
}

/// Waits until one leads and all follow it; who that is.
async fn agreed(agents: &[Agent]) -> HostId {
    let begun = Instant::now();
    loop {
        let all: Vec<_> = agents.iter().filter_map(Agent::group).collect();
        let leader = all[0].leader;
        let leads = all.iter().filter(|status| status.role == Role::Leading).count() == 1;
        if let Some(leader) = leader
            && leads
            && all.iter().all(|status| status.leader == Some(leader) && status.members == agents.len())
        {
            return leader;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no agreement: {all:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_beats_for_its_group_and_is_replaced() {
    let cluster = Cluster::new();
    let unit = cluster.listen(1, loopback(), &[]).unwrap();
    let cache = unit.cache();
    let mut agents = members(&cluster, unit.address());
    let leader = agreed(&agents).await;
    until(&cache, "live", |cached| cached.presence() == Presence::Live).await;
    let live =
        |cache: &Cache| cache.with(|end, _| end.hosts().filter(|(_, host)| host.presence() == Presence::Live).count());
    // Only the leader's heartbeats come; all stay live by them, for longer than three of their own would be missed.
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(live(&cache), 5);
    }
    let position = agents.iter().position(|agent| agent.hosts() == [leader]).unwrap();
    drop(agents.remove(position));
    let begun = Instant::now();
    let next = agreed(&agents).await;
    println!("leader {leader} replaced by {next} after {:?}", begun.elapsed());
    let silent =
        |cache: &Cache| cache.with(|end, _| end.host(leader).is_some_and(|host| host.presence() == Presence::Silent));
    while !silent(&cache) {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..40 {
        assert_eq!(live(&cache), 4);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A row that changes is told by the host itself.
    let member = agents.iter().find(|agent| agent.hosts() != [next]).unwrap();
    let host = member.hosts()[0];
    let status = Status { health: Health::Failing, load: 3, capacity: 50 };
    member.with(host, |end, _| end.report(APPLICATION, status)).unwrap().unwrap();
    let known = |cache: &Cache| cache.with(|end, _| end.host(host)?.table().row(APPLICATION).map(|row| row.status));
    let begun = Instant::now();
    while known(&cache) != Some(status) {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
