//! Flows: the 4-tuple with its protocol as a route is found by it, the keyed hashes of it, and who owns a flow.

mod owners;
pub mod toeplitz;

use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

pub use self::owners::Owners;
pub use self::toeplitz::ToeplitzKey;

/// IP protocol numbers (IANA) that the dataplane tells apart.
pub mod protocol {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// GRE, RFC 2784; PPTP's data.
    pub const GRE: u8 = 47;
    /// ESP, RFC 4303; IPsec's data.
    pub const ESP: u8 = 50;
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
}

/// A direction of an IPv4 flow, as it stands in the packet: addresses and ports in network byte order, not converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key4 {
    /// Source address, as the four bytes of the header.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port, then destination port, as the first four bytes of the TCP or UDP header.
    pub ports: [u8; 4],
    /// IP protocol number.
    pub protocol: u8,
}

impl Key4 {
    /// Both addresses in one word, as the eight bytes of the header read little-endian.
    #[inline]
    #[must_use]
    pub fn addresses(&self) -> u64 {
        let ([a, b, c, d], [e, f, g, h]) = (self.source, self.destination);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// The rest in one word: the four bytes of the ports, and the protocol.
    #[inline]
    #[must_use]
    pub fn rest(&self) -> u64 {
        u64::from(u32::from_le_bytes(self.ports)) | u64::from(self.protocol) << 32
    }

    /// From its two words.
    #[inline]
    #[must_use]
    pub fn from_words(addresses: u64, rest: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = addresses.to_le_bytes();
        let [i, j, k, l, protocol, ..] = rest.to_le_bytes();
        Self { source: [a, b, c, d], destination: [e, f, g, h], ports: [i, j, k, l], protocol }
    }
}

/// A direction of an IPv6 flow, as it stands in the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key6 {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port, then destination port.
    pub ports: [u8; 4],
    /// IP protocol number.
    pub protocol: u8,
}

/// A direction of a flow of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Key {
    /// IPv4.
    V4(Key4),
    /// IPv6.
    V6(Key6),
}

impl Key {
    /// The key of a packet from `source` to `destination`. Both must be of one family: `None` otherwise.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Option<Self> {
        let ports = join_ports(source.port(), destination.port());
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Some(Key::V4(Key4 { source: source.octets(), destination: destination.octets(), ports, protocol }))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Some(Key::V6(Key6 { source: source.octets(), destination: destination.octets(), ports, protocol }))
            }
            _ => None,
        }
    }

    /// Where the packet comes from.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        match self {
            Key::V4(key) => SocketAddr::new(Ipv4Addr::from(key.source).into(), source_port(key.ports)),
            Key::V6(key) => SocketAddr::new(Ipv6Addr::from(key.source).into(), source_port(key.ports)),
        }
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        match self {
            Key::V4(key) => SocketAddr::new(Ipv4Addr::from(key.destination).into(), destination_port(key.ports)),
            Key::V6(key) => SocketAddr::new(Ipv6Addr::from(key.destination).into(), destination_port(key.ports)),
        }
    }

    /// IP protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self {
            Key::V4(key) => key.protocol,
            Key::V6(key) => key.protocol,
        }
    }

    /// Source, then destination port, as in the packet.
    #[inline]
    #[must_use]
    pub fn ports(&self) -> [u8; 4] {
        match self {
            Key::V4(key) => key.ports,
            Key::V6(key) => key.ports,
        }
    }

    /// The same flow seen from the other end.
    #[must_use]
    pub fn reversed(&self) -> Self {
        match *self {
            Key::V4(Key4 { source, destination, ports: [a, b, c, d], protocol }) => {
                Key::V4(Key4 { source: destination, destination: source, ports: [c, d, a, b], protocol })
            }
            Key::V6(Key6 { source, destination, ports: [a, b, c, d], protocol }) => {
                Key::V6(Key6 { source: destination, destination: source, ports: [c, d, a, b], protocol })
            }
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} protocol {}", self.source(), self.destination(), self.protocol())
    }
}

/// The keyed hashes of a unit: which classifier a client's flows go to, and in which lines of a table a route may be. Which shard owns
/// a flow is for [`Owners`] to say, by another hash.
#[derive(Debug, Clone)]
pub struct FlowHash {
    client: FixedState,
    table: FixedState,
    /// Keys for the two words of an IPv4 route.
    words: [u64; 2],
}

