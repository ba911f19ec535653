//! A core: the loop that runs shards and classifiers, and how they come to it and leave it.
//!
//! The loop itself belongs to whoever has a thread and a clock; here is one turn of it. Commands come over a channel and are looked
//! at between two turns.

mod giving;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Cache};
use crossbeam::channel::Receiver;
use weir_cpu::MapError;
use weir_identity::{EndpointId, Moment};

pub use self::giving::{Giver, Taker, giving};
use crate::classifier::Classifier;
use crate::counters::ClassifierCounters;
use crate::farm::Farm;
use crate::packet::{BURST, Queue};
use crate::plumbing::{Question, Reply};
use crate::populate::Populate;
use crate::shard::{Held, Shard, ShardLink};

/// What a core runs.
pub struct Core<Q: Queue> {
    shards: Vec<Shard<Q>>,
    classifiers: Vec<ClassifierSeat<Q::Packet>>,
    commands: Receiver<Command<Q>>,
    farm: Cache<Arc<ArcSwap<Farm>>, Arc<Farm>>,
    generation: u64,
    revision: u64,
}

/// What can be asked of a core.
pub enum Command<Q: Queue> {
    /// Run this shard from now on.
    AddShard(Box<Shard<Q>>),
    /// Give the shard with this number away.
    TakeShard(usize, Giver<Box<Shard<Q>>>),
    /// Run this classifier from now on.
    AddClassifier(Box<ClassifierSeat<Q::Packet>>),
    /// Give the classifier with this number away.
    TakeClassifier(usize, Giver<Box<ClassifierSeat<Q::Packet>>>),
    /// Look into the shard with this number; what is done must be short. Dropped if the shard is not here (any more).
    Visit(usize, Look<Q>),
    /// End.
    Stop,
}

/// What is done with a shard on its own core.
pub type Look<Q> = Box<dyn FnOnce(&Shard<Q>, Moment) + Send>;

/// How a turn went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Packets and messages dealt with; 0 if there was nothing to do.
    Worked(usize),
    /// A stop was ordered.
    Stopped,
}

impl<Q: Queue> Core<Q> {
    /// A core without anything to run yet.
    #[must_use]
    pub fn new(commands: Receiver<Command<Q>>, farm: Arc<ArcSwap<Farm>>) -> Self {
        Self {
            shards: Vec::new(),
            classifiers: Vec::new(),
            commands,
            farm: Cache::new(farm),
            generation: 0,
            revision: 0,
        }
    }

    /// One round over everything that it runs.
    pub fn turn(&mut self, now: Moment) -> Turn {
        while let Ok(command) = self.commands.try_recv() {
            if self.obey(command, now) == Turn::Stopped {
                return Turn::Stopped;
            }
        }
        self.refresh_farm();
        let mut work = 0;
        for shard in &mut self.shards {
            work += shard.turn(now);
        }
        for classifier in &mut self.classifiers {
            work += classifier.turn(now);
        }
        Turn::Worked(work)
    }

    /// Changes whenever a shard comes or goes: then other queues are to be waited for.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The receive queues of all its shards, the twins' included.
    pub fn queues(&self) -> impl Iterator<Item = &Q> {
        self.shards.iter().flat_map(Shard::queues)
    }

    /// The numbers of the shards that it runs.
    pub fn shards(&self) -> impl Iterator<Item = usize> + '_ {
        self.shards.iter().map(Shard::number)
    }

    /// Gives everything away that it runs.
    #[must_use]
    pub fn into_parts(self) -> (Vec<Shard<Q>>, Vec<ClassifierSeat<Q::Packet>>) {
        (self.shards, self.classifiers)
    }

    fn refresh_farm(&mut self) {
        let farm = self.farm.load();
        if farm.generation != self.generation {
            self.generation = farm.generation;
            let farm = Arc::clone(farm);
            self.shards.iter_mut().for_each(|shard| shard.set_farm(&farm));
            self.classifiers.iter_mut().for_each(|seat| seat.classifier.set_farm(Arc::clone(&farm)));
        }
    }

    fn obey(&mut self, command: Command<Q>, now: Moment) -> Turn {
        self.revision += u64::from(matches!(command, Command::AddShard(_) | Command::TakeShard(..)));
        match command {
            Command::AddShard(shard) => {
                self.shards.push(*shard);
                self.generation = 0; // so that it gets the newest farm
            }
            Command::AddClassifier(seat) => {
                self.classifiers.push(*seat);
                self.generation = 0;
            }
            Command::TakeShard(number, to) => {
                if let Some(index) = self.shards.iter().position(|shard| shard.number() == number) {
                    // If nobody waits for it any more, it stays.
                    if let Err(back) = to.give(Box::new(self.shards.swap_remove(index))) {
                        self.shards.push(*back);
                    }
                }
            }
            Command::TakeClassifier(number, to) => {
                if let Some(index) = self.classifiers.iter().position(|seat| seat.number == number)
                    && let Err(back) = to.give(Box::new(self.classifiers.swap_remove(index)))
                {
                    self.classifiers.push(*back);
                }
            }
            Command::Visit(number, visit) => {
                if let Some(shard) = self.shards.iter().find(|shard| shard.number() == number) {
                    visit(shard, now);
                }
            }
            Command::Stop => return Turn::Stopped,
        }
        Turn::Worked(0)
    }
}

