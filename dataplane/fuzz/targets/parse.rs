//! Any frame: the hot path's parser and the wire formats, which are its reference, say the same of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_dataplane::flow::protocol;
use weir_dataplane::parse::{Class, parse};
use weir_dataplane::wire::Dissection;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fuzz_target!(|frame: &[u8]| {
    let parsed = parse(frame, MAC);
    let parts = Dissection::of(frame);
    let Ok(parsed) = parsed else { return };
    let ports = matches!(parsed.key.protocol(), protocol::TCP | protocol::UDP);
    // Of a fragment with other extension headers behind the fragment header the parser says no more: it has no flow.
    if parsed.class == Class::Flow || parsed.class == Class::Fragment && ports {
        let parts = parts.expect("what the parser takes is well-formed");
        assert_eq!(usize::from(parsed.l3), parts.ip);
        assert_eq!(usize::from(parsed.l4), parts.upper);
        assert_eq!(parsed.key.protocol(), parts.protocol.0);
        assert_eq!(parsed.ttl, parts.hop_limit);
        assert_eq!(parsed.key.source().ip(), parts.addresses.source());
        assert_eq!(parsed.key.destination().ip(), parts.addresses.destination());
        assert_eq!(parts.ip + usize::from(parsed.ip_len), parts.end);
        assert!(parts.fragment.is_some() || parsed.class == Class::Flow);
        // ESP and GRE are flows in pieces, too.
        assert!(parts.fragment.is_none() || parsed.class == Class::Fragment || !ports);
        if let Some(fragment) = parts.fragment {
            assert_eq!(usize::from(parsed.fragment.offset), usize::from(fragment.offset));
            assert_eq!((parsed.fragment.more, parsed.fragment.id), (fragment.more, fragment.identification));
        } else if ports {
            assert!(parts.end - parts.upper >= 8);
        }
    }
});
