//! The Internet checksum (RFC 1071), its pseudo headers, and its incremental update (RFC 1624): what every rewrite leans on.
//!
//! A [`Sum`] adds up bytes, a [`Delta`] is the difference that a rewrite makes. The forwarder computes a route's delta once;
//! applying it to a packet is one addition and a fold. Deltas add, so the addresses' delta (IP header) is a part of the
//! addresses' and ports' delta (TCP, UDP).
//!
//! One's complement has two zeroes. A checksum field that was right is updated to exactly the value a new computation would
//! give; a field that held the other zero stays a valid one. UDP over IPv4 sends 0 for "not computed" (RFC 768): the `udp`
//! functions leave that alone and never produce it.

use std::ops::Neg;

use super::ip::{Addresses, Protocol};

/// A running one's complement sum. All pieces but the last must have an even number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64); // 16-bit words in native order, carries not folded

impl Sum {
    /// The empty sum.
    #[inline]
    #[must_use]
    pub const fn new() -> Sum {
        Sum(0)
    }

    /// Adds bytes, eight at a time; an odd last byte counts as the upper half of a word.
    #[inline]
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Sum {
        let mut sum = self.0;
        let (chunks, rest) = data.as_chunks::<8>();
        for chunk in chunks {
            let word = u64::from_ne_bytes(*chunk);
            // Halves cannot overflow before 32 GiB, and leave the compiler free to vectorize.
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        // The rest by halves: a copy into eight bytes would cost more than the whole of an IP header.
        let rest = if let Some((word, rest)) = rest.split_first_chunk::<4>() {
            sum += u64::from(u32::from_ne_bytes(*word));
            rest
        } else {
            rest
        };
        let rest = if let Some((word, rest)) = rest.split_first_chunk::<2>() {
            sum += u64::from(u16::from_ne_bytes(*word));
            rest
        } else {
            rest
        };
        if let Some(last) = rest.first() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Sum(sum)
    }

    /// Adds one 16-bit word.
    #[inline]
    #[must_use]
    pub const fn u16(self, value: u16) -> Sum {
        Sum(self.0 + value.to_be() as u64)
    }

    /// Adds one 32-bit word, which stands at an even place.
    #[inline]
    #[must_use]
    pub const fn u32(self, value: u32) -> Sum {
        Sum(self.0 + value.to_be() as u64)
    }

    /// Adds the pseudo header of TCP, UDP (RFC 9293, RFC 768) or ICMPv6 (RFC 8200 8.1); `length` is the upper layer's, in bytes.
    #[inline]
    #[must_use]
    pub fn pseudo_header(self, addresses: Addresses, protocol: Protocol, length: u32) -> Sum {
        let sum = match addresses {
            Addresses::V4 { source, destination } => {
                self.u32(u32::from_be_bytes(source.octets())).u32(u32::from_be_bytes(destination.octets()))
            }
            Addresses::V6 { source, destination } => self.bytes(&source.octets()).bytes(&destination.octets()),
        };
        sum.u32(length).u16(protocol.0 as u16)
    }

    /// The sum in 16 bits, not complemented.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// The value of a checksum field that was zero (or left out) while summing.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// As [`Sum::checksum`], for UDP: a computed 0 is sent as 0xffff.
    #[inline]
    #[must_use]
    pub const fn udp_checksum(self) -> u16 {
        nonzero(self.checksum())
    }

    /// Whether the bytes, checksum field included, fit together.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The checksum of `data` without a pseudo header, as in IPv4 headers and ICMPv4.
#[inline]
#[must_use]
pub fn checksum(data: &[u8]) -> u16 {
    Sum::new().bytes(data).checksum()
}

/// The checksum of an upper-layer packet under its pseudo header, its checksum field being zero.
#[inline]
#[must_use]
pub fn upper_checksum(addresses: Addresses, protocol: Protocol, data: &[u8]) -> u16 {
    upper_sum(addresses, protocol, data).checksum()
}

/// The sum over pseudo header and upper-layer packet.
#[inline]
#[must_use]
pub fn upper_sum(addresses: Addresses, protocol: Protocol, data: &[u8]) -> Sum {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    Sum::new().pseudo_header(addresses, protocol, length).bytes(data)
}

/// The difference between old and new words in one's complement. The default makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Delta(u16);

impl Delta {
    /// No difference.
    pub const NONE: Delta = Delta(0);

    /// The difference of one 16-bit word.
    #[inline]
    #[must_use]
    pub const fn of_u16(old: u16, new: u16) -> Delta {
        if old == new { Delta::NONE } else { Delta(add(!old, new)) }
    }

    /// The difference of a 32-bit field at an even place: an IPv4 address, a sequence number.
    #[inline]
    #[must_use]
    pub const fn of_u32(old: u32, new: u32) -> Delta {
        if old == new { Delta::NONE } else { Delta(fold(!old as u64 + new as u64)) }
    }

    /// The difference of an IPv6 address.
    #[inline]
    #[must_use]
    pub fn of_addr16(old: [u8; 16], new: [u8; 16]) -> Delta {
        Delta::of_sums(Sum::new().bytes(&old), Sum::new().bytes(&new))
    }

    /// The difference between two sums: of any old bytes and what replaces them at the same even place.
    #[inline]
    #[must_use]
    pub const fn of_sums(old: Sum, new: Sum) -> Delta {
        Delta::of_u16(old.fold(), new.fold())
    }

    /// Both differences together.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Delta) -> Delta {
        Delta(add(self.0, other.0))
    }

    /// The checksum field after the change.
    #[inline]
    #[must_use]
    pub const fn apply(self, check: u16) -> u16 {
        !add(!check, self.0)
    }

    /// As [`Delta::apply`], for UDP: 0 ("not computed") stays, and no other value becomes 0.
    #[inline]
    #[must_use]
    pub const fn apply_udp(self, check: u16) -> u16 {
        if check == 0 { 0 } else { nonzero(self.apply(check)) }
    }
}

impl Neg for Delta {
    type Output = Delta;