impl FlowHash {
    /// Hashes keyed with `seed`; clients must not be able to guess it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let table = FixedState::with_seed(seed.rotate_left(32) ^ TABLE_TWEAK);
        let words = [table.hash_one(1), table.hash_one(2)];
        Self { client: FixedState::with_seed(seed), table, words }
    }

    /// The hash of the IPv4 client at `address` with `port` (both as in the packet).
    #[inline]
    #[must_use]
    pub fn client4(&self, address: [u8; 4], port: [u8; 2]) -> u64 {
        self.client.hash_one(u64::from(u32::from_ne_bytes(address)) << 16 | u64::from(u16::from_ne_bytes(port)))
    }

    /// The hash of the IPv6 client at `address` with `port`.
    #[inline]
    #[must_use]
    pub fn client6(&self, address: [u8; 16], port: [u8; 2]) -> u64 {
        self.client.hash_one((u128::from_ne_bytes(address), u16::from_ne_bytes(port)))
    }

    /// The hash of the client, which is the source of `key`.
    #[inline]
    #[must_use]
    pub fn client_is_source(&self, key: &Key) -> u64 {
        match key {
            Key::V4(Key4 { source, ports: [a, b, ..], .. }) => self.client4(*source, [*a, *b]),
            Key::V6(Key6 { source, ports: [a, b, ..], .. }) => self.client6(*source, [*a, *b]),
        }
    }

    /// The hash of the client's address alone; the client is the source of `key`.
    #[must_use]
    pub fn client_alone(&self, key: &Key) -> u64 {
        match key {
            Key::V4(Key4 { source, .. }) => self.client4(*source, [0; 2]),
            Key::V6(Key6 { source, .. }) => self.client6(*source, [0; 2]),
        }
    }

    /// The route table's hash of a key.
    #[inline]
    #[must_use]
    pub fn route(&self, key: &Key) -> u64 {
        match key {
            Key::V4(key) => self.route4(key),
            Key::V6(key) => self.route6(key),
        }
    }

    /// The route table's hash of an IPv4 key.
    #[inline]
    #[must_use]
    pub fn route4(&self, key: &Key4) -> u64 {
        self.route4_words(key.addresses(), key.rest())
    }

    /// The same, of the key's words: [`Key4::addresses`] and [`Key4::rest`].
    #[inline]
    #[must_use]
    pub fn route4_words(&self, addresses: u64, rest: u64) -> u64 {
        // One folded multiplication as foldhash makes several of: the key is two words, and this is on every packet's way.
        let product = u128::from(addresses ^ self.words[0]) * u128::from(rest ^ self.words[1]);
        #[expect(clippy::cast_possible_truncation, reason = "the product's halves are folded")]
        let folded = product as u64 ^ (product >> 64) as u64;
        folded
    }

    /// The route table's hash of an IPv6 key.
    #[inline]
    #[must_use]
    pub fn route6(&self, key: &Key6) -> u64 {
        let rest = u64::from(u32::from_ne_bytes(key.ports)) << 8 | u64::from(key.protocol);
        self.table.hash_one((u128::from_ne_bytes(key.source), u128::from_ne_bytes(key.destination), rest))
    }
}

/// Source and destination port in a key's `ports`, host byte order.
#[inline]
#[must_use]
pub fn source_port([high, low, ..]: [u8; 4]) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Destination port in a key's `ports`, host byte order.
#[inline]
#[must_use]
pub fn destination_port([.., high, low]: [u8; 4]) -> u16 {
    u16::from_be_bytes([high, low])
}

/// A key's `ports` of two ports in host byte order.
#[inline]
#[must_use]
pub fn join_ports(source: u16, destination: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    [a, b, c, d]
}

/// Spreads `hash` over `count` places without a division, by its upper bits.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below `count`")]
pub fn place(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// Keeps the table's key apart from the clients'.
const TABLE_TWEAK: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_keep_what_they_are_made_of(source: (u32, u16), destination: (u32, u16)) {
            let socket = |(address, port): (u32, u16)| SocketAddr::new(Ipv4Addr::from(address).into(), port);
            let key = Key::new(socket(source), socket(destination), protocol::TCP).unwrap();
            prop_assert_eq!(key.reversed().reversed(), key);
            prop_assert_eq!(key.source(), socket(source));
            prop_assert_eq!(key.destination(), socket(destination));
        }

        #[test]
        fn places_are_in_range(hash: u64, count in 1usize..1000) {
            prop_assert!(place(hash, count) < count);
        }
    }
}
