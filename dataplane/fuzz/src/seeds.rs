//! Seeds for the targets: at least one for each thing that they are to find their way into.

use std::net::IpAddr;

use weir_dataplane::wire::tcp::Flags;

use crate::Kind::{self, Answer, Error, Given, Mended};
use crate::lab::{DNS, Family, HTTP, MACS};
use crate::unit::{MODES, NARROW, PORTLESS, RESETS, VLANS};
use crate::{encode, frames};

/// Seeds for the targets: their names and bytes.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for family in [Family::V4, Family::V6] {
        let client = family.client(1);
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
        let large = frames::datagram(MACS[0], client, family.vip(DNS), &[9; 1460]);
        let pieces = frames::fragments(&frames::datagram(MACS[0], client, family.vip(DNS), &[3; 300]), 9, 96);
        let runs = Runs { segment: &segment, datagram: &datagram, large: &large, pieces: &pieces, echo: &echo };
        for (number, (mode, ..)) in (0u8..).zip(MODES) {
            let nat = mode.contains("nat");
            let mut add = |name: &str, bits: u8, arrivals: &[(u8, Kind, Vec<u8>)]| {
                let name = format!("{mode}-{name}-{family:?}").to_lowercase();
                seeds.push(("unit", name, encode(number | bits, arrivals)));
            };
            add("connection", 0, &runs.connection(&error, nat));
            add("others", NARROW, &runs.others(nat));
            add("fragments", 0, &runs.fragments(nat));
            add("full", RESETS, &runs.full());
            add("vlans", VLANS, &tagged_all(runs.connection(&error, nat)));
            let overlap = [
                (4, Given, pieces[1].clone()),
                (4, Given, frames::fragments(&datagram, 9, 64)[1].clone()),
                (8, Given, pieces[0].clone()),
            ];
            add("overlap", 0, &overlap);
            if !mode.starts_with("full") {
                let esp = |protocol| {
                    let addresses = frames::addresses(client.ip(), family.vip(0).ip());
                    frames::frame(MACS[0], addresses, weir_dataplane::wire::Protocol(protocol), &[protocol; 100])
                };
                let run = [
                    (4, Given, esp(50)),
                    (7, Answer, vec![]),
                    (4, Given, esp(47)),
                    (6, Error, vec![3, 4, 0, 0, 4, 0, 0, 0]),
                ];
                add("portless", PORTLESS, &run);
            }
        }
    }
    seeds.extend(envelopes());
    seeds
}

/// What the runs are made of.
struct Runs<'a> {
    segment: &'a dyn Fn(Flags, &[u8]) -> Vec<u8>,
    datagram: &'a [u8],
    large: &'a [u8],
    pieces: &'a [Vec<u8>],
    echo: &'a [u8],
}

/// "Too big" for 1280 bytes, "time exceeded" and "unreachable", as both families have them.
const ERRORS: [[u8; 8]; 5] = [
    [3, 4, 0, 0, 5, 0, 0, 0],
    [2, 0, 0, 0, 5, 0, 0, 0],
    [11, 0, 0, 0, 0, 0, 7, 0],
    [3, 0, 0, 0, 0, 0, 0, 1],
    [1, 4, 0, 0, 0, 0, 14, 1],
];

impl Runs<'_> {
    /// A handshake with its answers, errors about both directions, the end, and a new one.
    fn connection(&self, error: &[u8], nat: bool) -> Vec<(u8, Kind, Vec<u8>)> {
        let mut run = vec![(4, Given, (self.segment)(Flags::SYN, b""))];
        // SYN-ACK out of the SYN.
        let mut change = vec![0; if self.segment_is_v4() { 34 } else { 54 }];
        change[if self.segment_is_v4() { 33 } else { 53 }] = 0x10;
        run.extend(nat.then(|| (7, Answer, change)));
        run.push((4, Given, (self.segment)(Flags::ACK, b"hello")));
        run.extend(ERRORS.iter().flat_map(|bytes| [(6, Error, bytes.to_vec()), (4, Error, bytes.to_vec())]));
        run.push((4, Mended, error.to_vec()));
        run.push((5, Given, (self.segment)(Flags::ACK | Flags::FIN, b"")));
        run.push((4, Given, (self.segment)(Flags::SYN, b"")));
        run
    }

    fn segment_is_v4(&self) -> bool {
        (self.segment)(Flags::SYN, b"")[12..14] == [8, 0]
    }

    /// Datagrams, too large ones, echo, and one after the end of its flow.
    fn others(&self, nat: bool) -> Vec<(u8, Kind, Vec<u8>)> {
        let mut run = vec![(4, Given, self.datagram.to_vec())];
        run.extend(nat.then(|| (6, Answer, vec![])));
        run.push((4, Given, self.large.to_vec()));
        run.extend(ERRORS.iter().map(|bytes| (6, Error, bytes.to_vec())));
        run.extend([(5, Mended, self.echo.to_vec()), (255, Given, self.datagram.to_vec())]);
        run
    }

    /// A datagram's fragments in another order by other queues, and the answer's.
    fn fragments(&self, nat: bool) -> Vec<(u8, Kind, Vec<u8>)> {
        let mut run: Vec<_> = [2, 0, 3, 1].map(|at| (4 + at as u8 % 2, Given, self.pieces[at].clone())).into();
        run.extend(nat.then(|| (7, Answer, vec![])));
        run.push((6, Error, ERRORS[0].to_vec()));
        run
    }

    /// More connections than there are places and ports.
    fn full(&self) -> Vec<(u8, Kind, Vec<u8>)> {
        let mut run = Vec::new();
        for n in 0..24u8 {
            let mut frame = (self.segment)(Flags::SYN, b"");
            let at = if self.segment_is_v4() { 35 } else { 55 };
            frame[at] = n;
            run.push((4 + n % 2, Given, frame));
        }
        run
    }
}

/// The same run in a VLAN, as far as it says what arrives.
fn tagged_all(mut run: Vec<(u8, Kind, Vec<u8>)>) -> Vec<(u8, Kind, Vec<u8>)> {
    run.iter_mut().filter(|(_, kind, _)| matches!(kind, Given | Mended)).for_each(|(.., frame)| {
        frame.splice(12..12, [0x81, 0, 0, 7]);
    });
    run
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
