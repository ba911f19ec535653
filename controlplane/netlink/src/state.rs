//! The mirror's tables: events of the kernel in, snapshots for the dataplane out; no sockets, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use imbl::OrdMap;

/// The kernel's tables as far as they concern the mirrored interfaces.
///
/// Everything is kept for all interfaces (an interface may be renamed into our set) and filtered by [`Mirror::snapshot`].
#[derive(Debug, Clone, Default)]
pub struct Mirror {
    interfaces: BTreeSet<String>,
    tables: Tables,
    /// What a snapshot shows of the tables, changed with each event: a snapshot shares it.
    shown: Shown,
    generation: u64,
}

/// Large tables as a snapshot shows them. A copy shares what has not changed since.
#[derive(Debug, Clone, Default)]
struct Shown {
    neighbours: OrdMap<(u32, IpAddr), Neighbour>,
    routes: OrdMap<Prefix, Route>,
}

impl Mirror {
    /// An empty mirror of the interfaces with these names, whether they exist yet or not.
    #[must_use]
    pub fn new(interfaces: BTreeSet<String>) -> Mirror {
        Mirror { interfaces, ..Mirror::default() }
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event) -> Applied {
        let concerned = |tables: &Tables, index| mirrored(&self.interfaces, &tables.links, index);
        match event {
            Event::Address { interface, .. } | Event::AddressGone { interface, .. } => {
                let concerned = concerned(&self.tables, interface);
                let applied = self.tables.apply(event);
                Applied { changed: applied.changed && concerned, ..applied }
            }
            Event::Neighbour { interface, address, .. } | Event::NeighbourGone { interface, address } => {
                let concerned = concerned(&self.tables, interface);
                let applied = self.tables.apply(event);
                self.show_neighbour(interface, address);
                Applied { changed: applied.changed && concerned, ..applied }
            }
            Event::Route { key, .. } | Event::RouteGone { key, .. } => {
                let applied = self.tables.apply(event);
                if applied.changed {
                    self.show_route(key.prefix);
                }
                applied
            }
            Event::Link { .. } | Event::LinkGone { .. } => {
                let applied = self.tables.apply(event);
                if applied.changed {
                    // It may be a mirrored one from now on, or none any more, and routes go by it or do not.
                    self.show_all();
                }
                applied
            }
        }
    }

    /// Takes the result of a full dump in place of everything; whether anything differs.
    pub fn replace(&mut self, tables: Tables) -> bool {
        let changed = self.tables != tables;
        self.tables = tables;
        if changed {
            self.show_all();
        }
        changed
    }

    /// Takes the routes of a dump in place of ours; whether any differs.
    pub fn replace_routes(&mut self, tables: Tables) -> bool {
        let changed = self.tables.routes != tables.routes;
        self.tables.routes = tables.routes;
        if changed {
            self.show_all();
        }
        changed
    }

    /// The tables as they are.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The index of a mirrored interface that exists and is up.
    #[must_use]
    pub fn index_if_up(&self, interface: &str) -> Option<u32> {
        let found = self.tables.links.iter().find(|(_, link)| link.name == interface)?;
        (found.1.up && self.interfaces.contains(interface)).then_some(*found.0)
    }

    /// What the dataplane should know now; each call counts the generation up. Its cost does not grow with the number of routes.
    pub fn snapshot(&mut self) -> Snapshot {
        self.generation += 1;
        let Tables { links, addresses, .. } = &self.tables;
        let ours = |index: &u32| mirrored(&self.interfaces, links, *index);
        let Shown { neighbours, routes } = self.shown.clone();
        Snapshot {
            generation: self.generation,
            links: links
                .iter()
                .filter(|(index, _)| ours(index))
                .map(|(&index, link)| Link {
                    name: link.name.clone(),
                    index,
                    mac: link.mac,
                    mtu: link.mtu,
                    up: link.up,
                })
                .collect(),
            neighbours,
            routes,
            addresses: addresses.iter().filter(|address| ours(&address.interface)).copied().collect(),
        }
    }

