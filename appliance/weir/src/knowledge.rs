//! What a unit knows at this moment, from its YAML, its kernel, its probes and its operator; and the farm that is made of it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use weir_config::{Config, Device, DirectiveState, Endpoint as ConfigEndpoint, Service as ConfigService};
use weir_cpu::MapError;
use weir_dataplane::farm::{Endpoint, Farm, FarmParts, NoEndpoint, NoHop, Port, PortId, Service, Vip};
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::flow::{ToeplitzKey, protocol};
use weir_dataplane::route_table::{IdleTimeouts, Mode};
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::tunneler::Tunnel;
use weir_dataplane::twin_class::TwinPeers;
use weir_health_load::{Directive, Health, Policy, Select, ServiceStanding, Standing, Take, stable_name};
use weir_health_protocol::{Directives, Status};
use weir_identity::{EndpointId, Moment};
use weir_netlink::Snapshot;

use crate::routing::{Followed, Routing};
use crate::twin_peers;

/// The unit's knowledge.
#[derive(Debug)]
pub struct Knowledge {
    /// The validated YAML.
    pub config: Arc<Config>,
    /// Each port's MAC address, in the configuration's order.
    pub macs: Vec<[u8; 6]>,
    /// Routes and neighbours, also of the kernel, where there is one to ask.
    pub routing: Routing,
    /// Endpoints by [`EndpointId`].
    pub endpoints: Vec<Known>,
    /// Neighbours that the kernel has been asked for.
    wanted: HashSet<(PortId, IpAddr)>,
    twin_peers: Arc<TwinPeers>,
    /// Each of one family.
    pools: Vec<PoolPorts>,
    /// Where each pool of the YAML has its IPv4 and its IPv6 addresses.
    pool_of: Vec<[Option<usize>; 2]>,
    generation: u64,
}

/// What is known of one endpoint.
#[derive(Debug, Clone)]
pub struct Known {
    /// Index of its service in the configuration.
    pub service: usize,
    /// Its index in the service.
    pub endpoint: usize,
    /// What the operator wants of it.
    pub directive: Directive,
    /// Whether it serves.
    pub health: Health,
    /// Since when it has had this health.
    pub since: Moment,
    /// What the host's agent says, where there is one and it was heard.
    pub said: Option<Said>,
}

/// What a host's agent says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// How the application is.
    pub status: Status,
    /// What the host wants, and takes for known.
    pub directives: Directives,
    /// Its host is there: else this is the last that was heard.
    pub live: bool,
}

impl Known {
    /// What is done: the stricter of what the operator and the host want.
    #[must_use]
    pub fn effective_directive(&self) -> Directive {
        let rank = |directive: &Directive| match directive {
            Directive::Active => 0,
            Directive::Draining => 1,
            Directive::Inactive => 2,
        };
        let said = self.said.map(|said| said.directives.target);
        said.into_iter().chain([self.directive]).max_by_key(rank).unwrap_or_default()
    }

    /// What it can take in all: as the host says, else as the YAML does.
    #[must_use]
    pub fn capacity(&self, configured: u32) -> u32 {
        self.said.map_or(configured, |said| said.status.capacity.into())
    }

    /// What it can still take: as the host says, else all that the YAML says.
    #[must_use]
    pub fn free(&self, configured: u32) -> u32 {
        self.said.map_or(configured, |said| said.status.free().into())
    }
}

impl Knowledge {
    /// What the YAML alone says. `key` is of the hash by which pools' ports are dealt.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space for the FIB.
    pub fn new(config: Arc<Config>, macs: Vec<[u8; 6]>, key: &ToeplitzKey) -> Result<Self, MapError> {
        let (pools, pool_of) = pools(&config, &Toeplitz::new(key));
        let endpoints = config
            .services
            .iter()
            .enumerate()
            .flat_map(|(service, settings)| {
                settings.endpoints.iter().enumerate().map(move |(endpoint, settings)| Known {
                    service,
                    endpoint,
                    directive: directive(settings.state),
                    health: Health::Unknown,
                    since: Moment(0),
                    said: None,
                })
            })
            .collect();
        let routing = Routing::new(Arc::clone(&config))?;
        let twin_peers = Arc::new(twin_peers::of(&config));
        let wanted = HashSet::new();
        Ok(Self { config, macs, routing, endpoints, wanted, twin_peers, pools, pool_of, generation: 0 })
    }

