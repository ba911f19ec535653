//! Pools, buffers and bursts over ring ports: nothing is lost, nothing is freed twice, and the edges hold.

#![allow(clippy::unwrap_used, reason = "tests, their shared functions too")]

use arrayvec::ArrayVec;
use weir_dpdk::{
    Checksum, IdlePort, Mbuf, Mempool, PoolConfig, PoolError, PortConfig, PortError, free_burst, test_eal,
};

/// A newtype as another crate has it.
#[repr(transparent)]
struct Frame(Mbuf);

impl From<Mbuf> for Frame {
    fn from(mbuf: Mbuf) -> Self {
        Self(mbuf)
    }
}

impl From<Frame> for Mbuf {
    fn from(frame: Frame) -> Self {
        frame.0
    }
}

fn pool(name: &str, mbufs: u32) -> Mempool {
    Mempool::new(test_eal(), name, PoolConfig { mbufs, cache: 0, data_room: 2048 }).unwrap()
}

fn numbered(pool: Mempool, number: u8) -> Frame {
    let mut mbuf = pool.alloc().unwrap();
    mbuf.append(60).unwrap().fill(number);
    Frame(mbuf)
}

fn numbers<const N: usize>(burst: &ArrayVec<Frame, N>) -> Vec<u8> {
    burst.iter().map(|frame| frame.0.data()[59]).collect()
}

