//! What the admin API says: the shapes of its JSON and the trait [`UnitApi`] that a unit implements to answer it.
//!
//! Numbers carry their unit in the name (`_ms`, `_bytes`); counters grow from the unit's start. Sets that may grow with a later
//! version (forwarding mode, route state, drop reason) are strings, so that an older `weirctl` still reads a newer unit.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use weir_identity::{HostId, Incarnation, ServiceId, UnitId};

/// What a unit answers to its operator. Every method reads or changes the unit named by the socket, no other.
pub trait UnitApi: Send + Sync + 'static {
    /// The unit itself: identity, ports, cores, shards, packet buffers.
    fn status(&self) -> impl Future<Output = Result<Status, ApiError>> + Send;

    /// All services with their endpoints, by service id.
    fn services(&self) -> impl Future<Output = Result<Vec<ServiceStatus>, ApiError>> + Send;

    /// All hosts with what each of them serves, by host id.
    fn hosts(&self) -> impl Future<Output = Result<Vec<HostStatus>, ApiError>> + Send;

    /// Gives `host` no new connections, for one service or all of them. `host` and `service` are a name or an id.
    fn drain(
        &self,
        host: &str,
        service: Option<&str>,
    ) -> impl Future<Output = Result<Vec<DirectiveChange>, ApiError>> + Send;

    /// Takes back [`UnitApi::drain`]: the endpoints are active again.
    fn resume(
        &self,
        host: &str,
        service: Option<&str>,
    ) -> impl Future<Output = Result<Vec<DirectiveChange>, ApiError>> + Send;

    /// The routes of one connection, both directions where the mode has both.
    fn routes_lookup(&self, flow: Flow) -> impl Future<Output = Result<RouteLookup, ApiError>> + Send;

    /// A page of at most `limit` routes, of one service (name or id) or of all; `from` is [`RouteList::next`] of the page before.
    fn routes_list(
        &self,
        limit: usize,
        service: Option<&str>,
        from: Option<&str>,
    ) -> impl Future<Output = Result<RouteList, ApiError>> + Send;

    /// How many routes there are, by shard.
    fn routes_count(&self) -> impl Future<Output = Result<RouteCount, ApiError>> + Send;

    /// Every counter of the unit.
    fn counters(&self) -> impl Future<Output = Result<Counters, ApiError>> + Send;

    /// Moves a shard to the forwarding core on `cpu`, with its routes, while it forwards.
    fn move_shard(&self, shard: u32, cpu: u32) -> impl Future<Output = Result<ShardMove, ApiError>> + Send;
}

/// Why a unit did not do what it was asked; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ApiError {
    /// No host has this name or id.
    #[error("no host {0:?}")]
    UnknownHost(String),
    /// No service has this name or id.
    #[error("no service {0:?}")]
    UnknownService(String),
    /// The host has no endpoint of the service.
    #[error("host {host:?} does not serve {service:?}")]
    NotServed {
        /// As it was asked.
        host: String,
        /// As it was asked.
        service: String,
    },
    /// The unit has no such shard.
    #[error("no shard {0}")]
    UnknownShard(u32),
    /// No forwarding core is pinned to this CPU.
    #[error("no forwarding core runs on CPU {0}")]
    UnknownCpu(u32),
    /// The question itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// This unit's roles or ports do not include what was asked.
    #[error("this unit does not {0}")]
    Unsupported(String),
    /// A core did not answer in time (milliseconds).
    #[error("{part} did not answer within {waited_ms} ms")]
    NoAnswer {
        /// Who was asked, such as `core 0`.
        part: String,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The unit is on its way out.
    #[error("the unit is stopping")]
    Stopping,
}

