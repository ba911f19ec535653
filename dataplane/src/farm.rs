//! What every shard and classifier reads: VIPs, services and endpoints, as one immutable value.
//!
//! The control plane builds a new [`Farm`] when anything of that changed and replaces the old one as a whole; a core looks for a new one
//! between two turns. Routes and neighbours are in the [`Fib`] that all farms of a unit share; an endpoint has its next hop from there. Indices into it ([`EndpointId`], VIPs, ports) keep their meaning while the unit runs, since routes hold them.

mod association;
mod places;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use hashbrown::HashMap;
use weir_health_load::{Directive, stable_name};
use weir_identity::{ApplicationId, EndpointId, HostId, ServiceId};

pub use self::association::Association;
use crate::fib::{Fib, FibWriter, Sizes};
use crate::flow::{FlowHash, Key, Key4, Key6};
use crate::forwarder::Side;
use crate::route_table::{IdleTimeouts, Mode};
use crate::translation::PoolPorts;
use crate::tunneler::{OuterFrame, Tunnel};
use crate::twin_class::TwinPeers;

/// What the control plane knows, as the dataplane needs it.
pub struct Farm {
    /// Grows with every new farm.
    pub generation: u64,
    /// Virtual addresses; the index is for the unit's life.
    pub vips: Vec<Vip>,
    /// Services, in the configuration's order.
    pub services: Vec<Service>,
    /// Endpoints by [`EndpointId`].
    pub endpoints: Vec<Endpoint>,
    /// Source addresses and ports of [`Mode::FullNat`]; the index is for the unit's life.
    pub pools: Vec<PoolPorts>,
    /// Ports, in the configuration's order.
    pub ports: Vec<Port>,
    /// Idle timeouts of routes.
    pub timeouts: IdleTimeouts,
    /// Whose routing and cluster protocols come first on the way to a kernel twin.
    pub twin_peers: Arc<TwinPeers>,
    addresses: Addresses,
    half_nat: bool,
    full_nat: bool,
    /// By service: the association that its flows belong to; empty if there is none at all.
    associations: Vec<Option<Association>>,
    places: places::Places,
    /// Endpoints' addresses that are the unit's own.
    local: Vec<IpAddr>,
    /// Tunnels' ends, each with an endpoint that is there.
    tunnels: HashMap<IpAddr, usize, foldhash::fast::FixedState>,
    /// By port and VLAN identifier: the port that the VLAN is.
    vlans: Vec<(PortId, u16, PortId)>,
    /// For the quick lane: the next hops of endpoints, and what fits through every port.
    quick_hops: Vec<QuickHop>,
    pub(crate) quick_limits: crate::route_table::QuickLimits,
    /// Empty without tunnels.
    outer_frames: Vec<Option<OuterFrame>>,
    smallest_mtu: u16,
    fib: Arc<Fib>,
}

/// A port by its place in the configuration.
pub type PortId = u16;

/// A virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The address.
    pub address: IpAddr,
    /// Indices of its services.
    pub services: Vec<usize>,
    /// Ports on whose link it is: there the dataplane itself answers ARP and neighbour solicitations for it.
    pub on_link: Vec<PortId>,
}

/// A service: what clients reach at a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its stable id.
    pub id: ServiceId,
    /// IP protocol number.
    pub protocol: u8,
    /// Its ports; all of them for protocols without ports.
    pub ports: Vec<RangeInclusive<u16>>,
    /// How its packets reach its endpoints.
    pub mode: Mode,
    /// What happens to a new connection that no endpoint can take.
    pub no_endpoint: NoEndpoint,
    /// Index of its VIP.
    pub vip: u32,
}

/// What happens to a new connection that no endpoint can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// Silence.
    Drop,
    /// TCP reset, or ICMP port unreachable.
    Reset,
}

/// One place that serves a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of its service.
    pub service: usize,
    /// Its host.
    pub host: HostId,
    /// Its application on the host.
    pub application: ApplicationId,
    /// Where packets for it go.
    pub address: IpAddr,
    /// The port there; `None` keeps the client's.
    pub port: Option<u16>,
    /// Whether it may be used at all, or for new connections.
    pub directive: Directive,
    /// Whether it stands in only for others.
    pub backup: bool,
    /// The tunnel to it, in the modes that have one.
    pub tunnel: Option<Tunnel>,
    /// Whose addresses stand for the clients in [`Mode::FullNat`]: index of a pool of the endpoint's family.
    pub pool: Option<usize>,
    /// On the unit itself: the port whose own address it has, and whose twin takes its packets.
    pub local: Option<PortId>,
    /// Its next hop, as long as that is resolved and the endpoint is not inactive.
    pub hop: Option<Hop>,
}

