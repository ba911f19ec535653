//! A route's life: opening, confirmed, closing, reopened, expired, evicted; and what the inventory hears of it.

use weir_dataplane::route_table::{Action, Mode, State};

use crate::frames;
use crate::lab::{DNS, Family, HTTP, Lab, MACS, Setup, TIMEOUTS, data, everywhere, fin, host_of, per_flow, rst, syn};

/// A connection whose handshake the client has continued; which host it is at.
fn connect(lab: &mut Lab, family: Family, client: u16) -> usize {
    let host = host_of(&lab.forward(syn(family, client, HTTP)));
    assert_eq!(host_of(&lab.forward(data(family, client, HTTP, b""))), host);
    host
}

#[test]
fn a_route_goes_from_opening_to_closing() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let (client, vip) = (family.client(1), family.vip(HTTP));
        // In full-nat the classifier hears of the pool's port, too.
        let bound = u64::from(mode == Mode::FullNat);
        lab.forward(syn(family, 1, HTTP));
        assert_eq!(lab.state(client, vip), Some(State::Opening));
        lab.forward(data(family, 1, HTTP, b""));
        assert_eq!((lab.state(client, vip), lab.count("notices")), (Some(State::Established), 1 + bound));
        // It outlives the opening timeout, idle.
        lab.pass(u64::from(TIMEOUTS[0]) + 6_000);
        lab.forward(data(family, 1, HTTP, b""));
        lab.forward(fin(family, 1, HTTP));
        assert_eq!((lab.state(client, vip), lab.count("notices")), (Some(State::Closing), 2 + bound));
        assert_eq!(lab.decisions("notices"), 2 + bound);
        // Later packets renew the shorter time.
        for _ in 0..3 {
            lab.pass(u64::from(TIMEOUTS[2]) - 500);
            lab.forward(data(family, 1, HTTP, b""));
        }
        assert_eq!(lab.state(client, vip), Some(State::Closing));
        assert_eq!((lab.decisions("questions"), lab.decisions("inventory")), (1, 1));
        lab.pass(u64::from(TIMEOUTS[2]) + 6_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        assert_eq!(lab.count("routes_expired"), 1);
    });
}

#[test]
fn a_handshake_that_nobody_continues_is_soon_forgotten() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        lab.forward(syn(family, 1, HTTP));
        lab.pass(u64::from(TIMEOUTS[0]) + 6_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn a_syn_follows_a_live_route_and_reopens_a_closing_one() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let first = connect(&mut lab, family, 1);
        assert_eq!(host_of(&lab.forward(syn(family, 1, HTTP))), first);
        assert_eq!((lab.decisions("questions"), lab.desk.answers.asked()), (1, 1));
        for (round, end) in [fin, rst, fin].into_iter().enumerate() {
            lab.forward(end(family, 1, HTTP));
            // Twice, as if the first one's answer were slow.
            let seen = lab.exchange(0, [syn(family, 1, HTTP), syn(family, 1, HTTP)]);
            assert_eq!((seen.len(), host_of(&seen[0])), (2, host_of(&seen[1])));
            assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Opening));
            assert_eq!(lab.decisions("reopened"), round as u64 + 1);
            assert_eq!(lab.desk.answers.asked(), round + 2);
            assert_eq!(host_of(&lab.forward(data(family, 1, HTTP, b""))), host_of(&seen[0]));
        }
        // Tokens are spread: the new connection went elsewhere at least once, and no route of the old one is left.
        let live = lab.routes().iter().filter(|(_, _, action, _)| *action != Action::Drop).count();
        assert_eq!(live, per_flow(mode));
        assert_eq!(lab.decisions("inventory"), 1);
    });
}

#[test]
fn a_reopened_connection_may_wait_for_its_decision() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        connect(&mut lab, family, 1);
        lab.forward(fin(family, 1, HTTP));
        lab.desk.answers.later(true);
        lab.exchange(0, [syn(family, 1, HTTP), syn(family, 1, HTTP)]);
        assert_eq!(lab.held(), 2);
        lab.desk.answers.release(1);
        let seen = lab.exchange(0, []);
        assert_eq!((seen.len(), lab.desk.answers.asked(), lab.decisions("reopened")), (2, 2, 1));
        assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Opening));
        assert_eq!(host_of(&lab.forward(data(family, 1, HTTP, b""))), host_of(&seen[1]));
    });
}

#[test]
fn expired_is_a_miss_before_it_is_swept() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let first = connect(&mut lab, family, 1);
        // All at once: no sweep has a chance.
        lab.now.0 += u64::from(TIMEOUTS[1]) + 1;
        let questions = lab.decisions("questions");
        assert_eq!(host_of(&lab.forward(data(family, 1, HTTP, b""))), first);
        assert_eq!(lab.decisions("questions"), questions + 1);
        assert_eq!(lab.desk.answers.asked(), 1);
        // A SYN is a new connection then, whether or not the sweep was there before it.
        lab.now.0 += u64::from(TIMEOUTS[1]) + 1;
        lab.forward(syn(family, 1, HTTP));
        assert_eq!(lab.desk.answers.asked(), 2);
        assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Opening));
    });
}

