//! A node's certificate, key and authority: what it proves itself with, and for whom a peer's certificate may speak.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CipherSuite, RootCertStore};
use thiserror::Error;
use webpki::EndEntityCert;
use weir_health_protocol::Claims;
use weir_identity::{HostId, UnitId};

use crate::admission::Admission;
use crate::cids::Cids;
use crate::tickets::Tickets;

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// It is this unit.
    pub unit: Option<UnitId>,
    /// It may speak for these hosts.
    pub hosts: BTreeSet<HostId>,
    /// It may lead these groups, and say that the hosts from one to another live.
    pub groups: BTreeMap<Arc<str>, Vec<(HostId, HostId)>>,
}

impl Names {
    /// What that means for a unit.
    pub(crate) fn claims(&self) -> Claims {
        Claims { hosts: self.hosts.clone(), vouches: self.groups.clone() }
    }

    /// Is it a host that may be of this group?
    pub(crate) fn member(&self, group: &str) -> Option<HostId> {
        let ranges = self.groups.get(group)?;
        self.hosts.iter().copied().find(|host| ranges.iter().any(|(first, last)| (*first..=*last).contains(host)))
    }
}

/// Everything a node needs for mutual TLS.
#[derive(Clone)]
pub struct Keys {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    admission: Arc<Admission>,
    tickets: Arc<Tickets>,
    names: Names,
    directory: PathBuf,
    /// Made when it is needed first: it takes longer than a handshake.
    client: Arc<OnceLock<Arc<QuicClientConfig>>>,
}

/// What tells one state of the files from another: each one's inode, size and time of change.
pub(crate) type Stamp = [Option<(u64, u64, i64, i64)>; FILES.len()];

