//! Sessions and their atoms, sans-IO: what brings a packet or a client back to the host that knows it.
//!
//! A session is anything that should come back to the same host: a TCP connection, a client address, a cookie. It is named by a
//! [`SessionKey`] and bound to an endpoint by a [`Binding`], which holds all that a forwarder needs to carry on. Key, binding and
//! [`Version`] make an [`Atom`]: a register without owner or lock whose last version wins, so that replicas converge in whatever
//! order they hear of it ([`Atom::merge`]). A deleted atom stays as a zombie for the protocol's dead time. A classifier sees the
//! sessions through the [`SessionLookup`] seam: [`LocalSessions`], the part a unit keeps itself, answers at once; where sessions are
//! spread over units, an answer may come later. [`UnknownLimit`] bounds what segments of unknown connections may ask.

#![forbid(unsafe_code)]

mod atom;
mod key;
mod local;
mod lookup;
mod message;
mod unknown;

pub use atom::{Atom, Author, Binding, Endpoint, Version};
pub use key::{KeyTooLong, SessionKey, SessionKind};
pub use local::{Limits, LocalSessions};
pub use lookup::{Entry, Full, SessionLookup};
pub use message::{Envelope, Message, PROTOCOL};
pub use unknown::{Allowance, UnknownLimit};
