//! A unit's listener with its authority, agents as processes, and a machine that is watched.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use weir_health_link::{Cache, Keys, ListenSettings, Listener};
use weir_health_load::Health;
use weir_health_protocol::{CachedHost, Presence, UnitSettings};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};
use weir_pki::{Authority, Node};

pub(crate) struct Farm {
    pub(crate) cache: Cache,
    listener: Listener,
    authority: Authority,
    directory: tempfile::TempDir,
}

/// A running `weir-host`, which is killed with its value.
pub(crate) struct Agent {
    process: Mutex<Child>,
    socket: PathBuf,
}

/// What a unit took a row for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) rank: u8,
    /// None: the host is not live, or has no such row.
    pub(crate) health: Option<Health>,
}

pub(crate) struct Seen {
    task: JoinHandle<()>,
    states: std::sync::Arc<Mutex<Vec<State>>>,
}

impl Farm {
    pub(crate) async fn new() -> Farm {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("pki")).unwrap();
        let keys = authority.issue("unit-1", &Node::Unit(UnitId(1)), 1).unwrap();
        let settings = ListenSettings {
            unit: UnitSettings::new(UnitId(1), Incarnation(1)),
            address: "127.0.0.1:0".parse().unwrap(),
            peers: BTreeMap::new(),
            expected: Vec::new(),
        };
        let listener = Listener::spawn(settings, &Keys::load(&keys).unwrap()).unwrap();
        Farm { cache: listener.cache(), listener, authority, directory }
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts an agent that may speak for these hosts; it runs on the first.
    pub(crate) fn agent(&self, name: &str, hosts: &[u32], yaml: &str) -> Agent {
        self.start(name, hosts[0], Farm::speaks_for(hosts), yaml, |_| {})
    }

    /// One whose clock is what the file says.
    pub(crate) fn agent_with_clock(&self, name: &str, hosts: &[u32], yaml: &str, clock: &Path) -> Agent {
        self.start(name, hosts[0], Farm::speaks_for(hosts), yaml, |command| with_clock(command, clock))
    }

    /// Starts the agent of a host that is one of a group.
    pub(crate) fn member(&self, host: u32, group: &str, members: &BTreeMap<u32, SocketAddr>) -> Agent {
        let (first, last) = (*members.keys().next().unwrap(), *members.keys().next_back().unwrap());
        let (hosts, vouches) = ([HostId(host)].into(), vec![(HostId(first), HostId(last))]);
        let known: Vec<String> = members.iter().map(|(host, address)| format!("{host}: '{address}'")).collect();
        let yaml = format!(
            "applications: [{{application: 1, capacity: 50}}]\ngroup: {{name: {group}, members: {{{}}}}}",
            known.join(", ")
        );
        self.start(
            &format!("member-{host}"),
            host,
            Node::Member { hosts, group: group.to_owned(), vouches },
            &yaml,
            |_| {},
        )
    }

    fn speaks_for(hosts: &[u32]) -> Node {
        Node::Hosts(hosts.iter().copied().map(HostId).collect())
    }

