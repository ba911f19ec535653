//! The YAML's shape: plain serde structs, one per section, whose documentation is also the JSON schema's.
//!
//! No logic here. Every key is an `Option`, so that a missing one is reported by validation together with everything else
//! that is wrong, and `null` (a key with nothing behind it) means the default. Addresses, durations and sizes stay text.

mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use text::{AddressText, DeviceText, DurationText, MacText, NumberOrRange, PortSet, PrefixText, SizeText};

/// Configuration of one Weir unit.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Who this unit is.
    #[schemars(required)]
    pub unit: Option<Unit>,
    /// Where it is administered.
    pub admin: Option<Admin>,
    /// Where the hosts' agents (`weir-host`) connect. Default: nowhere.
    pub agents: Option<Agents>,
    /// Cores, memory and tables. Everything has a default.
    pub dataplane: Option<Dataplane>,
    /// The network ports; at least one.
    #[schemars(required, length(min = 1))]
    pub ports: Option<Vec<Port>>,
    /// Neighbours that the kernel does not know (it is mirrored otherwise). Needed by `weir replay`. Default: none.
    pub neighbours: Option<Vec<Neighbour>>,
    /// Routes that the kernel does not know (they are mirrored otherwise). Needed by `weir replay`. Default: none.
    pub routes: Option<Vec<Route>>,
    /// Source addresses and ports for services in full-nat mode. Default: none.
    pub pools: Option<Vec<Pool>>,
    /// The servers behind the unit. Default: none.
    pub hosts: Option<Vec<Host>>,
    /// What clients reach, each a virtual IP with its endpoints. Default: none.
    pub services: Option<Vec<Service>>,
}

/// Who this unit is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Stable id, 1 to 4294967295; unique in the cluster and never given to another unit.
    #[schemars(required, range(min = 1))]
    pub id: Option<u32>,
    /// Name for people: 1 to 63 letters, digits, `-`, `_` and `.`.
    #[schemars(required)]
    pub name: Option<String>,
    /// Absolute path of the directory in which the unit keeps what has to outlive it: the secret key by which flows are dealt to shards.
    /// Default: systemd's `$STATE_DIRECTORY` where it is set, else `/var/lib/weir/NAME`, NAME being the unit's.
    pub state: Option<String>,
}

/// Where the unit is administered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Absolute path of the admin API's Unix socket, at most 107 bytes. Default: `/run/weir/NAME.sock`, NAME being the unit's.
    pub socket: Option<String>,
}

/// Where the hosts' agents connect, and the other units, which pass on what agents told them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agents {
    /// UDP address and port to listen at, such as `0.0.0.0:7300`.
    #[schemars(required)]
    pub listen: Option<String>,
    /// Absolute path of the directory with authority.pem, node.pem, node.key and perhaps revoked.pem (`weirctl pki unit`). Default:
    /// `/etc/weir/keys`.
    pub keys: Option<String>,
    /// TCP address and port that answers HAProxy's agent-check, for balancers that are not ours. Default: none.
    pub checks: Option<String>,
    /// TCP address and port where what agents say can be read over HTTP, as JSON. Anybody who reaches it may read it. Default: none.
    pub http: Option<String>,
    /// The other units. Default: none.
    pub peers: Option<Vec<AgentPeer>>,
}

/// Another unit that hosts' agents connect to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentPeer {
    /// Its id (`unit.id`), 1 to 4294967295.
    #[schemars(required, range(min = 1))]
    pub unit: Option<u32>,
    /// Where it listens for agents: address and port.
    #[schemars(required)]
    pub listen: Option<String>,
}

