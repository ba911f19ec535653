//! The control plane of a running unit: what its kernel, probes and operator say becomes a new farm, until it is told to end.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use weir_admin::AdminSocket;
use weir_config::{Config, ProbeKind};
use weir_dataplane::farm::{Farm, PortId};
use weir_dpdk::{Mempool, Port};
use weir_health_load::{Directive, Health, ProbeStateError};
use weir_identity::{EndpointId, Incarnation, Moment};
use weir_netlink::{KernelMirror, MirrorError, Options};
use weir_probes::{Expect, HealthChange, Kind, Probes, Question, Target, host_header};

use crate::agents::Heard;
use crate::allotments::Standings;
use crate::api::Api;
use crate::core_thread::{Cores, uptime};
use crate::knowledge::Knowledge;
use crate::links::Links;
use crate::retired::Published;
use crate::steering::Steering;

/// All that a running unit consists of.
pub struct Unit {
    /// The validated YAML.
    pub config: Arc<Config>,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
    /// What it knows.
    pub knowledge: Knowledge,
    /// Where cores find the farm.
    pub farms: Arc<ArcSwap<Farm>>,
    /// Where classifiers find the standings.
    pub standings: Arc<ArcSwap<Standings>>,
    /// The core threads.
    pub cores: Cores,
    /// The DPDK ports of each of the YAML's.
    pub ports: Vec<Vec<Port>>,
    /// The pool of all packet buffers.
    pub pool: Mempool,
    /// Set by a core that panicked.
    pub failed: Arc<AtomicBool>,
    /// Where the operator asks.
    pub admin: AdminSocket,
}

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No Tokio runtime.
    #[error("the control plane cannot start: {0}")]
    Runtime(std::io::Error),
    /// A port's twin.
    #[error(transparent)]
    Twin(#[from] Box<crate::twin::TwinError>),
    /// The kernel's tables.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Where agents connect.
    #[error(transparent)]
    Agents(#[from] crate::agents::AgentsError),
    /// A probe.
    #[error(transparent)]
    Probe(#[from] ProbeStateError),
}

/// What control plane and admin API share.
pub struct Shared {
    /// The unit's fixed parts.
    pub config: Arc<Config>,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
    /// What it knows now.
    pub knowledge: Mutex<Knowledge>,
    /// The latest changes of health, newest first.
    pub recent: Mutex<VecDeque<Change>>,
    /// Where cores find the farm.
    pub farms: Published<Farm>,
    /// The core threads.
    pub cores: Cores,
    /// The DPDK ports of each of the YAML's.
    pub ports: Vec<Vec<Port>>,
    /// The pool of all packet buffers.
    pub pool: Mempool,
    standings: Published<Standings>,
    /// What agents said, where the YAML has them.
    pub agents: std::sync::OnceLock<weir_health_link::Cache>,
}

/// One change of an endpoint's health.
#[derive(Debug, Clone)]
pub struct Change {
    /// When.
    pub at: Moment,
    /// Whose.
    pub endpoint: EndpointId,
    /// Before.
    pub from: Health,
    /// After.
    pub to: Health,
    /// What was seen.
    pub reason: String,
}

impl Shared {
    /// Makes a new farm and new standings of what is known now.
    fn publish(&self, knowledge: &mut Knowledge) {
        let generation = knowledge.next_generation();
        self.farms.store(knowledge.farm());
        self.publish_standings(knowledge, generation);
    }

    fn publish_standings(&self, knowledge: &Knowledge, generation: u64) {
        let before = self.standings.load_full();
        self.standings.store(before.next(generation, knowledge.standings()));
    }

    /// Sets what the operator wants of endpoints; those for which `which` says so. Returns each with what it was before.
    pub fn direct(
        &self,
        to: Directive,
        which: impl Fn(&Knowledge, EndpointId) -> bool,
    ) -> Vec<(EndpointId, Directive)> {
        let mut knowledge = self.knowledge.lock();
        let chosen: Vec<EndpointId> = knowledge.known().map(|(id, _)| id).filter(|id| which(&knowledge, *id)).collect();
        let changed = chosen
            .into_iter()
            .map(|id| (id, std::mem::replace(&mut knowledge.endpoints[id.index()].directive, to)))
            .collect();
        self.publish(&mut knowledge);
        changed
    }

    /// Takes what agents said. Only a directive needs a new farm, and load alone no new standings: it changes too often for that, so
    /// that the handler is told of it, where that is enough.
    pub fn heard(&self, heard: &[Heard]) {
        let mut knowledge = self.knowledge.lock();
        let (mut directed, mut changed) = (false, false);
        let mut loads = Vec::new();
        for heard in heard {
            let Some(known) = knowledge.endpoints.get_mut(heard.endpoint.index()) else { continue };
            let (directive, said) = (known.effective_directive(), known.said);
            known.said = heard.said;
            directed |= known.effective_directive() != directive;
            changed |= known.health != heard.health;
            if known.health != heard.health {
                self.change_health(&mut knowledge, heard.endpoint, heard.health, heard.reason.to_owned());
            }
            let Some(known) = knowledge.endpoints.get(heard.endpoint.index()) else { continue };
            let service = &knowledge.config.services[known.service];
            match (said, heard.said) {
                (Some(before), Some(now)) if before.status.capacity == now.status.capacity => {
                    changed |= service.select == weir_config::Select::Percentages;
                    loads.push((service.id, heard.endpoint, now.status));
                }
                (before, now) => changed |= before.is_some() || now.is_some(),
            }
        }
        if directed {
            return self.publish(&mut knowledge);
        }
        if changed {
            let generation = knowledge.next_generation();
            return self.publish_standings(&knowledge, generation);
        }
        let standings = self.standings.load_full();
        for some in loads.chunks(REPORTS) {
            let mut handler = standings.handler.lock();
            for (service, endpoint, status) in some {
                handler.report(*service, *endpoint, status.capacity.into(), status.load.into());
            }
        }
    }

    /// Takes ports' links that have changed.
    fn links(&self, changed: &[(usize, bool)]) {
        if changed.is_empty() {
            return;
        }
        let mut knowledge = self.knowledge.lock();
        if let Some(full) = knowledge.routing.set_links(changed).full {
            warn!(%full, "the forwarding table is full");
        }
        self.publish(&mut knowledge);
    }

    fn health(&self, change: &HealthChange) {
        let mut knowledge = self.knowledge.lock();
        self.change_health(&mut knowledge, change.endpoint, change.health, change.reason.to_string());
        self.publish(&mut knowledge);
    }

    fn change_health(&self, knowledge: &mut Knowledge, endpoint_id: EndpointId, health: Health, reason: String) {
        let Some(known) = knowledge.endpoints.get_mut(endpoint_id.index()) else {
            return;
        };
        let now = uptime();
        let from = std::mem::replace(&mut known.health, health);
        known.since = now;
        let (service, host) = {
            let known = known.clone();
            let (service, endpoint) = knowledge.settings(&known);
            (service.name.clone(), endpoint.host_name.clone())
        };
        info!(%service, %host, from = ?from, to = ?health, %reason, "health changed");
        let mut recent = self.recent.lock();
        recent.truncate(RECENT - 1);
        recent.push_front(Change { at: now, endpoint: endpoint_id, from, to: health, reason });
    }
}

/// Runs the control plane until SIGTERM, SIGINT or a failed core, and gives the unit's parts back.
///
/// # Errors
///
/// [`ControlError`]; the unit's parts are dropped, which ends its cores.
pub fn run(unit: Unit) -> Result<Arc<Shared>, ControlError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(ControlError::Runtime)?;
    let Unit { config, incarnation, knowledge, farms, standings, cores, ports, pool, failed, admin } = unit;
    let shared = Arc::new(Shared {
        config,
        incarnation,
        knowledge: Mutex::new(knowledge),
        recent: Mutex::new(VecDeque::new()),
        farms: Published::new(farms),
        cores,
        ports,
        pool,
        standings: Published::new(standings),
        agents: std::sync::OnceLock::new(),
    });
    runtime.block_on(serve(&shared, &failed, admin))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(shared)
}

async fn serve(shared: &Arc<Shared>, failed: &AtomicBool, socket: AdminSocket) -> Result<(), ControlError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ControlError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ControlError::Runtime)?;

    crate::twin::prepare(&shared.config).await.map_err(Box::new)?;
    let interfaces: Vec<String> =
        shared.config.ports.iter().filter_map(crate::knowledge::interface).map(str::to_owned).collect();
    let mirror = if interfaces.is_empty() { None } else { Some(KernelMirror::start(Options::new(interfaces)).await?) };
    let mut snapshots = mirror.as_ref().map(KernelMirror::snapshots);
    if let (Some(mirror), Some(snapshots)) = (&mirror, &mut snapshots) {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        take_snapshot(shared, mirror, snapshot);
    }

    let (changes, mut health) = mpsc::channel(64);
    let probes = Probes::spawn(targets(shared), changes)?;

    let listener = crate::agents::listen(shared)?;
    let mut agents = listener.as_ref().map(weir_health_link::Listener::cache);
    if let Some(cache) = &agents {
        let _ = shared.agents.set(cache.clone());
    }
    let _readers = crate::agents::answer_readers(shared).await?;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let api = Arc::new(Api::new(Arc::clone(shared)));
    let admin = tokio::spawn(socket.serve(api, async {
        let _ = stopped.await;
    }));
    info!(socket = %shared.config.admin.socket.display(), "weirctl may ask");

    let mut check = tokio::time::interval(LOOK_EVERY);
    let mut clients = Clients::default();
    let mut steering = Steering::default();
    let mut links = Links::new(&shared.config).map_err(ControlError::Runtime)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => { info!("SIGTERM: the unit ends"); break }
            _ = interrupt.recv() => { info!("SIGINT: the unit ends"); break }
            Some(change) = health.recv() => shared.health(&change),
            () = crate::agents::changed(&mut agents) => crate::agents::refresh(shared),
            _ = check.tick() => {
                if failed.load(Ordering::Acquire) {
                    break;
                }
                shared.farms.free();
                shared.standings.free();
                steering.follow(uptime(), &shared.config, |port| shared.cores.share(port));
                shared.links(&links.follow(uptime(), &shared.ports).await);
                if let Some(mirror) = &mirror {
                    clients.resolve(shared, mirror);
                }
            }
            changed = next_snapshot(&mut snapshots) => match (changed, &mirror) {
                (Some(snapshot), Some(mirror)) => take_snapshot(shared, mirror, snapshot),
                _ => {
                    warn!("the kernel's tables are not followed any more; forwarding goes on with what is known");
                    snapshots = None;
                }
            },
        }
    }
    probes.stop().await;
    let _ = stop.send(());
    if let Ok(Err(error)) = admin.await {
        warn!(%error, "the admin socket ended badly");
    }
    Ok(())
}

