//! Measures what a burst costs over a ring port: send and receive, with the packets touched or not.
//!
//! `cargo run --release -p weir-dpdk --example loopback`

#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::black_box;

use arrayvec::ArrayVec;
use rustix::time::{ClockId, clock_gettime};
use weir_dpdk::{Eal, EalOptions, IdlePort, Mbuf, MemoryMode, Mempool, PoolConfig, PortConfig, free_burst};

const BURST: usize = 32;
const ROUNDS: u32 = 2_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let memory = if std::env::args().any(|word| word == "--huge") {
        MemoryMode::Huge { in_memory: true }
    } else {
        MemoryMode::NoHuge { mib: 64 }
    };
    let eal = Eal::init(&EalOptions { memory, ..EalOptions::default() })?;
    let pool = Mempool::new(eal, "loopback", PoolConfig::default())?;
    let mut started = IdlePort::ring_loop(eal, "loopback", 1, 1024)?.start(&PortConfig::default(), pool)?;
    let (rx, tx) = (&mut started.rx[0], &mut started.tx[0]);
    let mut burst = ArrayVec::<Mbuf, BURST>::new();

    // 16 bursts are on the way at any time, so that the packets are not always the same.
    for _ in 0..16 {
        pool.alloc_burst(&mut burst, BURST);
        for packet in &mut burst {
            packet.resize(64);
        }
        tx.send(&mut burst);
    }
    measure("send + receive", || {
        rx.receive(&mut burst);
        tx.send(&mut burst);
    });
    measure("send + receive, one byte of each packet rewritten", || {
        rx.receive(&mut burst);
        for packet in &mut burst {
            if let Some(byte) = packet.data_mut().get_mut(30) {
                *byte = byte.wrapping_add(1);
            }
        }
        tx.send(&mut burst);
    });
    measure("allocate + free", || {
        pool.alloc_burst(&mut burst, BURST);
        free_burst(&mut burst);
    });
    drop(started);
    println!("buffers still in use: {}", pool.in_use());
    Ok(())
}

/// Runs `round` and prints its time in this thread's own CPU time: the best of three.
fn measure(what: &str, mut round: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = cpu_seconds();
        for _ in 0..ROUNDS {
            round();
            black_box(());
        }
        best = best.min(cpu_seconds() - start);
    }
    let per_burst = best * 1e9 / f64::from(ROUNDS);
    println!("{what}: {per_burst:.1} ns a burst of {BURST}, {:.0} Mpps", BURST as f64 * 1e3 / per_burst);
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
