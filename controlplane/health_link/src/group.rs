//! Links between the hosts of a group, dialled as the group's state machine wants them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{ClientConfig, Endpoint, Incoming, TokioRuntime};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_health_protocol::{GroupEnd, To, ToUnit};
use weir_identity::{HostId, Moment};

use crate::agent::{AgentError, GroupPlan};
use crate::keys::{Patience, host_name};
use crate::link::{LinkEnd, Report, serve};
use crate::renewal::CurrentKeys;

/// An agent's links to other hosts of its group.
pub(crate) struct GroupLinks {
    plan: GroupPlan,
    endpoint: Endpoint,
    keys: CurrentKeys,
    patience: Patience,
    next: Arc<AtomicU64>,
    reports: mpsc::Sender<Report>,
    links: BTreeMap<u64, Link>,
    /// Those to each host; the last is used.
    by_peer: BTreeMap<HostId, Vec<u64>>,
    dialling: BTreeSet<HostId>,
    /// What the links were last compared with; none if there are others since.
    compared: Option<Vec<HostId>>,
    over: (mpsc::UnboundedSender<HostId>, mpsc::UnboundedReceiver<HostId>),
    tasks: JoinSet<()>,
}

struct Link {
    peer: HostId,
    end: LinkEnd,
    dialled: bool,
}

impl GroupLinks {
    pub(crate) fn new(
        plan: GroupPlan,
        interval: Duration,
        keys: CurrentKeys,
        next: Arc<AtomicU64>,
        reports: mpsc::Sender<Report>,
    ) -> Result<GroupLinks, AgentError> {
        let own = keys.borrow().clone();
        if own.names().member(&plan.group) != Some(plan.host) {
            return Err(AgentError::NotMember(plan.host, plan.group));
        }
        let address = plan.listen;
        let failed = |source| AgentError::Listen { address, source };
        let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
        let endpoint = Endpoint::new(own.endpoint(), Some(own.server()?), socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.map_err(failed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(renew(endpoint.clone(), keys.clone()));
        tasks.spawn(accept(endpoint.clone(), Arc::clone(&next), reports.clone(), keys.clone()));
        Ok(GroupLinks {
            plan,
            endpoint,
            keys,
            patience: Patience::answered(interval),
            next,
            reports,
            links: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            dialling: BTreeSet::new(),
            compared: None,
            over: mpsc::unbounded_channel(),
            tasks,
        })
    }

    /// The next host that could not be dialled, or whose dialled link has ended, and that there is no other link to; for ever without a group.
    pub(crate) async fn undialled(links: Option<&mut GroupLinks>) -> HostId {
        let Some(links) = links else { return std::future::pending().await };
        while let Some(peer) = links.over.1.recv().await {
            links.dialling.remove(&peer);
            links.compared = None;
            if links.to(peer).is_none() {
                return peer;
            }
        }
        std::future::pending().await
    }

    /// Takes what is said about a link of the group; everything else is left.
    pub(crate) fn take(&mut self, group: &mut GroupEnd, report: Report, now: Moment) -> Option<Report> {
        match report {
            Report::Up { link, names, end } if names.unit.is_none() => match names.member(&self.plan.group) {
                Some(peer) => {
                    let dialled = self.dialling.contains(&peer) && end.is_client();
                    self.links.insert(link, Link { peer, end, dialled });
                    self.by_peer.entry(peer).or_default().push(link);
                    self.compared = None;
                    group.handle_link_up(peer, now);
                }
                None => end.close("not of this group"),
            },
            Report::Down { link } => {
                let Some(Link { peer, .. }) = self.links.remove(&link) else { return Some(Report::Down { link }) };
                self.by_peer.entry(peer).or_default().retain(|other| *other != link);
                self.compared = None;
                if self.to(peer).is_none() {
                    self.by_peer.remove(&peer);
                    group.handle_link_down(peer, now);
                }
            }
            Report::Message { link, message } => {
                let Some(Link { peer, .. }) = self.links.get(&link) else {
                    return Some(Report::Message { link, message });
                };
                if let Err(refusal) = group.handle(*peer, message, now) {
                    tracing::debug!(%peer, %refusal, "message refused");
                }
            }
            other => return Some(other),
        }
        None
    }

    /// Sends what the group has to say, dials whom it wants, and gives up whom it does not.
    pub(crate) fn flush<'a>(
        &mut self,
        group: &mut GroupEnd,
        units: impl Iterator<Item = &'a LinkEnd> + Clone,
        now: Moment,
    ) {
        while let Some((to, message)) = group.poll_transmit() {
            match to {
                To::Units => units.clone().for_each(|end| end.send(&message)),
                To::Peer(peer) => self.to(peer).into_iter().for_each(|end| end.send(&message)),
            }
        }
        while self.tasks.try_join_next().is_some() {}
        let wanted = group.wanted(now);
        if self.compared.as_ref() == Some(&wanted) {
            // A leader comes by here with every heartbeat of its many members.
            return;
        }
        let unwanted = |link: &&Link| link.dialled && !wanted.contains(&link.peer);
        self.links.values().filter(unwanted).for_each(|link| link.end.close("not wanted any more"));
        for peer in &wanted {
            if self.to(*peer).is_none() && !self.dialling.contains(peer) {
                self.dial(*peer);
            }
        }
        self.compared = Some(wanted);
    }

    /// Ends all links.
    pub(crate) fn close(&self) {
        self.links.values().for_each(|link| link.end.close("slept"));
    }

    fn to(&self, peer: HostId) -> Option<&LinkEnd> {
        self.links.get(self.by_peer.get(&peer)?.last()?).map(|link| &link.end)
    }

    fn dial(&mut self, peer: HostId) {
        let Some(address) = self.plan.peers.get(&peer).copied() else { return };
        self.dialling.insert(peer);
        let link = self.next.fetch_add(1, Ordering::Relaxed);
        let (over, reports) = (self.over.0.clone(), self.reports.clone());
        let keys = self.keys.clone();
        let config = keys.borrow().client(self.patience).map_err(|error| error.to_string());
        let dialling = dial(self.endpoint.clone(), config, address, peer);
        self.tasks.spawn(async move {
            match dialling.await {
                Ok(connection) => serve(link, connection, true, reports, keys).await,
                Err(why) => tracing::debug!(%peer, %address, why, "no link to a host of the group"),
            }
            let _ = over.send(peer);
        });
    }
}

async fn dial(
    endpoint: Endpoint,
    config: Result<ClientConfig, String>,
    address: SocketAddr,
    peer: HostId,
) -> Result<quinn::Connection, String> {
    let connecting = endpoint.connect_with(config?, address, &host_name(peer)).map_err(|error| error.to_string())?;
    match timeout(DIAL, connecting).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {DIAL:?}")),
    }
}

