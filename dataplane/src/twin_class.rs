//! How urgent a packet for a kernel twin is: what the unit's place in the network depends on, or anything else.
//!
//! Port numbers alone make nothing urgent, since anybody can send by them: routing and cluster protocols count only from addresses
//! that the configuration names. ARP and neighbour discovery come from the link itself, which for the latter its hop limit proves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashSet;
use ip_network_table_deps_treebitmap::IpLookupTable;

use crate::flow::protocol;

/// The classes of packets for a kernel twin, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TwinClass {
    /// BFD, BGP and the cluster's traffic of configured peers, and answers to the unit's probes.
    Peer,
    /// ARP and neighbour discovery.
    Neighbour,
    /// Everything else: SSH, ICMP, what nobody knows.
    Rest,
    /// Packets of flows whose endpoint is on the unit itself: no classification finds these, who forwards them knows.
    Flow,
}

impl TwinClass {
    /// All of them, the most urgent first. What has a budget comes before what has none.
    pub const ALL: [Self; 4] = [Self::Peer, Self::Neighbour, Self::Rest, Self::Flow];

    /// What a frame for a twin is. Any bytes are something.
    #[must_use]
    pub fn of(frame: &[u8], peers: &TwinPeers) -> Self {
        let mut at = ETHERNET;
        for _ in 0..=MOST_TAGS {
            let Some(ethertype) = frame.get(at - 2..at) else {
                return Self::Rest;
            };
            match ethertype {
                [0x81, 0x00] | [0x88, 0xa8] => at += TAG,
                [0x08, 0x06] => return Self::Neighbour,
                [0x08, 0x00] => return Self::of_ipv4(&frame[at..], peers),
                [0x86, 0xdd] => return Self::of_ipv6(&frame[at..], peers),
                _ => return Self::Rest,
            }
        }
        Self::Rest
    }

    fn of_ipv4(ip: &[u8], peers: &TwinPeers) -> Self {
        let Some(header) = ip.first_chunk::<20>() else {
            return Self::Rest;
        };
        // None of these comes in fragments.
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let upper = ip.get(usize::from(header[0] & 0xf) * 4..);
        let source = || Ipv4Addr::new(header[12], header[13], header[14], header[15]).into();
        match upper {
            Some(upper) if !fragment => Self::of_peer(header[9], header[8], upper, source, peers),
            _ => Self::Rest,
        }
    }

    fn of_ipv6(ip: &[u8], peers: &TwinPeers) -> Self {
        let Some((header, upper)) = ip.split_first_chunk::<40>() else {
            return Self::Rest;
        };
        // None of these has extension headers.
        let (next, hop_limit) = (header[6], header[7]);
        if next == protocol::ICMPV6 {
            let discovery = hop_limit == ON_LINK && upper.first().is_some_and(|kind| DISCOVERY.contains(kind));
            return if discovery { Self::Neighbour } else { Self::Rest };
        }
        let source = || {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[8..24]);
            Ipv6Addr::from(octets).into()
        };
        Self::of_peer(next, hop_limit, upper, source, peers)
    }

    /// Looks at protocol and ports first: most of what is nobody's needs no look at the addresses.
    fn of_peer(protocol: u8, hop_limit: u8, upper: &[u8], source: impl FnOnce() -> IpAddr, peers: &TwinPeers) -> Self {
        let Some(&[a, b, c, d]) = upper.first_chunk() else {
            return Self::Rest;
        };
        let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let urgent = match protocol {
            protocol::UDP => match to {
                // RFC 5881 section 5: who is not on the link cannot send it.
                BFD => hop_limit == ON_LINK && peers.has(source()),
                BFD_ECHO | BFD_MULTIHOP => peers.has(source()),
                _ => peers.cluster.iter().any(|port| [from, to].contains(port)) && peers.has(source()),
            },
            protocol::TCP if from == BGP || to == BGP => peers.has(source()),
            protocol::TCP if peers.probed_ports.contains(&from) => peers.probed.contains(&(source(), from)),
            _ => false,
        };
        if urgent { Self::Peer } else { Self::Rest }
    }
}

/// Whose routing and cluster protocols are urgent: fixed with the configuration, looked up only on the way to a twin.
#[derive(Default)]
pub struct TwinPeers {
    addresses: HashSet<IpAddr, foldhash::fast::FixedState>,
    prefixes4: Option<IpLookupTable<Ipv4Addr, ()>>,
    prefixes6: Option<IpLookupTable<Ipv6Addr, ()>>,
    /// UDP ports of the cluster's traffic, at either side.
    cluster: Vec<u16>,
    /// What the unit probes by TCP: answers come from there.
    probed: HashSet<(IpAddr, u16), foldhash::fast::FixedState>,
    probed_ports: Vec<u16>,
}

impl TwinPeers {
    /// Nobody yet; the cluster's traffic has one of these UDP ports at either side.
    #[must_use]
    pub fn new(mut cluster: Vec<u16>) -> Self {
        cluster.sort_unstable();
        cluster.dedup();
        Self { cluster, ..Self::default() }
    }

    /// The same with all addresses of a prefix as peers; `length` in bits.
    #[must_use]
    pub fn with(mut self, address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(_) if length >= 32 => drop(self.addresses.insert(address)),
            IpAddr::V6(_) if length >= 128 => drop(self.addresses.insert(address)),
            IpAddr::V4(address) => {
                self.prefixes4.get_or_insert_with(IpLookupTable::new).insert(address, length.into(), ());
            }
            IpAddr::V6(address) => {
                self.prefixes6.get_or_insert_with(IpLookupTable::new).insert(address, length.into(), ());
            }
        }
        self
    }

    /// The same with a TCP socket that the unit probes.
    #[must_use]
    pub fn probing(mut self, address: IpAddr, port: u16) -> Self {
        self.probed.insert((address, port));
        if !self.probed_ports.contains(&port) {
            self.probed_ports.push(port);
        }
        self
    }

    /// Whether an address is a configured peer's.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        let in_prefix = || match address {
            IpAddr::V4(address) => self.prefixes4.as_ref().is_some_and(|all| all.longest_match(address).is_some()),
            IpAddr::V6(address) => self.prefixes6.as_ref().is_some_and(|all| all.longest_match(address).is_some()),
        };
        self.addresses.contains(&address) || in_prefix()
    }
}

impl std::fmt::Debug for TwinPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TwinPeers").field("addresses", &self.addresses.len()).finish_non_exhaustive()
    }
}

const ETHERNET: usize = 14;
/// A VLAN tag's length.
const TAG: usize = 4;
const MOST_TAGS: usize = 2;
/// A hop limit that no router has lowered.
const ON_LINK: u8 = 255;
/// Router and neighbour solicitations and advertisements, and redirects: RFC 4861.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const BGP: u16 = 179;
/// RFC 5881 and RFC 5883.
const BFD: u16 = 3784;
const BFD_ECHO: u16 = 3785;
const BFD_MULTIHOP: u16 = 4784;

#[cfg(test)]
mod tests;