/// Cores, memory and tables of the dataplane.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dataplane {
    /// Number of route tables, 1 to 128, fixed at start: as many as `cpus`, or two to four times that where shards shall move between
    /// them; at least as many as a port's queues. Default: the number of `cpus`, or the largest number of queues if that is more.
    #[schemars(range(min = 1, max = 128))]
    pub shards: Option<u32>,
    /// Number of classifiers, 1 to 256, fixed at start. Default: 1.
    #[schemars(range(min = 1, max = 256))]
    pub classifiers: Option<u32>,
    /// CPUs of the forwarding cores, as numbers and ranges ("2-5"). Default: CPU 0 alone.
    pub cpus: Option<Vec<NumberOrRange>>,
    /// CPUs of the classifying cores; on small machines the same as `cpus`. Default: the last of `cpus`.
    pub classifier_cpus: Option<Vec<NumberOrRange>>,
    /// What a core without work does. Default: adaptive.
    pub idle: Option<Idle>,
    /// Whether DPDK's memory is taken from huge pages; needed by PCI devices. Default: false.
    pub hugepages: Option<bool>,
    /// DPDK's memory, a whole number of MiB, 32MiB to 1TiB; packet buffers have to fit into it. Default: 256MiB.
    pub memory: Option<SizeText>,
    /// Packet buffers over all ports, 1024 to 16777216. Default: 16384.
    #[schemars(range(min = 1024, max = 16_777_216))]
    pub mbufs: Option<u32>,
    /// Whether the memory of tables is taken at start, on huge pages where `hugepages` has them reserved, and not when it is first used;
    /// false lets a unit start faster, and its hot path wait for memory now and then. Default: true.
    pub populate: Option<bool>,
    /// Packets taken from a queue at once, 1 to 32. Default: 32.
    #[schemars(range(min = 1, max = 32))]
    pub burst: Option<u32>,
    /// Capacity of the route tables.
    pub routes: Option<TableSizes>,
    /// How long an idle route lives.
    pub timeouts: Option<Timeouts>,
    /// Seed of the keyed flow hash, 0 to 18446744073709551615. Give one only to repeat a run (`weir replay`): who knows
    /// it can aim at one shard. Default: drawn at start.
    pub seed: Option<u64>,
    /// Packets of undecided flows that one classifier keeps, 1 to 65536; further ones are dropped. They are packet buffers,
    /// so count them into `mbufs`. Default: 1024.
    #[schemars(range(min = 1, max = 65_536))]
    pub pending: Option<u32>,
    /// What the kernel gets by the ports' twins.
    pub twin: Option<Twins>,
}

/// What the kernel gets by the ports' twins: packets to the unit's own addresses, in packets a second of each port that has a twin.
/// Further ones are dropped and counted (`drop.twin_rate`, `drop.twin_control_rate`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Twins {
    /// Of everything but what `control_packets_per_second` is about, SSH and ping included; 1 to 10000000. Default: 20000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub packets_per_second: Option<u32>,
    /// Of ARP and neighbour discovery, and as many again of the peers' BFD, BGP and cluster traffic and of answers to probes; these
    /// go first; 1 to 10000000. Default: 50000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub control_packets_per_second: Option<u32>,
    /// Addresses and prefixes whose BFD and BGP, and traffic at the port of `agents.listen`, go first. The gateways of `routes`, the
    /// `agents.peers` and hosts with an agent are peers without being listed. Default: none.
    pub peers: Option<Vec<PrefixText>>,
}

/// What a core without work does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// Spin: shortest delay, the whole CPU.
    Spin,
    /// Sleep for adaptively longer times.
    Adaptive,
    /// Sleep on the ports' sockets (af_packet, af_xdp, tap); other ports are served as with `adaptive`.
    Poll,
}

/// Capacity of the route tables, in routes over all shards.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableSizes {
    /// IPv4 routes, 1024 to 1000000000. Default: 262144.
    #[schemars(range(min = 1024, max = 1_000_000_000))]
    pub ipv4: Option<u64>,
    /// IPv6 routes, 1024 to 1000000000. Default: 65536.
    #[schemars(range(min = 1024, max = 1_000_000_000))]
    pub ipv6: Option<u64>,
}

/// How long an idle route lives, each 1ms to 30days.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// SYN seen, handshake not continued yet. Default: 10s.
    pub opening: Option<DurationText>,
    /// Handshake continued. Default: 1h.
    pub established: Option<DurationText>,
    /// FIN or RST seen. Default: 60s.
    pub closing: Option<DurationText>,
    /// UDP flows. Default: 60s.
    pub udp: Option<DurationText>,
    /// Drop routes of refused connections. Default: 10s.
    pub refused: Option<DurationText>,
}

