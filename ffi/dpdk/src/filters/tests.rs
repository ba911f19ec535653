//! Drivers as there are: physical functions that take everything, virtual functions that refuse, devices without filters.

use super::*;

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const EPERM: Errno = Errno(1);
const UNSUPPORTED: Errno = Errno(ENOTSUP);

/// What each call answers, and what has come of it.
struct Fake {
    takes_mac: Result<(), Errno>,
    takes_promiscuous: Result<(), Errno>,
    takes_multicast: Result<(), Errno>,
    takes_mtu: Result<(), Errno>,
    takes_flow_control: Result<(), Errno>,
    /// It says yes to an address and keeps its own.
    lies: bool,
    mac: [u8; 6],
    mtu: u16,
    promiscuous: bool,
    multicast: bool,
    flow_control: FlowControl,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            takes_mac: Ok(()),
            takes_promiscuous: Ok(()),
            takes_multicast: Ok(()),
            takes_mtu: Ok(()),
            takes_flow_control: Ok(()),
            lies: false,
            mac: [2, 0, 0, 0, 0, 0xee],
            mtu: 1500,
            promiscuous: false,
            multicast: false,
            flow_control: FlowControl::Keep,
        }
    }
}

impl FilterCalls for Fake {
    fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), Errno> {
        self.takes_mac?;
        if !self.lies {
            self.mac = mac;
        }
        Ok(())
    }

    fn mac(&mut self) -> Result<[u8; 6], Errno> {
        Ok(self.mac)
    }

    fn promiscuous(&mut self) -> Result<(), Errno> {
        self.promiscuous |= self.takes_promiscuous.is_ok();
        self.takes_promiscuous
    }

    fn all_multicast(&mut self) -> Result<(), Errno> {
        self.multicast |= self.takes_multicast.is_ok();
        self.takes_multicast
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), Errno> {
        self.takes_mtu?;
        self.mtu = mtu;
        Ok(())
    }

    fn mtu(&mut self) -> Result<u16, Errno> {
        Ok(self.mtu)
    }

    fn set_flow_control(&mut self, mode: FlowControl) -> Result<(), Errno> {
        self.takes_flow_control?;
        self.flow_control = mode;
        Ok(())
    }
}

#[test]
fn a_device_that_takes_the_address_is_not_made_promiscuous() {
    let mut device = Fake::default();
    assert_eq!(receive_for(&mut device, OURS), Ok(false));
    assert_eq!((device.mac, device.promiscuous), (OURS, false));
    // A virtual function that has it already may refuse to be told.
    let mut given = Fake { mac: OURS, takes_mac: Err(EPERM), takes_promiscuous: Err(EPERM), ..Fake::default() };
    assert_eq!(receive_for(&mut given, OURS), Ok(false));
}

#[test]
fn a_device_that_keeps_its_own_address_is_made_promiscuous() {
    for mut device in [Fake { takes_mac: Err(EPERM), ..Fake::default() }, Fake { lies: true, ..Fake::default() }] {
        assert_eq!(receive_for(&mut device, OURS), Ok(true));
        assert!(device.promiscuous);
    }
}

#[test]
fn a_virtual_function_that_refuses_both_is_an_error_with_its_reason() {
    let mut device = Fake { takes_mac: Err(EPERM), takes_promiscuous: Err(UNSUPPORTED), ..Fake::default() };
    assert_eq!(receive_for(&mut device, OURS).unwrap_err().1, EPERM);
}

#[test]
fn multicast_is_asked_for_and_promiscuity_only_where_it_is_refused() {
    let mut device = Fake::default();
    assert_eq!(receive_multicast(&mut device), Ok(false));
    assert_eq!((device.multicast, device.promiscuous), (true, false));
    let mut refuses = Fake { takes_multicast: Err(EPERM), ..Fake::default() };
    assert_eq!(receive_multicast(&mut refuses), Ok(true));
    let no_filters = Fake { takes_multicast: Err(UNSUPPORTED), takes_promiscuous: Err(UNSUPPORTED), ..Fake::default() };
    assert_eq!(receive_multicast(&mut { no_filters }), Ok(false));
    let refuses_both = Fake { takes_multicast: Err(EPERM), takes_promiscuous: Err(EPERM), ..Fake::default() };
    assert_eq!(receive_multicast(&mut { refuses_both }).unwrap_err().1, EPERM);
}

#[test]
fn an_mtu_that_the_device_does_not_keep_is_an_error() {
    let mut device = Fake::default();
    assert_eq!(set_mtu(&mut device, 9000).and_then(|()| check_mtu(&mut device, 9000)), Ok(()));
    // What cannot be set is judged by what is there.
    let mut fixed = Fake { takes_mtu: Err(UNSUPPORTED), ..Fake::default() };
    assert_eq!(set_mtu(&mut fixed, 9000), Ok(()));
    assert_eq!(check_mtu(&mut fixed, 1500), Ok(()));
    assert_eq!(check_mtu(&mut fixed, 9000), Err(("keeping the MTU", Errno(EMSGSIZE))));
    let mut refuses = Fake { takes_mtu: Err(EPERM), ..Fake::default() };
    assert_eq!(set_mtu(&mut refuses, 9000), Err(("setting the MTU", EPERM)));
}

#[test]
fn flow_control_is_left_alone_unless_it_is_configured() {
    let mut device = Fake { takes_flow_control: Err(UNSUPPORTED), ..Fake::default() };
    assert_eq!(set_flow_control(&mut device, FlowControl::Keep), Ok(()));
    assert_eq!(set_flow_control(&mut device, FlowControl::Off), Err(("setting flow control", UNSUPPORTED)));
    let mut device = Fake::default();
    assert_eq!(set_flow_control(&mut device, FlowControl::Rx), Ok(()));
    assert_eq!(device.flow_control, FlowControl::Rx);
}
