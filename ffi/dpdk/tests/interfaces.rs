//! Ports on kernel interfaces: veth pairs in a network namespace of the test's own thread. They need root.

#![allow(clippy::unwrap_used, reason = "tests, their shared functions too")]
#![allow(unsafe_code, reason = "rustix marks unshare as unsafe")]

use std::process::Command;
use std::time::Duration;

use arrayvec::ArrayVec;
use weir_dpdk::{
    Device, EalError, FlowControl, IdlePort, Mbuf, Mempool, PacketSockets, PoolConfig, PortConfig, PortError, Started,
    test_eal,
};

type Burst = ArrayVec<Mbuf, 32>;

/// IEEE 802's number for local experiments: the kernel's own chatter on a new interface has others.
const OURS: [u8; 2] = [0x88, 0xb5];

/// Moves the calling thread into a namespace of its own, which ends with it. `false` without the rights to.
fn own_namespace() -> bool {
    // SAFETY: only the network namespace is unshared, on which nothing in this thread depends yet.
    let moved = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.is_ok();
    if !moved {
        eprintln!("not root: skipped");
        return false;
    }
    // Or the kernel would look for neighbours on every new interface.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    moved
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn veth(left: &str, right: &str, mtu: u16) {
    ip(&format!("link add {left} mtu {mtu} type veth peer name {right} mtu {mtu}"));
    ip(&format!("link set {left} up"));
    ip(&format!("link set {right} up"));
}

fn start(device: &str, index: usize, config: &PortConfig, pool: Mempool) -> Vec<Started> {
    let device: Device = device.parse().unwrap();
    device.check().unwrap();
    let start = |vdev: weir_dpdk::Vdev| {
        test_eal().add_vdev(&vdev).unwrap();
        let config = PortConfig { rx_queues: vdev.queues, tx_queues: vdev.queues, ..*config };
        IdlePort::by_name(test_eal(), &vdev.name).unwrap().start(&config, pool).unwrap()
    };
    device.vdevs(index, config.rx_queues, config.mtu).unwrap().into_iter().map(start).collect()
}

fn frame(pool: Mempool, number: u8, len: usize) -> Mbuf {
    let mut mbuf = pool.alloc().unwrap();
    let bytes = mbuf.append(len).unwrap();
    bytes.fill(number);
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&OURS);
    mbuf
}

/// Waits on the sockets until `wanted` frames of ours have come, from any of the queues.
fn receive(port: &mut Started, sockets: &mut PacketSockets, wanted: usize) -> Vec<Mbuf> {
    let mut ours = Vec::new();
    for _ in 0..100 {
        for queue in &mut port.rx {
            let mut burst = Burst::new();
            queue.receive(&mut burst);
            ours.extend(burst.into_iter().filter(|mbuf| mbuf.data().get(12..14) == Some(&OURS[..])));
        }
        if ours.len() >= wanted {
            break;
        }
        sockets.wait(Duration::from_millis(50)).unwrap();
    }
    ours
}

