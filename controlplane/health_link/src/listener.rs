//! The unit's driver: keeps the consolidated cache by what comes over the connections of hosts, and passes on to other units.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quinn_proto::ConnectionHandle;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, sleep_until};
use weir_health_protocol::{Claims, Origin, Peer, UnitEnd, UnitSettings};
use weir_identity::{HostId, Moment, UnitId};

use crate::clock::{Clock, SLEPT, instant};
use crate::hub::{Event, Handshakes, Hub, HubError, LinkId};
use crate::keys::{Keys, KeysError, Names};
use crate::renewal::{CurrentKeys, follow};
use crate::slots::Slots;

/// Why a unit does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The address.
    #[error("cannot listen at {address}: {source}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate is another's.
    #[error("the certificate does not name unit {0}")]
    NotNamed(UnitId),
}

/// What a listener is told at its start.
#[derive(Debug, Clone)]
pub struct ListenSettings {
    /// Whose cache it is.
    pub unit: UnitSettings,
    /// Where hosts (and units) connect to.
    pub address: SocketAddr,
    /// The other units.
    pub peers: BTreeMap<UnitId, SocketAddr>,
    /// Hosts that are known to have an agent: silent, if nothing is heard of them.
    pub expected: Vec<HostId>,
}

/// A running listener. Dropping it ends it.
#[derive(Debug)]
pub struct Listener {
    cache: Cache,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// The consolidated cache of a running listener.
#[derive(Debug, Clone)]
pub struct Cache {
    end: Arc<Mutex<UnitEnd>>,
    handshakes: Arc<Mutex<Handshakes>>,
    clock: Clock,
    changed: watch::Receiver<u64>,
}

impl Cache {
    /// Looks into the cache; the time is the one its moments are in. Takes a lock, so be brief.
    pub fn with<R>(&self, look: impl FnOnce(&UnitEnd, Moment) -> R) -> R {
        look(&self.end.lock(), self.clock.now())
    }

    /// How the handshakes with hosts and units are, as the driver saw it last.
    #[must_use]
    pub fn handshakes(&self) -> Handshakes {
        *self.handshakes.lock()
    }

