//! The host's driver: tables of one host or of several, told to two units, and its part in a group.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{ConnectionError, Endpoint, TokioRuntime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use weir_health_protocol::{GroupEnd, GroupSettings, HostEnd, HostSettings, Role};
use weir_identity::{HostId, Moment, UnitId};

use crate::clock::{Clock, SLEPT, new_life, some_of};
use crate::group::{GroupLinks, pass};
use crate::keys::{Keys, KeysError, Patience, unit_name};
use crate::link::{LinkEnd, Report, chain, serve};
use crate::question::answers;
use crate::renewal::{CurrentKeys, follow};

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The socket.
    #[error("cannot send from here: {0}")]
    Socket(#[from] std::io::Error),
    /// The certificate does not name a host.
    #[error("the certificate does not name host {0}")]
    NotNamed(HostId),
    /// The certificate does not make the host a member of the group.
    #[error("the certificate does not make host {0} a member of group {1}")]
    NotMember(HostId, String),
    /// The group's address.
    #[error("cannot listen for the group at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A group that one of the agent's hosts is to be in.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// Its name.
    pub group: String,
    /// Which of the agent's hosts is the member.
    pub host: HostId,
    /// Where the others connect to.
    pub listen: SocketAddr,
    /// All that may be members; the host itself may be among them.
    pub peers: BTreeMap<HostId, SocketAddr>,
}

/// How an agent's group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its name.
    pub group: String,
    /// What this host does in it.
    pub role: Role,
    /// Who leads.
    pub leader: Option<HostId>,
    /// Who leads after that.
    pub deputy: Option<HostId>,
    /// How many the leader speaks for.
    pub members: usize,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
    endpoint: Endpoint,
    links: watch::Receiver<BTreeMap<UnitId, Duration>>,
    look: Arc<Notify>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    ends: Mutex<BTreeMap<HostId, HostEnd>>,
    /// Locked after the ends.
    group: Mutex<Option<GroupEnd>>,
    /// Tables or the end of it: something is to be sent.
    touched: Notify,
}

impl Agent {
    /// Begins to speak for these hosts. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// Nothing runs then.
    pub fn spawn(
        hosts: Vec<HostSettings>,
        units: BTreeMap<UnitId, SocketAddr>,
        keys: &Keys,
    ) -> Result<Agent, AgentError> {
        Agent::spawn_in_group(hosts, units, None, keys)
    }

