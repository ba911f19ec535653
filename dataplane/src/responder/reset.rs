//! Resets in the name of a VIP.

use super::{Answer, answerable, way_back};
use crate::wire::Protocol;
use crate::wire::tcp::{self, Flags};

/// Writes the reset for a TCP segment into `out`, from the segment's destination to its source (RFC 9293 3.10.7.1).
///
/// A segment with ACK is answered by its own acknowledgement number; one without by sequence number 0 and an acknowledgement of
/// all it holds. A reset is never answered, nor is a fragment. `out` needs 14 bytes, the tags, and 40 (IPv4) or 60 (IPv6) bytes.
pub fn reset(frame: &[u8], out: &mut [u8]) -> Answer {
    refuse(frame, out).into()
}

fn refuse(frame: &[u8], out: &mut [u8]) -> Option<usize> {
    let parts = answerable(frame)?;
    if parts.protocol != Protocol::TCP || parts.fragment.is_some() {
        return None;
    }
    let segment = tcp::Packet::new_checked(parts.payload(frame)).ok()?;
    if segment.flags().contains(Flags::RST) {
        return None;
    }
    let (sequence, acknowledgement, flags) = if segment.flags().contains(Flags::ACK) {
        (segment.acknowledgement(), 0, Flags::RST)
    } else {
        (0, segment.sequence().wrapping_add(segment.sequence_len()), Flags::RST | Flags::ACK)
    };
    let reply = tcp::Repr {
        source_port: segment.destination_port(),
        destination_port: segment.source_port(),
        sequence,
        acknowledgement,
        flags,
        ..tcp::Repr::default()
    };
    let (place, len) = way_back(frame, &parts, out, Protocol::TCP, reply.len(), 0)?;
    reply.emit(place, &[], parts.addresses.reversed()).ok()?;
    Some(len)
}
