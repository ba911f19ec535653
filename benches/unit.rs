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
    #[allow(dead_code, reason = "one bench makes units of other kinds")]
    pub(crate) fn new(
        queue: Q,
        twin: Twin<Q>,
        live: u64,
        more: usize,
        timeouts: IdleTimeouts,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let farm = Service { mode: Mode::Dsr, endpoints: ENDPOINTS, full: false };
        Self::serving(queue, twin, live, more, timeouts, farm)
    }

    /// The same with a service of another kind.
    pub(crate) fn serving(
        queue: Q,
        twin: Twin<Q>,
        live: u64,
        more: usize,
        timeouts: IdleTimeouts,
        service: Service,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        // In nat a connection has a route for each direction.
        let capacity = (usize::try_from(live)? + more) * if service.mode == Mode::Nat { 2 } else { 1 };
        let hash = FlowHash::new(0x5745_4952);
        let forwarder = Forwarder::new(&Settings {
            shard: 0,
            owners: Owners::new(&ToeplitzKey::from_seed(1), 1),
            routes_ipv4: capacity,
            routes_ipv6: 1,
            hash: hash.clone(),
        })?;
        // The hosts of nat have a second service by the same sockets, as those of one that answers on two VIPs.
        let farm = Arc::new(farm::farm_of(service.mode, timeouts, service.endpoints, service.mode == Mode::Nat)?);
        let (link, mut classifier) = shard::link(RING, RING);
        let neighbours = shard::neighbourhoods(1, 16).pop().ok_or("no shard")?;
        let ports = vec![ShardPort::new(Ok(queue), twin)];
        let mut shard = Shard::new(0, Arc::clone(&farm), forwarder, ports, neighbours, vec![link], BURST);
        establish_at(&mut shard, &mut classifier, 0..live, service)?;
        let settings = classifier::Settings { sessions_ipv4: capacity, sessions_ipv6: 1, pending: 1024, hash };
        let standings = Standings::new(1, vec![standing(&farm, service.full)], SharedHandler::default());
        let allotments = Box::new(UnitAllotments::new(0, Arc::new(ArcSwap::from_pointee(standings))));
        let author = Author { unit: UnitId(1), incarnation: Incarnation(0) };
        let limits = Limits { capacity: 1 << 10, dead_time: Duration::from_secs(120) };
        let sessions = Box::new(LocalSessions::new(author, limits));
        let itself = Classifier::new(&settings, farm, allotments, sessions)?;
        Ok(Self { shard, seat: ClassifierSeat::new(0, itself, vec![classifier]) })
    }
}

/// What clients connect to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    /// How its packets reach its endpoints.
    pub(crate) mode: Mode,
    /// How many there are.
    pub(crate) endpoints: u64,
    /// All of them say that they are at their capacity.
    pub(crate) full: bool,
}

/// Installs the routes of established connections, through rings of [`RING`] places.
#[allow(dead_code, reason = "one bench installs routes of its own")]
pub(crate) fn establish<Q: Queue>(
    shard: &mut Shard<Q>,
    classifier: &mut ShardLink<Q::Packet>,
    flows: impl Iterator<Item = u64>,
) -> Result<(), Box<dyn std::error::Error>> {
    establish_at(shard, classifier, flows, Service { mode: Mode::Dsr, endpoints: ENDPOINTS, full: false })
}

/// The same at the endpoints of another service.
fn establish_at<Q: Queue>(
    shard: &mut Shard<Q>,
    classifier: &mut ShardLink<Q::Packet>,
    flows: impl Iterator<Item = u64>,
    Service { mode, endpoints, .. }: Service,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut flows = flows.peekable();
    while flows.peek().is_some() || classifier.plumbs.slots() < RING {
        while classifier.plumbs.slots() > 0
            && let Some(flow) = flows.next()
        {
            let endpoint = EndpointId(u32::try_from(flow % endpoints)?);
            let action = Action::Send { endpoint, mode, value: 0 };
            let plumb = Plumb::Replace(farm::key(false, flow), Route { action, state: State::Established });
            classifier.plumbs.push(plumb).map_err(|_| "the ring is full")?;
        }
        shard.turn(Moment(1));
        while classifier.notices.pop().is_ok() {}
    }
    Ok(())
}

/// The first service's hosts: all well, with room for everybody or for nobody.
fn standing(farm: &Farm, full: bool) -> ServiceStanding {
    let of_first = (0..).zip(&farm.endpoints).filter(|(_, endpoint)| endpoint.service == 0);
    let standings = of_first.map(|(id, endpoint)| Standing {
        endpoint: EndpointId(id),
        stable: endpoint.stable(),
        capacity: 99,
        load: full.then_some(99),
        directive: Directive::Active,
        health: Health::Healthy,
        backup: false,
    });
    ServiceStanding { service: ServiceId(1), policy: Policy::default(), standings: standings.collect() }
}

/// Places in each ring to and from the classifier.
pub(crate) const RING: usize = 2048;
