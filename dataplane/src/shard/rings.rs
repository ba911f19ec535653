//! The rings that hang on a shard: to the classifiers and back, and to the other shards.

use rtrb::chunks::ReadChunk;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::counters::DropReason;
use crate::farm::PortId;
use crate::forwarder::Forwarder;
use crate::packet::{BURST, Packet};
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

/// What one shard hands to another.
#[derive(Debug)]
pub enum Handover<P> {
    /// A packet of a flow that the other one owns.
    Process(P, Parsed, PortId),
    /// A packet of a flow that is to be taken to pieces of so many bytes, by who can allocate buffers.
    Split(P, Parsed, PortId, u16),
    /// A finished tunnel packet, with the place of its outer header, to be sent by a port in pieces of so many bytes.
    Pieces(P, u8, PortId, u16),
    /// A finished packet, for a port that this shard has no queue of.
    Send(P, PortId),
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

/// A shard's end of the rings to the other shards, by their number; its own place is empty.
#[derive(Debug)]
pub struct Neighbourhood<P> {
    pub(super) to: Vec<Option<Producer<Handover<P>>>>,
    pub(super) from: Vec<Consumer<Handover<P>>>,
}

/// The rings among `shards` shards, each `packets` long.
#[must_use]
pub fn neighbourhoods<P>(shards: usize, packets: usize) -> Vec<Neighbourhood<P>> {
    let mut all: Vec<Neighbourhood<P>> =
        (0..shards).map(|_| Neighbourhood { to: Vec::new(), from: Vec::new() }).collect();
    for from in 0..shards {
        for to in 0..shards {
            if from == to {
                all[from].to.push(None);
                continue;
            }
            let (producer, consumer) = RingBuffer::new(packets);
            all[from].to.push(Some(producer));
            all[to].from.push(consumer);
        }
    }
    all
}
