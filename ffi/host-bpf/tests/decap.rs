//! Decapsulation in the real kernel: scapy sends tunnelled packets into a namespace, whose ordinary sockets must get them, or must not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tunnelled.py");
/// Debian's own interpreter, for which python3-scapy is packaged.
const PYTHON: &str = "/usr/bin/python3";
const DECAP: &str = env!("CARGO_BIN_EXE_weir-decap");

#[test]
fn sockets_on_the_vip_get_what_comes_through_tunnels_and_nothing_else_does() {
    let farm = Farm::new("all");
    farm.host(&[DECAP, "attach", "eth0", "--source", "10.80.0.1", "--source", "fd80::1/128"]);
    let mut server = Server::start(&farm);
    farm.send();
    let mut expected = BTreeSet::from(["udp 10.91.0.7 last".to_owned()]);
    for kind in ["ipip", "gue", "gue1"] {
        for (inside, client) in [(4, "10.91.0.7"), (6, "fd91::7")] {
            for outside in [4, 6] {
                expected.insert(format!("udp {client} {kind}-{inside}in{outside}"));
                expected.insert(format!("tcp {client} {kind}-{inside}in{outside}"));
            }
        }
    }
    // What must not come would come by the socket that gets the last one, before it; only TCP may still be on its way then.
    let mut lines = BTreeSet::new();
    while !lines.contains("udp 10.91.0.7 last") || lines.len() < expected.len() {
        assert!(lines.insert(server.line()), "a packet came twice");
    }
    assert_eq!(lines, expected);

    let stats = farm.stats();
    // A datagram, a SYN and a segment with data by each; those after the handshake may be more. GUE has two variants.
    for (name, least) in [("ipip_4in4", 4), ("ipip_6in6", 3), ("ipip_4in6", 3), ("ipip_6in4", 3), ("gue_6in4", 6)] {
        assert!(stats[name] >= least, "{name}: {stats:?}");
    }
    assert_eq!((stats["foreign_source"], stats["foreign_inner"], stats["failed"]), (4, 4, 0), "{stats:?}");
    assert_eq!((stats["malformed"], stats["fragment"]), (8, 2), "{stats:?}");
}

#[test]
fn a_second_attach_replaces_the_first_and_after_detach_nothing_comes_out() {
    let farm = Farm::new("again");
    assert!(!farm.host_status(&[DECAP, "stats", "eth0"]));
    assert!(!farm.host_status(&[DECAP, "attach", "eth9"]));
    farm.host(&[DECAP, "attach", "eth0"]);
    farm.host(&[DECAP, "attach", "eth0", "--gue-port", "0"]);
    let filters = farm.host(&["tc", "filter", "show", "dev", "eth0", "ingress"]);
    assert_eq!(filters.matches("direct-action").count(), 1, "{filters}");
    assert!(farm.stats().values().all(|&count| count == 0));
    farm.host(&[DECAP, "detach", "eth0"]);
    assert!(!farm.host_status(&[DECAP, "detach", "eth0"]));
    let filters = farm.host(&["tc", "filter", "show", "dev", "eth0", "ingress"]);
    assert!(!filters.contains("weir_decap"), "{filters}");
}

/// A unit's namespace and a host's, with a wire between them.
struct Farm {
    unit: String,
    host: String,
}

impl Farm {
    fn new(name: &str) -> Self {
        let prefix = format!("weir-decap-{}-{name}", std::process::id());
        let farm = Self { unit: format!("{prefix}-unit"), host: format!("{prefix}-host") };
        for namespace in [&farm.unit, &farm.host] {
            run("ip", &["netns", "add", namespace]);
            let settings = ["all.accept_dad=0", "default.accept_dad=0"].map(|name| format!("net.ipv6.conf.{name}"));
            let mut sysctl = vec!["netns", "exec", namespace, "sysctl", "-qw"];
            sysctl.extend(settings.iter().map(String::as_str));
            sysctl.extend(["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]);
            run("ip", &sysctl);
            run("ip", &["-n", namespace, "link", "set", "lo", "up"]);
        }
        run(
            "ip",
            &["-n", &farm.unit, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &farm.host],
        );
        for (namespace, last) in [(&farm.unit, "1"), (&farm.host, "11")] {
            run("ip", &["-n", namespace, "link", "set", "eth0", "up"]);
            run("ip", &["-n", namespace, "address", "add", &format!("10.80.0.{last}/24"), "dev", "eth0"]);
            run("ip", &["-n", namespace, "address", "add", &format!("fd80::{last}/64"), "dev", "eth0", "nodad"]);
        }
        for vip in ["10.90.0.100/32", "fd90::100/128"] {
            run("ip", &["-n", &farm.host, "address", "add", vip, "dev", "lo"]);
        }
        for via in ["10.80.0.1", "fd80::1"] {
            run("ip", &["-n", &farm.host, "route", "add", "default", "via", via]);
        }
        farm
    }

    fn host(&self, command: &[&str]) -> String {
        let mut arguments = vec!["netns", "exec", self.host.as_str()];
        arguments.extend(command);
        run("ip", &arguments)
    }

    fn host_status(&self, command: &[&str]) -> bool {
        let output = Command::new("ip").args(["netns", "exec", &self.host]).args(command).output().expect("ip runs");
        output.status.success()
    }

    fn send(&self) {
        let mac = self.host(&["cat", "/sys/class/net/eth0/address"]);
        run("ip", &["netns", "exec", &self.unit, PYTHON, SCRIPT, "send", "eth0", mac.trim()]);
    }

    fn stats(&self) -> BTreeMap<String, u64> {
        let text = self.host(&[DECAP, "stats", "eth0"]);
        let rows = text.lines().filter_map(|line| line.split_once(' '));
        rows.map(|(name, count)| (name.to_owned(), count.parse().expect("a number"))).collect()
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        for namespace in [&self.unit, &self.host] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

struct Server {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(farm: &Farm) -> Self {
        // `timeout` ends it, and with it our reading, should the last packet never come.
        let mut process = Command::new("timeout")
            .args(["60", "ip", "netns", "exec", &farm.host, PYTHON, SCRIPT, "serve"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("timeout runs");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let mut server = Self { process, output };
        assert_eq!(server.line(), "ready");
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).expect("text") > 0, "the server has ended");
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