#[test]
fn what_a_full_ring_refuses_stays_in_the_burst() {
    let pool = pool("partial", 255);
    let started =
        IdlePort::ring_loop(test_eal(), "partial", 1, 5).unwrap().start(&PortConfig::default(), pool).unwrap();
    let (mut rx, mut tx) = (started.rx, started.tx);
    let mut burst: ArrayVec<Frame, 32> = (0..16).map(|number| numbered(pool, number)).collect();

    assert_eq!(tx[0].send(&mut burst), 5, "as many as the ring has slots");
    assert_eq!(numbers(&burst), (5..16).collect::<Vec<_>>(), "the tail is still there, in order");
    assert_eq!(tx[0].send(&mut burst), 0, "a full ring takes nothing and does not wait");
    assert_eq!(burst.len(), 11);
    assert_eq!(pool.in_use(), 16);

    let mut back = ArrayVec::<Frame, 32>::new();
    assert_eq!(rx[0].receive(&mut back), 5);
    assert_eq!(numbers(&back), [0, 1, 2, 3, 4]);
    assert_eq!(tx[0].send(&mut burst), 5, "there is room again");
    assert_eq!(rx[0].receive(&mut back), 5, "receiving appends");
    assert_eq!(numbers(&back), (0..10).collect::<Vec<_>>());

    assert_eq!(numbers(&burst), (10..16).collect::<Vec<_>>());
    drop(burst);
    assert_eq!(pool.in_use(), 10);
    free_burst(&mut back);
    assert!(back.is_empty());
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn receiving_takes_no_more_than_fits() {
    let pool = pool("fits", 255);
    let started = IdlePort::ring_loop(test_eal(), "fits", 1, 64).unwrap().start(&PortConfig::default(), pool).unwrap();
    let (mut rx, mut tx) = (started.rx, started.tx);
    let mut burst: ArrayVec<Frame, 32> = (0..8).map(|number| numbered(pool, number)).collect();
    assert_eq!(tx[0].send(&mut burst), 8);
    assert!(burst.is_empty());
    assert_eq!(tx[0].send(&mut burst), 0, "nothing to send");

    let mut few = ArrayVec::<Frame, 3>::new();
    assert_eq!(rx[0].receive(&mut few), 3);
    assert_eq!(rx[0].receive(&mut few), 0, "no room");
    assert_eq!(numbers(&few), [0, 1, 2]);
    few.clear();
    assert_eq!(rx[0].receive(&mut few), 3);
    assert_eq!(numbers(&few), [3, 4, 5]);
    assert_eq!(started.port.statistics().unwrap().rx_multi_segment, 0);
    drop((few, rx, tx, started.port));
    assert_eq!(pool.in_use(), 0, "closing the port freed the two that nobody received");
}

#[test]
fn frames_larger_than_a_buffer_are_dropped_and_counted() {
    // The pcap driver cuts a large frame into as many buffers as it needs, as a NIC does.
    let file = std::env::temp_dir().join(format!("weir-dpdk-segments-{}.pcap", std::process::id()));
    let mut capture: Vec<u8> =
        [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
    for length in [60_u32, 3000, 61, 2049, 62] {
        capture.extend([0, 0, length, length].iter().flat_map(|n| n.to_le_bytes()));
        capture.extend(std::iter::repeat_n(7, length as usize));
    }
    std::fs::write(&file, capture).unwrap();
    let pool = pool("segments", 255);
    let vdev = weir_dpdk::Vdev::parse(&format!("net_pcap7,rx_pcap={}", file.display()));
    test_eal().add_vdev(&vdev).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut started = IdlePort::by_name(test_eal(), "net_pcap7").unwrap().start(&PortConfig::default(), pool).unwrap();
    let mut burst = ArrayVec::<Frame, 32>::new();
    while started.rx[0].receive(&mut burst) > 0 {}
    assert_eq!(burst.iter().map(|frame| frame.0.len()).collect::<Vec<_>>(), [60, 61, 62]);
    assert_eq!(started.port.statistics().unwrap().rx_multi_segment, 2);
    drop((burst, started));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn two_ports_back_to_back() {
    let pool = pool("pair", 255);
    let (left, right) = IdlePort::ring_pair(test_eal(), "pair", 32).unwrap();
    let mut left = left.start(&PortConfig::default(), pool).unwrap();
    let mut right = right.start(&PortConfig::default(), pool).unwrap();
    let mut burst: ArrayVec<Frame, 32> = (0..4).map(|number| numbered(pool, number)).collect();
    assert_eq!(left.tx[0].send(&mut burst), 4);
    assert_eq!(left.rx[0].receive(&mut burst), 0, "it is not a loop");
    assert_eq!(right.rx[0].receive(&mut burst), 4);
    assert_eq!(right.tx[0].send(&mut burst), 4);
    assert_eq!(left.port.statistics().unwrap().tx_packets, 4);
    assert_eq!(left.port.info().driver, "net_ring");
    drop(right);
    assert_eq!(left.rx[0].receive(&mut burst), 4, "what was on the way outlives the sender");
    assert_eq!(left.tx[0].send(&mut burst), 4, "nobody is there to receive them");
    drop(left);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_queue_keeps_its_port_open_and_moves_to_another_thread() {
    let pool = pool("moves", 255);
    let started = IdlePort::ring_loop(test_eal(), "moves", 2, 32).unwrap();
    let name = started.name().to_owned();
    assert_eq!(IdlePort::by_name(test_eal(), &name).unwrap_err(), PortError::InUse("net_ring_moves".to_owned()));
    let started = started.start(&PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() }, pool).unwrap();
    assert_eq!(started.rx.iter().map(|queue| queue.index()).collect::<Vec<_>>(), [0, 1]);
    let (mut rx, mut tx) = (started.rx, started.tx);
    drop(started.port);
    let received = std::thread::spawn(move || {
        let _known = test_eal().register_thread().unwrap();
        let mut burst: ArrayVec<Frame, 32> = (0..3).map(|number| numbered(pool, number)).collect();
        assert_eq!(tx[1].send(&mut burst), 3);
        assert_eq!(rx[0].receive(&mut burst), 0, "each queue is a loop of its own");
        rx[1].receive(&mut burst)
    });
    assert_eq!(received.join().unwrap(), 3);
    assert_eq!(pool.in_use(), 0);
    // The thread's end closed the port: its name is free.
    assert!(matches!(IdlePort::by_name(test_eal(), &name), Err(PortError::Absent(_))));
    drop(IdlePort::ring_loop(test_eal(), "moves", 1, 8).unwrap());
    drop(IdlePort::ring_loop(test_eal(), "moves", 1, 8).unwrap());
}

#[test]
fn a_port_is_had_once() {
    let pool = pool("once", 63);
    let vdev = weir_dpdk::Vdev::parse("net_ring_once");
    test_eal().add_vdev(&vdev).unwrap();
    let port = IdlePort::by_name(test_eal(), "net_ring_once").unwrap();
    assert_eq!(
        IdlePort::by_name(test_eal(), "net_ring_once").unwrap_err(),
        PortError::InUse("net_ring_once".to_owned())
    );
    assert_eq!(port.info().unwrap().driver, "net_ring");
    let config = PortConfig { rx_queues: 99, ..PortConfig::default() };
    assert!(matches!(port.start(&config, pool), Err(PortError::Queues { rx: 99, .. })));

    // A refused start leaves the device as it was.
    let config = PortConfig { mtu: 9000, ..PortConfig::default() };
    let port = IdlePort::by_name(test_eal(), "net_ring_once").unwrap();
    assert!(matches!(port.start(&config, pool), Err(PortError::Mtu { mtu: 9000, max: 2022, .. })));

    let mut started =
        IdlePort::by_name(test_eal(), "net_ring_once").unwrap().start(&PortConfig::default(), pool).unwrap();
    assert!(started.port.link().unwrap().up);
    let mut burst: ArrayVec<Frame, 8> = (0..4).map(|number| numbered(pool, number)).collect();
    assert_eq!(started.tx[0].send(&mut burst), 4);
    drop(started);
    assert_eq!(pool.in_use(), 0, "the driver's own rings are drained too");
    test_eal().add_vdev(&vdev).unwrap();
    drop(IdlePort::by_name(test_eal(), "net_ring_once").unwrap().start(&PortConfig::default(), pool).unwrap());
    assert_eq!(
        IdlePort::by_name(test_eal(), "net_ring_once").unwrap_err(),
        PortError::Absent("net_ring_once".to_owned())
    );
}

#[test]
fn a_pool_is_exhausted_and_recovers() {
    let pool = pool("exhausted", 31);
    assert_eq!((pool.size(), pool.available(), pool.in_use()), (31, 31, 0));
    let mut all: Vec<Mbuf> = std::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!((all.len(), pool.available(), pool.in_use()), (31, 0, 31));
    assert!(pool.alloc().is_none());

    all.truncate(28);
    let mut burst = ArrayVec::<Frame, 8>::new();
    assert!(!pool.alloc_burst(&mut burst, 4), "three are left");
    assert!(burst.is_empty());
    assert!(pool.alloc_burst(&mut burst, 3));
    assert!(!pool.alloc_burst(&mut burst, 6), "there is room for five");
    assert_eq!((burst.len(), pool.in_use()), (3, 31));
    drop((all, burst));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn pools_that_cannot_be() {
    let config = PoolConfig { mbufs: 31, cache: 0, data_room: 2048 };
    for name in ["", "twenty-six-bytes-are-too-many"] {
        assert_eq!(Mempool::new(test_eal(), name, config).unwrap_err(), PoolError::Name(name.to_owned()));
    }
    let too_much = PoolConfig { mbufs: 1 << 20, ..config };
    let error = Mempool::new(test_eal(), "too-much", too_much).unwrap_err();
    assert!(matches!(error, PoolError::Create { bytes, .. } if bytes > 256 << 20), "{error}");
    let _first = pool("twice", 31);
    assert!(matches!(Mempool::new(test_eal(), "twice", config), Err(PoolError::Create { .. })));
}

#[test]
fn a_frame_grows_and_shrinks_at_both_ends() {
    let pool = pool("edges", 31);
    let mut mbuf = pool.alloc().unwrap();
    assert_eq!((mbuf.len(), mbuf.headroom(), mbuf.tailroom()), (0, 128, 2048));
    assert!(mbuf.is_empty() && mbuf.is_contiguous() && mbuf.data().is_empty());
    assert_eq!((mbuf.rss_hash(), mbuf.stripped_vlan()), (None, None));
    assert_eq!((mbuf.ip_checksum(), mbuf.l4_checksum()), (Checksum::Unknown, Checksum::Unknown));

    mbuf.append(4).unwrap().copy_from_slice(&[1, 2, 3, 4]);
    mbuf.prepend(2).unwrap().copy_from_slice(&[8, 9]);
    assert_eq!(mbuf.data(), [8, 9, 1, 2, 3, 4]);
    assert!(!mbuf.trim_front(7) && !mbuf.truncate(7) && !mbuf.trim_front(1 << 16), "shorter than that already");
    assert!(mbuf.trim_front(3) && mbuf.truncate(2));
    mbuf.data_mut()[0] = 5;
    assert_eq!(mbuf.data(), [5, 3]);

    // All of the headroom, and not a byte more.
    assert_eq!(mbuf.headroom(), 129);
    assert!(mbuf.prepend(130).is_none() && mbuf.prepend(1 << 16).is_none());
    assert_eq!(mbuf.prepend(129).unwrap().len(), 129);
    assert_eq!((mbuf.headroom(), mbuf.len()), (0, 131));
    assert!(mbuf.prepend(1).is_none());

    // All of the tailroom, and not a byte more.
    assert!(mbuf.append(mbuf.tailroom() + 1).is_none() && mbuf.append(usize::MAX).is_none());
    assert!(!mbuf.resize(2177) && mbuf.resize(2176));
    assert_eq!((mbuf.len(), mbuf.tailroom()), (2176, 0));
    mbuf.data_mut().fill(0xff);
    assert!(mbuf.resize(0) && mbuf.data().is_empty());
    drop(mbuf);

    // What was done to one buffer is not seen in the next.
    let all: Vec<Mbuf> = std::iter::from_fn(|| pool.alloc()).collect();
    assert!(all.iter().all(|mbuf| (mbuf.len(), mbuf.headroom()) == (0, 128)));
    drop(all);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn eal_starts_once_and_leaves_the_callers_cpus_alone() {
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    let eal = test_eal();
    assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), cpus);
    assert_eq!(
        weir_dpdk::Eal::init(&weir_dpdk::EalOptions::default()).unwrap_err(),
        weir_dpdk::EalError::AlreadyRunning
    );
    let missing = weir_dpdk::Vdev::parse("net_no_such_driver0");
    let error = eal.add_vdev(&missing).unwrap_err();
    assert!(error.to_string().contains("net_no_such_driver0"), "{error}");
}

#[test]
fn every_registered_thread_has_a_cache() {
    let pool = Mempool::new(test_eal(), "cached", PoolConfig { mbufs: 1023, cache: 64, data_room: 256 }).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let _known = test_eal().register_thread().unwrap();
                for _ in 0..1000 {
                    let mut burst = ArrayVec::<Frame, 32>::new();
                    assert!(pool.alloc_burst(&mut burst, 32));
                    free_burst(&mut burst);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((pool.in_use(), pool.available()), (0, 1023), "caches count as available");
}