    /// Shows everything as the tables have it. What is the same stays, so that it is shared with former snapshots.
    fn show_all(&mut self) {
        let gone: Vec<_> =
            self.shown.neighbours.keys().filter(|key| !self.tables.neighbours.contains_key(key)).copied().collect();
        let keys: Vec<_> = gone.into_iter().chain(self.tables.neighbours.keys().copied()).collect();
        for (interface, address) in keys {
            self.show_neighbour(interface, address);
        }
        let mut prefixes: Vec<Prefix> = self.tables.routes.keys().map(|key| key.prefix).collect();
        prefixes.dedup();
        let gone = self.shown.routes.keys().filter(|prefix| prefixes.binary_search(prefix).is_err());
        let all: Vec<_> = gone.copied().chain(prefixes.iter().copied()).collect();
        for prefix in all {
            self.show_route(prefix);
        }
    }

    /// Shows a neighbour if it is resolved, and on a mirrored link.
    fn show_neighbour(&mut self, interface: u32, address: IpAddr) {
        let key = (interface, address);
        let known = self.tables.neighbours.get(&key).filter(|known| known.state.is_resolved());
        let known = known.filter(|_| mirrored(&self.interfaces, &self.tables.links, interface));
        let wanted =
            known.and_then(|known| Some(Neighbour { interface, address, mac: known.mac?, state: known.state }));
        match wanted {
            Some(neighbour) if self.shown.neighbours.get(&key) != Some(&neighbour) => {
                self.shown.neighbours.insert(key, neighbour);
            }
            Some(_) => {}
            None => drop(self.shown.neighbours.remove(&key)),
        }
    }

    /// Shows the best usable route of a prefix.
    fn show_route(&mut self, prefix: Prefix) {
        match self.best_route(prefix) {
            Some(route) if self.shown.routes.get(&prefix) != Some(&route) => {
                self.shown.routes.insert(prefix, route);
            }
            Some(_) => {}
            None => drop(self.shown.routes.remove(&prefix)),
        }
    }

    fn best_route(&self, prefix: Prefix) -> Option<Route> {
        if prefix.is_link_local() {
            return None;
        }
        // The key's order is prefix, then metric: the first usable one of a prefix is the kernel's choice.
        let keys = RouteKey { prefix, metric: 0, tos: 0 }..=RouteKey { prefix, metric: u32::MAX, tos: u8::MAX };
        let mut entries =
            self.tables.routes.range(keys).filter(|(key, _)| key.tos == 0).flat_map(|(_, entries)| entries);
        entries.find_map(|entry| self.route(prefix, entry))
    }

    fn route(&self, prefix: Prefix, entry: &RouteData) -> Option<Route> {
        let usable: Vec<Gateway> = entry
            .gateways
            .iter()
            .filter(|hop| self.tables.links.get(&hop.interface).is_none_or(|link| link.up))
            .copied()
            .collect();
        if entry.kind != RouteKind::Unicast {
            return Some(Route { prefix, kind: entry.kind, gateways: Vec::new() });
        }
        if usable.is_empty() {
            return None;
        }
        let gateways: Vec<Gateway> =
            usable.into_iter().filter(|hop| mirrored(&self.interfaces, &self.tables.links, hop.interface)).collect();
        let kind = if gateways.is_empty() { RouteKind::Elsewhere } else { RouteKind::Unicast };
        Some(Route { prefix, kind, gateways })
    }
}

fn mirrored(interfaces: &BTreeSet<String>, links: &BTreeMap<u32, LinkData>, index: u32) -> bool {
    links.get(&index).is_some_and(|link| interfaces.contains(&link.name))
}

/// All the kernel said, by its own keys. A dump fills a new one by [`Tables::apply`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    links: BTreeMap<u32, LinkData>,
    addresses: BTreeSet<Address>,
    neighbours: BTreeMap<(u32, IpAddr), NeighbourData>,
    /// The entries of one key in the kernel's order: the first usable one is used.
    routes: BTreeMap<RouteKey, Vec<RouteData>>,
}

