//! Which shard a packet that has just arrived belongs to, found before any look-up, on ports whose queues do not say it.
//!
//! What is plain is told by a few words at fixed places; everything else is parsed as the slow path would, since packets of one
//! flow have to go the same way to keep their order, plain or not.

use crate::farm::Farm;
use crate::flow::protocol;
use crate::forwarder::{Forwarder, quick};
use crate::icmp_error;
use crate::parse::{Class, parse};

impl Forwarder {
    /// The shard that owns a frame's flow: this one where nobody in particular has to see it.
    #[inline(always)]
    #[must_use]
    pub fn steer(&self, frame: &[u8], mac: [u8; 6], farm: &Farm) -> usize {
        let Some(start) = frame.first_chunk::<SHORTEST>() else {
            return self.shard;
        };
        if word(start, 0) << 16 != quick::address_word(mac) {
            return self.steer_other(frame, mac, farm);
        }
        match word(start, 12) & quick::ETHERTYPE_AND_VERSION {
            quick::IPV4 if half(start, 20) & FRAGMENT == 0 && has_ports(start[23]) => {
                let (source, destination) = (chunk::<4>(start, 26), chunk::<4>(start, 30));
                match farm.side4(source, destination) {
                    Some(Side::Client) => self.owners.of4(source, chunk(start, 34)),
                    Some(Side::Host) => self.owners.of4(destination, chunk(start, 36)),
                    None => self.shard,
                }
            }
            kind if kind & !0x0f_0000 == quick::IPV6 && has_ports(start[20]) => {
                let Some(start) = frame.first_chunk::<SHORTEST6>() else {
                    return self.shard;
                };
                let (source, destination) = (chunk::<16>(start, 22), chunk::<16>(start, 38));
                match farm.side6(source, destination) {
                    Some(Side::Client) => self.owners.of6(source, chunk(start, 54)),
                    Some(Side::Host) => self.owners.of6(destination, chunk(start, 56)),
                    None => self.shard,
                }
            }
            _ => self.steer_other(frame, mac, farm),
        }
    }

    /// The same of what is not plain: options, tags, fragments, ICMP errors, protocols without ports.
    #[cold]
    #[inline(never)]
    fn steer_other(&self, frame: &[u8], mac: [u8; 6], farm: &Farm) -> usize {
        let Ok(parsed) = parse(frame, mac) else {
            return self.shard;
        };
        let key = &parsed.key;
        let from_client = farm.vip_of(key).is_some();
        match parsed.class {
            Class::Icmp if from_client || farm.translates() => match icmp_error::quoted(frame, &parsed) {
                Ok(quoted) => quoted.owner(&self.owners, from_client),
                Err(_) => self.shard,
            },
            Class::Flow | Class::Fragment
                if !from_client && farm.pool_of(key).is_none() && !farm.is_from_endpoint(key) =>
            {
                self.shard
            }
            Class::Flow => self.owner(key, from_client),
            Class::Fragment => self.owners.of_fragments(key, from_client),
            _ => self.shard,
        }
    }
}

/// On which side of a flow a packet's sender is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It is the client, and the packet is for a VIP.
    Client,
    /// It may be an endpoint, and the destination the client or what stands for it.
    Host,
}

#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

/// `N` bytes at a fixed place; the bounds were checked with the array they are in.
#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

#[inline(always)]
fn word(bytes: &[u8; SHORTEST], at: usize) -> u64 {
    u64::from_le_bytes(chunk(bytes, at))
}

#[inline(always)]
fn half(bytes: &[u8; SHORTEST], at: usize) -> u16 {
    u16::from_be_bytes(chunk(bytes, at))
}

/// Ethernet, IPv4 and UDP without options.
const SHORTEST: usize = 42;
/// Ethernet, IPv6 and UDP without options.
const SHORTEST6: usize = 62;
/// An IPv4 header's fragment offset, and MF.
const FRAGMENT: u16 = 0x3fff;
