//! Ports that the kernel does not have (AF_XDP): their twins carry ARP, ND, ping and TCP of the unit's own, byte for byte.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use parking_lot::Mutex;

mod programs;

use programs::bin_dir;

/// Under `cargo test` the farms share the machine's few cores; nextest runs them alone.
static ONE_FARM: Mutex<()> = Mutex::new(());

#[test]
fn dsr_serves_by_one_queue() {
    serves("xdp-dsr1", &["--mode", "dsr", "--queues", "1"], 6);
}

#[test]
fn fragments_go_through_tunnels() {
    serves("xdp-ipip", &["--mode", "ipip"], 6);
    serves("xdp-gue", &["--mode", "gue", "--mtu", "1332"], 6);
}

#[test]
fn nat_serves_where_one_side_has_a_smaller_mtu() {
    serves("xdp-mtu-hosts", &["--mode", "nat", "--mtu", "1280"], 12);
    serves("xdp-mtu-client", &["--mode", "nat", "--client-mtu", "1280"], 12);
}

#[test]
fn fragments_go_from_family_to_family() {
    serves("xdp-across", &["--mode", "full-nat", "--across"], 12);
    serves("xdp-across-mtu", &["--mode", "full-nat", "--across", "--mtu", "1280"], 12);
}

#[test]
fn nat_serves_by_two_queues() {
    serves("xdp-nat2", &["--mode", "nat", "--queues", "2"], 12);
}

/// A whole run of the lab: no failed request, no packet buffer is left over, and so many datagrams went through in fragments.
fn serves(name: &str, options: &[&str], datagrams: u64) {
    let _one = ONE_FARM.lock();
    let results = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    let output = lab()
        .args(["--name", name, "--port-type", "af_xdp", "--duration", "2s", "--bin-dir"])
        .arg(bin_dir())
        .arg("--json")
        .arg(&results)
        .args(options)
        .output();
    expect_success(&output.expect("scripts/lab starts"));
    let results: serde_json::Value = serde_json::from_slice(&std::fs::read(results).expect("results")).expect("JSON");
    let completed = results["counters"]["totals"]["datagrams_completed"].as_u64();
    assert!(completed >= Some(datagrams), "{completed:?}");
}

#[test]
fn the_units_own_traffic_goes_through_the_twin() {
    let farm = Farm::up("xdp-twin");
    // The unit gave the twin what the YAML says, and the interface below has nothing.
    let twin = farm.unit(&["ip", "-o", "address", "show", "dev", "twin0"]);
    assert!(twin.contains("10.80.0.1/24") && twin.contains("fd80::1/64"), "{twin}");
    let link = farm.unit(&["ip", "link", "show", "dev", "twin0"]);
    assert!(link.contains("mtu 1500") && link.contains(",UP"), "{link}");
    let mac = |interface| farm.unit(&["cat", &format!("/sys/class/net/{interface}/address")]);
    assert_eq!(mac("twin0"), mac("weir0"));

    // The client asks for the unit anew, by ARP and ND, and pings it; then the other way round.
    farm.client(&["ip", "neigh", "flush", "dev", "eth0"]);
    for address in ["10.80.0.1", "fd80::1"] {
        farm.client(&["/usr/bin/python3", "-c", PING, address, "56"]);
    }
    let neighbours = farm.client(&["ip", "neigh", "show", "dev", "eth0"]);
    assert_eq!(neighbours.lines().filter(|line| line.contains(mac("weir0").trim())).count(), 2, "{neighbours}");
    for address in ["10.80.0.2", "fd80::2"] {
        // Large ones, too: the twin's MTU is the port's.
        farm.unit(&["/usr/bin/python3", "-c", PING, address, "1452"]);
    }

    for address in ["10.80.0.1", "fd80::1"] {
        farm.talk(address);
    }
}

