//! A unit with agents on the loopback, and what others see of it: HAProxy, readers over HTTP, and nodes whose certificates change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

mod haproxy;
mod pages;
mod renewal;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_health_link::{Agent, Cache, Keys, ListenSettings, Listener};
use weir_health_load::{Directive, Health};
use weir_health_protocol::{CachedHost, HostSettings, Identity, Status, UnitSettings};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};
use weir_pki::{Authority, Node};

const APPLICATION: ApplicationId = ApplicationId(1);

/// A unit with the authority.
struct Cluster {
    authority: Authority,
    listener: Listener,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// To be made within a Tokio runtime.
    fn new() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        let keys = authority.issue("unit-1", &Node::Unit(UnitId(1)), 1).unwrap();
        let settings = ListenSettings {
            unit: UnitSettings::new(UnitId(1), Incarnation(1)),
            address: loopback(),
            peers: BTreeMap::new(),
            expected: vec![HostId(99)],
        };
        let listener = Listener::spawn(settings, &Keys::load(&keys).unwrap()).unwrap();
        Cluster { authority, listener, _directory: directory }
    }

    fn cache(&self) -> Cache {
        self.listener.cache()
    }

    /// An agent with one application.
    fn agent(&self, host: u32, capacity: u8) -> Speaker {
        let keys = self.authority.issue(&format!("host-{host}"), &Node::Hosts([HostId(host)].into()), 1).unwrap();
        self.agent_of(host, capacity, &keys)
    }

    /// The same with these keys.
    fn agent_of(&self, host: u32, capacity: u8, keys: &Path) -> Speaker {
        let id = HostId(host);
        let settings = HostSettings { interval: Duration::from_millis(200), ..HostSettings::new(id) };
        let units = BTreeMap::from([(UnitId(1), self.listener.address())]);
        let agent = Agent::spawn(vec![settings], units, &Keys::load(keys).unwrap()).unwrap();
        agent
            .with(id, |end, _| end.register(APPLICATION, Identity::default(), capacity, Directive::Active))
            .unwrap()
            .unwrap();
        let speaker = Speaker { agent, host: id, capacity };
        speaker.say(Health::Healthy, 0);
        speaker
    }

    /// Waits until the cache says so of a host; how long that took.
    async fn until(&self, host: HostId, what: &str, is: impl Fn(&CachedHost) -> bool) -> Duration {
        let (begun, mut cache) = (Instant::now(), self.cache());
        while !cache.with(|end, _| end.host(host).is_some_and(&is)) {
            let known = || cache.with(|end, _| format!("{:?}", end.host(host)));
            assert!(begun.elapsed() < PATIENCE, "never {what}: {}", known());
            let _ = tokio::time::timeout(Duration::from_millis(20), cache.changed()).await;
        }
        begun.elapsed()
    }
}

struct Speaker {
    agent: Agent,
    host: HostId,
    capacity: u8,
}

impl Speaker {
    fn say(&self, health: Health, load: u8) {
        let status = Status { health, load, capacity: self.capacity };
        self.agent.with(self.host, |end, _| end.report(APPLICATION, status)).unwrap().unwrap();
    }

    fn direct(&self, to: Directive) {
        self.agent.with(self.host, |end, now| end.direct(APPLICATION, to, now)).unwrap().unwrap();
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

const PATIENCE: Duration = Duration::from_secs(30);
