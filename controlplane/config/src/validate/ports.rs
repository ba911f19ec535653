//! The sections `ports`, `neighbours`, `routes` and `pools`, and what they say about who is on-link.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Check, Seen};
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw;
use crate::types::{Device, Neighbour, Pool, Port, Route};

/// The network as configured.
#[derive(Default)]
pub(super) struct Network {
    pub(super) ports: Vec<Port>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) routes: Vec<Route>,
    pub(super) pools: Vec<Pool>,
    /// Whose an address is and where that stands: the unit's, neighbours' and gateways'.
    pub(super) owners: HashMap<IpAddr, (String, Place)>,
    neighbour_addresses: HashSet<(usize, IpAddr)>,
    /// A neighbour could not be read: nobody can say what is not on-link.
    neighbours_incomplete: bool,
    /// Ports by name, and whether all names could be read.
    by_name: HashMap<String, usize>,
    names_incomplete: bool,
    /// Which ports' addresses are left to the kernel or could not be read.
    unknown_addresses: Vec<bool>,
    /// A pool's name could not be read.
    pub(super) pools_incomplete: bool,
}

/// Checks everything about the network.
pub(super) fn network(check: &mut Check, document: &raw::Document) -> Network {
    let mut network = Network::default();
    let root = Place::root();
    ports(check, &mut network, document.ports.as_ref(), &root.key("ports"));
    neighbours(check, &mut network, document.neighbours.as_deref().unwrap_or_default(), &root.key("neighbours"));
    routes(check, &mut network, document.routes.as_deref().unwrap_or_default(), &root.key("routes"));
    pools(check, &mut network, document.pools.as_deref().unwrap_or_default(), &root.key("pools"));
    network
}

impl Network {
    /// Whether some port (or this one) reaches `address` directly; `None`: not known before run time.
    pub(super) fn on_link(&self, address: IpAddr, port: Option<usize>) -> Option<bool> {
        let ours = |i: &usize| port.is_none_or(|port| port == *i);
        let mut ports = (0..self.ports.len()).filter(ours);
        let listed = ports.clone().any(|i| self.neighbour_addresses.contains(&(i, address)));
        if listed || ports.clone().any(|i| self.ports[i].addresses.iter().any(|prefix| prefix.contains(&address))) {
            return Some(true);
        }
        let unknown = self.names_incomplete || self.neighbours_incomplete || ports.any(|i| self.unknown_addresses[i]);
        (!unknown).then_some(false)
    }

    /// The port whose own address this is.
    pub(super) fn own(&self, address: IpAddr) -> Option<usize> {
        self.ports.iter().position(|port| port.addresses.iter().any(|prefix| prefix.addr() == address))
    }

    /// The on-link prefixes of all ports, of `like`'s family.
    pub(super) fn prefixes(&self, like: IpAddr) -> Vec<IpNet> {
        self.ports.iter().flat_map(|port| prefixes(port, like)).collect()
    }

    /// The index of the port that a key names; reports an unknown one.
    fn port(&self, check: &mut Check, name: Option<&String>, place: &Place) -> Option<usize> {
        let name = check.required(name, place, "the name of a port")?;
        let index = self.by_name.get(name).copied();
        if index.is_none() && !self.names_incomplete {
            let known = self.ports.iter().map(|port| port.name.clone()).collect();
            check.error(place, Mistake::UnknownName { what: "port", name: name.clone(), known });
        }
        index
    }
}

fn prefixes(port: &Port, like: IpAddr) -> impl Iterator<Item = IpNet> {
    port.addresses.iter().filter(move |prefix| prefix.addr().is_ipv4() == like.is_ipv4()).map(IpNet::trunc)
}