impl ApiError {
    /// The HTTP status that carries this error.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            ApiError::UnknownHost(_)
            | ApiError::UnknownService(_)
            | ApiError::NotServed { .. }
            | ApiError::UnknownShard(_)
            | ApiError::UnknownCpu(_) => 404,
            ApiError::BadRequest(_) => 400,
            ApiError::Unsupported(_) => 501,
            ApiError::Stopping => 503,
            ApiError::NoAnswer { .. } => 504,
        }
    }

    /// What the operator may do about it, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ApiError::UnknownHost(_) => Some("`weirctl hosts` lists names and ids"),
            ApiError::UnknownService(_) | ApiError::NotServed { .. } => {
                Some("`weirctl services` lists services and their hosts")
            }
            ApiError::UnknownShard(_) | ApiError::UnknownCpu(_) => Some("`weirctl status` lists shards and cores"),
            ApiError::NoAnswer { .. } => Some("a core that hangs is restarted with its unit; see the unit's log"),
            ApiError::BadRequest(_) | ApiError::Unsupported(_) | ApiError::Stopping => None,
        }
    }
}

/// The body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, one line.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The unit itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// From the YAML (`unit.id`).
    pub unit: UnitId,
    /// From the YAML (`unit.name`).
    pub name: String,
    /// Which life of the unit this is.
    pub incarnation: Incarnation,
    /// The package's version.
    pub version: String,
    /// The source revision it was built from.
    pub revision: String,
    /// The DPDK version it runs with.
    pub dpdk: String,
    /// Since the start, in milliseconds.
    pub uptime_ms: u64,
    /// By port number.
    pub ports: Vec<PortStatus>,
    /// By CPU.
    pub cores: Vec<CoreStatus>,
    /// By shard number.
    pub shards: Vec<ShardStatus>,
    /// Packet buffers of all pools.
    pub mbufs: MbufStatus,
}

/// One DPDK port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// From the YAML (`ports[].name`).
    pub name: String,
    /// From the YAML (`ports[].device`).
    pub device: String,
    /// As `02:00:00:00:00:01`.
    pub mac: String,
    /// Whether the link is up.
    pub link_up: bool,
    /// How its device spreads packets over its receive queues.
    #[serde(default)]
    pub rss: RssStatus,
    /// Packets that shards have received by it, and how many of them came in at another shard than their flow's and were handed over.
    #[serde(default)]
    pub steered: SteeredStatus,
    /// What was received.
    pub rx: PortCounters,
    /// What was sent.
    pub tx: PortCounters,
}

/// How many of a port's packets belonged to other shards than those that received them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SteeredStatus {
    /// Packets received.
    pub received: u64,
    /// Those of them that were handed over.
    pub handed_over: u64,
}

impl fmt::Display for SteeredStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.handed_over * 1000).checked_div(self.received) {
            Some(share) => write!(f, "{}.{}%", share / 10, share % 10),
            None => f.write_str("-"),
        }
    }
}

/// How a port's device spreads packets over its receive queues.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum RssStatus {
    /// As the shards own flows, on one side of packets: each comes to its owner.
    Exact {
        /// `source` or `destination`.
        by: String,
    },
    /// By a hash that no shard can rely on.
    Hint {
        /// Why it is not exact.
        why: String,
    },
    /// It does not: one queue, or the kernel chooses.
    #[default]
    None,
}

impl fmt::Display for RssStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RssStatus::Exact { by } => write!(f, "exact ({by})"),
            RssStatus::Hint { .. } => f.write_str("hint"),
            RssStatus::None => f.write_str("none"),
        }
    }
}

/// One direction of a port, from the unit's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes, as the driver counts them (without the frame check sequence).
    pub bytes: u64,
    /// Received but lost for want of a descriptor or buffer; 0 for sending.
    #[serde(default)]
    pub missed: u64,
    /// Errors the driver reports.
    #[serde(default)]
    pub errors: u64,
}

/// One pinned thread of the dataplane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoreStatus {
    /// The CPU it is pinned to.
    pub cpu: u32,
    /// The shards it runs now.
    pub shards: Vec<u32>,
    /// The classifiers it runs now.
    pub classifiers: Vec<u32>,
    /// Part of the last second's loops that found work, 0 to 1.
    pub busy: f64,
}

/// One shard: a route table with its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub id: u32,
    /// The CPU of the core that runs it.
    pub cpu: u32,
    /// Routes of IPv4 connections now.
    pub routes_ipv4: u64,
    /// Routes of IPv6 connections now.
    pub routes_ipv6: u64,
    /// Most IPv4 routes it can hold.
    pub capacity_ipv4: u64,
    /// Most IPv6 routes it can hold.
    pub capacity_ipv6: u64,
}

