//! Endpoints on the unit itself: packets go to its own kernel by the twin of the port whose address the endpoint has.
//!
//! The kernel does not own the VIP, so it takes them as a `nat` host would, with the endpoint's address and port as their
//! destination; and its answers, which come out of the twin, are translated back as that host's are.

use std::net::SocketAddr;

use weir_health_load::Directive;
use weir_identity::EndpointId;

use crate::counters::DropReason;
use crate::farm::{Endpoint, Farm, PortId};
use crate::forwarder::{Fate, Forwarder, is_return};
use crate::icmp_error::{self, Quoted};
use crate::packet::Packet;
use crate::parse::{Class, Parsed, parse};
use crate::rewrite::{self, Side};

impl Forwarder {
    /// Rewrites a client's packet for the kernel.
    pub(super) fn rewrite_for_kernel<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        endpoint: EndpointId,
        farm: &Farm,
    ) -> Fate {
        let Some((endpoint, port)) = local(endpoint, farm) else {
            return Fate::Drop(DropReason::Inactive);
        };
        let link = &farm.ports[usize::from(port)];
        if parsed.ip_len > link.mtu {
            return Fate::TooBig(link.mtu);
        }
        let frame = packet.data_mut();
        frame[..6].copy_from_slice(&link.mac);
        rewrite::translate(frame, parsed.headers(), Side::Destination, endpoint.address, endpoint.port);
        self.counters.hits += 1;
        Fate::Kernel(port)
    }

    /// The same for an ICMP error about the flow.
    pub(super) fn error_to_kernel<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        quoted: &Quoted,
        endpoint: EndpointId,
        farm: &Farm,
    ) -> Fate {
        let Some((endpoint, port)) = local(endpoint, farm) else {
            return Fate::Drop(DropReason::Inactive);
        };
        let to = endpoint.port.unwrap_or(quoted.route_key().destination().port());
        let to = SocketAddr::new(endpoint.address, to);
        if let Err(reason) = icmp_error::to_endpoint_nat(packet.data_mut(), parsed, quoted, to) {
            return Fate::Drop(reason);
        }
        packet.data_mut()[..6].copy_from_slice(&farm.ports[usize::from(port)].mac);
        self.counters.hits += 1;
        Fate::Kernel(port)
    }

    /// What the kernel sends by a twin, if it may be an answer of an endpoint on the unit; with the shard that has its flow.
    #[must_use]
    pub fn kernels_answer(&self, frame: &[u8], farm: &Farm) -> Option<(Parsed, usize)> {
        let parsed = parse(frame, *frame.first_chunk::<6>()?).ok().filter(|parsed| parsed.unicast)?;
        if !farm.is_local(parsed.key.source().ip()) {
            return None;
        }
        let owner = match parsed.class {
            Class::Flow => self.owners.client_is_destination(&parsed.key),
            Class::Icmp => icmp_error::quoted(frame, &parsed).ok()?.owner(&self.owners, false),
            _ => return None,
        };
        Some((parsed, owner))
    }

    /// Translates such an answer; `None` if it is of no flow of ours, and then the packet is as it was.
    pub fn forward_answer<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        farm: &Farm,
        now: u32,
    ) -> Option<Fate> {
        if parsed.class == Class::Icmp {
            return self.forward_error(packet, parsed, farm, now);
        }
        let live = self.live(&parsed.key, farm, now).is_some_and(is_return) || self.renew(&parsed.key, farm, now);
        live.then(|| self.forward_one(packet, parsed, farm, now))
    }
}

fn local(endpoint: EndpointId, farm: &Farm) -> Option<(&Endpoint, PortId)> {
    let endpoint = farm.endpoint(endpoint).filter(|endpoint| endpoint.directive != Directive::Inactive)?;
    Some((endpoint, endpoint.local?))
}
