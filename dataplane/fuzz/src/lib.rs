//! What the fuzz targets share: the tests' unit on heap buffers, and inputs that are a run of frames with time between them.

#![allow(missing_docs, reason = "the modules are those of the tests")]
#![allow(dead_code, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "as in the tests")]

#[path = "../../tests/forwarding/frames.rs"]
mod frames;
#[path = "../../tests/forwarding/lab.rs"]
mod lab;
mod made;
mod seeds;
#[path = "../../tests/forwarding/sessions.rs"]
mod sessions;
mod unit;

use weir_dataplane::fragments::TIMEOUT_V6;

use self::lab::{Lab, MACS};
pub use self::seeds::seeds;

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Shard 0 or 1, by the lowest bit; port 0 or 1 by the next; the others are time that has passed, in 100 ms.
    pub place: u8,
    pub kind: Kind,
    /// A frame, or what [`Kind`] takes for it.
    pub bytes: Vec<u8>,
}

/// What arrives: checksums and a pool's ports are nothing that a fuzzer finds by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The frame as it is.
    Given,
    /// The frame with right checksums in its IPv4 header and in ICMP.
    Mended,
    /// The answer to the frame that left last by the port: turned round, changed by the bytes (exclusive or), and mended.
    Answer,
    /// An ICMP error about the frame that left last by the port: [`made::error`].
    Error,
}

const KINDS: [Kind; 4] = [Kind::Given, Kind::Mended, Kind::Answer, Kind::Error];

/// A run: the unit's setup ([`unit::setup`]), then for each arrival its place, its length (11 bits of two bytes, little-endian;
/// the upper two bits are its kind) and its bytes.
pub fn decode(bytes: &[u8]) -> Option<(u8, Vec<Arrival>)> {
    let (&setup, mut rest) = bytes.split_first()?;
    let mut arrivals = Vec::new();
    while let Some((&[place, low, high], frames)) = rest.split_first_chunk::<3>() {
        let word = u16::from_le_bytes([low, high]);
        let (bytes, others) = frames.split_at(usize::from(word % 2048).min(frames.len()));
        arrivals.push(Arrival { place, kind: KINDS[usize::from(word >> 14)], bytes: bytes.to_vec() });
        rest = others;
    }
    Some((setup, arrivals))
}

fn encode(setup: u8, arrivals: &[(u8, Kind, Vec<u8>)]) -> Vec<u8> {
    let mut input = vec![setup];
    for (place, kind, bytes) in arrivals {
        input.push(*place);
        input.extend((bytes.len() as u16 | (*kind as u16) << 14).to_le_bytes());
        input.extend(bytes);
    }
    input
}

/// Lets a whole unit of two shards see a run: no panic, every packet accounted for, and at the end nothing is held or remembered.
pub fn run(bytes: &[u8]) {
    let Some((setup, arrivals)) = decode(bytes) else { return };
    let mut lab = Lab::new(unit::setup(setup));
    let mut last: [Vec<u8>; 2] = Default::default();
    for Arrival { place, kind, bytes } in arrivals {
        lab.now.0 += u64::from(place >> 2) * 100;
        let port = usize::from(place >> 1 & 1);
        let frame = match kind {
            Kind::Given => Some(bytes),
            Kind::Mended => Some(made::mended(bytes)),
            Kind::Answer => made::answer(&last[port], MACS[port], &bytes),
            Kind::Error => made::error(&last[port], MACS[port], &bytes),
        };
        let Some(frame) = frame else { continue };
        lab.arrive(usize::from(place & 1), port, &frame);
        if place >> 2 != 0 {
            lab.run();
            lab.check();
            for (_, port, frame) in lab.wire.raw() {
                last[port] = frame;
            }
        }
    }
    lab.run();
    lab.check();
    lab.now.0 += TIMEOUT_V6.as_millis() as u64;
    lab.run();
    lab.run();
    lab.check();
    assert_eq!(lab.held(), 0);
    for _ in 0..6 {
        lab.now.0 += 5_000; // the sweep's round
        lab.run();
        lab.check();
    }
    assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
}
