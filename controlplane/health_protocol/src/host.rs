//! The host's end: keeps the table that is the truth, tells it to units, and finds out when all of them know a directive.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use weir_health_load::{Directive, Health};
use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use crate::message::{Beat, Body, Message, Postulate};
use crate::planted::{Bug, planted};
use crate::refusal::{Refusal, Refusals};
use crate::row::{Directives, Identity, Operation, ROWS_MAX, Row, RowError, Status};
use crate::source::Rank;
use crate::table::{Table, chunk, chunk_bits};

/// What a host's end is told at its start.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Whose table it is.
    pub host: HostId,
    /// Its DNS name, told with every 30th heartbeat.
    pub name: Option<String>,
    /// Which of several sources for this host it is; for [`HostEnd::new`] its life says so already.
    pub rank: Rank,
    /// Time between heartbeats, 1 ms to 65 s.
    pub interval: Duration,
    /// How long after a change of directive units are asked whether they know, and how long until they are asked again.
    pub postulate: Duration,
    /// It is in a group: units may hear of it through others.
    pub grouped: bool,
}

impl HostSettings {
    /// A heartbeat each second; postulates after 50 ms and every 50 ms.
    #[must_use]
    pub fn new(host: HostId) -> Self {
        let (interval, postulate) = (Duration::from_secs(1), Duration::from_millis(50));
        HostSettings { host, name: None, rank: Rank::default(), interval, postulate, grouped: false }
    }
}

/// A message on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToUnit {
    /// To one unit; none: to all that there is a link to.
    pub unit: Option<UnitId>,
    /// Heartbeats may be lost, everything else had better arrive.
    pub message: Message,
}

/// What one host says, to all units.
#[derive(Debug)]
pub struct HostEnd {
    settings: HostSettings,
    incarnation: Incarnation,
    sequence: u64,
    generation: u64,
    table: Table,
    /// Changed since units were last told.
    untold: BTreeMap<ApplicationId, Untold>,
    dances: BTreeMap<ApplicationId, Dance>,
    units: BTreeMap<UnitId, Link>,
    next_beat: Moment,
    beats: u64,
    gone: bool,
    contest: Contest,
    out: VecDeque<ToUnit>,
    refusals: Refusals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Untold {
    Added,
    Updated,
    Deleted { version: u64 },
}

/// A row's way from its target to its current directive.
#[derive(Debug)]
struct Dance {
    /// The version that brought the target.
    version: u64,
    begun: Moment,
    next: Moment,
    right: BTreeSet<UnitId>,
}

#[derive(Debug)]
struct Link {
    up: bool,
    /// When it was last up.
    seen: Moment,
}

/// How often the life had to be raised above another one that units knew. A clock that went back needs that once; more often, and there is
/// somebody else.
#[derive(Debug, Default)]
struct Contest {
    raises: u32,
    last: Moment,
}

impl Contest {
    fn may_raise(&mut self, now: Moment) -> bool {
        let passed = now.since(self.last);
        if passed < self.wait() {
            return false;
        }
        self.raises = if passed >= self.calm() { 1 } else { self.raises + 1 };
        self.last = now;
        true
    }

    /// Until it may be raised again.
    fn wait(&self) -> Duration {
        self.raises.checked_sub(Contest::FREE).map_or(Duration::ZERO, |more| Duration::from_secs(1 << more.min(9)))
    }

    /// After so long without there is nobody else (any more).
    fn calm(&self) -> Duration {
        2 * self.wait().max(Contest::FORGOTTEN)
    }

