//! A group of hosts from one member's side: finds or becomes the leader, which tells the units of all members that they live.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use weir_identity::{HostId, Incarnation, Moment};

use crate::host::ToUnit;
use crate::message::{Beat, Body, GroupView, Message};
use crate::planted::{Bug, planted};
use crate::refusal::{Refusal, Refusals};
use crate::unit::BEATS_MAX;

/// What a member is told at its start.
#[derive(Debug, Clone)]
pub struct GroupSettings {
    /// The group's name.
    pub group: String,
    /// Who this member is.
    pub host: HostId,
    /// The other hosts that may be members.
    pub peers: BTreeSet<HostId>,
    /// Time between heartbeats: the same in the whole group.
    pub interval: Duration,
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has no leader, and beats for itself.
    Seeking,
    /// It sends its heartbeats to this leader.
    Following(HostId),
    /// It leads.
    Leading,
}

/// Where a member's message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// To all units there is a link to.
    Units,
    /// To another host of the group.
    Peer(HostId),
}

/// One member's end of its group.
#[derive(Debug)]
pub struct GroupEnd {
    settings: GroupSettings,
    role: Role,
    /// Since when it seeks, or may have been the only one to lead.
    since: Moment,
    /// Seeking: when it leads, if nobody else does. Following: when an unanswered leader is given up. Leading: when it passes on.
    due: Option<Moment>,
    peers: BTreeMap<HostId, Known>,
    /// Who may lead, as somebody said.
    hint: Option<HostId>,
    deputy: Option<HostId>,
    /// As its leader says.
    told_members: u16,
    linked: bool,
    /// It has said goodbye, and takes no part.
    left: bool,
    last: Option<Beat>,
    /// Heartbeats in a row that the leader has not answered.
    unanswered: u32,
    members: BTreeMap<HostId, Member>,
    /// Heartbeats that came since the last consolidated one, and when.
    pending: BTreeMap<HostId, (Moment, Beat)>,
    /// A host that does not follow: does it follow another leader?
    probed: Option<HostId>,
    /// Not before that is another one looked for, who is asked after as many heartbeats as there were in vain.
    probes: (Moment, u32),
    out: VecDeque<(To, Message)>,
    refusals: Refusals,
}

#[derive(Debug, Default)]
struct Known {
    linked: bool,
    view: Option<GroupView>,
    /// It was not to be had: it is not tried again before.
    shunned_until: Moment,
}

#[derive(Debug)]
struct Member {
    beat: Beat,
    heard: Moment,
}

impl GroupEnd {
    /// A member that looks for the leader.
    #[must_use]
    pub fn new(settings: GroupSettings, now: Moment) -> Self {
        let peers = settings.peers.iter().filter(|peer| **peer != settings.host);
        GroupEnd {
            role: Role::Seeking,
            since: now,
            due: Some(now),
            peers: peers.map(|peer| (*peer, Known::default())).collect(),
            hint: None,
            deputy: None,
            told_members: 0,
            linked: false,
            left: false,
            last: None,
            unanswered: 0,
            members: BTreeMap::new(),
            pending: BTreeMap::new(),
            probed: None,
            probes: (now, 0),
            out: VecDeque::new(),
            refusals: Refusals::default(),
            settings,
        }
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.settings.group
    }

    /// What it does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Who leads; none while that is being found out.
    #[must_use]
    pub fn leader(&self) -> Option<HostId> {
        match self.role {
            Role::Seeking => None,
            Role::Following(leader) => Some(leader),
            Role::Leading => Some(self.settings.host),
        }
    }

    /// Who leads after it.
    #[must_use]
    pub fn deputy(&self) -> Option<HostId> {
        self.deputy
    }

    /// How many the leader speaks for, itself included; 0 if there is none.
    #[must_use]
    pub fn members(&self) -> usize {
        match self.role {
            Role::Seeking => 0,
            Role::Following(_) => self.told_members.into(),
            Role::Leading => self.members.len() + 1,
        }
    }

