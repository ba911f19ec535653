//! The health & load protocol over QUIC with mutual TLS: the drivers of both ends.
//!
//! An [`Agent`] speaks for a host (or, as a proxy, for several) to two of the units it knows; a [`Listener`] keeps a unit's
//! consolidated cache. What a node may say is in its certificate: a DNS name `7.host.weir` for each host, `1.unit.weir` for a unit.
//! Heartbeats go in datagrams, everything else over one ordered stream each way; each message on it has its length in front of it. The
//! protocol's name (ALPN) is `weir-health/1`. A connection over which nothing comes for a second is down. Connection ids and reset tokens
//! are made from the node's key, so that a node that was killed and started again is noticed with the next packet.
//!
//! A node follows its files: a renewed certificate is shown with the next connection, and a peer whose certificate is revoked loses
//! its connection within a second.

#![forbid(unsafe_code)]

mod agent;
mod checks;
mod clock;
mod http;
mod keys;
mod link;
mod listener;
mod renewal;

pub use agent::{Agent, AgentError};
pub use checks::Checks;
pub use clock::new_life;
pub use http::Pages;
pub use keys::{Keys, KeysError, Names, host_name, names, unit_name};
pub use listener::{Cache, ListenError, ListenSettings, Listener};