impl Endpoint {
    /// The endpoint's name for consistent hashing; see [`stable_name`].
    #[must_use]
    pub fn stable(&self) -> u64 {
        stable_name(self.host, self.address, self.port.unwrap_or(0))
    }
}

/// A port's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// For a VLAN: the port that it is on, and its identifier.
    pub vlan: Option<(PortId, u16)>,
}

/// A resolved next hop: by which port, and the first twelve bytes of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The port.
    pub port: PortId,
    /// Destination MAC address, then the port's own.
    pub ethernet: [u8; 12],
}

impl Hop {
    /// The way to `destination` by `port`, whose address is `source`.
    #[must_use]
    pub fn new(port: PortId, destination: [u8; 6], source: [u8; 6]) -> Self {
        let mut ethernet = [0; 12];
        ethernet[..6].copy_from_slice(&destination);
        ethernet[6..].copy_from_slice(&source);
        Self { port, ethernet }
    }
}

/// An endpoint's next hop, and what else translating to it asks where that is IPv4, in few bytes for the quick lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct QuickHop {
    /// As in [`Hop`].
    pub ethernet: [u8; 12],
    /// The port.
    pub port: PortId,
    /// The endpoint's own port, in network byte order; 0 if it is the service's.
    pub own_port: [u8; 2],
    /// The endpoint's address, if it is IPv4.
    pub address: [u8; 4],
    /// Its pool in full-nat; [`NO_POOL`] if it has none.
    pub pool: u16,
    /// Whether there is a next hop.
    pub reachable: bool,
}

/// No place in [`FarmParts::pools`].
pub const NO_POOL: u16 = u16::MAX;

/// One way of a routing table's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// To the destination itself, on a port's link.
    OnLink(PortId),
    /// By a gateway on a port's link.
    Gateway(PortId, IpAddr),
}

/// A prefix and its ways; with several, a flow keeps to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Address without host bits.
    pub address: IpAddr,
    /// Length in bits.
    pub length: u8,
    /// At least one.
    pub ways: Vec<Way>,
}

/// A neighbour whose link-layer address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// On which port's link.
    pub port: PortId,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// What a [`Farm`] is built from.
#[derive(Debug, Clone)]
pub struct FarmParts {
    /// See [`Farm::generation`].
    pub generation: u64,
    /// See [`Farm::vips`]; `services` is filled in.
    pub vips: Vec<Vip>,
    /// See [`Farm::services`].
    pub services: Vec<Service>,
    /// See [`Farm::endpoints`]; each `hop` is filled in from routes and neighbours.
    pub endpoints: Vec<Endpoint>,
    /// See [`Farm::pools`].
    pub pools: Vec<PoolPorts>,
    /// See [`Farm::ports`].
    pub ports: Vec<Port>,
    /// See [`Farm::timeouts`].
    pub timeouts: IdleTimeouts,
    /// See [`Farm::twin_peers`].
    pub twin_peers: Arc<TwinPeers>,
    /// The routing table, of a farm that has a FIB of its own; of the same prefix the last counts.
    pub prefixes: Vec<Prefix>,
    /// Resolved neighbours, of the same.
    pub neighbours: Vec<Neighbour>,
}

/// Why there is no way to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHop {
    /// No route.
    NoRoute,
    /// The link-layer address of this neighbour is not known (yet).
    Unresolved(PortId, IpAddr),
}