type Snapshots = tokio::sync::watch::Receiver<Arc<weir_netlink::Snapshot>>;

/// The next snapshot of the kernel's tables; `None` when there will be no more. Without a kernel to follow it never comes.
async fn next_snapshot(snapshots: &mut Option<Snapshots>) -> Option<Arc<weir_netlink::Snapshot>> {
    match snapshots {
        Some(snapshots) => {
            snapshots.changed().await.ok()?;
            Some(Arc::clone(&snapshots.borrow_and_update()))
        }
        None => std::future::pending().await,
    }
}

fn take_snapshot(shared: &Shared, mirror: &KernelMirror, snapshot: Arc<weir_netlink::Snapshot>) {
    let mut knowledge = shared.knowledge.lock();
    debug!(generation = snapshot.generation, neighbours = snapshot.neighbours.len(), "the kernel's tables changed");
    for index in 0..knowledge.config.ports.len() {
        let Some(interface) = knowledge.interface(index) else { continue };
        let was = knowledge.routing.kernel().and_then(|before| link_is_up(before, interface));
        let is = link_is_up(&snapshot, interface);
        match is {
            None if was.is_some() || knowledge.routing.kernel().is_none() => {
                warn!(interface, "the interface is gone; the unit has to be restarted once it is back");
            }
            Some(false) if was != is => warn!(interface, "the interface is down or has no carrier"),
            Some(true) if was == Some(false) => info!(interface, "the interface is up"),
            _ => {}
        }
    }
    let (followed, farm) = knowledge.follow(snapshot, &shared.farms.load_full());
    if let Some(full) = followed.full {
        warn!(%full, "the forwarding table is full");
    }
    if let Some(farm) = farm {
        shared.farms.store(farm);
    }
    if followed.routes {
        for (port, address) in knowledge.newly_wanted() {
            if let Some(interface) = knowledge.interface(usize::from(port)) {
                mirror.ask(interface, address);
            }
        }
    }
}