    /// The same with a group, whose leader sends the heartbeats of one of the hosts.
    ///
    /// # Errors
    /// Nothing runs then.
    pub fn spawn_in_group(
        hosts: Vec<HostSettings>,
        units: BTreeMap<UnitId, SocketAddr>,
        plan: Option<GroupPlan>,
        keys: &Keys,
    ) -> Result<Agent, AgentError> {
        if let Some(other) = hosts.iter().find(|settings| !keys.names().hosts.contains(&settings.host)) {
            return Err(AgentError::NotNamed(other.host));
        }
        let interval = hosts.iter().map(|settings| settings.interval).max().unwrap_or(REST);
        let alone = hosts.len() == 1 && plan.is_some();
        let patience = if alone { Patience::MEMBER } else { Patience::heartbeat(interval) };
        keys.client(patience)?;
        let any = if units.values().any(SocketAddr::is_ipv6) { "[::]:0" } else { "0.0.0.0:0" };
        let socket = std::net::UdpSocket::bind(any)?;
        let endpoint = Endpoint::new(keys.endpoint(), None, socket, Arc::new(TokioRuntime))?;
        let clock = Clock::new();
        let mut ends = BTreeMap::new();
        for settings in hosts {
            let (host, rank) = (settings.host, settings.rank);
            let grouped = plan.as_ref().is_some_and(|plan| plan.host == host);
            let mut end = HostEnd::new(HostSettings { grouped, ..settings }, new_life(rank), clock.now());
            units.keys().for_each(|unit| end.handle_link_down(*unit, clock.now()));
            ends.insert(host, end);
        }
        let group = plan.as_ref().map(|plan| {
            let (group, host, peers) = (plan.group.clone(), plan.host, plan.peers.keys().copied().collect());
            GroupEnd::new(GroupSettings { group, host, peers, interval }, clock.now())
        });
        let (ends, group) = (Mutex::new(ends), Mutex::new(group));
        let shared = Arc::new(Shared { clock, ends, group, touched: Notify::new() });
        let (reports, incoming) = mpsc::channel(REPORTS_MAX);
        let next = Arc::new(AtomicU64::new(0));
        let (current, keys) = watch::channel(keys.clone());
        let look = Arc::new(Notify::new());
        let links_of_group = match plan {
            Some(plan) => Some(GroupLinks::new(plan, interval, keys.clone(), Arc::clone(&next), reports.clone())?),
            None => None,
        };
        let (linked, links) = watch::channel(BTreeMap::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(drive(Arc::clone(&shared), incoming, linked, links_of_group));
        tasks.spawn(follow(current, Arc::clone(&look)));
        let dialler = Arc::new(Dialler {
            endpoint: endpoint.clone(),
            keys,
            patience,
            units: units.into_iter().collect(),
            taken: Mutex::new(Vec::new()),
            unanswered: Mutex::new(BTreeMap::new()),
            next,
        });
        for slot in 0..dialler.units.len().min(LINKS) {
            tasks.spawn(Arc::clone(&dialler).keep(slot, reports.clone()));
        }
        Ok(Agent { shared, _tasks: tasks, endpoint, links, look })
    }

    /// Looks into a host's table, or changes it; `None` if it is not a host of this agent.
    pub fn with<R>(&self, host: HostId, act: impl FnOnce(&mut HostEnd, Moment) -> R) -> Option<R> {
        let done = self.shared.ends.lock().get_mut(&host).map(|end| act(end, self.shared.clock.now()));
        self.shared.touched.notify_one();
        done
    }

    /// How its group is, if it is in one.
    #[must_use]
    pub fn group(&self) -> Option<GroupStatus> {
        self.shared.group.lock().as_ref().map(|end| GroupStatus {
            group: end.group().to_owned(),
            role: end.role(),
            leader: end.leader(),
            deputy: end.deputy(),
            members: end.members(),
        })
    }

    /// Its hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostId> {
        self.shared.ends.lock().keys().copied().collect()
    }

    /// The units it is linked to, with the round trip when that was made.
    #[must_use]
    pub fn links(&self) -> BTreeMap<UnitId, Duration> {
        self.links.borrow().clone()
    }

    /// Looks at certificate, key and revocation list now, and not only within the next second.
    pub fn look_at_keys(&self) {
        self.look.notify_one();
    }

    /// Says goodbye to all units for all its hosts and ends, as soon as they have it or after a second.
    pub async fn goodbye(self) {
        let all = self.hosts();
        self.end(&all).await;
    }

    /// Ends; says goodbye for these hosts only. Whoever speaks for the others next has as long as the age-out to do so.
    pub async fn end(&self, gone: &[HostId]) {
        self.shared.ends.lock().iter_mut().filter(|(host, _)| gone.contains(host)).for_each(|(_, end)| end.goodbye());
        self.shared.touched.notify_one();
        let patience = if gone.is_empty() {
            // Whoever comes next is waited for.
            Duration::from_millis(200)
        } else {
            // The driver has sent it when it comes to rest; then the units have a moment to acknowledge.
            sleep(Duration::from_millis(100)).await;
            Duration::from_secs(1)
        };
        self.endpoint.close(0_u32.into(), b"goodbye");
        let _ = timeout(patience, self.endpoint.wait_idle()).await;
    }
}

