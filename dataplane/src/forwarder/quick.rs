//! The forwarder's quick lane: segments and datagrams of established flows in untagged frames without options, which nearly all are.
//!
//! It makes the checks that [`crate::parse`] makes and that a packet's key does not imply, from words read at fixed places: where a
//! route is found, the general way has seen these addresses and this protocol, and that this shard owns them. Whatever is not as
//! plain as that (another state, a flag that means something, no route) is left to the general way, so that there is one place for
//! each rule. Instructions count here: each check is a branch of its own, which is always predicted.

mod back;

use weir_identity::EndpointId;

use crate::farm::{Farm, PortId};
use crate::flow::{Key, Key4, Key6, protocol};
use crate::forwarder::{Departures, Fate, Forwarder, GENERAL, full_nat};
use crate::packet::{BURST, Burst, Packet};
use crate::parse::{Class, Fragment, Headers, Parsed, tcp_flags};
use crate::plain4;
use crate::rewrite;
use crate::route_table::{Action, Entry, Mode, QuickLimits};
use crate::translation::{PoolPort, TranslationTable};

/// What the lane's three passes over a burst leave for one another. Between them the burst must not change; anything else may, and
/// the longer they are apart the more of the memory's answers are there in time.
#[derive(Debug, Clone)]
pub struct QuickLane {
    /// The packets of the lane by family, as far as their route is yet to be found.
    four: Bits,
    six: Bits,
    /// The line where each one's route may be.
    lines: [usize; BURST],
    /// Words of the IPv4 packets' keys.
    addresses: [u64; BURST],
    rest: [u64; BURST],
    departures: Departures,
}

impl Default for QuickLane {
    fn default() -> Self {
        Self {
            four: Bits(0),
            six: Bits(0),
            lines: [0; BURST],
            addresses: [0; BURST],
            rest: [0; BURST],
            departures: [GENERAL; BURST],
        }
    }
}

/// When a burst's packets ask for their routes' lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    /// Those of IPv4 all together at the end of the first pass, and not each as soon as it is known.
    pub together4: bool,
    /// The same of IPv6.
    pub together6: bool,
}

impl Asking {
    /// As it suits tables of so many bytes.
    ///
    /// What the caches hold comes at once however it is asked for, and together takes fewer instructions. What the memory has to be asked
    /// for is more at once than a processor has on its way, which then waits; each by itself has the time of a packet's work. But where
    /// it has to search for each line's page first (the table has more pages than it remembers), it does nothing else before it has, and
    /// does it for several at once only if they are asked for one right after the other: a sixth less time for 134 million routes.
    pub(super) fn suiting(bytes4: usize, bytes6: usize) -> Self {
        let together = |bytes| !(CACHED..PAGED).contains(&bytes);
        Self { together4: together(bytes4), together6: together(bytes6) }
    }
}

impl Forwarder {
    /// When lines are asked for.
    #[inline]
    #[must_use]
    pub fn asking(&self) -> Asking {
        self.asking
    }

    /// The same with other times for that.
    #[must_use]
    pub fn with_asking(self, asking: Asking) -> Self {
        Self { asking, ..self }
    }

