//! What the operator gets to read: exit codes and messages of `weir` for good and bad input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A unit that is right but for what a test changes in it.
const GOOD: &str = r#"
unit: { id: 1, name: cli }
admin: { socket: SOCKET }
dataplane: { cpus: [0], memory: 64MiB, mbufs: 4096 }
ports:
  - { name: net0, device: "af_packet:no-such-if0", addresses: [192.0.2.1/24] }
hosts:
  - { id: 1, name: host-1, address: 192.0.2.11 }
services:
  - { id: 1, name: web, vip: 192.0.2.100, ports: 80, mode: dsr, endpoints: [{ host: host-1 }] }
"#;

#[test]
fn every_file_in_configs_passes_check() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let files: Vec<PathBuf> =
        fs::read_dir(folder).expect("configs/").map(|entry| entry.expect("entry").path()).collect();
    let files: Vec<PathBuf> = files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(!files.is_empty());
    for file in &files {
        let done = weir().args(["check", "--elsewhere"]).arg(file).output().expect("weir starts");
        assert!(done.status.success(), "{}: {}", file.display(), text(&done));
        assert!(text(&done).contains("yaml: memory: "), "{}", text(&done));
    }
    let all = weir().args(["check", "--elsewhere"]).args(&files).output().expect("weir starts");
    assert!(all.status.success(), "{}", text(&all));
}

#[test]
fn tables_that_the_machine_has_no_memory_for_are_refused() {
    let scratch = Scratch::new("memory");
    let file =
        scratch.config(&GOOD.replace("mbufs: 4096", "mbufs: 4096, routes: { ipv4: 1000000000, ipv6: 1000000000 }"));
    for command in [&["check"][..], &["run", "--config"]] {
        let done = weir().args(command).arg(&file).output().expect("weir starts");
        assert_eq!(done.status.code(), Some(1), "{}", text(&done));
        assert!(text(&done).contains("this machine has") && text(&done).contains("fewer routes"), "{}", text(&done));
    }
    let done = weir().args(["check", "--elsewhere"]).arg(&file).output().expect("weir starts");
    assert!(done.status.success(), "{}", text(&done));
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let scratch = Scratch::new("unknown-key");
    let file = scratch.config(&GOOD.replace("memory:", "memroy:"));
    let done = weir().arg("check").arg(&file).output().expect("weir starts");
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    for part in ["memroy", "memory", "config.yaml", "4"] {
        assert!(text(&done).contains(part), "{part} is not in: {}", text(&done));
    }
}

#[test]
fn one_bad_file_among_good_ones_fails_the_check() {
    let (good, bad) = (Scratch::new("good"), Scratch::new("bad"));
    let done = weir().arg("check").arg(good.config(GOOD)).arg(bad.config("ports: []\n")).output().expect("weir starts");
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    let done = weir().arg("check").arg(good.config(GOOD)).output().expect("weir starts");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    for command in ["check", "run", "replay"] {
        let mut weir = weir();
        weir.arg(command);
        if command != "check" {
            weir.arg("--config");
        }
        weir.arg("/nonexistent/weir.yaml");
        if command == "replay" {
            weir.args(["--in", "/nonexistent/in.pcap", "--out", "/nonexistent/out.pcap"]);
        }
        let done = weir.output().expect("weir starts");
        assert!(!done.status.success(), "{command}");
        assert!(text(&done).contains("/nonexistent/weir.yaml"), "{command}: {}", text(&done));
        assert_no_panic(&done);
    }
}

