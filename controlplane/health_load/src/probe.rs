//! Rise and fall: an endpoint's health from single successes and failures of whoever probes it.

use thiserror::Error;

use crate::standing::Health;

/// Why a [`ProbeState`] was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProbeStateError {
    /// Every count has to be at least one.
    #[error("rise ({rise}) and fall ({fall}) have to be at least 1")]
    Zero {
        /// Successes until healthy.
        rise: u32,
        /// Failures until failing.
        fall: u32,
    },
}

/// Turns single observations into health: `rise` successes in a row make it healthy, `fall` failures in a row make it failing.
///
/// It starts unknown, and unknown ends by the same counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeState {
    rise: u32,
    fall: u32,
    health: Health,
    /// How many in a row speak against `health`, and which way (for unknown either does).
    streak: u32,
    streak_is_success: bool,
}

impl ProbeState {
    /// A state that changes after `rise` successes or `fall` failures in a row.
    ///
    /// # Errors
    /// A count of zero is refused.
    pub fn new(rise: u32, fall: u32) -> Result<Self, ProbeStateError> {
        if rise == 0 || fall == 0 {
            return Err(ProbeStateError::Zero { rise, fall });
        }
        Ok(ProbeState { rise, fall, health: Health::Unknown, streak: 0, streak_is_success: false })
    }

    /// The health as of now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes one observation; the new health if it changed by that.
    pub fn observe(&mut self, success: bool) -> Option<Health> {
        let (towards, needed) = if success { (Health::Healthy, self.rise) } else { (Health::Failing, self.fall) };
        if towards == self.health {
            self.streak = 0;
            return None;
        }
        if success != self.streak_is_success {
            self.streak = 0;
            self.streak_is_success = success;
        }
        self.streak += 1;
        if self.streak < needed {
            return None;
        }
        self.streak = 0;
        self.health = towards;
        Some(towards)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rises_and_falls_by_its_counts() {
        let mut state = ProbeState::new(2, 3).unwrap();
        assert_eq!(state.health(), Health::Unknown);
        let seen: Vec<_> = [true, true, true, false, false, true, false, false, false, false, true, false, true, true]
            .into_iter()
            .map(|success| state.observe(success))
            .collect();
        let mut expected = vec![None; 14];
        expected[1] = Some(Health::Healthy);
        expected[8] = Some(Health::Failing); // the success between began the count again
        expected[13] = Some(Health::Healthy);
        assert_eq!(seen, expected);
    }

    #[test]
    fn unknown_may_fall_at_once() {
        assert_eq!(ProbeState::new(2, 1).unwrap().observe(false), Some(Health::Failing));
        assert_eq!(ProbeState::new(0, 1), Err(ProbeStateError::Zero { rise: 0, fall: 1 }));
    }

    proptest! {
        #[test]
        fn agrees_with_the_last_so_many(rise in 1u32..5, fall in 1u32..5, seen in proptest::collection::vec(any::<bool>(), 0..60)) {
            let mut state = ProbeState::new(rise, fall).unwrap();
            let mut health = Health::Unknown;
            for end in 1..=seen.len() {
                let ends_with = |value: bool, n: u32| {
                    seen[..end].iter().rev().take_while(|s| **s == value).count() >= n as usize
                };
                let before = health;
                if ends_with(true, rise) {
                    health = Health::Healthy;
                } else if ends_with(false, fall) {
                    health = Health::Failing;
                }
                let changed = state.observe(seen[end - 1]);
                prop_assert_eq!(state.health(), health);
                prop_assert_eq!(changed, (health != before).then_some(health));
            }
        }
    }
}
