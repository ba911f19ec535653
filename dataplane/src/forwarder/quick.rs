//! The forwarder's quick lane: segments and datagrams of established flows in untagged frames without options, which nearly all are.
//!
//! It makes every check that [`crate::parse`] makes, from words read at fixed places; whatever is not as plain as that (another
//! state, a flag that means something, no route) is left to the general way, so that there is one place for each rule.

use std::hint::select_unpredictable;

use crate::farm::Farm;
use crate::farm::PortId;
use crate::flow::{Key4, Key6, protocol};
use crate::forwarder::{Forwarder, GENERAL};
use crate::packet::Packet;
use crate::parse::{Headers, tcp_flags};
use crate::rewrite;
use crate::route_table::{Action, Entry, Look, Mode};

/// Where a packet's route should be, between the burst's passes: 0 for a packet that is not for this lane, else one more than an
/// index, with the highest bit for IPv6 and the next one once the route has been found there.
pub(super) type Place = u64;

/// The quick lane of one port, for one burst.
#[derive(Clone, Copy)]
pub(super) struct QuickLane<'f> {
    /// The port's address, see [`address_word`].
    pub(super) mac: u64,
    pub(super) farm: &'f Farm,
}

impl QuickLane<'_> {
    /// Checks a frame, finds its owner and asks for its route's line.
    #[inline(always)]
    pub(super) fn enter(&self, forwarder: &Forwarder, frame: &[u8]) -> Place {
        let Some(start) = frame.first_chunk::<SHORTEST>() else {
            return OTHER;
        };
        // Six bytes of address and two of what follows: in the second word that is the EtherType.
        let (destination, source) = (word(start, 0), word(start, 6));
        if destination & ADDRESS != self.mac || source & ADDRESS == self.mac {
            return OTHER;
        }
        match source >> 48 {
            IPV4 => self.enter4(forwarder, start, frame.len()),
            IPV6 => self.enter6(forwarder, frame),
            _ => OTHER,
        }
    }

    #[inline(always)]
    fn enter4(&self, forwarder: &Forwarder, start: &[u8; SHORTEST], len: usize) -> Place {
        let total = usize::from(short(start, 16));
        let fragment = short(start, 20) & 0x3fff;
        let (ttl, protocol) = (start[22], start[23]);
        // RFC 1071 over the header's five 32-bit words.
        let sum = half(start, 14) + half(start, 18) + half(start, 22) + half(start, 26) + half(start, 30);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let fits = total + 14 <= len && total <= usize::from(self.farm.smallest_mtu());
        let plain = start[14] == 0x45 && fragment == 0 && ttl > 1 && sum == 0xffff && fits;
        let (first, addresses) = (start[26], word(start, 26));
        let honest = first.wrapping_sub(1) < 223 && first != 127 && addresses >> 32 != addresses & 0xffff_ffff;
        if !(plain && honest && upper_is_plain(protocol, start, 34, total.wrapping_sub(20))) {
            return OTHER;
        }
        let [.., a, b, c, d] = addresses.to_ne_bytes();
        let from_client = self.farm.has_vip4([a, b, c, d]);
        if !from_client && !self.farm.has_endpoint4(&addresses.to_ne_bytes()) {
            return OTHER;
        }
        if forwarder.shards > 1 {
            let [e, f, g, h, ..] = addresses.to_ne_bytes();
            let client = if from_client {
                forwarder.hash.client4([e, f, g, h], [start[34], start[35]])
            } else {
                forwarder.hash.client4([a, b, c, d], [start[36], start[37]])
            };
            if forwarder.owner(client) != forwarder.shard {
                return OTHER;
            }
        }
        let hash = forwarder.hash.route4_words(addresses, ports(start, 34), protocol);
        forwarder.routes4.prefetch_hash(hash) as u64 + 1
    }

    #[inline(always)]
    fn enter6(&self, forwarder: &Forwarder, frame: &[u8]) -> Place {
        let Some(start) = frame.first_chunk::<SHORTEST6>() else {
            return OTHER;
        };
        let payload = usize::from(short(start, 18));
        let (protocol, hop_limit) = (start[20], start[21]);
        let fits = payload + 54 <= frame.len() && payload + 40 <= usize::from(self.farm.smallest_mtu());
        let plain = start[14] >> 4 == 6 && hop_limit > 1 && fits;
        let key = key6(start);
        // Global, unique local or link-local: anything unspecified, loopback or multicast goes the general way.
        let honest = key.source[0] != 0 && key.source[0] != 0xff && key.source != key.destination;
        if !(plain && honest && upper_is_plain(protocol, start, 54, payload)) {
            return OTHER;
        }
        let from_client = self.farm.vip6(&key).is_some();
        if !from_client && !self.farm.has_endpoint6(&key.source) {
            return OTHER;
        }
        if forwarder.shards > 1 {
            let [a, b, c, d] = key.ports;
            let client = if from_client {
                forwarder.hash.client6(key.source, [a, b])
            } else {
                forwarder.hash.client6(key.destination, [c, d])
            };
            if forwarder.owner(client) != forwarder.shard {
                return OTHER;
            }
        }
        (forwarder.routes6.prefetch(&key) as u64 + 1) | SIX
    }

    /// Looks at the home lines, which are there by now; asks for the next one where that is not enough.
    #[inline(always)]
    pub(super) fn look<P: Packet>(&self, forwarder: &Forwarder, packet: &P, place: Place) -> Place {
        let (look, family) = if place == OTHER {
            return OTHER;
        } else if place & SIX == 0 {
            let Some(start) = packet.data().first_chunk::<SHORTEST>() else {
                return OTHER;
            };
            let (addresses, ports, protocol) = (word(start, 26), ports(start, 34), start[23]);
            (forwarder.routes4.look(index(place), |slot| slot.difference(addresses, ports, protocol)), 0)
        } else {
            let Some(start) = packet.data().first_chunk::<SHORTEST6>() else {
                return OTHER;
            };
            let key = key6(start);
            (forwarder.routes6.look(index(place), |slot| slot.difference(&key)), SIX)
        };
        let Look { found, index, further } = look;
        let elsewhere = select_unpredictable(further, place, OTHER);
        select_unpredictable(found, (index as u64 + 1) | family | FOUND, elsewhere)
    }

    /// Looks up and rewrites; [`GENERAL`] if that is not plain after all.
    #[inline(always)]
    pub(super) fn leave<P: Packet>(&self, forwarder: &mut Forwarder, packet: &mut P, place: Place, now: u32) -> PortId {
        let port = match place {
            OTHER => None,
            _ if place & SIX == 0 => self.leave4(forwarder, packet, place, now),
            _ => self.leave6(forwarder, packet, place, now),
        };
        port.unwrap_or(GENERAL)
    }

    #[inline(always)]
    fn leave4<P: Packet>(&self, forwarder: &mut Forwarder, packet: &mut P, place: Place, now: u32) -> Option<PortId> {
        let mut index = index(place);
        if place & FOUND == 0 {
            let start = packet.data().first_chunk::<SHORTEST>()?;
            let (source, destination) = (chunk(start, 26), chunk(start, 30));
            let key = Key4 { source, destination, ports: chunk(start, 34), protocol: start[23] };
            index = forwarder.routes4.find_at(index, &key)?;
        }
        let entry = forwarder.routes4.entry_mut(index);
        if !entry.settled(now, &self.farm.timeouts) {
            return None;
        }
        entry.touch(now);
        let port = if let Some(endpoint) = entry.dsr_endpoint() {
            let hop = self.farm.quick_hop(endpoint)?;
            let frame = packet.data_mut().first_chunk_mut::<SHORTEST>()?;
            frame[..12].copy_from_slice(&hop.ethernet);
            rewrite::decrement_ttl4(frame);
            hop.port
        } else {
            let start = packet.data().first_chunk::<SHORTEST>()?;
            let (ip_len, ttl, protocol) = (short(start, 16), start[22], start[23]);
            self.rewrite(entry, packet, Headers { l3: 14, l4: 34, ip_len, ttl, protocol, v6: false, later: None })?
        };
        forwarder.counters.hits += 1;
        Some(port)
    }

    #[inline(always)]
    fn leave6<P: Packet>(&self, forwarder: &mut Forwarder, packet: &mut P, place: Place, now: u32) -> Option<PortId> {
        let mut index = index(place);
        if place & FOUND == 0 {
            index = forwarder.routes6.find_at(index, &key6(packet.data().first_chunk::<SHORTEST6>()?))?;
        }
        let entry = forwarder.routes6.entry_mut(index);
        if !entry.settled(now, &self.farm.timeouts) {
            return None;
        }
        entry.touch(now);
        let port = if let Some(endpoint) = entry.dsr_endpoint() {
            let hop = self.farm.quick_hop(endpoint)?;
            let frame = packet.data_mut().first_chunk_mut::<SHORTEST6>()?;
            frame[..12].copy_from_slice(&hop.ethernet);
            frame[21] -= 1;
            hop.port
        } else {
            let start = packet.data().first_chunk::<SHORTEST6>()?;
            let (ip_len, ttl, protocol) = (short(start, 18).checked_add(40)?, start[21], start[20]);
            self.rewrite(entry, packet, Headers { l3: 14, l4: 54, ip_len, ttl, protocol, v6: true, later: None })?
        };
        forwarder.counters.hits += 1;
        Some(port)
    }

    /// The modes that change more than the link-layer addresses.
    fn rewrite<P: Packet>(&self, entry: &Entry, packet: &mut P, headers: Headers) -> Option<PortId> {
        match entry.action() {
            Action::Send { endpoint, mode, value } if mode != Mode::Dsr => {
                rewrite::deliver(packet, headers, endpoint, mode, value, self.farm).ok()
            }
            _ => None,
        }
    }
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

#[inline(always)]
fn index(place: Place) -> usize {
    (place & !(SIX | FOUND)) as usize - 1
}

/// A MAC address as the lower six bytes of a word read from a frame.
pub(super) fn address_word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline(always)]
fn key6(start: &[u8; SHORTEST6]) -> Key6 {
    Key6 { source: chunk(start, 22), destination: chunk(start, 38), ports: chunk(start, 54), protocol: start[20] }
}

/// `N` bytes at a fixed place; the bounds were checked with the array they are in.
#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
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

/// A packet that is not for this lane.
const OTHER: Place = 0;
const SIX: Place = 1 << 63;
const FOUND: Place = 1 << 62;
/// Ethernet, IPv4 and TCP without options; Ethernet pads shorter frames.
const SHORTEST: usize = 54;
/// Ethernet, IPv6 and TCP without options.
const SHORTEST6: usize = 74;
const LONGEST: usize = 0xffff;
const ADDRESS: u64 = 0xffff_ffff_ffff;
/// EtherTypes as the upper two bytes of a word that was read little-endian.
const IPV4: u64 = 0x0008;
const IPV6: u64 = 0xdd86;
