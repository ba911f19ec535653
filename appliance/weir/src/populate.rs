//! Taking the tables' memory before the unit forwards: on the CPUs that will use it, all at once, with its progress in the log.
//!
//! Memory comes from the NUMA node of the CPU that first touches it, so each shard's and each classifier's is touched on the CPU that it
//! will run on. That is also as fast as the machine can zero it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use crossbeam::channel::{RecvTimeoutError, bounded};
use tracing::{info, warn};
use weir_config::Dataplane;
use weir_cpu::MapError;
use weir_dataplane::core::ClassifierSeat;
use weir_dataplane::packet::Queue;
use weir_dataplane::populate::Populate;
use weir_dataplane::shard::Shard;

use crate::unit::AssemblyError;

/// Takes the memory of all shards' and classifiers' tables, if the YAML wants that.
///
/// # Errors
///
/// [`AssemblyError::Memory`] with the table that there is not enough for.
#[expect(clippy::disallowed_methods, reason = "the start's own duration, for the log")]
pub fn tables<Q: Queue + Send>(
    settings: &Dataplane,
    shards: &mut [Shard<Q>],
    seats: &mut [ClassifierSeat<Q::Packet>],
) -> Result<(), AssemblyError>
where
    Q::Packet: Send,
{
    if !settings.populate {
        return Ok(());
    }
    let routes = |shard: &Shard<Q>| {
        let (routes, full_nat) = shard.forwarder().bytes();
        routes + full_nat
    };
    let all =
        shards.iter().map(routes).sum::<usize>() + seats.iter().map(|seat| seat.classifier().bytes()).sum::<usize>();
    let started = Instant::now();
    let so_far = AtomicUsize::new(0);
    let done = |bytes| {
        so_far.fetch_add(bytes, Ordering::Relaxed);
    };
    let populate = Populate::new(settings.hugepages, &done);
    let mut by_cpu: BTreeMap<usize, Residents<'_, Q>> = BTreeMap::new();
    for shard in shards {
        by_cpu.entry(settings.cpus[shard.number() % settings.cpus.len()]).or_default().0.push(shard);
    }
    for seat in seats {
        let cpu = settings.classifier_cpus[seat.number() % settings.classifier_cpus.len()];
        by_cpu.entry(cpu).or_default().1.push(seat);
    }
    let taken = std::thread::scope(|scope| {
        // Closed once the last thread has ended.
        let (running, ended) = bounded::<()>(0);
        let threads: Vec<_> = by_cpu
            .into_iter()
            .map(|(cpu, (shards, seats))| {
                let (populate, running) = (&populate, running.clone());
                scope.spawn(move || {
                    let _running = running;
                    on_cpu(cpu, shards, seats, populate)
                })
            })
            .collect();
        drop(running);
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            info!("{} of {} GiB of the tables' memory taken", gib(so_far.load(Ordering::Relaxed)), gib(all));
        }
        let failed = |_| AssemblyError::PopulatePanicked;
        threads.into_iter().try_for_each(|thread| thread.join().map_err(failed)?)
    });
    taken?;
    info!("{} GiB of the tables' memory taken in {:.1} s", gib(so_far.into_inner()), started.elapsed().as_secs_f32());
    Ok(())
}

/// What will run on one CPU.
type Residents<'a, Q> = (Vec<&'a mut Shard<Q>>, Vec<&'a mut ClassifierSeat<<Q as Queue>::Packet>>);

/// What one CPU takes for what will run on it.
fn on_cpu<Q: Queue>(
    cpu: usize,
    shards: Vec<&mut Shard<Q>>,
    seats: Vec<&mut ClassifierSeat<Q::Packet>>,
    populate: &Populate,
) -> Result<(), AssemblyError> {
    if !core_affinity::set_for_current(CoreId { id: cpu }) {
        warn!(cpu, "cannot take memory on this CPU, which may be far from what another one takes");
    }
    let short = |table: String| |source: MapError| AssemblyError::Memory { table, source };
    for shard in shards {
        shard.populate(populate).map_err(short(format!("route table of shard {}", shard.number())))?;
    }
    for seat in seats {
        seat.populate(populate).map_err(short(format!("inventory of classifier {}", seat.number())))?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn gib(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

/// How often the log is told.
const EVERY: Duration = Duration::from_secs(2);