#[test]
fn a_flood_to_the_units_own_address_harms_nobody() {
    let farm = Farm::up("xdp-flood");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xdp-flood");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    // A real router at the client's, whose BFD a real one beside the unit answers, by the twin.
    let _router = farm.bird(
        "client",
        &folder,
        &BIRD.replace("NAME", "of_router").replace("UNIT", "10.80.0.2").replace("PEER", "10.80.0.1"),
    );
    let _beside = farm.bird(
        "unit",
        &folder,
        &BIRD.replace("NAME", "of_unit").replace("UNIT", "10.80.0.1").replace("PEER", "10.80.0.2"),
    );
    farm.until("BFD is up", |farm| farm.bfd(&folder).is_some());
    let since = farm.bfd(&folder).expect("BFD is up");
    let mac = farm.unit(&["cat", "/sys/class/net/weir0/address"]);
    let taken = |farm: &Farm| -> u64 {
        farm.unit(&["cat", "/sys/class/net/twin0/statistics/rx_packets"]).trim().parse().expect("a number")
    };

    let mut flood = farm.command("client");
    flood.args(["timeout", "60", "/usr/bin/python3", "-c", FLOOD, mac.trim()]);
    let mut flood = Ended(flood.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python starts"));
    let mut output = BufReader::new(flood.0.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("text");
    let (begun, before) = (std::time::SystemTime::now(), taken(&farm));
    // Pages, a large file both ways, datagrams, and both kinds of load: it fails with the first request that does.
    let run = lab().args(["run", "--name", farm.name, "--duration", "2s"]).output();
    expect_success(&run.expect("scripts/lab starts"));
    let hosts = farm.weirctl(&["hosts"]);
    let kernels = taken(&farm) - before;
    let seconds = begun.elapsed().expect("time passes").as_secs() + 1;
    drop(flood.0.stdin.take());
    line.clear();
    output.read_line(&mut line).expect("text");
    let sent: u64 = line.trim().parse().expect("a number");
    println!("{sent} packets in about {seconds} s, {kernels} of them and of others for the kernel");

    // The router has not missed the unit, for which a second would have passed: the session is as old as it was. (What BIRD says of
    // that is off by as much as its clock has not been read for.)
    let now = farm.bfd(&folder).expect("BFD is up");
    assert!(now.abs_diff(since) < 500, "{since} {now}");
    for host in hosts.as_array().expect("hosts") {
        assert!(host["agent"]["presence"] == "live" && host["agent"]["heard_ms"].as_u64() < Some(3_500), "{host}");
    }
    let counters = farm.weirctl(&["counters"]);
    let dropped = |reason: &str| counters["drops"][reason].as_u64().unwrap_or(0);
    // What was not from the router got no further than its budget; what is urgent was no more than a few thousand.
    assert!(dropped("twin_rate") > sent / 2, "{sent} sent, {counters}");
    assert!(kernels <= seconds * 25_000 + 10_000, "{kernels} in {seconds} s");
    assert_eq!(dropped("twin_control_rate"), 0);
}

#[test]
fn the_twins_carrier_follows_the_link() {
    let farm = Farm::up("xdp-link");
    // The far end of the unit's cable.
    let link = |to| {
        let mut switch = farm.command("switch");
        expect_success(&switch.args(["ip", "link", "set", "unit-weir0", to]).output().expect("ip starts"));
    };
    let carrier = |wanted: &str| {
        let end = std::time::SystemTime::now() + std::time::Duration::from_secs(30);
        while !farm.unit(&["ip", "link", "show", "dev", "twin0"]).contains(wanted) {
            assert!(std::time::SystemTime::now() < end, "the twin's carrier does not follow: {wanted}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    carrier(",LOWER_UP");
    for _ in 0..2 {
        link("down");
        carrier("NO-CARRIER");
        link("up");
        carrier(",LOWER_UP");
        for address in ["10.80.0.1", "fd80::1"] {
            farm.client(&["/usr/bin/python3", "-c", PING, address, "56"]);
        }
    }
}

#[test]
fn an_interface_with_an_address_is_no_af_xdp_port() {
    let farm = Farm::up("xdp-addr");
    let config = format!("/run/weir-lab/{}/weir.yaml", farm.name);
    let second = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xdp-addr.yaml");
    let yaml = std::fs::read_to_string(config).expect("the lab's configuration");
    // A second unit beside the lab's, on a cable of its own.
    let yaml =
        yaml.replace("af_xdp:weir0", "af_xdp:weir9").replace("twin0", "twin9").replace("weir.sock", "weir9.sock");
    std::fs::write(&second, yaml).expect("written");
    let queues = ["numtxqueues", "2", "numrxqueues", "2"];
    farm.unit(
        &[&["ip", "link", "add", "weir9"][..], &queues, &["type", "veth", "peer", "name", "weir8"], &queues].concat(),
    );
    farm.unit(&["ip", "link", "set", "weir9", "up"]);
    farm.unit(&["ip", "link", "set", "weir8", "up"]);
    farm.unit(&["ip", "address", "add", "192.0.2.1/24", "dev", "weir9"]);
    let output = farm.command("unit").arg(bin_dir().join("weir")).args(["run", "--config"]).arg(&second).output();
    let output = output.expect("weir starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("ip address del 192.0.2.1/24 dev weir9"), "{said}");
}

#[test]
fn an_endpoint_on_the_unit_itself_serves() {
    let farm = Farm::up("xdp-local");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xdp-local");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("tmp")).expect("a folder");
    let large: Vec<u8> =
        (0..10_u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(folder.join("large.bin"), &large).expect("written");
    let place = folder.to_str().expect("text");
    std::fs::write(folder.join("nginx.conf"), NGINX.replace("FOLDER", place)).expect("written");
    std::fs::write(folder.join("weir.yaml"), LOCAL.replace("FOLDER", place)).expect("written");

    // A second unit beside the lab's, on a cable of its own to the client.
    let client = format!("weir-lab-{}-client", farm.name);
    farm.unit(&["ip", "link", "add", "weir9", "type", "veth", "peer", "name", "near9", "netns", &client]);
    farm.unit(&["ip", "link", "set", "weir9", "up"]);
    farm.unit(&["ip", "route", "add", "blackhole", "10.99.0.100/32"]);
    farm.unit(&["ip", "route", "add", "blackhole", "fd99::100/128"]);
    farm.client(&["ethtool", "-K", "near9", "tx", "off"]);
    farm.client(&["ip", "address", "add", "10.99.0.2/24", "dev", "near9"]);
    farm.client(&["ip", "address", "add", "fd99::2/64", "dev", "near9", "nodad"]);
    farm.client(&["ip", "link", "set", "near9", "up"]);
    let config = folder.join("weir.yaml");
    let mut weir = farm.command("unit");
    let mut weir =
        Ended(weir.arg(bin_dir().join("weir")).args(["run", "--config"]).arg(&config).spawn().expect("weir"));
    let mut nginx = farm.command("unit");
    let conf = folder.join("nginx.conf");
    let _nginx = Ended(nginx.args(["nginx", "-p", place, "-c"]).arg(&conf).spawn().expect("nginx starts"));

    let fetch = |url: &str| {
        let mut curl = farm.command("client");
        curl.args(["curl", "-sS", "-f", "-g", "--noproxy", "*", "--max-time", "30", url]).output().expect("curl starts")
    };
    let end = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    while !fetch("http://10.99.0.100/").status.success() {
        assert!(std::time::SystemTime::now() < end, "the unit's own nginx does not answer");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    for vip in ["10.99.0.100", "[fd99::100]"] {
        for _ in 0..20 {
            assert_eq!(expect_success(&fetch(&format!("http://{vip}/"))), "from the unit itself\n");
        }
        let output = fetch(&format!("http://{vip}/large.bin"));
        assert!(output.status.success() && output.stdout == large, "{vip}: {} bytes", output.stdout.len());
        let mut put = farm.command("client");
        put.args(["curl", "-sS", "-f", "-g", "--noproxy", "*", "--max-time", "30", "-T"]).arg(folder.join("large.bin"));
        expect_success(&put.arg(format!("http://{vip}/tmp/back.bin")).output().expect("curl starts"));
        assert!(std::fs::read(folder.join("tmp/back.bin")).expect("uploaded") == large, "{vip}");
        std::fs::remove_file(folder.join("tmp/back.bin")).expect("removed");
    }
    // The kernel has seen the clients themselves, at its own address.
    let log = std::fs::read_to_string(folder.join("access.log")).expect("nginx's log");
    assert!(log.lines().any(|line| line == "10.99.0.2 10.99.0.1 8080"), "{log}");
    assert!(log.lines().any(|line| line == "fd99::2 fd99::1 8080"), "{log}");
    let routes = Command::new(bin_dir().join("weirctl"));
    let routes = { routes }.arg("--socket").arg(folder.join("weir.sock")).args(["--json", "routes", "list"]).output();
    let routes = expect_success(&routes.expect("weirctl starts"));
    assert!(routes.contains("\"local\""), "{routes}");
    weir.term();
}

/// A program that is ended with its test.
struct Ended(std::process::Child);

impl Ended {
    /// Asks it to end, and expects that it does so in order.
    fn term(&mut self) {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status().expect("kill starts");
        assert!(asked.success() && self.0.wait().expect("it ends").success());
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

const NGINX: &str = "
daemon off;
user root;
worker_processes 1;
pid FOLDER/nginx.pid;
error_log FOLDER/error.log warn;
events { worker_connections 1024; }
http {
    log_format ends '$remote_addr $server_addr $server_port';
    access_log FOLDER/access.log ends;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    client_max_body_size 64m;
    server {
        listen 0.0.0.0:8080;
        listen [::]:8080 ipv6only=on;
        location = / { return 200 'from the unit itself\n'; }
        location / { root FOLDER; dav_methods PUT; }
    }
}
";
const LOCAL: &str = "
unit: { id: 9, name: xdp-local, state: FOLDER/state }
admin: { socket: FOLDER/weir.sock }
dataplane: { shards: 2, cpus: [0], idle: poll, populate: false, hugepages: false, memory: 128MiB, mbufs: 8192, routes: { ipv4: 10000, ipv6: 10000 } }
ports:
  - { name: net9, device: 'af_xdp:weir9', twin: twin9, addresses: [10.99.0.1/24, 'fd99::1/64'] }
hosts:
  - { id: 1, name: here, address: 10.99.0.1 }
services:
  - { id: 1, name: web, vip: 10.99.0.100, ports: 80, mode: nat, endpoints: [{ host: here, port: 8080 }] }
  - { id: 2, name: web6, vip: 'fd99::100', ports: 80, mode: nat, endpoints: [{ host: here, address: 'fd99::1', port: 8080 }] }
";

/// A lab with AF_XDP ports that is up.
struct Farm {
    name: &'static str,
    _one: parking_lot::MutexGuard<'static, ()>,
}

impl Farm {
    fn up(name: &'static str) -> Self {
        let farm = Self { name, _one: ONE_FARM.lock() };
        let output = lab()
            .args(["up", "--name", name, "--port-type", "af_xdp", "--queues", "2", "--bin-dir"])
            .arg(bin_dir())
            .output();
        expect_success(&output.expect("scripts/lab starts"));
        farm
    }

    fn command(&self, part: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("weir-lab-{}-{part}", self.name)]);
        command
    }

    fn unit(&self, command: &[&str]) -> String {
        expect_success(&self.command("unit").args(command).output().expect("ip starts"))
    }

    fn client(&self, command: &[&str]) -> String {
        expect_success(&self.command("client").args(command).output().expect("ip starts"))
    }

    fn weirctl(&self, words: &[&str]) -> serde_json::Value {
        let mut weirctl = Command::new(bin_dir().join("weirctl"));
        weirctl.arg("--socket").arg(format!("/run/weir-lab/{}/weir.sock", self.name)).arg("--json").args(words);
        serde_json::from_str(&expect_success(&weirctl.output().expect("weirctl starts"))).expect("JSON")
    }

    /// A BIRD in a namespace, with this configuration.
    fn bird(&self, part: &str, folder: &Path, config: &str) -> Ended {
        let (conf, socket) = (folder.join(format!("{part}.conf")), folder.join(format!("{part}.ctl")));
        std::fs::write(&conf, config).expect("written");
        let mut bird = self.command(part);
        bird.arg("bird").arg("-f").arg("-c").arg(conf).arg("-s").arg(socket);
        Ended(bird.stdin(Stdio::null()).spawn().expect("bird starts"))
    }

    /// Since when the client's BIRD has the BFD session up, in milliseconds of the day.
    fn bfd(&self, folder: &Path) -> Option<u64> {
        let mut birdc = Command::new("birdc");
        let said = birdc.arg("-s").arg(folder.join("client.ctl")).args(["show", "bfd", "sessions"]).output();
        let said = String::from_utf8_lossy(&said.expect("birdc starts").stdout).into_owned();
        let session = said.lines().find(|line| line.starts_with("10.80.0.1 "))?;
        let since = session.split_whitespace().skip_while(|word| *word != "Up").nth(1)?;
        let numbers: Vec<u64> = since.split([':', '.']).map(|number| number.parse().expect("a time")).collect();
        let [hours, minutes, seconds, millis] = numbers[..] else { panic!("{since} is no time") };
        Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + millis)
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = std::time::SystemTime::now() + std::time::Duration::from_secs(30);
        while !done(self) {
            assert!(std::time::SystemTime::now() < end, "not within 30 s: {what}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// A TCP connection from the client to a listener of the unit's kernel, whose answer is what was asked, a megabyte of it.
    fn talk(&self, address: &str) {
        let mut listener = self.command("unit");
        listener.args(["timeout", "60", "/usr/bin/python3", "-c", LISTENER, address]);
        let mut listener = listener.stdout(Stdio::piped()).spawn().expect("python starts");
        let mut ready = String::new();
        BufReader::new(listener.stdout.as_mut().expect("piped")).read_line(&mut ready).expect("text");
        let mut client = self.command("client");
        client.args(["timeout", "60", "/usr/bin/python3", "-c", CLIENT, address]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python starts");
        let asked: Vec<u8> =
            (0..1_u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        client.stdin.take().expect("piped").write_all(&asked).expect("written");
        let output = client.wait_with_output().expect("python ends");
        assert!(listener.wait().expect("python ends").success(), "{address}");
        assert!(output.status.success() && output.stdout == asked, "{address}: {} bytes", output.stdout.len());
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        let down = lab().args(["down", "--name", self.name]).status();
        if !std::thread::panicking() {
            assert!(down.expect("scripts/lab starts").success());
        }
    }
}

/// Three echoes to an address, with so many bytes each, which have to come back as they were.
const PING: &str = "import os, socket, struct, sys
a, size = sys.argv[1], int(sys.argv[2])
v6 = ':' in a
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, 58 if v6 else 1)
s.settimeout(20)
s.connect((a, 0))
for number in range(3):
    body = struct.pack('!HH', os.getpid() & 0xffff, number) + os.urandom(size)
    message = struct.pack('!BBH', 128 if v6 else 8, 0, 0) + body
    if not v6:
        total = sum(struct.unpack('!%dH' % (len(message) // 2), message))
        total = (total & 0xffff) + (total >> 16)
        total = (total & 0xffff) + (total >> 16)
        message = message[:2] + struct.pack('!H', 0xffff - total) + message[4:]
    s.send(message)
    while True:
        got = s.recv(4096)[0 if v6 else 20:]
        if got[0] == (129 if v6 else 0) and got[4:] == body: break
";
/// One side of a BFD session that ends when nothing is heard for a second.
const BIRD: &str = "
router id UNIT;
log stderr { warning, error, fatal, bug };
protocol device {}
protocol bfd NAME {
    interface \"*\" { min rx interval 100 ms; min tx interval 100 ms; multiplier 10; };
    neighbor PEER local UNIT;
}
";
/// Datagrams to the unit's own address until there is no more to read, from strangers' addresses and half of them to BFD's port;
/// then their number.
const FLOOD: &str = "import os, select, socket, struct, sys, time
mac = bytes.fromhex(sys.argv[1].replace(':', ''))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
def frame(n):
    port = 3784 if n % 2 else 1024 + n
    ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 46, n, 0x4000, 255, 17, 0, bytes([10, 80, 1 + n // 250, n % 250 + 1]), bytes([10, 80, 0, 1]))
    total = sum(struct.unpack('!10H', ip))
    total = (total & 0xffff) + (total >> 16)
    ip = ip[:10] + struct.pack('!H', 0xffff - (total & 0xffff) - (total >> 16)) + ip[12:]
    return mac + bytes([2, 0, 0, 0, 0, 9, 8, 0]) + ip + struct.pack('!HHHH', 50000, port, 26, 0) + bytes(18)
frames = [frame(n) for n in range(1000)]
print('ready', flush=True)
sent, begun = 0, time.monotonic()
while not select.select([0], [], [], 0)[0]:
    # 200,000 a second, or what this machine has time for.
    due = min(200, int((time.monotonic() - begun) * 200_000) - sent)
    for n in range(due):
        try:
            s.send(frames[(sent + n) % 1000])
        except OSError:
            pass
    sent += max(due, 0)
    if due < 50: time.sleep(0.0005)
print(sent, flush=True)
";
const LISTENER: &str = "import socket, sys
a = sys.argv[1]
s = socket.create_server((a, 2222), family=socket.AF_INET6 if ':' in a else socket.AF_INET)
print('ready', flush=True)
c, _ = s.accept()
data = b''
while len(data) < 1 << 20:
    part = c.recv(65536)
    if not part: sys.exit(1)
    data += part
c.sendall(data)
";
const CLIENT: &str = "import socket, sys
data = sys.stdin.buffer.read()
s = socket.create_connection((sys.argv[1], 2222), 30)
s.sendall(data)
got = b''
while len(got) < len(data):
    part = s.recv(65536)
    if not part: break
    got += part
sys.stdout.buffer.write(got)
";

fn lab() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab"))
}

fn expect_success(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
