//! A shard's routes as the admin API and `weir replay` show them.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use weir_admin::api::{Direction, Flow, Protocol, RouteEndpoint, RouteEntry};
use weir_config::Config;
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::{Key, protocol};
use weir_dataplane::forwarder::{Forwarder, is_return};
use weir_dataplane::route_table::{Action, Entry, Mode, State};
use weir_identity::HostId;

/// A route as a core has seen it; what it takes to show it is done elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Where in the shard's tables it is.
    pub place: Place,
    /// Whose packets.
    pub flow: Flow,
    direction: Direction,
    action: Action,
    /// In full-nat: what the host sees as the client's address and port.
    source: Option<SocketAddr>,
    state: State,
    idle: u32,
}

/// A place in a unit's route tables, from which a listing goes on: shard, family of addresses, slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The shard's number.
    pub shard: usize,
    six: bool,
    slot: usize,
}

/// What a text that names no [`Place`] is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no place in a list of routes: give `from` as the unit gave `next`, or leave it out to begin anew")]
pub struct NoPlace;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.shard, if self.six { 6 } else { 4 }, self.slot)
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let mut parts = text.split('-');
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (shard, family, slot) = (number(), number(), number());
        match (shard, family, slot, parts.next()) {
            (Some(shard), Some(family @ (4 | 6)), Some(slot), None) => Ok(Place { shard, six: family == 6, slot }),
            _ => Err(NoPlace),
        }
    }
}

/// Both directions of a connection, as far as the shard that owns it has them.
#[must_use]
pub fn lookup(forwarder: &Forwarder, farm: &Farm, key: &Key, now: u32) -> Vec<Seen> {
    let Some(entry) = find(forwarder, key) else {
        return Vec::new();
    };
    let back = forwarder.other_direction(key, entry.action(), farm);
    let back = back.and_then(|back| Some((back, find(forwarder, &back)?)));
    let both = std::iter::once((*key, entry)).chain(back);
    both.filter_map(|(key, entry)| see(forwarder, farm, Place::default(), &key, entry, now)).collect()
}

/// Looks at [`SLOTS_A_VISIT`] slots of a shard's tables from a place on, until `most` live routes are found (and at most
/// [`FOUND_A_VISIT`]), the direction from the client of each connection; and where to go on, which is in the next shard at the end.
#[must_use]
pub fn page(
    forwarder: &Forwarder,
    farm: &Farm,
    from: Place,
    most: usize,
    wanted: impl Fn(&Flow) -> bool,
    now: u32,
) -> (Vec<Seen>, Place) {
    let mut found = Vec::new();
    let most = most.min(FOUND_A_VISIT);
    let (mut four, mut six);
    let slots: &mut dyn Iterator<Item = (usize, Key, &Entry)> = if from.six {
        let slots = forwarder.routes6().iter_slots(from.slot, SLOTS_A_VISIT);
        six = slots.map(|(slot, key, entry)| (slot, Key::V6(key), entry));
        &mut six
    } else {
        let slots = forwarder.routes4().iter_slots(from.slot, SLOTS_A_VISIT);
        four = slots.map(|(slot, key, entry)| (slot, Key::V4(key), entry));
        &mut four
    };
    for (slot, key, entry) in slots {
        if found.len() >= most {
            return (found, Place { slot, ..from });
        }
        if is_return(entry.action()) {
            continue;
        }
        let place = Place { slot, ..from };
        found.extend(see(forwarder, farm, place, &key, entry, now).filter(|seen| wanted(&seen.flow)));
    }
    let slot = from.slot.saturating_add(SLOTS_A_VISIT);
    let all = if from.six { forwarder.routes6().slots() } else { forwarder.routes4().slots() };
    let next = match (slot < all, from.six) {
        (true, _) => Place { slot, ..from },
        (false, false) => Place { six: true, slot: 0, ..from },
        (false, true) => Place { shard: from.shard + 1, six: false, slot: 0 },
    };
    (found, next)
}