async fn drive(
    shared: Arc<Shared>,
    mut incoming: mpsc::Receiver<Report>,
    linked: watch::Sender<BTreeMap<UnitId, Duration>>,
    mut peers: Option<GroupLinks>,
) {
    let mut links: BTreeMap<u64, (UnitId, LinkEnd)> = BTreeMap::new();
    let mut last = shared.clock.now();
    loop {
        let due = {
            let mut ends = shared.ends.lock();
            let mut group = shared.group.lock();
            let now = shared.clock.now();
            if let Some(group) = group.as_mut() {
                group.handle_units(!links.is_empty(), now);
                group.handle_timeout(now);
            }
            for (host, end) in ends.iter_mut() {
                end.handle_timeout(now);
                while let Some(out) = end.poll_transmit() {
                    let Some(out) = pass(*host, out, group.as_mut(), peers.as_ref(), now) else { continue };
                    let to = |unit: UnitId| out.unit.is_none_or(|wanted| wanted == unit);
                    links.values().filter(|(unit, _)| to(*unit)).for_each(|(_, end)| end.send(&out.message));
                }
            }
            if let (Some(group), Some(peers)) = (group.as_mut(), peers.as_mut()) {
                peers.flush(group, links.values().map(|(_, end)| end), now);
            }
            let group_due = group.as_ref().and_then(GroupEnd::poll_timeout);
            ends.values().filter_map(HostEnd::poll_timeout).chain(group_due).min().unwrap_or(now.after(REST))
        };
        let due = due.min(shared.clock.now().after(REST));
        let report = tokio::select! {
            () = shared.touched.notified() => None,
            () = sleep_until(shared.clock.instant(due)) => None,
            report = incoming.recv() => report,
            peer = GroupLinks::undialled(peers.as_mut()) => {
                if let Some(group) = shared.group.lock().as_mut() {
                    group.handle_link_down(peer, shared.clock.now());
                }
                None
            }
        };
        let now = shared.clock.now();
        if now.since(last) > SLEPT + REST {
            links.values().for_each(|(_, end)| end.close("slept"));
            peers.iter().for_each(GroupLinks::close);
        }
        last = now;
        let report = match (shared.group.lock().as_mut(), peers.as_mut(), report) {
            (Some(group), Some(peers), Some(report)) => peers.take(group, report, now),
            (_, _, report) => report,
        };
        let mut ends = shared.ends.lock();
        match report {
            None => {}
            Some(Report::Up { link, names, end }) => {
                let Some(unit) = names.unit else { continue };
                linked.send_modify(|linked| {
                    linked.insert(unit, end.round_trip());
                });
                links.insert(link, (unit, end));
                ends.values_mut().for_each(|end| end.handle_link_up(unit, now));
            }
            Some(Report::Down { link }) => {
                if let Some((unit, _)) = links.remove(&link) {
                    linked.send_modify(|linked| {
                        linked.remove(&unit);
                    });
                    ends.values_mut().for_each(|end| end.handle_link_down(unit, now));
                }
            }
            Some(Report::Message { link, message }) => {
                let Some((unit, _)) = links.get(&link) else { continue };
                if let Some(end) = ends.get_mut(&message.host)
                    && let Err(refusal) = end.handle(*unit, message, now)
                {
                    tracing::debug!(%unit, %refusal, "message refused");
                }
            }
            Some(Report::Flood) => {}
            Some(Report::Malformed { error }) => tracing::warn!(%error, "a unit sent what is no message"),
        }
    }
}

/// Keeps links to units, each to another one.
struct Dialler {
    endpoint: Endpoint,
    keys: CurrentKeys,
    patience: Patience,
    units: Vec<(UnitId, SocketAddr)>,
    taken: Mutex<Vec<UnitId>>,
    /// Gave no answer when they were dialled last, and how often they were asked since whether they are there: an attempt takes a ticket, and
    /// there are few.
    unanswered: Mutex<BTreeMap<UnitId, u32>>,
    next: Arc<AtomicU64>,
}

