//! The validated configuration: what a unit runs on after every doubt has been refused.
//!
//! Values of these types come from [`crate::load`]. References by name in the YAML (hosts, ports, pools) are resolved here
//! to ids and indices, defaults are filled in, and text is parsed; so nothing that reads a [`Config`] checks it again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use weir_identity::{ApplicationId, HostId, ServiceId, UnitId};

use crate::Report;
use crate::memory::MemoryNeed;

/// A unit's whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Who this unit is.
    pub unit: Unit,
    /// Where it is administered.
    pub admin: Admin,
    /// Where the hosts' agents connect.
    pub agents: Option<Agents>,
    /// Cores, memory, tables.
    pub dataplane: Dataplane,
    /// The network ports; at least one. Others refer to them by index.
    pub ports: Vec<Port>,
    /// Neighbours the kernel does not know.
    pub neighbours: Vec<Neighbour>,
    /// Routes the kernel does not know.
    pub routes: Vec<Route>,
    /// Source addresses and ports of full-nat services, which refer to them by index.
    pub pools: Vec<Pool>,
    /// The servers behind the unit.
    pub hosts: Vec<Host>,
    /// What clients reach, each a VIP with its endpoints.
    pub services: Vec<Service>,
    /// What was odd but did not keep the unit from starting; for the log.
    pub warnings: Report,
}

impl Config {
    /// How much memory the unit takes.
    #[must_use]
    pub fn memory(&self) -> MemoryNeed {
        MemoryNeed::of(&self.dataplane, &self.ports, !self.pools.is_empty())
    }

    /// The one port of a unit that has no other and several shards: clients and hosts are behind it alike, and its hardware can deal only
    /// one side's packets to the shards that own them.
    #[must_use]
    pub fn one_armed(&self) -> Option<&Port> {
        let mut real = self.ports.iter().filter(|port| !matches!(port.device, Device::Vlan { .. }));
        let first = real.next()?;
        (self.dataplane.shards > 1 && real.next().is_none()).then_some(first)
    }
}

/// Who this unit is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Stable id, unique in the cluster.
    pub id: UnitId,
    /// Name for people.
    pub name: String,
    /// Directory for what has to outlive it; absolute. `None`: where the system keeps such things.
    pub state: Option<PathBuf>,
}

/// Where the hosts' agents connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agents {
    /// UDP address and port to listen at.
    pub listen: SocketAddr,
    /// Directory of the unit's certificate and key.
    pub keys: PathBuf,
    /// Where HAProxy's agent-check is answered.
    pub checks: Option<SocketAddr>,
    /// Where the cache can be read over HTTP.
    pub http: Option<SocketAddr>,
    /// The other units, and where they listen.
    pub peers: BTreeMap<UnitId, SocketAddr>,
}

/// Where a unit is administered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Unix socket of the admin API; absolute, fits `sockaddr_un`.
    pub socket: PathBuf,
}

/// Cores, memory and tables of the dataplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataplane {
    /// Number of route tables; 1 to 128 and never less than a port's queues.
    pub shards: usize,
    /// Number of classifiers; at least 1.
    pub classifiers: usize,
    /// CPUs of the forwarding cores; distinct, at least one.
    pub cpus: Vec<usize>,
    /// CPUs of the classifying cores; distinct, at least one; may share CPUs with `cpus`.
    pub classifier_cpus: Vec<usize>,
    /// What a core without work does.
    pub idle: Idle,
    /// Whether DPDK's memory is huge pages.
    pub hugepages: bool,
    /// DPDK's memory in MiB.
    pub memory_mib: u64,
    /// Packet buffers over all ports.
    pub mbufs: u32,
    /// Whether tables' memory is taken at start.
    pub populate: bool,
    /// Packets taken from a queue at once; 1 to 32.
    pub burst: u16,
    /// Capacity for IPv4 routes over all shards.
    pub routes_ipv4: usize,
    /// Capacity for IPv6 routes over all shards.
    pub routes_ipv6: usize,
    /// How long an idle route lives, by what was seen of its connection.
    pub timeouts: Timeouts,
    /// Seed of the keyed flow hash; `None`: drawn at start.
    pub seed: Option<u64>,
    /// Packets of undecided flows that a classifier keeps; further ones are dropped.
    pub pending: usize,
    /// What the kernel gets by the ports' twins.
    pub twin: Twins,
}

/// What the kernel gets by each port's twin, in packets a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Twins {
    /// Of everything that is not urgent; at least 1.
    pub packets_per_second: u32,
    /// Of ARP and neighbour discovery, and as many of peers' BFD, BGP and cluster traffic; at least 1.
    pub control_packets_per_second: u32,
    /// Peers beside those that are configured as something else; none is everybody.
    pub peers: Vec<IpNet>,
}

/// What a core without work does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// It spins.
    Spin,
    /// It sleeps for adaptively longer times.
    Adaptive,
    /// It sleeps on its ports' sockets.
    Poll,
}

