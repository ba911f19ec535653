//! Which services' flows belong together: a protocol without ports comes back to the host that its control connection went to.

use weir_identity::ServiceId;
use weir_sessions::SessionKind;

use super::Service;
use crate::flow::protocol;

/// What flows of one client to several services of a VIP belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Association {
    /// IPsec or PPTP.
    pub kind: SessionKind,
    /// The service that carries the data: ESP or GRE.
    pub service: ServiceId,
}

/// By service: an ESP service has the UDP services of its VIP on ports 500 and 4500 (IKE, RFC 7296 and RFC 3948) with it, a GRE
/// service the TCP service on 1723 (PPTP, RFC 2637). Empty if there is none at all.
pub(super) fn of_services(services: &[Service]) -> Vec<Option<Association>> {
    let of = |service: &Service| {
        let takes = |port| service.ports.iter().any(|range| range.contains(&port));
        let (kind, data) = match service.protocol {
            protocol::ESP => (SessionKind::Ipsec, protocol::ESP),
            protocol::GRE => (SessionKind::Pptp, protocol::GRE),
            protocol::UDP if takes(IKE) || takes(IKE_BEHIND_NAT) => (SessionKind::Ipsec, protocol::ESP),
            protocol::TCP if takes(PPTP) => (SessionKind::Pptp, protocol::GRE),
            _ => return None,
        };
        let carrier = services.iter().find(|other| other.vip == service.vip && other.protocol == data)?;
        Some(Association { kind, service: carrier.id })
    };
    let all: Vec<_> = services.iter().map(of).collect();
    if all.iter().any(Option::is_some) { all } else { Vec::new() }
}

const IKE: u16 = 500;
const IKE_BEHIND_NAT: u16 = 4500;
const PPTP: u16 = 1723;
