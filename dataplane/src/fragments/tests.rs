//! Properties of the fragment table: every permutation comes out once and whole, no overlap passes, nothing leaks.

use crate::flow::{Owners, ToeplitzKey};
use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

const UDP: u8 = protocol::UDP;
const PORTS: [u8; 4] = [0x30, 0x39, 0, 53];

/// A packet that says where it has been freed.
#[derive(Debug)]
struct Buffer {
    fragment: Fragment,
    in_use: Rc<RefCell<usize>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        *self.in_use.borrow_mut() -= 1;
    }
}

#[derive(Default)]
struct Pool(Rc<RefCell<usize>>);

impl Pool {
    fn buffer(&self, fragment: Fragment) -> Buffer {
        *self.0.borrow_mut() += 1;
        Buffer { fragment, in_use: Rc::clone(&self.0) }
    }

    fn in_use(&self) -> usize {
        *self.0.borrow()
    }
}

fn key(v6: bool, host: u8, ports: [u8; 4], protocol: u8) -> Key {
    if v6 {
        let mut source = [0; 16];
        source[15] = host;
        Key::V6(Key6 { source, destination: [9; 16], ports, protocol })
    } else {
        Key::V4(Key4 { source: [10, 0, 0, host], destination: [10, 9, 0, 1], ports, protocol })
    }
}

fn fragment(id: u32, offset: u16, len: u16, more: bool) -> Fragment {
    Fragment { id, offset, more, len }
}

/// What came out of a table, of one datagram: in order, first fragments included, with the key by which it goes on.
struct Bench {
    table: FragmentTable<Buffer>,
    pool: Pool,
    gone_on: Vec<(Key, Fragment)>,
    dropped: Vec<DropReason>,
}

