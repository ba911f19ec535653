//! Any bytes between units: what is decoded is encoded to a message that means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_dataplane::plumbing::{Envelope, MAX_BYTES};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::decode(bytes) {
        let mut buffer = [0; MAX_BYTES];
        let encoded = envelope.encode(&mut buffer).expect("what fitted once fits again");
        assert_eq!(Envelope::decode(encoded), Ok(envelope));
    }
});