    /// The configuration of an endpoint.
    #[must_use]
    pub fn settings(&self, known: &Known) -> (&ConfigService, &ConfigEndpoint) {
        let service = &self.config.services[known.service];
        (service, &service.endpoints[known.endpoint])
    }

    /// Endpoints with their handles.
    pub fn known(&self) -> impl Iterator<Item = (EndpointId, &Known)> {
        (0..).map(EndpointId).zip(&self.endpoints)
    }

    /// Counts up; the next farm and standings are newer than all before.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// The farm as of now, with the unit's FIB.
    #[must_use]
    pub fn farm(&self) -> Farm {
        Farm::with_fib(self.parts(), Arc::clone(self.routing.fib()))
    }

    /// What it is made of beside the FIB.
    fn parts(&self) -> FarmParts {
        let config = &self.config;
        let mut vips: Vec<Vip> = Vec::new();
        for service in &config.services {
            if !vips.iter().any(|vip| vip.address == service.vip) {
                vips.push(Vip { address: service.vip, services: Vec::new(), on_link: self.links_of(service.vip) });
            }
        }
        let services = config
            .services
            .iter()
            .map(|service| Service {
                id: service.id,
                protocol: match service.protocol {
                    weir_config::Protocol::Tcp => protocol::TCP,
                    weir_config::Protocol::Udp => protocol::UDP,
                    weir_config::Protocol::Esp => protocol::ESP,
                    weir_config::Protocol::Gre => protocol::GRE,
                },
                ports: match &service.ports {
                    weir_config::Ports::All => vec![0..=u16::MAX],
                    weir_config::Ports::Ranges(ranges) => ranges.clone(),
                },
                mode: mode(service.mode),
                no_endpoint: match service.no_endpoint {
                    weir_config::NoEndpoint::Drop => NoEndpoint::Drop,
                    weir_config::NoEndpoint::Reset => NoEndpoint::Reset,
                },
                vip: vips.iter().zip(0..).find(|(vip, _)| vip.address == service.vip).map_or(0, |(_, index)| index),
            })
            .collect();
        let endpoints = self
            .endpoints
            .iter()
            .map(|known| {
                let (service, settings) = self.settings(known);
                Endpoint {
                    service: known.service,
                    host: settings.host,
                    application: settings.application,
                    address: settings.address,
                    port: settings.port,
                    directive: known.effective_directive(),
                    backup: settings.backup,
                    tunnel: self.tunnel(service.mode, settings.address),
                    pool: match service.mode {
                        weir_config::Mode::FullNat { pool } => {
                            let [v4, v6] = self.pool_of[pool];
                            if settings.address.is_ipv4() { v4 } else { v6 }
                        }
                        _ => None,
                    },
                    local: settings.local.map(port_id),
                    hop: None,
                }
            })
            .collect();
        FarmParts {
            generation: self.generation,
            vips,
            services,
            endpoints,
            pools: self.pools.clone(),
            ports: self
                .macs
                .iter()
                .zip(&config.ports)
                .map(|(&mac, port)| Port { mac, mtu: port.mtu, vlan: vlan(port) })
                .collect(),
            timeouts: timeouts(config),
            twin_peers: Arc::clone(&self.twin_peers),
            prefixes: Vec::new(),
            neighbours: Vec::new(),
        }
    }