    /// What was refused.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// The hosts that there is to be a link to. Changes with every message and timeout.
    #[must_use]
    pub fn wanted(&self, now: Moment) -> Vec<HostId> {
        match self.role {
            _ if self.left => Vec::new(),
            Role::Following(leader) => vec![leader],
            Role::Leading => self.members.keys().copied().chain(self.probed).collect(),
            Role::Seeking => {
                let free = |peer: &HostId| self.peers.get(peer).is_some_and(|known| known.shunned_until <= now);
                let others = self.peers.keys().copied().filter(|peer| Some(*peer) != self.hint);
                // One after the other: mostly the first is the leader, and a farm that starts is busy.
                let tried = now.since(self.since).as_millis() / self.tries_next().as_millis().max(1);
                let tried = usize::try_from(tried).unwrap_or(usize::MAX).saturating_add(1);
                self.hint.into_iter().chain(others).filter(free).take(tried.min(TRIED_AT_ONCE)).collect()
            }
        }
    }

    /// There is a link to a unit, or none any more.
    pub fn handle_units(&mut self, linked: bool, now: Moment) {
        if std::mem::replace(&mut self.linked, linked) == linked || self.left {
            return;
        }
        if !linked && self.role == Role::Leading {
            // Whoever cannot reach a unit is of no use to the others.
            self.seek(now);
            self.hint = self.deputy;
        }
        self.announce();
    }

