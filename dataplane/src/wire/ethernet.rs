//! Ethernet II frames and the addresses in them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::bytes::{array_at, put, put_u16, slice, slice_mut, u16_at};
use super::malformed::{Malformed, need};

/// A six-byte hardware address; written and serialized as `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);
    /// No address: the unknown one in ARP requests.
    pub const ZERO: MacAddress = MacAddress([0; 6]);

    /// Whether it names a group; the broadcast address is one.
    #[inline]
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is the broadcast address.
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == MacAddress::BROADCAST
    }

    /// Whether one station can have it: neither a group nor zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != MacAddress::ZERO
    }

    /// The group address of an IPv6 multicast address (RFC 2464 7).
    #[must_use]
    pub fn of_ipv6_multicast(group: std::net::Ipv6Addr) -> MacAddress {
        let [.., a, b, c, d] = group.octets();
        MacAddress([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a MAC address such as 02:00:00:00:00:01")]
pub struct BadMacAddress(pub String);

impl FromStr for MacAddress {
    type Err = BadMacAddress;

    fn from_str(text: &str) -> Result<MacAddress, BadMacAddress> {
        let bad = || BadMacAddress(text.to_owned());
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddress(bytes)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MacAddress, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = MacAddress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a MAC address such as 02:00:00:00:00:01")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MacAddress, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// What a frame or tag carries (IEEE 802 numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: EtherType = EtherType(0x0800);
    /// ARP.
    pub const ARP: EtherType = EtherType(0x0806);
    /// An 802.1Q tag.
    pub const VLAN: EtherType = EtherType(0x8100);
    /// IPv6.
    pub const IPV6: EtherType = EtherType(0x86dd);
    /// An 802.1ad service tag.
    pub const QINQ: EtherType = EtherType(0x88a8);

    /// Whether a VLAN tag follows.
    #[inline]
    #[must_use]
    pub fn is_tag(self) -> bool {
        self == EtherType::VLAN || self == EtherType::QINQ
    }
}

impl fmt::Display for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            EtherType::IPV4 => f.write_str("ipv4"),
            EtherType::ARP => f.write_str("arp"),
            EtherType::VLAN => f.write_str("802.1q"),
            EtherType::IPV6 => f.write_str("ipv6"),
            EtherType::QINQ => f.write_str("802.1ad"),
            EtherType(other) => write!(f, "ethertype {other:#06x}"),
        }
    }
}

/// A frame: header and payload, without the frame check sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const DESTINATION: usize = 0;
    pub(super) const SOURCE: usize = 6;
    pub(super) const ETHERTYPE: usize = 12;
    pub(super) const PAYLOAD: usize = 14;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = field::PAYLOAD;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the header is known to be whole.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        need(buffer.as_ref(), HEADER_LEN)?;
        Ok(Packet { buffer })
    }

    /// The station it goes to.
    #[must_use]
    pub fn destination(&self) -> MacAddress {
        MacAddress(array_at(self.buffer.as_ref(), field::DESTINATION))
    }

    /// The station it comes from.
    #[must_use]
    pub fn source(&self) -> MacAddress {
        MacAddress(array_at(self.buffer.as_ref(), field::SOURCE))
    }

    /// What follows: a protocol or a tag.
    #[must_use]
    pub fn ethertype(&self) -> EtherType {
        EtherType(u16_at(self.buffer.as_ref(), field::ETHERTYPE))
    }

    /// What follows the header, padding included.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        slice(self.buffer.as_ref(), field::PAYLOAD..usize::MAX)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the station it goes to.
    pub fn set_destination(&mut self, value: MacAddress) {
        put(self.buffer.as_mut(), field::DESTINATION, &value.0);
    }

    /// Sets the station it comes from.
    pub fn set_source(&mut self, value: MacAddress) {
        put(self.buffer.as_mut(), field::SOURCE, &value.0);
    }

    /// Sets what follows.
    pub fn set_ethertype(&mut self, value: EtherType) {
        put_u16(self.buffer.as_mut(), field::ETHERTYPE, value.0);
    }

    /// What follows the header, to write to.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        slice_mut(self.buffer.as_mut(), field::PAYLOAD..usize::MAX)
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
    /// The station it goes to.
    pub destination: MacAddress,
    /// The station it comes from.
    pub source: MacAddress,
    /// What follows.
    pub ethertype: EtherType,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { destination: packet.destination(), source: packet.source(), ethertype: packet.ethertype() }
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
        let mut packet = Packet::new_checked(buffer)?;
        packet.set_destination(self.destination);
        packet.set_source(self.source);
        packet.set_ethertype(self.ethertype);
        Ok(HEADER_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {}", self.source, self.destination, self.ethertype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: [u8; 16] = [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00, 0xaa, 0xbb];

    #[test]
    fn parse_and_emit() {
        let packet = Packet::new_checked(FRAME).unwrap();
        let repr = Repr::parse(&packet);
        assert_eq!(repr.source, MacAddress([2, 0, 0, 0, 0, 2]));
        assert_eq!(repr.ethertype, EtherType::IPV4);
        assert_eq!(packet.payload(), [0xaa, 0xbb]);
        assert_eq!(packet.to_string(), "02:00:00:00:00:02 > 02:00:00:00:00:01 ipv4");
        let mut out = [0; 14];
        assert_eq!(repr.emit(&mut out), Ok(14));
        assert_eq!(out, FRAME[..14]);
        assert_eq!(repr.emit(&mut [0; 13]), Err(Malformed::Truncated { needed: 14, have: 13 }));
    }

    #[test]
    fn addresses_as_text() {
        let mac: MacAddress = "02:00:00:00:AB:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:00:ab:01");
        for bad in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "02:00:00:00:00:+1", "02-00-00-00-00-01"]
        {
            assert_eq!(bad.parse::<MacAddress>(), Err(BadMacAddress(bad.to_owned())));
        }
    }

    #[test]
    fn serialized_as_text() {
        use serde::de::IntoDeserializer;
        use serde::de::value::{Error, StrDeserializer};

        struct Written(MacAddress);
        impl fmt::Display for Written {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.serialize(f)
            }
        }
        let read = |text: &'static str| {
            let deserializer: StrDeserializer<'_, Error> = text.into_deserializer();
            MacAddress::deserialize(deserializer)
        };
        let mac = MacAddress([2, 0, 0, 0, 0, 0xab]);
        assert_eq!(Written(mac).to_string(), "02:00:00:00:00:ab");
        assert_eq!(read("02:00:00:00:00:AB"), Ok(mac));
        assert!(read("02:00").unwrap_err().to_string().contains("\"02:00\" is not a MAC address"));
    }

    #[test]
    fn kinds_of_addresses() {
        assert!(MacAddress::BROADCAST.is_multicast() && MacAddress::BROADCAST.is_broadcast());
        assert!(!MacAddress::ZERO.is_unicast());
        let group = MacAddress::of_ipv6_multicast("ff02::1:ff00:1234".parse().unwrap());
        assert_eq!(group, MacAddress([0x33, 0x33, 0xff, 0, 0x12, 0x34]));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = Packet::new_checked(&data) {
                let mut out = vec![0; packet.payload().len() + HEADER_LEN];
                Repr::parse(&packet).emit(&mut out).unwrap();
                out[HEADER_LEN..].copy_from_slice(packet.payload());
                prop_assert_eq!(out, data);
            }
        }

        #[test]
        fn text_round_trip(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddress(bytes).to_string().parse(), Ok(MacAddress(bytes)));
        }
    }
}
