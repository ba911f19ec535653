//! Starting and ending a unit: EAL and ports, shards and classifiers on their cores, the control plane beside them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tracing::info;
use weir_admin::{AdminSocket, ServeError};
use weir_config::Config;
use weir_cpu::MapError;
use weir_dataplane::classifier::{self, Classifier};
use weir_dataplane::core::ClassifierSeat;
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{self, Forwarder};
use weir_dataplane::fragments;
use weir_dataplane::packet::Queue;
use weir_dataplane::shard::{self, Buffers, Shard, ShardPort, Twin};
use weir_health_load::SharedHandler;
use weir_identity::Incarnation;
use weir_sessions::{Limits, LocalSessions};

use crate::allotments::{Standings, UnitAllotments};
use crate::control::{self, ControlError};
use crate::core_thread::{Cores, SpawnError};
use crate::knowledge::Knowledge;
use crate::ports::{self, Buckets, PortsError};
use crate::unit_secret::{self, StateError};

/// What shards and classifiers are made from, whatever their queues are.
pub struct Assembly<'a> {
    /// The validated YAML.
    pub config: &'a Config,
    /// The first farm.
    pub farm: Arc<Farm>,
    /// Where classifiers find the standings.
    pub standings: Arc<ArcSwap<Standings>>,
    /// Key of the flow hash.
    pub seed: u64,
    /// Of the hash that says who owns a flow.
    pub key: ToeplitzKey,
    /// Packets in a burst.
    pub burst: usize,
}

/// Why shards or classifiers could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// A table is too large for this machine.
    #[error("{table}: {source}; lower dataplane.routes in the configuration")]
    Memory {
        /// Which table.
        table: String,
        /// Why.
        source: MapError,
    },
    /// A thread that took tables' memory panicked; the log has the reason.
    #[error("taking the tables' memory ended by a panic")]
    PopulatePanicked,
    /// There is no room for the FIB.
    #[error(
        "the table of routes and neighbours takes 900 MB of address space (not of memory): {0}; is it limited (ulimit -v)?"
    )]
    Fib(MapError),
}

/// A port as one shard has it: its queue (or the shard that sends for it), and its twin.
pub type PortEnds<Q> = (Result<Q, usize>, Twin<Q>);

/// All shards, and all classifiers in their seats.
pub type Assembled<Q> = (Vec<Shard<Q>>, Vec<ClassifierSeat<<Q as Queue>::Packet>>);

