//! What an operator reads for each kind of mistake: `bad/NAME.yaml` gives exactly `bad/NAME.expected`.
//!
//! `BLESS=1 cargo test -p weir-config --test bad` writes the expected texts anew; read the difference before committing it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use weir_config::{Machine, Memory, check};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_mistake_is_told_as_expected() {
    let memory = Some(Memory { total: 16 << 30, huge: 2 << 30 });
    let machine = Machine { cpus: Some((0..8).collect()), memory };
    let mut wrong = Vec::new();
    for path in files() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let rendered = match check(&name, &fs::read_to_string(&path).unwrap(), &machine) {
            Err(report) => {
                assert!(report.has_errors(), "{name} is refused without an error");
                report.render(false)
            }
            Ok(config) => {
                assert!(name.starts_with("warn-"), "{name} is accepted");
                assert!(!config.warnings.is_empty() && !config.warnings.has_errors(), "{name}: {}", config.warnings);
                config.warnings.render(false)
            }
        };
        let expected = path.with_extension("expected");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &rendered).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != rendered {
            wrong.push(format!("--- {name} now gives\n{rendered}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each file is one mistake (with its consequences), so no file may pass or fail by another's.
#[test]
fn all_kinds_of_files_are_there() {
    assert!(files().len() >= 40, "{}", files().len());
}
