//! The fewest connections for their capacity, as one classifier counts them: what users of other load balancers know.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use weir_identity::EndpointId;

use crate::desk::Ledger;
use crate::standing::Standing;

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
    pub(crate) fn rebuild<'a>(&mut self, fit: impl Iterator<Item = &'a Standing>, ledger: &Ledger, rotation: u32) {
        self.order.clear();
        self.places.clear();
        let fit: Vec<&Standing> = fit.collect();
        for (standing, rank) in fit.iter().zip(crate::handler::ranks(fit.len(), rotation)) {
            let fill = fill(ledger.live(standing.endpoint), standing.capacity);
            let turn = self.turn + u64::try_from(rank).unwrap_or(u64::MAX);
            let place = Place { fill, turn, endpoint: standing.endpoint };
            self.order.insert(place);
            self.places.insert(standing.endpoint, (standing.capacity, place));
        }
        self.turn += u64::try_from(fit.len()).unwrap_or(u64::MAX);
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
    use crate::handler::tests::standings;

    #[test]
    fn connections_follow_the_weights_and_equals_take_turns() {
        let standings = standings(&[50, 25, 25]);
        let mut scheme = LeastConnection::default();
        scheme.rebuild(standings.iter(), &Ledger::default(), 0);
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
        let standings = standings(&[10, 10]);
        let mut scheme = LeastConnection::default();
        let mut live = Ledger::default();
        for (endpoint, connections) in [(0, 7), (1, 3)] {
            (0..connections).for_each(|n| assert_eq!(live.begin(EndpointId(endpoint)), n + 1));
        }
        scheme.rebuild(standings.iter(), &live, 0);
        assert_eq!(scheme.take(None), Some(EndpointId(1)));
        scheme.count(EndpointId(0), 2);
        assert_eq!(scheme.take(None), Some(EndpointId(0)));
        scheme.rebuild(standings[..1].iter(), &live, 0);
        assert_eq!(scheme.take(Some(EndpointId(0))), Some(EndpointId(0)), "nothing else fits");
        scheme.rebuild([].iter(), &live, 0);
        assert_eq!(scheme.take(None), None);
    }
}
