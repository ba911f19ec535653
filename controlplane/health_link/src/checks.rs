//! HAProxy's agent-check, answered from the cache: a balancer that is not ours learns what hosts say.
//!
//! The question is a line `HOST/APPLICATION`, both numbers (`agent-send "7/1\n"`). The answer: `ready up N%` with the free part of the
//! capacity, `drain`, `maint` (inactive), `down`; nothing at all about a host that was not heard so far.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_health_load::{Directive, Health};
use weir_health_protocol::{CachedHost, Presence, UnitEnd};
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
    let row = |cached: &CachedHost| cached.table().row(application).map(|row| (row.status, row.directives.target));
    Some(match (cached.presence(), row(cached)) {
        (Presence::Expected, _) => return None,
        (Presence::Silent, _) => "down#silent\n".to_owned(),
        (Presence::Gone, _) => "down#goodbye\n".to_owned(),
        (Presence::Live, None) => "down#no such application\n".to_owned(),
        (Presence::Live, Some((_, Directive::Inactive))) => "maint\n".to_owned(),
        (Presence::Live, Some((_, Directive::Draining))) => "drain\n".to_owned(),
        (Presence::Live, Some((status, Directive::Active))) => match status.health {
            Health::Failing => "ready down#failing\n".to_owned(),
            Health::Healthy | Health::Unknown => {
                let part = u32::from(status.free()) * 100 / u32::from(status.capacity.max(1));
                format!("ready up {}%\n", part.max(1))
            }
        },
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