    /// So many raises are nothing unusual.
    const FREE: u32 = 4;
    const FORGOTTEN: Duration = Duration::from_secs(60);
}

impl HostEnd {
    /// An empty table. `incarnation` is greater than that of any earlier life, or units will say so; its lowest [`LIFE_BITS`] are random.
    #[must_use]
    pub fn new(settings: HostSettings, incarnation: Incarnation, now: Moment) -> Self {
        HostEnd {
            settings,
            incarnation,
            sequence: 0,
            generation: 0,
            table: Table::default(),
            untold: BTreeMap::new(),
            dances: BTreeMap::new(),
            units: BTreeMap::new(),
            next_beat: now,
            beats: 0,
            gone: false,
            contest: Contest::default(),
            out: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Which life this is; units may have raised it.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    #[cfg(test)]
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What was refused.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// The units that count, and whether there is a link to them now.
    pub fn units(&self) -> impl Iterator<Item = (UnitId, bool)> {
        self.units.iter().map(|(unit, link)| (*unit, link.up))
    }

    /// Does another agent of the same rank seem to speak for the same host? They would take turns, more and more slowly.
    #[must_use]
    pub fn is_contested(&self, now: Moment) -> bool {
        self.contest.raises >= Contest::FREE && now.since(self.contest.last) < self.contest.calm()
    }

    /// Has it said goodbye?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Adds a row, of unknown health and no load. The same again is no error and changes the capacity at most.
    ///
    /// # Errors
    /// What cannot be in a table; nothing changed.
    pub fn register(
        &mut self,
        application: ApplicationId,
        identity: Identity,
        capacity: u8,
        target: Directive,
    ) -> Result<(), RowError> {
        let identity = identity.check()?;
        let status = Status { health: Health::Unknown, load: 0, capacity }.check()?;
        if let Some(row) = self.table.row(application) {
            if row.identity != identity {
                return Err(RowError::Taken(application));
            }
            let load = row.status.load.min(capacity);
            return self.report(application, Status { load, capacity, ..row.status });
        }
        if self.table.len() >= ROWS_MAX {
            return Err(RowError::Full);
        }
        // Nobody has been told anything else, so that there is nothing to wait for.
        let directives = Directives { target, current: target };
        let version = self.next_generation();
        self.table.insert(Row { application, version, identity, status, directives });
        self.untold.insert(application, Untold::Added);
        Ok(())
    }

    /// Deletes a row.
    ///
    /// # Errors
    /// The application is not registered.
    pub fn deregister(&mut self, application: ApplicationId) -> Result<(), RowError> {
        if self.table.row(application).is_none() {
            return Err(RowError::Unknown(application));
        }
        let version = self.next_generation();
        self.table.remove(application);
        self.dances.remove(&application);
        self.untold.insert(application, Untold::Deleted { version });
        Ok(())
    }

    /// Says how an application is now.
    ///
    /// # Errors
    /// It is not registered, or cannot be so; nothing changed.
    pub fn report(&mut self, application: ApplicationId, status: Status) -> Result<(), RowError> {
        let status = status.check()?;
        let row = self.table.row(application).ok_or(RowError::Unknown(application))?;
        if row.status != status {
            self.change(Row { status, ..row.clone() });
        }
        Ok(())
    }

    /// Wants another directive for an application; it becomes current once all units know.
    ///
    /// # Errors
    /// The application is not registered.
    pub fn direct(&mut self, application: ApplicationId, target: Directive, now: Moment) -> Result<(), RowError> {
        let row = self.table.row(application).ok_or(RowError::Unknown(application))?;
        let current = row.directives.current;
        if row.directives.target == target {
            return Ok(());
        }
        let version = self.change(Row { directives: Directives { target, current }, ..row.clone() });
        if target == current {
            self.dances.remove(&application);
        } else {
            let next = now.after(self.settings.postulate);
            self.dances.insert(application, Dance { version, begun: now, next, right: BTreeSet::new() });
        }
        if planted(Bug::CurrentAtOnce) {
            self.become_current(application);
        }
        Ok(())
    }

    /// Says goodbye to all units; nothing is sent after it, until a row is registered again by [`HostEnd::return_`].
    pub fn goodbye(&mut self) {
        self.tell_changes();
        self.gone = true;
        self.send(None, Body::Goodbye);
    }

    /// Takes a goodbye back.
    pub fn return_(&mut self, now: Moment) {
        self.gone = false;
        self.next_beat = now;
    }

    /// There is a link to a unit now; it is told at once that this host lives.
    pub fn handle_link_up(&mut self, unit: UnitId, now: Moment) {
        self.units.insert(unit, Link { up: true, seen: now });
        if self.gone {
            self.send(Some(unit), Body::Goodbye);
        } else {
            self.beat(Some(unit), true);
        }
    }

    /// The link to a unit is down, or there is none yet: a host is told so of all units at its start.
    pub fn handle_link_down(&mut self, unit: UnitId, now: Moment) {
        let link = self.units.entry(unit).or_insert(Link { up: true, seen: now });
        if link.up {
            *link = Link { up: false, seen: now };
        }
    }

    /// Takes a unit's message.
    ///
    /// # Errors
    /// Why it changed nothing; it is counted.
    pub fn handle(&mut self, from: UnitId, message: Message, now: Moment) -> Result<(), Refusal> {
        let taken = self.take(from, message, now);
        if let Err(refusal) = &taken {
            self.refusals.count(refusal);
        }
        taken
    }

    fn take(&mut self, from: UnitId, message: Message, now: Moment) -> Result<(), Refusal> {
        if message.host != self.settings.host {
            return Err(Refusal::WrongHost(message.host));
        }
        if message.incarnation != Incarnation(0) && Rank::of(message.incarnation) != Rank::of(self.incarnation) {
            return Err(Refusal::Outranked(message.host));
        }
        let is_answer = matches!(message.body, Body::PostulateWrong { .. } | Body::PostulateRight { .. });
        if is_answer && message.incarnation != self.incarnation {
            // Versions begin anew with each life: an answer to an earlier one would seem to be one to this.
            let (host, said, known) = (message.host, message.incarnation, self.incarnation);
            return Err(Refusal::Stale { host, said, known });
        }
        match message.body {
            Body::GetTable { .. } if self.gone => {
                self.send(Some(from), Body::Goodbye);
                Ok(())
            }
            Body::GetTable { unit, unit_incarnation, digests } => {
                if message.incarnation > self.incarnation && !planted(Bug::LifeNotRaised) {
                    if !self.contest.may_raise(now) {
                        let (host, said, known) = (message.host, self.incarnation, message.incarnation);
                        return Err(Refusal::Stale { host, said, known });
                    }
                    // A clock went back: units would refuse this life for ever.
                    // Not only the next number: an even later life, unknown to that unit, could have taken it the same way.
                    let next = (message.incarnation.0 >> LIFE_BITS).saturating_add(1);
                    let own = self.incarnation.0 & ((1 << LIFE_BITS) - 1);
                    self.incarnation = Rank::of(self.incarnation).life(next << LIFE_BITS | own);
                    self.beat(None, true);
                    return Ok(());
                }
                let same_life = message.incarnation == self.incarnation;
                self.send_table(from, (unit, unit_incarnation), if same_life { &digests } else { &[] });
                Ok(())
            }
            Body::PostulateWrong { wrongs, .. } => {
                let mut resent = Vec::new();
                for wrong in wrongs {
                    let application = wrong.postulate.application;
                    let Some(dance) = self.dances.get_mut(&application) else { continue };
                    if dance.version == wrong.postulate.version {
                        dance.next = now.after(self.settings.postulate);
                        resent.extend(self.table.row(application).cloned().map(Operation::Add));
                    }
                }
                if !resent.is_empty() {
                    let generation = self.generation;
                    self.send(Some(from), Body::RowChange { generation, operations: resent });
                }
                Ok(())
            }
            Body::PostulateRight { rights, .. } => {
                for right in rights {
                    let dance = self.dances.get_mut(&right.application);
                    if let Some(dance) = dance.filter(|dance| dance.version == right.version) {
                        dance.right.insert(from);
                    }
                }
                self.finish_dances(now);
                Ok(())
            }
            body => Err(Refusal::WrongWay(body.kind())),
        }
    }

    /// When [`HostEnd::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let beat = (!self.gone).then_some(self.next_beat);
        beat.into_iter().chain(self.dances.values().map(|dance| dance.next)).min()
    }

    /// Time has come for something.
    pub fn handle_timeout(&mut self, now: Moment) {
        if !self.gone && self.next_beat <= now {
            self.beat(None, false);
            // From now on, and not from when it was due: after a leap of time there is no burst.
            self.next_beat = now.after(self.settings.interval);
        }
        self.finish_dances(now);
        let due: Vec<(ApplicationId, u64)> = self
            .dances
            .iter_mut()
            .filter(|(_, dance)| dance.next <= now)
            .map(|(application, dance)| {
                dance.next = if planted(Bug::PostulatesOnce) {
                    now.after(Duration::from_secs(1 << 40))
                } else {
                    now.after(self.settings.postulate)
                };
                (*application, dance.version)
            })
            .collect();
        if due.is_empty() {
            return;
        }
        let asked: Vec<UnitId> = self.units.iter().filter(|(_, link)| link.up).map(|(unit, _)| *unit).collect();
        for unit in asked {
            let postulates: Vec<Postulate> = due
                .iter()
                .filter(|(application, _)| !self.dances[application].right.contains(&unit))
                .filter_map(|(application, version)| {
                    let target = self.table.row(*application)?.directives.target;
                    Some(Postulate { application: *application, version: *version, target })
                })
                .collect();
            if !postulates.is_empty() {
                self.send(Some(unit), Body::Postulate(postulates));
            }
        }
    }

    /// The next message to be sent.
    pub fn poll_transmit(&mut self) -> Option<ToUnit> {
        self.tell_changes();
        self.out.pop_front()
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    fn change(&mut self, row: Row) -> u64 {
        let (application, version) = (row.application, self.next_generation());
        self.table.insert(Row { version, ..row });
        // A row that is to be added is still to be added; one that was deleted is back with another content.
        match self.untold.get(&application) {
            Some(Untold::Added | Untold::Deleted { .. }) => self.untold.insert(application, Untold::Added),
            Some(Untold::Updated) | None => self.untold.insert(application, Untold::Updated),
        };
        version
    }

    fn finish_dances(&mut self, now: Moment) {
        let age_out = self.settings.interval * UNREACHABLE_AFTER;
        let counts = |link: &Link| link.up || (now.since(link.seen) <= age_out && !planted(Bug::UnheardIsRight));
        let all: Vec<UnitId> = self.units.iter().filter(|(_, link)| counts(link)).map(|(unit, _)| *unit).collect();
        let doubted = if self.settings.grouped { self.settings.interval * DOUBTED_AFTER } else { Duration::ZERO };
        let finished: Vec<ApplicationId> = self
            .dances
            .iter()
            .filter(|(_, dance)| all.iter().all(|unit| dance.right.contains(unit)))
            // Nobody could be asked, but a leader goes on vouching: units find their copies wrong, and wait for the right ones in vain.
            .filter(|(_, dance)| !all.is_empty() || now.since(dance.begun) >= doubted)
            .map(|(application, _)| *application)
            .collect();
        for application in finished {
            self.become_current(application);
        }
    }

    fn become_current(&mut self, application: ApplicationId) {
        self.dances.remove(&application);
        if let Some(row) = self.table.row(application) {
            let target = row.directives.target;
            self.change(Row { directives: Directives { target, current: target }, ..row.clone() });
        }
    }

    fn beat(&mut self, unit: Option<UnitId>, forward: bool) {
        self.tell_changes();
        let named = self.beats.is_multiple_of(NAME_EVERY);
        self.beats += 1;
        let beat = Beat {
            host: self.settings.host,
            incarnation: self.incarnation,
            sequence: self.sequence + 1,
            generation: self.generation,
            digest: self.table.digest(),
            rows: rows_told(&self.table),
            interval_ms: u16::try_from(self.settings.interval.as_millis()).unwrap_or(u16::MAX).max(1),
            forward,
            voucher: None,
            leaving: false,
            name: self.settings.name.clone().filter(|_| named),
        };
        self.send(unit, Body::Heartbeat(vec![beat]));
    }

    fn tell_changes(&mut self) {
        if self.untold.is_empty() || self.gone {
            return;
        }
        let operations: Vec<Operation> = std::mem::take(&mut self.untold)
            .into_iter()
            .filter_map(|(application, untold)| {
                if let Untold::Deleted { version } = untold {
                    return Some(Operation::Delete { application, version });
                }
                let row = self.table.row(application)?;
                let &Row { version, status, directives, .. } = row;
                Some(match untold {
                    Untold::Updated => Operation::Update { application, version, status, directives },
                    _ => Operation::Add(row.clone()),
                })
            })
            .collect();
        let generation = self.generation;
        for operations in operations.chunks(ROWS_MAX) {
            self.send(None, Body::RowChange { generation, operations: operations.to_vec() });
        }
    }

    /// Sends those chunks that differ from `digests`; without any the whole table.
    fn send_table(&mut self, to: UnitId, asker: (UnitId, Incarnation), digests: &[u64]) {
        self.tell_changes();
        let bits = match digests.len() {
            0 => chunk_bits(self.table.len()),
            chunks => u8::try_from(chunks.trailing_zeros()).unwrap_or(0),
        };
        let ours = self.table.chunk_digests(bits);
        let differs = |i: &usize| (digests.get(*i) != Some(&ours[*i])) != planted(Bug::WrongChunks);
        let chunks = (0..ours.len()).filter(differs).fold(0_u64, |chunks, i| chunks | 1 << i);
        let here = |row: &&Row| chunks >> chunk(row.application, bits) & 1 == 1;
        let rows = self.table.rows().filter(here).cloned().collect();
        let (generation, digest, total) = (self.generation, self.table.digest(), rows_told(&self.table));
        let (unit, unit_incarnation) = asker;
        self.send(Some(to), Body::Table { unit, unit_incarnation, generation, digest, total, bits, chunks, rows });
    }

    fn send(&mut self, unit: Option<UnitId>, body: Body) {
        self.sequence += 1;
        let (host, incarnation, sequence) = (self.settings.host, self.incarnation, self.sequence);
        self.out.push_back(ToUnit { unit, message: Message { host, incarnation, sequence, body } });
    }
}

fn rows_told(table: &Table) -> u16 {
    u16::try_from(table.len()).unwrap_or(u16::MAX)
}

/// The lowest bits of a host's incarnation are random, so that no two lives are taken for one; above them are milliseconds since 1970.
pub const LIFE_BITS: u32 = 20;
/// After so many heartbeats without a link, a unit has aged this host out: it hears of nothing, but gives it nothing either.
const UNREACHABLE_AFTER: u32 = 5;
/// So many heartbeats after a change a unit that only hears of this host by others has noticed that its copy is wrong, and given it up.
pub(crate) const DOUBTED_AFTER: u32 = 8;
/// Every so many heartbeats have the name.
const NAME_EVERY: u64 = 30;
