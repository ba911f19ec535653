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

/// Without knowledge of the machine: its CPUs are the one thing that a good file may be warned of.
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
        assert_eq!(weir_config::load(&path).map(|config| config.unit), Ok(config.unit));
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
