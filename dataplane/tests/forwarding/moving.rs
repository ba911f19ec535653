//! Shards and classifiers move between two threads under traffic: nothing is lost or doubled, and each flow keeps its order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, unbounded};
use hashbrown::HashMap;
use weir_dataplane::core::{Command, Core, Turn, giving};
use weir_dataplane::route_table::Mode;
use weir_identity::Moment;

use crate::lab::{End, Family, HTTP, Lab, Setup, data, syn};

const SHARDS: usize = 3;
const CLASSIFIERS: usize = 2;
const FLOWS: u16 = 32;
const ROUNDS: u32 = 400;
/// Far below what any ring takes, so that nothing has to be dropped.
const IN_FLIGHT: usize = 128;

#[test]
fn moving_loses_nothing() {
    move_under_traffic(Mode::Dsr, Family::V4);
    move_under_traffic(Mode::Nat, Family::V6);
}

#[test]
fn what_nobody_takes_stays() {
    let mut lab = Lab::plain(Mode::Dsr);
    let (commands, receiver) = unbounded();
    let mut core = Core::new(receiver, Arc::clone(&lab.farms));
    let mut send = |command| {
        let revision = core.revision();
        commands.send(command).unwrap();
        core.turn(lab.now);
        core.revision() != revision
    };
    assert!(send(Command::AddShard(Box::new(lab.shards.pop().unwrap()))));
    assert!(!send(Command::AddClassifier(Box::new(lab.seats.pop().unwrap()))));
    let (to, given) = giving();
    drop(given);
    send(Command::TakeShard(0, to));
    let (to, given) = giving();
    drop(given);
    send(Command::TakeClassifier(0, to));
    // One that is not here is not given: who asked hears that nothing comes.
    let (to, given) = giving();
    send(Command::TakeShard(1, to));
    assert!(given.take(Duration::MAX).is_none());
    let (to, given) = giving();
    send(Command::TakeClassifier(1, to));
    assert!(given.take(Duration::MAX).is_none());
    // Nor is it looked into; who wanted that hears of it at once.
    for (shard, looked) in [(1, false), (0, true)] {
        let (to, given) = crossbeam::channel::bounded(1);
        send(Command::Visit(shard, Box::new(move |shard, _| to.send(shard.number()).unwrap())));
        assert_eq!(given.recv().is_ok(), looked);
    }
    assert_eq!((core.shards().collect::<Vec<_>>(), core.queues().count()), (vec![0], 2));
    lab.arrive(0, 0, &syn(Family::V4, 1, HTTP));
    for _ in 0..3 {
        core.turn(lab.now);
    }
    assert_eq!(lab.wire.seen().len(), 1);
    commands.send(Command::Stop).unwrap();
    assert_eq!(core.turn(lab.now), Turn::Stopped);
    let (shards, seats) = core.into_parts();
    assert_eq!((shards.len(), seats.len()), (1, 1));
}

/// Two threads with a core each; the clock is the test's.
struct Threads {
    commands: [Sender<Command<End>>; 2],
    /// Which core has each shard, and each classifier.
    at: [Vec<usize>; 2],
}

impl Threads {
    fn move_shard(&mut self, number: usize) {
        let (to, given) = giving();
        let at = &mut self.at[0][number];
        self.commands[*at].send(Command::TakeShard(number, to)).unwrap();
        let shard = given.take(Duration::MAX).unwrap();
        assert_eq!(shard.number(), number);
        *at = 1 - *at;
        self.commands[*at].send(Command::AddShard(shard)).unwrap();
    }

    fn move_classifier(&mut self, number: usize) {
        let (to, given) = giving();
        let at = &mut self.at[1][number];
        self.commands[*at].send(Command::TakeClassifier(number, to)).unwrap();
        let seat = given.take(Duration::MAX).unwrap();
        assert_eq!(seat.number(), number);
        *at = 1 - *at;
        self.commands[*at].send(Command::AddClassifier(seat)).unwrap();
    }
}

