//! Source addresses and ports for full-nat, dealt out by bucket: the port of an answer says which shard it belongs to.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::flow::toeplitz::{BUCKETS, Toeplitz};

/// A pool's (address, port) pairs. A client is given a pair of its own bucket alone, so that both directions of a connection have one
/// owner, whatever the number of shards, on this unit or on another.
///
/// A pair may serve many connections, as long as they go to different endpoints: what has to be free is the 4-tuple.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPorts {
    addresses: Vec<IpAddr>,
    range: RangeInclusive<u16>,
    dealt: Arc<Dealt>,
}

/// The ports of a range, sorted by what they contribute to a bucket; the rest is the address's. (The hash is linear.)
#[derive(Debug, PartialEq, Eq)]
struct Dealt {
    /// By address: its bucket with port 0.
    of_address: Vec<u8>,
    ports: Vec<u16>,
    /// By contribution: where its ports begin in `ports`; and the end.
    starts: [u32; BUCKETS + 1],
    /// The most ports of one contribution.
    most: usize,
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
    /// Not every bucket would have a port.
    #[error("{0} ports are too few: a pool needs {LEAST_PORTS} in a row, so that every bucket has some")]
    TooFewPorts(usize),
    /// Port 0 is none.
    #[error("port 0 cannot be a source port")]
    PortZero,
}

/// Ports in a row that a pool has at least: among so many are 1024 that begin at a multiple of 1024, eight for each bucket.
pub const LEAST_PORTS: usize = 2047;

impl PoolPorts {
    /// Deals the ports of a range to the buckets of `hash`.
    ///
    /// # Errors
    ///
    /// [`BadPool`].
    pub fn new(addresses: Vec<IpAddr>, ports: RangeInclusive<u16>, hash: &Toeplitz) -> Result<Self, BadPool> {
        if ports.len() < LEAST_PORTS {
            return Err(BadPool::TooFewPorts(ports.len()));
        }
        Self::of_any_size(addresses, ports, hash)
    }

    /// The same of a range that may leave buckets without any port; their clients find the pool exhausted.
    ///
    /// # Errors
    ///
    /// [`BadPool`] but for [`BadPool::TooFewPorts`].
    pub fn of_any_size(addresses: Vec<IpAddr>, range: RangeInclusive<u16>, hash: &Toeplitz) -> Result<Self, BadPool> {
        let first = *addresses.first().ok_or(BadPool::NoAddress)?;
        if addresses.len() > usize::from(u16::MAX) {
            return Err(BadPool::TooManyAddresses(addresses.len()));
        }
        if let Some(&other) = addresses.iter().find(|address| address.is_ipv4() != first.is_ipv4()) {
            return Err(BadPool::MixedFamilies(first, other));
        }
        if *range.start() == 0 {
            return Err(BadPool::PortZero);
        }
        let dealt = Arc::new(Dealt::new(&addresses, range.clone(), hash));
        Ok(Self { addresses, range, dealt })
    }

    /// Whether a port is one of the pool's.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// How many (address, port) pairs clients of a bucket have.
    #[must_use]
    pub fn capacity(&self, bucket: usize) -> usize {
        (0..self.addresses.len()).map(|address| self.ports_of(address, bucket).len()).sum()
    }

    /// Attempts of [`PoolPorts::candidate`] that give all pairs of a bucket.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.dealt.most * self.addresses.len()).unwrap_or(u32::MAX)
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

    /// One of a bucket's pairs: address index and port. Attempts 0, 1, 2, … below [`PoolPorts::attempts`] give all of them, none twice, in an
    /// order that `hash` decides, a keyed hash of the flow; a few give none, since not every bucket has the same number of ports.
    #[inline]
    #[must_use]
    pub fn candidate(&self, hash: u64, attempt: u32, bucket: usize) -> Option<(usize, u16)> {
        let pairs = u64::from(self.attempts());
        if pairs == 0 {
            return None;
        }
        let mask = pairs.next_power_of_two() - 1;
        // A permutation of the next power of two, walked until it comes back below: fewer than two steps on average, and
        // it does come back, since the cycle leads through where it began.
        let mut index = u64::from(attempt) % pairs;
        loop {
            index = permute(index, hash, mask);
            if index < pairs {
                break;
            }
        }
        let index = usize::try_from(index).ok()?;
        let (address, nth) = (index % self.addresses.len(), index / self.addresses.len());
        Some((address, *self.ports_of(address, bucket).get(nth)?))
    }

    /// The ports with which an address, by its index, is in a bucket.
    #[inline]
    fn ports_of(&self, address: usize, bucket: usize) -> &[u16] {
        let Dealt { of_address, ports, starts, .. } = &*self.dealt;
        let contribution = (usize::from(of_address[address]) ^ bucket) % BUCKETS;
        &ports[starts[contribution] as usize..starts[contribution + 1] as usize]
    }
}

