//! IPv4 (RFC 791): header, options, fragment fields, checksum.

use std::fmt;
use std::net::Ipv4Addr;

use super::bytes::{array_at, put, put_u8, put_u16, slice, slice_mut, u8_at, u16_at};
use super::checksum::{self, Sum};
use super::ip::{Addresses, Protocol};
use super::malformed::{Malformed, need};

/// A packet: header, options and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const VERSION_LENGTH: usize = 0;
    pub(super) const TOS: usize = 1;
    pub(super) const TOTAL_LENGTH: usize = 2;
    pub(super) const IDENTIFICATION: usize = 4;
    pub(super) const FRAGMENT: usize = 6;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: usize = 10;
    pub(super) const SOURCE: usize = 12;
    pub(super) const DESTINATION: usize = 16;
    pub(super) const OPTIONS: usize = 20;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = field::OPTIONS;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once version and lengths fit the buffer. Bytes after the total length (Ethernet padding) are allowed and
    /// not part of the payload. The checksum is not looked at.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadVersion`], [`Malformed::BadLength`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        let packet = Packet::new_quoted(buffer)?;
        need(packet.buffer.as_ref(), packet.total_len())?;
        Ok(packet)
    }

    /// As [`Packet::new_checked`], for a packet quoted in an ICMP error: the payload may be cut short.
    ///
    /// # Errors
    /// As there, but the total length may exceed the buffer.
    pub fn new_quoted(buffer: T) -> Result<Packet<T>, Malformed> {
        let data = buffer.as_ref();
        need(data, HEADER_LEN)?;
        let packet = Packet { buffer };
        if packet.version() != 4 {
            return Err(Malformed::BadVersion(packet.version()));
        }
        if packet.header_len() < HEADER_LEN {
            return Err(Malformed::BadLength { stated: packet.header_len(), expected: HEADER_LEN });
        }
        need(packet.buffer.as_ref(), packet.header_len())?;
        if packet.total_len() < packet.header_len() {
            return Err(Malformed::BadLength { stated: packet.total_len(), expected: packet.header_len() });
        }
        Ok(packet)
    }

    /// The version: 4.
    #[must_use]
    pub fn version(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::VERSION_LENGTH) >> 4
    }

    /// Bytes of header and options.
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(u8_at(self.buffer.as_ref(), field::VERSION_LENGTH) & 0x0f) * 4
    }

    /// Type of service: six bits DSCP, two bits ECN.
    #[must_use]
    pub fn tos(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::TOS)
    }

    /// Bytes of header, options and payload.
    #[must_use]
    pub fn total_len(&self) -> usize {
        u16_at(self.buffer.as_ref(), field::TOTAL_LENGTH).into()
    }

    /// Which datagram a fragment belongs to.
    #[must_use]
    pub fn identification(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::IDENTIFICATION)
    }

    /// Whether routers must not fragment it.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        u16_at(self.buffer.as_ref(), field::FRAGMENT) & DONT_FRAGMENT != 0
    }

    /// Whether fragments follow.
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        u16_at(self.buffer.as_ref(), field::FRAGMENT) & MORE_FRAGMENTS != 0
    }

    /// Where the payload stands in the datagram, in bytes.
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::FRAGMENT) << 3
    }

    /// Whether it is a piece of a datagram, the first one included.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments() || self.fragment_offset() != 0
    }

    /// Time to live.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::TTL)
    }

    /// What the payload is.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        Protocol(u8_at(self.buffer.as_ref(), field::PROTOCOL))
    }

    /// The header's checksum.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::CHECKSUM)
    }

    /// The sender.
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        array_at(self.buffer.as_ref(), field::SOURCE).into()
    }

    /// The receiver.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        array_at(self.buffer.as_ref(), field::DESTINATION).into()
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses::V4 { source: self.source(), destination: self.destination() }
    }

    /// The options, to the end of the header.
    #[must_use]
    pub fn options(&self) -> Options<'_> {
        Options { rest: slice(self.buffer.as_ref(), field::OPTIONS..self.header_len()) }
    }

    /// The payload, up to the total length or the end of the buffer.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), self.header_len()..self.total_len())
    }

    /// Checks the header's checksum.
    ///
    /// # Errors
    /// [`Malformed::BadChecksum`].
    pub fn verify_checksum(&self) -> Result<(), Malformed> {
        let header = slice(self.buffer.as_ref(), 0..self.header_len());
        if Sum::new().bytes(header).is_valid() { Ok(()) } else { Err(Malformed::BadChecksum(self.checksum())) }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the type of service.
    pub fn set_tos(&mut self, value: u8) {
        put_u8(self.buffer.as_mut(), field::TOS, value);
    }

    /// Sets header and payload length, in bytes.
    pub fn set_total_len(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::TOTAL_LENGTH, value);
    }

    /// Sets the datagram a fragment belongs to.
    pub fn set_identification(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::IDENTIFICATION, value);
    }

    /// Sets the fragment fields; the offset is in bytes and loses its lower three bits.
    pub fn set_fragment(&mut self, dont_fragment: bool, more_fragments: bool, offset: u16) {
        let mut value = offset >> 3;
        if dont_fragment {
            value |= DONT_FRAGMENT;
        }
        if more_fragments {
            value |= MORE_FRAGMENTS;
        }
        put_u16(self.buffer.as_mut(), field::FRAGMENT, value);
    }

    /// Sets the time to live.
    pub fn set_ttl(&mut self, value: u8) {
        put_u8(self.buffer.as_mut(), field::TTL, value);
    }

    /// Sets what the payload is.
    pub fn set_protocol(&mut self, value: Protocol) {
        put_u8(self.buffer.as_mut(), field::PROTOCOL, value.0);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, value);
    }

    /// Sets the sender.
    pub fn set_source(&mut self, value: Ipv4Addr) {
        put(self.buffer.as_mut(), field::SOURCE, &value.octets());
    }

    /// Sets the receiver.
    pub fn set_destination(&mut self, value: Ipv4Addr) {
        put(self.buffer.as_mut(), field::DESTINATION, &value.octets());
    }

    /// Computes the checksum anew and sets it.
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let header_len = self.header_len();
        let value = checksum::checksum(slice(self.buffer.as_ref(), 0..header_len));
        self.set_checksum(value);
    }

    /// The payload, to write to.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = self.header_len()..self.total_len();
        slice_mut(self.buffer.as_mut(), range)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// One option (RFC 791 3.1) with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpOption<'a> {
    /// Copied flag, class and number.
    pub kind: u8,
    /// What follows kind and length.
    pub data: &'a [u8],
}

