//! Translated ICMP errors against scapy: it makes each error as it comes and as it has to leave, with checksums of its own.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use weir_dataplane::counters::DropReason;
use weir_dataplane::flow::{Key, Owners, ToeplitzKey, protocol};
use weir_dataplane::icmp_error::{self, Quoted};
use weir_dataplane::parse::{Class, Parsed, parse};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Debian's own interpreter, for which python3-scapy is packaged.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/icmp_scapy.py");

/// The addresses of the script.
struct Ends {
    client: SocketAddr,
    vip: SocketAddr,
    host: SocketAddr,
    pool: SocketAddr,
}

fn ends(v4: bool) -> Ends {
    let [client, vip, host, pool] = if v4 {
        ["198.51.100.7:40001", "10.80.0.100:80", "10.1.2.3:8080", "10.80.0.200:61234"]
    } else {
        ["[2001:db8::7]:40001", "[fd80::100]:80", "[fd01::2:3]:8080", "[fd80::200]:61234"]
    }
    .map(|end| end.parse().unwrap());
    Ends { client, vip, host, pool }
}

/// The errors: name and frame.
fn errors() -> Vec<(String, Vec<u8>)> {
    let output = Command::new(PYTHON).args([SCRIPT, "make"]).output().expect("python3 of Debian must be installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "python3-scapy must be installed and working: {complaint}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (name.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
        })
        .collect()
}

fn way(name: &str) -> &str {
    name.split('-').next().unwrap()
}

/// Translates as the name says, to `ends`.
fn translate(name: &str, frame: &mut [u8], parsed: &Parsed, quoted: &Quoted, ends: &Ends) -> Result<(), DropReason> {
    match way(name) {
        "endpoint" => icmp_error::to_endpoint_nat(frame, parsed, quoted, ends.host),
        "client" => icmp_error::to_client_nat(frame, parsed, quoted, ends.vip),
        "fullendpoint" => icmp_error::to_endpoint_full_nat(frame, parsed, quoted, ends.host, ends.pool),
        "fullclient" => icmp_error::to_client_full_nat(frame, parsed, quoted, ends.client, ends.vip),
        other => panic!("no way {other}"),
    }
}

