//! Where the programs are that the lab runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The folder with `weir`, `weirctl`, `weir-host` and `weir-decap`, of one build.
///
/// Cargo has built `weir` for this test. It builds the other packages' programs, too, where the whole workspace is tested, and
/// whoever does that may say so by `WEIR_WORKSPACE_BUILT`: building them alone would compile half its dependencies again.
pub(crate) fn bin_dir() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_weir")).parent().expect("a folder").to_owned();
        if std::env::var_os("WEIR_WORKSPACE_BUILT").is_some() {
            return folder;
        }
        let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        cargo.args(["build", "--quiet", "-p", "weirctl", "-p", "weir-host", "-p", "weir-host-bpf", "--target-dir"]);
        cargo.arg(folder.parent().expect("the target folder"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).output().expect("cargo starts");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        folder
    })
}
