//! Two sources for one host, in virtual time: whoever dies, the host stays live; whoever is better counts in the end; nobody flaps.

use std::collections::BTreeMap;

use weir_health_load::{Directive, Health};
use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use super::plan::Dice;
use crate::{
    Claims, HostEnd, HostSettings, Identity, LIFE_BITS, Message, Origin, Peer, Presence, Rank, Status, UnitEnd,
    UnitSettings, decode, encode,
};

const HOST: HostId = HostId(9);
const APPLICATION: ApplicationId = ApplicationId(1);
const STEP: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Source(usize),
    Unit(u32),
}

struct Farm {
    dice: Dice,
    now: u64,
    ranks: Vec<Rank>,
    sources: Vec<Option<HostEnd>>,
    units: Vec<UnitEnd>,
    /// Up from each source to each unit, and from each unit to each.
    links: BTreeMap<(Node, Node), bool>,
    under_way: Vec<(u64, Node, Node, Vec<u8>)>,
    recorded: Vec<(Node, Node, Vec<u8>)>,
    loss: u64,
    delay: u64,
    health: Health,
    /// What each unit last took for the source, and since when; how often it changed.
    followed: Vec<Followed>,
    /// When it followed another, and whether the one before was live and heard until then.
    switches: Vec<Vec<(u64, Rank, bool)>>,
    /// A unit that knew the host took it for something else than live at this time.
    dark: Option<(u64, u32, String)>,
}

#[derive(Debug, Clone, Copy)]
struct Followed {
    rank: Option<Rank>,
    heard: Moment,
    live: bool,
}

impl Farm {
    fn new(seed: u64, units: u32, ranks: &[u8]) -> Farm {
        let ranks: Vec<Rank> = ranks.iter().map(|rank| Rank::new(*rank).unwrap()).collect();
        let mut farm = Farm {
            dice: Dice(seed),
            now: 1_000_000,
            sources: ranks.iter().map(|_| None).collect(),
            ranks,
            units: Vec::new(),
            links: BTreeMap::new(),
            under_way: Vec::new(),
            recorded: Vec::new(),
            loss: 0,
            delay: 20,
            health: Health::Healthy,
            followed: Vec::new(),
            switches: vec![Vec::new(); units.try_into().unwrap()],
            dark: None,
        };
        for unit in 0..units {
            let mut end = UnitEnd::new(UnitSettings::new(UnitId(unit), Incarnation(farm.now)));
            for peer in (0..units).filter(|peer| *peer != unit) {
                end.handle_unit_up(UnitId(peer), Moment(farm.now));
                farm.links.insert((Node::Unit(unit), Node::Unit(peer)), true);
            }
            farm.units.push(end);
            farm.followed.push(Followed { rank: None, heard: Moment(0), live: false });
        }
        for source in 0..farm.sources.len() {
            farm.start(source);
        }
        farm
    }

    /// Each source has links to two units, and not to the same two.
    fn homes(&self, source: usize) -> Vec<u32> {
        let units = u32::try_from(self.units.len()).unwrap();
        let first = u32::try_from(source).unwrap();
        let mut homes: Vec<u32> = (first..first + 2).map(|unit| unit % units).collect();
        homes.dedup();
        homes
    }

    fn start(&mut self, source: usize) {
        if self.sources[source].is_some() {
            return;
        }
        let now = Moment(self.now);
        let life = self.ranks[source].life(self.now << LIFE_BITS | self.dice.roll(1 << LIFE_BITS));
        let settings = HostSettings { rank: self.ranks[source], ..HostSettings::new(HOST) };
        let mut end = HostEnd::new(settings, life, now);
        end.register(APPLICATION, Identity::default(), 50, Directive::Active).unwrap();
        end.report(APPLICATION, Status { health: self.health, load: 0, capacity: 50 }).unwrap();
        (0..self.units.len()).for_each(|unit| end.handle_link_down(UnitId(u32::try_from(unit).unwrap()), now));
        for unit in self.homes(source) {
            end.handle_link_up(UnitId(unit), now);
            self.links.insert((Node::Source(source), Node::Unit(unit)), true);
        }
        self.sources[source] = Some(end);
    }

    /// It dies without a word; units notice that the connection is dead after a second, which changes little.
    fn kill(&mut self, source: usize) {
        self.sources[source] = None;
        for unit in self.homes(source) {
            let another =
                (0..self.sources.len()).any(|other| self.sources[other].is_some() && self.homes(other).contains(&unit));
            if !another {
                self.units[usize::try_from(unit).unwrap()].handle_host_down(&claims());
            }
        }
    }

    fn cut(&mut self, a: Node, b: Node, up: bool) {
        for pair in [(a, b), (b, a)] {
            if let Some(link) = self.links.get_mut(&pair) {
                *link = up;
            }
        }
    }

    fn say(&mut self, health: Health) {
        self.health = health;
        for end in self.sources.iter_mut().flatten() {
            end.report(APPLICATION, Status { health, load: 0, capacity: 50 }).unwrap();
        }
    }

