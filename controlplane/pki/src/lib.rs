//! The cluster's authority and its nodes' certificates: who may speak for which host, and who is which unit.
//!
//! An [`Authority`] is a directory: `authority.pem` and `authority.key`, `revoked.pem` (the revocation list), and under `nodes/NAME` what a
//! node is given as a whole: `authority.pem`, `node.pem`, `node.key`, `revoked.pem`, with `names` and `serials` as notes for the authority. A
//! certificate names what its node may say: `7.host.weir` for each host, `1.unit.weir` for a unit, and `1-20.rack-3.group.weir` for a member of
//! the group rack-3, who as its leader may say that the hosts 1 to 20 live. Nodes follow their files: a renewed certificate or a longer
//! revocation list counts within a second of its being there.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber,
};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use weir_identity::{HostId, UnitId};

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A unit.
    Unit(UnitId),
    /// An agent, for its own host or as a proxy for several.
    Hosts(BTreeSet<HostId>),
    /// The same, as a member of a group.
    Member {
        /// For whom it speaks.
        hosts: BTreeSet<HostId>,
        /// The group's name: small letters, digits and `-`.
        group: String,
        /// Of which hosts it may say, as the group's leader, that they live.
        vouches: Vec<(HostId, HostId)>,
    },
}

/// Why a certificate was not made; no file that was there has changed, unless it says so.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate could not be made or read.
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
    /// There is an authority already: a new one would shut all nodes out.
    #[error("{0} has an authority already")]
    Exists(PathBuf),
    /// No such node.
    #[error("{0:?} has no certificate here")]
    UnknownNode(String),
    /// A group's name becomes a part of a DNS name.
    #[error("{0:?} is no name of a group: small letters, digits and '-' make one, at most 63")]
    Group(String),
    /// A node's name becomes a directory.
    #[error("{0:?} is no name: letters, digits, '-', '_' and '.' make one, and a letter or digit begins it")]
    Name(String),
}

/// The cluster's authority.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    key: KeyPair,
}

impl Authority {
    /// Makes a new authority in a directory, which is made too.
    ///
    /// # Errors
    /// There is one, or files cannot be written.
    pub fn create(directory: &Path) -> Result<Authority, PkiError> {
        let path = directory.join(AUTHORITY);
        if path.exists() {
            return Err(PkiError::Exists(directory.to_owned()));
        }
        fs::create_dir_all(directory).map_err(at(directory))?;
        let key = KeyPair::generate()?;
        let mut params = authority();
        (params.not_before, params.not_after) = lifetime(AUTHORITY_DAYS);
        let certificate = params.self_signed(&key)?;
        write(&directory.join(AUTHORITY_KEY), &key.serialize_pem(), SECRET)?;
        write(&path, &certificate.pem(), PUBLIC)?;
        let authority = Authority { directory: directory.to_owned(), key };
        authority.write_revoked()?;
        Ok(authority)
    }

    /// The authority in a directory.
    ///
    /// # Errors
    /// Its key cannot be read.
    pub fn open(directory: &Path) -> Result<Authority, PkiError> {
        let key = KeyPair::from_pem(&read(&directory.join(AUTHORITY_KEY))?)?;
        Ok(Authority { directory: directory.to_owned(), key })
    }

    /// Makes a key and a certificate for a node, good for so many days; the directory with all that the node needs. What the node had
    /// before stays good until it expires or is revoked.
    ///
    /// # Errors
    /// The name is none, or files cannot be written.
    pub fn issue(&self, name: &str, node: &Node, days: u16) -> Result<PathBuf, PkiError> {
        let names = match node {
            Node::Unit(unit) => vec![format!("{unit}.unit.weir")],
            Node::Hosts(hosts) => host_names(hosts),
            Node::Member { hosts, group, vouches } => {
                let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                if !group.chars().all(inner)
                    || group.is_empty()
                    || group.len() > 63
                    || group.starts_with('-')
                    || group.ends_with('-')
                {
                    return Err(PkiError::Group(group.clone()));
                }
                let vouches = vouches.iter().map(|(first, last)| format!("{first}-{last}.{group}.group.weir"));
                host_names(hosts).into_iter().chain(vouches).collect()
            }
        };
        self.issue_names(name, names, days)
    }

    /// Makes a new key and certificate for a node that has one, with the same names.
    ///
    /// # Errors
    /// There is no such node, or files cannot be written.
    pub fn renew(&self, name: &str, days: u16) -> Result<PathBuf, PkiError> {
        let path = self.node(name)?.join("names");
        if !path.exists() {
            return Err(PkiError::UnknownNode(name.to_owned()));
        }
        self.issue_names(name, read(&path)?.lines().map(str::to_owned).collect(), days)
    }

    /// Revokes every certificate that the node was given, and writes the new list also to the nodes' directories.
    ///
    /// # Errors
    /// There is no such node, or files cannot be written.
    pub fn revoke(&self, name: &str) -> Result<PathBuf, PkiError> {
        let serials = self.node(name)?.join("serials");
        if !serials.exists() {
            return Err(PkiError::UnknownNode(name.to_owned()));
        }
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut revoked = self.revoked()?;
        revoked.extend(read(&serials)?.lines().map(|serial| format!("{serial} {now}")));
        write(&self.directory.join("revoked"), &(revoked.join("\n") + "\n"), PUBLIC)?;
        fs::remove_file(&serials).map_err(at(&serials))?;
        self.write_revoked()
    }

