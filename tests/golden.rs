//! Packets through `weir replay`, compared byte for byte with what scapy, which shares no code with Weir, says must come out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Debian's Python: the one that has Debian's scapy.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn dsr_sends_what_scapy_says() {
    check_group("dsr", 30);
}

#[test]
fn nat_sends_what_scapy_says() {
    check_group("nat", 30);
}

#[test]
fn fragments_follow_their_flow() {
    check_group("fragments", 60);
}

#[test]
fn tunnels_carry_what_scapy_says() {
    check_group("tunnels", 60);
}

#[test]
fn a_tunnels_narrow_path_is_told_by_the_vip() {
    check_group("tunnel-errors", 8);
}

#[test]
fn endpoints_on_the_unit_are_its_kernel() {
    check_group("on-the-unit", 4);
}

#[test]
fn answers_go_by_the_longest_prefix() {
    check_group("routes", 4);
}

#[test]
fn vlans_are_ports_of_their_own() {
    check_group("vlans", 14);
}

#[test]
fn options_and_extension_headers_follow_the_policy() {
    check_group("headers", 6);
}

#[test]
fn protocols_without_ports_go_by_address() {
    check_group("portless", 16);
}

#[test]
fn full_nat_sends_what_scapy_says() {
    check_group("full-nat", 60);
}

#[test]
fn full_nat_fragments_are_what_scapy_says() {
    check_group("full-nat-fragments", 45);
}

#[test]
fn wrong_packets_are_dropped_for_the_named_reason() {
    check_group("wrong", 100);
}

#[test]
fn the_unit_answers_for_its_vips_and_leaves_the_rest_to_the_kernel() {
    check_group("local", 4);
}

#[test]
fn icmp_errors_reach_the_host_that_has_the_flow() {
    check_group("icmp", 8);
}

#[test]
fn the_burst_size_changes_no_flow() {
    let cases = cases("burst");
    for case in &cases {
        let [single, burst] = ["1", "32"].map(|burst| {
            let replay = Replay::run(case, burst);
            let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
            for frame in replay.out.into_values().flatten() {
                flows.entry(flow_label(&frame)).or_default().push(frame);
            }
            flows
        });
        assert_eq!(single.len(), 200, "{}: every flow arrives", case.display());
        for (flow, frames) in &single {
            assert_eq!(frames.len(), 5, "{}: every packet arrives", case.display());
            let hosts = frames.iter().map(|frame| &frame[..6]).collect::<std::collections::HashSet<_>>();
            assert_eq!(hosts.len(), 1, "{}: a flow stays at its host", case.display());
            let order = |frames: &[Vec<u8>]| frames.iter().map(|frame| sequence(frame)).collect::<Vec<_>>();
            assert_eq!(order(frames), (0..5).collect::<Vec<_>>(), "{}: a flow's order", case.display());
            assert_eq!(Some(frames), burst.get(flow), "{}: burst 1 and burst 32 differ", case.display());
        }
        let hosts = single.values().map(|frames| frames[0][..6].to_vec()).collect::<std::collections::HashSet<_>>();
        assert_eq!(hosts.len(), 3, "{}: all hosts get some", case.display());
        assert_eq!(single.len(), burst.len());
    }
    assert_eq!(cases.len(), 2);
}

/// The IPv4 identification or IPv6 flow label, in which the burst cases name the flow; with the version.
fn flow_label(frame: &[u8]) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] { frame[18..20].to_vec() } else { frame[14..18].to_vec() }
}