impl Tables {
    /// Takes in one event.
    pub fn apply(&mut self, event: Event) -> Applied {
        match event {
            Event::Link { index, link } => {
                let flipped = self.links.get(&index).is_some_and(|known| known.up != link.up);
                let changed = self.links.insert(index, link.clone()).as_ref() != Some(&link);
                // IPv4 routes leave with their link without a word, and come back marked differently.
                Applied { changed, routes_stale: flipped }
            }
            Event::LinkGone { index } => {
                self.addresses.retain(|address| address.interface != index);
                self.neighbours.retain(|(interface, _), _| *interface != index);
                let changed = self.links.remove(&index).is_some();
                Applied { changed, routes_stale: changed }
            }
            Event::Address { interface, address, prefix_len } => {
                Applied::when(self.addresses.insert(Address { interface, address, prefix_len }))
            }
            Event::AddressGone { interface, address, prefix_len } => {
                let changed = self.addresses.remove(&Address { interface, address, prefix_len });
                // Routes with this preferred source leave silently.
                Applied { changed, routes_stale: changed }
            }
            Event::Neighbour { interface, address, neighbour } => {
                let before = self.neighbours.insert((interface, address), neighbour);
                // Confirmed, stale, probing: the MAC stays the same, and the dataplane need not hear of it.
                Applied::when(before.and_then(NeighbourData::usable) != neighbour.usable())
            }
            Event::NeighbourGone { interface, address } => {
                Applied::when(self.neighbours.remove(&(interface, address)).and_then(NeighbourData::usable).is_some())
            }
            Event::Route { key, route, placed } => self.add_route(key, route, placed),
            Event::RouteGone { key, route } => self.remove_route(key, &route),
        }
    }

    /// What is known of a neighbour.
    #[must_use]
    pub fn neighbour(&self, interface: u32, address: IpAddr) -> Option<NeighbourData> {
        self.neighbours.get(&(interface, address)).copied()
    }

    fn add_route(&mut self, key: RouteKey, route: RouteData, placed: Placed) -> Applied {
        let entries = self.routes.entry(key).or_default();
        if entries.contains(&route) && (placed != Placed::Replace || entries.first() == Some(&route)) {
            return Applied::default();
        }
        let alone = entries.is_empty();
        match placed {
            Placed::Replace if !alone => entries[0] = route,
            Placed::Append => entries.push(route),
            Placed::Replace | Placed::First => entries.insert(0, route),
        }
        // For IPv6 the kernel joins equal-cost routes into one and does not say which entries that took the place of.
        Applied { changed: true, routes_stale: key.prefix.address.is_ipv6() && !alone }
    }

    fn remove_route(&mut self, key: RouteKey, route: &RouteData) -> Applied {
        let Some(entries) = self.routes.get_mut(&key) else { return Applied::default() };
        let Some(position) = entries.iter().position(|entry| entry == route) else {
            // One of several next hops, or an entry we know in another state.
            return Applied { changed: false, routes_stale: true };
        };
        entries.remove(position);
        if entries.is_empty() {
            self.routes.remove(&key);
        }
        Applied::when(true)
    }
}

/// What an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// A snapshot may look different now.
    pub changed: bool,
    /// The kernel may have changed routes that it does not announce: read them again.
    pub routes_stale: bool,
}

impl Applied {
    fn when(changed: bool) -> Applied {
        Applied { changed, routes_stale: false }
    }
}

/// One change that the kernel announced, or one entry of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link appeared or changed.
    Link {
        /// Its index.
        index: u32,
        /// What it is now.
        link: LinkData,
    },
    /// A link is gone.
    LinkGone {
        /// The index it had.
        index: u32,
    },
    /// An interface has an address.
    Address {
        /// The interface's index.
        interface: u32,
        /// The address.
        address: IpAddr,
        /// Of its subnet.
        prefix_len: u8,
    },
    /// An address is gone, or not usable yet (duplicate address detection).
    AddressGone {
        /// The interface's index.
        interface: u32,
        /// The address.
        address: IpAddr,
        /// Of its subnet.
        prefix_len: u8,
    },
    /// A neighbour appeared or changed.
    Neighbour {
        /// The interface's index.
        interface: u32,
        /// Its address.
        address: IpAddr,
        /// What it is now.
        neighbour: NeighbourData,
    },
    /// A neighbour is gone.
    NeighbourGone {
        /// The interface's index.
        interface: u32,
        /// Its address.
        address: IpAddr,
    },
    /// A route of the main table appeared or changed.
    Route {
        /// Which.
        key: RouteKey,
        /// What it is now.
        route: RouteData,
        /// Its place among the entries of the same key.
        placed: Placed,
    },
    /// A route of the main table is gone.
    RouteGone {
        /// Which.
        key: RouteKey,
        /// What it was.
        route: RouteData,
    },
}

/// A link's properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkData {
    /// Such as `eth0`.
    pub name: String,
    /// Its Ethernet address; zero where it has none.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Administratively up, and with a carrier.
    pub up: bool,
}