    /// First pass over a burst: takes into the lane what is plain, and asks for the lines of its routes, as [`Self::asking`] says. By
    /// which port each packet came in says `ports`; all by the first one, unless they are `MIXED`.
    #[inline]
    pub fn enter<const TOGETHER4: bool, const TOGETHER6: bool, const MIXED: bool, P: Packet>(
        &self,
        packets: &Burst<P>,
        ports: &[PortId; BURST],
        farm: &Farm,
        lane: &mut QuickLane,
    ) {
        if MIXED {
            packets.iter().for_each(Packet::prefetch);
        }
        let mac_of = |port: PortId| address_word(farm.ports[usize::from(port)].mac);
        let first = mac_of(ports[0]);
        let longest = usize::from(farm.smallest_mtu().min(self.paths.room())) + 14;
        let (mut four, mut six) = (Bits(0), Bits(0));
        for at in 0..packets.len().min(BURST) {
            let frame = packets[at].data();
            if frame.len() > longest {
                continue;
            }
            let Some(start) = frame.first_chunk::<SHORTEST>() else {
                continue;
            };
            let mac = if MIXED { mac_of(ports[at]) } else { first };
            if word(start, 0) << 16 != mac {
                continue;
            }
            match word(start, 12) & ETHERTYPE_AND_VERSION {
                IPV4 => self.enter4::<TOGETHER4>(lane, start, frame.len(), at, &mut four),
                kind if kind & !0x0f_0000 == IPV6 => self.enter6::<TOGETHER6>(lane, frame, at, &mut six),
                _ => (),
            }
        }
        (lane.four, lane.six, lane.departures) = (four, six, [GENERAL; BURST]);
        if farm.has_half_nat() {
            back::ask_for_clients(lane, four, farm);
        }
        if TOGETHER4 && four != Bits(0) {
            // Those that are not in the lane cost no more than to look whether they are.
            lane.lines.iter().for_each(|line| self.routes4.prefetch_line(*line));
        }
        if TOGETHER6 {
            six.for_each(|at| self.routes6.prefetch_line(lane.lines[at]));
        }
    }

    #[inline(always)]
    fn enter4<const TOGETHER: bool>(
        &self,
        lane: &mut QuickLane,
        start: &[u8; SHORTEST],
        len: usize,
        at: usize,
        four: &mut Bits,
    ) {
        let total = usize::from(short(start, 16));
        // Fragment, TTL and protocol.
        let ip = quad(start, 20);
        let protocol = (ip >> 24) as u8;
        if total + 14 > len || ip & TTL_ABOVE_ONE == 0 || !sums_up(start) {
            return;
        }
        if ip & 0xff3f != 0 {
            // The first fragment has its ports.
            return self.prefetch4(start);
        }
        if !upper_is_plain(protocol, start, 34, total, 20) {
            return self.prefetch4(start);
        }
        let (addresses, rest) = (word(start, 26), u64::from(quad(start, 34)) | u64::from(protocol) << 32);
        let line = self.routes4.first_line(self.hash.route4_words(addresses, rest));
        if !TOGETHER {
            self.routes4.prefetch_line(line);
        }
        lane.lines[at] = line;
        lane.addresses[at] = addresses;
        lane.rest[at] = rest;
        four.put(at, true);
    }

    #[inline(always)]
    fn enter6<const TOGETHER: bool>(&self, lane: &mut QuickLane, frame: &[u8], at: usize, six: &mut Bits) {
        let Some(start) = frame.first_chunk::<SHORTEST6>() else {
            return;
        };
        let total = usize::from(short(start, 18)) + 40;
        let (protocol, hop_limit) = (start[20], start[21]);
        if total + 14 > frame.len() || hop_limit <= 1 {
            return;
        }
        if !upper_is_plain(protocol, start, 54, total, 40) {
            return self.prefetch6(start);
        }
        let line = self.routes6.first_line(self.hash.route6(&key6(start)));
        if !TOGETHER {
            self.routes6.prefetch_line(line);
        }
        lane.lines[at] = line;
        six.put(at, true);
    }

    /// A SYN, say, or a fragment: the general way will look for its route.
    #[cold]
    #[inline(never)]
    fn prefetch4(&self, start: &[u8; SHORTEST]) {
        self.routes4.prefetch(&key4(start));
    }

    /// The same.
    #[cold]
    #[inline(never)]
    fn prefetch6(&self, start: &[u8; SHORTEST6]) {
        self.routes6.prefetch(&key6(start));
    }

    /// Second pass: rewrites what has a settled route in its first line and notes where it leaves; asks for the second line of the
    /// others.
    #[inline]
    pub fn look<P: Packet>(&mut self, packets: &mut Burst<P>, lane: &mut QuickLane, farm: &Farm, now: u32) {
        self.leave_by_lines(packets, lane, farm, now);
        for at in lane.four {
            lane.lines[at] = self.routes4.prefetch_second(self.hash.route4_words(lane.addresses[at], lane.rest[at]));
        }
        for at in lane.six {
            if let Some(start) = packets[at].data().first_chunk::<SHORTEST6>() {
                lane.lines[at] = self.routes6.prefetch_second(self.hash.route6(&key6(start)));
            }
        }
    }

