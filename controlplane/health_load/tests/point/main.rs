//! The point of live load, in virtual time: latency with tokens from what hosts say, beside round-robin and least-connection.
//!
//! `cargo test -p weir-health-load --test point -- --nocapture` prints the table. Handler, classifiers' allotments and the hosts' smoothing are
//! the real ones; hosts, clients and the wire between them are simulated, and every run is the same.

mod farm;

use std::time::Duration;

use farm::{Farm, Setting};
use weir_health_load::Select;

/// What goes wrong at the first host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nothing.
    None,
    /// Everything takes twice as long there.
    Slow,
    /// Somebody else has half of its places, 2 s of every 6 s.
    Neighbour,
}

/// The latency in milliseconds at 50 %, 99 % and 99.9 %.
#[derive(Debug, Clone, Copy)]
struct Latency([f64; 3]);

fn run(select: Select, classifiers: usize, trouble: Trouble) -> Latency {
    show(Setting { select, classifiers, trouble, ..Setting::default() })
}

fn show(setting: Setting) -> Latency {
    let Setting { select, classifiers, trouble, .. } = setting;
    let mut all = Farm::new(setting).run(Duration::from_secs(5), Duration::from_secs(120));
    all.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a few minutes")]
    let at = |permille: usize| all[(all.len() - 1) * permille / 1_000] as f64 / 1_000.0;
    let latency = Latency([at(500), at(990), at(999)]);
    let [p50, p99, p999] = latency.0;
    println!("{trouble:?} {select:?} {classifiers}: p50 {p50:.1} p99 {p99:.1} p99.9 {p999:.1} ms of {}", all.len());
    latency
}

/// Not asserted: how it depends on the times, the hosts and the reports.
#[test]
#[ignore = "for people who tune"]
fn survey() {
    for (hosts, places) in [(4, 8), (4, 4), (16, 8), (3, 32)] {
        for spread in [farm::Spread::Even, farm::Spread::Exponential] {
            for report_every in [50_000, 200_000] {
                for trouble in [Trouble::None, Trouble::Slow, Trouble::Neighbour] {
                    for (select, classifiers) in [
                        (Select::Tokens, 1),
                        (Select::Tokens, 8),
                        (Select::LeastConnection, 1),
                        (Select::LeastConnection, 8),
                        (Select::RoundRobin, 1),
                    ] {
                        let setting = Setting {
                            select,
                            classifiers,
                            trouble,
                            hosts,
                            places,
                            spread,
                            report_every,
                            ..Setting::default()
                        };
                        print!("{hosts}x{places} {spread:?} {report_every} ");
                        show(setting);
                    }
                }
            }
        }
    }
}

fn p99(select: Select, classifiers: usize, trouble: Trouble) -> f64 {
    run(select, classifiers, trouble).0[1]
}

#[test]
fn live_load_beats_round_robin_and_is_no_worse_than_least_connection() {
    for trouble in [Trouble::None, Trouble::Slow, Trouble::Neighbour] {
        let tokens = p99(Select::Tokens, 1, trouble);
        let turns = p99(Select::RoundRobin, 1, trouble);
        let least = p99(Select::LeastConnection, 1, trouble);
        if trouble != Trouble::None {
            assert!(tokens <= 0.6 * turns, "{trouble:?}: {tokens} ms is more than 0.6 of {turns} ms");
        }
        assert!(tokens <= 1.01 * least, "{trouble:?}: {tokens} ms is more than {least} ms");
    }
}

#[test]
fn eight_classifiers_are_as_good_as_one() {
    for trouble in [Trouble::None, Trouble::Slow, Trouble::Neighbour] {
        let one = p99(Select::Tokens, 1, trouble);
        let eight = p99(Select::Tokens, 8, trouble);
        p99(Select::LeastConnection, 8, trouble);
        assert!(eight <= 1.05 * one, "{trouble:?}: {eight} ms is more than 5 % above {one} ms");
    }
}
