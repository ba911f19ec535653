//! The agent's YAML.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use weir_health_load::Directive;
use weir_health_protocol::{CAPACITY_MAX, Identity, Rank};
use weir_identity::{ApplicationId, HostId, UnitId};

/// What the agent is told at its start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// This host's id, as in the units' YAML (`hosts[].id`); default: the only one that the certificate names.
    pub(crate) host: Option<HostId>,
    /// Its DNS name, told to units now and then; default: none.
    pub(crate) name: Option<String>,
    /// Directory with authority.pem, node.pem, node.key and perhaps revoked.pem; default: /etc/weir-host.
    #[serde(default = "default_keys")]
    pub(crate) keys: PathBuf,
    /// All units with their addresses; the agent links to two of them.
    pub(crate) units: BTreeMap<UnitId, SocketAddr>,
    /// Where applications report; default: /run/weir-host.sock.
    #[serde(default = "default_socket")]
    pub(crate) socket: PathBuf,
    /// What the next agent goes on with after a restart; default: the socket's path with `.state` behind it.
    state: Option<PathBuf>,
    /// Time between heartbeats, 100ms to 60s; default: 1s. Three missed ones, and the host gets nothing new.
    #[serde(default = "second", deserialize_with = "duration")]
    pub(crate) heartbeat: Duration,
    /// A group of hosts whose leader sends the heartbeats of all; default: none, it sends its own.
    pub(crate) group: Option<Group>,
    /// How long connections may go on after SIGTERM before the agent says goodbye; default: 5s.
    #[serde(default = "five_seconds", deserialize_with = "duration")]
    pub(crate) drain: Duration,
    /// Applications that are known beforehand; others register themselves.
    #[serde(default)]
    pub(crate) applications: Vec<Application>,
    /// Other machines without an agent that this one watches from outside.
    #[serde(default)]
    pub(crate) proxied: Vec<Proxied>,
}

/// The group that this host is in; the same text on all its hosts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    /// Its name, as in the certificate (`weirctl pki host 7 --group NAME --members 1-20`).
    pub(crate) name: String,
    /// Its hosts, and where each listens for the others; this one, too. All have the same `heartbeat`.
    pub(crate) members: BTreeMap<HostId, SocketAddr>,
}

/// A machine without an agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Proxied {
    /// Its id; the certificate has to name it.
    pub(crate) host: HostId,
    /// Where several watch it, the one with the lowest counts, 1–3; default: 1. An agent of its own, if it gets one, is better than any.
    #[serde(default = "first", deserialize_with = "rank")]
    pub(crate) rank: Rank,
    /// What it serves. Load cannot be seen from outside; it can be reported here by whoever knows it.
    #[serde(default)]
    pub(crate) applications: Vec<Application>,
}

/// One application.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Application {
    /// Its number, as in the units' YAML (`endpoints[].application`).
    pub(crate) application: ApplicationId,
    /// What it can take, relative to the same on other hosts, 0–99; default: 50.
    #[serde(default = "fifty")]
    pub(crate) capacity: u8,
    /// Its own address and port: what is probed, and whose accept queue is looked at.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The virtual address and port, for the record.
    pub(crate) vip: Option<SocketAddr>,
    /// What only its protocol knows, for the record.
    #[serde(default)]
    pub(crate) detail: String,
    /// How its health is found out; default: it reports itself.
    pub(crate) probe: Option<Probe>,
    /// What its load is found out from, the highest counts; default: it reports itself.
    #[serde(default)]
    pub(crate) load: Vec<Measure>,
    /// What units are to do while it is failing: `inactive` ends the connections that it has, `draining` lets them go on. Default: nothing
    /// but what its health says, which is nothing new.
    pub(crate) failing: Option<Directive>,
    /// The systemd service that has to be active for the row to be there.
    pub(crate) service: Option<String>,
}

/// A probe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Probe {
    /// Ask for this path and expect 2xx or 3xx; default: only connect.
    pub(crate) http: Option<String>,
    /// Run this instead; exit code 0 is healthy.
    pub(crate) command: Option<Vec<String>>,
    /// Time between two probes; default: 1s.
    #[serde(default = "second", deserialize_with = "duration")]
    pub(crate) interval: Duration,
    /// An answer later than this is none; default: 1s.
    #[serde(default = "second", deserialize_with = "duration")]
    pub(crate) timeout: Duration,
    /// Successes in a row until healthy; default: 1.
    #[serde(default = "one")]
    pub(crate) rise: u32,
    /// Failures in a row until failing; default: 2.
    #[serde(default = "two")]
    pub(crate) fall: u32,
}