/// How long an idle route lives; each at least a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// SYN seen, handshake not continued yet.
    pub opening: Duration,
    /// Handshake continued.
    pub established: Duration,
    /// FIN or RST seen.
    pub closing: Duration,
    /// UDP flows.
    pub udp: Duration,
    /// Drop routes of refused connections.
    pub refused: Duration,
}

/// A network port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name within this unit.
    pub name: String,
    /// What it is made of.
    pub device: Device,
    /// RX/TX queue pairs; 1 to the number of shards.
    pub queues: u16,
    /// Whether the file says how many; else a device that has fewer gets those.
    pub queues_given: bool,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// The unit's own addresses with their on-link prefixes; empty: read from the kernel at run time.
    pub addresses: Vec<IpNet>,
    /// MAC address to use instead of the device's own.
    pub mac: Option<[u8; 6]>,
    /// Kernel interface (TAP) that stands for the port; always given with `AfXdp` and `Pci`, never with `AfPacket`. For a VLAN an
    /// interface that the kernel has on the parent's, always given unless the parent has none.
    pub twin: Option<String>,
    /// Who is behind it; for a VLAN of no matter, as the three below.
    pub side: Side,
    /// Packets that a receive queue can hold.
    pub rx_descriptors: u16,
    /// Packets that a transmit queue can hold.
    pub tx_descriptors: u16,
    /// Pause frames; other than `Keep` for PCI devices alone.
    pub flow_control: FlowControl,
}

/// Who is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Clients, or the routers to them.
    Clients,
    /// Hosts.
    Hosts,
    /// Both, or it is not known.
    Both,
}

/// Who may pause whom, by Ethernet's pause frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowControl {
    /// As the device has it.
    Keep,
    /// Nobody.
    Off,
    /// The other end may pause the port.
    Rx,
    /// The port may pause the other end.
    Tx,
    /// Both.
    Full,
}

/// What a port is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A kernel interface by packet socket.
    AfPacket(String),
    /// A kernel interface by AF_XDP.
    AfXdp(String),
    /// A NIC by its full PCI address (`0000:03:00.0`).
    Pci(String),
    /// DPDK vdev string (`net_ring0`, `net_tap0,iface=tap0`).
    Vdev(String),
    /// A VLAN on another port.
    Vlan {
        /// Index into [`Config::ports`] of a port that is no VLAN itself, smaller than this one's.
        parent: usize,
        /// 1 to 4094.
        id: u16,
    },
}

/// A static neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Index into [`Config::ports`].
    pub port: usize,
    /// Its address; on-link by being listed.
    pub address: IpAddr,
    /// Its unicast MAC address.
    pub mac: [u8; 6],
}

/// A static route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destinations, without host bits.
    pub prefix: IpNet,
    /// The gateway; of the same family.
    pub via: IpAddr,
    /// Index into [`Config::ports`].
    pub port: usize,
}

/// Source addresses and ports for full-nat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Name within this unit.
    pub name: String,
    /// Addresses to take from; a single address is a prefix of full length.
    pub addresses: Vec<IpNet>,
    /// Ports to take from, on each address.
    pub port_range: RangeInclusive<u16>,
}

impl Pool {
    /// Every address: of a prefix all, its first and last included.
    pub fn each_address(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().flat_map(|net| -> Box<dyn Iterator<Item = IpAddr>> {
            match (net.network(), net.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    Box::new((u32::from(first)..=u32::from(last)).map(|address| Ipv4Addr::from(address).into()))
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    Box::new((u128::from(first)..=u128::from(last)).map(|address| Ipv6Addr::from(address).into()))
                }
                _ => Box::new(std::iter::empty()),
            }
        })
    }

    /// Whether an address is one of the pool's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.contains(&address))
    }

    /// How many addresses there are in prefixes; a number beyond `u128` counts as the greatest.
    pub(crate) fn count(prefixes: &[IpNet]) -> u128 {
        let of =
            |net: &IpNet| 1u128.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u128::MAX);
        prefixes.iter().map(of).fold(0, u128::saturating_add)
    }
}

/// A server behind the unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Stable id, unique in the farm.
    pub id: HostId,
    /// Name for people and for `endpoints[].host`.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// An agent speaks for it.
    pub agent: bool,
}

/// What clients reach: a VIP with protocol and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Stable id, unique in the farm.
    pub id: ServiceId,
    /// Name for people.
    pub name: String,
    /// Virtual IP; nobody's own address.
    pub vip: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Ports at the VIP; no other service has the VIP, protocol and one of these.
    pub ports: Ports,
    /// How packets reach the endpoints.
    pub mode: Mode,
    /// How a new connection's endpoint is chosen.
    pub select: Select,
    /// Which token of an allotment is taken first.
    pub take: Take,
    /// Tokens in one allotment; at least 1.
    pub tokens: u32,
    /// An allotment older than this is void.
    pub max_age: Duration,
    /// What a client gets when no endpoint fits.
    pub no_endpoint: NoEndpoint,
    /// Probing of endpoints from outside.
    pub probe: Option<Probe>,
    /// Who serves it; at least one.
    pub endpoints: Vec<Endpoint>,
}

