//! A frame taken apart from Ethernet to the upper protocol: the slow, complete reference for what a packet is.

use std::fmt;

use super::bytes::slice;
use super::ethernet::EtherType;
use super::ip::{Addresses, Protocol};
use super::ipv6_ext::{self, Fragment};
use super::malformed::Malformed;
use super::vlan::Link;
use super::{ipv4, ipv6};

/// Where the parts of an IP frame are, in bytes from the frame's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dissection {
    /// Ethernet and VLAN.
    pub link: Link,
    /// Source and destination.
    pub addresses: Addresses,
    /// What stands at `upper`.
    pub protocol: Protocol,
    /// Where the IP header begins.
    pub ip: usize,
    /// Where the upper protocol begins.
    pub upper: usize,
    /// Where the IP packet ends; Ethernet padding may follow.
    pub end: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Whether the IP header itself carries options (IPv4) or extension headers (IPv6).
    pub has_options: bool,
    /// Whether a source route or routing header may still lead elsewhere: the destination need not be the last one.
    pub source_routed: bool,
    /// The fragment fields of a packet in pieces; none for a whole one, atomic fragments included.
    pub fragment: Option<Fragment>,
}

impl Dissection {
    /// Takes a frame apart. The IPv4 header's checksum is checked, the upper protocol's is not.
    ///
    /// # Errors
    /// [`Malformed`]; a frame that carries no IP is [`Malformed::BadType`] with its EtherType.
    pub fn of(frame: &[u8]) -> Result<Dissection, Malformed> {
        let link = Link::of(frame)?;
        let ip = link.offset;
        let bytes = slice(frame, ip..usize::MAX);
        match link.ethertype {
            EtherType::IPV4 => {
                let packet = ipv4::Packet::new_checked(bytes)?;
                packet.verify_checksum()?;
                let fragment = Fragment {
                    offset: packet.fragment_offset(),
                    more: packet.more_fragments(),
                    identification: packet.identification().into(),
                };
                Ok(Dissection {
                    link,
                    addresses: packet.addresses(),
                    protocol: packet.protocol(),
                    ip,
                    upper: ip + packet.header_len(),
                    end: ip + packet.total_len(),
                    hop_limit: packet.ttl(),
                    traffic_class: packet.tos(),
                    has_options: packet.header_len() > ipv4::HEADER_LEN,
                    source_routed: packet.options().flatten().any(|option| option.is_source_route()),
                    fragment: packet.is_fragment().then_some(fragment),
                })
            }
            EtherType::IPV6 => {
                let packet = ipv6::Packet::new_checked(bytes)?;
                let upper = ipv6_ext::walk(packet.next_header(), packet.payload())?;
                Ok(Dissection {
                    link,
                    addresses: packet.addresses(),
                    protocol: upper.protocol,
                    ip,
                    upper: ip + ipv6::HEADER_LEN + upper.offset,
                    end: ip + ipv6::HEADER_LEN + packet.payload_len(),
                    hop_limit: packet.hop_limit(),
                    traffic_class: packet.traffic_class(),
                    has_options: upper.offset != 0,
                    source_routed: upper.segments_left,
                    fragment: upper.fragment.filter(|fragment| !fragment.is_atomic()),
                })
            }
            EtherType(other) => Err(Malformed::BadType(other)),
        }
    }

    /// The IP packet, without padding.
    #[must_use]
    pub fn packet<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        slice(frame, self.ip..self.end)
    }

    /// The upper protocol's bytes.
    #[must_use]
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        slice(frame, self.upper..self.end)
    }

    /// Whether it is a piece of a packet without the upper protocol's header.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }
}

impl fmt::Display for Dissection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vlan) = self.link.vlan {
            write!(f, "vlan {vlan} ")?;
        }
        write!(f, "{} {} {} bytes", self.addresses, self.protocol, self.end.saturating_sub(self.upper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MacAddress, ethernet, tcp, udp, vlan};
    use proptest::prelude::*;

    fn tagged_udp() -> Vec<u8> {
        let mut frame = vec![0; 14 + 4 + 20 + 8 + 2];
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        ethernet::Repr { destination: mac, source: mac, ethertype: EtherType::VLAN }.emit(&mut frame).unwrap();
        vlan::Repr { id: 9, priority: 0, drop_eligible: false, ethertype: EtherType::IPV4 }
            .emit(&mut frame[14..])
            .unwrap();
        let ip = ipv4::Repr::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), Protocol::UDP, 10);
        ip.emit(&mut frame[18..]).unwrap();
        let repr = udp::Repr { source_port: 1, destination_port: 2 };
        repr.emit(&mut frame[38..], &[0xaa, 0xbb], ip.addresses()).unwrap();
        frame.extend([0; 12]); // padding
        frame
    }

    #[test]
    fn padding_and_tags() {
        let frame = tagged_udp();
        let parts = Dissection::of(&frame).unwrap();
        assert_eq!((parts.ip, parts.upper, parts.end), (18, 38, 48));
        assert_eq!(parts.payload(&frame).len(), 10);
        assert_eq!(parts.to_string(), "vlan 9 10.0.0.1 > 10.0.0.2 udp 10 bytes");
        let mut broken = frame.clone();
        broken[26] ^= 1;
        assert!(matches!(Dissection::of(&broken), Err(Malformed::BadChecksum(_))));
    }

    #[test]
    fn ipv6_with_an_atomic_fragment() {
        let mut frame = vec![0; 14 + 40 + 8 + 20];
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        ethernet::Repr { destination: mac, source: mac, ethertype: EtherType::IPV6 }.emit(&mut frame).unwrap();
        let ip = ipv6::Repr::new(1.into(), 2.into(), Protocol::FRAGMENT, 28);
        ip.emit(&mut frame[14..]).unwrap();
        frame[54] = Protocol::TCP.0;
        tcp::Repr::default().emit(&mut frame[62..], &[], ip.addresses()).unwrap();
        let parts = Dissection::of(&frame).unwrap();
        assert_eq!((parts.protocol, parts.upper, parts.fragment), (Protocol::TCP, 62, None));
        frame[57] = 8;
        assert!(Dissection::of(&frame).unwrap().is_later_fragment());
    }

    proptest! {
        #[test]
        fn any_bytes(mut data in prop::collection::vec(any::<u8>(), 0..120),
                     kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8, 0x0806])) {
            if data.len() > 20 {
                data[12..14].copy_from_slice(&kind.to_be_bytes());
                data[14] = if kind == 0x0800 { 0x45 } else { 0x60 };
                data[16] = 0;
                data[18] = 0;
            }
            if let Ok(parts) = Dissection::of(&data) {
                prop_assert!(parts.ip <= parts.upper && parts.upper <= parts.end && parts.end <= data.len());
                let _ = parts.to_string();
            }
        }

        #[test]
        fn any_flipped_byte(at in 0usize..60, value: u8) {
            let mut frame = tagged_udp();
            frame[at] = value;
            if let Ok(parts) = Dissection::of(&frame) {
                prop_assert!(parts.upper <= parts.end && parts.end <= frame.len());
            }
        }
    }
}
