//! VLANs as ports of their own: their tag is taken off as a frame comes in and put on as one leaves, so nothing between knows of it.

use weir_identity::Moment;

use super::{Shard, port_id};
use crate::classifier::millis;
use crate::counters::{DropReason, Drops};
use crate::farm::{Farm, PortId};
use crate::packet::{Burst, Packet, Queue};

impl<Q: Queue> Shard<Q> {
    /// Takes a burst from a trunk, and forwards each tagged frame as one of its VLAN's port. A tag that stands for no port is the
    /// kernel's.
    #[cold]
    pub(super) fn receive_tagged(&mut self, port: usize, now: Moment) -> usize {
        let mut burst = Burst::new();
        if let Ok(queue) = &mut self.ports[port].queue {
            queue.receive(&mut burst);
        }
        let (work, trunk) = (burst.len(), port_id(port));
        self.forwarder.counters.received += work as u64;
        let mut group: Burst<Q::Packet> = Burst::new();
        let mut of = trunk;
        for packet in burst {
            let (packet, tag) = untagged(packet, trunk, &self.farm);
            match tag {
                Tag::Port(port) => {
                    if of != port {
                        self.forward_group(std::mem::take(&mut group), of, now);
                        of = port;
                    }
                    group.push(packet);
                }
                Tag::Unknown => self.hand_to_twin(packet, trunk),
                Tag::Stuck => self.forwarder.drops.count(DropReason::Truncated),
            }
        }
        self.forward_group(group, of, now);
        work
    }

    fn forward_group(&mut self, mut group: Burst<Q::Packet>, port: PortId, now: Moment) {
        if !group.is_empty() {
            let departures = self.forwarder.forward(&mut group, port, &self.farm, millis(now));
            self.dispatch(group, &departures, port, now);
        }
    }
}

/// What a frame's outer tag says.
enum Tag {
    /// The port whose it is: a VLAN's, and the tag is off, or the trunk's own without a tag.
    Port(PortId),
    /// It is of a VLAN that is no port.
    Unknown,
    /// It could not be taken off.
    Stuck,
}

/// Takes a frame's outer tag off, if it is one of the trunk's VLANs.
fn untagged<P: Packet>(mut packet: P, trunk: PortId, farm: &Farm) -> (P, Tag) {
    let Some(start) = packet.data().first_chunk::<18>() else {
        return (packet, Tag::Port(trunk));
    };
    if !TAGS.contains(&[start[12], start[13]]) {
        return (packet, Tag::Port(trunk));
    }
    let id = u16::from_be_bytes([start[14], start[15]]) & 0xfff;
    // A tag with identifier 0 says a priority only: the frame is the trunk's own.
    let port = if id == 0 { Some(trunk) } else { farm.vlan_port(trunk, id) };
    let Some(port) = port else {
        return (packet, Tag::Unknown);
    };
    packet.data_mut().copy_within(..12, TAG);
    if !packet.trim_front(TAG) {
        return (packet, Tag::Stuck);
    }
    (packet, Tag::Port(port))
}

/// Puts a tag on a frame; without room for it the frame is dropped.
pub(super) fn tagged<P: Packet>(mut packet: P, id: u16, drops: &mut Drops) -> Option<P> {
    let Some(frame) = packet.prepend(TAG).filter(|frame| frame.len() >= 14 + TAG) else {
        drops.count(DropReason::NoBuffer);
        return None;
    };
    frame.copy_within(TAG..TAG + 12, 0);
    frame[12..14].copy_from_slice(&TAGS[0]);
    frame[14..16].copy_from_slice(&id.to_be_bytes());
    Some(packet)
}

/// A tag's length.
const TAG: usize = 4;
/// 802.1Q's EtherType, and 802.1ad's.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
