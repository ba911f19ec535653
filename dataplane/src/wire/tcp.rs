//! TCP (RFC 9293): header, flags, and the options that matter to something in between.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::bytes::{put, put_u8, put_u16, put_u32, slice, slice_mut, u8_at, u16_at, u32_at};
use super::checksum;
use super::ip::{Addresses, Protocol};
use super::malformed::{Malformed, need};

/// The control bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// None of them.
    pub const NONE: Flags = Flags(0);
    /// The sender has no more data.
    pub const FIN: Flags = Flags(0x01);
    /// The sequence number is the initial one.
    pub const SYN: Flags = Flags(0x02);
    /// The connection is void.
    pub const RST: Flags = Flags(0x04);
    /// Hand the data on.
    pub const PSH: Flags = Flags(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Flags = Flags(0x10);
    /// The urgent pointer counts.
    pub const URG: Flags = Flags(0x20);
    /// Congestion was experienced (RFC 3168).
    pub const ECE: Flags = Flags(0x40);
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: Flags = Flags(0x80);

    /// Whether all of `other` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    #[inline]
    #[must_use]
    pub const fn intersects(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether this opens a connection: SYN without ACK, RST or FIN.
    #[inline]
    #[must_use]
    pub const fn is_opening(self) -> bool {
        self.0 & 0x17 == Flags::SYN.0
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        let mut between = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 >> bit & 1 != 0 {
                write!(f, "{between}{name}")?;
                between = "+";
            }
        }
        if self.0 == 0 { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A segment: header, options and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const SOURCE_PORT: usize = 0;
    pub(super) const DESTINATION_PORT: usize = 2;
    pub(super) const SEQUENCE: usize = 4;
    pub(super) const ACKNOWLEDGEMENT: usize = 8;
    pub(super) const DATA_OFFSET: usize = 12;
    pub(super) const FLAGS: usize = 13;
    pub(super) const WINDOW: usize = 14;
    pub(super) const CHECKSUM: usize = 16;
    pub(super) const URGENT: usize = 18;
    pub(super) const OPTIONS: usize = 20;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = field::OPTIONS;
/// Bytes of options at most.
pub const MAX_OPTIONS: usize = 40;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once header and options are whole. The buffer is the IP payload.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadLength`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        let packet = Packet { buffer };
        if packet.header_len() < HEADER_LEN {
            return Err(Malformed::BadLength { stated: packet.header_len(), expected: HEADER_LEN });
        }
        need(packet.buffer.as_ref(), packet.header_len())?;
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

    /// Sequence number of the first byte (or of the SYN).
    #[must_use]
    pub fn sequence(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::SEQUENCE)
    }

    /// The sequence number that the sender expects next; counts with ACK.
    #[must_use]
    pub fn acknowledgement(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::ACKNOWLEDGEMENT)
    }

    /// Bytes of header and options.
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(u8_at(self.buffer.as_ref(), field::DATA_OFFSET) >> 4) * 4
    }

    /// The control bits.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags(u8_at(self.buffer.as_ref(), field::FLAGS))
    }

    /// The window, not scaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::WINDOW)
    }

    /// The checksum.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::CHECKSUM)
    }

    /// The urgent pointer; counts with URG.
    #[must_use]
    pub fn urgent(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::URGENT)
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> Options<'_> {
        Options { rest: slice(self.buffer.as_ref(), field::OPTIONS..self.header_len()) }
    }

    /// The payload, to the end of the buffer.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), self.header_len()..usize::MAX)
    }

    /// The sequence space it takes: SEG.LEN, payload plus one each for SYN and FIN.
    #[must_use]
    pub fn sequence_len(&self) -> u32 {
        let payload = u32::try_from(self.payload().len()).unwrap_or(u32::MAX);
        let flags = self.flags();
        payload.wrapping_add(flags.contains(Flags::SYN).into()).wrapping_add(flags.contains(Flags::FIN).into())
    }

    /// Checks the checksum.
    ///
    /// # Errors
    /// [`Malformed::BadChecksum`].
    pub fn verify_checksum(&self, addresses: Addresses) -> Result<(), Malformed> {
        let sum = checksum::upper_sum(addresses, Protocol::TCP, self.buffer.as_ref());
        if sum.is_valid() { Ok(()) } else { Err(Malformed::BadChecksum(self.checksum())) }
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

    /// Sets the sequence number.
    pub fn set_sequence(&mut self, value: u32) {
        put_u32(self.buffer.as_mut(), field::SEQUENCE, value);
    }

    /// Sets the acknowledgement number.
    pub fn set_acknowledgement(&mut self, value: u32) {
        put_u32(self.buffer.as_mut(), field::ACKNOWLEDGEMENT, value);
    }

    /// Sets the control bits.
    pub fn set_flags(&mut self, value: Flags) {
        put_u8(self.buffer.as_mut(), field::FLAGS, value.0);
    }

    /// Sets the window.
    pub fn set_window(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::WINDOW, value);
    }

    /// Sets the urgent pointer.
    pub fn set_urgent(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::URGENT, value);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, value);
    }

    /// Computes the checksum anew and sets it.
    pub fn fill_checksum(&mut self, addresses: Addresses) {
        self.set_checksum(0);
        let value = checksum::upper_checksum(addresses, Protocol::TCP, self.buffer.as_ref());
        self.set_checksum(value);
    }

    /// The payload, to write to.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let start = self.header_len();
        slice_mut(self.buffer.as_mut(), start..usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)?;
        write!(f, " {} bytes", self.payload().len())
    }
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpOption<'a> {
    /// Maximum segment size, in bytes (RFC 9293 3.7.1).
    MaxSegmentSize(u16),
    /// Window scale, a shift count (RFC 7323 2).
    WindowScale(u8),
    /// Selective acknowledgements are welcome (RFC 2018 2).
    SackPermitted,
    /// Selective acknowledgements: pairs of 32-bit sequence numbers (RFC 2018 3).
    Sack(&'a [u8]),
    /// Timestamps (RFC 7323 3).
    Timestamps {
        /// The sender's clock.
        value: u32,
        /// The clock value it echoes.
        echo: u32,
    },
    /// Any other.
    Other {
        /// Its kind.
        kind: u8,
        /// What follows kind and length.
        data: &'a [u8],
    },
}

/// Walks over options; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<TcpOption<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&kind, after) = self.rest.split_first()?;
            if kind == 0 {
                self.rest = &[];
                return None;
            }
            if kind == 1 {
                self.rest = after;
                continue;
            }
            let length = u8_at(after, 0);
            let Some(data) = usize::from(length).checked_sub(2).and_then(|len| after.get(1..1 + len)) else {
                self.rest = &[];
                return Some(Err(Malformed::BadOption { kind, length }));
            };
            self.rest = slice(after, 1 + data.len()..usize::MAX);
            return Some(match (kind, data.len()) {
                (2, 2) => Ok(TcpOption::MaxSegmentSize(u16_at(data, 0))),
                (3, 1) => Ok(TcpOption::WindowScale(u8_at(data, 0))),
                (4, 0) => Ok(TcpOption::SackPermitted),
                (5, len) if len % 8 == 0 => Ok(TcpOption::Sack(data)),
                (8, 8) => Ok(TcpOption::Timestamps { value: u32_at(data, 0), echo: u32_at(data, 4) }),
                (2..=5 | 8, _) => {
                    self.rest = &[];
                    Err(Malformed::BadOption { kind, length })
                }
                _ => Ok(TcpOption::Other { kind, data }),
            });
        }
    }
}

/// A header as a value, with the options of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repr {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// The control bits.
    pub flags: Flags,
    /// The window.
    pub window: u16,
    /// Maximum segment size.
    pub max_segment_size: Option<u16>,
    /// Window scale.
    pub window_scale: Option<u8>,
    /// Whether selective acknowledgements are welcome.
    pub sack_permitted: bool,
    /// Timestamps: own value and echo.
    pub timestamps: Option<(u32, u32)>,
}

impl Repr {
    /// Reads header and options, up to the first malformed one; other options are left out.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        let mut repr = Repr {
            source_port: packet.source_port(),
            destination_port: packet.destination_port(),
            sequence: packet.sequence(),
            acknowledgement: packet.acknowledgement(),
            flags: packet.flags(),
            window: packet.window(),
            ..Repr::default()
        };
        for option in packet.options().flatten() {
            match option {
                TcpOption::MaxSegmentSize(size) => repr.max_segment_size = Some(size),
                TcpOption::WindowScale(shift) => repr.window_scale = Some(shift),
                TcpOption::SackPermitted => repr.sack_permitted = true,
                TcpOption::Timestamps { value, echo } => repr.timestamps = Some((value, echo)),
                TcpOption::Sack(_) | TcpOption::Other { .. } => {}
            }
        }
        repr
    }

    /// Bytes of header and options.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        let mut options = 0usize;
        options += if self.max_segment_size.is_some() { 4 } else { 0 };
        options += if self.window_scale.is_some() { 3 } else { 0 };
        options += if self.sack_permitted { 2 } else { 0 };
        options += if self.timestamps.is_some() { 10 } else { 0 };
        HEADER_LEN + options.next_multiple_of(4)
    }

    /// Writes header, options, payload and checksum; says how many bytes. Options are filled up with end-of-list.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8], payload: &[u8], addresses: Addresses) -> Result<usize, Malformed> {
        let header_len = self.len();
        let len = header_len + payload.len();
        need(buffer, len)?;
        let buffer = slice_mut(buffer, 0..len);
        slice_mut(buffer, field::OPTIONS..header_len).fill(0);
        let mut at = field::OPTIONS;
        if let Some(size) = self.max_segment_size {
            put(buffer, at, &[2, 4]);
            put_u16(buffer, at + 2, size);
            at += 4;
        }
        if let Some(shift) = self.window_scale {
            put(buffer, at, &[3, 3, shift]);
            at += 3;
        }
        if self.sack_permitted {
            put(buffer, at, &[4, 2]);
            at += 2;
        }
        if let Some((value, echo)) = self.timestamps {
            put(buffer, at, &[8, 10]);
            put_u32(buffer, at + 2, value);
            put_u32(buffer, at + 6, echo);
        }
        // At most 40 bytes of options: the words fit four bits.
        let words = u8::try_from(header_len / 4).unwrap_or(15);
        put_u8(buffer, field::DATA_OFFSET, words << 4);
        let mut packet = Packet { buffer };
        packet.set_source_port(self.source_port);
        packet.set_destination_port(self.destination_port);
        packet.set_sequence(self.sequence);
        packet.set_acknowledgement(self.acknowledgement);
        packet.set_flags(self.flags);
        packet.set_window(self.window);
        packet.set_urgent(0);
        packet.payload_mut().copy_from_slice(payload);
        packet.fill_checksum(addresses);
        Ok(len)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp {} > {} {} seq {}", self.source_port, self.destination_port, self.flags, self.sequence)?;
        if self.flags.contains(Flags::ACK) { write!(f, " ack {}", self.acknowledgement) } else { Ok(()) }
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
    const SEGMENT: [u8; 28] = [
        0xbf, 0x00, 0x00, 0x50, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x60, 0x35, 0x01, 0x23, 0x01, 0xb6,
        0x02, 0x01, 0x03, 0x03, 0x0c, 0x01, 0xaa, 0x00, 0x00, 0xff,
    ];

    #[test]
    fn parse() {
        let packet = Packet::new_checked(SEGMENT).unwrap();
        assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
        assert_eq!((packet.source_port(), packet.destination_port()), (48896, 80));
        assert_eq!((packet.sequence(), packet.acknowledgement()), (0x0123_4567, 0x89ab_cdef));
        assert_eq!(packet.flags(), Flags::FIN | Flags::RST | Flags::ACK | Flags::URG);
        assert_eq!((packet.window(), packet.urgent()), (0x0123, 0x0201));
        assert_eq!(packet.payload(), [0xaa, 0, 0, 0xff]);
        assert_eq!(packet.sequence_len(), 5);
        assert_eq!(packet.options().collect::<Vec<_>>(), [Ok(TcpOption::WindowScale(12))]);
        assert_eq!(packet.to_string(), "tcp 48896 > 80 fin+rst+ack+urg seq 19088743 ack 2309737967 4 bytes");
    }

    #[test]
    fn emit_a_syn() {
        let repr = Repr {
            source_port: 40000,
            destination_port: 80,
            sequence: 7,
            flags: Flags::SYN,
            window: 64240,
            max_segment_size: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some((0x0102_0304, 0)),
            ..Repr::default()
        };
        assert_eq!(repr.len(), 40);
        let mut out = [0xee; 40];
        assert_eq!(repr.emit(&mut out, &[], ADDRESSES), Ok(40));
        assert_eq!(out[20..], [2, 4, 5, 0xb4, 3, 3, 7, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 0]);
        let packet = Packet::new_checked(out).unwrap();
        assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
        assert_eq!(Repr::parse(&packet), repr);
        assert_eq!(repr.emit(&mut [0; 39], &[], ADDRESSES), Err(Malformed::Truncated { needed: 40, have: 39 }));
    }

    #[test]
    fn lengths() {
        let mut data = SEGMENT;
        data[12] = 0x40;
        assert_eq!(Packet::new_checked(data), Err(Malformed::BadLength { stated: 16, expected: 20 }));
        data[12] = 0x80;
        assert_eq!(Packet::new_checked(data), Err(Malformed::Truncated { needed: 32, have: 28 }));
    }

    #[test]
    fn malformed_options_end_the_walk() {
        let walk = |rest: &[u8]| Options { rest }.map(|option| option.is_ok()).collect::<Vec<_>>();
        assert_eq!(walk(&[1, 1, 2, 4, 5, 0xb4]), [true]);
        assert_eq!(walk(&[2, 3, 5, 4, 2]), [false]);
        assert_eq!(walk(&[254, 1]), [false]);
        assert_eq!(walk(&[254]), [false]);
        assert_eq!(walk(&[254, 4, 0xf9, 0x89, 0, 9, 9]), [true]);
        assert_eq!(walk(&[5, 10, 0, 0, 0, 1, 0, 0, 0, 2, 5, 9, 0, 0, 0, 0, 0, 0, 0]), [true, false]);
    }

    #[test]
    fn opening() {
        assert!(Flags::SYN.is_opening() && (Flags::SYN | Flags::ECE | Flags::CWR).is_opening());
        for other in [Flags::ACK, Flags::RST, Flags::FIN] {
            assert!(!(Flags::SYN | other).is_opening());
        }
        assert_eq!(Flags::NONE.to_string(), "none");
    }

    proptest! {
        #[test]
        fn any_bytes(mut data in prop::collection::vec(any::<u8>(), 0..100), words in 0u8..16, plausible: bool) {
            if plausible && data.len() > 12 {
                data[12] = words << 4;
            }
            if let Ok(packet) = Packet::new_checked(&data) {
                let _ = (packet.to_string(), packet.verify_checksum(ADDRESSES), packet.sequence_len());
                prop_assert!(packet.options().count() <= MAX_OPTIONS);
                prop_assert_eq!(packet.payload().len() + packet.header_len(), data.len());
            }
        }

        #[test]
        fn round_trip(ports: (u16, u16), numbers: (u32, u32), flags: u8, window: u16, max_segment_size: Option<u16>,
                      window_scale: Option<u8>, sack_permitted: bool, timestamps: Option<(u32, u32)>,
                      payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let repr = Repr {
                source_port: ports.0, destination_port: ports.1, sequence: numbers.0, acknowledgement: numbers.1,
                flags: Flags(flags), window, max_segment_size, window_scale, sack_permitted, timestamps,
            };
            let mut out = vec![0xee; repr.len() + payload.len()];
            repr.emit(&mut out, &payload, ADDRESSES).unwrap();
            let packet = Packet::new_checked(&out).unwrap();
            prop_assert_eq!(packet.verify_checksum(ADDRESSES), Ok(()));
            prop_assert_eq!(packet.payload(), &payload);
            prop_assert_eq!(Repr::parse(&packet), repr);
        }
    }
}
