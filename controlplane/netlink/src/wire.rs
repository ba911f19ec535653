//! Netlink messages (RFC 3549, `rtnetlink(7)`) to the mirror's events, and the mirror's questions to netlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState as NudState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::resolve::{How, Request};
use crate::state::{
    Event, Gateway, LinkData, NeighbourData, NeighbourState, Placed, Prefix, RouteData, RouteKey, RouteKind,
};

/// What one netlink message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A change or an entry; `interrupted`: the dump it belongs to is not consistent.
    Event {
        /// What.
        event: Event,
        /// `NLM_F_DUMP_INTR`.
        interrupted: bool,
    },
    /// The dump or request with this sequence number is complete.
    Done {
        /// The request's.
        sequence: u32,
        /// `NLM_F_DUMP_INTR`.
        interrupted: bool,
    },
    /// The kernel refused the request with this sequence number.
    Refused {
        /// The request's.
        sequence: u32,
        /// The error number, positive.
        errno: i32,
    },
    /// Messages were lost.
    Overrun,
    /// Nothing that concerns us.
    Other,
}

/// Reads a datagram: one or more messages. Total on any input: what cannot be read is [`Said::Other`].
pub fn read(datagram: &[u8]) -> impl Iterator<Item = Said> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = rest.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))?;
        let length = usize::try_from(length).ok().filter(|l| (HEADER_LEN..=rest.len()).contains(l))?;
        let said = said(&rest[..length]);
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(said)
    })
}

fn said(message: &[u8]) -> Said {
    let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(%error, "a netlink message is not understood");
            return Said::Other;
        }
    };
    let NetlinkHeader { flags, sequence_number: sequence, .. } = message.header;
    let interrupted = flags & NLM_F_DUMP_INTR != 0;
    match message.payload {
        // A dump that fails on its way says so at its end.
        NetlinkPayload::Done(done) if done.code != 0 => Said::Refused { sequence, errno: done.code.saturating_abs() },
        NetlinkPayload::Done(_) => Said::Done { sequence, interrupted },
        NetlinkPayload::Error(error) => match error.code {
            None => Said::Done { sequence, interrupted },
            Some(code) => Said::Refused { sequence, errno: code.get().saturating_abs() },
        },
        NetlinkPayload::Overrun(_) => Said::Overrun,
        NetlinkPayload::InnerMessage(inner) => match event(inner, flags) {
            Some(event) => Said::Event { event, interrupted },
            None => Said::Other,
        },
        _ => Said::Other,
    }
}

fn event(message: RouteNetlinkMessage, flags: u16) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link(message),
        RouteNetlinkMessage::DelLink(message) => gone_link(&message),
        RouteNetlinkMessage::NewAddress(message) => address(&message, true),
        RouteNetlinkMessage::DelAddress(message) => address(&message, false),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message, true),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(&message, false),
        RouteNetlinkMessage::NewRoute(message) => {
            let (key, route) = route(message)?;
            let placed = if flags & NLM_F_REPLACE != 0 {
                Placed::Replace
            } else if flags & (NLM_F_APPEND | NLM_F_MULTI) != 0 {
                Placed::Append
            } else {
                Placed::First
            };
            Some(Event::Route { key, route, placed })
        }
        RouteNetlinkMessage::DelRoute(message) => {
            let (key, route) = route(message)?;
            Some(Event::RouteGone { key, route })
        }
        _ => None,
    }
}

fn link(message: LinkMessage) -> Option<Event> {
    // A bridge announces its ports with its own family: those are not the link itself.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let mut link = LinkData { name: String::new(), mac: [0; 6], mtu: 0, up };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().unwrap_or_default(),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(Event::Link { index: message.header.index, link })
}

fn gone_link(message: &LinkMessage) -> Option<Event> {
    // With family AF_BRIDGE it only left its bridge.
    let whole = message.header.interface_family == AddressFamily::Unspec;
    whole.then_some(Event::LinkGone { index: message.header.index })
}

