//! What goes wrong in the simulated world: nodes that stop, sleep and lie, ways that are cut, tables that change, messages that come again.

use weir_health_load::{Directive, Health};
use weir_identity::{ApplicationId, HostId, Incarnation, Moment};

use super::{Event, Node, World, claims};
use crate::simulator::plan::Dice;
use crate::{Beat, Body, HostEnd, Identity, Message, Operation, RowError, Status, decode, encode};

impl World {
    /// Something happens.
    pub(super) fn wreak(&mut self) {
        let host = u32::try_from(self.dice.roll(self.plan.hosts.into())).unwrap();
        let unit = u32::try_from(self.dice.roll(self.plan.units.into())).unwrap();
        let node = if self.dice.per_mille(700) { Node::Host(host) } else { Node::Unit(unit) };
        let while_ms = self.dice.roll(9_000);
        match self.dice.roll(100) {
            0..=2 => {
                self.stop(node);
                self.at(while_ms, Event::Start(node));
            }
            3..=5 => {
                let other = u32::try_from(self.dice.roll(self.plan.units.into())).unwrap();
                let peer = u32::try_from(self.dice.roll(self.plan.hosts.into())).unwrap();
                let among_hosts = self.plan.group > 1 && self.dice.per_mille(300);
                let other = if among_hosts { Node::Host(peer) } else { Node::Unit(other) };
                if !self.cuts.remove(&(node.min(other), node.max(other))) && node != other {
                    self.cuts.insert((node.min(other), node.max(other)));
                }
            }
            6 => self.cuts.clear(),
            7 if self.is_up(node) => {
                self.paused.insert(node);
                self.at(while_ms, Event::Resume(node));
            }
            8 => {
                let leap = i64::try_from(self.dice.roll(4_000_000)).unwrap() - 2_000_000;
                self.hosts[usize::try_from(host).unwrap()].clock = leap.max(-900_000);
            }
            9 => {
                let Some(end) = &mut self.hosts[usize::try_from(host).unwrap()].end else { return };
                end.goodbye();
                self.hosts[usize::try_from(host).unwrap()].over.get_or_insert(self.now);
                self.flush(Node::Host(host));
                if self.dice.per_mille(700) {
                    self.at(while_ms, Event::Start(Node::Host(host)));
                    if self.dice.per_mille(500) {
                        self.stop(Node::Host(host));
                    }
                }
            }
            10..=13 => self.replay(),
            14..=15 if self.plan.group > 1 => self.lie(host),
            14..=15 => self.replay(),
            _ if self.paused.contains(&Node::Host(host)) => {}
            16..=40 => self.touch(host, |end, application, dice, now| {
                let target = dice.pick(&[Directive::Active, Directive::Draining, Directive::Inactive]);
                end.direct(application, target, now)
            }),
            41..=46 => self.touch(host, |end, application, _, _| end.deregister(application)),
            47..=54 => self.touch(host, |end, application, dice, _| {
                let identity = Identity { detail: format!("{}", dice.roll(5)), ..Identity::default() };
                end.register(application, identity, 50, Directive::Active)
            }),
            _ => self.touch(host, |end, application, dice, _| {
                let health = dice.pick(&[Health::Healthy, Health::Failing, Health::Unknown]);
                let capacity = u8::try_from(dice.roll(100)).unwrap();
                let load = u8::try_from(dice.roll(u64::from(capacity) + 1)).unwrap();
                end.report(application, Status { health, load, capacity })
            }),
        }
    }

    fn touch(
        &mut self,
        host: u32,
        change: impl FnOnce(&mut HostEnd, ApplicationId, &mut Dice, Moment) -> Result<(), RowError>,
    ) {
        let application = ApplicationId(u32::try_from(self.dice.roll(u64::from(self.plan.applications) + 2)).unwrap());
        let now = Moment(self.now);
        let simulated = &mut self.hosts[usize::try_from(host).unwrap()];
        let Some(end) = &mut simulated.end else { return };
        if end.table().row(application).is_none() {
            // What is registered anew was never another directive's.
            simulated.currents.remove(&application);
            simulated.settled.remove(&application);
        }
        // A row that is not there, or there already, is no fault of the protocol.
        let _ = change(end, application, &mut self.dice, now);
        if end.table().row(application).is_none() {
            simulated.currents.remove(&application);
            simulated.settled.remove(&application);
        }
        self.flush(Node::Host(host));
    }

