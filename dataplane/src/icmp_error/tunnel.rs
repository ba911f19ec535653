//! ICMP errors about the unit's own packets: those in which it has sent a client's packet to a host, with the outer header quoted.

use std::net::IpAddr;

use super::{error4, error6};
use crate::counters::DropReason;
use crate::flow::{Key, protocol};
use crate::parse::{Class, Parsed};
use crate::wire::{Protocol, icmpv4, icmpv6, ipv4, ipv6};

/// What a router or a host says about a tunnel's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelError {
    /// Who sent it: one of the unit's addresses.
    pub source: IpAddr,
    /// Where it went.
    pub destination: IpAddr,
    /// How many bytes fit on its way, header included, where it was too big.
    pub too_big: Option<u16>,
}

/// Reads an error that quotes the outer header of ipip or GUE, and has a right checksum.
///
/// # Errors
///
/// As [`super::quoted`]; [`DropReason::Icmp`] for what quotes no tunnel's packet, or another's than its receiver's.
pub fn about_tunnel(frame: &[u8], parsed: &Parsed) -> Result<TunnelError, DropReason> {
    if parsed.class != Class::Icmp {
        return Err(DropReason::Icmp);
    }
    let (start, end) = (usize::from(parsed.l4), usize::from(parsed.l3) + usize::from(parsed.ip_len));
    let message = frame.get(start..end).ok_or(DropReason::Truncated)?;
    let error = match (&parsed.key, parsed.key.protocol()) {
        (Key::V4(_), protocol::ICMP) => {
            let quotation = ipv4::Packet::new_quoted(error4(message)?).map_err(|_| DropReason::Truncated)?;
            let needed =
                (message[0], message[1]) == (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::FRAGMENTATION_NEEDED);
            let told = u16::from_be_bytes([message[6], message[7]]);
            let mtu = if told == 0 { plateau_below(quotation.total_len()) } else { told.max(LEAST_V4) };
            is_tunnels(quotation.protocol())?;
            TunnelError {
                source: quotation.source().into(),
                destination: quotation.destination().into(),
                too_big: needed.then_some(mtu),
            }
        }
        (Key::V6(key), protocol::ICMPV6) => {
            let quotation = ipv6::Packet::new_quoted(error6(message, key)?).map_err(|_| DropReason::Truncated)?;
            let told = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            let mtu = u16::try_from(told).unwrap_or(u16::MAX).max(ipv6::LEAST_MTU);
            is_tunnels(quotation.next_header())?;
            TunnelError {
                source: quotation.source().into(),
                destination: quotation.destination().into(),
                too_big: (message[0] == icmpv6::kind::PACKET_TOO_BIG).then_some(mtu),
            }
        }
        _ => return Err(DropReason::Icmp),
    };
    if error.source == parsed.key.destination().ip() { Ok(error) } else { Err(DropReason::Icmp) }
}

fn is_tunnels(protocol: Protocol) -> Result<(), DropReason> {
    let is = matches!(protocol, Protocol::IPV4 | Protocol::IPV6 | Protocol::UDP);
    if is { Ok(()) } else { Err(DropReason::Icmp) }
}

/// What an old router means that says nothing: the next lower of the usual MTUs, RFC 1191 section 7.1.
fn plateau_below(len: usize) -> u16 {
    PLATEAUS.into_iter().find(|mtu| usize::from(*mtu) < len).unwrap_or(LEAST_V4)
}

const PLATEAUS: [u16; 7] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006];
/// What each IPv4 host can take (RFC 791 section 3.2): nobody is believed who says less.
const LEAST_V4: u16 = 576;
