//! A shard's routes as the admin API and `weir replay` show them.

use weir_admin::api::{Direction, Flow, Protocol, RouteEndpoint, RouteEntry};
use weir_config::Config;
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::{Key, protocol};
use weir_dataplane::forwarder::{Forwarder, is_return};
use weir_dataplane::route_table::{Action, Entry, Mode, State};

/// Both directions of a connection, as far as the shard that owns it has them.
#[must_use]
pub fn lookup(
    forwarder: &Forwarder,
    farm: &Farm,
    config: &Config,
    shard: usize,
    key: &Key,
    now: u32,
) -> Vec<RouteEntry> {
    let Some(entry) = find(forwarder, key) else {
        return Vec::new();
    };
    let back = forwarder.other_direction(key, entry.action(), farm);
    let back = back.and_then(|back| Some((back, find(forwarder, &back)?)));
    let show = Show { forwarder, farm, config, shard, now };
    std::iter::once((*key, entry)).chain(back).filter_map(|(key, entry)| show.one(&key, entry)).collect()
}

/// All live routes of a shard, the direction from the client of each connection.
pub fn list<'f>(
    forwarder: &'f Forwarder,
    farm: &'f Farm,
    config: &'f Config,
    shard: usize,
    now: u32,
) -> impl Iterator<Item = RouteEntry> + 'f {
    let v4 = forwarder.routes4().iter().map(|(key, entry)| (Key::V4(key), entry));
    let v6 = forwarder.routes6().iter().map(|(key, entry)| (Key::V6(key), entry));
    let show = Show { forwarder, farm, config, shard, now };
    v4.chain(v6).filter(|(_, entry)| !is_return(entry.action())).filter_map(move |(key, entry)| show.one(&key, entry))
}

fn find<'f>(forwarder: &'f Forwarder, key: &Key) -> Option<&'f Entry> {
    match key {
        Key::V4(key) => forwarder.routes4().find(key).map(|index| forwarder.routes4().entry(index)),
        Key::V6(key) => forwarder.routes6().find(key).map(|index| forwarder.routes6().entry(index)),
    }
}

/// Where routes are shown from.
#[derive(Clone, Copy)]
struct Show<'f> {
    forwarder: &'f Forwarder,
    farm: &'f Farm,
    config: &'f Config,
    shard: usize,
    now: u32,
}

impl Show<'_> {
    /// One route; `None` if it is out of time or no connection's.
    fn one(self, key: &Key, entry: &Entry) -> Option<RouteEntry> {
        let Self { forwarder, farm, config, shard, now } = self;
        if entry.expired(now, &farm.timeouts) {
            return None;
        }
        let action = entry.action();
        let client_key = forwarder.client_flow(key, action, farm)?;
        // What is neither for a VIP nor translated back is a pool's port in its dead time.
        farm.vip_of(&client_key)?;
        let direction = if is_return(action) { Direction::ToClient } else { Direction::ToHost };
        let protocol = match client_key.protocol() {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            protocol::ESP => Protocol::Esp,
            protocol::GRE => Protocol::Gre,
            _ => return None,
        };
        let flow = Flow { client: client_key.source(), vip: client_key.destination(), protocol };
        let (name, endpoint) = match action {
            Action::Send { .. } | Action::Local { .. } => {
                let (endpoint, mode, name) = match action {
                    Action::Local { endpoint } => (endpoint, Mode::Nat, "local"),
                    Action::Send { endpoint, mode, .. } => (endpoint, mode, "send"),
                    _ => return None,
                };
                let endpoint = farm.endpoint(endpoint)?;
                let host = config.hosts.iter().find(|host| host.id == endpoint.host);
                let port = endpoint.port.unwrap_or(flow.vip.port());
                let endpoint = RouteEndpoint {
                    host: endpoint.host,
                    name: host.map(|host| host.name.clone()).unwrap_or_default(),
                    address: (endpoint.address, port).into(),
                    mode: mode_name(mode).to_owned(),
                    source: match mode {
                        Mode::FullNat => forwarder.other_direction(key, action, farm).map(|back| back.destination()),
                        Mode::FullNatReturn => Some(key.destination()),
                        _ => None,
                    },
                };
                (name, Some(endpoint))
            }
            Action::Drop => ("drop", None),
            Action::Divert => ("divert", None),
        };
        let idle = u64::from(entry.idle(now));
        Some(RouteEntry {
            flow,
            direction,
            action: name.to_owned(),
            endpoint,
            state: state_name(entry.state()).to_owned(),
            idle_ms: idle,
            expires_in_ms: u64::from(farm.timeouts.of(entry.state())).saturating_sub(idle),
            shard: u32::try_from(shard).unwrap_or(u32::MAX),
        })
    }
}

/// A mode's name, as in the YAML.
#[must_use]
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Dsr => "dsr",
        Mode::Nat | Mode::NatReturn => "nat",
        Mode::FullNat | Mode::FullNatReturn => "full-nat",
        Mode::Ipip => "ipip",
        Mode::Gue => "gue",
        Mode::FlowId => "flow-id",
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Opening => "opening",
        State::Established => "established",
        State::Closing => "closing",
        State::Datagram => "datagram",
        State::Refused => "refused",
    }
}
