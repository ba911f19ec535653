//! Generic UDP encapsulation, variant 0 (draft-ietf-intarea-gue-09 3): the header between UDP and the inner packet.

use std::fmt;

use super::bytes::{put_u8, put_u16, slice, u8_at, u16_at};
use super::ip::Protocol;
use super::malformed::{Malformed, need};

/// The UDP port that IANA assigned.
pub const PORT: u16 = 6080;

/// A GUE packet: header with extension fields, and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const VARIANT: usize = 0;
    pub(super) const PROTOCOL: usize = 1;
    pub(super) const FLAGS: usize = 2;
    pub(super) const EXTENSIONS: usize = 4;
}

/// Bytes of a header without extension fields.
pub const HEADER_LEN: usize = field::EXTENSIONS;
const CONTROL: u8 = 0x20;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the header with its extension fields is whole.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadVersion`] for variant 1 (a bare IP header) and others.
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        let packet = Packet { buffer };
        if packet.variant() != 0 {
            return Err(Malformed::BadVersion(packet.variant()));
        }
        need(packet.buffer.as_ref(), packet.header_len())?;
        Ok(packet)
    }

    /// The variant: 0.
    #[must_use]
    pub fn variant(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::VARIANT) >> 6
    }

    /// Whether it is a control message; then [`Packet::protocol`] is a control type.
    #[must_use]
    pub fn is_control(&self) -> bool {
        u8_at(self.buffer.as_ref(), field::VARIANT) & CONTROL != 0
    }

    /// Bytes of header and extension fields.
    #[must_use]
    pub fn header_len(&self) -> usize {
        HEADER_LEN + usize::from(u8_at(self.buffer.as_ref(), field::VARIANT) & 0x1f) * 4
    }

    /// What the payload is.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        Protocol(u8_at(self.buffer.as_ref(), field::PROTOCOL))
    }

    /// Which extension fields there are.
    #[must_use]
    pub fn flags(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::FLAGS)
    }

    /// The extension fields.
    #[must_use]
    pub fn extensions(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::EXTENSIONS..self.header_len())
    }

    /// The inner packet.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), self.header_len()..usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// A header without extension fields, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// Whether it is a control message.
    pub control: bool,
    /// What the payload is; a control type in a control message.
    pub protocol: Protocol,
}

impl Repr {
    /// A data packet that carries `protocol`.
    #[must_use]
    pub const fn data(protocol: Protocol) -> Repr {
        Repr { control: false, protocol }
    }

    /// Reads the header; extension fields are left out.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { control: packet.is_control(), protocol: packet.protocol() }
    }

    /// Bytes of the header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        need(buffer, HEADER_LEN)?;
        put_u8(buffer, field::VARIANT, if self.control { CONTROL } else { 0 });
        put_u8(buffer, field::PROTOCOL, self.protocol.0);
        put_u16(buffer, field::FLAGS, 0);
        Ok(HEADER_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.control { write!(f, "gue control {}", self.protocol.0) } else { write!(f, "gue {}", self.protocol) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_and_emit() {
        let data = [0x01, 0x29, 0x80, 0x00, 0xde, 0xad, 0xbe, 0xef, 0x60];
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!((packet.flags(), packet.extensions()), (0x8000, &[0xde, 0xad, 0xbe, 0xef][..]));
        assert_eq!(packet.payload(), [0x60]);
        assert_eq!(packet.to_string(), "gue ipv6");
        let mut out = [0xee; 4];
        assert_eq!(Repr::data(Protocol::IPV4).emit(&mut out), Ok(4));
        assert_eq!(out, [0, 4, 0, 0]);
    }

    #[test]
    fn malformed() {
        assert_eq!(Packet::new_checked([0x45, 0, 0, 0]), Err(Malformed::BadVersion(1)));
        assert_eq!(Packet::new_checked([0x02, 4, 0, 0, 0]), Err(Malformed::Truncated { needed: 12, have: 5 }));
        assert_eq!(Packet::new_checked([0; 3]), Err(Malformed::Truncated { needed: 4, have: 3 }));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = Packet::new_checked(&data) {
                let _ = packet.to_string();
                prop_assert_eq!(packet.header_len() + packet.payload().len(), data.len());
            }
        }

        #[test]
        fn round_trip(control: bool, protocol: u8) {
            let repr = Repr { control, protocol: Protocol(protocol) };
            let mut out = [0xee; HEADER_LEN];
            repr.emit(&mut out).unwrap();
            prop_assert_eq!(Repr::parse(&Packet::new_checked(out).unwrap()), repr);
        }
    }
}
