//! Routes and neighbours of the unit, from its YAML and its kernel, in the FIB that all cores read: a change costs what it changes.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use weir_config::Config;
use weir_cpu::MapError;
use weir_dataplane::farm::{Neighbour, PortId, Prefix, Way};
use weir_dataplane::fib::{Fib, FibFull, FibWriter, NeighbourChange, RouteChange};
use weir_netlink::{Route, Snapshot};

use crate::knowledge::{interface, port_id, vlan};

/// The FIB's writer, and what it has been told.
#[derive(Debug)]
pub struct Routing {
    writer: FibWriter,
    config: Arc<Config>,
    /// The YAML's: the kernel's of the same prefix or address do not count.
    prefixes: HashSet<(IpAddr, u8)>,
    neighbours: HashSet<(PortId, IpAddr)>,
    /// By index of a kernel's interface: the port that it stands for.
    ports: BTreeMap<u32, PortId>,
    /// By port: its device says that the link is down; and whether it is, also by what the kernel says of the interface.
    down: Vec<bool>,
    dead: Vec<bool>,
    kernel: Option<Arc<Snapshot>>,
}

/// What following the kernel has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// Routes.
    pub routes: bool,
    /// Resolved neighbours.
    pub neighbours: bool,
    /// Something did not fit into the FIB.
    pub full: Option<FibFull>,
}

impl Routing {
    /// What the YAML alone says.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space for the FIB.
    pub fn new(config: Arc<Config>) -> Result<Self, MapError> {
        let mut routing = Self {
            writer: FibWriter::new()?,
            prefixes: HashSet::new(),
            neighbours: config.neighbours.iter().map(|known| (port_id(known.port), known.address)).collect(),
            ports: BTreeMap::new(),
            down: vec![false; config.ports.len()],
            dead: vec![false; config.ports.len()],
            kernel: None,
            config,
        };
        routing.replace(None); // a YAML has no million of them
        Ok(routing)
    }

    /// What cores read.
    #[must_use]
    pub fn fib(&self) -> &Arc<Fib> {
        self.writer.fib()
    }

    /// What was last followed.
    #[must_use]
    pub fn kernel(&self) -> Option<&Arc<Snapshot>> {
        self.kernel.as_ref()
    }

    /// Takes ports, by their place in the YAML, whose devices have seen their links go down, or up again. What is over a dead link is not
    /// used.
    pub fn set_links(&mut self, changed: &[(usize, bool)]) -> Followed {
        for &(port, up) in changed {
            if let Some(down) = self.down.get_mut(port) {
                *down = !up;
            }
        }
        let kernel = self.kernel.clone();
        self.dead = self.dead_by(kernel.as_deref());
        self.replace(kernel.as_deref())
    }

    /// Takes over what differs in the kernel's tables from what they were. Where an interface has come, gone, got another number or
    /// changed its carrier, everything is compared.
    pub fn follow(&mut self, snapshot: Arc<Snapshot>) -> Followed {
        let (ports, dead) = (self.ports_of(&snapshot), self.dead_by(Some(&snapshot)));
        let before = self.kernel.replace(Arc::clone(&snapshot));
        let (neighbours, routes) = match before {
            Some(before) if ports == self.ports && dead == self.dead => {
                let changes: Vec<_> = before.neighbours.diff(&snapshot.neighbours).collect();
                let changes = changes.into_iter().filter_map(|change| match change {
                    DiffItem::Add((interface, address), now) => self.neighbour(*interface, *address, Some(now.mac)),
                    DiffItem::Update { old: (_, old), new: (_, new) } if old.mac == new.mac => None,
                    DiffItem::Update { new: ((interface, address), now), .. } => {
                        self.neighbour(*interface, *address, Some(now.mac))
                    }
                    DiffItem::Remove((interface, address), _) => self.neighbour(*interface, *address, None),
                });
                let changes: Vec<_> = changes.collect();
                let neighbours = self.writer.change_neighbours(changes);
                let changes: Vec<_> = before.routes.diff(&snapshot.routes).collect();
                let changes = changes.into_iter().filter_map(|change| match change {
                    DiffItem::Add(_, route) | DiffItem::Update { new: (_, route), .. } => self.route(route),
                    DiffItem::Remove(prefix, _) => {
                        let (address, length) = (prefix.address, prefix.len);
                        let ours = self.prefixes.contains(&(address, length));
                        (!ours).then_some(RouteChange { address, length, ways: None })
                    }
                });
                let changes: Vec<_> = changes.collect();
                let changed = !changes.is_empty();
                (neighbours, self.writer.change_routes(changes).map(|()| changed))
            }
            _ => {
                (self.ports, self.dead) = (ports, dead);
                return self.replace(Some(&snapshot));
            }
        };
        Followed::of(neighbours, routes)
    }

    /// Compares everything that there is with everything that there should be.
    fn replace(&mut self, kernel: Option<&Snapshot>) -> Followed {
        let own = self.own_prefixes();
        self.prefixes = own.iter().map(|prefix| (prefix.address, prefix.length)).collect();
        let neighbours = kernel.into_iter().flat_map(|kernel| kernel.neighbours.values()).filter_map(|known| {
            let port = *self.ports.get(&known.interface)?;
            Some(Neighbour { port, address: known.address, mac: known.mac })
        });
        // The last one counts: the YAML has the last word.
        let neighbours = neighbours.chain(self.own_neighbours()).filter(|known| !self.is_dead(known.port));
        let neighbours: Vec<_> = neighbours.collect();
        let neighbours = self.writer.replace_neighbours(&neighbours);
        let routes = kernel.into_iter().flat_map(|kernel| kernel.routes.values());
        let routes = routes
            .filter_map(|route| self.route(route))
            .filter_map(|change| Some(Prefix { address: change.address, length: change.length, ways: change.ways? }));
        let prefixes: Vec<_> = routes.chain(own).collect();
        Followed::of(neighbours, self.writer.replace_routes(prefixes).map(|()| true))
    }

