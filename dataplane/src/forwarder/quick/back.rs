//! The quick lane's ways back in nat and full-nat: from IPv4 hosts to IPv4 clients, by the FIB.
//!
//! Where a client is is asked of the FIB in the first pass in nat, for there the client is the packet's destination. In full-nat the
//! destination stands for the client: the second pass asks for the translation, and the third for the client's way and then goes it.

use arrayvec::ArrayVec;
use weir_identity::EndpointId;

use super::{Bits, QuickLane, SHORTEST, parsed};
use crate::farm::{Farm, PortId};
use crate::forwarder::{Fate, Forwarder, GENERAL, full_nat};
use crate::packet::{BURST, Burst, Packet};
use crate::plain4;
use crate::rewrite;
use crate::route_table::{Action, Mode, Slot, Slot4, VipPort};
use crate::translation::Translation;

/// A way back whose translation has been asked for: the third pass goes it.
pub(super) const POSTPONED: PortId = GENERAL - 1;

/// Asks for the FIB's lines of IPv4 destinations, which may be clients; for a VIP it is always the same line.
#[inline(never)]
pub(super) fn ask_for_clients(lane: &QuickLane, four: Bits, farm: &Farm) {
    for at in four {
        farm.fib().prefetch4(destination(lane.addresses[at]));
    }
}

/// The way back of nat; `None`, with the packet unchanged, if there is none that is plain.
#[inline(always)]
pub(super) fn nat<P: Packet>(packet: &mut P, endpoint: EndpointId, value: u64, farm: &Farm) -> Option<PortId> {
    farm.endpoint(endpoint)?;
    let frame = packet.data_mut().first_chunk_mut::<SHORTEST>()?;
    let (client, port) = (plain4::addresses(frame) >> 32, plain4::ports(frame) >> 16);
    let VipPort { vip, port: vip_port } = VipPort::from_value(value);
    leave(frame, (vip, vip_port), client, port, farm)
}

impl Forwarder {
    /// Third pass over what the second one has postponed: reads the translations and asks for the clients' lines, then rewrites.
    #[inline(never)]
    pub(super) fn leave_postponed<P: Packet>(&mut self, packets: &mut Burst<P>, lane: &mut QuickLane, farm: &Farm) {
        let mut found = ArrayVec::<(usize, EndpointId, u64, Option<Translation>), BURST>::new();
        for (at, departure) in lane.departures.iter_mut().enumerate() {
            if *departure != POSTPONED {
                continue;
            }
            *departure = GENERAL;
            // The table may have changed meanwhile, and what is in the translation's place belongs to whose route is there now.
            let (addresses, rest) = (lane.addresses[at], lane.rest[at]);
            let look = self.routes4.look(lane.lines[at] / Slot4::PER_LINE, |slot| slot.difference(addresses, rest));
            if !look.found {
                continue;
            }
            let Action::Send { endpoint, mode: Mode::FullNatReturn, value } = self.routes4.entry(look.index).action()
            else {
                continue;
            };
            let translation = self.translations.find(full_nat::slot(value));
            if let Some(Translation { client: std::net::SocketAddr::V4(client), .. }) = translation {
                farm.fib().prefetch4(client.ip().octets());
            }
            found.push((at, endpoint, value, translation));
        }
        let packets = packets.as_mut_slice();
        for (at, endpoint, value, translation) in found {
            lane.departures[at] = match translation {
                Some(Translation { client: std::net::SocketAddr::V4(client), vip, port }) => {
                    let Some(frame) = packets[at].data_mut().first_chunk_mut::<SHORTEST>() else { continue };
                    let address = u64::from(u32::from_le_bytes(client.ip().octets()));
                    leave(frame, (vip, port), address, u16::from_le_bytes(client.port().to_be_bytes()).into(), farm)
                        .unwrap_or(GENERAL)
                }
                _ => {
                    let Some(parsed) = parsed(packets[at].data(), false) else { continue };
                    let mode = Mode::FullNatReturn;
                    match full_nat::deliver(&mut packets[at], &parsed, endpoint, mode, value, &self.translations, farm)
                    {
                        Ok(Fate::Send(port)) => port,
                        _ => GENERAL,
                    }
                }
            };
        }
    }
}

/// Translates to a client, whose address and port are as they stand in a packet, read little-endian, and sends it there.
#[inline(always)]
fn leave(frame: &mut [u8; SHORTEST], vip: (u32, u16), client: u64, port: u32, farm: &Farm) -> Option<PortId> {
    let (vip, vip_port) = vip;
    let vip = farm.vip_address4(vip)?;
    let [high, low, ..] = port.to_le_bytes();
    let flow = rewrite::flow_of_port(u16::from_be_bytes([high, low]));
    let next = farm.fib().next4(destination(client << 32), flow)?;
    let mac = farm.ports.get(usize::from(next.port()))?.mac;
    frame[..8].copy_from_slice(&next.bytes());
    frame[6..12].copy_from_slice(&mac);
    plain4::decrement_ttl(frame);
    let vip_port = u32::from(u16::from_le_bytes(vip_port.to_be_bytes()));
    plain4::translate(frame, u64::from(u32::from_le_bytes(vip)) | client << 32, vip_port | port << 16);
    Some(next.port())
}

/// The destination in both addresses read little-endian.
#[inline(always)]
fn destination(addresses: u64) -> [u8; 4] {
    let [.., a, b, c, d] = addresses.to_le_bytes();
    [a, b, c, d]
}
