//! Ports: found by name, configured and started once, closed when the handle and all queues are gone.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{fmt, ptr};

use weir_dpdk_sys as sys;

use crate::bring_up::{Running, configure};
use crate::eal::{CONTROL, Eal};
use crate::errno::Errno;
use crate::filters::FlowControl;
use crate::mempool::Mempool;
use crate::queue::{RxQueue, TxQueue};
use crate::ring::Rings;
use crate::rss::{Rss, RssState};
use crate::values::fastest;
use crate::{log, sockets};

/// A port that nobody else has and that is not started.
#[derive(Debug)]
pub struct IdlePort {
    device: DeviceHandle,
    name: String,
}

/// How a port runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortConfig {
    /// Receive queues, at least 1. An af_packet port has to use all that its device has.
    pub rx_queues: u16,
    /// Transmit queues, at least 1.
    pub tx_queues: u16,
    /// Packets that a receive queue holds; adjusted to what the device can, ignored by virtual devices.
    pub rx_descriptors: u16,
    /// Packets that a transmit queue holds; likewise.
    pub tx_descriptors: u16,
    /// The largest payload of a frame in bytes, without Ethernet header and VLAN tags.
    pub mtu: u16,
    /// Whether frames for other stations' addresses are received too.
    pub promiscuous: bool,
    /// Whether all multicast is received: physical NICs drop IPv6's neighbour discovery else. Where the device refuses, it is made
    /// promiscuous.
    pub all_multicast: bool,
    /// The address to receive for instead of the device's own; where the device refuses it, it is made promiscuous.
    pub mac: Option<[u8; 6]>,
    /// Pause frames.
    pub flow_control: FlowControl,
    /// How packets are spread over several receive queues; `None`: by the device's own key and table.
    pub rss: Option<Rss>,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: 1500,
            promiscuous: false,
            all_multicast: false,
            mac: None,
            flow_control: FlowControl::Keep,
            rss: None,
        }
    }
}

/// What a started port consists of: index i of each list is queue i.
#[derive(Debug)]
pub struct Started {
    /// For address, link and statistics.
    pub port: Port,
    /// The receive queues.
    pub rx: Vec<RxQueue>,
    /// The transmit queues.
    pub tx: Vec<TxQueue>,
}

/// What a device is and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// Its driver, `net_af_packet` say.
    pub driver: String,
    /// The most receive queues.
    pub max_rx_queues: u16,
    /// The most transmit queues.
    pub max_tx_queues: u16,
    /// The largest MTU.
    pub max_mtu: u16,
    /// The kernel interface behind it; 0 if there is none.
    pub if_index: u32,
    /// The fastest of its speeds, in megabits a second; `None` if it does not say.
    pub fastest_mbps: Option<u32>,
    /// Whether the device spreads flows over queues by a hash of its own.
    pub rss: bool,
}

/// A port's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether it carries frames.
    pub up: bool,
    /// Megabits a second; virtual devices invent one.
    pub mbps: u32,
}

/// A port's counters since its start. Drivers leave out what they cannot count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device dropped because nobody took them in time.
    pub rx_missed: u64,
    /// Broken packets.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were not received because the pool was empty.
    pub rx_no_mbuf: u64,
    /// Frames that came in several buffers, since they were larger than one, and were dropped.
    pub rx_multi_segment: u64,
}

/// Why a port was not found or did not start. After [`PortError::Step`] its virtual device is gone, otherwise it is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// No device has this name (or index).
    #[error("there is no port {0}")]
    Absent(String),
    /// Somebody in this process has it.
    #[error("port {0} is in use")]
    InUse(String),
    /// The device cannot do so many queues, or one was asked for none.
    #[error("port {name} cannot have {rx} receive and {tx} transmit queues: its device has {max_rx} and {max_tx}")]
    Queues {
        /// The port.
        name: String,
        /// Receive queues asked for.
        rx: u16,
        /// Transmit queues asked for.
        tx: u16,
        /// Receive queues there are.
        max_rx: u16,
        /// Transmit queues there are.
        max_tx: u16,
    },
    /// The kernel spreads packets over all of the device's sockets, so that some would never be read.
    #[error("port {name} has to read all of its {has} queues, not {asked}")]
    QueuesLeftOut {
        /// The port.
        name: String,
        /// Receive queues asked for.
        asked: u16,
        /// Receive queues there are.
        has: u16,
    },
    /// A frame of that MTU does not fit into the pool's buffers or the device.
    #[error("port {name} cannot have an MTU of {mtu}: the largest is {max}")]
    Mtu {
        /// The port.
        name: String,
        /// What was asked for.
        mtu: u16,
        /// What fits.
        max: u16,
    },
    /// The device refused.
    #[error("port {name}: {step} failed: {errno}\n{log}")]
    Step {
        /// The port.
        name: String,
        /// What was tried.
        step: &'static str,
        /// DPDK's error.
        errno: Errno,
        /// What the driver said.
        log: String,
    },
}

