//! Asking an endpoint once: over TCP, with an HTTP request if need be, and what its answer means.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::status::{Head, status};
use crate::{Expect, Kind, Question};

/// What an observation rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The connection was accepted.
    Accepted,
    /// This HTTP status was answered.
    Status(u16),
    /// The connection was refused.
    Refused,
    /// There is no way to the address.
    Unreachable,
    /// There was no answer in time.
    Timeout,
    /// The connection ended before an answer was complete.
    Closed,
    /// The answer was not HTTP.
    NotHttp,
    /// Another error of the connection.
    Io(io::ErrorKind),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Accepted => f.write_str("accepts connections"),
            Reason::Status(status) => write!(f, "answers with status {status}"),
            Reason::Refused => f.write_str("refuses connections"),
            Reason::Unreachable => f.write_str("is unreachable"),
            Reason::Timeout => f.write_str("does not answer in time"),
            Reason::Closed => f.write_str("closes before it has answered"),
            Reason::NotHttp => f.write_str("answers, but not in HTTP"),
            Reason::Io(kind) => write!(f, "fails: {kind}"),
        }
    }
}

/// What asking once has shown.
#[derive(Debug)]
pub(crate) enum Observation {
    Success(Reason),
    Failure(Reason),
    /// The fault is on this side: it says nothing about the endpoint.
    Impossible(io::Error),
}

/// Asks once; takes no longer than the question's timeout.
pub(crate) async fn ask(question: &Question) -> Observation {
    match timeout(question.timeout, converse(question)).await {
        Ok(observation) => observation,
        Err(_) => Observation::Failure(Reason::Timeout),
    }
}

async fn converse(question: &Question) -> Observation {
    let socket = match open(question) {
        Ok(socket) => socket,
        Err(error) => return Observation::Impossible(error),
    };
    let mut stream = match socket.connect(question.address).await {
        Ok(stream) => stream,
        Err(error) if is_ours(&error) => return Observation::Impossible(error),
        Err(error) => return Observation::Failure(reason(&error)),
    };
    match &question.kind {
        Kind::Tcp => {
            // Thousands of probes should not leave as many connections in TIME-WAIT: close by reset.
            let _ = stream.set_zero_linger();
            Observation::Success(Reason::Accepted)
        }
        Kind::Http { path, host, expect } => match request(&mut stream, path, host).await {
            Ok(Some(status)) if expect.is_met_by(status) => Observation::Success(Reason::Status(status)),
            Ok(Some(status)) => Observation::Failure(Reason::Status(status)),
            Ok(None) => Observation::Failure(Reason::NotHttp),
            Err(error) => Observation::Failure(reason(&error)),
        },
    }
}

fn open(question: &Question) -> io::Result<TcpSocket> {
    let socket = if question.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(interface) = &question.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(source) = question.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    Ok(socket)
}

/// The final status of the answer; none if it is not HTTP.
async fn request(stream: &mut TcpStream, path: &str, host: &str) -> io::Result<Option<u16>> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weir-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(1_024);
    loop {
        match status(&head) {
            Head::Final(status) => return Ok(Some(status)),
            Head::NotHttp => return Ok(None),
            Head::Incomplete if head.len() >= HEAD_MAX => return Ok(None),
            Head::Incomplete => {}
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

impl Expect {
    /// Is this status a success?
    #[must_use]
    pub fn is_met_by(self, status: u16) -> bool {
        match self {
            Expect::Good => (200..400).contains(&status),
            Expect::Status(expected) => status == expected,
        }
    }
}

/// How a `Host` header names an address and port: without the port if it is HTTP's own.
#[must_use]
pub fn host_header(address: IpAddr, port: u16) -> String {
    let name = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    if port == 80 { name } else { format!("{name}:{port}") }
}

fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Reason::Unreachable,
        io::ErrorKind::TimedOut => Reason::Timeout,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Reason::Closed,
        kind => Reason::Io(kind),
    }
}

/// Did connecting fail for want of something on this side?
fn is_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, OutOfMemory, PermissionDenied};
    matches!(error.kind(), AddrInUse | AddrNotAvailable | OutOfMemory | PermissionDenied)
        || error.raw_os_error() == Some(ENOBUFS)
}

/// The most of an answer that is read for its status.
const HEAD_MAX: usize = 16 * 1_024;

/// Linux: no buffer space available; has no `ErrorKind`.
const ENOBUFS: i32 = 105;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_urls_name_them() {
        assert_eq!(host_header("10.0.0.1".parse().unwrap(), 80), "10.0.0.1");
        assert_eq!(host_header("2001:db8::1".parse().unwrap(), 8080), "[2001:db8::1]:8080");
    }

    #[test]
    fn success_is_what_was_expected() {
        for (status, good) in
            [(199, false), (200, true), (204, true), (302, true), (399, true), (400, false), (503, false)]
        {
            assert_eq!(Expect::Good.is_met_by(status), good, "{status}");
        }
        assert!(Expect::Status(401).is_met_by(401) && !Expect::Status(401).is_met_by(200));
    }
}