    fn run(&mut self, for_ms: u64) {
        let until = self.now + for_ms;
        while self.now < until {
            self.now += STEP;
            let now = Moment(self.now);
            let (due, later) = std::mem::take(&mut self.under_way).into_iter().partition(|(at, ..)| *at <= self.now);
            self.under_way = later;
            let due: Vec<(u64, Node, Node, Vec<u8>)> = due;
            for (_, from, to, bytes) in due {
                self.deliver(from, to, &bytes);
            }
            for source in 0..self.sources.len() {
                let Some(end) = &mut self.sources[source] else { continue };
                end.handle_timeout(now);
                let out: Vec<_> = std::iter::from_fn(|| end.poll_transmit()).collect();
                for message in out {
                    for unit in self.homes(source) {
                        if message.unit.is_none_or(|wanted| wanted == UnitId(unit)) {
                            self.post(Node::Source(source), Node::Unit(unit), &message.message);
                        }
                    }
                }
            }
            for unit in 0..u32::try_from(self.units.len()).unwrap() {
                let end = &mut self.units[usize::try_from(unit).unwrap()];
                end.handle_timeout(now);
                let out: Vec<_> = std::iter::from_fn(|| end.poll_transmit()).collect();
                for (peer, message) in out {
                    match peer {
                        Peer::Unit(peer) => self.post(Node::Unit(unit), Node::Unit(peer.0), &message),
                        // As the driver does: to all that may speak for the host.
                        Peer::Host(_) => {
                            for source in 0..self.sources.len() {
                                if self.homes(source).contains(&unit) {
                                    self.post(Node::Unit(unit), Node::Source(source), &message);
                                }
                            }
                        }
                    }
                }
                self.watch(unit);
            }
        }
    }

    fn post(&mut self, from: Node, to: Node, message: &Message) {
        let bytes = encode(message);
        if self.dice.per_mille(20) && self.recorded.len() < 300 {
            self.recorded.push((from, to, bytes.clone()));
        }
        let is_up = |pair| self.links.get(&pair).copied().unwrap_or(false);
        if (is_up((from, to)) || is_up((to, from))) && !self.dice.per_mille(self.loss) {
            let at = self.now + 1 + self.dice.roll(self.delay);
            self.under_way.push((at, from, to, bytes));
        }
    }

    fn deliver(&mut self, from: Node, to: Node, bytes: &[u8]) {
        let (message, now) = (decode(bytes).unwrap(), Moment(self.now));
        // What is refused is part of the game.
        match (from, to) {
            (Node::Unit(unit), Node::Source(source)) => {
                if let Some(end) = &mut self.sources[source] {
                    let _ = end.handle(UnitId(unit), message, now);
                }
            }
            (from, Node::Unit(unit)) => {
                let claims = claims();
                let origin = match from {
                    Node::Source(_) => Origin::Host(&claims),
                    Node::Unit(peer) => Origin::Unit(UnitId(peer)),
                };
                let _ = self.units[usize::try_from(unit).unwrap()].handle(origin, message, now);
            }
            (Node::Source(_), Node::Source(_)) => {}
        }
    }

    fn watch(&mut self, unit: u32) {
        let index = usize::try_from(unit).unwrap();
        let Some(cached) = self.units[index].host(HOST).filter(|cached| cached.incarnation() != Incarnation(0)) else {
            return;
        };
        let Followed { rank, heard, live } = self.followed[index];
        if Some(cached.rank()) != rank {
            self.switches[index].push((self.now, cached.rank(), live && self.now - heard.0 < 3_500));
        }
        let live = cached.presence() == Presence::Live;
        self.followed[index] = Followed { rank: Some(cached.rank()), heard: cached.heard(), live };
        if cached.presence() != Presence::Live {
            self.dark.get_or_insert((self.now, unit, format!("{cached:?}")));
        }
    }

    fn converged(&self) -> Result<(), String> {
        let best = (0..self.sources.len()).find(|source| self.sources[*source].is_some()).unwrap();
        let truth = self.sources[best].as_ref().unwrap();
        for (unit, end) in self.units.iter().enumerate() {
            let cached = end.host(HOST).ok_or("unknown")?;
            if !cached.is_in_step() || cached.incarnation() != truth.incarnation() || cached.table() != truth.table() {
                let (rank, presence, switches) = (cached.rank(), cached.presence(), &self.switches[unit]);
                return Err(format!("{} ms: unit {unit} follows {rank:?}, {presence:?}; {switches:?}", self.now));
            }
        }
        Ok(())
    }

    fn switch_count(&self) -> usize {
        self.switches.iter().map(|switches| switches.len() - 1).sum()
    }
}

fn claims() -> Claims {
    Claims { hosts: [HOST].into(), ..Claims::default() }
}

/// Until a better source that is back counts, with all that may be late.
const RETURN: u64 = 12_000;

