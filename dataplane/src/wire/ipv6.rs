//! The fixed IPv6 header (RFC 8200 3); what may follow it before the payload is in `ipv6_ext`.

use std::fmt;
use std::net::Ipv6Addr;

use super::bytes::{array_at, put, put_u8, put_u16, put_u32, slice, slice_mut, u8_at, u16_at, u32_at};
use super::ip::{Addresses, Protocol};
use super::malformed::{Malformed, need};

/// A packet: header and everything after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const VERSION_CLASS_LABEL: usize = 0;
    pub(super) const PAYLOAD_LENGTH: usize = 4;
    pub(super) const NEXT_HEADER: usize = 6;
    pub(super) const HOP_LIMIT: usize = 7;
    pub(super) const SOURCE: usize = 8;
    pub(super) const DESTINATION: usize = 24;
    pub(super) const PAYLOAD: usize = 40;
}

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = field::PAYLOAD;

/// What every IPv6 link takes, in bytes: RFC 8200 section 5; RFC 7915's "lowest-ipv6-mtu".
pub const LEAST_MTU: u16 = 1280;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once version and length fit the buffer. Bytes after the payload length (Ethernet padding) are allowed and
    /// not part of the payload. A jumbogram (RFC 2675) reads as an empty payload.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadVersion`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        let packet = Packet::new_quoted(buffer)?;
        need(packet.buffer.as_ref(), HEADER_LEN + packet.payload_len())?;
        Ok(packet)
    }

    /// As [`Packet::new_checked`], for a packet quoted in an ICMP error: the payload may be cut short.
    ///
    /// # Errors
    /// As there, but the payload length may exceed the buffer.
    pub fn new_quoted(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        let packet = Packet { buffer };
        if packet.version() != 6 {
            return Err(Malformed::BadVersion(packet.version()));
        }
        Ok(packet)
    }

    /// The version: 6.
    #[must_use]
    pub fn version(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::VERSION_CLASS_LABEL) >> 4
    }

    /// Traffic class: six bits DSCP, two bits ECN.
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        (u32_at(self.buffer.as_ref(), field::VERSION_CLASS_LABEL) >> 20).to_le_bytes()[0]
    }

    /// Flow label, 20 bits.
    #[must_use]
    pub fn flow_label(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::VERSION_CLASS_LABEL) & 0x000f_ffff
    }

    /// Bytes after the fixed header, as it states them.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        u16_at(self.buffer.as_ref(), field::PAYLOAD_LENGTH).into()
    }

    /// The first extension header or the upper protocol.
    #[must_use]
    pub fn next_header(&self) -> Protocol {
        Protocol(u8_at(self.buffer.as_ref(), field::NEXT_HEADER))
    }

    /// Hop limit.
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::HOP_LIMIT)
    }

    /// The sender.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        array_at::<16>(self.buffer.as_ref(), field::SOURCE).into()
    }

    /// The receiver, or the next stop of a routing header.
    #[must_use]
    pub fn destination(&self) -> Ipv6Addr {
        array_at::<16>(self.buffer.as_ref(), field::DESTINATION).into()
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses::V6 { source: self.source(), destination: self.destination() }
    }

    /// What follows the fixed header, up to the payload length or the end of the buffer.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::PAYLOAD..field::PAYLOAD + self.payload_len())
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets version 6, traffic class and flow label (its lower 20 bits).
    pub fn set_class_and_label(&mut self, traffic_class: u8, flow_label: u32) {
        let value = 6 << 28 | u32::from(traffic_class) << 20 | flow_label & 0x000f_ffff;
        put_u32(self.buffer.as_mut(), field::VERSION_CLASS_LABEL, value);
    }

    /// Sets the bytes after the fixed header.
    pub fn set_payload_len(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::PAYLOAD_LENGTH, value);
    }

    /// Sets the first extension header or the upper protocol.
    pub fn set_next_header(&mut self, value: Protocol) {
        put_u8(self.buffer.as_mut(), field::NEXT_HEADER, value.0);
    }

    /// Sets the hop limit.
    pub fn set_hop_limit(&mut self, value: u8) {
        put_u8(self.buffer.as_mut(), field::HOP_LIMIT, value);
    }

    /// Sets the sender.
    pub fn set_source(&mut self, value: Ipv6Addr) {
        put(self.buffer.as_mut(), field::SOURCE, &value.octets());
    }

    /// Sets the receiver.
    pub fn set_destination(&mut self, value: Ipv6Addr) {
        put(self.buffer.as_mut(), field::DESTINATION, &value.octets());
    }

    /// What follows the fixed header, to write to.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = field::PAYLOAD..field::PAYLOAD + self.payload_len();
        slice_mut(self.buffer.as_mut(), range)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// The fixed header as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// The sender.
    pub source: Ipv6Addr,
    /// The receiver.
    pub destination: Ipv6Addr,
    /// The first extension header or the upper protocol.
    pub next_header: Protocol,
    /// Bytes after the fixed header.
    pub payload_len: u16,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
}

