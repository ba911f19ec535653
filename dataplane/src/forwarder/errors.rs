//! ICMP errors about flows go where the packets go that answer the quoted one, translated as those are.

use std::net::SocketAddr;

use crate::counters::DropReason;
use crate::farm::{Farm, PortId};
use crate::forwarder::full_nat::{self, Way};
use crate::forwarder::{Fate, Forwarder};
use crate::icmp_error::{self, Quoted};
use crate::packet::Packet;
use crate::parse::Parsed;
use crate::rewrite::{self, Stop};
use crate::route_table::{Action, Mode, VipPort};

impl Forwarder {
    /// Forwards an ICMP error about a flow; `None` if it is none, or about a flow that is not ours.
    pub fn forward_error<P: Packet>(&mut self, packet: &mut P, parsed: &Parsed, farm: &Farm, now: u32) -> Option<Fate> {
        let to_vip = farm.vip_of(&parsed.key).is_some();
        if !to_vip && !farm.translates() {
            return None;
        }
        let quoted = icmp_error::quoted(packet.data(), parsed).ok()?;
        let owner = quoted.owner(&self.owners, to_vip);
        if owner != self.shard {
            return Some(Fate::HandOver(owner));
        }
        let key = quoted.route_key();
        match self.live(&key, farm, now) {
            Some(Action::Send { endpoint, mode, value }) => {
                let route = ErrorRoute { endpoint, mode, value, quoted: &quoted, farm };
                let sent = match mode {
                    Mode::FullNat | Mode::FullNatReturn => {
                        full_nat::way(&key, endpoint, mode, value, &self.translations, farm)
                            .and_then(|way| route.send_by(packet, parsed, way))
                    }
                    _ => route.send(packet, parsed),
                };
                Some(sent.map_or_else(Fate::from, |port| {
                    self.counters.hits += 1;
                    Fate::Send(port)
                }))
            }
            Some(Action::Drop) => Some(Fate::Drop(DropReason::Refused)),
            Some(Action::Divert) => Some(Fate::DivertError { key }),
            Some(Action::Local { endpoint }) => Some(self.error_to_kernel(packet, parsed, &quoted, endpoint, farm)),
            None if to_vip => Some(Fate::DivertError { key }),
            None => None,
        }
    }
}

/// The route of the flow that an error is about.
struct ErrorRoute<'a> {
    endpoint: weir_identity::EndpointId,
    mode: Mode,
    value: u64,
    quoted: &'a Quoted,
    farm: &'a Farm,
}

impl ErrorRoute<'_> {
    /// Full-nat, either way: the error's receiver knows its flow as `way`'s destination → source.
    fn send_by<P: Packet>(&self, packet: &mut P, parsed: &Parsed, way: Way) -> Result<PortId, Stop> {
        let &Self { mode, quoted, farm, .. } = self;
        let Way { source, destination, hop } = way;
        let headers = parsed.headers();
        if headers.ttl <= 1 {
            return Err(Stop::Drop(DropReason::Ttl));
        }
        if source.is_ipv4() != parsed.key.source().is_ipv4() {
            rewrite::decrement_ttl(packet.data_mut(), headers);
            icmp_error::to_other_family(packet, parsed, quoted, source, destination).map_err(Stop::Drop)?;
            packet.data_mut()[..12].copy_from_slice(&hop.ethernet);
            return Ok(hop.port);
        }
        let translate =
            if mode == Mode::FullNat { icmp_error::to_endpoint_full_nat } else { icmp_error::to_client_full_nat };
        translate(packet.data_mut(), parsed, quoted, destination, source).map_err(Stop::Drop)?;
        rewrite::pass_on(packet, headers, &hop, farm)
    }

    fn send<P: Packet>(&self, packet: &mut P, parsed: &Parsed) -> Result<PortId, Stop> {
        let &Self { endpoint: id, mode, value, quoted, farm } = self;
        let headers = parsed.headers();
        if headers.ttl <= 1 {
            return Err(Stop::Drop(DropReason::Ttl));
        }
        let endpoint = farm.endpoint(id).ok_or(Stop::Drop(DropReason::Inactive))?;
        match mode {
            // The host has the VIP: it knows the flow as it is.
            Mode::Dsr | Mode::Ipip | Mode::Gue => rewrite::deliver(packet, headers, id, mode, value, farm),
            Mode::Nat => {
                let hop = endpoint.hop.as_ref().ok_or_else(|| rewrite::no_hop(endpoint, farm))?;
                let port = endpoint.port.unwrap_or(quoted.route_key().destination().port());
                let to = SocketAddr::new(endpoint.address, port);
                icmp_error::to_endpoint_nat(packet.data_mut(), parsed, quoted, to).map_err(Stop::Drop)?;
                rewrite::pass_on(packet, headers, hop, farm)
            }
            Mode::NatReturn => {
                let VipPort { vip, port } = VipPort::from_value(value);
                let vip = farm.vips.get(vip as usize).ok_or(Stop::Drop(DropReason::Inactive))?;
                let hop = rewrite::hop_back(packet.data(), headers, farm)?;
                let vip = SocketAddr::new(vip.address, port);
                icmp_error::to_client_nat(packet.data_mut(), parsed, quoted, vip).map_err(Stop::Drop)?;
                rewrite::pass_on(packet, headers, &hop, farm)
            }
            // Full-nat has its own way.
            Mode::FullNat | Mode::FullNatReturn | Mode::FlowId => Err(Stop::Drop(DropReason::Icmp)),
        }
    }
}
