//! Connection ids: eight bytes, five of chance and three by which a node knows its own, also those of its last life.
//!
//! `quinn`'s own ids of that kind have three bytes of chance. A unit with 10,000 hosts uses some 60,000 of them at a time, and what it gives
//! away with a Retry is compared with none: of 10,000 newcomers that were told to come again, two to nine got an id that was another's, and
//! were not heard.

use std::hash::Hasher;
use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use ring::rand::{SecureRandom, SystemRandom};
use siphasher::sip::SipHasher13;

/// Makes and knows a node's ids.
pub(crate) struct Cids {
    random: SystemRandom,
    key: [u8; 16],
}

impl Cids {
    pub(crate) fn new(key: [u8; 16]) -> Cids {
        Cids { random: SystemRandom::new(), key }
    }

    fn with_mark(&self, chance: [u8; CHANCE]) -> [u8; LENGTH] {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(&chance);
        let mut id = hasher.finish().to_le_bytes();
        id[..CHANCE].copy_from_slice(&chance);
        id
    }
}

impl ConnectionIdGenerator for Cids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut chance = [0; CHANCE];
        // Where there is none by the system there are no keys for a connection, either.
        let _ = self.random.fill(&mut chance);
        ConnectionId::new(&self.with_mark(chance))
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let chance = id.first_chunk().ok_or(InvalidCid)?;
        if self.with_mark(*chance) == **id { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

const LENGTH: usize = 8;
const CHANCE: usize = 5;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_node_knows_its_own_and_no_two_are_the_same() {
        let (mut own, again, other) = (Cids::new([7; 16]), Cids::new([7; 16]), Cids::new([8; 16]));
        let ids: Vec<ConnectionId> = (0..100_000).map(|_| own.generate_cid()).collect();
        assert!(ids.iter().all(|id| id.len() == own.cid_len() && again.validate(id).is_ok()));
        // By chance, one in sixteen million is.
        assert!(ids.iter().filter(|id| other.validate(id).is_ok()).count() < 3);
        assert!(own.validate(&ConnectionId::new(&[])).is_err());
        // With three bytes of chance some 300 pairs would be alike, with five one in two hundred such lists has a pair.
        let different: HashSet<&[u8]> = ids.iter().map(|id| &**id).collect();
        assert!(ids.len() - different.len() < 2);
    }
}
