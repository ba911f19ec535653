//! The operator's side of the admin API: one blocking HTTP/1.1 request per connection to a unit's socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::api::{
    Counters, DirectiveChange, DirectiveRequest, ErrorBody, Flow, HostStatus, RouteCount, RouteList, RouteLookup,
    ServiceStatus, ShardMove, ShardMoveRequest, Status,
};

/// Where a unit is asked. Holds no connection: each question opens its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the unit that listens at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Client {
        Client { path: path.into(), timeout: TIMEOUT }
    }

    /// The socket it asks at.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// [`crate::UnitApi::status`].
    ///
    /// # Errors
    /// This and every other question: when no unit answers, when it refuses, when the answer makes no sense.
    pub fn status(&self) -> Result<Reply<Status>, ClientError> {
        self.get("/v1/status")
    }

    /// [`crate::UnitApi::services`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn services(&self) -> Result<Reply<Vec<ServiceStatus>>, ClientError> {
        self.get("/v1/services")
    }

    /// [`crate::UnitApi::hosts`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn hosts(&self) -> Result<Reply<Vec<HostStatus>>, ClientError> {
        self.get("/v1/hosts")
    }

    /// [`crate::UnitApi::drain`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn drain(&self, host: &str, service: Option<&str>) -> Result<Reply<Vec<DirectiveChange>>, ClientError> {
        self.direct("/v1/hosts/drain", host, service)
    }

    /// [`crate::UnitApi::resume`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn resume(&self, host: &str, service: Option<&str>) -> Result<Reply<Vec<DirectiveChange>>, ClientError> {
        self.direct("/v1/hosts/resume", host, service)
    }

    /// [`crate::UnitApi::routes_lookup`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn routes_lookup(&self, flow: &Flow) -> Result<Reply<RouteLookup>, ClientError> {
        let (client, vip) = (encode(&flow.client.to_string()), encode(&flow.vip.to_string()));
        self.get(&format!("/v1/routes/lookup?client={client}&vip={vip}&protocol={}", flow.protocol))
    }

    /// [`crate::UnitApi::routes_list`]: one page.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn routes_page(
        &self,
        limit: usize,
        service: Option<&str>,
        from: Option<&str>,
    ) -> Result<Reply<RouteList>, ClientError> {
        let service = service.map(|s| format!("&service={}", encode(s))).unwrap_or_default();
        let from = from.map(|from| format!("&from={}", encode(from))).unwrap_or_default();
        self.get(&format!("/v1/routes?limit={limit}{service}{from}"))
    }

    /// At most `limit` routes, page by page. The JSON of several pages is that of one.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn routes_list(&self, limit: usize, service: Option<&str>) -> Result<Reply<RouteList>, ClientError> {
        let mut all = self.routes_page(limit.min(PAGE), service, None)?;
        while let Some(from) = all.value.next.clone().filter(|_| all.value.routes.len() < limit) {
            let left = limit - all.value.routes.len();
            let Reply { mut value, .. } = self.routes_page(left.min(PAGE), service, Some(&from))?;
            all.value.routes.append(&mut value.routes);
            (all.value.more, all.value.next) = (value.more, value.next);
            all.json.clear();
        }
        if all.json.is_empty() {
            all.json = serde_json::to_string(&all.value).map_err(ClientError::Encode)?;
        }
        Ok(all)
    }

    /// [`crate::UnitApi::routes_count`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn routes_count(&self) -> Result<Reply<RouteCount>, ClientError> {
        self.get("/v1/routes/count")
    }

    /// [`crate::UnitApi::counters`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn counters(&self) -> Result<Reply<Counters>, ClientError> {
        self.get("/v1/counters")
    }

    /// [`crate::UnitApi::move_shard`].
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn move_shard(&self, shard: u32, cpu: u32) -> Result<Reply<ShardMove>, ClientError> {
        self.send("PUT", &format!("/v1/shards/{shard}/cpu"), &ShardMoveRequest { cpu })
    }

    fn direct(
        &self,
        target: &str,
        host: &str,
        service: Option<&str>,
    ) -> Result<Reply<Vec<DirectiveChange>>, ClientError> {
        self.send("POST", target, &DirectiveRequest { host: host.to_owned(), service: service.map(str::to_owned) })
    }

    fn get<T: DeserializeOwned>(&self, target: &str) -> Result<Reply<T>, ClientError> {
        self.ask("GET", target, "")
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Reply<T>, ClientError> {
        let body = serde_json::to_string(body).map_err(ClientError::Encode)?;
        self.ask(method, target, &body)
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, target: &str, body: &str) -> Result<Reply<T>, ClientError> {
        let raw = self.exchange(method, target, body)?;
        let response =
            Response::parse(&raw).map_err(|source| ClientError::Malformed { target: target.into(), source })?;
        if !(200..300).contains(&response.status) {
            return Err(refusal(&response));
        }
        let decode = |source| ClientError::Decode { target: target.to_owned(), source };
        let value = serde_json::from_slice(response.body).map_err(decode)?;
        Ok(Reply { value, json: String::from_utf8_lossy(response.body).into_owned() })
    }

    /// Sends one request and reads until the unit closes.
    fn exchange(&self, method: &str, target: &str, body: &str) -> Result<Vec<u8>, ClientError> {
        let mut stream = UnixStream::connect(&self.path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission { path: self.path.clone() },
            _ => ClientError::NoUnit { path: self.path.clone(), source },
        })?;
        let lost = |source| ClientError::Lost { path: self.path.clone(), source };
        stream.set_read_timeout(Some(self.timeout)).map_err(lost)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(lost)?;
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).map_err(lost)?;
        let mut raw = Vec::new();
        stream.take(MAX_RESPONSE_BYTES).read_to_end(&mut raw).map_err(lost)?;
        Ok(raw)
    }
}

