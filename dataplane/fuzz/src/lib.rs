//! What the fuzz targets share: the tests' unit on heap buffers, and inputs that are a run of frames with time between them.

#![allow(missing_docs, reason = "the modules are those of the tests")]
#![allow(dead_code, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "as in the tests")]

#[path = "../../tests/forwarding/frames.rs"]
mod frames;
#[path = "../../tests/forwarding/lab.rs"]
mod lab;
#[path = "../../tests/forwarding/sessions.rs"]
mod sessions;

use std::net::{IpAddr, SocketAddr};

use weir_dataplane::fragments::TIMEOUT_V6;
use weir_dataplane::route_table::Mode;
use weir_dataplane::tunneler::Tunnel;
use weir_dataplane::wire::tcp::Flags;

use self::lab::{DNS, Family, HTTP, Lab, MACS, Setup};

/// Modes by the input's first byte.
const MODES: [Mode; 4] = [Mode::Dsr, Mode::Nat, Mode::Ipip, Mode::Gue];

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Shard 0 or 1, by the lowest bit; port 0 or 1 by the next; the others are time that has passed, in 100 ms.
    pub place: u8,
    pub frame: Vec<u8>,
}

/// A run: mode, then for each arrival its place, its length (two bytes, little-endian) and its frame.
pub fn decode(bytes: &[u8]) -> Option<(Mode, Vec<Arrival>)> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut arrivals = Vec::new();
    while let Some((&[place, low, high], frames)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([low, high])) % 2048;
        let (frame, others) = frames.split_at(length.min(frames.len()));
        arrivals.push(Arrival { place, frame: frame.to_vec() });
        rest = others;
    }
    Some((MODES[usize::from(first) % MODES.len()], arrivals))
}

fn encode(mode: u8, arrivals: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![mode];
    for (place, frame) in arrivals {
        bytes.push(*place);
        bytes.extend((frame.len() as u16).to_le_bytes());
        bytes.extend(frame);
    }
    bytes
}

/// Lets a whole unit of two shards see a run: no panic, every packet accounted for, and at the end nothing is held.
pub fn run(bytes: &[u8]) {
    let Some((mode, arrivals)) = decode(bytes) else { return };
    let mut setup = Setup { shards: 2, routes: 16, sessions: 16, pending: 8, twins: true, ..Setup::new(mode) };
    for endpoint in &mut setup.parts.endpoints {
        let unit: IpAddr = if endpoint.address.is_ipv4() { [10, 1, 0, 1].into() } else { "fd01::1".parse().unwrap() };
        endpoint.tunnel = match mode {
            Mode::Ipip => Tunnel::ipip(unit, endpoint.address),
            Mode::Gue => Tunnel::gue(unit, endpoint.address, 6080),
            _ => None,
        };
    }
    let mut lab = Lab::new(setup);
    for Arrival { place, frame } in arrivals {
        lab.now.0 += u64::from(place >> 2) * 100;
        lab.arrive(usize::from(place & 1), usize::from(place >> 1 & 1), &frame);
        if place >> 2 != 0 {
            lab.run();
            lab.check();
        }
    }
    lab.run();
    lab.check();
    lab.now.0 += TIMEOUT_V6.as_millis() as u64;
    lab.run();
    lab.run();
    lab.check();
    assert_eq!(lab.held(), 0);
}

