//! Consistent hashing after Maglev (NSDI 2016, section 3.4), with weights: the same table on every unit that knows the same endpoints.

use std::cmp::Reverse;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use weir_identity::EndpointId;

/// A look-up table from a client's hash to an endpoint: even along the weights, and little changes when an endpoint comes or goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Maglev {
    slots: Box<[EndpointId]>,
    /// There is more than one endpoint.
    several: bool,
}

impl Maglev {
    /// The usual number of slots.
    pub const SIZE: usize = 65_537;

    /// A table size that suits a service with so many endpoints, fit or not: 100 slots for each, up to [`Maglev::SIZE`].
    ///
    /// Tables of different sizes have nothing in common; so count all configured endpoints, not only those that fit now.
    #[must_use]
    pub fn size_for(endpoints: usize) -> usize {
        let wanted = endpoints.saturating_mul(100);
        SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(Self::SIZE)
    }

    /// Builds the table from (stable name, weight, endpoint); `size` has to be prime. Weight 0 gets no slot.
    #[must_use]
    pub fn build(endpoints: &[(u64, u32, EndpointId)], size: usize) -> Maglev {
        let mut walks: Vec<Walk> = endpoints.iter().filter(|e| e.1 > 0).map(|e| Walk::new(e, size)).collect();
        // Whose turn comes first must not depend on the order in which a unit lists its endpoints.
        walks.sort_unstable_by_key(|walk| (Reverse(walk.weight), walk.stable, walk.endpoint));
        let Some(heaviest) = walks.first().map(|walk| u64::from(walk.weight)) else {
            return Maglev::default();
        };
        let mut slots: Vec<Option<EndpointId>> = vec![None; size];
        let mut free = size;
        'fill: loop {
            for walk in &mut walks {
                walk.credit += u64::from(walk.weight);
                if walk.credit < heaviest {
                    continue;
                }
                walk.credit -= heaviest;
                while let Some(slot) = slots.get_mut(walk.position) {
                    walk.step(size);
                    if slot.is_none() {
                        *slot = Some(walk.endpoint);
                        free -= 1;
                        break;
                    }
                }
                if free == 0 {
                    break 'fill;
                }
            }
        }
        Maglev { slots: slots.into_iter().flatten().collect(), several: walks.len() > 1 }
    }

    /// The endpoint of a hash; none if the table has no endpoints.
    #[must_use]
    pub fn lookup(&self, hash: u64) -> Option<EndpointId> {
        self.slots.get(self.slot(hash)?).copied()
    }

    /// The endpoint of a hash, or if that is `avoid` always the same other one; `avoid` if there is no other.
    ///
    /// The clients of an avoided endpoint are spread over all others. It may cost a walk through the table.
    #[must_use]
    pub fn lookup_avoiding(&self, hash: u64, avoid: EndpointId) -> Option<EndpointId> {
        let first = self.lookup(hash)?;
        if first != avoid || !self.several {
            return Some(first);
        }
        // Neighbours in the table have nothing in common, but clients of the same slot do: begin elsewhere.
        let (before, after) = self.slots.split_at(self.slot((hash ^ (hash >> 29)).wrapping_mul(ELSEWHERE))?);
        after.iter().chain(before).copied().find(|endpoint| *endpoint != avoid).or(Some(first))
    }

    fn slot(&self, hash: u64) -> Option<usize> {
        usize::try_from(hash.checked_rem(u64::try_from(self.slots.len()).ok()?)?).ok()
    }
}

/// One endpoint's way through the slots: its own permutation of them.
#[derive(Debug)]
struct Walk {
    stable: u64,
    weight: u32,
    endpoint: EndpointId,
    position: usize,
    skip: usize,
    credit: u64,
}

impl Walk {
    fn new(&(stable, weight, endpoint): &(u64, u32, EndpointId), size: usize) -> Walk {
        let below = |key: u64, bound: usize| {
            let mut hasher = SipHasher13::new_with_keys(key, !key);
            hasher.write(&stable.to_le_bytes());
            let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
            usize::try_from(hasher.finish() % bound).unwrap_or(0)
        };
        let position = below(0x6f66_6673_6574, size);
        let skip = below(0x736b_6970, size.saturating_sub(1)) + 1;
        Walk { stable, weight, endpoint, position, skip, credit: 0 }
    }

