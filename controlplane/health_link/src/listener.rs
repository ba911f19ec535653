//! The unit's driver: takes hosts' connections, keeps the consolidated cache, and passes on to other units.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{Endpoint, Incoming, TokioRuntime};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use weir_health_protocol::{Claims, Origin, Peer, UnitEnd, UnitSettings};
use weir_identity::{HostId, Moment, UnitId};

use crate::clock::{Clock, SLEPT};
use crate::keys::{Keys, KeysError, Patience, unit_name};
use crate::link::{LinkEnd, Report, serve};
use crate::renewal::{CurrentKeys, follow};

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
    clock: Clock,
    changed: watch::Receiver<u64>,
}

impl Cache {
    /// Looks into the cache; the time is the one its moments are in. Takes a lock, so be brief.
    pub fn with<R>(&self, look: impl FnOnce(&UnitEnd, Moment) -> R) -> R {
        look(&self.end.lock(), self.clock.now())
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
        let endpoint = Endpoint::new(keys.endpoint(), Some(keys.server()?), socket, Arc::new(TokioRuntime))
            .map_err(socket_error)?;
        let address = endpoint.local_addr().map_err(socket_error)?;
        let clock = Clock::new();
        let mut end = UnitEnd::new(settings.unit);
        settings.peers.keys().for_each(|peer| end.handle_unit_down(*peer, clock.now()));
        settings.expected.iter().for_each(|host| end.expect_host(*host, clock.now()));
        let end = Arc::new(Mutex::new(end));
        let (reports, incoming) = mpsc::channel(REPORTS_MAX);
        let (told, changed) = watch::channel(0);
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(drive(Arc::clone(&end), clock, incoming, told));
        keys.client(Patience::UNITS)?;
        let (current, keys) = watch::channel(keys.clone());
        tasks.spawn(follow(current, Arc::new(Notify::new())));
        tasks.spawn(renew(endpoint.clone(), keys.clone()));
        tasks.spawn(accept(endpoint.clone(), Arc::clone(&next), reports.clone(), keys.clone()));
        // Of two units the one with the lower number dials.
        for (peer, address) in settings.peers.into_iter().filter(|(peer, _)| *peer > unit) {
            let (endpoint, next) = (endpoint.clone(), Arc::clone(&next));
            tasks.spawn(keep(endpoint, keys.clone(), peer, address, next, reports.clone()));
        }
        Ok(Listener { cache: Cache { end, clock, changed }, address, _tasks: tasks })
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

/// New connections are shown the renewed certificate, and judged by the new list.
pub(crate) async fn renew(endpoint: Endpoint, mut keys: CurrentKeys) {
    while keys.changed().await.is_ok() {
        let config = keys.borrow_and_update().server();
        match config {
            Ok(config) => endpoint.set_server_config(Some(config)),
            Err(error) => tracing::error!(%error, "the renewed certificate is of no use"),
        }
    }
}

pub(crate) async fn accept(endpoint: Endpoint, next: Arc<AtomicU64>, reports: mpsc::Sender<Report>, keys: CurrentKeys) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut links = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        if links.len() >= LINKS_MAX {
            incoming.refuse();
            continue;
        }
        // Whoever cannot be served now is told to prove its address first, and to come again.
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            if incoming.may_retry() {
                let _ = incoming.retry();
            } else {
                incoming.refuse();
            }
            continue;
        };
        let link = next.fetch_add(1, Ordering::Relaxed);
        let (reports, keys) = (reports.clone(), keys.clone());
        links.spawn(async move {
            let connected = shake_hands(incoming).await;
            drop(permit);
            if let Some(connection) = connected {
                serve(link, connection, false, reports, keys).await;
            }
        });
        while links.try_join_next().is_some() {}
    }
}

async fn shake_hands(incoming: Incoming) -> Option<quinn::Connection> {
    let from = incoming.remote_address();
    let failed = match timeout(HANDSHAKE, incoming.accept().ok()?).await {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not within {HANDSHAKE:?}"),
    };
    tracing::info!(%from, why = failed, "handshake failed");
    None
}

