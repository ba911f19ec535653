//! Fragments between IPv4 and IPv6, in full-nat: they stay fragments of one datagram, and what its sender allows is taken to pieces.

use weir_dataplane::counters::DropReason;
use weir_dataplane::route_table::Mode;
use weir_dataplane::wire::tcp::Flags;

use crate::frames::{self, Seen, fragments, reassembled, without_df};
use crate::full_nat::{sends, told, too_big};
use crate::lab::{DNS, Family, HTTP, Lab, MACS, Setup};
use crate::nat::{answer, back, connect};

/// Runs a test with clients of each family and hosts of the other.
fn across(test: impl Fn(Family, Family)) {
    test(Family::V4, Family::V6);
    test(Family::V6, Family::V4);
}

fn lab(shards: usize) -> Lab {
    Lab::new(Setup { classifiers: 2, ..Setup::new(Mode::FullNat).across().sharded(shards) })
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + size) as u8).collect()
}

/// What has left: how many frames, the longest of their IP packets, and the datagram that they are together.
#[track_caller]
fn arrived(lab: &Lab) -> (usize, usize, Seen) {
    lab.check();
    let raw = lab.wire.raw();
    let frames: Vec<_> = raw.iter().map(|(.., frame)| frame.clone()).collect();
    assert!(!frames.is_empty(), "{:?}", lab.drops());
    let whole = if frames.len() == 1 { frames[0].clone() } else { reassembled(&frames) };
    let longest = frames.iter().map(|frame| frame.len() - 14).max().unwrap();
    (frames.len(), longest, Seen::of(raw[0].0, raw[0].1, &whole))
}

#[test]
fn in_any_order_by_any_queue_a_datagram_arrives_whole() {
    across(|family, hosts| {
        let mut lab = lab(4);
        for (round, order) in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]].into_iter().enumerate() {
            for client in 0..8 {
                let id = 0xabc0_0000 | (u32::from(client) * 10 + round as u32);
                let question = frames::datagram(MACS[0], family.client(client), family.vip(DNS), &pattern(4000));
                let parts = fragments(&question, id, 1200);
                for (queue, at) in order.into_iter().enumerate() {
                    lab.arrive(queue, 0, &parts[at]);
                    if round % 2 == 1 {
                        lab.run();
                    }
                }
                lab.run();
                let (count, _, there) = arrived(&lab);
                assert_eq!((count, there.port, there.payload == pattern(4000)), (4, 1, true));
                assert!(hosts.pool().contains(&there.source.ip()));
                let reply = fragments(&answer(&there, Flags::NONE, &pattern(3999)), id, 1200);
                for (queue, at) in order.into_iter().enumerate() {
                    lab.arrive(queue, 1, &reply[at]);
                }
                lab.run();
                let (count, _, here) = arrived(&lab);
                assert_eq!((count, here.payload == pattern(3999)), (4, true));
                assert_eq!((here.source, here.destination), (family.vip(DNS), family.client(client)));
            }
        }
        assert_eq!((lab.held(), lab.count("datagrams_completed"), lab.count("fragments")), (0, 64, 256));
        // The same of a connection.
        let opened = connect(&mut lab, family, 9);
        let long = frames::segment(MACS[0], family.client(9), family.vip(HTTP), Flags::ACK, &pattern(2000));
        for part in [2, 0, 1] {
            lab.arrive(part, 0, &fragments(&long, 5, 800)[part]);
        }
        lab.run();
        let (_, _, seen) = arrived(&lab);
        assert_eq!((seen.source, seen.payload), (opened.source, pattern(2000)));
    });
}

#[test]
fn an_ipv4_packet_without_df_goes_on_in_pieces() {
    // To a host the link alone counts; a client may be behind the narrowest way that IPv6 knows.
    for (family, most) in [(Family::V4, 1500), (Family::V6, 1280)] {
        let mut lab = lab(3);
        let opened = lab.forward(frames::datagram(MACS[0], family.client(1), family.vip(DNS), b"first"));
        let port = usize::from(family == Family::V6);
        let frame = |payload: &[u8]| match family {
            Family::V4 => frames::datagram(MACS[0], family.client(1), family.vip(DNS), payload),
            Family::V6 => answer(&opened, Flags::NONE, payload),
        };
        let expect = |lab: &mut Lab, frames: &[Vec<u8>], payload: &[u8], count| {
            frames.iter().for_each(|frame| lab.arrive(0, port, frame));
            lab.run();
            let (pieces, longest, seen) = arrived(lab);
            assert_eq!((pieces, seen.payload == payload), (count, true), "longest {longest}");
            assert!(longest <= most, "{longest}");
        };
        // What fits is not touched: it gets no fragment header (RFC 7915 section 4.1 of atomic fragments).
        let fits = pattern(most - 48);
        expect(&mut lab, &[without_df(&frame(&fits), 7)], &fits, 1);
        let longer = pattern(most - 47);
        expect(&mut lab, &[without_df(&frame(&longer), 8)], &longer, 2);
        // One without a checksum gets it before it is taken to pieces; its fragments come too late for that.
        let mut bare = without_df(&frame(&pattern(1472)), 9);
        bare[40..42].fill(0);
        expect(&mut lab, std::slice::from_ref(&bare), &pattern(1472), 2);
        for piece in fragments(&bare, 10, 1200) {
            lab.arrive(0, port, &piece);
        }
        lab.run();
        lab.check();
        assert_eq!((lab.wire.raw().len(), lab.dropped(DropReason::NoChecksum)), (1, 1));
        // A full link's fragments are too long with their new header, and become smaller ones.
        let split = lab.count("split");
        let parts = fragments(&frame(&pattern(4000)), 11, 1480);
        expect(&mut lab, &parts, &pattern(4000), 5);
        assert!(lab.count("split") > split);
        assert_eq!(lab.count("told_too_big"), 0);
    }
}

