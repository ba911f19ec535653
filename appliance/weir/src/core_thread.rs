//! Core threads: pinned threads that run the dataplane's cores turn by turn, and sleep when there is nothing to do.
//!
//! A core that goes to sleep says so; a core that has just done something rings the bells of those that sleep, since the work may
//! be for them. So a ring needs no bell of its own, and a busy unit makes no system call for it.

mod bell;
mod sleep_flag;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod under_loom;

/// What [`sleep_flag`] is made of.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use core_affinity::CoreId;
use crossbeam::channel::{RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;
use tracing::{error, warn};
use weir_config::{Config, Idle};
use weir_dataplane::core::{ClassifierSeat, Command, Core, PublishedClassifier, Turn, giving};
use weir_dataplane::farm::{Farm, PortId};
use weir_dataplane::shard::{Published, Shard, Share};
use weir_dpdk::{Eal, PacketSockets};
use weir_identity::Moment;

use self::bell::{Bell, ring_sleepers};
use crate::naps::Naps;
use crate::ports::{MbufPacket, PortQueue};

/// All core threads of a unit.
pub struct Cores {
    handles: Vec<Handle>,
    /// Which core each shard is on; the lock is held while one moves.
    places: Mutex<Vec<usize>>,
    shards: Vec<Arc<Published>>,
    classifiers: Vec<Arc<PublishedClassifier>>,
    capacities: (u64, u64),
}

struct Handle {
    cpu: usize,
    classifiers: Vec<usize>,
    commands: Sender<Command<PortQueue>>,
    bell: Arc<Bell>,
    busy: Arc<AtomicU64>,
    /// Ends with whether it panicked.
    thread: Mutex<Option<JoinHandle<bool>>>,
}

/// Why a core did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The thread could not be made.
    #[error("no thread for CPU {cpu}: {source}")]
    Thread {
        /// Its CPU.
        cpu: usize,
        /// Why.
        source: std::io::Error,
    },
    /// No event descriptor for its bell.
    #[error("no event descriptor for CPU {cpu}: {source}")]
    Bell {
        /// Its CPU.
        cpu: usize,
        /// Why.
        source: rustix::io::Errno,
    },
}

/// Why something could not be asked of a core.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No such shard.
    #[error("there is no shard {0}")]
    NoShard(usize),
    /// No core is on this CPU.
    #[error("no forwarding core runs on CPU {0}")]
    NoCore(usize),
    /// It did not answer.
    #[error("core on CPU {0} did not answer")]
    Silent(usize),
}

