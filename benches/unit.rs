//! A forwarder and a classifier with a ring between them, and the routes of established connections.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use weir::allotments::{Standings, UnitAllotments};
use weir_dataplane::classifier::{self, Classifier};
use weir_dataplane::core::ClassifierSeat;
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, Queue};
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode, Route, State};
use weir_dataplane::shard::{self, Shard, ShardLink, ShardPort, Twin};
use weir_health_load::{Directive, Health, Policy, ServiceStanding, SharedHandler, Standing};
use weir_identity::{EndpointId, Incarnation, Moment, ServiceId, UnitId};
use weir_sessions::{Author, Limits, LocalSessions};

use crate::farm::{self, ENDPOINTS};

/// The two, each to be run on a core of its own.
pub(crate) struct Unit<Q: Queue> {
    /// The forwarder's half.
    pub(crate) shard: Shard<Q>,
    /// The classifier's.
    pub(crate) seat: ClassifierSeat<Q::Packet>,
}

impl<Q: Queue> Unit<Q> {
    /// One with the routes of `live` established connections, and room for `more`.
    pub(crate) fn new(
        queue: Q,
        live: u64,
        more: usize,
        timeouts: IdleTimeouts,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let capacity = usize::try_from(live)? + more;
        let hash = FlowHash::new(0x5745_4952);
        let forwarder = Forwarder::new(&Settings {
            shard: 0,
            owners: Owners::new(&ToeplitzKey::from_seed(1), 1),
            routes_ipv4: capacity,
            routes_ipv6: 1,
            hash: hash.clone(),
        })?;
        let farm = Arc::new(farm::farm(Mode::Dsr, timeouts)?);
        let (link, mut classifier) = shard::link(RING, RING);
        let neighbours = shard::neighbourhoods(1, 16).pop().ok_or("no shard")?;
        let ports = vec![ShardPort::new(Ok(queue), Twin::Itself)];
        let mut shard = Shard::new(0, Arc::clone(&farm), forwarder, ports, neighbours, vec![link], BURST);
        establish(&mut shard, &mut classifier, 0..live)?;
        let settings = classifier::Settings { sessions_ipv4: capacity, sessions_ipv6: 1, pending: 1024, hash };
        let standings = Standings::new(1, vec![standing(&farm)], SharedHandler::default());
        let allotments = Box::new(UnitAllotments::new(0, Arc::new(ArcSwap::from_pointee(standings))));
        let author = Author { unit: UnitId(1), incarnation: Incarnation(0) };
        let limits = Limits { capacity: 1 << 10, dead_time: Duration::from_secs(120) };
        let sessions = Box::new(LocalSessions::new(author, limits));
        let itself = Classifier::new(&settings, farm, allotments, sessions)?;
        Ok(Self { shard, seat: ClassifierSeat::new(0, itself, vec![classifier]) })
    }
}

/// Installs the routes of established connections, through rings of [`RING`] places.
pub(crate) fn establish<Q: Queue>(
    shard: &mut Shard<Q>,
    classifier: &mut ShardLink<Q::Packet>,
    flows: impl Iterator<Item = u64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut flows = flows.peekable();
    while flows.peek().is_some() || classifier.plumbs.slots() < RING {
        while classifier.plumbs.slots() > 0
            && let Some(flow) = flows.next()
        {
            let endpoint = EndpointId(u32::try_from(flow % ENDPOINTS)?);
            let action = Action::Send { endpoint, mode: Mode::Dsr, value: 0 };
            let plumb = Plumb::Replace(farm::key(false, flow), Route { action, state: State::Established });
            classifier.plumbs.push(plumb).map_err(|_| "the ring is full")?;
        }
        shard.turn(Moment(1));
        while classifier.notices.pop().is_ok() {}
    }
    Ok(())
}

/// The first service's hosts: all well, with room for everybody.
fn standing(farm: &Farm) -> ServiceStanding {
    let standings = (0..).zip(&farm.endpoints).map(|(id, endpoint)| Standing {
        endpoint: EndpointId(id),
        stable: endpoint.stable(),
        capacity: 99,
        load: None,
        directive: Directive::Active,
        health: Health::Healthy,
        backup: false,
    });
    ServiceStanding { service: ServiceId(1), policy: Policy::default(), standings: standings.collect() }
}

/// Places in each ring to and from the classifier.
pub(crate) const RING: usize = 2048;
