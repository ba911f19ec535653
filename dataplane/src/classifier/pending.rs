//! Where packets wait while their flow's decision is pending: bounded in flows and in packets.

use std::collections::VecDeque;

use hashbrown::HashMap;
use weir_identity::{Moment, Ticket};

use crate::flow::Key;
use crate::plumbing::{Ask, Question};

/// Flows that wait, each with its packets in order.
#[derive(Debug)]
pub(super) struct Pending<H> {
    flows: HashMap<Key, Ticket, foldhash::fast::RandomState>,
    waiting: HashMap<Ticket, Waiting<H>, foldhash::fast::RandomState>,
    deadlines: VecDeque<(Moment, Ticket)>,
    packets: usize,
    limit: usize,
}

/// One flow's wait.
#[derive(Debug)]
pub(super) struct Waiting<H> {
    /// What the first packet asked.
    pub(super) ask: Ask,
    /// Index of the flow's service.
    pub(super) service: usize,
    /// The packets, the first one at the front.
    pub(super) held: Vec<H>,
}

impl<H> Pending<H> {
    pub(super) fn new(limit: usize) -> Self {
        Self { flows: HashMap::default(), waiting: HashMap::default(), deadlines: VecDeque::new(), packets: 0, limit }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Puts a packet behind the others of its flow, if the flow waits.
    ///
    /// `Err` gives the packet back: its flow does not wait (`false`), or there is no room (`true`).
    pub(super) fn join(&mut self, question: Question<H>) -> Result<(), (bool, Question<H>)> {
        let Some(ticket) = self.flows.get(&question.ask.key) else {
            return Err((false, question));
        };
        let Some(waiting) = self.waiting.get_mut(ticket) else {
            return Err((false, question));
        };
        if self.packets >= self.limit || waiting.held.len() >= PACKETS_PER_FLOW {
            return Err((true, question));
        }
        self.packets += 1;
        waiting.held.push(question.held);
        Ok(())
    }

    /// Begins a flow's wait; gives the packet back if there is no room.
    pub(super) fn wait(
        &mut self,
        ticket: Ticket,
        question: Question<H>,
        service: usize,
        now: Moment,
    ) -> Result<(), Question<H>> {
        if self.packets >= self.limit {
            return Err(question);
        }
        self.packets += 1;
        let Question { ask, held } = question;
        self.flows.insert(ask.key, ticket);
        self.waiting.insert(ticket, Waiting { ask, service, held: vec![held] });
        self.deadlines.push_back((now.after(PATIENCE), ticket));
        Ok(())
    }

    /// A flow's wait goes on for another answer, under another ticket.
    pub(super) fn wait_on(&mut self, ticket: Ticket, waiting: Waiting<H>, now: Moment) {
        self.packets += waiting.held.len();
        self.flows.insert(waiting.ask.key, ticket);
        self.waiting.insert(ticket, waiting);
        self.deadlines.push_back((now.after(PATIENCE), ticket));
    }

    /// Ends the wait that this ticket names.
    pub(super) fn finish(&mut self, ticket: Ticket) -> Option<Waiting<H>> {
        let waiting = self.waiting.remove(&ticket)?;
        self.flows.remove(&waiting.ask.key);
        self.packets -= waiting.held.len();
        // Answers come faster than deadlines pass: the queue must not grow with them.
        while self.deadlines.front().is_some_and(|(_, ticket)| !self.waiting.contains_key(ticket)) {
            self.deadlines.pop_front();
        }
        Some(waiting)
    }

    /// The next flow whose answer has not come in time.
    pub(super) fn overdue(&mut self, now: Moment) -> Option<Waiting<H>> {
        while let Some(&(deadline, ticket)) = self.deadlines.front() {
            if deadline > now {
                return None;
            }
            self.deadlines.pop_front();
            if let Some(waiting) = self.finish(ticket) {
                return Some(waiting);
            }
        }
        None
    }
}

/// A flow that is a window ahead of its decision is not waiting for us alone.
const PACKETS_PER_FLOW: usize = 16;

/// A client repeats its SYN after a second; no answer that comes later helps it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Key4, protocol};

    fn question(client: u16, held: u32) -> Question<u32> {
        let [high, low] = client.to_be_bytes();
        let key = Key4 {
            source: [10, 0, high, low],
            destination: [10, 9, 0, 1],
            ports: [1, 1, 0, 80],
            protocol: protocol::TCP,
        };
        let ask = Ask { key: Key::V4(key), client: client.into(), opens: true, closes: false, zombie: false };
        Question { ask, held }
    }

    #[test]
    fn packets_gather_in_order_up_to_both_limits() {
        let mut pending = Pending::new(20);
        pending.wait(Ticket(1), question(1, 0), 0, Moment(0)).unwrap();
        for held in 1..16 {
            pending.join(question(1, held)).unwrap();
        }
        let refused =
            |result: Result<(), (bool, Question<u32>)>| result.map_err(|(full, question)| (full, question.held));
        assert_eq!(refused(pending.join(question(1, 16))), Err((true, 16)), "sixteen of one flow");
        assert_eq!(refused(pending.join(question(2, 17))), Err((false, 17)), "nothing to wait behind");
        for client in 2..6 {
            pending.wait(Ticket(client.into()), question(client, 0), 0, Moment(0)).unwrap();
        }
        assert_eq!(pending.wait(Ticket(9), question(9, 18), 0, Moment(0)).map_err(|question| question.held), Err(18));
        assert_eq!(refused(pending.join(question(2, 19))), Err((true, 19)), "twenty of all flows");
        assert_eq!(pending.finish(Ticket(1)).unwrap().held, (0..16).collect::<Vec<_>>());
        assert!(pending.finish(Ticket(1)).is_none());
        pending.join(question(2, 20)).unwrap();
        assert_eq!(pending.finish(Ticket(2)).unwrap().held, [0, 20]);
    }

    #[test]
    fn patience_ends_in_the_order_of_the_questions() {
        let mut pending = Pending::new(8);
        for n in 1..=4u16 {
            pending.wait(Ticket(n.into()), question(n, n.into()), 0, Moment(u64::from(n) * 10)).unwrap();
        }
        pending.finish(Ticket(2)).unwrap();
        // It goes on waiting for another answer, and gets new patience.
        let waiting = pending.finish(Ticket(1)).unwrap();
        pending.wait_on(Ticket(5), waiting, Moment(50));
        let mut overdue = |now| pending.overdue(Moment(now)).map(|waiting| waiting.held[0]);
        assert_eq!(overdue(1_029), None);
        assert_eq!((overdue(1_030), overdue(1_030)), (Some(3), None));
        assert_eq!((overdue(1_049), overdue(1_049)), (Some(4), None));
        assert_eq!((overdue(1_050), overdue(9_999)), (Some(1), None));
        assert!(pending.is_empty() && pending.packets == 0);
    }

    #[test]
    fn quick_answers_leave_nothing_behind() {
        let mut pending = Pending::new(4);
        for n in 0..10_000u64 {
            pending.wait(Ticket(n), question(1, 0), 0, Moment(0)).unwrap();
            pending.finish(Ticket(n)).unwrap();
        }
        assert!(pending.deadlines.is_empty() && pending.is_empty());
    }
}
