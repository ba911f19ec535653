//! Without huge pages the answer is a named error before anything has happened, and ordinary memory still works.

use weir_dpdk::{Eal, EalError, EalOptions, MemoryMode, Mempool, PoolConfig};

#[test]
fn no_huge_pages_is_said_before_eal_starts() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let reserved = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Total:")).unwrap();
    let options = EalOptions { memory: MemoryMode::Huge { in_memory: true }, ..EalOptions::default() };
    let eal = match Eal::init(&options) {
        Err(EalError::NoHugepages) => {
            assert_eq!(reserved.trim(), "0");
            Eal::init(&EalOptions { memory: MemoryMode::NoHuge { mib: 64 }, ..options }).unwrap()
        }
        started => started.unwrap(),
    };
    let config = PoolConfig { mbufs: 8191, ..PoolConfig::default() };
    assert!(config.bytes() < 48 << 20);
    let pool = Mempool::new(eal, "fits", config).unwrap();
    assert_eq!(pool.available(), 8191, "a default pool fits into 64 MiB");
}
