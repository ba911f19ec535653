//! HAProxy's agent-check, answered from the cache: a balancer that is not ours learns what hosts say.
//!
//! The question is a line `HOST/APPLICATION`, both numbers (`agent-send "7/1\n"`). The answer sets the administrative state, the
//! operating state and the weight, so that whatever was said before is taken back:
//!
//! | the row | the answer |
//! |---|---|
//! | active, healthy or unknown | `ready up N%`: N is its free capacity (at least 1), so every `server` line has `weight 100` |
//! | draining | `drain up N%`, or `drain fail #failing` |
//! | inactive | `maint` |
//! | failing | `ready fail #failing` |
//! | its host is silent, or has no such row | `ready down #silent`, `ready down #no such application` |
//! | its host said goodbye | `ready stopped #goodbye` |
//!
//! Nothing at all is said about a host that was not heard so far: HAProxy keeps what it has. The blank before `#` is needed and the word is
//! `fail`, whatever HAProxy's manual says (tried with 2.6).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_health_load::{Directive, Health};
use weir_health_protocol::{Presence, Status, UnitEnd};
use weir_identity::{ApplicationId, HostId};

use crate::listener::Cache;

/// Answers to checks. Dropping it ends it.
#[derive(Debug)]
pub struct Checks {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Checks {
    /// Begins to answer at an address. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// Nobody can listen there.
    pub async fn spawn(address: SocketAddr, cache: Cache) -> std::io::Result<Checks> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, cache));
        Ok(Checks { address, _tasks: tasks })
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: TcpListener, cache: Cache) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let cache = cache.clone();
                asked.spawn(async move {
                    let _ = timeout(PATIENCE, converse(stream, cache)).await;
                    drop(permit);
                });
            }
            // No file descriptor, say: it may pass.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        while asked.try_join_next().is_some() {}
    }
}

async fn converse(mut stream: TcpStream, cache: Cache) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader).take(LINE_MAX).read_line(&mut line).await?;
    if let Some((host, application)) = question(&line)
        && let Some(answer) = cache.with(|end, _| answer(end, host, application))
    {
        writer.write_all(answer.as_bytes()).await?;
    }
    writer.shutdown().await
}

fn question(line: &str) -> Option<(HostId, ApplicationId)> {
    let (host, application) = line.trim_end().split_once('/')?;
    Some((HostId(host.parse().ok()?), ApplicationId(application.parse().ok()?)))
}

fn answer(end: &UnitEnd, host: HostId, application: ApplicationId) -> Option<String> {
    let cached = end.host(host)?;
    let row = cached.table().row(application);
    let state = match (cached.presence(), row.map(|row| row.status)) {
        (Presence::Expected, _) => return None,
        (Presence::Silent, _) => "down #silent".to_owned(),
        (Presence::Gone, _) => "stopped #goodbye".to_owned(),
        (Presence::Live, None) => "down #no such application".to_owned(),
        (Presence::Live, Some(Status { health: Health::Failing, .. })) => "fail #failing".to_owned(),
        (Presence::Live, Some(status)) => format!("up {}%", status.free().max(1)),
    };
    let directive = row.filter(|_| cached.presence() == Presence::Live).map(|row| row.directives.target);
    Some(match directive {
        Some(Directive::Inactive) => "maint\n".to_owned(),
        Some(Directive::Draining) => format!("drain {state}\n"),
        Some(Directive::Active) | None => format!("ready {state}\n"),
    })
}

const AT_ONCE: usize = 256;
const PATIENCE: Duration = Duration::from_secs(2);
const LINE_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_two_numbers() {
        assert_eq!(question("7/1\n"), Some((HostId(7), ApplicationId(1))));
        for line in ["", "7", "7/", "/1", "7/1/2", "-7/1", "7/99999999999"] {
            assert_eq!(question(line), None, "{line}");
        }
    }
}