/// Seeds for the targets: their names and bytes.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for family in [Family::V4, Family::V6] {
        let (client, host) = (family.client(1), SocketAddr::new(family.host(1), 8000));
        let segment = |flags, payload: &[u8]| frames::segment(MACS[0], client, family.vip(HTTP), flags, payload);
        let datagram = frames::datagram(MACS[0], client, family.vip(DNS), &[7; 100]);
        let mut tagged = datagram.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        let echo = if family == Family::V4 { 1 } else { 58 };
        let echo = frames::frame(
            MACS[0],
            frames::addresses(client.ip(), family.vip(0).ip()),
            weir_dataplane::wire::Protocol(echo),
            &[if family == Family::V4 { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1],
        );
        let quoted = frames::segment(MACS[0], family.vip(HTTP), client, Flags::ACK, b"quoted");
        let kind = if family == Family::V4 { [3, 4, 0, 0, 0, 0, 5, 120] } else { [2, 0, 0, 0, 0, 0, 5, 120] };
        let error = frames::frame(
            MACS[0],
            frames::addresses(
                "203.0.113.1".parse::<IpAddr>().ok().filter(|_| family == Family::V4).unwrap_or(client.ip()),
                family.vip(0).ip(),
            ),
            weir_dataplane::wire::Protocol(if family == Family::V4 { 1 } else { 58 }),
            &[&kind, &quoted[14..]].concat(),
        );
        let single = [
            ("syn", segment(Flags::SYN, b"")),
            ("data", segment(Flags::ACK | Flags::PSH, b"GET / HTTP/1.1\r\n\r\n")),
            ("fin", segment(Flags::ACK | Flags::FIN, b"")),
            ("udp", datagram.clone()),
            ("tagged", tagged),
            ("echo", echo.clone()),
            ("error", error.clone()),
            ("fragment-first", frames::fragments(&datagram, 1, 48).swap_remove(0)),
            ("fragment-later", frames::fragments(&datagram, 1, 48).swap_remove(1)),
        ];
        for (name, frame) in single {
            seeds.push(("parse", format!("{name}-{family:?}").to_lowercase(), frame));
        }
        let answer = frames::segment(MACS[1], host, client, Flags::SYN | Flags::ACK, b"");
        let large = frames::datagram(MACS[0], client, family.vip(DNS), &[9; 1460]);
        let pieces = frames::fragments(&frames::datagram(MACS[0], client, family.vip(DNS), &[3; 300]), 9, 96);
        for (number, mode) in (0u8..).zip(["dsr", "nat", "ipip", "gue"]) {
            let connection = [
                (4, segment(Flags::SYN, b"")),
                (6, answer.clone()),
                (4, segment(Flags::ACK, b"hello")),
                (4, error.clone()),
                (5, segment(Flags::ACK | Flags::FIN, b"")),
                (4, segment(Flags::SYN, b"")),
            ];
            let others = [(4, datagram.clone()), (4, large.clone()), (5, echo.clone()), (255, datagram.clone())];
            let fragments = [2, 0, 3, 1].map(|at| (4 + at as u8 % 2, pieces[at].clone()));
            let overlap =
                [(4, pieces[1].clone()), (4, frames::fragments(&datagram, 9, 64)[1].clone()), (8, pieces[0].clone())];
            for (name, arrivals) in
                [("connection", &connection[..]), ("others", &others), ("fragments", &fragments), ("overlap", &overlap)]
            {
                seeds.push(("unit", format!("{mode}-{name}-{family:?}").to_lowercase(), encode(number, arrivals)));
            }
        }
    }
    seeds.extend(envelopes());
    seeds
}

fn envelopes() -> Vec<(&'static str, String, Vec<u8>)> {
    use weir_dataplane::flow::Key;
    use weir_dataplane::plumbing::{Ask, Envelope, Event, MAX_BYTES, Message, Notice, Plumb};
    use weir_identity::{Incarnation, UnitId};
    let key = Key::new(Family::V4.client(1), Family::V4.vip(80), 6).unwrap();
    let six = Key::new(Family::V6.client(1), Family::V6.vip(80), 6).unwrap();
    let ask = Ask { key, client: 7, opens: true, closes: false, zombie: false };
    let messages = [
        ("hello", Message::Hello { unit: UnitId(1), incarnation: Incarnation(2) }),
        ("divert", Message::Divert { cookie: 9, ask, head: vec![1; 64], after: 0 }),
        ("notice", Message::Notice { sequence: 1, notice: Notice { key: six, event: Event::Expired } }),
        ("plumb", Message::Plumb { sequence: 2, plumb: Plumb::Delete(six) }),
        ("acknowledge", Message::Acknowledge { sequence: 300 }),
        ("keepalive", Message::Keepalive),
    ];
    let bytes = |message| {
        let mut buffer = [0; MAX_BYTES];
        let envelope = Envelope { from: Incarnation(1_790_000_000_000), to: Incarnation(0), message };
        envelope.encode(&mut buffer).unwrap().to_vec()
    };
    messages.into_iter().map(|(name, message)| ("plumbing", name.to_owned(), bytes(message))).collect()
}