    /// The difference the other way round: for the packets that come back.
    #[inline]
    fn neg(self) -> Delta {
        if self.0 == 0 { self } else { Delta(!self.0) }
    }
}

/// The checksum field after a 16-bit word changed (RFC 1624, equation 3).
#[inline]
#[must_use]
pub const fn update_u16(check: u16, old: u16, new: u16) -> u16 {
    Delta::of_u16(old, new).apply(check)
}

/// The checksum field after a 32-bit field at an even place changed.
#[inline]
#[must_use]
pub const fn update_u32(check: u16, old: u32, new: u32) -> u16 {
    Delta::of_u32(old, new).apply(check)
}

/// The checksum field after an IPv6 address changed.
#[inline]
#[must_use]
pub fn update_addr16(check: u16, old: [u8; 16], new: [u8; 16]) -> u16 {
    Delta::of_addr16(old, new).apply(check)
}

/// The one's complement sum of two words. Zero only for zeroes.
#[inline]
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16 // after a carry the sum is at most 0xfffe
}

/// Folds the carries in. Zero only for zero.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the last addition leaves at most 16 bits")]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32); // 33 bits
    let sum = (sum & 0xffff) + (sum >> 16); // 18 bits
    let sum = (sum & 0xffff) + (sum >> 16); // 17 bits, and then at most 2 in the lower 16
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The other zero for zero.
#[inline]
const fn nonzero(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written: word by word.
    fn by_the_book(data: &[u8]) -> u16 {
        let mut sum = 0u64;
        for word in data.chunks(2) {
            sum += u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(Sum::new().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: with equation 2 this gave the wrong zero.
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn ipv4_header() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
            0x00, 0xc7,
        ];
        assert!(Sum::new().bytes(&header).is_valid());
        let mut blank = header;
        blank[10..12].fill(0);
        assert_eq!(checksum(&blank), 0xb861);
    }

    #[test]
    fn udp_zero_means_not_computed() {
        let delta = Delta::of_u16(80, 8080);
        assert_eq!(delta.apply_udp(0), 0);
        // A change that makes the computed checksum zero is sent as 0xffff.
        let check = 0x1234;
        let delta = Delta::of_u16(0, check);
        assert_eq!(delta.apply(check), 0);
        assert_eq!(delta.apply_udp(check), 0xffff);
    }

    #[test]
    fn no_change_makes_no_difference() {
        for check in 0..=u16::MAX {
            assert_eq!(Delta::NONE.apply(check), check);
            assert_eq!(update_u16(check, 7, 7), check);
        }
    }

    proptest! {
        #[test]
        fn fast_sum_is_the_books(data in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::new().bytes(&data).fold(), by_the_book(&data));
        }

        #[test]
        fn sums_add_at_even_places(data in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
            let cut = (cut * 2).min(data.len() & !1);
            let (head, tail) = data.split_at(cut);
            prop_assert_eq!(Sum::new().bytes(head).bytes(tail).fold(), by_the_book(&data));
        }

        #[test]
        fn incremental_is_recomputed(
            mut data in prop::collection::vec(any::<u8>(), 40..200),
            at in 0usize..10,
            word: u16,
            long: u32,
            address: [u8; 16],
        ) {
            data[0] = 0x45; // as in any packet, not all bytes are zero
            data[1] = 0;
            let at = 2 + at * 2;
            let before = checksum(&data);

            let mut changed = data.clone();
            let old = u16::from_be_bytes([data[at], data[at + 1]]);
            changed[at..at + 2].copy_from_slice(&word.to_be_bytes());
            prop_assert_eq!(update_u16(before, old, word), checksum(&changed));

            let mut changed = data.clone();
            let old = u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
            changed[at..at + 4].copy_from_slice(&long.to_be_bytes());
            prop_assert_eq!(update_u32(before, old, long), checksum(&changed));

            let mut changed = data.clone();
            let old: [u8; 16] = data[at..at + 16].try_into().unwrap();
            changed[at..at + 16].copy_from_slice(&address);
            prop_assert_eq!(update_addr16(before, old, address), checksum(&changed));
            prop_assert_eq!((-Delta::of_addr16(old, address)).apply(checksum(&changed)), before);
        }

        #[test]
        fn deltas_add(
            mut data in prop::collection::vec(any::<u8>(), 40..80), address: [u8; 16], word: u16, long: u32,
        ) {
            data[38] = 1;
            let mut changed = data.clone();
            changed[..16].copy_from_slice(&address);
            changed[16..18].copy_from_slice(&word.to_be_bytes());
            changed[20..24].copy_from_slice(&long.to_be_bytes());
            let delta = Delta::of_addr16(data[..16].try_into().unwrap(), address)
                .and(Delta::of_u16(u16::from_be_bytes([data[16], data[17]]), word))
                .and(Delta::of_u32(u32::from_be_bytes(data[20..24].try_into().unwrap()), long));
            prop_assert_eq!(delta.apply(checksum(&data)), checksum(&changed));
            prop_assert_eq!(delta.and(-delta).apply(checksum(&data)), checksum(&data));
        }

        #[test]
        fn a_valid_field_stays_valid(data in prop::collection::vec(any::<u8>(), 4..60), new: u16, either_zero: bool) {
            // Whatever the packet, and with either zero in the field, the updated field verifies.
            let check = match checksum(&data) {
                0 if either_zero => 0xffff,
                check => check,
            };
            let mut data = data;
            let old = u16::from_be_bytes([data[0], data[1]]);
            data[..2].copy_from_slice(&new.to_be_bytes());
            let check = Delta::of_u16(old, new).apply(check);
            if data.iter().any(|byte| *byte != 0) {
                prop_assert!(Sum::new().u16(check).bytes(&data).is_valid());
            }
        }
    }
}