    /// What allotments are made from.
    #[must_use]
    pub fn standings(&self) -> Vec<ServiceStanding> {
        let mut of_service = vec![Vec::new(); self.config.services.len()];
        self.known().for_each(|(id, known)| of_service[known.service].push((id, known)));
        let services = self.config.services.iter().zip(of_service);
        services
            .map(|(service, endpoints)| ServiceStanding {
                service: service.id,
                policy: Policy {
                    select: match service.select {
                        weir_config::Select::Tokens => Select::Tokens,
                        weir_config::Select::Percentages => Select::Percentages,
                        weir_config::Select::Hash => Select::Hash,
                        weir_config::Select::RoundRobin => Select::RoundRobin,
                        weir_config::Select::LeastConnection => Select::LeastConnection,
                    },
                    take: match service.take {
                        weir_config::Take::Greatest => Take::Greatest,
                        weir_config::Take::RoundRobin => Take::RoundRobin,
                        weir_config::Take::Linear => Take::Linear,
                    },
                    tokens: service.tokens,
                    max_age: service.max_age,
                    lifetime: service.max_age,
                },
                standings: endpoints
                    .into_iter()
                    .map(|(id, known)| {
                        let settings = &service.endpoints[known.endpoint];
                        Standing {
                            endpoint: id,
                            stable: stable_name(settings.host, settings.address, settings.port.unwrap_or(0)),
                            // A changed weight would move clients to other hosts.
                            capacity: match service.select {
                                weir_config::Select::Hash => settings.capacity,
                                _ => known.capacity(settings.capacity),
                            },
                            load: known.said.map(|said| said.status.load.into()),
                            directive: known.effective_directive(),
                            health: known.health,
                            backup: settings.backup,
                        }
                    })
                    .collect(),
            })
            .collect()
    }

    /// The kernel interface that stands for a port: the port itself, or its twin.
    #[must_use]
    pub fn interface(&self, port: usize) -> Option<&str> {
        interface(self.config.ports.get(port)?)
    }

    /// Follows the kernel's tables; `None` for the farm if the one there is says the same.
    pub fn follow(&mut self, snapshot: Arc<Snapshot>, farm: &Farm) -> (Followed, Option<Farm>) {
        let before = self.routing.kernel().map(|before| (before.links.clone(), before.addresses.clone()));
        let followed = self.routing.follow(Arc::clone(&snapshot));
        let links = before.as_ref() != Some(&(snapshot.links.clone(), snapshot.addresses.clone()));
        // Shards go on with packets that wait for a neighbour when they see a new farm.
        let new = links || followed.neighbours || followed.routes && !farm.has_its_hops();
        if new {
            self.next_generation();
        }
        (followed, new.then(|| self.farm()))
    }

    /// Neighbours that have to be resolved before the first packet, endpoints and gateways on our links: those that were not told before.
    pub fn newly_wanted(&mut self) -> Vec<(PortId, IpAddr)> {
        let mut wanted = self.routing.gateways();
        let fib = self.routing.fib();
        let remote =
            self.endpoints.iter().map(|known| self.settings(known).1).filter(|settings| settings.local.is_none());
        wanted.extend(remote.filter_map(|settings| {
            let address = settings.address;
            let flow = stable_name(settings.host, address, settings.port.unwrap_or(0));
            match fib.hop(address, flow) {
                Ok(next) => fib.is_on_link(address, next.port()).then_some((next.port(), address)),
                Err(NoHop::Unresolved(port, neighbour)) => Some((port, neighbour)),
                Err(NoHop::NoRoute) => None,
            }
        }));
        wanted.retain(|neighbour| self.wanted.insert(*neighbour));
        wanted
    }

    /// Whether a neighbour is a gateway or endpoint.
    #[must_use]
    pub fn wants(&self, port: PortId, neighbour: IpAddr) -> bool {
        self.wanted.contains(&(port, neighbour))
    }

    /// The tunnel to an endpoint, from the unit's own address nearest to it.
    fn tunnel(&self, mode: weir_config::Mode, endpoint: IpAddr) -> Option<Tunnel> {
        let same_family = |net: &IpNet| net.addr().is_ipv4() == endpoint.is_ipv4();
        let nearest = self.own_prefixes().map(|(_, net)| net).filter(same_family);
        let source = nearest.max_by_key(|net| net.contains(&endpoint).then_some(net.prefix_len()))?.addr();
        match mode {
            weir_config::Mode::Ipip => Tunnel::ipip(source, endpoint),
            weir_config::Mode::Gue { port } => Tunnel::gue(source, endpoint, port),
            _ => None,
        }
    }