impl Farm {
    /// Puts the parts together, with a FIB of the farm's own.
    ///
    /// # Panics
    ///
    /// If there is not enough address space for the FIB's tables, or the prefixes do not fit into them.
    #[must_use]
    pub fn new(mut parts: FarmParts) -> Self {
        let (prefixes, neighbours) = (std::mem::take(&mut parts.prefixes), std::mem::take(&mut parts.neighbours));
        let built = FibWriter::sized(Sizes::for_parts(&prefixes, &neighbours)).map(|mut writer| {
            let full = writer.replace_neighbours(&neighbours).and_then(|_| writer.replace_routes(prefixes));
            (Arc::clone(writer.fib()), full)
        });
        match built {
            Ok((fib, Ok(()))) => Self::with_fib(parts, fib),
            Ok((_, Err(full))) => panic!("{full}"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Puts the parts together, with the unit's FIB; `prefixes` and `neighbours` do not count.
    #[must_use]
    pub fn with_fib(parts: FarmParts, fib: Arc<Fib>) -> Self {
        let FarmParts { generation, mut vips, services, endpoints, pools, ports, timeouts, twin_peers, .. } = parts;
        for vip in &mut vips {
            vip.services.clear();
        }
        for (index, service) in services.iter().enumerate() {
            vips[service.vip as usize].services.push(index);
        }
        let pooled: usize = pools.iter().map(|pool| pool.addresses().len()).sum();
        let mut addresses = Addresses::with_room_for(vips.len() + endpoints.len() + pooled);
        let half_nat = services.iter().any(|service| service.mode == Mode::Nat);
        let full_nat = services.iter().any(|service| service.mode == Mode::FullNat);
        for endpoint in &endpoints {
            if services[endpoint.service].mode == Mode::Nat {
                addresses.insert(endpoint.address, ENDPOINT);
            }
        }
        for (code, pool) in (FIRST_POOL..FIRST_VIP).zip(&pools) {
            pool.addresses().iter().for_each(|address| addresses.insert(*address, code));
        }
        for (code, vip) in (FIRST_VIP..).zip(&vips) {
            addresses.insert(vip.address, code);
        }
        let mut farm = Self {
            generation,
            associations: association::of_services(&services),
            vips,
            services,
            endpoints: Vec::new(),
            pools,
            timeouts,
            twin_peers,
            addresses,
            half_nat,
            full_nat,
            places: places::Places::default(),
            local: Vec::new(),
            tunnels: HashMap::default(),
            vlans: (0..).zip(&ports).filter_map(|(id, port)| port.vlan.map(|(on, vlan)| (on, vlan, id))).collect(),
            quick_hops: Vec::new(),
            quick_limits: timeouts.quick(),
            outer_frames: Vec::new(),
            smallest_mtu: ports.iter().map(|port| port.mtu).min().unwrap_or(0),
            fib,
            ports,
        };
        farm.endpoints =
            endpoints.into_iter().map(|endpoint| Endpoint { hop: farm.hop_of(&endpoint), ..endpoint }).collect();
        farm.local = farm.endpoints.iter().filter(|own| own.local.is_some()).map(|own| own.address).collect();
        farm.local.sort_unstable();
        farm.local.dedup();
        let ends = farm.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.tunnel.is_some());
        farm.tunnels = ends.map(|(index, endpoint)| (endpoint.address, index)).collect();
        farm.places = places::Places::new(&farm.services, &farm.endpoints);
        if farm.tunnels() {
            let outer = |endpoint: &Endpoint| {
                let hop = endpoint.hop?;
                endpoint.tunnel.as_ref()?.outer_frame(hop, farm.ports[usize::from(hop.port)].mtu)
            };
            farm.outer_frames = farm.endpoints.iter().map(outer).collect();
        }
        farm.quick_hops = farm
            .endpoints
            .iter()
            .map(|endpoint| match (endpoint.hop, endpoint.address) {
                (Some(Hop { port, ethernet }), address) => QuickHop {
                    ethernet,
                    port,
                    own_port: endpoint.port.unwrap_or_default().to_be_bytes(),
                    address: if let IpAddr::V4(address) = address { address.octets() } else { [0; 4] },
                    pool: endpoint.pool.and_then(|pool| u16::try_from(pool).ok()).unwrap_or(NO_POOL),
                    reachable: true,
                },
                (None, _) => QuickHop::default(),
            })
            .collect();
        farm
    }

    /// What a service's flows belong to, if it is one of several that have to meet at one host.
    #[must_use]
    pub fn association(&self, service: usize) -> Option<Association> {
        self.associations.get(service).copied().flatten()
    }

    /// The hash by which a flow's classifier is found, of the client alone where its flows belong together; `key` is client to VIP.
    #[inline]
    #[must_use]
    pub fn classifier_hash(&self, hash: &FlowHash, key: &Key) -> u64 {
        if self.associations.is_empty() { hash.client_is_source(key) } else { self.association_hash(hash, key) }
    }

    #[cold]
    fn association_hash(&self, hash: &FlowHash, key: &Key) -> u64 {
        let service = self.vip_of(key).and_then(|vip| self.service(vip, key.protocol(), key.destination().port()));
        match service.and_then(|service| self.association(service)) {
            Some(_) => hash.client_alone(key),
            None => hash.client_is_source(key),
        }
    }

    /// Whether any port is a VLAN of this one.
    #[inline]
    #[must_use]
    pub fn is_trunk(&self, port: PortId) -> bool {
        self.vlans.iter().any(|(on, ..)| *on == port)
    }

    /// The port that a VLAN on a port is, if it is one.
    #[must_use]
    pub fn vlan_port(&self, port: PortId, vlan: u16) -> Option<PortId> {
        self.vlans.iter().find(|(on, id, _)| (*on, *id) == (port, vlan)).map(|(.., port)| *port)
    }

    /// The VIP that an IPv4 packet is for.
    #[inline]
    #[must_use]
    pub fn vip4(&self, key: &Key4) -> Option<u32> {
        self.addresses.find4(key.destination).checked_sub(FIRST_VIP)
    }

    /// The VIP that an IPv6 packet is for.
    #[inline]
    #[must_use]
    pub fn vip6(&self, key: &Key6) -> Option<u32> {
        self.addresses.find6(key.destination).checked_sub(FIRST_VIP)
    }

    /// The next hop of an endpoint, if it is resolved.
    #[inline(always)]
    #[must_use]
    pub fn quick_hop(&self, endpoint: EndpointId) -> Option<&QuickHop> {
        self.quick_hops.get(endpoint.index()).filter(|hop| hop.reachable)
    }

    /// What goes before plain IPv4 packets to an endpoint with a tunnel over IPv4.
    #[inline(always)]
    pub(crate) fn outer_frame(&self, endpoint: EndpointId) -> Option<&OuterFrame> {
        self.outer_frames.get(endpoint.index())?.as_ref()
    }

    /// An IPv4 address of a pool.
    #[inline(always)]
    pub(crate) fn pool_address4(&self, pool: u16, index: u32) -> Option<[u8; 4]> {
        match self.pools.get(usize::from(pool))?.address(index as usize)? {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }

    /// Bytes of IP packet that fit through every port.
    #[inline(always)]
    #[must_use]
    pub fn smallest_mtu(&self) -> u16 {
        self.smallest_mtu
    }

    /// Whether any endpoint is on the unit itself.
    #[inline]
    #[must_use]
    pub fn has_local(&self) -> bool {
        !self.local.is_empty()
    }

    /// Whether an endpoint has this address, which is the unit's own.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.binary_search(&address).is_ok()
    }

    /// Whether there is any tunnel.
    #[inline]
    #[must_use]
    pub fn tunnels(&self) -> bool {
        !self.tunnels.is_empty()
    }

    /// A tunnel to this address; all to one address come from the same one of the unit's.
    #[must_use]
    pub fn tunnel_to(&self, end: IpAddr) -> Option<&Tunnel> {
        self.endpoints.get(*self.tunnels.get(&end)?)?.tunnel.as_ref()
    }

    /// Whether any endpoint's answers are translated back.
    #[inline]
    #[must_use]
    pub fn translates(&self) -> bool {
        self.half_nat || self.full_nat
    }

    /// The VIP that a packet is for.
    #[inline]
    #[must_use]
    pub fn vip_of(&self, key: &Key) -> Option<u32> {
        match key {
            Key::V4(key) => self.vip4(key),
            Key::V6(key) => self.vip6(key),
        }
    }

    /// The pool that a packet is for: it may be an endpoint's answer in [`Mode::FullNat`].
    #[inline]
    #[must_use]
    pub fn pool_of(&self, key: &Key) -> Option<&PoolPorts> {
        let code = match key {
            _ if self.pools.is_empty() => return None,
            Key::V4(key) => self.addresses.find4(key.destination),
            Key::V6(key) => self.addresses.find6(key.destination),
        };
        self.pools.get(code.checked_sub(FIRST_POOL)? as usize)
    }

    /// Whether a packet is for an address that the dataplane stands for, not the kernel: a VIP, or one of a pool.
    #[must_use]
    pub fn is_for_us(&self, key: &Key) -> bool {
        self.vip_of(key).is_some() || self.pool_of(key).is_some()
    }

    /// Whether the dataplane stands for `address`: see [`Farm::is_for_us`].
    #[must_use]
    pub fn stands_for(&self, address: IpAddr) -> bool {
        self.addresses.find(address) >= FIRST_POOL
    }

    /// Whether any service is in [`Mode::Nat`].
    #[inline(always)]
    pub(crate) fn has_half_nat(&self) -> bool {
        self.half_nat
    }

    /// Whether any service is in [`Mode::FullNat`].
    #[inline(always)]
    pub(crate) fn has_full_nat(&self) -> bool {
        self.full_nat
    }

    /// A VIP's address, if it is IPv4.
    #[inline(always)]
    pub(crate) fn vip_address4(&self, vip: u32) -> Option<[u8; 4]> {
        match self.vips.get(vip as usize)?.address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }

    /// Whether a packet may be an endpoint's answer that has to be translated back.
    #[inline]
    #[must_use]
    pub fn is_from_endpoint(&self, key: &Key) -> bool {
        self.translates()
            && match key {
                Key::V4(key) => self.addresses.find4(key.source) == ENDPOINT,
                Key::V6(key) => self.addresses.find6(key.source) == ENDPOINT,
            }
    }

    /// On which side of a flow the sender of an IPv4 packet with these addresses is; `None` if it is of none.
    #[inline(always)]
    pub(crate) fn side4(&self, source: [u8; 4], destination: [u8; 4]) -> Option<Side> {
        self.side(self.addresses.find4(destination), || self.addresses.find4(source))
    }

    /// The same of an IPv6 packet.
    #[inline(always)]
    pub(crate) fn side6(&self, source: [u8; 16], destination: [u8; 16]) -> Option<Side> {
        self.side(self.addresses.find6(destination), || self.addresses.find6(source))
    }

    #[inline(always)]
    fn side(&self, destination: Code, source: impl FnOnce() -> Code) -> Option<Side> {
        match destination {
            FIRST_VIP.. => Some(Side::Client),
            FIRST_POOL.. => Some(Side::Host),
            _ if self.translates() && source() == ENDPOINT => Some(Side::Host),
            _ => None,
        }
    }

    /// The service at a VIP for a protocol and port: its index.
    #[must_use]
    pub fn service(&self, vip: u32, protocol: u8, port: u16) -> Option<usize> {
        let vip = self.vips.get(vip as usize)?;
        vip.services.iter().copied().find(|&index| {
            let service = &self.services[index];
            service.protocol == protocol && service.ports.iter().any(|range| range.contains(&port))
        })
    }

    /// Whether what cannot be served is reset in the service that a packet is for.
    #[must_use]
    pub fn resets(&self, key: &Key) -> bool {
        let service = self.vip_of(key).and_then(|vip| self.service(vip, key.protocol(), key.destination().port()));
        service.is_some_and(|service| self.services[service].no_endpoint == NoEndpoint::Reset)
    }

    /// Whether any service of a VIP has this protocol.
    #[must_use]
    pub fn serves_protocol(&self, vip: u32, protocol: u8) -> bool {
        let vip = self.vips.get(vip as usize);
        vip.is_some_and(|vip| vip.services.iter().any(|&index| self.services[index].protocol == protocol))
    }

    /// The endpoint of a route, if the configuration still has it.
    #[inline]
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(id.index())
    }

    /// Whether the dataplane answers ARP and neighbour solicitations for `address` on `port`.
    #[must_use]
    pub fn answers_for(&self, port: PortId, address: IpAddr) -> bool {
        match self.addresses.find(address) {
            FIRST_VIP.. => self.vips.iter().any(|vip| vip.address == address && vip.on_link.contains(&port)),
            FIRST_POOL.. => self.fib.is_on_link(address, port),
            _ => false,
        }
    }

    /// Whether the link-layer address of a neighbour on a port's link is known.
    #[must_use]
    pub fn resolves(&self, port: PortId, neighbour: IpAddr) -> bool {
        self.fib.resolves(port, neighbour)
    }

    /// The next hop to `address` by longest prefix; `flow` chooses among several ways.
    ///
    /// # Errors
    ///
    /// [`NoHop`] if there is no route or no link-layer address.
    pub fn hop_to(&self, address: IpAddr, flow: u64) -> Result<Hop, NoHop> {
        let next = self.fib.hop(address, flow)?;
        let port = self.ports.get(usize::from(next.port())).ok_or(NoHop::NoRoute)?;
        Ok(Hop::new(next.port(), next.mac(), port.mac))
    }

    /// Whether each endpoint's next hop still is the one that the FIB tells.
    #[must_use]
    pub fn has_its_hops(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.hop == self.hop_of(endpoint))
    }

