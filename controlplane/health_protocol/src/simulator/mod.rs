//! Random schedules in virtual time: whatever happened, once there is peace all caches become equal to their hosts' tables.
//!
//! Seeds are 1, 2, 3, …; 10,000 of them: `WEIR_SCHEDULES=10000 cargo test -p weir-health-protocol schedules_converge -- --nocapture`

mod proxies;
mod world;

use crate::planted::{Bug, PLANTED};
use world::{Dice, converge, plan};

fn schedules(seeds: impl Iterator<Item = u64>) {
    let mut times = Vec::new();
    for seed in seeds {
        match converge(plan(seed)) {
            Ok((time, _)) => times.push(time),
            Err(why) => panic!("{why}\n{:?}", plan(seed)),
        }
    }
    times.sort_unstable();
    let at = |per_cent: usize| times[(times.len() - 1) * per_cent / 100];
    println!("{} schedules: equal after p50 {} ms, p99 {} ms, at most {} ms", times.len(), at(50), at(99), at(100));
}

#[test]
fn schedules_converge() {
    let count = std::env::var("WEIR_SCHEDULES").map_or(300, |count| count.parse().unwrap());
    schedules(1..=count);
}

#[test]
fn schedules_are_repeatable() {
    let run = || converge(plan(7)).map(|(time, mut world)| (time, world.delivered_bytes, world.dice.roll(u64::MAX)));
    assert_eq!(run().unwrap(), run().unwrap());
}

#[test]
fn every_planted_bug_is_found() {
    let mut dice = Dice(1);
    let mut unfound = Vec::new();
    for bug in BUGS {
        PLANTED.set(Some(bug));
        let first = dice.roll(1 << 40);
        let found = (first..first + 200).enumerate().find_map(|(n, seed)| Some((n + 1, converge(plan(seed)).err()?)));
        PLANTED.set(None);
        match found {
            Some((n, why)) => println!("{bug:?}: found by schedule {n}: {}", &why[..why.len().min(150)]),
            None => unfound.push(bug),
        }
    }
    assert!(unfound.is_empty(), "not found: {unfound:?}");
}

const BUGS: [Bug; 16] = [
    Bug::VersionIgnored,
    Bug::ReplayTaken,
    Bug::StaleLifeTaken,
    Bug::SnapshotKeepsRows,
    Bug::AsksOnce,
    Bug::DigestIgnored,
    Bug::WrongChunks,
    Bug::LifeNotRaised,
    Bug::CurrentAtOnce,
    Bug::UnheardIsRight,
    Bug::PostulatesOnce,
    Bug::NeverSilent,
    Bug::OldRowsStay,
    Bug::ChangeNotReported,
    Bug::PeersNotAsked,
    Bug::GoodbyeForgotten,
];
