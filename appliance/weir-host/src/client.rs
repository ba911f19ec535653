//! The commands that ask a running agent over its socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

/// Why a command was not done.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    #[error("no agent at {path}: {source}")]
    Socket { path: String, source: io::Error },
    #[error("the answer is not HTTP with JSON")]
    Answer,
    #[error("{0}")]
    Refused(String),
}

/// Asks once.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
    let exchange = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: weir-host\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|source| ClientError::Socket { path: socket.display().to_string(), source })?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(ClientError::Answer)?;
    let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ClientError::Answer)?;
    // What axum says of malformed requests is no JSON.
    let value: Value = serde_json::from_str(body).unwrap_or_else(|_| serde_json::json!({ "error": body.trim() }));
    match status {
        200 => Ok(value),
        _ => Err(ClientError::Refused(value["error"].as_str().unwrap_or("refused").to_owned())),
    }
}

/// The status as a table.
pub(crate) fn table(status: &Value) -> String {
    let mut text = String::new();
    for host in status["hosts"].as_array().into_iter().flatten() {
        text.push_str(&format!("host {}  rank {}  incarnation {}\n", host["host"], host["rank"], host["incarnation"]));
        if host["contested"] == true {
            text.push_str("another agent of the same rank speaks for it: give one of them another rank\n");
        }
        text.push_str("APPLICATION  HEALTH   LOAD  CAPACITY  TARGET    CURRENT\n");
        for row in host["applications"].as_array().into_iter().flatten() {
            let word = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
            text.push_str(&format!(
                "{:>11}  {:<8}{:>5}{:>10}  {:<9} {}\n",
                row["application"],
                word("health"),
                row["load"].to_string(),
                row["capacity"].to_string(),
                word("target"),
                word("current")
            ));
        }
    }
    if let Some(group) = status["group"].as_object() {
        let host = |name: &str| group[name].as_u64().map_or("none".to_owned(), |host| format!("host {host}"));
        let name = group["group"].as_str().unwrap_or("-");
        let role = group["role"].as_str().unwrap_or("-");
        text.push_str(&format!(
            "group {name}: {role}, leader {}, then {}, {} members\n",
            host("leader"),
            host("deputy"),
            group["members"]
        ));
    }
    let units = status["units"].as_array().map(Vec::as_slice).unwrap_or_default();
    for unit in units {
        text.push_str(&format!("linked to unit {}, {} us\n", unit["unit"], unit["round_trip_us"]));
    }
    if units.is_empty() {
        text.push_str("linked to no unit\n");
    }
    text
}
