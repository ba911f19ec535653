//! Health, load and the allotments made from them, sans-IO: who may get a connection, and whose turn it is.
//!
//! An endpoint's [`Standing`] is what a unit knows of it: the operator's directive, its health, its capacity. A [`Handler`] turns the
//! standings of a service into an [`Allotment`]: tokens for the endpoints along their capacities, or percentages with a lifetime. A
//! classifier spends the allotment connection by connection through the [`Allotments`] seam, and never waits for the handler while it
//! has something to spend. [`LocalAllotments`] binds both, with a handler of one classifier's own or one that a unit's classifiers share; a
//! handler elsewhere answers through the same seam with `Poll::Pending` and [`Allotments::poll_answer`]. What a host says of its load is
//! [`Smoothed`], and what it cannot show yet is taken off by the handler. Health itself is decided by [`ProbeState`] from what a probe saw.

#![forbid(unsafe_code)]

mod allotment;
mod demand;
mod desk;
mod expected;
mod handler;
mod least_connection;
mod local;
mod maglev;
mod percentages;
mod prepared;
mod probe;
mod smoothed;
mod standing;
mod stock;
mod tokens;

pub use allotment::{Allotments, Request};
pub use desk::SharedHandler;
pub use handler::{Allotment, Demand, Handler, Share};
pub use local::LocalAllotments;
pub use maglev::Maglev;
pub use prepared::Prepared;
pub use probe::{ProbeState, ProbeStateError};
pub use smoothed::Smoothed;
pub use standing::{Directive, Health, Policy, Select, ServiceStanding, Standing, Take, stable_name};
