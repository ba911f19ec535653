//! Ports of full-nat's pools that are free, but serve no other connection before their protocol's dead time is over.
//!
//! Until then an endpoint may still send what belongs to the former connection. A port is freed only once it stands here, so that
//! the rule holds however it was freed; where there is no room, its connection stays.

use weir_cpu::MapError;

use crate::flow::{FlowHash, Key};
use crate::populate::Populate;
use crate::route_table::{Action, IdleTimeouts, Mode, Route, RouteTable, Slot, Slot4, Slot6, State};

/// One shard's dead ports, by the key of their way back: 64 bytes each for IPv4, reserved with the first of them.
#[derive(Debug)]
pub struct DeadPorts {
    tables: Option<(RouteTable<Slot4>, RouteTable<Slot6>)>,
    /// `None` where there is no pool.
    capacity: Option<(usize, usize)>,
    hash: FlowHash,
}

/// To whom a dead port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// To nobody.
    Nobody,
    /// To the flow with this hash, whose it was: to the endpoint the same connection goes on.
    Flow(u64),
}

impl DeadPorts {
    pub(super) fn new(v4: usize, v6: usize, hash: FlowHash) -> Self {
        Self { tables: None, capacity: Some((v4.max(LEAST), v6.max(LEAST))), hash }
    }

    /// Room for none.
    pub(super) fn none(hash: FlowHash) -> Self {
        Self { tables: None, capacity: None, hash }
    }

    /// How many there are, those included whose time has come but not the sweep.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.as_ref().map_or(0, |(v4, v6)| v4.len() + v6.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for them, of which there can only be some once there has been a port.
    pub(super) fn prepare(&mut self) -> Result<(), MapError> {
        if self.tables.is_none()
            && let Some((v4, v6)) = self.capacity
        {
            self.tables = Some((RouteTable::new(v4, self.hash.clone())?, RouteTable::new(v6, self.hash.clone())?));
        }
        Ok(())
    }

    /// Makes room and takes its memory now.
    pub(super) fn populate(&mut self, populate: &Populate) -> Result<(), MapError> {
        self.prepare()?;
        let Some((v4, v6)) = &mut self.tables else { return Ok(()) };
        v4.populate(populate)?;
        v6.populate(populate)
    }

    /// Address space taken, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.tables.as_ref().map_or(0, |(v4, v6)| v4.bytes() + v6.bytes())
    }

    /// Notes a port by its way back, which was last used at `seen` and is dead for as long as a route in `state` would live; false if
    /// there is no room.
    pub(super) fn bury(&mut self, back: &Key, open: For, state: State, seen: u32) -> bool {
        let value = match open {
            For::Nobody => 0,
            For::Flow(hash) => hash | 1,
        };
        let action = Action::Send { endpoint: weir_identity::EndpointId(0), mode: Mode::FullNat, value };
        let route = Route { action, state };
        match (&mut self.tables, back) {
            (Some((v4, _)), Key::V4(key)) => put(v4, key, route, seen),
            (Some((_, v6)), Key::V6(key)) => put(v6, key, route, seen),
            (None, _) => false,
        }
    }

    /// Whether a port is kept from the flow with the hash `flow`.
    pub(super) fn keeps(&self, back: &Key, flow: u64, now: u32, timeouts: &IdleTimeouts) -> bool {
        let entry = match (&self.tables, back) {
            (Some((v4, _)), Key::V4(key)) => v4.find(key).map(|index| v4.entry(index)),
            (Some((_, v6)), Key::V6(key)) => v6.find(key).map(|index| v6.entry(index)),
            (None, _) => None,
        };
        entry.is_some_and(|entry| {
            let own = matches!(entry.action(), Action::Send { value, .. } if value == flow | 1);
            !own && !entry.expired(now, timeouts)
        })
    }

    /// Forgets those whose time is over, among the next `count` places.
    pub(super) fn sweep(&mut self, count: usize, now: u32, timeouts: &IdleTimeouts) {
        if let Some((v4, v6)) = &mut self.tables {
            v4.sweep(count, |_, entry| entry.expired(now, timeouts));
            v6.sweep(count, |_, entry| entry.expired(now, timeouts));
        }
    }
}

/// Dead ports that there is room for even where routes are few, and so go often.
const LEAST: usize = 1024;

fn put<S: Slot>(table: &mut RouteTable<S>, key: &S::Key, route: Route, seen: u32) -> bool {
    if let Some(index) = table.find(key) {
        let entry = table.entry_mut(index);
        entry.set_route(route);
        entry.touch(seen);
        return true;
    }
    table.insert(key, route, seen).is_ok()
}