/// Whether scapy accepts the frames, and what it says.
fn judged(frames: &[(String, Vec<u8>)]) -> (bool, String) {
    let mut judge = Command::new(PYTHON)
        .args([SCRIPT, "judge"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 of Debian must be installed");
    let mut lines = String::new();
    for (name, frame) in frames {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        lines += &format!("{name} {hex}\n");
    }
    judge.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = judge.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn translated() -> Vec<(String, Vec<u8>)> {
    let mut frames = errors();
    for (name, frame) in &mut frames {
        let parsed = parse(frame, MAC).unwrap();
        assert_eq!(parsed.class, Class::Icmp, "{name}");
        let quoted = icmp_error::quoted(frame, &parsed).unwrap_or_else(|reason| panic!("{name}: {reason:?}"));
        let ends = ends(matches!(parsed.key, Key::V4(_)));
        translate(name, frame, &parsed, &quoted, &ends).unwrap_or_else(|reason| panic!("{name}: {reason:?}"));
    }
    frames
}

#[test]
fn scapy_makes_the_same_errors() {
    let (accepted, report) = judged(&translated());
    assert!(accepted, "{}", report.chars().take(2000).collect::<String>());
    assert_eq!(report, "72 errors judged, 0 complaints\n");
}

#[test]
fn scapy_would_notice_one_bit() {
    let mut frames = translated();
    let last = frames[5].1.len() - 1;
    frames[5].1[last] ^= 1;
    let (accepted, report) = judged(&frames);
    assert!(!accepted && report.starts_with(&frames[5].0) && report.ends_with("72 errors judged, 1 complaints\n"));
}

#[test]
fn the_flow_is_found_with_its_owner() {
    let owners = Owners::new(&ToeplitzKey::from_seed(11), 128);
    for (name, frame) in errors() {
        let parsed = parse(&frame, MAC).unwrap();
        let quoted = icmp_error::quoted(&frame, &parsed).unwrap();
        let ends = ends(matches!(parsed.key, Key::V4(_)));
        let protocol =
            if name.contains("tcp") || name.contains("options") || name.contains("big6") || name.contains("time6") {
                protocol::TCP
            } else {
                protocol::UDP
            };
        let of = |source, destination| Key::new(source, destination, protocol).unwrap();
        let from_client = of(ends.client, ends.vip);
        let (route, to_vip) = match way(&name) {
            "endpoint" | "fullendpoint" => (from_client, true),
            "client" => (of(ends.host, ends.client), false),
            _ => (of(ends.host, ends.pool), false),
        };
        assert_eq!(quoted.route_key(), route, "{name}");
        if way(&name) != "fullclient" {
            assert_eq!(quoted.owner(&owners, to_vip), owners.client_is_source(&from_client), "{name}");
        }
        let l3 = if matches!(parsed.key, Key::V4(_)) { 4 } else { 6 };
        assert_eq!((frame[quoted.l3] >> 4, quoted.l4 > quoted.l3), (l3, true), "{name}");
    }
}

#[test]
fn the_other_family_is_refused_and_nothing_changed() {
    for (name, frame) in errors() {
        let parsed = parse(&frame, MAC).unwrap();
        let quoted = icmp_error::quoted(&frame, &parsed).unwrap();
        let mut copy = frame.clone();
        let wrong = ends(!matches!(parsed.key, Key::V4(_)));
        assert_eq!(translate(&name, &mut copy, &parsed, &quoted, &wrong), Err(DropReason::Icmp), "{name}");
        assert_eq!(copy, frame, "{name}");
    }
}

/// Cuts an error at `len` bytes, and makes lengths and checksums fit again: as a router that quotes less would send it.
fn shortened(frame: &[u8], parsed: &Parsed, len: usize) -> Vec<u8> {
    let mut frame = frame[..len].to_vec();
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let sum = |bytes: &[u8], mut sum: u32| {
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).unwrap()).to_be_bytes()
    };
    let length = u16::try_from(len - l3).unwrap();
    if matches!(parsed.key, Key::V4(_)) {
        frame[l3 + 2..l3 + 4].copy_from_slice(&length.to_be_bytes());
        frame[l3 + 10..l3 + 12].fill(0);
        let check = sum(&frame[l3..l4], 0);
        frame[l3 + 10..l3 + 12].copy_from_slice(&check);
    } else {
        frame[l3 + 4..l3 + 6].copy_from_slice(&(length - 40).to_be_bytes());
    }
    if len >= l4 + 4 {
        frame[l4 + 2..l4 + 4].fill(0);
        let message = u32::try_from(len - l4).unwrap();
        let check = match parsed.key {
            Key::V4(_) => sum(&frame[l4..], 0),
            Key::V6(_) => {
                let addresses = frame[l3 + 8..l3 + 40].to_vec();
                let pseudo = !u16::from_be_bytes(sum(&addresses, message + 58));
                sum(&frame[l4..], u32::from(pseudo))
            }
        };
        frame[l4 + 2..l4 + 4].copy_from_slice(&check);
    }
    frame
}

#[test]
fn truncated_anywhere_is_refused_or_right() {
    for (name, frame) in errors() {
        let parsed = parse(&frame, MAC).unwrap();
        let quoted = icmp_error::quoted(&frame, &parsed).unwrap();
        let ends = ends(matches!(parsed.key, Key::V4(_)));
        for len in 0..frame.len() {
            // The frame ends early, whatever its headers say.
            assert_eq!(icmp_error::quoted(&frame[..len], &parsed), Err(DropReason::Truncated), "{name} at {len}");
            let mut cut = frame[..len].to_vec();
            let _ = translate(&name, &mut cut, &parsed, &quoted, &ends);
            if len < usize::from(parsed.l4) {
                continue;
            }
            // The quotation ends early, and the headers say so.
            let mut cut = shortened(&frame, &parsed, len);
            let Ok(reparsed) = parse(&cut, MAC) else {
                assert!(len < usize::from(parsed.l4) + 8, "{name} at {len}");
                continue;
            };
            let found = icmp_error::quoted(&cut, &reparsed);
            if len < quoted.l4 + 8 {
                assert_eq!(found, Err(DropReason::Truncated), "{name} at {len}");
                continue;
            }
            let found = found.unwrap_or_else(|reason| panic!("{name} at {len}: {reason:?}"));
            translate(&name, &mut cut, &reparsed, &found, &ends).unwrap();
            let parsed = parse(&cut, MAC).unwrap();
            let again =
                icmp_error::quoted(&cut, &parsed).unwrap_or_else(|reason| panic!("{name} at {len}: {reason:?}"));
            assert_ne!(again.key, found.key, "{name} at {len}");
        }
    }
}

#[test]
fn what_is_no_error_about_a_flow_is_refused() {
    for (name, frame) in errors() {
        let parsed = parse(&frame, MAC).unwrap();
        let quoted = icmp_error::quoted(&frame, &parsed).unwrap();
        let v4 = matches!(parsed.key, Key::V4(_));
        let refused = |at: usize, value: u8| {
            let mut frame = frame.clone();
            frame[at] = value;
            let frame = shortened(&frame, &parsed, frame.len());
            icmp_error::quoted(&frame, &parsed).unwrap_err()
        };
        let l4 = usize::from(parsed.l4);
        for kind in if v4 { [0, 4, 5, 8, 13] } else { [0, 5, 128, 135, 137] } {
            assert_eq!(refused(l4, kind), DropReason::Icmp, "{name} type {kind}");
        }
        let source = quoted.l3 + if v4 { 12 } else { 8 };
        assert_eq!(refused(source, 1), DropReason::Icmp, "{name}: its receiver did not send that");
        if v4 {
            assert_eq!(refused(quoted.l3 + 7, 1), DropReason::Icmp, "{name}: a later fragment");
            assert_eq!(refused(quoted.l3 + 9, 1), DropReason::Icmp, "{name}: an error about ICMP");
        }
        let mut broken = frame.clone();
        broken[l4 + 5] ^= 1;
        assert_eq!(icmp_error::quoted(&broken, &parsed), Err(DropReason::BadChecksum), "{name}");
    }
}
