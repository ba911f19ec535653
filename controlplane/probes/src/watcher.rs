//! One probe: asks its question at its interval and tells every follower's change of health.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use weir_health_load::ProbeState;
use weir_identity::EndpointId;

use crate::question::{Observation, ask};
use crate::{HealthChange, Question};

/// Who follows a probe, and how often it has to ask for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Following {
    pub(crate) interval: Duration,
    /// Their states as they are before the first observation.
    pub(crate) followers: BTreeMap<EndpointId, ProbeState>,
}

impl Following {
    pub(crate) fn new(interval: Duration) -> Self {
        Following { interval, followers: BTreeMap::new() }
    }
}

/// Asks until nobody wants to know any more: the sender of `following` or the receiver of `changes` is gone.
pub(crate) async fn watch_over(
    question: Question,
    mut following: watch::Receiver<Following>,
    changes: mpsc::Sender<HealthChange>,
) {
    let mut watched = Watched::new(following.borrow_and_update().clone());
    let mut jitter = Jitter::new(&question);
    // The first ones are spread over an interval, so that a start does not ask the whole farm at once.
    let mut next = Instant::now() + watched.wanted.interval.mul_f64(jitter.next());
    loop {
        loop {
            tokio::select! {
                biased;
                changed = following.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    watched.reconcile(following.borrow_and_update().clone());
                    next = next.min(Instant::now() + watched.wanted.interval);
                }
                () = changes.closed() => return,
                () = sleep_until(next) => break,
            }
        }
        next = Instant::now() + watched.wanted.interval.mul_f64(0.9 + 0.2 * jitter.next());
        let asking = ask(&question);
        tokio::pin!(asking);
        let observation = loop {
            tokio::select! {
                biased;
                changed = following.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    watched.reconcile(following.borrow_and_update().clone());
                }
                () = changes.closed() => return,
                observation = &mut asking => break observation,
            }
        };
        let (success, reason) = match observation {
            Observation::Success(reason) => (true, reason),
            Observation::Failure(reason) => (false, reason),
            Observation::Impossible(error) => {
                tracing::warn!(address = %question.address, %error, "cannot probe: counts neither way");
                continue;
            }
        };
        for (endpoint, state) in &mut watched.states {
            let Some(health) = state.observe(success) else { continue };
            let change = HealthChange { endpoint: *endpoint, health, reason };
            tracing::info!(endpoint = %endpoint, address = %question.address, ?health, %reason, "health changed");
            // Who is slow to receive must not keep a stopped probe alive.
            tokio::select! {
                sent = changes.send(change) => if sent.is_err() { return },
                () = gone(&mut following) => return,
            }
        }
    }
}

/// The followers and their health so far.
struct Watched {
    wanted: Following,
    states: BTreeMap<EndpointId, ProbeState>,
}

impl Watched {
    fn new(wanted: Following) -> Self {
        Watched { states: wanted.followers.clone(), wanted }
    }

    /// Keeps the states of followers that stay; those that are new or count otherwise begin as unknown.
    fn reconcile(&mut self, wanted: Following) {
        let before = &self.wanted.followers;
        self.states.retain(|endpoint, _| before.get(endpoint) == wanted.followers.get(endpoint));
        for (endpoint, fresh) in &wanted.followers {
            self.states.entry(*endpoint).or_insert(*fresh);
        }
        self.wanted = wanted;
    }
}

/// Waits until the sender is gone; changes in between are left to be seen later.
async fn gone(following: &mut watch::Receiver<Following>) {
    let mut own = following.clone();
    while own.changed().await.is_ok() {}
}

/// Numbers between 0 and 1 that differ from probe to probe; nothing depends on their quality.
struct Jitter {
    seed: RandomState,
    state: u64,
}

impl Jitter {
    fn new(question: &Question) -> Self {
        let seed = RandomState::new();
        Jitter { state: seed.hash_one(question), seed }
    }

    fn next(&mut self) -> f64 {
        self.state = self.seed.hash_one(self.state);
        let [a, b, c, d, ..] = self.state.to_le_bytes();
        f64::from(u32::from_le_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use weir_health_load::Health;

    use super::*;

    #[test]
    fn followers_that_stay_keep_their_health() {
        let fresh = ProbeState::new(1, 1).unwrap();
        let following = |followers: &[(u32, ProbeState)]| Following {
            interval: Duration::from_secs(1),
            followers: followers.iter().map(|(id, state)| (EndpointId(*id), *state)).collect(),
        };
        let mut watched = Watched::new(following(&[(1, fresh), (2, fresh), (3, fresh)]));
        watched.states.values_mut().for_each(|state| assert!(state.observe(true).is_some()));
        watched.reconcile(following(&[(1, fresh), (2, ProbeState::new(2, 2).unwrap()), (4, fresh)]));
        let health: Vec<_> = watched.states.iter().map(|(endpoint, state)| (endpoint.0, state.health())).collect();
        assert_eq!(health, [(1, Health::Healthy), (2, Health::Unknown), (4, Health::Unknown)]);
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_moves() {
        let question = Question {
            address: "127.0.0.1:80".parse().unwrap(),
            kind: crate::Kind::Tcp,
            timeout: Duration::from_secs(1),
            source: None,
            interface: None,
        };
        let mut jitter = Jitter::new(&question);
        let numbers: Vec<f64> = (0..1_000).map(|_| jitter.next()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / 1_000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }
}
