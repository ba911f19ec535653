//! ICMP for IPv6 (RFC 4443): echo, and the errors that quote a packet. Neighbour discovery is in `ndisc`.

use std::fmt;

use super::bytes::{put_u8, put_u16, put_u32, slice, slice_mut, u8_at, u16_at, u32_at};
use super::checksum;
use super::ip::{Addresses, Protocol};
use super::malformed::{Malformed, need};

/// Message types.
pub mod kind {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Neighbour solicitation (RFC 4861 4.3).
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement (RFC 4861 4.4).
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect (RFC 4861 4.5).
    pub const REDIRECT: u8 = 137;
}

/// Codes of "destination unreachable".
pub mod unreachable {
    /// Nobody listens on the port.
    pub const PORT: u8 = 4;
}

/// A message: header and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const CHECKSUM: usize = 2;
    pub(super) const REST: usize = 4;
    pub(super) const SEQUENCE: usize = 6;
    pub(super) const DATA: usize = 8;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = field::DATA;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the header is whole. The buffer is the upper layer's bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        Ok(Packet { buffer })
    }

    /// The type, one of [`kind`].
    #[must_use]
    pub fn kind(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::TYPE)
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::CODE)
    }

    /// The checksum.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::CHECKSUM)
    }

    /// Identifier of an echo.
    #[must_use]
    pub fn identifier(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::REST)
    }

    /// Sequence number of an echo.
    #[must_use]
    pub fn sequence(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::SEQUENCE)
    }

    /// MTU of "packet too big", in bytes of IP packet.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::REST)
    }

    /// What follows the header: an echo's data, an error's quoted packet.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::DATA..usize::MAX)
    }

    /// Whether it reports an error (or redirects): such a message is never answered by an error (RFC 4443 2.4).
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.kind() < 128 || self.kind() == kind::REDIRECT
    }

    /// The start of the IPv6 packet that an error is about.
    #[must_use]
    pub fn quoted(&self) -> Option<&[u8]> {
        matches!(self.kind(), kind::UNREACHABLE..=kind::PARAMETER_PROBLEM).then(|| self.data())
    }

    /// Checks the checksum.
    ///
    /// # Errors
    /// [`Malformed::BadChecksum`].
    pub fn verify_checksum(&self, addresses: Addresses) -> Result<(), Malformed> {
        let sum = checksum::upper_sum(addresses, Protocol::ICMPV6, self.buffer.as_ref());
        if sum.is_valid() { Ok(()) } else { Err(Malformed::BadChecksum(self.checksum())) }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the type.
    pub fn set_kind(&mut self, value: u8) {
        put_u8(self.buffer.as_mut(), field::TYPE, value);
    }

    /// Sets the code.
    pub fn set_code(&mut self, value: u8) {
        put_u8(self.buffer.as_mut(), field::CODE, value);
    }

    /// Sets the four bytes after the checksum.
    pub fn set_rest(&mut self, value: u32) {
        put_u32(self.buffer.as_mut(), field::REST, value);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, value);
    }

    /// Computes the checksum anew and sets it.
    pub fn fill_checksum(&mut self, addresses: Addresses) {
        self.set_checksum(0);
        let value = checksum::upper_checksum(addresses, Protocol::ICMPV6, self.buffer.as_ref());
        self.set_checksum(value);
    }

    /// What follows the header, to write to.
    pub fn data_mut(&mut self) -> &mut [u8] {
        slice_mut(self.buffer.as_mut(), field::DATA..usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Repr::parse(self) {
            Ok(repr) => repr.fmt(f),
            Err(_) => write!(f, "icmpv6 type {} code {}", self.kind(), self.code()),
        }
    }
}

/// A message's header as a value; data or quoted packet go beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repr {
    /// Answer this.
    EchoRequest {
        /// Of the asking program.
        identifier: u16,
        /// Of the request.
        sequence: u16,
    },
    /// The answer.
    EchoReply {
        /// As in the request.
        identifier: u16,
        /// As in the request.
        sequence: u16,
    },
    /// A packet did not arrive.
    Unreachable {
        /// Why.
        code: u8,
    },
    /// A packet is too big for the next link.
    PacketTooBig {
        /// What that link can carry, in bytes.
        mtu: u32,
    },
    /// A packet lived too long.
    TimeExceeded {
        /// 0 in transit, 1 while waiting for its fragments.
        code: u8,
    },
}

