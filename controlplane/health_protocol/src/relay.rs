//! What a unit passes on to the other units for the hosts that are linked to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir_identity::{ApplicationId, HostId, Moment, UnitId};

use crate::message::{Beat, Postulate};

/// The other units, and what they have been asked on behalf of hosts.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    units: BTreeMap<UnitId, Link>,
    /// Heartbeats that came directly, for the next consolidated one.
    pub(crate) beats: Vec<Beat>,
    asked: BTreeMap<(HostId, ApplicationId), Asked>,
}

#[derive(Debug)]
struct Link {
    up: bool,
    /// When it was last up.
    seen: Moment,
}

/// The latest postulate about a row: who has not agreed so far.
#[derive(Debug)]
struct Asked {
    postulate: Postulate,
    waiting: BTreeSet<UnitId>,
    since: Moment,
}

impl Relay {
    pub(crate) fn unit_up(&mut self, unit: UnitId, now: Moment) {
        self.units.insert(unit, Link { up: true, seen: now });
    }

    pub(crate) fn unit_down(&mut self, unit: UnitId, now: Moment) {
        let link = self.units.entry(unit).or_insert(Link { up: true, seen: now });
        if link.up {
            *link = Link { up: false, seen: now };
        }
    }

    pub(crate) fn up(&self) -> impl Iterator<Item = UnitId> {
        self.units.iter().filter(|(_, link)| link.up).map(|(unit, _)| *unit)
    }

    /// Keeps a heartbeat for the other units, if there are any.
    pub(crate) fn pass_on(&mut self, beat: Beat) {
        if self.up().next().is_some() {
            self.beats.push(beat);
        }
    }

    /// Some unit that is up, another one each time: all of them have the whole cache. Each unit begins with another one: if all asked the
    /// same one, that does not know either, none of them could learn it from those that have done so in the meantime.
    pub(crate) fn other(&self, own: UnitId, host: HostId, attempt: u32) -> Option<UnitId> {
        let count = self.up().count().max(1);
        let at = usize::try_from(host.0.wrapping_add(own.0).wrapping_add(attempt)).unwrap_or(0) % count;
        self.up().nth(at)
    }

    /// Notes who has to agree; these postulates need nobody (any more). A unit out of reach for `age_out` has given the host up; if a
    /// leader vouches for it, not before it has been in doubt of the new digest for long enough, `doubted` after the question.
    pub(crate) fn ask(
        &mut self,
        host: HostId,
        asked: &[Postulate],
        age_out: Duration,
        doubted: Duration,
        now: Moment,
    ) -> Vec<Postulate> {
        let mut agreed = Vec::new();
        for postulate in asked {
            let key = (host, postulate.application);
            // The same again: those who have agreed need not do so again.
            let before = self.asked.remove(&key).filter(|before| before.postulate == *postulate);
            let since = before.as_ref().map_or(now, |before| before.since);
            let patient = now.since(since) < doubted;
            let counts = |link: &Link| link.up || now.since(link.seen) <= age_out || patient;
            let units = self.units.iter().filter(|(_, link)| counts(link));
            let all: BTreeSet<UnitId> = units.map(|(unit, _)| *unit).collect();
            let waiting = before.map_or_else(|| all.clone(), |before| &before.waiting & &all);
            if waiting.is_empty() {
                agreed.push(*postulate);
            } else {
                self.asked.insert(key, Asked { postulate: *postulate, waiting, since });
            }
        }
        agreed
    }

    /// A unit agrees; these postulates it was the last to agree with.
    pub(crate) fn agreed(&mut self, host: HostId, rights: &[Postulate], unit: UnitId) -> Vec<Postulate> {
        let mut agreed = Vec::new();
        for postulate in rights {
            let key = (host, postulate.application);
            let Some(asked) = self.asked.get_mut(&key).filter(|asked| asked.postulate == *postulate) else { continue };
            asked.waiting.remove(&unit);
            if asked.waiting.is_empty() {
                self.asked.remove(&key);
                agreed.push(*postulate);
            }
        }
        agreed
    }

    /// Nobody waits for answers about this row any more.
    pub(crate) fn forget(&mut self, host: HostId, application: ApplicationId) {
        self.asked.remove(&(host, application));
    }
}
