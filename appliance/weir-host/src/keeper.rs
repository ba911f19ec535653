//! What is known of one host's applications, from reports, probes and measures; and the row that it makes.
//!
//! Health: failing if anybody who was asked says so; else healthy if anybody says so; else unknown. It is told at once.
//!
//! Load: the greatest of the parts (0 to 1) that the application reported and that were measured; smoothed, with a time constant
//! of 1 s when it rises and 5 s when it falls; times the capacity. It is told when it differs from what was told by more than a twentieth
//! of the capacity, or has come to either end.
//!
//! Directive: what the operator wants, or what the configuration wants of a failing application, whichever is stricter.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use weir_health_load::{Directive, Health, Smoothed};
use weir_health_protocol::{HostEnd, Identity, Row, RowError, Status};
use weir_identity::{ApplicationId, Moment};

use crate::state::SavedRow;

/// One host's applications.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    applications: BTreeMap<ApplicationId, Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    capacity: u8,
    /// Lapses at this moment, unless it is renewed: for so long.
    lease: Option<(Duration, Moment)>,
    reported_health: Option<Health>,
    probed_health: Option<Health>,
    reported_load: Option<f64>,
    measured_load: Option<f64>,
    /// A part from 0 to 1.
    smoothed: Smoothed,
    /// What units were told.
    told: u8,
    /// What the operator wants.
    wanted: Directive,
    /// And what besides while it is failing.
    failing: Option<Directive>,
}

/// A row for people and programs.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) application: ApplicationId,
    pub(crate) health: Health,
    pub(crate) load: u8,
    pub(crate) capacity: u8,
    pub(crate) target: Directive,
    pub(crate) current: Directive,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease_left_ms: Option<u64>,
}

impl Keeper {
    /// Adds an application, or renews its lease and takes the capacity.
    pub(crate) fn register(
        &mut self,
        end: &mut HostEnd,
        application: ApplicationId,
        identity: Identity,
        capacity: u8,
        lease: Option<Duration>,
        now: Moment,
    ) -> Result<(), RowError> {
        end.register(application, identity, capacity, Directive::Active)?;
        let lease = lease.map(|lease| (lease, now.after(lease)));
        let kept = self.applications.entry(application).or_insert_with(|| Kept {
            capacity,
            lease,
            reported_health: None,
            probed_health: None,
            reported_load: None,
            measured_load: None,
            smoothed: Smoothed::new(0.0, now),
            told: 0,
            wanted: Directive::Active,
            failing: None,
        });
        (kept.capacity, kept.lease) = (capacity, lease);
        self.tell(end, application, now)
    }

    /// Deletes an application.
    pub(crate) fn deregister(&mut self, end: &mut HostEnd, application: ApplicationId) -> Result<(), RowError> {
        self.applications.remove(&application);
        end.deregister(application)
    }

    /// Is this application there?
    pub(crate) fn knows(&self, application: ApplicationId) -> bool {
        self.applications.contains_key(&application)
    }

    /// The application says how it is. Any report renews its lease.
    pub(crate) fn report(
        &mut self,
        end: &mut HostEnd,
        application: ApplicationId,
        report: Report,
        now: Moment,
    ) -> Result<(), RowError> {
        let kept = self.applications.get_mut(&application).ok_or(RowError::Unknown(application))?;
        match report {
            Report::Alive => {}
            Report::Health(health) => kept.reported_health = Some(health),
            Report::Load(load) if load > kept.capacity => {
                return Err(RowError::Load { load, capacity: kept.capacity });
            }
            Report::Load(load) => kept.reported_load = Some(f64::from(load) / f64::from(kept.capacity.max(1))),
            Report::Capacity(capacity) => {
                Status { health: Health::Unknown, load: 0, capacity }.check()?;
                kept.capacity = capacity;
            }
        }
        if let Some((lease, until)) = &mut kept.lease {
            *until = now.after(*lease);
        }
        self.tell(end, application, now)
    }

    /// A probe says how an application is.
    pub(crate) fn probed(&mut self, end: &mut HostEnd, application: ApplicationId, health: Health, now: Moment) {
        if let Some(kept) = self.applications.get_mut(&application) {
            kept.probed_health = Some(health);
            let _ = self.tell(end, application, now);
        }
    }

    /// So much of what an application can take is in use, as measured.
    pub(crate) fn measured(&mut self, end: &mut HostEnd, application: ApplicationId, part: f64, now: Moment) {
        if let Some(kept) = self.applications.get_mut(&application) {
            kept.measured_load = Some(part);
            let _ = self.tell(end, application, now);
        }
    }