/// Why keys are of no use.
#[derive(Debug, Error)]
pub enum KeysError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {reason}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The parts do not fit together.
    #[error("certificate and key: {0}")]
    Tls(String),
    /// A renewed certificate is another node's.
    #[error("{path}: names {new:?}, but this node is {old:?}")]
    Names {
        /// Which file.
        path: PathBuf,
        /// Whom it names.
        new: Box<Names>,
        /// Whom it named when the node started.
        old: Box<Names>,
    },
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads `authority.pem`, `node.pem` and `node.key` from a directory; `revoked.pem` too, if it is there.
    ///
    /// # Errors
    /// A file is missing, or not what it should be.
    pub fn load(directory: &Path) -> Result<Keys, KeysError> {
        let path = |name: &str| directory.join(name);
        let bad = |path: PathBuf| {
            move |error: rustls::pki_types::pem::Error| KeysError::File { path, reason: error.to_string() }
        };
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, KeysError> {
            let all = CertificateDer::pem_file_iter(path(name)).map_err(bad(path(name)))?;
            let all: Vec<_> = all.collect::<Result<_, _>>().map_err(bad(path(name)))?;
            if all.is_empty() {
                return Err(KeysError::File { path: path(name), reason: "has no certificate".to_owned() });
            }
            Ok(all)
        };
        let mut roots = RootCertStore::empty();
        let authority = certificates("authority.pem")?;
        for certificate in &authority {
            roots.add(certificate.clone()).map_err(tls_error)?;
        }
        let chain = certificates("node.pem")?;
        let key = PrivateKeyDer::from_pem_file(path("node.key")).map_err(bad(path("node.key")))?;
        let revoked = if path("revoked.pem").exists() {
            let lists = CertificateRevocationListDer::pem_file_iter(path("revoked.pem"));
            let lists = lists.map_err(bad(path("revoked.pem")))?;
            lists.collect::<Result<_, _>>().map_err(bad(path("revoked.pem")))?
        } else {
            Vec::new()
        };
        let names = names(&chain[0]);
        let roots = Arc::new(roots);
        let admission = Admission::new(&roots, &revoked, &chain[0]).map_err(tls_error)?;
        let admission = Arc::new(admission);
        let tickets = Arc::new(Tickets::new(&key, &authority));
        let (key, directory, client) = (Arc::new(key), directory.to_owned(), Arc::default());
        Ok(Keys { chain, key, roots, revoked, admission, tickets, names, directory, client })
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// A file is missing or not what it should be, they do not fit together (a copy may be under way), or they are another node's.
    pub(crate) fn again(&self) -> Result<Keys, KeysError> {
        let keys = Keys::load(&self.directory)?;
        if keys.names.unit != self.names.unit || !keys.names.hosts.is_superset(&self.names.hosts) {
            let path = self.directory.join("node.pem");
            let (new, old) = (Box::new(keys.names), Box::new(self.names.clone()));
            return Err(KeysError::Names { path, new, old });
        }
        keys.client(Patience::UNITS)?;
        Ok(keys)
    }

    /// What the files are like now.
    pub(crate) fn stamp(&self) -> Stamp {
        FILES.map(|file| {
            let known = std::fs::metadata(self.directory.join(file)).ok()?;
            Some((known.ino(), known.size(), known.mtime(), known.mtime_nsec()))
        })
    }

    /// Would a peer with this chain of certificates be connected now?
    pub(crate) fn admits(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, above)) = chain.split_first() else { return false };
        self.admission.verify_client_cert(own, above, UnixTime::now()).is_ok()
    }

    /// Would a peer be connected now, whose chain has been verified by these keys, or by another life of this node with the same authority?
    ///
    /// To be asked of each connection: for one that was resumed nothing else asks.
    pub(crate) fn still_admits(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, above)) = chain.split_first() else { return false };
        self.admission.judge_verified(own, above, UnixTime::now()).is_ok()
    }

    /// Whom the node's own certificate names.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// How to connect to units.
    pub(crate) fn client(&self, patience: Patience) -> Result<ClientConfig, KeysError> {
        let quic = match self.client.get() {
            Some(quic) => Arc::clone(quic),
            None => Arc::clone(self.client.get_or_init({
                let quic = Arc::new(QuicClientConfig::try_from(self.tls_client()?).map_err(tls_error)?);
                move || quic
            })),
        };
        let mut config = ClientConfig::new(quic);
        config.transport_config(Arc::new(transport(patience)));
        Ok(config)
    }

    fn tls_client(&self) -> Result<rustls::ClientConfig, KeysError> {
        let provider = provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
            .with_crls(self.revoked.clone())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(tls_error)?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls_error)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // For as long as these keys are the node's: whoever is on another list, or of another authority, is verified as a stranger.
        tls.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(tls)
    }

    /// How to be connected to. Whoever connects says how soon its silence counts.
    pub(crate) fn server(&self) -> Result<ServerConfig, KeysError> {
        let quic = QuicServerConfig::try_from(self.tls_server()?).map_err(tls_error)?;
        let mut config = ServerConfig::with_crypto(Arc::new(quic));
        config.transport_config(Arc::new(transport(Patience { idle: IDLE_MAX, keep_alive: None, at_once: true })));
        // Whoever waits for its turn has sent a packet or two.
        config.incoming_buffer_size(INCOMING_EACH).incoming_buffer_size_total(INCOMING_ALL);
        Ok(config)
    }

    fn tls_server(&self) -> Result<rustls::ServerConfig, KeysError> {
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_client_cert_verifier(Arc::<Admission>::clone(&self.admission))
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls_error)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        if self.names.unit.is_some() {
            tls.send_tls13_tickets = TICKETS;
            tls.ticketer = Arc::<Tickets>::clone(&self.tickets);
        }
        Ok(tls)
    }

    /// Connection ids and reset tokens that stay over a restart: whoever is still connected learns of it with the next packet, and
    /// not only when it has waited for nothing.
    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.key.secret_der());
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, digest.as_ref());
        let of_ids = ring::hmac::sign(&key, b"connection ids").as_ref().first_chunk().copied().unwrap_or_default();
        let mut config = EndpointConfig::new(Arc::new(key));
        config.cid_generator(move || Box::new(Cids::new(of_ids))).min_reset_interval(RESETS);
        config
    }
}

/// Whom a certificate names, by its DNS names: `7.host.weir` (one for each host), `1.unit.weir`, `1-20.rack-3.group.weir`.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Names {
    let mut names = Names::default();
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return names };
    for name in certificate.valid_dns_names() {
        if let Some(host) = name.strip_suffix(HOST_SUFFIX).and_then(|id| id.parse().ok()) {
            names.hosts.insert(HostId(host));
        } else if let Some(unit) = name.strip_suffix(UNIT_SUFFIX).and_then(|id| id.parse().ok()) {
            names.unit = Some(UnitId(unit));
        } else if let Some((group, range)) = name.strip_suffix(GROUP_SUFFIX).and_then(vouched) {
            names.groups.entry(group.into()).or_default().push(range);
        }
    }
    names
}