/// A neighbour's properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourData {
    /// Its Ethernet address, if one is known.
    pub mac: Option<[u8; 6]>,
    /// What the kernel thinks of it.
    pub state: NeighbourState,
    /// The kernel keeps it resolved (`NTF_EXT_MANAGED`).
    pub managed: bool,
}

impl NeighbourData {
    /// The MAC to send to, if it may be used.
    #[must_use]
    pub fn usable(self) -> Option<[u8; 6]> {
        self.mac.filter(|_| self.state.is_resolved())
    }
}

/// What tells routes of the main table apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Destination.
    pub prefix: Prefix,
    /// Priority: the lowest wins.
    pub metric: u32,
    /// Type of service it is for; we use only those with 0.
    pub tos: u8,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteData {
    /// What is to be done.
    pub kind: RouteKind,
    /// Next hops; empty unless the kind is [`RouteKind::Unicast`].
    pub gateways: Vec<Gateway>,
}

/// Where the kernel put a new route among those of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Before the others (also: it is the only one).
    First,
    /// After the others; also the order of a dump.
    Append,
    /// In place of the first.
    Replace,
}

/// The kernel's view at one moment; sorted, so that equal views compare equal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Counts up with each snapshot.
    pub generation: u64,
    /// The mirrored links that exist, by index.
    pub links: Vec<Link>,
    /// The resolved neighbours on them, by interface and address. What it differs in from that of another snapshot is found at once.
    pub neighbours: OrdMap<(u32, IpAddr), Neighbour>,
    /// The main table's best route for each prefix, by prefix; the same. Link-local prefixes are not in it: they are on every link.
    pub routes: OrdMap<Prefix, Route>,
    /// The addresses on the mirrored links.
    pub addresses: Vec<Address>,
}

impl Snapshot {
    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The neighbour with this address on the interface with this index.
    #[must_use]
    pub fn neighbour(&self, interface: u32, address: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&(interface, address))
    }

    /// The route of exactly this prefix.
    #[must_use]
    pub fn route(&self, prefix: Prefix) -> Option<&Route> {
        self.routes.get(&prefix)
    }
}

/// A mirrored link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Such as `eth0`.
    pub name: String,
    /// The kernel's number for it; a link that is created anew gets another.
    pub index: u32,
    /// Its Ethernet address; zero where it has none.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Administratively up, and with a carrier.
    pub up: bool,
}

/// A resolved neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The index of the interface.
    pub interface: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// As it was when the snapshot was made; a change between resolved states alone makes no new snapshot.
    pub state: NeighbourState,
}

/// What the kernel thinks of a neighbour (`NUD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NeighbourState {
    /// Nothing was tried.
    None,
    /// Being resolved for the first time.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Not confirmed lately; the next use starts that.
    Stale,
    /// Used while stale; waiting for a confirmation by a higher layer.
    Delay,
    /// Being asked again.
    Probe,
    /// It does not answer.
    Failed,
    /// It needs no resolution (multicast, point-to-point).
    NoArp,
    /// Set by the operator.
    Permanent,
}

impl NeighbourState {
    /// Whether its MAC may be used.
    #[must_use]
    pub fn is_resolved(self) -> bool {
        use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
        matches!(self, Reachable | Stale | Delay | Probe | Permanent)
    }
}

/// A route as the dataplane uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub prefix: Prefix,
    /// What is to be done.
    pub kind: RouteKind,
    /// Next hops on mirrored links that are up; empty unless the kind is [`RouteKind::Unicast`].
    pub gateways: Vec<Gateway>,
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Sends it to one of the gateways.
    Unicast,
    /// The unit's own kernel takes it.
    Local,
    /// Discards it (blackhole, unreachable or prohibit).
    Blackhole,
    /// Sends it over interfaces that are not mirrored, or in a way (encapsulation) only the kernel knows.
    Elsewhere,
}

/// One next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// The router, of either family (RFC 5549); absent: the destination itself is on the link.
    pub via: Option<IpAddr>,
    /// The index of the interface.
    pub interface: u32,
    /// Share of the flows in relation to the other gateways', 1 to 256.
    pub weight: u16,
}

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The index of the interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Of its subnet.
    pub prefix_len: u8,
}

/// A set of addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits they share.
    pub len: u8,
}

impl Prefix {
    /// Within fe80::/10: valid on each link separately.
    fn is_link_local(self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix { address: ip(address), len: len.parse().unwrap() }
    }