    /// An old message comes again, on whatever connection there is between the two; or from somebody else.
    fn replay(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let at = self.dice.roll(self.recorded.len().try_into().unwrap());
        let (from, to, bytes) = self.recorded[usize::try_from(at).unwrap()].clone();
        if self.paused.contains(&to) {
            return;
        }
        if let (Node::Host(_), Node::Unit(_), true) = (from, to, self.dice.per_mille(500)) {
            let other = u32::try_from(self.dice.roll(self.plan.hosts.into())).unwrap();
            self.seem_alive(Node::Host(other), to, &bytes);
            self.deliver(Node::Host(other), to, &bytes);
        } else {
            self.seem_alive(from, to, &bytes);
            self.deliver(from, to, &bytes);
        }
    }

    /// It may be a last sign of life that comes so late: nobody can know, and the dead are live for as long as after any other.
    fn seem_alive(&mut self, from: Node, to: Node, bytes: &[u8]) {
        let Ok(Message { body: Body::Heartbeat(beats), .. }) = decode(bytes) else { return };
        for beat in beats {
            let said = claims(from, self.plan.group);
            let is_heard =
                matches!(from, Node::Unit(_)) || said.hosts.contains(&beat.host) || said.vouches_for(beat.host);
            let voucher = match from {
                Node::Host(leader) => Some(HostId(leader)).filter(|leader| *leader != beat.host),
                Node::Unit(_) => beat.voucher,
            };
            let is_news = match to {
                // A leader forgets its members' counters with them.
                Node::Host(_) => true,
                Node::Unit(unit) => {
                    let end = self.units[usize::try_from(unit).unwrap()].end.as_ref();
                    let cached = end.and_then(|end| end.host(beat.host));
                    cached.is_none_or(|cached| {
                        let known = voucher.map_or(0, |voucher| cached.vouched(voucher)).max(cached.sequence);
                        (beat.incarnation, beat.sequence) > (cached.incarnation, known)
                    })
                }
            };
            if let (true, Some(over)) =
                (is_heard && is_news, &mut self.hosts[usize::try_from(beat.host.0).unwrap()].over)
            {
                *over = self.now;
            }
        }
    }

    /// A host says of another one of its group what is not so.
    fn lie(&mut self, host: u32) {
        let first = host / self.plan.group * self.plan.group;
        let about = first + u32::try_from(self.dice.roll(self.plan.group.into())).unwrap();
        let about = about.min(self.plan.hosts - 1);
        let Some(truth) = self.hosts[usize::try_from(about).unwrap()].end.as_ref() else { return };
        let (host_id, incarnation, sequence) = (HostId(about), truth.incarnation(), truth.sequence());
        let later =
            if self.dice.per_mille(500) { incarnation } else { Incarnation(incarnation.0 + self.dice.roll(1 << 30)) };
        let beat = Beat {
            host: host_id,
            incarnation: later,
            // Not much more: it may be an honest leader later, and nobody forgets its words.
            sequence: sequence + self.dice.roll(8),
            generation: self.dice.roll(1 << 40),
            digest: self.dice.roll(u64::MAX),
            rows: 3,
            interval_ms: 1_000,
            forward: false,
            voucher: None,
            leaving: false,
            name: None,
        };
        let operation = Operation::Delete { application: ApplicationId(0), version: 1 << 40 };
        let (body, sequence) = match self.dice.roll(4) {
            0 => (Body::Goodbye, 1 << 40),
            1 => (Body::RowChange { generation: 1 << 40, operations: vec![operation] }, 1 << 40),
            _ => (Body::Heartbeat(vec![beat]), 0),
        };
        let bytes = encode(&Message { host: host_id, incarnation, sequence, body });
        if about != host {
            for unit in 0..self.plan.units {
                if !self.paused.contains(&Node::Unit(unit)) {
                    self.deliver(Node::Host(host), Node::Unit(unit), &bytes);
                }
            }
            // A dead host may seem to live for as long as somebody says so.
            if let Some(over) = &mut self.hosts[usize::try_from(about).unwrap()].over {
                *over = self.now;
            }
        }
    }
}
