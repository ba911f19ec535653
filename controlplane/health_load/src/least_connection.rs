//! The fewest connections for their capacity, as one classifier counts them: what users of other load balancers know.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use weir_identity::EndpointId;

use crate::desk::Ledger;

/// Endpoints by their connections; equals in turn.
#[derive(Debug, Default)]
pub(crate) struct LeastConnection {
    order: BTreeSet<Place>,
    places: HashMap<EndpointId, (u32, Place)>,
    turn: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Connections with the next one, by weight.
    fill: u64,
    /// When it came here: the one that has waited longest is first.
    turn: u64,
    endpoint: EndpointId,
}

impl LeastConnection {
    /// Begins anew with those that fit and the connections that they have. The `rotation`th comes first among equals.
    pub(crate) fn rebuild(&mut self, weights: &[(EndpointId, u32)], ledger: &Ledger, rotation: u32) {
        self.order.clear();
        self.places.clear();
        for (&(endpoint, weight), rank) in weights.iter().zip(crate::handler::ranks(weights.len(), rotation)) {
            let fill = fill(ledger.live(endpoint), weight);
            let turn = self.turn + u64::try_from(rank).unwrap_or(u64::MAX);
            self.insert(weight, Place { fill, turn, endpoint });
        }
        self.turn += u64::try_from(weights.len()).unwrap_or(u64::MAX);
    }

    /// Takes over some changes: a weight, or none for an endpoint that fits no more.
    pub(crate) fn change(&mut self, changes: &[(EndpointId, Option<u32>)], ledger: &Ledger) {
        for &(endpoint, weight) in changes {
            if let Some((_, place)) = self.places.remove(&endpoint) {
                self.order.remove(&place);
            }
            if let Some(weight) = weight {
                self.turn += 1;
                self.insert(weight, Place { fill: fill(ledger.live(endpoint), weight), turn: self.turn, endpoint });
            }
        }
    }

    fn insert(&mut self, weight: u32, place: Place) {
        self.order.insert(place);
        self.places.insert(place.endpoint, (weight, place));
    }

    /// Who has the fewest.
    pub(crate) fn take(&self, avoid: Option<EndpointId>) -> Option<EndpointId> {
        let mut order = self.order.iter().map(|place| place.endpoint);
        let first = order.next()?;
        if Some(first) == avoid { order.next().or(Some(first)) } else { Some(first) }
    }

    /// An endpoint has so many now.
    pub(crate) fn count(&mut self, endpoint: EndpointId, live: u32) {
        let Some((weight, place)) = self.places.get_mut(&endpoint) else { return };
        self.order.remove(place);
        self.turn += 1;
        *place = Place { fill: fill(live, *weight), turn: self.turn, endpoint };
        self.order.insert(*place);
    }
}

fn fill(live: u32, weight: u32) -> u64 {
    ((u64::from(live) + 1) << 24) / u64::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(weights: &[u32]) -> Vec<(EndpointId, u32)> {
        (0..).map(EndpointId).zip(weights.iter().copied()).collect()
    }

    #[test]
    fn connections_follow_the_weights_and_equals_take_turns() {
        let mut scheme = LeastConnection::default();
        scheme.rebuild(&weights(&[50, 25, 25]), &Ledger::default(), 0);
        let mut live = [0u32; 3];
        for _ in 0..100 {
            let endpoint = scheme.take(None).unwrap();
            live[endpoint.index()] += 1;
            scheme.count(endpoint, live[endpoint.index()]);
        }
        assert_eq!(live, [50, 25, 25]);
        // One that comes and goes does not always go to the same of two equals.
        let mut chosen = [0; 3];
        for _ in 0..20 {
            let endpoint = scheme.take(Some(EndpointId(0))).unwrap();
            chosen[endpoint.index()] += 1;
            scheme.count(endpoint, 26);
            scheme.count(endpoint, 25);
        }
        assert_eq!(chosen, [0, 10, 10]);
    }

    #[test]
    fn whoever_loses_connections_is_next() {
        let mut scheme = LeastConnection::default();
        let mut live = Ledger::default();
        for (endpoint, connections) in [(0, 7), (1, 3)] {
            (0..connections).for_each(|n| assert_eq!(live.begin(EndpointId(endpoint)), n + 1));
        }
        scheme.rebuild(&weights(&[10, 10]), &live, 0);
        assert_eq!(scheme.take(None), Some(EndpointId(1)));
        scheme.count(EndpointId(0), 2);
        assert_eq!(scheme.take(None), Some(EndpointId(0)));
        scheme.change(&[(EndpointId(1), None)], &live);
        assert_eq!(scheme.take(Some(EndpointId(0))), Some(EndpointId(0)), "nothing else fits");
        scheme.change(&[(EndpointId(1), Some(10)), (EndpointId(0), Some(1))], &live);
        assert_eq!(scheme.take(None), Some(EndpointId(1)), "a place in ten of one that is small by now");
        scheme.rebuild(&[], &live, 0);
        assert_eq!(scheme.take(None), None);
    }
}
