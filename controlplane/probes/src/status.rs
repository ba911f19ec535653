//! The status of an HTTP/1.x answer from its first bytes (RFC 9112, section 4); interim answers are passed over.

/// What the bytes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// The status of the final answer, 200–599.
    Final(u16),
    /// More bytes are needed.
    Incomplete,
    /// More bytes would not help.
    NotHttp,
}

/// Reads the status line, and those behind interim answers (1xx). Total on any input.
pub(crate) fn status(mut bytes: &[u8]) -> Head {
    loop {
        // "HTTP/1.1 200" and then a space or the end of the line.
        for (byte, expected) in bytes.iter().zip(b"HTTP/1.D DDD") {
            let fits = if *expected == b'D' { byte.is_ascii_digit() } else { byte == expected };
            if !fits {
                return Head::NotHttp;
            }
        }
        let Some((line, rest)) = bytes.split_at_checked("HTTP/1.1 200".len()) else { return Head::Incomplete };
        match rest.first() {
            None => return Head::Incomplete,
            Some(b' ' | b'\r' | b'\n') => {}
            Some(_) => return Head::NotHttp,
        }
        let digits = line.iter().rev().take(3).rev();
        match digits.fold(0, |status, digit| status * 10 + u16::from(digit - b'0')) {
            100 | 102..=199 => {}
            status @ 200..=599 => return Head::Final(status),
            // 101 switches to a protocol nobody asked for.
            _ => return Head::NotHttp,
        }
        let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else { return Head::Incomplete };
        bytes = &rest[end + 4..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statuses_are_read() {
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\n", Head::Final(200)),
            ("HTTP/1.0 503 \r\n", Head::Final(503)),
            ("HTTP/1.1 204\r\n", Head::Final(204)),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 302 Found\r\n", Head::Final(302)),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n", Head::Incomplete),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", Head::NotHttp),
            ("HTTP/1.1 2000 OK", Head::NotHttp),
            ("HTTP/1.1 099 OK", Head::NotHttp),
            ("HTTP/2.0 200 OK", Head::NotHttp),
            ("SSH-2.0-OpenSSH", Head::NotHttp),
            ("HTTP/1.1 20", Head::Incomplete),
            ("", Head::Incomplete),
        ] {
            assert_eq!(status(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = status(&bytes);
            let _ = status(&[b"HTTP/1.1 100 Continue\r\n", &bytes[..]].concat());
        }

        #[test]
        fn more_bytes_never_change_what_was_said(code in 0u16..=999, cut in 0usize..40) {
            let whole = format!("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 {code:03} Word\r\nA: b\r\n\r\n");
            let early = status(&whole.as_bytes()[..cut.min(whole.len())]);
            prop_assert!(early == Head::Incomplete || early == status(whole.as_bytes()));
        }
    }
}
