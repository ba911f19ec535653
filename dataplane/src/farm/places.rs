//! Where endpoints are found: by the host that a session names, and by the socket that endpoints of several services may share.

use std::net::IpAddr;

use hashbrown::HashMap;
use weir_identity::{EndpointId, HostId};

use super::{Endpoint, Farm, Service};
use crate::route_table::Mode;

/// Indices of a farm's endpoints.
#[derive(Debug, Default)]
pub(super) struct Places {
    of_host: HashMap<(usize, HostId), Vec<EndpointId>, foldhash::fast::FixedState>,
    /// In half-NAT, by address, protocol and port (none: the client's): endpoints of several services that may be one socket.
    sockets: HashMap<(IpAddr, u8, Option<u16>), Vec<EndpointId>, foldhash::fast::FixedState>,
    /// By service: whether any of its endpoints may be another one's socket.
    shares: Vec<bool>,
}

impl Places {
    pub(super) fn new(services: &[Service], endpoints: &[Endpoint]) -> Self {
        let mut places = Places { shares: vec![false; services.len()], ..Places::default() };
        let mut at_address: HashMap<(IpAddr, u8), Vec<(EndpointId, &Endpoint)>> = HashMap::new();
        for (id, endpoint) in (0..).map(EndpointId).zip(endpoints) {
            places.of_host.entry((endpoint.service, endpoint.host)).or_default().push(id);
            let service = &services[endpoint.service];
            if service.mode == Mode::Nat {
                at_address.entry((endpoint.address, service.protocol)).or_default().push((id, endpoint));
            }
        }
        for ((address, protocol), there) in at_address {
            // Of a port that only one service has nobody needs to know.
            let mut ports: HashMap<Option<u16>, Vec<(EndpointId, usize)>> = HashMap::new();
            for (id, endpoint) in &there {
                ports.entry(endpoint.port).or_default().push((*id, endpoint.service));
            }
            let first = there.first().map(|(_, endpoint)| endpoint.service);
            let any_port = ports.contains_key(&None) && there.iter().any(|(_, other)| Some(other.service) != first);
            for (port, at_port) in ports {
                let of_several = at_port.iter().any(|(_, service)| *service != at_port[0].1);
                if any_port || of_several {
                    at_port.iter().for_each(|(_, service)| places.shares[*service] = true);
                    let ids = at_port.into_iter().map(|(id, _)| id).collect();
                    places.sockets.insert((address, protocol, port), ids);
                }
            }
        }
        places
    }
}

impl Farm {
    /// The endpoints of a service on a host, in the order of their ids.
    pub fn endpoints_on(&self, service: usize, host: HostId) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        let there = self.places.of_host.get(&(service, host));
        there.into_iter().flatten().filter_map(|id| Some((*id, self.endpoint(*id)?)))
    }

    /// In half-NAT: endpoints of other services that are the same socket as this one where its port is `port`. The answers to one client
    /// port by both of them are alike.
    pub fn rivals(&self, endpoint: EndpointId, port: u16) -> impl Iterator<Item = EndpointId> {
        let shares = |endpoint: &&Endpoint| self.places.shares.get(endpoint.service) == Some(&true);
        let mine = self.endpoint(endpoint).filter(shares);
        mine.into_iter().flat_map(move |mine| {
            let protocol = self.services[mine.service].protocol;
            let at = [Some(port), None].map(|port| self.places.sockets.get(&(mine.address, protocol, port)));
            let others = at.into_iter().flatten().flatten().copied();
            others.filter(|id| self.endpoint(*id).is_some_and(|other| other.service != mine.service))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::farm::tests::farm;
    use crate::flow::protocol;

    #[test]
    fn only_what_may_be_the_same_socket_is_a_rival() {
        let mut parts = farm(Mode::Nat);
        // A second TCP service on the same hosts: the first with the same port, the second with another, the third with any.
        parts.services[1].protocol = protocol::TCP;
        for (id, port) in [(3, Some(8080)), (4, Some(8081)), (5, None)] {
            parts.endpoints[id].port = port;
        }
        let farm = Farm::new(parts.clone());
        let rivals = |farm: &Farm, id, port| farm.rivals(EndpointId(id), port).map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(rivals(&farm, 0, 8080), [3]);
        assert_eq!(rivals(&farm, 3, 8080), [0]);
        assert!(rivals(&farm, 1, 8080).is_empty() && rivals(&farm, 4, 8081).is_empty());
        assert_eq!(rivals(&farm, 2, 8080), [5]);
        assert_eq!((rivals(&farm, 5, 8080), rivals(&farm, 5, 80)), (vec![2], vec![]));
        // Another protocol is another socket.
        parts.services[1].protocol = protocol::UDP;
        let farm = Farm::new(parts);
        assert!((0..6).all(|id| rivals(&farm, id, 8080).is_empty()));
    }

    #[test]
    fn endpoints_are_found_by_service_and_host() {
        let farm = Farm::new(farm(Mode::Nat));
        let on = |service, host| farm.endpoints_on(service, HostId(host)).map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!((on(0, 2), on(1, 2), on(0, 9)), (vec![1], vec![4], vec![]));
    }
}