/// A network port.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Name within this unit: 1 to 63 letters, digits, `-`, `_` and `.`.
    #[schemars(required)]
    pub name: Option<String>,
    /// What it is made of. `vlan:PORT.ID` is a VLAN on a port further up in the list, and a port of its own to all else: it takes
    /// that port's queues and MAC address.
    #[schemars(required)]
    pub device: Option<DeviceText>,
    /// RX/TX queue pairs, 1 to the number of shards; with fewer, shards hand packets to each other. Default: one for each shard (at most
    /// as many as the device has); 1 for a vdev.
    #[schemars(range(min = 1, max = 128))]
    pub queues: Option<u32>,
    /// Largest IP packet in bytes, 576 to 9600; at least 1280 where the port has an IPv6 address. Default: 1500.
    #[schemars(range(min = 576, max = 9600))]
    pub mtu: Option<u32>,
    /// The unit's own addresses here, with prefix length. Default: read from the kernel at run time (`weir replay` has no
    /// kernel to ask and needs them).
    pub addresses: Option<Vec<PrefixText>>,
    /// MAC address to use. Default: the device's own.
    pub mac: Option<MacText>,
    /// Name of the kernel interface (TAP, at most 15 bytes) that stands for the port; needed with af_xdp and PCI devices,
    /// where the kernel does not see the packets, and of no use with af_packet. For a VLAN: the kernel's interface for it, which
    /// is the operator's to make; default: the port's interface with `.ID` behind it, such as eth1.100.
    pub twin: Option<String>,
    /// Who is behind the port, so that a NIC which can hash one side alone brings each packet to the shard that owns its flow.
    /// Default: both, which is what one-armed ports and trunks have.
    pub side: Option<Side>,
    /// Packets that a receive queue can hold, 64 to 16384; a physical NIC's idle cores sleep only as long as these last at line
    /// rate. Default: 1024.
    #[schemars(range(min = 64, max = 16_384))]
    pub rx_descriptors: Option<u32>,
    /// Packets that a transmit queue can hold, 64 to 16384. Default: 1024.
    #[schemars(range(min = 64, max = 16_384))]
    pub tx_descriptors: Option<u32>,
    /// Ethernet's pause frames (IEEE 802.3x), of PCI devices. Default: keep.
    pub flow_control: Option<FlowControl>,
}

/// Who is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Clients, or the routers to them.
    Clients,
    /// Hosts.
    Hosts,
    /// Both.
    Both,
}

/// Who may pause whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FlowControl {
    /// As the device has it.
    Keep,
    /// Nobody.
    Off,
    /// The other end may pause the port.
    Rx,
    /// The port pauses the other end when its buffers run out.
    Tx,
    /// Both.
    Full,
}

/// A static neighbour.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// Name of the port it is reached by.
    #[schemars(required)]
    pub port: Option<String>,
    /// Its address; counts as on-link by being listed.
    #[schemars(required)]
    pub address: Option<AddressText>,
    /// Its MAC address; unicast.
    #[schemars(required)]
    pub mac: Option<MacText>,
}

/// A static route.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destinations; no bits set behind the prefix length. 0.0.0.0/0 or ::/0 is the default route.
    #[schemars(required)]
    pub prefix: Option<PrefixText>,
    /// The gateway, on-link at the port, of the prefix's family.
    #[schemars(required)]
    pub via: Option<AddressText>,
    /// Name of the port.
    #[schemars(required)]
    pub port: Option<String>,
}

/// Source addresses and ports for services in full-nat mode.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Name within this unit, for `services[].pool`.
    #[schemars(required)]
    pub name: Option<String>,
    /// Addresses or prefixes to take from; nobody's own address.
    #[schemars(required, length(min = 1))]
    pub addresses: Option<Vec<PrefixText>>,
    /// Ports to take from on each address. Default: "1024-65535".
    pub port_range: Option<NumberOrRange>,
}

/// A server behind the unit.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Stable id, 1 to 4294967295; unique in the farm and never given to another host.
    #[schemars(required, range(min = 1))]
    pub id: Option<u32>,
    /// Name, for people and for `endpoints[].host`: 1 to 63 letters, digits, `-`, `_` and `.`.
    #[schemars(required)]
    pub name: Option<String>,
    /// Its address.
    #[schemars(required)]
    pub address: Option<AddressText>,
    /// Whether an agent (`weir-host`) speaks for it: then its rows decide, and it is not probed. Needs `agents`. Default: false.
    pub agent: Option<bool>,
}

/// What clients reach: a virtual IP with protocol, ports and endpoints.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Stable id, 1 to 4294967295; unique in the farm and never given to another service.
    #[schemars(required, range(min = 1))]
    pub id: Option<u32>,
    /// Name for people: 1 to 63 letters, digits, `-`, `_` and `.`.
    #[schemars(required)]
    pub name: Option<String>,
    /// Virtual IP: unicast, and no own address of the unit or a host.
    #[schemars(required)]
    pub vip: Option<AddressText>,
    /// Protocol. Default: tcp. Flows of `esp` and `gre`, which have no ports, are all that a client sends; an esp service's clients
    /// find the same host by its VIP's udp services on 500 and 4500 (IKE), a gre service's by the tcp service on 1723 (PPTP).
    pub protocol: Option<Protocol>,
    /// Ports at the virtual IP; not with esp and gre, else needed. No two services share VIP, protocol and a port.
    pub ports: Option<PortSet>,
    /// How packets reach the endpoints.
    #[schemars(required)]
    pub mode: Option<Mode>,
    /// With `mode: full-nat`, the name of its pool.
    pub pool: Option<String>,
    /// With `mode: ipip`, its settings (there are none yet).
    pub ipip: Option<Ipip>,
    /// With `mode: gue`, its settings.
    pub gue: Option<Gue>,
    /// How a new connection's endpoint is chosen. Default: tokens.
    pub select: Option<Select>,
    /// Which token of an allotment is taken first. Default: greatest.
    pub take: Option<Take>,
    /// Tokens in one allotment, 1 to 1000000. Default: 100.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tokens: Option<u32>,
    /// An allotment older than this is void; 1ms to 1h. Default: 1s.
    pub max_age: Option<DurationText>,
    /// What a client gets when no endpoint fits; backup endpoints are tried first. Default: drop.
    pub no_endpoint: Option<NoEndpoint>,
    /// Probing of the endpoints from outside. Default: none (their health is what their agents report).
    pub probe: Option<Probe>,
    /// Who serves it; at least one that is no backup and has a capacity above 0.
    #[schemars(required, length(min = 1))]
    pub endpoints: Option<Vec<Endpoint>>,
}

