//! Ports: DPDK's devices opened as the YAML says, their queues dealt to shards, and the dataplane's traits on DPDK's buffers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weir_config::{Config, Device, Side};
use weir_dataplane::packet::{Burst, Packet, Queue};
use weir_dataplane::shard::{Twin, TwinQueues, TwinRates};
use weir_dpdk::{
    DeviceError, Eal, EalError, EalOptions, FlowControl, IdlePort, Mbuf, MemoryMode, Mempool, PacketSockets,
    PoolConfig, PoolError, Port, PortConfig, PortError, RSS_BUCKETS, Rss, RssSide, RssState, RxQueue, TxQueue, Vdev,
};

use crate::naps;
use crate::unit::PortEnds;

/// A DPDK buffer as the dataplane sees it.
#[repr(transparent)]
#[derive(Debug)]
pub struct MbufPacket(Mbuf);

impl From<Mbuf> for MbufPacket {
    #[inline(always)]
    fn from(mbuf: Mbuf) -> Self {
        Self(mbuf)
    }
}

impl From<MbufPacket> for Mbuf {
    #[inline(always)]
    fn from(packet: MbufPacket) -> Self {
        packet.0
    }
}

impl Packet for MbufPacket {
    #[inline(always)]
    fn data(&self) -> &[u8] {
        self.0.data()
    }

    #[inline(always)]
    fn data_mut(&mut self) -> &mut [u8] {
        self.0.data_mut()
    }

    #[inline(always)]
    fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.0.prepend(bytes)?;
        Some(self.0.data_mut())
    }

    fn trim_front(&mut self, bytes: usize) -> bool {
        self.0.trim_front(bytes)
    }

    #[inline(always)]
    fn resize(&mut self, bytes: usize) -> bool {
        self.0.resize(bytes)
    }

    #[inline(always)]
    fn prefetch(&self) {
        weir_cpu::prefetch_write_at(self.0.data(), 0);
    }

    #[inline(always)]
    fn prefetch_header(&self) {
        weir_cpu::prefetch_read(self.0.header());
    }
}

/// One queue pair of a port.
#[derive(Debug)]
pub struct PortQueue {
    rx: Option<RxQueue>,
    tx: TxQueue,
    pool: Mempool,
    lasts: Option<Duration>,
}

impl PortQueue {
    /// A queue pair whose originated packets come from `pool`. Packets that find it full are kept for a while by whoever sends them.
    #[must_use]
    pub fn new(rx: RxQueue, tx: TxQueue, pool: Mempool) -> Self {
        Self { rx: Some(rx), tx, pool, lasts: None }
    }

    /// One that only sends, where a device has more transmit than receive queues.
    #[must_use]
    pub fn sending(tx: TxQueue, pool: Mempool) -> Self {
        Self { rx: None, tx, pool, lasts: None }
    }

    /// The same of a NIC, which drops what its receive queue cannot take.
    fn of_nic(self) -> Self {
        Self { lasts: self.rx.as_ref().map(|rx| naps::lasts(rx.descriptors(), rx.fastest_mbps())), ..self }
    }

    /// How long the receive queue lasts when nobody takes packets from it; `None`: it is not a NIC's.
    #[must_use]
    pub fn lasts(&self) -> Option<Duration> {
        self.lasts
    }

    /// Lets an idle core wait for packets here; `false` if the driver offers nothing to wait for.
    pub fn wait_on(&self, sockets: &mut PacketSockets) -> bool {
        // What it only sends comes over rings, whose fillers ring a bell.
        self.rx.as_ref().is_none_or(|rx| sockets.add_queue(rx))
    }
}

impl Queue for PortQueue {
    type Packet = MbufPacket;

    #[inline]
    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        if let Some(rx) = &mut self.rx {
            rx.receive(burst);
        }
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        self.tx.send(burst);
    }

    fn is_behind(&self) -> Option<bool> {
        let rx = self.rx.as_ref()?;
        let descriptors = rx.descriptors();
        rx.holds_more_than((descriptors / 4).max(TWO_TURNS).min(descriptors / 2))
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        self.pool.alloc().map(MbufPacket)
    }
}

/// All ports, started.
pub struct Opened {
    /// Handles for address, link and statistics: the DPDK ports of each of the YAML's.
    pub ports: Vec<Vec<Port>>,
    /// The pool of all buffers.
    pub pool: Mempool,
    /// MAC addresses, in the YAML's order.
    pub macs: Vec<[u8; 6]>,
    /// The shards' ends of the ports.
    pub ends: Ends,
    /// Buffers that drivers take at the start and never give back: AF_XDP's fill rings, which the driver forgets as it closes.
    pub kept_by_drivers: u32,
}