/// What says how busy the machine or an application is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// Part of the time in which some task waited for a CPU (`/proc/pressure/cpu`, the last 10 s).
    Pressure,
    /// Part of all CPUs' time that was not idle.
    Cpu,
    /// Connections that wait to be accepted, as a part of the backlog.
    AcceptQueue,
}

/// Why a configuration is of no use.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Yaml { path: PathBuf, source: serde_yaml::Error },
    #[error("units: at least one is needed")]
    NoUnits,
    #[error("heartbeat: {0:?} is not within 100ms–60s")]
    Heartbeat(Duration),
    #[error("application {0}: capacity {1} is above {CAPACITY_MAX}")]
    Capacity(ApplicationId, u8),
    #[error("application {0} is there twice")]
    Twice(ApplicationId),
    #[error("application {0}: a probe or accept-queue needs an endpoint")]
    NoEndpoint(ApplicationId),
    #[error("application {0}: {1}")]
    Probe(ApplicationId, &'static str),
    #[error("host {0}: its load cannot be measured from outside")]
    LoadOutside(HostId),
    #[error("application {0}: failing is draining or inactive")]
    FailingActive(ApplicationId),
    #[error("host {0} is proxied twice")]
    ProxiedTwice(HostId),
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Config::parse(&text).map_err(|error| match error {
            Problem::Yaml(source) => ConfigError::Yaml { path: path.into(), source },
            Problem::Value(error) => error,
        })
    }

    pub(crate) fn parse(text: &str) -> Result<Config, Problem> {
        let config: Config = serde_yaml::from_str(text).map_err(Problem::Yaml)?;
        config.check().map_err(Problem::Value)?;
        Ok(config)
    }

    /// An application of one of its hosts, `own` being the one it runs on.
    pub(crate) fn application(&self, own: HostId, host: HostId, id: ApplicationId) -> Option<&Application> {
        let proxied = self.proxied.iter().filter(|proxied| proxied.host == host).flat_map(|known| &known.applications);
        let own = self.applications.iter().filter(|_| own == host);
        own.chain(proxied).find(|known| known.application == id)
    }

    /// What the next agent goes on with.
    pub(crate) fn state(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| {
            let mut path = self.socket.clone().into_os_string();
            path.push(".state");
            path.into()
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.units.is_empty() {
            return Err(ConfigError::NoUnits);
        }
        if self.heartbeat < Duration::from_millis(100) || self.heartbeat > Duration::from_secs(60) {
            return Err(ConfigError::Heartbeat(self.heartbeat));
        }
        check_all(&self.applications)?;
        for (i, proxied) in self.proxied.iter().enumerate() {
            if self.proxied[..i].iter().any(|other| other.host == proxied.host) || self.host == Some(proxied.host) {
                return Err(ConfigError::ProxiedTwice(proxied.host));
            }
            check_all(&proxied.applications)?;
            if proxied.applications.iter().any(|application| !application.load.is_empty()) {
                return Err(ConfigError::LoadOutside(proxied.host));
            }
        }
        Ok(())
    }
}