    /// Third pass: the same for the second lines, and says where each packet leaves; the rest is untouched.
    #[inline]
    pub fn leave<P: Packet>(
        &mut self,
        packets: &mut Burst<P>,
        lane: &mut QuickLane,
        farm: &Farm,
        now: u32,
    ) -> Departures {
        if lane.four != Bits(0) || lane.six != Bits(0) {
            self.leave_by_lines(packets, lane, farm, now);
        }
        if farm.has_full_nat() {
            self.leave_postponed(packets, lane, farm);
        }
        self.counters.hits += lane.departures.iter().map(|port| u64::from(*port != GENERAL)).sum::<u64>();
        lane.departures
    }

    /// Takes out of the lane each packet whose route is in the line that it waits for.
    #[inline(always)]
    fn leave_by_lines<P: Packet>(&mut self, packets: &mut Burst<P>, lane: &mut QuickLane, farm: &Farm, now: u32) {
        let limits = farm.quick_limits;
        let packets = packets.as_mut_slice();
        let (mut found4, mut found6) = (Bits(0), Bits(0));
        for at in lane.four {
            let (addresses, rest) = (lane.addresses[at], lane.rest[at]);
            let look = self.routes4.look(lane.lines[at], |slot| slot.difference(addresses, rest));
            lane.lines[at] = look.index;
            found4.put(at, look.found);
        }
        for at in lane.six {
            let Some(key) = packets[at].data().first_chunk::<SHORTEST6>().map(key6) else {
                continue;
            };
            let look = self.routes6.look(lane.lines[at], |slot| slot.difference(&key));
            lane.lines[at] = look.index;
            found6.put(at, look.found);
        }
        let mut entries = self.routes4.entries_mut();
        for at in found4 {
            let Some(entry) = entries.at(lane.lines[at]) else { continue };
            lane.departures[at] = leave_by(entry, &mut packets[at], false, &self.translations, farm, &limits, now);
        }
        for at in found6 {
            let entry = self.routes6.entry_mut(lane.lines[at]);
            lane.departures[at] = leave_by(entry, &mut packets[at], true, &self.translations, farm, &limits, now);
        }
        (lane.four, lane.six) = (lane.four.without(found4), lane.six.without(found6));
    }
}

/// Rewrites a packet as its route says and returns the port it leaves by; [`GENERAL`] if that is not plain after all.
#[inline(always)]
fn leave_by<P: Packet>(
    entry: &mut Entry,
    packet: &mut P,
    v6: bool,
    translations: &TranslationTable,
    farm: &Farm,
    limits: &QuickLimits,
    now: u32,
) -> PortId {
    if !entry.settled(now, limits) {
        return GENERAL;
    }
    entry.touch(now);
    if !entry.sends_by(Mode::Dsr) {
        if !v6 && entry.tunnels() {
            let port = tunnel(entry, packet, farm);
            if port != GENERAL {
                return port;
            }
        }
        return translate(entry, packet, v6, translations, farm);
    }
    let (Some(hop), Some(frame)) = (farm.quick_hop(entry.endpoint()), packet.data_mut().first_chunk_mut::<SHORTEST>())
    else {
        return GENERAL;
    };
    frame[..12].copy_from_slice(&hop.ethernet);
    if v6 {
        frame[21] -= 1;
    } else {
        plain4::decrement_ttl(frame);
    }
    hop.port
}

/// Into a tunnel over IPv4; [`GENERAL`], with the packet unchanged, where it goes over IPv6 or the packet does not fit.
///
/// Cold, as the other one is: so the processor's registers are kept for packets that only get new link-layer addresses, which is a
/// hundredth for those and nothing for these.
#[cold]
#[inline(never)]
fn tunnel<P: Packet>(entry: &Entry, packet: &mut P, farm: &Farm) -> PortId {
    farm.outer_frame(entry.endpoint()).and_then(|outer| outer.push(packet)).unwrap_or(GENERAL)
}