fn ports(check: &mut Check, network: &mut Network, raw: Option<&Vec<raw::Port>>, here: &Place) {
    let Some(raw) = check.required(raw, here, "at least one port") else {
        network.names_incomplete = true;
        return;
    };
    if raw.is_empty() {
        check.error(here, Mistake::Empty { what: "at least one port" });
        network.names_incomplete = true;
    }
    let (mut names, mut devices, mut interfaces) = (Seen::default(), Seen::default(), Seen::default());
    for (i, raw) in raw.iter().enumerate() {
        let place = here.at(i);
        let name = check.name(raw.name.as_ref(), &place.key("name")).unwrap_or_default().to_owned();
        if name.is_empty() {
            network.names_incomplete = true;
        } else if check.unique(&mut names, name.clone(), &place.key("name"), "port name") {
            network.by_name.insert(name.clone(), i);
        }
        let at = place.key("device");
        let device = check.required(raw.device.as_ref(), &at, raw::DeviceText::EXPECTED).map(|text| text.0.as_str());
        let device = device.and_then(|text| match text.strip_prefix("vlan:") {
            Some(vlan) => self::vlan(check, network, vlan, &at),
            None => self::device(check, text, &at),
        });
        let parent = match device {
            Some(Device::Vlan { parent, .. }) => Some(parent),
            _ => None,
        };
        if let Some(device) = &device {
            let (kind, what) = match device {
                Device::AfPacket(name) | Device::AfXdp(name) => (name.clone(), "interface"),
                Device::Pci(address) => (address.clone(), "device"),
                Device::Vdev(text) => (text.split(',').next().unwrap_or_default().to_owned(), "device"),
                Device::Vlan { parent, id } => (format!("VLAN {id} on {}", network.ports[*parent].name), "device"),
            };
            let seen = if what == "interface" { &mut interfaces } else { &mut devices };
            check.unique(seen, kind, &at, what);
        }
        let at = place.key("twin");
        match (&raw.twin, &device) {
            (Some(_), Some(Device::AfPacket(_))) => check.error(&at, Mistake::TwinNeedless),
            (Some(twin), _) => {
                check.interface(twin, &at);
                check.unique(&mut interfaces, twin.clone(), &at, "interface");
            }
            (None, Some(Device::AfXdp(_))) if !check.is_cut(&at) => {
                check.error(&at, Mistake::TwinMissing { device: "af_xdp" });
            }
            (None, Some(Device::Pci(_))) if !check.is_cut(&at) => {
                check.error(&at, Mistake::TwinMissing { device: "PCI" });
            }
            (None, _) => {}
        }
        let mtu = check.number(raw.mtu, &place.key("mtu"), 576..=9600, 1500);
        let twin = match (parent, &raw.twin) {
            (Some(parent), None) => vlan_interface(&network.ports[parent], device.as_ref()),
            (_, twin) => twin.clone(),
        };
        if let Some(parent) = parent {
            let above = &network.ports[parent];
            if mtu > above.mtu {
                let (port, most) = (above.name.clone(), above.mtu);
                check.error(&place.key("mtu"), Mistake::MtuOverParent { mtu, port, most });
            }
            for (given, key) in [(raw.queues.is_some(), "queues"), (raw.mac.is_some(), "mac")] {
                if given {
                    check.error(&place.key(key), Mistake::OfParent { key });
                }
            }
        }
        let unknown = raw.addresses.as_ref().is_none_or(Vec::is_empty) || check.is_damaged(&place.key("addresses"));
        let addresses = addresses(check, network, raw.addresses.as_deref().unwrap_or_default(), &place, &name);
        if mtu < 1280 && addresses.iter().any(|prefix| prefix.addr().is_ipv6()) {
            check.error(&place.key("mtu"), Mistake::MtuBelowIpv6 { mtu });
        }
        let mac = raw.mac.as_ref().and_then(|mac| check.mac(mac, &place.key("mac")));
        let queues = check.number(raw.queues, &place.key("queues"), 1..=1024, 1);
        network.unknown_addresses.push(unknown || raw.addresses.as_ref().map_or(0, Vec::len) != addresses.len());
        let device = device.unwrap_or_else(|| Device::Vdev(String::new()));
        network.ports.push(Port { name, device, queues, mtu, addresses, mac, twin });
    }
}

