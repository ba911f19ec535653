//! The section `services`: each by itself, and all against each other and everybody's addresses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use weir_identity::ServiceId;

use super::dataplane::MILLISECOND;
use super::endpoints::Farm;
use super::hosts::Hosts;
use super::ports::Network;
use super::values::PORTS;
use super::{Check, Seen};
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw;
use crate::types::{Mode, NoEndpoint, Ports, Probe, ProbeKind, Protocol, Select, Service, Take};

/// A service as far as it could be read, for the checks of its endpoints.
pub(super) struct Draft<'d> {
    pub(super) raw: &'d raw::Service,
    pub(super) place: Place,
    pub(super) id: Option<u32>,
    pub(super) name: String,
    pub(super) vip: Option<IpAddr>,
    pub(super) protocol: Protocol,
    pub(super) ports: Option<Ports>,
    pub(super) mode: Option<Mode>,
}

/// Checks all services.
pub(super) fn services(check: &mut Check, document: &raw::Document, network: &Network, hosts: &Hosts) -> Vec<Service> {
    let here = Place::root().key("services");
    let raw = document.services.as_deref().unwrap_or_default();
    if raw.is_empty() && !check.is_cut(&here) {
        check.warning(&here, Mistake::NoServices);
    }
    let (mut ids, mut names) = (Seen::default(), Seen::default());
    let mut drafts = Vec::new();
    for (i, raw) in raw.iter().enumerate() {
        let draft = draft(check, raw, here.at(i), network);
        if let Some(id) = draft.id {
            check.unique(&mut ids, id, &draft.place.key("id"), "service id");
        }
        if !draft.name.is_empty() {
            check.unique(&mut names, draft.name.clone(), &draft.place.key("name"), "service name");
        }
        drafts.push(draft);
    }
    overlaps(check, &drafts);
    let vips = vips(check, &drafts, network, hosts);
    let mut farm = Farm::new(network, hosts, &vips);
    let services: Vec<Service> = drafts.iter().map(|draft| service(check, draft, &mut farm)).collect();
    farm.finish(check, !check.is_damaged(&here));
    services
}

/// Reads what a service is, without its endpoints.
fn draft<'d>(check: &mut Check, raw: &'d raw::Service, place: Place, network: &Network) -> Draft<'d> {
    let id = check.id(raw.id, &place.key("id"));
    let name = check.name(raw.name.as_ref(), &place.key("name")).unwrap_or_default().to_owned();
    let at = place.key("vip");
    let vip =
        check.required(raw.vip.as_ref(), &at, raw::AddressText::EXPECTED).and_then(|text| check.address(text, &at));
    let at = place.key("ports");
    let protocol = match raw.protocol {
        Some(raw::Protocol::Udp) => Protocol::Udp,
        Some(raw::Protocol::Tcp) | None => Protocol::Tcp,
        Some(raw::Protocol::Esp) => Protocol::Esp,
        Some(raw::Protocol::Gre) => Protocol::Gre,
    };
    let ports = if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        check
            .required(raw.ports.as_ref(), &at, "80, \"8000-8099\", a list of these, or all")
            .and_then(|set| check.ports(set, &at))
    } else {
        if raw.ports.is_some() {
            check.error(&at, Mistake::NoPorts { protocol: word_of(protocol) });
        }
        Some(Ports::All)
    };
    let mode = mode(check, raw, &place, network);
    if matches!(mode, Some(Mode::FullNat { .. })) && !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        check.error(&place.key("mode"), Mistake::TranslatesPorts { protocol: word_of(protocol) });
    }
    Draft { raw, place, id, name, vip, protocol, ports, mode }
}

/// The mode with its settings; reports the settings of others.
fn mode(check: &mut Check, raw: &raw::Service, place: &Place, network: &Network) -> Option<Mode> {
    let at = place.key("mode");
    let mode = *check.required(raw.mode.as_ref(), &at, "how packets reach the endpoints, as in mode: dsr")?;
    let word = word(mode);
    let settings = [
        ("pool", "full-nat", raw.pool.is_some()),
        ("ipip", "ipip", raw.ipip.is_some()),
        ("gue", "gue", raw.gue.is_some()),
    ];
    for (key, belongs_to, given) in settings {
        if given && belongs_to != word {
            check.error(&place.key(key), Mistake::OtherMode { mode: word, belongs_to });
        }
    }
    match mode {
        raw::Mode::Dsr => Some(Mode::Dsr),
        raw::Mode::Nat => Some(Mode::Nat),
        raw::Mode::Ipip => Some(Mode::Ipip),
        raw::Mode::FullNat => {
            let name = check.required(raw.pool.as_ref(), &place.key("pool"), "the name of a pool")?;
            let pool = network.pools.iter().position(|pool| pool.name == *name);
            if pool.is_none() && !network.pools_incomplete {
                let known = network.pools.iter().map(|pool| pool.name.clone()).collect();
                check.error(&place.key("pool"), Mistake::UnknownName { what: "pool", name: name.clone(), known });
            }
            pool.map(|pool| Mode::FullNat { pool })
        }
        raw::Mode::Gue => {
            let port = raw.gue.as_ref().and_then(|gue| gue.port);
            Some(Mode::Gue { port: check.number(port, &place.key("gue").key("port"), PORTS, 6080) })
        }
    }
}

