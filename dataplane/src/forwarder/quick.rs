//! The forwarder's quick lane: segments and datagrams of established flows in untagged frames without options, which nearly all are.
//!
//! It makes every check that [`crate::parse`] makes, from words read at fixed places; whatever is not as plain as that (another
//! state, a flag that means something, no route) is left to the general way, so that there is one place for each rule.

use crate::farm::Farm;
use crate::flow::{Key6, protocol};
use crate::forwarder::{Fate, Forwarder, Step};
use crate::packet::Packet;
use crate::parse::{Headers, tcp_flags};
use crate::rewrite;
use crate::route_table::{Action, Entry, State};

/// The quick lane of one port, for one burst.
#[derive(Clone, Copy)]
pub(super) struct QuickLane<'f> {
    /// The port's address, see [`address_word`].
    pub(super) mac: u64,
    pub(super) farm: &'f Farm,
}

impl QuickLane<'_> {
    /// Checks a frame, finds its owner and asks for its route's line; `None` if it is not for this lane.
    #[inline(always)]
    pub(super) fn enter(&self, forwarder: &Forwarder, frame: &[u8]) -> Option<Step> {
        let start = frame.first_chunk::<SHORTEST>()?;
        // Six bytes of address and two of what follows: in the second word that is the EtherType.
        let (destination, source) = (word(start, 0), word(start, 6));
        if destination & ADDRESS != self.mac || source & ADDRESS == self.mac {
            return None;
        }
        match source >> 48 {
            IPV4 => self.enter4(forwarder, start, frame.len()),
            IPV6 => self.enter6(forwarder, frame),
            _ => None,
        }
    }

    #[inline(always)]
    fn enter4(&self, forwarder: &Forwarder, start: &[u8; SHORTEST], len: usize) -> Option<Step> {
        let total = usize::from(short(start, 16));
        let fragment = short(start, 20) & 0x3fff;
        let (ttl, protocol) = (start[22], start[23]);
        // RFC 1071 over the header's five 32-bit words.
        let sum = half(start, 14) + half(start, 18) + half(start, 22) + half(start, 26) + half(start, 30);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let plain = start[14] == 0x45 && fragment == 0 && ttl > 1 && sum == 0xffff && total + 14 <= len;
        let (first, addresses) = (start[26], word(start, 26));
        let honest = first.wrapping_sub(1) < 223 && first != 127 && addresses >> 32 != addresses & 0xffff_ffff;
        if !(plain && honest && upper_is_plain(protocol, start, 34, total.wrapping_sub(20))) {
            return None;
        }
        let [.., a, b, c, d] = addresses.to_ne_bytes();
        let from_client = self.farm.has_vip4([a, b, c, d]);
        if !from_client && !self.farm.has_endpoint4(&addresses.to_ne_bytes()) {
            return Some(Step::Done(Fate::Twin));
        }
        if forwarder.shards > 1 {
            let [e, f, g, h, ..] = addresses.to_ne_bytes();
            let client = if from_client {
                forwarder.hash.client4([e, f, g, h], [start[34], start[35]])
            } else {
                forwarder.hash.client4([a, b, c, d], [start[36], start[37]])
            };
            let owner = forwarder.owner(client);
            if owner != forwarder.shard {
                return Some(Step::Done(Fate::HandOver(owner)));
            }
        }
        let hash = forwarder.hash.route4_words(addresses, ports(start, 34), protocol);
        Some(Step::Quick4 { home: forwarder.routes4.prefetch_hash(hash) })
    }

    #[inline(always)]
    fn enter6(&self, forwarder: &Forwarder, frame: &[u8]) -> Option<Step> {
        let start = frame.first_chunk::<SHORTEST6>()?;
        let payload = usize::from(short(start, 18));
        let (protocol, hop_limit) = (start[20], start[21]);
        let plain = start[14] >> 4 == 6 && hop_limit > 1 && payload + 54 <= frame.len();
        let key = key6(start);
        // Global, unique local or link-local: anything unspecified, loopback or multicast goes the general way.
        let honest = key.source[0] != 0 && key.source[0] != 0xff && key.source != key.destination;
        if !(plain && honest && upper_is_plain(protocol, start, 54, payload)) {
            return None;
        }
        let from_client = self.farm.vip6(&key).is_some();
        if !from_client && !self.farm.has_endpoint6(&key.source) {
            return Some(Step::Done(Fate::Twin));
        }
        if forwarder.shards > 1 {
            let [a, b, c, d] = key.ports;
            let client = if from_client {
                forwarder.hash.client6(key.source, [a, b])
            } else {
                forwarder.hash.client6(key.destination, [c, d])
            };
            let owner = forwarder.owner(client);
            if owner != forwarder.shard {
                return Some(Step::Done(Fate::HandOver(owner)));
            }
        }
        Some(Step::Quick6 { home: forwarder.routes6.prefetch(&key) })
    }

    /// Looks up and rewrites; `None` if that is not plain after all.
    #[inline(always)]
    pub(super) fn leave4<P: Packet>(
        &self,
        forwarder: &mut Forwarder,
        packet: &mut P,
        home: usize,
        now: u32,
    ) -> Option<Fate> {
        let start = packet.data().first_chunk::<SHORTEST>()?;
        let (addresses, ports, protocol) = (word(start, 26), ports(start, 34), start[23]);
        let headers = Headers { l3: 14, l4: 34, ip_len: short(start, 16), ttl: start[22], protocol, v6: false };
        let entry = forwarder.routes4.find_words(home, addresses, ports, protocol)?;
        let action = use_route(entry, now, self.farm)?;
        self.deliver(forwarder, packet, headers, action)
    }

    /// The same for IPv6.
    #[inline(always)]
    pub(super) fn leave6<P: Packet>(
        &self,
        forwarder: &mut Forwarder,
        packet: &mut P,
        home: usize,
        now: u32,
    ) -> Option<Fate> {
        let start = packet.data().first_chunk::<SHORTEST6>()?;
        let key = key6(start);
        let ip_len = short(start, 18).checked_add(40)?;
        let headers = Headers { l3: 14, l4: 54, ip_len, ttl: start[21], protocol: key.protocol, v6: true };
        let index = forwarder.routes6.find_at(home, &key)?;
        let action = use_route(forwarder.routes6.entry_mut(index), now, self.farm)?;
        self.deliver(forwarder, packet, headers, action)
    }

    #[inline(always)]
    fn deliver<P: Packet>(
        &self,
        forwarder: &mut Forwarder,
        packet: &mut P,
        headers: Headers,
        action: Action,
    ) -> Option<Fate> {
        let Action::Send { endpoint, mode, value } = action else {
            return None;
        };
        Some(match rewrite::deliver(packet, headers, endpoint, mode, value, self.farm) {
            Ok(port) => {
                forwarder.counters.hits += 1;
                Fate::Send(port)
            }
            Err(reason) => Fate::Drop(reason),
        })
    }
}

