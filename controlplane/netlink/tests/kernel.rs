//! The mirror against the real kernel: links, neighbours and routes of network namespaces made for each test. Needs root.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_netlink::{KernelMirror, NeighbourState, Options, Prefix, RouteKind, Snapshot};

/// This thread's own network namespace with `port0` (10.80.0.1/24, fd80::1/64), and a second one with its peer (.2).
struct Lab {
    here: String,
    peer: String,
}

impl Lab {
    fn new(test: &str) -> Lab {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let id = std::process::id();
        let lab = Lab { here: format!("weirnl-{test}-{id}"), peer: format!("weirnl-{test}-peer-{id}") };
        ip(&format!("netns add {}", lab.here));
        ip(&format!("netns add {}", lab.peer));
        let namespace = File::open(format!("/run/netns/{}", lab.here)).unwrap();
        let network = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), network).unwrap();
        lab.connect();
        lab
    }

    /// Makes the veth pair, with duplicate address detection off so that addresses are usable at once.
    fn connect(&self) {
        ip(&format!(
            "link add port0 address 02:00:00:00:00:01 type veth peer name peer0 address {PEER_MAC} netns {}",
            self.peer
        ));
        for (namespace, link, n) in [(&self.here, "port0", 1), (&self.peer, "peer0", 2)] {
            ip(&format!("-n {namespace} address add 10.80.0.{n}/24 dev {link}"));
            ip(&format!("-n {namespace} address add fd80::{n}/64 dev {link} nodad"));
            ip(&format!("-n {namespace} link set {link} up"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.here, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').unwrap();
    Prefix { address: address.parse().unwrap(), len: len.parse().unwrap() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Waits until a snapshot is as it should be.
async fn until(
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    what: &str,
    is: impl Fn(&Snapshot) -> bool,
) -> Arc<Snapshot> {
    let found = tokio::time::timeout(PATIENCE, snapshots.wait_for(|snapshot| is(snapshot))).await;
    if let Ok(snapshot) = found {
        return Arc::clone(&snapshot.unwrap());
    }
    drop(found);
    panic!("not within {PATIENCE:?}: {what}; {:#?}", snapshots.borrow())
}

fn mac_of(snapshot: &Snapshot, neighbour: &str) -> Option<[u8; 6]> {
    let port = snapshot.link("port0")?.index;
    snapshot.neighbour(port, address(neighbour)).map(|known| known.mac)
}

/// The next hops of a route as text, such as `10.80.0.2*1`.
fn hops(snapshot: &Snapshot, of: &str) -> Vec<String> {
    let port = snapshot.link("port0").map(|link| link.index);
    let route = snapshot.route(prefix(of)).filter(|route| route.kind == RouteKind::Unicast);
    let mut hops = Vec::new();
    for gateway in route.map(|route| route.gateways.clone()).unwrap_or_default() {
        assert_eq!(Some(gateway.interface), port);
        let via = gateway.via.map_or("link".into(), |via| via.to_string());
        hops.push(format!("{via}*{}", gateway.weight));
    }
    hops.sort();
    hops
}

#[tokio::test]
async fn neighbours_and_links_are_followed() {
    let lab = Lab::new("neigh");
    let mirror = KernelMirror::start(Options::new(["port0"])).await.unwrap();
    let mut snapshots = mirror.snapshots();
    let first = until(&mut snapshots, "the port is up", |s| s.link("port0").is_some_and(|link| link.up)).await;
    let port = first.link("port0").unwrap();
    assert_eq!((port.mac, port.mtu), ([2, 0, 0, 0, 0, 1], 1500));
    assert_eq!(first.links.len(), 1, "only the port is mirrored");
    let has = |wanted: &str| first.addresses.iter().any(|a| a.address == address(wanted) && a.interface == port.index);
    assert!(has("10.80.0.1") && has("fd80::1"));

    ip("neigh add 10.80.0.9 lladdr 02:00:00:00:00:09 dev port0 nud permanent");
    let snapshot =
        until(&mut snapshots, "the permanent one", |s| mac_of(s, "10.80.0.9") == Some([2, 0, 0, 0, 0, 9])).await;
    assert_eq!(snapshot.neighbour(port.index, address("10.80.0.9")).unwrap().state, NeighbourState::Permanent);
    ip("neigh replace 10.80.0.9 lladdr 02:00:00:00:00:0a dev port0 nud permanent");
    until(&mut snapshots, "its new MAC", |s| mac_of(s, "10.80.0.9") == Some([2, 0, 0, 0, 0, 10])).await;
    ip("neigh del 10.80.0.9 dev port0");
    until(&mut snapshots, "it is gone", |s| mac_of(s, "10.80.0.9").is_none()).await;

    ip("link set port0 mtu 1400");
    until(&mut snapshots, "the MTU", |s| s.link("port0").is_some_and(|link| link.mtu == 1400)).await;
    ip(&format!("-n {} link set peer0 down", lab.peer));
    until(&mut snapshots, "no carrier", |s| s.link("port0").is_some_and(|link| !link.up)).await;
    ip("link del port0");
    until(&mut snapshots, "no link", |s| s.links.is_empty() && s.addresses.is_empty() && s.routes.is_empty()).await;
    lab.connect();
    until(&mut snapshots, "a new link", |s| s.link("port0").is_some_and(|link| link.up && link.index != port.index))
        .await;
    assert_eq!(mirror.dumps(), 1, "nothing was lost");
}

#[tokio::test]
async fn what_is_asked_for_is_resolved_and_stays_resolved() {
    let lab = Lab::new("ask");
    // So that an entry goes stale within a fraction of a second and is given up soon after; the kernel looks after managed
    // entries every five seconds.
    for (name, value) in [("base_reachable_time_ms", "100"), ("retrans_time_ms", "50"), ("delay_first_probe_time", "1")]
    {
        std::fs::write(format!("/proc/sys/net/ipv4/neigh/port0/{name}"), value).unwrap();
    }
    let mirror = KernelMirror::start(Options::new(["port0"])).await.unwrap();
    let mut snapshots = mirror.snapshots();
    let mac = Some([2, 0, 0, 0, 0, 2]);
    mirror.ask("port0", address("10.80.0.2"));
    mirror.ask("port0", address("fd80::2"));
    mirror.ask("port0", address("10.80.0.77"));
    until(&mut snapshots, "both families", |s| mac_of(s, "10.80.0.2") == mac && mac_of(s, "fd80::2") == mac).await;
    assert_eq!(mac_of(&snapshots.borrow(), "10.80.0.77"), None, "nobody has that address");

    let before = snapshots.borrow().generation;
    ip("neigh del fd80::2 dev port0");
    until(&mut snapshots, "deleted", |s| s.generation > before && mac_of(s, "fd80::2").is_none()).await;
    until(&mut snapshots, "again after its deletion", |s| mac_of(s, "fd80::2") == mac).await;

    // This kernel sends nothing to the host, yet it keeps asking who has the address.
    ip(&format!("-n {} link set peer0 address 02:00:00:00:00:22", lab.peer));
    let changed = Some([2, 0, 0, 0, 0, 0x22]);
    until(&mut snapshots, "the new MAC", |s| mac_of(s, "10.80.0.2") == changed).await;

    // A link that goes down loses its neighbours; they come back with it.
    ip("link set port0 down");
    until(&mut snapshots, "nobody", |s| mac_of(s, "10.80.0.2").is_none()).await;
    ip("link set port0 up");
    until(&mut snapshots, "again after the link", |s| mac_of(s, "10.80.0.2") == changed).await;
}

#[tokio::test]
async fn an_older_kernel_is_reminded_of_what_is_used() {
    let lab = Lab::new("use");
    for (name, value) in [("base_reachable_time_ms", "100"), ("retrans_time_ms", "50"), ("delay_first_probe_time", "1")]
    {
        std::fs::write(format!("/proc/sys/net/ipv4/neigh/port0/{name}"), value).unwrap();
    }
    let mirror = KernelMirror::start(Options { managed: false, ..Options::new(["port0"]) }).await.unwrap();
    let mut snapshots = mirror.snapshots();
    mirror.ask("port0", address("10.80.0.2"));
    until(&mut snapshots, "resolved", |s| mac_of(s, "10.80.0.2") == Some([2, 0, 0, 0, 0, 2])).await;
    ip(&format!("-n {} link set peer0 address 02:00:00:00:00:22", lab.peer));
    until(&mut snapshots, "the new MAC", |s| mac_of(s, "10.80.0.2") == Some([2, 0, 0, 0, 0, 0x22])).await;
}

#[tokio::test]
async fn routes_are_followed() {
    let lab = Lab::new("route");
    let mirror = KernelMirror::start(Options::new(["port0"])).await.unwrap();
    let mut snapshots = mirror.snapshots();
    until(&mut snapshots, "the connected one", |s| hops(s, "10.80.0.0/24") == ["link*1"]).await;

    ip("route add 192.0.2.0/24 via 10.80.0.2");
    until(&mut snapshots, "added", |s| hops(s, "192.0.2.0/24") == ["10.80.0.2*1"]).await;
    ip("route replace 192.0.2.0/24 via 10.80.0.3");
    until(&mut snapshots, "replaced", |s| hops(s, "192.0.2.0/24") == ["10.80.0.3*1"]).await;
    ip("route add 192.0.2.0/24 via 10.80.0.4 metric 50");
    ip("route del 192.0.2.0/24 via 10.80.0.3");
    until(&mut snapshots, "the higher metric", |s| hops(s, "192.0.2.0/24") == ["10.80.0.4*1"]).await;
    ip("route del 192.0.2.0/24 metric 50");
    until(&mut snapshots, "deleted", |s| s.route(prefix("192.0.2.0/24")).is_none()).await;

    ip("route add default nexthop via 10.80.0.2 weight 3 nexthop via 10.80.0.3 weight 1");
    until(&mut snapshots, "multipath", |s| hops(s, "0.0.0.0/0") == ["10.80.0.2*3", "10.80.0.3*1"]).await;
    ip("route add 198.51.100.0/24 via inet6 fe80::2 dev port0");
    until(&mut snapshots, "IPv4 via IPv6", |s| hops(s, "198.51.100.0/24") == ["fe80::2*1"]).await;
    ip("-6 route add 2001:db8::/32 via fe80::2 dev port0");
    until(&mut snapshots, "a link-local next hop", |s| hops(s, "2001:db8::/32") == ["fe80::2*1"]).await;
    ip("-6 route append 2001:db8::/32 via fe80::3 dev port0");
    until(&mut snapshots, "joined", |s| hops(s, "2001:db8::/32") == ["fe80::2*1", "fe80::3*1"]).await;
    ip("-6 route del 2001:db8::/32 via fe80::2 dev port0");
    until(&mut snapshots, "parted", |s| hops(s, "2001:db8::/32") == ["fe80::3*1"]).await;

    ip("route add blackhole 203.0.113.1/32");
    let is = |s: &Snapshot, of, kind| s.route(prefix(of)).is_some_and(|route| route.kind == kind);
    until(&mut snapshots, "a blackhole", |s| is(s, "203.0.113.1/32", RouteKind::Blackhole)).await;
    ip("link add mgmt0 type veth peer name mgmt1");
    ip("link set mgmt1 up");
    ip("link set mgmt0 up");
    ip("route add 172.16.0.0/12 dev mgmt0");
    until(&mut snapshots, "elsewhere", |s| is(s, "172.16.0.0/12", RouteKind::Elsewhere)).await;
    ip("route add 192.0.2.0/24 via 10.80.0.2 table 100");
    ip("route add 192.0.2.128/25 via 10.80.0.2");
    let snapshot = until(&mut snapshots, "the main table", |s| hops(s, "192.0.2.128/25").len() == 1).await;
    assert_eq!(snapshot.route(prefix("192.0.2.0/24")), None, "other tables are not mirrored");

    // The kernel announces none of these IPv4 routes' ends.
    ip("link set port0 down");
    until(&mut snapshots, "no route", |s| s.routes.values().all(|route| route.kind != RouteKind::Unicast)).await;
    ip("link set port0 up");
    until(&mut snapshots, "the connected one again", |s| hops(s, "10.80.0.0/24") == ["link*1"]).await;
    assert!(hops(&snapshots.borrow(), "0.0.0.0/0").is_empty());
    drop(lab);
}

#[tokio::test]
async fn lost_announcements_are_made_good_by_a_full_dump() {
    let _lab = Lab::new("lost");
    let options = Options { receive_buffer: 1, ..Options::new(["port0"]) };
    let mirror = KernelMirror::start(options).await.unwrap();
    let mut snapshots = mirror.snapshots();
    until(&mut snapshots, "the connected one", |s| hops(s, "10.80.0.0/24") == ["link*1"]).await;
    let before = mirror.dumps();

    // This blocks the runtime's only thread, so nobody reads the socket meanwhile.
    let mut batch = String::new();
    for n in 0..ROUTES {
        writeln!(batch, "route add 10.100.{}.{}/32 via 10.80.0.2", n / 256, n % 256).unwrap();
    }
    writeln!(batch, "route del 10.100.0.0/32\nneigh add 10.80.0.9 lladdr {PEER_MAC} dev port0 nud permanent").unwrap();
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());

    let complete = |s: &Snapshot| {
        let added = s.routes.values().filter(|route| route.prefix.len == 32).count();
        added == ROUTES - 1 && mac_of(s, "10.80.0.9").is_some()
    };
    until(&mut snapshots, "all of them", complete).await;
    assert!(mirror.dumps() > before, "nothing was lost: the test proves nothing");
    // And it follows again.
    ip("neigh del 10.80.0.9 dev port0");
    until(&mut snapshots, "it is gone", |s| mac_of(s, "10.80.0.9").is_none()).await;
}

const PEER_MAC: &str = "02:00:00:00:00:02";
const ROUTES: usize = 3000;
const PATIENCE: Duration = Duration::from_secs(20);