    /// Waits until something has changed since the last call; false if the listener has ended.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

impl Listener {
    /// Begins to listen. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// Nothing runs then.
    pub fn spawn(settings: ListenSettings, keys: &Keys) -> Result<Listener, ListenError> {
        let unit = settings.unit.unit;
        if keys.names().unit != Some(unit) {
            return Err(ListenError::NotNamed(unit));
        }
        let socket_error = |source| ListenError::Socket { address: settings.address, source };
        let socket = std::net::UdpSocket::bind(settings.address).map_err(socket_error)?;
        let clock = Clock::new();
        let mut end = UnitEnd::new(settings.unit);
        settings.peers.keys().for_each(|peer| end.handle_unit_down(*peer, clock.now()));
        settings.expected.iter().for_each(|host| end.expect_host(*host, clock.now()));
        // Of two units the one with the lower number dials.
        let dialled = settings.peers.into_iter().filter(|(peer, _)| *peer > unit).collect();
        let hub = Hub::new(socket, keys.clone(), dialled, instant()).map_err(|error| match error {
            HubError::Keys(error) => ListenError::Keys(error),
            HubError::Socket(source) => socket_error(source),
        })?;
        let address = hub.local_addr().map_err(socket_error)?;
        let end = Arc::new(Mutex::new(end));
        let handshakes = Arc::default();
        let (told, changed) = watch::channel(0);
        let (current, keys) = watch::channel(keys.clone());
        let driver = Driver {
            hub,
            end: Arc::clone(&end),
            handshakes: Arc::clone(&handshakes),
            clock,
            told,
            generation: 0,
            links: Slots::default(),
            ways: BTreeSet::new(),
            of_one: BTreeMap::new(),
            last: clock.now(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run(keys));
        tasks.spawn(follow(current, Arc::new(Notify::new())));
        Ok(Listener { cache: Cache { end, handshakes, clock, changed }, address, _tasks: tasks })
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> Cache {
        self.cache.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct Link {
    unit: Option<UnitId>,
    claims: Claims,
}

/// The one task: connections on one side, the cache on the other.
struct Driver {
    hub: Hub,
    end: Arc<Mutex<UnitEnd>>,
    handshakes: Arc<Mutex<Handshakes>>,
    clock: Clock,
    told: watch::Sender<u64>,
    generation: u64,
    links: Slots<Link>,
    /// Two proxies may speak for one host: what is for it goes to both, and each knows whether it is meant.
    ways: BTreeSet<(Way, LinkId)>,
    of_one: BTreeMap<HostId, VecDeque<LinkId>>,
    last: Moment,
}

impl Driver {
    async fn run(mut self, mut keys: CurrentKeys) {
        let mut events = Vec::new();
        let mut pace = Pace::default();
        let mut expiry = self.clock.now().after(EXPIRY);
        loop {
            let now = instant();
            self.hub.turn(now, &mut events);
            let due = self.exchange(&mut events, now);
            self.hub.flush(now);
            *self.handshakes.lock() = self.hub.handshakes();
            if pace.fast && !self.hub.is_waited_for() {
                // Those that come in the meantime are taken at once: that costs less than to wake up for each.
                match self.hub.is_behind() {
                    true => yield_now().await,
                    false => sleep(COLLECTED_IN).await,
                }
                pace.count(self.hub.receive_unwatched(instant()), instant());
                if !keys.has_changed().unwrap_or(true) {
                    continue;
                }
            }
            let rest = self.clock.now().after(REST);
            let due = self.clock.instant(due.unwrap_or(rest).min(rest));
            let due = self.hub.due(instant()).map_or(due, |own| due.min(own.into()));
            tokio::select! {
                taken = poll_fn(|cx| self.hub.poll_receive(cx, instant())) => pace.count(taken, instant()),
                () = sleep_until(due) => {}
                changed = keys.changed() => match changed {
                    Ok(()) => self.hub.renew(keys.borrow_and_update().clone(), instant()),
                    Err(_) => return,
                },
            }
            if self.clock.now() >= expiry {
                expiry = self.clock.now().after(EXPIRY);
                self.hub.suspect_all();
            }
        }
    }

    /// Gives the cache what has come, and sends what it has to say; when it is due next.
    fn exchange(&mut self, events: &mut Vec<Event>, at: Instant) -> Option<Moment> {
        let now = self.clock.now();
        if now.since(self.last) > SLEPT + REST {
            // What waits in the connections is of the past: a heartbeat in it is no sign of life.
            tracing::warn!(slept = ?now.since(self.last), "this unit could not run; hosts have to connect again");
            self.links.iter().for_each(|(link, _)| self.hub.close(link, "slept", at));
            events.retain(|event| !matches!(event, Event::Message { .. }));
        }
        self.last = now;
        let end = Arc::clone(&self.end);
        let mut end = end.lock();
        for event in events.drain(..) {
            self.take(event, &mut end, now, at);
        }
        end.handle_timeout(now);
        while let Some((peer, message)) = end.poll_transmit() {
            let way = match peer {
                Peer::Host(host) => Way::Host(host),
                Peer::Unit(unit) => Way::Unit(unit),
            };
            self.ways.range(ways_to(way)).for_each(|(_, link)| self.hub.send(*link, &message, at));
        }
        end.take_changes();
        if self.generation != end.generation() {
            self.generation = end.generation();
            self.told.send_modify(|generation| *generation += 1);
        }
        end.poll_timeout()
    }

    fn take(&mut self, event: Event, end: &mut UnitEnd, now: Moment, at: Instant) {
        match event {
            Event::Up { link, names } => self.take_link(link, &names, end, now, at),
            Event::Message { link, message } => {
                let Some(link) = self.links.get(link) else { return };
                let origin = link.unit.map_or(Origin::Host(&link.claims), Origin::Unit);
                if let Err(refusal) = end.handle(origin, message, now) {
                    tracing::debug!(%refusal, "message refused");
                }
            }
            Event::Malformed(error) => {
                tracing::debug!(%error, "no message");
                end.count_malformed(error);
            }
            Event::Flood => end.count_flood(),
            Event::Down { link } => self.lose_link(link, end, now),
        }
    }

    fn take_link(&mut self, link: LinkId, names: &Names, end: &mut UnitEnd, now: Moment, at: Instant) {
        if let Some(first) = names.hosts.first() {
            let same = self.of_one.entry(*first).or_default();
            same.push_back(link);
            if same.len() > LINKS_OF_ONE
                && let Some(oldest) = same.pop_front()
            {
                self.hub.close(oldest, "there are newer links of this node", at);
            }
        }
        self.ways.extend(names.hosts.iter().map(|host| (Way::Host(*host), link)));
        if let Some(unit) = names.unit {
            self.ways.insert((Way::Unit(unit), link));
            end.handle_unit_up(unit, now);
        }
        tracing::debug!(unit = ?names.unit, hosts = ?names.hosts, "linked");
        let claims = names.claims();
        end.handle_host_up(&claims);
        self.links.insert(link, Link { unit: names.unit, claims });
    }

    fn lose_link(&mut self, link: LinkId, end: &mut UnitEnd, now: Moment) {
        let Some(gone) = self.links.remove(link) else { return };
        if let Some(first) = gone.claims.hosts.first()
            && let Some(same) = self.of_one.get_mut(first)
        {
            same.retain(|other| *other != link);
            if same.is_empty() {
                self.of_one.remove(first);
            }
        }
        // Those that have another way by now keep it.
        let hosts = gone.claims.hosts.iter().map(|host| Way::Host(*host));
        for way in hosts.chain(gone.unit.map(Way::Unit)) {
            self.ways.remove(&(way, link));
        }
        let has_way = |way: Way| self.ways.range(ways_to(way)).next().is_some();
        let is_over = |host: &HostId| !has_way(Way::Host(*host));
        let hosts = gone.claims.hosts.into_iter().filter(is_over).collect();
        end.handle_host_down(&Claims { hosts, vouches: BTreeMap::new() });
        if let Some(unit) = gone.unit.filter(|unit| !has_way(Way::Unit(*unit))) {
            end.handle_unit_down(unit, now);
        }
    }
}

fn ways_to(way: Way) -> RangeInclusive<(Way, LinkId)> {
    (way, ConnectionHandle(0))..=(way, ConnectionHandle(usize::MAX))
}

/// How many packets come.
#[derive(Debug, Default)]
struct Pace {
    begun: Option<Instant>,
    counted: usize,
    fast: bool,
}

impl Pace {
    fn count(&mut self, packets: usize, now: Instant) {
        self.counted += packets;
        let begun = *self.begun.get_or_insert(now);
        if now.saturating_duration_since(begun) >= PACE_TAKEN_IN {
            *self = Pace { begun: Some(now), counted: 0, fast: self.counted >= PACE_FAST };
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Host(HostId),
    Unit(UnitId),
}

/// So many of one node: it may have begun anew and have another agent beside it for a while.
const LINKS_OF_ONE: usize = 4;
/// The driver looks around at least so often.
const REST: Duration = Duration::from_secs(1);
/// With so many packets in so long a time, they are taken several at once.
const PACE_TAKEN_IN: Duration = Duration::from_millis(100);
const PACE_FAST: usize = 25;
const COLLECTED_IN: Duration = Duration::from_millis(10);
/// Certificates that expire while their links are up are noticed within this time.
const EXPIRY: Duration = Duration::from_secs(600);