/// Parses what a port is made of.
fn device(check: &mut Check, text: &str, place: &Place) -> Option<Device> {
    for (kind, device) in [("af_packet:", Device::AfPacket as fn(String) -> Device), ("af_xdp:", Device::AfXdp)] {
        if let Some(interface) = text.strip_prefix(kind) {
            check.interface(interface, place);
            return Some(device(interface.to_owned()));
        }
    }
    if let Some(address) = pci(text) {
        return Some(Device::Pci(address));
    }
    let (driver, _) = text.split_once(',').unwrap_or((text, ""));
    let named = driver.starts_with("net_") || driver.starts_with("virtio_user");
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if named && driver.bytes().all(plain) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(Device::Vdev(text.to_owned()));
    }
    check.error(place, Mistake::Unparsable { text: text.to_owned(), expected: raw::DeviceText::EXPECTED });
    None
}

/// `PORT.ID`: a VLAN on a port that stands further up and is none itself.
fn vlan(check: &mut Check, network: &Network, text: &str, place: &Place) -> Option<Device> {
    let parts = text.rsplit_once('.').and_then(|(port, id)| Some((port, id.parse::<u16>().ok()?)));
    let Some((name, id)) = parts.filter(|(_, id)| (1..=4094).contains(id)) else {
        let text = format!("vlan:{text}");
        check.error(place, Mistake::Unparsable { text, expected: "vlan:PORT.ID with an ID of 1 to 4094" });
        return None;
    };
    match network.by_name.get(name) {
        Some(&parent) if !matches!(network.ports[parent].device, Device::Vlan { .. }) => {
            Some(Device::Vlan { parent, id })
        }
        _ if network.names_incomplete => None,
        _ => {
            let real = |port: &&Port| !matches!(port.device, Device::Vlan { .. });
            let known = network.ports.iter().filter(real).map(|port| port.name.clone()).collect();
            check.error(place, Mistake::UnknownName { what: "untagged port above", name: name.to_owned(), known });
            None
        }
    }
}

/// The kernel's usual name for a VLAN's interface.
fn vlan_interface(parent: &Port, device: Option<&Device>) -> Option<String> {
    let Some(Device::Vlan { id, .. }) = device else { return None };
    let below = match (&parent.twin, &parent.device) {
        (Some(twin), _) => twin,
        (None, Device::AfPacket(interface) | Device::AfXdp(interface)) => interface,
        (None, Device::Pci(_) | Device::Vdev(_) | Device::Vlan { .. }) => return None,
    };
    Some(format!("{below}.{id}"))
}

/// A PCI address in full (`0000:03:00.0`), given with or without its domain.
fn pci(text: &str) -> Option<String> {
    let (rest, function) = text.rsplit_once('.')?;
    let parts: Vec<&str> = rest.split(':').collect();
    let (domain, bus, slot) = match parts.as_slice() {
        [domain, bus, slot] => (*domain, *bus, *slot),
        [bus, slot] => ("0000", *bus, *slot),
        _ => return None,
    };
    let hex = |text: &str, digits: usize| {
        (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then(|| u32::from_str_radix(text, 16).ok())
            .flatten()
    };
    let (domain, bus, slot, function) = (hex(domain, 4)?, hex(bus, 2)?, hex(slot, 2)?, hex(function, 1)?);
    (slot < 32 && function < 8).then(|| format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}"))
}

/// A port's own addresses; the wrong ones are left out.
fn addresses(
    check: &mut Check,
    network: &mut Network,
    raw: &[raw::PrefixText],
    port: &Place,
    name: &str,
) -> Vec<IpNet> {
    let mut addresses = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        let place = port.key("addresses").at(i);
        let Some(prefix) = check.prefix(text, &place, false) else { continue };
        if !check.unicast(prefix.addr(), &place) {
            continue;
        }
        // Point-to-point links (RFC 3021) and IPv6 have no broadcast; IPv6's first address is the routers' anycast.
        let which = match prefix {
            IpNet::V4(v4) if v4.prefix_len() < 31 && v4.addr() == v4.network() => Some("network"),
            IpNet::V4(v4) if v4.prefix_len() < 31 && v4.addr() == v4.broadcast() => Some("broadcast"),
            _ => None,
        };
        if let Some(which) = which {
            check.error(&place, Mistake::NetworkAddress { address: prefix, which });
        }
        if let Some((_, first)) = network.owners.get(&prefix.addr()) {
            let (value, first) = (prefix.addr().to_string(), first.to_string());
            check.error(&place, Mistake::Duplicate { what: "address", value, first });
        } else {
            network.owners.insert(prefix.addr(), (format!("port `{name}`"), place));
        }
        addresses.push(prefix);
    }
    addresses
}

