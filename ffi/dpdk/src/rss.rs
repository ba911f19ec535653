//! Receive-side scaling: a port's key, hashed side and table set through DPDK's general calls, read back, and judged.
//!
//! Which queue a packet comes in by is what a shard's ownership may be built on, so a setting counts only as far as the driver takes
//! it and reads it back. Drivers take the hashing of one side in two ways: as bits of the port's hash types, or as a flow rule for each
//! kind of packet. Both are tried; what is left over is said as [`RssState`] with its [`RssShortfall`].

use std::fmt;

use crate::errno::Errno;
use crate::values::*;

/// How a port is to spread packets over its receive queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rss {
    /// The Toeplitz key, cut to what the device has (40 or 52 bytes). No input is longer than 36 bytes, so 40 decide everything.
    pub key: [u8; 52],
    /// Which addresses and ports are hashed.
    pub side: RssSide,
    /// The queue of each bucket (hash modulo 128), each less than the port's receive queues.
    pub table: [u16; RSS_BUCKETS],
}

/// The number of buckets.
pub const RSS_BUCKETS: usize = 128;

/// Which of a packet's addresses and ports are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RssSide {
    /// Its source alone.
    Source,
    /// Its destination alone.
    Destination,
    /// Both.
    Both,
}

/// What a port's receive-side scaling came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RssState {
    /// TCP and UDP packets are hashed by this side alone, with the key and the table that were asked for; all was read back.
    Exact(RssSide),
    /// The device spreads packets, but not as asked.
    Hint(RssShortfall),
    /// Everything comes in by one queue, or by whichever the kernel or the other end chooses.
    None,
}

/// Why a port's receive-side scaling is not exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RssShortfall {
    /// Nobody asked for more.
    NotAsked,
    /// Both sides are hashed, as asked: nothing that one side owns can follow from that.
    BothSides,
    /// The driver hashes no single side, neither by the port's types nor by flow rules.
    OneSide,
    /// The device's table has so many entries, which are no multiple of 128.
    TableSize(u16),
    /// The driver did not take the table, or reads back another.
    Table,
    /// The driver did not take the key, or reads back another.
    Key,
}

impl fmt::Display for RssState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RssState::Exact(RssSide::Source) => f.write_str("exact by source"),
            RssState::Exact(RssSide::Destination) => f.write_str("exact by destination"),
            RssState::Exact(RssSide::Both) => f.write_str("exact by both sides"),
            RssState::Hint(why) => write!(f, "hint ({why})"),
            RssState::None => f.write_str("none"),
        }
    }
}

impl fmt::Display for RssShortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RssShortfall::NotAsked => f.write_str("the device's own choice"),
            RssShortfall::BothSides => f.write_str("both sides are hashed"),
            RssShortfall::OneSide => f.write_str("the driver cannot hash one side alone"),
            RssShortfall::TableSize(entries) => {
                write!(f, "the device's table has {entries} entries, no multiple of 128")
            }
            RssShortfall::Table => f.write_str("the driver does not keep the table"),
            RssShortfall::Key => f.write_str("the driver does not keep the key"),
        }
    }
}

/// What a device says of its receive-side scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Its hash types (`RTE_ETH_RSS_…`).
    pub(crate) types: u64,
    /// Bytes of its key; 0 if it does not say.
    pub(crate) key_bytes: u8,
    /// Entries of its table; 0 if there is none.
    pub(crate) table_entries: u16,
}

impl Capabilities {
    /// Addresses, and ports where there are some, of all packets that the device tells apart.
    pub(crate) fn full_types(&self) -> u64 {
        self.types & (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP)
    }

    /// The part of `key` that the device takes.
    pub(crate) fn key<'a>(&self, key: &'a [u8; 52]) -> &'a [u8] {
        let bytes = if self.key_bytes == 0 { USUAL_KEY_BYTES } else { usize::from(self.key_bytes) };
        &key[..bytes.min(key.len())]
    }

    /// The types to configure the port with: one-sided where the device lists that among its types.
    pub(crate) fn configured_types(&self, side: RssSide) -> u64 {
        let one_sided = side.types();
        self.full_types() | if self.types & one_sided == one_sided { one_sided } else { 0 }
    }
}

impl RssSide {
    /// The bits that narrow types down to this side; none for both.
    fn types(self) -> u64 {
        match self {
            RssSide::Source => RTE_ETH_RSS_L3_SRC_ONLY | RTE_ETH_RSS_L4_SRC_ONLY,
            RssSide::Destination => RTE_ETH_RSS_L3_DST_ONLY | RTE_ETH_RSS_L4_DST_ONLY,
            RssSide::Both => 0,
        }
    }
}

/// The packets that a flow rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) ipv6: bool,
    pub(crate) udp: bool,
}

impl Pattern {
    /// Each kind of packet that has ports, with its hash type.
    const ALL: [(Self, u64); 4] = [
        (Self { ipv6: false, udp: false }, RTE_ETH_RSS_NONFRAG_IPV4_TCP),
        (Self { ipv6: false, udp: true }, RTE_ETH_RSS_NONFRAG_IPV4_UDP),
        (Self { ipv6: true, udp: false }, RTE_ETH_RSS_NONFRAG_IPV6_TCP),
        (Self { ipv6: true, udp: true }, RTE_ETH_RSS_NONFRAG_IPV6_UDP),
    ];
}