/// Queues that have not been taken yet.
#[derive(Debug)]
pub struct Ends {
    queues: HashMap<(usize, usize), PortQueue>,
    twins: HashMap<usize, PortQueue>,
    /// What waits for each port's twin, where it has one.
    waiting: Vec<Option<Arc<TwinQueues<MbufPacket>>>>,
    owners: Vec<usize>,
}

impl Ends {
    /// What `shard` gets of `port`: queue n is shard n's; a shard beyond the queues sends by shard number modulo queues. The ports'
    /// twins are dealt to shards with queues of theirs, so that one shard has not the work of all.
    pub fn take(&mut self, shard: usize, port: usize) -> PortEnds<PortQueue> {
        let queue = self.queues.remove(&(shard, port)).ok_or(shard % self.owners[port]);
        let twin = match self.waiting[port].clone() {
            None => Twin::Itself,
            Some(waiting) if shard == port % self.owners[port] => match self.twins.remove(&port) {
                Some(queue) => Twin::Port(queue, waiting),
                None => Twin::Queued(waiting),
            },
            Some(waiting) => Twin::Queued(waiting),
        };
        (queue, twin)
    }
}

/// Why the ports are not open.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// DPDK did not start.
    #[error(transparent)]
    Eal(#[from] EalError),
    /// No memory for buffers.
    #[error("{source}; raise dataplane.memory or lower dataplane.mbufs")]
    Pool {
        /// Why.
        #[from]
        source: PoolError,
    },
    /// A device that cannot be.
    #[error("port {port}: {source}")]
    Device {
        /// The YAML's name of the port.
        port: String,
        /// Why.
        source: DeviceError,
    },
    /// A device that does not start.
    #[error("port {port}: {source}")]
    Port {
        /// The YAML's name of the port.
        port: String,
        /// Why.
        source: PortError,
    },
    /// A device that does not start.
    #[error("port {port}: {source}")]
    Vdev {
        /// The YAML's name of the port.
        port: String,
        /// Why.
        source: EalError,
    },
    /// Packet sockets and TAPs are for root.
    #[error("only root can open network ports: run weir as root, or in a unit file with CAP_NET_RAW and CAP_NET_ADMIN")]
    NotRoot,
}

/// Whether this process may open ports at all.
///
/// # Errors
///
/// [`PortsError::NotRoot`].
pub fn require_root() -> Result<(), PortsError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(PortsError::NotRoot) }
}

/// Which shard owns which flows, as NICs can be told: by a Toeplitz hash over one side's address and port, modulo 128.
#[derive(Debug, Clone, Copy)]
pub struct Buckets {
    /// The Toeplitz key.
    pub key: [u8; 52],
    /// The shard of each bucket.
    pub shards: [u16; RSS_BUCKETS],
}

impl Buckets {
    /// What a port of so many queues is told: queue n is shard n's.
    fn rss(&self, side: Side, queues: u16) -> Rss {
        let side = match side {
            Side::Clients => RssSide::Source,
            Side::Hosts => RssSide::Destination,
            Side::Both => RssSide::Both,
        };
        Rss { key: self.key, side, table: self.shards.map(|shard| shard % queues.max(1)) }
    }
}

/// Starts DPDK and all ports. With `buckets`, NICs of several queues are told which flows belong to which.
///
/// # Errors
///
/// [`PortsError`], each with what to do about it.
pub fn open(config: &Config, buckets: Option<&Buckets>) -> Result<Opened, PortsError> {
    let settings = &config.dataplane;
    for port in config.ports.iter().filter(|port| crate::knowledge::vlan(port).is_none()) {
        let source = |source| PortsError::Device { port: port.name.clone(), source };
        device(&port.device).check().map_err(source)?;
    }
    let memory = if settings.hugepages {
        MemoryMode::Huge { in_memory: true }
    } else {
        MemoryMode::NoHuge { mib: u32::try_from(settings.memory_mib).unwrap_or(u32::MAX) }
    };
    let pci = config.ports.iter().filter_map(|port| match &port.device {
        Device::Pci(address) => Some(address.clone()),
        _ => None,
    });
    let eal = Eal::init(&EalOptions {
        program: "weir".to_owned(),
        file_prefix: format!("weir-{}-{}", config.unit.id, std::process::id()),
        memory,
        pci_allow: pci.collect(),
        log: |text| tracing::warn!(target: "dpdk", "{}", text.trim_end()),
        ..EalOptions::default()
    })?;
    let largest = config.ports.iter().map(|port| port.mtu).max().unwrap_or(1500);
    let pool = Mempool::new(
        eal,
        "weir",
        PoolConfig { mbufs: settings.mbufs, cache: 256, data_room: PoolConfig::data_room_for(largest) },
    )?;
    let mut opened = Opened {
        ports: Vec::new(),
        pool,
        macs: Vec::new(),
        ends: Ends { queues: HashMap::new(), twins: HashMap::new(), waiting: Vec::new(), owners: Vec::new() },
        kept_by_drivers: 0,
    };
    for (index, port) in config.ports.iter().enumerate() {
        opened.open_port(eal, index, port, twin_rates(settings), buckets, settings.shards)?;
    }
    Ok(opened)
}

