//! Several shards that are fed as a NIC feeds them, with a route for each flow: what the gate of the ways between shards counts.

use std::sync::Arc;

use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, HeapPacket};
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode, Route, State};
use weir_dataplane::shard::{self, Shard, ShardPort, Twin};
use weir_identity::{EndpointId, Moment};

use super::{Arrivals, bursts, farm};

#[path = "../../../benches/feed.rs"]
pub(crate) mod feed;

use feed::Feed;

/// Flows, and packets: several turns' worth for eight queues.
pub(crate) const FLOWS: u64 = 4096;

/// All shards of a unit, and a packet of each flow at its queue.
pub(crate) struct Spread {
    shards: Vec<Shard<Arrivals>>,
}

impl Spread {
    /// As many shards as queues, with all routes.
    pub(crate) fn new(feed: Feed, count: usize) -> Self {
        let farm = Arc::new(farm::farm(Mode::Dsr, IdleTimeouts::default()).unwrap());
        let (hash, owners) = (FlowHash::new(0x5745_4952), Owners::new(&ToeplitzKey::from_seed(1), count));
        let flows = FLOWS as usize;
        let mut made: Vec<_> = shard::neighbourhoods(count, flows)
            .into_iter()
            .enumerate()
            .map(|(number, neighbours)| {
                let (owners, hash) = (owners.clone(), hash.clone());
                let routes_ipv4 = 2 * flows / count;
                let settings = Settings { shard: number, owners, routes_ipv4, routes_ipv6: 1, hash };
                let (link, classifier) = shard::link(flows, flows);
                let ports = vec![ShardPort::new(Ok(Arrivals::default()), Twin::Itself)];
                let forwarder = Forwarder::new(&settings).unwrap();
                (Shard::new(number, farm.clone(), forwarder, ports, neighbours, vec![link], BURST), classifier)
            })
            .collect();
        for flow in 0..FLOWS {
            let endpoint = EndpointId(u32::try_from(flow % farm::ENDPOINTS).unwrap());
            let action = Action::Send { endpoint, mode: Mode::Dsr, value: 0 };
            let key = farm::key(false, flow);
            let (shard, classifier) = &mut made[feed::owner(&owners, &key)];
            classifier.plumbs.push(Plumb::Replace(key, Route { action, state: State::Established })).unwrap();
            shard.turn(Moment(1));
        }
        let shards = made.into_iter().map(|(shard, _)| shard).collect();
        let mut arrivals = vec![Vec::new(); count];
        for (flow, packet) in (0..FLOWS).zip(bursts(false, 0..FLOWS).into_iter().flatten()) {
            let key = farm::key(false, flow);
            arrivals[feed.queue(&key, feed::owner(&owners, &key), count)].push(packet);
        }
        let mut spread = Self { shards };
        // Until each shard has seen whose packets come in by its queue.
        for _ in 0..2 * count {
            spread.arrive(&arrivals);
            spread.forward();
        }
        spread.arrive(&arrivals);
        spread
    }

    fn arrive(&self, arrivals: &[Vec<HeapPacket>]) {
        for (shard, packets) in self.shards.iter().zip(arrivals) {
            for port in shard.queues() {
                packets.iter().for_each(|packet| port.waiting.push(packet.clone()));
            }
        }
    }

    /// Turns of all shards until nothing waits any more; how many packets went by their routes.
    #[inline(always)]
    pub(crate) fn forward(&mut self) -> u64 {
        let before = self.hits();
        while self.shards.iter_mut().map(|shard| shard.turn(Moment(2))).sum::<usize>() > 0 {}
        self.hits() - before
    }

    #[inline(always)]
    fn hits(&self) -> u64 {
        self.shards.iter().map(|shard| shard.forwarder().counters.hits).sum()
    }
}