fn neighbours(check: &mut Check, network: &mut Network, raw: &[raw::Neighbour], here: &Place) {
    network.neighbours_incomplete = check.is_cut(here);
    let mut seen = Seen::default();
    for (i, raw) in raw.iter().enumerate() {
        let place = here.at(i);
        let port = network.port(check, raw.port.as_ref(), &place.key("port"));
        let at = place.key("address");
        let address = check
            .required(raw.address.as_ref(), &at, raw::AddressText::EXPECTED)
            .and_then(|text| check.address(text, &at));
        let mac = check
            .required(raw.mac.as_ref(), &place.key("mac"), raw::MacText::EXPECTED)
            .and_then(|text| check.mac(text, &place.key("mac")));
        let Some(address) = address else {
            network.neighbours_incomplete = true;
            continue;
        };
        check.unique(&mut seen, address, &at, "neighbour");
        match network.owners.get(&address) {
            Some((owner, first)) if owner.starts_with("port") => {
                let (owner, first) = (owner.clone(), first.to_string());
                check.error(&at, Mistake::OwnAddress { address, owner, first });
            }
            _ => drop(network.owners.entry(address).or_insert_with(|| ("a neighbour".to_owned(), at))),
        }
        match port {
            Some(port) => {
                network.neighbour_addresses.insert((port, address));
                network.neighbours.push(Neighbour { port, address, mac: mac.unwrap_or_default() });
            }
            None => network.neighbours_incomplete = true,
        }
    }
}

fn routes(check: &mut Check, network: &mut Network, raw: &[raw::Route], here: &Place) {
    let mut seen = Seen::default();
    for (i, raw) in raw.iter().enumerate() {
        let place = here.at(i);
        let port = network.port(check, raw.port.as_ref(), &place.key("port"));
        let at = place.key("prefix");
        let prefix = check
            .required(raw.prefix.as_ref(), &at, raw::PrefixText::EXPECTED)
            .and_then(|text| check.network_prefix(text, &at, false));
        if let Some(prefix) = prefix {
            check.unique(&mut seen, prefix, &at, "prefix");
        }
        let at = place.key("via");
        let via =
            check.required(raw.via.as_ref(), &at, raw::AddressText::EXPECTED).and_then(|text| check.address(text, &at));
        let (Some(prefix), Some(via)) = (prefix, via) else { continue };
        if let Some(mistake) = family_differs(via, "prefix", prefix.addr()) {
            check.error(&at, mistake);
            continue;
        }
        match network.owners.get(&via) {
            Some((owner, first)) if owner.starts_with("port") => {
                let (owner, first) = (owner.clone(), first.to_string());
                check.error(&at, Mistake::OwnAddress { address: via, owner, first });
            }
            _ => drop(network.owners.entry(via).or_insert_with(|| ("a gateway".to_owned(), at.clone()))),
        }
        let Some(port) = port else { continue };
        if network.on_link(via, Some(port)) == Some(false) {
            let prefixes = prefixes(&network.ports[port], via).collect();
            let port = format!("port `{}`", network.ports[port].name);
            check.error(&at, Mistake::GatewayOffLink { via, port, prefixes });
            continue;
        }
        network.routes.push(Route { prefix, via, port });
    }
}