impl Opened {
    fn open_port(
        &mut self,
        eal: Eal,
        index: usize,
        settings: &weir_config::Port,
        rates: TwinRates,
        buckets: Option<&Buckets>,
        shards: usize,
    ) -> Result<(), PortsError> {
        if let Device::Vlan { parent, .. } = settings.device {
            self.ports.push(Vec::new());
            self.macs.push(self.macs[parent]);
            self.ends.waiting.push(None);
            self.ends.owners.push(1);
            return Ok(());
        }
        let in_port = |source| PortsError::Port { port: settings.name.clone(), source };
        let device = device(&settings.device);
        let wanted = match &settings.device {
            Device::AfXdp(interface) => at_most(settings, interface_queues(interface)),
            _ => settings.queues,
        };
        let vdevs = device
            .vdevs(index, wanted, settings.mtu)
            .map_err(|source| PortsError::Device { port: settings.name.clone(), source })?;
        let idle = match &settings.device {
            Device::Pci(address) => {
                let idle = IdlePort::by_pci(eal, address).map_err(in_port)?;
                let has = idle.info().map_err(in_port)?;
                let receive = at_most(settings, Some(has.max_rx_queues.min(has.max_tx_queues)));
                // Each shard sends by itself, also those that have no receive queue.
                let send = u16::try_from(shards).unwrap_or(u16::MAX).min(has.max_tx_queues).max(receive);
                vec![(idle, receive, send)]
            }
            _ => vdevs
                .iter()
                .map(|vdev| Ok((self.add_vdev(eal, vdev, settings)?, vdev.queues, vdev.queues)))
                .collect::<Result<Vec<_>, PortsError>>()?,
        };
        let mut started_ports = Vec::new();
        let mut shard = 0;
        for (idle, queues, send) in idle {
            let config = PortConfig { tx_queues: send, ..port_config(settings, queues, buckets) };
            let started = idle.start(&config, self.pool).map_err(in_port)?;
            let nic = matches!(settings.device, Device::Pci(_));
            if nic {
                tell(settings, &started.port);
            }
            if matches!(settings.device, Device::AfXdp(_)) {
                self.kept_by_drivers += AF_XDP_FILL_RING * u32::from(queues);
            }
            let mut receive = started.rx.into_iter();
            for (more, tx) in started.tx.into_iter().enumerate() {
                let queue = match receive.next() {
                    Some(rx) => PortQueue::new(rx, tx, self.pool),
                    None => PortQueue::sending(tx, self.pool),
                };
                self.ends.queues.insert((shard + more, index), if nic { queue.of_nic() } else { queue });
            }
            shard += usize::from(queues);
            started_ports.push(started.port);
        }
        self.ends.owners.push(shard);
        let mac = match (settings.mac, started_ports.first()) {
            (Some(mac), _) => mac,
            (None, Some(port)) => port.mac().map_err(|errno| {
                in_port(PortError::Step {
                    name: settings.name.clone(),
                    step: "reading the address",
                    errno,
                    log: String::new(),
                })
            })?,
            (None, None) => [0x02, 0, 0, 0, 0, 0],
        };
        self.macs.push(mac);
        self.ends.waiting.push(settings.twin.as_ref().map(|_| Arc::new(TwinQueues::new(rates))));
        if let Some(twin) = &settings.twin {
            let mut vdevs = weir_dpdk::Device::Tap(twin.clone())
                .vdevs(index, 1, settings.mtu)
                .map_err(|source| PortsError::Device { port: settings.name.clone(), source })?;
            for vdev in &mut vdevs {
                // The kernel speaks with the port's own address.
                let [a, b, c, d, e, f] = mac;
                vdev.args += &format!(",mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
                let idle = self.add_vdev(eal, vdev, settings)?;
                let config = PortConfig { mtu: crate::twin::mtu(settings), ..PortConfig::default() };
                let started = idle.start(&config, self.pool).map_err(in_port)?;
                let queue = started.rx.into_iter().zip(started.tx).next();
                self.ends.twins.extend(queue.map(|(rx, tx)| (index, PortQueue::new(rx, tx, self.pool))));
            }
        }
        self.ports.push(started_ports);
        Ok(())
    }

    fn add_vdev(&self, eal: Eal, vdev: &Vdev, settings: &weir_config::Port) -> Result<IdlePort, PortsError> {
        eal.add_vdev(vdev).map_err(|source| PortsError::Vdev { port: settings.name.clone(), source })?;
        IdlePort::by_name(eal, &vdev.name).map_err(|source| PortsError::Port { port: settings.name.clone(), source })
    }
}

/// What each port's twin takes.
#[must_use]
pub fn twin_rates(settings: &weir_config::Dataplane) -> TwinRates {
    let twin = &settings.twin;
    TwinRates { rest: twin.packets_per_second, control: twin.control_packets_per_second }
}

/// What a port's device is told. Kernel interfaces keep their own address, which others use too; a NIC is all ours.
fn port_config(settings: &weir_config::Port, queues: u16, buckets: Option<&Buckets>) -> PortConfig {
    let nic = matches!(settings.device, Device::Pci(_));
    PortConfig {
        rx_queues: queues,
        tx_queues: queues,
        rx_descriptors: settings.rx_descriptors,
        tx_descriptors: settings.tx_descriptors,
        mtu: settings.mtu,
        promiscuous: settings.mac.is_some() && !nic,
        all_multicast: nic,
        mac: settings.mac.filter(|_| nic),
        flow_control: match settings.flow_control {
            weir_config::FlowControl::Keep => FlowControl::Keep,
            weir_config::FlowControl::Off => FlowControl::Off,
            weir_config::FlowControl::Rx => FlowControl::Rx,
            weir_config::FlowControl::Tx => FlowControl::Tx,
            weir_config::FlowControl::Full => FlowControl::Full,
        },
        rss: buckets.map(|buckets| buckets.rss(settings.side, queues)),
    }
}

/// Logs what a NIC made of it.
fn tell(settings: &weir_config::Port, port: &Port) {
    let (info, rss) = (port.info(), port.rss());
    tracing::info!(
        port = %settings.name, driver = %info.driver, queues = settings.queues, mtu = settings.mtu, %rss,
        promiscuous = port.promiscuous(), fastest_mbps = info.fastest_mbps.unwrap_or(0), "NIC started"
    );
    match rss {
        RssState::Hint(_) => tracing::info!(
            port = %settings.name,
            "packets may come to another shard than their flow's and are handed over; a one-armed port or trunk is exact one way at most"
        ),
        RssState::Exact(_) | RssState::None => {}
    }
}

/// The queues of a port: as many as its device has, where the YAML does not name a number.
fn at_most(settings: &weir_config::Port, has: Option<u16>) -> u16 {
    match has {
        Some(has) if !settings.queues_given && has < settings.queues => {
            let queues = has.max(1);
            tracing::warn!(
                port = %settings.name, queues, shards = settings.queues,
                "the device has fewer queues than there are shards, which hand packets to each other"
            );
            queues
        }
        _ => settings.queues,
    }
}

/// The receive queues of a kernel interface, if the kernel tells.
fn interface_queues(interface: &str) -> Option<u16> {
    let queues = std::fs::read_dir(format!("/sys/class/net/{interface}/queues")).ok()?.flatten();
    let receive = queues.filter(|queue| queue.file_name().to_str().is_some_and(|name| name.starts_with("rx-")));
    u16::try_from(receive.count()).ok()
}

fn device(device: &Device) -> weir_dpdk::Device {
    match device {
        Device::AfPacket(interface) => weir_dpdk::Device::AfPacket(interface.clone()),
        Device::AfXdp(interface) => weir_dpdk::Device::AfXdp(interface.clone()),
        Device::Pci(address) => weir_dpdk::Device::Pci(address.clone()),
        Device::Vdev(vdev) => weir_dpdk::Device::Vdev(Vdev::parse(vdev)),
        Device::Vlan { .. } => weir_dpdk::Device::Vdev(Vdev::parse("")), // never: it is opened with its parent
    }
}

/// Packets that a shard takes from a port in two turns: what waits beyond that, in a queue large enough, is a backlog.
const TWO_TURNS: u16 = 512;
/// `ETH_AF_XDP_DFLT_NUM_DESCS`: what the driver always holds for the kernel to fill, whatever the queue's size.
const AF_XDP_FILL_RING: u32 = 2048;
