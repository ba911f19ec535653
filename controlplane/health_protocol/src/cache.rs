//! What a unit knows of one host: a copy of its table, and whether the host is there and the copy right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use crate::message::Beat;
use crate::planted::{Bug, planted};
use crate::refusal::Refusal;
use crate::row::{Operation, ROWS_MAX, Row};
use crate::source::{self, Other, Others, Rank, Vouched};
use crate::table::{Table, chunk};
use crate::unit::{Origin, Peer};

/// Is a host there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// Nothing was heard that could be believed, so far.
    Expected,
    /// It lives, and its rows are known.
    Live,
    /// It was there, but three heartbeats in a row are missing, or its rows could not be had for as long.
    Silent,
    /// It said goodbye.
    Gone,
}

/// One host in a unit's cache.
///
/// Of ten thousand hosts none is in the processor's cache when its next heartbeat comes, and mostly that brings nothing new. So what it is
/// compared with and what it changes is together, in two lines of memory.
#[derive(Debug)]
#[repr(align(64))]
pub struct CachedHost {
    pub(crate) incarnation: Incarnation,
    /// Of the latest heartbeat or goodbye.
    pub(crate) sequence: u64,
    pub(crate) heard: Moment,
    /// The one entry among the unit's timers that counts.
    pub(crate) timer: Option<Moment>,
    /// Generation, digest and number of rows in the latest heartbeat, if the copy is known to be right by it, and nothing has changed since.
    agreed: Option<(u64, u64, u16)>,
    /// Whose word the latest heartbeat was; none if it was the host's own.
    leader: Option<HostId>,
    /// The number of the heartbeat in that leader's latest word.
    word: u64,
    group: Option<Arc<str>>,
    /// The unit that last passed on what the host itself said, or the first one that did so with a leader's word.
    pub(crate) through: Option<UnitId>,
    pub(crate) interval_ms: u16,
    pub(crate) presence: Presence,
    /// It speaks to this unit itself.
    pub(crate) direct: bool,
    /// This life was heard itself: rows alone may be another unit's memory of the dead.
    beaten: bool,
    pub(crate) rest: Box<Rest>,
}

/// What a heartbeat that brings nothing new leaves alone.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) table: Table,
    /// Versions of deleted rows that a late message could bring back.
    tombstones: BTreeMap<ApplicationId, u64>,
    /// When a row's health or target was last another one.
    since: BTreeMap<ApplicationId, Moment>,
    /// What leaders said before the latest.
    vouched: Vouched,
    /// Generation, digest and number of rows in a leader's word.
    claim: Option<(u64, u64, u16)>,
    /// The copy was right at this generation: changes up to it are old.
    pub(crate) right_at: u64,
    /// The latest generation heard of.
    newest: u64,
    /// Generation, digest and number of rows as the host last told them.
    latest: Option<(u64, u64, u16)>,
    pub(crate) presence_since: Moment,
    pub(crate) doubt: Option<Doubt>,
    name: Option<String>,
    /// Earlier lives are told about this one no more often than that.
    pub(crate) stale_told: Option<Moment>,
    /// How often a leader's word of another life was asked about.
    pub(crate) stale_asked: u32,
    /// Sources that do not count now.
    pub(crate) others: Others,
    /// Its presence or source is another since [`CachedHost::take_changes`].
    stirred: bool,
    /// Changed since [`CachedHost::take_changes`].
    changes: BTreeSet<ApplicationId>,
}

/// The copy is known not to be right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doubt {
    pub(crate) since: Moment,
    pub(crate) ask_at: Moment,
    pub(crate) asked: u32,
}

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Changed,
    /// It was known already, or is older than what is.
    Known,
    /// It is about a row that is not here.
    Missing,
}