impl IpOption<'_> {
    /// Loose source route.
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    /// Strict source route.
    pub const STRICT_SOURCE_ROUTE: u8 = 137;

    /// Whether it dictates the packet's way.
    #[must_use]
    pub fn is_source_route(&self) -> bool {
        self.kind == IpOption::LOOSE_SOURCE_ROUTE || self.kind == IpOption::STRICT_SOURCE_ROUTE
    }
}

/// Walks over options; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<IpOption<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&kind, after) = self.rest.split_first()?;
            match kind {
                0 => {
                    self.rest = &[];
                    return None;
                }
                1 => self.rest = after,
                kind => {
                    let length = u8_at(after, 0);
                    let option = usize::from(length).checked_sub(2).and_then(|len| after.get(1..1 + len));
                    let Some(data) = option else {
                        self.rest = &[];
                        return Some(Err(Malformed::BadOption { kind, length }));
                    };
                    self.rest = slice(after, 1 + data.len()..usize::MAX);
                    return Some(Ok(IpOption { kind, data }));
                }
            }
        }
    }
}

/// A header without options, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// The sender.
    pub source: Ipv4Addr,
    /// The receiver.
    pub destination: Ipv4Addr,
    /// What the payload is.
    pub protocol: Protocol,
    /// Bytes of payload.
    pub payload_len: u16,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Which datagram a fragment belongs to; 0 in one that must not be fragmented (RFC 6864 4.1).
    pub identification: u16,
    /// Whether routers must not fragment it.
    pub dont_fragment: bool,
    /// Whether fragments follow.
    pub more_fragments: bool,
    /// Where the payload stands in the datagram, in bytes.
    pub fragment_offset: u16,
}

