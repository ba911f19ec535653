//! What the benches need of DPDK: its start, with huge pages if any are reserved, buffers, and ports that are rings in a loop.

use weir::ports::PortQueue;
use weir_dpdk::{Device, Eal, EalOptions, IdlePort, MemoryMode, Mempool, PoolConfig, PortConfig};

/// Starts DPDK for these CPUs, with so many buffers.
pub(crate) fn start(program: &str, cpus: &[usize], mbufs: u32) -> Result<(Eal, Mempool), Box<dyn std::error::Error>> {
    let huge = MemoryMode::Huge { in_memory: true };
    let eal = Eal::init(&EalOptions {
        program: program.to_owned(),
        memory: if weir_dpdk::reserved_hugepages() > 0 { huge } else { MemoryMode::NoHuge { mib: 128 } },
        cpus: cpus.to_vec(),
        ..EalOptions::default()
    })?;
    Ok((eal, Mempool::new(eal, "bench", PoolConfig { mbufs, cache: 256, data_room: 2048 })?))
}

/// A port that receives what it sends.
pub(crate) fn ring(eal: Eal, pool: Mempool, name: &str) -> Result<PortQueue, Box<dyn std::error::Error>> {
    let started = IdlePort::ring_loop(eal, name, 1, 2048)?.start(&PortConfig::default(), pool)?;
    let queue = started.rx.into_iter().zip(started.tx).next().map(|(rx, tx)| PortQueue::new(rx, tx, pool));
    Ok(queue.ok_or("no queue")?)
}

/// A port whose other end is the kernel's interface of this name.
pub(crate) fn tap(eal: Eal, pool: Mempool, name: &str) -> Result<PortQueue, Box<dyn std::error::Error>> {
    let vdevs = Device::Tap(name.to_owned()).vdevs(0, 1, 1500)?;
    let vdev = vdevs.first().ok_or("no device")?;
    eal.add_vdev(vdev)?;
    let started = IdlePort::by_name(eal, &vdev.name)?.start(&PortConfig::default(), pool)?;
    let queue = started.rx.into_iter().zip(started.tx).next().map(|(rx, tx)| PortQueue::new(rx, tx, pool));
    Ok(queue.ok_or("no queue")?)
}
