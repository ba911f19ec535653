//! Whatever the text, checking it ends without a panic, and a refusal always has a reason and a place in the text.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use weir_config::{Config, Machine, Mode, Ports, Report, check, load, raw};

/// Checks `text` and everything one can do with the answer.
fn exercise(text: &str) -> Result<Config, Report> {
    let answer = check("file.yaml", text, &Machine { cpus: Some(vec![0, 1]), ..Machine::default() });
    let report = match &answer {
        Ok(config) => &config.warnings,
        Err(report) => report,
    };
    assert_eq!(report.has_errors(), answer.is_err(), "{report}");
    for problem in report.problems() {
        assert!(problem.line.is_none_or(|line| line <= text.lines().count() + 1), "{problem}");
        assert!(!problem.to_string().contains('\n'));
    }
    let plain = report.render(false);
    assert_eq!(plain.is_empty(), report.is_empty());
    assert!(!plain.contains('\x1b'), "{plain:?}");
    assert!(report.is_empty() || report.render(true).contains('\x1b'));
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(report.problems().len()));
    answer
}

const GOOD: [&str; 4] = [
    include_str!("../../../configs/all-keys.yaml"),
    include_str!("../../../configs/lab-nat.yaml"),
    include_str!("../../../configs/real-nic.yaml"),
    include_str!("../../../configs/ipv6.yaml"),
];

/// A document that is right by construction.
fn valid() -> impl Strategy<Value = raw::Document> {
    let service = (any::<bool>(), 1u16..1000, 1usize..4, 0u32..=99, prop::option::of(1u64..5000), any::<bool>());
    (1u32.., "[a-z][a-z0-9-]{0,20}", 1u32..=4, prop::collection::vec(service, 1..6)).prop_map(
        |(id, name, queues, list)| {
            let hosts = (1..=3u8).map(|i| raw::Host {
                id: Some(u32::from(i) * 7),
                name: Some(format!("host-{i}")),
                address: Some(raw::AddressText(Ipv4Addr::new(10, 0, 0, i).to_string())),
                agent: None,
            });
            let services = list.into_iter().enumerate().map(|(i, (nat, ports, endpoints, capacity, age, hash))| {
                let i = u8::try_from(i).unwrap();
                let endpoint = |host: usize| raw::Endpoint {
                    host: Some(format!("host-{}", host + 1)),
                    capacity: Some(if host == 0 { capacity.max(1) } else { capacity }),
                    port: nat.then_some(20_000 + u32::from(i)),
                    ..raw::Endpoint::default()
                };
                raw::Service {
                    id: Some(u32::from(i) + 1),
                    name: Some(format!("service-{i}")),
                    vip: Some(raw::AddressText(format!("10.0.1.{i}"))),
                    ports: Some(match nat {
                        true => raw::PortSet::One(raw::NumberOrRange::Number(ports.into())),
                        false => raw::PortSet::Several(vec![
                            raw::NumberOrRange::Number(ports.into()),
                            raw::NumberOrRange::Range(format!("{}-{}", ports + 1, ports + 50)),
                        ]),
                    }),
                    mode: Some(if nat { raw::Mode::Nat } else { raw::Mode::Dsr }),
                    select: hash.then_some(raw::Select::Percentages),
                    max_age: age.map(|age| raw::DurationText(format!("{age}ms"))),
                    endpoints: Some((0..endpoints).map(endpoint).collect()),
                    ..raw::Service::default()
                }
            });
            raw::Document {
                unit: Some(raw::Unit { id: Some(id), name: Some(name), state: None }),
                ports: Some(vec![raw::Port {
                    name: Some("net0".to_owned()),
                    device: Some(raw::DeviceText("af_packet:eth1".to_owned())),
                    queues: Some(queues),
                    addresses: Some(vec![raw::PrefixText("10.0.0.254/24".to_owned())]),
                    ..raw::Port::default()
                }]),
                hosts: Some(hosts.collect()),
                services: Some(services.collect()),
                ..raw::Document::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        prop_assert!(exercise(&text).is_err());
    }

    #[test]
    fn any_near_yaml_is_answered(text in "([\\[\\]{}:,?#&*!|>%@`'\" \t\r\n\u{feff}\u{85}\u{2028}a-c0-9~<.ü😀-]|: |- |\n  ){0,120}") {
        let _ = exercise(&text);
    }

    #[test]
    fn any_damage_is_answered(
        which in 0..GOOD.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[\\[\\]{}:, \na-z0-9\"-]{0,6}"), 1..6),
    ) {
        let mut text = GOOD[which].to_owned();
        for (at, length, instead) in damage {
            let start = text.floor_char_boundary(at.index(text.len()));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &instead);
        }
        let _ = exercise(&text);
    }

    /// Each value replaced by any other leaves all other values judged.
    #[test]
    fn any_wrong_value_is_answered(which in 0..GOOD.len(), at in any::<prop::sample::Index>(), instead in "[^\\n#]{0,12}") {
        let lines: Vec<&str> = GOOD[which].lines().collect();
        let at = at.index(lines.len());
        let mut text = String::new();
        for (i, line) in lines.iter().enumerate() {
            match line.split_once(": ") {
                Some((key, _)) if i == at => writeln!(text, "{key}: {instead}").unwrap(),
                _ => writeln!(text, "{line}").unwrap(),
            }
        }
        let _ = exercise(&text);
    }

    #[test]
    fn what_is_right_is_accepted_and_survives(document in valid()) {
        let text = serde_yaml::to_string(&document).unwrap();
        let config = exercise(&text).unwrap_or_else(|report| panic!("{report}"));
        prop_assert_eq!(&serde_yaml::from_str::<raw::Document>(&text).unwrap(), &document);
        prop_assert_eq!(config.unit.id.0, document.unit.as_ref().unwrap().id.unwrap());
        let services = document.services.as_ref().unwrap();
        prop_assert_eq!(config.services.len(), services.len());
        for (config, raw) in config.services.iter().zip(services) {
            prop_assert_eq!(config.vip, raw.vip.as_ref().unwrap().0.parse::<IpAddr>().unwrap());
            prop_assert_eq!(config.mode == Mode::Nat, raw.mode == Some(raw::Mode::Nat));
            prop_assert_eq!(config.endpoints.len(), raw.endpoints.as_ref().unwrap().len());
            match &config.ports {
                // The list's number and range are adjacent, so they are one range.
                Ports::Ranges(ranges) => prop_assert_eq!(ranges.len(), 1),
                Ports::All => prop_assert!(false),
            }
        }
    }
}

