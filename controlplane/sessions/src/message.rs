//! What units tell each other about atoms: four messages on whole atoms, in an envelope with the protocol's version.

use serde::{Deserialize, Serialize};

use crate::atom::{Atom, Version};
use crate::key::SessionKey;

/// The protocol's version; a receiver refuses envelopes of another one.
pub const PROTOCOL: u16 = 1;

/// A message as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's [`PROTOCOL`].
    pub protocol: u16,
    /// What it says.
    pub message: Message,
}

impl Envelope {
    /// Wraps a message in this version's envelope.
    #[must_use]
    pub fn new(message: Message) -> Self {
        Envelope { protocol: PROTOCOL, message }
    }
}

/// One statement or question about an atom. All are idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Hold this atom, unless a later version is held.
    AddAtom {
        /// The atom.
        atom: Atom,
    },
    /// The session is over: hold its zombie for the dead time, unless a later version is held.
    DeleteAtom {
        /// Which session.
        key: SessionKey,
        /// The version of the deletion.
        version: Version,
    },
    /// Which atom is held for this key?
    QueryAtom {
        /// Comes back with the answer.
        query: u64,
        /// Which session.
        key: SessionKey,
    },
    /// The answer to a query. An atom that was queried may be cached by who asked.
    ReturnAtom {
        /// The question's number.
        query: u64,
        /// The atom, perhaps a zombie; none if nothing is held.
        atom: Option<Atom>,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::atom::tests::{author, binding, key};

    #[test]
    fn every_message_survives_the_wire() {
        let atom = Atom { key: key(1), value: Some(binding(2)), version: author(3).first(4) };
        for message in [
            Message::AddAtom { atom: atom.clone() },
            Message::DeleteAtom { key: key(1), version: author(3).first(5) },
            Message::QueryAtom { query: 7, key: key(1) },
            Message::ReturnAtom { query: 7, atom: Some(atom) },
            Message::ReturnAtom { query: 8, atom: None },
        ] {
            let envelope = Envelope::new(message);
            let wire = postcard::to_stdvec(&envelope).unwrap();
            assert!(wire.len() < 128, "{} bytes", wire.len());
            assert_eq!(postcard::from_bytes::<Envelope>(&wire).unwrap(), envelope);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(envelope) = postcard::from_bytes::<Envelope>(&bytes) {
                let again = postcard::to_stdvec(&envelope).unwrap();
                prop_assert_eq!(postcard::from_bytes::<Envelope>(&again).unwrap(), envelope);
            }
        }
    }
}