impl Assembly<'_> {
    /// Makes all shards and classifiers with the rings between them; `port(shard, port)` gives each shard its end of each port, and
    /// `buffers` where it gets buffers from without any.
    ///
    /// # Errors
    ///
    /// [`AssemblyError`] if a table does not fit into the address space.
    pub fn assemble<Q: Queue>(
        &self,
        mut port: impl FnMut(usize, usize) -> PortEnds<Q>,
        buffers: impl Fn() -> Buffers<Q::Packet>,
    ) -> Result<Assembled<Q>, AssemblyError> {
        let settings = &self.config.dataplane;
        let hash = FlowHash::new(self.seed);
        let owners = Owners::new(&self.key, settings.shards);
        let (shards, classifiers) = (settings.shards, settings.classifiers);
        let mut shard_links: Vec<Vec<_>> = (0..classifiers).map(|_| Vec::new()).collect();
        let mut made = Vec::new();
        let neighbourhoods = shard::neighbourhoods(shards, (HANDOVERS / shards).clamp(512, 4096));
        for (number, neighbours) in neighbourhoods.into_iter().enumerate() {
            let links = shard_links
                .iter_mut()
                .map(|links| {
                    let (ours, theirs) = shard::link(DIVERT_RING, NOTICE_RING);
                    links.push(theirs);
                    ours
                })
                .collect();
            let forwarder = Forwarder::new(&forwarder::Settings {
                shard: number,
                owners: owners.clone(),
                routes_ipv4: settings.routes_ipv4.div_ceil(shards),
                routes_ipv6: settings.routes_ipv6.div_ceil(shards),
                hash: hash.clone(),
            })
            .map_err(|source| AssemblyError::Memory { table: format!("route table of shard {number}"), source })?;
            let forwarder = if self.config.pools.is_empty() { forwarder.without_full_nat() } else { forwarder };
            let ports = (0..self.config.ports.len())
                .map(|index| {
                    if let Some((parent, id)) = crate::knowledge::vlan(&self.config.ports[index]) {
                        return ShardPort::vlan(parent, id);
                    }
                    let (queue, twin) = port(number, index);
                    ShardPort::new(queue, twin)
                })
                .collect();
            let farm = Arc::clone(&self.farm);
            let shard = Shard::new(number, farm, forwarder, ports, neighbours, links, self.burst);
            made.push(shard.with_fragments(fragment_limits(settings)).with_buffers(buffers()));
        }
        let seats = shard_links.into_iter().enumerate().map(|(number, links)| {
            let settings = classifier::Settings {
                sessions_ipv4: settings.routes_ipv4.div_ceil(classifiers),
                sessions_ipv6: settings.routes_ipv6.div_ceil(classifiers),
                pending: settings.pending,
                hash: hash.clone(),
            };
            let rotation = u32::try_from(number).unwrap_or(u32::MAX);
            let allotments = Box::new(UnitAllotments::new(rotation, Arc::clone(&self.standings)));
            let author = weir_sessions::Author { unit: self.config.unit.id, incarnation: Incarnation(0) };
            let sessions = Box::new(LocalSessions::new(author, SESSION_LIMITS));
            let classifier =
                Classifier::new(&settings, Arc::clone(&self.farm), allotments, sessions).map_err(|source| {
                    AssemblyError::Memory { table: format!("inventory of classifier {number}"), source }
                })?;
            Ok(ClassifierSeat::new(number, classifier, links))
        });
        let seats = seats.collect::<Result<Vec<_>, AssemblyError>>()?;
        Ok((made, seats))
    }
}

