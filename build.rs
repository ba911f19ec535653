//! Stamps the source revision and DPDK's version into the program.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-env-changed=WEIR_REVISION");
    let revision = std::env::var("WEIR_REVISION").ok().or_else(|| ask("git", &["describe", "--always", "--dirty"]));
    println!("cargo::rustc-env=WEIR_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=WEIR_DPDK={}", ask("pkg-config", &["--modversion", "libdpdk"]).unwrap_or_default());
}

/// What a command prints, if it succeeds and prints something.
fn ask(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
