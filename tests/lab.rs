//! The real program between real clients and hosts: each test drives a farm of its own, made by `scripts/lab` in namespaces.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;

mod programs;

use programs::bin_dir;

/// Under `cargo test` the farms share a process and the machine's few cores; nextest has a test group for that.
static ONE_FARM: Mutex<()> = Mutex::new(());

#[test]
fn dsr_serves_ipv4() {
    serves("dsr4", &["--mode", "dsr"]);
}

#[test]
fn dsr_serves_ipv6() {
    serves("dsr6", &["--mode", "dsr", "--ipv6"]);
}

#[test]
fn nat_serves_ipv4() {
    serves("nat4", &["--mode", "nat", "--no-agents"]);
}

#[test]
fn nat_serves_ipv6() {
    serves("nat6", &["--mode", "nat", "--ipv6"]);
}

#[test]
fn ipip_serves_ipv4() {
    serves("ipip4", &["--mode", "ipip"]);
}

#[test]
fn ipip_serves_ipv6_where_the_tunnel_takes_1280_bytes() {
    serves("ipip6", &["--mode", "ipip", "--ipv6", "--mtu", "1320"]);
}

#[test]
fn gue_serves_ipv4_where_the_tunnel_takes_1280_bytes() {
    serves("gue4", &["--mode", "gue", "--mtu", "1332"]);
}

#[test]
fn gue_serves_ipv6() {
    serves("gue6", &["--mode", "gue", "--ipv6"]);
}

#[test]
fn nat_serves_where_the_hosts_have_a_smaller_mtu() {
    serves("mtuh", &["--mode", "nat", "--mtu", "1280"]);
}

#[test]
fn nat_serves_where_the_clients_have_a_smaller_mtu() {
    serves("mtuc", &["--mode", "nat", "--ipv6", "--client-mtu", "1280"]);
}

#[test]
fn full_nat_serves_ipv4() {
    serves("fullnat4", &["--mode", "full-nat"]);
}

#[test]
fn full_nat_serves_ipv6() {
    serves("fullnat6", &["--mode", "full-nat", "--ipv6"]);
}

#[test]
fn full_nat_serves_ipv4_clients_by_ipv6_hosts() {
    serves("across4", &["--mode", "full-nat", "--across"]);
}

#[test]
fn full_nat_serves_ipv6_clients_by_ipv4_hosts() {
    serves("across6", &["--mode", "full-nat", "--across", "--ipv6", "--mtu", "1400"]);
}

/// A whole run of the lab: no failed request, and new connections spread by capacity.
fn serves(name: &str, options: &[&str]) {
    let farm = Farm::new(name);
    let results = farm.results_path();
    // A machine that is busy with other things makes too few connections in the first time.
    for duration in ["3s", "10s", "30s"] {
        let mut lab = farm.lab(&[]);
        lab.args(options).args(["--duration", duration, "--json"]).arg(&results).arg("--bin-dir").arg(bin_dir());
        expect_success(&lab.output().expect("scripts/lab starts"));
        let results = read_json(&results);
        for load in results["loads"].as_array().expect("loads") {
            assert_eq!(load["failures"], 0, "{load}");
        }
        if connections(&results) >= ENOUGH {
            return assert_spread(&results);
        }
    }
    panic!("fewer than {ENOUGH} connections in 30 s");
}

#[test]
fn a_dead_host_gets_nothing_new() {
    gets_nothing_new("dead", &[]);
}

#[test]
fn a_dead_host_without_an_agent_gets_nothing_new() {
    gets_nothing_new("probed", &["--no-agents"]);
}

