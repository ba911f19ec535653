//! The simulated network: connections that are made, noticed to be dead, and given up.

use std::rc::Rc;

use weir_identity::{HostId, Moment, UnitId};

use super::{Conn, Event, Node, World, claims};

/// There only what has arrived may come again: what QUIC has lost it sends at once or never, and units believe each other. Of hosts anything may.
pub(super) fn is_between_units(from: Node, to: Node) -> bool {
    matches!((from, to), (Node::Unit(_), Node::Unit(_)))
}

impl World {
    pub(super) fn post(&mut self, conn: u64, from: Node, to: Node, bytes: Rc<[u8]>) {
        if !is_between_units(from, to) {
            self.record(from, to, &bytes);
        }
        for _ in 0..=u64::from(self.dice.per_mille(self.plan.duplicates)) {
            if !self.dice.per_mille(self.plan.loss) {
                let delay = 1 + self.dice.roll(self.plan.delay);
                self.at(delay, Event::Deliver { conn, to, bytes: bytes.clone() });
            }
        }
    }

    /// Keeps some for [`World::replay`].
    pub(super) fn record(&mut self, from: Node, to: Node, bytes: &Rc<[u8]>) {
        if self.chaotic && self.dice.per_mille(20) && self.recorded.len() < 200 {
            self.recorded.push((from, to, bytes.clone()));
        }
    }

    /// Notices dead connections after a second, and makes new ones: two for each host, one for each two units.
    pub(super) fn connections(&mut self) {
        let mut downs = Vec::new();
        let mut ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids.drain(..) {
            let (ends, up) = (self.conns[&id].ends, self.conns[&id].up);
            let stuck = |node| self.paused.contains(&node);
            let parted = self.is_cut(ends[0], ends[1]) || up != [true; 2] || stuck(ends[0]) || stuck(ends[1]);
            let parted_since = if parted { self.conns[&id].parted.or(Some(self.now)) } else { None };
            let is_over = parted_since.is_some_and(|since| self.now - since >= 1_000);
            let paused = ends.map(stuck);
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.parted = parted_since;
            for side in 0..2 {
                // Whoever is paused notices when it goes on.
                if is_over && conn.up[side] && !paused[side] {
                    conn.up[side] = false;
                    downs.push((ends[side], ends[1 - side]));
                }
            }
            if conn.up == [false; 2] {
                self.conns.remove(&id);
                for (node, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
                    self.ways.get_mut(&node).and_then(|ways| ways.remove(&peer));
                }
            }
        }
        for (node, peer) in downs {
            self.link_down(node, peer);
            self.flush(node);
        }
        self.group_connections();
        for host in (0..self.plan.hosts).map(Node::Host) {
            if self.links(host) >= 2 || !self.is_up(host) {
                continue;
            }
            let mut units: Vec<u32> = (0..self.plan.units).collect();
            while !units.is_empty() && self.links(host) < 2 {
                let at = self.dice.roll(units.len().try_into().unwrap());
                let unit = units.swap_remove(usize::try_from(at).unwrap());
                self.connect(host, Node::Unit(unit));
            }
        }
        for a in 0..self.plan.units {
            for b in a + 1..self.plan.units {
                self.connect(Node::Unit(a), Node::Unit(b));
            }
        }
    }

    pub(super) fn link_down(&mut self, node: Node, peer: Node) {
        let now = Moment(self.now);
        match (node, peer) {
            (Node::Host(host), Node::Unit(unit)) => {
                if let Some(end) = &mut self.hosts[usize::try_from(host).unwrap()].end {
                    end.handle_link_down(UnitId(unit), now);
                }
            }
            (Node::Unit(unit), peer) => {
                if let Some(end) = &mut self.units[usize::try_from(unit).unwrap()].end {
                    match peer {
                        Node::Host(_) => end.handle_host_down(&claims(peer, 1)),
                        Node::Unit(peer) => end.handle_unit_down(UnitId(peer), now),
                    }
                }
            }
            (Node::Host(host), Node::Host(peer)) => {
                if let Some(group) = &mut self.hosts[usize::try_from(host).unwrap()].group {
                    group.handle_link_down(HostId(peer), now);
                }
            }
        }
    }

