//! The walk over IPv6 extension headers (RFC 8200 4): from the fixed header to the upper protocol, bounded and total.

use std::fmt;

use super::bytes::{put_u8, put_u16, put_u32};
use super::bytes::{slice, u8_at, u16_at, u32_at};
use super::ip::Protocol;
use super::malformed::{Malformed, need};

/// Headers in one chain that are stepped over. RFC 8200 allows seven in a sensible packet.
pub const MAX_HEADERS: usize = 8;

/// What a fragment header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Where the piece stands in the fragmentable part, in bytes.
    pub offset: u16,
    /// Whether pieces follow.
    pub more: bool,
    /// Which packet it belongs to.
    pub identification: u32,
}

impl Fragment {
    /// Whether the packet is whole in spite of its fragment header (an atomic fragment, RFC 6946).
    #[must_use]
    pub fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upper {
    /// The upper protocol; in a fragment that is not the first, the one the first began with in its fragmentable part.
    pub protocol: Protocol,
    /// Where it begins, in bytes from the first extension header.
    pub offset: usize,
    /// Where the field stands that names the upper protocol, in bytes from the first extension header; none if the fixed
    /// header names it.
    pub named_at: Option<usize>,
    /// What the fragment header says, if there is one.
    pub fragment: Option<Fragment>,
    /// Whether a routing header still has stops to visit: the destination address is not the last one.
    pub segments_left: bool,
    /// Whether an authentication header covers addresses and payload: rewriting would break it.
    pub authenticated: bool,
}

/// Walks from the header `first`, at the start of `data`, to the upper protocol.
///
/// Hop-by-hop options, routing, fragment, destination options and authentication headers are stepped over; anything else
/// ends the chain and is the upper protocol, ESP and "no next header" among them. Behind the header of a later fragment
/// there is only data: the walk ends there.
///
/// # Errors
/// [`Malformed::Truncated`], [`Malformed::TooManyHeaders`], and [`Malformed::BadHeader`] for hop-by-hop options that are
/// not first, a second fragment header, or one of the headers (mobility, HIP, shim6, experimental) that this walk does not
/// step over.
pub fn walk(first: Protocol, data: &[u8]) -> Result<Upper, Malformed> {
    let mut upper = Upper {
        protocol: first,
        offset: 0,
        named_at: None,
        fragment: None,
        segments_left: false,
        authenticated: false,
    };
    for step in 0..=MAX_HEADERS {
        let at = upper.offset;
        let length = match upper.protocol {
            Protocol::HOP_BY_HOP if step > 0 => return Err(Malformed::BadHeader(upper.protocol.0)),
            Protocol::HOP_BY_HOP | Protocol::ROUTING | Protocol::DESTINATION_OPTIONS => {
                need(data, at + 8)?;
                if upper.protocol == Protocol::ROUTING {
                    upper.segments_left |= u8_at(data, at + 3) != 0;
                }
                (usize::from(u8_at(data, at + 1)) + 1) * 8
            }
            Protocol::AH => {
                need(data, at + 8)?;
                upper.authenticated = true;
                (usize::from(u8_at(data, at + 1)) + 2) * 4
            }
            Protocol::FRAGMENT => {
                need(data, at + FRAGMENT_LEN)?;
                if upper.fragment.is_some() {
                    return Err(Malformed::BadHeader(upper.protocol.0));
                }
                let field = u16_at(data, at + 2);
                upper.fragment =
                    Some(Fragment { offset: field & !7, more: field & 1 != 0, identification: u32_at(data, at + 4) });
                FRAGMENT_LEN
            }
            // Mobility, HIP, shim6, experiments: extension headers that no load-balanced packet has.
            Protocol(number @ (135 | 139 | 140 | 253 | 254)) => return Err(Malformed::BadHeader(number)),
            _ => return Ok(upper),
        };
        if step == MAX_HEADERS {
            break;
        }
        need(data, at + length)?;
        upper.protocol = Protocol(u8_at(data, at));
        upper.named_at = Some(at);
        upper.offset = at + length;
        if upper.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Ok(upper);
        }
    }
    Err(Malformed::TooManyHeaders(MAX_HEADERS))
}

