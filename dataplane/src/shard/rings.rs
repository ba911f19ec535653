//! The rings that hang on a shard: to the classifiers and back, and to the other shards.

use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use rtrb::chunks::{ChunkError, ReadChunk};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::counters::{DropReason, Drops};
use crate::farm::PortId;
use crate::forwarder::Forwarder;
use crate::packet::{BURST, Burst, Packet};
use crate::parse::Parsed;
use crate::plumbing::{Notice, Plumb, Question, Reply};

/// A packet on its way between shard and classifier, with what its parsing found.
#[derive(Debug)]
pub struct Held<P> {
    /// The packet.
    pub packet: P,
    /// Its headers.
    pub parsed: Parsed,
    /// The port that it came in by.
    pub port: PortId,
    /// The shard that owns its flow.
    pub shard: usize,
}

/// What a shard does for another one, beside what goes over their rings: seldom, and in no order with that.
#[derive(Debug)]
pub(super) enum Errand<P> {
    /// The way to a tunnel's end takes no more than so many bytes.
    PathMtu(std::net::IpAddr, u16),
    /// What the kernel has sent by a port's twin, and may be of a flow that the other one owns.
    FromKernel(P, PortId),
}

/// A shard's end of its rings to one classifier.
#[derive(Debug)]
pub struct ClassifierLink<P> {
    questions: Producer<Question<Held<P>>>,
    /// So many questions find room, or more: to look is to share a cache line with the classifier.
    room: usize,
    pub(super) notices: Producer<Notice>,
    pub(super) replies: Consumer<Reply<Held<P>>>,
    pub(super) plumbs: Consumer<Plumb>,
}

impl<P: Packet> ClassifierLink<P> {
    /// Asks the processor for what the next orders and answers will need: nothing of it was here lately.
    pub(super) fn prefetch(&mut self, forwarder: &Forwarder) {
        let waiting = self.plumbs.slots().min(BURST);
        for plumb in self.plumbs.read_chunk(waiting).iter().flat_map(parts) {
            let (Plumb::Delete(key) | Plumb::Replace(key, _)) = plumb;
            forwarder.prefetch(key);
        }
        let waiting = self.replies.slots().min(BURST);
        for reply in self.replies.read_chunk(waiting).iter().flat_map(parts) {
            forwarder.prefetch(&reply.key);
            reply.held.packet.prefetch();
        }
    }

    /// Puts a question behind the others. What begins something is sent again by its client, and costs nobody but it some time: a
    /// quarter of the ring is left to packets of connections that exist, whose routes are lost or on another unit.
    ///
    /// # Errors
    ///
    /// [`DropReason::DivertShed`] where that quarter is all that is left, [`DropReason::DivertRing`] where nothing is.
    pub(super) fn ask(&mut self, question: Question<Held<P>>, begins: bool) -> Result<(), DropReason> {
        let reserve = if begins { self.questions.buffer().capacity() / 4 } else { 0 };
        if self.room <= reserve {
            self.room = self.questions.slots();
        }
        if self.room <= reserve {
            return Err(if begins { DropReason::DivertShed } else { DropReason::DivertRing });
        }
        self.room -= 1;
        self.questions.push(question).map_err(|_| DropReason::DivertRing)
    }
}

/// What waits in a ring, without taking it.
fn parts<'r, T>(chunk: &'r ReadChunk<'_, T>) -> impl Iterator<Item = &'r T> {
    let (first, second) = chunk.as_slices();
    first.iter().chain(second)
}

/// A classifier's end of its rings to one shard.
#[derive(Debug)]
pub struct ShardLink<P> {
    /// Packets without a route.
    pub questions: Consumer<Question<Held<P>>>,
    /// What happened to routes.
    pub notices: Consumer<Notice>,
    /// The packets with their answers.
    pub replies: Producer<Reply<Held<P>>>,
    /// Orders about routes without a packet.
    pub plumbs: Producer<Plumb>,
}