/// The TCP sequence number of a burst case's packet.
fn sequence(frame: &[u8]) -> u32 {
    let at = if frame[12..14] == [0x08, 0x00] { 14 + 20 + 4 } else { 14 + 40 + 4 };
    u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

/// Runs every case of a group with single packets and with full bursts, and fails with all that differs.
fn check_group(group: &str, least: usize) {
    let mut complaints = String::new();
    let cases = cases(group);
    assert!(cases.len() >= least, "only {} cases in {group}", cases.len());
    for case in &cases {
        for burst in ["1", "32"] {
            let expected: Value =
                serde_json::from_slice(&fs::read(case.join("expect.json")).expect("expect.json")).expect("JSON");
            for complaint in compare(&expected, &Replay::run(case, burst)) {
                let _ = writeln!(complaints, "{} burst {burst}: {complaint}", case.display());
            }
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Writes a group's cases and returns their folders.
fn cases(group: &str) -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{group}"));
    if root.exists() {
        fs::remove_dir_all(&root).expect("an old folder of cases can be removed");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases.py");
    let made = Command::new(PYTHON).arg("-B").arg(script).arg(&root).arg(group).stdin(Stdio::null()).output();
    let made = made.expect("Debian's python3 is there; scripts/setup installs it");
    assert!(made.status.success(), "cases.py: {}", String::from_utf8_lossy(&made.stderr));
    let mut folders: Vec<_> = fs::read_dir(&root).expect("cases").map(|entry| entry.expect("entry").path()).collect();
    folders.sort();
    folders
}

/// What one run of `weir replay` did.
struct Replay {
    /// Sent frames by port.
    out: BTreeMap<String, Vec<Vec<u8>>>,
    /// Frames for the kernel.
    twin: Vec<Vec<u8>>,
    /// Its JSON.
    report: Value,
}

impl Replay {
    fn run(case: &Path, burst: &str) -> Self {
        let mut replay = Command::new(env!("CARGO_BIN_EXE_weir"));
        replay.arg("replay").arg("--config").arg(case.join("config.yaml")).arg("--json").args(["--burst", burst]);
        let mut ports = vec![String::from("net0")];
        if fs::read_to_string(case.join("config.yaml")).expect("config").contains("name: net1") {
            ports.push(String::from("net1"));
        }
        for port in &ports {
            let input = case.join(format!("{port}.in.pcap"));
            if input.exists() {
                replay.arg("--in").arg(format!("{port}={}", input.display()));
            }
            replay.arg("--out").arg(format!("{port}={}", case.join(format!("{port}.out.pcap")).display()));
        }
        let twin = case.join("twin.pcap");
        replay.arg("--twin").arg(&twin);
        let done = replay.stdin(Stdio::null()).output().expect("weir starts");
        assert!(
            done.status.success(),
            "{}: weir replay: {}\n{}",
            case.display(),
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
        Self {
            out: ports.iter().map(|port| (port.clone(), pcap(&case.join(format!("{port}.out.pcap"))))).collect(),
            twin: pcap(&twin),
            report: serde_json::from_slice(&done.stdout).expect("weir replay --json writes JSON and nothing else"),
        }
    }
}

/// All that differs between what must come out and what came out.
fn compare(expected: &Value, replay: &Replay) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut sent = 0;
    for (port, frames) in &replay.out {
        sent += frames.len();
        let expected = expected["out"][port].as_array().map(Vec::as_slice).unwrap_or_default();
        let expected = expected.iter().map(|item| {
            (item["flow"].as_str().expect("flow").to_owned(), unhex(item["frame"].as_str().expect("frame")))
        });
        complaints.extend(compare_frames(port, expected.collect(), frames));
    }
    let twin = expected["twin"].as_array().expect("twin").iter();
    let twin = twin.map(|frame| (String::from("twin"), unhex(frame.as_str().expect("frame")))).collect();
    complaints.extend(compare_frames("twin", twin, &replay.twin));

    let drops = |value: &Value| {
        let drops = value["drops"].as_object().cloned().unwrap_or_default();
        drops.into_iter().filter(|(_, count)| count.as_u64() != Some(0)).collect::<BTreeMap<_, _>>()
    };
    if drops(expected) != drops(&replay.report) {
        complaints.push(format!("drops: expected {:?}, got {:?}", drops(expected), drops(&replay.report)));
    }
    let report = &replay.report;
    for (name, count) in [
        ("packets_in", expected["packets_in"].as_u64()),
        ("packets_out", Some(sent as u64)),
        ("twin", Some(replay.twin.len() as u64)),
    ] {
        if report[name].as_u64() != count {
            complaints.push(format!("{name}: expected {count:?}, reported {}", report[name]));
        }
    }
    for route in expected["routes"].as_array().into_iter().flatten() {
        let same = |other: &Value| {
            ["client", "vip", "protocol"].iter().all(|key| other["flow"][key] == route[key])
                && other["direction"] == "to-host"
                && other["endpoint"]["address"] == route["address"]
        };
        if !report["routes"].as_array().is_some_and(|routes| routes.iter().any(same)) {
            complaints.push(format!("no route {route}"));
        }
    }
    complaints
}

/// Compares frames: each expected one exactly once, nothing else, and those of one flow in their order.
fn compare_frames(place: &str, expected: Vec<(String, Vec<u8>)>, frames: &[Vec<u8>]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut places: HashMap<&[u8], VecDeque<usize>> = HashMap::new();
    for (index, (_, frame)) in expected.iter().enumerate() {
        places.entry(frame).or_default().push_back(index);
    }
    let mut last: HashMap<&str, usize> = HashMap::new();
    let mut surplus = Vec::new();
    for frame in frames {
        let Some(index) = places.get_mut(frame.as_slice()).and_then(VecDeque::pop_front) else {
            surplus.push(frame);
            continue;
        };
        let flow = expected[index].0.as_str();
        if last.insert(flow, index).is_some_and(|before| before > index) {
            complaints.push(format!("{place}: packet {index} of {flow:?} out of order"));
        }
    }
    let mut missing: Vec<usize> = places.into_values().flatten().collect();
    missing.sort_unstable();
    let mut surplus = surplus.into_iter();
    for index in missing {
        let (flow, wanted) = &expected[index];
        complaints.push(match surplus.next() {
            Some(frame) => format!("{place}: packet {index} of {flow:?}: {}", difference(wanted, frame)),
            None => format!("{place}: packet {index} of {flow:?} is missing: {}", hex(wanted)),
        });
    }
    complaints.extend(surplus.map(|frame| format!("{place}: unexpected {}", hex(frame))));
    complaints.truncate(5);
    complaints
}

/// Both frames in hex and the places where they differ.
fn difference(wanted: &[u8], frame: &[u8]) -> String {
    let places: Vec<usize> =
        (0..wanted.len().max(frame.len())).filter(|&at| wanted.get(at) != frame.get(at)).take(24).collect();
    format!("bytes {places:?} differ\n  expected {}\n  got      {}", hex(wanted), hex(frame))
}

/// The frames of a capture file (libpcap's classic format, little-endian).
fn pcap(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    assert!(matches!(word(0), 0xa1b2_c3d4 | 0xa1b2_3c4d), "{} is no pcap file", path.display());
    assert_eq!(word(20) & 0xffff, 1, "{}: link type Ethernet", path.display());
    let (mut frames, mut at) = (Vec::new(), 24);
    while at < bytes.len() {
        let length = word(at + 8) as usize;
        assert_eq!(length, word(at + 12) as usize, "{}: a frame was cut", path.display());
        frames.push(bytes[at + 16..at + 16 + length].to_vec());
        at += 16 + length;
    }
    frames
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}