fn run(mut core: Core<End>, clock: &AtomicU64) -> Core<End> {
    loop {
        match core.turn(Moment(clock.load(Ordering::Relaxed))) {
            Turn::Stopped => return core,
            Turn::Worked(0) => thread::yield_now(),
            Turn::Worked(_) => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "real threads need a real deadline")]
fn move_under_traffic(mode: Mode, family: Family) {
    let mut lab =
        Lab::new(Setup { shards: SHARDS, classifiers: CLASSIFIERS, routes: 4096, sessions: 4096, ..Setup::new(mode) });
    let (clock, deadline) = (Arc::new(AtomicU64::new(1_000)), Instant::now() + Duration::from_secs(120));
    let late = AtomicBool::new(false);
    let (commands, cores): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (commands, receiver) = unbounded();
            (commands, Core::new(receiver, Arc::clone(&lab.farms)))
        })
        .unzip();
    for shard in lab.shards.drain(..) {
        commands[0].send(Command::AddShard(Box::new(shard))).unwrap();
    }
    for seat in lab.seats.drain(..) {
        commands[1].send(Command::AddClassifier(Box::new(seat))).unwrap();
    }
    let handles: Vec<_> = cores
        .into_iter()
        .map(|core| {
            let clock = Arc::clone(&clock);
            thread::spawn(move || run(core, &clock))
        })
        .collect();
    let mut threads = Threads { commands: commands.try_into().unwrap(), at: [vec![0; SHARDS], vec![1; CLASSIFIERS]] };

    let mut arrived = 0;
    let settle = |arrived: usize, in_flight: usize| {
        while arrived - lab.wire.sent_count.load(Ordering::Relaxed) > in_flight {
            if Instant::now() > deadline {
                late.store(true, Ordering::Relaxed);
                return;
            }
            thread::yield_now();
        }
    };
    let mut arrive = |client: u16, frame: &[u8]| {
        lab.arrive(usize::from(client) % SHARDS, 0, frame);
        arrived += 1;
        settle(arrived, IN_FLIGHT);
        arrived
    };
    for n in 0..FLOWS {
        arrive(n, &syn(family, n, HTTP));
    }
    let opened = arrive(FLOWS, &syn(family, FLOWS, HTTP));
    settle(opened, 0);
    let mut total = opened;
    for round in 0..ROUNDS {
        for n in 0..FLOWS {
            arrive(n, &data(family, n, HTTP, &round.to_be_bytes()));
        }
        // New connections all the time, so that classifiers have something to lose as well.
        let client = FLOWS + 1 + round as u16;
        total = arrive(client, &syn(family, client, HTTP));
        threads.move_shard(round as usize % SHARDS);
        if round % 2 == 0 {
            threads.move_classifier(round as usize / 2 % CLASSIFIERS);
        }
        clock.fetch_add(1, Ordering::Relaxed);
        if late.load(Ordering::Relaxed) {
            break;
        }
    }
    settle(total, 0);
    for commands in &threads.commands {
        commands.send(Command::Stop).unwrap();
    }
    for handle in handles {
        let (shards, seats) = handle.join().unwrap().into_parts();
        lab.shards.extend(shards);
        lab.seats.extend(seats);
    }
    lab.check();
    assert!(!late.load(Ordering::Relaxed), "not all arrived packets were sent: {:?}", lab.drops());
    assert_eq!((lab.shards.len(), lab.seats.len(), lab.held()), (SHARDS, CLASSIFIERS, 0));

    let mut next: HashMap<_, u32> = HashMap::new();
    let mut hosts = HashMap::new();
    for seen in lab.wire.seen() {
        assert_eq!(*hosts.entry(seen.source).or_insert(seen.mac), seen.mac);
        let due = next.entry(seen.source).or_default();
        let number = seen.payload.as_slice().try_into().map_or(0, |bytes| u32::from_be_bytes(bytes) + 1);
        assert_eq!(number, *due, "{}", seen.source);
        *due += 1;
    }
    for n in 0..FLOWS {
        assert_eq!(next[&family.client(n)], ROUNDS + 1);
    }
    assert_eq!(next.len(), usize::from(FLOWS) + 1 + ROUNDS as usize);
    assert_eq!(lab.desk.answers.asked(), next.len());
}
