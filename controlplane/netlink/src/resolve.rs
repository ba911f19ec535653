//! Which neighbours the kernel must be asked to resolve and keep resolved: hosts and gateways that only the dataplane talks to.
//!
//! A managed entry (`NTF_EXT_MANAGED`, Linux 5.16) is installed once: the kernel probes it for ever. An older kernel is told
//! "somebody uses this" (`NTF_USE`) whenever the entry has gone stale, is missing or failed. No I/O here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use weir_identity::Moment;

use crate::state::{Mirror, NeighbourState};

/// The wanted neighbours and how the kernel is asked for them.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    /// By interface name (it may not exist yet) and address: when it may be asked for again.
    wanted: BTreeMap<(String, IpAddr), Moment>,
    /// The kernel does not know managed entries.
    only_use: bool,
}

impl Resolver {
    /// Wants `address` resolved on `interface` from now on.
    pub fn ask(&mut self, interface: String, address: IpAddr) {
        self.wanted.entry((interface, address)).or_default();
    }

    /// Wants it no more; the entry is left to the kernel to expire. Whether it was wanted.
    pub fn forget(&mut self, interface: &str, address: IpAddr) -> bool {
        self.wanted.remove(&(interface.to_owned(), address)).is_some()
    }

    /// What to ask the kernel now. Each is asked at most once every [`RETRY`].
    pub fn due(&mut self, now: Moment, mirror: &Mirror) -> Vec<Request> {
        let how = if self.only_use { How::Use } else { How::Managed };
        let mut requests = Vec::new();
        for ((name, address), not_before) in &mut self.wanted {
            let Some(interface) = mirror.index_if_up(name) else { continue };
            let satisfied = mirror.tables().neighbour(interface, *address).is_some_and(|known| match known.state {
                NeighbourState::Permanent | NeighbourState::NoArp => true,
                _ if how == How::Managed => known.managed,
                NeighbourState::Stale | NeighbourState::Failed | NeighbourState::None => false,
                _ => true,
            });
            if !satisfied && *not_before <= now {
                *not_before = now.after(RETRY);
                requests.push(Request { interface, address: *address, how });
            }
        }
        requests
    }

    /// The kernel does not know what [`How::Managed`] asks for: from now on entries are refreshed by use.
    pub fn without_managed(&mut self) {
        self.only_use = true;
        for not_before in self.wanted.values_mut() {
            *not_before = Moment::default();
        }
    }
}

/// A neighbour entry to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The index of the interface.
    pub interface: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// How.
    pub how: How,
}

/// How a neighbour is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As an entry that the kernel keeps resolved by itself.
    Managed,
    /// As if a packet were sent to it now.
    Use,
}

/// Between two requests for the same neighbour: the kernel itself gives up an address after about three seconds.
pub const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::state::{Event, LinkData, NeighbourData};

    fn host() -> IpAddr {
        "10.0.0.1".parse().unwrap()
    }

    fn mirror(up: bool) -> Mirror {
        let mut mirror = Mirror::new(BTreeSet::from(["port0".to_owned()]));
        mirror.apply(Event::Link { index: 2, link: LinkData { name: "port0".into(), mac: [2; 6], mtu: 1500, up } });
        mirror
    }

    fn learn(mirror: &mut Mirror, state: NeighbourState, managed: bool) {
        let neighbour = NeighbourData { mac: Some([4; 6]), state, managed };
        mirror.apply(Event::Neighbour { interface: 2, address: host(), neighbour });
    }

    #[test]
    fn a_managed_entry_is_installed_once_and_again_when_it_is_flushed() {
        let (mut resolver, mut mirror) = (Resolver::default(), mirror(true));
        resolver.ask("port0".into(), host());
        let request = Request { interface: 2, address: host(), how: How::Managed };
        assert_eq!(resolver.due(Moment(0), &mirror), [request]);
        assert_eq!(resolver.due(Moment(500), &mirror), []);
        learn(&mut mirror, NeighbourState::Failed, true);
        assert_eq!(resolver.due(Moment(9_000), &mirror), []);
        mirror.apply(Event::NeighbourGone { interface: 2, address: host() });
        assert_eq!(resolver.due(Moment(9_000), &mirror), [request]);
        assert!(resolver.forget("port0", host()));
        assert_eq!(resolver.due(Moment(20_000), &mirror), []);
    }

    #[test]
    fn an_entry_the_kernel_learned_by_itself_becomes_managed_unless_it_is_permanent() {
        let (mut resolver, mut mirror) = (Resolver::default(), mirror(true));
        resolver.ask("port0".into(), host());
        learn(&mut mirror, NeighbourState::Permanent, false);
        assert_eq!(resolver.due(Moment(0), &mirror), []);
        learn(&mut mirror, NeighbourState::Reachable, false);
        assert_eq!(resolver.due(Moment(0), &mirror).len(), 1);
    }

    #[test]
    fn without_managed_entries_a_stale_one_is_used() {
        let (mut resolver, mut mirror) = (Resolver::default(), mirror(true));
        resolver.ask("port0".into(), host());
        assert_eq!(resolver.due(Moment(0), &mirror)[0].how, How::Managed);
        resolver.without_managed();
        assert_eq!(resolver.due(Moment(1), &mirror)[0].how, How::Use);
        learn(&mut mirror, NeighbourState::Reachable, false);
        assert_eq!(resolver.due(Moment(5_000), &mirror), []);
        learn(&mut mirror, NeighbourState::Stale, false);
        assert_eq!(resolver.due(Moment(5_000), &mirror).len(), 1);
    }

    #[test]
    fn nothing_is_asked_on_a_link_that_is_down_or_missing() {
        let mut resolver = Resolver::default();
        resolver.ask("port0".into(), host());
        assert_eq!(resolver.due(Moment(0), &mirror(false)), []);
        assert_eq!(resolver.due(Moment(0), &Mirror::default()), []);
        assert_eq!(resolver.due(Moment(0), &mirror(true)).len(), 1);
    }
}