impl Dealt {
    fn new(addresses: &[IpAddr], range: RangeInclusive<u16>, hash: &Toeplitz) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a bucket is below 128")]
        let of_address: Vec<u8> = addresses.iter().map(|address| hash.bucket(*address, 0) as u8).collect();
        let contribution = |port| hash.bucket(addresses[0], port) ^ usize::from(of_address[0]);
        let mut starts = [0; BUCKETS + 1];
        for port in range.clone() {
            starts[contribution(port) + 1] += 1;
        }
        let most = starts.iter().copied().max().unwrap_or(0) as usize;
        for at in 0..BUCKETS {
            starts[at + 1] += starts[at];
        }
        let mut next = starts;
        let mut ports = vec![0; range.len()];
        for port in range {
            let place = &mut next[contribution(port)];
            ports[*place as usize] = port;
            *place += 1;
        }
        Self { of_address, ports, starts, most }
    }
}

/// A permutation of 0..=mask: every step is one.
#[inline]
fn permute(index: u64, hash: u64, mask: u64) -> u64 {
    let half = (mask.count_ones() / 2).max(1);
    let mut index = index.wrapping_add(hash) & mask;
    index = index.wrapping_mul(ODD | hash >> 31) & mask;
    index ^= index >> half;
    index = index.wrapping_add(hash >> 32).wrapping_mul(ODD) & mask;
    index ^ index >> half
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::ToeplitzKey;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn addresses(count: usize) -> Vec<IpAddr> {
        (0..count).map(|n| Ipv4Addr::from(0x0a50_0001 + u32::try_from(n).unwrap()).into()).collect()
    }

    fn hash(seed: u64) -> Toeplitz {
        Toeplitz::new(&ToeplitzKey::from_seed(seed))
    }

    #[test]
    fn what_is_no_pool_is_refused() {
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        let four = addresses(1)[0];
        let new = |addresses, ports| PoolPorts::new(addresses, ports, &hash(1));
        assert_eq!(new(vec![], 1..=9999), Err(BadPool::NoAddress));
        assert_eq!(new(vec![four, six], 1..=9999), Err(BadPool::MixedFamilies(four, six)));
        assert_eq!(new(vec![four], 1..=2046), Err(BadPool::TooFewPorts(2046)));
        assert_eq!(new(vec![four], 0..=9999), Err(BadPool::PortZero));
        assert_eq!(new(addresses(70_000), 1..=9999), Err(BadPool::TooManyAddresses(70_000)));
        let whole = new(addresses(65_535), 1..=65_535).unwrap();
        let capacity: usize = (0..BUCKETS).map(|bucket| whole.capacity(bucket)).sum();
        assert_eq!(capacity, 65_535 * 65_535);
        assert!(whole.candidate(u64::MAX, u32::MAX, 0).is_none_or(|(_, port)| port >= 1));
    }

    #[test]
    fn the_least_range_has_ports_for_every_bucket() {
        for (seed, first) in (0..20).flat_map(|seed| [1, 1024, 20_001, 63_489].map(|first| (seed, first))) {
            let pool = PoolPorts::new(addresses(1), first..=first + 2046, &hash(seed)).unwrap();
            assert!((0..BUCKETS).all(|bucket| pool.capacity(bucket) >= 8), "seed {seed}, from {first}");
        }
    }

    #[test]
    fn first_candidates_are_spread() {
        let pool = PoolPorts::new(addresses(3), 1024..=65_535, &hash(3)).unwrap();
        let mut hits = [0u32; 48];
        let mut hash = 1u64;
        for _ in 0..48_000 {
            hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let mixed = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
            let Some((address, port)) = pool.candidate(mixed ^ mixed >> 32, 0, 1) else { continue };
            hits[usize::from(port - 1024) * 16 / 64_512 * 3 + address] += 1;
        }
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(*least > 800 && *most < 1200, "of 1000 each: {least} to {most}");
    }

    proptest! {
        #[test]
        fn attempts_give_every_pair_of_a_bucket_once(
            count in 1usize..6, first in 1u16..60_000, ports in 1u16..3000, six: bool, flow: u64, seed in 0u64..8,
        ) {
            let range = first..=first + (ports - 1);
            let mut all = addresses(count);
            if six {
                all = (1..=count).map(|n| Ipv6Addr::from(u128::try_from(n).unwrap()).into()).collect();
            }
            let hash = hash(seed);
            let pool = PoolPorts::of_any_size(all, range.clone(), &hash).unwrap();
            let mut seen = HashSet::new();
            for bucket in 0..BUCKETS {
                let before = seen.len();
                for attempt in 0..pool.attempts() {
                    let Some((address, port)) = pool.candidate(flow, attempt, bucket) else { continue };
                    prop_assert!(range.contains(&port) && pool.has(port));
                    prop_assert_eq!(hash.bucket(pool.address(address).unwrap(), port), bucket);
                    prop_assert!(seen.insert((address, port)), "{address} {port} twice");
                }
                prop_assert_eq!(seen.len() - before, pool.capacity(bucket));
            }
            prop_assert_eq!(seen.len(), usize::from(ports) * count);
        }
    }
}
