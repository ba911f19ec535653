//! What the parts of a unit take of the memory is what its configuration says beforehand, and is there before the first packet.

use weir_config::Machine;
use weir_dataplane::farm::PortId;
use weir_dataplane::plumbing::{Notice, Plumb, Question, Reply};
use weir_dataplane::shard::Held;

use super::*;
use crate::ports::{MbufPacket, PortQueue};

/// Shards and seats of a unit with such a `dataplane` section, and its configuration.
fn assembled(dataplane: &str, more: &str) -> (Arc<Config>, Assembled<PortQueue>) {
    let text = format!(
        "unit: {{ id: 1, name: sizes }}\nports: [{{ name: net0, device: net_ring0, addresses: [192.0.2.1/24] }}]\n\
         dataplane: {{ {dataplane} }}\n{more}"
    );
    let config =
        Arc::new(weir_config::check("test", &text, &Machine::default()).unwrap_or_else(|report| panic!("{report}")));
    let key = ToeplitzKey::from_seed(1);
    let mut knowledge = Knowledge::new(Arc::clone(&config), vec![[2; 6]], &key).unwrap();
    let generation = knowledge.next_generation();
    let standings = Standings::new(generation, knowledge.standings(), SharedHandler::default());
    let farm = Arc::new(knowledge.farm());
    let assembly = Assembly {
        config: &config,
        farm,
        standings: Arc::new(ArcSwap::from_pointee(standings)),
        seed: 1,
        key,
        burst: 32,
    };
    let parts = assembly.assemble(|_, _| (Err(0), Twin::Itself), || Box::new(|| None)).unwrap();
    (config, parts)
}

const POOL: &str = "pools: [{ name: p, addresses: [198.51.100.0/28] }]";

#[test]
fn tables_take_what_the_configuration_says() {
    for (dataplane, pool) in [
        ("shards: 3, classifiers: 2, routes: { ipv4: 100000, ipv6: 5000 }", ""),
        ("shards: 3, classifiers: 2, routes: { ipv4: 100000, ipv6: 5000 }", POOL),
        ("shards: 1, routes: { ipv4: 1024, ipv6: 1024 }", POOL),
    ] {
        let (config, (mut shards, mut seats)) = assembled(dataplane, pool);
        crate::populate::tables(&config.dataplane, &mut shards, &mut seats).unwrap();
        let need = config.memory();
        let sum = |bytes: fn((usize, usize)) -> usize| {
            shards.iter().map(|shard| bytes(shard.forwarder().bytes()) as u64).sum::<u64>()
        };
        assert_eq!(sum(|(routes, _)| routes), need.routes, "{dataplane}");
        assert_eq!(sum(|(_, full_nat)| full_nat), need.full_nat, "{dataplane}");
        assert_eq!(seats.iter().map(|seat| seat.classifier().bytes() as u64).sum::<u64>(), need.sessions);
    }
}

#[test]
fn rings_take_no_more_than_the_configuration_says() {
    let need = |shards: usize| {
        assembled(&format!("shards: {shards}, routes: {{ ipv4: 1024, ipv6: 1024 }}"), "").0.memory().rings
    };
    let handovers = (HANDOVERS / 4).clamp(512, 4096) * size_of::<(MbufPacket, PortId)>();
    let packets = DIVERT_RING
        * (size_of::<Question<Held<MbufPacket>>>() + size_of::<Reply<Held<MbufPacket>>>() + size_of::<Plumb>());
    let link = packets + NOTICE_RING * size_of::<Notice>();
    let took = need(4) - need(1);
    let real = (12 * handovers + 3 * link) as u64;
    assert!((real..2 * real).contains(&took), "{took} for {real} ({handovers} a ring, {link} a link)");
}
