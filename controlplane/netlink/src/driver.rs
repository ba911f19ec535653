//! The mirror's driver: owns the netlink sockets and the clock, feeds the tables, publishes snapshots.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use weir_identity::Moment;

use crate::resolve::{How, Request, Resolver};
use crate::state::{Mirror, Snapshot, Tables};
use crate::wire::{self, Said, Table};

/// What to mirror and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names of the interfaces; they may appear, disappear and appear again.
    pub interfaces: BTreeSet<String>,
    /// Buffer for what the kernel announces, bytes; more bridges longer bursts. The kernel caps it at `net.core.rmem_max`.
    pub receive_buffer: usize,
    /// Least time between two snapshots.
    pub coalesce: Duration,
    /// Let the kernel itself keep neighbours resolved; tried, and given up where the kernel is older than Linux 5.16.
    pub managed: bool,
}

impl Options {
    /// The defaults for these interfaces: 1 MiB of buffer, a snapshot at most every 10 ms, managed neighbours.
    #[must_use]
    pub fn new<I: Into<String>>(interfaces: impl IntoIterator<Item = I>) -> Options {
        Options {
            interfaces: interfaces.into_iter().map(Into::into).collect(),
            receive_buffer: 1 << 20,
            coalesce: Duration::from_millis(10),
            managed: true,
        }
    }
}

/// A running mirror of the network namespace it was started in. Dropping it ends it.
#[derive(Debug)]
pub struct KernelMirror {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    wishes: mpsc::UnboundedSender<Wish>,
    /// Written by the driver's task, read by anybody.
    dumps: Arc<AtomicU64>,
}

impl KernelMirror {
    /// Reads the kernel's tables and follows them from then on, on the current Tokio runtime.
    ///
    /// # Errors
    /// When the sockets cannot be opened or the first dump fails.
    pub async fn start(options: Options) -> Result<KernelMirror, MirrorError> {
        let dumps = Arc::new(AtomicU64::new(0));
        let (wishes, wish_queue) = mpsc::unbounded_channel();
        let mut sockets = Sockets::open(options.receive_buffer)?;
        let mut mirror = Mirror::new(options.interfaces);
        mirror.replace(sockets.dump(&ALL_TABLES).await?);
        dumps.fetch_add(1, Ordering::Relaxed);
        let mut resolver = Resolver::default();
        if !options.managed {
            resolver.without_managed();
        }
        let (publisher, snapshots) = watch::channel(Arc::new(mirror.snapshot()));
        let driver = Driver {
            mirror,
            resolver,
            publisher,
            coalesce: options.coalesce,
            receive_buffer: options.receive_buffer,
            dumps: Arc::clone(&dumps),
            clock: Clock::new(),
            unpublished: false,
            routes_stale: false,
            not_before: Moment::default(),
        };
        tokio::spawn(driver.run(sockets, wish_queue));
        Ok(KernelMirror { snapshots, wishes, dumps })
    }

    /// The current snapshot and, by `changed()`, all that follow.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Makes the kernel resolve `address` on `interface` and keep it resolved; idempotent. It shows in a later snapshot.
    pub fn ask(&self, interface: &str, address: IpAddr) {
        self.wish(Wish { interface: interface.to_owned(), address, wanted: true });
    }

    /// Takes [`KernelMirror::ask`] back.
    pub fn forget(&self, interface: &str, address: IpAddr) {
        self.wish(Wish { interface: interface.to_owned(), address, wanted: false });
    }

    /// Full dumps so far: 1, and one more for each time the kernel dropped messages or a socket failed.
    #[must_use]
    pub fn dumps(&self) -> u64 {
        self.dumps.load(Ordering::Relaxed)
    }

    fn wish(&self, wish: Wish) {
        // The driver ends only with its runtime; then nobody resolves anything any more.
        if self.wishes.send(wish).is_err() {
            tracing::warn!("the mirror of the kernel's tables has ended");
        }
    }
}

/// Why the kernel's tables cannot be read.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The request could not be sent, or the answer not received.
    #[error("cannot read the kernel's {table:?}")]
    Dump {
        /// What was asked for.
        table: Table,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel's table changed under each of several dumps.
    #[error("the kernel's {table:?} change faster than they can be read")]
    Unsteady {
        /// What was asked for.
        table: Table,
    },
}

/// A change of what is to be kept resolved.
#[derive(Debug)]
struct Wish {
    interface: String,
    address: IpAddr,
    wanted: bool,
}

/// The task's state.
struct Driver {
    mirror: Mirror,
    resolver: Resolver,
    publisher: watch::Sender<Arc<Snapshot>>,
    coalesce: Duration,
    receive_buffer: usize,
    dumps: Arc<AtomicU64>,
    clock: Clock,
    /// The mirror differs from the last snapshot.
    unpublished: bool,
    /// The kernel may have changed routes silently.
    routes_stale: bool,
    /// When the next snapshot may be published.
    not_before: Moment,
}

