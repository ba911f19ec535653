//! VLANs as ports of their own: their tag is taken off as a frame comes in and put on as one leaves, so nothing between knows of it.

use crate::counters::{DropReason, Drops};
use crate::farm::{Farm, PortId};
use crate::packet::Packet;

/// What a frame's outer tag says.
pub(super) enum Tagged {
    /// It is of this port now: the trunk's own, or of a VLAN whose tag is off.
    Port(PortId),
    /// It is of a VLAN that is no port.
    Unknown,
    /// It could not be taken off.
    Stuck,
}

/// Takes a frame's outer tag off, if it is one of the trunk's VLANs.
pub(super) fn untagged<P: Packet>(mut packet: P, trunk: PortId, farm: &Farm) -> (P, Tagged) {
    let Some(start) = packet.data().first_chunk::<18>() else {
        return (packet, Tagged::Port(trunk));
    };
    if !TAGS.contains(&[start[12], start[13]]) {
        return (packet, Tagged::Port(trunk));
    }
    let id = u16::from_be_bytes([start[14], start[15]]) & 0xfff;
    // A tag with identifier 0 says a priority only: the frame is the trunk's own.
    let port = if id == 0 { Some(trunk) } else { farm.vlan_port(trunk, id) };
    let Some(port) = port else {
        return (packet, Tagged::Unknown);
    };
    packet.data_mut().copy_within(..12, TAG);
    if !packet.trim_front(TAG) {
        return (packet, Tagged::Stuck);
    }
    (packet, Tagged::Port(port))
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