impl Cores {
    /// Starts a thread for each configured CPU and deals shards and classifiers to them. A panic in one sets `failed`.
    ///
    /// # Errors
    ///
    /// [`SpawnError`]; the threads that run already end when the result is dropped.
    pub fn start(
        config: &Config,
        shards: Vec<Shard<PortQueue>>,
        seats: Vec<ClassifierSeat<MbufPacket>>,
        farm: &Arc<ArcSwap<Farm>>,
        failed: &Arc<AtomicBool>,
    ) -> Result<Self, SpawnError> {
        let settings = &config.dataplane;
        let mut cpus = settings.cpus.clone();
        cpus.extend(settings.classifier_cpus.iter().filter(|cpu| !settings.cpus.contains(cpu)));
        let mut bells = Vec::new();
        for &cpu in &cpus {
            bells.push(Arc::new(Bell::new().map_err(|source| SpawnError::Bell { cpu, source })?));
        }
        let mut cores = Self {
            handles: Vec::new(),
            places: Mutex::new(Vec::new()),
            shards: shards.iter().map(|shard| Arc::clone(shard.published())).collect(),
            classifiers: seats.iter().map(|seat| Arc::clone(seat.published())).collect(),
            capacities: shards.first().map_or((0, 0), |shard| {
                let forwarder = shard.forwarder();
                (forwarder.routes4().capacity() as u64, forwarder.routes6().capacity() as u64)
            }),
        };
        for (&cpu, bell) in cpus.iter().zip(&bells) {
            let (commands, receiver) = unbounded();
            let busy = Arc::new(AtomicU64::new(0));
            let others = bells.iter().filter(|other| !Arc::ptr_eq(other, bell)).map(Arc::clone).collect();
            let core = CoreThread {
                cpu,
                idle: settings.idle,
                core: Core::new(receiver, Arc::clone(farm)),
                bell: Arc::clone(bell),
                others,
                busy: Arc::clone(&busy),
            };
            let failed = Arc::clone(failed);
            let thread = std::thread::Builder::new()
                .name(format!("core-{cpu}"))
                .spawn(move || {
                    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| core.run())).is_err();
                    if panicked {
                        error!(cpu, "a core panicked");
                        failed.store(true, Ordering::Release);
                    }
                    panicked
                })
                .map_err(|source| SpawnError::Thread { cpu, source })?;
            let bell = Arc::clone(bell);
            let thread = Mutex::new(Some(thread));
            cores.handles.push(Handle { cpu, classifiers: Vec::new(), commands, bell, busy, thread });
        }
        for shard in shards {
            let core = shard.number() % settings.cpus.len();
            cores.places.lock().push(core);
            cores.send(core, Command::AddShard(Box::new(shard)));
        }
        for seat in seats {
            let cpu = settings.classifier_cpus[seat.number() % settings.classifier_cpus.len()];
            let core = cpus.iter().position(|there| *there == cpu).unwrap_or(0);
            cores.handles[core].classifiers.push(seat.number());
            cores.send(core, Command::AddClassifier(Box::new(seat)));
        }
        Ok(cores)
    }

    /// CPU, shards, classifiers and busy share (0 to 1) of each core.
    pub fn cores(&self) -> Vec<(usize, Vec<usize>, Vec<usize>, f64)> {
        let places = self.places.lock();
        let shards_on = |core| places.iter().enumerate().filter(move |(_, at)| **at == core).map(|(shard, _)| shard);
        self.handles
            .iter()
            .enumerate()
            .map(|(core, handle)| {
                let busy = handle.busy.load(Ordering::Relaxed);
                let share = f64::from(u32::try_from(busy).unwrap_or(0)) / 1000.0;
                (handle.cpu, shards_on(core).collect(), handle.classifiers.clone(), share)
            })
            .collect()
    }

    /// Each shard's published counters.
    #[must_use]
    pub fn shards(&self) -> &[Arc<Published>] {
        &self.shards
    }

    /// Each classifier's published counters.
    #[must_use]
    pub fn classifiers(&self) -> &[Arc<PublishedClassifier>] {
        &self.classifiers
    }

    /// IPv4 and IPv6 routes that a shard can hold.
    #[must_use]
    pub fn capacities(&self) -> (u64, u64) {
        self.capacities
    }

    /// The CPU a shard runs on.
    #[must_use]
    pub fn cpu_of(&self, shard: usize) -> Option<usize> {
        self.places.lock().get(shard).map(|core| self.handles[*core].cpu)
    }

    /// Takes the neighbours whose link-layer addresses packets wait for: on which port's link, and their addresses.
    pub fn wanted(&self) -> impl Iterator<Item = (PortId, IpAddr)> + '_ {
        self.shards.iter().flat_map(|shard| std::iter::from_fn(|| shard.wanted()))
    }

    /// How many packets all shards have received by a port, and how many of them were other shards'.
    #[must_use]
    pub fn share(&self, port: usize) -> Share {
        let shares = self.shards.iter().map(|shard| shard.share(port));
        shares.fold(Share::default(), |sum, share| Share {
            received: sum.received + share.received,
            foreign: sum.foreign + share.foreign,
        })
    }

    /// All counters and drops (as `drop_REASON`), summed over shards and classifiers.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        let mut add = |name: String, value| *totals.entry(name).or_insert(0) += value;
        for shard in &self.shards {
            shard.counters().for_each(|(name, value)| add(name.to_owned(), value));
            shard.drops().for_each(|(reason, value)| add(format!("drop_{}", reason.name()), value));
        }
        for classifier in &self.classifiers {
            classifier.counters().for_each(|(name, value)| add(format!("classifier_{name}"), value));
        }
        totals
    }

    /// Has `look` done with a shard on its own core and returns what it found; on its next core, if it moves meanwhile.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub fn visit<T: Send + 'static>(
        &self,
        shard: usize,
        look: impl Fn(&Shard<PortQueue>, Moment) -> T + Send + Sync + 'static,
    ) -> Result<T, AskError> {
        let look = Arc::new(look);
        let mut asked = 0;
        for _ in 0..VISITS {
            // Nobody has to wait for the lock until the core answers: it is held only by a move, whose end is to be waited for here.
            asked = *self.places.lock().get(shard).ok_or(AskError::NoShard(shard))?;
            let (answer, found) = bounded(1);
            let look = Arc::clone(&look);
            let visit = move |shard: &Shard<PortQueue>, now| {
                let _ = answer.send(look(shard, now));
            };
            self.send(asked, Command::Visit(shard, Box::new(visit)));
            match found.recv_timeout(PATIENCE) {
                Ok(found) => return Ok(found),
                Err(RecvTimeoutError::Timeout) => break,
                // The core has the shard no more: it dropped the visit.
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
        Err(AskError::Silent(self.handles[asked].cpu))
    }

    /// Moves a shard to the core on `cpu` while it forwards; returns the CPU it was on.
    ///
    /// # Errors
    ///
    /// [`AskError`]; the shard stays where it is.
    pub fn move_shard(&self, shard: usize, cpu: usize) -> Result<usize, AskError> {
        let mut places = self.places.lock();
        let from = *places.get(shard).ok_or(AskError::NoShard(shard))?;
        let to = self.handles.iter().position(|handle| handle.cpu == cpu).ok_or(AskError::NoCore(cpu))?;
        let from_cpu = self.handles[from].cpu;
        if from == to {
            return Ok(from_cpu);
        }
        let (giver, taker) = giving();
        self.send(from, Command::TakeShard(shard, giver));
        let moving = taker.take(PATIENCE).ok_or(AskError::Silent(from_cpu))?;
        self.send(to, Command::AddShard(moving));
        places[shard] = to;
        Ok(from_cpu)
    }

    /// Ends all threads, shards and classifiers that have not been ended yet; the CPU of one that had panicked, if any.
    pub fn stop(&self) -> Option<usize> {
        let threads: Vec<_> = self.handles.iter().map(|handle| (handle, handle.thread.lock().take())).collect();
        for (handle, _) in threads.iter().filter(|(_, thread)| thread.is_some()) {
            // A core that has panicked does not hear it.
            let _ = handle.commands.send(Command::Stop);
            handle.bell.ring();
        }
        let mut panicked = None;
        for (handle, thread) in threads {
            if thread.is_some_and(|thread| thread.join().unwrap_or(true)) {
                panicked = Some(handle.cpu);
            }
        }
        panicked
    }

    fn send(&self, core: usize, command: Command<PortQueue>) {
        let handle = &self.handles[core];
        if handle.commands.send(command).is_err() {
            warn!(cpu = handle.cpu, "the core has ended");
        }
        handle.bell.ring();
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What one thread runs.
struct CoreThread {
    cpu: usize,
    idle: Idle,
    core: Core<PortQueue>,
    bell: Arc<Bell>,
    others: Vec<Arc<Bell>>,
    busy: Arc<AtomicU64>,
}

impl CoreThread {
    /// Turn by turn until a stop is ordered; shards and classifiers end with the thread.
    fn run(mut self) {
        if !core_affinity::set_for_current(CoreId { id: self.cpu }) {
            warn!(cpu = self.cpu, "cannot pin to this CPU; running unpinned");
        }
        // Without this the thread's buffers go past the pool's cache.
        let _registered = Eal::running().map(Eal::register_thread);
        let mut clock = Clock::start();
        let mut sockets = Sleep::new(&self.bell);
        let mut revision = u64::MAX;
        let (mut turns, mut worked, mut counted) = (0u64, 0u64, Moment(0));
        let mut idle = 0u32;
        loop {
            let now = clock.now();
            match self.core.turn(now) {
                Turn::Stopped => return,
                Turn::Worked(0) => idle = idle.saturating_add(1),
                Turn::Worked(_) => {
                    idle = 0;
                    worked += 1;
                    ring_sleepers(&self.others);
                }
            }
            turns += 1;
            if now.0 >= counted.0 + 1000 {
                self.busy.store(worked * 1000 / turns, Ordering::Relaxed);
                (turns, worked, counted) = (0, 0, now);
            }
            if self.core.revision() != revision {
                revision = self.core.revision();
                sockets = Sleep::new(&self.bell);
                self.core.queues().for_each(|queue| sockets.watch(queue));
                sockets.keep_time();
            }
            match self.idle {
                Idle::Spin => std::hint::spin_loop(),
                _ if idle < SPINS => std::hint::spin_loop(),
                Idle::Poll => {
                    if sockets.poll(&self.bell, idle, &mut self.core, &mut clock) == Turn::Stopped {
                        return;
                    }
                }
                Idle::Adaptive => sockets.nap(idle),
            }
        }
    }
}

/// How an idle core sleeps.
struct Sleep {
    sockets: PacketSockets,
    /// A queue that nothing can wait for has to be looked at often.
    must_look: bool,
    naps: Naps,
}

impl Sleep {
    fn new(bell: &Bell) -> Self {
        let mut sockets = PacketSockets::new();
        sockets.add_descriptor(Arc::clone(bell.event()));
        Self { sockets, must_look: false, naps: Naps::default() }
    }

    fn watch(&mut self, queue: &PortQueue) {
        self.must_look |= !queue.wait_on(&mut self.sockets);
        if let Some(lasts) = queue.lasts() {
            self.naps.watch(lasts);
        }
    }

    /// Where a NIC bounds the sleep, asks the kernel to end it in time: by default it may be 50 microseconds late.
    fn keep_time(&self) {
        if self.naps.bounded()
            && let Err(errno) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))
        {
            warn!(%errno, "an idle core may sleep longer than a NIC's receive queue lasts; use idle: spin");
        }
    }

    /// Sleeps until a packet or a bell, at most [`LONGEST_POLL`], or not at all where a NIC's queue would not last. How the turn before the sleep went is for the caller: a stop is
    /// ordered only once.
    fn poll(&mut self, bell: &Bell, idle: u32, core: &mut Core<PortQueue>, clock: &mut Clock) -> Turn {
        bell.fall_asleep();
        // Whoever put something into a ring before it could see that we sleep is heard by this one more turn.
        let turn = core.turn(clock.now());
        if turn == Turn::Worked(0) {
            let timeout = if self.must_look { self.naps.after(idle - SPINS).unwrap_or_default() } else { LONGEST_POLL };
            if let Err(errno) = self.sockets.wait(timeout) {
                warn!(%errno, "an idle core cannot wait for its ports");
            }
        } else {
            self.sockets.wait(Duration::ZERO).ok();
        }
        bell.wake();
        turn
    }

    /// Sleeps for longer and longer, as [`Naps`] has it.
    fn nap(&mut self, idle: u32) {
        match self.naps.after(idle - SPINS) {
            Some(nap) => std::thread::sleep(nap),
            None => std::hint::spin_loop(),
        }
    }
}

/// Milliseconds since the unit's start, read from the time-stamp counter.
#[derive(Debug)]
struct Clock {
    per_milli: u64,
    now: Moment,
    next: u64,
}

impl Clock {
    fn start() -> Self {
        let per_milli = (weir_cpu::tsc_hz() / 1000).max(1);
        let origin = *ORIGIN.get_or_init(weir_cpu::tsc);
        let elapsed = weir_cpu::tsc().saturating_sub(origin) / per_milli;
        Self { per_milli, now: Moment(elapsed), next: origin + (elapsed + 1) * per_milli }
    }

    #[inline]
    fn now(&mut self) -> Moment {
        let tsc = weir_cpu::tsc();
        if tsc >= self.next {
            let elapsed = (tsc - self.next) / self.per_milli + 1;
            self.now = Moment(self.now.0 + elapsed);
            self.next += elapsed * self.per_milli;
        }
        self.now
    }
}

/// Milliseconds since the unit's first core started.
#[must_use]
pub fn uptime() -> Moment {
    Clock::start().now
}

/// All cores count from one point, so that a shard's times keep their meaning when it moves.
static ORIGIN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();

/// Turns without work before a core begins to sleep.
const SPINS: u32 = 200;
/// Time has to go on for expiry, even without packets.
const LONGEST_POLL: Duration = Duration::from_millis(10);
/// Cores that are asked for a shard that moves.
const VISITS: usize = 4;
/// How long a core may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
