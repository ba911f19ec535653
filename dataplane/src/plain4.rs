//! Plain IPv4 packets (no options, in one piece) behind an Ethernet header without tags: what is changed in them, word by word.

use crate::flow::protocol;

/// One hop less to live; the checksum follows, RFC 1624.
#[inline(always)]
pub(crate) fn decrement_ttl<const N: usize>(frame: &mut [u8; N]) {
    // TTL, protocol and checksum as one little-endian word: its lowest byte loses one, so its upper half gains one, with end-around
    // carry. All ones would be the other zero (RFC 1624 section 3), which no header has: 2 is added at first, so that both carry.
    let word = u32::from_le_bytes([frame[22], frame[23], frame[24], frame[25]]);
    let (word, carry) = word.overflowing_add(0x1_ffff);
    let word = word.wrapping_sub(u32::from(!carry) << 16);
    frame[22..26].copy_from_slice(&word.to_le_bytes());
}

/// Both ends of such a segment or datagram: its addresses and its ports as they are to stand there, read little-endian. The same as
/// [`crate::rewrite`] does in fewer instructions: sums do not mind the order of bytes, RFC 1071.
#[inline(always)]
pub(crate) fn translate(frame: &mut [u8; 54], addresses: u64, ports: u32) {
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    let native = |frame: &[u8; 54], at: usize| u64::from(u16::from_ne_bytes([frame[at], frame[at + 1]]));
    // What the sums of words gain, as positive numbers: RFC 1624's ~m + m'.
    let gained = halves(!self::addresses(frame).to_le()) + halves(addresses.to_le());
    let gained_by_ports = u64::from(!self::ports(frame).to_le()) + u64::from(ports.to_le());
    let header = !folded((native(frame, 24) ^ 0xffff) + gained);
    frame[24..26].copy_from_slice(&header.to_ne_bytes());
    frame[26..34].copy_from_slice(&addresses.to_le_bytes());
    frame[34..38].copy_from_slice(&ports.to_le_bytes());
    let udp = frame[23] == protocol::UDP;
    let at = if udp { 40 } else { 50 };
    let check = native(frame, at);
    if udp && check == 0 {
        return;
    }
    let upper = !folded((check ^ 0xffff) + gained + gained_by_ports);
    let upper = if udp && upper == 0 { 0xffff } else { upper };
    frame[at..at + 2].copy_from_slice(&upper.to_ne_bytes());
}

/// Its addresses, source first, read little-endian.
#[inline(always)]
pub(crate) fn addresses<const N: usize>(frame: &[u8; N]) -> u64 {
    frame[26..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Its ports, the same way.
#[inline(always)]
pub(crate) fn ports<const N: usize>(frame: &[u8; N]) -> u32 {
    frame[34..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A ones' complement sum in sixteen bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded until it fits")]
fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
