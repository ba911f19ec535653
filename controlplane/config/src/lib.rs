//! YAML in, a validated [`Config`] or every problem at once out.

#![forbid(unsafe_code)]

mod report;
mod types;

pub use report::Report;
pub use types::{
    Admin, Config, Dataplane, Device, DirectiveState, Endpoint, Host, Idle, Mode, Neighbour, NoEndpoint, Pool, Port,
    Ports, Probe, ProbeKind, Protocol, Route, Select, Service, Take, Timeouts, Unit,
};
