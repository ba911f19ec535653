//! The wire formats: checked views over bytes and high-level representations, the reference model of what a packet is.
//!
//! Every format has the same shape. `Packet<T>` is a view over bytes; `new_checked` proves that the header is whole and that
//! its lengths agree with the buffer, after which the getters read fields at fixed places. `Repr` is the header as a value:
//! `parse` reads it from a view, `len` is its size in bytes, `emit` writes it. Nothing here panics or allocates, on any
//! input: bytes that a later setter has put out of reach read as zero or as an empty slice. Multi-byte fields are big endian
//! on the wire and native in the getters.
//!
//! The forwarder's own parser is written for speed and tested against this one.

pub mod arp;
mod bytes;
pub mod checksum;
pub mod dissect;
pub mod esp;
pub mod ethernet;
pub mod gre;
pub mod gue;
pub mod icmpv4;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ipv6_ext;
mod malformed;
pub mod ndisc;
pub mod tcp;
pub mod udp;
pub mod vlan;

pub use checksum::Delta;
pub use dissect::Dissection;
pub use ethernet::{EtherType, MacAddress};
pub use ip::{Addresses, Protocol};
pub use malformed::Malformed;
