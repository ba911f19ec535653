//! Finished packets in pieces. An IPv6 packet of 1280 bytes has to get through wherever it goes, and where a tunnel's way has too little
//! room for it and its outer header, the outer packet is fragmented (RFC 2473 section 7.1); the host's kernel puts it together. And an
//! IPv6 fragment that full-nat has made an IPv4 one (RFC 7915 section 5.1.1) is taken to smaller pieces as any router would.

use arrayvec::ArrayVec;

use super::{DONT_FRAGMENT, Errand, MORE_FRAGMENTS, Shard, send};
use crate::counters::DropReason;
use crate::farm::PortId;
use crate::packet::{Packet, Queue};
use crate::wire::Protocol;
use crate::wire::checksum::checksum;

impl<Q: Queue> Shard<Q> {
    /// Sends a finished frame, whose IP header begins at `l3`, by `port` in pieces of at most `mtu` bytes.
    pub(super) fn send_in_pieces(&mut self, packet: Q::Packet, l3: u8, port: PortId, mtu: u16) {
        let below = self.ports[usize::from(port)].vlan.map_or(port, |(parent, _)| parent);
        let queue = match &mut self.ports[usize::from(below)].queue {
            Ok(queue) => queue,
            // Buffers are where the queues are.
            Err(shard) => {
                let shard = *shard;
                return self.send_errand(shard, Errand::Pieces(packet, l3, port, mtu));
            }
        };
        // One counter for each shard that sends by itself: no two of them give one number.
        self.identification = self.identification.wrapping_add(1);
        let id =
            self.identification.wrapping_mul(MOST_SHARDS) | (u32::try_from(self.number).unwrap_or(0) % MOST_SHARDS);
        let Some(whole) = Whole::of(packet.data(), usize::from(l3), usize::from(mtu), id) else {
            return self.forwarder.drops.count(DropReason::TooBig);
        };
        let mut others: ArrayVec<Q::Packet, MOST_PIECES> = ArrayVec::new();
        for nth in 1..whole.pieces {
            let piece = queue.allocate().and_then(|mut piece| whole.write(nth, &mut piece).then_some(piece));
            let Some(piece) = piece else {
                return self.forwarder.drops.count(DropReason::NoBuffer);
            };
            others.push(piece);
        }
        let Some(first) = queue.allocate().and_then(|mut piece| whole.write(0, &mut piece).then_some(piece)) else {
            return self.forwarder.drops.count(DropReason::NoBuffer);
        };
        self.forwarder.counters.split += others.len() as u64;
        send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, first, port);
        for piece in others {
            send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, piece, port);
        }
    }
}

/// A frame that is to be taken to pieces.
struct Whole<'a> {
    /// Ethernet header, tags and IP header as they stand.
    head: &'a [u8],
    l3: usize,
    v6: bool,
    payload: &'a [u8],
    most: usize,
    pieces: usize,
    id: u32,
    /// Where the payload stands in its datagram, and whether more follows: a fragment's own pieces are of the same datagram.
    start: usize,
    more: bool,
}

impl<'a> Whole<'a> {
    fn of(frame: &'a [u8], l3: usize, mtu: usize, id: u32) -> Option<Self> {
        let v6 = frame.get(l3)? >> 4 == 6;
        let (header, overhead) = if v6 { (40, 48) } else { (20, 20) };
        let most = mtu.checked_sub(overhead)? & !7;
        let (head, payload) = frame.split_at_checked(l3 + header)?;
        let pieces = payload.len().div_ceil(most.max(1));
        if most == 0 || pieces > MOST_PIECES {
            return None;
        }
        let whole = Self { head, l3, v6, payload, most, pieces, id, start: 0, more: false };
        // With DF it is a tunnel's, which is whole and has no identification.
        if v6 || head[l3 + 6] & DONT_FRAGMENT != 0 {
            return Some(whole);
        }
        let word = |at: usize| u16::from_be_bytes([head[l3 + at], head[l3 + at + 1]]);
        let start = usize::from(word(6) & 0x1fff) << 3;
        Some(Self { id: word(4).into(), start, more: word(6) & MORE_FRAGMENTS != 0, ..whole })
    }

    /// Writes one piece into an empty buffer; false if that is too small.
    fn write<P: Packet>(&self, nth: usize, piece: &mut P) -> bool {
        let start = nth * self.most;
        let payload = &self.payload[start..self.payload.len().min(start + self.most)];
        let more = self.more || nth + 1 < self.pieces;
        let extra = if self.v6 { 8 } else { 0 };
        let header = self.head.len() - self.l3;
        let (Ok(len), Ok(at)) = (u16::try_from(header + extra + payload.len()), u16::try_from(self.start + start))
        else {
            return false;
        };
        if !piece.resize(self.head.len() + extra + payload.len()) {
            return false;
        }
        let (head, rest) = piece.data_mut().split_at_mut(self.head.len());
        head.copy_from_slice(self.head);
        rest[extra..].copy_from_slice(payload);
        let ip = &mut head[self.l3..];
        if self.v6 {
            ip[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            rest[..2].copy_from_slice(&[ip[6], 0]);
            ip[6] = Protocol::FRAGMENT.0;
            rest[2..4].copy_from_slice(&(at | u16::from(more)).to_be_bytes());
            rest[4..8].copy_from_slice(&self.id.to_be_bytes());
        } else {
            let [.., high, low] = self.id.to_be_bytes();
            ip[2..4].copy_from_slice(&len.to_be_bytes());
            ip[4..6].copy_from_slice(&[high, low]);
            ip[6..8].copy_from_slice(&(at >> 3 | if more { MORE_FRAGMENTS } else { 0 }).to_be_bytes());
            ip[10..12].fill(0);
            let check = checksum(ip);
            ip[10..12].copy_from_slice(&check.to_be_bytes());
        }
        true
    }
}

/// 1280 bytes and an outer header through a way of 576 have three; a jumbo frame's fragment of 9000 through one of 1280 has eight.
const MOST_PIECES: usize = 8;
/// Identifications are dealt out among so many shards, a power of two.
const MOST_SHARDS: u32 = 64;
