//! The classifiers that ask a handler for one service's tokens: each one's part of all demand, and the tokens that it holds.

use weir_identity::Moment;

/// All that have asked lately.
#[derive(Debug, Default)]
pub(crate) struct Askers(Vec<Asker>);

#[derive(Debug)]
struct Asker {
    rotation: u32,
    /// Its connections of late: each counts less by and by, with a time constant of a second.
    pace: f64,
    at: Moment,
    /// Tokens by endpoint, in ascending order of the endpoints' places.
    held: Vec<(usize, u32)>,
    /// Until when they are good.
    until: Moment,
}

impl Askers {
    /// Connections of a classifier began at an endpoint; returns how many of the tokens it holds were spent on them.
    pub(crate) fn spend(&mut self, rotation: u32, place: usize, began: u32, now: Moment) -> u32 {
        let asker = self.asker(rotation, now);
        asker.pace += f64::from(began);
        let Ok(at) = asker.held.binary_search_by_key(&place, |(place, _)| *place) else { return 0 };
        let spent = began.min(asker.held[at].1);
        asker.held[at].1 -= spent;
        spent
    }

    /// A classifier's part of all demand, above 0 and at most 1; one of which nothing is known counts as one connection.
    pub(crate) fn part(&mut self, rotation: u32, now: Moment) -> f64 {
        let mine = self.asker(rotation, now).pace + 1.0;
        let all: f64 = self.0.iter().map(|asker| asker.pace_at(now) + 1.0).sum();
        mine / all
    }

    /// Takes a classifier's tokens back.
    pub(crate) fn take_back(&mut self, rotation: u32, mut release: impl FnMut(usize, u32)) {
        let asker = self.0.iter_mut().find(|asker| asker.rotation == rotation);
        let held = asker.into_iter().flat_map(|asker| asker.held.drain(..));
        held.for_each(|(place, tokens)| release(place, tokens));
    }

    /// Takes back what is too old, and forgets who has not asked for long.
    pub(crate) fn expire(&mut self, now: Moment, mut release: impl FnMut(usize, u32)) {
        for asker in self.0.iter_mut().filter(|asker| asker.until < now) {
            asker.held.drain(..).for_each(|(place, tokens)| release(place, tokens));
        }
        self.0.retain(|asker| !asker.held.is_empty() || asker.pace_at(now) > FORGOTTEN);
    }

    /// A classifier holds these tokens until then; call [`Askers::take_back`] before.
    pub(crate) fn hold(&mut self, rotation: u32, held: impl Iterator<Item = (usize, u32)>, until: Moment, now: Moment) {
        let asker = self.asker(rotation, now);
        asker.held.extend(held);
        asker.held.sort_unstable_by_key(|(place, _)| *place);
        asker.until = until;
    }

    /// No place is what it was: nobody holds anything.
    pub(crate) fn clear(&mut self) {
        self.0.iter_mut().for_each(|asker| asker.held.clear());
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u32 {
        self.0.iter().flat_map(|asker| &asker.held).map(|(_, tokens)| tokens).sum()
    }

    fn asker(&mut self, rotation: u32, now: Moment) -> &mut Asker {
        let at = self.0.iter().position(|asker| asker.rotation == rotation).unwrap_or_else(|| {
            self.0.push(Asker { rotation, pace: 0.0, at: now, held: Vec::new(), until: now });
            self.0.len() - 1
        });
        let asker = &mut self.0[at];
        asker.pace = asker.pace_at(now);
        asker.at = asker.at.max(now);
        asker
    }
}

impl Asker {
    fn pace_at(&self, now: Moment) -> f64 {
        self.pace * (-now.since(self.at).as_secs_f64()).exp()
    }
}

/// Less than this, and a classifier might as well never have asked.
const FORGOTTEN: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_all_demand_and_fade() {
        let mut askers = Askers::default();
        assert!((askers.part(0, Moment(0)) - 1.0).abs() < 1e-9);
        askers.spend(0, 0, 299, Moment(0));
        askers.spend(1, 0, 99, Moment(0));
        assert!((askers.part(0, Moment(0)) - 0.75).abs() < 1e-9);
        assert!((askers.part(1, Moment(0)) - 0.25).abs() < 1e-9);
        assert!(askers.part(2, Moment(0)) < 0.01);
        assert!((askers.part(0, Moment(60_000)) - 1.0 / 3.0).abs() < 1e-3, "all are idle");
    }

    #[test]
    fn tokens_come_back_once() {
        let mut askers = Askers::default();
        let mut back = Vec::new();
        askers.hold(4, [(7, 2), (3, 5)].into_iter(), Moment(100), Moment(0));
        assert_eq!(askers.spend(4, 3, 4, Moment(1)), 4);
        assert_eq!(askers.spend(4, 3, 4, Moment(1)), 1, "the rest was without a token");
        assert_eq!(askers.spend(4, 5, 1, Moment(1)), 0);
        askers.expire(Moment(100), |place, tokens| back.push((place, tokens)));
        assert!(back.is_empty());
        askers.expire(Moment(101), |place, tokens| back.push((place, tokens)));
        askers.take_back(4, |place, tokens| back.push((place, tokens)));
        assert_eq!(back, [(3, 0), (7, 2)]);
        askers.expire(Moment(60_000), |_, _| ());
        assert!(askers.0.is_empty());
    }
}