/// An answer, decoded and as the unit wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<T> {
    /// Decoded; fields this version does not know are ignored.
    pub value: T,
    /// The JSON itself.
    pub json: String,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no unit answers at {}: is `weir run` running? (--socket)", path.display())]
    NoUnit {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is there but not for this user.
    #[error("permission denied at {}: only its owner and group may administer the unit", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The unit understood and said no.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What is wrong.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The connection broke or took too long.
    #[error("the unit at {} did not finish its answer", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What answers does not speak HTTP as we do.
    #[error("the answer to {target} is malformed")]
    Malformed {
        /// What was asked.
        target: String,
        /// What is wrong with it.
        source: ResponseError,
    },
    /// The JSON is not what this version expects.
    #[error("the answer to {target} is not of this version")]
    Decode {
        /// What was asked.
        target: String,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// The request cannot be written as JSON.
    #[error("the request cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

impl ClientError {
    /// What to do about it, if the unit said.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Refused { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }
}

fn refusal(response: &Response<'_>) -> ClientError {
    let status = response.status;
    match serde_json::from_slice::<ErrorBody>(response.body) {
        Ok(body) => ClientError::Refused { status, error: body.error, hint: body.hint },
        Err(_) => {
            ClientError::Refused { status, error: format!("the unit answered with HTTP status {status}"), hint: None }
        }
    }
}

/// An HTTP/1.1 response with a known length (RFC 9112), all of it in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Response<'a> {
    status: u16,
    body: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads a whole response. Total on any input.
    fn parse(raw: &'a [u8]) -> Result<Response<'a>, ResponseError> {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").ok_or(ResponseError::NoHead)?;
        let head = std::str::from_utf8(&raw[..end]).map_err(|_| ResponseError::NoHead)?;
        let body = &raw[end + 4..];
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse::<u16>().ok())
            .ok_or_else(|| ResponseError::StatusLine(status_line.to_owned()))?;
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map(|(_, value)| value.trim().parse::<usize>().map_err(|_| ResponseError::Length(value.trim().to_owned())))
            .ok_or(ResponseError::NoLength)??;
        if body.len() != length {
            return Err(ResponseError::Truncated { announced: length, received: body.len() });
        }
        Ok(Response { status, body })
    }
}

/// What is wrong with an HTTP response.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// No blank line, or no text before it.
    #[error("it has no HTTP head")]
    NoHead,
    /// Not HTTP/1.1 with a status.
    #[error("its first line is {0:?}")]
    StatusLine(String),
    /// Not a number.
    #[error("its length is {0:?}")]
    Length(String),
    /// Not framed by a length.
    #[error("it announces no length")]
    NoLength,
    /// Cut off, or more than announced.
    #[error("{announced} bytes were announced, {received} came")]
    Truncated {
        /// By Content-Length.
        announced: usize,
        /// In fact.
        received: usize,
    },
}

/// Percent-encodes a query's value (RFC 3986 section 2.1): all but unreserved characters.
fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A unit answers within milliseconds; a core that hangs is reported by the unit itself well before this.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Routes of one page.
const PAGE: usize = 10_000;
/// The largest page of routes stays far below.
const MAX_RESPONSE_BYTES: u64 = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_a_response() {
        let raw = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(Response::parse(raw), Ok(Response { status: 404, body: b"{}" }));
    }

    #[test]
    fn a_cut_response_is_an_error() {
        let raw = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}";
        assert_eq!(Response::parse(raw), Err(ResponseError::Truncated { announced: 9, received: 2 }));
        assert_eq!(Response::parse(b"HTTP/1.1 200 OK\r\n\r\n{}"), Err(ResponseError::NoLength));
        assert_eq!(Response::parse(b"SSH-2.0\r\n\r\n"), Err(ResponseError::StatusLine("SSH-2.0".into())));
        assert_eq!(Response::parse(b""), Err(ResponseError::NoHead));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(raw: Vec<u8>) {
            let _ = Response::parse(&raw);
        }

        #[test]
        fn a_written_response_is_read_back(status in 100u16..1000, body: Vec<u8>) {
            let mut raw = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            raw.extend_from_slice(&body);
            prop_assert_eq!(Response::parse(&raw), Ok(Response { status, body: &body }));
        }

        #[test]
        fn encoded_text_needs_no_quoting(text: String) {
            prop_assert!(encode(&text).bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
        }
    }
}
