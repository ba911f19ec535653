//! The weirctl binary against an admin server with a made-up unit behind it: tables, JSON, errors and exit codes.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fake::Served;

mod fake;

/// What weirctl printed and how it ended.
struct Ran {
    out: String,
    err: String,
    code: i32,
}

fn weirctl(socket: &Path, arguments: &[&str]) -> Ran {
    let output =
        Command::new(env!("CARGO_BIN_EXE_weirctl")).env("WEIR_SOCKET", socket).args(arguments).output().unwrap();
    Ran {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap(),
    }
}

/// Runs it against the made-up unit; it has to succeed.
fn shown(arguments: &[&str]) -> String {
    let unit = Served::start();
    let ran = weirctl(&unit.socket, arguments);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.out);
    for line in ran.out.lines() {
        assert!(line.starts_with('{') || line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    ran.out
}

/// Runs it against the made-up unit; it has to fail with this code. Returns what it said.
fn refused(arguments: &[&str], code: i32) -> String {
    let unit = Served::start();
    let ran = weirctl(&unit.socket, arguments);
    assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{}", ran.err);
    ran.err
}

fn json(arguments: &[&str]) -> Value {
    let unit = Served::start();
    let mut with_json = vec!["--json"];
    with_json.extend(arguments);
    let ran = weirctl(&unit.socket, &with_json);
    assert_eq!(ran.err, "");
    serde_json::from_str(&ran.out).unwrap()
}

#[test]
fn status() {
    assert_eq!(shown(&["status"]), STATUS);
    let status = json(&["status"]);
    assert_eq!(status["unit"], 1);
    assert_eq!(status["ports"][0]["rx"]["missed"], 7);
    assert_eq!(status["ports"][0]["rss"], serde_json::json!({ "state": "hint", "why": "both sides are hashed" }));
    assert_eq!(status["shards"][1]["routes_ipv6"], 1);
}

const STATUS: &str = "\
unit 1 weir-1  incarnation 1700000000123
weir 0.1.0 (abc1234)  DPDK 22.11.7  up 3d4h
mbufs 1024 of 16384 in use

PORT  LINK  MAC                RSS   HANDED-OVER  DEVICE
net0  up    02:00:00:00:00:01  hint        49.9%  af_packet:weir0

PORT  RX-PACKETS  RX-BYTES  MISSED  RX-ERR  TX-PACKETS  TX-BYTES  TX-ERR
net0      123456   1.50MiB       7       0      123000      512B       2

CPU  BUSY  SHARDS  CLASSIFIERS
  2   13%  0,1     -

SHARD  CPU  IPV4-ROUTES     OF  IPV6-ROUTES     OF
    0    2           10  50000            0  50000
    1    2            4  50000            1  50000
";

#[test]
fn services() {
    assert_eq!(shown(&["services"]), SERVICES);
    let services = json(&["services"]);
    assert_eq!(services[0]["vip"], "10.80.0.100");
    assert_eq!(services[0]["endpoints"][1]["health"], "failing");
    assert_eq!(services[0]["endpoints"][1]["backup"], true);
}

const SERVICES: &str = "\
service 1 web  tcp 10.80.0.100:80,8000-8099
dsr, select tokens, no endpoint: drop (3 refused)
HOST    ADDRESS     HEALTH   SINCE  DIRECTIVE  CAPACITY   NEW
host-1  10.80.0.11  healthy  5m12s  active           50  4200
host-2  10.80.0.12  failing  5m12s  active            0  4200  backup
";

#[test]
fn hosts() {
    assert_eq!(shown(&["hosts"]), HOSTS);
    assert_eq!(shown(&["hosts", "changes"]), CHANGES);
    assert_eq!(json(&["hosts"])[0]["services"][0]["directive"], "draining");
    assert_eq!(json(&["hosts"])[1]["agent"]["presence"], "live");
    assert_eq!(json(&["hosts"])[1]["agent"]["group"], "rack-3");
    assert_eq!(json(&["hosts"])[1]["agent"]["leads"], true);
}

const HOSTS: &str = "\
ID  HOST    ADDRESS     SERVICE  HEALTH   SINCE  DIRECTIVE   NEW
 1  host-1  10.80.0.11  web      failing   1.2s  draining   4200
 2  host-2  10.80.0.12  web      healthy   1m0s  draining      7

HOST    AGENT          HEARD  SERVICE  SAYS     SINCE   LOAD  TARGET    CURRENT
host-2  live, proxy 1  400ms  web      healthy   2.0s  12/60  draining  active

HOST    GROUP   LEADER
host-2  rack-3  leads
";
const CHANGES: &str = " AGO  HOST    SERVICE  FROM     TO       REASON
1.2s  host-1  web      healthy  failing  connect: refused
";

#[test]
fn drain_and_resume() {
    assert_eq!(
        shown(&["hosts", "drain", "host-1"]),
        "host-1 web: active -> draining\nhost-1 dns: active -> draining\n"
    );
    assert_eq!(shown(&["hosts", "drain", "host-1", "--service", "web"]), "host-1 web: active -> draining\n");
    assert_eq!(shown(&["hosts", "resume", "host-1", "--service", "web"]), "host-1 web: active already\n");
    assert_eq!(json(&["hosts", "drain", "host-1"])[1]["to"], "draining");
    assert_eq!(
        refused(&["hosts", "drain", "host-9"], 1),
        "weirctl: no host \"host-9\"\n  hint: `weirctl hosts` lists names and ids\n"
    );
}

#[test]
fn routes() {
    assert_eq!(shown(&["routes", "lookup", "198.51.100.7:40001", "10.80.0.100:80"]), LOOKUP);
    let lookup = json(&["routes", "lookup", "[2001:db8::7]:40001", "[2001:db8::100]:443", "--protocol", "udp"]);
    assert_eq!(lookup["routes"][0]["flow"]["client"], "[2001:db8::7]:40001");
    assert_eq!(lookup["routes"][0]["flow"]["protocol"], "udp");
    assert_eq!(
        refused(&["routes", "lookup", "198.51.100.7:5", "10.80.0.100:80"], 1),
        "weirctl: no route for tcp 198.51.100.7:5 to 10.80.0.100:80; shard 1 would hold it\n"
    );
    assert!(
        refused(&["routes", "lookup", "198.51.100.7:5", "[2001:db8::1]:80"], 1).contains("are of different families")
    );
    assert_eq!(shown(&["routes", "list", "--limit", "2", "--service", "web & more"]), LIST);
    // Three pages make one list.
    let all = json(&["routes", "list"]);
    assert_eq!((all["routes"].as_array().unwrap().len(), &all["more"]), (3, &serde_json::Value::Bool(false)));
    assert_eq!(all["routes"][2]["flow"]["client"], "198.51.100.7:40003");
    assert!(all.get("next").is_none());
    assert!(!shown(&["routes", "list", "--limit", "3"]).contains('…'));
    assert_eq!(json(&["routes", "list", "--limit", "1"])["next"], "1");
    assert_eq!(
        refused(&["routes", "list", "--service", "mail"], 1),
        "weirctl: no service \"mail\"\n  hint: `weirctl services` lists services and their hosts\n"
    );
    assert!(refused(&["routes", "list", "--limit", "0"], 1).contains("limit 0 is not within"));
    assert_eq!(shown(&["routes", "count"]), COUNT);
}

const LOOKUP: &str = "\
FLOW                                     ACTION      STATE         IDLE  LEFT
tcp 198.51.100.7:40001 > 10.80.0.100:80  dsr host-1  established  350ms   59m
in shard 1
";
const LIST: &str = "\
FLOW                                     ACTION      STATE         IDLE  LEFT
tcp 198.51.100.7:40001 > 10.80.0.100:80  dsr host-1  established  350ms   59m
tcp 198.51.100.7:40002 > 10.80.0.100:80  dsr host-1  established  350ms   59m
… more than 2 (--limit)
";
const COUNT: &str = "\
SHARD  CPU  IPV4-ROUTES     OF  IPV6-ROUTES     OF
    0    2           10  50000            0  50000
    1    2            4  50000            1  50000
15 routes
";

#[test]
fn counters() {
    assert_eq!(shown(&["counters"]), COUNTERS);
    assert_eq!(shown(&["counters", "--nonzero"]), COUNTERS);
    assert!(shown(&["counters", "--all"]).contains("drop.bad_checksum           0\n"));
    assert_eq!(json(&["counters"])["shards"]["0"]["hits"], 8);

    let watched = shown(&["counters", "--watch", "20ms", "--times", "2"]);
    let (first, second) = watched.split_once("\n\n").unwrap();
    assert!(first.starts_with("COUNTER") && !first.contains("PER-SECOND"));
    let rate = |text: &str, name| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()
    };
    // 5000 more in at least 20 ms, and no more than the whole test may take.
    assert!((1..=250_000).contains(&rate(second, "packets")), "{second}");
    assert_eq!(rate(second, "drop.no_route"), 0);
}