    /// Nothing at all goes to an inactive endpoint: its routes find no way there.
    fn hop_of(&self, endpoint: &Endpoint) -> Option<Hop> {
        let usable = endpoint.directive != Directive::Inactive;
        if usable { self.hop_to(endpoint.address, endpoint.stable()).ok() } else { None }
    }

    /// Routes and neighbours.
    #[inline(always)]
    #[must_use]
    pub fn fib(&self) -> &Fib {
        &self.fib
    }
}

impl Default for IdleTimeouts {
    /// 10 s opening, 1 h established, 60 s closing, 60 s datagrams, 10 s refused.
    fn default() -> Self {
        Self([10_000, 3_600_000, 60_000, 60_000, 10_000])
    }
}

/// The few addresses that decide a packet's direction, in tables small enough to stay in the first-level cache.
#[derive(Debug, Default)]
struct Addresses {
    slots4: Vec<(u32, Code)>,
    slots6: Vec<(u128, Code)>,
}

/// Whose an address is, as a number: one comparison where an enum would take several.
type Code = u32;
const NOBODY: Code = 0;
const ENDPOINT: Code = 1;
/// `FIRST_POOL + index`.
const FIRST_POOL: Code = 2;
/// `FIRST_VIP + index`.
const FIRST_VIP: Code = 1 << 16;

