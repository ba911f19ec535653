//! The simulated world: hosts and units with virtual time, and a network between them that loses, delays, repeats and parts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use weir_health_load::{Directive, Health};
use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use crate::{
    Beat, Body, Claims, GroupEnd, GroupSettings, HostEnd, HostSettings, Identity, LIFE_BITS, Message, Operation,
    Origin, Peer, Presence, Role, Row, RowError, Status, To, UnitEnd, UnitSettings, decode, encode,
};

/// Numbers from a seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to `below` - 1.
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn per_mille(&mut self, chance: u64) -> bool {
        self.roll(1000) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let at = self.roll(from.len().try_into().unwrap());
        from[usize::try_from(at).unwrap()]
    }
}

/// What a schedule is like.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) units: u32,
    pub(crate) hosts: u32,
    /// Applications of each host.
    pub(crate) applications: u32,
    /// Hosts of a group; 1: there are no groups.
    pub(crate) group: u32,
    /// Per mille of messages.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    /// The longest way of a message, in ms.
    pub(crate) delay: u64,
    /// Time between two events of chaos, in ms; 0: none.
    pub(crate) chaos: u64,
    /// How long there is chaos, in ms.
    pub(crate) until: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Host(u32),
    Unit(u32),
}

struct Conn {
    ends: [Node; 2],
    up: [bool; 2],
    /// Since when nothing gets through.
    parted: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Deliver { conn: u64, to: Node, bytes: Vec<u8> },
    Wake(Node),
    Connections,
    Chaos,
    Resume(Node),
    Start(Node),
}

struct SimulatedHost {
    end: Option<HostEnd>,
    group: Option<GroupEnd>,
    /// Its wall clock is so far off.
    clock: i64,
    currents: BTreeMap<ApplicationId, Directive>,
    /// Every unit was said to know these, and nothing else was wanted since.
    settled: BTreeSet<ApplicationId>,
    /// Since when it is dead or gone.
    over: Option<u64>,
}

struct SimulatedUnit {
    end: Option<UnitEnd>,
    /// What a listener to changes believes: rows of live hosts.
    mirror: BTreeMap<(HostId, ApplicationId), Row>,
}

pub(crate) struct World {
    plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    counter: u64,
    hosts: Vec<SimulatedHost>,
    units: Vec<SimulatedUnit>,
    paused: BTreeSet<Node>,
    waking: BTreeMap<Node, u64>,
    conns: BTreeMap<u64, Conn>,
    /// Who has a connection to whom.
    ways: BTreeMap<Node, BTreeMap<Node, u64>>,
    /// Pairs of nodes that cannot reach each other.
    cuts: BTreeSet<(Node, Node)>,
    chaotic: bool,
    /// Messages of the past, to be replayed.
    recorded: Vec<(Node, Node, Vec<u8>)>,
    /// Events without time passing, and the most that are no mistake.
    at_once: usize,
    /// The first thing that must never be.
    pub(crate) broken: Option<String>,
    pub(crate) delivered_bytes: u64,
}

impl World {
    pub(crate) fn new(plan: Plan) -> World {
        let mut world = World {
            dice: Dice(plan.seed),
            now: 1_000_000,
            events: BinaryHeap::new(),
            counter: 0,
            hosts: Vec::new(),
            units: Vec::new(),
            paused: BTreeSet::new(),
            waking: BTreeMap::new(),
            conns: BTreeMap::new(),
            ways: BTreeMap::new(),
            cuts: BTreeSet::new(),
            chaotic: plan.chaos > 0,
            recorded: Vec::new(),
            at_once: 0,
            broken: None,
            delivered_bytes: 0,
            plan,
        };
        for _ in 0..world.plan.hosts {
            world.hosts.push(SimulatedHost {
                end: None,
                group: None,
                clock: 0,
                currents: BTreeMap::new(),
                settled: BTreeSet::new(),
                over: None,
            });
        }
        for _ in 0..world.plan.units {
            world.units.push(SimulatedUnit { end: None, mirror: BTreeMap::new() });
        }
        for unit in 0..world.plan.units {
            world.start(Node::Unit(unit));
        }
        for host in 0..world.plan.hosts {
            let spread = world.dice.roll(1_000);
            world.at(spread, Event::Start(Node::Host(host)));
        }
        world.at(0, Event::Connections);
        if world.chaotic {
            let wait = world.plan.chaos;
            world.at(wait, Event::Chaos);
        }
        world
    }