async fn keep(
    endpoint: Endpoint,
    keys: CurrentKeys,
    peer: UnitId,
    address: SocketAddr,
    next: Arc<AtomicU64>,
    reports: mpsc::Sender<Report>,
) {
    loop {
        let config = keys.borrow().client(Patience::UNITS);
        if let Ok(config) = config
            && let Ok(connecting) = endpoint.connect_with(config, address, &unit_name(peer))
            && let Ok(Ok(connection)) = timeout(HANDSHAKE, connecting).await
        {
            serve(next.fetch_add(1, Ordering::Relaxed), connection, true, reports.clone(), keys.clone()).await;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

struct Link {
    unit: Option<UnitId>,
    claims: Claims,
    end: LinkEnd,
}

async fn drive(end: Arc<Mutex<UnitEnd>>, clock: Clock, mut incoming: mpsc::Receiver<Report>, told: watch::Sender<u64>) {
    let mut links: BTreeMap<u64, Link> = BTreeMap::new();
    // Two proxies may speak for one host: what is for it goes to both, and each knows whether it is meant.
    let mut ways: BTreeSet<(Way, u64)> = BTreeSet::new();
    let mut of_one: BTreeMap<HostId, VecDeque<u64>> = BTreeMap::new();
    let mut generation = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut last = clock.now();
    loop {
        let due = {
            let mut end = end.lock();
            end.handle_timeout(clock.now());
            while let Some((peer, message)) = end.poll_transmit() {
                let way = match peer {
                    Peer::Host(host) => Way::Host(host),
                    Peer::Unit(unit) => Way::Unit(unit),
                };
                for link in ways.range((way, 0)..=(way, u64::MAX)).filter_map(|(_, link)| links.get(link)) {
                    link.end.send(&message);
                }
            }
            end.take_changes();
            if generation != end.generation() {
                generation = end.generation();
                told.send_modify(|generation| *generation += 1);
            }
            end.poll_timeout()
        };
        let rest = clock.now().after(REST);
        tokio::select! {
            () = sleep_until(clock.instant(due.unwrap_or(rest).min(rest))) => {}
            count = incoming.recv_many(&mut batch, BATCH) => if count == 0 { return },
        }
        let now = clock.now();
        if now.since(last) > SLEPT + REST {
            // What waits in the connections is of the past: a heartbeat in it is no sign of life.
            tracing::warn!(slept = ?now.since(last), "this unit could not run; hosts have to connect again");
            links.values().for_each(|link| link.end.close("slept"));
            batch.retain(|report| !matches!(report, Report::Message { .. }));
        }
        last = now;
        let mut end = end.lock();
        for report in batch.drain(..) {
            match report {
                Report::Up { link, names, end: link_end } => {
                    if let Some(first) = names.hosts.first() {
                        let same = of_one.entry(*first).or_default();
                        same.push_back(link);
                        if same.len() > LINKS_OF_ONE
                            && let Some(oldest) = same.pop_front().and_then(|oldest| links.get(&oldest))
                        {
                            oldest.end.close("there are newer links of this node");
                        }
                    }
                    ways.extend(names.hosts.iter().map(|host| (Way::Host(*host), link)));
                    if let Some(unit) = names.unit {
                        ways.insert((Way::Unit(unit), link));
                        end.handle_unit_up(unit, now);
                    }
                    tracing::debug!(unit = ?names.unit, hosts = ?names.hosts, "linked");
                    let claims = names.claims();
                    end.handle_host_up(&claims);
                    links.insert(link, Link { unit: names.unit, claims, end: link_end });
                }
                Report::Message { link, message } => {
                    let Some(link) = links.get(&link) else { continue };
                    let origin = link.unit.map_or(Origin::Host(&link.claims), Origin::Unit);
                    if let Err(refusal) = end.handle(origin, message, now) {
                        tracing::debug!(%refusal, "message refused");
                    }
                }
                Report::Malformed { error } => end.count_malformed(error),
                Report::Flood => end.count_flood(),
                Report::Down { link } => {
                    let Some(gone) = links.remove(&link) else { continue };
                    if let Some(first) = gone.claims.hosts.first()
                        && let Some(same) = of_one.get_mut(first)
                    {
                        same.retain(|other| *other != link);
                        if same.is_empty() {
                            of_one.remove(first);
                        }
                    }
                    // Those that have another way by now keep it.
                    let hosts = gone.claims.hosts.iter().map(|host| Way::Host(*host));
                    for way in hosts.chain(gone.unit.map(Way::Unit)) {
                        ways.remove(&(way, link));
                    }
                    let has_way = |way: Way| ways.range((way, 0)..=(way, u64::MAX)).next().is_some();
                    let is_over = |host: &HostId| !has_way(Way::Host(*host));
                    let hosts = gone.claims.hosts.into_iter().filter(is_over).collect();
                    end.handle_host_down(&Claims { hosts, vouches: Vec::new() });
                    if let Some(unit) = gone.unit.filter(|unit| !has_way(Way::Unit(*unit))) {
                        end.handle_unit_down(unit, now);
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Host(HostId),
    Unit(UnitId),
}

const REPORTS_MAX: usize = 4096;
/// So many reports are taken at once.
const BATCH: usize = 256;
/// So many handshakes may be going on.
const HANDSHAKES_MAX: usize = 512;
/// So many links there may be.
const LINKS_MAX: usize = 65_536;
/// So many of one node: it may have begun anew and have another agent beside it for a while.
const LINKS_OF_ONE: usize = 4;
const HANDSHAKE: Duration = Duration::from_secs(3);
/// The driver looks around at least so often.
const REST: Duration = Duration::from_secs(1);