#[test]
fn the_schema_is_json_and_knows_the_sections() {
    let done = weir().arg("schema").output().expect("weir starts");
    assert!(done.status.success(), "{}", text(&done));
    let schema: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    for section in ["unit", "admin", "dataplane", "ports", "hosts", "services"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    require_root();
    let scratch = Scratch::new("no-interface");
    let done = alone().arg(weir_path()).args(["run", "--config"]).arg(scratch.config(GOOD)).output().expect("unshare");
    assert!(!done.status.success(), "{}", text(&done));
    assert!(text(&done).contains("no-such-if0"), "{}", text(&done));
    assert_no_panic(&done);
}

#[test]
fn a_second_unit_on_the_same_socket_is_refused_before_it_takes_packets() {
    require_root();
    let scratch = Scratch::new("second");
    let file = scratch.config(&GOOD.replace("no-such-if0", "lo"));
    let _first = std::os::unix::net::UnixListener::bind(scratch.0.join("weir.sock")).expect("a socket");
    let done = alone().arg(weir_path()).args(["run", "--config"]).arg(file).output().expect("unshare");
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    assert!(text(&done).contains("belongs to a unit that is running"), "{}", text(&done));
    assert!(!text(&done).contains("unit runs"), "{}", text(&done));
}

#[test]
fn replay_wants_the_addresses_of_ports() {
    let scratch = Scratch::new("no-addresses");
    let file = scratch.config(&GOOD.replace(", addresses: [192.0.2.1/24]", ""));
    let done =
        weir().args(["replay", "--in", "/nonexistent/in.pcap", "--config"]).arg(file).output().expect("weir starts");
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    assert!(text(&done).contains("port net0 has no `addresses`"), "{}", text(&done));
    assert_no_panic(&done);
}

#[test]
fn huge_pages_that_are_not_there_are_asked_for() {
    require_root();
    let scratch = Scratch::new("hugepages");
    // More than any machine that runs tests has reserved.
    let config = GOOD.replace("no-such-if0", "lo").replace("memory: 64MiB", "hugepages: true, memory: 1TiB");
    let done =
        alone().arg(weir_path()).args(["run", "--config"]).arg(scratch.config(&config)).output().expect("unshare");
    assert!(!done.status.success(), "{}", text(&done));
    assert!(text(&done).to_lowercase().contains("huge"), "{}", text(&done));
    assert_no_panic(&done);
}

#[test]
fn a_user_who_is_not_root_is_told_so() {
    require_root();
    let scratch = Scratch::new("not-root");
    let file = scratch.config(GOOD);
    // The program may lie where nobody may look.
    let program = scratch.0.join("weir");
    fs::copy(weir_path(), &program).expect("a copy of weir");
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(["run", "--config"]);
    let done = setpriv.arg(&file).current_dir("/").stdin(Stdio::null()).output().expect("setpriv starts");
    assert!(!done.status.success(), "{}", text(&done));
    assert!(text(&done).contains("root"), "{}", text(&done));
    assert_no_panic(&done);
    // What touches no network needs no root.
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).arg("check").arg(&file);
    let done = setpriv.current_dir("/").stdin(Stdio::null()).output().expect("setpriv starts");
    assert!(done.status.success(), "{}", text(&done));
}

fn weir_path() -> &'static str {
    env!("CARGO_BIN_EXE_weir")
}

fn weir() -> Command {
    let mut weir = Command::new(weir_path());
    weir.stdin(Stdio::null());
    weir
}

/// A network namespace with nothing in it, for a program that must not get far.
fn alone() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "timeout", "30"]).stdin(Stdio::null());
    unshare
}

fn require_root() {
    let id = Command::new("id").arg("-u").output().expect("id");
    assert!(id.stdout.starts_with(b"0"), "needs root: it starts the unit, or changes the user");
}

fn text(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

fn assert_no_panic(done: &Output) {
    assert!(!text(done).contains("panicked"), "{}", text(done));
    assert!(done.status.code().is_some(), "ended by a signal: {}", done.status);
}

/// A folder that everybody may read; goes with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("weir-cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        Self(folder)
    }

    fn config(&self, text: &str) -> PathBuf {
        let file = self.0.join("config.yaml");
        let socket = self.0.join("weir.sock");
        fs::write(&file, text.replace("SOCKET", &socket.display().to_string())).expect("a configuration");
        file
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
