//! The unit's side of the admin API: a Unix socket that only one unit may hold, and the HTTP routes on it.

use std::fs;
use std::future::{Future, IntoFuture};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as PathPart, Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use crate::api::{ApiError, DirectiveRequest, ErrorBody, Flow, ShardMoveRequest, UnitApi};

/// Binds `path` and answers there until `shutdown` completes; the socket file is gone afterwards.
///
/// # Errors
/// As [`AdminSocket::bind`] and [`AdminSocket::serve`].
pub async fn serve<A: UnitApi>(
    path: &Path,
    api: Arc<A>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    AdminSocket::bind(path)?.serve(api, shutdown).await
}

/// A bound admin socket: connections wait in its backlog until it is served.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket file, so that we never remove another unit's.
    file: (u64, u64),
}

impl AdminSocket {
    /// Creates the socket with permissions 0660, its directory too, and takes over from a unit that died there.
    ///
    /// # Errors
    /// When a live unit answers at `path`, when `path` is something else than a socket, or when the system refuses. Nothing has
    /// changed then but, at most, that the directory exists.
    pub fn bind(path: &Path) -> Result<AdminSocket, ServeError> {
        let at = |source| ServeError::Bind { path: path.to_owned(), source };
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(at)?;
        }
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(at)?;
        socket.bind(&SockAddr::unix(path).map_err(at)?).map_err(at)?;
        // Before listen(): until then nobody can connect, whatever the umask was.
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(at)?;
        socket.listen(BACKLOG).map_err(at)?;
        socket.set_nonblocking(true).map_err(at)?;
        let metadata = fs::symlink_metadata(path).map_err(at)?;
        Ok(AdminSocket {
            listener: UnixListener::from(std::os::fd::OwnedFd::from(socket)),
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
        })
    }

    /// Answers until `shutdown` completes and the requests under way are done (or [`GRACE`] is over: a client that sent half
    /// a request must not hold the unit up), then removes the socket file.
    ///
    /// # Errors
    /// When the socket cannot be given to Tokio's reactor (no runtime with I/O, say).
    pub async fn serve<A: UnitApi>(
        self,
        api: Arc<A>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let at = |source| ServeError::Serve { path: self.path.clone(), source };
        let listener = self.listener.try_clone().map_err(at)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(at)?;
        tracing::info!(path = %self.path.display(), "admin socket is open");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = axum::serve(listener, router(api)).with_graceful_shutdown(async {
            // An error means that the sender is gone, which ends this too.
            let _ = stopped.await;
        });
        let cut_off = async {
            shutdown.await;
            drop(stop);
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            ended = serving.into_future() => ended.map_err(at),
            () = cut_off => Ok(()),
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

/// Why the admin socket cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Another unit answers there.
    #[error("{} belongs to a unit that is running: stop it, or give this one another `admin.socket`", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has this name; it is left alone.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// What it was to be.
        path: PathBuf,
    },
    /// The system refused to create it.
    #[error("cannot open the admin socket {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was created but cannot be listened on.
    #[error("cannot serve the admin socket {}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Removes what a dead unit left at `path`; a socket counts as dead when connecting to it is refused.
fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let at = |source| ServeError::Bind { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a unit that is gone");
            fs::remove_file(path).map_err(at)
        }
        // A full backlog, say: somebody is there.
        Err(source) => Err(at(source)),
    }
}

/// The HTTP routes over `api`.
pub fn router<A: UnitApi>(api: Arc<A>) -> Router {
    Router::new()
        .route("/v1/status", get(status::<A>))
        .route("/v1/services", get(services::<A>))
        .route("/v1/hosts", get(hosts::<A>))
        .route("/v1/hosts/drain", post(drain::<A>))
        .route("/v1/hosts/resume", post(resume::<A>))
        .route("/v1/routes", get(routes_list::<A>))
        .route("/v1/routes/lookup", get(routes_lookup::<A>))
        .route("/v1/routes/count", get(routes_count::<A>))
        .route("/v1/counters", get(counters::<A>))
        .route("/v1/shards/{shard}/cpu", put(move_shard::<A>))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(api)
}

/// What every route answers: JSON, or an error that becomes JSON.
type Answer<T> = Result<Json<T>, Failure>;

async fn status<A: UnitApi>(State(api): State<Arc<A>>) -> Answer<impl Serialize> {
    answer(api.status().await)
}

async fn services<A: UnitApi>(State(api): State<Arc<A>>) -> Answer<impl Serialize> {
    answer(api.services().await)
}

async fn hosts<A: UnitApi>(State(api): State<Arc<A>>) -> Answer<impl Serialize> {
    answer(api.hosts().await)
}

async fn drain<A: UnitApi>(
    State(api): State<Arc<A>>,
    body: Result<Json<DirectiveRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let Json(body) = body?;
    tracing::info!(host = body.host, service = body.service, "the operator drains");
    answer(api.drain(&body.host, body.service.as_deref()).await)
}

async fn resume<A: UnitApi>(
    State(api): State<Arc<A>>,
    body: Result<Json<DirectiveRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let Json(body) = body?;
    tracing::info!(host = body.host, service = body.service, "the operator resumes");
    answer(api.resume(&body.host, body.service.as_deref()).await)
}

async fn routes_lookup<A: UnitApi>(
    State(api): State<Arc<A>>,
    query: Result<Query<Flow>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(flow) = query?;
    if flow.client.is_ipv4() != flow.vip.is_ipv4() {
        return Err(ApiError::BadRequest(format!("{} and {} are of different families", flow.client, flow.vip)).into());
    }
    answer(api.routes_lookup(flow).await)
}