#[test]
fn an_ipv6_fragment_goes_on_in_smaller_ones() {
    for family in [Family::V6, Family::V4] {
        let mut setup = Setup::new(Mode::FullNat).across();
        let port = usize::from(family == Family::V4);
        setup.parts.ports[1 - port].mtu = 1000;
        let mut lab = Lab::new(setup);
        let opened = lab.forward(frames::datagram(MACS[0], family.client(1), family.vip(DNS), b"first"));
        let frame = |payload: &[u8]| match family {
            Family::V6 => frames::datagram(MACS[0], family.client(1), family.vip(DNS), payload),
            Family::V4 => answer(&opened, Flags::NONE, payload),
        };
        for (payload, piece, count) in [(4000, 1448, 6), (1200, 2000, 2), (900, 2000, 1)] {
            for part in fragments(&frame(&pattern(payload)), 0xabcd_0001, piece) {
                lab.arrive(0, port, &part);
            }
            lab.run();
            let (pieces, longest, seen) = arrived(&lab);
            assert_eq!((pieces, seen.payload == pattern(payload)), (count, true));
            assert!(longest <= 1000);
        }
        assert_eq!(lab.count("told_too_big"), 0);
        // A packet that is no fragment must not become one: its sender hears of it.
        let sent = sends(&mut lab, port, &frame(&pattern(1200)));
        assert_eq!(told(&sent[0].1, if port == 0 { family.client(1) } else { opened.destination }.ip()), 1280);
    }
}

#[test]
fn with_df_a_fragment_is_told_its_room() {
    let family = Family::V4;
    let mut lab = lab(1);
    lab.forward(frames::datagram(MACS[0], family.client(1), family.vip(DNS), b"first"));
    let mut part = fragments(&frames::datagram(MACS[0], family.client(1), family.vip(DNS), &pattern(2000)), 1, 1480);
    part.truncate(1);
    part[0][20] |= 0x40;
    frames::set_header_checksum(&mut part[0]);
    let sent = sends(&mut lab, 0, &part[0]);
    assert_eq!((sent.len(), told(&sent[0].1, family.client(1).ip())), (1, 1472));
}

#[test]
fn an_error_about_a_fragment_goes_back_to_its_sender() {
    across(|family, hosts| {
        let mut lab = lab(3);
        let opened = connect(&mut lab, family, 1);
        // Their new header is eight bytes longer in IPv6, and so is the difference in what they are told.
        let shift = if hosts == Family::V6 { 1400 - 28 } else { 1400 + 28 };
        let request = frames::segment(MACS[0], family.client(1), family.vip(HTTP), Flags::ACK, &pattern(2000));
        let part = fragments(&request, 0x77, 1200).remove(0);
        let at_host = sends(&mut lab, 0, &part).pop().unwrap().1;
        let (port, error) = sends(&mut lab, 1, &too_big(&at_host, MACS[1])).pop().unwrap();
        assert_eq!((port, told(&error, family.client(1).ip())), (0, shift));
        // It quotes that very fragment, from the IP header on.
        quotes(&error, &part);
        let reply = frames::segment(MACS[1], opened.destination, opened.source, Flags::ACK, &pattern(2000));
        let part = fragments(&reply, 0x78, 1200).remove(0);
        let at_client = sends(&mut lab, 1, &part).pop().unwrap().1;
        let (port, error) = sends(&mut lab, 0, &too_big(&at_client, MACS[0])).pop().unwrap();
        assert_eq!((port, told(&error, opened.destination.ip())), (1, 2800 - shift));
        quotes(&error, &part);
        back(&mut lab, answer(&opened, Flags::ACK, b"goes on"));
    });
}

/// The error quotes the fragment as it was sent, but for a hop less to live and what that makes of a header's checksum.
#[track_caller]
fn quotes(error: &[u8], sent: &[u8]) {
    let v4 = error[12..14] == [8, 0];
    let (start, ttl, headers) = if v4 { (14 + 28, 8, 40) } else { (14 + 48, 7, 68) };
    let mut quoted = error[start..].to_vec();
    assert_eq!(quoted[ttl] + 1, sent[14 + ttl]);
    quoted[ttl] += 1;
    if v4 {
        quoted[10..12].copy_from_slice(&sent[24..26]);
    }
    assert!(quoted.len() >= headers);
    assert_eq!(quoted, sent[14..14 + quoted.len()]);
}
