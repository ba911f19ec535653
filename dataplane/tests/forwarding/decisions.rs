//! One decision per connection: late answers, packets that wait, limits, and packets of connections that nobody knows.

use weir_dataplane::counters::DropReason;
use weir_dataplane::route_table::{Mode, State};
use weir_health_load::Directive;
use weir_identity::HostId;
use weir_sessions::{Binding, SessionKey};

use crate::frames;
use crate::lab::{DNS, Family, HTTP, Lab, MACS, Setup, data, endpoint, everywhere, fin, host_of, per_flow, rst, syn};

#[test]
fn a_syn_repeated_while_its_decision_is_pending_costs_one_token() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        lab.desk.answers.later(true);
        assert!(lab.exchange(0, [syn(family, 1, HTTP), syn(family, 1, HTTP)]).is_empty());
        assert!(lab.exchange(0, [syn(family, 1, HTTP), data(family, 1, HTTP, b"early")]).is_empty());
        assert_eq!(lab.held(), 4);
        assert_eq!(lab.desk.answers.asked(), 1);
        lab.desk.answers.release(1);
        let seen = lab.exchange(0, []);
        assert_eq!(
            seen.iter().map(|seen| seen.payload.as_slice()).collect::<Vec<_>>(),
            [b"" as &[u8], b"", b"", b"early"]
        );
        assert!(seen.iter().all(|each| each.mac == seen[0].mac && each.destination == seen[0].destination));
        assert_eq!((lab.decisions("decided"), lab.decisions("queued"), lab.held()), (1, 3, 0));
        assert_eq!(lab.count("routes_installed"), 1);
        // The route is there: nobody is asked any more.
        let after = lab.forward(data(family, 1, HTTP, b"on"));
        assert_eq!((after.mac, lab.decisions("questions")), (seen[0].mac, 4));
    });
}

#[test]
fn repeated_syns_before_the_route_is_installed_cost_one_token() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let seen = lab.exchange(0, (0..5).map(|_| syn(family, 1, HTTP)));
        assert_eq!(seen.len(), 5);
        assert!(seen.iter().all(|each| each.mac == seen[0].mac));
        assert_eq!((lab.desk.answers.asked(), lab.decisions("remembered")), (1, 4));
        assert_eq!((lab.count("routes_installed"), lab.count("routes_kept")), (1, 4));
        assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Opening));
    });
}

#[test]
fn as_many_packets_wait_as_may_and_nothing_leaks() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { pending: 4, ..Setup::new(mode) });
        lab.desk.answers.later(true);
        // Four flows wait, a fifth finds no room, nor does a second packet of the first.
        lab.exchange(0, (1..=5).map(|n| syn(family, n, HTTP)));
        lab.exchange(0, [syn(family, 1, HTTP)]);
        assert_eq!((lab.held(), lab.dropped(DropReason::PendingFull)), (4, 2));
        lab.desk.answers.release(5); // the fifth flow has asked as well
        assert_eq!(lab.exchange(0, []).len(), 4);
        assert_eq!(lab.held(), 0);
        // There is room again, for as many.
        lab.desk.answers.later(false);
        assert_eq!(lab.exchange(0, [syn(family, 5, HTTP)]).len(), 1);
        lab.desk.answers.later(true);
        lab.exchange(0, (11..=16).map(|n| syn(family, n, HTTP)));
        assert_eq!((lab.held(), lab.dropped(DropReason::PendingFull)), (4, 4));
    });
}

#[test]
fn an_answer_that_never_comes_is_waited_for_a_second() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        lab.desk.answers.later(true);
        lab.exchange(0, [syn(family, 1, HTTP), syn(family, 1, HTTP)]);
        lab.pass(900);
        assert_eq!(lab.held(), 2);
        lab.pass(200);
        assert_eq!((lab.held(), lab.dropped(DropReason::PendingFull)), (0, 2));
        lab.check();
        // An answer after that is for nobody, and the client's next SYN begins anew.
        lab.desk.answers.release(1);
        assert!(lab.exchange(0, []).is_empty());
        assert!(lab.routes().is_empty());
        lab.desk.answers.later(false);
        assert_eq!(lab.exchange(0, [syn(family, 1, HTTP)]).len(), 1);
    });
}

/// What the session table says of a client's connection: it is at host `host` (0 to 2).
fn learn(lab: &Lab, family: Family, client: u16, host: usize) {
    let id = endpoint(family, 0, host);
    let (service, there) =
        (&lab.parts.services[lab.parts.endpoints[id.index()].service], &lab.parts.endpoints[id.index()]);
    let binding = Binding {
        endpoint: weir_sessions::Endpoint {
            host: there.host,
            application: there.application,
            address: there.address,
            port: there.port.unwrap_or(HTTP),
        },
        mode: service.mode as u8,
        pool: None,
        sequence_delta: 0,
        flow_id: 0,
    };
    let key = SessionKey::connection(service.id, service.protocol, family.client(client), family.vip(HTTP));
    lab.memory.learn(key, binding);
}

#[test]
fn a_session_look_up_may_answer_later() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        for host in 0..3 {
            learn(&lab, family, host as u16, host);
        }
        lab.memory.answers.later(true);
        let burst = (0..3).flat_map(|n| [data(family, n, HTTP, b"1"), data(family, n, HTTP, b"2")]);
        assert!(lab.exchange(0, burst).is_empty());
        assert_eq!((lab.held(), lab.memory.answers.asked()), (6, 3));
        lab.memory.answers.release(3);
        let seen = lab.exchange(0, []);
        let hosts: Vec<_> = seen.iter().map(|seen| (host_of(seen), seen.payload.clone())).collect();
        let expected =
            [0, 0, 1, 1, 2, 2].into_iter().zip([b"1", b"2"].into_iter().cycle()).map(|(h, p)| (h, p.to_vec()));
        assert_eq!(hosts, expected.collect::<Vec<_>>());
        assert_eq!((lab.decisions("recalled"), lab.decisions("guessed"), lab.desk.answers.asked()), (3, 0, 0));
        assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Established));
    });
}

