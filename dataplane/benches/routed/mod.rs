//! A forwarder with a route for each of some flows, and one packet of each: what the benches of the parts work on.

use crossbeam::queue::SegQueue;
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, Burst, HeapPacket, Packet, Queue};
use weir_dataplane::plumbing::{Plumb, Reply, Verdict};
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode, Route, State};
use weir_dataplane::shard::{self, Shard, ShardPort, Twin};
use weir_dataplane::{farm::Farm, parse};
use weir_identity::{EndpointId, Moment};

#[path = "../../../benches/farm.rs"]
pub(crate) mod farm;
pub(crate) mod spread;

/// Flows, and packets: 32 bursts.
pub(crate) const FLOWS: u64 = 1024;

/// See above.
pub(crate) struct Routed {
    /// With the routes.
    pub(crate) forwarder: Forwarder,
    /// One service in each family.
    pub(crate) farm: Farm,
    /// A packet of each flow.
    pub(crate) bursts: Vec<Burst<HeapPacket>>,
}

impl Routed {
    /// Routes of one mode, over IPv6 or IPv4, in tables that hold twice as many.
    pub(crate) fn new(mode: Mode, six: bool) -> Self {
        Self::towards(mode, six, 0)
    }

    fn towards(mode: Mode, six: bool, networks: u64) -> Self {
        let farm = farm::farm_towards(mode, IdleTimeouts::default(), networks).unwrap();
        let settings = Settings {
            shard: 0,
            owners: Owners::new(&ToeplitzKey::from_seed(1), 1),
            routes_ipv4: 4 * FLOWS as usize,
            routes_ipv6: 2 * FLOWS as usize,
            hash: FlowHash::new(0x5745_4952),
        };
        let mut routed = Self { forwarder: Forwarder::new(&settings).unwrap(), farm, bursts: bursts(six, 0..FLOWS) };
        for flow in 0..FLOWS {
            let endpoint = EndpointId(u32::try_from(flow % farm::ENDPOINTS).unwrap());
            let route = Route { action: Action::Send { endpoint, mode, value: 0 }, state: State::Established };
            let key = if six { farm::key(six, flow) } else { farm::key_in(networks, flow) };
            routed.forwarder.plumb(&Plumb::Replace(key, route), &routed.farm, 1);
            routed.forwarder.tell_notices(|_| true);
        }
        routed
    }

    /// The same over IPv4 with the hosts' answers as packets, to clients in so many networks with a route each.
    pub(crate) fn back(mode: Mode, networks: u64) -> Self {
        let mut routed = Self::towards(mode, false, networks);
        let template = farm::Frame::new(false, 0);
        let packet = |flow| {
            let mut bytes = template.bytes.clone();
            farm::Back::new(&routed.farm, &routed.forwarder, networks, flow).unwrap().write(&template, &mut bytes);
            HeapPacket::new(&bytes)
        };
        let packets: Vec<HeapPacket> = (0..FLOWS).map(packet).collect();
        routed.bursts = packets.chunks(BURST).map(|burst| burst.iter().cloned().collect()).collect();
        routed
    }

    /// The quick lane over all packets; how many it has taken.
    #[inline(always)]
    pub(crate) fn quick(&mut self) -> u64 {
        let before = self.forwarder.counters.hits;
        for burst in &mut self.bursts {
            self.forwarder.forward(burst, 0, &self.farm, 2);
        }
        self.forwarder.counters.hits - before
    }

    /// The general way over all packets.
    #[inline(always)]
    pub(crate) fn general(&mut self) -> u64 {
        let before = self.forwarder.counters.hits;
        let mac = self.farm.ports[0].mac;
        for packet in self.bursts.iter_mut().flatten() {
            if let Ok(parsed) = parse::parse(packet.data(), mac) {
                self.forwarder.forward_one(packet, &parsed, &self.farm, 2);
            }
        }
        self.forwarder.counters.hits - before
    }
}

/// What waits for a shard's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Nothing.
    Nothing,
    /// More than a turn takes of everything: packets without routes at the port and from the other shard, verdicts and orders of the
    /// classifier, and a table full of routes that have expired.
    Everything,
}

