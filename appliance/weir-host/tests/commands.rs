//! `weir-host` as a command: what it says where it cannot do what it is asked for.

use std::path::Path;
use std::process::{Command, Output};

#[test]
fn a_bad_configuration_is_named_with_its_fault() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bad-agent.yaml");
    std::fs::write(&file, "units: { 1: \"192.0.2.1:7300\" }\napplicatoins: {}\n").unwrap();
    let output = weir_host(&["run", "--config", file.to_str().unwrap()]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("bad-agent.yaml") && error.contains("applicatoins"), "{error}");
}

#[test]
fn without_an_agent_its_socket_is_named() {
    let socket = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-agent.sock");
    let output = weir_host(&["--socket", socket.to_str().unwrap(), "status"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("no-agent.sock"), "{error}");
}

#[test]
fn systemd_takes_the_unit_file() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("systemd");
    std::fs::create_dir_all(&folder).unwrap();
    let unit =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/weir-host/weir-host.service"));
    let unit = unit.unwrap().replace("/usr/local/bin/weir-host", env!("CARGO_BIN_EXE_weir-host"));
    std::fs::write(folder.join("weir-host.service"), unit).unwrap();
    let verified =
        Command::new("systemd-analyze").arg("verify").arg(folder.join("weir-host.service")).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("weir-host.service:"), "{said}");
}

fn weir_host(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-host")).args(arguments).output().expect("weir-host starts")
}
