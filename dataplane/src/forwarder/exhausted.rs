//! Which searches for a port of a full-nat pool failed a moment ago, so that the next SYNs to the same endpoint are refused cheaply.
//!
//! A search looks at up to [`ATTEMPTS`] ports, each a line or two of memory that nobody has asked for. Where it fails, further ones
//! look only at [`FEW`] for a time that doubles with each failure in a row: a flood to an endpoint without a free port costs a few
//! searches a second. A port that gets free is found within [`LONGEST`] milliseconds, sooner than a client repeats its SYN.

/// One shard's memory of failed searches, with a fixed number of places: where two searches share one, the later is remembered.
#[derive(Debug)]
pub(super) struct Exhausted(Box<[Place]>);

/// A search that failed.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Which: the upper half of its number, never 0.
    tag: u32,
    /// Until when it is not repeated in full, in the unit's milliseconds.
    until: u32,
    /// For how long that is.
    wait: u32,
}

impl Exhausted {
    pub(super) fn new() -> Self {
        Self(vec![Place::default(); PLACES].into())
    }

    /// How many ports a search may look at now; `search` is a hash of what decides which ports there are.
    pub(super) fn attempts(&self, search: u64, now: u32) -> u32 {
        let place = self.0[index(search)];
        let waits = place.tag == tag(search) && (1..=place.wait).contains(&place.until.wrapping_sub(now));
        if waits { FEW } else { ATTEMPTS }
    }

    /// Notes how a search ended that was allowed so many attempts.
    pub(super) fn ended(&mut self, search: u64, allowed: u32, found: bool, now: u32) {
        if allowed < ATTEMPTS {
            return;
        }
        let place = &mut self.0[index(search)];
        let same = place.tag == tag(search);
        if !found {
            let wait = if same { (place.wait * 2).min(LONGEST) } else { 1 };
            *place = Place { tag: tag(search), until: now.wrapping_add(wait), wait };
        } else if same {
            *place = Place::default();
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of a hash")]
fn index(search: u64) -> usize {
    search as u32 as usize % PLACES
}

fn tag(search: u64) -> u32 {
    (search >> 32) as u32 | 1
}

/// Ports that a new connection tries: with one of ten free, one connection in 700,000 finds none.
const ATTEMPTS: u32 = 128;
/// The same where all of these were taken a moment ago. The first is the one that a connection had whose route had to go.
const FEW: u32 = 2;
/// Milliseconds between two searches in full that fail, at the most.
const LONGEST: u32 = 64;
/// Of 12 bytes each.
const PLACES: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCH: u64 = 7 << 32 | 7;

    #[test]
    fn failures_in_a_row_are_tried_less_and_less_often() {
        let mut exhausted = Exhausted::new();
        // Across the wrap of the unit's time.
        let start = u32::MAX - 500;
        let mut tried = Vec::new();
        for elapsed in 0..1000 {
            let now = start.wrapping_add(elapsed);
            for _ in 0..3 {
                let allowed = exhausted.attempts(SEARCH, now);
                if allowed == ATTEMPTS {
                    tried.push(elapsed);
                }
                exhausted.ended(SEARCH, allowed, false, now);
            }
        }
        assert_eq!(tried[..9], [0, 1, 3, 7, 15, 31, 63, 127, 191]);
        assert_eq!(tried.len(), 21);
    }

    #[test]
    fn success_forgets_and_others_are_not_touched() {
        let mut exhausted = Exhausted::new();
        for now in [0, 1] {
            exhausted.ended(SEARCH, ATTEMPTS, false, now);
        }
        assert_eq!((exhausted.attempts(SEARCH, 2), exhausted.attempts(SEARCH + 1, 2)), (FEW, ATTEMPTS));
        // What shares its place is not taken for it.
        assert_eq!(exhausted.attempts(SEARCH + (2 << 32), 2), ATTEMPTS);
        // A port found by one of few attempts says little; one found by a full search ends it.
        exhausted.ended(SEARCH, FEW, true, 2);
        assert_eq!(exhausted.attempts(SEARCH, 2), FEW);
        exhausted.ended(SEARCH, ATTEMPTS, true, 3);
        exhausted.ended(SEARCH, ATTEMPTS, false, 4);
        assert_eq!((exhausted.attempts(SEARCH, 4), exhausted.attempts(SEARCH, 5)), (FEW, ATTEMPTS));
        // A time that steps back holds nobody up for longer.
        assert_eq!(exhausted.attempts(SEARCH, 3), ATTEMPTS);
    }
}