impl Repr {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Malformed::BadType`] for other messages.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        let (identifier, sequence) = (packet.identifier(), packet.sequence());
        match (packet.kind(), packet.code()) {
            (kind::ECHO_REQUEST, 0) => Ok(Repr::EchoRequest { identifier, sequence }),
            (kind::ECHO_REPLY, 0) => Ok(Repr::EchoReply { identifier, sequence }),
            (kind::UNREACHABLE, code) => Ok(Repr::Unreachable { code }),
            // RFC 4443 3.2: the code is ignored by the receiver.
            (kind::PACKET_TOO_BIG, _) => Ok(Repr::PacketTooBig { mtu: packet.mtu() }),
            (kind::TIME_EXCEEDED, code) => Ok(Repr::TimeExceeded { code }),
            (kind, code) => Err(Malformed::BadType(u16::from_be_bytes([kind, code]))),
        }
    }

    /// Bytes of the header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes header, data and checksum; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8], data: &[u8], addresses: Addresses) -> Result<usize, Malformed> {
        let len = HEADER_LEN + data.len();
        need(buffer, len)?;
        let echo = |identifier: u16, sequence: u16| u32::from(identifier) << 16 | u32::from(sequence);
        let (kind, code, rest) = match *self {
            Repr::EchoRequest { identifier, sequence } => (kind::ECHO_REQUEST, 0, echo(identifier, sequence)),
            Repr::EchoReply { identifier, sequence } => (kind::ECHO_REPLY, 0, echo(identifier, sequence)),
            Repr::Unreachable { code } => (kind::UNREACHABLE, code, 0),
            Repr::PacketTooBig { mtu } => (kind::PACKET_TOO_BIG, 0, mtu),
            Repr::TimeExceeded { code } => (kind::TIME_EXCEEDED, code, 0),
        };
        let mut packet = Packet { buffer: slice_mut(buffer, 0..len) };
        packet.set_kind(kind);
        packet.set_code(code);
        packet.set_rest(rest);
        packet.data_mut().copy_from_slice(data);
        packet.fill_checksum(addresses);
        Ok(len)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repr::EchoRequest { identifier, sequence } => write!(f, "icmpv6 echo request {identifier} seq {sequence}"),
            Repr::EchoReply { identifier, sequence } => write!(f, "icmpv6 echo reply {identifier} seq {sequence}"),
            Repr::Unreachable { code } => write!(f, "icmpv6 unreachable code {code}"),
            Repr::PacketTooBig { mtu } => write!(f, "icmpv6 packet too big mtu {mtu}"),
            Repr::TimeExceeded { code } => write!(f, "icmpv6 time exceeded code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    const ADDRESSES: Addresses = Addresses::V6 {
        source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
    };
    // smoltcp's own example.
    const ECHO: [u8; 12] = [0x80, 0x00, 0x19, 0xb3, 0x12, 0x34, 0xab, 0xcd, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn echo() {
        let packet = Packet::new_checked(ECHO).unwrap();
        assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
        let repr = Repr::parse(&packet).unwrap();
        assert_eq!(repr, Repr::EchoRequest { identifier: 0x1234, sequence: 0xabcd });
        assert!(!packet.is_error() && packet.quoted().is_none());
        assert_eq!(packet.to_string(), "icmpv6 echo request 4660 seq 43981");
        let mut out = [0; 12];
        assert_eq!(repr.emit(&mut out, packet.data(), ADDRESSES), Ok(12));
        assert_eq!(out, ECHO);
    }

    #[test]
    fn errors() {
        let repr = Repr::PacketTooBig { mtu: 1460 };
        let mut out = [0; 10];
        assert_eq!(repr.emit(&mut out, &[0x60, 0], ADDRESSES), Ok(10));
        let packet = Packet::new_checked(out).unwrap();
        assert!(packet.is_error());
        assert_eq!(packet.quoted(), Some(&[0x60, 0][..]));
        assert_eq!(packet.to_string(), "icmpv6 packet too big mtu 1460");
        out[9] ^= 1;
        let packet = Packet::new_checked(out).unwrap();
        assert_eq!(packet.verify_checksum(ADDRESSES), Err(Malformed::BadChecksum(packet.checksum())));
        out[0] = 137;
        assert!(Packet::new_checked(out).unwrap().is_error());
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(packet) = Packet::new_checked(&data) {
                let _ = (packet.to_string(), packet.verify_checksum(ADDRESSES), packet.quoted().map(<[u8]>::len));
            }
        }

        #[test]
        fn round_trip(which in 0..5, a: u16, b: u16, data in prop::collection::vec(any::<u8>(), 0..60)) {
            let repr = match which {
                0 => Repr::EchoRequest { identifier: a, sequence: b },
                1 => Repr::EchoReply { identifier: a, sequence: b },
                2 => Repr::Unreachable { code: unreachable::PORT },
                3 => Repr::PacketTooBig { mtu: a.into() },
                _ => Repr::TimeExceeded { code: a.to_be_bytes()[0] },
            };
            let mut out = vec![0xee; repr.len() + data.len()];
            repr.emit(&mut out, &data, ADDRESSES).unwrap();
            let packet = Packet::new_checked(&out).unwrap();
            prop_assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
            prop_assert_eq!(Repr::parse(&packet), Ok(repr));
            prop_assert_eq!(packet.data(), &data);
        }
    }
}