impl Driver {
    /// Until the handle is dropped. A socket that fails is replaced.
    async fn run(mut self, mut sockets: Sockets, mut wishes: mpsc::UnboundedReceiver<Wish>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = self.clock.now();
            match self.follow(&mut sockets, &mut wishes).await {
                Ended::Dropped => return,
                Ended::Lost(error) => {
                    tracing::warn!(%error, "announcements of the kernel were lost: reading everything again");
                }
            }
            // A storm of changes loses messages again and again: dump ever more rarely, so that it costs no core.
            let calm = self.clock.now().since(began) > CALM;
            pause = if calm { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
            loop {
                sleep(pause).await;
                if wishes.is_closed() {
                    return;
                }
                match self.start_over().await {
                    Ok(fresh) => {
                        sockets = fresh;
                        break;
                    }
                    Err(error) => tracing::error!(%error, "the kernel's tables cannot be read; trying again"),
                }
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }

    /// New sockets (the old ones hold an unknown part of the past) and a full dump.
    async fn start_over(&mut self) -> Result<Sockets, MirrorError> {
        let mut sockets = Sockets::open(self.receive_buffer)?;
        let tables = sockets.dump(&ALL_TABLES).await?;
        self.unpublished |= self.mirror.replace(tables);
        self.routes_stale = false;
        self.dumps.fetch_add(1, Ordering::Relaxed);
        Ok(sockets)
    }

    async fn follow(&mut self, sockets: &mut Sockets, wishes: &mut mpsc::UnboundedReceiver<Wish>) -> Ended {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Here and not in a branch of the select: a stream of announcements would never let a timer of no length win.
            let wait = self.not_before.since(self.clock.now());
            let pending = self.unpublished || self.routes_stale;
            if pending && wait.is_zero() {
                if let Err(error) = self.publish(sockets).await {
                    return Ended::Lost(io::Error::other(error));
                }
                // A neighbour we need may have been flushed, or its link is back: not only at the next tick.
                if let Err(error) = self.resolve(sockets).await {
                    return Ended::Lost(error);
                }
                continue;
            }
            tokio::select! {
                datagram = sockets.events.recv_from_full() => match datagram {
                    Ok((datagram, _)) => {
                        for said in wire::read(&datagram) {
                            match said {
                                Said::Event { event, .. } => {
                                    let applied = self.mirror.apply(event);
                                    self.unpublished |= applied.changed;
                                    self.routes_stale |= applied.routes_stale;
                                }
                                Said::Overrun => return Ended::Lost(io::Error::other("NLMSG_OVERRUN")),
                                Said::Done { .. } | Said::Refused { .. } | Said::Other => {}
                            }
                        }
                    }
                    Err(error) => return Ended::Lost(error),
                },
                wish = wishes.recv() => {
                    let Some(first) = wish else { return Ended::Dropped };
                    self.take(first);
                    while let Ok(wish) = wishes.try_recv() {
                        self.take(wish);
                    }
                    if let Err(error) = self.resolve(sockets).await {
                        return Ended::Lost(error);
                    }
                }
                _ = tick.tick() => if let Err(error) = self.resolve(sockets).await {
                    return Ended::Lost(error);
                },
                () = sleep(wait), if pending => {}
            }
        }
    }

    fn take(&mut self, wish: Wish) {
        if wish.wanted {
            self.resolver.ask(wish.interface, wish.address);
        } else {
            self.resolver.forget(&wish.interface, wish.address);
        }
    }

    /// Publishes what has changed. A large table takes long to read and copy: then snapshots become rarer, so that this takes
    /// at most a tenth of the time.
    async fn publish(&mut self, sockets: &mut Sockets) -> Result<(), MirrorError> {
        let began = self.clock.now();
        if std::mem::take(&mut self.routes_stale) {
            let tables = sockets.dump(&ROUTE_TABLES).await?;
            self.unpublished |= self.mirror.replace_routes(tables);
        }
        if std::mem::take(&mut self.unpublished) {
            self.publisher.send_replace(Arc::new(self.mirror.snapshot()));
        }
        let now = self.clock.now();
        self.not_before = now.after(self.coalesce.max(now.since(began) * 10));
        Ok(())
    }

    /// Asks the kernel for the neighbours that are due.
    async fn resolve(&mut self, sockets: &mut Sockets) -> io::Result<()> {
        for request in self.resolver.due(self.clock.now(), &self.mirror) {
            let Some(errno) = sockets.resolve(&request).await? else { continue };
            let error = io::Error::from_raw_os_error(errno);
            if request.how == How::Managed && [libc_errno::EINVAL, libc_errno::EOPNOTSUPP].contains(&errno) {
                tracing::info!(%error, "the kernel knows no managed neighbours: refreshing them by use");
                self.resolver.without_managed();
                return Ok(());
            }
            tracing::debug!(address = %request.address, interface = request.interface, %error, "a neighbour is refused");
        }
        Ok(())
    }
}

/// Why following ended.
enum Ended {
    /// The handle is gone.
    Dropped,
    /// Something was missed.
    Lost(io::Error),
}

/// Two sockets: announcements must not mix with the answers to our questions.
struct Sockets {
    events: TokioSocket,
    requests: TokioSocket,
    sequence: u32,
}

impl Sockets {
    fn open(receive_buffer: usize) -> Result<Sockets, MirrorError> {
        let open = || -> io::Result<Sockets> {
            let mut events = TokioSocket::new(NETLINK_ROUTE)?;
            events.socket_ref().set_rx_buf_sz(i32::try_from(receive_buffer).unwrap_or(i32::MAX))?;
            let groups = GROUPS.iter().fold(0, |set, group| set | 1 << (group - 1));
            events.socket_mut().bind(&SocketAddr::new(0, groups))?;
            let mut requests = TokioSocket::new(NETLINK_ROUTE)?;
            requests.socket_mut().bind_auto()?;
            Ok(Sockets { events, requests, sequence: 0 })
        };
        open().map_err(MirrorError::Open)
    }

