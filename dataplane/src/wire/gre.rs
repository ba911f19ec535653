//! GRE (RFC 2784, key and sequence RFC 2890) and PPTP's enhanced variant with its call id (RFC 2637 4.1).

use std::fmt;

use super::bytes::{put_u16, put_u32, slice, u16_at, u32_at};
use super::ethernet::EtherType;
use super::malformed::{Malformed, need};

/// A GRE packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const FLAGS: usize = 0;
    pub(super) const PROTOCOL: usize = 2;
    pub(super) const CALL_ID: usize = 6;
    pub(super) const OPTIONAL: usize = 4;
}

const CHECKSUM: u16 = 0x8000;
const ROUTING: u16 = 0x4000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
const ACKNOWLEDGEMENT: u16 = 0x0080;

/// What PPTP carries: PPP.
pub const PPP: EtherType = EtherType(0x880b);

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the header with its optional fields is whole.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadVersion`] beyond 1, [`Malformed::BadField`] (the flags) for source
    /// routing of RFC 1701 and for a version 1 without key.
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), field::OPTIONAL)?;
        let packet = Packet { buffer };
        if packet.version() > 1 {
            return Err(Malformed::BadVersion(packet.version()));
        }
        let keyless = packet.version() == 1 && packet.flags() & KEY == 0;
        if packet.flags() & ROUTING != 0 || keyless {
            return Err(Malformed::BadField(packet.flags().into()));
        }
        need(packet.buffer.as_ref(), packet.header_len())?;
        Ok(packet)
    }

    /// 0, or 1 for PPTP.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.flags().to_be_bytes()[1] & 7
    }

    /// What it carries.
    #[must_use]
    pub fn protocol(&self) -> EtherType {
        EtherType(u16_at(self.buffer.as_ref(), field::PROTOCOL))
    }

    /// Bytes of the header with its optional fields.
    #[must_use]
    pub fn header_len(&self) -> usize {
        let field = |bit: u16| if self.flags() & bit != 0 { 4 } else { 0 };
        let acknowledgement = if self.version() == 1 { field(ACKNOWLEDGEMENT) } else { 0 };
        field::OPTIONAL + field(CHECKSUM) + field(KEY) + field(SEQUENCE) + acknowledgement
    }

    /// The key of version 0: which tunnel.
    #[must_use]
    pub fn key(&self) -> Option<u32> {
        let at = field::OPTIONAL + if self.flags() & CHECKSUM != 0 { 4 } else { 0 };
        (self.version() == 0 && self.flags() & KEY != 0).then(|| u32_at(self.buffer.as_ref(), at))
    }

    /// The receiver's call id in PPTP: which call.
    #[must_use]
    pub fn call_id(&self) -> Option<u16> {
        (self.version() == 1).then(|| u16_at(self.buffer.as_ref(), field::CALL_ID))
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), self.header_len()..usize::MAX)
    }

    fn flags(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::FLAGS)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.call_id(), self.key()) {
            (Some(call), _) => write!(f, "pptp call {call}"),
            (None, Some(key)) => write!(f, "gre {} key {key:#010x}", self.protocol()),
            (None, None) => write!(f, "gre {}", self.protocol()),
        }
    }
}

/// A version 0 header as a value, without checksum and sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// What it carries.
    pub protocol: EtherType,
    /// Which tunnel.
    pub key: Option<u32>,
}

impl Repr {
    /// Reads the header; checksum and sequence number are left out.
    ///
    /// # Errors
    /// [`Malformed::BadVersion`] for PPTP.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        match packet.version() {
            0 => Ok(Repr { protocol: packet.protocol(), key: packet.key() }),
            version => Err(Malformed::BadVersion(version)),
        }
    }

    /// Bytes of the header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        field::OPTIONAL + if self.key.is_some() { 4 } else { 0 }
    }

    /// Writes the header; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        need(buffer, self.len())?;
        put_u16(buffer, field::FLAGS, if self.key.is_some() { KEY } else { 0 });
        put_u16(buffer, field::PROTOCOL, self.protocol.0);
        if let Some(key) = self.key {
            put_u32(buffer, field::OPTIONAL, key);
        }
        Ok(self.len())
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gre {}", self.protocol)?;
        if let Some(key) = self.key { write!(f, " key {key:#010x}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pptp() {
        let data = [0x30, 0x81, 0x88, 0x0b, 0x00, 0x02, 0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 2, 0xff, 0x03];
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!((packet.header_len(), packet.protocol()), (16, PPP));
        assert_eq!((packet.call_id(), packet.key()), (Some(0x1234), None));
        assert_eq!(packet.payload(), [0xff, 0x03]);
        assert_eq!(packet.to_string(), "pptp call 4660");
        assert_eq!(Packet::new_checked(&data[..15]), Err(Malformed::Truncated { needed: 16, have: 15 }));
        assert_eq!(Repr::parse(&packet), Err(Malformed::BadVersion(1)));
    }

    #[test]
    fn plain() {
        let data = [0xa0, 0x00, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0, 7, 0x45];
        let packet = Packet::new_checked(data).unwrap();
        assert_eq!((packet.key(), packet.call_id(), packet.header_len()), (Some(7), None, 12));
        assert_eq!(packet.to_string(), "gre ipv4 key 0x00000007");
        assert_eq!(Packet::new_checked([0x40, 0, 8, 0]), Err(Malformed::BadField(0x4000)));
        assert_eq!(Packet::new_checked([0, 2, 8, 0]), Err(Malformed::BadVersion(2)));
        assert_eq!(Packet::new_checked([0, 1, 8, 0]), Err(Malformed::BadField(1)));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..30)) {
            if let Ok(packet) = Packet::new_checked(&data) {
                let _ = (packet.to_string(), packet.key(), packet.call_id());
                prop_assert_eq!(packet.payload().len() + packet.header_len(), data.len());
            }
        }

        #[test]
        fn round_trip(protocol: u16, key: Option<u32>) {
            let repr = Repr { protocol: EtherType(protocol), key };
            let mut out = vec![0xee; repr.len()];
            repr.emit(&mut out).unwrap();
            prop_assert_eq!(Repr::parse(&Packet::new_checked(out).unwrap()), Ok(repr));
        }
    }
}
