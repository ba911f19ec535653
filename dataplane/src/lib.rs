//! Everything that touches a packet: wire formats, route table, forwarder, classifier, shards and cores.
//!
//! The component that decides is not the component that forwards. A [`shard::Shard`] owns one route table and its queues; it
//! takes a burst, parses and checks every packet, hashes and prefetches every key, looks all of them up, rewrites, sends. A packet
//! without a route goes over a ring to the [`classifier::Classifier`] that owns its flow; the classifier decides once, and the
//! packet comes back *with its route*, so that installing and forwarding are one step. From then on the connection bypasses it.
//!
//! A shard is an owned value with a single writer: no lock and no atomic on its path. What all of them read — services,
//! endpoints — is one immutable [`farm::Farm`] that the control plane replaces as a whole; routes and neighbours are in the
//! [`fib::Fib`], which it changes in place.
//!
//! This crate knows no DPDK, no Tokio and no clock: buffers and queues are the small traits in [`packet`], time is an argument.
//! Tests and `weir replay` run the same code over heap buffers.

#![forbid(unsafe_code)]

pub mod classifier;
pub mod core;
pub mod counters;
pub mod farm;
pub mod fib;
pub mod flow;
pub mod forwarder;
pub mod fragments;
pub mod icmp_error;
pub mod packet;
pub mod parse;
mod plain4;
pub mod plumbing;
pub mod populate;
pub mod rate_limit;
pub mod remote;
pub mod responder;
pub mod rewrite;
pub mod route_table;
pub mod shard;
pub mod shared_rate;
mod sweep;
pub mod translation;
pub mod tunneler;
pub mod twin_class;
pub mod wire;