/// A protocol as it stands in the YAML.
fn word_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Esp => "esp",
        Protocol::Gre => "gre",
    }
}

/// A mode as it stands in the YAML.
pub(super) fn word(mode: raw::Mode) -> &'static str {
    match mode {
        raw::Mode::Dsr => "dsr",
        raw::Mode::Nat => "nat",
        raw::Mode::FullNat => "full-nat",
        raw::Mode::Ipip => "ipip",
        raw::Mode::Gue => "gue",
    }
}

/// Reports services that claim the same packets: the later one of each pair.
fn overlaps(check: &mut Check, drafts: &[Draft<'_>]) {
    let mut by_vip: HashMap<(IpAddr, Protocol), Vec<&Draft<'_>>> = HashMap::new();
    for draft in drafts {
        let (Some(vip), Some(ports)) = (draft.vip, &draft.ports) else { continue };
        let earlier = by_vip.entry((vip, draft.protocol)).or_default();
        let clash = earlier.iter().find_map(|other| Some((other, other.ports.as_ref()?.common(ports)?)));
        if let Some((other, port)) = clash {
            let protocol = word_of(draft.protocol);
            let first = other.place.key("ports").to_string();
            let mistake = Mistake::Overlap { vip, protocol, port, other: other.name.clone(), first };
            check.error(&draft.place.key("ports"), mistake);
        }
        earlier.push(draft);
    }
}

/// All VIPs with their services' names; reports those that somebody owns.
fn vips(check: &mut Check, drafts: &[Draft<'_>], network: &Network, hosts: &Hosts) -> HashMap<IpAddr, String> {
    let mut owners = network.owners.clone();
    for host in hosts.all() {
        let (Some(address), name) = (host.address, host.name.as_deref().unwrap_or_default()) else { continue };
        owners.entry(address).or_insert_with(|| (format!("host `{name}`"), host.place.key("address")));
    }
    let mut vips = HashMap::new();
    let mut reported = HashSet::new();
    for draft in drafts {
        let Some(vip) = draft.vip else { continue };
        vips.entry(vip).or_insert_with(|| draft.name.clone());
        let pool = network.pools.iter().position(|pool| pool.addresses.iter().any(|prefix| prefix.contains(&vip)));
        let pool = pool
            .map(|i| (format!("pool `{}`", network.pools[i].name), Place::root().key("pools").at(i).key("addresses")));
        if let Some((owner, first)) = owners.get(&vip).cloned().or(pool)
            && reported.insert(vip)
        {
            let mistake = Mistake::OwnAddress { address: vip, owner, first: first.to_string() };
            check.error(&draft.place.key("vip"), mistake);
        }
    }
    vips
}

/// The validated service.
fn service(check: &mut Check, draft: &Draft<'_>, farm: &mut Farm<'_>) -> Service {
    let (raw, place) = (draft.raw, &draft.place);
    let select = match raw.select {
        Some(raw::Select::Percentages) => Select::Percentages,
        Some(raw::Select::Hash) => Select::Hash,
        Some(raw::Select::RoundRobin) => Select::RoundRobin,
        Some(raw::Select::LeastConnection) => Select::LeastConnection,
        Some(raw::Select::Tokens) | None => Select::Tokens,
    };
    // What only concerns tokens; and how old an allotment may be, percentages too.
    let without = match select {
        Select::Tokens => None,
        Select::Percentages => Some(("select: percentages", false)),
        Select::Hash => Some(("select: hash", true)),
        Select::RoundRobin => Some(("select: round-robin", true)),
        Select::LeastConnection => Some(("select: least-connection", true)),
    };
    if let Some((with, ageless)) = without {
        let max_age = ageless && raw.max_age.is_some();
        let given = [("take", raw.take.is_some()), ("tokens", raw.tokens.is_some()), ("max_age", max_age)];
        for (key, _) in given.into_iter().filter(|(_, given)| *given) {
            check.warning(&place.key(key), Mistake::NoEffect { with });
        }
    }
    let endpoints = farm.endpoints(check, draft);
    let probe = raw.probe.as_ref().and_then(|raw| probe(check, raw, draft));
    Service {
        id: ServiceId(draft.id.unwrap_or(0)),
        name: draft.name.clone(),
        vip: draft.vip.unwrap_or(IpAddr::from([0; 4])),
        protocol: draft.protocol,
        ports: draft.ports.clone().unwrap_or(Ports::All),
        mode: draft.mode.unwrap_or(Mode::Dsr),
        select,
        take: match raw.take {
            Some(raw::Take::Greatest) | None => Take::Greatest,
            Some(raw::Take::RoundRobin) => Take::RoundRobin,
            Some(raw::Take::Linear) => Take::Linear,
        },
        tokens: check.number(raw.tokens, &place.key("tokens"), 1..=1_000_000, 100),
        max_age: check.duration(
            raw.max_age.as_ref(),
            &place.key("max_age"),
            MILLISECOND..=HOUR,
            Duration::from_secs(1),
        ),
        no_endpoint: match raw.no_endpoint {
            Some(raw::NoEndpoint::Reset) => NoEndpoint::Reset,
            Some(raw::NoEndpoint::Drop) | None => NoEndpoint::Drop,
        },
        probe,
        endpoints,
    }
}

/// A service's probe.
fn probe(check: &mut Check, raw: &raw::Probe, draft: &Draft<'_>) -> Option<Probe> {
    let place = draft.place.key("probe");
    let at = place.key("kind");
    let kind = *check.required(raw.kind.as_ref(), &at, "tcp or http")?;
    let kind = match kind {
        raw::ProbeKind::Tcp => {
            for (key, given) in [("path", raw.path.is_some()), ("host", raw.host.is_some())] {
                if given {
                    check.error(&place.key(key), Mistake::NoEffect { with: "kind: tcp" });
                }
            }
            ProbeKind::Tcp
        }
        raw::ProbeKind::Http => {
            let path = raw.path.clone().unwrap_or_else(|| "/".to_owned());
            if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') {
                let expected = "printable ASCII that begins with `/`, without spaces and `#`";
                check.error(&place.key("path"), Mistake::BadHttpText { text: path.clone(), expected });
            }
            if let Some(host) = &raw.host
                && (host.is_empty()
                    || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte)))
            {
                let expected = "a host name or address, with or without port";
                check.error(&place.key("host"), Mistake::BadHttpText { text: host.clone(), expected });
            }
            ProbeKind::Http { path, host: raw.host.clone() }
        }
    };
    probe_port(check, raw, draft, &place.key("port"));
    let port = raw.port.map(|port| check.number(Some(port), &place.key("port"), PORTS, 0));
    let before = check.findings.len();
    let second = Duration::from_secs(1);
    let interval = check.duration(raw.interval.as_ref(), &place.key("interval"), MILLISECOND * 10..=HOUR, second);
    let timeout = check.duration(raw.timeout.as_ref(), &place.key("timeout"), MILLISECOND..=HOUR, interval / 2);
    if interval < timeout && check.findings.len() == before && !check.is_damaged(&place) {
        let key = if raw.interval.is_some() { "interval" } else { "timeout" };
        check.error(&place.key(key), Mistake::ProbeTooOften { interval, timeout });
    }
    let rise = check.number(raw.rise, &place.key("rise"), 1..=100, 2);
    let fall = check.number(raw.fall, &place.key("fall"), 1..=100, 3);
    Some(Probe { kind, port, interval, timeout, rise, fall })
}

/// Reports a probe that needs a port of its own and has none.
fn probe_port(check: &mut Check, raw: &raw::Probe, draft: &Draft<'_>, place: &Place) {
    let Some(ports) = &draft.ports else { return };
    if raw.port.is_some() || check.is_cut(place) {
        return;
    }
    let endpoints = draft.raw.endpoints.as_deref().unwrap_or_default();
    let why = if draft.protocol == Protocol::Udp {
        "probes are TCP, and the service is UDP"
    } else if draft.protocol != Protocol::Tcp {
        "probes are TCP, and the service has no ports"
    } else if ports.single().is_none() && endpoints.iter().any(|endpoint| endpoint.port.is_none()) {
        "the service has several ports"
    } else {
        return;
    };
    check.error(place, Mistake::ProbePort { why });
}

const HOUR: Duration = Duration::from_secs(3600);