fn gets_nothing_new(name: &str, options: &[&str]) {
    let farm = Farm::up(name, options);
    let mut load = farm.load_in_background("4s");
    farm.call(&["host", "kill", "host-2"]);
    farm.wait_for("host-2 is seen failing", |farm| farm.health("host-2").iter().all(|health| health == "failing"));
    // Connections that were at host-2 are lost with it; what counts is what comes after the fall.
    load.wait().expect("scripts/lab ends");
    let before = farm.new_connections();
    let results = farm.load("3s");
    assert_eq!(results["loads"][0]["failures"], 0, "{}", results["loads"][0]);
    let given = difference(&farm.new_connections(), &before);
    assert_eq!(given["host-2"], 0, "{given:?}");
    assert!(given["host-1"] > 100 && given["host-3"] > 100, "{given:?}");

    farm.call(&["host", "revive", "host-2"]);
    farm.wait_for("host-2 is healthy", |farm| farm.health("host-2").iter().all(|health| health == "healthy"));
    let results = farm.load("3s");
    assert_eq!(results["loads"][0]["failures"], 0, "{}", results["loads"][0]);
    assert!(results["shares"]["host-2"][0].as_u64().expect("connections") > 100, "{}", results["shares"]);
    farm.down();
}

#[test]
fn shards_move_between_cores_under_load() {
    let farm = Farm::up("shards", &["--mode", "nat"]);
    let status = farm.weirctl(&["status"]);
    let cpus: Vec<u64> = numbers(&status["cores"], "cpu", |core| !core["shards"].is_null());
    let shards: Vec<u64> = numbers(&status["shards"], "id", |_| true);
    let forwarding = farm.forwarding_cpus();
    assert!(shards.len() > forwarding.len(), "more shards than cores: {status}");
    assert!(forwarding.iter().all(|cpu| cpus.contains(cpu)), "{status}");

    let results = farm.results_path();
    let mut load = farm.run_in_background("6s", &results);
    let (mut moves, mut listed) = (0_usize, 0);
    while load.try_wait().expect("scripts/lab runs").is_none() {
        let shard = shards[moves % shards.len()];
        let cpu = forwarding[(moves / shards.len() + moves) % forwarding.len()];
        // Somebody looks through the tables of shards that move.
        thread::scope(|scope| {
            let list = scope.spawn(|| farm.weirctl(&["routes", "list", "--limit", "2000"]));
            farm.weirctl(&["shards", "move", &shard.to_string(), &cpu.to_string()]);
            let list = list.join().expect("the list comes");
            listed = listed.max(list["routes"].as_array().expect("routes").len());
        });
        moves += 1;
        thread::sleep(Duration::from_millis(50));
    }
    expect_end(load);
    assert!(moves > 20 && listed > 0, "{moves} moves, {listed} routes");
    let results = read_json(&results);
    for load in results["loads"].as_array().expect("loads") {
        assert_eq!(load["failures"], 0, "{load}");
    }
    farm.down();
}

#[test]
fn a_drained_host_keeps_what_it_has_and_gets_nothing_new() {
    let farm = Farm::up("drain", &["--mode", "dsr"]);
    // Keep-alive connections live through the drain: a run fails with its first failed request.
    let results = farm.results_path();
    let mut load = farm.run_in_background("4s", &results);
    farm.weirctl(&["hosts", "drain", "host-1"]);
    let mut last = farm.new_connections();
    let mut quiet = 0;
    while load.try_wait().expect("scripts/lab runs").is_none() {
        thread::sleep(Duration::from_millis(200));
        let now = farm.new_connections();
        quiet = if difference(&now, &last)["host-1"] == 0 { quiet + 1 } else { 0 };
        last = now;
    }
    expect_end(load);
    assert!(quiet > 10, "host-1 still got new connections after it was drained");

    let before = farm.new_connections();
    let results = farm.load("2s");
    assert_eq!(results["loads"][0]["failures"], 0, "{}", results["loads"][0]);
    let given = difference(&farm.new_connections(), &before);
    assert_eq!(given["host-1"], 0, "{given:?}");
    assert!(given["host-2"] > 100 && given["host-3"] > 100, "{given:?}");

    farm.weirctl(&["hosts", "resume", "host-1"]);
    let results = farm.load("3s");
    assert_eq!(results["loads"][0]["failures"], 0, "{}", results["loads"][0]);
    assert!(results["shares"]["host-1"][0].as_u64().expect("connections") > 100, "{}", results["shares"]);
    farm.down();
}

