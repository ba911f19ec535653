//! Everything that can be wrong with a configuration, in an operator's words, and what would be right.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::near::nearest;

/// One kind of mistake with the values that make it one; its `Display` says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mistake {
    // The file and its syntax
    /// The file cannot be read.
    #[error("cannot be read: {reason}")]
    Unreadable {
        /// The system's words.
        reason: String,
    },
    /// It is no YAML.
    #[error("no valid YAML: {reason}")]
    Syntax {
        /// The parser's words.
        reason: String,
    },
    /// A mapping has a key twice.
    #[error("the key stands here for the second time")]
    DuplicateKey,
    /// A key that means nothing here.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// The keys there are.
        valid: &'static [&'static str],
    },
    /// A value of the wrong kind.
    #[error("{found} instead of {expected}")]
    WrongValue {
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// A word that is none of the given ones.
    #[error("unknown word `{word}`")]
    UnknownWord {
        /// The word.
        word: String,
        /// The words there are.
        valid: &'static [&'static str],
    },
    /// So many mistakes that reading ended.
    #[error("more than {limit} mistakes; reading ended there")]
    TooMany {
        /// How many are reported.
        limit: usize,
    },

    // Single values
    /// A key that has to be there.
    #[error("is missing")]
    Missing {
        /// What it means.
        what: &'static str,
    },
    /// A list that has to have elements.
    #[error("is empty")]
    Empty {
        /// What belongs there.
        what: &'static str,
    },
    /// Text that cannot be parsed.
    #[error("`{text}` is not {expected}")]
    Unparsable {
        /// The text.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A number, size or duration outside its range.
    #[error("{value} is out of range")]
    OutOfRange {
        /// The value.
        value: String,
        /// The range.
        range: String,
    },
    /// A host with an agent, and no place for that to connect to.
    #[error("the host has an agent, but there is no section `agents`")]
    NoAgents,
    /// The unit itself among its peers.
    #[error("unit {unit} is this unit")]
    PeerIsSelf {
        /// Its id.
        unit: u32,
    },
    /// A duration of nothing.
    #[error("is zero")]
    ZeroDuration {
        /// The range.
        range: String,
    },
    /// A name that cannot be one.
    #[error("`{name}` cannot be a name")]
    BadName {
        /// The name.
        name: String,
    },
    /// An interface name the kernel would not take.
    #[error("`{name}` cannot be an interface's name")]
    BadInterface {
        /// The name.
        name: String,
    },
    /// A path that cannot be a Unix socket's.
    #[error("`{path}` cannot be a socket's path")]
    BadSocket {
        /// The path.
        path: String,
    },
    /// A range that ends before it begins.
    #[error("the range {start}-{end} ends before it begins")]
    BackwardRange {
        /// First.
        start: u64,
        /// Last.
        end: u64,
    },
    /// A range that overlaps an earlier one of the same list.
    #[error("port {port} is in the list already")]
    RepeatedPort {
        /// A port in both.
        port: u16,
    },
    /// An address that cannot belong to one machine.
    #[error("{address} is {kind}, no address of one machine")]
    NotUnicast {
        /// The address.
        address: IpAddr,
        /// What it is.
        kind: &'static str,
    },
    /// A prefix with host bits.
    #[error("{prefix} has bits set behind its prefix length")]
    HostBits {
        /// The prefix.
        prefix: IpNet,
    },
    /// A network's own or broadcast address as an address.
    #[error("{address} is the {which} address of its network")]
    NetworkAddress {
        /// Address and prefix length.
        address: IpNet,
        /// `network` or `broadcast`.
        which: &'static str,
    },
    /// A MAC address that cannot be a station's.
    #[error("{mac} is {kind}, no station's address")]
    NotStation {
        /// As given.
        mac: String,
        /// What it is.
        kind: &'static str,
    },
    /// Text that would break a probe's request.
    #[error("{text:?} cannot stand in an HTTP request")]
    BadHttpText {
        /// The text.
        text: String,
        /// What it should be.
        expected: &'static str,
    },

    // Several values
    /// A value that must be unique.
    #[error("{what} {value} is taken by {first}")]
    Duplicate {
        /// Of what kind.
        what: &'static str,
        /// The value.
        value: String,
        /// Where it stands first.
        first: String,
    },
    /// A reference to nothing.
    #[error("there is no {what} `{name}`")]
    UnknownName {
        /// Of what kind.
        what: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A number in a list of CPUs that this machine lacks.
    #[error("this machine has no CPU {cpu}")]
    NoSuchCpu {
        /// The number.
        cpu: usize,
    },
    /// More CPUs than shards or classifiers.
    #[error("{cpus} CPUs for {count} {of}: some have nothing to do")]
    IdleCpus {
        /// Number of CPUs.
        cpus: usize,
        /// Number of shards or classifiers.
        count: usize,
        /// `shards` or `classifiers`.
        of: &'static str,
    },
    /// More queues than shards.
    #[error("{queues} queues but {shards} shards")]
    QueuesOverShards {
        /// Queues of the port.
        queues: u16,
        /// Shards of the unit.
        shards: usize,
    },
    /// Packet buffers that do not fit into the memory.
    #[error("{memory_mib} MiB are too little for {mbufs} packet buffers of {each} bytes")]
    MemoryShort {
        /// Given memory.
        memory_mib: u64,
        /// Number of packet buffers.
        mbufs: u32,
        /// Bytes each, all included.
        each: u64,
        /// Needed memory.
        need_mib: u64,
    },
    /// Packet buffers that the receive queues alone could use up.
    #[error("{mbufs} packet buffers are few for {queues} queues")]
    FewMbufs {
        /// Number of packet buffers.
        mbufs: u32,
        /// Queues of all ports.
        queues: u64,
        /// Advised number.
        advised: u64,
    },
    /// Waiting packets that could use up the packet buffers.
    #[error("{classifiers} classifiers that keep {pending} packets each could take all {mbufs} packet buffers")]
    PendingOverMbufs {
        /// Packets one classifier keeps.
        pending: usize,
        /// Number of classifiers.
        classifiers: usize,
        /// Number of packet buffers.
        mbufs: u32,
    },
    /// A PCI device without huge pages.
    #[error("a PCI device needs huge pages")]
    PciWithoutHugepages,
    /// A device that the kernel cannot see through.
    #[error("is missing: the kernel does not see the packets of {device} devices")]
    TwinMissing {
        /// Kind of the device.
        device: &'static str,
    },
    /// A twin for an interface of the kernel's own.
    #[error("the kernel sees an af_packet device itself")]
    TwinNeedless,
    /// An MTU below what IPv6 demands.
    #[error("an MTU of {mtu} is too small for IPv6")]
    MtuBelowIpv6 {
        /// The MTU.
        mtu: u16,
    },
    /// A gateway that the port does not reach directly.
    #[error("the gateway {via} is not on-link at {port}")]
    GatewayOffLink {
        /// The gateway.
        via: IpAddr,
        /// The port's name.
        port: String,
        /// The port's prefixes.
        prefixes: Vec<IpNet>,
    },
    /// Two addresses of different families where one is needed.
    #[error("{address} is {family}, but {other} {other_address} is not")]
    FamilyDiffers {
        /// The one.
        address: IpAddr,
        /// Its family.
        family: &'static str,
        /// What the other one is.
        other: &'static str,
        /// The other one.
        other_address: IpAddr,
    },
    /// An address that belongs to somebody else.
    #[error("{address} is {owner}'s own address ({first})")]
    OwnAddress {
        /// The address.
        address: IpAddr,
        /// Whose.
        owner: String,
        /// Where that stands.
        first: String,
    },
    /// An endpoint or host at a VIP: packets would go round in circles.
    #[error("{address} is the VIP of {service}")]
    AtVip {
        /// The address.
        address: IpAddr,
        /// The service's name.
        service: String,
    },
    /// Two services that claim the same packets.
    #[error("{protocol} port {port} of {vip} belongs to service `{other}` already")]
    Overlap {
        /// The VIP.
        vip: IpAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// A port in both.
        port: u16,
        /// The other service's name.
        other: String,
        /// Where its ports stand.
        first: String,
    },
    /// A pool with more addresses than the data plane looks through.
    #[error("more than {most} addresses")]
    PoolTooLarge {
        /// As many are allowed.
        most: usize,
    },
    /// A pool with too few ports for several shards: a client gets ports of its own bucket alone.
    #[error("{ports} ports for {shards} shards: some clients would find none")]
    FewPoolPorts {
        /// Ports on each address.
        ports: usize,
        /// Shards of the unit.
        shards: usize,
    },
    /// An endpoint whose family no address of its service's pool has.
    #[error("{address} is {family}, but pool `{pool}` has no {family} address")]
    PoolFamily {
        /// The endpoint's address.
        address: IpAddr,
        /// Its family.
        family: &'static str,
        /// The pool's name.
        pool: String,
    },
    /// A key of another mode.
    #[error("is of no use with mode {mode}")]
    OtherMode {
        /// The service's mode.
        mode: &'static str,
        /// The mode that it belongs to.
        belongs_to: &'static str,
    },
    /// A key that another key's value makes ineffective.
    #[error("has no effect with `{with}`")]
    NoEffect {
        /// `key: value` that is the reason.
        with: &'static str,
    },
    /// A port change in a mode that cannot.
    #[error("mode {mode} cannot change the port from {ports} to {port}")]
    PortChange {
        /// The mode.
        mode: &'static str,
        /// The service's ports.
        ports: String,
        /// The endpoint's.
        port: u16,
    },
    /// One endpoint port for several service ports.
    #[error("one port {port} for the service's ports {ports}")]
    PortForMany {
        /// The service's ports.
        ports: String,
        /// The endpoint's.
        port: u16,
    },
    /// A dsr endpoint that no port reaches directly.
    #[error("{address} is on-link at no port, and dsr rewrites nothing but the MAC address")]
    HostOffLink {
        /// The endpoint's address.
        address: IpAddr,
        /// The ports' prefixes.
        prefixes: Vec<IpNet>,
    },
    /// An endpoint on the unit itself, in a mode in which its kernel would have to own the VIP.
    #[error(
        "{address} is port `{port}`'s own address, and the unit's kernel, which does not have the VIP, takes no packets in mode {mode}"
    )]
    LocalMode {
        /// The endpoint's address.
        address: IpAddr,
        /// The port's name.
        port: String,
        /// The service's mode.
        mode: &'static str,
    },
    /// An endpoint on the unit itself, at a port whose kernel sees the port itself.
    #[error(
        "{address} is port `{port}`'s own address, and that port's kernel has no twin by which it could be given packets"
    )]
    LocalTwin {
        /// The endpoint's address.
        address: IpAddr,
        /// The port's name.
        port: String,
    },
    /// A service that nobody serves.
    #[error("is empty: nobody serves `{service}`")]
    NoEndpoints {
        /// Its name.
        service: String,
    },
    /// A service with backups only.
    #[error("all endpoints of `{service}` are backups")]
    OnlyBackups {
        /// Its name.
        service: String,
    },
    /// A service whose endpoints take nothing.
    #[error("all endpoints of `{service}` have capacity 0")]
    NoCapacity {
        /// Its name.
        service: String,
    },
    /// A service that starts without an active endpoint.
    #[error("no endpoint of `{service}` is active at start")]
    NoneActive {
        /// Its name.
        service: String,
    },
    /// A probe that begins before the one before has ended.
    #[error("the interval {} is shorter than the timeout {}", humantime::format_duration(*.interval), humantime::format_duration(*.timeout))]
    ProbeTooOften {
        /// Time between probes.
        interval: Duration,
        /// Time for one.
        timeout: Duration,
    },
    /// A probe that does not know where to knock.
    #[error("is missing: {why}")]
    ProbePort {
        /// Why there is no default.
        why: &'static str,
    },
    /// Two nat services whose replies look the same.
    #[error("replies of {address} port {port} belong to `{other}` too when a client uses one source port for both")]
    RepliesAlike {
        /// Shared endpoint address.
        address: IpAddr,
        /// Shared endpoint port.
        port: u16,
        /// The other service's name.
        other: String,
        /// Where the other endpoint stands.
        first: String,
    },
    /// Ports of a protocol that has none.
    #[error("{protocol} has no ports")]
    NoPorts {
        /// The protocol.
        protocol: &'static str,
    },
    /// A mode that translates ports, for a protocol that has none.
    #[error("full-nat translates ports, and {protocol} has none")]
    TranslatesPorts {
        /// The protocol.
        protocol: &'static str,
    },
    /// A VLAN whose packets do not fit its port.
    #[error("a VLAN's mtu of {mtu} is more than the {most} of its port `{port}`")]
    MtuOverParent {
        /// As given.
        mtu: u16,
        /// The port below.
        port: String,
        /// Its MTU.
        most: u16,
    },
    /// A VLAN with what only a port has.
    #[error("a VLAN has its port's `{key}`")]
    OfParent {
        /// The key.
        key: &'static str,
    },
    /// A host that serves nothing.
    #[error("host `{host}` is in no service")]
    UnusedHost {
        /// Its name.
        host: String,
    },
    /// A unit without services.
    #[error("there is no service: every packet goes to the kernel")]
    NoServices,
}