    /// Runs until that time.
    pub(crate) fn run(&mut self, until: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= until) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { return };
            self.at_once = if at == self.now { self.at_once + 1 } else { 0 };
            self.now = at;
            if self.at_once > AT_ONCE_MAX || self.events.len() > AT_ONCE_MAX {
                self.broken.get_or_insert(format!("{at} ms: it never ends"));
                return;
            }
            self.happen(event);
        }
        self.now = until;
    }

    /// No more chaos from now on: every link works, whoever was paused goes on.
    pub(crate) fn heal(&mut self) {
        self.chaotic = false;
        self.cuts.clear();
        self.plan.loss = 0;
        self.plan.duplicates = 0;
        for node in self.paused.clone() {
            self.resume(node);
        }
        for unit in 0..self.plan.units {
            self.start(Node::Unit(unit));
        }
    }

    /// Are all caches what they have to be? If not, why.
    pub(crate) fn converged(&self) -> Result<(), String> {
        for (unit, simulated) in self.units.iter().enumerate() {
            let Some(end) = &simulated.end else { return Err(format!("unit {unit} is down")) };
            for (host, simulated) in (0..).map(HostId).zip(&self.hosts) {
                let cached = end.host(host);
                let presence = cached.map(crate::CachedHost::presence);
                let Some(truth) = simulated.end.as_ref().filter(|truth| !truth.is_gone()) else {
                    if presence == Some(Presence::Live) {
                        return Err(format!("unit {unit} takes host {host} for live"));
                    }
                    if presence == Some(Presence::Gone) && cached.is_some_and(|cached| !cached.table().is_empty()) {
                        return Err(format!("unit {unit} has rows of host {host}, which is gone"));
                    }
                    continue;
                };
                let Some(cached) = cached.filter(|cached| cached.is_in_step()) else {
                    let is = cached.map(|cached| {
                        (cached.incarnation, cached.sequence, cached.doubt, cached.direct, cached.through)
                    });
                    let heard = cached.map(|cached| cached.heard);
                    return Err(format!(
                        "{} ms: unit {unit} takes host {host} for {presence:?}: {is:?}, heard {heard:?}, but it lives as {} with links to {:?}",
                        self.now,
                        truth.incarnation(),
                        truth.units().collect::<Vec<_>>()
                    ));
                };
                if cached.table() != truth.table() || cached.incarnation() != truth.incarnation() {
                    return Err(format!("unit {unit} has other rows of host {host}"));
                }
                if let Some(row) = truth.table().rows().find(|row| row.directives.target != row.directives.current) {
                    return Err(format!("host {host}: {} of {} is not current", row.version, row.application));
                }
            }
            let live = live_rows(end);
            if live != simulated.mirror {
                return Err(format!("unit {unit} did not report all changes"));
            }
            for (_, application) in live.keys() {
                let by_application: BTreeSet<HostId> = end.application(*application).map(|(host, ..)| host).collect();
                let by_host = end.hosts().filter(|(_, cached)| cached.table().row(*application).is_some());
                if by_application != by_host.map(|(host, _)| host).collect() {
                    return Err(format!("unit {unit} has application {application} on other hosts"));
                }
            }
        }
        Ok(())
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.counter += 1;
        self.events.push(Reverse((self.now + delay, self.counter, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { conn, to, bytes } if self.paused.contains(&to) => {
                self.at(50, Event::Deliver { conn, to, bytes });
            }
            Event::Deliver { conn, to, bytes } => {
                let Some((link, side)) = self.conns.get(&conn).and_then(|conn| Some((conn, conn.side(to)?))) else {
                    return;
                };
                let from = link.ends[1 - side];
                if link.up[side] && !self.is_cut(from, to) {
                    self.delivered_bytes += u64::try_from(bytes.len()).unwrap();
                    self.deliver(from, to, &bytes);
                }
            }
            Event::Wake(node) => {
                self.waking.remove(&node);
                if !self.paused.contains(&node) {
                    self.tick(node);
                    self.flush(node);
                }
            }
            Event::Connections => {
                self.connections();
                if self.plan.hosts <= 100 {
                    (0..self.plan.hosts).for_each(|host| self.watch(host));
                }
                self.at(100, Event::Connections);
            }
            Event::Chaos if self.chaotic => {
                self.wreak();
                let wait = 1 + self.dice.roll(2 * self.plan.chaos);
                self.at(wait, Event::Chaos);
            }
            Event::Chaos => {}
            Event::Resume(node) => self.resume(node),
            Event::Start(node) => self.start(node),
        }
    }

    fn start(&mut self, node: Node) {
        let (now, wall) = (Moment(self.now), self.now);
        match node {
            Node::Host(index) => {
                let applications = self.plan.applications;
                let simulated = &mut self.hosts[usize::try_from(index).unwrap()];
                if simulated.end.is_some() {
                    return;
                }
                let life = wall.saturating_add_signed(simulated.clock) << LIFE_BITS | self.dice.roll(1 << LIFE_BITS);
                let settings = HostSettings {
                    name: Some(format!("host-{index}")),
                    grouped: self.plan.group > 1,
                    ..HostSettings::new(HostId(index))
                };
                let mut end = HostEnd::new(settings, Incarnation(life), now);
                for application in (0..applications).map(ApplicationId) {
                    let (detail, capacity) = (format!("life {life}"), u8::try_from(self.dice.roll(100)).unwrap());
                    let identity = Identity { detail, ..Identity::default() };
                    end.register(application, identity, capacity, Directive::Active).unwrap();
                }
                for unit in 0..self.plan.units {
                    end.handle_link_down(UnitId(unit), now);
                }
                simulated.currents.clear();
                simulated.settled.clear();
                simulated.over = None;
                simulated.end = Some(end);
                let first = index / self.plan.group * self.plan.group;
                let peers = (first..(first + self.plan.group).min(self.plan.hosts)).map(HostId).collect();
                let interval = Duration::from_secs(1);
                let settings = GroupSettings { group: format!("g{first}"), host: HostId(index), peers, interval };
                simulated.group = (self.plan.group > 1).then(|| GroupEnd::new(settings, now));
            }
            Node::Unit(index) => {
                let simulated = &mut self.units[usize::try_from(index).unwrap()];
                if simulated.end.is_some() {
                    return;
                }
                simulated.mirror.clear();
                let mut end = UnitEnd::new(UnitSettings::new(UnitId(index), Incarnation(wall)));
                for unit in (0..self.plan.units).filter(|unit| *unit != index) {
                    end.handle_unit_down(UnitId(unit), now);
                }
                simulated.end = Some(end);
            }
        }
        self.flush(node);
    }

    fn stop(&mut self, node: Node) {
        match node {
            Node::Host(index) => {
                let simulated = &mut self.hosts[usize::try_from(index).unwrap()];
                (simulated.end, simulated.group) = (None, None);
                simulated.over.get_or_insert(self.now);
            }
            Node::Unit(index) => self.units[usize::try_from(index).unwrap()].end = None,
        }
        self.paused.remove(&node);
        // The transport keeps what was said to another life from this one.
        self.recorded.retain(|(_, to, _)| *to != node);
        for conn in self.conns.values_mut() {
            if let Some(side) = conn.side(node) {
                conn.up[side] = false;
            }
        }
    }

    fn resume(&mut self, node: Node) {
        if self.paused.remove(&node) {
            self.tick(node);
            // A driver that finds it has slept closes its connections: what waits in them is of the past.
            let mut peers = Vec::new();
            for conn in self.conns.values_mut() {
                if let Some(side) = conn.side(node).filter(|side| conn.up[*side]) {
                    conn.up[side] = false;
                    peers.push(conn.ends[1 - side]);
                }
            }
            peers.into_iter().for_each(|peer| self.link_down(node, peer));
            self.flush(node);
        }
    }

    fn is_up(&self, node: Node) -> bool {
        match node {
            Node::Host(index) => self.hosts[usize::try_from(index).unwrap()].end.is_some(),
            Node::Unit(index) => self.units[usize::try_from(index).unwrap()].end.is_some(),
        }
    }

    fn is_cut(&self, a: Node, b: Node) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    fn tick(&mut self, node: Node) {
        let now = Moment(self.now);
        match node {
            Node::Host(index) => {
                if let Some(end) = &mut self.hosts[usize::try_from(index).unwrap()].end {
                    end.handle_timeout(now);
                }
                if let Some(group) = &mut self.hosts[usize::try_from(index).unwrap()].group {
                    group.handle_timeout(now);
                }
            }
            Node::Unit(index) => {
                if let Some(end) = &mut self.units[usize::try_from(index).unwrap()].end {
                    end.handle_timeout(now);
                }
            }
        }
    }

    fn deliver(&mut self, from: Node, to: Node, bytes: &[u8]) {
        let now = Moment(self.now);
        let Ok(message) = decode(bytes) else { return };
        match (from, to) {
            (Node::Unit(unit), Node::Host(index)) => {
                if let Some(end) = &mut self.hosts[usize::try_from(index).unwrap()].end {
                    let _ = end.handle(UnitId(unit), message, now);
                }
            }
            (from, Node::Unit(index)) => {
                let claims = claims(from, self.plan.group);
                if let Some(end) = &mut self.units[usize::try_from(index).unwrap()].end {
                    let origin = match from {
                        Node::Host(_) => Origin::Host(&claims),
                        Node::Unit(unit) => Origin::Unit(UnitId(unit)),
                    };
                    let _ = end.handle(origin, message, now);
                }
            }
            (Node::Host(from), Node::Host(index)) => {
                if let Some(group) = &mut self.hosts[usize::try_from(index).unwrap()].group {
                    let _ = group.handle(HostId(from), message, now);
                }
            }
        }
        self.flush(to);
    }

    /// Sends what a node has to send, notes what it has changed, and sets its timer.
    fn flush(&mut self, node: Node) {
        let now = Moment(self.now);
        let mut sent: Vec<(Option<Node>, Vec<u8>)> = Vec::new();
        let due = match node {
            Node::Host(index) => {
                let simulated = &mut self.hosts[usize::try_from(index).unwrap()];
                let Some(end) = &mut simulated.end else { return };
                if let Some(group) = &mut simulated.group {
                    let linked = end.units().any(|(_, up)| up);
                    group.handle_units(linked, now);
                }
                while let Some(out) = end.poll_transmit() {
                    let left = match &mut simulated.group {
                        Some(group) => group.route(out, now),
                        None => Some(out),
                    };
                    sent.extend(left.map(|out| (out.unit.map(|unit| Node::Unit(unit.0)), encode(&out.message))));
                }
                while let Some((to, message)) = simulated.group.as_mut().and_then(GroupEnd::poll_transmit) {
                    let to = match to {
                        To::Units => None,
                        To::Peer(host) => Some(Node::Host(host.0)),
                    };
                    sent.push((to, encode(&message)));
                }
                let group = simulated.group.as_ref().and_then(GroupEnd::poll_timeout);
                end.poll_timeout().into_iter().chain(group).min()
            }
            Node::Unit(index) => {
                let simulated = &mut self.units[usize::try_from(index).unwrap()];
                let Some(end) = &mut simulated.end else { return };
                while let Some((peer, message)) = end.poll_transmit() {
                    let to = match peer {
                        Peer::Host(host) => Node::Host(host.0),
                        Peer::Unit(unit) => Node::Unit(unit.0),
                    };
                    sent.push((Some(to), encode(&message)));
                }
                for (host, application) in end.take_changes() {
                    let cached = end.host(host).filter(|cached| cached.presence() == Presence::Live);
                    match cached.and_then(|cached| cached.table().row(application)) {
                        Some(row) => simulated.mirror.insert((host, application), row.clone()),
                        None => simulated.mirror.remove(&(host, application)),
                    };
                }
                end.poll_timeout()
            }
        };
        for (to, bytes) in sent {
            let Some(ways) = self.ways.get(&node) else { continue };
            let ways: Vec<(u64, Node)> = match to {
                Some(to) => ways.get(&to).map(|conn| (*conn, to)).into_iter().collect(),
                None => ways.range(Node::Unit(0)..).map(|(to, conn)| (*conn, *to)).collect(),
            };
            for (conn, to) in ways {
                let link = &self.conns[&conn];
                if link.side(node).is_some_and(|side| link.up[side]) {
                    self.post(conn, node, to, bytes.clone());
                }
            }
        }
        if let Some(Moment(due)) = due
            && self.waking.get(&node).is_none_or(|at| due < *at)
        {
            self.waking.insert(node, due);
            self.at(due.saturating_sub(self.now), Event::Wake(node));
        }
        if let Node::Host(index) = node {
            self.watch_currents(index);
        }
    }

    fn post(&mut self, conn: u64, from: Node, to: Node, bytes: Vec<u8>) {
        if self.chaotic && self.dice.per_mille(20) && self.recorded.len() < 200 {
            self.recorded.push((from, to, bytes.clone()));
        }
        for _ in 0..=u64::from(self.dice.per_mille(self.plan.duplicates)) {
            if !self.dice.per_mille(self.plan.loss) {
                let delay = 1 + self.dice.roll(self.plan.delay);
                self.at(delay, Event::Deliver { conn, to, bytes: bytes.clone() });
            }
        }
    }

    /// Whatever a host takes for current, no unit that takes the host for live may do otherwise.
    fn watch_currents(&mut self, index: u32) {
        let simulated = &mut self.hosts[usize::try_from(index).unwrap()];
        let Some(end) = &simulated.end else { return };
        for row in end.table().rows() {
            let before = simulated.currents.insert(row.application, row.directives.current);
            if row.directives.target != row.directives.current {
                simulated.settled.remove(&row.application);
            } else if before.is_some_and(|before| before != row.directives.current) {
                simulated.settled.insert(row.application);
            }
        }
        self.watch(index);
    }

    /// What may never be, not even in chaos.
    fn watch(&mut self, index: u32) {
        let simulated = &self.hosts[usize::try_from(index).unwrap()];
        // A leader has two fifths of a second, and there is a way more.
        let longest =
            if self.plan.group > 1 { 3_900 + 4 * self.plan.delay + 500 } else { 3_500 + 3 * self.plan.delay + 500 };
        let is_over = simulated.over.is_some_and(|over| self.now - over > longest);
        for (unit, end) in (0..).zip(&self.units) {
            let Some(end) = end.end.as_ref().filter(|_| !self.paused.contains(&Node::Unit(unit))) else { continue };
            let live = |cached: &&crate::CachedHost| cached.presence() == Presence::Live;
            let Some(cached) = end.host(HostId(index)).filter(live) else { continue };
            if is_over {
                self.broken
                    .get_or_insert(format!("{} ms: host {index} is long dead, but not for unit {unit}", self.now));
            }
            let Some(host) = simulated.end.as_ref().filter(|host| !host.is_gone()) else { continue };
            for application in &simulated.settled {
                let Some(row) = host.table().row(*application) else { continue };
                let obeyed = cached.table().row(*application).map(|row| row.directives.target);
                if obeyed != Some(row.directives.current) {
                    self.broken.get_or_insert(format!(
                        "{} ms: host {index} takes {:?} of {application} for current, but unit {unit} does {obeyed:?}",
                        self.now, row.directives.current
                    ));
                }
            }
        }
    }

    /// Notices dead connections after a second, and makes new ones: two for each host, one for each two units.
    fn connections(&mut self) {
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

    fn link_down(&mut self, node: Node, peer: Node) {
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
                (Node::Unit(_), Node::Host(_)) => {}
            }
            self.flush(node);
        }
    }

    /// Something happens.
    fn wreak(&mut self) {
        let host = u32::try_from(self.dice.roll(self.plan.hosts.into())).unwrap();
        let unit = u32::try_from(self.dice.roll(self.plan.units.into())).unwrap();
        let node = if self.dice.per_mille(700) { Node::Host(host) } else { Node::Unit(unit) };
        let while_ms = self.dice.roll(9_000);
        match self.dice.roll(100) {
            0..=2 => {
                self.stop(node);
                self.at(while_ms, Event::Start(node));
            }
            3..=5 => {
                let other = u32::try_from(self.dice.roll(self.plan.units.into())).unwrap();
                let peer = u32::try_from(self.dice.roll(self.plan.hosts.into())).unwrap();
                let among_hosts = self.plan.group > 1 && self.dice.per_mille(300);
                let other = if among_hosts { Node::Host(peer) } else { Node::Unit(other) };
                if !self.cuts.remove(&(node.min(other), node.max(other))) && node != other {
                    self.cuts.insert((node.min(other), node.max(other)));
                }
            }
            6 => self.cuts.clear(),
            7 if self.is_up(node) => {
                self.paused.insert(node);
                self.at(while_ms, Event::Resume(node));
            }
            8 => {
                let leap = i64::try_from(self.dice.roll(4_000_000)).unwrap() - 2_000_000;
                self.hosts[usize::try_from(host).unwrap()].clock = leap.max(-900_000);
            }
            9 => {
                let Some(end) = &mut self.hosts[usize::try_from(host).unwrap()].end else { return };
                end.goodbye();
                self.hosts[usize::try_from(host).unwrap()].over.get_or_insert(self.now);
                self.flush(Node::Host(host));
                if self.dice.per_mille(700) {
                    self.at(while_ms, Event::Start(Node::Host(host)));
                    if self.dice.per_mille(500) {
                        self.stop(Node::Host(host));
                    }
                }
            }
            10..=13 => self.replay(),
            14..=15 if self.plan.group > 1 => self.lie(host),
            14..=15 => self.replay(),
            _ if self.paused.contains(&Node::Host(host)) => {}
            16..=40 => self.touch(host, |end, application, dice, now| {
                let target = dice.pick(&[Directive::Active, Directive::Draining, Directive::Inactive]);
                end.direct(application, target, now)
            }),
            41..=46 => self.touch(host, |end, application, _, _| end.deregister(application)),
            47..=54 => self.touch(host, |end, application, dice, _| {
                let identity = Identity { detail: format!("{}", dice.roll(5)), ..Identity::default() };
                end.register(application, identity, 50, Directive::Active)
            }),
            _ => self.touch(host, |end, application, dice, _| {
                let health = dice.pick(&[Health::Healthy, Health::Failing, Health::Unknown]);
                let capacity = u8::try_from(dice.roll(100)).unwrap();
                let load = u8::try_from(dice.roll(u64::from(capacity) + 1)).unwrap();
                end.report(application, Status { health, load, capacity })
            }),
        }
    }

    fn touch(
        &mut self,
        host: u32,
        change: impl FnOnce(&mut HostEnd, ApplicationId, &mut Dice, Moment) -> Result<(), RowError>,
    ) {
        let application = ApplicationId(u32::try_from(self.dice.roll(u64::from(self.plan.applications) + 2)).unwrap());
        let now = Moment(self.now);
        let simulated = &mut self.hosts[usize::try_from(host).unwrap()];
        let Some(end) = &mut simulated.end else { return };
        if end.table().row(application).is_none() {
            // What is registered anew was never another directive's.
            simulated.currents.remove(&application);
            simulated.settled.remove(&application);
        }
        // A row that is not there, or there already, is no fault of the protocol.
        let _ = change(end, application, &mut self.dice, now);
        if end.table().row(application).is_none() {
            simulated.currents.remove(&application);
            simulated.settled.remove(&application);
        }
        self.flush(Node::Host(host));
    }

    /// An old message comes again, on whatever connection there is between the two; or from somebody else.
    fn replay(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let at = self.dice.roll(self.recorded.len().try_into().unwrap());
        let (from, to, bytes) = self.recorded[usize::try_from(at).unwrap()].clone();
        if self.paused.contains(&to) {
            return;
        }
        if let (Node::Host(_), Node::Unit(_), true) = (from, to, self.dice.per_mille(500)) {
            let other = u32::try_from(self.dice.roll(self.plan.hosts.into())).unwrap();
            self.deliver(Node::Host(other), to, &bytes);
        } else {
            self.deliver(from, to, &bytes);
        }
    }

    /// A host says of another one of its group what is not so.
    fn lie(&mut self, host: u32) {
        let first = host / self.plan.group * self.plan.group;
        let about = first + u32::try_from(self.dice.roll(self.plan.group.into())).unwrap();
        let about = about.min(self.plan.hosts - 1);
        let Some(truth) = self.hosts[usize::try_from(about).unwrap()].end.as_ref() else { return };
        let (host_id, incarnation, sequence) = (HostId(about), truth.incarnation(), truth.sequence());
        let later =
            if self.dice.per_mille(500) { incarnation } else { Incarnation(incarnation.0 + self.dice.roll(1 << 30)) };
        let beat = Beat {
            host: host_id,
            incarnation: later,
            // Not much more: it may be an honest leader later, and nobody forgets its words.
            sequence: sequence + self.dice.roll(8),
            generation: self.dice.roll(1 << 40),
            digest: self.dice.roll(u64::MAX),
            rows: 3,
            interval_ms: 1_000,
            forward: false,
            voucher: None,
            leaving: false,
            name: None,
        };
        let operation = Operation::Delete { application: ApplicationId(0), version: 1 << 40 };
        let (body, sequence) = match self.dice.roll(4) {
            0 => (Body::Goodbye, 1 << 40),
            1 => (Body::RowChange { generation: 1 << 40, operations: vec![operation] }, 1 << 40),
            _ => (Body::Heartbeat(vec![beat]), 0),
        };
        let bytes = encode(&Message { host: host_id, incarnation, sequence, body });
        if about != host {
            for unit in 0..self.plan.units {
                if !self.paused.contains(&Node::Unit(unit)) {
                    self.deliver(Node::Host(host), Node::Unit(unit), &bytes);
                }
            }
            // A dead host may seem to live for as long as somebody says so.
            if let Some(over) = &mut self.hosts[usize::try_from(about).unwrap()].over {
                *over = self.now;
            }
        }
    }

    /// Does each group have one leader, whom all others follow?
    fn groups_agree(&self) -> Result<(), String> {
        if self.plan.group == 1 {
            return Ok(());
        }
        let lives = |simulated: &&SimulatedHost| simulated.end.as_ref().is_some_and(|end| !end.is_gone());
        for (at, group) in self.hosts.chunks(usize::try_from(self.plan.group).unwrap()).enumerate() {
            let ends: Vec<&GroupEnd> =
                group.iter().filter(lives).filter_map(|simulated| simulated.group.as_ref()).collect();
            let leading = ends.iter().filter(|end| end.role() == Role::Leading).count();
            let leader = ends.first().and_then(|end| end.leader());
            if !ends.is_empty() && (leading != 1 || leader.is_none() || ends.iter().any(|end| end.leader() != leader)) {
                let roles: Vec<Role> = ends.iter().map(|end| end.role()).collect();
                return Err(format!("{} ms: group {at} does not agree: {roles:?}", self.now));
            }
            if let Some(end) = ends.iter().find(|end| end.members() != ends.len()) {
                return Err(format!("group {at}: {:?} counts {} of {}", end.role(), end.members(), ends.len()));
            }
        }
        Ok(())
    }

    /// How long to run until all caches are right, at most `longest` ms; the reason why not.
    pub(crate) fn settle(&mut self, longest: u64) -> Result<u64, String> {
        let begun = self.now;
        loop {
            self.run(self.now + 100);
            match (self.broken.take(), self.converged().and_then(|()| self.groups_agree())) {
                (Some(broken), _) => return Err(broken),
                (None, Ok(())) => return Ok(self.now - begun),
                (None, Err(why)) if self.now - begun >= longest => return Err(why),
                (None, Err(_)) => {}
            }
        }
    }
}

