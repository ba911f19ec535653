//! What the processor and the kernel's memory offer beyond safe Rust, behind safe calls: the dataplane's only `unsafe` without DPDK.
//!
//! * [`prefetch_read`], [`prefetch_at`] and their `write` twins hide memory latency: a burst's buckets are asked for before the
//!   first of them is needed. They are hints; none of them can fault.
//! * [`crc32c_u64`] is the hash step of the route table: one instruction where the CPU has it, the same result where not.
//! * [`Clmul`] multiplies without carries, which is how the owner of a flow is computed.
//! * [`tsc`], [`tsc_hz`] and [`thread_cpu_time`] are the clocks that cost nothing, or count only a thread's own work.
//! * [`HugeSlice`] is memory for tables of gigabytes: zeroed, 2 MiB-aligned, on huge pages where the machine has them.

#![allow(
    unsafe_code,
    reason = "this crate is where intrinsics and mmap are made safe; each use carries its SAFETY note"
)]

mod clmul;
mod clock;
mod crc;
mod huge;
mod prefetch;

pub use clmul::Clmul;
pub use clock::{thread_cpu_time, tsc, tsc_hz};
pub use crc::crc32c_u64;
pub use huge::{Huge, HugeSlice, MapError};
pub use prefetch::{prefetch_at, prefetch_read, prefetch_write, prefetch_write_at};
/// The traits that say which types may start as zero bytes; derive them with `#[zerocopy(crate = "weir_cpu::zerocopy")]`.
pub use zerocopy;