impl Mistake {
    /// What would be right, where the message alone does not say it.
    #[must_use]
    pub fn right(&self) -> Option<String> {
        let text = match self {
            Mistake::NoAgents => "add `agents: { listen: \"0.0.0.0:7300\" }`, or take `agent: true` away".to_owned(),
            Mistake::PeerIsSelf { .. } => "name the other units only".to_owned(),
            Mistake::UnknownKey { key, valid } => match nearest(key, valid.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if valid.is_empty() => "there are no keys here".to_owned(),
                None => format!("the keys here are {}", valid.join(", ")),
            },
            Mistake::UnknownWord { word, valid } => match nearest(word, valid.iter().copied()) {
                Some(near) => format!("did you mean `{near}`? There are {}", valid.join(", ")),
                None => format!("there are {}", valid.join(", ")),
            },
            Mistake::DuplicateKey => "each key once; its values would hide each other".to_owned(),
            Mistake::Missing { what } | Mistake::Empty { what } => format!("give {what}"),
            Mistake::OutOfRange { range, .. } | Mistake::ZeroDuration { range } => format!("{range} is allowed"),
            Mistake::BadName { .. } => "1 to 63 letters, digits, `-`, `_` and `.`".to_owned(),
            Mistake::BadInterface { .. } => "1 to 15 bytes without spaces, `/`, `:` or control characters".to_owned(),
            Mistake::BadSocket { .. } => "an absolute path of at most 107 bytes".to_owned(),
            Mistake::BackwardRange { start, end } => format!("{end}-{start}"),
            Mistake::HostBits { prefix } => format!("{}, or a longer prefix", prefix.trunc()),
            Mistake::NetworkAddress { .. } => "an address between the network's first and last".to_owned(),
            Mistake::NotStation { .. } => "a unicast address: the first byte even, not all zero".to_owned(),
            Mistake::BadHttpText { expected, .. } => (*expected).to_owned(),
            Mistake::Duplicate { what, .. } => format!("each {what} once"),
            Mistake::UnknownName { what, name, known } => match nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => format!("no {what} is configured"),
                None => format!("there are {}", some_of(known)),
            },
            Mistake::IdleCpus { of, .. } => format!("at least as many {of} as CPUs"),
            Mistake::QueuesOverShards { shards, .. } => format!("1 to {shards} queues, or more dataplane.shards"),
            Mistake::MemoryShort { need_mib, .. } => format!("memory: {need_mib}MiB, or fewer mbufs"),
            Mistake::FewMbufs { advised, .. } => format!("mbufs: {advised}, a receive ring of 1024 for each queue"),
            Mistake::PendingOverMbufs { .. } => "fewer pending, or more mbufs".to_owned(),
            Mistake::PciWithoutHugepages => "dataplane.hugepages: true; a NIC writes to physical memory".to_owned(),
            Mistake::TwinMissing { .. } => {
                "twin: NAME of the TAP that stands for it, for ARP, ND and routing".to_owned()
            }
            Mistake::TwinNeedless => "leave twin out".to_owned(),
            Mistake::MtuBelowIpv6 { .. } => "1280 or more (RFC 8200, section 5)".to_owned(),
            Mistake::GatewayOffLink { prefixes, .. } => {
                format!("an address in {}, or one listed in neighbours", some_of(prefixes))
            }
            Mistake::FamilyDiffers { family, .. } => match *family {
                "IPv4" => "an IPv6 address".to_owned(),
                _ => "an IPv4 address".to_owned(),
            },
            Mistake::OwnAddress { .. } => "an address that nobody else has".to_owned(),
            Mistake::AtVip { .. } => "the host's own address".to_owned(),
            Mistake::Overlap { .. } => "another port, protocol or VIP".to_owned(),
            Mistake::PoolTooLarge { .. } => {
                "longer prefixes; each address has 60,000 ports to each endpoint".to_owned()
            }
            Mistake::FewPoolPorts { .. } => "at least 2047 ports, or dataplane.shards: 1".to_owned(),
            Mistake::PoolFamily { family, pool, .. } => format!("an {family} address in pool `{pool}`, too"),
            Mistake::OtherMode { belongs_to, .. } => format!("leave it out, or mode: {belongs_to}"),
            Mistake::NoEffect { .. } => "leave it out".to_owned(),
            Mistake::PortChange { .. } => "leave the port out, or mode: nat".to_owned(),
            Mistake::PortForMany { .. } => {
                "leave the port out (it stays the client's), or one service per port".to_owned()
            }
            Mistake::HostOffLink { prefixes, .. } => {
                format!("an address in {}, one listed in neighbours, or another mode", some_of(prefixes))
            }
            Mistake::LocalMode { .. } => "mode: nat for an endpoint on the unit itself".to_owned(),
            Mistake::LocalTwin { .. } => {
                "an address of a port with a twin (af_xdp, PCI, or a vdev with one), and no VLAN's".to_owned()
            }
            Mistake::NoEndpoints { .. } => "at least one endpoint".to_owned(),
            Mistake::OnlyBackups { .. } => "at least one that is no backup".to_owned(),
            Mistake::NoCapacity { .. } => "at least one with a capacity of 1 to 99".to_owned(),
            Mistake::NoneActive { .. } => {
                "state: active for at least one, or no_endpoint decides for all clients".to_owned()
            }
            Mistake::ProbeTooOften { .. } => "an interval of at least the timeout".to_owned(),
            Mistake::ProbePort { .. } => "port: PORT that answers probes".to_owned(),
            Mistake::RepliesAlike { .. } => "a port or address of its own for each service, on the host".to_owned(),
            Mistake::MtuOverParent { most, .. } => format!("at most {most}"),
            Mistake::OfParent { .. } | Mistake::NoPorts { .. } => "leave it out".to_owned(),
            Mistake::TranslatesPorts { .. } => "another mode".to_owned(),
            Mistake::UnusedHost { .. } => "an endpoint of a service, or leave it out".to_owned(),
            Mistake::NoServices => "at least one service".to_owned(),
            Mistake::NotUnicast { .. } => "a unicast address that other machines can reach".to_owned(),
            Mistake::Unreadable { .. }
            | Mistake::Syntax { .. }
            | Mistake::WrongValue { .. }
            | Mistake::Unparsable { .. }
            | Mistake::TooMany { .. }
            | Mistake::RepeatedPort { .. }
            | Mistake::NoSuchCpu { .. } => return None,
        };
        Some(text)
    }

    /// The earlier place that this one is at odds with.
    pub(crate) fn first(&self) -> Option<&str> {
        match self {
            Mistake::Duplicate { first, .. }
            | Mistake::OwnAddress { first, .. }
            | Mistake::Overlap { first, .. }
            | Mistake::RepliesAlike { first, .. } => Some(first),
            _ => None,
        }
    }

    /// Whether the key is the matter rather than its value.
    pub(crate) fn is_about_key(&self) -> bool {
        matches!(
            self,
            Mistake::UnknownKey { .. }
                | Mistake::DuplicateKey
                | Mistake::OtherMode { .. }
                | Mistake::NoEffect { .. }
                | Mistake::TwinNeedless
        )
    }
}

/// The first few of a list.
fn some_of<T: ToString>(all: &[T]) -> String {
    let mut text = all.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

/// As many names or prefixes are listed in a message.
const SHOWN: usize = 8;
