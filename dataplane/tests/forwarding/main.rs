//! Whole units on heap buffers in virtual time: shards, classifiers, their rings, and what clients and hosts see of them.
//!
//! Each module asks one question of the design; [`lab`] builds the unit, [`frames`] its traffic.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of a test's own making")]

mod any_bytes;
mod associations;
mod decisions;
mod farm_changes;
mod fragments;
mod fragments_across;
mod frames;
mod full_nat;
mod lab;
mod life;
mod local;
mod many_ports;
mod moving;
mod nat;
mod pressure;
mod quick_lane;
mod sessions;
mod shards;
mod tunnel_paths;
mod twins;
mod unresolved;