impl Bench {
    fn new(datagrams: u32, held: u32) -> Self {
        Self {
            table: FragmentTable::new(7, Limits { datagrams, held }),
            pool: Pool::default(),
            gone_on: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Offers a fragment as the forwarder would; the key of what is released is the first fragment's.
    fn offer(&mut self, key: Key, fragment: Fragment, now: u64) {
        let now = Moment(now);
        let buffer = self.pool.buffer(fragment);
        let (gone_on, dropped) = (&mut self.gone_on, &mut self.dropped);
        if fragment.offset == 0 {
            let mut after = Vec::new();
            let verdict = self.table.first(&key, fragment, now, |left| match left {
                Left::Released(packet) => after.push((key, packet.fragment)),
                Left::Drop(_, reason) => dropped.push(reason),
            });
            match verdict {
                Ok(()) => gone_on.push((key, fragment)),
                Err(reason) => dropped.push(reason),
            }
            gone_on.extend(after);
            drop(buffer); // a first fragment stays with the caller
        } else {
            let key = with_ports(&key, [0; 4], key.protocol());
            let mut left_too = Vec::new();
            let later = self.table.later(&key, fragment, now, buffer, |left| match left {
                Left::Released(packet) => panic!("{packet:?} goes on without its first fragment"),
                Left::Drop(_, reason) => left_too.push(reason),
            });
            dropped.extend(left_too);
            match later {
                Later::Flow(key, packet) => gone_on.push((key, packet.fragment)),
                Later::Held => {}
                Later::Drop(_, reason) => dropped.push(reason),
            }
        }
        assert_eq!(self.pool.in_use(), self.table.held(), "a buffer leaked or was freed twice");
    }

    fn expire(&mut self, now: u64, count: usize) -> usize {
        let dropped = &mut self.dropped;
        let expired = self.table.expire(Moment(now), count, |left| match left {
            Left::Released(packet) => panic!("{packet:?} goes on after its time"),
            Left::Drop(_, reason) => dropped.push(reason),
        });
        assert_eq!(self.pool.in_use(), self.table.held());
        expired
    }
}

#[test]
fn later_fragments_follow_the_first() {
    let mut bench = Bench::new(4, 4);
    let key = key(false, 2, PORTS, UDP);
    bench.offer(key, fragment(1, 0, 1480, true), 0);
    bench.offer(key, fragment(1, 1480, 1480, true), 1);
    assert_eq!(bench.table.len(), 1);
    bench.offer(key, fragment(1, 2960, 5, false), 2);
    assert_eq!(bench.gone_on.len(), 3);
    assert!(bench.gone_on.iter().all(|(found, _)| *found == key), "all have the ports");
    assert!(bench.table.is_empty() && bench.table.counters().completed == 1);
}

#[test]
fn early_ones_wait_and_keep_their_order() {
    let mut bench = Bench::new(4, 4);
    let key = key(true, 2, PORTS, UDP);
    let parts = [fragment(1, 2464, 8, false), fragment(1, 1232, 1232, true), fragment(1, 0, 1232, true)];
    bench.offer(key, parts[0], 0);
    bench.offer(key, parts[1], 0);
    assert_eq!((bench.table.held(), bench.gone_on.len()), (2, 0));
    bench.offer(key, parts[2], 0);
    let order: Vec<_> = bench.gone_on.iter().map(|(_, fragment)| *fragment).collect();
    assert_eq!(order, [parts[2], parts[0], parts[1]]);
    assert!(bench.table.is_empty());
}

#[test]
fn the_first_names_the_protocol_in_ipv6_alone() {
    let mut bench = Bench::new(4, 4);
    bench.offer(key(true, 2, PORTS, UDP), fragment(1, 0, 1232, true), 0);
    bench.offer(key(true, 2, PORTS, protocol::TCP), fragment(1, 1232, 8, false), 0);
    assert_eq!(bench.gone_on[1].0, key(true, 2, PORTS, UDP));
    bench.offer(key(false, 2, PORTS, UDP), fragment(1, 0, 1232, true), 0);
    bench.offer(key(false, 2, PORTS, protocol::TCP), fragment(1, 1232, 8, false), 0);
    assert_eq!((bench.gone_on.len(), bench.table.held(), bench.table.len()), (3, 1, 2), "two IPv4 datagrams");
}

#[test]
fn an_overlap_kills_the_datagram_and_a_duplicate_does_not() {
    let mut bench = Bench::new(4, 4);
    let key = key(false, 2, PORTS, UDP);
    bench.offer(key, fragment(1, 16, 8, true), 0);
    bench.offer(key, fragment(1, 16, 8, true), 0);
    assert_eq!((bench.dropped.len(), bench.table.held(), bench.table.counters().duplicates), (1, 1, 1));
    bench.offer(key, fragment(1, 0, 24, true), 0);
    assert_eq!(bench.dropped, [DropReason::BadFragment; 3], "the first, and the one that waited");
    bench.offer(key, fragment(1, 24, 8, false), 0);
    bench.offer(key, fragment(1, 0, 8, true), 0);
    assert_eq!(bench.dropped, [DropReason::BadFragment; 5]);
    assert_eq!((bench.gone_on.len(), bench.table.counters().killed, bench.table.len()), (0, 1, 1));
    bench.offer(key, fragment(1, 0, 8, true), 30_000);
    assert_eq!(bench.gone_on.len(), 1, "the identification can be used again");
}

#[test]
fn contradicting_ends_kill() {
    let udp = key(false, 2, PORTS, UDP);
    for second in [
        fragment(1, 24, 8, false),    // another end
        fragment(1, 16, 8, true),     // the end goes on
        fragment(1, 32, 8, true),     // beyond the end
        fragment(1, 8, 7, true),      // not a multiple of 8
        fragment(1, 8, 0, true),      // nothing
        fragment(1, 65528, 8, false), // beyond the largest datagram
    ] {
        let mut bench = Bench::new(4, 4);
        bench.offer(udp, fragment(1, 16, 8, false), 0);
        bench.offer(udp, second, 0);
        assert_eq!((bench.dropped.len(), bench.table.counters().killed), (2, 1), "{second:?}");
    }
    let mut bench = Bench::new(4, 4);
    bench.offer(udp, fragment(1, 32, 8, true), 0);
    bench.offer(udp, fragment(1, 16, 8, false), 0);
    assert_eq!(bench.table.counters().killed, 1, "an end before what has been seen");
}

#[test]
fn what_cannot_be_served_leaves_no_trace() {
    let mut bench = Bench::new(4, 4);
    bench.offer(key(false, 2, PORTS, protocol::TCP), fragment(1, 8, 8, true), 0);
    assert_eq!(bench.dropped, [DropReason::BadFragment], "RFC 1858's trick");
    bench.offer(key(false, 2, [0; 4], protocol::ICMP), fragment(1, 0, 8, true), 0);
    bench.offer(key(false, 2, [0; 4], protocol::ICMP), fragment(1, 8, 8, true), 0);
    assert_eq!(bench.dropped[1..], [DropReason::Fragment; 2]);
    bench.offer(key(false, 2, PORTS, UDP), fragment(1, 0, 8, false), 0);
    assert!(bench.table.is_empty() && bench.gone_on.is_empty());
}

#[test]
fn too_many_fragments_kill() {
    let mut bench = Bench::new(4, 4);
    let key = key(false, 2, PORTS, UDP);
    for part in 0..=u16::try_from(MAX_FRAGMENTS).unwrap() {
        bench.offer(key, fragment(1, part * 8, 8, true), 0);
    }
    assert_eq!((bench.gone_on.len(), bench.table.counters().killed), (MAX_FRAGMENTS, 1));
}

#[test]
fn each_family_has_its_timeout() {
    let mut bench = Bench::new(8, 8);
    bench.offer(key(true, 2, PORTS, UDP), fragment(1, 8, 8, true), 0);
    for id in 0..3 {
        bench.offer(key(false, 2, PORTS, UDP), fragment(id, 8, 8, true), 10);
    }
    assert_eq!(bench.expire(30_009, 10), 0);
    assert_eq!((bench.expire(30_010, 2), bench.table.len()), (2, 2), "no more than were asked for");
    assert_eq!((bench.expire(59_999, 10), bench.expire(60_000, 10), bench.table.held()), (1, 1, 0));
    assert_eq!(bench.dropped, [DropReason::Fragment; 4]);
}

#[test]
fn a_full_table_gives_up_its_oldest() {
    let mut bench = Bench::new(3, 2);
    let from = |host| key(host % 2 == 0, host, PORTS, UDP);
    bench.offer(from(1), fragment(1, 0, 8, true), 0);
    bench.offer(from(2), fragment(1, 8, 8, true), 1);
    bench.offer(from(3), fragment(1, 8, 8, true), 2);
    bench.offer(from(3), fragment(1, 16, 8, true), 3);
    assert_eq!(bench.dropped, [DropReason::FragmentTable], "no place to wait: host 2 was first");
    assert_eq!((bench.table.len(), bench.table.held()), (2, 2));
    bench.offer(from(3), fragment(1, 24, 8, true), 4);
    assert_eq!(bench.dropped, [DropReason::FragmentTable; 4], "host 3's own are the oldest now");
    for host in 4..7 {
        bench.offer(from(host), fragment(1, 0, 8, true), 5);
    }
    assert_eq!((bench.table.len(), bench.table.counters().evicted), (3, 3));
    bench.offer(from(1), fragment(1, 8, 8, false), 6);
    assert_eq!(bench.table.held(), 1, "host 1's ports are forgotten");
}

#[test]
fn one_client_has_one_owner() {
    let owners = Owners::new(&ToeplitzKey::from_seed(3), 128);
    for v6 in [false, true] {
        let to_vip = key(v6, 5, PORTS, UDP);
        let later = key(v6, 5, [0; 4], protocol::TCP);
        assert_eq!(owners.of_fragments(&to_vip, true), owners.of_fragments(&later, true));
        assert_eq!(owners.of_fragments(&to_vip, true), owners.of_fragments(&later.reversed(), false));
        assert_ne!(owners.of_fragments(&to_vip, true), owners.of_fragments(&key(v6, 6, PORTS, UDP), true));
    }
}

/// A datagram cut into fragments, in any order, some of them twice.
fn cut() -> impl Strategy<Value = (Vec<Fragment>, Vec<Fragment>)> {
    (prop::collection::vec(1u16..200, 1..40), 1u16..9).prop_flat_map(|(lengths, last)| {
        let mut parts = Vec::new();
        let mut offset = 0;
        for length in lengths {
            parts.push(fragment(77, offset, length * 8, true));
            offset += length * 8;
        }
        parts.push(fragment(77, offset, last, false));
        let again = prop::collection::vec(0..parts.len(), 0..5);
        (Just(parts.clone()).prop_shuffle(), again).prop_map(move |(mut order, again)| {
            // A copy of what comes last would make the datagram complete before, and begin another one.
            let last = order[order.len() - 1];
            let copies: Vec<_> = again.iter().map(|at| parts[*at]).filter(|part| *part != last).collect();
            order.splice(0..0, copies);
            (parts.clone(), order)
        })
    })
}

proptest! {
    #[test]
    fn any_order_comes_out_once_and_whole((parts, order) in cut(), v6: bool) {
        let mut bench = Bench::new(2, 64);
        let key = key(v6, 2, PORTS, UDP);
        for part in &order {
            bench.offer(key, *part, 0);
        }
        prop_assert!(bench.gone_on.iter().all(|(found, _)| *found == key));
        let mut out: Vec<_> = bench.gone_on.iter().map(|(_, fragment)| *fragment).collect();
        out.sort_by_key(|fragment| fragment.offset);
        prop_assert_eq!(&out, &parts);
        prop_assert_eq!(bench.dropped.len(), order.len() - parts.len(), "only duplicates");
        prop_assert!(bench.table.is_empty());
    }

    #[test]
    fn no_two_payloads(parts in prop::collection::vec((0u16..24, 1u16..6, any::<bool>()), 1..60)) {
        let mut bench = Bench::new(2, 8);
        let key = key(false, 2, PORTS, UDP);
        let mut seen = [false; 300];
        let mut until = 0;
        for (offset, length, more) in parts {
            bench.offer(key, fragment(1, offset * 8, length * 8, more), 0);
            for (_, Fragment { offset, len, .. }) in bench.gone_on.drain(..) {
                for byte in &mut seen[usize::from(offset)..usize::from(offset + len)] {
                    prop_assert!(!std::mem::replace(byte, true), "a byte of {}+{} went on twice", offset, len);
                }
                until = until.max(offset + len);
            }
            if bench.table.counters().completed > 0 {
                prop_assert!(seen[..usize::from(until)].iter().all(|seen| *seen), "complete with a hole");
                break; // the next is another datagram
            }
        }
    }

    #[test]
    fn floods_are_bounded_and_leak_nothing(
        packets in prop::collection::vec((any::<bool>(), 0u8..4, 0u32..12, 0u16..6, any::<bool>(), 0u64..4000), 1..400),
        datagrams in 1u32..8,
        held in 1u32..8,
    ) {
        let mut bench = Bench::new(datagrams, held);
        let mut now = 0;
        for (at, (v6, host, id, offset, more, step)) in packets.iter().copied().enumerate() {
            now += step;
            bench.offer(key(v6, host, PORTS, UDP), fragment(id, offset * 8, 8, more), now);
            prop_assert!(bench.table.len() <= datagrams as usize && bench.table.held() <= held as usize);
            if at % 16 == 0 {
                bench.expire(now, 3);
            }
        }
        prop_assert_eq!(packets.len(), bench.gone_on.len() + bench.dropped.len() + bench.table.held(), "each has one verdict");
        bench.expire(now + 60_000, usize::MAX);
        prop_assert_eq!((bench.table.len(), bench.table.held()), (0, 0));
        prop_assert_eq!(packets.len(), bench.gone_on.len() + bench.dropped.len());
        prop_assert_eq!(bench.table.waiting.head, NONE);
        // Every place is free again, and each once.
        let mut free = 0;
        let mut at = bench.table.free;
        while at != NONE {
            free += 1;
            at = bench.table.datagrams[at as usize].chain;
            prop_assert!(free <= datagrams);
        }
        prop_assert_eq!(free, datagrams);
    }
}