/// Packet buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MbufStatus {
    /// Taken from the pools now (posted to receive queues included).
    pub in_use: u64,
    /// All there are.
    pub total: u64,
}

/// One service and its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// From the YAML (`services[].id`).
    pub id: ServiceId,
    /// From the YAML (`services[].name`).
    pub name: String,
    /// The virtual address.
    pub vip: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// As in the YAML: `80`, `80,443`, `8000-8099`, `all`.
    pub ports: String,
    /// Forwarding mode: `dsr`, `nat`, …
    pub mode: String,
    /// How endpoints are chosen: `tokens`, `percentages`, `hash`.
    pub select: String,
    /// What becomes of a connection for which no endpoint is fit: `drop`, `reset`.
    pub no_endpoint: String,
    /// New connections that met no fit endpoint, from the unit's start.
    pub refused: u64,
    /// In the order of the YAML.
    pub endpoints: Vec<EndpointStatus>,
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Its host.
    pub host: HostId,
    /// The host's name.
    pub host_name: String,
    /// Where packets go.
    pub address: IpAddr,
    /// The port it listens on; absent where the service's port stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Free capacity as last known, 0–99 or the YAML's share.
    pub capacity: u32,
    /// What the operator wants of it.
    pub directive: Directive,
    /// What is known of it.
    pub health: Health,
    /// How long it has had this health, in milliseconds.
    pub since_ms: u64,
    /// New connections given to it, from the unit's start.
    pub new_connections: u64,
    /// Used only when no other endpoint is fit.
    #[serde(default)]
    pub backup: bool,
}

/// One host and what it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// From the YAML (`hosts[].id`).
    pub id: HostId,
    /// From the YAML (`hosts[].name`).
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address, once resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its agent or proxy, where the YAML says that it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// One row per service it serves.
    pub services: Vec<HostService>,
    /// The latest changes, newest first; at most a few dozen.
    #[serde(default)]
    pub recent: Vec<HealthChange>,
}

/// One service on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostService {
    /// The service's id.
    pub service: ServiceId,
    /// The service's name.
    pub name: String,
    /// What the operator wants of the endpoint.
    pub directive: Directive,
    /// What is known of the endpoint.
    pub health: Health,
    /// How long it has had this health, in milliseconds.
    pub since_ms: u64,
    /// New connections given to it, from the unit's start.
    pub new_connections: u64,
    /// What the host's agent says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentRow>,
}

/// What is known of a host's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Whether it is there.
    pub presence: Presence,
    /// How long it has been so, in milliseconds.
    pub since_ms: u64,
    /// How long ago its latest heartbeat came, in milliseconds; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<u64>,
    /// 0: its own agent; 1 to 3: a proxy.
    pub rank: u8,
    /// The host whose agent sends its heartbeats, as the leader of a group; absent if it does so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<HostId>,
    /// The group that it may be a member of, by its certificate or its leader's; absent if it is in none, or if that is not known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// It leads its group now: other hosts live by its word.
    #[serde(default)]
    pub leads: bool,
    /// The DNS name that it gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_name: Option<String>,
}

/// Whether a host's agent is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Nothing was heard that could be believed, so far.
    Expected,
    /// It is heard.
    Live,
    /// Three heartbeats are missing.
    Silent,
    /// It said goodbye.
    Gone,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Presence::Expected => "expected",
            Presence::Live => "live",
            Presence::Silent => "silent",
            Presence::Gone => "gone",
        })
    }
}

/// What a host's agent says of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRow {
    /// Its health, as last heard.
    pub health: Health,
    /// How much of its capacity is in use.
    pub load: u8,
    /// What it can take, 0–99.
    pub capacity: u8,
    /// What the host wants.
    pub target: Directive,
    /// What the host takes every unit to know.
    pub current: Directive,
    /// The agent is heard; else this is the last that it said.
    pub live: bool,
    /// How long it has said this health and target, in milliseconds.
    #[serde(default)]
    pub since_ms: u64,
}

