//! Neighbour discovery (RFC 4861): solicitations and advertisements with their link-layer address options.

use std::fmt;
use std::net::Ipv6Addr;

use super::bytes::{array_at, put, put_u8, put_u32, slice, slice_mut, u8_at, u32_at};
use super::ethernet::MacAddress;
use super::icmpv6::{self, kind};
use super::ip::Addresses;
use super::malformed::{Malformed, need};

/// A solicitation or advertisement: a whole ICMPv6 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const FLAGS: usize = 4;
    pub(super) const TARGET: usize = 8;
    pub(super) const OPTIONS: usize = 24;
}

/// Bytes without options.
pub const HEADER_LEN: usize = field::OPTIONS;
/// Bytes of a link-layer address option for Ethernet.
pub const LINK_ADDRESS_LEN: usize = 8;

const ROUTER: u32 = 0x8000_0000;
const SOLICITED: u32 = 0x4000_0000;
const OVERRIDE: u32 = 0x2000_0000;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once type, code, target and all options are in order. Checksum, hop limit and addresses of the packet
    /// around it are the caller's to check (RFC 4861 7.1).
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadType`], [`Malformed::BadField`] for a code other than 0,
    /// [`Malformed::BadOption`] (lengths in 8-byte units).
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        let packet = Packet { buffer };
        if !matches!(packet.kind(), kind::NEIGHBOUR_SOLICITATION | kind::NEIGHBOUR_ADVERTISEMENT) {
            return Err(Malformed::BadType(packet.kind().into()));
        }
        let code = u8_at(packet.buffer.as_ref(), field::CODE);
        if code != 0 {
            return Err(Malformed::BadField(code.into()));
        }
        for option in packet.options() {
            option?;
        }
        Ok(packet)
    }

    /// The ICMPv6 type.
    #[must_use]
    pub fn kind(&self) -> u8 {
        u8_at(self.buffer.as_ref(), field::TYPE)
    }

    /// The address it is about.
    #[must_use]
    pub fn target(&self) -> Ipv6Addr {
        array_at::<16>(self.buffer.as_ref(), field::TARGET).into()
    }

    /// Whether the advertising node is a router.
    #[must_use]
    pub fn router(&self) -> bool {
        self.flags() & ROUTER != 0
    }

    /// Whether the advertisement answers a solicitation.
    #[must_use]
    pub fn solicited(&self) -> bool {
        self.flags() & SOLICITED != 0
    }

    /// Whether the advertisement replaces what neighbours remember.
    #[must_use]
    pub fn overrides(&self) -> bool {
        self.flags() & OVERRIDE != 0
    }

    /// The link-layer address option that fits the message: the source's in a solicitation, the target's in an advertisement.
    #[must_use]
    pub fn link_address(&self) -> Option<MacAddress> {
        let wanted =
            if self.kind() == kind::NEIGHBOUR_SOLICITATION { SOURCE_LINK_ADDRESS } else { TARGET_LINK_ADDRESS };
        self.options()
            .flatten()
            .find(|option| option.kind == wanted && option.data.len() == 6)
            .map(|option| MacAddress(array_at(option.data, 0)))
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> Options<'_> {
        Options { rest: slice(self.buffer.as_ref(), field::OPTIONS..usize::MAX) }
    }

    fn flags(&self) -> u32 {
        u32_at(self.buffer.as_ref(), field::FLAGS)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the address it is about.
    pub fn set_target(&mut self, value: Ipv6Addr) {
        put(self.buffer.as_mut(), field::TARGET, &value.octets());
    }

    /// Sets an advertisement's flags.
    pub fn set_flags(&mut self, router: bool, solicited: bool, overrides: bool) {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let value = bit(router, ROUTER) | bit(solicited, SOLICITED) | bit(overrides, OVERRIDE);
        put_u32(self.buffer.as_mut(), field::FLAGS, value);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// One option (RFC 4861 4.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NdOption<'a> {
    /// Its type.
    pub kind: u8,
    /// What follows type and length.
    pub data: &'a [u8],
}

/// Walks over options; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<NdOption<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let &kind = self.rest.first()?;
        let length = u8_at(self.rest, 1);
        let bytes = usize::from(length) * 8;
        match self.rest.get(2..bytes) {
            Some(data) if length != 0 => {
                self.rest = slice(self.rest, bytes..usize::MAX);
                Some(Ok(NdOption { kind, data }))
            }
            _ => {
                self.rest = &[];
                Some(Err(Malformed::BadOption { kind, length }))
            }
        }
    }
}

/// The message as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repr {
    /// Who has the target address?
    Solicitation {
        /// The address asked for.
        target: Ipv6Addr,
        /// The asker's hardware address; none in duplicate address detection.
        link_address: Option<MacAddress>,
    },
    /// The sender has the target address.
    Advertisement {
        /// The address.
        target: Ipv6Addr,
        /// Its hardware address.
        link_address: Option<MacAddress>,
        /// Whether the sender is a router.
        router: bool,
        /// Whether it answers a solicitation.
        solicited: bool,
        /// Whether it replaces what neighbours remember.
        overrides: bool,
    },
}

impl Repr {
    /// Reads the message.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        let (target, link_address) = (packet.target(), packet.link_address());
        if packet.kind() == kind::NEIGHBOUR_SOLICITATION {
            Repr::Solicitation { target, link_address }
        } else {
            Repr::Advertisement {
                target,
                link_address,
                router: packet.router(),
                solicited: packet.solicited(),
                overrides: packet.overrides(),
            }
        }
    }

    /// Bytes of the message.
    #[expect(clippy::len_without_is_empty, reason = "a message is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        let (Repr::Solicitation { link_address, .. } | Repr::Advertisement { link_address, .. }) = self;
        HEADER_LEN + if link_address.is_some() { LINK_ADDRESS_LEN } else { 0 }
    }

    /// Writes message and checksum; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8], addresses: Addresses) -> Result<usize, Malformed> {
        let len = self.len();
        need(buffer, len)?;
        let buffer = slice_mut(buffer, 0..len);
        let (kind, target, option, link_address, flags) = match *self {
            Repr::Solicitation { target, link_address } => {
                (kind::NEIGHBOUR_SOLICITATION, target, SOURCE_LINK_ADDRESS, link_address, (false, false, false))
            }
            Repr::Advertisement { target, link_address, router, solicited, overrides } => {
                let flags = (router, solicited, overrides);
                (kind::NEIGHBOUR_ADVERTISEMENT, target, TARGET_LINK_ADDRESS, link_address, flags)
            }
        };
        put_u8(buffer, field::TYPE, kind);
        put_u8(buffer, field::CODE, 0);
        if let Some(mac) = link_address {
            put(buffer, field::OPTIONS, &[option, 1]);
            put(buffer, field::OPTIONS + 2, &mac.0);
        }
        let mut packet = Packet { buffer: &mut *buffer };
        packet.set_flags(flags.0, flags.1, flags.2);
        packet.set_target(target);
        icmpv6::Packet::new_checked(buffer)?.fill_checksum(addresses);
        Ok(len)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, target, link_address) = match self {
            Repr::Solicitation { target, link_address } => ("solicitation", target, link_address),
            Repr::Advertisement { target, link_address, .. } => ("advertisement", target, link_address),
        };
        write!(f, "neighbour {what} {target}")?;
        if let Some(mac) = link_address { write!(f, " ({mac})") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESSES: Addresses = Addresses::V6 {
        source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
    };
    // smoltcp's own example.
    const ADVERTISEMENT: [u8; 24] = [
        0x88, 0x00, 0x3b, 0x9f, 0x40, 0x00, 0x00, 0x00, 0xfe, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x50,
        0x53, 0xff, 0xfe, 0x00, 0x00, 0x01,
    ];

    #[test]
    fn parse_and_emit() {
        let mut data = ADVERTISEMENT.to_vec();
        data.extend([14, 1, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 9]); // nonce, then target link address
        let packet = Packet::new_checked(&data).unwrap();
        assert!(packet.solicited() && !packet.router() && !packet.overrides());
        assert_eq!(packet.to_string(), "neighbour advertisement fe80::250:53ff:fe00:1 (02:00:00:00:00:09)");

        let packet = Packet::new_checked(&ADVERTISEMENT).unwrap();
        let mut out = [0; 24];
        let repr = Repr::parse(&packet);
        assert_eq!(repr.emit(&mut out, ADDRESSES), Ok(24));
        let checked = icmpv6::Packet::new_checked(out).unwrap();
        assert_eq!(checked.verify_checksum(ADDRESSES), Ok(()));
        assert_eq!(out[4..], ADVERTISEMENT[4..]);
    }

    #[test]
    fn malformed() {
        let with = |at: usize, value: u8| {
            let mut data = ADVERTISEMENT.to_vec();
            data.extend([2, 1, 2, 0, 0, 0, 0, 9]);
            data[at] = value;
            Packet::new_checked(data).map(|_| ())
        };
        assert_eq!(with(0, 134), Err(Malformed::BadType(134)));
        assert_eq!(with(1, 1), Err(Malformed::BadField(1)));
        assert_eq!(with(25, 0), Err(Malformed::BadOption { kind: 2, length: 0 }));
        assert_eq!(with(25, 2), Err(Malformed::BadOption { kind: 2, length: 2 }));
        assert_eq!(Packet::new_checked(&ADVERTISEMENT[..23]), Err(Malformed::Truncated { needed: 24, have: 23 }));
    }

    proptest! {
        #[test]
        fn any_bytes(mut data in prop::collection::vec(any::<u8>(), 0..80), plausible: bool, which in 135u8..137) {
            if plausible && data.len() > 2 {
                data[0] = which;
                data[1] = 0;
            }
            if let Ok(packet) = Packet::new_checked(&data) {
                let _ = (packet.to_string(), packet.link_address());
                prop_assert!(packet.options().all(|option| option.is_ok()));
            }
        }

        #[test]
        fn round_trip(advertise: bool, target: [u8; 16], mac: Option<[u8; 6]>, router: bool, solicited: bool, overrides: bool) {
            let (target, link_address) = (target.into(), mac.map(MacAddress));
            let repr = if advertise {
                Repr::Advertisement { target, link_address, router, solicited, overrides }
            } else {
                Repr::Solicitation { target, link_address }
            };
            let mut out = vec![0xee; repr.len()];
            repr.emit(&mut out, ADDRESSES).unwrap();
            prop_assert_eq!(icmpv6::Packet::new_checked(&out).unwrap().verify_checksum(ADDRESSES), Ok(()));
            prop_assert_eq!(Repr::parse(&Packet::new_checked(&out).unwrap()), repr);
        }
    }
}