/// The mistake of `address` being of another family than `other`.
pub(super) fn family_differs(address: IpAddr, what: &'static str, other: IpAddr) -> Option<Mistake> {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    (address.is_ipv4() != other.is_ipv4()).then_some(Mistake::FamilyDiffers {
        address,
        family,
        other: what,
        other_address: other,
    })
}

/// Reports pools with too few ports for several shards.
pub(super) fn pool_ports(check: &mut Check, document: &raw::Document, network: &Network, shards: usize) {
    for (i, (pool, raw)) in network.pools.iter().zip(document.pools.iter().flatten()).enumerate() {
        let ports = pool.port_range.len();
        if raw.port_range.is_some() && shards > 1 && ports < LEAST_PORTS {
            let place = Place::root().key("pools").at(i).key("port_range");
            check.error(&place, Mistake::FewPoolPorts { ports, shards });
        }
    }
}

fn pools(check: &mut Check, network: &mut Network, raw: &[raw::Pool], here: &Place) {
    network.pools_incomplete = check.is_cut(here);
    let (mut names, mut seen) = (Seen::default(), Vec::<(IpNet, Place)>::new());
    for (i, raw) in raw.iter().enumerate() {
        let place = here.at(i);
        let name = check.name(raw.name.as_ref(), &place.key("name")).unwrap_or_default().to_owned();
        if name.is_empty() {
            network.pools_incomplete = true;
        } else {
            check.unique(&mut names, name.clone(), &place.key("name"), "pool name");
        }
        let at = place.key("addresses");
        let texts = check.required(raw.addresses.as_ref(), &at, "at least one address or prefix");
        if texts.is_some_and(Vec::is_empty) && !check.is_damaged(&at) {
            check.error(&at, Mistake::Empty { what: "at least one address or prefix" });
        }
        let mut addresses = Vec::new();
        for (j, text) in texts.into_iter().flatten().enumerate() {
            let Some(prefix) = check.network_prefix(text, &at.at(j), true) else { continue };
            if !check.unicast(prefix.addr(), &at.at(j)) {
                continue;
            }
            let overlaps = |other: &IpNet| other.contains(&prefix) || prefix.contains(other);
            if let Some((other, first)) = seen.iter().find(|(other, _)| overlaps(other)) {
                let (value, first) = (other.to_string(), first.to_string());
                check.error(&at.at(j), Mistake::Duplicate { what: "pool prefix", value, first });
            }
            let owned =
                network.owners.iter().filter(|(owned, _)| prefix.contains(*owned)).min_by_key(|(owned, _)| **owned);
            if let Some((&address, (owner, first))) = owned {
                let (owner, first) = (owner.clone(), first.to_string());
                check.error(&at.at(j), Mistake::OwnAddress { address, owner, first });
            }
            seen.push((prefix, at.at(j)));
            addresses.push(prefix);
        }
        if Pool::count(&addresses) > MAX_POOL as u128 {
            check.error(&at, Mistake::PoolTooLarge { most: MAX_POOL });
        }
        let port_range = raw.port_range.as_ref().and_then(|range| check.port_range(range, &place.key("port_range")));
        network.pools.push(Pool { name, addresses, port_range: port_range.unwrap_or(1024..=65_535) });
    }
}

/// Ports in a row of which every one of the dataplane's 128 buckets has some (`weir_dataplane::translation::LEAST_PORTS`).
const LEAST_PORTS: usize = 2047;
/// The data plane looks each packet's addresses up in a table of these; a few of them make millions of connections.
const MAX_POOL: usize = 4096;
