//! Safe DPDK: one EAL a process, packet pools, owned buffers, bursts that never lose a packet, and ports whose queues are values.
//!
//! ```text
//! Eal ── add_vdev ──> IdlePort ── start(config, pool) ──> Port + Vec<RxQueue> + Vec<TxQueue>
//!  └──── Mempool ──────────────────────────────────────┘        receive ─> ArrayVec<T: From<Mbuf>> ─> send
//! ```
//!
//! * **Ownership.** An [`Mbuf`] is freed to its own pool when it is dropped. [`TxQueue::send`] takes the accepted prefix out of the
//!   burst; the rest *stays in it*: no double free, no leak, no spinning. A [`RxQueue`] or [`TxQueue`] is a `Send` value that exists
//!   once: a queue moves to another core by moving the value. The port closes when it and all of its queues are gone.
//! * **Cost.** One C call a burst; packets are read through `rte_mbuf`'s fields in Rust. `receive` and `send` are generic over the
//!   element, so that another crate can carry its own `#[repr(transparent)]` newtype without a conversion at run time, and without
//!   unsafe code.
//! * **Lifetime.** EAL and the pools last as long as the process ([`Eal`], [`Mempool`] are copyable handles): a buffer may outlive
//!   everything else. A thread that sends and receives says so once with [`Eal::register_thread`], or every buffer it takes and
//!   gives goes past the pool's cache.
//! * **No privileges assumed.** Without hugepages ([`MemoryMode::NoHuge`]) and without PCI devices all works, on virtual devices.

#![allow(unsafe_code, reason = "this crate is where DPDK is made safe; each use carries its SAFETY note")]

mod bring_up;
mod device;
mod eal;
mod errno;
mod filters;
mod live;
mod log;
mod mbuf;
mod mempool;
mod port;
mod queue;
mod ring;
mod rss;
mod sockets;
mod testing;
mod values;

pub use device::{Device, DeviceError, Vdev};
pub use eal::{Eal, EalError, EalOptions, LogLevel, MemoryMode, RegisteredThread, reserved_hugepages};
pub use errno::Errno;
pub use filters::FlowControl;
pub use mbuf::{Checksum, Mbuf, free_burst};
pub use mempool::{Mempool, PoolConfig, PoolError};
pub use port::{IdlePort, Link, Port, PortConfig, PortError, PortInfo, Started, Statistics};
pub use queue::{RxQueue, TxQueue};
pub use ring::RingError;
pub use rss::{RSS_BUCKETS, Rss, RssShortfall, RssSide, RssState};
pub use sockets::PacketSockets;
pub use testing::test_eal;
