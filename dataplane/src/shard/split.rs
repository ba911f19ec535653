//! Taking an IPv4 packet to pieces that is too big for its way, where its sender allows it (RFC 791 section 3.2): the pieces go
//! on as fragments of its flow.
//!
//! Senders of large datagrams rely on it: Linux clears DF in the fragments of what does not fit its own link, and would never be
//! told that a tunnel has room for less.

use arrayvec::ArrayVec;
use weir_identity::Moment;

use super::{DONT_FRAGMENT, Errand, MORE_FRAGMENTS, Shard};
use crate::classifier::millis;
use crate::counters::DropReason;
use crate::farm::PortId;
use crate::flow::Key;
use crate::packet::{Packet, Queue};
use crate::parse::{Class, Fragment, Parsed};
use crate::wire::checksum::checksum;

/// Whether a packet that is too big may be taken to pieces: of a flow, without options (which pieces would have to copy or not).
pub(super) fn may_split(frame: &[u8], parsed: &Parsed) -> bool {
    let l3 = usize::from(parsed.l3);
    parsed.class == Class::Flow
        && matches!(parsed.key, Key::V4(_))
        && frame[l3] == PLAIN_HEADER
        && frame[l3 + 6] & DONT_FRAGMENT == 0
}

impl<Q: Queue> Shard<Q> {
    /// Takes `packet`, of which [`may_split`] is true, to pieces of at most `mtu` bytes and forwards them, the first one first.
    pub(super) fn split(&mut self, mut packet: Q::Packet, parsed: Parsed, port: PortId, mtu: u16, now: Moment) {
        let below = self.ports[usize::from(port)].vlan.map_or(port, |(parent, _)| parent);
        let queue = match &mut self.ports[usize::from(below)].queue {
            Ok(queue) => queue,
            // Buffers are where the queues are.
            Err(shard) => {
                let shard = *shard;
                return self.send_errand(shard, Errand::Split(packet, parsed, port, mtu));
            }
        };
        let most = mtu.saturating_sub(HEADER) & !7;
        let payload = parsed.ip_len - HEADER;
        let first = Fragment { offset: parsed.fragment.offset, more: true, len: most, ..parsed.fragment };
        if most == 0 || payload.div_ceil(most) > MOST_PIECES {
            return self.forwarder.drops.count(DropReason::TooBig);
        }
        let mut others: ArrayVec<(Q::Packet, Fragment), { MOST_PIECES as usize }> = ArrayVec::new();
        for start in (most..payload).step_by(usize::from(most)) {
            let len = most.min(payload - start);
            let more = start + len < payload || parsed.fragment.more;
            let fragment = Fragment { offset: first.offset + start, more, len, ..first };
            let Some(piece) = queue.allocate().and_then(|piece| copy(piece, packet.data(), &parsed, start, len)) else {
                return self.forwarder.drops.count(DropReason::NoBuffer);
            };
            others.push((piece, fragment));
        }
        if !packet.resize(usize::from(parsed.l3 + 20) + usize::from(most)) {
            return self.forwarder.drops.count(DropReason::NoBuffer); // never: this cuts
        }
        self.forwarder.counters.split += others.len() as u64;
        self.send_piece(packet, parsed, first, port, now);
        for (piece, fragment) in others {
            self.send_piece(piece, Parsed { tcp_flags: 0, ..parsed }, fragment, port, now);
        }
    }

    /// Completes a piece's header and forwards it.
    fn send_piece(&mut self, mut packet: Q::Packet, parsed: Parsed, fragment: Fragment, port: PortId, now: Moment) {
        let l3 = usize::from(parsed.l3);
        let header = &mut packet.data_mut()[l3..l3 + usize::from(HEADER)];
        let ip_len = HEADER + fragment.len;
        let place = fragment.offset >> 3 | if fragment.more { MORE_FRAGMENTS } else { 0 };
        header[2..4].copy_from_slice(&ip_len.to_be_bytes());
        header[6..8].copy_from_slice(&place.to_be_bytes());
        header[10..12].fill(0);
        let check = checksum(header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        let parsed = Parsed { ip_len, fragment, ..parsed };
        let fate = self.forwarder.forward_one(&mut packet, &parsed, &self.farm, millis(now));
        self.settle(packet, parsed, port, fate, now);
    }
}

/// Fills an empty buffer with a packet's headers below TCP and UDP, and `len` bytes of its payload from `start` on.
fn copy<P: Packet>(mut piece: P, whole: &[u8], parsed: &Parsed, start: u16, len: u16) -> Option<P> {
    let headers = usize::from(parsed.l3) + usize::from(HEADER);
    let from = headers + usize::from(start);
    let payload = whole.get(from..from + usize::from(len))?;
    if !piece.resize(headers + payload.len()) {
        return None;
    }
    let frame = piece.data_mut();
    frame[..headers].copy_from_slice(&whole[..headers]);
    frame[headers..].copy_from_slice(payload);
    Some(piece)
}

/// Version 4, and a header without options.
const PLAIN_HEADER: u8 = 0x45;
/// Its length in bytes.
const HEADER: u16 = 20;
/// A jumbo frame of 9000 bytes for a way that takes 1280 has eight.
const MOST_PIECES: u16 = 8;