impl Addresses {
    fn with_room_for(count: usize) -> Self {
        let slots = (count * 4).next_power_of_two();
        Self { slots4: vec![(0, NOBODY); slots], slots6: vec![(0, NOBODY); slots] }
    }

    /// Adds an address, in place of what was there for it.
    fn insert(&mut self, address: IpAddr, code: Code) {
        match address {
            IpAddr::V4(address) => {
                let address = u32::from_ne_bytes(address.octets());
                insert(&mut self.slots4, address, mix4(address), code);
            }
            IpAddr::V6(address) => {
                let address = u128::from_ne_bytes(address.octets());
                insert(&mut self.slots6, address, mix6(address), code);
            }
        }
    }

    fn find(&self, address: IpAddr) -> Code {
        match address {
            IpAddr::V4(address) => self.find4(address.octets()),
            IpAddr::V6(address) => self.find6(address.octets()),
        }
    }

    #[inline(always)]
    fn find4(&self, address: [u8; 4]) -> Code {
        let address = u32::from_ne_bytes(address);
        find(&self.slots4, address, mix4(address))
    }

    #[inline(always)]
    fn find6(&self, address: [u8; 16]) -> Code {
        let address = u128::from_ne_bytes(address);
        find(&self.slots6, address, mix6(address))
    }
}