    /// On which ports' links an address is, by the prefixes of the ports' own addresses.
    fn links_of(&self, address: IpAddr) -> Vec<PortId> {
        let mut links: Vec<PortId> =
            self.own_prefixes().filter(|(_, net)| net.contains(&address)).map(|(port, _)| port).collect();
        links.sort_unstable();
        links.dedup();
        links
    }

    /// The ports' own addresses with their prefixes, from the YAML and from the kernel.
    fn own_prefixes(&self) -> impl Iterator<Item = (PortId, IpNet)> + '_ {
        let configured = self.ports().flat_map(|(id, port)| port.addresses.iter().map(move |net| (id, *net)));
        let kernel = self.routing.kernel().into_iter().flat_map(|kernel| &kernel.addresses).filter_map(|address| {
            let net = IpNet::new(address.address, address.prefix_len).ok()?;
            Some((self.routing.port_of(address.interface)?, net))
        });
        configured.chain(kernel)
    }

    fn ports(&self) -> impl Iterator<Item = (PortId, &weir_config::Port)> {
        (0..).zip(&self.config.ports)
    }
}

/// The kernel interface that stands for a port, if there is one.
#[must_use]
pub fn interface(port: &weir_config::Port) -> Option<&str> {
    match (&port.twin, &port.device) {
        (Some(twin), _) => Some(twin),
        (None, Device::AfPacket(interface) | Device::AfXdp(interface)) => Some(interface),
        (None, Device::Pci(_) | Device::Vdev(_) | Device::Vlan { .. }) => None,
    }
}

/// The port and identifier of a port that is a VLAN.
#[must_use]
pub fn vlan(port: &weir_config::Port) -> Option<(PortId, u16)> {
    match port.device {
        Device::Vlan { parent, id } => Some((port_id(parent), id)),
        _ => None,
    }
}

/// The dataplane's word for the YAML's directive.
#[must_use]
pub fn directive(state: DirectiveState) -> Directive {
    match state {
        DirectiveState::Active => Directive::Active,
        DirectiveState::Draining => Directive::Draining,
        DirectiveState::Inactive => Directive::Inactive,
    }
}

/// The pools, each of one family; and where each pool of the YAML has its IPv4 and its IPv6 addresses.
fn pools(config: &Config, hash: &Toeplitz) -> (Vec<PoolPorts>, Vec<[Option<usize>; 2]>) {
    let mut pools = Vec::new();
    let pool_of = config.pools.iter().map(|pool| {
        [true, false].map(|v4| {
            let addresses = pool.each_address().filter(|address| address.is_ipv4() == v4).collect();
            // Validation has seen to it that what has addresses has ports enough, unless there is one bucket only.
            pools.push(PoolPorts::of_any_size(addresses, pool.port_range.clone(), hash).ok()?);
            Some(pools.len() - 1)
        })
    });
    let pool_of = pool_of.collect();
    (pools, pool_of)
}

fn mode(mode: weir_config::Mode) -> Mode {
    match mode {
        weir_config::Mode::Dsr => Mode::Dsr,
        weir_config::Mode::Nat => Mode::Nat,
        weir_config::Mode::FullNat { .. } => Mode::FullNat,
        weir_config::Mode::Ipip => Mode::Ipip,
        weir_config::Mode::Gue { .. } => Mode::Gue,
    }
}

fn timeouts(config: &Config) -> IdleTimeouts {
    let timeouts = &config.dataplane.timeouts;
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
    IdleTimeouts([
        millis(timeouts.opening),
        millis(timeouts.established),
        millis(timeouts.closing),
        millis(timeouts.udp),
        millis(timeouts.refused),
    ])
}

/// A port by its place in the YAML.
pub(crate) fn port_id(port: usize) -> PortId {
    PortId::try_from(port).unwrap_or(PortId::MAX)
}
