//! Packet buffers and port queues as the dataplane sees them: two small traits, and a heap buffer for tests and replay.

use arrayvec::ArrayVec;

/// Packets that are handled together: parsed, looked up, rewritten and sent as one.
pub const BURST: usize = 32;

/// A burst that owns its packets; what is not sent stays in it.
pub type Burst<P> = ArrayVec<P, BURST>;

/// One packet buffer, from the first byte of the Ethernet header to the last byte of the frame.
pub trait Packet: Send + 'static {
    /// The frame.
    fn data(&self) -> &[u8];
    /// The frame, to be rewritten in place.
    fn data_mut(&mut self) -> &mut [u8];
    /// Adds `bytes` in front of the frame and returns the whole frame; `None` if there is no headroom (nothing changed).
    fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]>;
    /// Takes `bytes` off the front; `false` if the frame is shorter (nothing changed).
    fn trim_front(&mut self, bytes: usize) -> bool;
    /// Makes the frame `bytes` long, cutting or growing it at the end; new bytes are undefined. `false` if it cannot grow so far.
    fn resize(&mut self, bytes: usize) -> bool;
    /// Asks the processor to load what parsing will read and forwarding will change.
    fn prefetch(&self) {}
    /// Asks the processor to load what says where the bytes are: it is not here where another core has had the packet.
    fn prefetch_header(&self) {}
}

/// One receive and transmit queue of one port, owned by one shard.
pub trait Queue: Send + 'static {
    /// The buffers that this queue carries.
    type Packet: Packet;
    /// Fills the free places of `burst` with what has arrived.
    fn receive(&mut self, burst: &mut Burst<Self::Packet>);
    /// Sends a prefix of `burst`; the tail that was not accepted stays in it, in order.
    fn send(&mut self, burst: &mut Burst<Self::Packet>);
    /// Whether so much waits to be received that soon there may be no room for more; `None` where the driver cannot tell.
    fn is_behind(&self) -> Option<bool> {
        None
    }
    /// An empty buffer for a packet that the unit itself originates; `None` if there is none.
    fn allocate(&mut self) -> Option<Self::Packet>;
}

/// A packet in ordinary memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeapPacket {
    bytes: Vec<u8>,
    start: usize,
}

impl HeapPacket {
    /// A packet with a copy of `frame` and room in front for a tunnel header.
    #[must_use]
    pub fn new(frame: &[u8]) -> Self {
        let mut bytes = vec![0; HEADROOM];
        bytes.extend_from_slice(frame);
        Self { bytes, start: HEADROOM }
    }
}

impl Packet for HeapPacket {
    fn data(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(bytes)?;
        Some(&mut self.bytes[self.start..])
    }

    fn trim_front(&mut self, bytes: usize) -> bool {
        if bytes > self.data().len() {
            return false;
        }
        self.start += bytes;
        true
    }

    fn resize(&mut self, bytes: usize) -> bool {
        self.bytes.resize(self.start + bytes, 0);
        true
    }
}

/// Room in front of a frame, as in a DPDK buffer.
const HEADROOM: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_packet_has_edges() {
        let mut packet = HeapPacket::new(&[1, 2, 3]);
        assert!(packet.prepend(HEADROOM + 1).is_none());
        packet.prepend(2).unwrap()[..2].copy_from_slice(&[8, 9]);
        assert_eq!(packet.data(), [8, 9, 1, 2, 3]);
        assert!(!packet.trim_front(6));
        assert!(packet.trim_front(4));
        assert!(packet.resize(2));
        assert_eq!(packet.data(), [3, 0]);
    }
}
