//! The key of a session: kind, service and canonical bytes, the same wherever the session is seen.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use weir_identity::ServiceId;

/// What kind of thing comes back to the same host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionKind {
    /// Everything from one client address, until a timeout.
    ClientAddress,
    /// A TCP connection or a UDP flow.
    Connection,
    /// A TLS session, by its session id or ticket name.
    Tls,
    /// An HTTP cookie.
    Cookie,
    /// A user, on whatever device.
    User,
    /// An IPsec association.
    Ipsec,
    /// A PPTP association.
    Pptp,
    /// What an application or an administrator defines.
    Defined,
}

/// The bytes of a key were more than a key can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a session key of {length} bytes is longer than {} bytes", SessionKey::CAPACITY)]
pub struct KeyTooLong {
    /// How many bytes there were.
    pub length: usize,
}

/// Names a session; equal on every unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey {
    /// What kind of session.
    pub kind: SessionKind,
    /// The service it belongs to.
    pub service: ServiceId,
    bytes: ArrayVec<u8, { SessionKey::CAPACITY }>,
}

impl SessionKey {
    /// The most bytes a key can hold.
    pub const CAPACITY: usize = 64;

    /// A key of any kind from its bytes.
    ///
    /// # Errors
    /// More than [`SessionKey::CAPACITY`] bytes are refused, not cut: two sessions must not become one.
    pub fn new(kind: SessionKind, service: ServiceId, bytes: &[u8]) -> Result<Self, KeyTooLong> {
        let bytes = ArrayVec::try_from(bytes).map_err(|_| KeyTooLong { length: bytes.len() })?;
        Ok(SessionKey { kind, service, bytes })
    }

    /// The key of a connection: protocol (IP protocol number), client and virtual address with their ports.
    #[must_use]
    pub fn connection(service: ServiceId, protocol: u8, client: SocketAddr, vip: SocketAddr) -> Self {
        let mut bytes = ArrayVec::new();
        bytes.push(protocol);
        for side in [client, vip] {
            push_address(&mut bytes, side.ip());
            bytes.extend(side.port().to_be_bytes());
        }
        SessionKey { kind: SessionKind::Connection, service, bytes }
    }

    /// The key of everything from one client address.
    #[must_use]
    pub fn client_address(service: ServiceId, client: IpAddr) -> Self {
        Self::association(SessionKind::ClientAddress, service, client)
    }

    /// The key of an association of another kind, of which a client has one: IPsec, PPTP.
    #[must_use]
    pub fn association(kind: SessionKind, service: ServiceId, client: IpAddr) -> Self {
        let mut bytes = ArrayVec::new();
        push_address(&mut bytes, client);
        SessionKey { kind, service, bytes }
    }

    /// The canonical bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// An IPv4 address in IPv6's clothes is the IPv4 address.
fn push_address(bytes: &mut ArrayVec<u8, { SessionKey::CAPACITY }>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sides_and_families_do_not_mix() {
        let key = |client: &str, vip: &str| {
            SessionKey::connection(ServiceId(1), 6, client.parse().unwrap(), vip.parse().unwrap())
        };
        assert_eq!(key("[::ffff:10.0.0.1]:5", "10.0.0.2:80"), key("10.0.0.1:5", "10.0.0.2:80"));
        assert_ne!(key("10.0.0.2:80", "10.0.0.1:5"), key("10.0.0.1:5", "10.0.0.2:80"));
        assert_eq!(key("10.0.0.1:258", "10.0.0.2:80").bytes(), [6, 10, 0, 0, 1, 1, 2, 10, 0, 0, 2, 0, 80]);
        assert_eq!(key("[2001:db8::1]:5", "[2001:db8::2]:80").bytes().len(), 37);
        let address = SessionKey::client_address(ServiceId(1), "2001:db8::1".parse().unwrap());
        assert_eq!((address.kind, address.bytes().len()), (SessionKind::ClientAddress, 16));
    }

    proptest! {
        #[test]
        fn any_bytes_that_fit_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            match SessionKey::new(SessionKind::Cookie, ServiceId(3), &bytes) {
                Ok(key) => {
                    prop_assert_eq!(key.bytes(), &bytes[..]);
                    let wire = postcard::to_stdvec(&key).unwrap();
                    prop_assert_eq!(postcard::from_bytes::<SessionKey>(&wire).unwrap(), key);
                }
                Err(error) => prop_assert!(bytes.len() > 64 && error.length == bytes.len()),
            }
        }
    }
}
