//! The simulated world: hosts and units with virtual time, and a network between them that loses, delays, repeats and parts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

use weir_health_load::Directive;
use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use crate::simulator::plan::{Dice, Plan};
use crate::{
    Body, Claims, GroupEnd, GroupSettings, HostEnd, HostSettings, Identity, LIFE_BITS, Message, Origin, Peer, Presence,
    Row, To, UnitEnd, UnitSettings, decode, encode,
};

mod chaos;
mod invariants;
mod network;

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
    Deliver { conn: u64, to: Node, bytes: Rc<[u8]> },
    Wake(Node),
    Flush(Node),
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

pub(crate) struct SimulatedUnit {
    end: Option<UnitEnd>,
    /// What a listener to changes believes: rows of live hosts.
    mirror: BTreeMap<(HostId, ApplicationId), Row>,
    /// Bytes that came, and were sent.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// What it has to say is collected.
    collects: bool,
}

pub(crate) struct World {
    plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    counter: u64,
    hosts: Vec<SimulatedHost>,
    pub(crate) units: Vec<SimulatedUnit>,
    paused: BTreeSet<Node>,
    waking: BTreeMap<Node, u64>,
    conns: BTreeMap<u64, Conn>,
    /// Who has a connection to whom.
    ways: BTreeMap<Node, BTreeMap<Node, u64>>,
    /// Pairs of nodes that cannot reach each other.
    cuts: BTreeSet<(Node, Node)>,
    chaotic: bool,
    /// Messages of the past, to be replayed.
    recorded: Vec<(Node, Node, Rc<[u8]>)>,
    /// Events without time passing, and the most that are no mistake.
    at_once: usize,
    /// The first thing that must never be.
    pub(crate) broken: Option<String>,
    pub(crate) delivered_bytes: u64,
    /// The unit and host that were seen to disagree last.
    wrong: (u32, u32),
    /// The host whose messages are printed.
    traced: Option<HostId>,
}

impl World {
    pub(crate) fn new(plan: Plan) -> World {
        let mut world = World {
            dice: Dice(plan.seed),
            now: BEGIN,
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
            wrong: (0, 0),
            traced: std::env::var("WEIR_TRACE").ok().map(|host| HostId(host.parse().unwrap())),
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
            world.units.push(SimulatedUnit {
                end: None,
                mirror: BTreeMap::new(),
                received: 0,
                sent: 0,
                collects: false,
            });
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
            if !self.plan.is_large() && (self.at_once > AT_ONCE_MAX || self.events.len() > AT_ONCE_MAX) {
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
                    let length = u64::try_from(bytes.len()).unwrap();
                    self.delivered_bytes += length;
                    if let Node::Unit(unit) = to {
                        self.units[usize::try_from(unit).unwrap()].received += length;
                    }
                    if network::is_between_units(from, to) {
                        self.record(from, to, &bytes);
                    }
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
            Event::Flush(node) => {
                if let Node::Unit(unit) = node {
                    self.units[usize::try_from(unit).unwrap()].collects = false;
                }
                self.flush(node);
            }
            Event::Connections => {
                self.connections();
                if !self.plan.is_large() {
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
            if self.dice.per_mille(500) {
                // It was about to send when it was stopped.
                self.flush(node);
            }
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
        self.trace(from, to, &message);
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
        match to {
            // With many hosts a unit's driver takes several messages at once.
            Node::Unit(unit) if self.plan.is_large() => {
                if !std::mem::replace(&mut self.units[usize::try_from(unit).unwrap()].collects, true) {
                    self.at(COLLECTED_IN, Event::Flush(to));
                }
            }
            _ => self.flush(to),
        }
    }

    fn trace(&self, from: Node, to: Node, message: &Message) {
        let Some(host) = self.traced else { return };
        match &message.body {
            Body::Heartbeat(beats) => {
                let beats = beats.iter().filter(|beat| beat.host == host);
                beats.for_each(|beat| println!("{} {from:?} -> {to:?}: {beat:?}", self.now));
            }
            body if message.host == host => {
                let (life, sequence, said) = (message.incarnation, message.sequence, format!("{body:?}"));
                println!("{} {from:?} -> {to:?}: life {life} {sequence} {}", self.now, &said[..said.len().min(300)]);
            }
            _ => {}
        }
    }

    /// Sends what a node has to send, notes what it has changed, and sets its timer.
    fn flush(&mut self, node: Node) {
        let now = Moment(self.now);
        let mut sent: Vec<(Option<Node>, Rc<[u8]>)> = Vec::new();
        let packed = |message: &Message| Rc::from(encode(message));
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
                    sent.extend(left.map(|out| (out.unit.map(|unit| Node::Unit(unit.0)), packed(&out.message))));
                }
                while let Some((to, message)) = simulated.group.as_mut().and_then(GroupEnd::poll_transmit) {
                    let to = match to {
                        To::Units => None,
                        To::Peer(host) => Some(Node::Host(host.0)),
                    };
                    sent.push((to, packed(&message)));
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
                    let bytes: Rc<[u8]> = packed(&message);
                    simulated.sent += u64::try_from(bytes.len()).unwrap();
                    sent.push((Some(to), bytes));
                }
                let changes = end.take_changes();
                for (host, application) in changes.into_iter().filter(|_| !self.plan.is_large()) {
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
        if let Node::Host(index) = node
            && !self.plan.is_large()
        {
            self.watch_currents(index);
        }
    }
}

fn claims(node: Node, group: u32) -> Claims {
    let Node::Host(host) = node else { return Claims::default() };
    let first = host / group * group;
    let vouches = (group > 1).then(|| (format!("g{first}").into(), vec![(HostId(first), HostId(first + group - 1))]));
    Claims { hosts: BTreeSet::from([HostId(host)]), vouches: vouches.into_iter().collect() }
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
    let led = settled.and_then(|time| world.lose_leaders().map(|()| time));
    let parted = led.and_then(|time| world.part_hosts().map(|()| time));
    parted.map(|time| (time, world)).map_err(|why| format!("seed {seed}: {why}"))
}

/// When the world begins, in ms.
pub(crate) const BEGIN: u64 = 1_000_000;

const AT_ONCE_MAX: usize = 100_000;
/// How long a unit's driver is busy with what it has, in ms.
const COLLECTED_IN: u64 = 2;

/// All has to be right after so long without new faults.
const PEACE: Duration = Duration::from_secs(40);