impl Dialler {
    async fn keep(self: Arc<Self>, slot: usize, reports: mpsc::Sender<Report>) {
        let (mut at, mut failed) = (slot, 0);
        loop {
            let Some((unit, connection)) = Arc::clone(&self).link(&mut at).await else {
                // Thousands may want the same: the longer there is no unit to be had, the less often each of them tries.
                sleep(some_of(REDIAL * (1 << failed))).await;
                failed = (failed + 1).min(2);
                continue;
            };
            tracing::info!(%unit, address = %connection.remote_address(), "linked");
            failed = 0;
            let link = self.next.fetch_add(1, Ordering::Relaxed);
            serve(link, connection, true, reports.clone(), self.keys.clone()).await;
            tracing::warn!(%unit, "link lost or renewed");
            self.release(unit);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Dials one unit after another. Whoever does not answer soon may be dead or have thousands to answer: the next one is tried beside it.
    async fn link(self: Arc<Self>, at: &mut usize) -> Option<(UnitId, quinn::Connection)> {
        let (mut dialled, mut tried) = (JoinSet::new(), Vec::new());
        let mut linked = None;
        for _ in 0..self.units.len() {
            let (unit, address) = self.units[*at % self.units.len()];
            *at += 1;
            // Another link may have it: there are more units than links, or this one has to wait for its own.
            if !self.take(unit) {
                continue;
            }
            tried.push(unit);
            let dialler = Arc::clone(&self);
            dialled.spawn(async move { (unit, dialler.dial(unit, address).await) });
            linked = timeout(SOON, first(&mut dialled)).await.ok().flatten();
            if linked.is_some() {
                break;
            }
        }
        if linked.is_none() {
            linked = first(&mut dialled).await;
        }
        let others = tried.into_iter().filter(|unit| linked.as_ref().is_none_or(|(linked, _)| linked != unit));
        others.for_each(|unit| self.release(unit));
        linked
    }

    fn take(&self, unit: UnitId) -> bool {
        let mut taken = self.taken.lock();
        let free = !taken.contains(&unit);
        if free {
            taken.push(unit);
        }
        free
    }

    fn release(&self, unit: UnitId) {
        self.taken.lock().retain(|taken| *taken != unit);
    }

    async fn dial(&self, unit: UnitId, address: SocketAddr) -> Result<quinn::Connection, String> {
        let asked = self.unanswered.lock().get_mut(&unit).map(|asked| {
            *asked += 1;
            *asked
        });
        // Not for ever: something in between may not let the question through.
        if asked.is_some_and(|asked| !asked.is_multiple_of(ASKED)) && !answers(address).await {
            return Err("nobody there".to_owned());
        }
        let config = self.keys.borrow().client(self.patience).map_err(|error| error.to_string())?;
        let connecting = self.endpoint.connect_with(config, address, &unit_name(unit));
        let connecting = connecting.map_err(|error| error.to_string())?;
        let connected = timeout(DIAL, connecting).await.unwrap_or(Err(ConnectionError::TimedOut));
        if matches!(connected, Err(ConnectionError::TimedOut)) {
            self.unanswered.lock().entry(unit).or_default();
        } else {
            self.unanswered.lock().remove(&unit);
        }
        let connection = connected.map_err(|error| error.to_string())?;
        // With a ticket it was not looked at whether the unit's certificate has expired since.
        if self.keys.borrow().still_admits(&chain(&connection)) {
            return Ok(connection);
        }
        connection.close(0_u32.into(), b"not admitted");
        Err("the unit's certificate is revoked or has expired".to_owned())
    }
}

/// The first connection that is made.
async fn first(
    dialled: &mut JoinSet<(UnitId, Result<quinn::Connection, String>)>,
) -> Option<(UnitId, quinn::Connection)> {
    while let Some(done) = dialled.join_next().await {
        match done {
            Ok((unit, Ok(connection))) => return Some((unit, connection)),
            Ok((unit, Err(why))) => tracing::debug!(%unit, why, "no link"),
            Err(_) => {}
        }
    }
    None
}

/// A host is linked to so many units; they tell the others.
const LINKS: usize = 2;
const REPORTS_MAX: usize = 1024;
/// The driver looks around at least so often.
const REST: Duration = Duration::from_secs(1);
/// Until it dials again, at first.
const REDIAL: Duration = Duration::from_millis(400);
/// Who has not answered by then is not all that is waited for.
const SOON: Duration = Duration::from_secs(1);
/// So long a unit may take: all of its hosts may have come at once.
const DIAL: Duration = Duration::from_secs(10);
/// Each so many times a unit that does not answer is dialled all the same.
const ASKED: u32 = 16;