/// The modes that change more than the link-layer addresses.
#[cold]
#[inline(never)]
fn translate<P: Packet>(
    entry: &Entry,
    packet: &mut P,
    v6: bool,
    translations: &TranslationTable,
    farm: &Farm,
) -> PortId {
    try_translate(entry, packet, v6, translations, farm).unwrap_or(GENERAL)
}

#[inline(always)]
fn try_translate<P: Packet>(
    entry: &Entry,
    packet: &mut P,
    v6: bool,
    translations: &TranslationTable,
    farm: &Farm,
) -> Option<PortId> {
    let Action::Send { endpoint, mode, value } = entry.action() else {
        return None;
    };
    match mode {
        Mode::Nat | Mode::FullNat if !v6 => {
            if let Some(port) = deliver_plain4(packet, endpoint, mode, value, farm) {
                return Some(port);
            }
        }
        Mode::NatReturn if !v6 => return back::nat(packet, endpoint, value, farm),
        Mode::FullNatReturn if !v6 => {
            translations.prefetch(full_nat::slot(value));
            return Some(back::POSTPONED);
        }
        _ => {}
    }
    if matches!(mode, Mode::FullNat | Mode::FullNatReturn) {
        let parsed = parsed(packet.data(), v6)?;
        // Nothing here is longer than any port takes, so nothing is ready for pieces; what is refused is as it was, or is refused again.
        return match full_nat::deliver(packet, &parsed, endpoint, mode, value, translations, farm) {
            Ok(Fate::Send(port)) => Some(port),
            _ => None,
        };
    }
    let start = packet.data().first_chunk::<SHORTEST>()?;
    let headers = if v6 {
        let ip_len = short(start, 18).checked_add(40)?;
        Headers { l3: 14, l4: 54, ip_len, ttl: start[21], protocol: start[20], v6, later: None }
    } else {
        Headers { l3: 14, l4: 34, ip_len: short(start, 16), ttl: start[22], protocol: start[23], v6, later: None }
    };
    rewrite::deliver(packet, headers, endpoint, mode, value, farm).ok()
}

/// The directions from a client, of IPv4 to an IPv4 host; `None`, with the packet unchanged, for any other.
#[inline(always)]
fn deliver_plain4<P: Packet>(
    packet: &mut P,
    endpoint: EndpointId,
    mode: Mode,
    value: u64,
    farm: &Farm,
) -> Option<PortId> {
    let hop = farm.quick_hop(endpoint)?;
    let frame = packet.data_mut().first_chunk_mut::<SHORTEST>()?;
    let (addresses, ports) = (plain4::addresses(frame), plain4::ports(frame));
    let (source, source_port) = match mode {
        Mode::Nat => (addresses & 0xffff_ffff, ports & 0xffff),
        Mode::FullNat => {
            let PoolPort { address, port } = PoolPort::from_value(value);
            let address = farm.pool_address4(hop.pool, address)?;
            (u32::from_le_bytes(address).into(), u16::from_le_bytes(port.to_be_bytes()).into())
        }
        _ => return None,
    };
    let own_port = if hop.own_port == [0; 2] { ports >> 16 } else { u16::from_le_bytes(hop.own_port).into() };
    frame[..12].copy_from_slice(&hop.ethernet);
    plain4::decrement_ttl(frame);
    let host = u64::from(u32::from_le_bytes(hop.address));
    plain4::translate(frame, source | host << 32, source_port | own_port << 16);
    Some(hop.port)
}

