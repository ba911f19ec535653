//! The unit's secret: what deals flows to shards and hashes other users' keys, kept in its state directory so that it outlives the unit.
//!
//! Nobody who does not know it can aim at one shard, so the file is for the unit's own user alone; and nobody repairs it: with another
//! secret the same flows have other owners, so a damaged file is refused and not replaced.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::{info, warn};
use weir_config::Config;

/// The key of the Toeplitz hash in the first 52 bytes, then 8 bytes for keyed hashes, the rest for what comes later.
pub type Secret = [u8; SECRET];

/// Why there is no secret to be had from the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made, or nothing can be written into it.
    #[error(
        "the unit's secret cannot be kept in {}: {source}; make the directory writable, or name another one by unit.state",
        directory.display()
    )]
    Unwritable {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there and cannot be read.
    #[error("the unit's secret {} cannot be read: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other users may read the file, or put another one in its place.
    #[error("{} may be {what} by other users (mode {mode:03o}); chmod {right} {}", path.display(), path.display())]
    Open {
        /// The file or its directory.
        path: PathBuf,
        /// `read` or `replaced`.
        what: &'static str,
        /// Its permissions.
        mode: u32,
        /// What they should be.
        right: &'static str,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, not to this unit's; chown it, or name another directory by unit.state", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The file is not what was written.
    #[error(
        "the unit's secret {} is damaged; restore it from a backup, or remove it: then a new one is drawn, and flows get other shards",
        file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
    },
}

/// The unit's secret: what its state directory has, else what `draw` gives, which is kept there for the next start. Where nothing can be
/// kept, the unit runs with what was drawn, and the log says so.
///
/// # Errors
///
/// [`StateError`], but for [`StateError::Unwritable`].
pub fn secret(config: &Config, draw: impl Fn() -> Secret) -> Result<Secret, StateError> {
    match load_or_create(&directory(config), &draw) {
        Err(error @ StateError::Unwritable { .. }) => {
            warn!(%error, "the unit runs with a secret that it will not know after a restart");
            Ok(draw())
        }
        answer => answer,
    }
}

/// Where the unit keeps what has to outlive it.
#[must_use]
pub fn directory(config: &Config) -> PathBuf {
    let of_the_system = || std::env::var_os("STATE_DIRECTORY").filter(|directory| !directory.is_empty());
    // systemd separates several by colons; the first one is ours.
    let first = |all: std::ffi::OsString| match all.to_str().and_then(|all| all.split_once(':')) {
        Some((first, _)) => PathBuf::from(first),
        None => PathBuf::from(all),
    };
    let by_default = || Path::new("/var/lib/weir").join(&config.unit.name);
    config.unit.state.clone().or_else(|| of_the_system().map(first)).unwrap_or_else(by_default)
}

/// Where its secret is.
#[must_use]
pub fn file(config: &Config) -> PathBuf {
    directory(config).join(FILE)
}

/// Reads the secret in `directory`, or draws one and keeps it there if there is none yet.
///
/// # Errors
///
/// [`StateError`]; a file that was there is as it was.
pub fn load_or_create(directory: &Path, draw: impl FnOnce() -> Secret) -> Result<Secret, StateError> {
    let unwritable = |source| StateError::Unwritable { directory: directory.to_owned(), source };
    let path = directory.join(FILE);
    match File::open(&path) {
        Ok(file) => return read(file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(StateError::Unreadable { file: path, source }),
    }
    make(directory).map_err(unwritable)?;
    let mode = fs::metadata(directory).map_err(unwritable)?.permissions().mode();
    if mode & 0o022 != 0 {
        let (path, mode) = (directory.to_owned(), mode & 0o777);
        return Err(StateError::Open { path, what: "replaced", mode, right: "700" });
    }
    let secret = draw();
    write(directory, &path, &secret).map_err(unwritable)?;
    info!(file = %path.display(), "a secret was drawn for this unit");
    Ok(secret)
}

/// Makes the directory for this user alone; those above it as usual.
fn make(directory: &Path) -> io::Result<()> {
    if let Some(above) = directory.parent() {
        fs::create_dir_all(above)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn read(file: File, path: PathBuf) -> Result<Secret, StateError> {
    let unreadable = |path: PathBuf| |source| StateError::Unreadable { file: path, source };
    let about = file.metadata().map_err(unreadable(path.clone()))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Open { path, what: "read", mode, right: "600" });
    }
    let us = rustix::process::geteuid().as_raw();
    if about.uid() != us && about.uid() != 0 {
        return Err(StateError::Foreign { path, owner: about.uid() });
    }
    let mut bytes = Vec::with_capacity(WHOLE + 1);
    // One more than there should be tells a longer file.
    let limit = u64::try_from(WHOLE + 1).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable(path.clone()))?;
    parse(&bytes).ok_or(StateError::Damaged { file: path })
}