    /// Time has passed: leases lapse, and smoothed load comes nearer to what it is.
    pub(crate) fn tick(&mut self, end: &mut HostEnd, now: Moment) -> Vec<ApplicationId> {
        let lapsed = |kept: &Kept| kept.lease.is_some_and(|(_, until)| until <= now);
        let lapsed: Vec<ApplicationId> =
            self.applications.iter().filter(|(_, kept)| lapsed(kept)).map(|(application, _)| *application).collect();
        for application in &lapsed {
            let _ = self.deregister(end, *application);
        }
        for application in self.applications.keys().copied().collect::<Vec<_>>() {
            let _ = self.tell(end, application, now);
        }
        lapsed
    }

    /// The operator wants this of an application.
    pub(crate) fn direct(
        &mut self,
        end: &mut HostEnd,
        application: ApplicationId,
        target: Directive,
        now: Moment,
    ) -> Result<(), RowError> {
        self.applications.get_mut(&application).ok_or(RowError::Unknown(application))?.wanted = target;
        self.tell(end, application, now)
    }

    /// The operator wants the same of all of them.
    pub(crate) fn direct_all(&mut self, end: &mut HostEnd, target: Directive, now: Moment) -> Result<(), RowError> {
        let all: Vec<ApplicationId> = self.applications.keys().copied().collect();
        all.into_iter().try_for_each(|application| self.direct(end, application, target, now))
    }

    /// What is wanted of an application besides, while it is failing.
    pub(crate) fn direct_failing(
        &mut self,
        end: &mut HostEnd,
        application: ApplicationId,
        target: Option<Directive>,
        now: Moment,
    ) -> Result<(), RowError> {
        self.applications.get_mut(&application).ok_or(RowError::Unknown(application))?.failing = target;
        self.tell(end, application, now)
    }

    /// What another agent would need to go on.
    pub(crate) fn save(&self, end: &HostEnd) -> Vec<SavedRow> {
        let address = |known: Option<(IpAddr, u16)>| known.map(SocketAddr::from);
        let saved = |row: &Row| {
            let kept = self.applications.get(&row.application)?;
            Some(SavedRow {
                application: row.application,
                protocol: row.identity.protocol,
                vip: address(row.identity.vip),
                endpoint: address(row.identity.endpoint),
                detail: row.identity.detail.clone(),
                capacity: kept.capacity,
                lease: kept.lease.map(|(lease, _)| lease),
                target: kept.wanted,
                reported_health: kept.reported_health,
                probed_health: kept.probed_health,
                reported_load: kept.reported_load,
                measured_load: kept.measured_load,
                // Not what is on its way there: a file that is the same need not be written.
                load: f64::from(row.status.load) / f64::from(kept.capacity.max(1)),
                by_itself: false,
            })
        };
        end.table().rows().filter_map(saved).collect()
    }

    /// Goes on with what another agent knew; leases begin anew.
    pub(crate) fn restore(&mut self, end: &mut HostEnd, row: &SavedRow, now: Moment) -> Result<(), RowError> {
        self.register(end, row.application, row.identity(), row.capacity, row.lease, now)?;
        if let Some(kept) = self.applications.get_mut(&row.application) {
            (kept.reported_health, kept.probed_health) = (row.reported_health, row.probed_health);
            (kept.reported_load, kept.measured_load) = (row.reported_load, row.measured_load);
            kept.smoothed = Smoothed::new(row.load.clamp(0.0, 1.0), now);
        }
        self.direct(end, row.application, row.target, now)
    }

    /// All rows.
    pub(crate) fn show(&self, end: &HostEnd, now: Moment) -> Vec<Shown> {
        let left = |application| {
            let (_, until) = self.applications.get(&application)?.lease?;
            Some(u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX))
        };
        end.table()
            .rows()
            .map(|row| Shown {
                application: row.application,
                health: row.status.health,
                load: row.status.load,
                capacity: row.status.capacity,
                target: row.directives.target,
                current: row.directives.current,
                lease_left_ms: left(row.application),
            })
            .collect()
    }

    fn tell(&mut self, end: &mut HostEnd, application: ApplicationId, now: Moment) -> Result<(), RowError> {
        let Some(kept) = self.applications.get_mut(&application) else { return Ok(()) };
        let said = [kept.reported_health, kept.probed_health];
        let health = [Health::Failing, Health::Healthy].into_iter().find(|health| said.contains(&Some(*health)));
        let part = [kept.reported_load, kept.measured_load].into_iter().flatten().fold(0.0, f64::max);
        let load = kept.load(part, now);
        let health = health.unwrap_or_default();
        end.report(application, Status { health, load, capacity: kept.capacity })?;
        let besides = kept.failing.filter(|_| health == Health::Failing);
        let target = besides.filter(|besides| strictness(*besides) > strictness(kept.wanted)).unwrap_or(kept.wanted);
        end.direct(application, target, now)
    }
}

fn strictness(directive: Directive) -> u8 {
    match directive {
        Directive::Active => 0,
        Directive::Draining => 1,
        Directive::Inactive => 2,
    }
}