/// A classifier with its rings.
pub struct ClassifierSeat<P> {
    number: usize,
    classifier: Classifier<Held<P>>,
    shards: Vec<ShardLink<P>>,
    /// Answers that found their ring full; in order, and before anything newer.
    backlog: VecDeque<Reply<Held<P>>>,
    batch: Vec<Question<Held<P>>>,
    published: Arc<PublishedClassifier>,
    last_published: Moment,
}

/// A classifier's counters where other threads can read them; the classifier writes, everybody reads.
#[derive(Debug)]
pub struct PublishedClassifier {
    counters: Vec<AtomicU64>,
    chosen: Vec<AtomicU64>,
    refused: Vec<AtomicU64>,
}

impl PublishedClassifier {
    fn new(endpoints: usize, services: usize) -> Self {
        let zeros = |count| std::iter::repeat_with(AtomicU64::default).take(count).collect();
        Self { counters: zeros(ClassifierCounters::NAMES.len()), chosen: zeros(endpoints), refused: zeros(services) }
    }

    /// Counters with their names.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ClassifierCounters::NAMES.iter().copied().zip(self.counters.iter().map(|value| value.load(Ordering::Relaxed)))
    }

    /// New connections that it has given to an endpoint.
    #[must_use]
    pub fn chosen(&self, endpoint: EndpointId) -> u64 {
        self.chosen.get(endpoint.index()).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// New connections to a service (by its index in the farm) that met no fit endpoint.
    #[must_use]
    pub fn refused(&self, service: usize) -> u64 {
        self.refused.get(service).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    fn store<H>(&self, classifier: &Classifier<H>) {
        let (chosen, refused) = classifier.spread();
        let counters = classifier.counters().values();
        let stores = [(&self.counters, counters.as_slice()), (&self.chosen, chosen), (&self.refused, refused)];
        for (to, from) in stores.into_iter().flat_map(|(to, from)| to.iter().zip(from)) {
            to.store(*from, Ordering::Relaxed);
        }
    }
}

impl<P> ClassifierSeat<P> {
    /// The classifier, to be looked into.
    #[must_use]
    pub fn classifier(&self) -> &Classifier<Held<P>> {
        &self.classifier
    }

    /// Takes the classifier's memory now; to be called before its first turn.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough.
    pub fn populate(&mut self, populate: &Populate) -> Result<(), MapError> {
        self.classifier.populate(populate)
    }

    /// Classifier `number` with its end of the rings to each shard, in the shards' order.
    #[must_use]
    pub fn new(number: usize, classifier: Classifier<Held<P>>, shards: Vec<ShardLink<P>>) -> Self {
        let (chosen, refused) = classifier.spread();
        let published = Arc::new(PublishedClassifier::new(chosen.len(), refused.len()));
        Self {
            number,
            classifier,
            shards,
            backlog: VecDeque::new(),
            batch: Vec::with_capacity(BURST),
            published,
            last_published: Moment(0),
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where its counters can be read.
    #[must_use]
    pub fn published(&self) -> &Arc<PublishedClassifier> {
        &self.published
    }

    /// One round: late answers, notices, and one burst of questions from each shard.
    pub fn turn(&mut self, now: Moment) -> usize {
        let mut work = 0;
        while let Some(reply) = self.backlog.pop_front() {
            if let Err(reply) = push(&mut self.shards, reply) {
                self.backlog.push_front(reply);
                break;
            }
            work += 1;
        }
        for shard in 0..self.shards.len() {
            // Questions first, then all notices that were there before them: what a question's route went through is known then.
            if self.backlog.is_empty() {
                let link = &mut self.shards[shard];
                let room = link.replies.slots().min(BURST);
                self.batch.extend(std::iter::from_fn(|| link.questions.pop().ok()).take(room));
            }
            for _ in 0..self.shards[shard].notices.slots() {
                let Ok(notice) = self.shards[shard].notices.pop() else {
                    break;
                };
                work += 1;
                self.classifier.notice(&notice, now);
            }
            work += self.batch.len();
            self.batch.iter().for_each(|question| self.classifier.prefetch(&question.ask.key));
            for question in self.batch.drain(..) {
                self.classifier.ask(question, now, &mut |reply| answer(&mut self.shards, &mut self.backlog, reply));
            }
        }
        self.classifier.poll(now, &mut |reply| answer(&mut self.shards, &mut self.backlog, reply));
        self.classifier.sweep(now);
        if now.0 >= self.last_published.0 + PUBLISH_EVERY {
            self.last_published = now;
            self.publish();
        }
        work
    }

    /// Shows the counters as they are now.
    pub fn publish(&mut self) {
        self.published.store(&self.classifier);
    }
}

fn answer<P>(shards: &mut [ShardLink<P>], backlog: &mut VecDeque<Reply<Held<P>>>, reply: Reply<Held<P>>) {
    if !backlog.is_empty() {
        backlog.push_back(reply);
    } else if let Err(reply) = push(shards, reply) {
        backlog.push_back(reply);
    }
}

#[expect(clippy::result_large_err, reason = "the reply holds a packet: boxing it would allocate on the hot path")]
fn push<P>(shards: &mut [ShardLink<P>], reply: Reply<Held<P>>) -> Result<(), Reply<Held<P>>> {
    let shard = reply.held.shard;
    shards[shard].replies.push(reply).map_err(|rtrb::PushError::Full(reply)| reply)
}

/// Milliseconds between publications of counters.
const PUBLISH_EVERY: u64 = 20;
