//! Fake drivers, each with a habit that some real one has.

use super::*;

const REFUSED: Errno = Errno(22);

/// How rules are taken.
#[derive(Clone, Copy, PartialEq)]
enum Rules {
    Never,
    WithThePortsKey,
    WithTheirOwnKey,
    /// All but IPv6, which needs a firmware that is not there.
    Ipv4Only,
}

struct Fake {
    can: Capabilities,
    rules: Rules,
    /// It says yes to one-sided types and hashes by the full ones.
    drops_sides: bool,
    /// It reads back the vendor's key.
    keeps_vendors_key: bool,
    takes_table: bool,
    /// Its table's second half is the vendor's.
    keeps_half_of_the_table: bool,
    key: Vec<u8>,
    types: u64,
    table: Vec<u16>,
    installed: Vec<(Pattern, u64, Option<OwnKey>)>,
}

/// A rule's own key and queues.
type OwnKey = (Vec<u8>, Vec<u16>);

/// Full types of both families, but no single sides.
const FULL: u64 = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP;
const SIDES: u64 =
    RTE_ETH_RSS_L3_SRC_ONLY | RTE_ETH_RSS_L3_DST_ONLY | RTE_ETH_RSS_L4_SRC_ONLY | RTE_ETH_RSS_L4_DST_ONLY;

fn fake(types: u64) -> Fake {
    Fake {
        can: Capabilities { types, key_bytes: 40, table_entries: 512 },
        rules: Rules::Never,
        drops_sides: false,
        keeps_vendors_key: false,
        takes_table: true,
        keeps_half_of_the_table: false,
        key: Vec::new(),
        types: 0,
        table: vec![0; 512],
        installed: Vec::new(),
    }
}

impl RssCalls for Fake {
    fn set_hash(&mut self, key: &[u8], types: u64) -> Result<(), Errno> {
        // As `rte_eth_dev_rss_hash_update` does.
        if types & !self.can.types != 0 || (self.can.key_bytes != 0 && key.len() != usize::from(self.can.key_bytes)) {
            return Err(REFUSED);
        }
        self.key = key.to_vec();
        self.types = if self.drops_sides { types & !SIDES } else { types };
        Ok(())
    }

    fn hash(&mut self, key: &mut [u8]) -> Result<u64, Errno> {
        if self.keeps_vendors_key {
            key.fill(0x6d)
        } else {
            key.copy_from_slice(&self.key[..key.len()])
        }
        Ok(self.types)
    }

    fn set_table(&mut self, queues: &[u16]) -> Result<(), Errno> {
        if !self.takes_table || queues.len() != usize::from(self.can.table_entries) {
            return Err(REFUSED);
        }
        self.table = queues.to_vec();
        if self.keeps_half_of_the_table {
            self.table[queues.len() / 2..].fill(0);
        }
        Ok(())
    }

    fn table(&mut self, queues: &mut [u16]) -> Result<(), Errno> {
        queues.copy_from_slice(&self.table);
        Ok(())
    }

    fn add_rule(&mut self, pattern: Pattern, types: u64, own: Option<(&[u8], &[u16])>) -> Result<(), Errno> {
        let taken = match self.rules {
            Rules::Never => false,
            Rules::WithThePortsKey => own.is_none(),
            Rules::WithTheirOwnKey => own.is_some(),
            Rules::Ipv4Only => own.is_none() && !pattern.ipv6,
        };
        if !taken {
            return Err(REFUSED);
        }
        self.installed.push((pattern, types, own.map(|(key, queues)| (key.to_vec(), queues.to_vec()))));
        Ok(())
    }

    fn clear_rules(&mut self) {
        self.installed.clear();
    }
}

fn asked(side: RssSide) -> Rss {
    let key = std::array::from_fn(|at| u8::try_from(at * 4 + 1).unwrap());
    Rss { key, side, table: std::array::from_fn(|bucket| u16::try_from(bucket % 3).unwrap()) }
}

fn outcome(device: &mut Fake, side: RssSide) -> RssState {
    let can = device.can;
    apply(device, &can, &asked(side))
}

#[test]
fn a_driver_with_one_sided_types_is_exact_without_rules() {
    for (side, bits) in [
        (RssSide::Source, RTE_ETH_RSS_L3_SRC_ONLY | RTE_ETH_RSS_L4_SRC_ONLY),
        (RssSide::Destination, RTE_ETH_RSS_L3_DST_ONLY | RTE_ETH_RSS_L4_DST_ONLY),
    ] {
        let mut device = fake(FULL | SIDES);
        assert_eq!(outcome(&mut device, side), RssState::Exact(side));
        assert_eq!(device.types, FULL | bits, "mlx5 refuses a partial type without the full one");
        assert_eq!(device.key, asked(side).key[..40]);
        assert!(device.installed.is_empty());
        for (entry, queue) in device.table.iter().enumerate() {
            assert_eq!(*queue, asked(side).table[entry % 128], "repeated over the whole table");
        }
    }
}

