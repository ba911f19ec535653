//! Compiles the BPF programs with clang and writes their skeletons: the types through which Rust loads them.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/decap.bpf.c");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("decap.skel.rs");
    // Debian keeps the architecture's part of the kernel's headers apart, and clang does not look there for the BPF target.
    let headers = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    let mut builder = SkeletonBuilder::new();
    builder.source("src/decap.bpf.c").clang(clang()).clang_args([headers.as_str(), "-Wall", "-Werror"]);
    if let Err(error) = builder.build_and_generate(&out) {
        panic!("cannot compile src/decap.bpf.c with {}: run scripts/setup\n{error:#}", clang().display());
    }
}

/// `CLANG`, else the version that scripts/setup installs.
fn clang() -> PathBuf {
    env::var_os("CLANG").unwrap_or_else(|| "clang-14".into()).into()
}