/// Writes a new file beside the place and moves it there, so that a half-written one is never found.
fn write(directory: &Path, path: &Path, secret: &Secret) -> io::Result<()> {
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&emit(secret))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn emit(secret: &Secret) -> Vec<u8> {
    [MARK, secret, &check(secret).to_be_bytes()].concat()
}

fn parse(bytes: &[u8]) -> Option<Secret> {
    let (secret, sum) = bytes.strip_prefix(MARK)?.split_first_chunk::<SECRET>()?;
    (sum == check(secret).to_be_bytes()).then_some(*secret)
}

/// FNV-1a: against damage, not against people, who cannot write the file.
fn check(secret: &Secret) -> u64 {
    secret.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

const SECRET: usize = 64;
const FILE: &str = "secret";
const MARK: &[u8] = b"weir secret 1\n";
const WHOLE: usize = MARK.len() + SECRET + 8;

#[cfg(test)]
mod tests {
    use super::*;
    use weir_config::Machine;

    fn never() -> Secret {
        panic!("a secret is drawn although there is one")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn it_is_drawn_once_and_kept_for_nobody_else() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("deep/weir-1");
        assert_eq!(load_or_create(&directory, || [7; SECRET]).unwrap(), [7; SECRET]);
        assert_eq!((mode(&directory), mode(&directory.join(FILE))), (0o700, 0o600));
        assert_eq!(load_or_create(&directory, never).unwrap(), [7; SECRET]);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_others_can_read_or_replace_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join(FILE);
        load_or_create(scratch.path(), || [7; SECRET]).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let message = load_or_create(scratch.path(), never).unwrap_err().to_string();
        assert!(message.contains("mode 640") && message.contains("chmod 600"), "{message}");
        fs::remove_file(&file).unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let message = load_or_create(scratch.path(), never).unwrap_err().to_string();
        assert!(message.contains("mode 777") && message.contains("chmod 700"), "{message}");
        assert!(!file.exists());
    }

    #[test]
    fn a_damaged_file_is_refused_and_stays() {
        let scratch = tempfile::tempdir().unwrap();
        load_or_create(scratch.path(), || [7; SECRET]).unwrap();
        let file = scratch.path().join(FILE);
        let whole = fs::read(&file).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
        damaged.push([&whole[..], b"\n"].concat());
        damaged.extend((0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        }));
        for bytes in damaged {
            fs::write(&file, &bytes).unwrap();
            let answer = load_or_create(scratch.path(), never);
            assert!(matches!(answer, Err(StateError::Damaged { .. })), "{answer:?} of {bytes:?}");
            assert_eq!(fs::read(&file).unwrap(), bytes);
        }
    }

    #[test]
    fn a_place_where_nothing_can_be_kept_only_costs_the_next_start() {
        let scratch = tempfile::tempdir().unwrap();
        // A file where the directory should be: that stops even root.
        let blocked = scratch.path().join("file");
        fs::write(&blocked, "").unwrap();
        let answer = load_or_create(&blocked.join("weir-1"), || [7; SECRET]);
        assert!(matches!(answer, Err(StateError::Unwritable { .. } | StateError::Unreadable { .. })), "{answer:?}");
        // In /proc no directory can be made.
        let config = config("state: /proc/weir-test");
        assert_eq!(secret(&config, || [9; SECRET]).unwrap(), [9; SECRET]);
    }

    #[test]
    fn the_yaml_says_where_else_the_system_does() {
        assert_eq!(directory(&config("state: /srv/weir")), Path::new("/srv/weir"));
        if std::env::var_os("STATE_DIRECTORY").is_none() {
            assert_eq!(directory(&config("")), Path::new("/var/lib/weir/unit-7"));
        }
    }

    fn config(state: &str) -> Config {
        let text = format!(
            "unit: {{ id: 7, name: unit-7, {state} }}\nports: [{{ name: a, device: net_ring0, addresses: [192.0.2.1/24] }}]\n"
        );
        weir_config::check("test", &text, &Machine::default()).unwrap()
    }
}