    fn key(text: &str, metric: u32) -> RouteKey {
        RouteKey { prefix: prefix(text), metric, tos: 0 }
    }

    fn via(address: &str, interface: u32) -> RouteData {
        let hop = Gateway { via: Some(ip(address)), interface, weight: 1 };
        RouteData { kind: RouteKind::Unicast, gateways: vec![hop] }
    }

    fn link(index: u32, name: &str, up: bool) -> Event {
        let mac = [2, 0, 0, 0, 0, u8::try_from(index).unwrap()];
        Event::Link { index, link: LinkData { name: name.into(), mac, mtu: 1500, up } }
    }

    fn neighbour(interface: u32, address: &str, state: NeighbourState) -> Event {
        let neighbour = NeighbourData { mac: Some([2, 0, 0, 0, 1, 1]), state, managed: false };
        Event::Neighbour { interface, address: ip(address), neighbour }
    }

    fn route(key: RouteKey, route: RouteData, placed: Placed) -> Event {
        Event::Route { key, route, placed }
    }

    /// Mirrors `port0` (index 2, up); `mgmt` (index 3) is there too.
    fn mirror() -> Mirror {
        let mut mirror = Mirror::new(BTreeSet::from(["port0".to_owned()]));
        assert!(mirror.apply(link(2, "port0", true)).changed);
        mirror.apply(link(3, "mgmt", true));
        mirror
    }

    #[test]
    fn only_resolved_neighbours_of_our_links_are_shown() {
        let mut mirror = mirror();
        assert!(mirror.apply(neighbour(2, "10.0.0.1", NeighbourState::Reachable)).changed);
        assert!(!mirror.apply(neighbour(2, "10.0.0.1", NeighbourState::Stale)).changed);
        assert!(!mirror.apply(neighbour(2, "10.0.0.2", NeighbourState::Incomplete)).changed);
        assert!(!mirror.apply(neighbour(3, "10.9.0.1", NeighbourState::Reachable)).changed);
        let shown: Vec<_> = mirror.snapshot().neighbours.values().map(|n| (n.address, n.state)).collect();
        assert_eq!(shown, [(ip("10.0.0.1"), NeighbourState::Stale)]);
        assert!(mirror.apply(neighbour(2, "10.0.0.1", NeighbourState::Failed)).changed);
        assert!(mirror.snapshot().neighbours.is_empty());
    }

    #[test]
    fn the_lowest_metric_wins_and_the_next_takes_over() {
        let mut mirror = mirror();
        mirror.apply(route(key("0.0.0.0/0", 100), via("10.0.0.253", 2), Placed::First));
        mirror.apply(route(key("0.0.0.0/0", 10), via("10.0.0.254", 2), Placed::First));
        let gateway = |mirror: &mut Mirror| mirror.snapshot().route(prefix("0.0.0.0/0")).unwrap().gateways[0].via;
        assert_eq!(gateway(&mut mirror), Some(ip("10.0.0.254")));
        mirror.apply(Event::RouteGone { key: key("0.0.0.0/0", 10), route: via("10.0.0.254", 2) });
        assert_eq!(gateway(&mut mirror), Some(ip("10.0.0.253")));
    }

    #[test]
    fn a_replaced_route_leaves_nothing_behind() {
        let mut mirror = mirror();
        let web = key("192.0.2.0/24", 0);
        mirror.apply(route(web, via("10.0.0.1", 2), Placed::First));
        let applied = mirror.apply(route(web, via("10.0.0.2", 2), Placed::Replace));
        assert_eq!(applied, Applied { changed: true, routes_stale: false });
        mirror.apply(Event::RouteGone { key: web, route: via("10.0.0.2", 2) });
        assert!(mirror.snapshot().routes.is_empty());
    }

    #[test]
    fn routes_over_other_interfaces_are_elsewhere_not_missing() {
        let mut mirror = mirror();
        mirror.apply(route(key("0.0.0.0/0", 0), via("10.0.0.254", 2), Placed::First));
        mirror.apply(route(key("172.16.0.0/16", 0), via("10.9.0.1", 3), Placed::First));
        mirror.apply(route(key("fe80::/64", 256), via("fe80::1", 3), Placed::First));
        let routes: Vec<_> = mirror.snapshot().routes.values().cloned().collect();
        assert_eq!(routes.len(), 2);
        assert_eq!((routes[1].kind, routes[1].gateways.len()), (RouteKind::Elsewhere, 0));
    }