/// Ethernet header, two VLAN tags and the checksum that some devices leave at the end.
pub(crate) const OVERHEAD: u16 = 14 + 8 + 4;

impl IdlePort {
    /// Takes the port of a device by its name: a virtual device's (`net_ring0`) or a PCI address.
    ///
    /// # Errors
    ///
    /// [`PortError::Absent`], [`PortError::InUse`].
    pub fn by_name(_eal: Eal, name: &str) -> Result<Self, PortError> {
        let absent = || PortError::Absent(name.to_owned());
        let c_name = CString::new(name).map_err(|_| absent())?;
        let mut id = 0;
        let _control = CONTROL.lock();
        // SAFETY: EAL runs; a NUL-terminated string, and a place for the index.
        Errno::check(unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut id) })
            .map_err(|_| absent())?;
        Self::claim(id, name.to_owned())
    }

    /// Takes the port of a PCI device.
    ///
    /// # Errors
    ///
    /// As [`IdlePort::by_name`]; absent also means that EAL was not allowed to take it.
    pub fn by_pci(eal: Eal, address: &str) -> Result<Self, PortError> {
        Self::by_name(eal, address)
    }

    /// Takes a port by DPDK's index of it.
    ///
    /// # Errors
    ///
    /// [`PortError::Absent`], [`PortError::InUse`].
    pub fn by_index(_eal: Eal, id: u16) -> Result<Self, PortError> {
        let absent = || PortError::Absent(id.to_string());
        let mut name = [0; NAME_SIZE];
        let _control = CONTROL.lock();
        // SAFETY: EAL runs; the buffer has the size that DPDK requires (RTE_ETH_NAME_MAX_LEN).
        Errno::check(unsafe { sys::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr()) }).map_err(|_| absent())?;
        // SAFETY: DPDK has written a NUL-terminated string into it.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Self::claim(id, name)
    }

    pub(crate) fn from_rings(id: u16, name: String, rings: Arc<Rings>) -> Result<Self, PortError> {
        let mut port = Self::claim(id, name)?;
        port.device.rings = Some(rings);
        Ok(port)
    }

    fn claim(id: u16, name: String) -> Result<Self, PortError> {
        let Some(claimed) = CLAIMED.get(usize::from(id)) else { return Err(PortError::Absent(name)) };
        if claimed.swap(true, Ordering::AcqRel) {
            return Err(PortError::InUse(name));
        }
        Ok(Self { device: DeviceHandle { id, started: false, configured: false, rings: None }, name })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the device is and can do.
    ///
    /// # Errors
    ///
    /// [`PortError::Step`] if the driver does not answer.
    pub fn info(&self) -> Result<PortInfo, PortError> {
        let _control = CONTROL.lock();
        let info = self.device.info().map_err(|errno| self.step("reading the device", errno, String::new()))?;
        Ok(port_info(&info))
    }

    /// Configures and starts the port; packets come in from now on, into buffers of `pool`.
    ///
    /// # Errors
    ///
    /// [`PortError`]; a virtual device that failed half-way is removed.
    pub fn start(mut self, config: &PortConfig, pool: Mempool) -> Result<Started, PortError> {
        let control = CONTROL.lock();
        let before = sockets::packet_sockets();
        let info = self.device.info().map_err(|errno| self.step("reading the device", errno, String::new()))?;
        let can = port_info(&info);
        self.check(config, &can, pool)?;
        let (result, log) = log::quoting(|| configure(&mut self.device, config, &info, pool));
        let running = match result {
            Ok(running) => running,
            Err((step, errno)) => {
                let error = self.step(step, errno, log);
                drop(control);
                return Err(error);
            }
        };
        let mut fds = sockets::of_interface(sockets::recall(&self.name), can.if_index);
        fds.extend(sockets::since(&before));
        // The driver opened one for each queue, in the queues' order; if the numbers do not fit it is not known which is whose.
        let sockets = Sockets { per_queue: fds.len() == usize::from(config.rx_queues), fds };
        let Running { rx_descriptors: descriptors, rss, promiscuous } = running;
        drop(control);
        let Self { device, name } = self;
        let multi_segment = AtomicU64::new(0);
        let shared = Arc::new(Shared { device, name, info: can, sockets, promiscuous, rss, multi_segment });
        Ok(Started {
            rx: (0..config.rx_queues).map(|queue| RxQueue::new(Arc::clone(&shared), queue, descriptors)).collect(),
            tx: (0..config.tx_queues).map(|queue| TxQueue::new(Arc::clone(&shared), queue)).collect(),
            port: Port { shared },
        })
    }

    fn check(&self, config: &PortConfig, can: &PortInfo, pool: Mempool) -> Result<(), PortError> {
        let PortConfig { rx_queues: rx, tx_queues: tx, mtu, .. } = *config;
        let (max_rx, max_tx) = (can.max_rx_queues, can.max_tx_queues);
        if !(1..=max_rx).contains(&rx) || !(1..=max_tx).contains(&tx) {
            return Err(PortError::Queues { name: self.name.clone(), rx, tx, max_rx, max_tx });
        }
        if can.driver == "net_af_packet" && rx != max_rx {
            return Err(PortError::QueuesLeftOut { name: self.name.clone(), asked: rx, has: max_rx });
        }
        let max = can.max_mtu.min(pool.data_room().saturating_sub(OVERHEAD));
        if mtu > max {
            return Err(PortError::Mtu { name: self.name.clone(), mtu, max });
        }
        Ok(())
    }

    fn step(&self, step: &'static str, errno: Errno, log: String) -> PortError {
        PortError::Step { name: self.name.clone(), step, errno, log }
    }
}

