//! What a device lets through: its MAC address, multicast, MTU and flow control, each set the way that real drivers take it.
//!
//! A virtual function may refuse promiscuous mode, so the address itself is set first. Most physical NICs drop multicast that nobody
//! asked for, and IPv6 neighbours are found by multicast, so all of it is asked for.

use crate::errno::Errno;

/// Pause frames (IEEE 802.3x) on a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlowControl {
    /// As the device has it.
    #[default]
    Keep,
    /// None.
    Off,
    /// The other end may pause us.
    Rx,
    /// We pause the other end when our buffers run out.
    Tx,
    /// Both.
    Full,
}

/// DPDK's calls about a configured port's filters, or a test's idea of a driver.
pub(crate) trait FilterCalls {
    /// Makes this the device's own address.
    fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), Errno>;
    /// The device's own address.
    fn mac(&mut self) -> Result<[u8; 6], Errno>;
    /// Receives whatever comes.
    fn promiscuous(&mut self) -> Result<(), Errno>;
    /// Receives all multicast.
    fn all_multicast(&mut self) -> Result<(), Errno>;
    /// Sets the largest payload of a frame.
    fn set_mtu(&mut self, mtu: u16) -> Result<(), Errno>;
    /// The largest payload of a frame.
    fn mtu(&mut self) -> Result<u16, Errno>;
    /// Sets who may pause whom.
    fn set_flow_control(&mut self, mode: FlowControl) -> Result<(), Errno>;
}

/// A step that failed, as [`crate::PortError::Step`] names it.
pub(crate) type Failed = (&'static str, Errno);

/// Lets the port receive frames for `mac`: says whether the device had to be made promiscuous for it.
pub(crate) fn receive_for(driver: &mut impl FilterCalls, mac: [u8; 6]) -> Result<bool, Failed> {
    if driver.mac() == Ok(mac) {
        return Ok(false);
    }
    let refused = match driver.set_mac(mac) {
        Ok(()) if driver.mac() == Ok(mac) => return Ok(false),
        Ok(()) => Errno(ENOTSUP),
        Err(errno) => errno,
    };
    driver.promiscuous().map(|()| true).map_err(|_| ("taking the MAC address, or else any", refused))
}

/// Lets the port receive whatever comes. A device without filters does so anyway.
pub(crate) fn receive_all(driver: &mut impl FilterCalls) -> Result<(), Failed> {
    unless_unsupported(driver.promiscuous()).map_err(|errno| ("receiving promiscuously", errno))
}

/// Lets the port receive all multicast: says whether the device had to be made promiscuous for it.
pub(crate) fn receive_multicast(driver: &mut impl FilterCalls) -> Result<bool, Failed> {
    let Err(refused) = driver.all_multicast() else { return Ok(false) };
    match driver.promiscuous() {
        Ok(()) => Ok(true),
        Err(Errno(ENOTSUP)) if refused == Errno(ENOTSUP) => Ok(false), // it has no filters
        Err(_) => Err(("receiving all multicast, which IPv6 needs, or else anything", refused)),
    }
}

/// Sets the MTU of a configured port that is not started; many drivers refuse it later.
pub(crate) fn set_mtu(driver: &mut impl FilterCalls, mtu: u16) -> Result<(), Failed> {
    unless_unsupported(driver.set_mtu(mtu)).map_err(|errno| ("setting the MTU", errno))
}

/// Compares what a started port has for its MTU with what it should.
pub(crate) fn check_mtu(driver: &mut impl FilterCalls, mtu: u16) -> Result<(), Failed> {
    let failed = |errno| ("keeping the MTU", errno);
    let has = driver.mtu().map_err(failed)?;
    if has >= mtu { Ok(()) } else { Err(failed(Errno(EMSGSIZE))) }
}

/// Sets flow control, if something else is wanted than what there is.
pub(crate) fn set_flow_control(driver: &mut impl FilterCalls, mode: FlowControl) -> Result<(), Failed> {
    match mode {
        FlowControl::Keep => Ok(()),
        mode => driver.set_flow_control(mode).map_err(|errno| ("setting flow control", errno)),
    }
}

fn unless_unsupported(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno(ENOTSUP)) => Ok(()),
        result => result,
    }
}

const EMSGSIZE: i32 = 90;
const ENOTSUP: i32 = 95;

#[cfg(test)]
mod tests;
