//! UDP (RFC 768).

use std::fmt;

use super::bytes::{put_u16, slice, slice_mut, u16_at};
use super::checksum;
use super::ip::{Addresses, Protocol};
use super::malformed::{Malformed, need};

/// A datagram: header and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const SOURCE_PORT: usize = 0;
    pub(super) const DESTINATION_PORT: usize = 2;
    pub(super) const LENGTH: usize = 4;
    pub(super) const CHECKSUM: usize = 6;
    pub(super) const PAYLOAD: usize = 8;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = field::PAYLOAD;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the length fits the buffer, which is the IP payload.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadLength`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        let packet = Packet { buffer };
        if packet.datagram_len() < HEADER_LEN {
            return Err(Malformed::BadLength { stated: packet.datagram_len(), expected: HEADER_LEN });
        }
        need(packet.buffer.as_ref(), packet.datagram_len())?;
        Ok(packet)
    }

    /// The sender's port.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::SOURCE_PORT)
    }

    /// The receiver's port.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::DESTINATION_PORT)
    }

    /// Bytes of header and payload, as stated.
    #[must_use]
    pub fn datagram_len(&self) -> usize {
        u16_at(self.buffer.as_ref(), field::LENGTH).into()
    }

    /// The checksum; 0 says "not computed".
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::CHECKSUM)
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::PAYLOAD..self.datagram_len())
    }

    /// Checks the checksum. Over IPv4, "not computed" is fine; over IPv6 it is not (RFC 8200 8.1).
    ///
    /// # Errors
    /// [`Malformed::BadChecksum`].
    pub fn verify_checksum(&self, addresses: Addresses) -> Result<(), Malformed> {
        let fits = match (self.checksum(), addresses) {
            (0, Addresses::V4 { .. }) => true,
            (0, Addresses::V6 { .. }) => false,
            _ => {
                let datagram = slice(self.buffer.as_ref(), 0..self.datagram_len());
                checksum::upper_sum(addresses, Protocol::UDP, datagram).is_valid()
            }
        };
        if fits { Ok(()) } else { Err(Malformed::BadChecksum(self.checksum())) }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the sender's port.
    pub fn set_source_port(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::SOURCE_PORT, value);
    }

    /// Sets the receiver's port.
    pub fn set_destination_port(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::DESTINATION_PORT, value);
    }

    /// Sets the bytes of header and payload.
    pub fn set_datagram_len(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::LENGTH, value);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, value);
    }

    /// Computes the checksum anew and sets it.
    pub fn fill_checksum(&mut self, addresses: Addresses) {
        self.set_checksum(0);
        let len = self.datagram_len();
        let sum = checksum::upper_sum(addresses, Protocol::UDP, slice(self.buffer.as_ref(), 0..len));
        self.set_checksum(sum.udp_checksum());
    }

    /// The payload, to write to.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = field::PAYLOAD..self.datagram_len();
        slice_mut(self.buffer.as_mut(), range)
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
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { source_port: packet.source_port(), destination_port: packet.destination_port() }
    }

    /// Bytes of the header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes header, payload and checksum; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadLength`] for a payload beyond the length's 16 bits; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8], payload: &[u8], addresses: Addresses) -> Result<usize, Malformed> {
        let len = HEADER_LEN + payload.len();
        let Ok(datagram_len) = u16::try_from(len) else {
            return Err(Malformed::BadLength { stated: len, expected: u16::MAX.into() });
        };
        need(buffer, len)?;
        let mut packet = Packet { buffer };
        packet.set_source_port(self.source_port);
        packet.set_destination_port(self.destination_port);
        packet.set_datagram_len(datagram_len);
        packet.payload_mut().copy_from_slice(payload);
        packet.fill_checksum(addresses);
        Ok(len)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp {} > {}", self.source_port, self.destination_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const ADDRESSES: Addresses =
        Addresses::V4 { source: Ipv4Addr::new(192, 168, 1, 1), destination: Ipv4Addr::new(192, 168, 1, 2) };
    // smoltcp's own example.
    const DATAGRAM: [u8; 12] = [0xbf, 0x00, 0x00, 0x35, 0x00, 0x0c, 0x12, 0x4d, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn parse_and_emit() {
        let packet = Packet::new_checked(DATAGRAM).unwrap();
        assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
        assert_eq!(packet.to_string(), "udp 48896 > 53");
        let mut out = [0; 12];
        assert_eq!(Repr::parse(&packet).emit(&mut out, packet.payload(), ADDRESSES), Ok(12));
        assert_eq!(out, DATAGRAM);
    }

    #[test]
    fn zero_checksum_is_for_ipv4_only() {
        let mut data = DATAGRAM;
        data[6..8].fill(0);
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
        let six = Addresses::V6 { source: 1.into(), destination: 2.into() };
        assert_eq!(packet.verify_checksum(six), Err(Malformed::BadChecksum(0)));
    }

    #[test]
    fn lengths() {
        let mut data = DATAGRAM;
        data[5] = 7;
        assert_eq!(Packet::new_checked(data), Err(Malformed::BadLength { stated: 7, expected: 8 }));
        data[5] = 13;
        assert_eq!(Packet::new_checked(data), Err(Malformed::Truncated { needed: 13, have: 12 }));
    }

    proptest! {
        #[test]
        fn any_bytes(mut data in prop::collection::vec(any::<u8>(), 0..40), plausible: bool) {
            if plausible && data.len() > 4 {
                data[4] = 0;
            }
            if let Ok(packet) = Packet::new_checked(&data) {
                prop_assert!(packet.payload().len() + HEADER_LEN <= data.len());
                let _ = packet.verify_checksum(ADDRESSES);
            }
        }

        #[test]
        fn round_trip(source_port: u16, destination_port: u16, payload in prop::collection::vec(any::<u8>(), 0..100),
                      source: [u8; 16], destination: [u8; 16], four: bool) {
            let addresses = if four {
                ADDRESSES
            } else {
                Addresses::V6 { source: source.into(), destination: destination.into() }
            };
            let repr = Repr { source_port, destination_port };
            let mut out = vec![0xee; HEADER_LEN + payload.len()];
            repr.emit(&mut out, &payload, addresses).unwrap();
            let packet = Packet::new_checked(&out).unwrap();
            prop_assert!(packet.checksum() != 0);
            prop_assert_eq!(packet.verify_checksum(addresses), Ok(()));
            prop_assert_eq!(packet.payload(), &payload);
            prop_assert_eq!(Repr::parse(&packet), repr);
        }
    }
}