#[test]
fn what_agents_say_decides() {
    let farm = Farm::up("agents", &["--mode", "dsr"]);
    // Health: the connection after the one that is known decides.
    let mut times = Vec::new();
    for health in ["failing", "healthy"].repeat(10) {
        let begun = SystemTime::now();
        farm.agent("host-2", &["report", "1", "--health", health]);
        farm.wait_for(&format!("host-2 is {health}"), |farm| farm.health("host-2")[0] == health);
        times.push(begun.elapsed().expect("time passes"));
    }
    times.sort_unstable();
    println!("report to unit, two commands included: median {:?}, worst {:?}", times[10], times[19]);
    farm.agent("host-2", &["report", "1", "--health", "failing"]);
    farm.wait_for("host-2 is failing", |farm| farm.health("host-2")[0] == "failing");
    assert_eq!(farm.given_under_load()["host-2"], 0);
    farm.agent("host-2", &["report", "1", "--health", "healthy"]);

    // Load: a host that is nearly full gets little for its capacity (of 50, 30 and 20), even if clients never pause.
    for _ in 0..2 {
        farm.agent("host-1", &["report", "1", "--load", "45"]);
    }
    farm.wait_for("host-1 is nearly full", |farm| farm.endpoint("host-1")["capacity"].as_u64() < Some(8));
    let given = farm.given_under_load();
    let of_capacity = |host: &str, capacity: u64| given[host] * 100 / capacity;
    let most = of_capacity("host-2", 30).min(of_capacity("host-3", 20)) / 2;
    assert!(of_capacity("host-1", 50) < most, "{given:?}");
    farm.agent("host-1", &["report", "1", "--load", "0"]);

    // Draining returns when the unit knows, and loses no request of the connections that are there.
    let results = farm.results_path();
    let load = farm.run_in_background("4s", &results);
    farm.wait_for("the load runs", |farm| farm.new_connections()["host-1"] > 0);
    farm.agent("host-1", &["drain"]);
    let known = farm.weirctl(&["hosts"])[0].clone();
    assert_eq!((&known["agent"]["presence"], &known["agent"]["rank"]), (&"live".into(), &0.into()));
    assert!(known["agent"]["heard_ms"].as_u64() < Some(3_500), "{known}");
    let said = known["services"][0]["agent"].clone();
    assert!(said["since_ms"].is_u64(), "{said}");
    let page = farm.page("/v1/hosts/1");
    assert_eq!((&page["presence"], &page["applications"][0]["target"]), (&"live".into(), &"draining".into()));
    assert_eq!((&said["target"], &said["current"]), (&"draining".into(), &"draining".into()));
    expect_end(load);
    assert_eq!(farm.given_under_load()["host-1"], 0);
    farm.agent("host-1", &["resume"]);

    // A goodbye counts at once, silence after three heartbeats of a second.
    farm.signal_agent("host-3", "TERM");
    farm.wait_for("host-3 said goodbye", |farm| farm.reason("host-3").contains("goodbye"));
    assert_eq!(farm.given_under_load()["host-3"], 0);
    let begun = SystemTime::now();
    farm.signal_agent("host-2", "KILL");
    farm.wait_for("host-2 is silent", |farm| farm.reason("host-2").contains("silent"));
    let silent = begun.elapsed().expect("time passes");
    println!("silent after {silent:?}");
    assert!(silent > Duration::from_secs(2) && silent < Duration::from_secs(6), "{silent:?}");
    let given = farm.given_under_load();
    assert!(given["host-2"] == 0 && given["host-1"] > 100, "{given:?}");
    farm.down();
}

