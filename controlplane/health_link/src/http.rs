//! The consolidated cache over HTTP and JSON, to be read only: for balancers, dashboards and scripts that are not ours.
//!
//! `GET /v1/hosts`, `/v1/hosts/7`, `/v1/applications`, `/v1/applications/1`. Each answer has an `ETag` that stays the same while nothing
//! has changed but time: `If-None-Match` with it is answered 304 without a body, and with `?wait=20` only when there is something new, or
//! after so many seconds (at most 60). Times are milliseconds until the answer.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use weir_health_load::{Directive, Health};
use weir_health_protocol::{CachedHost, Presence, Row, UnitEnd};
use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use crate::listener::Cache;

/// Answers at a TCP address. Dropping it ends it.
#[derive(Debug)]
pub struct Pages {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Pages {
    /// Begins to answer. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// Nobody can listen there.
    pub async fn spawn(address: SocketAddr, cache: Cache) -> std::io::Result<Pages> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/v1/hosts", get(hosts))
            .route("/v1/hosts/{id}", get(host))
            .route("/v1/applications", get(applications))
            .route("/v1/applications/{id}", get(application))
            .with_state(cache);
        let limited = Limited { listener, permits: Arc::new(Semaphore::new(AT_ONCE)) };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // It never returns.
            let _ = axum::serve(limited, router).await;
        });
        Ok(Pages { address, _tasks: tasks })
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// All that a unit knows.
#[derive(Debug, Serialize)]
struct HostsBody {
    unit: UnitId,
    /// Of the cache: counts up with every change, and begins anew with the unit.
    generation: u64,
    hosts: Vec<HostBody>,
}

#[derive(Debug, Serialize)]
struct HostBody {
    host: HostId,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `expected`, `live`, `silent` or `gone`; only a live host's rows count.
    presence: &'static str,
    since_ms: u64,
    heard_ms: u64,
    /// 0: its own agent or the first proxy.
    rank: u8,
    applications: Vec<RowBody>,
}

#[derive(Debug, Serialize)]
struct RowBody {
    application: ApplicationId,
    health: Health,
    load: u8,
    capacity: u8,
    target: Directive,
    current: Directive,
    /// How long it has had this health and target.
    since_ms: u64,
    protocol: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    vip: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

#[derive(Debug, Serialize)]
struct ApplicationsBody {
    unit: UnitId,
    generation: u64,
    applications: Vec<ApplicationBody>,
}

/// An application on all hosts.
#[derive(Debug, Serialize)]
struct ApplicationBody {
    application: ApplicationId,
    hosts: Vec<OnHost>,
}

#[derive(Debug, Serialize)]
struct OnHost {
    host: HostId,
    presence: &'static str,
    #[serde(flatten)]
    row: RowBody,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// Seconds.
    wait: Option<u64>,
}

async fn hosts(State(cache): State<Cache>, Query(wait): Query<Wait>, headers: HeaderMap) -> Response {
    let body = |cache: &Cache| {
        let (unit, generation, ids) = cache.with(|end, _| (end.unit().0, end.generation(), ids(end.hosts())));
        let look = |some: &[HostId]| {
            let known = |end: &UnitEnd, now| {
                let known = some.iter().filter_map(|host| Some(host_body(*host, end.host(*host)?, now)));
                known.collect::<Vec<_>>()
            };
            cache.with(known)
        };
        Some(HostsBody { unit, generation, hosts: ids.chunks(AT_A_TIME).flat_map(look).collect() })
    };
    answer(cache, &wait, &headers, |end| Some(end.generation()), body).await
}

async fn host(
    State(cache): State<Cache>,
    Path(id): Path<u32>,
    Query(wait): Query<Wait>,
    headers: HeaderMap,
) -> Response {
    let tag = |end: &UnitEnd| end.host(HostId(id)).map(|cached| hash(|state| state_of(cached).hash(state)));
    let body = |cache: &Cache| cache.with(|end, now| Some(host_body(HostId(id), end.host(HostId(id))?, now)));
    answer(cache, &wait, &headers, tag, body).await
}

async fn applications(State(cache): State<Cache>, Query(wait): Query<Wait>, headers: HeaderMap) -> Response {
    let body = |cache: &Cache| {
        let (unit, generation) = cache.with(|end, _| (end.unit().0, end.generation()));
        let all: Vec<ApplicationId> = cache.with(|end, _| end.applications().collect());
        let applications = all.into_iter().map(|application| application_body(cache, application)).collect();
        Some(ApplicationsBody { unit, generation, applications })
    };
    answer(cache, &wait, &headers, |end| Some(end.generation()), body).await
}

async fn application(
    State(cache): State<Cache>,
    Path(id): Path<u32>,
    Query(wait): Query<Wait>,
    headers: HeaderMap,
) -> Response {
    let id = ApplicationId(id);
    let tag = |end: &UnitEnd| {
        end.application(id).next()?;
        let tag = hash(|state| {
            for (host, cached, row) in end.application(id) {
                (host, cached.presence(), cached.incarnation(), row.version, &row.identity).hash(state);
                (row.status, row.directives).hash(state);
            }
        });
        Some(tag)
    };
    answer(cache, &wait, &headers, tag, |cache| Some(application_body(cache, id))).await
}

/// Answers at once, or when there is something that the asker does not have.
async fn answer<Body: Serialize>(
    mut cache: Cache,
    wait: &Wait,
    headers: &HeaderMap,
    tag: impl Fn(&UnitEnd) -> Option<u64>,
    body: impl Fn(&Cache) -> Option<Body>,
) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let until = Instant::now() + Duration::from_secs(wait.wait.unwrap_or(0)).min(WAIT_MAX);
    loop {
        // What changes after the tag was made only makes the asker come once too often.
        let tag = cache.with(|end, _| Some(format!("W/\"{:x}-{:016x}\"", end.unit().1.0, tag(end)?)));
        let Some(tag) = tag else { return refused(StatusCode::NOT_FOUND, UNHEARD) };
        let head = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "no-cache")];
        if known != Some(&tag) {
            let Some(body) = body(&cache) else { return refused(StatusCode::NOT_FOUND, UNHEARD) };
            return match serde_json::to_vec(&body) {
                Ok(json) => (head, [(header::CONTENT_TYPE, "application/json")], json).into_response(),
                Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            };
        }
        if !timeout_at(until, cache.changed()).await.unwrap_or(false) {
            return (StatusCode::NOT_MODIFIED, head).into_response();
        }
        // Load changes often: whoever waits need not be told of each step.
        sleep(CALM).await;
    }
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "error": why }))).into_response()
}