pub(crate) fn port_info(info: &sys::rte_eth_dev_info) -> PortInfo {
    // SAFETY: DPDK sets it to the driver's name, a string in the loaded driver; null only if the device has none.
    let driver = (!info.driver_name.is_null()).then(|| unsafe { CStr::from_ptr(info.driver_name) });
    PortInfo {
        driver: driver.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        max_rx_queues: info.max_rx_queues,
        max_tx_queues: info.max_tx_queues,
        max_mtu: info.max_mtu,
        if_index: info.if_index,
        fastest_mbps: fastest(info.speed_capa),
        rss: info.flow_type_rss_offloads != 0,
    }
}

/// A started port. It closes when this and all of its queues are gone.
#[derive(Debug)]
pub struct Port {
    shared: Arc<Shared>,
}

impl Port {
    /// DPDK's index of it, as [`crate::Mbuf::port`] says.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.shared.id()
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What the device is and can do.
    #[must_use]
    pub fn info(&self) -> &PortInfo {
        &self.shared.info
    }

    /// What its receive-side scaling came to.
    #[must_use]
    pub fn rss(&self) -> RssState {
        self.shared.rss
    }

    /// Whether it receives whatever comes, since that was asked for or the device refused to filter as it should.
    #[must_use]
    pub fn promiscuous(&self) -> bool {
        self.shared.promiscuous
    }