/// Neighbours that packets have waited for and that are not known from the YAML: clients and their routers.
#[derive(Debug, Default)]
struct Clients(VecDeque<(Moment, PortId, IpAddr)>);

impl Clients {
    /// Lets the kernel resolve what shards want; after a while the kernel may forget each again.
    fn resolve(&mut self, shared: &Shared, mirror: &KernelMirror) {
        let now = uptime();
        let knowledge = shared.knowledge.lock();
        while self.0.len() > CLIENTS || self.0.front().is_some_and(|(at, ..)| now.since(*at) >= CLIENT_KEPT) {
            let Some((_, port, address)) = self.0.pop_front() else { break };
            if let Some(interface) = knowledge.interface(usize::from(port))
                && !knowledge.wants(port, address)
            {
                mirror.forget(interface, address);
            }
        }
        for (port, address) in shared.cores.wanted() {
            if let Some(interface) = knowledge.interface(usize::from(port)) {
                debug!(interface, %address, "packets wait for a neighbour");
                mirror.ask(interface, address);
                self.0.push_back((now, port, address));
            }
        }
    }
}

/// Whether an interface is up with a carrier; `None` if there is none of this name.
#[must_use]
pub fn link_is_up(snapshot: &weir_netlink::Snapshot, interface: &str) -> Option<bool> {
    snapshot.links.iter().find(|link| link.name == interface).map(|link| link.up)
}

