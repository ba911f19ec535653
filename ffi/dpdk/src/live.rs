//! The calls that a claimed device is configured with, each checked: what the fake drivers of tests stand in for.

use weir_dpdk_sys as sys;

use crate::errno::Errno;
use crate::filters::{FilterCalls, FlowControl};
use crate::rss::{Pattern, RssCalls};

/// A device that its owner has claimed and configured, under the control lock.
pub(crate) struct LiveDevice(u16);

impl LiveDevice {
    /// # Safety
    ///
    /// The port with this index is claimed and configured, and stays so while this lives; the caller holds the control lock.
    pub(crate) unsafe fn new(id: u16) -> Self {
        Self(id)
    }
}

// SAFETY note for all calls here: the port is the caller's by `new`'s contract, and structures and places for results live during
// each call.
impl RssCalls for LiveDevice {
    fn set_hash(&mut self, key: &[u8], types: u64) -> Result<(), Errno> {
        // The driver only reads the key, whatever the type says.
        let mut conf =
            sys::rte_eth_rss_conf { rss_key: key.as_ptr().cast_mut(), rss_key_len: length(key), rss_hf: types };
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_rss_hash_update(self.0, &raw mut conf) }).map(drop)
    }

    fn hash(&mut self, key: &mut [u8]) -> Result<u64, Errno> {
        // Some drivers write their whole key without a look at the length.
        let mut room = [0; u8::MAX as usize];
        let mut conf = sys::rte_eth_rss_conf { rss_key: room.as_mut_ptr(), rss_key_len: length(key), rss_hf: 0 };
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_rss_hash_conf_get(self.0, &raw mut conf) })?;
        let bytes = key.len().min(room.len());
        key[..bytes].copy_from_slice(&room[..bytes]);
        Ok(conf.rss_hf)
    }

    fn set_table(&mut self, queues: &[u16]) -> Result<(), Errno> {
        let (mut groups, entries) = groups(queues);
        // SAFETY: see above; there is a group for every 64 of the entries.
        Errno::check(unsafe { sys::rte_eth_dev_rss_reta_update(self.0, groups.as_mut_ptr(), entries) }).map(drop)
    }

    fn table(&mut self, queues: &mut [u16]) -> Result<(), Errno> {
        let (mut groups, entries) = groups(queues);
        // SAFETY: as in `set_table`.
        Errno::check(unsafe { sys::rte_eth_dev_rss_reta_query(self.0, groups.as_mut_ptr(), entries) })?;
        for (queues, group) in queues.chunks_mut(GROUP).zip(&groups) {
            queues.copy_from_slice(&group.reta[..queues.len()]);
        }
        Ok(())
    }

    fn add_rule(&mut self, pattern: Pattern, types: u64, own: Option<(&[u8], &[u16])>) -> Result<(), Errno> {
        let (key, queues) = own.unwrap_or_default();
        let (key_length, queue_count) = (u32::from(length(key)), u32::try_from(queues.len()).unwrap_or(0));
        // SAFETY: see above; key and queues have these lengths.
        let code = unsafe {
            let (key, queues) = (key.as_ptr(), queues.as_ptr());
            sys::shim_flow_rss(self.0, pattern.ipv6, pattern.udp, types, key, key_length, queues, queue_count)
        };
        Errno::check(code).map(drop)
    }

    fn clear_rules(&mut self) {
        // SAFETY: see above.
        unsafe { sys::shim_flow_flush(self.0) };
    }
}

impl FilterCalls for LiveDevice {
    fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), Errno> {
        let mut address = sys::rte_ether_addr { addr_bytes: mac };
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_default_mac_addr_set(self.0, &raw mut address) }).map(drop)
    }

    fn mac(&mut self) -> Result<[u8; 6], Errno> {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_macaddr_get(self.0, &raw mut address) })?;
        Ok(address.addr_bytes)
    }

    fn promiscuous(&mut self) -> Result<(), Errno> {
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_promiscuous_enable(self.0) }).map(drop)
    }

    fn all_multicast(&mut self) -> Result<(), Errno> {
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_allmulticast_enable(self.0) }).map(drop)
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), Errno> {
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_set_mtu(self.0, mtu) }).map(drop)
    }

    fn mtu(&mut self) -> Result<u16, Errno> {
        let mut mtu = 0;
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_get_mtu(self.0, &raw mut mtu) })?;
        Ok(mtu)
    }

    fn set_flow_control(&mut self, mode: FlowControl) -> Result<(), Errno> {
        let mut conf = sys::rte_eth_fc_conf::default();
        // What else the device has of it (water marks, negotiation) stays.
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_flow_ctrl_get(self.0, &raw mut conf) })?;
        conf.mode = match mode {
            FlowControl::Keep => return Ok(()),
            FlowControl::Off => sys::rte_eth_fc_mode_RTE_ETH_FC_NONE,
            FlowControl::Rx => sys::rte_eth_fc_mode_RTE_ETH_FC_RX_PAUSE,
            FlowControl::Tx => sys::rte_eth_fc_mode_RTE_ETH_FC_TX_PAUSE,
            FlowControl::Full => sys::rte_eth_fc_mode_RTE_ETH_FC_FULL,
        };
        // SAFETY: see above.
        Errno::check(unsafe { sys::rte_eth_dev_flow_ctrl_set(self.0, &raw mut conf) }).map(drop)
    }
}

/// A table in DPDK's groups of 64, and its size.
fn groups(queues: &[u16]) -> (Vec<sys::rte_eth_rss_reta_entry64>, u16) {
    let groups = queues.chunks(GROUP).map(|queues| {
        let mask = u64::MAX >> (GROUP - queues.len());
        let mut group = sys::rte_eth_rss_reta_entry64 { mask, ..Default::default() };
        group.reta[..queues.len()].copy_from_slice(queues);
        group
    });
    (groups.collect(), u16::try_from(queues.len()).unwrap_or(u16::MAX))
}

/// A key's length in DPDK's type.
fn length(key: &[u8]) -> u8 {
    u8::try_from(key.len()).unwrap_or(u8::MAX)
}

/// `RTE_ETH_RETA_GROUP_SIZE`.
const GROUP: usize = 64;