fn address(message: &AddressMessage, there: bool) -> Option<Event> {
    let (interface, prefix_len) = (message.header.index, message.header.prefix_len);
    let mut found = (None, None);
    let mut usable = !message.header.flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end.
            AddressAttribute::Local(address) => found.0 = Some(*address),
            AddressAttribute::Address(address) => found.1 = Some(*address),
            AddressAttribute::Flags(flags) => {
                usable &= !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
            }
            _ => {}
        }
    }
    let address = found.0.or(found.1)?;
    Some(if there && usable {
        Event::Address { interface, address, prefix_len }
    } else {
        Event::AddressGone { interface, address, prefix_len }
    })
}

fn neighbour(message: &NeighbourMessage, there: bool) -> Option<Event> {
    // Proxy entries say what we answer for, not who is there.
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let interface = message.header.ifindex;
    let mut address = None;
    let mut neighbour = NeighbourData { mac: None, state: nud(message.header.state), managed: false };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => neighbour.mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => neighbour.managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    let address = address?;
    Some(if there {
        Event::Neighbour { interface, address, neighbour }
    } else {
        Event::NeighbourGone { interface, address }
    })
}

fn nud(state: NudState) -> NeighbourState {
    match state {
        NudState::Incomplete => NeighbourState::Incomplete,
        NudState::Reachable => NeighbourState::Reachable,
        NudState::Stale => NeighbourState::Stale,
        NudState::Delay => NeighbourState::Delay,
        NudState::Probe => NeighbourState::Probe,
        NudState::Failed => NeighbourState::Failed,
        NudState::Noarp => NeighbourState::NoArp,
        NudState::Permanent => NeighbourState::Permanent,
        _ => NeighbourState::None,
    }
}

/// A route of the main table, if it is one that forwards (no cache entries, no multicast).
fn route(message: RouteMessage) -> Option<(RouteKey, RouteData)> {
    let header = message.header;
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => RouteKind::Blackhole,
        _ => return None,
    };
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut multipath = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = plain(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::MultiPath(hops) => multipath.extend(hops.iter().filter_map(next_hop)),
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let mut gateways = multipath;
    // The flags of a single next hop stand in the header, in the same low bits.
    let dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    if gateways.is_empty() && !dead {
        gateways.extend(hop(&message.attributes, None, 1));
    }
    if kind != RouteKind::Unicast {
        gateways.clear();
    }
    let prefix = Prefix { address: destination, len: header.destination_prefix_length };
    Some((RouteKey { prefix, metric, tos: header.tos }, RouteData { kind, gateways }))
}

/// One of several next hops, unless it is out of order.
fn next_hop(next: &RouteNextHop) -> Option<Gateway> {
    if next.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown) {
        return None;
    }
    // The kernel counts from 0.
    hop(&next.attributes, Some(next.interface_index), u16::from(next.hops) + 1)
}

fn hop(attributes: &[RouteAttribute], interface: Option<u32>, weight: u16) -> Option<Gateway> {
    let mut gateway = Gateway { via: None, interface: interface.unwrap_or_default(), weight };
    let mut encapsulated = false;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway.via = plain(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway.via = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway.via = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => gateway.interface = *index,
            RouteAttribute::EncapType(_) => encapsulated = true,
            _ => {}
        }
    }
    if encapsulated {
        // Only the kernel can send this way: index 0 is no interface, so the route counts as leading elsewhere.
        gateway.interface = 0;
    } else if gateway.interface == 0 {
        return None;
    }
    Some(gateway)
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// One table of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// All links.
    Links,
    /// All addresses.
    Addresses,
    /// Neighbours of IPv4 (ARP).
    NeighboursIpv4,
    /// Neighbours of IPv6 (ND).
    NeighboursIpv6,
    /// Routes of IPv4.
    RoutesIpv4,
    /// Routes of IPv6.
    RoutesIpv6,
}

