//! The endpoints of all services: whom they name, whether they can be reached in their mode, and whether they are told apart.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use weir_identity::{ApplicationId, HostId};

use super::Check;
use super::hosts::Hosts;
use super::ports::{Network, family_differs};
use super::services::{Draft, word};
use super::values::PORTS;
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw;
use crate::types::{Device, DirectiveState, Endpoint, Mode, Ports, Protocol};

/// What the endpoints seen so far have taken.
pub(super) struct Farm<'a> {
    network: &'a Network,
    hosts: &'a Hosts,
    vips: &'a HashMap<IpAddr, String>,
    used: HashSet<usize>,
    /// An endpoint's host is not there: perhaps one that seems unused was meant.
    unknown_host: bool,
    /// Rows of the hosts' tables.
    applications: HashMap<(String, u32), Place>,
    /// Sockets by address.
    sockets: HashMap<(IpAddr, Protocol), Vec<Socket>>,
}

/// Where an endpoint listens.
struct Socket {
    ports: Ports,
    service: Place,
    name: String,
    mode: Mode,
    place: Place,
}

impl<'a> Farm<'a> {
    pub(super) fn new(network: &'a Network, hosts: &'a Hosts, vips: &'a HashMap<IpAddr, String>) -> Self {
        Self {
            network,
            hosts,
            vips,
            used: HashSet::new(),
            unknown_host: false,
            applications: HashMap::new(),
            sockets: HashMap::new(),
        }
    }

    /// A service's endpoints.
    pub(super) fn endpoints(&mut self, check: &mut Check, service: &Draft<'_>) -> Vec<Endpoint> {
        let here = service.place.key("endpoints");
        let raw = service.raw.endpoints.as_ref();
        let Some(raw) = check.required(raw, &here, "at least one endpoint: { host: NAME }") else { return Vec::new() };
        let endpoints: Vec<Endpoint> =
            raw.iter().enumerate().map(|(i, raw)| self.endpoint(check, raw, here.at(i), service)).collect();
        if !check.is_damaged(&here) {
            let name = service.name.clone();
            let mut firsts = endpoints.iter().filter(|endpoint| !endpoint.backup);
            if endpoints.is_empty() {
                check.error(&here, Mistake::NoEndpoints { service: name });
            } else if firsts.clone().next().is_none() {
                check.error(&here, Mistake::OnlyBackups { service: name });
            } else if firsts.all(|endpoint| endpoint.capacity == 0) {
                check.error(&here, Mistake::NoCapacity { service: name });
            } else if endpoints.iter().all(|endpoint| endpoint.state != DirectiveState::Active) {
                check.warning(&here, Mistake::NoneActive { service: name });
            }
        }
        endpoints
    }

    /// Warns of hosts that no service uses, if `complete` services were seen.
    pub(super) fn finish(self, check: &mut Check, complete: bool) {
        for (i, host) in self.hosts.all().iter().enumerate() {
            if let Some(name) = &host.name
                && complete
                && !self.unknown_host
                && !self.used.contains(&i)
                && self.hosts.named(name).is_some_and(|(index, _)| index == i)
            {
                check.warning(&host.place.key("name"), Mistake::UnusedHost { host: name.clone() });
            }
        }
    }

    fn endpoint(&mut self, check: &mut Check, raw: &raw::Endpoint, place: Place, service: &Draft<'_>) -> Endpoint {
        let at = place.key("host");
        let host_name = check.required(raw.host.as_ref(), &at, "the name of a host").cloned().unwrap_or_default();
        let host = self.hosts.named(&host_name);
        self.unknown_host |= host.is_none();
        if host.is_none() && raw.host.is_some() && !self.hosts.incomplete {
            let known = self.hosts.names();
            check.error(&at, Mistake::UnknownName { what: "host", name: host_name.clone(), known });
        }
        self.used.extend(host.map(|(index, _)| index));
        let (own, at) = (raw.address.as_ref(), place.key("address"));
        let address = match own {
            Some(text) => check.address(text, &at),
            None if check.is_cut(&at) => None,
            None => host.and_then(|(_, host)| host.address),
        };
        let at = if own.is_some() { at } else { place.key("host") };
        let local = address.and_then(|address| self.network.own(address));
        match (address, local) {
            (Some(address), Some(port)) => self.on_the_unit(check, address, port, &at, service),
            (Some(address), None) => self.reach(check, address, &at, service),
            (None, _) => {}
        }
        let before = check.findings.len();
        let at = place.key("port");
        let port = raw.port.map(|port| check.number(Some(port), &at, PORTS, 0));
        if let Some(port) = port
            && check.findings.len() == before
        {
            change_of_port(check, port, &at, service);
        }
        let application = raw.application.and_then(|id| check.id(Some(id), &place.key("application")));
        let application = application.or(service.id);
        let distinct = address.is_none_or(|address| self.socket(check, address, port, &place, service));
        if distinct && let (Some(application), Some(_)) = (application, host) {
            let key = (host_name.clone(), application);
            match self.applications.get(&key) {
                Some(first) => {
                    let at = if raw.application.is_some() { place.key("application") } else { place.clone() };
                    let (value, first) = (format!("{application} of host `{host_name}`"), first.to_string());
                    check.error(&at, Mistake::Duplicate { what: "application", value, first });
                }
                None => drop(self.applications.insert(key, place.clone())),
            }
        }
        Endpoint {
            host: HostId(host.and_then(|(_, host)| host.id).unwrap_or(0)),
            host_name,
            application: ApplicationId(application.unwrap_or(0)),
            address: address.unwrap_or(IpAddr::from([0; 4])),
            port,
            capacity: check.number(raw.capacity, &place.key("capacity"), 0..=99, 50),
            state: match raw.state {
                Some(raw::DirectiveState::Draining) => DirectiveState::Draining,
                Some(raw::DirectiveState::Inactive) => DirectiveState::Inactive,
                Some(raw::DirectiveState::Active) | None => DirectiveState::Active,
            },
            backup: raw.backup.unwrap_or(false),
            local,
        }
    }