/// A group's name and some of its hosts: `1-20.rack-3`.
fn vouched(name: &str) -> Option<(String, (HostId, HostId))> {
    let (range, group) = name.split_once('.')?;
    let (first, last) = range.split_once('-')?;
    Some((group.to_owned(), (HostId(first.parse().ok()?), HostId(last.parse().ok()?))))
}

/// How a unit's certificate names it.
#[must_use]
pub fn unit_name(unit: UnitId) -> String {
    format!("{unit}{UNIT_SUFFIX}")
}

/// How a certificate names a host, on the wire too: a member of a group proves to be the one that was dialled.
#[must_use]
pub fn host_name(host: HostId) -> String {
    format!("{host}{HOST_SUFFIX}")
}

/// When a link is down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// After so long without a packet.
    idle: Duration,
    /// How often there is one, whatever else is sent: packets are what a unit with many hosts has to save.
    keep_alive: Option<Duration>,
    /// The peer is to acknowledge what comes at once, and not within 25 ms with what it has to say anyway.
    at_once: bool,
}

impl Patience {
    /// Between units.
    pub(crate) const UNITS: Patience =
        Patience { idle: Duration::from_secs(1), keep_alive: Some(Duration::from_millis(250)), at_once: true };
    /// From a member of a group, whose leader beats for it: what it sends itself shows at once whether anybody is there.
    pub(crate) const MEMBER: Patience =
        Patience { idle: Duration::from_secs(150), keep_alive: Some(Duration::from_secs(50)), at_once: true };

    /// Where heartbeats are all there is to keep it up. A host that gets no answer to one ends the connection sooner; until there is one, this is
    /// how long it waits.
    pub(crate) fn heartbeat(interval: Duration) -> Patience {
        Patience { idle: (interval * 7 / 2).max(Duration::from_secs(10)), keep_alive: None, at_once: true }
    }

    /// The same to the leader of a group, which answers each of them.
    pub(crate) fn answered(interval: Duration) -> Patience {
        Patience { at_once: false, ..Patience::heartbeat(interval) }
    }
}

/// The cheapest cipher first: AES-128 with SHA-256, for which there are instructions where SHA-384 has none.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn tls_error(error: impl fmt::Display) -> KeysError {
    KeysError::Tls(error.to_string())
}

fn transport(patience: Patience) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // A unit acknowledges each heartbeat as it comes, without a timer: it would have to send as many packets later.
    let mut acknowledged = AckFrequencyConfig::default();
    acknowledged.ack_eliciting_threshold(VarInt::from_u32(0));
    let idle = VarInt::from_u64(u64::try_from(patience.idle.as_millis()).unwrap_or(u64::MAX)).unwrap_or(VarInt::MAX);
    transport
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .keep_alive_interval(patience.keep_alive)
        .ack_frequency_config(patience.at_once.then_some(acknowledged))
        // Messages are small, and looking for larger packets would take several of them on each link.
        .mtu_discovery_config(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(512 * 1024))
        .receive_window(VarInt::from_u32(512 * 1024))
        .datagram_receive_buffer_size(Some(64 * 1024));
    transport
}

/// A node's files; the last may be missing.
const FILES: [&str; 4] = ["authority.pem", "node.pem", "node.key", "revoked.pem"];
const HOST_SUFFIX: &str = ".host.weir";
const GROUP_SUFFIX: &str = ".group.weir";
const UNIT_SUFFIX: &str = ".unit.weir";
/// The protocol and its version; peers with another are not connected.
const ALPN: &[u8] = b"weir-health/1";
/// For so many sessions a client has room; with eight to a unit that is more than it has units.
const SESSIONS_MAX: usize = 256;
/// So many tickets a connection brings: each way back takes one, whether it leads anywhere or not.
const TICKETS: usize = 2;
/// What is kept of those whose handshake has to wait, after the first packet, in bytes.
const INCOMING_EACH: u64 = 16 << 10;
const INCOMING_ALL: u64 = 16 << 20;
/// A unit that was killed and started again tells thousands of hosts that it knows nothing of them.
const RESETS: Duration = Duration::from_micros(50);
/// No link is idle for longer: three heartbeats of a minute, and one late.
const IDLE_MAX: Duration = Duration::from_secs(230);

#[cfg(test)]
mod tests;