    /// The gateways of all routes.
    #[must_use]
    pub fn gateways(&self) -> Vec<(PortId, IpAddr)> {
        self.writer.gateways()
    }

    /// The link-layer address of a neighbour on any port's link.
    #[must_use]
    pub fn mac_of(&self, address: IpAddr) -> Option<[u8; 6]> {
        (0..).zip(&self.config.ports).find_map(|(port, _)| self.writer.mac(port, address))
    }

    /// The port that a kernel interface stands for.
    #[must_use]
    pub fn port_of(&self, interface_index: u32) -> Option<PortId> {
        self.ports.get(&interface_index).copied()
    }

    /// The YAML's on-link prefixes and routes, each prefix once: the first one counts.
    fn own_prefixes(&self) -> Vec<Prefix> {
        let config = &self.config;
        let mut there = HashSet::new();
        let mut prefixes = Vec::new();
        let mut add = |address: IpAddr, length: u8, way: Way| {
            if let Some(ways) = self.alive(vec![way])
                && there.insert((address, length))
            {
                prefixes.push(Prefix { address, length, ways });
            }
        };
        for route in &config.routes {
            let way = Way::Gateway(port_id(route.port), route.via);
            add(route.prefix.network(), route.prefix.prefix_len(), way);
        }
        for (id, port) in (0..).zip(&config.ports) {
            for net in &port.addresses {
                add(net.network(), net.prefix_len(), Way::OnLink(id));
            }
        }
        for neighbour in &config.neighbours {
            let length = if neighbour.address.is_ipv4() { 32 } else { 128 };
            add(neighbour.address, length, Way::OnLink(port_id(neighbour.port)));
        }
        prefixes
    }

    fn own_neighbours(&self) -> Vec<Neighbour> {
        let neighbours = self.config.neighbours.iter().map(|neighbour| Neighbour {
            port: port_id(neighbour.port),
            address: neighbour.address,
            mac: neighbour.mac,
        });
        neighbours.collect()
    }

    fn ports_of(&self, snapshot: &Snapshot) -> BTreeMap<u32, PortId> {
        let of = |link: &weir_netlink::Link| {
            let port = self.config.ports.iter().position(|port| interface(port) == Some(&link.name))?;
            Some((link.index, port_id(port)))
        };
        snapshot.links.iter().filter_map(of).collect()
    }

    /// A neighbour of the kernel's, if it is on a port's link and the YAML does not have it.
    fn neighbour(&self, interface: u32, address: IpAddr, mac: Option<[u8; 6]>) -> Option<NeighbourChange> {
        let port = self.port_of(interface).filter(|port| !self.is_dead(*port))?;
        (!self.neighbours.contains(&(port, address))).then_some(NeighbourChange { port, address, mac })
    }

    /// A route of the kernel's, if the YAML has none of this prefix.
    fn route(&self, route: &Route) -> Option<RouteChange> {
        let (address, length) = (route.prefix.address, route.prefix.len);
        if self.prefixes.contains(&(address, length)) {
            return None;
        }
        let ways = route.gateways.iter().filter_map(|gateway| {
            let port = self.port_of(gateway.interface)?;
            let way = gateway.via.map_or(Way::OnLink(port), |via| Way::Gateway(port, via));
            Some(std::iter::repeat_n(way, usize::from(gateway.weight).clamp(1, MAX_WEIGHT)))
        });
        Some(RouteChange { address, length, ways: self.alive(ways.flatten().collect()) })
    }

    /// Of ways that cost the same, those whose link is up. A prefix that only gateways behind dead links lead to gives way to a
    /// shorter one; what is on a dead link itself must not go elsewhere, and has no neighbours there. A prefix that leads nowhere stays so.
    fn alive(&self, mut ways: Vec<Way>) -> Option<Vec<Way>> {
        if ways.is_empty() {
            return Some(ways);
        }
        let on_link: Vec<Way> = ways.iter().copied().filter(|way| matches!(way, Way::OnLink(_))).collect();
        ways.retain(|way| match way {
            Way::OnLink(port) | Way::Gateway(port, _) => !self.is_dead(*port),
        });
        [ways, on_link].into_iter().find(|ways| !ways.is_empty())
    }

    fn is_dead(&self, port: PortId) -> bool {
        self.dead.get(usize::from(port)).copied().unwrap_or(false)
    }

    /// By port: whether its link is down, by its device, else by the kernel interface that stands for it.
    fn dead_by(&self, kernel: Option<&Snapshot>) -> Vec<bool> {
        let ports = (0..).zip(&self.config.ports);
        let dead = ports.map(|(port, settings)| {
            let below = vlan(settings).map_or(port, |(parent, _)| parent);
            let by_kernel = || {
                let (name, kernel) = (interface(settings)?, kernel?);
                kernel.links.iter().find(|link| link.name == name).map(|link| !link.up)
            };
            self.down.get(usize::from(below)).copied().unwrap_or(false) || by_kernel().unwrap_or(false)
        });
        dead.collect()
    }
}

impl Followed {
    fn of(neighbours: Result<bool, FibFull>, routes: Result<bool, FibFull>) -> Self {
        Self {
            routes: routes.unwrap_or(true),
            neighbours: neighbours.unwrap_or(true),
            full: neighbours.err().or(routes.err()),
        }
    }
}

/// A way of weight n stands n times in its prefix, up to this.
const MAX_WEIGHT: usize = 16;

#[cfg(test)]
mod tests;
