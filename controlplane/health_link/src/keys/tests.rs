//! Handshakes in memory: who is let in with a ticket, and who is not.

use std::path::PathBuf;

use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, ServerConnection, Version};
use rustls::{CertificateError, HandshakeKind};
use weir_pki::{Authority, Node};

use super::*;

struct Cluster {
    authority: Authority,
    unit: PathBuf,
    host: PathBuf,
    _directory: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        let unit = authority.issue("unit-1", &Node::Unit(UnitId(1)), 1).unwrap();
        let host = authority.issue("host-7", &Node::Hosts([HostId(7), HostId(8)].into()), 1).unwrap();
        Cluster { authority, unit, host, _directory: directory }
    }

    fn unit(&self) -> Keys {
        Keys::load(&self.unit).unwrap()
    }
}

/// A host that keeps its sessions over its handshakes.
struct Host {
    keys: Keys,
    config: Arc<rustls::ClientConfig>,
}

impl Host {
    fn new(cluster: &Cluster) -> Host {
        let keys = Keys::load(&cluster.host).unwrap();
        let config = Arc::new(keys.tls_client().unwrap());
        Host { keys, config }
    }

    /// Shakes hands with a unit; how, and which chain each of them sees.
    fn connect(&self, unit: &Keys) -> (HandshakeKind, Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>) {
        let server = Arc::new(unit.tls_server().unwrap());
        let mut server = ServerConnection::new(server, Version::V1, Vec::new()).unwrap();
        let name = ServerName::try_from(unit_name(UnitId(1))).unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.config), Version::V1, name, Vec::new()).unwrap();
        loop {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            let keys = client.write_hs(&mut there);
            server.read_hs(&there).unwrap();
            let next = server.write_hs(&mut back);
            client.read_hs(&back).unwrap();
            if there.is_empty() && back.is_empty() && keys.is_none() && next.is_none() {
                break;
            }
        }
        assert_eq!(client.handshake_kind(), server.handshake_kind());
        let chain = |certificates: Option<&[CertificateDer<'static>]>| certificates.unwrap().to_vec();
        (server.handshake_kind().unwrap(), chain(server.peer_certificates()), chain(client.peer_certificates()))
    }
}

#[test]
fn a_host_comes_back_with_a_ticket_to_the_next_life_of_its_unit_as_whom_its_certificate_names() {
    let cluster = Cluster::new();
    let host = Host::new(&cluster);
    let (kind, first, unit) = host.connect(&cluster.unit());
    assert_eq!(kind, HandshakeKind::Full);
    // Each handshake brings new tickets: this goes on for ever.
    for _ in 0..5 {
        let next = cluster.unit();
        let (kind, again, same_unit) = host.connect(&next);
        assert_eq!(kind, HandshakeKind::Resumed);
        assert_eq!((&again, &same_unit), (&first, &unit));
        assert_eq!(names(&again[0]).hosts, [HostId(7), HostId(8)].into());
        assert!(next.still_admits(&again) && host.keys.still_admits(&same_unit));
    }
}

#[test]
fn a_ticket_is_of_no_use_to_a_revoked_or_expired_host() {
    let cluster = Cluster::new();
    let host = Host::new(&cluster);
    let (_, chain, _) = host.connect(&cluster.unit());
    // Later than its one day.
    let later = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + 2 * 24 * 3600));
    let judged = cluster.unit().admission.judge_verified(&chain[0], &chain[1..], later);
    assert!(
        matches!(judged, Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. }))),
        "{judged:?}"
    );
    cluster.authority.revoke("host-7").unwrap();
    let unit = cluster.unit();
    let (kind, chain, _) = host.connect(&unit);
    // TLS has nothing against it: whoever accepts it has to ask.
    assert_eq!(kind, HandshakeKind::Resumed);
    assert!(!unit.still_admits(&chain));
}

#[test]
fn a_unit_that_is_revoked_is_not_gone_on_with() {
    let cluster = Cluster::new();
    let host = Host::new(&cluster);
    host.connect(&cluster.unit());
    cluster.authority.revoke("unit-1").unwrap();
    let (_, _, unit) = host.connect(&cluster.unit());
    assert!(host.keys.still_admits(&unit), "its list is the old one");
    assert!(!Keys::load(&cluster.host).unwrap().still_admits(&unit));
}

#[test]
fn a_ticket_is_of_no_use_at_another_key_or_under_another_authority() {
    let cluster = Cluster::new();
    let host = Host::new(&cluster);
    host.connect(&cluster.unit());
    cluster.authority.renew("unit-1", 1).unwrap();
    assert_eq!(host.connect(&cluster.unit()).0, HandshakeKind::Full);
    // The unit trusts one more: whom it has verified before is verified again.
    let mut authorities = std::fs::read_to_string(cluster.unit.join("authority.pem")).unwrap();
    let other = Cluster::new();
    authorities += &std::fs::read_to_string(other.unit.join("authority.pem")).unwrap();
    std::fs::write(cluster.unit.join("authority.pem"), authorities).unwrap();
    assert_eq!(host.connect(&cluster.unit()).0, HandshakeKind::Full);
    assert_eq!(host.connect(&cluster.unit()).0, HandshakeKind::Resumed);
}

#[test]
fn a_chain_that_nobody_has_verified_is_not_admitted_for_its_names() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (_, strangers, _) = Host::new(&other).connect(&other.unit());
    assert!(!cluster.unit().admits(&strangers));
    // Nor is nobody.
    assert!(!cluster.unit().still_admits(&[]));
}
