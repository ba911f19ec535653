//! Which unit is meant when none is named: the only one that has a socket in the usual directory.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The only `*.sock` in `directory`.
///
/// # Errors
/// When there is none, or more than one to choose from.
pub(crate) fn only_one(directory: &Path) -> Result<PathBuf, SocketError> {
    let unreadable = |source| SocketError::Unreadable { directory: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SocketError::None { directory: directory.to_owned() });
        }
        other => other.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            found.push(path);
        }
    }
    found.sort();
    match <[PathBuf; 1]>::try_from(found) {
        Ok([one]) => Ok(one),
        Err(found) if found.is_empty() => Err(SocketError::None { directory: directory.to_owned() }),
        Err(found) => Err(SocketError::Several { found }),
    }
}

/// Why no unit is the obvious one.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    #[error("no unit has a socket in {}: is `weir run` running? (--socket)", directory.display())]
    None { directory: PathBuf },
    #[error("which unit? Name one of these by --socket or WEIR_SOCKET:{}", list(found))]
    Several { found: Vec<PathBuf> },
    #[error("cannot look for sockets in {}", directory.display())]
    Unreadable { directory: PathBuf, source: io::Error },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("\n  {}", path.display())).collect()
}

/// Where units put their sockets by convention.
pub(crate) const DIRECTORY: &str = "/run/weir";

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn one_socket_is_taken_and_several_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(matches!(only_one(&path.join("missing")), Err(SocketError::None { .. })));
        assert!(matches!(only_one(path), Err(SocketError::None { .. })));
        File::create(path.join("weir-1.sock")).unwrap();
        File::create(path.join("weir-1.pid")).unwrap();
        assert_eq!(only_one(path).unwrap(), path.join("weir-1.sock"));
        File::create(path.join("weir-0.sock")).unwrap();
        let message = only_one(path).unwrap_err().to_string();
        let (first, second) = (message.find("weir-0.sock").unwrap(), message.find("weir-1.sock").unwrap());
        assert!(first < second);
    }
}
