//! ARP and neighbour discovery for addresses that no kernel owns: VIPs and pool addresses on the link.

use std::net::{IpAddr, Ipv6Addr};

use super::{Answer, is_host_v4, is_host_v6};
use crate::wire::{Addresses, Dissection, EtherType, MacAddress, Protocol};
use crate::wire::{arp, ethernet, icmpv6, ipv6, ndisc, vlan::Link};

/// Of every neighbour discovery packet: proof that no router passed it on (RFC 4861 7.1).
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Turns an ARP request for an owned address into the reply of `mac`, in place. VLAN tags and padding stay.
///
/// Probes (RFC 5227: sender address 0.0.0.0) are answered. An announcement by another station that claims the address is not:
/// who keeps it is not decided here.
pub fn answer_arp(frame: &mut [u8], mac: MacAddress, owns: impl Fn(IpAddr) -> bool) -> Answer {
    turn_arp(frame, mac, owns).into()
}

fn turn_arp(frame: &mut [u8], mac: MacAddress, owns: impl Fn(IpAddr) -> bool) -> Option<usize> {
    let link = Link::of(frame).ok()?;
    if link.ethertype != EtherType::ARP || !concerns(frame, mac) {
        return None;
    }
    let request = arp::Repr::parse(&arp::Packet::new_checked(frame.get(link.offset..)?).ok()?);
    let asker = request.source_mac;
    let sender = is_host_v4(request.source_ip) || request.source_ip.is_unspecified();
    let asked = request.operation == arp::Operation::REQUEST && asker.is_unicast() && asker != mac && sender;
    if !asked || request.source_ip == request.target_ip || !owns(request.target_ip.into()) {
        return None;
    }
    request.reply(mac).emit(frame.get_mut(link.offset..)?).ok()?;
    let len = frame.len();
    address_link(frame, mac, asker)?;
    Some(len)
}

/// Writes the advertisement that answers a neighbour solicitation for an owned address into `out` (RFC 4861 7.2.4).
///
/// It is solicited and overrides, with the target's link-layer address. A probe of duplicate address detection (unspecified
/// source) is answered to all nodes, not solicited. The solicitation has to pass all of RFC 4861 7.1.1 and must not stand
/// behind extension headers (RFC 6980). `out` needs 86 bytes, and 4 for each tag.
pub fn answer_solicitation(frame: &[u8], out: &mut [u8], mac: MacAddress, owns: impl Fn(IpAddr) -> bool) -> Answer {
    advertise(frame, out, mac, owns).into()
}

fn advertise(frame: &[u8], out: &mut [u8], mac: MacAddress, owns: impl Fn(IpAddr) -> bool) -> Option<usize> {
    let parts = Dissection::of(frame).ok()?;
    let Addresses::V6 { source, destination } = parts.addresses else { return None };
    let direct = parts.hop_limit == HOP_LIMIT && parts.protocol == Protocol::ICMPV6 && !parts.has_options;
    if !direct || !concerns(frame, mac) {
        return None;
    }
    let message = parts.payload(frame);
    let ndisc::Repr::Solicitation { target, link_address } =
        ndisc::Repr::parse(&ndisc::Packet::new_checked(message).ok()?)
    else {
        return None;
    };
    icmpv6::Packet::new_checked(message).ok()?.verify_checksum(parts.addresses).ok()?;
    if !is_host_v6(target) || !owns(target.into()) {
        return None;
    }
    let group = solicited_node(target);
    let probe = source.is_unspecified();
    if probe {
        if destination != group || link_address.is_some() {
            return None;
        }
    } else if !is_host_v6(source) || source == target || (destination != target && destination != group) {
        return None;
    }
    let (station, receiver) = if probe {
        (MacAddress::of_ipv6_multicast(ALL_NODES), ALL_NODES)
    } else {
        let station = link_address.unwrap_or(ethernet::Packet::new_checked(frame).ok()?.source());
        if !station.is_unicast() || station == mac {
            return None;
        }
        (station, source)
    };
    let reply = ndisc::Repr::Advertisement {
        target,
        link_address: Some(mac),
        router: false,
        solicited: !probe,
        overrides: true,
    };
    let link = frame.get(..parts.ip)?;
    out.get_mut(..link.len())?.copy_from_slice(link);
    emit_advertisement(reply, out, link.len(), mac, station, Addresses::V6 { source: target, destination: receiver })
}

/// Writes the announcement that `mac` has `address` now into `out`: a gratuitous ARP request, or an unsolicited neighbour
/// advertisement to all nodes that overrides. `out` needs 42 or 86 bytes.
pub fn announce(address: IpAddr, mac: MacAddress, out: &mut [u8]) -> Answer {
    match address {
        IpAddr::V4(address) => {
            let ethertype = EtherType::ARP;
            let header = ethernet::Repr { destination: MacAddress::BROADCAST, source: mac, ethertype };
            let announcement = arp::Repr::announcement(mac, address);
            let len = header.len() + announcement.len();
            let emit = |out: &mut [u8]| {
                let (link, message) = out.split_at_mut_checked(header.len())?;
                header.emit(link).ok()?;
                announcement.emit(message).ok()
            };
            out.get_mut(..len).and_then(emit).map(|_| len).into()
        }
        IpAddr::V6(address) => {
            let station = MacAddress::of_ipv6_multicast(ALL_NODES);
            let header = ethernet::Repr { destination: station, source: mac, ethertype: EtherType::IPV6 };
            let announcement = ndisc::Repr::Advertisement {
                target: address,
                link_address: Some(mac),
                router: false,
                solicited: false,
                overrides: true,
            };
            let addresses = Addresses::V6 { source: address, destination: ALL_NODES };
            if header.emit(out).is_err() {
                return Answer::None;
            }
            emit_advertisement(announcement, out, header.len(), mac, station, addresses).into()
        }
    }
}

/// Writes stations, IPv6 header and message around the link header that is in `out` already.
fn emit_advertisement(
    message: ndisc::Repr,
    out: &mut [u8],
    link_len: usize,
    mac: MacAddress,
    station: MacAddress,
    addresses: Addresses,
) -> Option<usize> {
    let Addresses::V6 { source, destination } = addresses else { return None };
    let len = link_len + ipv6::HEADER_LEN + message.len();
    let (link, rest) = out.get_mut(..len)?.split_at_mut_checked(link_len)?;
    let (header, place) = rest.split_at_mut_checked(ipv6::HEADER_LEN)?;
    address_link(link, mac, station)?;
    let payload_len = u16::try_from(message.len()).ok()?;
    let ip = ipv6::Repr::new(source, destination, Protocol::ICMPV6, payload_len);
    ipv6::Repr { hop_limit: HOP_LIMIT, ..ip }.emit(header).ok()?;
    message.emit(place, addresses).ok()?;
    Some(len)
}

/// Whether a frame is for `mac`, or for a group, and from another station.
fn concerns(frame: &[u8], mac: MacAddress) -> bool {
    ethernet::Packet::new_checked(frame).is_ok_and(|header| {
        let destination = header.destination();
        (destination == mac || destination.is_multicast()) && header.source() != mac && header.source().is_unicast()
    })
}

/// Sets the stations of a frame.
fn address_link(frame: &mut [u8], source: MacAddress, destination: MacAddress) -> Option<()> {
    let mut header = ethernet::Packet::new_checked(frame).ok()?;
    header.set_source(source);
    header.set_destination(destination);
    Some(())
}

/// The group in which an address is asked for (RFC 4291 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}
