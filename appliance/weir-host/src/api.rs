//! The local API: HTTP and JSON on a Unix socket, by which applications report and operators direct.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Path as InPath, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use weir_health_load::{Directive, Health};
use weir_health_protocol::{HostEnd, Identity, Rank, Role, RowError};
use weir_identity::{ApplicationId, HostId, Moment};

use crate::house::House;
use crate::keeper::{Keeper, Report, Shown};

/// Answers at the socket until the task ends.
pub(crate) async fn serve(listener: UnixListener, house: Arc<House>) -> std::io::Result<()> {
    let application = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/directive", put(direct_all))
        .route("/v1/applications/{id}", put(register).delete(deregister))
        .route("/v1/applications/{id}/lease", post(renew))
        .route("/v1/applications/{id}/health", put(health))
        .route("/v1/applications/{id}/load", put(load))
        .route("/v1/applications/{id}/capacity", put(capacity))
        .route("/v1/applications/{id}/directive", put(direct))
        .with_state(house);
    axum::serve(listener, application).await
}

/// Makes the socket; one that nobody answers at is replaced.
pub(crate) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// All that the agent knows.
#[derive(Debug, Serialize)]
pub(crate) struct StatusBody {
    hosts: Vec<HostBody>,
    /// Linked units, with the round trip in microseconds.
    units: Vec<UnitBody>,
    /// The group, if it is in one.
    group: Option<GroupBody>,
}

#[derive(Debug, Serialize)]
struct GroupBody {
    group: String,
    role: &'static str,
    leader: Option<HostId>,
    deputy: Option<HostId>,
    members: usize,
}

#[derive(Debug, Serialize)]
struct HostBody {
    host: HostId,
    /// 0: its own agent; else a proxy.
    rank: u8,
    /// Another agent of the same rank seems to speak for it.
    contested: bool,
    incarnation: u64,
    digest: String,
    applications: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct UnitBody {
    unit: u32,
    round_trip_us: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registration {
    capacity: u8,
    /// Seconds until the row lapses, unless there are reports.
    lease: Option<f64>,
    endpoint: Option<std::net::SocketAddr>,
    vip: Option<std::net::SocketAddr>,
    #[serde(default)]
    detail: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthBody {
    health: Health,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadBody {
    load: u8,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CapacityBody {
    capacity: u8,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectiveBody {
    target: Directive,
}

/// Why a report was not taken.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<RowError> for Refused {
    fn from(error: RowError) -> Refused {
        let status = match error {
            RowError::Unknown(_) => StatusCode::NOT_FOUND,
            RowError::Taken(_) => StatusCode::CONFLICT,
            RowError::Full => StatusCode::INSUFFICIENT_STORAGE,
            RowError::Capacity(_) | RowError::Load { .. } | RowError::Detail(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Refused(status, error.to_string())
    }
}

type Answer = Result<Json<serde_json::Value>, Refused>;

async fn status(State(house): State<Arc<House>>) -> Json<StatusBody> {
    let shown = |host| {
        let show = |keeper: &mut Keeper, end: &mut HostEnd, now| HostBody {
            host,
            rank: Rank::of(end.incarnation()).number(),
            contested: end.is_contested(now),
            incarnation: end.incarnation().0,
            digest: format!("{:016x}", end.table().digest()),
            applications: keeper.show(end, now),
        };
        house.with(host, show)
    };
    let hosts = house.hosts().into_iter().filter_map(shown).collect();
    let units = house.agent().links().into_iter().map(|(unit, round_trip)| UnitBody {
        unit: unit.0,
        round_trip_us: u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX),
    });
    let group = house.agent().group().map(|status| GroupBody {
        group: status.group,
        role: match status.role {
            Role::Seeking => "seeking",
            Role::Following(_) => "following",
            Role::Leading => "leading",
        },
        leader: status.leader,
        deputy: status.deputy,
        members: status.members,
    });
    Json(StatusBody { hosts, units: units.collect(), group })
}

/// Whom a request is about; absent: the host that the agent runs on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    host: Option<HostId>,
}

impl Whose {
    fn act(
        &self,
        house: &House,
        act: impl FnOnce(&mut Keeper, &mut HostEnd, Moment) -> Result<(), RowError>,
    ) -> Answer {
        let host = self.host.unwrap_or(house.own_host());
        let done = house.with(host, act);
        done.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("this agent does not speak for host {host}")))??;
        Ok(Json(serde_json::json!({})))
    }

    fn report(&self, house: &House, id: u32, report: Report) -> Answer {
        self.act(house, |keeper, end, now| keeper.report(end, ApplicationId(id), report, now))
    }
}

/// A body of JSON; one that is none is refused as everything else is.
struct Body<T>(T);

impl<T, S: Send + Sync> FromRequest<S> for Body<T>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
{
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Refused> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(error) => Err(Refused(error.status(), error.body_text())),
        }
    }
}

type Houses = State<Arc<House>>;

async fn register(
    State(house): Houses,
    InPath(id): InPath<u32>,
    Query(whose): Query<Whose>,
    Body(body): Body<Registration>,
) -> Answer {
    let lease = match body.lease {
        None => None,
        Some(seconds) if (1.0..=86_400.0).contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
        Some(seconds) => {
            let why = format!("lease {seconds} is not within 1–86400 s");
            return Err(Refused(StatusCode::UNPROCESSABLE_ENTITY, why));
        }
    };
    let pair = |address: std::net::SocketAddr| (address.ip(), address.port());
    let identity =
        Identity { protocol: 6, vip: body.vip.map(pair), endpoint: body.endpoint.map(pair), detail: body.detail };
    let capacity = body.capacity;
    whose.act(&house, |keeper, end, now| keeper.register(end, ApplicationId(id), identity, capacity, lease, now))
}

async fn deregister(State(house): Houses, InPath(id): InPath<u32>, Query(whose): Query<Whose>) -> Answer {
    whose.act(&house, |keeper, end, _| keeper.deregister(end, ApplicationId(id)))
}

async fn renew(State(house): Houses, InPath(id): InPath<u32>, Query(whose): Query<Whose>) -> Answer {
    whose.report(&house, id, Report::Alive)
}

async fn health(
    State(house): Houses,
    InPath(id): InPath<u32>,
    Query(whose): Query<Whose>,
    Body(body): Body<HealthBody>,
) -> Answer {
    whose.report(&house, id, Report::Health(body.health))
}

async fn load(
    State(house): Houses,
    InPath(id): InPath<u32>,
    Query(whose): Query<Whose>,
    Body(body): Body<LoadBody>,
) -> Answer {
    whose.report(&house, id, Report::Load(body.load))
}

async fn capacity(
    State(house): Houses,
    InPath(id): InPath<u32>,
    Query(whose): Query<Whose>,
    Body(body): Body<CapacityBody>,
) -> Answer {
    whose.report(&house, id, Report::Capacity(body.capacity))
}

async fn direct(
    State(house): Houses,
    InPath(id): InPath<u32>,
    Query(whose): Query<Whose>,
    Body(body): Body<DirectiveBody>,
) -> Answer {
    whose.act(&house, |keeper, end, now| keeper.direct(end, ApplicationId(id), body.target, now))
}

async fn direct_all(State(house): Houses, Query(whose): Query<Whose>, Body(body): Body<DirectiveBody>) -> Answer {
    let all = |keeper: &mut Keeper, end: &mut HostEnd, now| keeper.direct_all(end, body.target, now);
    whose.act(&house, all)
}