impl Repr {
    /// A packet in one piece that stays in one piece, with TTL 64.
    #[must_use]
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: Protocol, payload_len: u16) -> Repr {
        Repr {
            source,
            destination,
            protocol,
            payload_len,
            ttl: 64,
            tos: 0,
            identification: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
        }
    }

    /// Reads the header; options are left out.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        let payload_len = packet.total_len().saturating_sub(packet.header_len());
        Repr {
            source: packet.source(),
            destination: packet.destination(),
            protocol: packet.protocol(),
            payload_len: u16::try_from(payload_len).unwrap_or(u16::MAX),
            ttl: packet.ttl(),
            tos: packet.tos(),
            identification: packet.identification(),
            dont_fragment: packet.dont_fragment(),
            more_fragments: packet.more_fragments(),
            fragment_offset: packet.fragment_offset(),
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
        Addresses::V4 { source: self.source, destination: self.destination }
    }

    /// Writes the header with its checksum; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadLength`] for a payload beyond the total length's 16 bits; nothing is
    /// written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        need(buffer, HEADER_LEN)?;
        let header_len = 20u16;
        let Some(total_len) = self.payload_len.checked_add(header_len) else {
            let expected = usize::from(u16::MAX - header_len);
            return Err(Malformed::BadLength { stated: self.payload_len.into(), expected });
        };
        put_u8(buffer, field::VERSION_LENGTH, 0x45);
        let mut packet = Packet { buffer };
        packet.set_tos(self.tos);
        packet.set_total_len(total_len);
        packet.set_identification(self.identification);
        packet.set_fragment(self.dont_fragment, self.more_fragments, self.fragment_offset);
        packet.set_ttl(self.ttl);
        packet.set_protocol(self.protocol);
        packet.set_source(self.source);
        packet.set_destination(self.destination);
        packet.fill_checksum();
        Ok(HEADER_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {} {} bytes", self.source, self.destination, self.protocol, self.payload_len)?;
        if self.more_fragments || self.fragment_offset != 0 {
            write!(f, " fragment {:#06x} at {}", self.identification, self.fragment_offset)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACKET: [u8; 24] = [
        0x45, 0x00, 0x00, 0x16, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x25, 0xd2, 10, 80, 0, 2, 10, 80, 0, 100, 0xaa,
        0xbb, 0x00, 0x00,
    ];

    #[test]
    fn parse_and_emit() {
        let packet = Packet::new_checked(PACKET).unwrap();
        assert_eq!(packet.payload(), [0xaa, 0xbb]);
        assert_eq!(packet.verify_checksum(), Ok(()));
        let repr = Repr::parse(&packet);
        assert_eq!(repr, Repr::new([10, 80, 0, 2].into(), [10, 80, 0, 100].into(), Protocol::UDP, 2));
        assert_eq!(packet.to_string(), "10.80.0.2 > 10.80.0.100 udp 2 bytes");
        let mut out = [0; 20];
        assert_eq!(repr.emit(&mut out), Ok(20));
        assert_eq!(out, PACKET[..20]);
    }

    #[test]
    fn lengths_and_version() {
        let with = |at: usize, value: u8| {
            let mut data = PACKET;
            data[at] = value;
            Packet::new_checked(data).map(|_| ())
        };
        assert_eq!(with(0, 0x65), Err(Malformed::BadVersion(6)));
        assert_eq!(with(0, 0x44), Err(Malformed::BadLength { stated: 16, expected: 20 }));
        assert_eq!(with(0, 0x4f), Err(Malformed::Truncated { needed: 60, have: 24 }));
        assert_eq!(with(3, 19), Err(Malformed::BadLength { stated: 19, expected: 20 }));
        assert_eq!(with(3, 25), Err(Malformed::Truncated { needed: 25, have: 24 }));
        let mut quoted = PACKET;
        quoted[2] = 1;
        assert_eq!(Packet::new_quoted(quoted).unwrap().payload(), [0xaa, 0xbb, 0, 0]);
        quoted[15] ^= 1;
        assert_eq!(Packet { buffer: quoted }.verify_checksum(), Err(Malformed::BadChecksum(0x25d2)));
    }

    #[test]
    fn fragments_and_options() {
        let mut data = [0; 32];
        data[..20].copy_from_slice(&PACKET[..20]);
        data[0] = 0x48;
        data[3] = 32;
        data[6..8].copy_from_slice(&[0x20, 0x02]);
        data[20..32].copy_from_slice(&[1, 131, 7, 4, 10, 0, 0, 1, 148, 4, 0, 0]);
        let packet = Packet::new_checked(data).unwrap();
        assert!(packet.is_fragment() && packet.more_fragments() && !packet.dont_fragment());
        assert_eq!(packet.fragment_offset(), 16);
        let options: Vec<_> = packet.options().collect();
        assert_eq!(options[0], Ok(IpOption { kind: 131, data: &[4, 10, 0, 0, 1] }));
        assert!(options[0].unwrap().is_source_route());
        assert_eq!(options[1], Ok(IpOption { kind: 148, data: &[0, 0] }));
        assert_eq!(options.len(), 2);
        for length in [0, 1, 9] {
            data[29] = length;
            let packet = Packet::new_checked(data).unwrap();
            let last = packet.options().last();
            assert_eq!(last, Some(Err(Malformed::BadOption { kind: 148, length })));
        }
    }

    proptest! {
        #[test]
        fn any_bytes(mut data in prop::collection::vec(any::<u8>(), 0..80), plausible: bool) {
            if plausible && data.len() > 4 {
                data[0] = 0x40 | data[0] & 0x0f;
                data[2] = 0;
            }
            for packet in [Packet::new_checked(&data), Packet::new_quoted(&data)].into_iter().flatten() {
                let _ = packet.to_string();
                let _ = packet.verify_checksum();
                prop_assert!(packet.options().count() <= 20);
                prop_assert!(packet.payload().len() + packet.header_len() <= data.len());
            }
        }

        #[test]
        fn round_trip(source: [u8; 4], destination: [u8; 4], protocol: u8, payload_len in 0u16..=65515, ttl: u8,
                      tos: u8, identification: u16, dont_fragment: bool, more_fragments: bool, offset in 0u16..8192) {
            let repr = Repr {
                source: source.into(), destination: destination.into(), protocol: Protocol(protocol), payload_len, ttl,
                tos, identification, dont_fragment, more_fragments, fragment_offset: offset << 3,
            };
            let mut out = vec![0xee; HEADER_LEN + usize::from(payload_len)];
            repr.emit(&mut out).unwrap();
            let packet = Packet::new_checked(out).unwrap();
            prop_assert_eq!(packet.verify_checksum(), Ok(()));
            prop_assert_eq!(Repr::parse(&packet), repr);
        }
    }
}
