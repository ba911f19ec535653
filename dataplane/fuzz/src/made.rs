//! Frames made of what the unit has sent, since a fuzzer finds neither checksums nor a pool's ports.

use weir_dataplane::wire::checksum::checksum;
use weir_dataplane::wire::{Addresses, Dissection, Protocol, icmpv4, icmpv6};

use crate::frames;

/// The frame with right checksums in its IPv4 header and in ICMP, as far as these can be found.
pub fn mended(mut frame: Vec<u8>) -> Vec<u8> {
    let mut ip = 12;
    while matches!(frame.get(ip..ip + 2), Some([0x81, 0] | [0x88, 0xa8])) {
        ip += 4;
    }
    ip += 2;
    if let Some(&first) = frame.get(ip).filter(|first| **first >> 4 == 4) {
        let end = ip + usize::from(first & 15) * 4;
        if end >= ip + 20 && end <= frame.len() {
            frame[ip + 10..ip + 12].fill(0);
            let check = checksum(&frame[ip..end]);
            frame[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
        }
    }
    if let Ok(parts) = Dissection::of(&frame)
        && parts.fragment.is_none()
    {
        let message = &mut frame[parts.upper..parts.end];
        match (parts.protocol, parts.addresses) {
            (Protocol::ICMP, Addresses::V4 { .. }) => {
                let _ = icmpv4::Packet::new_checked(message).map(|mut message| message.fill_checksum());
            }
            (Protocol::ICMPV6, addresses) => {
                let _ = icmpv6::Packet::new_checked(message).map(|mut message| message.fill_checksum(addresses));
            }
            _ => {}
        }
    }
    frame
}

/// `sent` turned round as its receiver would answer it, then changed by `change` from the IP header on.
pub fn answer(sent: &[u8], to: [u8; 6], change: &[u8]) -> Option<Vec<u8>> {
    let parts = Dissection::of(sent).ok()?;
    let mut frame = sent.to_vec();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 9, 9]);
    let (at, size) = if parts.addresses.source().is_ipv4() { (parts.ip + 12, 4) } else { (parts.ip + 8, 16) };
    frame[at..at + 2 * size].rotate_left(size);
    let ports = matches!(parts.protocol, Protocol::TCP | Protocol::UDP) && !parts.is_later_fragment();
    if let Some(ports) = frame.get_mut(parts.upper..parts.upper + 4).filter(|_| ports) {
        ports.rotate_left(2);
    }
    frame[parts.ip..].iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change);
    Some(mended(frame))
}

/// An error about `sent`. `bytes`: type, code, the header's second word, how much is quoted (in 4 bytes; 0: all), and whether the
/// packet's receiver says so (odd) or a router.
pub fn error(sent: &[u8], to: [u8; 6], bytes: &[u8]) -> Option<Vec<u8>> {
    let (&[kind, code, a, b, c, d, quoted, by], change) = bytes.split_first_chunk::<8>()?;
    let parts = Dissection::of(sent).ok()?;
    let packet = &sent[parts.ip..parts.end];
    let quoted = if quoted == 0 { packet.len() } else { usize::from(quoted) * 4 };
    let mut message = [&[kind, code, 0, 0, a, b, c, d], &packet[..quoted.min(packet.len())]].concat();
    message.iter_mut().skip(8).zip(change).for_each(|(byte, change)| *byte ^= change);
    let v4 = parts.addresses.source().is_ipv4();
    let router = if v4 { "203.0.113.9" } else { "2001:db8:ffff::9" }.parse().ok()?;
    let source = if by % 2 == 1 { parts.addresses.destination() } else { router };
    let protocol = if v4 { Protocol::ICMP } else { Protocol::ICMPV6 };
    let frame = frames::frame(to, frames::addresses(source, parts.addresses.source()), protocol, &message);
    // In the VLAN that the packet was in.
    let tags = &sent[12..parts.ip - 2];
    Some(mended([&frame[..12], tags, &frame[12..]].concat()))
}
