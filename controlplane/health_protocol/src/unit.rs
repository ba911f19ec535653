//! The unit's end: the consolidated cache by host and by application, and what keeps it right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

use crate::cache::{Applied, CachedHost, Presence};
use crate::host::DOUBTED_AFTER;
use crate::hosts::Hosts;
use crate::message::{Beat, Body, Message, Postulate, Wrong};
use crate::planted::{Bug, planted};
use crate::refusal::{Refusal, Refusals};
use crate::relay::Relay;
use crate::row::{Operation, ROWS_MAX, Row};
use crate::source::Rank;
use crate::table::{chunk, chunk_bits};
use crate::wire::DecodeError;

/// What a unit's end is told at its start.
#[derive(Debug, Clone)]
pub struct UnitSettings {
    /// Whose cache it is.
    pub unit: UnitId,
    /// Which life of the unit.
    pub incarnation: Incarnation,
    /// How long a heartbeat's digest may differ before the unit asks: the change that it waits for may be under way.
    pub grace: Duration,
    /// How long until it asks again; doubled each time up to ten times that.
    pub retry: Duration,
    /// A host that has been silent or gone for so long is forgotten.
    pub forget: Duration,
    /// The most hosts.
    pub hosts_max: usize,
}

impl UnitSettings {
    /// 20 ms of grace, asks again after 200 ms, forgets after an hour, up to 65,536 hosts.
    #[must_use]
    pub fn new(unit: UnitId, incarnation: Incarnation) -> Self {
        UnitSettings {
            unit,
            incarnation,
            grace: Duration::from_millis(20),
            retry: Duration::from_millis(200),
            forget: Duration::from_secs(3600),
            hosts_max: 65_536,
        }
    }
}

/// For whom a node may speak: from its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claims {
    /// Hosts whose tables it may keep.
    pub hosts: BTreeSet<HostId>,
    /// From which host to which it may say that they live, as the leader of a group: by the group's name.
    pub vouches: BTreeMap<Arc<str>, Vec<(HostId, HostId)>>,
}

impl Claims {
    /// May it say that this host lives?
    #[must_use]
    pub fn vouches_for(&self, host: HostId) -> bool {
        self.group_of(host).is_some()
    }

    /// The group that this host may be a member of, if the node may lead it.
    #[must_use]
    pub fn group_of(&self, host: HostId) -> Option<&Arc<str>> {
        let has = |ranges: &[(HostId, HostId)]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&host));
        self.vouches.iter().find(|(_, ranges)| has(ranges)).map(|(group, _)| group)
    }
}

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// A host's agent, with its claims.
    Host(&'a Claims),
    /// Another unit, which passes on.
    Unit(UnitId),
}