    fn step(&mut self, size: usize) {
        self.position = (self.position + self.skip) % size;
    }
}

/// Odd and without pattern.
const ELSEWHERE: u64 = 0xbf58_476d_1ce4_e5b9;

/// Primes, each about twice the one before.
const SIZES: [usize; 6] = [2_039, 4_093, 8_191, 16_381, 32_749, Maglev::SIZE];

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<(u64, u32, EndpointId)> {
        (0..)
            .zip(weights)
            .map(|(i, weight)| (0x1234_5678_9abc_def0 ^ (u64::from(i) << 7), *weight, EndpointId(i)))
            .collect()
    }

    fn counts(table: &Maglev, endpoints: usize) -> Vec<usize> {
        let mut counts = vec![0; endpoints];
        for slot in &table.slots {
            counts[slot.index()] += 1;
        }
        counts
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert_eq!(Maglev::size_for(0), 2_039);
        assert_eq!(Maglev::size_for(21), 4_093);
        assert_eq!(Maglev::size_for(1_000_000), Maglev::SIZE);
    }

    #[test]
    fn slots_follow_the_weights() {
        for weights in [vec![1; 10], vec![50, 30, 20], vec![99, 1, 7, 0, 40], (1..=99).collect()] {
            let table = Maglev::build(&endpoints(&weights), Maglev::SIZE);
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts(&table, weights.len()).into_iter().zip(&weights) {
                let fair = Maglev::SIZE as f64 * f64::from(*weight) / f64::from(total);
                assert!((count as f64 - fair).abs() <= fair * 0.02 + 2.0, "{count} of {fair} in {weights:?}");
            }
        }
    }

    #[test]
    fn the_order_of_listing_does_not_matter() {
        let mut listed = endpoints(&[3, 1, 4, 1, 5, 9, 2, 6]);
        let table = Maglev::build(&listed, 2_039);
        listed.reverse();
        assert_eq!(table, Maglev::build(&listed, 2_039));
    }

    #[test]
    fn removal_moves_little_else() {
        let all = endpoints(&[10; 20]);
        let before = Maglev::build(&all, Maglev::SIZE);
        let after = Maglev::build(&all[1..], Maglev::SIZE);
        let (mut moved, mut had_to) = (0, 0);
        for (old, new) in before.slots.iter().zip(&after.slots) {
            had_to += usize::from(*old == EndpointId(0));
            moved += usize::from(*old != EndpointId(0) && old != new);
        }
        assert!(had_to > 3_000);
        assert!(moved < Maglev::SIZE / 20, "{moved} clients of the others moved");
    }

    #[test]
    fn the_clients_of_the_avoided_are_spread() {
        let table = Maglev::build(&endpoints(&[10, 10, 10, 1]), 2_039);
        let mut counts = [0; 4];
        for client in (0..60_000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let other = table.lookup_avoiding(client, EndpointId(0)).unwrap();
            if table.lookup(client) == Some(EndpointId(0)) {
                counts[other.index()] += 1;
            } else {
                assert_eq!(table.lookup(client), Some(other));
            }
        }
        assert!(counts[0] == 0 && counts[1] > 7_000 && counts[2] > 7_000 && counts[3] > 500, "{counts:?}");
        let alone = Maglev::build(&endpoints(&[10]), 2_039);
        assert_eq!(alone.lookup_avoiding(3, EndpointId(0)), Some(EndpointId(0)));
    }

    #[test]
    fn nothing_fits_into_an_empty_table() {
        assert_eq!(Maglev::build(&[], 2_039).lookup(5), None);
        assert_eq!(Maglev::build(&endpoints(&[0, 0]), 2_039).lookup(5), None);
        assert_eq!(Maglev::build(&endpoints(&[7]), 2_039).lookup(u64::MAX), Some(EndpointId(0)));
    }
}