    /// Reads whole tables, one after another.
    async fn dump(&mut self, which: &[Table]) -> Result<Tables, MirrorError> {
        let mut tables = Tables::default();
        for &table in which {
            let mut attempts = 0;
            loop {
                let mut attempt = tables.clone();
                let complete = timeout(ANSWER, self.dump_one(table, &mut attempt))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(|source| MirrorError::Dump { table, source })?;
                attempts += 1;
                if complete {
                    tables = attempt;
                    break;
                }
                if attempts == DUMP_ATTEMPTS {
                    return Err(MirrorError::Unsteady { table });
                }
            }
        }
        Ok(tables)
    }

    /// Whether the dump is consistent.
    async fn dump_one(&mut self, table: Table, into: &mut Tables) -> io::Result<bool> {
        let ours = self.send(|sequence| wire::dump_request(table, sequence)).await?;
        let mut consistent = true;
        loop {
            let (datagram, _) = self.requests.recv_from_full().await?;
            for said in wire::read(&datagram) {
                match said {
                    Said::Event { event, interrupted } => {
                        consistent &= !interrupted;
                        into.apply(event);
                    }
                    Said::Done { sequence, interrupted } if sequence == ours => return Ok(consistent && !interrupted),
                    Said::Refused { sequence, errno } if sequence == ours => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    Said::Overrun => return Err(io::Error::other("NLMSG_OVERRUN")),
                    Said::Done { .. } | Said::Refused { .. } | Said::Other => {}
                }
            }
        }
    }

    /// Asks for one neighbour; the kernel's error number if it refuses.
    async fn resolve(&mut self, request: &Request) -> io::Result<Option<i32>> {
        let ours = self.send(|sequence| wire::resolve_request(request, sequence)).await?;
        loop {
            let (datagram, _) = timeout(ANSWER, self.requests.recv_from_full()).await??;
            for said in wire::read(&datagram) {
                match said {
                    Said::Done { sequence, .. } if sequence == ours => return Ok(None),
                    Said::Refused { sequence, errno } if sequence == ours => return Ok(Some(errno)),
                    _ => {}
                }
            }
        }
    }

    async fn send(&mut self, build: impl FnOnce(u32) -> Vec<u8>) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        self.requests.send_to(&build(self.sequence), &SocketAddr::new(0, 0)).await?;
        Ok(self.sequence)
    }
}

/// The mirror's own time.
struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "a driver reads the clock")]
    fn new() -> Clock {
        Clock(Instant::now())
    }

    fn now(&self) -> Moment {
        Moment::default().after(self.0.elapsed())
    }
}

/// Error numbers that mean "I do not know such a request".
mod libc_errno {
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EOPNOTSUPP: i32 = 95;
}

/// `RTNLGRP_` LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// Links first: the rest is told by their indices.
const ALL_TABLES: [Table; 6] = [
    Table::Links,
    Table::Addresses,
    Table::NeighboursIpv4,
    Table::NeighboursIpv6,
    Table::RoutesIpv4,
    Table::RoutesIpv6,
];
const ROUTE_TABLES: [Table; 2] = [Table::RoutesIpv4, Table::RoutesIpv6];
/// A dump during which the table changed is repeated so many times.
const DUMP_ATTEMPTS: u32 = 10;
/// The kernel answers within microseconds; a full table of a million routes takes about a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How often wanted neighbours are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Before the first dump after a loss: the burst that caused it should be over.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Before each further one at most.
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// So long without a loss, and the next one counts as the first.
const CALM: Duration = Duration::from_secs(5);