/// The rings between a shard and a classifier; `packets` and `notices` say how many wait at the most.
#[must_use]
pub fn link<P>(packets: usize, notices: usize) -> (ClassifierLink<P>, ShardLink<P>) {
    let (questions, questions_out) = RingBuffer::new(packets);
    let (notices, notices_out) = RingBuffer::new(notices);
    let (replies_in, replies) = RingBuffer::new(packets);
    let (plumbs_in, plumbs) = RingBuffer::new(packets);
    (
        ClassifierLink { questions, room: packets, notices, replies, plumbs },
        ShardLink { questions: questions_out, notices: notices_out, replies: replies_in, plumbs: plumbs_in },
    )
}

/// A packet on its way from one shard to another: with a DPDK buffer 16 bytes. What is in it is parsed again where it arrives.
#[derive(Debug)]
pub(super) struct Transfer<P> {
    pub(super) packet: P,
    /// The port that it came in by; of a finished packet the one that it leaves by.
    pub(super) port: PortId,
    pub(super) task: Task,
}

/// What the receiver of a packet is to do with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Task {
    /// It owns the packet's flow.
    #[default]
    Forward,
    /// The same of a fragment, whose bytes alone do not say of which flow it is: with the flow's protocol and ports.
    Follow(u8, [u8; 4]),
    /// Finished: it only has to be sent, by who has a queue for that.
    Send,
}

/// A shard's end of the rings to the other shards, by their number.
#[derive(Debug)]
pub struct Neighbourhood<P> {
    to: Vec<Outbox<P>>,
    from: Vec<Consumer<Transfer<P>>>,
    /// Whose they are.
    number: usize,
    /// Whose turn it is to be read first.
    next: usize,
    /// The outboxes that something waits in, a bit each.
    waiting: u128,
    /// What others ask of this shard; and all shards' own, by number.
    errands: Arc<ArrayQueue<Errand<P>>>,
    all_errands: Vec<Arc<ArrayQueue<Errand<P>>>>,
}

/// What has gathered for a shard, less than a burst between two bursts. Oneself has a place there, but no ring: so that a burst is dealt
/// out without a branch on whose each packet is, which no processor could predict.
#[derive(Debug)]
struct Outbox<P> {
    ring: Option<Producer<Transfer<P>>>,
    waiting: ArrayVec<Transfer<P>, { 2 * BURST }>,
}

impl<P> Neighbourhood<P> {
    /// Puts a packet behind the others for a shard; they go over when a burst is full, and at the end of the turn.
    #[inline]
    pub(super) fn hand(&mut self, shard: usize, transfer: Transfer<P>, drops: &mut Drops) {
        let Some(outbox) = self.to.get_mut(shard) else {
            return drops.count(DropReason::HandoverRing);
        };
        outbox.waiting.push(transfer);
        self.waiting |= 1 << shard;
        if outbox.waiting.len() >= BURST {
            self.flush_full(1 << shard, drops);
        }
    }

    /// Deals a burst out to its `owners`, the shard with these rings among them, whose packets are taken out by [`Self::own`].
    #[inline]
    pub(super) fn deal(
        &mut self,
        burst: &mut Burst<P>,
        ports: &[PortId; BURST],
        owners: &[u8; BURST],
        drops: &mut Drops,
    ) {
        let mut touched = 0;
        for ((packet, port), owner) in burst.drain(..).zip(ports).zip(owners) {
            let shard = usize::from(*owner);
            self.to[shard].waiting.push(Transfer { packet, port: *port, task: Task::Forward });
            touched |= 1_u128 << (shard % 128);
        }
        self.waiting |= touched;
        self.flush_full(touched & !(1 << self.number), drops);
    }

    /// Takes this shard's own packets out of what was dealt.
    #[inline]
    pub(super) fn own(&mut self, mut take: impl FnMut(P, PortId)) {
        self.waiting &= !(1 << self.number);
        self.to[self.number].waiting.drain(..).for_each(|transfer| take(transfer.packet, transfer.port));
    }

