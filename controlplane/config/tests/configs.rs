//! Every file in `configs/` loads without a problem, and survives the way out and back in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use weir_config::{Config, Machine, Report, check, raw};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

/// Without knowledge of the machine, which a good file may be too large for.
fn loaded(path: &Path) -> Config {
    let text = fs::read_to_string(path).unwrap();
    check(&path.display().to_string(), &text, &Machine::default()).unwrap_or_else(|report| panic!("{report}"))
}

#[test]
fn every_file_loads_without_a_problem() {
    assert!(files().len() >= 6);
    for path in files() {
        let config = loaded(&path);
        assert!(config.warnings.is_empty(), "{}", config.warnings);
        assert_eq!(weir_config::load_for(&path, &Machine::default()).map(|config| config.unit), Ok(config.unit));
    }
}

#[test]
fn every_file_survives_the_way_out_and_in() {
    for path in files() {
        let document: raw::Document = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let config = Config::try_from(document).unwrap();
        assert_eq!(Config { warnings: Report::default(), ..config }, loaded(&path), "{}", path.display());
    }
}

/// A key that nobody could look up is a key that nobody finds.
#[test]
fn all_keys_has_all_keys() {
    let text = fs::read_to_string(files().iter().find(|path| path.ends_with("all-keys.yaml")).unwrap()).unwrap();
    let schema = weir_config::schema();
    let definitions = schema["$defs"].as_object().unwrap().values().chain([&schema]);
    let mut keys = 0;
    for key in definitions.filter_map(|definition| definition["properties"].as_object()).flat_map(|keys| keys.keys()) {
        assert!(text.contains(&format!("{key}:")), "{key}");
        keys += 1;
    }
    assert!(keys > 50, "{keys}");
}

#[test]
fn every_key_is_documented_and_required_ones_are_marked() {
    let schema = weir_config::schema();
    let definitions: Vec<_> = schema["$defs"].as_object().unwrap().values().chain([&schema]).collect();
    for definition in &definitions {
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            assert!(property["description"].is_string(), "{key} in {definition}");
        }
        if definition["type"] == "object" {
            assert_eq!(definition["additionalProperties"], false, "{definition}");
        }
    }
    assert_eq!(schema["required"], serde_json::json!(["unit", "ports"]));
    assert_eq!(schema["$defs"]["Host"]["required"], serde_json::json!(["id", "name", "address"]));
}

const UNIT: &str = r#"
unit: { id: 1, name: weir-1 }
ports:
  - { name: a, device: "af_packet:eth1" }
  - { name: b, device: "vlan:a.5" }
  - { name: c, device: "af_xdp:eth2", twin: tap0 }
  - { name: d, device: "0000:03:00.0", twin: tap1 }
  - { name: e, device: "net_tap0,iface=tap2" }
  - { name: f, device: "af_packet:eth3", queues: 3 }
"#;

fn queues(dataplane: &str) -> (usize, Vec<u16>) {
    let text = format!("{UNIT}dataplane: {{ hugepages: true, {dataplane} }}");
    let config = check("file", &text, &Machine::default()).unwrap_or_else(|report| panic!("{report}"));
    (config.dataplane.shards, config.ports.iter().map(|port| port.queues).collect())
}

#[test]
fn each_cpu_gets_a_shard_and_each_shard_a_queue_wherever_a_port_can() {
    assert_eq!(queues("cpus: ['0-3']"), (4, vec![4, 4, 4, 4, 1, 3]));
    assert_eq!(queues("cpus: [0, 1], shards: 8"), (8, vec![8, 8, 8, 8, 1, 3]));
    // A port with more queues than CPUs has its say; 128 is what there can be.
    assert_eq!(queues("cpus: [0]"), (3, vec![3, 3, 3, 3, 1, 3]));
    assert_eq!(queues("cpus: ['0-199']"), (128, vec![128, 128, 128, 128, 1, 3]));
}

#[test]
fn a_unit_with_one_port_is_told_so() {
    let one = |text: &str| {
        let text = format!("unit: {{ id: 1, name: weir-1 }}\n{text}");
        let config = check("file", &text, &Machine::default()).unwrap_or_else(|report| panic!("{report}"));
        config.one_armed().map(|port| port.name.clone())
    };
    let (port, vlan) = ("{ name: a, device: 'af_packet:eth1' }", "{ name: b, device: 'vlan:a.5' }");
    assert_eq!(one(&format!("ports: [{port}, {vlan}]\ndataplane: {{ shards: 2 }}")), Some("a".to_owned()));
    assert_eq!(one(&format!("ports: [{port}, {vlan}]\ndataplane: {{ shards: 1 }}")), None);
    let two = "{ name: c, device: 'af_packet:eth2' }";
    assert_eq!(one(&format!("ports: [{port}, {two}]\ndataplane: {{ shards: 2 }}")), None);
}

#[test]
fn memory_is_summed_by_parts() {
    let need = |dataplane: &str, pools: &str| {
        let text = format!("{UNIT}dataplane: {{ {dataplane} }}\n{pools}");
        check("file", &text, &Machine::default()).unwrap_or_else(|report| panic!("{report}")).memory()
    };
    let routes = "hugepages: true, routes: { ipv4: 50000000, ipv6: 10000000 }, mbufs: 262144, memory: 4GiB";
    let plain = need(&format!("{routes}, cpus: ['0-7']"), "");
    let tables = 50_000_000 * 64 + 10_000_000 * 192;
    for table in [plain.routes, plain.sessions] {
        assert!((tables..tables + (64 << 20)).contains(&table), "{plain:?}");
    }
    assert_eq!((plain.full_nat, plain.kernel), (0, (8 + 3) * (16 << 20)));
    assert!(plain.buffers > 262_144 * 2048 && plain.buffers < 1 << 30, "{plain:?}");
    let parts = plain.routes + plain.sessions + plain.rings + plain.buffers + plain.kernel;
    assert_eq!(plain.total(), parts);
    let pools = "pools: [{ name: p, addresses: [192.0.2.0/28] }]";
    assert!(need(&format!("{routes}, cpus: ['0-7']"), pools).full_nat > tables + 50_000_000 * 16);
    assert!(need(&format!("{routes}, shards: 128, cpus: ['0-7']"), "").rings > plain.rings * 8);
    assert!(plain.to_string().contains("routes 4.8 GiB, sessions 4.8 GiB, rings "), "{plain}");
}
