//! Health, load and the allotments made from them, sans-IO: who may get a connection, and whose turn it is.
//!
//! An endpoint's [`Standing`] is what a unit knows of it: the operator's directive, its health, its capacity. A [`Handler`] turns the
//! standings of a service into an [`Allotment`]: tokens for the endpoints along their capacities, or percentages with a lifetime. A
//! classifier spends the allotment connection by connection through the [`Allotments`] seam, and never waits for the handler while it
//! has something to spend. [`LocalAllotments`] binds both within one classifier; a handler elsewhere answers through the same seam
//! with `Poll::Pending` and [`Allotments::poll_answer`]. Health itself is decided by [`ProbeState`] from what a probe saw.

#![forbid(unsafe_code)]

mod allotment;
mod handler;
mod local;
mod maglev;
mod percentages;
mod probe;
mod standing;
mod tokens;

pub use allotment::{Allotments, Request};
pub use handler::{Allotment, Demand, Handler, Share};
pub use local::LocalAllotments;
pub use maglev::Maglev;
pub use probe::{ProbeState, ProbeStateError};
pub use standing::{Directive, Health, Policy, Select, ServiceStanding, Standing, Take, stable_name};