const COUNTERS: &str = "\
COUNTER                 VALUE
drop.no_route              12
packets               1000000
port.net0.rx_packets        9
shard.0.hits                8
";

#[test]
fn shards() {
    assert_eq!(shown(&["shards", "move", "1", "3"]), "shard 1: CPU 2 -> CPU 3\n");
    assert_eq!(
        refused(&["shards", "move", "1", "9"], 1),
        "weirctl: no forwarding core runs on CPU 9\n  hint: `weirctl status` lists shards and cores\n"
    );
    assert!(refused(&["shards", "move", "7", "3"], 1).starts_with("weirctl: no shard 7\n"));
}

#[test]
fn without_a_unit() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("weir-1.sock");
    let ran = weirctl(&missing, &["status"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    let said = format!("weirctl: no unit answers at {}: is `weir run` running? (--socket)\n", missing.display());
    assert_eq!(ran.err, format!("{said}  because: No such file or directory (os error 2)\n"));

    // The file that a killed unit leaves behind; --socket comes before the environment.
    let dead = directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let ran = weirctl(&missing, &["status", "--socket", dead.to_str().unwrap()]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains(&format!("no unit answers at {}", dead.display())), "{}", ran.err);
    assert!(ran.err.contains("Connection refused"), "{}", ran.err);
}

#[test]
fn what_is_no_unit_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let other = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        assert_ne!(stream.read(&mut request).unwrap(), 0);
        stream.write_all(b"SSH-2.0-other\r\n\r\n").unwrap();
    });
    let ran = weirctl(&socket, &["status"]);
    other.join().unwrap();
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.err,
        "weirctl: the answer to /v1/status is malformed\n  because: its first line is \"SSH-2.0-other\"\n"
    );
}

