//! What has to be in the simulated world once there is peace, and what may never be.

use std::collections::{BTreeMap, BTreeSet};

use weir_identity::{ApplicationId, HostId};

use super::{Node, SimulatedHost, World};
use crate::{GroupEnd, Presence, Role, Row, UnitEnd};

impl World {
    /// Are all caches what they have to be? If not, why.
    pub(crate) fn converged(&mut self) -> Result<(), String> {
        let (unit, host) = self.wrong;
        self.agrees(unit, host)?;
        for unit in 0..self.plan.units {
            for host in 0..self.plan.hosts {
                self.wrong = (unit, host);
                self.agrees(unit, host)?;
            }
            if !self.plan.is_large() {
                self.reports_all(unit)?;
            }
        }
        Ok(())
    }

    /// Does a unit know what is true of a host?
    fn agrees(&self, unit: u32, host: u32) -> Result<(), String> {
        let Some(end) = &self.units[usize::try_from(unit).unwrap()].end else {
            return Err(format!("unit {unit} is down"));
        };
        let cached = end.host(HostId(host));
        let presence = cached.map(crate::CachedHost::presence);
        let truth = self.hosts[usize::try_from(host).unwrap()].end.as_ref();
        let Some(truth) = truth.filter(|truth| !truth.is_gone()) else {
            if presence == Some(Presence::Live) {
                return Err(format!("unit {unit} takes host {host} for live"));
            }
            if presence == Some(Presence::Gone) && cached.is_some_and(|cached| !cached.table().is_empty()) {
                return Err(format!("unit {unit} has rows of host {host}, which is gone"));
            }
            return Ok(());
        };
        let Some(cached) = cached.filter(|cached| cached.is_in_step()) else {
            let (life, links) = (truth.incarnation(), truth.units().collect::<Vec<_>>());
            let mut is = format!("{cached:?}");
            if let (Some(from), Some(to)) = (is.find("{ rows: {"), is.find("tombstones")) {
                is.replace_range(from..to, "…, ");
            }
            return Err(format!(
                "{} ms: unit {unit} takes host {host} for {presence:?}: {is}, but it lives as {life} with links to {links:?}",
                self.now
            ));
        };
        let same = if self.plan.is_large() {
            cached.table().digest() == truth.table().digest()
        } else {
            cached.table() == truth.table()
        };
        if !same || cached.incarnation() != truth.incarnation() {
            return Err(format!("unit {unit} has other rows of host {host}"));
        }
        if let Some(row) = truth.table().rows().find(|row| row.directives.target != row.directives.current) {
            return Err(format!("host {host}: {} of {} is not current", row.version, row.application));
        }
        Ok(())
    }

    /// Do those who listen to a unit's changes know what it knows, and is it the same by host and by application?
    fn reports_all(&self, unit: u32) -> Result<(), String> {
        let simulated = &self.units[usize::try_from(unit).unwrap()];
        let Some(end) = &simulated.end else { return Ok(()) };
        let live = live_rows(end);
        if live != simulated.mirror {
            return Err(format!("unit {unit} did not report all changes"));
        }
        for (_, application) in live.keys() {
            let by_application: BTreeSet<HostId> = end.application(*application).map(|(host, ..)| host).collect();
            let by_host = end.hosts().filter(|(_, cached)| cached.table().row(*application).is_some());
            if by_application != by_host.map(|(host, _)| host).collect() {
                return Err(format!("unit {unit} has application {application} on other hosts"));
            }
        }
        Ok(())
    }

    /// Whatever a host takes for current, no unit that takes the host for live may do otherwise.
    pub(super) fn watch_currents(&mut self, index: u32) {
        let simulated = &mut self.hosts[usize::try_from(index).unwrap()];
        let Some(end) = &simulated.end else { return };
        for row in end.table().rows() {
            let before = simulated.currents.insert(row.application, row.directives.current);
            if row.directives.target != row.directives.current {
                simulated.settled.remove(&row.application);
            } else if before.is_some_and(|before| before != row.directives.current) {
                simulated.settled.insert(row.application);
            }
        }
        self.watch(index);
    }

