//! Tunnels and translation against scapy: it makes the packets, and makes what each must have become, byte for byte.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use weir_dataplane::packet::{HeapPacket, Packet};
use weir_dataplane::parse::parse;
use weir_dataplane::translation::translate_both;
use weir_dataplane::tunneler::Tunnel;

/// Debian's own interpreter, for which python3-scapy is packaged.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tunneler_scapy.py");
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The cases: name and frame.
fn cases() -> Vec<(String, Vec<u8>)> {
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

/// What becomes of a case's frame.
fn outcome(name: &str, frame: &[u8]) -> Vec<u8> {
    let what = name.split('-').next().unwrap();
    let (source, destination) = if what.ends_with('4') { ("10.80.0.1", "10.80.0.11") } else { ("fd80::1", "fd80::11") };
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let parsed = parse(frame, MAC).unwrap();
    let mut packet = HeapPacket::new(frame);
    let tunnel = match &what[..what.len() - 1] {
        "ipip" => Tunnel::ipip(source, destination),
        "gue" => Tunnel::gue(source, destination, 6080),
        _ => {
            let (source, destination) = (SocketAddr::new(source, 30_000), SocketAddr::new(destination, 8080));
            translate_both(&mut packet, &parsed, source, destination).unwrap();
            return packet.data().to_vec();
        }
    };
    tunnel.unwrap().encapsulate(&mut packet, parsed.headers(), 0xc0de).unwrap();
    packet.data().to_vec()
}

/// Whether scapy agrees with the outcomes, and what it says.
fn judged(outcomes: &[(String, Vec<u8>)]) -> (bool, String) {
    let mut lines = String::new();
    for (name, frame) in outcomes {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        lines += &format!("{name} {hex}\n");
    }
    let mut judge = Command::new(PYTHON)
        .args([SCRIPT, "judge"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 of Debian must be installed");
    judge.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = judge.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn scapy_makes_the_same_packets() {
    let mut outcomes: Vec<_> =
        cases().into_iter().map(|(name, frame)| (name.clone(), outcome(&name, &frame))).collect();
    let (accepted, report) = judged(&outcomes);
    assert!(accepted, "{report}");
    assert_eq!(report, "37 packets judged, 0 complaints\n");

    // A judge who never complains is none.
    outcomes[0].1[24] ^= 1;
    let (accepted, report) = judged(&outcomes);
    assert!(!accepted && report.contains("ipip4-plain-tcp4: byte 24 differs"), "{report}");
}
