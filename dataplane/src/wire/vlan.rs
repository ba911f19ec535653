//! 802.1Q and 802.1ad tags, and the walk over them to what a frame carries.

use std::fmt;

use super::bytes::{put_u16, slice, u16_at};
use super::ethernet::{self, EtherType};
use super::malformed::{Malformed, need};

/// The four bytes after a tag's own EtherType, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const CONTROL: usize = 0;
    pub(super) const ETHERTYPE: usize = 2;
    pub(super) const PAYLOAD: usize = 4;
}

/// Bytes of a tag.
pub const HEADER_LEN: usize = field::PAYLOAD;
/// Tags in one frame: a service tag, a customer tag.
pub const MAX_TAGS: usize = 2;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the tag is known to be whole.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        Ok(Packet { buffer })
    }

    /// The VLAN's number, 0..4096; 0 only gives a priority.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.control() & 0x0fff
    }

    /// Priority code point, 0..8.
    #[must_use]
    pub fn priority(&self) -> u8 {
        (self.control() >> 8).to_le_bytes()[0] >> 5
    }

    /// Whether it may be dropped first.
    #[must_use]
    pub fn drop_eligible(&self) -> bool {
        self.control() & 0x1000 != 0
    }

    /// What follows the tag.
    #[must_use]
    pub fn ethertype(&self) -> EtherType {
        EtherType(u16_at(self.buffer.as_ref(), field::ETHERTYPE))
    }

    /// What follows the tag.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::PAYLOAD..usize::MAX)
    }

    fn control(&self) -> u16 {
        u16_at(self.buffer.as_ref(), field::CONTROL)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets priority (its lower three bits), drop eligibility and number (its lower twelve bits).
    pub fn set_control(&mut self, priority: u8, drop_eligible: bool, id: u16) {
        let value = u16::from(priority & 7) << 13 | u16::from(drop_eligible) << 12 | id & 0x0fff;
        put_u16(self.buffer.as_mut(), field::CONTROL, value);
    }

    /// Sets what follows the tag.
    pub fn set_ethertype(&mut self, value: EtherType) {
        put_u16(self.buffer.as_mut(), field::ETHERTYPE, value.0);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// A tag as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// The VLAN's number.
    pub id: u16,
    /// Priority code point.
    pub priority: u8,
    /// Whether it may be dropped first.
    pub drop_eligible: bool,
    /// What follows.
    pub ethertype: EtherType,
}

impl Repr {
    /// Reads the tag.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr {
            id: packet.id(),
            priority: packet.priority(),
            drop_eligible: packet.drop_eligible(),
            ethertype: packet.ethertype(),
        }
    }

    /// Bytes of the tag.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the tag; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        let mut packet = Packet::new_checked(buffer)?;
        packet.set_control(self.priority, self.drop_eligible, self.id);
        packet.set_ethertype(self.ethertype);
        Ok(HEADER_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vlan {} {}", self.id, self.ethertype)
    }
}

/// Where a frame's link layer ends: after the Ethernet header and its tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Number of tags, 0..=[`MAX_TAGS`].
    pub tags: usize,
    /// The outermost VLAN's number.
    pub vlan: Option<u16>,
    /// What the frame carries: not a tag.
    pub ethertype: EtherType,
    /// Where that begins, in bytes from the frame's start.
    pub offset: usize,
}

impl Link {
    /// Walks over the tags of a frame.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], or [`Malformed::TooManyHeaders`] beyond [`MAX_TAGS`].
    pub fn of(frame: &[u8]) -> Result<Link, Malformed> {
        let header = ethernet::Packet::new_checked(frame)?;
        let mut link = Link { tags: 0, vlan: None, ethertype: header.ethertype(), offset: ethernet::HEADER_LEN };
        while link.ethertype.is_tag() {
            if link.tags == MAX_TAGS {
                return Err(Malformed::TooManyHeaders(MAX_TAGS));
            }
            need(frame, link.offset + HEADER_LEN)?;
            let tag = Packet::new_checked(slice(frame, link.offset..usize::MAX))?;
            link.tags += 1;
            link.vlan = link.vlan.or(Some(tag.id()));
            link.ethertype = tag.ethertype();
            link.offset += HEADER_LEN;
        }
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAGS: [u8; 8] = [0xb0, 0x64, 0x81, 0x00, 0x00, 0x07, 0x08, 0x00];

    fn frame() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xa8];
        frame.extend(TAGS);
        frame
    }

    #[test]
    fn parse_and_emit() {
        let packet = Packet::new_checked(TAGS).unwrap();
        let repr = Repr::parse(&packet);
        assert_eq!(repr, Repr { id: 100, priority: 5, drop_eligible: true, ethertype: EtherType::VLAN });
        assert_eq!(packet.to_string(), "vlan 100 802.1q");
        let mut out = [0; 4];
        assert_eq!(repr.emit(&mut out), Ok(4));
        assert_eq!(out, TAGS[..4]);
    }

    #[test]
    fn walk() {
        let link = Link { tags: 2, vlan: Some(100), ethertype: EtherType::IPV4, offset: 22 };
        assert_eq!(Link::of(&frame()), Ok(link));
        assert_eq!(Link::of(&frame()[..20]), Err(Malformed::Truncated { needed: 22, have: 20 }));
        let mut three = frame();
        three[20..22].copy_from_slice(&[0x81, 0x00]);
        three.extend([0, 1, 8, 0]);
        assert_eq!(Link::of(&three), Err(Malformed::TooManyHeaders(2)));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Link::of(&data);
            if let Ok(packet) = Packet::new_checked(&data) {
                let mut out = [0; HEADER_LEN];
                Repr::parse(&packet).emit(&mut out).unwrap();
                prop_assert_eq!(&out[..], &data[..HEADER_LEN]);
            }
        }

        #[test]
        fn any_tags(kinds in prop::collection::vec(prop::sample::select(vec![0x8100u16, 0x88a8, 0x0800]), 0..5)) {
            let mut data = vec![0; 12];
            for kind in &kinds {
                data.extend(kind.to_be_bytes());
                data.extend([0, 1]);
            }
            if let Ok(link) = Link::of(&data) {
                prop_assert!(link.offset <= data.len() && !link.ethertype.is_tag());
                prop_assert_eq!(link.offset, 14 + 4 * link.tags);
            }
        }
    }
}