    /// What may never be, not even in chaos.
    pub(super) fn watch(&mut self, index: u32) {
        let simulated = &self.hosts[usize::try_from(index).unwrap()];
        // A leader has two fifths of a second, and there is a way more.
        let longest =
            if self.plan.group > 1 { 3_900 + 4 * self.plan.delay + 500 } else { 3_500 + 3 * self.plan.delay + 500 };
        let is_over = simulated.over.is_some_and(|over| self.now - over > longest);
        for (unit, end) in (0..).zip(&self.units) {
            let Some(end) = end.end.as_ref().filter(|_| !self.paused.contains(&Node::Unit(unit))) else { continue };
            let live = |cached: &&crate::CachedHost| cached.presence() == Presence::Live;
            let Some(cached) = end.host(HostId(index)).filter(live) else { continue };
            if is_over {
                self.broken
                    .get_or_insert(format!("{} ms: host {index} is long dead, but not for unit {unit}", self.now));
            }
            let Some(host) = simulated.end.as_ref().filter(|host| !host.is_gone()) else { continue };
            for application in &simulated.settled {
                let Some(row) = host.table().row(*application) else { continue };
                let obeyed = cached.table().row(*application).map(|row| row.directives.target);
                if obeyed != Some(row.directives.current) {
                    self.broken.get_or_insert(format!(
                        "{} ms: host {index} takes {:?} of {application} for current, but unit {unit} does {obeyed:?}",
                        self.now, row.directives.current
                    ));
                }
            }
        }
    }

    /// Does each group have one leader, whom all others follow?
    fn groups_agree(&self) -> Result<(), String> {
        if self.plan.group == 1 {
            return Ok(());
        }
        let lives = |simulated: &&SimulatedHost| simulated.end.as_ref().is_some_and(|end| !end.is_gone());
        for (at, group) in self.hosts.chunks(usize::try_from(self.plan.group).unwrap()).enumerate() {
            let ends: Vec<&GroupEnd> =
                group.iter().filter(lives).filter_map(|simulated| simulated.group.as_ref()).collect();
            let leading = ends.iter().filter(|end| end.role() == Role::Leading).count();
            let leader = ends.first().and_then(|end| end.leader());
            if !ends.is_empty() && (leading != 1 || leader.is_none() || ends.iter().any(|end| end.leader() != leader)) {
                let roles: Vec<Role> = ends.iter().map(|end| end.role()).collect();
                return Err(format!("{} ms: group {at} does not agree: {roles:?}", self.now));
            }
            if let Some(end) = ends.iter().find(|end| end.members() != ends.len()) {
                return Err(format!("group {at}: {:?} counts {} of {}", end.role(), end.members(), ends.len()));
            }
        }
        Ok(())
    }

