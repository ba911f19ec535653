//! What many hosts cost one unit, over real QUIC: `cargo bench -p weir-health-link --bench scale`.
//!
//! The hosts (agents as they are, one certificate and one socket each) run in another process; counted is the CPU time of the one thread
//! that the unit's listener runs on. All hosts are up before the listener begins: that is the cold start. Then, with a heartbeat a second,
//! its CPU time over 30 s, without groups and with groups of 100. `WEIR_HOSTS` (10000), `WEIR_GROUP` (100; only this run) and
//! `WEIR_SECONDS` (30) change that. A line of JSON follows each line of the table.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use weir_health_link::{Agent, GroupPlan, Keys, ListenSettings, Listener};
use weir_health_load::{Directive, Health};
use weir_health_protocol::{HostSettings, Identity, Presence, Status, UnitSettings};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};
use weir_pki::{Authority, Node};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--hosts") {
        let number = |i: usize| arguments[at + i].parse().unwrap();
        return hosts(Path::new(&arguments[at + 1]), number(2), number(3), arguments[at + 4].parse().unwrap());
    }
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u32>().unwrap());
    let hosts = setting("WEIR_HOSTS").unwrap_or(10_000);
    let seconds = setting("WEIR_SECONDS").unwrap_or(30);
    raise_files();
    println!("hosts  group  cold start  CPU of a core  heartbeats/s  KiB/host  (hosts' process: CPU)");
    for group in setting("WEIR_GROUP").map_or(vec![1, 100], |group| vec![group]) {
        measure(hosts, group, seconds);
    }
}

fn measure(hosts: u32, group: u32, seconds: u32) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(directory.path()).unwrap();
    for host in 1..=hosts {
        let (own, first) = ([HostId(host)].into(), first(host, group));
        let vouches = vec![(HostId(first), HostId(first + group - 1))];
        let node = match group {
            1 => Node::Hosts(own),
            _ => Node::Member { hosts: own, group: format!("g{first}"), vouches },
        };
        authority.issue(&format!("host-{host}"), &node, 1).unwrap();
    }
    let unit = authority.issue("unit-1", &Node::Unit(UnitId(1)), 1).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7399));
    let mut child = Hosts::start(directory.path(), hosts, group, address);
    child.wait_for("up");
    let before = resident();
    let listening = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(listen(&unit, address, hosts, seconds))
    });
    let measured = listening.join().unwrap();
    let kib = (measured.resident.saturating_sub(before)) / u64::from(hosts);
    let theirs = child.cpu_seconds();
    drop(child);
    let per_cent = measured.cpu.as_secs_f64() * 100.0 / f64::from(seconds);
    let start = measured.start.as_secs_f64();
    println!(
        "{hosts:>5}  {group:>5}  {start:>8.2} s  {per_cent:>11.1} %  {:>12}  {kib:>8}  ({theirs:.0} s in all)",
        measured.beats / u64::from(seconds)
    );
    println!(
        "{{\"bench\":\"scale\",\"hosts\":{hosts},\"group\":{group},\"cold_start_s\":{start:.2},\"cpu_per_cent\":{per_cent:.2},\"start_cpu_s\":{:.2},\"heartbeats_per_s\":{},\"kib_per_host\":{kib},\"live_at_end\":{}}}",
        measured.start_cpu.as_secs_f64(),
        measured.beats / u64::from(seconds),
        measured.live,
    );
}

struct Measured {
    start: Duration,
    start_cpu: Duration,
    cpu: Duration,
    /// Taken in that time: more than once each second and host, if they come by two ways.
    beats: u64,
    /// KiB.
    resident: u64,
    live: usize,
}

async fn listen(keys: &Path, address: SocketAddr, hosts: u32, seconds: u32) -> Measured {
    let settings = ListenSettings {
        unit: UnitSettings::new(UnitId(1), Incarnation(1)),
        address,
        peers: BTreeMap::new(),
        expected: Vec::new(),
    };
    let begun = (Instant::now(), cpu());
    let listener = Listener::spawn(settings, &Keys::load(keys).unwrap()).unwrap();
    let cache = listener.cache();
    let count = || {
        cache.with(|end, _| {
            let known = |(_, host): &(HostId, &weir_health_protocol::CachedHost)| {
                host.presence() == Presence::Live && host.table().len() == APPLICATIONS
            };
            end.hosts().filter(known).count()
        })
    };
    while count() < hosts as usize {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(begun.0.elapsed() < Duration::from_secs(120), "only {} of {hosts} hosts are live", count());
    }
    let (start, start_cpu) = (begun.0.elapsed(), cpu() - begun.1);
    // Groups find their leaders, and connections that were too many are given up.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (begun, cpu_before, beats) = (Instant::now(), cpu(), cache.with(|end, _| end.beats()));
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let scale = f64::from(seconds) / begun.elapsed().as_secs_f64();
    let beats = cache.with(|end, _| end.beats()) - beats;
    let cpu = (cpu() - cpu_before).mul_f64(scale);
    Measured { start, start_cpu, cpu, beats, resident: resident(), live: count() }
}

/// The process of all hosts.
struct Hosts(Child);

impl Hosts {
    fn start(directory: &Path, hosts: u32, group: u32, unit: SocketAddr) -> Hosts {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--hosts").arg(directory).args([hosts.to_string(), group.to_string(), unit.to_string()]);
        Hosts(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn wait_for(&mut self, word: &str) {
        let mut lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), word);
    }

    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other process.
fn hosts(directory: &Path, count: u32, group: u32, unit: SocketAddr) {
    raise_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut agents = Vec::new();
        for host in 1..=count {
            let keys = Keys::load(&directory.join(format!("nodes/host-{host}"))).unwrap();
            let plan = (group > 1).then(|| plan(host, group, count));
            let units = BTreeMap::from([(UnitId(1), unit)]);
            let agent = Agent::spawn_in_group(vec![HostSettings::new(HostId(host))], units, plan, &keys).unwrap();
            for application in 1..=APPLICATIONS {
                let application = ApplicationId(u32::try_from(application).unwrap());
                let status = Status { health: Health::Healthy, load: 10, capacity: 50 };
                agent.with(HostId(host), |end, _| {
                    end.register(application, Identity::default(), 50, Directive::Active).unwrap();
                    end.report(application, status).unwrap();
                });
            }
            agents.push(agent);
            if host % 20 == 0 {
                // They do not all beat at the same moment.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        println!("up");
        std::future::pending::<()>().await;
    });
}

fn plan(host: u32, group: u32, count: u32) -> GroupPlan {
    let first = first(host, group);
    let address = |host: u32| {
        let [_, _, high, low] = host.to_be_bytes();
        SocketAddr::from((Ipv4Addr::new(127, 77, high, low), 7301))
    };
    let peers = (first..first + group).filter(|host| *host <= count).map(|host| (HostId(host), address(host)));
    GroupPlan { group: format!("g{first}"), host: HostId(host), listen: address(host), peers: peers.collect() }
}

fn first(host: u32, group: u32) -> u32 {
    (host - 1) / group * group + 1
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// Of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(1 << 20, |maximum| maximum.max(65_536));
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) });
}

const APPLICATIONS: usize = 4;
