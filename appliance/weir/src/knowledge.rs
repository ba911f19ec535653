//! What a unit knows at this moment, from its YAML, its kernel, its probes and its operator; and the farm that is made of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use weir_config::{Config, Device, DirectiveState, Endpoint as ConfigEndpoint, Service as ConfigService};
use weir_dataplane::farm::{Endpoint, FarmParts, Neighbour, NoEndpoint, Port, PortId, Prefix, Service, Vip, Way};
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::flow::{ToeplitzKey, protocol};
use weir_dataplane::route_table::{IdleTimeouts, Mode};
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::tunneler::Tunnel;
use weir_health_load::{Directive, Health, Policy, Select, ServiceStanding, Standing, Take};
use weir_health_protocol::{Directives, Status};
use weir_identity::{EndpointId, Moment};
use weir_netlink::Snapshot;

/// The unit's knowledge.
#[derive(Debug)]
pub struct Knowledge {
    /// The validated YAML.
    pub config: Arc<Config>,
    /// Each port's MAC address, in the configuration's order.
    pub macs: Vec<[u8; 6]>,
    /// The kernel's neighbours and routes, where there is a kernel to ask.
    pub kernel: Option<Arc<Snapshot>>,
    /// Endpoints by [`EndpointId`].
    pub endpoints: Vec<Known>,
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
    #[must_use]
    pub fn new(config: Arc<Config>, macs: Vec<[u8; 6]>, key: &ToeplitzKey) -> Self {
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
        Self { config, macs, kernel: None, endpoints, pools, pool_of, generation: 0 }
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

    /// The farm as of now.
    #[must_use]
    pub fn farm(&self) -> FarmParts {
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
            prefixes: self.prefixes(),
            neighbours: self.neighbours(),
        }
    }

    /// What allotments are made from.
    #[must_use]
    pub fn standings(&self) -> Vec<ServiceStanding> {
        let services = self.config.services.iter().enumerate();
        services
            .map(|(index, service)| ServiceStanding {
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
                standings: self
                    .known()
                    .filter(|(_, known)| known.service == index)
                    .map(|(id, known)| {
                        let settings = &service.endpoints[known.endpoint];
                        Standing {
                            endpoint: id,
                            stable: weir_health_load::stable_name(
                                settings.host,
                                settings.address,
                                settings.port.unwrap_or(0),
                            ),
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

    /// Neighbours that have to be resolved before the first packet: endpoints and gateways on our links.
    #[must_use]
    pub fn wanted_neighbours(&self) -> Vec<(PortId, IpAddr)> {
        let prefixes = self.prefixes();
        let mut wanted: Vec<(PortId, IpAddr)> = prefixes
            .iter()
            .flat_map(|prefix| &prefix.ways)
            .filter_map(|way| match way {
                Way::Gateway(port, address) => Some((*port, *address)),
                Way::OnLink(_) => None,
            })
            .collect();
        for known in self.endpoints.iter().filter(|known| self.settings(known).1.local.is_none()) {
            let address = self.settings(known).1.address;
            let best = prefixes.iter().filter(|prefix| contains(prefix, address)).max_by_key(|prefix| prefix.length);
            wanted.extend(best.into_iter().flat_map(|prefix| &prefix.ways).filter_map(|way| match way {
                Way::OnLink(port) => Some((*port, address)),
                Way::Gateway(..) => None,
            }));
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
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
        let kernel = self.kernel.iter().flat_map(|kernel| &kernel.addresses).filter_map(|address| {
            let net = IpNet::new(address.address, address.prefix_len).ok()?;
            Some((self.port_of(address.interface)?, net))
        });
        configured.chain(kernel)
    }

    /// The routing table: the YAML's on-link prefixes and routes go before the kernel's of the same length.
    fn prefixes(&self) -> Vec<Prefix> {
        let mut prefixes: Vec<Prefix> = Vec::new();
        let mut add = |address: IpAddr, length: u8, ways: Vec<Way>| {
            let there = prefixes.iter().any(|prefix| prefix.address == address && prefix.length == length);
            if !there {
                prefixes.push(Prefix { address, length, ways });
            }
        };
        for route in &self.config.routes {
            let way = Way::Gateway(port_id(route.port), route.via);
            add(route.prefix.network(), route.prefix.prefix_len(), vec![way]);
        }
        for (id, port) in self.ports() {
            for net in &port.addresses {
                add(net.network(), net.prefix_len(), vec![Way::OnLink(id)]);
            }
        }
        for neighbour in &self.config.neighbours {
            let length = if neighbour.address.is_ipv4() { 32 } else { 128 };
            add(neighbour.address, length, vec![Way::OnLink(port_id(neighbour.port))]);
        }
        for route in self.kernel.iter().flat_map(|kernel| &kernel.routes) {
            let ways = route.gateways.iter().filter_map(|gateway| {
                let port = self.port_of(gateway.interface)?;
                let way = gateway.via.map_or(Way::OnLink(port), |via| Way::Gateway(port, via));
                Some(std::iter::repeat_n(way, usize::from(gateway.weight).clamp(1, MAX_WEIGHT)))
            });
            add(route.prefix.address, route.prefix.len, ways.flatten().collect());
        }
        prefixes
    }

    fn neighbours(&self) -> Vec<Neighbour> {
        let configured = self.config.neighbours.iter().map(|neighbour| Neighbour {
            port: port_id(neighbour.port),
            address: neighbour.address,
            mac: neighbour.mac,
        });
        let kernel = self.kernel.iter().flat_map(|kernel| &kernel.neighbours).filter_map(|neighbour| {
            let port = self.port_of(neighbour.interface)?;
            Some(Neighbour { port, address: neighbour.address, mac: neighbour.mac })
        });
        // Later ones replace earlier ones in the farm: the YAML has the last word.
        kernel.chain(configured).collect()
    }

    fn ports(&self) -> impl Iterator<Item = (PortId, &weir_config::Port)> {
        (0..).zip(&self.config.ports)
    }

    /// The port that a kernel interface stands for.
    fn port_of(&self, interface_index: u32) -> Option<PortId> {
        let kernel = self.kernel.as_ref()?;
        let link = kernel.links.iter().find(|link| link.index == interface_index)?;
        self.ports().find(|(_, port)| interface(port) == Some(&link.name)).map(|(id, _)| id)
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

fn contains(prefix: &Prefix, address: IpAddr) -> bool {
    IpNet::new(prefix.address, prefix.length).is_ok_and(|net| net.contains(&address))
}

fn port_id(port: usize) -> PortId {
    PortId::try_from(port).unwrap_or(PortId::MAX)
}

/// A way of weight n stands n times in its prefix, up to this.
const MAX_WEIGHT: usize = 16;
