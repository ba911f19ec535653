//! What many hosts cost one unit, over real QUIC: `cargo bench -p weir-health-link --bench scale`.
//!
//! The hosts (agents as they are, one certificate and one socket each) run in two other processes, which share the machine; counted is the CPU
//! time of the one thread that the unit's listener runs on. The hosts begin one after another, since they have no machine each: those first that
//! are to lead. Once all are known and have their leaders: its CPU time over 30 s with a heartbeat a second. Without groups, and with groups
//! of 100. Then, without groups, the listener is dropped and another one begins at once, with an empty cache, while all hosts are up: that is
//! the cold start, over when all hosts are live again with all their rows. `WEIR_HOSTS` (10000), `WEIR_GROUP` (100; only this run) and
//! `WEIR_SECONDS` (30) change that. A line of JSON follows each line of the table.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command};
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
        return hosts(
            Path::new(&arguments[at + 1]),
            number(2),
            number(3),
            arguments[at + 4].parse().unwrap(),
            number(5),
        );
    }
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u32>().unwrap());
    let hosts = setting("WEIR_HOSTS").unwrap_or(10_000);
    let seconds = setting("WEIR_SECONDS").unwrap_or(30);
    raise_files();
    println!("hosts  group  CPU of a core  heartbeats/s  KiB/host  cold start            (hosts' processes: CPU)");
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
    let before = resident();
    let listening = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(listen(&unit, address, hosts, group, seconds))
    });
    let children: Vec<Hosts> =
        (0..PROCESSES).map(|part| Hosts::start(directory.path(), hosts, group, address, part)).collect();
    let measured = listening.join().unwrap();
    let kib = measured.resident.saturating_sub(before) / u64::from(hosts);
    let theirs: f64 = children.iter().map(Hosts::cpu_seconds).sum();
    drop(children);
    let per_cent = measured.cpu.as_secs_f64() * 100.0 / f64::from(seconds);
    let beats = measured.beats / u64::from(seconds);
    let start = measured.start.map(|(took, cpu)| (took.as_secs_f64(), cpu.as_secs_f64()));
    let (live, led) = (measured.live, measured.led);
    let start_line = start.map_or(String::new(), |(took, cpu)| format!("{took:.2} s, CPU {cpu:.2} s"));
    println!(
        "{hosts:>5}  {group:>5}  {per_cent:>11.1} %  {beats:>12}  {kib:>8}  {start_line:<20}  ({theirs:.0} s in all)"
    );
    let start_json =
        start.map_or(String::new(), |(took, cpu)| format!(",\"cold_start_s\":{took:.2},\"start_cpu_s\":{cpu:.2}"));
    println!(
        "{{\"bench\":\"scale\",\"hosts\":{hosts},\"group\":{group},\"cpu_per_cent\":{per_cent:.2},\"heartbeats_per_s\":{beats},\"kib_per_host\":{kib},\"live\":{live},\"led\":{led}{start_json}}}"
    );
}

struct Measured {
    /// The cold start: how long it took, and the unit's CPU time.
    start: Option<(Duration, Duration)>,
    cpu: Duration,
    /// Taken in that time: more than once each second and host, if they come by two ways.
    beats: u64,
    /// KiB.
    resident: u64,
    live: usize,
    /// So many whose latest heartbeat came by their leader.
    led: usize,
}