/// All of a host that is shown, but the times.
fn state_of(cached: &CachedHost) -> impl Hash {
    (
        cached.presence(),
        cached.incarnation(),
        cached.table().digest(),
        cached.table().len(),
        cached.name().map(str::to_owned),
    )
}

fn hash(write: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut state = DefaultHasher::new();
    write(&mut state);
    state.finish()
}

fn host_body(host: HostId, cached: &CachedHost, now: Moment) -> HostBody {
    HostBody {
        host,
        name: cached.name().map(str::to_owned),
        presence: presence(cached),
        since_ms: ago(cached.presence_since(), now),
        heard_ms: ago(cached.heard(), now),
        rank: if cached.incarnation() == Incarnation(0) { 0 } else { cached.rank().number() },
        applications: cached.table().rows().map(|row| row_body(cached, row, now)).collect(),
    }
}

fn application_body(cache: &Cache, application: ApplicationId) -> ApplicationBody {
    let ids = cache.with(|end, _| ids(end.application(application).map(|(host, cached, _)| (host, cached))));
    let look = |some: &[HostId]| {
        let known = |end: &UnitEnd, now| {
            let on_host = |host: &HostId| {
                let cached = end.host(*host)?;
                let row = row_body(cached, cached.table().row(application)?, now);
                Some(OnHost { host: *host, presence: presence(cached), row })
            };
            some.iter().filter_map(on_host).collect::<Vec<_>>()
        };
        cache.with(known)
    };
    ApplicationBody { application, hosts: ids.chunks(AT_A_TIME).flat_map(look).collect() }
}

fn ids<'a>(hosts: impl Iterator<Item = (HostId, &'a CachedHost)>) -> Vec<HostId> {
    hosts.map(|(host, _)| host).collect()
}

fn row_body(cached: &CachedHost, row: &Row, now: Moment) -> RowBody {
    let address = |known: Option<(IpAddr, u16)>| known.map(SocketAddr::from);
    RowBody {
        application: row.application,
        health: row.status.health,
        load: row.status.load,
        capacity: row.status.capacity,
        target: row.directives.target,
        current: row.directives.current,
        since_ms: cached.row_since(row.application).map_or(0, |since| ago(since, now)),
        protocol: row.identity.protocol,
        vip: address(row.identity.vip),
        endpoint: address(row.identity.endpoint),
        detail: row.identity.detail.clone(),
    }
}

fn presence(cached: &CachedHost) -> &'static str {
    match cached.presence() {
        Presence::Expected => "expected",
        Presence::Live => "live",
        Presence::Silent => "silent",
        Presence::Gone => "gone",
    }
}

fn ago(then: Moment, now: Moment) -> u64 {
    now.0.saturating_sub(then.0)
}

/// A listener with so many connections at most.
struct Limited {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for Limited {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, from)) => return (Held { stream, _permit: permit }, from),
                Err(error) => {
                    tracing::warn!(%error, "a reader cannot connect");
                    sleep(CALM).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and its place.
struct Held {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const UNHEARD: &str = "nothing was heard of it";
const AT_ONCE: usize = 256;
/// The cache is held for so many hosts at a time.
const AT_A_TIME: usize = 256;
const WAIT_MAX: Duration = Duration::from_secs(60);
const CALM: Duration = Duration::from_millis(20);