    fn issue_names(&self, name: &str, names: Vec<String>, days: u16) -> Result<PathBuf, PkiError> {
        let directory = self.node(name)?;
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.clone())?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = lifetime(days.into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // The public key is new each time, and so is its hash.
        let serial: Vec<u8> = params.key_identifier(&key).into_iter().take(16).map(|byte| byte & 0x7f).collect();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let authority = authority();
        let certificate = params.signed_by(&key, &Issuer::from_params(&authority, &self.key))?;
        write(&directory.join("node.key"), &key.serialize_pem(), SECRET)?;
        write(&directory.join("node.pem"), &certificate.pem(), PUBLIC)?;
        write(&directory.join(AUTHORITY), &read(&self.directory.join(AUTHORITY))?, PUBLIC)?;
        write(&directory.join(REVOKED), &read(&self.directory.join(REVOKED))?, PUBLIC)?;
        write(&directory.join("names"), &(names.join("\n") + "\n"), PUBLIC)?;
        let path = directory.join("serials");
        let mut serials = if path.exists() { read(&path)? } else { String::new() };
        serials.extend(serial.iter().map(|byte| format!("{byte:02x}")));
        serials.push('\n');
        write(&path, &serials, PUBLIC)?;
        Ok(directory)
    }

    fn node(&self, name: &str) -> Result<PathBuf, PkiError> {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.chars().all(inner) && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            Ok(self.directory.join("nodes").join(name))
        } else {
            Err(PkiError::Name(name.to_owned()))
        }
    }

    /// One line for each revoked certificate: its serial number in hexadecimal, and when that was.
    fn revoked(&self) -> Result<Vec<String>, PkiError> {
        let path = self.directory.join("revoked");
        if path.exists() { Ok(read(&path)?.lines().map(str::to_owned).collect()) } else { Ok(Vec::new()) }
    }

    fn write_revoked(&self) -> Result<PathBuf, PkiError> {
        let lines = self.revoked()?;
        let revoked_certs = lines.iter().filter_map(|line| {
            let (serial, when) = line.split_once(' ')?;
            let bytes = (0..serial.len() / 2).map(|i| u8::from_str_radix(serial.get(2 * i..2 * i + 2)?, 16).ok());
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes.collect::<Option<Vec<u8>>>()?),
                revocation_time: OffsetDateTime::from_unix_timestamp(when.parse().ok()?).ok()?,
                reason_code: Some(RevocationReason::Unspecified),
                invalidity_date: None,
            })
        });
        let (this_update, next_update) = lifetime(AUTHORITY_DAYS);
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(u64::try_from(lines.len()).unwrap_or(0) + 1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let authority = authority();
        let list = params.signed_by(&Issuer::from_params(&authority, &self.key))?.pem()?;
        let path = self.directory.join(REVOKED);
        write(&path, &list, PUBLIC)?;
        for node in fs::read_dir(self.directory.join("nodes")).into_iter().flatten().flatten() {
            write(&node.path().join(REVOKED), &list, PUBLIC)?;
        }
        Ok(path)
    }
}

fn host_names(hosts: &BTreeSet<HostId>) -> Vec<String> {
    hosts.iter().map(|host| format!("{host}.host.weir")).collect()
}

/// What is the same in the authority's certificate each time: so that the key is enough to sign with.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "Weir cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// From a day ago, as clocks differ.
fn lifetime(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - Duration::days(1), now + Duration::days(days))
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(at(path))
}

/// Replaces a file as a whole.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let new = path.with_extension("new");
    let written = || {
        let _ = fs::remove_file(&new);
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?.write_all(text.as_bytes())?;
        fs::rename(&new, path)
    };
    written().map_err(at(path))
}

fn at(path: &Path) -> impl Fn(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { path: path.clone(), source }
}

const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const REVOKED: &str = "revoked.pem";
const AUTHORITY_DAYS: i64 = 3650;
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nodes_get_all_they_need_and_keys_stay_secret() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        assert!(matches!(Authority::create(directory.path()), Err(PkiError::Exists(_))));
        let node = authority.issue("web-1", &Node::Hosts([HostId(7)].into()), 30).unwrap();
        for file in ["authority.pem", "node.pem", "node.key", "revoked.pem"] {
            assert!(node.join(file).exists(), "{file}");
        }
        let mode = fs::metadata(node.join("node.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let first = read(&node.join("node.pem")).unwrap();
        Authority::open(directory.path()).unwrap().renew("web-1", 30).unwrap();
        assert_ne!(read(&node.join("node.pem")).unwrap(), first);
        let before = read(&node.join(REVOKED)).unwrap();
        authority.revoke("web-1").unwrap();
        assert_ne!(read(&node.join(REVOKED)).unwrap(), before);
        assert_eq!(authority.revoked().unwrap().len(), 2, "the renewed one and the first");
        assert!(matches!(authority.revoke("web-2"), Err(PkiError::UnknownNode(_))));
        for name in ["", "..", "a/b", "-x"] {
            assert!(matches!(authority.renew(name, 1), Err(PkiError::Name(_))), "{name}");
        }
    }
}