#[test]
fn af_packet_over_veth() {
    if !own_namespace() {
        return;
    }
    veth("wdpkt0", "wdpkt1", 1500);
    let pool = Mempool::new(test_eal(), "af_packet", PoolConfig { mbufs: 1023, cache: 0, data_room: 2048 }).unwrap();
    let config = PortConfig { rx_queues: 2, promiscuous: true, ..PortConfig::default() };
    let mut left = start("af_packet:wdpkt0", 0, &config, pool).remove(0);
    let mut right = start("af_packet:wdpkt1", 1, &PortConfig { rx_queues: 1, ..config }, pool).remove(0);

    assert_eq!((left.port.packet_sockets(), right.port.packet_sockets()), (2, 1), "one socket a queue");
    assert!(left.port.link().unwrap().up);
    assert_ne!(left.port.mac().unwrap(), right.port.mac().unwrap());
    assert_ne!(left.port.info().if_index, 0);
    let mut sockets = PacketSockets::new();
    assert!(sockets.add_queue(&right.rx[0]));
    assert!(sockets.add_port(&right.port), "again, which changes nothing");
    assert_eq!(sockets.len(), 1);

    let mut burst: Burst = (0..20).map(|number| frame(pool, number, 60 + 73 * usize::from(number))).collect();
    assert_eq!(left.tx[0].send(&mut burst), 20);
    let received = receive(&mut right, &mut sockets, 20);
    assert_eq!(received.len(), 20);
    for (number, mbuf) in (0_u8..).zip(&received) {
        assert_eq!((mbuf.len(), mbuf.data()[14]), (60 + 73 * usize::from(number), number));
        assert_eq!((mbuf.headroom(), mbuf.port()), (128, right.port.index()));
    }
    drop(received);
    assert!(left.port.statistics().unwrap().tx_packets >= 20);

    // And back, over the other port's two sockets.
    let mut sockets = PacketSockets::new();
    assert!(left.rx.iter().all(|queue| sockets.add_queue(queue)));
    assert_eq!(sockets.len(), 2);
    let mut burst: Burst = (0..20).map(|number| frame(pool, number, 1514)).collect();
    assert_eq!(right.tx[0].send(&mut burst), 20);
    assert_eq!(receive(&mut left, &mut sockets, 20).len(), 20);
    drop((left, right, sockets));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_core_sleeps_until_there_is_something() {
    if !own_namespace() {
        return;
    }
    veth("wdslp0", "wdslp1", 1500);
    let pool = Mempool::new(test_eal(), "sleep", PoolConfig { mbufs: 255, cache: 0, data_room: 2048 }).unwrap();
    let mut left = start("af_packet:wdslp0", 2, &PortConfig::default(), pool).remove(0);
    let mut right = start("af_packet:wdslp1", 3, &PortConfig::default(), pool).remove(0);
    let event = std::sync::Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap());
    let mut sockets = PacketSockets::new();
    sockets.add_queue(&right.rx[0]);
    sockets.add_descriptor(std::sync::Arc::clone(&event));

    // Whatever the kernel says on a new interface comes first; when it is quiet the wait times out.
    let mut chatter = Burst::new();
    while sockets.wait(Duration::from_millis(1)).unwrap() {
        right.rx[0].receive(&mut chatter);
        chatter.clear();
    }
    let mut burst: Burst = [frame(pool, 1, 60)].into_iter().collect();
    assert_eq!(left.tx[0].send(&mut burst), 1);
    assert!(sockets.wait(Duration::from_secs(10)).unwrap(), "a frame wakes it");
    assert_eq!(receive(&mut right, &mut sockets, 1).len(), 1);

    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    assert!(sockets.wait(Duration::from_secs(10)).unwrap(), "so does another core");
    assert!(sockets.wait(Duration::ZERO).unwrap(), "until it is read");
    rustix::io::read(&event, &mut [0; 8]).unwrap();

    // A link that goes down is an error on the socket, which must not make every further wait return at once.
    ip("link set wdslp1 down");
    let quiet = (0..10).any(|_| {
        right.rx[0].receive(&mut chatter);
        chatter.clear();
        !sockets.wait(Duration::from_millis(1)).unwrap()
    });
    assert!(quiet);
    drop((left, right, sockets));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn jumbo_frames() {
    if !own_namespace() {
        return;
    }
    veth("wdjmb0", "wdjmb1", 9000);
    let pool = Mempool::new(test_eal(), "jumbo", PoolConfig { mbufs: 63, cache: 0, data_room: 9216 }).unwrap();
    let config = PortConfig { mtu: 9000, ..PortConfig::default() };
    let mut left = start("af_packet:wdjmb0", 4, &config, pool).remove(0);
    let mut right = start("af_packet:wdjmb1", 5, &PortConfig { promiscuous: true, ..config }, pool).remove(0);
    let mut sockets = PacketSockets::new();
    sockets.add_port(&right.port);
    let mut burst: Burst = [frame(pool, 7, 9014)].into_iter().collect();
    assert_eq!(left.tx[0].send(&mut burst), 1);
    let received = receive(&mut right, &mut sockets, 1);
    assert_eq!(received.iter().map(Mbuf::len).collect::<Vec<_>>(), [9014]);
    assert!(received[0].data()[14..].iter().all(|&byte| byte == 7));
}

#[test]
fn af_xdp_over_veth() {
    if !own_namespace() {
        return;
    }
    veth("wdxdp0", "wdxdp1", 1500);
    let pool = Mempool::new(test_eal(), "af_xdp", PoolConfig { mbufs: 8191, cache: 0, data_room: 2048 }).unwrap();
    let mut left = start("af_xdp:wdxdp0", 6, &PortConfig::default(), pool).remove(0);
    let mut right =
        start("af_packet:wdxdp1", 7, &PortConfig { promiscuous: true, ..PortConfig::default() }, pool).remove(0);
    assert_eq!(left.port.packet_sockets(), 1);

    let mut sockets = PacketSockets::new();
    assert!(sockets.add_queue(&left.rx[0]));
    let mut burst: Burst = (0..8).map(|number| frame(pool, number, 100)).collect();
    assert_eq!(right.tx[0].send(&mut burst), 8);
    let received = receive(&mut left, &mut sockets, 8);
    assert_eq!(received.iter().map(|mbuf| mbuf.data()[14]).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());

    let mut burst: Burst = received.into_iter().collect();
    assert_eq!(left.tx[0].send(&mut burst), 8);
    let mut sockets = PacketSockets::new();
    sockets.add_port(&right.port);
    assert_eq!(receive(&mut right, &mut sockets, 8).len(), 8);
}

#[test]
fn a_tap_and_the_kernels_end_of_it() {
    if !own_namespace() {
        return;
    }
    let pool = Mempool::new(test_eal(), "tap", PoolConfig { mbufs: 4095, cache: 0, data_room: 2048 }).unwrap();
    let config = PortConfig { rx_descriptors: 256, tx_descriptors: 256, ..PortConfig::default() };
    let mut twin = start("tap:wdtap0", 10, &config, pool).remove(0);
    ip("link set wdtap0 up");
    let mut kernel = start("af_packet:wdtap0", 11, &PortConfig::default(), pool).remove(0);

    let mut sockets = PacketSockets::new();
    assert!(!sockets.add_queue(&twin.rx[0]), "a TAP has to be polled");
    assert!(sockets.add_queue(&kernel.rx[0]));
    let mut burst: Burst = (0..4).map(|number| frame(pool, number, 200)).collect();
    assert_eq!(twin.tx[0].send(&mut burst), 4);
    let mut burst: Burst = receive(&mut kernel, &mut sockets, 4).into_iter().collect();
    assert_eq!(kernel.tx[0].send(&mut burst), 4, "and back");
    let received = receive(&mut twin, &mut PacketSockets::new(), 4);
    assert_eq!(received.iter().map(|mbuf| mbuf.data()[14]).collect::<Vec<_>>(), [0, 1, 2, 3]);
    drop((twin, kernel, sockets, received));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_device_takes_address_multicast_and_mtu() {
    if !own_namespace() {
        return;
    }
    let pool = Mempool::new(test_eal(), "filters", PoolConfig { mbufs: 4095, cache: 0, data_room: 2048 }).unwrap();
    let mac = [2, 0, 0, 0, 0x77, 1];
    let config =
        PortConfig { rx_descriptors: 256, mtu: 1400, mac: Some(mac), all_multicast: true, ..PortConfig::default() };
    let tap = start("tap:wdflt0", 12, &config, pool).remove(0);
    assert_eq!(tap.port.mac(), Ok(mac));
    assert!(!tap.port.promiscuous(), "there was no need");
    assert_eq!(tap.port.rss(), weir_dpdk::RssState::None, "one queue spreads nothing");
    let shown = Command::new("ip").args(["link", "show", "wdflt0"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("02:00:00:00:77:01") && shown.contains("mtu 1400"), "{shown}");

    // An af_packet port shares the operator's interface with the kernel, whose MTU stays.
    veth("wdflt1", "wdflt2", 1500);
    let config = PortConfig { mtu: 1300, mac: None, ..config };
    let shared = start("af_packet:wdflt1", 13, &PortConfig { all_multicast: false, ..config }, pool).remove(0);
    let shown = Command::new("ip").args(["link", "show", "wdflt1"]).output().unwrap();
    assert!(String::from_utf8(shown.stdout).unwrap().contains("mtu 1500"));
    drop(shared);

    let refused = start_refused("tap:wdflt3", 14, &PortConfig { flow_control: FlowControl::Rx, ..config }, pool);
    assert!(refused.to_string().contains("setting flow control failed"), "{refused}");
}

fn start_refused(device: &str, index: usize, config: &PortConfig, pool: Mempool) -> PortError {
    let vdev = device.parse::<Device>().unwrap().vdevs(index, 1, config.mtu).unwrap().remove(0);
    test_eal().add_vdev(&vdev).unwrap();
    IdlePort::by_name(test_eal(), &vdev.name).unwrap().start(config, pool).unwrap_err()
}

#[test]
fn what_is_wrong_with_an_interface_is_said() {
    if !own_namespace() {
        return;
    }
    let vdev = &"af_packet:wdnone".parse::<Device>().unwrap().vdevs(8, 1, 1500).unwrap()[0];
    let error = test_eal().add_vdev(vdev).unwrap_err();
    assert!(matches!(&error, EalError::Vdev { advice, .. } if advice.contains("interface")), "{error}");
    assert!(error.to_string().contains("wdnone"), "{error}");

    // Sockets that nobody reads would swallow their part of the packets.
    veth("wdtwo0", "wdtwo1", 1500);
    let pool = Mempool::new(test_eal(), "wrong", PoolConfig { mbufs: 63, cache: 0, data_room: 2048 }).unwrap();
    test_eal().add_vdev(&"af_packet:wdtwo0".parse::<Device>().unwrap().vdevs(9, 2, 1500).unwrap()[0]).unwrap();
    let port = IdlePort::by_name(test_eal(), "net_af_packet9").unwrap();
    assert!(matches!(port.start(&PortConfig::default(), pool), Err(PortError::QueuesLeftOut { asked: 1, has: 2, .. })));
}