/// New connections are shown the renewed certificate, and judged by the new list.
async fn renew(endpoint: Endpoint, mut keys: CurrentKeys) {
    while keys.changed().await.is_ok() {
        let config = keys.borrow_and_update().server();
        match config {
            Ok(config) => endpoint.set_server_config(Some(config)),
            Err(error) => tracing::error!(%error, "the renewed certificate is of no use"),
        }
    }
}

async fn accept(endpoint: Endpoint, next: Arc<AtomicU64>, reports: mpsc::Sender<Report>, keys: CurrentKeys) {
    // Some room is kept for those who have proven where they are, whatever the others do.
    let [proven, unproven] = [(); 2].map(|()| Arc::new(Semaphore::new(HANDSHAKES_MAX / 2)));
    let mut links = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        if links.len() >= LINKS_MAX {
            incoming.refuse();
            continue;
        }
        // Whoever cannot be served now is told to prove its address first, and to come again.
        let handshakes = if incoming.remote_address_validated() { &proven } else { &unproven };
        let Ok(permit) = Arc::clone(handshakes).try_acquire_owned() else {
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
    tracing::debug!(%from, why = failed, "handshake failed");
    None
}

/// A host of a group sends its heartbeats to the leader; what is left goes to the units.
pub(crate) fn pass(
    host: HostId,
    out: ToUnit,
    group: Option<&mut GroupEnd>,
    links: Option<&GroupLinks>,
    now: Moment,
) -> Option<ToUnit> {
    match (group, links) {
        (Some(group), Some(links)) if links.plan.host == host => group.route(out, now),
        _ => Some(out),
    }
}

/// Who does not answer by then is not waited for. Others are tried beside it before.
const DIAL: Duration = Duration::from_secs(2);
/// So many handshakes may be going on.
const HANDSHAKES_MAX: usize = 512;
const HANDSHAKE: Duration = Duration::from_secs(3);
/// So many links there may be: more than hosts of a group.
const LINKS_MAX: usize = 4096;