impl Origin<'_> {
    /// A unit passes on what it has taken.
    fn may_speak_for(&self, host: HostId) -> bool {
        match self {
            Origin::Host(claims) => claims.hosts.contains(&host),
            Origin::Unit(_) => true,
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// To the agent that speaks for this host.
    Host(HostId),
    /// To another unit.
    Unit(UnitId),
}

/// The consolidated cache of all hosts, and the protocol that keeps it.
#[derive(Debug)]
pub struct UnitEnd {
    settings: UnitSettings,
    hosts: Hosts,
    /// There is a link to their agents, whether they are known or not.
    linked: BTreeSet<HostId>,
    by_application: BTreeMap<ApplicationId, BTreeSet<HostId>>,
    timers: Timers,
    relay: Relay,
    out: VecDeque<(Peer, Message)>,
    changed: BTreeSet<(HostId, ApplicationId)>,
    generation: u64,
    refusals: Refusals,
    beats: u64,
}

impl UnitEnd {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: UnitSettings) -> Self {
        UnitEnd {
            settings,
            hosts: Hosts::default(),
            linked: BTreeSet::new(),
            by_application: BTreeMap::new(),
            timers: Timers::default(),
            relay: Relay::default(),
            out: VecDeque::new(),
            changed: BTreeSet::new(),
            generation: 0,
            refusals: Refusals::default(),
            beats: 0,
        }
    }

    /// What is known of a host.
    #[must_use]
    pub fn host(&self, host: HostId) -> Option<&CachedHost> {
        self.hosts.get(host)
    }

    /// All hosts that were ever heard of and are not forgotten.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &CachedHost)> {
        self.hosts.iter()
    }

    /// Whose cache it is, and which life of the unit.
    #[must_use]
    pub fn unit(&self) -> (UnitId, Incarnation) {
        (self.settings.unit, self.settings.incarnation)
    }

    /// The hosts that lead a group now: by their word another one lives.
    #[must_use]
    pub fn leaders(&self) -> BTreeSet<HostId> {
        let live = self.hosts.iter().map(|(_, cached)| cached).filter(|cached| cached.presence == Presence::Live);
        live.filter_map(|cached| cached.leader()).collect()
    }

    /// All applications that some host has.
    pub fn applications(&self) -> impl Iterator<Item = ApplicationId> {
        self.by_application.keys().copied()
    }

    /// The rows of an application on all hosts.
    pub fn application(&self, application: ApplicationId) -> impl Iterator<Item = (HostId, &CachedHost, &Row)> {
        let hosts = self.by_application.get(&application).into_iter().flatten();
        hosts.filter_map(move |host| {
            let cached = self.hosts.get(*host)?;
            Some((*host, cached, cached.table().row(application)?))
        })
    }

    /// Rows that were added, changed or deleted, or whose host came or went, since the last call.
    pub fn take_changes(&mut self) -> BTreeSet<(HostId, ApplicationId)> {
        std::mem::take(&mut self.changed)
    }

    /// Counts up with every change of a row, a host's presence or who speaks for it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What was refused.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// How many heartbeats were taken.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats
    }

    /// Counts bytes that were no message.
    pub fn count_malformed(&mut self, error: DecodeError) {
        self.refusals.count(&Refusal::Malformed(error));
    }

    /// Counts a message that had to wait, because its sender sends too many.
    pub fn count_flood(&mut self) {
        self.refusals.count(&Refusal::Flood);
    }

    /// A host is known to have an agent (from the YAML, say): if it is not heard of within `age_out` it is silent.
    pub fn expect_host(&mut self, host: HostId, now: Moment) {
        let cached = self.hosts.get_or_insert(host, || CachedHost::new(self.linked.contains(&host), now));
        let due = now.after(cached.age_out());
        cached.timer = Some(due);
        self.timers.set(due, host);
    }

    /// There is a link to another unit. What it has missed it asks for by the next heartbeats.
    pub fn handle_unit_up(&mut self, unit: UnitId, now: Moment) {
        self.relay.unit_up(unit, now);
    }

    /// The link to another unit is down, or there is none yet: a unit is told so of all others at its start.
    pub fn handle_unit_down(&mut self, unit: UnitId, now: Moment) {
        self.relay.unit_down(unit, now);
    }

    /// There is a link to the agent of these hosts. A member of a group may have nothing to say over it but what it is asked.
    pub fn handle_host_up(&mut self, claims: &Claims) {
        for host in &claims.hosts {
            self.linked.insert(*host);
            if let Some(cached) = self.hosts.get_mut(*host) {
                cached.direct = true;
                cached.join(claims.group_of(*host));
            }
        }
    }

    /// The link to the agent of these hosts is down: they are silent when their heartbeats have been missing for long enough.
    pub fn handle_host_down(&mut self, claims: &Claims) {
        for host in &claims.hosts {
            self.linked.remove(host);
            if let Some(cached) = self.hosts.get_mut(*host) {
                cached.direct = false;
            }
        }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// Why it, or the last of its parts that was refused, changed nothing; it is counted.
    pub fn handle(&mut self, origin: Origin<'_>, message: Message, now: Moment) -> Result<(), Refusal> {
        let mut refused = Ok(());
        if let Body::Heartbeat(beats) = message.body {
            for beat in beats {
                let taken = self.take_beat(origin, beat, now);
                refused = self.counted(taken).and(refused);
            }
            return refused;
        }
        let taken = self.take(origin, message, now);
        self.counted(taken)
    }

    fn counted(&mut self, taken: Result<(), Refusal>) -> Result<(), Refusal> {
        if let Err(refusal) = &taken {
            self.refusals.count(refusal);
        }
        taken
    }

    fn take_beat(&mut self, origin: Origin<'_>, beat: Beat, now: Moment) -> Result<(), Refusal> {
        let (host, sequence) = (beat.host, beat.sequence);
        self.beats += 1;
        let voucher = match origin {
            Origin::Host(claims) if claims.hosts.contains(&host) || !claims.vouches_for(host) => None,
            Origin::Host(claims) => claims.hosts.first().copied(),
            Origin::Unit(_) => beat.voucher,
        };
        let known = self.hosts.get_mut(host).filter(|_| voucher.is_some() || origin.may_speak_for(host));
        if known.is_some_and(|cached| cached.goes_on(origin, voucher, &beat, now)) {
            self.pass_on_beat(origin, voucher, beat);
            return Ok(());
        }
        if let Some(voucher) = voucher.filter(|_| !planted(Bug::VouchedIsSaid)) {
            return self.take_vouched(origin, voucher, beat, now);
        }
        self.listen(origin, &beat, now)?;
        self.admit(origin, host, beat.incarnation, now)?;
        let grace = self.settings.grace;
        let Some(cached) = self.hosts.get_mut(host) else { return Err(Refusal::Unknown) };
        if sequence <= cached.sequence && !planted(Bug::ReplayTaken) {
            return Err(Refusal::Replayed { host, sequence, known: cached.sequence });
        }
        cached.hear(origin, host);
        cached.beat(&beat, now);
        if cached.check(grace, now) {
            cached.set_presence(Presence::Live, now);
        } else if cached.presence == Presence::Gone {
            cached.set_presence(Presence::Expected, now);
        }
        self.settle(host, now);
        self.pass_on_beat(origin, None, beat);
        Ok(())
    }

    /// Takes a leader's word that a host lives, and what the host's digest is: nothing else, and nothing that the host could not undo.
    fn take_vouched(&mut self, origin: Origin<'_>, voucher: HostId, beat: Beat, now: Moment) -> Result<(), Refusal> {
        let (host, own) = (beat.host, self.settings.unit);
        if self.hosts.len() >= self.settings.hosts_max && self.hosts.get(host).is_none() {
            return Err(Refusal::Full(host));
        }
        let cached = self.hosts.get_or_insert(host, || CachedHost::new(self.linked.contains(&host), now));
        match origin {
            Origin::Unit(unit) => cached.hear_of(unit),
            Origin::Host(claims) => cached.join(claims.group_of(host)),
        }
        if cached.is_other(beat.incarnation) {
            let heard = cached.vouch_other(voucher, &beat, now);
            if heard.is_ok() {
                cached.count_on(Rank::of(beat.incarnation), now);
            }
            if let Err(Refusal::Outranked(_)) = heard {
                self.pass_on_beat(origin, Some(voucher), beat);
                return heard;
            }
            heard?;
        }
        if beat.incarnation != cached.incarnation || cached.presence == Presence::Gone {
            let (said, known) = (beat.incarnation, cached.incarnation);
            let told = cached.rest.stale_told.is_some_and(|told| now.since(told) < self.settings.retry * VOUCHED_RETRY);
            // One that is earlier may be a host's whose clock went back, and has to learn of the later one.
            if said != known && !told {
                cached.rest.stale_told = Some(now);
                // Another one each time: the host itself, if it has a link to this unit (nothing may have come through it), or a unit.
                let attempt = cached.rest.stale_asked;
                cached.rest.stale_asked = attempt.wrapping_add(1);
                let linked = u32::from(self.linked.contains(&host));
                let way = cached.way(host, attempt >> linked, |round| self.relay.other(own, host, round));
                let way = way.filter(|_| attempt & linked == linked).unwrap_or(Peer::Host(host));
                self.ask(host, way, known);
                // The units that the host itself has links to may not know of this life, either.
                self.pass_on_beat(origin, Some(voucher), beat);
            }
            self.settle(host, now);
            return Err(Refusal::Stale { host, said, known });
        }
        let known = cached.sequence.max(cached.vouched(voucher));
        if beat.sequence <= known && !planted(Bug::ReplayTaken) {
            return Err(Refusal::Replayed { host, sequence: beat.sequence, known });
        }
        let right = cached.vouch(voucher, &beat, self.settings.grace, now);
        if beat.leaving {
            cached.set_presence(Presence::Silent, now);
        } else if right {
            cached.set_presence(Presence::Live, now);
        }
        self.timers.set_if(cached.schedule(self.settings.forget, now), host);
        if cached.has_changes() {
            self.collect_changes(host);
        }
        self.pass_on_beat(origin, Some(voucher), beat);
        Ok(())
    }

    /// Tells the other units that a host lives, if it or its leader said so to this one.
    fn pass_on_beat(&mut self, origin: Origin<'_>, voucher: Option<HostId>, beat: Beat) {
        if let Origin::Host(_) = origin {
            self.relay.pass_on(Beat { voucher, ..beat });
        }
    }

    fn take(&mut self, origin: Origin<'_>, message: Message, now: Moment) -> Result<(), Refusal> {
        let Message { host, incarnation, sequence, body } = &message;
        let (host, sequence) = (*host, *sequence);
        if let Body::PostulateWrong { .. } | Body::PostulateRight { .. } = body {
            let known = self.hosts.get(host).ok_or(Refusal::Unknown)?.incarnation;
            if known != *incarnation {
                return Err(Refusal::Stale { host, said: *incarnation, known });
            }
        }
        match body {
            Body::Heartbeat(_) | Body::Group(_) => return Err(Refusal::WrongWay(body.kind())),
            Body::GetTable { unit, unit_incarnation, digests } => {
                let Origin::Unit(_) = origin else { return Err(Refusal::WrongWay(body.kind())) };
                return self.answer(host, *incarnation, (*unit, *unit_incarnation), digests);
            }
            Body::PostulateWrong { wrongs, .. } => {
                let Origin::Unit(unit) = origin else { return Err(Refusal::WrongWay(body.kind())) };
                self.correct(host, unit, wrongs);
                self.out.push_back((Peer::Host(host), message));
                return Ok(());
            }
            Body::PostulateRight { rights, .. } => {
                let Origin::Unit(unit) = origin else { return Err(Refusal::WrongWay(body.kind())) };
                let agreed = self.relay.agreed(host, rights, unit);
                self.send_right(Peer::Host(host), host, sequence, agreed);
                return Ok(());
            }
            Body::Goodbye | Body::RowChange { .. } | Body::Table { .. } | Body::Postulate(_) => {}
        }
        if let Some(cached) = self.hosts.get_mut(host).filter(|cached| cached.is_other(*incarnation)) {
            if let (Body::Goodbye, true) = (body, origin.may_speak_for(host)) {
                cached.rest.others.leave(*incarnation, sequence);
            }
            return Err(Refusal::Outranked(host));
        }
        self.admit(origin, host, *incarnation, now)?;
        let grace = self.settings.grace;
        let Some(cached) = self.hosts.get_mut(host) else { return Err(Refusal::Unknown) };
        match body {
            Body::Goodbye => {
                if sequence <= cached.sequence {
                    return Err(Refusal::Replayed { host, sequence, known: cached.sequence });
                }
                cached.hear(origin, host);
                cached.sequence = sequence;
                cached.clear();
                cached.set_presence(Presence::Gone, now);
                self.pass_on(origin, &message);
            }
            Body::RowChange { operations, .. } => {
                if cached.presence == Presence::Gone && !planted(Bug::GoodbyeForgotten) {
                    return Err(Refusal::Stale { host, said: *incarnation, known: cached.incarnation });
                }
                cached.hear(origin, host);
                let applied: Vec<Applied> = operations.iter().map(|operation| cached.apply(operation, now)).collect();
                cached.after_change(grace, now);
                if applied.contains(&Applied::Changed) {
                    self.pass_on(origin, &message);
                } else if applied.contains(&Applied::Missing) {
                    return Err(Refusal::Unknown);
                }
            }
            Body::Table { unit, unit_incarnation, generation, digest, total, bits, chunks, rows } => {
                if (*unit, *unit_incarnation) != (self.settings.unit, self.settings.incarnation) {
                    return Err(Refusal::Unasked(host));
                }
                if cached.presence == Presence::Gone {
                    return Err(Refusal::Stale { host, said: *incarnation, known: cached.incarnation });
                }
                if cached.apply_table(origin, *generation, (*bits, *chunks), rows, now) == Applied::Known {
                    let (said, known) = (*generation, cached.rest.right_at);
                    return Err(Refusal::Replayed { host, sequence: said, known });
                }
                cached.told(*generation, *digest, *total);
                cached.after_change(grace, now);
            }
            Body::Postulate(postulates) => self.judge(origin, host, sequence, postulates, &message, now),
            _ => {}
        }
        self.settle(host, now);
        Ok(())
    }

    /// A source that does not count is heard, and may count from now on; if not, the other units hear of it, too.
    fn listen(&mut self, origin: Origin<'_>, beat: &Beat, now: Moment) -> Result<(), Refusal> {
        let retry = self.settings.retry;
        let other = self.hosts.get_mut(beat.host).filter(|cached| cached.is_other(beat.incarnation));
        let Some(cached) = other.filter(|_| origin.may_speak_for(beat.host)) else { return Ok(()) };
        let heard = cached.hear_other(origin, beat, now);
        match (heard, origin) {
            (Err(Refusal::Outranked(_)), Origin::Host(_)) => self.relay.pass_on(beat.clone()),
            (Err(Refusal::Stale { known, .. }), Origin::Host(_)) if cached.tells_stale(retry, now) => {
                self.ask(beat.host, Peer::Host(beat.host), known);
            }
            (Ok(()), _) => cached.begin(beat.incarnation, now),
            _ => {}
        }
        heard
    }

    /// May the origin speak for this host, and is it the life that is known, or a later one?
    fn admit(
        &mut self,
        origin: Origin<'_>,
        host: HostId,
        incarnation: Incarnation,
        now: Moment,
    ) -> Result<(), Refusal> {
        if !origin.may_speak_for(host) {
            return Err(Refusal::WrongHost(host));
        }
        if self.hosts.len() >= self.settings.hosts_max && self.hosts.get(host).is_none() {
            return Err(Refusal::Full(host));
        }
        let cached = self.hosts.get_or_insert(host, || CachedHost::new(self.linked.contains(&host), now));
        if incarnation > cached.incarnation {
            cached.begin(incarnation, now);
        } else if incarnation < cached.incarnation && !planted(Bug::StaleLifeTaken) {
            let known = cached.incarnation;
            // If it is no late message but a host whose clock went back, it learns here which life it has to exceed.
            if cached.tells_stale(self.settings.retry, now) {
                let to = match origin {
                    Origin::Host(_) => Peer::Host(host),
                    Origin::Unit(unit) => Peer::Unit(unit),
                };
                self.ask(host, to, known);
            }
            return Err(Refusal::Stale { host, said: incarnation, known });
        }
        Ok(())
    }

    /// When [`UnitEnd::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// Time has come for something.
    pub fn handle_timeout(&mut self, now: Moment) {
        while let Some((due, hosts)) = self.timers.pop(now) {
            for host in hosts {
                let timed = self.hosts.get_mut(host).filter(|cached| cached.timer == Some(due));
                let Some(cached) = timed else { continue };
                if let Some(due) = cached.rests(now) {
                    self.timers.set(due, host);
                    continue;
                }
                self.host_timeout(host, now);
                self.settle(host, now);
            }
        }
    }

    fn host_timeout(&mut self, host: HostId, now: Moment) {
        let (settings, own) = (&self.settings, self.settings.unit);
        let Some(cached) = self.hosts.get_mut(host) else { return };
        let age_out = cached.age_out();
        let unheard = now.since(cached.heard) >= age_out;
        let unknown = cached.rest.doubt.is_some_and(|doubt| now.since(doubt.since) >= age_out);
        if cached.presence == Presence::Live && unheard && cached.replace_source(now) {
            return;
        }
        match cached.presence {
            Presence::Live if (unheard || unknown) => {
                cached.set_presence(Presence::Silent, now);
            }
            Presence::Expected if unheard => cached.set_presence(Presence::Silent, now),
            Presence::Silent | Presence::Gone
                if now.since(cached.presence_since()) >= settings.forget
                    && now.since(cached.heard) >= settings.forget =>
            {
                cached.clear();
                self.collect_changes(host);
                self.hosts.remove(host);
                return;
            }
            _ => {}
        }
        if unheard || cached.presence == Presence::Gone {
            // Asking the dead is of no use; a heartbeat brings the doubt back.
            cached.rest.doubt = None;
            return;
        }
        if let Some(doubt) = cached.rest.doubt.as_mut().filter(|doubt| doubt.ask_at <= now) {
            let factor = 1 << doubt.asked.min(3);
            let attempt = doubt.asked;
            doubt.asked += 1;
            doubt.ask_at = now.after(if planted(Bug::AsksOnce) { settings.forget } else { settings.retry * factor });
            let Some(to) = cached.way(host, attempt, |round| self.relay.other(own, host, round)) else { return };
            let known = cached.incarnation;
            self.ask(host, to, known);
        }
    }

    /// The next message to be sent.
    pub fn poll_transmit(&mut self) -> Option<(Peer, Message)> {
        if !self.relay.beats.is_empty() {
            let beats = std::mem::take(&mut self.relay.beats);
            let up: Vec<UnitId> = self.relay.up().collect();
            for unit in up {
                for beats in beats.chunks(BEATS_MAX) {
                    self.send_beats(unit, beats.to_vec());
                }
            }
        }
        self.out.pop_front()
    }

    /// Asks for the rows of a host that differ from those in the cache.
    fn ask(&mut self, host: HostId, to: Peer, incarnation: Incarnation) {
        let Some(cached) = self.hosts.get(host) else { return };
        let rows = cached.table().len().max(cached.last_told().unwrap_or_default().2.into()).min(ROWS_MAX);
        let digests = cached.table().chunk_digests(chunk_bits(rows));
        let (unit, unit_incarnation) = (self.settings.unit, self.settings.incarnation);
        let body = Body::GetTable { unit, unit_incarnation, digests };
        self.out.push_back((to, Message { host, incarnation, sequence: 0, body }));
    }

    /// Answers another unit out of the cache, if that is right.
    fn answer(
        &mut self,
        host: HostId,
        known: Incarnation,
        asker: (UnitId, Incarnation),
        digests: &[u64],
    ) -> Result<(), Refusal> {
        let cached = self.hosts.get(host).ok_or(Refusal::Unknown)?;
        if known > cached.incarnation {
            // That unit knows a later life than this one, which the host has to exceed.
            if cached.direct {
                self.ask(host, Peer::Host(host), known);
            }
            return Ok(());
        }
        if !cached.is_whole() {
            return Err(Refusal::Unknown);
        }
        let bits = u8::try_from(digests.len().max(1).trailing_zeros()).unwrap_or(0);
        let ours = cached.table().chunk_digests(bits);
        let differs = |i: &usize| known != cached.incarnation || digests.get(*i) != Some(&ours[*i]);
        let chunks = (0..ours.len()).filter(differs).fold(0_u64, |chunks, i| chunks | 1 << i);
        let here = |row: &&Row| chunks >> chunk(row.application, bits) & 1 == 1;
        let rows = cached.table().rows().filter(here).cloned().collect();
        let (generation, digest, total) = cached.last_told().unwrap_or_default();
        let (unit, unit_incarnation) = asker;
        let body = Body::Table { unit, unit_incarnation, generation, digest, total, bits, chunks, rows };
        let message = Message { host, incarnation: cached.incarnation, sequence: cached.sequence, body };
        self.out.push_back((Peer::Unit(unit), message));
        Ok(())
    }

    /// Compares postulates with the cache, and answers once the peers have agreed, too.
    fn judge(
        &mut self,
        origin: Origin<'_>,
        host: HostId,
        sequence: u64,
        postulates: &[Postulate],
        message: &Message,
        now: Moment,
    ) {
        let Some(cached) = self.hosts.get(host) else { return };
        let to = match origin {
            Origin::Host(_) => Peer::Host(host),
            Origin::Unit(unit) => Peer::Unit(unit),
        };
        let (mut rights, mut wrongs) = (Vec::new(), Vec::new());
        for postulate in postulates {
            match cached.table().row(postulate.application) {
                Some(row) if row.version >= postulate.version && row.directives.target == postulate.target => {
                    rights.push(*postulate);
                }
                row => wrongs.push(Wrong { postulate: *postulate, known: row.map(|row| row.directives.target) }),
            }
        }
        let age_out = cached.interval() * 5;
        // Other units may hear of a member of a group through its leader, whether this one does or not.
        let grouped = matches!(origin, Origin::Host(claims) if claims.vouches_for(host));
        let doubted = if grouped { cached.interval() * DOUBTED_AFTER } else { Duration::ZERO };
        let incarnation = cached.incarnation;
        if !wrongs.is_empty() {
            let (unit, unit_incarnation) = (self.settings.unit, self.settings.incarnation);
            let body = Body::PostulateWrong { unit, unit_incarnation, wrongs };
            self.out.push_back((to, Message { host, incarnation, sequence, body }));
        }
        if let Origin::Host(_) = origin
            && !planted(Bug::PeersNotAsked)
        {
            let agreed = self.relay.ask(host, &rights, age_out, doubted, now);
            rights.retain(|postulate| !agreed.contains(postulate));
            if !rights.is_empty() {
                self.pass_on(origin, &Message { body: Body::Postulate(rights), ..message.clone() });
            }
            rights = agreed;
        }
        self.send_right(to, host, sequence, rights);
    }

    fn send_right(&mut self, to: Peer, host: HostId, sequence: u64, rights: Vec<Postulate>) {
        let Some(cached) = self.hosts.get(host).filter(|_| !rights.is_empty()) else { return };
        let (unit, unit_incarnation) = (self.settings.unit, self.settings.incarnation);
        let body = Body::PostulateRight { unit, unit_incarnation, rights };
        self.out.push_back((to, Message { host, incarnation: cached.incarnation, sequence, body }));
    }

    /// Gives a peer the rows it has wrong.
    fn correct(&mut self, host: HostId, unit: UnitId, wrongs: &[Wrong]) {
        let Some(cached) = self.hosts.get(host) else { return };
        let rows = wrongs.iter().filter_map(|wrong| cached.table().row(wrong.postulate.application).cloned());
        let operations: Vec<Operation> = rows.map(Operation::Add).collect();
        if !operations.is_empty() {
            let (incarnation, sequence) = (cached.incarnation, cached.sequence);
            let body = Body::RowChange { generation: cached.rest.right_at, operations };
            self.out.push_back((Peer::Unit(unit), Message { host, incarnation, sequence, body }));
        }
    }

    /// Tells the other units what a host said to this one.
    fn pass_on(&mut self, origin: Origin<'_>, message: &Message) {
        if let Origin::Host(_) = origin {
            let up: Vec<UnitId> = self.relay.up().collect();
            self.out.extend(up.into_iter().map(|unit| (Peer::Unit(unit), message.clone())));
        }
    }

    fn send_beats(&mut self, unit: UnitId, beats: Vec<Beat>) {
        // Whoever reads it goes by the beats; the head only needs to be something.
        let host = beats.first().map_or(HostId(0), |beat| beat.host);
        let message = Message { host, incarnation: Incarnation(0), sequence: 0, body: Body::Heartbeat(beats) };
        self.out.push_back((Peer::Unit(unit), message));
    }

    /// Something was heard of a host, or its time has come: sets its timer, and collects its changes.
    fn settle(&mut self, host: HostId, now: Moment) {
        let Some(cached) = self.hosts.get_mut(host) else { return };
        self.timers.set_if(cached.schedule(self.settings.forget, now), host);
        if cached.has_changes() {
            self.collect_changes(host);
        }
    }

    fn collect_changes(&mut self, host: HostId) {
        let Some(cached) = self.hosts.get_mut(host) else { return };
        let changes = cached.take_changes();
        self.generation += 1;
        for application in changes {
            if cached.table().row(application).is_some() {
                self.by_application.entry(application).or_default().insert(host);
            } else if let Some(hosts) = self.by_application.get_mut(&application) {
                self.relay.forget(host, application);
                hosts.remove(&host);
                if hosts.is_empty() {
                    self.by_application.remove(&application);
                }
            }
            self.changed.insert((host, application));
        }
    }
}

/// When which hosts are to be looked at. What one message says of many of them is due for all at once.
#[derive(Debug, Default)]
struct Timers(BTreeMap<Moment, Vec<HostId>>);

impl Timers {
    fn set(&mut self, due: Moment, host: HostId) {
        self.0.entry(due).or_default().push(host);
    }

    fn set_if(&mut self, due: Option<Moment>, host: HostId) {
        due.into_iter().for_each(|due| self.set(due, host));
    }

    fn next(&self) -> Option<Moment> {
        self.0.keys().next().copied()
    }

    fn pop(&mut self, now: Moment) -> Option<(Moment, Vec<HostId>)> {
        self.0.first_entry().filter(|first| *first.key() <= now).map(|first| first.remove_entry())
    }
}

/// So many heartbeats fit into a datagram, without names and as long as nothing was counted beyond 28 bits; a longer message goes by the stream.
pub(crate) const BEATS_MAX: usize = 32;
/// A life that only a leader speaks of is asked for that much less often.
const VOUCHED_RETRY: u32 = 5;

#[cfg(test)]
mod tests;