/// All live routes of a shard, the direction from the client of each connection.
#[must_use]
pub fn list(forwarder: &Forwarder, farm: &Farm, shard: usize, now: u32) -> Vec<Seen> {
    let (mut all, mut at) = (Vec::new(), Place { shard, ..Place::default() });
    while at.shard == shard {
        let (found, next) = page(forwarder, farm, at, usize::MAX, |_| true, now);
        all.extend(found);
        at = next;
    }
    all
}

fn find<'f>(forwarder: &'f Forwarder, key: &Key) -> Option<&'f Entry> {
    match key {
        Key::V4(key) => forwarder.routes4().find(key).map(|index| forwarder.routes4().entry(index)),
        Key::V6(key) => forwarder.routes6().find(key).map(|index| forwarder.routes6().entry(index)),
    }
}

/// One route; `None` if it is out of time or no connection's.
fn see(forwarder: &Forwarder, farm: &Farm, place: Place, key: &Key, entry: &Entry, now: u32) -> Option<Seen> {
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
    let source = match action {
        Action::Send { mode: Mode::FullNat, .. } => {
            forwarder.other_direction(key, action, farm).map(|back| back.destination())
        }
        Action::Send { mode: Mode::FullNatReturn, .. } => Some(key.destination()),
        _ => None,
    };
    Some(Seen { place, flow, direction, action, source, state: entry.state(), idle: entry.idle(now) })
}

/// Shows routes by a farm and the names of its hosts.
pub struct Show<'f> {
    farm: &'f Farm,
    names: HashMap<HostId, &'f str>,
}

impl<'f> Show<'f> {
    /// By this farm and this configuration.
    #[must_use]
    pub fn new(farm: &'f Farm, config: &'f Config) -> Self {
        Self { farm, names: config.hosts.iter().map(|host| (host.id, host.name.as_str())).collect() }
    }

    /// One route of a shard; `None` if its endpoint is gone.
    #[must_use]
    pub fn one(&self, seen: &Seen, shard: usize) -> Option<RouteEntry> {
        let &Seen { flow, direction, action, source, state, idle, .. } = seen;
        let to = match action {
            Action::Local { endpoint } => Some((endpoint, Mode::Nat)),
            Action::Send { endpoint, mode, .. } => Some((endpoint, mode)),
            Action::Drop | Action::Divert => None,
        };
        let endpoint = match to {
            None => None,
            Some((endpoint, mode)) => {
                let endpoint = self.farm.endpoint(endpoint)?;
                Some(RouteEndpoint {
                    host: endpoint.host,
                    name: self.names.get(&endpoint.host).map(|name| (*name).to_owned()).unwrap_or_default(),
                    address: (endpoint.address, endpoint.port.unwrap_or(flow.vip.port())).into(),
                    mode: mode_name(mode).to_owned(),
                    source,
                })
            }
        };
        let name = match action {
            Action::Send { .. } => "send",
            Action::Local { .. } => "local",
            Action::Drop => "drop",
            Action::Divert => "divert",
        };
        Some(RouteEntry {
            flow,
            direction,
            action: name.to_owned(),
            endpoint,
            state: state_name(state).to_owned(),
            idle_ms: idle.into(),
            expires_in_ms: u64::from(self.farm.timeouts.of(state)).saturating_sub(idle.into()),
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

/// Slots that a core looks at between two turns of its own: some ten microseconds.
pub const SLOTS_A_VISIT: usize = 2048;
/// Routes that it gathers there at the most.
pub const FOUND_A_VISIT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for place in [Place::default(), Place { shard: 127, six: true, slot: 100_000_000 }] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for wrong in ["", "1", "1-4", "1-5-0", "1-4-0-0", "-1-4-0", "a-4-0", "1-4-99999999999999999999999"] {
            assert_eq!(wrong.parse::<Place>(), Err(NoPlace), "{wrong}");
        }
    }
}