#[test]
fn a_recalled_session_goes_to_its_own_endpoint_or_nowhere() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        // Two endpoints of one host, which only their ports tell apart.
        if mode == Mode::Nat {
            lab.change(|parts| {
                let address = family.host(1);
                let twin = &mut parts.endpoints[endpoint(family, 0, 1).index()];
                (twin.host, twin.address, twin.port) = (HostId(1), address, Some(7_999));
            });
        }
        learn(&lab, family, 1, 1);
        learn(&lab, family, 2, 2);
        let seen = lab.forward(data(family, 1, HTTP, b""));
        let there = &lab.parts.endpoints[endpoint(family, 0, 1).index()];
        if mode == Mode::Nat {
            assert_eq!((seen.destination.ip(), Some(seen.destination.port())), (there.address, there.port));
        }
        lab.change(|parts| parts.endpoints[endpoint(family, 0, 2).index()].directive = Directive::Inactive);
        assert!(lab.exchange(0, [data(family, 2, HTTP, b"")]).is_empty());
        assert_eq!((lab.dropped(DropReason::Inactive), lab.decisions("guessed")), (1, 0));
        assert!(lab.state(family.client(2), family.vip(HTTP)).is_none());
    });
}

#[test]
fn what_nobody_knows_is_guessed_alike_by_every_classifier() {
    everywhere(|mode, family| {
        let guess = |seed_clients: std::ops::Range<u16>, late: bool| {
            let mut lab = Lab::new(Setup { classifiers: if late { 3 } else { 1 }, ..Setup::new(mode) });
            lab.memory.answers.later(late);
            lab.memory.answers.release(if late { usize::MAX / 2 } else { 0 });
            let hosts: Vec<_> = seed_clients.map(|n| host_of(&lab.forward(data(family, n, HTTP, b"?")))).collect();
            assert_eq!((lab.decisions("guessed"), lab.desk.answers.asked()), (hosts.len() as u64, 0));
            hosts
        };
        let hosts = guess(0..60, false);
        assert_eq!(hosts, guess(0..60, true));
        assert!((0..3).all(|host| hosts.contains(&host)), "{hosts:?}");
    });
}

#[test]
fn made_up_segments_drive_no_connection_out() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { routes: 32 * per_flow(mode), sessions: 64, ..Setup::new(mode) });
        for n in 0..8 {
            lab.forward(syn(family, n, HTTP));
            lab.forward(data(family, n, HTTP, b"established"));
        }
        // Newer than what they would have to drive out, and four times as many as there is room for.
        lab.pass(500);
        for n in 100..228 {
            lab.exchange(0, [data(family, n, HTTP, b"made up")]);
        }
        assert!(lab.count("routes_evicted") > 0);
        let diverted = lab.count("diverted");
        for n in 0..8 {
            lab.forward(data(family, n, HTTP, b"goes on"));
        }
        assert_eq!(lab.count("diverted"), diverted);
        // Who says more is known from then on.
        lab.exchange(0, [data(family, 300, HTTP, b"once")]);
        lab.forward(data(family, 300, HTTP, b"twice"));
        assert_eq!(lab.state(family.client(300), family.vip(HTTP)), Some(State::Established));
    });
}

#[test]
fn the_last_words_of_unknown_connections_make_no_route() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        for frame in [fin(family, 1, HTTP), rst(family, 2, HTTP)] {
            // In full-nat nobody knows by which port the host has known it.
            let sent = if mode == Mode::FullNat { 0 } else { 1 };
            assert_eq!(lab.exchange(0, [frame]).len(), sent);
        }
        assert!(lab.routes().is_empty());
        assert_eq!((lab.decisions("guessed"), lab.decisions("inventory")), (2, 0));
    });
}

#[test]
fn datagrams_of_one_flow_cost_one_token() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let ask = |n: u8| frames::datagram(MACS[0], family.client(1), family.vip(DNS), &[n]);
        lab.memory.answers.later(true);
        lab.desk.answers.later(true);
        assert!(lab.exchange(0, [ask(0), ask(1)]).is_empty());
        // The session table has no answer; then the allotment is waited for.
        lab.memory.answers.release(1);
        assert!(lab.exchange(0, [ask(2)]).is_empty());
        assert_eq!((lab.desk.answers.asked(), lab.held()), (1, 3));
        lab.desk.answers.release(1);
        let seen = lab.exchange(0, []);
        assert_eq!(seen.iter().map(|seen| seen.payload[0]).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(lab.state(family.client(1), family.vip(DNS)), Some(State::Datagram));
        assert_eq!(lab.forward(ask(3)).mac, seen[0].mac);
        assert_eq!(lab.decisions("decided"), 1);
    });
}

#[test]
fn what_no_service_has_is_refused() {
    everywhere(|_, family| {
        let mut lab = Lab::plain(Mode::Nat);
        let udp = |port| frames::datagram(MACS[0], family.client(1), family.vip(port), b"");
        assert!(lab.exchange(0, [syn(family, 1, 81), udp(HTTP), udp(54)]).is_empty());
        assert_eq!((lab.dropped(DropReason::NoService), lab.decisions("no_service")), (3, 3));
        assert!(lab.routes().is_empty());
    });
}