    fn start(&self, name: &str, own: u32, node: Node, yaml: &str, change: impl FnOnce(&mut Command)) -> Agent {
        let folder = self.folder(name);
        std::fs::create_dir_all(&folder).unwrap();
        let (config, socket) = (folder.join("agent.yaml"), folder.join("agent.sock"));
        if !config.exists() {
            let keys = self.authority.issue(name, &node, 2).unwrap();
            let unit = self.listener.address();
            let text = format!(
                "host: {own}\nkeys: {}\nsocket: {}\nunits: {{1: '{unit}'}}\nheartbeat: {}ms\ndrain: 100ms\n{yaml}\n",
                keys.display(),
                socket.display(),
                HEARTBEAT.as_millis()
            );
            std::fs::write(&config, text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-host"));
        command.args(["run", "--config"]).arg(&config);
        change(&mut command);
        let agent = Agent { process: Mutex::new(command.spawn().unwrap()), socket };
        wait("the agent answers", || agent.output(&["status"]).status.success());
        agent
    }

    pub(crate) fn life(&self, host: u32) -> Incarnation {
        self.cache.with(|end, _| end.host(HostId(host)).map(CachedHost::incarnation)).unwrap()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.cache.with(|end, _| end.generation())
    }

    /// Waits until the cache says so of a host.
    pub(crate) async fn until(&self, host: u32, what: &str, is: impl Fn(&CachedHost) -> bool) {
        let (begun, mut cache) = (Instant::now(), self.cache.clone());
        while !cache.with(|end, _| end.host(HostId(host)).is_some_and(&is)) {
            let known = || cache.with(|end, _| format!("{:?}", end.host(HostId(host))));
            assert!(begun.elapsed() < PATIENCE, "host {host} is never {what}: {}", known());
            let _ = tokio::time::timeout(Duration::from_millis(20), cache.changed()).await;
        }
    }

    /// Notes whatever a row is taken for from now on, with each change of the cache.
    pub(crate) fn watch(&self, host: u32, application: ApplicationId) -> Seen {
        let states = std::sync::Arc::new(Mutex::new(Vec::new()));
        let (noted, mut cache) = (std::sync::Arc::clone(&states), self.cache.clone());
        let task = tokio::spawn(async move {
            loop {
                let state = cache.with(|end, _| {
                    let cached = end.host(HostId(host)).unwrap();
                    State { rank: cached.rank().number(), health: health(cached, application) }
                });
                noted.lock().push(state);
                assert!(cache.changed().await);
            }
        });
        Seen { task, states }
    }
}

impl Seen {
    pub(crate) fn end(self) -> Vec<State> {
        assert!(!self.task.is_finished());
        self.task.abort();
        let mut states = self.states.lock().clone();
        states.dedup();
        states
    }
}

/// One part of what was seen, each time that it was another.
pub(crate) fn steps<T: PartialEq>(seen: &[State], part: impl Fn(&State) -> T) -> Vec<T> {
    let mut steps: Vec<T> = seen.iter().map(part).collect();
    steps.dedup();
    steps
}

pub(crate) fn health(cached: &CachedHost, application: ApplicationId) -> Option<Health> {
    let live = cached.presence() == Presence::Live;
    cached.table().row(application).filter(|_| live).map(|row| row.status.health)
}

/// Lets a program see another time of day: `+0` is the real one.
pub(crate) fn with_clock(command: &mut Command, file: &Path) {
    let found = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime"];
    let library = found.iter().map(|folder| Path::new(folder).join("libfaketime.so.1")).find(|path| path.exists());
    command
        .env("LD_PRELOAD", library.expect("the package faketime (scripts/setup)"))
        .env("FAKETIME_TIMESTAMP_FILE", file)
        .env("FAKETIME_NO_CACHE", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

impl Agent {
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-host"));
        command.arg("--socket").arg(&self.socket).args(words).output().unwrap()
    }

    pub(crate) fn ask(&self, words: &[&str]) {
        let done = self.output(words);
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.output(&["status", "--json"]).stdout).unwrap()
    }

    /// Status code and body.
    pub(crate) fn curl(&self, method: &str, path: &str, body: &str) -> (String, String) {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-w", "\n%{http_code}", "-X", method, "-H", "content-type: application/json", "-d", body]);
        curl.arg("--unix-socket").arg(&self.socket).arg(format!("http://weir-host{path}"));
        let done = curl.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = String::from_utf8(done.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    pub(crate) fn kill(self) {
        self.signal("KILL");
        self.process.lock().wait().unwrap();
    }

    /// As when the machine goes down.
    pub(crate) fn terminate(self) {
        self.signal("TERM");
        assert!(self.process.lock().wait().unwrap().success());
    }

    /// As when it is upgraded.
    pub(crate) fn hand_over(self) {
        self.signal("USR2");
        assert!(self.process.lock().wait().unwrap().success());
        let mode = std::fs::metadata(self.socket.with_extension("sock.state")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.lock().id().to_string();
        assert!(Command::new("kill").args([format!("-{signal}"), pid]).status().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut process = self.process.lock();
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A machine without an agent: connections to it succeed or are refused.
pub(crate) struct Watched {
    address: SocketAddr,
    listener: Mutex<Option<TcpListener>>,
}

impl Watched {
    pub(crate) fn serve() -> Watched {
        // An address of its own on the loopback: nobody else takes the port while it is closed.
        let listener = TcpListener::bind(("127.0.0.41", 0)).unwrap();
        Watched { address: listener.local_addr().unwrap(), listener: Mutex::new(Some(listener)) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn close(&self) {
        *self.listener.lock() = None;
    }

    pub(crate) fn open(&self) {
        *self.listener.lock() = Some(TcpListener::bind(self.address).unwrap());
    }
}

pub(crate) fn wait(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);