    /// Reports an endpoint on the unit itself that its kernel cannot serve.
    fn on_the_unit(&self, check: &mut Check, address: IpAddr, port: usize, place: &Place, service: &Draft<'_>) {
        let port = &self.network.ports[port];
        let name = port.name.clone();
        if let (Some(mode), Some(raw)) = (service.mode, service.raw.mode)
            && mode != Mode::Nat
        {
            check.error(place, Mistake::LocalMode { address, port: name, mode: word(raw) });
        } else if port.twin.is_none() || matches!(port.device, Device::Vlan { .. }) {
            check.error(place, Mistake::LocalTwin { address, port: name });
        } else if let Some(mistake) = service.vip.and_then(|vip| family_differs(address, "the VIP", vip)) {
            check.error(place, mistake);
        }
    }

    /// Reports an address that packets cannot reach in the service's mode.
    fn reach(&self, check: &mut Check, address: IpAddr, place: &Place, service: &Draft<'_>) {
        if let Some(name) = self.vips.get(&address) {
            // A host at a VIP is reported with the VIP.
            if place.as_str().ends_with(".address") {
                check.error(place, Mistake::AtVip { address, service: name.clone() });
            }
            return;
        }
        if let Some(i) = self.network.pools.iter().position(|pool| pool.contains(address)) {
            let owner = format!("pool `{}`", self.network.pools[i].name);
            let first = Place::root().key("pools").at(i).key("addresses").to_string();
            check.error(place, Mistake::OwnAddress { address, owner, first });
            return;
        }
        if let Some(Mode::FullNat { pool }) = service.mode {
            let pool = &self.network.pools[pool];
            // One without any addresses has been reported.
            if !pool.addresses.is_empty() && !pool.addresses.iter().any(|net| net.addr().is_ipv4() == address.is_ipv4())
            {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                check.error(place, Mistake::PoolFamily { address, family, pool: pool.name.clone() });
            }
            return;
        }
        let same_family = matches!(service.mode, Some(Mode::Dsr | Mode::Nat));
        if let Some(mistake) =
            service.vip.filter(|_| same_family).and_then(|vip| family_differs(address, "the VIP", vip))
        {
            check.error(place, mistake);
        } else if service.mode == Some(Mode::Dsr) && self.network.on_link(address, None) == Some(false) {
            check.error(place, Mistake::HostOffLink { address, prefixes: self.network.prefixes(address) });
        }
    }

    /// Notes where an endpoint listens; `false` if the same service has it already.
    fn socket(
        &mut self,
        check: &mut Check,
        address: IpAddr,
        port: Option<u16>,
        place: &Place,
        service: &Draft<'_>,
    ) -> bool {
        let (Some(mode), Some(ports)) = (service.mode, &service.ports) else { return true };
        let ports = port.map_or_else(|| ports.clone(), |port| Ports::Ranges(vec![port..=port]));
        let others = self.sockets.entry((address, service.protocol)).or_default();
        let mut distinct = true;
        let clash = others.iter().find_map(|other| Some((other, other.ports.common(&ports)?)));
        if let Some((other, port)) = clash {
            let first = other.place.to_string();
            if other.service == service.place {
                let value = format!("{address} port {ports}");
                check.error(place, Mistake::Duplicate { what: "endpoint", value, first });
                distinct = false;
            } else if (other.mode, mode) == (Mode::Nat, Mode::Nat) {
                check.warning(place, Mistake::RepliesAlike { address, port, other: other.name.clone(), first });
            }
        }
        let (service, name, place) = (service.place.clone(), service.name.clone(), place.clone());
        others.push(Socket { ports, service, name, mode, place });
        distinct
    }
}

/// Reports a port that the service's mode cannot change, or not for several ports.
fn change_of_port(check: &mut Check, port: u16, place: &Place, service: &Draft<'_>) {
    let (Some(mode), Some(ports), Some(raw)) = (service.mode, &service.ports, service.raw.mode) else { return };
    if ports.single() == Some(port) {
        return;
    }
    let (mode_word, ports) = (word(raw), ports.to_string());
    match mode {
        Mode::Nat | Mode::FullNat { .. } => {
            if service.ports.as_ref().is_some_and(|ports| ports.single().is_none()) {
                check.error(place, Mistake::PortForMany { ports, port });
            }
        }
        Mode::Dsr | Mode::Ipip | Mode::Gue { .. } => {
            check.error(place, Mistake::PortChange { mode: mode_word, ports, port });
        }
    }
}