    /// Lets whole bursts go over, of those shards that have a bit in `which`.
    #[inline]
    fn flush_full(&mut self, mut which: u128, drops: &mut Drops) {
        while which != 0 {
            let shard = which.trailing_zeros() as usize;
            which &= which - 1;
            if self.to[shard].waiting.len() >= BURST {
                self.to[shard].flush(drops);
                self.waiting &= !(1 << shard);
            }
        }
    }

    /// Lets everything go over that has gathered.
    #[inline]
    pub(super) fn flush(&mut self, drops: &mut Drops) {
        while self.waiting != 0 {
            let shard = self.waiting.trailing_zeros() as usize;
            self.waiting &= self.waiting - 1;
            self.to[shard].flush(drops);
        }
    }

    /// Takes at most `most` of what other shards have handed over: of each in order, of all in turns.
    #[inline]
    pub(super) fn take(&mut self, into: &mut ArrayVec<Transfer<P>, BURST>, most: usize) {
        for _ in 0..self.from.len() {
            let ring = &mut self.from[self.next];
            let count = ring.slots().min(most - into.len());
            if let Ok(chunk) = ring.read_chunk(count) {
                into.extend(chunk);
            }
            if into.len() == most {
                return; // the rest of this one comes first next time
            }
            self.next = if self.next + 1 == self.from.len() { 0 } else { self.next + 1 };
        }
    }

    /// Asks another shard for something; false, and dropped, where too much has been asked of it already.
    pub(super) fn send_errand(&self, shard: usize, errand: Errand<P>) -> bool {
        self.all_errands.get(shard).is_some_and(|errands| errands.push(errand).is_ok())
    }

    /// Asks the same of all others; who does not hear of it has to do without.
    pub(super) fn tell_others(&self, mut errand: impl FnMut() -> Errand<P>) {
        for errands in self.all_errands.iter().filter(|errands| !Arc::ptr_eq(errands, &self.errands)) {
            let _ = errands.push(errand());
        }
    }

    /// The next thing that another shard asks for.
    #[inline]
    pub(super) fn errand(&self) -> Option<Errand<P>> {
        self.errands.pop()
    }
}

impl<P> Outbox<P> {
    /// What finds no room in the ring is dropped: its owner is the bottleneck.
    fn flush(&mut self, drops: &mut Drops) {
        if let Some(ring) = &mut self.ring {
            let chunk = match ring.write_chunk_uninit(self.waiting.len()) {
                Err(ChunkError::TooFewSlots(room)) => ring.write_chunk_uninit(room),
                chunk => chunk,
            };
            if let Ok(chunk) = chunk {
                let count = chunk.len();
                chunk.fill_from_iter(self.waiting.drain(..count));
            }
        }
        drops.count_many(DropReason::HandoverRing, self.waiting.len());
        self.waiting.clear();
    }
}

/// The rings among `shards` shards, each `packets` long.
#[must_use]
pub fn neighbourhoods<P>(shards: usize, packets: usize) -> Vec<Neighbourhood<P>> {
    let all_errands: Vec<_> = (0..shards).map(|_| Arc::new(ArrayQueue::new(ERRANDS))).collect();
    let end = |(number, errands): (usize, &Arc<_>)| Neighbourhood {
        number,
        to: Vec::new(),
        from: Vec::new(),
        next: 0,
        waiting: 0,
        errands: Arc::clone(errands),
        all_errands: all_errands.clone(),
    };
    let mut all: Vec<Neighbourhood<P>> = all_errands.iter().enumerate().map(end).collect();
    for from in 0..shards {
        for to in 0..shards {
            if from == to {
                all[from].to.push(Outbox { ring: None, waiting: ArrayVec::new() });
                continue;
            }
            let (producer, consumer) = RingBuffer::new(packets);
            all[from].to.push(Outbox { ring: Some(producer), waiting: ArrayVec::new() });
            all[to].from.push(consumer);
        }
    }
    all
}

/// Errands that may wait for a shard.
const ERRANDS: usize = 512;