/// A request for all of `table`.
#[must_use]
pub fn dump_request(table: Table, sequence: u32) -> Vec<u8> {
    let neighbours = |family| {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        RouteNetlinkMessage::GetNeighbour(message)
    };
    let routes = |family| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        RouteNetlinkMessage::GetRoute(message)
    };
    let message = match table {
        Table::Links => RouteNetlinkMessage::GetLink(LinkMessage::default()),
        Table::Addresses => RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        Table::NeighboursIpv4 => neighbours(AddressFamily::Inet),
        Table::NeighboursIpv6 => neighbours(AddressFamily::Inet6),
        Table::RoutesIpv4 => routes(AddressFamily::Inet),
        Table::RoutesIpv6 => routes(AddressFamily::Inet6),
    };
    serialize(message, NLM_F_REQUEST | NLM_F_DUMP, sequence)
}

/// A request to resolve a neighbour; answered by [`Said::Done`] or [`Said::Refused`].
#[must_use]
pub fn resolve_request(request: &Request, sequence: u32) -> Vec<u8> {
    let mut message = NeighbourMessage::default();
    message.header.family = if request.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = request.interface;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(request.address.into()));
    match request.how {
        How::Managed => message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed)),
        How::Use => message.header.flags = NeighbourFlags::Use,
    }
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    serialize(RouteNetlinkMessage::NewNeighbour(message), flags, sequence)
}

fn serialize(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// `sizeof(struct nlmsghdr)`.
const HEADER_LEN: usize = 16;
/// Messages begin at multiples of this (`NLMSG_ALIGNTO`).
const ALIGN: usize = 4;
/// `NLM_F_MULTI`: part of a dump, whose order is the kernel's.
const NLM_F_MULTI: u16 = netlink_packet_core::NLM_F_MULTIPART;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(message: RouteNetlinkMessage, flags: u16) -> Vec<Said> {
        read(&serialize(message, flags, 7)).collect()
    }

    #[test]
    fn an_ipv4_route_over_an_ipv6_gateway_keeps_it() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 24;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        let via = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 0))),
            RouteAttribute::Via(RouteVia::Inet6(via)),
            RouteAttribute::Oif(4),
        ];
        let [Said::Event { event: Event::Route { key, route, placed }, interrupted: false }] =
            &events(RouteNetlinkMessage::NewRoute(message), NLM_F_REPLACE)[..]
        else {
            panic!("not a route");
        };
        assert_eq!((key.prefix.to_string().as_str(), *placed), ("192.0.2.0/24", Placed::Replace));
        assert_eq!(route.gateways, [Gateway { via: Some(via.into()), interface: 4, weight: 1 }]);
    }

    #[test]
    fn several_messages_of_a_datagram_are_read_and_a_cut_one_is_not() {
        let one = dump_request(Table::Links, 1);
        let mut datagram = one.clone();
        datagram.extend_from_slice(&one);
        assert_eq!(read(&datagram).count(), 2);
        assert_eq!(read(&datagram[..datagram.len() - 1]).count(), 1);
    }

    #[test]
    fn a_request_for_a_neighbour_reads_back() {
        let address: IpAddr = "fd80::11".parse().unwrap();
        let bytes = resolve_request(&Request { interface: 3, address, how: How::Managed }, 9);
        let neighbour = NeighbourData { mac: None, state: NeighbourState::None, managed: true };
        let event = Event::Neighbour { interface: 3, address, neighbour };
        assert_eq!(read(&bytes).collect::<Vec<_>>(), [Said::Event { event, interrupted: false }]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = read(&bytes).count();
        }

        /// Random bytes rarely look like a message: these have a fitting header.
        #[test]
        fn any_payload_is_read_without_panic(kind in 16u16..32, flags: u16, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let length = u32::try_from(HEADER_LEN + payload.len()).unwrap();
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend([0; 8]);
            bytes.extend(payload);
            prop_assert_eq!(read(&bytes).count(), 1);
        }
    }
}
