//! What an endpoint's load is by now: what its host said last, and the connections that this cannot show yet.

use weir_identity::Moment;

use crate::smoothed::Smoothed;

/// One endpoint's capacity and load, and the connections that were given to it.
///
/// A token counts from its grant until it is given back or too old, and then as a connection until that ends. Of a connection the
/// host's report shows as much as its smoothing lets through: the same smoothing here says how much that is. So it does not matter what
/// a connection costs while nothing changes, nor whether the end of one was missed long ago.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    capacity: f64,
    /// As the host said last; none if nobody says.
    load: Option<f64>,
    /// Connections that classifiers know of.
    live: u32,
    /// Tokens that classifiers hold.
    held: u32,
    /// Connections as the host's report shows them.
    seen: Smoothed,
}

impl Expected {
    pub(crate) fn new(now: Moment) -> Expected {
        Expected { capacity: 0.0, load: None, live: 0, held: 0, seen: Smoothed::new(0.0, now) }
    }

    pub(crate) fn say(&mut self, capacity: u32, load: Option<u32>) {
        (self.capacity, self.load) = (f64::from(capacity), load.map(f64::from));
    }

    pub(crate) fn load(&self) -> Option<f64> {
        self.load
    }

    pub(crate) fn capacity(&self) -> f64 {
        self.capacity
    }

    pub(crate) fn seen(&self) -> f64 {
        self.seen.value()
    }

    /// Time has passed. A host that is full shows no more connections than make it full.
    pub(crate) fn advance(&mut self, cost: f64, now: Moment) {
        self.seen.follow(f64::from(self.live).min(self.capacity / cost), now);
    }

    /// Connections began and ended; call [`Expected::advance`] before.
    pub(crate) fn count(&mut self, began: u32, ended: u32) {
        self.live = self.live.saturating_add(began).saturating_sub(ended);
    }

    pub(crate) fn hold(&mut self, tokens: u32) {
        self.held = self.held.saturating_add(tokens);
    }

    pub(crate) fn release(&mut self, tokens: u32) {
        self.held = self.held.saturating_sub(tokens);
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// How many more connections it can take, if each costs so much of its capacity; below zero, so many wait there.
    pub(crate) fn free(&self, cost: f64) -> f64 {
        let given = f64::from(self.live) + f64::from(self.held);
        match self.load {
            Some(load) => (self.capacity - load) / cost - (given - self.seen.value()),
            None => self.capacity / cost - given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(load: Option<u32>) -> Expected {
        let mut host = Expected::new(Moment(0));
        host.say(80, load);
        host
    }

    fn about(value: f64, expected: f64) {
        assert!((value - expected).abs() < 0.05, "{value} is not about {expected}");
    }

    #[test]
    fn a_grant_counts_until_the_report_shows_it() {
        let mut host = host(Some(0));
        about(host.free(10.0), 8.0);
        host.hold(3);
        about(host.free(10.0), 5.0);
        host.release(3);
        host.count(3, 0);
        about(host.free(10.0), 5.0);
        // Both follow the same rule: after a second 63 % of it is in the report.
        host.advance(10.0, Moment(1_000));
        host.say(80, Some(19));
        about(host.free(10.0), 5.0);
        host.advance(10.0, Moment(20_000));
        host.say(80, Some(30));
        about(host.free(10.0), 5.0);
        // They end: free at once, long before the report shows it.
        host.count(0, 3);
        about(host.free(10.0), 8.0);
    }

    #[test]
    fn what_others_use_is_seen_and_a_queue_too() {
        let mut host = host(Some(0));
        host.count(4, 0);
        host.advance(10.0, Moment(20_000));
        host.say(80, Some(70));
        about(host.free(10.0), 1.0);
        // Twenty connections at a host of eight: twelve wait, and still do when its report says no more than full.
        host.count(16, 0);
        host.advance(10.0, Moment(60_000));
        host.say(80, Some(80));
        about(host.free(10.0), -12.0);
        host.count(0, 12);
        about(host.free(10.0), 0.0);
    }

    #[test]
    fn without_reports_the_connections_are_all_there_is() {
        let mut host = host(None);
        host.count(5, 1);
        host.advance(10.0, Moment(60_000));
        about(host.free(10.0), 4.0);
    }
}
