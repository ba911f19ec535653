//! The part of IPsec ESP (RFC 4303) that a device in between can read.

use std::fmt;

use super::bytes::{put_u32, slice, u32_at};
use super::malformed::{Malformed, need};

/// An ESP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const SPI: usize = 0;
    pub(super) const SEQUENCE: usize = 4;
    pub(super) const PAYLOAD: usize = 8;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = field::PAYLOAD;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the header is whole.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        Ok(Packet { buffer })
    }

    /// Security parameters index: with the destination, the association. 0 is IKE over UDP 4500 (RFC 3948).
    #[must_use]
    pub fn spi(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::SPI)
    }

    /// Sequence number.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::SEQUENCE)
    }

    /// What is encrypted.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::PAYLOAD..usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// The header as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// Security parameters index.
    pub spi: u32,
    /// Sequence number.
    pub sequence: u32,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { spi: packet.spi(), sequence: packet.sequence() }
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
        put_u32(buffer, field::SPI, self.spi);
        put_u32(buffer, field::SEQUENCE, self.sequence);
        Ok(HEADER_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "esp spi {:#010x} seq {}", self.spi, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_and_emit() {
        let data = [0xc0, 0xff, 0xee, 0x01, 0, 0, 0, 9, 0xaa];
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!(packet.to_string(), "esp spi 0xc0ffee01 seq 9");
        assert_eq!(packet.payload(), [0xaa]);
        let mut out = [0; 8];
        assert_eq!(Repr::parse(&packet).emit(&mut out), Ok(8));
        assert_eq!(out, data[..8]);
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..20)) {
            match Packet::new_checked(&data) {
                Ok(packet) => {
                    let mut out = [0; HEADER_LEN];
                    Repr::parse(&packet).emit(&mut out).unwrap();
                    prop_assert_eq!(&out[..], &data[..HEADER_LEN]);
                }
                Err(error) => prop_assert_eq!(error, Malformed::Truncated { needed: 8, have: data.len() }),
            }
        }
    }
}