/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

/// A generic extension header: hop-by-hop options, routing, destination options, or a fragment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once a header of the kind that counts its length in 8-byte units is whole.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), 8)?;
        let packet = Packet { buffer };
        need(packet.buffer.as_ref(), packet.header_len())?;
        Ok(packet)
    }

    /// What follows.
    #[must_use]
    pub fn next_header(&self) -> Protocol {
        Protocol(u8_at(self.buffer.as_ref(), 0))
    }

    /// Bytes of the header.
    #[must_use]
    pub fn header_len(&self) -> usize {
        (usize::from(u8_at(self.buffer.as_ref(), 1)) + 1) * 8
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), self.header_len()..usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extension header of {} bytes, then {}", self.header_len(), self.next_header())
    }
}

/// A fragment header as a value: the one extension header that we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// What the fragmentable part begins with.
    pub next_header: Protocol,
    /// Which piece it is.
    pub fragment: Fragment,
}

impl Repr {
    /// Reads a fragment header.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn parse(data: &[u8]) -> Result<Repr, Malformed> {
        need(data, FRAGMENT_LEN)?;
        let field = u16_at(data, 2);
        let fragment = Fragment { offset: field & !7, more: field & 1 != 0, identification: u32_at(data, 4) };
        Ok(Repr { next_header: Protocol(u8_at(data, 0)), fragment })
    }

    /// Bytes of the header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        FRAGMENT_LEN
    }

    /// Writes the header; the offset loses its lower three bits. Says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        need(buffer, FRAGMENT_LEN)?;
        put_u8(buffer, 0, self.next_header.0);
        put_u8(buffer, 1, 0);
        put_u16(buffer, 2, self.fragment.offset & !7 | u16::from(self.fragment.more));
        put_u32(buffer, 4, self.fragment.identification);
        Ok(FRAGMENT_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fragment { offset, more, identification } = self.fragment;
        let last = if more { "" } else { ", the last" };
        write!(f, "fragment {identification:#010x} at {offset}{last}, {}", self.next_header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(protocol: Protocol, offset: usize, named_at: usize) -> Upper {
        Upper { protocol, offset, named_at: Some(named_at), fragment: None, segments_left: false, authenticated: false }
    }

    #[test]
    fn nothing_to_step_over() {
        for protocol in [Protocol::TCP, Protocol::ESP, Protocol::NO_NEXT, Protocol::IPV4] {
            let upper = walk(protocol, &[]).unwrap();
            assert_eq!((upper.protocol, upper.offset, upper.named_at), (protocol, 0, None));
        }
    }

    #[test]
    fn the_recommended_order() {
        let mut chain = Vec::new();
        chain.extend([60, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop: PadN
        chain.extend([43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // destination options
        chain.extend([51, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // routing
        chain.extend([6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // AH, 24 bytes
        let upper = walk(Protocol::HOP_BY_HOP, &chain).unwrap();
        assert_eq!(upper, Upper { segments_left: true, authenticated: true, ..plain(Protocol::TCP, 72, 48) });
        for cut in 0..chain.len() {
            assert!(matches!(walk(Protocol::HOP_BY_HOP, &chain[..cut]), Err(Malformed::Truncated { .. })));
        }
    }

    #[test]
    fn fragments() {
        let first = [17, 0, 0x00, 0x01, 0xde, 0xad, 0xbe, 0xef];
        let upper = walk(Protocol::FRAGMENT, &first).unwrap();
        let fragment = Fragment { offset: 0, more: true, identification: 0xdead_beef };
        assert_eq!(upper, Upper { fragment: Some(fragment), ..plain(Protocol::UDP, 8, 0) });
        assert_eq!(Repr::parse(&first).unwrap().to_string(), "fragment 0xdeadbeef at 0, udp");
        // A later piece: destination options are named, but what follows is data.
        let later = [60, 0, 0x05, 0xa8, 0, 0, 0, 1, 0xff, 0xff];
        let upper = walk(Protocol::FRAGMENT, &later).unwrap();
        assert_eq!((upper.protocol, upper.offset), (Protocol::DESTINATION_OPTIONS, 8));
        assert_eq!(upper.fragment.unwrap().offset, 1448);
        assert!(Fragment { offset: 0, more: false, identification: 3 }.is_atomic());
        let twice = [44, 0, 0, 1, 0, 0, 0, 1, 6, 0, 0, 1, 0, 0, 0, 1];
        assert_eq!(walk(Protocol::FRAGMENT, &twice), Err(Malformed::BadHeader(44)));
    }

    #[test]
    fn chains_that_lead_nowhere() {
        let loops = [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(40);
        assert_eq!(walk(Protocol::DESTINATION_OPTIONS, &loops), Err(Malformed::TooManyHeaders(MAX_HEADERS)));
        let misplaced = [0, 0, 1, 4, 0, 0, 0, 0].repeat(2);
        assert_eq!(walk(Protocol::DESTINATION_OPTIONS, &misplaced), Err(Malformed::BadHeader(0)));
        assert_eq!(walk(Protocol(135), &[]), Err(Malformed::BadHeader(135)));
        let mut longest = [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(MAX_HEADERS);
        longest[(MAX_HEADERS - 1) * 8] = 6;
        assert_eq!(walk(Protocol::DESTINATION_OPTIONS, &longest), Ok(plain(Protocol::TCP, 64, 56)));
    }

    #[test]
    fn one_header() {
        let data = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xaa];
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!((packet.header_len(), packet.payload()), (16, &[0xaa][..]));
        assert_eq!(packet.to_string(), "extension header of 16 bytes, then tcp");
        assert_eq!(Packet::new_checked(&data[..15]), Err(Malformed::Truncated { needed: 16, have: 15 }));
    }

    proptest! {
        #[test]
        fn any_bytes(first: u8, data in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(upper) = walk(Protocol(first), &data) {
                prop_assert!(upper.offset <= data.len());
            }
            let _ = Packet::new_checked(&data).map(|packet| packet.payload().len());
        }

        #[test]
        fn any_chain(kinds in prop::collection::vec(prop::sample::select(vec![0u8, 43, 44, 51, 60, 6]), 1..12),
                     lengths in prop::collection::vec(0u8..3, 12), cut in 0usize..400) {
            let mut data = Vec::new();
            for (at, kind) in kinds.iter().enumerate() {
                let units = lengths[at];
                let bytes = match kind {
                    44 => 8,
                    51 => (usize::from(units) + 2) * 4,
                    _ => (usize::from(units) + 1) * 8,
                };
                let mut header = vec![0; bytes];
                header[0] = kinds.get(at + 1).copied().unwrap_or(17);
                header[1] = units;
                data.extend(header);
            }
            data.truncate(cut);
            if let Ok(upper) = walk(Protocol(kinds[0]), &data) {
                prop_assert!(upper.offset <= data.len());
                prop_assert_eq!(upper.named_at.map_or(kinds[0], |at| data[at]), upper.protocol.0);
            }
        }

        #[test]
        fn round_trip(next_header: u8, units in 0u16..8192, more: bool, identification: u32) {
            let fragment = Fragment { offset: units << 3, more, identification };
            let repr = Repr { next_header: Protocol(next_header), fragment };
            let mut out = [0xee; FRAGMENT_LEN];
            repr.emit(&mut out).unwrap();
            prop_assert_eq!(Repr::parse(&out), Ok(repr));
        }
    }
}