#[test]
fn a_group_goes_on_without_its_leader() {
    let farm = Farm::up("group", &["--mode", "dsr", "--group"]);
    let all = ["host-1", "host-2", "host-3"];
    farm.wait_for("one leads all", |farm| farm.leader_of(&all).is_some());
    let first = farm.leader_of(&all).expect("a leader");
    let others: Vec<&str> = all.into_iter().filter(|host| *host != first).collect();
    let mut weirctl = Command::new(bin_dir().join("weirctl"));
    weirctl.arg("--socket").arg(farm.folder().join("weir.sock")).arg("hosts");
    let table = weirctl.output().expect("weirctl starts");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.lines().any(|line| line.starts_with(&first) && line.contains("rack") && line.ends_with("leads")),
        "{table}"
    );

    let mut load = farm.load_in_background("10s");
    farm.wait_for("the load runs", |farm| farm.new_connections()[&first] > 0);
    let begun = SystemTime::now();
    farm.signal_agent(&first, "KILL");
    farm.wait_for("another one leads the others", |farm| farm.fresh(&others) && farm.leader_of(&others).is_some());
    let replaced = begun.elapsed().expect("time passes");
    let second = farm.leader_of(&others).expect("a leader");
    println!("{first} was replaced by {second} after {replaced:?}");
    // Three heartbeats, and a moment to find it and to be seen.
    assert!(replaced < Duration::from_secs(5), "{replaced:?}");
    farm.wait_for("the first is silent", |farm| farm.fresh(&others) && farm.reason(&first).contains("silent"));
    assert!(load.wait().expect("scripts/lab ends").success(), "a request failed");
    let given = farm.given_under_load();
    assert!(given[&first] == 0 && others.iter().all(|host| given[*host] > 100), "{given:?}");
    assert_eq!(farm.leader_of(&others), Some(second));
    farm.down();
}

#[test]
fn a_hosts_word_decides() {
    let farm = Farm::new("latency");
    let results = farm.results_path();
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/latency"));
    script.args(["changes", "--changes", "20", "--name", &farm.name, "--json"]).arg(&results);
    expect_success(&script.arg("--bin-dir").arg(bin_dir()).output().expect("scripts/latency starts"));
    let results = &read_json(&results)["changes"];
    // How soon is for the script to say; here it is that each is followed.
    assert_eq!([&results["failing"]["changes"], &results["healthy"]["changes"]], [10, 10], "{results}");
    for end in ["killed", "told to end"] {
        assert!(results[end]["before"].as_u64() > Some(20), "its host was used: {results}");
        assert!(results[end]["after"].as_u64() > Some(20), "the others are used: {results}");
        assert_eq!(results[end]["too late"], 0, "{results}");
    }
    assert_eq!(results["drain"]["failures"], 0, "{results}");
}

#[test]
fn a_killed_lab_leaves_nothing_after_down() {
    let farm = Farm::new("killed");
    let mut lab = farm.lab(&[]);
    lab.args(["--duration", "60s", "--bin-dir"]).arg(bin_dir());
    let mut lab = lab.spawn().expect("scripts/lab starts");
    farm.wait_for("the load runs", |farm| {
        let processes = farm.folder().join("processes");
        processes
            .read_dir()
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("wrk-")))
    });
    lab.kill().expect("scripts/lab can be killed");
    lab.wait().expect("scripts/lab ends");
    assert!(farm.namespaces().len() == 6, "the crash leaves the farm behind: {:?}", farm.namespaces());
    expect_success(&farm.lab(&["down"]).output().expect("scripts/lab starts"));
    assert!(farm.namespaces().is_empty(), "{:?}", farm.namespaces());
    assert!(!farm.folder().exists());
    assert!(!Path::new("/proc").read_dir().expect("/proc").flatten().any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&format!("/run/weir-lab/{}/", farm.name))
    }));
}

/// A farm of one test; goes with its value.
struct Farm {
    name: String,
    _alone: MutexGuard<'static, ()>,
}

impl Farm {
    /// A name for a farm, and its turn.
    fn new(name: &str) -> Self {
        let root = Command::new("id").arg("-u").output().expect("id").stdout.starts_with(b"0");
        assert!(
            root,
            "the lab makes network namespaces: run these tests as root, or leave them out (-E 'not binary(lab)')"
        );
        let farm = Self { name: format!("test-{name}-{}", std::process::id()), _alone: ONE_FARM.lock() };
        assert!(!farm.folder().exists());
        farm
    }

    /// A farm that serves.
    fn up(name: &str, options: &[&str]) -> Self {
        let farm = Self::new(name);
        let mut lab = farm.lab(&["up"]);
        expect_success(&lab.args(options).arg("--bin-dir").arg(bin_dir()).output().expect("scripts/lab starts"));
        farm
    }

    fn lab(&self, words: &[&str]) -> Command {
        let mut lab = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab"));
        lab.args(words).args(["--name", &self.name]).stdin(Stdio::null());
        lab
    }

    fn folder(&self) -> PathBuf {
        Path::new("/run/weir-lab").join(&self.name)
    }