/// What the parser would say of a packet of the lane, as far as translating asks.
fn parsed(frame: &[u8], v6: bool) -> Option<Parsed> {
    let (key, l4, ttl, ip_len) = if v6 {
        let start = frame.first_chunk::<SHORTEST6>()?;
        (Key::V6(key6(start)), 54, start[21], short(start, 18).checked_add(40)?)
    } else {
        let start = frame.first_chunk::<SHORTEST>()?;
        (Key::V4(key4(start)), 34, start[22], short(start, 16))
    };
    let (class, fragment) = (Class::Flow, Fragment::default());
    Some(Parsed { class, key, l3: 14, tcp_flags: 0, ttl, l4, ip_len, fragment, unicast: true })
}

/// Some packets of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits(u32);

impl Bits {
    #[inline(always)]
    fn put(&mut self, at: usize, value: bool) {
        self.0 |= u32::from(value) << at;
    }

    #[inline(always)]
    fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl Iterator for Bits {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let at = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(at)
    }
}

/// Whether the IPv4 header's words add up, RFC 1071: the ones' complement sum, not 0 here, is a multiple of 65535.
#[inline(always)]
fn sums_up(start: &[u8; SHORTEST]) -> bool {
    let (sum, carry) = word(start, 14).overflowing_add(word(start, 22));
    let (sum, carry) = sum.overflowing_add(u64::from(quad(start, 30)) + u64::from(carry));
    // A second carry leaves a sum that is far from another one.
    (sum + u64::from(carry)).is_multiple_of(0xffff)
}

/// Whether a TCP header is whole and has ACK, but nothing that opens or closes; or a UDP header is whole. `total` is the length of
/// the IP packet, whose header is `header` bytes long.
#[inline(always)]
fn upper_is_plain(protocol: u8, start: &[u8], l4: usize, total: usize, header: usize) -> bool {
    if protocol == protocol::TCP {
        // Flags above the length in words, in one number: what it has more than five words and ACK alone is sixteen times the rest of
        // the length, and is too much where a flag is another.
        let both = u16::from_le_bytes([start[l4 + 12], start[l4 + 13]]) & FLAGS_AND_LENGTH;
        let more = usize::from(both.wrapping_sub(ACK_AND_FIVE_WORDS));
        more <= 10 << 4 && header + 20 + (more >> 2) <= total
    } else {
        let udp = usize::from(short(start, l4 + 4));
        protocol == protocol::UDP && udp >= 8 && header + udp <= total
    }
}

/// A MAC address as the upper six bytes of a word, in the order of a frame read little-endian.
pub(super) fn address_word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([0, 0, a, b, c, d, e, f])
}

#[inline(always)]
fn key4(start: &[u8; SHORTEST]) -> Key4 {
    Key4 { source: chunk(start, 26), destination: chunk(start, 30), ports: chunk(start, 34), protocol: start[23] }
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
fn quad(bytes: &[u8; SHORTEST], at: usize) -> u32 {
    u32::from_le_bytes(chunk(bytes, at))
}

#[inline(always)]
fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Bytes of a table from which caches do not hold it: more than 262,144 IPv4 routes.
const CACHED: usize = (16 << 20) + 1;
/// Bytes from which pages have to be searched for: with 33 million IPv4 routes it made no difference, with 67 million a tenth.
const PAGED: usize = 2 << 30;
/// Ethernet, IPv4 and TCP without options; Ethernet pads shorter frames.
const SHORTEST: usize = 54;
/// Ethernet, IPv6 and TCP without options.
const SHORTEST6: usize = 74;
/// Flags of TCP that are looked at, and its header's length, as a word read little-endian.
const FLAGS_AND_LENGTH: u16 =
    u16::from_le_bytes([0xf0, tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK]);
/// A header without options that only acknowledges.
const ACK_AND_FIVE_WORDS: u16 = u16::from_le_bytes([5 << 4, tcp_flags::ACK]);
/// In the word of fragment, TTL and protocol, read little-endian: all of the TTL's bits but the lowest.
const TTL_ABOVE_ONE: u32 = 0xfe_0000;
/// EtherType, IP version and, for IPv4, header length in a word read little-endian.
pub(super) const ETHERTYPE_AND_VERSION: u64 = 0xff_ffff;
pub(super) const IPV4: u64 = 0x45_0008;
pub(super) const IPV6: u64 = 0x60_dd86;