impl Repr {
    /// A plain packet with hop limit 64.
    #[must_use]
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr, next_header: Protocol, payload_len: u16) -> Repr {
        Repr { source, destination, next_header, payload_len, hop_limit: 64, traffic_class: 0, flow_label: 0 }
    }

    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr {
            source: packet.source(),
            destination: packet.destination(),
            next_header: packet.next_header(),
            payload_len: u16::try_from(packet.payload_len()).unwrap_or(u16::MAX),
            hop_limit: packet.hop_limit(),
            traffic_class: packet.traffic_class(),
            flow_label: packet.flow_label(),
        }
    }

    /// Bytes of the header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses::V6 { source: self.source, destination: self.destination }
    }

    /// Writes the header; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        need(buffer, HEADER_LEN)?;
        let mut packet = Packet { buffer };
        packet.set_class_and_label(self.traffic_class, self.flow_label);
        packet.set_payload_len(self.payload_len);
        packet.set_next_header(self.next_header);
        packet.set_hop_limit(self.hop_limit);
        packet.set_source(self.source);
        packet.set_destination(self.destination);
        Ok(HEADER_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {} {} bytes", self.source, self.destination, self.next_header, self.payload_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet() -> Vec<u8> {
        let mut data = vec![0x6a, 0xb1, 0x23, 0x45, 0x00, 0x02, 0x11, 0x40];
        data.extend([0xfd, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        data.extend([0xfd, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        data.extend([0xaa, 0xbb, 0]);
        data
    }

    #[test]
    fn parse_and_emit() {
        let data = packet();
        let packet = Packet::new_checked(&data).unwrap();
        assert_eq!(packet.payload(), [0xaa, 0xbb]);
        assert_eq!((packet.traffic_class(), packet.flow_label()), (0xab, 0x12345));
        assert_eq!(packet.to_string(), "fd80::2 > fd80::100 udp 2 bytes");
        let mut out = [0; 40];
        assert_eq!(Repr::parse(&packet).emit(&mut out), Ok(40));
        assert_eq!(out, data[..40]);
    }

    #[test]
    fn lengths_and_version() {
        let mut data = packet();
        data[5] = 4;
        assert_eq!(Packet::new_checked(&data), Err(Malformed::Truncated { needed: 44, have: 43 }));
        assert_eq!(Packet::new_quoted(&data).unwrap().payload(), [0xaa, 0xbb, 0]);
        data[0] = 0x45;
        assert_eq!(Packet::new_quoted(&data), Err(Malformed::BadVersion(4)));
        assert_eq!(Packet::new_quoted(&data[..39]), Err(Malformed::Truncated { needed: 40, have: 39 }));
    }

    proptest! {
        #[test]
        fn any_bytes(mut data in prop::collection::vec(any::<u8>(), 0..80), plausible: bool) {
            if plausible && data.len() > 4 {
                data[0] = 0x60 | data[0] & 0x0f;
                data[4] = 0;
            }
            for packet in [Packet::new_checked(&data), Packet::new_quoted(&data)].into_iter().flatten() {
                let _ = packet.to_string();
                prop_assert!(packet.payload().len() + HEADER_LEN <= data.len());
            }
        }

        #[test]
        fn round_trip(source: [u8; 16], destination: [u8; 16], next_header: u8, payload_len: u16, hop_limit: u8,
                      traffic_class: u8, flow_label in 0u32..1 << 20) {
            let repr = Repr {
                source: source.into(), destination: destination.into(), next_header: Protocol(next_header), payload_len,
                hop_limit, traffic_class, flow_label,
            };
            let mut out = vec![0; HEADER_LEN + usize::from(payload_len)];
            repr.emit(&mut out).unwrap();
            prop_assert_eq!(Repr::parse(&Packet::new_checked(out).unwrap()), repr);
        }
    }
}
