//! Why bytes are not the packet they claim to be, with the value that gave it away.

use thiserror::Error;

/// A packet that does not hold together. The view that reported it changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The header, or what it announces, goes on beyond the end of the bytes.
    #[error("truncated: {needed} bytes needed, {have} there")]
    Truncated {
        /// Bytes needed from the start of the header.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The IP (or GUE, GRE) version is another one.
    #[error("version {0} is not this format's")]
    BadVersion(u8),
    /// A length field contradicts the format's own minimum or the enclosing length.
    #[error("length field says {stated}, expected {expected}")]
    BadLength {
        /// What the field says, in bytes.
        stated: usize,
        /// The nearest value that would have been right, in bytes.
        expected: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("checksum {0:#06x} does not fit")]
    BadChecksum(u16),
    /// An EtherType, message type, operation or hardware type that this format does not know.
    #[error("type {0:#06x} is unknown here")]
    BadType(u16),
    /// An option whose length is impossible.
    #[error("option {kind} has length {length}")]
    BadOption {
        /// The option's kind.
        kind: u8,
        /// The length it states, in the unit of its format.
        length: u8,
    },
    /// Something about an address, a flag or a hop limit that the format forbids; the value found.
    #[error("field value {0} is not allowed")]
    BadField(u32),
    /// More extension headers or VLAN tags than a real packet has.
    #[error("more than {0} chained headers")]
    TooManyHeaders(usize),
    /// A chained header that cannot be stepped over, or that stands in a place where it must not.
    #[error("chained header {0} is unknown or misplaced")]
    BadHeader(u8),
}

/// The bytes `data` has, or an error when fewer than `needed`.
pub(crate) fn need(data: &[u8], needed: usize) -> Result<(), Malformed> {
    if data.len() < needed { Err(Malformed::Truncated { needed, have: data.len() }) } else { Ok(()) }
}