fn insert<A: PartialEq>(slots: &mut [(A, Code)], address: A, hash: usize, code: Code) {
    let mask = slots.len() - 1;
    let mut index = hash & mask;
    while slots[index].1 != NOBODY && slots[index].0 != address {
        index = (index + 1) & mask;
    }
    slots[index] = (address, code);
}

#[inline(always)]
fn find<A: PartialEq + Copy>(slots: &[(A, Code)], address: A, hash: usize) -> Code {
    let Some(mask) = slots.len().checked_sub(1) else {
        return NOBODY;
    };
    let mut index = hash & mask;
    loop {
        let (there, code) = slots[index & mask];
        if code == NOBODY || there == address {
            return code;
        }
        index += 1;
    }
}

/// Configured addresses cannot be chosen by an attacker, so a plain multiplication serves.
#[inline(always)]
fn mix4(address: u32) -> usize {
    (u64::from(address).wrapping_mul(MIX) >> 40) as usize
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the address is mixed down to its hash")]
fn mix6(address: u128) -> usize {
    ((address as u64 ^ (address >> 64) as u64).wrapping_mul(MIX) >> 40) as usize
}

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::flow::protocol;

    /// A farm with VIP 10.9.0.1:80 (TCP) and :53 (UDP), three endpoints 10.1.0.11–13 for each, and clients on link.
    pub(crate) fn farm(mode: Mode) -> FarmParts {
        let service = |id, protocol, port| Service {
            id: ServiceId(id),
            protocol,
            ports: vec![port..=port],
            mode,
            no_endpoint: NoEndpoint::Drop,
            vip: 0,
        };
        let endpoint = |service: usize, n: u8| Endpoint {
            service,
            host: HostId(u32::from(n)),
            application: ApplicationId(1),
            address: Ipv4Addr::new(10, 1, 0, 10 + n).into(),
            port: (mode == Mode::Nat).then_some(8080),
            directive: Directive::Active,
            backup: false,
            tunnel: None,
            pool: None,
            local: None,
            hop: None,
        };
        let on_link = |address: [u8; 4], length| Prefix {
            address: Ipv4Addr::from(address).into(),
            length,
            ways: vec![Way::OnLink(0)],
        };
        let neighbour = |address: [u8; 4], n| Neighbour {
            port: 0,
            address: Ipv4Addr::from(address).into(),
            mac: [2, 0, 0, 0, 1, n],
        };
        FarmParts {
            generation: 1,
            vips: vec![Vip { address: Ipv4Addr::new(10, 9, 0, 1).into(), services: vec![], on_link: vec![0] }],
            services: vec![service(1, protocol::TCP, 80), service(2, protocol::UDP, 53)],
            endpoints: (0..2).flat_map(|service| (1..=3).map(move |n| endpoint(service, n))).collect(),
            pools: vec![],
            ports: vec![Port { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, vlan: None }],
            timeouts: IdleTimeouts::default(),
            twin_peers: Arc::default(),
            prefixes: vec![on_link([10, 1, 0, 0], 24), on_link([10, 0, 0, 0], 24)],
            neighbours: vec![
                neighbour([10, 1, 0, 11], 11),
                neighbour([10, 1, 0, 12], 12),
                neighbour([10, 1, 0, 13], 13),
                neighbour([10, 0, 0, 2], 2),
            ],
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut parts = farm(Mode::Nat);
        let gateway = Ipv4Addr::new(10, 0, 0, 2).into();
        let prefix = |address: [u8; 4], length, ways| Prefix { address: Ipv4Addr::from(address).into(), length, ways };
        parts.prefixes.push(prefix([0, 0, 0, 0], 0, vec![Way::Gateway(0, gateway)]));
        parts.prefixes.push(prefix([10, 0, 0, 77], 32, vec![Way::Gateway(0, gateway)]));
        let farm = Farm::new(parts);
        let hop = |address: [u8; 4]| farm.hop_to(Ipv4Addr::from(address).into(), 0);
        let by_gateway = Ok(Hop::new(0, [2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 0, 1]));
        assert_eq!(hop([8, 8, 8, 8]), by_gateway);
        assert_eq!(hop([10, 0, 0, 77]), by_gateway);
        assert_eq!(hop([10, 0, 0, 3]), Err(NoHop::Unresolved(0, Ipv4Addr::new(10, 0, 0, 3).into())));
        assert_eq!(farm.hop_to("2001:db8::1".parse().unwrap(), 0), Err(NoHop::NoRoute));
        assert!(farm.endpoints.iter().all(|endpoint| endpoint.hop.is_some()));
    }

    #[test]
    fn addresses_tell_the_direction() {
        let farm = Farm::new(farm(Mode::Nat));
        let key = |source: &str, destination: &str| {
            Key::new(source.parse().unwrap(), destination.parse().unwrap(), protocol::TCP).unwrap()
        };
        let to_vip = key("10.0.0.2:1000", "10.9.0.1:80");
        assert_eq!(farm.vip_of(&to_vip), Some(0));
        assert_eq!(farm.service(0, protocol::TCP, 80), Some(0));
        assert_eq!(farm.service(0, protocol::TCP, 81), None);
        assert_eq!(farm.service(0, protocol::UDP, 53), Some(1));
        let back = key("10.1.0.12:8080", "10.0.0.2:1000");
        assert_eq!(farm.vip_of(&back), None);
        assert!(farm.is_from_endpoint(&back) && !farm.is_from_endpoint(&to_vip));
        assert!(farm.answers_for(0, "10.9.0.1".parse().unwrap()));
    }
}
