//! Which shard owns a flow: a table from the bucket of its client's address and port.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::toeplitz::{BUCKETS, Toeplitz, ToeplitzKey, reversed};
use super::{Key, Key4, Key6};

/// The owners of all flows. In both directions and in every mode they are found by the client alone, so that a flow's packets meet in
/// one shard; a NIC that hashes that side only, with the same key and table, brings them there by itself.
#[derive(Clone)]
pub struct Owners {
    inner: Arc<Inner>,
}

struct Inner {
    hash: Toeplitz,
    /// By bucket: its shard.
    table: [u8; BUCKETS],
    /// The same by the hash's own order of buckets.
    by_class: [u8; BUCKETS],
    shards: usize,
}

impl Owners {
    /// The most shards: each has at least one bucket.
    pub const MOST: usize = BUCKETS;

    /// The buckets dealt to so many shards (at least 1, at most [`Self::MOST`]), one after the other.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "buckets and shards are below 129")]
    pub fn new(key: &ToeplitzKey, shards: usize) -> Self {
        let shards = shards.clamp(1, Self::MOST);
        let table: [u8; BUCKETS] = std::array::from_fn(|bucket| (bucket % shards) as u8);
        let by_class = std::array::from_fn(|class| table[usize::from(reversed(class as u8))]);
        Self { inner: Arc::new(Inner { hash: Toeplitz::new(key), table, by_class, shards }) }
    }

    /// How many shards there are.
    #[inline]
    #[must_use]
    pub fn shards(&self) -> usize {
        self.inner.shards
    }

    /// The hash that chooses buckets.
    #[must_use]
    pub fn hash(&self) -> &Toeplitz {
        &self.inner.hash
    }

    /// By bucket: its shard, as a NIC's redirection table has it.
    #[must_use]
    pub fn table(&self) -> [u16; BUCKETS] {
        self.inner.table.map(u16::from)
    }

    /// The shard of the IPv4 client at `address` with `port`, both as in the packet.
    #[inline(always)]
    #[must_use]
    pub fn of4(&self, address: [u8; 4], port: [u8; 2]) -> usize {
        let class = self.inner.hash.class4(address, port);
        self.inner.by_class[usize::from(class) % BUCKETS].into()
    }

    /// The shard of the IPv6 client at `address` with `port`.
    #[inline(always)]
    #[must_use]
    pub fn of6(&self, address: [u8; 16], port: [u8; 2]) -> usize {
        let class = self.inner.hash.class6(address, port);
        self.inner.by_class[usize::from(class) % BUCKETS].into()
    }

    /// The shard of a client.
    #[must_use]
    pub fn of(&self, address: IpAddr, port: u16) -> usize {
        match address {
            IpAddr::V4(address) => self.of4(address.octets(), port.to_be_bytes()),
            IpAddr::V6(address) => self.of6(address.octets(), port.to_be_bytes()),
        }
    }

    /// The shard of a flow whose client (or a pool's port that stands for it) is the source of `key`.
    #[inline]
    #[must_use]
    pub fn client_is_source(&self, key: &Key) -> usize {
        match key {
            Key::V4(Key4 { source, ports: [a, b, ..], .. }) => self.of4(*source, [*a, *b]),
            Key::V6(Key6 { source, ports: [a, b, ..], .. }) => self.of6(*source, [*a, *b]),
        }
    }

    /// The shard of a flow whose client (or a pool's port that stands for it) is the destination of `key`.
    #[inline]
    #[must_use]
    pub fn client_is_destination(&self, key: &Key) -> usize {
        match key {
            Key::V4(Key4 { destination, ports: [.., a, b], .. }) => self.of4(*destination, [*a, *b]),
            Key::V6(Key6 { destination, ports: [.., a, b], .. }) => self.of6(*destination, [*a, *b]),
        }
    }

    /// The shard that has a datagram's fragments, of which only the first has ports: by the client's address alone.
    #[must_use]
    pub fn of_fragments(&self, key: &Key, from_client: bool) -> usize {
        match key {
            Key::V4(key) => self.of4(if from_client { key.source } else { key.destination }, [0; 2]),
            Key::V6(key) => self.of6(if from_client { key.source } else { key.destination }, [0; 2]),
        }
    }
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners").field("shards", &self.inner.shards).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use proptest::prelude::*;

    use super::*;
    use crate::flow::protocol;

    #[test]
    fn buckets_are_dealt_evenly() {
        for shards in [1, 2, 3, 5, 64, 128] {
            let table = Owners::new(&ToeplitzKey::from_seed(1), shards).table();
            let count = |shard| table.iter().filter(|there| usize::from(**there) == shard).count();
            assert!((0..shards).all(|shard| (BUCKETS / shards..=BUCKETS.div_ceil(shards)).contains(&count(shard))));
        }
        assert_eq!(Owners::new(&ToeplitzKey::from_seed(1), 0).shards(), 1);
        assert_eq!(Owners::new(&ToeplitzKey::from_seed(1), 500).shards(), Owners::MOST);
    }

    proptest! {
        #[test]
        fn both_directions_have_one_owner(
            source: (u32, u16), destination: (u32, u16), seed: u64, shards in 1usize..=128
        ) {
            let socket = |(address, port): (u32, u16)| SocketAddr::new(Ipv4Addr::from(address).into(), port);
            let key = Key::new(socket(source), socket(destination), protocol::TCP).unwrap();
            let owners = Owners::new(&ToeplitzKey::from_seed(seed), shards);
            let owner = owners.client_is_source(&key);
            prop_assert!(owner < shards);
            prop_assert_eq!(owner, owners.client_is_destination(&key.reversed()));
            prop_assert_eq!(owner, owners.of(key.source().ip(), key.source().port()));
            let bucket = owners.hash().bucket(key.source().ip(), key.source().port());
            prop_assert_eq!(owner, usize::from(owners.table()[bucket]));
        }
    }
}
