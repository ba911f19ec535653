//! ARP for IPv4 over Ethernet (RFC 826; probes and announcements RFC 5227).

use std::fmt;
use std::net::Ipv4Addr;

use super::bytes::{array_at, put, put_u16, u16_at};
use super::ethernet::{EtherType, MacAddress};
use super::malformed::{Malformed, need};

/// What an ARP packet wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(pub u16);

impl Operation {
    /// Who has the target address?
    pub const REQUEST: Operation = Operation(1);
    /// The sender has the sender address.
    pub const REPLY: Operation = Operation(2);
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Operation::REQUEST => f.write_str("request"),
            Operation::REPLY => f.write_str("reply"),
            Operation(other) => write!(f, "operation {other}"),
        }
    }
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

mod field {
    pub(super) const HARDWARE_TYPE: usize = 0;
    pub(super) const PROTOCOL_TYPE: usize = 2;
    pub(super) const LENGTHS: usize = 4;
    pub(super) const OPERATION: usize = 6;
    pub(super) const SOURCE_MAC: usize = 8;
    pub(super) const SOURCE_IP: usize = 14;
    pub(super) const TARGET_MAC: usize = 18;
    pub(super) const TARGET_IP: usize = 24;
    pub(super) const END: usize = 28;
}

/// Bytes of a packet.
pub const PACKET_LEN: usize = field::END;
const ETHERNET: u16 = 1;
const LENGTHS: u16 = 0x0604;