    #[test]
    fn a_link_that_goes_down_takes_its_next_hops_along() {
        let mut mirror = mirror();
        mirror.interfaces.insert("port1".into());
        mirror.apply(link(4, "port1", true));
        let mut both = via("10.0.0.1", 2);
        both.gateways.extend(via("10.1.0.1", 4).gateways);
        mirror.apply(route(key("0.0.0.0/0", 0), both, Placed::First));
        assert_eq!(mirror.snapshot().route(prefix("0.0.0.0/0")).unwrap().gateways.len(), 2);
        assert_eq!(mirror.apply(link(2, "port0", false)), Applied { changed: true, routes_stale: true });
        assert_eq!(mirror.snapshot().route(prefix("0.0.0.0/0")).unwrap().gateways, via("10.1.0.1", 4).gateways);
        mirror.apply(link(4, "port1", false));
        assert!(mirror.snapshot().routes.is_empty());
    }

    #[test]
    fn a_link_that_disappears_takes_its_neighbours_and_addresses_along() {
        let mut mirror = mirror();
        mirror.apply(neighbour(2, "10.0.0.1", NeighbourState::Permanent));
        mirror.apply(Event::Address { interface: 2, address: ip("10.0.0.9"), prefix_len: 24 });
        assert!(mirror.apply(Event::LinkGone { index: 2 }).routes_stale);
        // Another device gets the same index: it inherits nothing.
        mirror.apply(link(2, "port0", true));
        let snapshot = mirror.snapshot();
        assert!(snapshot.neighbours.is_empty() && snapshot.addresses.is_empty());
    }

    #[test]
    fn what_is_not_understood_makes_the_routes_be_read_again() {
        let mut mirror = mirror();
        let web = key("2001:db8::/32", 1024);
        mirror.apply(route(web, via("fe80::1", 2), Placed::First));
        assert!(mirror.apply(route(web, via("fe80::2", 2), Placed::Append)).routes_stale);
        assert!(mirror.apply(Event::RouteGone { key: web, route: via("fe80::3", 2) }).routes_stale);
        assert!(!mirror.apply(Event::RouteGone { key: key("::/0", 1), route: via("fe80::3", 2) }).routes_stale);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let states = prop::sample::select(vec![NeighbourState::Reachable, NeighbourState::Failed]);
        let placed = prop::sample::select(vec![Placed::First, Placed::Append, Placed::Replace]);
        let keys = (0u8..3, 0u32..2).prop_map(|(n, metric)| key(&format!("10.{n}.0.0/16"), metric));
        let hops = (1u8..4, 1u32..4).prop_map(|(n, index)| via(&format!("10.0.0.{n}"), index));
        prop_oneof![
            (1u32..4, any::<bool>()).prop_map(|(index, up)| link(index, &format!("port{index}"), up)),
            (1u32..4).prop_map(|index| Event::LinkGone { index }),
            (1u32..4, 1u8..4, states).prop_map(|(index, n, state)| neighbour(index, &format!("10.0.0.{n}"), state)),
            (keys.clone(), hops.clone(), placed).prop_map(|(key, data, placed)| route(key, data, placed)),
            (keys, hops).prop_map(|(key, route)| Event::RouteGone { key, route }),
        ]
    }

    proptest! {
        /// What is not reported as a change changes nothing that the dataplane sees, but for a neighbour's state.
        #[test]
        fn unchanged_means_unchanged(events in prop::collection::vec(any_event(), 0..60)) {
            let mut mirror = Mirror::new(BTreeSet::from(["port1".to_owned(), "port2".to_owned()]));
            let mut before = mirror.snapshot();
            for event in events {
                let applied = mirror.apply(event);
                let after = mirror.snapshot();
                prop_assert!(after.generation > before.generation);
                if !applied.changed {
                    prop_assert_eq!(&Snapshot { generation: after.generation, ..before }, &after);
                }
                // What was changed event by event is what is found by looking at everything.
                let mut anew = Mirror { interfaces: mirror.interfaces.clone(), ..Mirror::default() };
                anew.replace(mirror.tables.clone());
                prop_assert_eq!(Snapshot { generation: after.generation, ..anew.snapshot() }, after.clone());
                before = after;
            }
        }
    }
}
