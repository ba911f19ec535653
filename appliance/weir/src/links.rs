//! The links of ports that the kernel cannot see itself: followed, mirrored to the carrier of their twins, told to the unit's knowledge.
//!
//! A TAP always has a carrier of its own, so that without this the kernel (and BIRD in it) would go on using a dead port.

use std::sync::Arc;

use futures_util::TryStreamExt;
use netlink_packet_route::link::LinkFlags;
use rtnetlink::{Handle, LinkUnspec};
use tracing::{debug, info, warn};
use weir_config::{Config, Device};
use weir_dpdk::Port;
use weir_identity::Moment;

/// Follows the links of all ports with a twin.
pub struct Links {
    netlink: Handle,
    connection: tokio::task::JoinHandle<()>,
    config: Arc<Config>,
    /// What each port's link was when last looked at; `None`: not yet, or nobody can tell.
    up: Vec<Option<bool>>,
    /// Frames of several buffers that each port has dropped.
    multi_segment: Vec<u64>,
    next: Moment,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Starts with nothing known.
    ///
    /// # Errors
    ///
    /// The kernel gives no netlink socket.
    pub fn new(config: &Arc<Config>) -> std::io::Result<Self> {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let ports = config.ports.len();
        let (up, multi_segment) = (vec![None; ports], vec![0; ports]);
        Ok(Self { netlink, connection, config: Arc::clone(config), up, multi_segment, next: Moment(0) })
    }

    /// Looks again, if it is time: the ports whose link has changed, and whether it is up now.
    pub async fn follow(&mut self, now: Moment, ports: &[Vec<Port>]) -> Vec<(usize, bool)> {
        if now < self.next {
            return Vec::new();
        }
        self.next = Moment(now.0 + LOOK_EVERY_MS);
        let mut changed = Vec::new();
        for (index, ports) in ports.iter().enumerate() {
            self.tell_of_multi_segment(index, ports);
            let Some(up) = self.link(index, ports).await else { continue };
            let was = self.up[index].replace(up);
            if was == Some(up) {
                continue;
            }
            let port = &self.config.ports[index];
            match up {
                false => warn!(port = %port.name, "the link is down"),
                true if was.is_some() => info!(port = %port.name, "the link is up"),
                true => {}
            }
            if let Some(twin) = &port.twin
                && let Err(error) = self.set_carrier(twin, up).await
            {
                warn!(port = %port.name, %twin, %error, "the twin does not show the port's link");
            }
            changed.push((index, up));
        }
        changed
    }

    /// Whether the link is up, of ports that have a twin of their own.
    async fn link(&self, index: usize, ports: &[Port]) -> Option<bool> {
        match &self.config.ports[index].device {
            Device::Pci(_) => Some(ports.iter().all(|port| port.link().is_ok_and(|link| link.up))),
            // Its driver takes the link for up once and for all.
            Device::AfXdp(interface) => self.carrier(interface).await,
            Device::AfPacket(_) | Device::Vdev(_) | Device::Vlan { .. } => None,
        }
    }

    /// Whether a kernel interface is up with a carrier; one that is gone is not.
    async fn carrier(&self, interface: &str) -> Option<bool> {
        match self.netlink.link().get().match_name(interface).execute().try_collect::<Vec<_>>().await {
            Ok(links) => Some(links.iter().any(|link| link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp))),
            Err(rtnetlink::Error::NetlinkError(_)) => Some(false),
            Err(error) => {
                debug!(interface, %error, "the kernel does not say how the link is");
                None
            }
        }
    }

    async fn set_carrier(&self, twin: &str, up: bool) -> Result<(), rtnetlink::Error> {
        let link = LinkUnspec::new_with_name(twin).carrier(up).build();
        self.netlink.link().set(link).execute().await
    }

    fn tell_of_multi_segment(&mut self, index: usize, ports: &[Port]) {
        let drops = ports.iter().map(Port::multi_segment_drops).sum();
        let told = std::mem::replace(&mut self.multi_segment[index], drops);
        if told == 0 && drops > 0 {
            let port = &self.config.ports[index];
            warn!(port = %port.name, mtu = port.mtu, "frames come that are larger than the MTU; they are dropped (rx_multi_segment)");
        }
    }
}

/// Often enough that routes leave a dead port within one BFD interval or so.
const LOOK_EVERY_MS: u64 = 100;
