//! The calls between a claimed device and a running port, in the order that real drivers need.

use std::ptr;

use weir_dpdk_sys as sys;

use crate::errno::Errno;
use crate::filters::{self, Failed};
use crate::live::LiveDevice;
use crate::mempool::Mempool;
use crate::port::{DeviceHandle, PortConfig, port_info};
use crate::rss::{self, Capabilities, RssShortfall, RssState};
use crate::values::RTE_ETH_DEV_NOLIVE_MAC_ADDR;

/// What a port became.
pub(crate) struct Running {
    /// Packets that a receive queue holds.
    pub(crate) rx_descriptors: u16,
    /// What receive-side scaling came to.
    pub(crate) rss: RssState,
    /// It receives whatever comes.
    pub(crate) promiscuous: bool,
}

/// Configures and starts the device, under the control lock. An error names the step.
pub(crate) fn configure(
    device: &mut DeviceHandle,
    config: &PortConfig,
    info: &sys::rte_eth_dev_info,
    pool: Mempool,
) -> Result<Running, Failed> {
    let id = device.id;
    let step = |name| move |errno| (name, errno);
    let can = Capabilities {
        types: info.flow_type_rss_offloads,
        key_bytes: info.hash_key_size,
        table_entries: info.reta_size,
    };
    let driver = port_info(info).driver;
    // These share their interface with the kernel, whose MTU is the operator's.
    let shared_with_kernel = matches!(driver.as_str(), "net_af_packet" | "net_af_xdp");
    let mut conf = sys::rte_eth_conf::default();
    conf.rxmode.mtu = u32::from(config.mtu);
    if driver == "net_af_packet" {
        // It says 1518 bytes and means its argument `framesz`.
        conf.rxmode.mtu = conf.rxmode.mtu.min(ORDINARY_MTU);
    }
    let spreads = config.rx_queues > 1 && can.full_types() != 0;
    let mut key = config.rss.map_or([0; 52], |rss| rss.key);
    if spreads {
        let hash = &mut conf.rx_adv_conf.rss_conf;
        conf.rxmode.mq_mode = sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
        hash.rss_hf = config.rss.map_or(can.full_types(), |rss| can.configured_types(rss.side));
        if config.rss.is_some() {
            hash.rss_key_len = u8::try_from(can.key(&key).len()).unwrap_or(0);
            hash.rss_key = key.as_mut_ptr();
        }
    }
    let (mut rx_descriptors, mut tx_descriptors) = (config.rx_descriptors, config.tx_descriptors);
    // SAFETY: EAL runs and the port is claimed. -1 means any node and has the same bits in the unsigned type that is asked for below.
    let node = unsafe { sys::rte_eth_dev_socket_id(id) }.cast_unsigned();
    device.configured = true;
    // SAFETY: (of this and all calls below) the port is claimed by `device`, so nobody else configures or uses it, and the control
    // lock is held; structures and places for results live during each call; the pool lives for ever.
    Errno::check(unsafe { sys::rte_eth_dev_configure(id, config.rx_queues, config.tx_queues, &raw const conf) })
        .map_err(step("configuring"))?;
    // SAFETY: the port is configured, claimed by `device` for longer than this lives, and the control lock is held.
    let mut live = unsafe { LiveDevice::new(id) };
    if !shared_with_kernel {
        filters::set_mtu(&mut live, config.mtu)?;
    }
    // SAFETY: see above.
    Errno::check(unsafe {
        sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut rx_descriptors, &raw mut tx_descriptors)
    })
    .map_err(step("adjusting the queues' sizes"))?;
    let mut rx_conf = info.default_rxconf;
    // A queue that nobody reads for a while must not hold up the packets of the others.
    rx_conf.rx_drop_en = u8::from(config.rx_queues > 1).max(rx_conf.rx_drop_en);
    for queue in 0..config.rx_queues {
        // SAFETY: see above.
        Errno::check(unsafe {
            sys::rte_eth_rx_queue_setup(id, queue, rx_descriptors, node, &raw const rx_conf, pool.as_ptr())
        })
        .map_err(step("setting up a receive queue"))?;
    }
    for queue in 0..config.tx_queues {
        // SAFETY: see above; no transmit configuration means the driver's own.
        Errno::check(unsafe { sys::rte_eth_tx_queue_setup(id, queue, tx_descriptors, node, ptr::null()) })
            .map_err(step("setting up a transmit queue"))?;
    }
    let mut promiscuous = config.promiscuous;
    // SAFETY: DPDK points it at flags of the device, which stays.
    let flags = unsafe { info.dev_flags.as_ref() }.copied().map_or(0, u64::from);
    let mac_before_start = flags & RTE_ETH_DEV_NOLIVE_MAC_ADDR != 0;
    if let Some(mac) = config.mac.filter(|_| mac_before_start) {
        promiscuous |= filters::receive_for(&mut live, mac)?;
    }
    // SAFETY: see above.
    Errno::check(unsafe { sys::rte_eth_dev_start(id) }).map_err(step("starting"))?;
    device.started = true;
    if let Some(mac) = config.mac {
        // Asked before the start already, it finds nothing to do.
        promiscuous |= filters::receive_for(&mut live, mac)?;
    }
    if config.promiscuous {
        filters::receive_all(&mut live)?;
    }
    if config.all_multicast {
        promiscuous |= filters::receive_multicast(&mut live)?;
    }
    filters::set_flow_control(&mut live, config.flow_control)?;
    if !shared_with_kernel {
        filters::check_mtu(&mut live, config.mtu)?;
    }
    let rss = match config.rss {
        Some(rss) if spreads => rss::apply(&mut live, &can, &rss),
        None if spreads => RssState::Hint(RssShortfall::NotAsked),
        _ => RssState::None,
    };
    Ok(Running { rx_descriptors, rss, promiscuous })
}

/// Ethernet's own MTU.
const ORDINARY_MTU: u32 = 1500;