    /// Its Ethernet address.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn mac(&self) -> Result<[u8; 6], Errno> {
        let mut address = sys::rte_ether_addr::default();
        let _control = CONTROL.lock();
        // SAFETY: the port is open while `shared` lives; a place for the result.
        Errno::check(unsafe { sys::rte_eth_macaddr_get(self.index(), &raw mut address) })?;
        Ok(address.addr_bytes)
    }

    /// Its link, without waiting for one that is coming up.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn link(&self) -> Result<Link, Errno> {
        let mut link = sys::rte_eth_link::default();
        let _control = CONTROL.lock();
        // SAFETY: as in `mac`.
        Errno::check(unsafe { sys::rte_eth_link_get_nowait(self.index(), &raw mut link) })?;
        Ok(Link { up: u32::from(link.link_status()) == sys::RTE_ETH_LINK_UP, mbps: link.link_speed })
    }

    /// Its counters.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn statistics(&self) -> Result<Statistics, Errno> {
        let mut stats = sys::rte_eth_stats::default();
        let _control = CONTROL.lock();
        // SAFETY: as in `mac`.
        Errno::check(unsafe { sys::rte_eth_stats_get(self.index(), &raw mut stats) })?;
        Ok(Statistics {
            rx_packets: stats.ipackets,
            tx_packets: stats.opackets,
            rx_bytes: stats.ibytes,
            tx_bytes: stats.obytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            tx_errors: stats.oerrors,
            rx_no_mbuf: stats.rx_nombuf,
            rx_multi_segment: self.multi_segment_drops(),
        })
    }

    /// Frames that came in several buffers and were dropped, on all of its queues.
    #[must_use]
    pub fn multi_segment_drops(&self) -> u64 {
        self.shared.multi_segment.load(Ordering::Relaxed)
    }

    /// How many sockets the driver has that an idle core can wait for; see [`crate::PacketSockets`].
    #[must_use]
    pub fn packet_sockets(&self) -> usize {
        self.shared.all_sockets().len()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// What a port's handle and its queues share; its end closes the port.
pub(crate) struct Shared {
    device: DeviceHandle,
    name: String,
    info: PortInfo,
    sockets: Sockets,
    promiscuous: bool,
    rss: RssState,
    /// Frames of several buffers that queues have dropped: written by their readers, read by whoever has the port.
    multi_segment: AtomicU64,
}

impl Shared {
    pub(crate) fn id(&self) -> u16 {
        self.device.id
    }

    pub(crate) fn info(&self) -> &PortInfo {
        &self.info
    }

    pub(crate) fn all_sockets(&self) -> &[RawFd] {
        &self.sockets.fds
    }

    /// Counts dropped frames of several buffers.
    pub(crate) fn count_multi_segment(&self, frames: u64) {
        self.multi_segment.fetch_add(frames, Ordering::Relaxed);
    }

    /// The sockets that packets for `queue` may come from.
    pub(crate) fn sockets(&self, queue: u16) -> &[RawFd] {
        let (fds, queue) = (&self.sockets.fds, usize::from(queue));
        if self.sockets.per_queue { &fds[queue..=queue] } else { fds }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _control = CONTROL.lock();
        if self.promiscuous {
            // SAFETY: the port is open. Failing leaves the interface as it is.
            unsafe { sys::rte_eth_promiscuous_disable(self.device.id) };
        }
        // The device itself is closed by its own handle, under its own lock.
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("index", &self.device.id).field("name", &self.name).finish_non_exhaustive()
    }
}

struct Sockets {
    /// Whether `fds[i]` is queue i's.
    per_queue: bool,
    fds: Vec<RawFd>,
}

/// The claim on a port. Its end closes the device (and removes a virtual one), if it was touched.
#[derive(Debug)]
pub(crate) struct DeviceHandle {
    pub(crate) id: u16,
    pub(crate) configured: bool,
    pub(crate) started: bool,
    /// The rings behind a port made of rings: freed after the port, and after the other end.
    rings: Option<Arc<Rings>>,
}

impl DeviceHandle {
    fn info(&self) -> Result<sys::rte_eth_dev_info, Errno> {
        let mut info = MaybeUninit::zeroed();
        // SAFETY: the port is claimed; a place for the result. All-zero bytes are a valid `rte_eth_dev_info` in any case.
        unsafe {
            Errno::check(sys::rte_eth_dev_info_get(self.id, info.as_mut_ptr()))?;
            Ok(info.assume_init())
        }
    }

    /// Stops and closes the device, under the control lock.
    fn close(&self) {
        let info = self.info();
        // SAFETY: no queue is left (each has the `Shared` that owns this), so that nobody else uses the port.
        unsafe {
            if self.started {
                if info.as_ref().is_ok_and(|info| port_info(info).driver == "net_ring") {
                    self.drain(info.as_ref().map_or(0, |info| info.nb_rx_queues));
                }
                sys::rte_eth_dev_stop(self.id);
            }
            sys::rte_eth_dev_close(self.id);
        }
        let Ok(info) = info else { return };
        // SAFETY: the device outlives its port; a PCI device stays with its bus, a virtual one goes so that its name is free again.
        unsafe {
            let bus = if info.device.is_null() { ptr::null() } else { sys::rte_dev_bus(info.device) };
            if !bus.is_null() && CStr::from_ptr(sys::rte_bus_name(bus)) == c"vdev" {
                sys::rte_dev_remove(info.device);
            }
        }
    }

    /// Frees what waits in a ring port's queues: the driver would free the rings only, and the packets would never come back.
    ///
    /// # Safety
    ///
    /// The port is started, and nobody else uses its receive queues.
    unsafe fn drain(&self, rx_queues: u16) {
        for queue in 0..rx_queues {
            let mut packets = [ptr::null_mut(); 32];
            loop {
                // SAFETY: by this function's contract; the array has room for 32.
                let count = unsafe { sys::shim_rx_burst(self.id, queue, packets.as_mut_ptr(), 32) };
                if count == 0 {
                    break;
                }
                // SAFETY: `count` buffers that are ours now.
                unsafe { sys::rte_pktmbuf_free_bulk(packets.as_mut_ptr(), u32::from(count)) };
            }
        }
    }
}

impl Drop for DeviceHandle {
    fn drop(&mut self) {
        let _control = CONTROL.lock();
        if self.configured || self.rings.is_some() {
            self.close();
        }
        if let Some(claimed) = CLAIMED.get(usize::from(self.id)) {
            claimed.store(false, Ordering::Release);
        }
    }
}

/// Which ports somebody has, by index.
static CLAIMED: [AtomicBool; sys::RTE_MAX_ETHPORTS as usize] =
    [const { AtomicBool::new(false) }; sys::RTE_MAX_ETHPORTS as usize];

/// `RTE_ETH_NAME_MAX_LEN`.
const NAME_SIZE: usize = 64;