    /// Kills all leaders: each has to be replaced within three heartbeats, and nobody else may be missed.
    pub(crate) fn lose_leaders(&mut self) -> Result<(), String> {
        if self.plan.group == 1 || self.plan.is_large() {
            return Ok(());
        }
        // Time for leaders to name their deputies.
        self.run(self.now + 3_000);
        let leads = |simulated: &SimulatedHost| simulated.group.as_ref().is_some_and(|end| end.role() == Role::Leading);
        let killed: Vec<u32> = (0..).zip(&self.hosts).filter(|(_, host)| leads(host)).map(|(host, _)| host).collect();
        // Who has begun only now is no concern of this.
        let role = |world: &World, host: u32| {
            let group = world.hosts[usize::try_from(host).unwrap()].group.as_ref();
            group.map_or(Role::Seeking, GroupEnd::role)
        };
        let watched: Vec<bool> = self
            .known()
            .into_iter()
            .zip(0..)
            .map(|(known, host)| known && matches!(role(self, host), Role::Following(_)))
            .collect();
        killed.iter().for_each(|host| self.stop(Node::Host(*host)));
        let three = self.now + 3_000 + 2 * self.plan.delay;
        for _ in 0..60 {
            self.run(self.now + 100);
            self.all_live(&watched).map_err(|why| format!("leaders {killed:?} are dead, and {why}"))?;
            let size = usize::try_from(self.plan.group).unwrap();
            let mut groups = self.hosts.chunks(size).zip(watched.chunks(size)).enumerate();
            let unled = groups.find(|(_, (group, watched))| watched.contains(&true) && !group.iter().any(leads));
            if let (true, Some((at, _))) = (self.now > three, unled) {
                return Err(format!("{} ms: group {at} has had no leader for three heartbeats", self.now));
            }
        }
        // They follow it as soon as they have found it.
        if let Some((host, _)) =
            (0..).zip(&watched).find(|(host, watched)| **watched && role(self, *host) == Role::Seeking)
        {
            return Err(format!("{} ms: host {host} does not follow the new leader", self.now));
        }
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Parts all hosts from each other, but not from units: none may be missed.
    pub(crate) fn part_hosts(&mut self) -> Result<(), String> {
        if self.plan.group == 1 || self.plan.is_large() {
            return Ok(());
        }
        let watched = self.known();
        let pairs =
            (0..self.plan.hosts).flat_map(|a| (a + 1..self.plan.hosts).map(move |b| (Node::Host(a), Node::Host(b))));
        self.cuts.extend(pairs.collect::<Vec<_>>());
        for _ in 0..120 {
            self.run(self.now + 100);
            self.all_live(&watched).map_err(|why| format!("hosts are parted, and {why}"))?;
        }
        self.cuts.clear();
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Which hosts live as all units know.
    fn known(&self) -> Vec<bool> {
        let lives = |host: &SimulatedHost| host.end.as_ref().is_some_and(|end| !end.is_gone());
        let is_known = |host: u32| (0..self.plan.units).all(|unit| self.agrees(unit, host).is_ok());
        (0..).zip(&self.hosts).map(|(host, simulated)| lives(simulated) && is_known(host)).collect()
    }

    /// Are those hosts live to all units?
    fn all_live(&self, watched: &[bool]) -> Result<(), String> {
        for ((host, simulated), _) in (0..).zip(&self.hosts).zip(watched).filter(|(_, watched)| **watched) {
            let Some(truth) = &simulated.end else { continue };
            for (unit, end) in
                self.units.iter().enumerate().filter_map(|(unit, known)| Some((unit, known.end.as_ref()?)))
            {
                let presence = end.host(HostId(host)).map(crate::CachedHost::presence);
                if presence != Some(Presence::Live) {
                    let (now, life) = (self.now, truth.incarnation());
                    return Err(format!("{now} ms: unit {unit} takes host {host} (life {life}) for {presence:?}"));
                }
            }
        }
        Ok(())
    }

    /// How long to run until all caches are right, at most `longest` ms; the reason why not.
    pub(crate) fn settle(&mut self, longest: u64) -> Result<u64, String> {
        let begun = self.now;
        loop {
            self.run(self.now + 100);
            match (self.broken.take(), self.converged().and_then(|()| self.groups_agree())) {
                (Some(broken), _) => return Err(broken),
                (None, Ok(())) => return Ok(self.now - begun),
                (None, Err(why)) if self.now - begun >= longest => return Err(why),
                (None, Err(_)) => {}
            }
        }
    }
}

fn live_rows(end: &UnitEnd) -> BTreeMap<(HostId, ApplicationId), Row> {
    let live = end.hosts().filter(|(_, cached)| cached.presence() == Presence::Live);
    live.flat_map(|(host, cached)| cached.table().rows().map(move |row| ((host, row.application), row.clone())))
        .collect()
}
