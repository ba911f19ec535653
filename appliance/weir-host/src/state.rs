//! What outlives the agent for a minute: so that one that is replaced or has crashed goes on where the last one was.
//!
//! The file is written whenever something in it changes (and now and then, as a sign of life), and read at the start if it is of the same
//! boot and not older than a minute. What the configuration says counts more: a row that it has added, changed or dropped is not taken.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weir_health_load::{Directive, Health};
use weir_health_protocol::Identity;
use weir_identity::{ApplicationId, HostId};

use crate::config::Config;

/// The tables of all hosts that the agent speaks for.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tables(pub(crate) BTreeMap<HostId, Vec<SavedRow>>);

/// An application as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedRow {
    pub(crate) application: ApplicationId,
    pub(crate) protocol: u8,
    pub(crate) vip: Option<SocketAddr>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) detail: String,
    pub(crate) capacity: u8,
    pub(crate) lease: Option<Duration>,
    pub(crate) target: Directive,
    pub(crate) reported_health: Option<Health>,
    pub(crate) probed_health: Option<Health>,
    pub(crate) reported_load: Option<f64>,
    pub(crate) measured_load: Option<f64>,
    pub(crate) load: f64,
    /// It is not the configuration's, but has registered itself.
    #[serde(default)]
    pub(crate) by_itself: bool,
}

#[derive(Serialize, Deserialize)]
struct File<Tables> {
    boot: String,
    /// Seconds since then.
    written: f64,
    tables: Tables,
}

impl SavedRow {
    pub(crate) fn identity(&self) -> Identity {
        let pair = |address: SocketAddr| -> (IpAddr, u16) { (address.ip(), address.port()) };
        let (vip, endpoint) = (self.vip.map(pair), self.endpoint.map(pair));
        Identity { protocol: self.protocol, vip, endpoint, detail: self.detail.clone() }
    }
}

/// Replaces the file as a whole.
pub(crate) fn save(path: &Path, tables: &Tables) -> io::Result<()> {
    let file = File { boot: boot()?, written: uptime()?, tables };
    let new = path.with_extension("state-new");
    let _ = std::fs::remove_file(&new);
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create_new(true).mode(0o600).open(&new)?.write_all(&serde_json::to_vec(&file)?)?;
    std::fs::rename(&new, path)
}

/// The tables that the last agent left, as far as they go with the configuration; empty if there are none.
pub(crate) fn load(path: &Path, config: &Config, own: HostId) -> Tables {
    let read = || -> io::Result<Option<Tables>> {
        let file: File<Tables> = serde_json::from_slice(&std::fs::read(path)?)?;
        let is_fresh = file.boot == boot()? && uptime()? - file.written < FRESH.as_secs_f64();
        Ok(is_fresh.then_some(file.tables))
    };
    let mut tables = match read() {
        Ok(tables) => tables.unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Tables::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the last agent's state is of no use");
            Tables::default()
        }
    };
    for (host, rows) in &mut tables.0 {
        rows.retain_mut(|row| match config.application(own, *host, row.application) {
            None => row.by_itself,
            Some(known) => {
                row.probed_health = row.probed_health.filter(|_| known.probe.is_some());
                row.measured_load = row.measured_load.filter(|_| !known.load.is_empty());
                row.capacity = known.capacity;
                !row.by_itself && row.identity() == known.identity()
            }
        });
    }
    tables
}

fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// In seconds; not the clock that people set.
fn uptime() -> io::Result<f64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let first = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    first.ok_or_else(|| io::Error::other("/proc/uptime has no number"))
}

const FRESH: Duration = Duration::from_secs(60);
/// A file that is the same is written so often all the same.
pub(crate) const AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn row(application: u32, by_itself: bool) -> SavedRow {
        SavedRow {
            application: ApplicationId(application),
            protocol: 6,
            vip: None,
            endpoint: None,
            detail: String::new(),
            capacity: 50,
            lease: None,
            target: Directive::Draining,
            reported_health: Some(Health::Healthy),
            probed_health: Some(Health::Healthy),
            reported_load: None,
            measured_load: None,
            load: 0.25,
            by_itself,
        }
    }

    #[test]
    fn the_configuration_counts_more_than_the_last_agent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.state");
        let yaml = "units: {1: '10.0.0.2:7300'}\napplications: [{application: 1}, {application: 2, detail: other}, {application: 3}]";
        let config = Config::parse(yaml).ok().unwrap();
        let rows = vec![row(1, false), row(2, false), row(3, true), row(4, false), row(5, true)];
        save(&path, &Tables([(HostId(7), rows.clone())].into())).unwrap();
        let kept = load(&path, &config, HostId(7)).0.remove(&HostId(7)).unwrap();
        assert_eq!(kept, [SavedRow { probed_health: None, ..rows[0].clone() }, rows[4].clone()]);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(load(&path, &config, HostId(7)), Tables::default());
    }
}