/// Why a unit did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// DPDK or a port.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] ServeError),
    /// What the unit keeps for its next life.
    #[error(transparent)]
    State(#[from] StateError),
    /// A table.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// A thread.
    #[error(transparent)]
    Cores(#[from] SpawnError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The thread of the core on this CPU panicked; the log has the reason.
    #[error("the core on CPU {0} panicked (the log says why), so everything was stopped")]
    CorePanicked(usize),
}

/// Runs a unit until it is told to end by SIGTERM or SIGINT.
///
/// # Errors
///
/// [`UnitError`]; whatever had been started is stopped.
pub fn run(config: Config) -> Result<(), UnitError> {
    let config = Arc::new(config);
    let incarnation = incarnation();
    ports::require_root()?;
    // Before the ports: a second unit by mistake must not take packets from the one that runs.
    let admin = AdminSocket::bind(&config.admin.socket)?;
    let seed = config.dataplane.seed.unwrap_or_else(random_seed);
    let key = if config.dataplane.seed.is_some() || config.dataplane.shards == 1 {
        bucket_key(&config, seed)
    } else {
        kept_key(&config)?
    };
    let buckets = Buckets { key: *key.bytes(), shards: Owners::new(&key, config.dataplane.shards).table() };
    let opened = ports::open(&config, Some(&buckets))?;
    let mut knowledge = Knowledge::new(Arc::clone(&config), opened.macs.clone(), &key).map_err(AssemblyError::Fib)?;
    let generation = knowledge.next_generation();
    let farm = Arc::new(knowledge.farm());
    let standings =
        Arc::new(ArcSwap::from_pointee(Standings::new(generation, knowledge.standings(), SharedHandler::default())));
    let assembly = Assembly {
        config: &config,
        farm: Arc::clone(&farm),
        standings: Arc::clone(&standings),
        seed,
        key,
        burst: usize::from(config.dataplane.burst),
    };
    let (mut ends, pool) = (opened.ends, opened.pool);
    let (mut shards, mut seats) = assembly.assemble(
        |shard, port| ends.take(shard, port),
        || Box::new(move || pool.alloc().map(ports::MbufPacket::from)),
    )?;
    // What waits for twins ends with the shards.
    drop(ends);
    // The first farm is to be freed like all others, once nobody reads it.
    drop(assembly);
    crate::populate::tables(&config.dataplane, &mut shards, &mut seats)?;
    let farms = Arc::new(ArcSwap::new(farm));
    let failed = Arc::new(AtomicBool::new(false));
    let cores = Cores::start(&config, shards, seats, &farms, &failed)?;
    info!(
        unit = %config.unit.name, %incarnation, dpdk = env!("WEIR_DPDK"),
        shards = config.dataplane.shards, classifiers = config.dataplane.classifiers, "unit runs"
    );
    let unit = control::Unit {
        config: Arc::clone(&config),
        incarnation,
        knowledge,
        farms,
        standings,
        cores,
        ports: opened.ports,
        pool: opened.pool,
        failed,
        admin,
    };
    let unit = control::run(unit)?;
    let panicked = unit.cores.stop();
    let totals = unit.cores.totals();
    let lines: Vec<String> =
        totals.iter().filter(|(_, value)| **value > 0).map(|(name, value)| format!("{name}={value}")).collect();
    let pool = unit.pool;
    // The ports close with their last handle, and what they still hold goes back to the pool.
    drop(unit);
    let mbufs_in_use = pool.in_use().saturating_sub(opened.kept_by_drivers);
    info!(mbufs_in_use, counters = %lines.join(" "), "unit ended");
    panicked.map_or(Ok(()), |core| Err(UnitError::CorePanicked(core)))
}

/// What a shard's fragment table may hold: a sixteenth of all packet buffers may wait in the tables of all shards.
fn fragment_limits(settings: &weir_config::Dataplane) -> fragments::Limits {
    let shards = u32::try_from(settings.shards).unwrap_or(u32::MAX);
    fragments::Limits { datagrams: FRAGMENTED_DATAGRAMS.div_ceil(shards), held: (settings.mbufs / 16).div_ceil(shards) }
}

/// The key of the hash by which flows have their owners, from a seed.
pub(crate) fn bucket_key(config: &Config, seed: u64) -> ToeplitzKey {
    if config.dataplane.shards == 1 { ToeplitzKey::one_bucket() } else { ToeplitzKey::from_seed(seed) }
}

/// The same as it is kept for all lives of a unit: flows and pools' ports have the same owners after a restart.
fn kept_key(config: &Config) -> Result<ToeplitzKey, StateError> {
    const KEY: usize = ToeplitzKey::LEN;
    let secret = unit_secret::secret(config, || {
        let key = ToeplitzKey::draw(random);
        let mut secret = random();
        secret[..KEY].copy_from_slice(key.bytes());
        secret
    })?;
    let bytes = std::array::from_fn(|at| secret[at]);
    ToeplitzKey::new(bytes).map_err(|_| StateError::Damaged { file: unit_secret::file(config) })
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> [u8; N] {
    use std::hash::{BuildHasher, RandomState};
    let mut bytes = [0; N];
    for (at, chunk) in bytes.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&RandomState::new().hash_one(at).to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// This life's number: milliseconds since 1970.
fn incarnation() -> Incarnation {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Incarnation(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A seed that nobody can guess, from the keys that the standard library draws from the kernel.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// The sessions of other kinds than connections, which are in the inventory.
const SESSION_LIMITS: Limits = Limits { capacity: 1 << 20, dead_time: Duration::from_secs(120) };
/// Packets that may wait for a classifier, from each shard; what comes then is dropped and counted.
const DIVERT_RING: usize = 1024;
const NOTICE_RING: usize = 8192;
/// Datagrams in fragments that are followed at once, over all shards.
const FRAGMENTED_DATAGRAMS: u32 = 8192;
/// Packets that may be on their way from all other shards to one: with 128 shards all rings have 133 MB.
const HANDOVERS: usize = 1 << 15;

#[cfg(test)]
mod tests;