fn check_all(applications: &[Application]) -> Result<(), ConfigError> {
    for (i, known) in applications.iter().enumerate() {
        let id = known.application;
        if known.capacity > CAPACITY_MAX {
            return Err(ConfigError::Capacity(id, known.capacity));
        }
        if applications[..i].iter().any(|other| other.application == id) {
            return Err(ConfigError::Twice(id));
        }
        if known.failing == Some(Directive::Active) {
            return Err(ConfigError::FailingActive(id));
        }
        let asks = known.probe.as_ref().is_some_and(|probe| probe.command.is_none());
        if known.endpoint.is_none() && (asks || known.load.contains(&Measure::AcceptQueue)) {
            return Err(ConfigError::NoEndpoint(id));
        }
        let Some(probe) = &known.probe else { continue };
        let bad_path = |path: &String| !path.starts_with('/') || path.contains(|c: char| c <= ' ' || c == '\x7f');
        if probe.http.as_ref().is_some_and(bad_path) {
            return Err(ConfigError::Probe(id, "probe.http begins with / and has no spaces"));
        }
        if probe.http.is_some() && probe.command.is_some() {
            return Err(ConfigError::Probe(id, "probe has either http or command"));
        }
        if probe.command.as_ref().is_some_and(Vec::is_empty) {
            return Err(ConfigError::Probe(id, "probe.command names no program"));
        }
        if probe.rise == 0 || probe.fall == 0 || probe.interval.is_zero() || probe.timeout.is_zero() {
            return Err(ConfigError::Probe(id, "probe.rise, fall, interval and timeout have to be above 0"));
        }
    }
    Ok(())
}

impl Application {
    /// What goes into the row.
    pub(crate) fn identity(&self) -> Identity {
        let pair = |address: SocketAddr| (address.ip(), address.port());
        Identity {
            protocol: 6,
            vip: self.vip.map(pair),
            endpoint: self.endpoint.map(pair),
            detail: self.detail.clone(),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Problem {
    Yaml(serde_yaml::Error),
    Value(ConfigError),
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

fn rank<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Rank, D::Error> {
    let number = u8::deserialize(deserializer)?;
    let rank = Rank::new(number).filter(|_| number > 0);
    rank.ok_or_else(|| serde::de::Error::custom(format!("rank {number} is not within 1–{}", Rank::WORST)))
}

fn first() -> Rank {
    Rank::new(1).unwrap_or_default()
}

fn default_keys() -> PathBuf {
    "/etc/weir-host".into()
}

/// Where applications report unless the YAML says otherwise.
pub(crate) fn default_socket() -> PathBuf {
    "/run/weir-host.sock".into()
}

fn second() -> Duration {
    Duration::from_secs(1)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn fifty() -> u8 {
    50
}

fn one() -> u32 {
    1
}

fn two() -> u32 {
    2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        match Config::parse(text) {
            Ok(_) => "none".into(),
            Err(Problem::Yaml(error)) => error.to_string(),
            Err(Problem::Value(error)) => error.to_string(),
        }
    }

    #[test]
    fn the_examples_are_read() {
        for example in ["proxy-1.yaml", "proxy-2.yaml"] {
            let config = Config::load(&Path::new("../../configs/weir-host").join(example)).unwrap();
            assert!(config.applications.is_empty() && config.proxied.len() == 2, "{example}");
        }
        let config = Config::load(Path::new("../../configs/weir-host/all-keys.yaml")).unwrap();
        assert_eq!(config.host, Some(HostId(1)));
        assert_eq!(config.applications[0].load, [Measure::Pressure, Measure::Cpu, Measure::AcceptQueue]);
    }

    #[test]
    fn doubts_are_refused() {
        assert_eq!(problem("units: {1: '10.0.0.2:7300'}"), "none");
        for (text, why) in [
            ("units: {}", "at least one"),
            ("units: {1: '10.0.0.2:7300'}\napplications: [{application: 1, failing: active}]", "draining or inactive"),
            ("units: {1: '10.0.0.2:7300'}\nproxied: [{host: 9, rank: 4}]", "within 1–3"),
            ("units: {1: '10.0.0.2:7300'}\nproxied: [{host: 9}, {host: 9, rank: 2}]", "twice"),
            ("units: {1: '10.0.0.2:7300'}\nheartbeat: 1ms", "100ms"),
            ("units: {1: '10.0.0.2:7300'}\nspeed: 1", "unknown field"),
            ("units: {1: '10.0.0.2:7300'}\napplications: [{application: 1, capacity: 100}]", "above 99"),
            ("units: {1: '10.0.0.2:7300'}\napplications: [{application: 1}, {application: 1}]", "twice"),
            ("units: {1: '10.0.0.2:7300'}\napplications: [{application: 1, probe: {}}]", "endpoint"),
            ("units: {1: '10.0.0.2:7300'}\napplications: [{application: 1, probe: {command: []}}]", "no program"),
        ] {
            assert!(problem(text).contains(why), "{text}: {}", problem(text));
        }
    }
}
