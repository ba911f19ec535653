//! ICMP for IPv4 (RFC 792, next-hop MTU RFC 1191): echo, and the errors that quote a datagram.

use std::fmt;

use super::bytes::{put_u8, put_u16, put_u32, slice, slice_mut, u8_at, u16_at};
use super::checksum::{self, Sum};
use super::malformed::{Malformed, need};

/// Message types.
pub mod kind {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench (deprecated, RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of "destination unreachable".
pub mod unreachable {
    /// Nobody listens on the port.
    pub const PORT: u8 = 3;
    /// Too big for the next link, and must not be fragmented.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
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
    pub(super) const MTU: usize = 6;
    pub(super) const DATA: usize = 8;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = field::DATA;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the header is whole. The buffer is the IP payload.
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

    /// Next-hop MTU of "fragmentation needed", in bytes of IP packet; 0 from routers before RFC 1191.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::MTU)
    }

    /// What follows the header: an echo's data, an error's quoted datagram.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::DATA..usize::MAX)
    }

    /// Whether it reports an error: such a message is never answered by another.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(
            self.kind(),
            kind::UNREACHABLE | kind::SOURCE_QUENCH | kind::REDIRECT | kind::TIME_EXCEEDED | kind::PARAMETER_PROBLEM
        )
    }

    /// The start of the IPv4 datagram that an error is about.
    #[must_use]
    pub fn quoted(&self) -> Option<&[u8]> {
        self.is_error().then(|| self.data())
    }

    /// Checks the checksum.
    ///
    /// # Errors
    /// [`Malformed::BadChecksum`].
    pub fn verify_checksum(&self) -> Result<(), Malformed> {
        let sum = Sum::new().bytes(self.buffer.as_ref());
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
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let value = checksum::checksum(self.buffer.as_ref());
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
            Err(_) => write!(f, "icmp type {} code {}", self.kind(), self.code()),
        }
    }
}

/// A message's header as a value; data or quoted datagram go beside it.
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
    /// A datagram did not arrive.
    Unreachable {
        /// Why.
        code: u8,
        /// Next-hop MTU with [`unreachable::FRAGMENTATION_NEEDED`], else 0.
        mtu: u16,
    },
    /// A datagram lived too long.
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
            (kind::UNREACHABLE, code) => {
                let mtu = if code == unreachable::FRAGMENTATION_NEEDED { packet.mtu() } else { 0 };
                Ok(Repr::Unreachable { code, mtu })
            }
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
    pub fn emit(&self, buffer: &mut [u8], data: &[u8]) -> Result<usize, Malformed> {
        let len = HEADER_LEN + data.len();
        need(buffer, len)?;
        let echo = |identifier: u16, sequence: u16| u32::from(identifier) << 16 | u32::from(sequence);
        let (kind, code, rest) = match *self {
            Repr::EchoRequest { identifier, sequence } => (kind::ECHO_REQUEST, 0, echo(identifier, sequence)),
            Repr::EchoReply { identifier, sequence } => (kind::ECHO_REPLY, 0, echo(identifier, sequence)),
            Repr::Unreachable { code, mtu } => (kind::UNREACHABLE, code, u32::from(mtu)),
            Repr::TimeExceeded { code } => (kind::TIME_EXCEEDED, code, 0),
        };
        let mut packet = Packet { buffer: slice_mut(buffer, 0..len) };
        packet.set_kind(kind);
        packet.set_code(code);
        packet.set_rest(rest);
        packet.data_mut().copy_from_slice(data);
        packet.fill_checksum();
        Ok(len)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repr::EchoRequest { identifier, sequence } => write!(f, "icmp echo request {identifier} seq {sequence}"),
            Repr::EchoReply { identifier, sequence } => write!(f, "icmp echo reply {identifier} seq {sequence}"),
            Repr::Unreachable { code: unreachable::FRAGMENTATION_NEEDED, mtu } => {
                write!(f, "icmp fragmentation needed mtu {mtu}")
            }
            Repr::Unreachable { code, .. } => write!(f, "icmp unreachable code {code}"),
            Repr::TimeExceeded { code } => write!(f, "icmp time exceeded code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // smoltcp's own example.
    const ECHO: [u8; 12] = [0x08, 0x00, 0x8e, 0xfe, 0x12, 0x34, 0xab, 0xcd, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn echo() {
        let packet = Packet::new_checked(ECHO).unwrap();
        assert_eq!(packet.verify_checksum(), Ok(()));
        let repr = Repr::parse(&packet).unwrap();
        assert_eq!(repr, Repr::EchoRequest { identifier: 0x1234, sequence: 0xabcd });
        assert_eq!(packet.to_string(), "icmp echo request 4660 seq 43981");
        assert_eq!(packet.quoted(), None);
        let mut out = [0; 12];
        assert_eq!(repr.emit(&mut out, packet.data()), Ok(12));
        assert_eq!(out, ECHO);
    }

    #[test]
    fn too_big() {
        let data = [0x03, 0x04, 0xf7, 0x23, 0x00, 0x00, 0x05, 0xd8];
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!(packet.verify_checksum(), Ok(()));
        assert_eq!(Repr::parse(&packet), Ok(Repr::Unreachable { code: 4, mtu: 1496 }));
        assert_eq!(packet.quoted(), Some(&[][..]));
        let mut bad = data;
        bad[7] = 0;
        assert_eq!(Packet::new_checked(bad).unwrap().verify_checksum(), Err(Malformed::BadChecksum(0xf723)));
        bad[0] = 42;
        assert_eq!(Repr::parse(&Packet::new_checked(bad).unwrap()), Err(Malformed::BadType(0x2a04)));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(packet) = Packet::new_checked(&data) {
                let _ = (packet.to_string(), packet.verify_checksum(), packet.quoted().map(<[u8]>::len));
            }
        }

        #[test]
        fn round_trip(which in 0..5, a: u16, b: u16, data in prop::collection::vec(any::<u8>(), 0..60)) {
            let repr = match which {
                0 => Repr::EchoRequest { identifier: a, sequence: b },
                1 => Repr::EchoReply { identifier: a, sequence: b },
                2 => Repr::Unreachable { code: unreachable::PORT, mtu: 0 },
                3 => Repr::Unreachable { code: unreachable::FRAGMENTATION_NEEDED, mtu: a },
                _ => Repr::TimeExceeded { code: a.to_be_bytes()[0] },
            };
            let mut out = vec![0xee; repr.len() + data.len()];
            repr.emit(&mut out, &data).unwrap();
            let packet = Packet::new_checked(&out).unwrap();
            prop_assert_eq!(packet.verify_checksum(), Ok(()));
            prop_assert_eq!(Repr::parse(&packet), Ok(repr));
            prop_assert_eq!(packet.data(), &data);
        }
    }
}
