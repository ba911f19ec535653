//! A mirror of what the kernel knows about the unit's links: their neighbours, routes, addresses, MACs and MTUs.
//!
//! The dataplane resolves no address and speaks no routing protocol; it takes what the kernel (ARP, ND, BIRD through the
//! kernel's table) has found out. [`state`] holds the tables and has no I/O; [`wire`] turns netlink messages (RFC 3549) into its
//! events; [`resolve`] decides which neighbours the kernel must be asked to keep resolved; [`driver`] owns the sockets: it reads
//! everything once, follows the multicast groups, reads everything again when the kernel had to drop messages, and publishes a
//! [`Snapshot`] at most every [`Options::coalesce`].
//!
//! Two traits of the kernel shape this: it does not announce IPv4 routes that disappear with a link or an address, so those
//! changes make the mirror read the routes again; and it expires neighbours nobody uses, and our packets do not count as
//! use, so those we need are installed as managed entries.

#![forbid(unsafe_code)]

pub mod driver;
pub mod resolve;
pub mod state;
pub mod wire;

pub use driver::{KernelMirror, MirrorError, Options};
pub use state::{Address, Gateway, Link, Neighbour, NeighbourState, Prefix, Route, RouteKind, Snapshot};