    fn results_path(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", self.name))
    }

    fn call(&self, words: &[&str]) {
        expect_success(&self.lab(words).output().expect("scripts/lab starts"));
    }

    /// Both loads and all checks.
    fn run_in_background(&self, duration: &str, results: &Path) -> Child {
        let mut lab = self.lab(&["run", "--duration", duration]);
        lab.arg("--json")
            .arg(results)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("scripts/lab starts")
    }

    /// Only the load; its result may be anything.
    fn load_in_background(&self, duration: &str) -> Child {
        let mut lab = self.lab(&["run", "--load-only", "--duration", duration]);
        lab.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("scripts/lab starts")
    }

    /// A connection per request for a while.
    fn load(&self, duration: &str) -> Value {
        let results = self.results_path();
        let mut lab = self.lab(&["run", "--load-only", "--duration", duration]);
        expect_success(&lab.arg("--json").arg(&results).output().expect("scripts/lab starts"));
        read_json(&results)
    }

    fn weirctl(&self, words: &[&str]) -> Value {
        let mut weirctl = Command::new(bin_dir().join("weirctl"));
        weirctl.arg("--socket").arg(self.folder().join("weir.sock")).arg("--json").args(words);
        let done = weirctl.stdin(Stdio::null()).output().expect("weirctl starts");
        expect_success(&done);
        serde_json::from_slice(&done.stdout).expect("weirctl --json writes JSON")
    }

    /// The health of a host's endpoints.
    fn health(&self, host: &str) -> Vec<String> {
        self.endpoints()
            .filter(|e| e["host_name"] == host)
            .map(|e| e["health"].as_str().expect("health").to_owned())
            .collect()
    }

    /// By host: connections given to it so far.
    fn new_connections(&self) -> BTreeMap<String, u64> {
        let mut given = BTreeMap::new();
        for endpoint in self.endpoints() {
            let host = endpoint["host_name"].as_str().expect("host_name").to_owned();
            *given.entry(host).or_default() += endpoint["new_connections"].as_u64().expect("new_connections");
        }
        given
    }

    /// By host: what a load without a single failure gave it.
    fn given_under_load(&self) -> BTreeMap<String, u64> {
        let before = self.new_connections();
        let results = self.load("2s");
        assert_eq!(results["loads"][0]["failures"], 0, "{}", results["loads"][0]);
        difference(&self.new_connections(), &before)
    }

    /// Asks a host's agent.
    fn agent(&self, host: &str, words: &[&str]) {
        let mut agent = Command::new(bin_dir().join("weir-host"));
        agent.arg("--socket").arg(self.folder().join(host).join("agent.sock")).args(words);
        expect_success(&agent.stdin(Stdio::null()).output().expect("weir-host starts"));
    }

    /// What the unit tells readers.
    fn page(&self, path: &str) -> Value {
        let mut curl = Command::new("ip");
        curl.args(["netns", "exec", &format!("weir-lab-{}-unit", self.name), "curl", "-sSf", "--noproxy", "*"]);
        let done = curl.arg(format!("http://127.0.0.1:7302{path}")).output().expect("curl starts");
        expect_success(&done);
        serde_json::from_slice(&done.stdout).expect("JSON")
    }

    fn signal_agent(&self, host: &str, signal: &str) {
        let record = read_json(&self.folder().join("processes").join(format!("{host}-agent.json")));
        let killed = Command::new("kill").arg(format!("-{signal}")).arg(record["pid"].to_string()).output();
        expect_success(&killed.expect("kill"));
    }

    /// What the unit knows of these hosts' agents.
    fn agents(&self, hosts: &[&str]) -> Vec<Value> {
        let Value::Array(known) = self.weirctl(&["hosts"]) else { panic!("weirctl hosts answers an array") };
        known.into_iter().filter(|known| hosts.iter().any(|host| known["name"] == *host)).collect()
    }

    /// Fails if one of them was missed.
    fn fresh(&self, hosts: &[&str]) -> bool {
        for host in self.agents(hosts) {
            let agent = &host["agent"];
            assert!(agent["presence"] == "live" && agent["heard_ms"].as_u64() < Some(3_500), "{host}");
        }
        true
    }

