//! What IPv4 and IPv6 have in common: protocol numbers and address pairs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP protocol number or IPv6 next header (IANA "Assigned Internet Protocol Numbers").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// IPv6 hop-by-hop options (RFC 8200 4.3).
    pub const HOP_BY_HOP: Protocol = Protocol(0);
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: Protocol = Protocol(4);
    /// TCP.
    pub const TCP: Protocol = Protocol(6);
    /// UDP.
    pub const UDP: Protocol = Protocol(17);
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: Protocol = Protocol(41);
    /// IPv6 routing header (RFC 8200 4.4).
    pub const ROUTING: Protocol = Protocol(43);
    /// IPv6 fragment header (RFC 8200 4.5).
    pub const FRAGMENT: Protocol = Protocol(44);
    /// GRE (RFC 2784; PPTP's variant RFC 2637).
    pub const GRE: Protocol = Protocol(47);
    /// IPsec encapsulating security payload (RFC 4303).
    pub const ESP: Protocol = Protocol(50);
    /// IPsec authentication header (RFC 4302).
    pub const AH: Protocol = Protocol(51);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// IPv6: nothing follows (RFC 8200 4.7).
    pub const NO_NEXT: Protocol = Protocol(59);
    /// IPv6 destination options (RFC 8200 4.6).
    pub const DESTINATION_OPTIONS: Protocol = Protocol(60);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Protocol::HOP_BY_HOP => "hop-by-hop",
            Protocol::ICMP => "icmp",
            Protocol::IPV4 => "ipv4",
            Protocol::TCP => "tcp",
            Protocol::UDP => "udp",
            Protocol::IPV6 => "ipv6",
            Protocol::ROUTING => "routing",
            Protocol::FRAGMENT => "fragment",
            Protocol::GRE => "gre",
            Protocol::ESP => "esp",
            Protocol::AH => "ah",
            Protocol::ICMPV6 => "icmpv6",
            Protocol::NO_NEXT => "no-next",
            Protocol::DESTINATION_OPTIONS => "destination-options",
            Protocol(other) => return write!(f, "protocol {other}"),
        };
        f.write_str(name)
    }
}

/// Source and destination of one packet, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Of an IPv4 packet.
    V4 {
        /// The sender.
        source: Ipv4Addr,
        /// The receiver.
        destination: Ipv4Addr,
    },
    /// Of an IPv6 packet.
    V6 {
        /// The sender.
        source: Ipv6Addr,
        /// The receiver.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// The sender.
    #[must_use]
    pub fn source(self) -> IpAddr {
        match self {
            Addresses::V4 { source, .. } => source.into(),
            Addresses::V6 { source, .. } => source.into(),
        }
    }

    /// The receiver.
    #[must_use]
    pub fn destination(self) -> IpAddr {
        match self {
            Addresses::V4 { destination, .. } => destination.into(),
            Addresses::V6 { destination, .. } => destination.into(),
        }
    }

    /// The pair of the way back.
    #[must_use]
    pub fn reversed(self) -> Addresses {
        match self {
            Addresses::V4 { source, destination } => Addresses::V4 { source: destination, destination: source },
            Addresses::V6 { source, destination } => Addresses::V6 { source: destination, destination: source },
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.source(), self.destination())
    }
}
