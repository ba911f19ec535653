//! Source addresses and ports for full-nat, dealt out to shards: the port of an answer says which shard it belongs to.

use std::net::IpAddr;
use std::ops::RangeInclusive;

/// A pool's (address, port) pairs. Every shard has the same number of ports, each on every address.
///
/// A pair may serve many connections, as long as they go to different endpoints: what has to be free is the 4-tuple.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPorts {
    addresses: Vec<IpAddr>,
    first: u16,
    shards: usize,
    ports_per_shard: usize,
    /// One less than the power of two from [`PoolPorts::capacity_per_shard`] on.
    mask: u64,
}

/// The per-route value of [`Mode::FullNat`](crate::route_table::Mode::FullNat): which pair of the pool stands for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolPort {
    /// Index of the address in its pool.
    pub address: u32,
    /// The port, host byte order.
    pub port: u16,
}

impl PoolPort {
    /// As a route's value.
    #[must_use]
    pub fn to_value(self) -> u64 {
        u64::from(self.address) << 16 | u64::from(self.port)
    }

    /// From a route's value.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    pub fn from_value(value: u64) -> Self {
        Self { address: (value >> 16) as u32, port: value as u16 }
    }
}

/// Why something cannot be a pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPool {
    /// No address.
    #[error("a pool needs an address")]
    NoAddress,
    /// More than 65535 addresses.
    #[error("a pool of {0} addresses is too large: 65535 at most")]
    TooManyAddresses(usize),
    /// Addresses of both families: a pair has to fit the endpoint.
    #[error("{0} and {1} are of different families: a pool is of one")]
    MixedFamilies(IpAddr, IpAddr),
    /// Not every shard would have a port.
    #[error("{ports} ports are too few for {shards} shards")]
    TooFewPorts {
        /// Ports in the range.
        ports: usize,
        /// Shards that need one.
        shards: usize,
    },
    /// No shard.
    #[error("a pool needs a shard to deal its ports to")]
    NoShard,
    /// Port 0 is none.
    #[error("port 0 cannot be a source port")]
    PortZero,
}

impl PoolPorts {
    /// Deals the ports of a range to so many shards; what is left over at the range's end is not used.
    ///
    /// # Errors
    ///
    /// [`BadPool`].
    pub fn new(addresses: Vec<IpAddr>, ports: RangeInclusive<u16>, shards: usize) -> Result<Self, BadPool> {
        let first_address = *addresses.first().ok_or(BadPool::NoAddress)?;
        if addresses.len() > usize::from(u16::MAX) {
            return Err(BadPool::TooManyAddresses(addresses.len()));
        }
        if let Some(&other) = addresses.iter().find(|address| address.is_ipv4() != first_address.is_ipv4()) {
            return Err(BadPool::MixedFamilies(first_address, other));
        }
        if shards == 0 {
            return Err(BadPool::NoShard);
        }
        if *ports.start() == 0 {
            return Err(BadPool::PortZero);
        }
        if ports.len() < shards {
            return Err(BadPool::TooFewPorts { ports: ports.len(), shards });
        }
        let ports_per_shard = ports.len() / shards;
        let pairs = (ports_per_shard * addresses.len()) as u64;
        Ok(Self { addresses, first: *ports.start(), shards, ports_per_shard, mask: pairs.next_power_of_two() - 1 })
    }

    /// The shard whose port this is, of a port in the range.
    #[inline]
    #[must_use]
    pub fn shard_of(&self, port: u16) -> usize {
        usize::from(port.wrapping_sub(self.first)) % self.shards
    }