/// The query of `GET /v1/routes`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Most routes to return; default [`DEFAULT_LIMIT`], at most [`MAX_LIMIT`].
    limit: Option<usize>,
    /// A service's name or id; absent: all.
    service: Option<String>,
    /// `next` of the page before; absent: the first page.
    from: Option<String>,
}

async fn routes_list<A: UnitApi>(
    State(api): State<Arc<A>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MAX_LIMIT {
        return Err(ApiError::BadRequest(format!("limit {limit} is not within 1 and {MAX_LIMIT}")).into());
    }
    answer(api.routes_list(limit, query.service.as_deref(), query.from.as_deref()).await)
}

async fn routes_count<A: UnitApi>(State(api): State<Arc<A>>) -> Answer<impl Serialize> {
    answer(api.routes_count().await)
}

async fn counters<A: UnitApi>(State(api): State<Arc<A>>) -> Answer<impl Serialize> {
    answer(api.counters().await)
}

async fn move_shard<A: UnitApi>(
    State(api): State<Arc<A>>,
    shard: Result<PathPart<u32>, PathRejection>,
    body: Result<Json<ShardMoveRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let (PathPart(shard), Json(body)) = (shard?, body?);
    tracing::info!(shard, cpu = body.cpu, "the operator moves a shard");
    answer(api.move_shard(shard, body.cpu).await)
}

async fn no_such_path(uri: Uri) -> Failure {
    Failure { status: StatusCode::NOT_FOUND, error: format!("no such path: {}", uri.path()), hint: None }
}

async fn wrong_method(uri: Uri) -> Failure {
    Failure {
        status: StatusCode::METHOD_NOT_ALLOWED,
        error: format!("{} is not asked this way", uri.path()),
        hint: None,
    }
}

fn answer<T>(result: Result<T, ApiError>) -> Answer<T> {
    Ok(Json(result?))
}

/// An error on its way to becoming an HTTP answer.
struct Failure {
    status: StatusCode,
    error: String,
    hint: Option<&'static str>,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure {
            status: StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            error: error.to_string(),
            hint: error.hint(),
        }
    }
}

/// Axum's own refusals (malformed query, body too large) speak JSON too.
macro_rules! from_rejection {
    ($($rejection:ty),+) => {
        $(impl From<$rejection> for Failure {
            fn from(rejection: $rejection) -> Failure {
                Failure { status: rejection.status(), error: rejection.body_text(), hint: None }
            }
        })+
    };
}

from_rejection!(JsonRejection, PathRejection, QueryRejection);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.error, hint: self.hint.map(str::to_owned) };
        (self.status, Json(body)).into_response()
    }
}

/// Owner and group may administer; nobody else may connect.
const SOCKET_MODE: u32 = 0o660;
/// What requests under way get when the unit stops.
pub const GRACE: Duration = Duration::from_secs(1);
/// Connections that may wait.
const BACKLOG: i32 = 64;
/// No request of ours is larger than a few hundred bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// Routes in a list when nothing is said.
const DEFAULT_LIMIT: usize = 100;
/// Most routes in a page.
const MAX_LIMIT: usize = 100_000;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::api::{
        Counters, DirectiveChange, HostStatus, RouteCount, RouteList, RouteLookup, ServiceStatus, ShardMove, Status,
    };

    #[test]
    fn a_dead_units_socket_is_taken_over_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/weir/a.sock");
        let first = AdminSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(error, ServeError::InUse { .. }), "{error}");
        drop(first);
        assert!(!path.exists());

        // A listener that goes without removing its file is what a killed unit leaves.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = AdminSocket::bind(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn another_file_of_that_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(ServeError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_socket_is_removed_only_while_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = AdminSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    /// A unit that says the same to everything.
    struct Stopping;

    impl UnitApi for Stopping {
        async fn status(&self) -> Result<Status, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn services(&self) -> Result<Vec<ServiceStatus>, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn hosts(&self) -> Result<Vec<HostStatus>, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn drain(&self, _: &str, _: Option<&str>) -> Result<Vec<DirectiveChange>, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn resume(&self, _: &str, _: Option<&str>) -> Result<Vec<DirectiveChange>, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn routes_lookup(&self, _: Flow) -> Result<RouteLookup, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn routes_list(&self, _: usize, _: Option<&str>, _: Option<&str>) -> Result<RouteList, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn routes_count(&self) -> Result<RouteCount, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn counters(&self) -> Result<Counters, ApiError> {
            Err(ApiError::Stopping)
        }
        async fn move_shard(&self, _: u32, _: u32) -> Result<ShardMove, ApiError> {
            Err(ApiError::Stopping)
        }
    }

    #[tokio::test]
    async fn it_ends_although_clients_stay_connected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let socket = AdminSocket::bind(&path).unwrap();
        let served = tokio::spawn(socket.serve(Arc::new(Stopping), async {
            let _ = stopped.await;
        }));
        let mute = UnixStream::connect(&path).unwrap();
        let mut half = UnixStream::connect(&path).unwrap();
        half.write_all(b"GET /v1/status HT").unwrap();
        let client = crate::Client::new(&path);
        let error = tokio::task::spawn_blocking(move || client.status()).await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the unit is stopping");
        stop.send(()).unwrap();
        tokio::time::timeout(GRACE * 5, served).await.unwrap().unwrap().unwrap();
        assert!(!path.exists());
        drop((mute, half));
    }
}
