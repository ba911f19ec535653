//! Protocols without ports: all of a client is one flow, and goes to the host that its control connection has gone to.

use std::net::SocketAddr;

use weir_dataplane::farm::Service;
use weir_dataplane::flow::protocol::{ESP, GRE, TCP, UDP};
use weir_dataplane::route_table::Mode;
use weir_dataplane::wire::tcp::Flags;
use weir_dataplane::wire::{Dissection, Protocol};
use weir_health_load::Directive;
use weir_identity::{ApplicationId, ServiceId};

use crate::frames;
use crate::lab::{ENDPOINTS, Family, Lab, MACS, Setup, host_of};

/// Runs a test in both families, and in the modes that leave ports alone or have none to translate.
fn everywhere(test: impl Fn(Mode, Family)) {
    for mode in [Mode::Dsr, Mode::Nat] {
        for family in [Family::V4, Family::V6] {
            test(mode, family);
        }
    }
}

/// A unit with IKE, ESP, PPTP and GRE at the VIP of each family, on the hosts of the others.
fn unit(mode: Mode) -> Lab {
    let mut setup = Setup { shards: 4, classifiers: 3, ..Setup::new(mode) };
    let parts = &mut setup.parts;
    for vip in 0..2u32 {
        let first = usize::try_from(vip).unwrap() * crate::lab::SERVICES;
        for (number, protocol, ports) in [
            (4, UDP, vec![500..=500, 4500..=4500]),
            (5, ESP, vec![0..=u16::MAX]),
            (6, TCP, vec![1723..=1723]),
            (7, GRE, vec![0..=u16::MAX]),
        ] {
            let service = parts.services.len();
            let template = Service { vip, ..parts.services[first].clone() };
            parts.services.push(Service { id: ServiceId(100 + vip * 10 + number), protocol, ports, ..template });
            for host in 0..ENDPOINTS {
                let endpoint = parts.endpoints[first * ENDPOINTS + host].clone();
                let application = ApplicationId(number);
                parts.endpoints.push(weir_dataplane::farm::Endpoint { service, port: None, application, ..endpoint });
            }
        }
    }
    Lab::new(setup)
}

/// A packet of a protocol without ports from a client to its VIP.
fn data(family: Family, client: u16, protocol: u8) -> Vec<u8> {
    let addresses = frames::addresses(family.client(client).ip(), family.vip(0).ip());
    frames::frame(MACS[0], addresses, Protocol(protocol), &[protocol; 60])
}

fn control(family: Family, client: u16, port: u16) -> Vec<u8> {
    let source = SocketAddr::new(family.client(client).ip(), if port == 1723 { 40_000 } else { port });
    if port == 1723 {
        frames::segment(MACS[0], source, family.vip(port), Flags::SYN, b"")
    } else {
        frames::datagram(MACS[0], source, family.vip(port), b"IKE")
    }
}

/// Where a frame without ports goes: the host, 0 to 2.
fn sent_to(lab: &mut Lab, frame: &[u8]) -> usize {
    lab.arrive(1, 0, frame);
    lab.run();
    lab.check();
    let raw = lab.wire.raw();
    assert_eq!(raw.len(), 1, "{:?}", lab.drops());
    assert_eq!(raw[0].2[..5], [2, 0, 0, 0, 1]);
    Dissection::of(&raw[0].2).unwrap();
    usize::from(raw[0].2[5]) - 1
}

#[test]
fn data_and_control_meet_whichever_comes_first() {
    everywhere(|mode, family| {
        let mut lab = unit(mode);
        let mut hosts = [0; ENDPOINTS];
        for client in 0..30 {
            let (ports, protocol) = if client % 2 == 0 { (vec![500, 4500], ESP) } else { (vec![1723], GRE) };
            let mut frames: Vec<_> = ports.into_iter().map(|port| control(family, client, port)).collect();
            frames.push(data(family, client, protocol));
            let by = usize::from(client / 2 % 3) % frames.len();
            frames.rotate_right(by);
            let at: Vec<_> = frames.iter().map(|frame| sent_to(&mut lab, frame)).collect();
            assert!(at.windows(2).all(|pair| pair[0] == pair[1]), "client {client}: {at:?}");
            hosts[at[0]] += 1;
        }
        assert!(hosts.iter().all(|clients| *clients > 4), "{hosts:?}");
        // One decision for each client, and three associations never more than one host each.
        assert_eq!(lab.desk.answers.asked(), 30);
    });
}

#[test]
fn an_association_outlives_a_drain_and_not_its_host() {
    everywhere(|mode, family| {
        let mut lab = unit(mode);
        let there = lab.forward(control(family, 1, 500));
        let host = host_of(&there);
        let direct = |lab: &mut Lab, directive| {
            let address = family.host(host as u16 + 1);
            lab.change(|parts| {
                parts.endpoints.iter_mut().filter(|e| e.address == address).for_each(|e| e.directive = directive);
            });
        };
        direct(&mut lab, Directive::Draining);
        assert_eq!(sent_to(&mut lab, &data(family, 1, ESP)), host);
        direct(&mut lab, Directive::Inactive);
        assert_ne!(host_of(&lab.forward(control(family, 1, 4500))), host);
    });
}