/// Transport protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// IPsec's ESP: without ports.
    Esp,
    /// GRE: without ports.
    Gre,
}

/// Ports of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Every port of the VIP.
    All,
    /// These; sorted, disjoint, not adjacent, never empty.
    Ranges(Vec<RangeInclusive<u16>>),
}

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Ports::All => true,
            Ports::Ranges(ranges) => ranges.iter().any(|range| range.contains(&port)),
        }
    }

    /// The port, if it is exactly one.
    #[must_use]
    pub fn single(&self) -> Option<u16> {
        match self {
            Ports::Ranges(ranges) => match ranges.as_slice() {
                [range] if range.start() == range.end() => Some(*range.start()),
                _ => None,
            },
            Ports::All => None,
        }
    }

    /// A port in both, if there is one: the lowest.
    #[must_use]
    pub fn common(&self, other: &Ports) -> Option<u16> {
        match (self, other) {
            (Ports::All, Ports::All) => Some(1),
            (Ports::All, Ports::Ranges(ranges)) | (Ports::Ranges(ranges), Ports::All) => {
                ranges.first().map(|range| *range.start())
            }
            (Ports::Ranges(ours), Ports::Ranges(theirs)) => ours
                .iter()
                .flat_map(|a| theirs.iter().map(move |b| (*a.start().max(b.start()), *a.end().min(b.end()))))
                .filter_map(|(start, end)| (start <= end).then_some(start))
                .min(),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ports::All => f.write_str("all"),
            Ports::Ranges(ranges) => {
                for (i, range) in ranges.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    if range.start() == range.end() {
                        write!(f, "{}", range.start())?;
                    } else {
                        write!(f, "{}-{}", range.start(), range.end())?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// How packets reach the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// MAC rewrite; on-link hosts that carry the VIP, no port change.
    Dsr,
    /// Destination rewritten; the hosts' way back leads through the unit.
    Nat,
    /// Source rewritten too.
    FullNat {
        /// Index into [`Config::pools`].
        pool: usize,
    },
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip,
    /// Generic UDP Encapsulation.
    Gue {
        /// UDP port the hosts listen on.
        port: u16,
    },
}

/// How a new connection's endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Select {
    /// A token of the allotment.
    Tokens,
    /// By the allotment's percentages.
    Percentages,
    /// Consistent hash of the client.
    Hash,
    /// Each in turn, along the capacities.
    RoundRobin,
    /// The fewest connections for the capacity.
    LeastConnection,
}

/// Which token of an allotment is taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Take {
    /// One of the endpoint that has most left.
    Greatest,
    /// Endpoints in turn.
    RoundRobin,
    /// All of the first endpoint, then the next.
    Linear,
}

/// What a client gets when no endpoint fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoEndpoint {
    /// Nothing.
    Drop,
    /// TCP: RST; UDP: port unreachable.
    Reset,
}

/// Probing of a service's endpoints from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// Port that is asked; `None`: the endpoint's port, else the service's single port (one of them exists then).
    pub port: Option<u16>,
    /// Time from one probe's start to the next; at least `timeout`.
    pub interval: Duration,
    /// An answer later than this is a failure.
    pub timeout: Duration,
    /// Successes in a row that make an endpoint healthy; at least 1.
    pub rise: u32,
    /// Failures in a row that make it failing; at least 1.
    pub fall: u32,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// A TCP connection.
    Tcp,
    /// An HTTP/1.1 GET; 2xx and 3xx are successes.
    Http {
        /// Request target; begins with `/`, no spaces, printable ASCII.
        path: String,
        /// `Host` header; `None`: the VIP.
        host: Option<String>,
    },
}

/// A host's part in a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host that serves.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// Its row in the host's health & load table.
    pub application: ApplicationId,
    /// Where it serves: the host's address or another one of it.
    pub address: IpAddr,
    /// Port where it differs from the client's destination port (nat, full-nat); `None`: the same.
    pub port: Option<u16>,
    /// Capacity as long as the host does not report one; 0 to 99, 0: gets nothing new.
    pub capacity: u32,
    /// State at start.
    pub state: DirectiveState,
    /// Used only when no other endpoint fits.
    pub backup: bool,
    /// On the unit itself: the port (index into [`Config::ports`]) whose own address it has, and whose twin takes its packets.
    pub local: Option<usize>,
}

/// An endpoint's state by directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DirectiveState {
    /// Takes connections.
    Active,
    /// Keeps its connections, gets nothing new.
    Draining,
    /// Gets nothing at all.
    Inactive,
}