/// What the YAML wants to be probed.
fn targets(shared: &Shared) -> Vec<Target> {
    let knowledge = shared.knowledge.lock();
    let targets = knowledge.known().filter_map(|(id, known)| {
        let (service, endpoint) = knowledge.settings(known);
        let has_agent = knowledge.config.hosts.iter().any(|host| host.id == endpoint.host && host.agent);
        let probe = service.probe.as_ref().filter(|_| !has_agent)?;
        let port = probe.port.or(endpoint.port).or(service.ports.single())?;
        let kind = match &probe.kind {
            ProbeKind::Tcp => Kind::Tcp,
            ProbeKind::Http { path, host } => Kind::Http {
                path: path.clone(),
                host: host.clone().unwrap_or_else(|| host_header(service.vip, port)),
                expect: Expect::Good,
            },
        };
        let address = SocketAddr::new(endpoint.address, port);
        let question = Question { address, kind, timeout: probe.timeout, source: None, interface: None };
        Some(Target { endpoint: id, question, interval: probe.interval, rise: probe.rise, fall: probe.fall })
    });
    targets.collect()
}

/// Sums of DPDK's statistics over the ports of one of the YAML's.
#[must_use]
pub fn statistics(ports: &[Port]) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for statistics in ports.iter().filter_map(|port| port.statistics().ok()) {
        let rows = [
            ("rx_packets", statistics.rx_packets),
            ("tx_packets", statistics.tx_packets),
            ("rx_bytes", statistics.rx_bytes),
            ("tx_bytes", statistics.tx_bytes),
            ("rx_missed", statistics.rx_missed),
            ("rx_errors", statistics.rx_errors),
            ("tx_errors", statistics.tx_errors),
            ("rx_no_mbuf", statistics.rx_no_mbuf),
            ("rx_multi_segment", statistics.rx_multi_segment),
        ];
        for (name, value) in rows {
            *sums.entry(name).or_insert(0) += value;
        }
    }
    sums
}

/// How often the cores are looked at: whether they live, and for what neighbours packets wait.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Neighbours that the kernel is asked to keep resolved for packets' sake, at the most and for how long.
const CLIENTS: usize = 1024;
const CLIENT_KEPT: Duration = Duration::from_secs(600);
/// Reports of load that the handler is told at once: meanwhile endpoints take turns.
const REPORTS: usize = 64;
/// Changes of health that are kept for `weirctl hosts`.
const RECENT: usize = 64;
