//! The units that a run may be for, by its first byte.

use std::net::IpAddr;

use weir_dataplane::farm::{Endpoint, NoEndpoint, Port, Service, Way};
use weir_dataplane::flow::protocol::{ESP, GRE};
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::route_table::Mode;
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::tunneler::Tunnel;
use weir_identity::{ApplicationId, ServiceId};

use crate::lab::{ENDPOINTS, SERVICES, Setup};

/// Bits of a setup, beside its mode in the lowest three.
pub const PORTLESS: u8 = 8;
pub const VLANS: u8 = 16;
pub const RESETS: u8 = 32;
pub const NARROW: u8 = 64;

/// Modes by the lowest three bits, and whether the hosts (for a tunnel: its outer header) are of the other family.
pub const MODES: [(&str, Mode, bool); 8] = [
    ("dsr", Mode::Dsr, false),
    ("nat", Mode::Nat, false),
    ("ipip", Mode::Ipip, false),
    ("gue", Mode::Gue, false),
    ("full-nat", Mode::FullNat, false),
    ("full-nat-across", Mode::FullNat, true),
    ("ipip-across", Mode::Ipip, true),
    ("gue-across", Mode::Gue, true),
];

/// A unit of two shards with little room.
pub fn setup(bits: u8) -> Setup {
    let (_, mode, across) = MODES[usize::from(bits % 8)];
    let mut setup = Setup { shards: 2, routes: 16, sessions: 16, pending: 8, twins: true, ..Setup::new(mode) };
    let parts = &mut setup.parts;
    if bits & PORTLESS != 0 && mode != Mode::FullNat {
        for vip in 0..2u32 {
            let first = vip as usize * SERVICES;
            for (number, protocol) in [(5, ESP), (7, GRE)] {
                let service = parts.services.len();
                let (id, ports) = (ServiceId(100 + vip * 10 + number), vec![0..=u16::MAX]);
                parts.services.push(Service { id, protocol, ports, ..parts.services[first].clone() });
                for host in 0..ENDPOINTS {
                    let endpoint = parts.endpoints[first * ENDPOINTS + host].clone();
                    parts.endpoints.push(Endpoint {
                        service,
                        port: None,
                        application: ApplicationId(number),
                        ..endpoint
                    });
                }
            }
        }
    }
    if bits & VLANS != 0 {
        // Ports 2 and 3 are VLANs on 0 and 1; all ways lead there.
        for port in 0..2 {
            parts.ports.push(Port { vlan: Some((port, 7)), ..parts.ports[usize::from(port)] });
        }
        parts.prefixes.iter_mut().flat_map(|prefix| &mut prefix.ways).for_each(|way| match way {
            Way::OnLink(port) | Way::Gateway(port, _) => *port += 2,
        });
        parts.neighbours.iter_mut().for_each(|neighbour| neighbour.port += 2);
        parts.vips.iter_mut().for_each(|vip| vip.on_link = vec![2]);
    }
    if bits & RESETS != 0 {
        parts.services.iter_mut().for_each(|service| service.no_endpoint = NoEndpoint::Reset);
    }
    if bits & NARROW != 0 {
        parts.ports.iter_mut().skip(1).step_by(2).for_each(|port| port.mtu = 1280);
    }
    for pool in &mut parts.pools {
        *pool = PoolPorts::of_any_size(pool.addresses().to_vec(), 20_000..=20_127, &Toeplitz::new(&crate::lab::key())).unwrap();
    }
    if mode == Mode::FullNat {
        return if across { setup.across() } else { setup };
    }
    for endpoint in &mut parts.endpoints {
        let v4 = endpoint.address.is_ipv4() != across;
        if matches!(mode, Mode::Ipip | Mode::Gue) {
            endpoint.address =
                if v4 { crate::lab::Family::V4 } else { crate::lab::Family::V6 }.host(endpoint.host.0 as u16);
        }
        let unit: IpAddr = if v4 { [10, 1, 0, 1].into() } else { "fd01::1".parse().unwrap() };
        endpoint.tunnel = match mode {
            Mode::Ipip => Tunnel::ipip(unit, endpoint.address),
            Mode::Gue => Tunnel::gue(unit, endpoint.address, 6080),
            _ => None,
        };
    }
    setup
}