/// What an application says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Report {
    /// It is there.
    Alive,
    /// Whether it serves.
    Health(Health),
    /// How much of its capacity is in use.
    Load(u8),
    /// What it can take.
    Capacity(u8),
}

impl Kept {
    /// The load to be told, after some time with this part in use.
    fn load(&mut self, part: f64, now: Moment) -> u8 {
        let exact = self.smoothed.follow(part.clamp(0.0, 1.0), now) * f64::from(self.capacity);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to capacity, and so to 99")]
        let load = (exact.round() as u8).min(self.capacity);
        let step = (self.capacity / 20).max(1);
        let is_end = load == 0 || load == self.capacity;
        if load.abs_diff(self.told) > step || (is_end && load != self.told) || self.told > self.capacity {
            self.told = load;
        }
        self.told
    }
}

#[cfg(test)]
mod tests {
    use weir_health_protocol::HostSettings;
    use weir_identity::{HostId, Incarnation};

    use super::*;

    const APPLICATION: ApplicationId = ApplicationId(1);

    fn host() -> (Keeper, HostEnd) {
        let mut end = HostEnd::new(HostSettings::new(HostId(1)), Incarnation(1), Moment(0));
        let mut keeper = Keeper::default();
        let lease = Some(Duration::from_secs(10));
        keeper.register(&mut end, APPLICATION, Identity::default(), 80, lease, Moment(0)).unwrap();
        (keeper, end)
    }

    fn status(end: &HostEnd) -> Status {
        end.table().row(APPLICATION).unwrap().status
    }

    #[test]
    fn whoever_says_failing_is_believed() {
        let (mut keeper, mut end) = host();
        assert_eq!(status(&end).health, Health::Unknown);
        keeper.report(&mut end, APPLICATION, Report::Health(Health::Healthy), Moment(1)).unwrap();
        assert_eq!(status(&end).health, Health::Healthy);
        keeper.probed(&mut end, APPLICATION, Health::Failing, Moment(2));
        assert_eq!(status(&end).health, Health::Failing);
        keeper.probed(&mut end, APPLICATION, Health::Unknown, Moment(3));
        assert_eq!(status(&end).health, Health::Healthy);
    }

    #[test]
    fn a_failing_application_may_be_directed_and_the_operator_is_not_forgotten() {
        let (mut keeper, mut end) = host();
        let target = |end: &HostEnd| end.table().row(APPLICATION).unwrap().directives.target;
        keeper.direct_failing(&mut end, APPLICATION, Some(Directive::Inactive), Moment(1)).unwrap();
        keeper.probed(&mut end, APPLICATION, Health::Failing, Moment(2));
        assert_eq!(target(&end), Directive::Inactive);
        keeper.direct(&mut end, APPLICATION, Directive::Draining, Moment(3)).unwrap();
        assert_eq!(target(&end), Directive::Inactive);
        keeper.probed(&mut end, APPLICATION, Health::Healthy, Moment(4));
        assert_eq!(target(&end), Directive::Draining);
        keeper.direct_all(&mut end, Directive::Active, Moment(5)).unwrap();
        assert_eq!(target(&end), Directive::Active);
    }

    #[test]
    fn load_is_smoothed_and_nonsense_refused() {
        let (mut keeper, mut end) = host();
        let refused = keeper.report(&mut end, APPLICATION, Report::Load(81), Moment(1));
        assert_eq!(refused, Err(RowError::Load { load: 81, capacity: 80 }));
        keeper.report(&mut end, APPLICATION, Report::Load(80), Moment(100)).unwrap();
        let at_once = status(&end).load;
        assert!((1..16).contains(&at_once), "{at_once}");
        for tick in 2..60 {
            keeper.tick(&mut end, Moment(tick * 100));
        }
        assert_eq!(status(&end).load, 80);
        // A spike down does nothing, a shift does.
        keeper.report(&mut end, APPLICATION, Report::Load(40), Moment(6_000)).unwrap();
        keeper.report(&mut end, APPLICATION, Report::Load(80), Moment(6_100)).unwrap();
        assert_eq!(status(&end).load, 80);
    }

    #[test]
    fn leases_lapse_unless_there_are_reports() {
        let (mut keeper, mut end) = host();
        keeper.report(&mut end, APPLICATION, Report::Alive, Moment(9_000)).unwrap();
        assert!(keeper.tick(&mut end, Moment(18_999)).is_empty());
        assert_eq!(keeper.tick(&mut end, Moment(19_000)), [APPLICATION]);
        assert!(end.table().is_empty());
        let unknown = keeper.report(&mut end, APPLICATION, Report::Alive, Moment(19_001));
        assert_eq!(unknown, Err(RowError::Unknown(APPLICATION)));
    }
}
