//! The wire formats against scapy: it makes the questions, and computes every checksum of the answers again.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use weir_dataplane::responder::{self, Answer};
use weir_dataplane::wire::{Dissection, MacAddress, Protocol, tcp, udp};

const UNIT: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
/// Debian's own interpreter, for which python3-scapy is packaged.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire_scapy.py");

fn owned(address: IpAddr) -> bool {
    address == IpAddr::from([10, 80, 0, 100]) || address == "fd80::100".parse::<IpAddr>().unwrap()
}

/// The questions: name and frame.
fn questions() -> Vec<(String, Vec<u8>)> {
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

/// The answers: name and frame, none where there is no answer.
fn answers() -> Vec<(String, Option<Vec<u8>>)> {
    let mut answers = Vec::new();
    for (name, mut frame) in questions() {
        let mut out = [0; 1500];
        let answer = match name.split('-').next().unwrap() {
            "ping4" | "ping6" => {
                let answer = responder::echo_in_place(&mut frame, owned);
                out[..frame.len()].copy_from_slice(&frame);
                answer
            }
            "reset4" | "reset6" | "port4" | "port6" => responder::refuse(&frame, &mut out, UNIT),
            "big4" | "big6" => responder::too_big(&frame, 1400, &mut out),
            "time4" | "time6" => responder::time_exceeded(&frame, &mut out),
            _ => responder::answer(&frame, &mut out, UNIT, owned),
        };
        let reply = match answer {
            Answer::None => None,
            Answer::Reply(len) => Some(out[..len].to_vec()),
        };
        answers.push((name, reply));
    }
    answers
}

/// Whether scapy accepts the answers, and what it says.
fn judged(answers: &[(String, Option<Vec<u8>>)]) -> (bool, String) {
    let mut lines = String::new();
    for (name, reply) in answers {
        let hex = match reply {
            None => "none".to_owned(),
            Some(reply) => reply.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
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
fn scapy_accepts_the_answers() {
    let (accepted, report) = judged(&answers());
    assert!(accepted, "{report}");
    assert_eq!(report, "27 answers judged, 0 complaints\n");
}

#[test]
fn scapy_would_notice_a_wrong_checksum() {
    let mut answers = answers();
    let mut spoiled = Vec::new();
    for (name, reply) in &mut answers {
        let Some(reply) = reply else { continue };
        let Ok(parts) = Dissection::of(reply) else { continue }; // ARP has no checksum
        let check = if parts.protocol == Protocol::TCP { 16 } else { 2 };
        reply[parts.upper + check] ^= 0x10;
        spoiled.push(name.clone());
    }
    let (accepted, report) = judged(&answers);
    assert!(!accepted && spoiled.len() == 19, "{report}");
    for name in spoiled {
        assert!(report.contains(&format!("{name}: scapy computes ")), "{name} passed: {report}");
    }
}

#[test]
fn scapys_packets_verify_and_are_emitted_alike() {
    let mut seen = (0, 0);
    for (name, frame) in questions() {
        let Ok(parts) = Dissection::of(&frame) else {
            assert!(name.starts_with("arp"), "{name}: {:?}", Dissection::of(&frame));
            continue;
        };
        let payload = parts.payload(&frame);
        if parts.is_later_fragment() {
            continue;
        }
        match parts.protocol {
            Protocol::TCP => {
                let segment = tcp::Packet::new_checked(payload).unwrap();
                assert_eq!(segment.verify_checksum(parts.addresses), Ok(()), "{name}");
                seen.0 += 1;
            }
            Protocol::UDP => {
                let datagram = udp::Packet::new_checked(payload).unwrap();
                assert_eq!(datagram.verify_checksum(parts.addresses), Ok(()), "{name}");
                let mut out = vec![0; payload.len()];
                udp::Repr::parse(&datagram).emit(&mut out, datagram.payload(), parts.addresses).unwrap();
                assert_eq!(out, payload, "{name}");
                seen.1 += 1;
            }
            _ => {}
        }
    }
    assert_eq!(seen, (7, 6), "segments and datagrams");
}