async fn listen(keys: &Path, address: SocketAddr, hosts: u32, group: u32, seconds: u32) -> Measured {
    let settings = ListenSettings {
        unit: UnitSettings::new(UnitId(1), Incarnation(1)),
        address,
        peers: BTreeMap::new(),
        expected: Vec::new(),
    };
    let keys = Keys::load(keys).unwrap();
    let listener = Listener::spawn(settings.clone(), &keys).unwrap();
    let begun = Instant::now();
    all_known(&listener, hosts, 600).await;
    eprintln!("{hosts} hosts are up after {:?}", begun.elapsed());
    // Groups find their leaders, and connections that were too many are given up.
    let cache = listener.cache();
    let led = || cache.with(|end, _| end.hosts().filter(|(_, host)| host.leader().is_some()).count());
    tokio::time::sleep(Duration::from_secs(15)).await;
    let wanted = if group > 1 { hosts as usize / 100 * 98 } else { 0 };
    while led() < wanted && begun.elapsed() < Duration::from_secs(300) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    eprintln!("{} are led after {:?}", led(), begun.elapsed());
    let beats = || cache.with(|end, _| end.beats());
    let (begun, cpu_before, beats_before) = (Instant::now(), cpu(), beats());
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let scale = f64::from(seconds) / begun.elapsed().as_secs_f64();
    let (cpu_steady, beats) = ((cpu() - cpu_before).mul_f64(scale), beats() - beats_before);
    let (resident, live) = (resident(), known(&listener));
    let led = led();
    let steady = Measured { start: None, cpu: cpu_steady, beats, resident, live, led };
    if group > 1 {
        return steady;
    }
    eprintln!(
        "{:.1} % of a core for {live} live hosts, {} KiB",
        steady.cpu.as_secs_f64() * 100.0 / f64::from(seconds),
        resident
    );

    drop(listener);
    let (begun, cpu_before) = (Instant::now(), cpu());
    let listener = loop {
        match Listener::spawn(settings.clone(), &keys) {
            Ok(listener) => break listener,
            // The old one's task is not over yet.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    all_known(&listener, hosts, 120).await;
    Measured { start: Some((begun.elapsed(), cpu() - cpu_before)), ..steady }
}

async fn all_known(listener: &Listener, hosts: u32, seconds: u64) {
    let (begun, mut told) = (Instant::now(), 0);
    loop {
        let (known, waited) = (known(listener), begun.elapsed().as_secs());
        if known == hosts as usize {
            return;
        }
        assert!(waited < seconds, "only {known} of {hosts} hosts are live");
        if waited >= told + 10 {
            told = waited;
            eprintln!("{waited} s: {known} of {hosts} hosts are live");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many hosts are live, with all their rows.
fn known(listener: &Listener) -> usize {
    let known = |(_, host): &(HostId, &weir_health_protocol::CachedHost)| {
        host.presence() == Presence::Live && host.table().len() == APPLICATIONS
    };
    listener.cache().with(|end, _| end.hosts().filter(known).count())
}

/// One of the processes of the hosts.
struct Hosts(Child);

impl Hosts {
    fn start(directory: &Path, hosts: u32, group: u32, unit: SocketAddr, part: u32) -> Hosts {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--hosts").arg(directory);
        command.args([hosts.to_string(), group.to_string(), unit.to_string(), part.to_string()]);
        Hosts(command.spawn().unwrap())
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

/// Another process, with its part of the groups.
fn hosts(directory: &Path, count: u32, group: u32, unit: SocketAddr, part: u32) {
    raise_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut agents = Vec::new();
        let leads = |host: &u32| first(*host, group) == *host;
        let (leaders, mut others): (Vec<u32>, Vec<u32>) =
            (1..=count).filter(|host| (host - 1) / group % PROCESSES == part).partition(leads);
        // One of each group after the other: whoever looks for its leader asks all that are new, too.
        others.sort_by_key(|host| (host - 1) % group);
        // They have no machine each: so many at once may look for their unit and their leader, and none while this process is late.
        let (mut settling, at_once) = (Vec::new(), 6);
        for host in leaders.into_iter().chain(others) {
            agents.push(begin(directory, host, group, count, unit));
            settling.push(agents.len() - 1);
            let mut is_late = false;
            while settling.len() >= at_once || is_late {
                let (begun, rest) = (Instant::now(), Duration::from_millis(5));
                tokio::time::sleep(rest).await;
                is_late = begun.elapsed() > rest + rest;
                settling.retain(|agent| !is_settled(&agents[*agent]));
            }
        }
        std::future::pending::<()>().await;
    });
}

fn is_settled(agent: &Agent) -> bool {
    !agent.links().is_empty() && agent.group().is_none_or(|group| group.leader.is_some())
}

fn begin(directory: &Path, host: u32, group: u32, count: u32, unit: SocketAddr) -> Agent {
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
    agent
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
    if setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

const APPLICATIONS: usize = 4;
/// So many processes for the hosts: what they may open is limited for each.
const PROCESSES: u32 = 2;