/// An endpoint's health went from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChange {
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
    /// The service's name.
    pub service: String,
    /// Before.
    pub from: Health,
    /// After.
    pub to: Health,
    /// What the probe or agent saw, such as `connect: refused`.
    pub reason: String,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers as it should.
    Healthy,
    /// It does not.
    Failing,
    /// Nothing is known yet, or no more.
    Unknown,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Healthy => "healthy",
            Health::Failing => "failing",
            Health::Unknown => "unknown",
        })
    }
}

/// What the operator wants of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directive {
    /// It serves.
    Active,
    /// Existing connections go on, no new ones, affinity included.
    Draining,
    /// Nothing at all.
    Inactive,
}

impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Directive::Active => "active",
            Directive::Draining => "draining",
            Directive::Inactive => "inactive",
        })
    }
}

/// One endpoint whose directive was set; `from == to` when it had it already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectiveChange {
    /// The host's name.
    pub host: String,
    /// The service's name.
    pub service: String,
    /// Before.
    pub from: Directive,
    /// Now.
    pub to: Directive,
}

/// Whom `drain` and `resume` are about: the body of their requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectiveRequest {
    /// A host's name or id.
    pub host: String,
    /// A service's name or id; absent: all the host serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// IPsec's ESP; ports are 0.
    Esp,
    /// GRE; ports are 0.
    Gre,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Esp => "esp",
            Protocol::Gre => "gre",
        })
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Protocol, UnknownProtocol> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "esp" => Ok(Protocol::Esp),
            "gre" => Ok(Protocol::Gre),
            _ => Err(UnknownProtocol(text.to_owned())),
        }
    }
}

/// A text that names no protocol of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is none of tcp, udp, esp, gre")]
pub struct UnknownProtocol(pub String);

/// One connection, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The virtual address and port.
    pub vip: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

/// Which way a route's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the client to the host.
    ToHost,
    /// From the host to the client.
    ToClient,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::ToHost => "to-host",
            Direction::ToClient => "to-client",
        })
    }
}

/// One entry of a route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Whose packets.
    pub flow: Flow,
    /// Which way.
    pub direction: Direction,
    /// `send`, `drop`, `divert` or `local`.
    pub action: String,
    /// Where `send` sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<RouteEndpoint>,
    /// `opening`, `established`, `closing`, …
    pub state: String,
    /// Since its last packet, in milliseconds.
    pub idle_ms: u64,
    /// Until it expires unless another packet comes, in milliseconds.
    pub expires_in_ms: u64,
    /// The shard that holds it.
    pub shard: u32,
}

/// The endpoint of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEndpoint {
    /// Its host.
    pub host: HostId,
    /// The host's name.
    pub name: String,
    /// Where packets go; in modes without rewriting the port is the VIP's.
    pub address: SocketAddr,
    /// The forwarding mode.
    pub mode: String,
    /// Full-nat: the pool's address and port that the host sees as the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
}

/// What is known of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLookup {
    /// The shard that owns the flow, whether it has a route or not.
    pub shard: u32,
    /// None, one, or both directions.
    pub routes: Vec<RouteEntry>,
}

/// A page of routes. It may have fewer than were asked for, even none, and others may follow: a unit looks at so much of its tables at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteList {
    /// In no order. A route that changes its place between two pages may be on both of them, or on none.
    pub routes: Vec<RouteEntry>,
    /// Whether this was not all.
    pub more: bool,
    /// Where the next page begins; absent if this was the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How many routes there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCount {
    /// Over all shards, both families.
    pub total: u64,
    /// By shard number.
    pub shards: Vec<ShardStatus>,
}

/// The unit's counters by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Of the whole unit: packets, verdicts, connections.
    pub totals: BTreeMap<String, u64>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<String, u64>,
    /// By port name, then counter.
    #[serde(default)]
    pub ports: BTreeMap<String, BTreeMap<String, u64>>,
    /// By shard number, then counter.
    #[serde(default)]
    pub shards: BTreeMap<u32, BTreeMap<String, u64>>,
}

/// Where a shard should go: the body of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMoveRequest {
    /// The CPU of a forwarding core.
    pub cpu: u32,
}

/// A shard was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMove {
    /// Its number.
    pub shard: u32,
    /// The CPU it ran on before.
    pub from_cpu: u32,
    /// The CPU it runs on now.
    pub to_cpu: u32,
}
