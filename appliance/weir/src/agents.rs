//! What hosts' agents say: the listener of this unit, and how its cache becomes what the unit knows of endpoints.

use std::collections::HashSet;
use std::sync::Arc;

use weir_health_link::{Cache, Checks, Keys, KeysError, ListenError, ListenSettings, Listener, Pages};
use weir_health_load::Health;
use weir_health_protocol::{Presence, UnitEnd, UnitSettings};
use weir_identity::{ApplicationId, EndpointId, HostId};

use crate::control::Shared;
use crate::knowledge::Said;

/// What is to be known of an endpoint whose host has an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// What its row says; nothing if it was never heard of.
    pub said: Option<Said>,
    /// The health that follows.
    pub health: Health,
    /// And why.
    pub reason: &'static str,
}

/// Why agents cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// Certificate or key.
    #[error("agents.keys: {0}")]
    Keys(#[from] KeysError),
    /// The address.
    #[error("agents: {0}")]
    Listen(#[from] ListenError),
    /// The address for agent-checks, or for HTTP.
    #[error("agents.{key}: cannot listen at {address}: {source}")]
    Read {
        /// Which of them.
        key: &'static str,
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Begins to listen, if the YAML says where.
///
/// # Errors
///
/// [`AgentsError`]; nothing listens then.
pub fn listen(shared: &Shared) -> Result<Option<Listener>, AgentsError> {
    let Some(agents) = &shared.config.agents else { return Ok(None) };
    let hosts = shared.config.hosts.iter();
    let settings = ListenSettings {
        unit: UnitSettings::new(shared.config.unit.id, shared.incarnation),
        address: agents.listen,
        peers: agents.peers.clone(),
        expected: hosts.filter(|host| host.agent).map(|host| host.id).collect(),
    };
    let listener = Listener::spawn(settings, &Keys::load(&agents.keys)?)?;
    tracing::info!(address = %listener.address(), peers = agents.peers.len(), "agents may connect");
    Ok(Some(listener))
}

/// Answers other balancers and readers; dropping it ends that.
#[derive(Debug, Default)]
pub struct Readers {
    /// Where HAProxy asks.
    pub checks: Option<Checks>,
    /// Where the cache is read.
    pub pages: Option<Pages>,
}

/// Begins to answer HAProxy's agent-check, and readers over HTTP, where the YAML says so.
///
/// # Errors
///
/// [`AgentsError`]; nothing is answered then.
pub async fn answer_readers(shared: &Shared) -> Result<Readers, AgentsError> {
    let mut readers = Readers::default();
    let (Some(agents), Some(cache)) = (&shared.config.agents, shared.agents.get()) else { return Ok(readers) };
    if let Some(address) = agents.checks {
        let checks = Checks::spawn(address, cache.clone()).await;
        readers.checks = Some(checks.map_err(|source| AgentsError::Read { key: "checks", address, source })?);
        tracing::info!(%address, "HAProxy's agent-check is answered");
    }
    if let Some(address) = agents.http {
        let pages = Pages::spawn(address, cache.clone()).await;
        readers.pages = Some(pages.map_err(|source| AgentsError::Read { key: "http", address, source })?);
        tracing::info!(%address, "what agents say can be read over HTTP");
    }
    Ok(readers)
}

/// Waits until agents have said something new; without any, for ever.
pub async fn changed(cache: &mut Option<Cache>) {
    let listens = match cache {
        Some(cache) => cache.changed().await,
        None => std::future::pending().await,
    };
    if !listens {
        *cache = None;
    }
}

/// Takes what the cache has by now.
pub fn refresh(shared: &Arc<Shared>) {
    let Some(cache) = shared.agents.get() else { return };
    let endpoints: Vec<(EndpointId, HostId, ApplicationId, Option<Said>, Health)> = {
        let knowledge = shared.knowledge.lock();
        let hosts = knowledge.config.hosts.iter();
        let with_agent: HashSet<HostId> = hosts.filter(|host| host.agent).map(|host| host.id).collect();
        let all = knowledge.known().map(|(id, known)| {
            let (_, settings) = knowledge.settings(known);
            (id, settings.host, settings.application, known.said, known.health)
        });
        all.filter(|(_, host, ..)| with_agent.contains(host)).collect()
    };
    let heard: Vec<Heard> = cache.with(|end, _| {
        let new = endpoints.iter().filter_map(|(endpoint, host, application, said, health)| {
            let heard = look(end, *endpoint, *host, *application);
            ((heard.said, heard.health) != (*said, *health)).then_some(heard)
        });
        new.collect()
    });
    if !heard.is_empty() {
        shared.heard(&heard);
    }
}

fn look(end: &UnitEnd, endpoint: EndpointId, host: HostId, application: ApplicationId) -> Heard {
    let cached = end.host(host);
    let presence = cached.map_or(Presence::Expected, weir_health_protocol::CachedHost::presence);
    let row = cached.and_then(|cached| cached.table().row(application));
    let live = presence == Presence::Live;
    let said = row.map(|row| Said { status: row.status, directives: row.directives, live });
    let (health, reason) = match (presence, row) {
        (Presence::Expected, _) => (Health::Unknown, "its agent was not heard so far"),
        (Presence::Silent, _) => (Health::Failing, "its agent is silent"),
        (Presence::Gone, _) => (Health::Failing, "its agent said goodbye"),
        (Presence::Live, None) => (Health::Failing, "its agent knows no such application"),
        (Presence::Live, Some(row)) => (row.status.health, "its agent says so"),
    };
    Heard { endpoint, said, health, reason }
}