    /// Whether a port is one of the pool's.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        usize::from(port.wrapping_sub(self.first)) < self.ports_per_shard * self.shards
    }

    /// How many (address, port) pairs each shard has.
    #[inline]
    #[must_use]
    pub fn capacity_per_shard(&self) -> usize {
        self.ports_per_shard * self.addresses.len()
    }

    /// The address of an index from [`PoolPorts::candidate`].
    #[inline]
    #[must_use]
    pub fn address(&self, index: usize) -> Option<IpAddr> {
        self.addresses.get(index).copied()
    }

    /// All addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// One of this shard's pairs: address index and port. Attempts 0, 1, 2, … give all of them, none twice, in an order that
    /// `hash` decides, a keyed hash of the flow; from [`PoolPorts::capacity_per_shard`] on they begin again.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "index and port offset are below usize and u16 values they were made of"
    )]
    pub fn candidate(&self, hash: u64, attempt: u32, shard: usize) -> (usize, u16) {
        let pairs = self.capacity_per_shard() as u64;
        let mut index = u64::from(attempt);
        if index >= pairs {
            index %= pairs;
        }
        // A permutation of the next power of two, walked until it comes back below: fewer than two steps on average, and
        // it does come back, since the cycle leads through where it began.
        loop {
            index = self.permute(index, hash);
            if index < pairs {
                break;
            }
        }
        let addresses = self.addresses.len() as u64;
        let (address, nth) = ((index % addresses) as usize, (index / addresses) as usize);
        let port = usize::from(self.first) + nth * self.shards + shard % self.shards;
        (address, port as u16)
    }

    /// A permutation of 0..=mask: every step is one.
    #[inline]
    fn permute(&self, index: u64, hash: u64) -> u64 {
        let half = (self.mask.count_ones() / 2).max(1);
        let mut index = index.wrapping_add(hash) & self.mask;
        index = index.wrapping_mul(ODD | hash >> 31) & self.mask;
        index ^= index >> half;
        index = index.wrapping_add(hash >> 32).wrapping_mul(ODD) & self.mask;
        index ^ index >> half
    }
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    fn addresses(count: usize) -> Vec<IpAddr> {
        (0..count).map(|n| Ipv4Addr::from(0x0a50_0001 + u32::try_from(n).unwrap()).into()).collect()
    }

    #[test]
    fn what_is_no_pool_is_refused() {
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        let four = addresses(1)[0];
        assert_eq!(PoolPorts::new(vec![], 1..=9, 1), Err(BadPool::NoAddress));
        assert_eq!(PoolPorts::new(vec![four, six], 1..=9, 1), Err(BadPool::MixedFamilies(four, six)));
        assert_eq!(PoolPorts::new(vec![four], 1..=9, 10), Err(BadPool::TooFewPorts { ports: 9, shards: 10 }));
        assert_eq!(PoolPorts::new(vec![four], 1..=9, 0), Err(BadPool::NoShard));
        assert_eq!(PoolPorts::new(vec![four], 0..=9, 1), Err(BadPool::PortZero));
        assert_eq!(PoolPorts::new(addresses(70_000), 1..=9, 1), Err(BadPool::TooManyAddresses(70_000)));
        let whole = PoolPorts::new(addresses(65_535), 1..=65_535, 1).unwrap();
        assert_eq!(whole.capacity_per_shard(), 65_535 * 65_535);
        assert!(whole.candidate(u64::MAX, u32::MAX, 0).1 >= 1);
    }

    #[test]
    fn first_candidates_are_spread() {
        let pool = PoolPorts::new(addresses(3), 1024..=65_535, 4).unwrap();
        let pairs = pool.capacity_per_shard();
        let mut hits = [0u32; 48];
        let mut hash = 1u64;
        for _ in 0..48_000 {
            hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let mixed = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
            let (address, port) = pool.candidate(mixed ^ mixed >> 32, 0, 1);
            let place = (usize::from(port - 1024) / 4 * 3 + address) * 48 / pairs;
            hits[place] += 1;
        }
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(*least > 800 && *most < 1200, "of 1000 each: {least} to {most}");
    }

    proptest! {
        #[test]
        fn attempts_give_every_pair_once(
            count in 1usize..6, first in 1u16..60_000, ports in 1u16..300, shards in 1usize..9, hash: u64,
        ) {
            prop_assume!(usize::from(ports) >= shards);
            let range = first..=first + (ports - 1);
            let pool = PoolPorts::new(addresses(count), range.clone(), shards).unwrap();
            let capacity = u32::try_from(pool.capacity_per_shard()).unwrap();
            prop_assert_eq!(pool.capacity_per_shard(), usize::from(ports) / shards * count);
            let mut seen = HashSet::new();
            for shard in 0..shards {
                for attempt in 0..capacity {
                    let (address, port) = pool.candidate(hash, attempt, shard);
                    prop_assert!(range.contains(&port) && pool.address(address).is_some());
                    prop_assert_eq!(pool.shard_of(port), shard);
                    prop_assert!(seen.insert((address, port)), "{address} {port} twice");
                }
                prop_assert_eq!(pool.candidate(hash, capacity, shard), pool.candidate(hash, 0, shard));
            }
        }
    }
}
