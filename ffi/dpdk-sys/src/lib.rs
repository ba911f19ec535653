//! Raw bindings to DPDK 22.11 or later, as bindgen reads its headers, plus a small C shim for what DPDK has only as inlines.
//!
//! Per-packet work reads `rte_mbuf`'s fields from Rust; C is called once a burst (`shim_rx_burst`, `shim_tx_burst`). Only what
//! `weir-dpdk` needs is bound. DPDK's own manual is the documentation of all names here.

#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unnecessary_transmutes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "generated code, in C's names and habits"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
