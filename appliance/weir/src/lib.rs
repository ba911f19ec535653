//! The program `weir`: one unit, in which the dataplane, the control plane and DPDK are bound together.
//!
//! [`unit`] starts it: ports from DPDK, shards and classifiers on pinned cores ([`core_thread`]), and a Tokio runtime that mirrors the
//! kernel's neighbours and routes, probes endpoints and answers `weirctl` ([`control`]). What the control plane knows is a
//! [`knowledge::Knowledge`]; whenever that changes, a new farm and new standings are made of it and replace the old ones as a whole. Routes
//! and neighbours alone are changed in place ([`routing`]).
//! [`replay`] runs the same forwarder and classifier over capture files, without any of the rest.

#![forbid(unsafe_code)]

pub mod agents;
pub mod allotments;
pub mod api;
pub mod control;
pub mod core_thread;
pub mod knowledge;
pub mod links;
pub mod naps;
pub mod populate;
pub mod ports;
pub mod replay;
pub mod retired;
pub mod routes;
pub mod routing;
pub mod steering;
pub mod twin;
pub mod twin_peers;
pub mod unit;
pub mod unit_secret;
