//! Whose packets go first to the unit's own kernel: what the configuration names, by whatever name.

use std::collections::HashSet;
use std::net::SocketAddr;

use weir_config::Config;
use weir_dataplane::twin_class::TwinPeers;
use weir_identity::HostId;

/// The listed ones, routers, the other units, hosts with an agent, and what is probed.
#[must_use]
pub fn of(config: &Config) -> TwinPeers {
    let agents = config.agents.as_ref();
    let units = agents.iter().flat_map(|agents| agents.peers.values());
    let cluster = agents.iter().map(|agents| agents.listen.port()).chain(units.clone().map(SocketAddr::port));
    let speaks: HashSet<HostId> = config.hosts.iter().filter(|host| host.agent).map(|host| host.id).collect();
    let hosts = config.hosts.iter().filter(|host| host.agent).map(|host| host.address);
    // An agent may speak from any of its host's addresses.
    let endpoints = config.services.iter().flat_map(|service| &service.endpoints);
    let theirs = endpoints.filter(|endpoint| speaks.contains(&endpoint.host)).map(|endpoint| endpoint.address);
    let routers = config.routes.iter().map(|route| route.via);
    let alone = routers.chain(units.map(SocketAddr::ip)).chain(hosts).chain(theirs);
    let listed = config.dataplane.twin.peers.iter().map(|net| (net.network(), net.prefix_len()));
    let mut peers = TwinPeers::new(cluster.collect());
    for (address, length) in listed.chain(alone.map(|address| (address, u8::MAX))) {
        peers = peers.with(address, length);
    }
    for service in &config.services {
        let Some(probe) = &service.probe else { continue };
        for endpoint in service.endpoints.iter().filter(|endpoint| !speaks.contains(&endpoint.host)) {
            if let Some(port) = probe.port.or(endpoint.port).or(service.ports.single()) {
                peers = peers.probing(endpoint.address, port);
            }
        }
    }
    peers
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn peers(yaml: &str) -> TwinPeers {
        let machine = weir_config::Machine { cpus: Some(vec![0]), ..weir_config::Machine::default() };
        of(&weir_config::check("peers.yaml", yaml, &machine).expect("a configuration"))
    }

    fn is_peer(peers: &TwinPeers, address: &str) -> bool {
        peers.has(address.parse::<IpAddr>().expect("an address"))
    }

    const YAML: &str = "
unit: { id: 1, name: peers }
agents:
  listen: 192.0.2.2:7300
  peers: [{ unit: 2, listen: '192.0.2.3:7300' }]
dataplane: { twin: { peers: [192.0.2.64/28, 'fd00::fe'] } }
ports: [{ name: net0, device: af_packet:eth1, addresses: [192.0.2.2/24, 'fd00::2/64'] }]
routes: [{ prefix: 0.0.0.0/0, via: 192.0.2.254, port: net0 }]
hosts:
  - { id: 1, name: spoken-for, address: 192.0.2.11, agent: true }
  - { id: 2, name: probed, address: 192.0.2.12 }
services:
  - id: 1
    name: web
    vip: 192.0.2.100
    ports: 80
    mode: dsr
    probe: { kind: tcp }
    endpoints: [{ host: spoken-for }, { host: spoken-for, address: 192.0.2.21, application: 2 }, { host: probed }]
";

    #[test]
    fn all_that_the_configuration_names_are_peers_and_nobody_else() {
        let peers = peers(YAML);
        let named = ["192.0.2.3", "192.0.2.254", "192.0.2.11", "192.0.2.21", "192.0.2.64", "192.0.2.79", "fd00::fe"];
        assert!(named.iter().all(|address| is_peer(&peers, address)));
        let others = ["192.0.2.2", "192.0.2.12", "192.0.2.100", "192.0.2.80", "192.0.2.1", "fd00::fd", "::"];
        assert!(!others.iter().any(|address| is_peer(&peers, address)));
    }

    #[test]
    fn the_answers_of_who_is_probed_are_urgent() {
        use weir_dataplane::twin_class::TwinClass;
        let answer = |source: [u8; 4], port: u8| {
            let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]].concat();
            frame.extend([source, [192, 0, 2, 2], [0, port, 0x90, 0]].concat());
            TwinClass::of(&frame, &peers(YAML))
        };
        assert_eq!(answer([192, 0, 2, 12], 80), TwinClass::Peer);
        assert_eq!(answer([192, 0, 2, 12], 22), TwinClass::Rest);
        // It is not probed: its agent speaks for it.
        assert_eq!(answer([192, 0, 2, 11], 80), TwinClass::Rest);
    }
}