#[test]
fn usage() {
    let nowhere = Path::new("/nonexistent/weir.sock");
    for wrong in
        [&["routes", "lookup", "nonsense", "10.0.0.1:80"][..], &["counters", "--watch", "1ms"], &["frobnicate"]]
    {
        let ran = weirctl(nowhere, wrong);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{wrong:?}");
    }
    let help = weirctl(nowhere, &["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("Exit codes:\n  0  done\n  1  the unit refused"), "{}", help.out);
}

#[test]
fn completions_and_manual_need_no_unit() {
    let nowhere = Path::new("/nonexistent/weir.sock");
    for shell in ["bash", "zsh", "fish"] {
        let ran = weirctl(nowhere, &["completions", shell]);
        assert!(ran.code == 0 && ran.out.contains("weirctl"), "{shell}: {}", ran.err);
    }
    let page = weirctl(nowhere, &["man"]);
    assert!(page.out.contains(".TH weirctl 1"), "{}", page.out);
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(weirctl(nowhere, &["man", "--dir", directory.path().to_str().unwrap()]).code, 0);
    assert!(directory.path().join("weirctl-hosts-drain.1").exists());
}

#[test]
fn the_server_speaks_json_to_anybody_and_bounds_what_it_reads() {
    use std::io::{Read, Write};
    let unit = Served::start();
    let ask = |request: String| {
        let mut stream = std::os::unix::net::UnixStream::connect(&unit.socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body["error"].as_str().unwrap_or_default().to_owned())
    };
    let get = |target: &str| ask(format!("GET {target} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n"));
    assert_eq!(get("/v1/nothing"), ("404".into(), "no such path: /v1/nothing".into()));
    assert_eq!(get("/v1/hosts/drain").0, "405");
    assert_eq!(get("/v1/routes?limit=many").0, "400");
    let post = |body: &str| {
        let length = body.len();
        ask(format!(
            "POST /v1/hosts/drain HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ))
    };
    assert_eq!(post("{\"host\":\"host-1\",\"servce\":\"web\"}").0, "422");
    assert_eq!(post(&format!("{{\"host\":\"{}\"}}", "x".repeat(20_000))).0, "413");
}