#[test]
fn a_driver_that_takes_one_side_only_by_rules_gets_one_for_each_kind_of_packet() {
    let mut device = Fake { rules: Rules::WithThePortsKey, ..fake(FULL) };
    assert_eq!(outcome(&mut device, RssSide::Source), RssState::Exact(RssSide::Source));
    assert_eq!(device.types, FULL, "what no rule is about is spread all the same");
    let kinds: Vec<_> =
        device.installed.iter().map(|(pattern, types, own)| (*pattern, *types, own.is_some())).collect();
    let source = RTE_ETH_RSS_L3_SRC_ONLY | RTE_ETH_RSS_L4_SRC_ONLY;
    let kind = |ipv6, udp, of| (Pattern { ipv6, udp }, of | source, false);
    assert_eq!(
        kinds,
        [
            kind(false, false, RTE_ETH_RSS_NONFRAG_IPV4_TCP),
            kind(false, true, RTE_ETH_RSS_NONFRAG_IPV4_UDP),
            kind(true, false, RTE_ETH_RSS_NONFRAG_IPV6_TCP),
            kind(true, true, RTE_ETH_RSS_NONFRAG_IPV6_UDP),
        ]
    );
}

#[test]
fn a_driver_that_forgets_the_side_is_tried_by_rules_too() {
    let mut device = Fake { drops_sides: true, rules: Rules::WithTheirOwnKey, ..fake(FULL | SIDES) };
    assert_eq!(outcome(&mut device, RssSide::Destination), RssState::Exact(RssSide::Destination));
    let rss = asked(RssSide::Destination);
    assert_eq!(device.installed.len(), 4);
    assert!(device.installed.iter().all(|(_, _, own)| *own == Some((rss.key[..40].to_vec(), rss.table.to_vec()))));
}

#[test]
fn a_driver_that_takes_no_single_side_is_a_hint_with_key_and_table() {
    for rules in [Rules::Never, Rules::Ipv4Only] {
        let mut device = Fake { rules, ..fake(FULL) };
        assert_eq!(outcome(&mut device, RssSide::Source), RssState::Hint(RssShortfall::OneSide));
        assert_eq!((device.types, device.key.len(), device.table[130]), (FULL, 40, 2));
        assert!(device.installed.is_empty(), "half of the rules would be worse than none");
    }
}

#[test]
fn both_sides_are_never_exact() {
    let mut device = Fake { rules: Rules::WithThePortsKey, ..fake(FULL | SIDES) };
    assert_eq!(outcome(&mut device, RssSide::Both), RssState::Hint(RssShortfall::BothSides));
    assert_eq!((device.types, device.installed.len()), (FULL, 0));
}

#[test]
fn the_table_has_to_be_a_multiple_of_the_buckets() {
    let source = RssSide::Source;
    for (entries, state) in [
        (0, RssState::Hint(RssShortfall::TableSize(0))),
        (64, RssState::Hint(RssShortfall::TableSize(64))),
        (200, RssState::Hint(RssShortfall::TableSize(200))),
        (128, RssState::Exact(source)),
        (4096, RssState::Exact(source)),
    ] {
        let mut device = fake(FULL | SIDES);
        device.can.table_entries = entries;
        assert_eq!(outcome(&mut device, source), state, "{entries} entries");
        let filled = device.table.iter().enumerate().all(|(entry, queue)| *queue == asked(source).table[entry % 128]);
        assert!(entries == 0 || filled, "a small one is of use all the same");
    }
}

#[test]
fn what_reads_back_otherwise_is_a_hint() {
    let mut device = Fake { keeps_vendors_key: true, ..fake(FULL | SIDES) };
    assert_eq!(outcome(&mut device, RssSide::Source), RssState::Hint(RssShortfall::Key));
    let mut device = Fake { keeps_half_of_the_table: true, ..fake(FULL | SIDES) };
    assert_eq!(outcome(&mut device, RssSide::Source), RssState::Hint(RssShortfall::Table));
    let mut device = Fake { takes_table: false, ..fake(FULL | SIDES) };
    assert_eq!(outcome(&mut device, RssSide::Source), RssState::Hint(RssShortfall::Table));
}

#[test]
fn the_key_has_the_devices_length() {
    for (key_bytes, given) in [(52, 52), (40, 40), (0, 40)] {
        let mut device = fake(FULL | SIDES);
        device.can.key_bytes = key_bytes;
        assert_eq!(outcome(&mut device, RssSide::Source), RssState::Exact(RssSide::Source));
        assert_eq!(device.key, asked(RssSide::Source).key[..given]);
    }
    // Fewer bits than the longest input needs.
    let mut device = fake(FULL | SIDES);
    device.can.key_bytes = 16;
    assert_eq!(outcome(&mut device, RssSide::Source), RssState::Hint(RssShortfall::Key));
}

#[test]
fn a_device_that_hashes_nothing_has_none() {
    assert_eq!(outcome(&mut fake(0), RssSide::Source), RssState::None);
    // Payloads alone do not tell flows apart.
    assert_eq!(outcome(&mut fake(1 << 14), RssSide::Both), RssState::None);
}

#[test]
fn without_ports_in_both_families_one_side_is_not_exact() {
    let mut device = fake((FULL & !RTE_ETH_RSS_NONFRAG_IPV6_UDP) | SIDES);
    assert_eq!(outcome(&mut device, RssSide::Source), RssState::Hint(RssShortfall::OneSide));
}

#[test]
fn states_say_why() {
    assert_eq!(RssState::Exact(RssSide::Source).to_string(), "exact by source");
    let small = RssState::Hint(RssShortfall::TableSize(64)).to_string();
    assert_eq!(small, "hint (the device's table has 64 entries, no multiple of 128)");
}