    /// Hosts of a group connect as they want, and give up what neither wants.
    fn group_connections(&mut self) {
        if self.plan.group == 1 {
            return;
        }
        let now = Moment(self.now);
        let wanted = |world: &World, host: u32| -> Vec<HostId> {
            let group = world.hosts[usize::try_from(host).unwrap()].group.as_ref();
            group.map(|group| group.wanted(now)).unwrap_or_default()
        };
        for host in 0..self.plan.hosts {
            let node = Node::Host(host);
            let wants = wanted(self, host);
            for peer in &wants {
                let is_linked = self.ways.get(&node).is_some_and(|ways| ways.contains_key(&Node::Host(peer.0)));
                if is_linked || self.paused.contains(&node) {
                    continue;
                }
                self.connect(node, Node::Host(peer.0));
                if !self.ways.get(&node).is_some_and(|ways| ways.contains_key(&Node::Host(peer.0))) {
                    self.link_down(node, Node::Host(peer.0));
                    self.flush(node);
                }
            }
            let unwanted = |peer: u32| !wants.contains(&HostId(peer)) && !wanted(self, peer).contains(&HostId(host));
            let ways = self.ways.get(&node).into_iter().flatten();
            let over: Vec<u64> = ways
                .filter_map(|(peer, conn)| matches!(peer, Node::Host(peer) if unwanted(*peer)).then_some(*conn))
                .collect();
            for conn in over {
                let Some(conn) = self.conns.get_mut(&conn) else { continue };
                let side = conn.side(node).unwrap();
                let peer = conn.ends[1 - side];
                if std::mem::take(&mut conn.up[side]) {
                    self.link_down(node, peer);
                    self.flush(node);
                }
            }
        }
    }

    /// Links to units.
    fn links(&self, node: Node) -> usize {
        let units = self.ways.get(&node).into_iter().flat_map(|ways| ways.range(Node::Unit(0)..));
        units.filter(|(_, conn)| self.conns[*conn].side(node).is_some_and(|side| self.conns[*conn].up[side])).count()
    }

    fn connect(&mut self, a: Node, b: Node) {
        let there = self.ways.get(&a).is_some_and(|ways| ways.contains_key(&b));
        let paused = self.paused.contains(&a) || self.paused.contains(&b);
        if there || paused || self.is_cut(a, b) || !self.is_up(a) || !self.is_up(b) {
            return;
        }
        self.counter += 1;
        self.conns.insert(self.counter, Conn { ends: [a, b], up: [true; 2], parted: None });
        for (node, peer) in [(a, b), (b, a)] {
            self.ways.entry(node).or_default().insert(peer, self.counter);
        }
        let now = Moment(self.now);
        for (node, peer) in [(a, b), (b, a)] {
            match (node, peer) {
                (Node::Host(host), Node::Unit(unit)) => {
                    if let Some(end) = &mut self.hosts[usize::try_from(host).unwrap()].end {
                        end.handle_link_up(UnitId(unit), now);
                    }
                }
                (Node::Unit(unit), Node::Unit(peer)) => {
                    if let Some(end) = &mut self.units[usize::try_from(unit).unwrap()].end {
                        end.handle_unit_up(UnitId(peer), now);
                    }
                }
                (Node::Host(host), Node::Host(peer)) => {
                    if let Some(group) = &mut self.hosts[usize::try_from(host).unwrap()].group {
                        group.handle_link_up(HostId(peer), now);
                    }
                }
                (Node::Unit(unit), peer @ Node::Host(_)) => {
                    if let Some(end) = &mut self.units[usize::try_from(unit).unwrap()].end {
                        end.handle_host_up(&claims(peer, 1));
                    }
                }
            }
            self.flush(node);
        }
    }
}

impl Conn {
    pub(super) fn side(&self, node: Node) -> Option<usize> {
        self.ends.iter().position(|end| *end == node)
    }
}