    /// There is a link to a host of the group now.
    pub fn handle_link_up(&mut self, peer: HostId, now: Moment) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        (known.linked, known.shunned_until) = (true, now);
        self.probes = (now, 0);
        self.members.remove(&peer);
        if !self.left {
            self.send_view(peer, true, 0);
        }
    }

    /// The link to a host of the group is down, or could not be made.
    pub fn handle_link_down(&mut self, peer: HostId, now: Moment) {
        if self.wanted(now).contains(&peer) {
            self.shun(peer, now);
        } else if let Some(known) = self.peers.get_mut(&peer) {
            // One of the two has given it up: that is no reason not to want it again.
            (known.linked, known.view) = (false, None);
        }
        self.members.remove(&peer);
        if self.role == Role::Following(peer) && !self.left {
            self.lose(now);
        }
        if self.probed == Some(peer) {
            self.probed = None;
            let (_, in_vain) = self.probes;
            self.probes = (now.after(self.settings.interval * in_vain), (in_vain + 1).min(PROBES_REST));
        }
    }

    /// Takes what the host's end wants to send to units; what is left goes to them.
    pub fn route(&mut self, out: ToUnit, now: Moment) -> Option<ToUnit> {
        match &out.message.body {
            Body::Heartbeat(beats) if out.unit.is_none() => {
                let direct = beats.first().is_none_or(|beat| self.beat(beat.clone(), now));
                direct.then_some(out)
            }
            Body::Goodbye if out.unit.is_none() => {
                self.leave(&out.message);
                Some(out)
            }
            _ => Some(out),
        }
    }

    /// Takes another host's message. The driver has proven who it is, and that it may be a member.
    ///
    /// # Errors
    /// Why it changed nothing; it is counted.
    pub fn handle(&mut self, from: HostId, message: Message, now: Moment) -> Result<(), Refusal> {
        let taken = self.take(from, message, now);
        if let Err(refusal) = &taken {
            self.refusals.count(refusal);
        }
        taken
    }

    fn take(&mut self, from: HostId, message: Message, now: Moment) -> Result<(), Refusal> {
        let Some(known) = self.peers.get_mut(&from) else { return Err(Refusal::WrongHost(from)) };
        known.linked = true;
        if self.left {
            return Err(Refusal::Unknown);
        }
        match message.body {
            Body::Group(view) => {
                if view.group != self.settings.group {
                    return Err(Refusal::WrongHost(from));
                }
                let asks = view.asks;
                known.view = Some(view.clone());
                if self.role == Role::Following(from)
                    && self.last.as_ref().is_some_and(|last| last.sequence <= message.sequence)
                {
                    self.unanswered = 0;
                    self.due = None;
                }
                self.consider(from, &view, now);
                if asks {
                    self.send_view(from, false, 0);
                }
                Ok(())
            }
            Body::Heartbeat(beats) => beats.into_iter().try_for_each(|beat| self.take_beat(from, beat, now)),
            Body::Goodbye => {
                if let Some(Member { beat, .. }) = self.members.remove(&from)
                    && beat.incarnation == message.incarnation
                {
                    let voucher = Some(self.settings.host);
                    let beat = Beat { sequence: message.sequence, voucher, leaving: true, ..beat };
                    self.pending.insert(from, (now, beat));
                    self.flush(now);
                    self.announce();
                }
                if self.role == Role::Following(from) {
                    self.shun(from, now);
                    self.lose(now);
                }
                Ok(())
            }
            body => Err(Refusal::WrongWay(body.kind())),
        }
    }

    /// When [`GroupEnd::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.due
    }

    /// Time has come for something.
    pub fn handle_timeout(&mut self, now: Moment) {
        if self.due.is_none_or(|due| due > now) || self.left {
            return;
        }
        match self.role {
            Role::Seeking => {
                self.due = Some(now.after(self.tries_next()));
                let waited = now.since(self.since);
                let expects = waited < self.settings.interval * 3 && self.expects_leader(now);
                if self.linked && waited >= self.settings.interval && !expects {
                    self.lead(now);
                }
            }
            Role::Following(leader) => {
                self.due = None;
                self.shun(leader, now);
                self.lose(now);
            }
            Role::Leading => self.flush(now),
        }
    }

    /// The next message to be sent.
    pub fn poll_transmit(&mut self) -> Option<(To, Message)> {
        self.out.pop_front()
    }

    /// Takes its own heartbeat; true if it goes to the units itself.
    fn beat(&mut self, beat: Beat, now: Moment) -> bool {
        let forward = beat.forward;
        self.last = Some(beat.clone());
        self.left = false;
        match self.role {
            Role::Leading => {
                self.pending.insert(self.settings.host, (now, beat));
                let late = self.settings.interval * MEMBER_BEATS;
                self.members.retain(|_, member| now.since(member.heard) < late);
                if planted(Bug::LeaderMakesUp) {
                    for (host, member) in &mut self.members {
                        member.beat.sequence += 1;
                        self.pending.insert(*host, (now, member.beat.clone()));
                    }
                }
                self.flush(now);
                self.probe(now);
                false
            }
            Role::Following(leader) => {
                self.unanswered += 1;
                if self.unanswered == 2 && !planted(Bug::LeaderNotMissed) {
                    self.due = Some(now.after(self.settings.interval / 2));
                }
                self.send(To::Peer(leader), Body::Heartbeat(vec![beat]));
                forward || (self.unanswered > 1 && !planted(Bug::LeaderNotMissed))
            }
            Role::Seeking => {
                if self.due.is_none() {
                    self.seek(now);
                }
                let linked: Vec<HostId> = self.linked_peers().collect();
                linked.into_iter().for_each(|peer| self.send_view(peer, true, 0));
                self.post(beat);
                self.linked && (forward || !planted(Bug::NoLeaderNoBeat))
            }
        }
    }

    /// A host that reaches neither unit nor leader has another host pass its heartbeat on.
    fn post(&mut self, beat: Beat) {
        if self.linked {
            return;
        }
        let helps = |peer: &HostId| {
            let view = self.peers[peer].view.as_ref();
            view.is_some_and(|view| view.linked || view.leader.is_some_and(|leader| leader != self.settings.host))
        };
        let helper = self.linked_peers().find(helps);
        if let Some(peer) = helper {
            self.send(To::Peer(peer), Body::Heartbeat(vec![Beat { forward: true, ..beat }]));
        }
    }

    fn take_beat(&mut self, from: HostId, beat: Beat, now: Moment) -> Result<(), Refusal> {
        let (host, sequence) = (beat.host, beat.sequence);
        let known = self.peers.contains_key(&host) && (host == from || beat.forward);
        if !known || beat.voucher.is_some() {
            return Err(Refusal::WrongHost(host));
        }
        match self.role {
            Role::Leading => {
                let before = self.members.get(&host).map(|member| &member.beat);
                if let Some(before) = before
                    && (beat.incarnation, sequence) <= (before.incarnation, before.sequence)
                {
                    return Err(Refusal::Replayed { host, sequence, known: before.sequence });
                }
                let new = before.is_none();
                let at_once = new || beat.forward || beat.generation != self.members[&host].beat.generation;
                self.pending.insert(host, (now, Beat { forward: false, ..beat.clone() }));
                self.members.insert(host, Member { beat, heard: now });
                if at_once || self.pending.len() >= BEATS_MAX {
                    self.flush(now);
                } else if self.due.is_none() {
                    self.due = Some(now.after(self.settings.interval / PASSED_ON_IN));
                }
            }
            // It asks to be passed on, or takes this one for a leader.
            Role::Following(leader) if host == from && host != leader && beat.forward => {
                self.send(To::Peer(leader), Body::Heartbeat(vec![beat]));
            }
            Role::Seeking if host == from && beat.forward && self.linked => {
                self.send(To::Units, Body::Heartbeat(vec![Beat { forward: false, ..beat }]));
            }
            _ => {
                self.send_view(from, false, 0);
                return Ok(());
            }
        }
        if host == from {
            self.send_view(from, false, sequence);
        }
        Ok(())
    }

    /// What another host says of the leader may change whom this one follows.
    fn consider(&mut self, from: HostId, view: &GroupView, now: Moment) {
        let own = self.settings.host;
        let leads = view.leader == Some(from) && view.linked;
        match self.role {
            Role::Following(leader) if leader == from => {
                (self.deputy, self.told_members) = (view.deputy, view.members);
                if !leads {
                    self.hint = view.leader.filter(|leader| *leader != own);
                    if self.hint.is_some() {
                        self.deputy = None;
                    }
                    self.lose(now);
                }
            }
            Role::Following(_) => {}
            Role::Seeking if leads => self.follow(from, now),
            Role::Seeking => {
                let free = |leader: &HostId| self.peers.get(leader).is_some_and(|known| known.shunned_until <= now);
                if let Some(leader) = view.leader.filter(free) {
                    self.hint = Some(leader);
                }
            }
            // Of two leaders the one with the lower number stays.
            Role::Leading if leads && from < own => {
                if !planted(Bug::LeadersStay) {
                    self.follow(from, now);
                    self.announce();
                }
            }
            Role::Leading => {
                let other = view.leader.filter(|leader| self.peers.contains_key(leader) && *leader != from);
                self.probed = other.or(self.probed);
                if let Some(other) = other.filter(|other| self.peers[other].linked) {
                    self.send_view(other, true, 0);
                }
            }
        }
    }

    /// Is somebody else about to lead, or said to?
    fn expects_leader(&self, now: Moment) -> bool {
        // Two that were each told that the other one is next would wait for each other.
        let seeks = |known: &Known| known.view.as_ref().is_some_and(|view| view.leader.is_none());
        let tried =
            |peer: HostId| self.peers.get(&peer).is_some_and(|known| known.shunned_until <= now && !seeks(known));
        let lower = |(peer, known): (&HostId, &Known)| {
            let could = known.view.as_ref().is_some_and(|view| view.linked && view.leader.is_none());
            *peer < self.settings.host && known.linked && could
        };
        self.hint.is_some_and(tried) || self.peers.iter().any(lower)
    }

    fn lead(&mut self, now: Moment) {
        (self.role, self.since, self.due, self.hint) = (Role::Leading, now, None, None);
        self.members.clear();
        self.announce();
        if let Some(last) = self.last.clone() {
            self.pending.insert(self.settings.host, (now, last));
            self.flush(now);
        }
    }

    fn follow(&mut self, leader: HostId, now: Moment) {
        self.flush(now);
        (self.role, self.since, self.due, self.hint) = (Role::Following(leader), now, None, None);
        (self.unanswered, self.probed) = (1, None);
        self.members.clear();
        if let Some(last) = self.last.clone() {
            self.send(To::Peer(leader), Body::Heartbeat(vec![last]));
        }
    }

    /// The leader is lost: the deputy is next, and until there is another one this host beats for itself.
    fn lose(&mut self, now: Moment) {
        let next = self.deputy.take();
        self.seek(now);
        if next == Some(self.settings.host) && self.linked {
            self.lead(now);
            return;
        }
        self.hint =
            self.hint.or(next.filter(|next| self.peers.get(next).is_some_and(|known| known.shunned_until <= now)));
        if let Some(last) = self.last.clone() {
            if self.linked && !planted(Bug::NoLeaderNoBeat) {
                self.send(To::Units, Body::Heartbeat(vec![last]));
            } else {
                self.post(last);
            }
        }
    }

    fn seek(&mut self, now: Moment) {
        self.flush(now);
        (self.role, self.since) = (Role::Seeking, now);
        self.due = Some(now.after(self.tries_next()));
        (self.unanswered, self.probed) = (0, None);
        self.members.clear();
    }

    /// A host that seeks its leader tries one more after so long.
    fn tries_next(&self) -> Duration {
        self.settings.interval / TRIED_NEXT
    }

    fn shun(&mut self, peer: HostId, now: Moment) {
        if let Some(known) = self.peers.get_mut(&peer) {
            (known.linked, known.view) = (false, None);
            known.shunned_until = now.after(self.settings.interval * SHUNNED);
        }
        if self.hint == Some(peer) {
            self.hint = None;
        }
    }

    /// Says goodbye to the leader, or to those that follow.
    fn leave(&mut self, goodbye: &Message) {
        let to: Vec<HostId> = match self.role {
            Role::Following(leader) => vec![leader],
            Role::Leading => self.linked_peers().collect(),
            Role::Seeking => Vec::new(),
        };
        self.out.extend(to.into_iter().map(|peer| (To::Peer(peer), goodbye.clone())));
        (self.role, self.due, self.last, self.left) = (Role::Seeking, None, None, true);
        self.members.clear();
        self.pending.clear();
    }

    /// Sends the consolidated heartbeat.
    fn flush(&mut self, now: Moment) {
        if self.role != Role::Leading {
            return;
        }
        self.due = None;
        // What lay here while this host could not run is no sign of life any more.
        let fresh = |(at, _): &(Moment, Beat)| {
            now.since(*at) <= self.settings.interval / PASSED_ON_IN * 2 || planted(Bug::LeaderPassesOld)
        };
        let beats: Vec<Beat> =
            std::mem::take(&mut self.pending).into_values().filter(fresh).map(|(_, beat)| beat).collect();
        for beats in beats.chunks(BEATS_MAX) {
            self.send(To::Units, Body::Heartbeat(beats.to_vec()));
        }
    }

    /// Looks for another leader: asks one after another of those that do not follow.
    fn probe(&mut self, now: Moment) {
        let awaits =
            |peer: HostId| self.peers.get(&peer).is_some_and(|known| !known.linked && known.shunned_until <= now);
        if self.probed.is_some_and(awaits) || now < self.probes.0 {
            // Somebody who is slow has as much to do as all others who begin; to ask yet another one would make it more.
            return;
        }
        let after = self.probed.unwrap_or(HostId(0));
        let candidate =
            |(peer, known): &(&HostId, &Known)| known.shunned_until <= now && !self.members.contains_key(*peer);
        let mut others = self.peers.iter().filter(candidate).map(|(peer, _)| *peer);
        let first = others.clone().next();
        self.probed = others.find(|peer| *peer > after).or(first);
        if let Some(peer) = self.probed.filter(|peer| self.peers[peer].linked) {
            self.send_view(peer, true, 0);
        }
    }

    fn linked_peers(&self) -> impl Iterator<Item = HostId> {
        self.peers.iter().filter(|(_, known)| known.linked).map(|(peer, _)| *peer)
    }

    fn announce(&mut self) {
        let linked: Vec<HostId> = self.linked_peers().collect();
        linked.into_iter().for_each(|peer| self.send_view(peer, false, 0));
    }

    fn send_view(&mut self, to: HostId, asks: bool, sequence: u64) {
        if self.role == Role::Leading {
            let could = |peer: &&HostId| self.peers[*peer].view.as_ref().is_some_and(|view| view.linked);
            let deputy = self.members.keys().find(could).copied();
            if std::mem::replace(&mut self.deputy, deputy) != deputy {
                // The deputy has to know, and nobody may wait for one that does not.
                self.announce();
            }
        }
        let members = u16::try_from(self.members()).unwrap_or(u16::MAX);
        let (group, linked, leader) = (self.settings.group.clone(), self.linked, self.leader());
        let view = GroupView { group, linked, asks, leader, deputy: self.deputy, members };
        let host = self.settings.host;
        let message = Message { host, incarnation: Incarnation(0), sequence, body: Body::Group(view) };
        self.out.push_back((To::Peer(to), message));
    }

    fn send(&mut self, to: To, body: Body) {
        let (host, incarnation) = (self.settings.host, Incarnation(0));
        self.out.push_back((to, Message { host, incarnation, sequence: 0, body }));
    }
}

/// So many hosts are tried at once by one that seeks its leader.
const TRIED_AT_ONCE: usize = 3;
/// Within that part of a heartbeat's time it tries one more.
const TRIED_NEXT: u32 = 2;
/// A host that was not to be had is not tried again for so many heartbeats.
const SHUNNED: u32 = 10;
/// A leader that finds nobody rests for no longer than so many heartbeats before it looks for another one.
const PROBES_REST: u32 = 4;
/// A member that has been silent for so many heartbeats is none any more.
const MEMBER_BEATS: u32 = 3;
/// Within that part of a heartbeat's time the leader passes on what it has got.
const PASSED_ON_IN: u32 = 3;