/// A shard of two whose table has a route for each of `routes` flows, and what waits for its next turn, which is to be taken at
/// [`LATER`].
pub(crate) fn shard(routes: u64, waiting: Waiting) -> Box<Shard<Arrivals>> {
    let farm = std::sync::Arc::new(farm::farm(Mode::Dsr, IdleTimeouts([1_000; State::COUNT])).unwrap());
    let (hash, owners) = (FlowHash::new(0x5745_4952), Owners::new(&ToeplitzKey::from_seed(1), 2));
    let mut made: Vec<_> = shard::neighbourhoods(2, 2 * FLOWS as usize)
        .into_iter()
        .enumerate()
        .map(|(number, neighbours)| {
            let tables = (2 * routes as usize, 1);
            let settings = Settings {
                shard: number,
                owners: owners.clone(),
                routes_ipv4: tables.0,
                routes_ipv6: tables.1,
                hash: hash.clone(),
            };
            let (link, classifier) = shard::link(4 * FLOWS as usize, 4 * FLOWS as usize);
            let ports = vec![ShardPort::new(Ok(Arrivals::default()), Twin::Itself)];
            let forwarder = Forwarder::new(&settings).unwrap();
            (Shard::new(number, farm.clone(), forwarder, ports, neighbours, vec![link], BURST), classifier)
        })
        .collect();
    let route = |flow: u64| {
        let endpoint = EndpointId(u32::try_from(flow % farm::ENDPOINTS).unwrap());
        Route { action: Action::Send { endpoint, mode: Mode::Dsr, value: 0 }, state: State::Established }
    };
    for flow in 0..routes {
        made[0].1.plumbs.push(Plumb::Replace(farm::key(false, flow), route(flow))).unwrap();
        made[0].0.turn(Moment(1));
    }
    if waiting == Waiting::Everything {
        // Flows of their own; half of them are the other shard's, and half of what arrives there is this one's.
        let strangers: Vec<_> = bursts(false, routes..routes + 8 * FLOWS).into_iter().flatten().collect();
        // What it has asked about is answered, what the other shard has for it and what arrives waits.
        let mut arrive = |shard: usize, packets: &[HeapPacket], turns: usize| {
            for queue in made[shard].0.queues() {
                packets.iter().for_each(|packet| queue.waiting.push(packet.clone()));
            }
            for _ in 0..turns {
                made[shard].0.turn(Moment(1));
            }
        };
        let (first, rest) = strangers.split_at(2 * FLOWS as usize);
        arrive(0, first, 16);
        let (second, rest) = rest.split_at(2 * FLOWS as usize);
        arrive(1, second, 16);
        arrive(0, rest, 0);
        let classifier = &mut made[0].1;
        while let Ok(question) = classifier.questions.pop() {
            let verdict = Verdict::Install { route: route(1), replace: true };
            classifier.replies.push(Reply { key: question.ask.key, verdict, held: question.held }).unwrap();
        }
        for flow in 9 * FLOWS..10 * FLOWS {
            classifier.plumbs.push(Plumb::Replace(farm::key(false, routes + flow), route(flow))).unwrap();
        }
    }
    Box::new(made.swap_remove(0).0)
}

/// When every route has expired.
pub(crate) const LATER: Moment = Moment(5_000);

/// A port without a driver: what waits there.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    waiting: SegQueue<HeapPacket>,
}

impl Queue for Arrivals {
    type Packet = HeapPacket;

    fn receive(&mut self, burst: &mut Burst<HeapPacket>) {
        while !burst.is_full()
            && let Some(packet) = self.waiting.pop()
        {
            burst.push(packet);
        }
    }

    fn send(&mut self, burst: &mut Burst<HeapPacket>) {
        // To free them is no work of the dataplane's.
        burst.drain(..).for_each(std::mem::forget);
    }

    fn allocate(&mut self) -> Option<HeapPacket> {
        None
    }
}

pub(crate) fn bursts(six: bool, flows: std::ops::Range<u64>) -> Vec<Burst<HeapPacket>> {
    let template = farm::Frame::new(six, 0);
    let packets: Vec<HeapPacket> = flows
        .map(|flow| {
            let mut bytes = template.bytes.clone();
            template.write(flow, &mut bytes);
            HeapPacket::new(&bytes)
        })
        .collect();
    packets.chunks(BURST).map(|burst| burst.iter().cloned().collect()).collect()
}
