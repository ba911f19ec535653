//! The admin API: what `weirctl` asks a unit over a Unix socket, as HTTP with JSON bodies.
//!
//! [`api`] has the words of the conversation and the trait [`UnitApi`] that the unit implements; [`server`] answers by it,
//! [`client`] asks. Whoever can open the socket may administer the unit, so the socket's permissions are the access control.

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod server;

pub use api::*;
pub use client::{Client, ClientError, Reply};
pub use server::{AdminSocket, ServeError, serve};