impl CachedHost {
    pub(crate) fn new(direct: bool, now: Moment) -> Self {
        let rest = Rest {
            table: Table::default(),
            tombstones: BTreeMap::new(),
            since: BTreeMap::new(),
            vouched: Vouched::default(),
            claim: None,
            right_at: 0,
            newest: 0,
            latest: None,
            presence_since: now,
            doubt: None,
            name: None,
            stale_told: None,
            stale_asked: 0,
            others: Others::default(),
            stirred: true,
            changes: BTreeSet::new(),
        };
        CachedHost {
            incarnation: Incarnation(0),
            sequence: 0,
            heard: now,
            timer: None,
            agreed: None,
            leader: None,
            word: 0,
            group: None,
            through: None,
            interval_ms: 1000,
            presence: Presence::Expected,
            direct,
            beaten: false,
            rest: Box::new(rest),
        }
    }

    /// Its rows as last heard.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.rest.table
    }

    /// Is it there? Only a live host's rows count.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.presence
    }

    /// Since when it has had this presence.
    #[must_use]
    pub fn presence_since(&self) -> Moment {
        self.rest.presence_since
    }

    /// Since when a row has had its health and its target.
    #[must_use]
    pub fn row_since(&self, application: ApplicationId) -> Option<Moment> {
        self.rest.since.get(&application).copied()
    }

    /// The latest heartbeat's arrival; until the first, when it began to be waited for.
    #[must_use]
    pub fn heard(&self) -> Moment {
        self.heard
    }

    /// Which life of it is known.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Who speaks for it now.
    #[must_use]
    pub fn rank(&self) -> Rank {
        Rank::of(self.incarnation)
    }

    /// The leader of its group that sent its latest heartbeat; none if it did so itself.
    #[must_use]
    pub fn leader(&self) -> Option<HostId> {
        self.leader
    }

    /// The group that it may be a member of, by its own certificate or its leader's; none if it is heard through other units only.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// Its DNS name, if it said one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.rest.name.as_deref()
    }

    /// Is it there, and does the copy agree with its latest heartbeat?
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        self.presence == Presence::Live && self.rest.doubt.is_none() && self.rest.latest.is_some()
    }

    /// Is it in step, and has no change overtaken the heartbeat? Only then the rows can be passed on as those of that generation.
    pub(crate) fn is_whole(&self) -> bool {
        let is = |(_, digest, rows)| self.rest.table.digest() == digest && self.rest.table.len() == usize::from(rows);
        self.is_in_step() && self.rest.latest.is_some_and(is)
    }

    /// Generation, digest and number of rows as the host last told them.
    pub(crate) fn last_told(&self) -> Option<(u64, u64, u16)> {
        self.rest.latest
    }

    /// The host tells what its table is like, in a heartbeat or with its rows.
    pub(crate) fn told(&mut self, generation: u64, digest: u64, rows: u16) {
        self.rest.newest = self.rest.newest.max(generation);
        if self.rest.latest.is_none_or(|(latest, ..)| latest <= generation) {
            self.rest.latest = Some((generation, digest, rows));
        }
    }

    /// Remembers a way to the host.
    pub(crate) fn hear(&mut self, origin: Origin<'_>, host: HostId) {
        match origin {
            Origin::Host(claims) => {
                self.direct = true;
                self.join(claims.group_of(host));
            }
            Origin::Unit(unit) => self.through = Some(unit),
        }
    }

    /// Remembers a unit that a leader's word came from, if there is no other: one that passes on what the host itself says has a link to it.
    pub(crate) fn hear_of(&mut self, unit: UnitId) {
        self.through.get_or_insert(unit);
    }

    /// Remembers its group.
    pub(crate) fn join(&mut self, group: Option<&Arc<str>>) {
        if !self.is_in(group) {
            self.group = group.cloned();
        }
    }

    /// The names themselves need not be looked at: with each heartbeat of a leader comes the same one.
    fn is_in(&self, group: Option<&Arc<str>>) -> bool {
        self.group.as_ref().map(Arc::as_ptr) == group.map(Arc::as_ptr)
    }

    /// Whether there is nothing to be done for it but to go on waiting for its heartbeats; then, when to look again: there is a timer for that.
    pub(crate) fn rests(&mut self, now: Moment) -> Option<Moment> {
        let due = self.heard.after(self.age_out());
        let rests = self.presence == Presence::Live && self.agreed.is_some() && due > now;
        self.timer = rests.then_some(due);
        self.timer
    }

    /// When something is next due for it, if there is no timer for that yet; there is one then.
    pub(crate) fn schedule(&mut self, forget: Duration, now: Moment) -> Option<Moment> {
        let mut due = match self.presence {
            Presence::Live | Presence::Expected => self.heard.after(self.age_out()),
            Presence::Silent | Presence::Gone => self.rest.presence_since.max(self.heard).after(forget),
        };
        if let Some(Doubt { since, ask_at, .. }) = self.rest.doubt {
            due = due.min(ask_at);
            if self.presence == Presence::Live {
                due = due.min(since.after(self.age_out()));
            }
        }
        due = due.max(now.after(Duration::from_millis(1)));
        // A timer that comes too early only sets the next one: heartbeats need not have any.
        if self.timer.is_some_and(|timer| timer <= due) {
            return None;
        }
        self.timer = Some(due);
        Some(due)
    }

    /// Whom to ask the `attempt`th time: the host, and if it does not answer the unit that passed it on, or any other.
    pub(crate) fn way(&self, host: HostId, attempt: u32, other: impl FnOnce(u32) -> Option<UnitId>) -> Option<Peer> {
        let near = [self.direct.then_some(Peer::Host(host)), self.through.map(Peer::Unit)].into_iter().flatten();
        let count = u32::from(self.direct) + u32::from(self.through.is_some()) + 1;
        let turn = usize::try_from(attempt % count).unwrap_or(0);
        // The others take their own turns, or some of them would never have one.
        let other = || other(attempt / count).map(Peer::Unit);
        near.clone().nth(turn).or_else(other).or_else(|| near.clone().next())
    }

    /// After rows changed: is the copy right now, and does the host count (again)?
    pub(crate) fn after_change(&mut self, grace: Duration, now: Moment) {
        let right = self.check(grace, now);
        let is_heard = self.beaten && now.since(self.heard) < self.age_out();
        if right && is_heard {
            self.set_presence(Presence::Live, now);
        }
    }

    /// The time between its heartbeats.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.into())
    }

    /// After so long without a heartbeat it is silent: three are missing, and the last is late.
    pub(crate) fn age_out(&self) -> Duration {
        if planted(Bug::NeverSilent) { Duration::from_secs(1 << 30) } else { source::age_out(self.interval()) }
    }

    /// Another life of the host begins: its old rows are good until they are replaced, but any version is newer.
    pub(crate) fn begin(&mut self, incarnation: Incarnation, now: Moment) {
        self.step_down(incarnation);
        self.incarnation = incarnation;
        self.rest.stirred = true;
        if planted(Bug::OldRowsStay) {
            return;
        }
        (self.sequence, self.rest.right_at, self.rest.newest, self.rest.latest) = (0, 0, 0, None);
        (self.rest.claim, self.beaten, self.agreed, self.leader) = (None, false, None, None);
        self.rest.vouched.clear();
        self.rest.tombstones.clear();
        self.rest.table.forget_versions();
        if self.presence == Presence::Gone {
            // It was another life that said goodbye; this one has as long to be heard as a host that is new.
            self.heard = now;
            self.set_presence(Presence::Expected, now);
        }
        // There is nothing to wait for: no row change under way could make this right.
        self.rest.doubt = Some(Doubt { since: now, ask_at: now, asked: 0 });
    }

    /// One source ends to count, and another begins.
    fn step_down(&mut self, next: Incarnation) {
        let (before, rank) = (self.incarnation, Rank::of(next));
        if before != Incarnation(0) && Rank::of(before) != rank {
            let (sequence, interval_ms) = (self.sequence, self.interval_ms);
            let heard = Some(self.heard).filter(|_| self.beaten && self.presence != Presence::Gone);
            let (steady, direct, through) = (self.heard, self.direct, self.through);
            self.remember();
            let vouched = std::mem::take(&mut self.rest.vouched);
            let other = Other { incarnation: before, sequence, interval_ms, vouched, heard, steady, direct, through };
            self.rest.others.put(other);
            (self.direct, self.through) = (false, None);
        }
        self.rest.others.take(rank);
    }

    /// The source that counts is silent: the best of the others takes its place, if one is heard.
    pub(crate) fn replace_source(&mut self, now: Moment) -> bool {
        self.rest.others.best(now).is_some_and(|rank| self.count_on(rank, now))
    }

    /// A source of which something is known takes the place of the one that counts.
    pub(crate) fn count_on(&mut self, rank: Rank, now: Moment) -> bool {
        let Some(other) = self.rest.others.take(rank) else { return false };
        self.begin(other.incarnation, now);
        (self.sequence, self.interval_ms, self.rest.vouched) = (other.sequence, other.interval_ms, other.vouched);
        (self.heard, self.beaten) = (other.heard.unwrap_or(now), other.heard.is_some());
        (self.direct, self.through) = (other.direct, other.through);
        true
    }

    /// A source that does not count is heard: does it from now on?
    pub(crate) fn hear_other(&mut self, origin: Origin<'_>, beat: &Beat, now: Moment) -> Result<(), Refusal> {
        let steady = self.rest.others.hear(origin, beat, now)?;
        self.may_count(beat, steady)
    }

    /// A leader says that a source lives which does not count: does it from now on?
    pub(crate) fn vouch_other(&mut self, voucher: HostId, beat: &Beat, now: Moment) -> Result<(), Refusal> {
        let steady = self.rest.others.vouch(voucher, beat, now)?;
        self.may_count(beat, steady)
    }

    fn may_count(&self, beat: &Beat, steady: Duration) -> Result<(), Refusal> {
        let takes = match (Rank::of(beat.incarnation) < self.rank(), self.presence) {
            (true, Presence::Live) => steady >= self.age_out() * source::RETURNS_AFTER,
            (true, _) | (false, Presence::Silent) => true,
            (false, _) => false,
        };
        if takes { Ok(()) } else { Err(Refusal::Outranked(beat.host)) }
    }

    /// Is this the life of a source that does not count?
    pub(crate) fn is_other(&self, life: Incarnation) -> bool {
        self.incarnation != Incarnation(0) && Rank::of(life) != self.rank()
    }

    /// Is an earlier life to be told now that it is over?
    pub(crate) fn tells_stale(&mut self, retry: Duration, now: Moment) -> bool {
        let tells = self.rest.stale_told.is_none_or(|told| now.since(told) >= retry);
        if tells {
            self.rest.stale_told = Some(now);
        }
        tells
    }

    /// Takes a heartbeat that is newer than all before.
    pub(crate) fn beat(&mut self, beat: &Beat, now: Moment) {
        self.sequence = beat.sequence;
        (self.heard, self.beaten) = (now, true);
        // What a leader said, and nobody says any more, must not stand for ever. If it was true it will be said again.
        self.remember();
        (self.rest.claim, self.leader) = (None, None);
        self.interval_ms = beat.interval_ms;
        if beat.name.is_some() {
            self.rest.name.clone_from(&beat.name);
        }
        self.told(beat.generation, beat.digest, beat.rows);
    }

    /// Takes a heartbeat that brings nothing new but that the host still lives; in a farm at rest nearly all are so. `leader`: whose word it is.
    pub(crate) fn goes_on(&mut self, origin: Origin<'_>, leader: Option<HostId>, beat: &Beat, now: Moment) -> bool {
        let is_as_before = self.presence == Presence::Live
            && (self.incarnation, self.leader, self.interval_ms) == (beat.incarnation, leader, beat.interval_ms)
            && self.agreed == Some((beat.generation, beat.digest, beat.rows))
            && beat.name.is_none()
            && !beat.leaving
            && beat.sequence > self.sequence.max(leader.map_or(0, |_| self.word))
            && match origin {
                Origin::Host(claims) => (self.direct || leader.is_some()) && self.is_in(claims.group_of(beat.host)),
                Origin::Unit(unit) => leader.is_some() || self.through == Some(unit),
            };
        if is_as_before {
            self.heard = now;
            *(if leader.is_some() { &mut self.word } else { &mut self.sequence }) = beat.sequence;
        }
        is_as_before
    }

    /// Takes a leader's word. It stands in nobody's way: the host's own messages are measured only by each other.
    pub(crate) fn vouch(&mut self, voucher: HostId, beat: &Beat, grace: Duration, now: Moment) -> bool {
        if self.leader != Some(voucher) {
            self.remember();
        }
        (self.leader, self.word) = (Some(voucher), beat.sequence);
        (self.heard, self.beaten) = (now, true);
        self.interval_ms = beat.interval_ms;
        self.rest.claim = Some((beat.generation, beat.digest, beat.rows));
        self.check(grace, now)
    }

    /// The latest heartbeat that this leader vouched for.
    pub(crate) fn vouched(&self, voucher: HostId) -> u64 {
        if self.leader == Some(voucher) { self.word } else { self.rest.vouched.latest(voucher) }
    }

    /// Keeps the latest leader's word, before that is another one's.
    fn remember(&mut self) {
        if let Some(leader) = self.leader {
            self.rest.vouched.note(leader, self.word);
        }
    }

    /// Takes a change.
    pub(crate) fn apply(&mut self, operation: &Operation, now: Moment) -> Applied {
        let (application, version) = (operation.application(), operation.version());
        let row = self.rest.table.row(application);
        let known = row.map(|row| row.version).max(self.rest.tombstones.get(&application).copied());
        let is_old = version <= self.rest.right_at || known.is_some_and(|known| version <= known);
        if is_old && !planted(Bug::VersionIgnored) {
            return Applied::Known;
        }
        match operation {
            Operation::Add(row) => self.put(row.clone(), now),
            Operation::Update { status, directives, .. } => {
                let Some(row) = row else { return Applied::Missing };
                self.put(Row { version, status: *status, directives: *directives, ..row.clone() }, now);
            }
            Operation::Delete { .. } => self.bury(application, version),
        }
        self.rest.newest = self.rest.newest.max(version);
        Applied::Changed
    }

    /// Takes all rows of some chunks.
    pub(crate) fn apply_table(
        &mut self,
        origin: Origin<'_>,
        generation: u64,
        (bits, chunks): (u8, u64),
        rows: &[Row],
        now: Moment,
    ) -> Applied {
        if generation < self.rest.right_at {
            return Applied::Known;
        }
        let covered = |application| chunks >> chunk(application, bits) & 1 == 1;
        let named: BTreeSet<ApplicationId> = rows.iter().map(|row| row.application).collect();
        let missing: Vec<ApplicationId> = self
            .rest
            .table
            .rows()
            .filter(|row| covered(row.application) && row.version <= generation && !named.contains(&row.application))
            .map(|row| row.application)
            .collect();
        for application in missing {
            if !planted(Bug::SnapshotKeepsRows) {
                self.bury(application, generation);
            }
        }
        for row in rows {
            let known = self.rest.table.row(row.application);
            // A row that was there at this generation was not deleted before it.
            let newer = known.is_some_and(|known| known.version > row.version)
                || self.rest.tombstones.get(&row.application).is_some_and(|deleted| *deleted > generation);
            if !newer && known != Some(row) {
                self.put(row.clone(), now);
            }
        }
        self.rest.newest = self.rest.newest.max(generation);
        // The host's own word counts more than what a leader said of it, unless it has been under way for longer; another unit's memory
        // may be older anyway.
        if matches!(origin, Origin::Host(_)) {
            self.rest.claim = self.rest.claim.filter(|(claimed, ..)| *claimed > generation);
        }
        Applied::Changed
    }

    /// Is the copy right? Compares it with the latest heartbeat. If changes have overtaken that there is no saying: neither that it is
    /// right, nor a doubt.
    pub(crate) fn check(&mut self, grace: Duration, now: Moment) -> bool {
        // A generation that the host itself has spoken of: the leader can tell what the table was like then.
        if let Some((generation, digest, rows)) =
            self.rest.claim.filter(|(generation, ..)| *generation <= self.rest.newest)
        {
            self.told(generation, digest, rows);
        }
        let is =
            |digest: u64, rows: u16| self.rest.table.digest() == digest && self.rest.table.len() == usize::from(rows);
        let unsaid = self.rest.latest.is_none();
        let unknown = self
            .rest
            .claim
            .is_some_and(|(claimed, digest, rows)| claimed > self.rest.newest && (unsaid || !is(digest, rows)));
        if unknown && !planted(Bug::DigestIgnored) {
            self.rest.doubt.get_or_insert(Doubt { since: now, ask_at: now.after(grace), asked: 0 });
        }
        self.agreed = None;
        let Some((generation, digest, rows)) = self.rest.latest else { return false };
        let equal = is(digest, rows);
        let right = equal && !unknown || planted(Bug::DigestIgnored);
        if right {
            self.rest.doubt = None;
            self.rest.right_at = self.rest.right_at.max(generation);
            let right_at = self.rest.right_at;
            self.rest.tombstones.retain(|_, version| *version > right_at);
        }
        if !equal && generation >= self.rest.newest && !planted(Bug::DigestIgnored) {
            self.rest.doubt.get_or_insert(Doubt { since: now, ask_at: now.after(grace), asked: 0 });
        }
        let is_sure = right && self.rest.doubt.is_none();
        self.agreed = self.rest.claim.or(self.rest.latest).filter(|_| is_sure);
        right
    }

    pub(crate) fn set_presence(&mut self, presence: Presence, now: Moment) {
        if self.presence != presence {
            (self.presence, self.rest.presence_since, self.rest.stirred) = (presence, now, true);
            self.rest.changes.extend(self.rest.table.rows().map(|row| row.application));
        }
    }

    /// Forgets the rows, not what makes late messages late.
    pub(crate) fn clear(&mut self) {
        let rows: Vec<ApplicationId> = self.rest.table.rows().map(|row| row.application).collect();
        for application in rows {
            self.bury(application, 0);
        }
        self.rest.tombstones.clear();
        (self.rest.doubt, self.rest.latest, self.rest.claim, self.agreed) = (None, None, None, None);
    }

    /// Rows that are others than at the last call.
    pub(crate) fn take_changes(&mut self) -> BTreeSet<ApplicationId> {
        self.rest.stirred = false;
        std::mem::take(&mut self.rest.changes)
    }

    /// Is a row, its presence or its source another than at the last call of [`CachedHost::take_changes`]?
    pub(crate) fn has_changes(&self) -> bool {
        self.rest.stirred || !self.rest.changes.is_empty()
    }

    fn put(&mut self, row: Row, now: Moment) {
        let application = row.application;
        self.rest.tombstones.remove(&application);
        let state = |row: &Row| (row.status.health, row.directives.target);
        let now_state = state(&row);
        let before = self.rest.table.insert(row);
        if before.as_ref().map(state) != Some(now_state) {
            self.rest.since.insert(application, now);
        }
        if !planted(Bug::ChangeNotReported) {
            self.rest.changes.insert(application);
        }
    }

    fn bury(&mut self, application: ApplicationId, version: u64) {
        if self.rest.table.remove(application).is_some() {
            self.rest.since.remove(&application);
            self.rest.changes.insert(application);
        }
        if self.rest.tombstones.len() >= 2 * ROWS_MAX {
            // The digests bring to light what they would have kept away.
            self.rest.tombstones.clear();
        }
        self.rest.tombstones.insert(application, version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_takes_two_lines() {
        assert_eq!(size_of::<Option<CachedHost>>(), 2 * 64);
    }
}