#[test]
fn a_place_is_free_only_when_its_notice_was_taken() {
    everywhere(|mode, family| {
        const FLOWS: u16 = 20;
        let mut lab = Lab::new(Setup { notice_ring: 1, ..Setup::new(mode) });
        for n in 0..FLOWS {
            lab.forward(syn(family, n, HTTP));
        }
        // The classifier stands still: one notice fits, so one route goes.
        lab.now.0 += u64::from(TIMEOUTS[0]) + 1;
        let mut shard = lab.shards.pop().unwrap();
        for _ in 0..200 {
            lab.now.0 += 100;
            shard.turn(lab.now);
        }
        lab.shards.push(shard);
        assert_eq!(lab.count("routes_expired"), 1);
        assert!(lab.count("notices_deferred") > 0);
        assert_eq!(lab.decisions("inventory"), u64::from(FLOWS));
        lab.pass(60_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        assert_eq!(lab.count("routes_expired"), u64::from(FLOWS));
    });
}

#[test]
fn a_full_table_evicts_what_is_worth_least() {
    everywhere(|mode, family| {
        let per_flow = per_flow(mode);
        // The sample is larger than the table: the choice is exact.
        let mut lab = Lab::new(Setup { routes: 4 * per_flow, ..Setup::new(mode) });
        let first = connect(&mut lab, family, 1);
        lab.now.0 += 1;
        connect(&mut lab, family, 2);
        lab.now.0 += 1;
        lab.forward(syn(family, 3, HTTP));
        lab.now.0 += 1;
        connect(&mut lab, family, 4);
        let alive = |lab: &Lab, n| lab.state(family.client(n), family.vip(HTTP)).is_some();
        // The unconfirmed one first, although others are idle for longer.
        lab.now.0 += 1;
        connect(&mut lab, family, 5);
        assert!(!alive(&lab, 3) && alive(&lab, 1) && alive(&lab, 2) && alive(&lab, 4));
        // Then the one that is idle for longest, once it was silent for as long as a connection may take to open.
        lab.now.0 += u64::from(TIMEOUTS[0]) + 1;
        connect(&mut lab, family, 6);
        assert!(!alive(&lab, 1) && alive(&lab, 2));
        assert_eq!(lab.count("routes_evicted"), 2);
        // Its session is known: the next packet plumbs it again, without a token and to the same host.
        let tokens = lab.desk.answers.asked();
        lab.now.0 += 1;
        assert_eq!(host_of(&lab.forward(data(family, 1, HTTP, b"still here"))), first);
        assert_eq!((lab.desk.answers.asked(), lab.decisions("remembered")), (tokens, 1));
        assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Established));
        assert_eq!(lab.routes().len(), 4 * per_flow);
        // In the end nothing is left.
        lab.pass(u64::from(TIMEOUTS[1]) + 20_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn a_storm_on_a_small_table_forgets_nothing_and_leaves_nothing() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { routes: 16, notice_ring: 8, ..Setup::new(mode) });
        let mut hosts = Vec::new();
        for burst in 0..10 {
            let seen = lab.exchange(0, (0..30).map(|n| syn(family, burst * 30 + n, HTTP)));
            hosts.extend(seen.iter().map(|seen| (seen.source, host_of(seen))));
            lab.now.0 += 1;
        }
        assert_eq!((hosts.len(), lab.desk.answers.asked()), (300, 300));
        let confirmed = lab.exchange(0, (0..300).map(|n| data(family, n, HTTP, b"")));
        assert_eq!((confirmed.len(), lab.desk.answers.asked()), (300, 300));
        hosts.sort_unstable();
        let mut again: Vec<_> = confirmed.iter().map(|seen| (seen.source, host_of(seen))).collect();
        again.sort_unstable();
        assert_eq!(again, hosts);
        lab.pass(u64::from(TIMEOUTS[1]) + 20_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn a_full_inventory_takes_no_route_away() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { sessions: 4, ..Setup::new(mode) });
        let hosts: Vec<_> = (0..20).map(|n| connect(&mut lab, family, n)).collect();
        assert_eq!((lab.decisions("inventory"), lab.decisions("inventory_evicted")), (4, 16));
        let questions = lab.decisions("questions");
        for (n, host) in (0..).zip(&hosts) {
            assert_eq!(host_of(&lab.forward(data(family, n, HTTP, b""))), *host);
        }
        assert_eq!(lab.decisions("questions"), questions);
        lab.pass(u64::from(TIMEOUTS[1]) + 10_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn datagrams_keep_a_route_as_long_as_they_come() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let ask = || frames::datagram(MACS[0], family.client(1), family.vip(DNS), b"?");
        for _ in 0..5 {
            lab.forward(ask());
            lab.pass(u64::from(TIMEOUTS[3]) - 500);
        }
        assert_eq!((lab.desk.answers.asked(), lab.decisions("questions")), (1, 1));
        lab.pass(u64::from(TIMEOUTS[3]) + 6_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        lab.forward(ask());
        assert_eq!(lab.desk.answers.asked(), 2);
    });
}