impl<T: AsRef<[u8]>> Packet<T> {
    /// The view, once the packet is whole and about IPv4 over Ethernet.
    ///
    /// # Errors
    /// [`Malformed::Truncated`], [`Malformed::BadType`] for other hardware or protocols, [`Malformed::BadLength`].
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        let data = buffer.as_ref();
        need(data, PACKET_LEN)?;
        let hardware = u16_at(data, field::HARDWARE_TYPE);
        if hardware != ETHERNET {
            return Err(Malformed::BadType(hardware));
        }
        let protocol = u16_at(data, field::PROTOCOL_TYPE);
        if protocol != EtherType::IPV4.0 {
            return Err(Malformed::BadType(protocol));
        }
        let lengths = u16_at(data, field::LENGTHS);
        if lengths != LENGTHS {
            return Err(Malformed::BadLength { stated: lengths.into(), expected: LENGTHS.into() });
        }
        Ok(Packet { buffer })
    }

    /// What it wants.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation(u16_at(self.buffer.as_ref(), field::OPERATION))
    }

    /// The sender's hardware address.
    #[must_use]
    pub fn source_mac(&self) -> MacAddress {
        MacAddress(array_at(self.buffer.as_ref(), field::SOURCE_MAC))
    }

    /// The sender's address; unspecified in a probe.
    #[must_use]
    pub fn source_ip(&self) -> Ipv4Addr {
        array_at(self.buffer.as_ref(), field::SOURCE_IP).into()
    }

    /// The target's hardware address; meaningless in a request.
    #[must_use]
    pub fn target_mac(&self) -> MacAddress {
        MacAddress(array_at(self.buffer.as_ref(), field::TARGET_MAC))
    }

    /// The target's address.
    #[must_use]
    pub fn target_ip(&self) -> Ipv4Addr {
        array_at(self.buffer.as_ref(), field::TARGET_IP).into()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets what it wants.
    pub fn set_operation(&mut self, value: Operation) {
        put_u16(self.buffer.as_mut(), field::OPERATION, value.0);
    }

    /// Sets the sender's addresses.
    pub fn set_source(&mut self, mac: MacAddress, ip: Ipv4Addr) {
        put(self.buffer.as_mut(), field::SOURCE_MAC, &mac.0);
        put(self.buffer.as_mut(), field::SOURCE_IP, &ip.octets());
    }

    /// Sets the target's addresses.
    pub fn set_target(&mut self, mac: MacAddress, ip: Ipv4Addr) {
        put(self.buffer.as_mut(), field::TARGET_MAC, &mac.0);
        put(self.buffer.as_mut(), field::TARGET_IP, &ip.octets());
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// The packet as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// What it wants.
    pub operation: Operation,
    /// The sender's hardware address.
    pub source_mac: MacAddress,
    /// The sender's address.
    pub source_ip: Ipv4Addr,
    /// The target's hardware address.
    pub target_mac: MacAddress,
    /// The target's address.
    pub target_ip: Ipv4Addr,
}

impl Repr {
    /// Reads the packet.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr {
            operation: packet.operation(),
            source_mac: packet.source_mac(),
            source_ip: packet.source_ip(),
            target_mac: packet.target_mac(),
            target_ip: packet.target_ip(),
        }
    }

    /// The answer of the station `mac` to this request.
    #[must_use]
    pub fn reply(&self, mac: MacAddress) -> Repr {
        Repr {
            operation: Operation::REPLY,
            source_mac: mac,
            source_ip: self.target_ip,
            target_mac: self.source_mac,
            target_ip: self.source_ip,
        }
    }

    /// The announcement that `mac` has `ip` (RFC 5227 2.3): a request for the own address.
    #[must_use]
    pub fn announcement(mac: MacAddress, ip: Ipv4Addr) -> Repr {
        Repr {
            operation: Operation::REQUEST,
            source_mac: mac,
            source_ip: ip,
            target_mac: MacAddress::ZERO,
            target_ip: ip,
        }
    }

    /// Bytes of the packet.
    #[expect(clippy::len_without_is_empty, reason = "a packet is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        PACKET_LEN
    }

    /// Writes the packet; says how many bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]; nothing is written then.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Malformed> {
        need(buffer, PACKET_LEN)?;
        put_u16(buffer, field::HARDWARE_TYPE, ETHERNET);
        put_u16(buffer, field::PROTOCOL_TYPE, EtherType::IPV4.0);
        put_u16(buffer, field::LENGTHS, LENGTHS);
        let mut packet = Packet { buffer };
        packet.set_operation(self.operation);
        packet.set_source(self.source_mac, self.source_ip);
        packet.set_target(self.target_mac, self.target_ip);
        Ok(PACKET_LEN)
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "arp {} {} ({}) > {} ({})",
            self.operation, self.source_ip, self.source_mac, self.target_ip, self.target_mac
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUEST: [u8; 28] = [
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01, 0x02, 0x00, 0x00, 0x00, 0x00, 0x02, 10, 80, 0, 2, 0, 0, 0, 0,
        0, 0, 10, 80, 0, 100,
    ];

    #[test]
    fn parse_and_emit() {
        let packet = Packet::new_checked(REQUEST).unwrap();
        let repr = Repr::parse(&packet);
        assert_eq!(repr.operation, Operation::REQUEST);
        assert_eq!(repr.target_ip, Ipv4Addr::new(10, 80, 0, 100));
        assert_eq!(packet.to_string(), "arp request 10.80.0.2 (02:00:00:00:00:02) > 10.80.0.100 (00:00:00:00:00:00)");
        let mut out = [0xee; 28];
        assert_eq!(repr.emit(&mut out), Ok(28));
        assert_eq!(out, REQUEST);
    }

    #[test]
    fn other_hardware_is_refused() {
        let with = |at: usize, value: u8| {
            let mut data = REQUEST;
            data[at] = value;
            Packet::new_checked(data).map(|_| ())
        };
        assert_eq!(with(1, 6), Err(Malformed::BadType(6)));
        assert_eq!(with(3, 6), Err(Malformed::BadType(0x0806)));
        assert_eq!(with(4, 8), Err(Malformed::BadLength { stated: 0x0804, expected: 0x0604 }));
        assert_eq!(with(5, 6), Err(Malformed::BadLength { stated: 0x0606, expected: 0x0604 }));
        assert_eq!(Packet::new_checked(&REQUEST[..27]), Err(Malformed::Truncated { needed: 28, have: 27 }));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Packet::new_checked(&data);
        }

        #[test]
        fn round_trip(operation: u16, a: [u8; 6], b: [u8; 4], c: [u8; 6], d: [u8; 4]) {
            let repr = Repr {
                operation: Operation(operation),
                source_mac: MacAddress(a),
                source_ip: b.into(),
                target_mac: MacAddress(c),
                target_ip: d.into(),
            };
            let mut out = [0; PACKET_LEN];
            repr.emit(&mut out).unwrap();
            prop_assert_eq!(Repr::parse(&Packet::new_checked(out).unwrap()), repr);
        }
    }
}