#[test]
fn one_of_two_proxies_dies_and_nothing_is_seen_of_it() {
    for seed in 1..=20 {
        let mut farm = Farm::new(seed, 1 + u32::try_from(seed % 3).unwrap(), &[1, 2]);
        farm.run(1_000);
        farm.dark = None;
        farm.run(RETURN);
        farm.converged().unwrap();
        let begun = farm.switch_count();
        for round in 1..=3 {
            farm.kill(0);
            farm.run(6_000);
            // The second counts now, and what it says is known.
            farm.say(if round % 2 == 1 { Health::Failing } else { Health::Healthy });
            farm.run(1_000);
            farm.converged().unwrap();
            farm.start(0);
            farm.run(RETURN);
            farm.converged().unwrap();
            farm.kill(1);
            farm.run(6_000);
            farm.converged().unwrap();
            farm.start(1);
            farm.run(RETURN);
            farm.converged().unwrap();
            assert_eq!(farm.switch_count() - begun, 2 * round * farm.units.len(), "seed {seed}: {:?}", farm.switches);
        }
        assert_eq!(farm.dark, None, "seed {seed}");
    }
}

#[test]
fn a_first_proxy_that_comes_and_goes_does_not_make_units_follow() {
    let mut farm = Farm::new(1, 2, &[1, 2]);
    farm.run(RETURN);
    farm.kill(0);
    farm.run(6_000);
    let before = farm.switch_count();
    farm.dark = None;
    // Up for 5 s, down for 4 s: it is never heard for long enough.
    for _ in 0..10 {
        farm.start(0);
        farm.run(5_000);
        farm.kill(0);
        farm.run(4_000);
    }
    assert_eq!((farm.switch_count(), &farm.dark), (before, &None), "{:?}", farm.switches);
    farm.start(0);
    farm.run(RETURN);
    farm.converged().unwrap();
}

#[test]
fn a_goodbye_is_not_overruled_by_a_proxy() {
    let mut farm = Farm::new(1, 2, &[0, 1]);
    farm.run(RETURN);
    farm.sources[0].as_mut().unwrap().goodbye();
    farm.run(20_000);
    for end in &farm.units {
        assert_eq!(end.host(HOST).unwrap().presence(), Presence::Gone);
    }
    farm.kill(0);
    farm.start(0);
    farm.run(1_000);
    farm.converged().unwrap();
}

#[test]
fn two_of_the_same_rank_are_noticed_and_kept_slow() {
    let mut farm = Farm::new(1, 2, &[1, 1]);
    let mut lives = std::collections::BTreeSet::new();
    for _ in 0..600 {
        farm.run(100);
        lives.extend(farm.units[0].host(HOST).map(crate::CachedHost::incarnation));
    }
    assert!(lives.len() < 25, "{} lives within a minute", lives.len());
    let now = Moment(farm.now);
    assert!(farm.sources.iter().flatten().any(|end| end.is_contested(now)));
}

#[test]
fn whatever_happens_the_best_source_counts_in_the_end() {
    let count: u64 = std::env::var("WEIR_SCHEDULES").map_or(100, |count| count.parse().unwrap());
    let mut switches = 0;
    for seed in 1..=count {
        let mut dice = Dice(seed);
        let units = u32::try_from(1 + dice.roll(4)).unwrap();
        let mut farm = Farm::new(seed, units, &[0, 1, 3][..usize::try_from(2 + dice.roll(2)).unwrap()]);
        (farm.loss, farm.delay) = (dice.roll(200), 1 + dice.roll(200));
        for _ in 0..40 {
            let source = usize::try_from(dice.roll(farm.sources.len().try_into().unwrap())).unwrap();
            let unit = Node::Unit(u32::try_from(dice.roll(units.into())).unwrap());
            match dice.roll(7) {
                0 => farm.kill(source),
                1 | 2 => farm.start(source),
                3 => farm.cut(Node::Source(source), unit, dice.per_mille(500)),
                4 => farm.cut(Node::Unit(0), unit, dice.per_mille(500)),
                5 if !farm.recorded.is_empty() => {
                    let at = usize::try_from(dice.roll(farm.recorded.len().try_into().unwrap())).unwrap();
                    let (from, to, bytes) = farm.recorded[at].clone();
                    farm.deliver(from, to, &bytes);
                }
                _ => farm.say(if dice.per_mille(500) { Health::Healthy } else { Health::Failing }),
            }
            farm.run(dice.roll(2_000));
        }
        farm.links.values_mut().for_each(|up| *up = true);
        farm.loss = 0;
        (0..farm.sources.len()).for_each(|source| farm.start(source));
        farm.run(3 * RETURN);
        farm.converged().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        switches += farm.switch_count();
        // As long as a source is heard, only a better one takes its place, and that after it was heard for two age-outs.
        for switches in &farm.switches {
            let live_changes = |pair: &[(u64, Rank, bool)]| pair[1].2 && pair[1].1 > pair[0].1;
            assert!(!switches.windows(2).any(live_changes), "seed {seed}: {switches:?}");
            let back = |three: &[(u64, Rank, bool)]| {
                three[1].1 > three[0].1 && three[2].1 == three[0].1 && three[2].2 && three[2].0 - three[1].0 < 3_500
            };
            assert!(!switches.windows(3).any(back), "seed {seed}: {switches:?}");
        }
    }
    println!("{count} schedules, {switches} changes of source");
}