/// What a live route says that this packet changes nothing of but the time of its last use.
#[inline(always)]
fn use_route(entry: &mut Entry, now: u32, farm: &Farm) -> Option<Action> {
    if entry.expired(now, &farm.timeouts) || entry.state() == State::Opening {
        return None;
    }
    entry.touch(now);
    Some(entry.action())
}

/// Whether a TCP header is whole and has ACK, but nothing that opens or closes; or a UDP header is whole.
#[inline(always)]
fn upper_is_plain(protocol: u8, start: &[u8], l4: usize, len: usize) -> bool {
    if protocol == protocol::TCP {
        let header = usize::from(start[l4 + 12] >> 4) * 4;
        let flags = start[l4 + 13] & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK);
        flags == tcp_flags::ACK && header >= 20 && header <= len && len <= LONGEST
    } else {
        let udp = usize::from(short(start, l4 + 4));
        protocol == protocol::UDP && udp >= 8 && udp <= len && len <= LONGEST
    }
}

/// A MAC address as the lower six bytes of a word read from a frame.
pub(super) fn address_word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline(always)]
fn key6(start: &[u8; SHORTEST6]) -> Key6 {
    Key6 { source: chunk(start, 22), destination: chunk(start, 38), ports: chunk(start, 54), protocol: start[20] }
}

#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut chunk = [0; N];
    chunk.copy_from_slice(&bytes[at..at + N]);
    chunk
}

#[inline(always)]
fn word(bytes: &[u8; SHORTEST], at: usize) -> u64 {
    u64::from_le_bytes(chunk(bytes, at))
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_ne_bytes(chunk(bytes, at)))
}

#[inline(always)]
fn ports(bytes: &[u8; SHORTEST], at: usize) -> u32 {
    u32::from_ne_bytes(chunk(bytes, at))
}

#[inline(always)]
fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Ethernet, IPv4 and TCP without options; Ethernet pads shorter frames.
const SHORTEST: usize = 54;
/// Ethernet, IPv6 and TCP without options.
const SHORTEST6: usize = 74;
const LONGEST: usize = 0xffff;
const ADDRESS: u64 = 0xffff_ffff_ffff;
/// EtherTypes as the upper two bytes of a word that was read little-endian.
const IPV4: u64 = 0x0008;
const IPV6: u64 = 0xdd86;
