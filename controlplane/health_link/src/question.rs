//! Is there anybody? Asked of a unit that did not answer, before a ticket is spent on it again.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Whether whoever is there speaks QUIC: to a version that nobody has, it answers with those that it has (RFC 9000, section 6).
pub(crate) async fn answers(address: SocketAddr) -> bool {
    let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let Ok(socket) = UdpSocket::bind(SocketAddr::new(any, 0)).await else { return false };
    let mut question = vec![0; SHORTEST];
    question[..HEAD.len()].copy_from_slice(HEAD);
    if socket.connect(address).await.is_err() || socket.send(&question).await.is_err() {
        return false;
    }
    let mut answer = [0; HEAD.len()];
    match timeout(PATIENCE, socket.recv(&mut answer)).await {
        Ok(Ok(length)) => length == HEAD.len() && answer[0] & 0x80 != 0 && answer[1..] == ANSWERED,
        Ok(Err(_)) | Err(_) => false,
    }
}

/// A long header, a version that is kept for this (section 15), and a connection id of 8 bytes for the unit and none for us.
const HEAD: &[u8; 15] = b"\xc0\x1a\x2a\x3a\x4a\x08weir-\0\0?\0";
/// Version 0: a version negotiation; and the same ids, the other way round.
const ANSWERED: [u8; 14] = *b"\0\0\0\0\0\x08weir-\0\0?";
/// A shorter packet gets no answer (section 14.1).
const SHORTEST: usize = 1200;
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weir_health_protocol::UnitSettings;
    use weir_identity::{Incarnation, UnitId};
    use weir_pki::{Authority, Node};

    use super::*;
    use crate::{Keys, ListenSettings, Listener};

    #[tokio::test]
    async fn a_unit_answers_and_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let silent = UdpSocket::bind(address).await.unwrap();
            assert!(!answers(silent.local_addr().unwrap()).await);
            let keys = authority.issue("unit-1", &Node::Unit(UnitId(1)), 1).unwrap();
            let settings = ListenSettings {
                unit: UnitSettings::new(UnitId(1), Incarnation(1)),
                address: address.parse().unwrap(),
                peers: BTreeMap::new(),
                expected: Vec::new(),
            };
            let listener = Listener::spawn(settings, &Keys::load(&keys).unwrap()).unwrap();
            assert!(answers(listener.address()).await);
        }
        // Nothing is there: the kernel says so.
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(!answers(gone).await);
    }
}