impl Conn {
    fn side(&self, node: Node) -> Option<usize> {
        self.ends.iter().position(|end| *end == node)
    }
}

fn claims(node: Node, group: u32) -> Claims {
    let Node::Host(host) = node else { return Claims::default() };
    let first = host / group * group;
    let vouches = if group > 1 { vec![(HostId(first), HostId(first + group - 1))] } else { Vec::new() };
    Claims { hosts: BTreeSet::from([HostId(host)]), vouches }
}

fn live_rows(end: &UnitEnd) -> BTreeMap<(HostId, ApplicationId), Row> {
    let live = end.hosts().filter(|(_, cached)| cached.presence() == Presence::Live);
    live.flat_map(|(host, cached)| cached.table().rows().map(move |row| ((host, row.application), row.clone())))
        .collect()
}

/// The plan of a random schedule.
pub(crate) fn plan(seed: u64) -> Plan {
    let mut dice = Dice(seed ^ 0x5eed);
    let mut up_to = |least: u64, most: u64| least + dice.roll(most - least + 1);
    Plan {
        seed,
        units: u32::try_from(up_to(1, 5)).unwrap(),
        hosts: u32::try_from(up_to(1, 20)).unwrap(),
        applications: u32::try_from(up_to(1, 40)).unwrap(),
        group: u32::try_from([1, 2, 5, 10][usize::try_from(up_to(0, 3)).unwrap()]).unwrap(),
        loss: up_to(0, 250),
        duplicates: up_to(0, 150),
        delay: up_to(1, 250),
        chaos: up_to(10, 150),
        until: up_to(5, 40) * 1_000,
    }
}

/// Chaos for a while, then peace: the time until all caches are right.
pub(crate) fn converge(plan: Plan) -> Result<(u64, World), String> {
    let seed = plan.seed;
    let mut world = World::new(plan);
    world.run(world.now + world.plan.until);
    if let Some(broken) = world.broken.take() {
        return Err(format!("seed {seed}: {broken}"));
    }
    world.heal();
    let settled = world.settle(PEACE.as_millis().try_into().unwrap());
    settled.map(|time| (time, world)).map_err(|why| format!("seed {seed}: {why}"))
}

const AT_ONCE_MAX: usize = 100_000;

/// All has to be right after so long without new faults.
const PEACE: Duration = Duration::from_secs(40);
