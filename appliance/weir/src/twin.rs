//! The kernel twin of a port that the kernel cannot see itself: brought up with the port's MTU and addresses by rtnetlink.
//!
//! The TAP comes from [`crate::ports`] with the port's MAC address. Given the port's addresses, it is where the kernel resolves
//! neighbours, answers for the unit and connects from, so it must be ready before the mirror reads the kernel's tables.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec};
use tracing::{debug, info};
use weir_config::{Config, Device, Port};

/// Why a twin is not ready. What was done to the others before stays.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(std::io::Error),
    /// The interface is not there.
    #[error("port {port}: the twin {twin} has not appeared: {source}")]
    Absent {
        /// The YAML's name of the port.
        port: String,
        /// The twin.
        twin: String,
        /// The kernel's word.
        source: rtnetlink::Error,
    },
    /// The kernel refused a step.
    #[error("port {port}: {step} on the twin {twin}: {source}")]
    Refused {
        /// The YAML's name of the port.
        port: String,
        /// The twin.
        twin: String,
        /// What was tried.
        step: String,
        /// The kernel's word.
        source: rtnetlink::Error,
    },
    /// The interface below the port has an address; the kernel would speak past the unit there, and never hear an answer.
    #[error(
        "port {port}: {interface} itself has the address {address}, but the kernel hears nothing there while an AF_XDP port has it: \
         ip address del {address} dev {interface} (the unit gives the port's addresses to {twin})"
    )]
    AddressBelow {
        /// The YAML's name of the port.
        port: String,
        /// The interface that the port has taken.
        interface: String,
        /// Its address.
        address: IpNet,
        /// The twin.
        twin: String,
    },
}

/// The twin's MTU: DPDK's TAP driver takes no frames that are larger than Ethernet's ordinary ones, whatever the port does. The
/// kernel's own connections agree on it.
#[must_use]
pub fn mtu(port: &Port) -> u16 {
    port.mtu.min(ORDINARY_MTU)
}

/// Makes all twins ready.
///
/// # Errors
///
/// [`TwinError`]; each names the port.
pub async fn prepare(config: &Config) -> Result<(), TwinError> {
    if config.ports.iter().all(|port| port.twin.is_none()) {
        return Ok(());
    }
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(TwinError::Open)?;
    let connection = tokio::spawn(connection);
    let mut result = Ok(());
    // A VLAN's interface is the operator's.
    for port in config.ports.iter().filter(|port| !matches!(port.device, Device::Vlan { .. })) {
        if let (Some(twin), Ok(())) = (&port.twin, &result) {
            result = prepare_one(&netlink, port, twin).await;
        }
    }
    connection.abort();
    result
}

async fn prepare_one(netlink: &Handle, port: &Port, twin: &str) -> Result<(), TwinError> {
    if let Device::AfXdp(interface) = &port.device {
        refuse_address_below(netlink, port, interface, twin).await?;
    }
    let (index, mac) = find(netlink, twin).await.map_err(|source| TwinError::Absent {
        port: port.name.clone(),
        twin: twin.to_owned(),
        source,
    })?;
    let refused = |step: String| {
        move |source| TwinError::Refused { port: port.name.clone(), twin: twin.to_owned(), step, source }
    };
    let link = LinkUnspec::new_with_index(index).mtu(u32::from(mtu(port))).up().build();
    netlink.link().set(link).execute().await.map_err(refused(format!("mtu {} up", mtu(port))))?;
    for net in &port.addresses {
        let request = netlink.address().add(index, net.addr(), net.prefix_len()).replace();
        request.execute().await.map_err(refused(format!("address {net}")))?;
    }
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    info!(port = %port.name, %twin, mac = %mac.join(":"), mtu = mtu(port), addresses = ?port.addresses, "twin is up");
    Ok(())
}

/// An AF_XDP port takes the interface from the kernel, which would not know and go on sending through it.
async fn refuse_address_below(netlink: &Handle, port: &Port, interface: &str, twin: &str) -> Result<(), TwinError> {
    let Ok((index, _)) = find(netlink, interface).await else {
        debug!(%interface, "the interface below the port has gone");
        return Ok(());
    };
    let addresses = addresses(netlink, index).await.map_err(|source| TwinError::Refused {
        port: port.name.clone(),
        twin: twin.to_owned(),
        step: format!("reading the addresses of {interface}"),
        source,
    })?;
    match addresses.into_iter().find(|net| !is_link_local(net.addr())) {
        Some(address) => Err(TwinError::AddressBelow {
            port: port.name.clone(),
            interface: interface.to_owned(),
            address,
            twin: twin.to_owned(),
        }),
        None => Ok(()),
    }
}

/// An interface's index and MAC address.
async fn find(netlink: &Handle, name: &str) -> Result<(u32, Vec<u8>), rtnetlink::Error> {
    let link = netlink.link().get().match_name(name).execute().try_collect::<Vec<_>>().await?;
    let link = link.into_iter().next().ok_or(rtnetlink::Error::RequestFailed)?;
    let mac = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac),
        _ => None,
    });
    Ok((link.header.index, mac.unwrap_or_default()))
}

async fn addresses(netlink: &Handle, index: u32) -> Result<Vec<IpNet>, rtnetlink::Error> {
    let messages: Vec<_> = netlink.address().get().set_link_index_filter(index).execute().try_collect().await?;
    let nets = messages.into_iter().filter_map(|message| {
        let length = message.header.prefix_len;
        // A point-to-point interface's own address is the local one; IPv6 says only the other.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })?;
        IpNet::new(address, length).ok()
    });
    Ok(nets.collect())
}

/// The kernel gives every IPv6 interface one, and nothing is routed through it.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

const ORDINARY_MTU: u16 = 1500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_takes_ordinary_frames_only() {
        let yaml = "
unit: { id: 1, name: weir-1 }
dataplane: { hugepages: true, memory: 1GiB }
ports:
  - { name: front, device: '0000:03:00.0', twin: front0, mtu: 1400, addresses: [192.0.2.1/24] }
  - { name: farm, device: '0000:03:00.1', twin: farm0, mtu: 9000, addresses: [10.20.0.1/16] }
";
        let config = weir_config::check("test.yaml", yaml, &weir_config::Machine::default()).unwrap();
        assert_eq!(config.ports.iter().map(mtu).collect::<Vec<_>>(), [1400, 1500]);
    }
}