/// Transport protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// IPsec's ESP.
    Esp,
    /// GRE, as PPTP uses it.
    Gre,
}

/// How packets reach the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Direct server return: only the MAC address is rewritten; on-link hosts that carry the VIP on their loopback.
    Dsr,
    /// Half-NAT: the destination is rewritten; the hosts' way back to the clients leads through the unit.
    Nat,
    /// Full NAT: the source is rewritten too, from a pool.
    FullNat,
    /// IP in IP tunnel to the hosts.
    Ipip,
    /// Generic UDP Encapsulation to the hosts.
    Gue,
}

/// Settings of `mode: ipip`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ipip {}

/// Settings of `mode: gue`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gue {
    /// UDP port the hosts listen on, 1 to 65535. Default: 6080.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u32>,
}

/// How a new connection's endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// By tokens of the allotment.
    Tokens,
    /// By the allotment's percentages.
    Percentages,
    /// By consistent hash of the client, weighted by capacity.
    Hash,
    /// Each endpoint in turn, as often as its capacity says; load does not count.
    RoundRobin,
    /// The endpoint with the fewest connections for its capacity, as each classifier counts them; load does not count.
    LeastConnection,
}

/// Which token of an allotment is taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// One of the endpoint that has most left.
    Greatest,
    /// Endpoints in turn.
    RoundRobin,
    /// All of the first endpoint, then the next.
    Linear,
}

/// What a client gets when no endpoint fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NoEndpoint {
    /// Nothing: its packets are dropped.
    Drop,
    /// TCP: RST. UDP: ICMP port unreachable.
    Reset,
}

/// Probing of a service's endpoints from outside.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    #[schemars(required)]
    pub kind: Option<ProbeKind>,
    /// Port that is asked, 1 to 65535; needed where neither endpoint nor service has a single port, and with udp services.
    /// Default: the endpoint's, else the service's.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u32>,
    /// With `kind: http`, the request target. Default: /.
    pub path: Option<String>,
    /// With `kind: http`, the Host header. Default: the VIP.
    pub host: Option<String>,
    /// Time from one probe's start to the next, 10ms to 1h. Default: 1s.
    pub interval: Option<DurationText>,
    /// An answer later than this is a failure; 1ms to `interval`. Default: half of `interval`.
    pub timeout: Option<DurationText>,
    /// Successes in a row that make an endpoint healthy, 1 to 100. Default: 2.
    #[schemars(range(min = 1, max = 100))]
    pub rise: Option<u32>,
    /// Failures in a row that make an endpoint failing, 1 to 100. Default: 3.
    #[schemars(range(min = 1, max = 100))]
    pub fall: Option<u32>,
}

/// What a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeKind {
    /// A TCP connection.
    Tcp,
    /// An HTTP/1.1 GET; 2xx and 3xx are successes.
    Http,
}

/// A host's part in a service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Name of the host.
    #[schemars(required)]
    pub host: Option<String>,
    /// Id of its row in the host's health & load table, 1 to 4294967295; to be given where a host serves a service twice.
    /// Default: the service's id.
    #[schemars(range(min = 1))]
    pub application: Option<u32>,
    /// Address where it serves. Default: the host's.
    pub address: Option<AddressText>,
    /// Port where it serves, 1 to 65535 (nat and full-nat, for a service with a single port). Default: the port that the
    /// client asked for.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u32>,
    /// Share of new connections as long as the host does not report its own capacity, 0 to 99; 0: nothing new. Default: 50.
    #[schemars(range(min = 0, max = 99))]
    pub capacity: Option<u32>,
    /// State at start. Default: active.
    pub state: Option<DirectiveState>,
    /// Used only when no other endpoint fits. Default: false.
    pub backup: Option<bool>,
}

/// An endpoint's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DirectiveState {
    /// Takes connections.
    Active,
    /// Keeps its connections, gets nothing new.
    Draining,
    /// Gets nothing at all.
    Inactive,
}
