//! Between a session's route, as this unit's forwarders have it, and its binding, as the session table of all units has it.

use std::net::IpAddr;

use weir_identity::{EndpointId, Moment};
use weir_sessions::{Binding, Endpoint};

use super::{Classifier, millis};
use crate::farm::Farm;
use crate::flow::Key;
use crate::route_table::{Action, Mode};
use crate::translation::PoolPort;

impl<H> Classifier<H> {
    /// The whole binding of a session in the inventory: with it any unit goes on as this one did, in full-nat by the same port.
    #[must_use]
    pub fn binding(&self, key: &Key, now: Moment) -> Option<Binding> {
        let route = self.inventory.find(key, millis(now), &self.farm.timeouts)?;
        let (id, mode, value) = match route.action {
            Action::Send { endpoint, mode, value } => (endpoint, mode, value),
            Action::Local { endpoint } => (endpoint, Mode::Nat, 0),
            Action::Drop | Action::Divert => return None,
        };
        let &crate::farm::Endpoint { host, application, address, port, pool, .. } = self.farm.endpoint(id)?;
        let endpoint = Endpoint { host, application, address, port: port.unwrap_or(key.destination().port()) };
        let bound = (mode == Mode::FullNat && value != 0).then(|| PoolPort::from_value(value));
        let pool = bound.and_then(|bound| {
            let address = self.farm.pools.get(pool?)?.address(bound.address as usize)?;
            Some((address, bound.port))
        });
        Some(Binding { endpoint, mode: mode as u8, pool, sequence_delta: 0, flow_id: 0 })
    }
}

/// The value of a full-nat route by this pool address and port; 0, which leaves the choice to the forwarder, if the endpoint's pool
/// does not have them.
pub(super) fn pool_value(pool: Option<(IpAddr, u16)>, id: EndpointId, farm: &Farm) -> u64 {
    let value = pool.and_then(|(address, port)| {
        let ports = farm.pools.get(farm.endpoint(id)?.pool?)?;
        let index = ports.addresses().iter().position(|own| *own == address).filter(|_| ports.has(port))?;
        Some(PoolPort { address: u32::try_from(index).ok()?, port }.to_value())
    });
    value.unwrap_or(0)
}