#[test]
fn depth_and_repetition_are_bounded() {
    for text in ["[".repeat(100_000), "a: {".repeat(20_000), "- ".repeat(50_000), "? ".repeat(50_000)] {
        assert!(exercise(&text).is_err());
    }
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..10 {
        let before = format!("*a{}", i - 1);
        writeln!(laughs, "a{i}: &a{i} [{}]", [before.as_str(); 10].join(", ")).unwrap();
    }
    assert!(exercise(&laughs).is_err());
}

/// A list of mistakes ends somewhere.
#[test]
fn the_number_of_mistakes_is_bounded() {
    let mut text = "unit:\n".to_owned();
    (0..1000).for_each(|i| writeln!(text, "  key{i}: 1").unwrap());
    let report = exercise(&text).unwrap_err();
    assert_eq!(report.problems().len(), 101);
    assert!(report.render(false).contains("more than 100 mistakes"), "{report}");
}

/// The farm the design speaks of, with a mistake in its last line, on a debug build.
#[test]
fn ten_thousand_hosts_are_checked_in_no_time() {
    let mut text =
        "unit: { id: 1, name: big }\nports: [{ name: net0, device: af_packet:eth1, addresses: [10.0.255.254/16] }]\n\
        services:\n"
            .to_owned();
    for service in 0..100 {
        let head = format!("id: {}, name: s{service}, vip: 10.1.0.{service}, ports: 80, mode: dsr", service + 1);
        writeln!(text, "  - {{ {head}, endpoints: [").unwrap();
        (0..100).for_each(|i| writeln!(text, "      {{ host: h{} }},", service * 100 + i).unwrap());
        writeln!(text, "    ] }}").unwrap();
    }
    text.push_str("hosts:\n");
    for host in 0..10_000 {
        let address = format!("10.0.{}.{}", host / 250, host % 250 + 1);
        writeln!(text, "  - {{ id: {}, name: h{host}, address: {address} }}", host + 1).unwrap();
    }
    let config = exercise(&text).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((config.hosts.len(), config.services.len()), (10_000, 100));
    text.push_str("  - { id: 10000, name: again, address: 10.0.200.1 }\n");
    let report = exercise(&text).unwrap_err();
    assert_eq!(report.problems().iter().filter(|problem| problem.path == "hosts[10000].id").count(), 1);
}

#[test]
fn positions_hold_with_foreign_line_ends_and_byte_order_mark() {
    let crlf = GOOD[1].replace('\n', "\r\n");
    assert!(exercise(&crlf).is_ok());
    let report = exercise(&crlf.replace("mode: nat", "mode: tan")).unwrap_err();
    let line = GOOD[1].lines().position(|line| line.contains("mode: nat")).unwrap() + 1;
    assert_eq!(report.problems().iter().map(|problem| problem.line).next(), Some(Some(line)), "{report}");
    assert!(exercise(&format!("\u{feff}{}", GOOD[1])).is_ok());
}

#[test]
fn files_that_cannot_be_read_are_problems_too() {
    let folder = tempfile::tempdir().unwrap();
    let latin = folder.path().join("latin.yaml");
    fs::write(&latin, b"unit: { name: \"w\xe9ir\" }\n").unwrap();
    for path in [folder.path().join("none.yaml"), folder.path().to_owned(), latin] {
        let report = load(&path).unwrap_err();
        assert!(report.has_errors());
        assert!(report.render(false).contains("cannot be read"), "{report}");
    }
}

#[test]
fn a_problem_is_data_for_programs() {
    let text = GOOD[1].replace("port: 5353 }", "prot: 5353 }");
    let report = exercise(&text).unwrap_err();
    let line = text.lines().position(|line| line.contains("prot:")).unwrap() + 1;
    let first = serde_json::json!({
        "severity": "error",
        "file": "file.yaml",
        "path": "services[1].endpoints[0].prot",
        "line": line,
        "column": 25,
        "value": "5353",
        "message": "unknown key `prot`",
        "right": "did you mean `port`?",
    });
    assert_eq!(serde_json::to_value(&report).unwrap()[0], first);
    assert_eq!(
        report.problems()[0].to_string(),
        format!("file.yaml:{line}:25: services[1].endpoints[0].prot: unknown key `prot` (did you mean `port`?)"),
    );
}
