//! How packets of flows come to a unit's receive queues: as a NIC deals them that knows their owners, that hashes the 4-tuple, or that
//! has one queue.

use weir_dataplane::flow::{Key, Owners};

/// A way in which a port deals flows to its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Exact RSS: each flow comes by the queue of the shard that owns it.
    Owner,
    /// RSS over addresses and ports of both sides: a flow comes by one queue, whose shard owns it only by chance.
    FourTuple,
    /// One queue has all flows.
    One,
}

impl Feed {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Owner, Self::FourTuple, Self::One];

    /// The name that options and rows have.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Feed::Owner => "owner",
            Feed::FourTuple => "4-tuple",
            Feed::One => "one",
        }
    }

    /// A feed by its name.
    pub(crate) fn of(name: &str) -> Result<Self, String> {
        let feed = Self::ALL.into_iter().find(|feed| feed.name() == name);
        feed.ok_or_else(|| format!("no feed is called {name}: there are owner, 4-tuple and one"))
    }

    /// The queue, of so many, by which packets of a flow come that this shard owns.
    pub(crate) fn queue(self, key: &Key, owner: usize, queues: usize) -> usize {
        match self {
            Feed::Owner => owner,
            // The repeated indirection table that drivers set up where nobody says otherwise.
            Feed::FourTuple => (toeplitz(&rss_input(key)) % INDIRECTIONS) as usize % queues,
            Feed::One => 0,
        }
    }

    /// The share of packets that come in elsewhere than at their owner.
    pub(crate) fn foreign(self, shards: usize) -> f64 {
        if self == Feed::Owner { 0.0 } else { 1.0 - 1.0 / shards as f64 }
    }
}

/// The shard that owns a flow whose client is the source of `key`.
pub(crate) fn owner(owners: &Owners, key: &Key) -> usize {
    owners.client_is_source(key)
}

/// What RSS over the 4-tuple hashes of a packet: both addresses, then both ports.
fn rss_input(key: &Key) -> Vec<u8> {
    match key {
        Key::V4(key) => [&key.source[..], &key.destination, &key.ports].concat(),
        Key::V6(key) => [&key.source[..], &key.destination, &key.ports].concat(),
    }
}

/// The hash that NICs compute, with the key that drivers have where nobody gives them one.
fn toeplitz(input: &[u8]) -> u32 {
    let window = |bit: usize| (0..32).fold(0, |word, at| word << 1 | u32::from(bit_of(&KEY, bit + at)));
    (0..input.len() * 8).filter(|bit| bit_of(input, *bit)).fold(0, |hash, bit| hash ^ window(bit))
}

fn bit_of(bytes: &[u8], bit: usize) -> bool {
    bytes[bit / 8] << (bit % 8) & 0x80 != 0
}

/// Places in a NIC's indirection table.
const INDIRECTIONS: u32 = 128;

/// Microsoft's, from its published verification suite. What a unit itself hashes by has another key.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];
