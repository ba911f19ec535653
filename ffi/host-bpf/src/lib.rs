//! What a host's kernel does for Weir in BPF: [`decap`] takes the tunnel headers of `ipip` and `gue` services off.
//!
//! The programs are C, compiled by `build.rs`; here they are loaded into the kernel, where they stay when the loading process has
//! ended. Each is attached to the clsact ingress of one interface under a fixed priority and handle, so that a second attach
//! replaces the first without a gap, and `detach` and `stats` find it again without any file.

pub mod decap;
