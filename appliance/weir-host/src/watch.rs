//! What the agent looks at by itself: probes, commands, services and measures, each on its own beat.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use weir_health_load::ProbeState;
use weir_identity::{ApplicationId, EndpointId, HostId};
use weir_probes::{Expect, Kind, Probes, Question, Target, host_header};

use crate::config::{Application, Config, Measure, Probe};
use crate::house::House;
use crate::measure::{CpuTime, accept_queue, pressure};
use crate::state::{AGAIN, Tables, save};

/// Begins to watch everything that the configuration names; ends with what it gives back.
pub(crate) fn begin(
    config: &Config,
    own: HostId,
    house: &Arc<House>,
) -> Result<JoinSet<()>, weir_health_load::ProbeStateError> {
    let mut tasks = JoinSet::new();
    let proxied =
        config.proxied.iter().flat_map(|proxied| proxied.applications.iter().map(|known| (proxied.host, known)));
    let all: Vec<(HostId, &Application)> =
        config.applications.iter().map(|known| (own, known)).chain(proxied).collect();
    let mut targets = Vec::new();
    let mut places = HashMap::new();
    for (endpoint, (host, known)) in (0..).map(EndpointId).zip(&all) {
        if known.service.is_none() {
            register(house, *host, known);
        }
        if let Some(target) = known.probe.as_ref().and_then(|probe| target(endpoint, known, probe)) {
            places.insert(endpoint, (*host, known.application));
            targets.push(target);
        }
        if let Some(probe) = known.probe.as_ref().filter(|probe| probe.command.is_some()) {
            let state = ProbeState::new(probe.rise, probe.fall)?;
            tasks.spawn(run_command(Arc::clone(house), *host, known.application, probe.clone(), state));
        }
        if let Some(service) = &known.service {
            // It is there already if the last agent knew it.
            house.with(*host, |keeper, end, now| {
                let _ = keeper.direct_failing(end, known.application, known.failing, now);
            });
            tasks.spawn(follow_service(Arc::clone(house), *host, (*known).clone(), service.clone()));
        }
    }
    let (changes, mut changed) = mpsc::channel(64);
    let probes = Probes::spawn(targets, changes)?;
    let probed = Arc::clone(house);
    tasks.spawn(async move {
        let _probes = probes;
        while let Some(change) = changed.recv().await {
            let Some((host, application)) = places.get(&change.endpoint) else { continue };
            tracing::info!(%host, %application, health = ?change.health, reason = %change.reason, "probe");
            probed.with(*host, |keeper, end, now| keeper.probed(end, *application, change.health, now));
        }
    });
    let measured: Vec<Application> =
        config.applications.iter().filter(|known| !known.load.is_empty()).cloned().collect();
    tasks.spawn(beat(Arc::clone(house), own, measured));
    tasks.spawn(remember(Arc::clone(house), config.clone()));
    Ok(tasks)
}

/// Keeps the file for the next agent.
async fn remember(house: Arc<House>, config: Config) {
    let path = config.state();
    let (mut written, mut beats) = (Tables::default(), 0_u32);
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        beats += 1;
        let tables = house.tables(&config);
        if tables == written && BEAT * beats < AGAIN {
            continue;
        }
        if let Err(error) = save(&path, &tables) {
            tracing::warn!(path = %path.display(), %error, "a restart will begin with nothing");
        }
        (written, beats) = (tables, 0);
    }
}

fn register(house: &House, host: HostId, known: &Application) {
    let (identity, capacity) = (known.identity(), known.capacity);
    let registered = house.with(host, |keeper, end, now| {
        keeper.register(end, known.application, identity, capacity, None, now)?;
        keeper.direct_failing(end, known.application, known.failing, now)
    });
    if let Some(Err(error)) = registered {
        tracing::error!(application = %known.application, %error, "not registered");
    }
}

fn target(endpoint: EndpointId, known: &Application, probe: &Probe) -> Option<Target> {
    let address = known.endpoint.filter(|_| probe.command.is_none())?;
    let kind = match &probe.http {
        None => Kind::Tcp,
        Some(path) => {
            let host = host_header(address.ip(), address.port());
            Kind::Http { path: path.clone(), host, expect: Expect::Good }
        }
    };
    let question = Question { address, kind, timeout: probe.timeout, source: None, interface: None };
    Some(Target { endpoint, question, interval: probe.interval, rise: probe.rise, fall: probe.fall })
}

async fn run_command(house: Arc<House>, host: HostId, application: ApplicationId, probe: Probe, mut state: ProbeState) {
    let Some((program, arguments)) = probe.command.as_deref().and_then(<[String]>::split_first) else { return };
    let mut beat = interval(probe.interval);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let mut command = Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let success = match timeout(probe.timeout, command.status()).await {
            Ok(Ok(status)) => status.success(),
            Ok(Err(error)) => {
                tracing::warn!(%application, program, %error, "probe cannot be run");
                continue;
            }
            Err(_) => false,
        };
        if let Some(health) = state.observe(success) {
            tracing::info!(%application, ?health, program, "probe");
            house.with(host, |keeper, end, now| keeper.probed(end, application, health, now));
        }
    }
}

/// The row is there while systemd says that the service is active.
async fn follow_service(house: Arc<House>, host: HostId, known: Application, service: String) {
    let mut beat = interval(Duration::from_secs(1));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let asked = Command::new("systemctl").args(["is-active", "--quiet", &service]).status().await;
        let Ok(status) = asked else {
            tracing::warn!(service, "systemctl cannot be run");
            continue;
        };
        let is_there = house.with(host, |keeper, _, _| keeper.knows(known.application)).unwrap_or(false);
        match (status.success(), is_there) {
            (true, false) => register(&house, host, &known),
            (false, true) => {
                house.with(host, |keeper, end, _| keeper.deregister(end, known.application));
            }
            _ => {}
        }
    }
}

/// Measures, and lets time pass.
async fn beat(house: Arc<House>, own: HostId, measured: Vec<Application>) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cpu = CpuTime::default();
    let mut contested = std::collections::BTreeSet::new();
    loop {
        beat.tick().await;
        let (used, waits) = (cpu.used(), pressure());
        for known in &measured {
            let part = |measure: &Measure| match measure {
                Measure::Cpu => used,
                Measure::Pressure => waits,
                Measure::AcceptQueue => known.endpoint.and_then(|endpoint| accept_queue(endpoint).ok().flatten()),
            };
            if let Some(part) = known.load.iter().filter_map(part).reduce(f64::max) {
                house.with(own, |keeper, end, now| keeper.measured(end, known.application, part, now));
            }
        }
        for host in house.hosts() {
            let is_contested = house.with(host, |_, end, now| end.is_contested(now)) == Some(true);
            if !is_contested {
                contested.remove(&host);
            } else if contested.insert(host) {
                tracing::error!(%host, "another agent of the same rank speaks for this host: give one of them another rank");
            }
            for application in house.with(host, crate::keeper::Keeper::tick).unwrap_or_default() {
                tracing::warn!(%application, "lease lapsed: deleted");
            }
        }
    }
}

/// Load is measured so often, and leases lapse as exactly.
const BEAT: Duration = Duration::from_millis(250);