    /// Who leads these hosts, if one of them leads all others.
    fn leader_of(&self, hosts: &[&str]) -> Option<String> {
        let known = self.agents(hosts);
        let leader = known.iter().find(|host| host["agent"]["leads"] == true)?;
        let follows = |host: &Value| host["id"] == leader["id"] || host["agent"]["leader"] == leader["id"];
        let grouped = known.iter().all(|host| host["agent"]["group"] == "rack" && follows(host));
        grouped.then(|| leader["name"].as_str().expect("name").to_owned())
    }

    /// A host's endpoint of the first service.
    fn endpoint(&self, host: &str) -> Value {
        self.endpoints().find(|e| e["host_name"] == host).expect("an endpoint")
    }

    /// Why a host's health changed last.
    fn reason(&self, host: &str) -> String {
        let Value::Array(hosts) = self.weirctl(&["hosts"]) else { panic!("weirctl hosts answers an array") };
        let host = hosts.into_iter().find(|known| known["name"] == host).expect("the host");
        host["recent"][0]["reason"].as_str().unwrap_or_default().to_owned()
    }

    fn endpoints(&self) -> impl Iterator<Item = Value> + use<> {
        let Value::Array(services) = self.weirctl(&["services"]) else { panic!("weirctl services answers an array") };
        services.into_iter().flat_map(|service| service["endpoints"].as_array().cloned().expect("endpoints"))
    }

    /// The CPUs that the lab gave to forwarding cores.
    fn forwarding_cpus(&self) -> Vec<u64> {
        let config = std::fs::read_to_string(self.folder().join("weir.yaml")).expect("weir.yaml");
        let line = config.lines().find_map(|line| line.trim().strip_prefix("cpus: ")).expect("cpus");
        serde_json::from_str(line).expect("a list of numbers")
    }

    fn namespaces(&self) -> Vec<String> {
        let list = Command::new("ip").args(["netns", "list"]).output().expect("ip").stdout;
        let prefix = format!("weir-lab-{}-", self.name);
        let list = String::from_utf8_lossy(&list).into_owned();
        list.lines().filter(|line| line.starts_with(&prefix)).map(str::to_owned).collect()
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = SystemTime::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(SystemTime::now() < end, "not within 30 s: {what}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes the farm; fails if the unit did not leave cleanly, as with a packet buffer leaked.
    fn down(&self) {
        self.call(&["down"]);
        assert!(self.namespaces().is_empty());
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        if self.folder().exists() {
            // A test that fails shows what the unit had to say.
            let log = std::fs::read_to_string(self.folder().join("weir.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the unit's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            let _ = self.lab(&["down"]).output();
        }
        let _ = std::fs::remove_file(self.results_path());
    }
}

/// New connections within 5 % of what the capacities say.
fn assert_spread(results: &Value) {
    let shares = results["shares"].as_object().expect("shares");
    for (host, share) in shares {
        let (got, due) = (share[1].as_f64().expect("share"), share[2].as_f64().expect("capacity"));
        assert!((got - due).abs() <= 0.05 * due, "{host}: {got:.2} % of the connections, {due:.2} % of the capacity");
    }
}

/// How many connections the hosts saw in the load with a connection per request.
fn connections(results: &Value) -> u64 {
    let shares = results["shares"].as_object().expect("shares");
    shares.values().map(|share| share[0].as_u64().expect("connections")).sum()
}

/// Connections below which shares say little.
const ENOUGH: u64 = 2000;

fn difference(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    now.iter().map(|(host, count)| (host.clone(), count - before.get(host).copied().unwrap_or(0))).collect()
}

fn numbers(list: &Value, key: &str, wanted: impl Fn(&Value) -> bool) -> Vec<u64> {
    let list = list.as_array().into_iter().flatten();
    list.filter(|item| wanted(item)).filter_map(|item| item[key].as_u64()).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("results")).expect("JSON")
}

fn expect_end(child: Child) {
    expect_success(&child.wait_with_output().expect("scripts/lab ends"));
}

fn expect_success(done: &Output) {
    assert!(done.status.success(), "{}", describe(done));
}

fn describe(done: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    format!("{}\n{out}\n{err}", done.status)
}
