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