/// DPDK's calls about a started port's receive-side scaling, or a test's idea of a driver.
pub(crate) trait RssCalls {
    /// Sets key and types.
    fn set_hash(&mut self, key: &[u8], types: u64) -> Result<(), Errno>;
    /// Reads the key back into a buffer of its length, and returns the types.
    fn hash(&mut self, key: &mut [u8]) -> Result<u64, Errno>;
    /// Sets the whole table.
    fn set_table(&mut self, queues: &[u16]) -> Result<(), Errno>;
    /// Reads the whole table back.
    fn table(&mut self, queues: &mut [u16]) -> Result<(), Errno>;
    /// Adds a rule that hashes packets of this pattern by `types`: with the port's key and table, or with some of its own.
    fn add_rule(&mut self, pattern: Pattern, types: u64, own: Option<(&[u8], &[u16])>) -> Result<(), Errno>;
    /// Removes all rules.
    fn clear_rules(&mut self);
}

/// Sets a started port of several queues as `rss` says, as far as its driver goes, and says how far that was.
pub(crate) fn apply(driver: &mut impl RssCalls, can: &Capabilities, rss: &Rss) -> RssState {
    let full = can.full_types();
    if full == 0 {
        return RssState::None;
    }
    let table = set_table(driver, can.table_entries, &rss.table);
    let side = set_side(driver, can, rss, full);
    match (side, key_was_kept(driver, can, rss), table) {
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => RssState::Hint(why),
        (Ok(()), Ok(()), Ok(())) => RssState::Exact(rss.side),
    }
}

fn set_table(driver: &mut impl RssCalls, entries: u16, buckets: &[u16; RSS_BUCKETS]) -> Result<(), RssShortfall> {
    if entries == 0 {
        return Err(RssShortfall::TableSize(0));
    }
    // A smaller one spreads by fewer bits of the hash: useful, but no bucket's own.
    let queues: Vec<u16> = buckets.iter().copied().cycle().take(entries.into()).collect();
    driver.set_table(&queues).map_err(|_| RssShortfall::Table)?;
    let mut kept = vec![u16::MAX; queues.len()];
    driver.table(&mut kept).map_err(|_| RssShortfall::Table)?;
    if kept != queues {
        return Err(RssShortfall::Table);
    }
    if usize::from(entries) % RSS_BUCKETS == 0 { Ok(()) } else { Err(RssShortfall::TableSize(entries)) }
}

/// Sets key and types. Whatever becomes of one side, key and full types are set in the end.
fn set_side(driver: &mut impl RssCalls, can: &Capabilities, rss: &Rss, full: u64) -> Result<(), RssShortfall> {
    let (key, one_sided) = (can.key(&rss.key), rss.side.types());
    if one_sided == 0 {
        driver.set_hash(key, full).map_err(|_| RssShortfall::Key)?;
        return Err(RssShortfall::BothSides);
    }
    if can.types & one_sided == one_sided && driver.set_hash(key, full | one_sided).is_ok() {
        let types = driver.hash(&mut vec![0; key.len()]).unwrap_or(0);
        if types & one_sided == one_sided && types & PORTS == PORTS {
            return Ok(());
        }
    }
    driver.set_hash(key, full).map_err(|_| RssShortfall::Key)?;
    // Most drivers have one key and one table for all rules; others want each rule to have its own.
    [None, Some((key, &rss.table[..]))]
        .into_iter()
        .find_map(|own| add_rules(driver, one_sided, own))
        .ok_or(RssShortfall::OneSide)
}

fn add_rules(driver: &mut impl RssCalls, one_sided: u64, own: Option<(&[u8], &[u16])>) -> Option<()> {
    let all = Pattern::ALL.iter().all(|&(pattern, of)| driver.add_rule(pattern, of | one_sided, own).is_ok());
    if !all {
        driver.clear_rules();
    }
    all.then_some(())
}

fn key_was_kept(driver: &mut impl RssCalls, can: &Capabilities, rss: &Rss) -> Result<(), RssShortfall> {
    let key = can.key(&rss.key);
    let mut kept = vec![0; key.len()];
    driver.hash(&mut kept).map_err(|_| RssShortfall::Key)?;
    let enough = key.len() >= USUAL_KEY_BYTES;
    if enough && kept == key { Ok(()) } else { Err(RssShortfall::Key) }
}

/// What has ports to hash, in both families.
const PORTS: u64 = RTE_ETH_RSS_NONFRAG_IPV4_TCP
    | RTE_ETH_RSS_NONFRAG_IPV4_UDP
    | RTE_ETH_RSS_NONFRAG_IPV6_TCP
    | RTE_ETH_RSS_NONFRAG_IPV6_UDP;
/// What Microsoft's specification has, and every device that does not say another size.
const USUAL_KEY_BYTES: usize = 40;

#[cfg(test)]
mod tests;
