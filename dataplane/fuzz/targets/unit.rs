//! Any run of frames with any time between them, through a whole unit: parse, classify, forward, answer.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| weir_dataplane_fuzz::run(bytes));
