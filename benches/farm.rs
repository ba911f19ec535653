//! What the benches forward to and what they send: one service in each family, its hosts, and packets of its flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weir_dataplane::farm::{Endpoint, Farm, FarmParts, Neighbour, NoEndpoint, Port, Prefix, Service, Vip, Way};
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::flow::{Key, Key4, Key6, ToeplitzKey, protocol};
use weir_dataplane::forwarder::Forwarder;
use weir_dataplane::rewrite::return_key;
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode};
use weir_dataplane::translation::{PoolPort, PoolPorts};
use weir_dataplane::tunneler::Tunnel;
use weir_dataplane::twin_class::TwinPeers;
use weir_health_load::Directive;
use weir_identity::{ApplicationId, HostId, ServiceId};

/// Client address and port of a flow.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a flow number taken apart")]
pub(crate) fn client(flow: u64) -> (u32, u16) {
    (0x0a00_0000 | (flow >> 12) as u32, 1024 + (flow & 0xfff) as u16)
}

/// The same of clients in so many networks of their own, each behind one of a few gateways; of none as [`client`] says.
#[expect(clippy::cast_possible_truncation, reason = "a flow number taken apart")]
pub(crate) fn client_in(networks: u64, flow: u64) -> (u32, u16) {
    if networks == 0 {
        return client(flow);
    }
    let (network, within) = (flow % networks, flow / networks);
    (FIRST_NETWORK + (network << 8) as u32 + 1 + (within % 250) as u32, 1024 + (within / 250 % 60_000) as u16)
}

/// A packet of no flow in particular.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Whether it is IPv6.
    pub(crate) six: bool,
    /// Whether it stays as it is, whatever the flow.
    pub(crate) fixed: bool,
}

impl Frame {
    /// One whose IP packet is `len` bytes long, or as long as its headers are.
    pub(crate) fn new(six: bool, len: usize) -> Self {
        let len = len.max(if six { 60 } else { 40 });
        let [high, low] = u16::try_from(if six { len - 40 } else { len }).unwrap_or(u16::MAX).to_be_bytes();
        let mut frame = Vec::new();
        frame.extend(MAC);
        frame.extend([2, 0, 0, 0, 0, 9]);
        let tcp = [0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0x12, 0x34, 0, 0];
        if six {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, 6, 64]);
            frame.extend(Ipv6Addr::UNSPECIFIED.octets());
            frame.extend(VIP6.octets());
        } else {
            frame.extend([8, 0, 0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 0]);
            frame.extend(VIP.octets());
        }
        frame.extend(tcp);
        frame.resize((14 + len).max(60), 0);
        let mut frame = Self { bytes: frame, six, fixed: false };
        if !six {
            // For what each flow adds there is its identification's complement: 0xffff together.
            frame.sum(0xffff);
        }
        frame
    }

    /// IPv4 packets that no route takes as they are: a first fragment of a flow, and of no flow an echo request, one to no VIP, and one
    /// with a wrong checksum.
    pub(crate) fn others() -> [Self; 4] {
        let mut frames = [(); 4].map(|()| Self::new(false, 0));
        let [fragment, echo, stranger, wrong] = &mut frames;
        // More of them follow, and it carries a multiple of eight bytes.
        (fragment.bytes[17], fragment.bytes[20]) = (44, 0x20);
        fragment.sum(0xffff);
        echo.bytes[23] = 1;
        echo.bytes[34..42].copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        stranger.bytes[30..34].copy_from_slice(&[10, 200, 0, 1]);
        for frame in [echo, stranger] {
            frame.sum(0);
            frame.fixed = true;
        }
        wrong.bytes[24] ^= 1;
        wrong.fixed = true;
        frames
    }

    /// A packet of no flow in particular to the unit's own address.
    pub(crate) fn to_unit() -> Self {
        let mut frame = Self::new(false, 0);
        frame.bytes[30..34].copy_from_slice(&UNIT.octets());
        frame.sum(0xffff);
        frame
    }

    /// A BFD packet of the unit's router.
    pub(crate) fn bfd() -> Self {
        let mut frame = Self::to_unit();
        (frame.bytes[22], frame.bytes[23]) = (255, 17);
        frame.bytes[26..30].copy_from_slice(&PEER.octets());
        frame.bytes[34..42].copy_from_slice(&[0xc0, 0, 0x0e, 0xc8, 0, 20, 0, 0]);
        frame.sum(0);
        frame.fixed = true;
        frame
    }

    /// Computes the IPv4 header's checksum as if its words had so much more.
    fn sum(&mut self, more: u32) {
        self.bytes[24..26].fill(0);
        let words = self.bytes[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.fold(more, |sum, word| (sum + word) % 0xffff);
        self.bytes[24..26].copy_from_slice(&(0xffff - sum).to_be_bytes()[2..]);
    }

    /// Bytes of its headers.
    pub(crate) fn headers(&self) -> usize {
        if self.six { 74 } else { 54 }
    }

    /// Writes the headers of a flow over those of a packet that has been forwarded.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "words of a sum")]
    pub(crate) fn write(&self, flow: u64, frame: &mut [u8]) {
        if self.fixed {
            return frame[..54].copy_from_slice(&self.bytes[..54]);
        }
        let (address, port) = client(flow);
        if self.six {
            frame[..14].copy_from_slice(&self.bytes[..14]);
            frame[14..22].copy_from_slice(&self.bytes[14..22]);
            frame[22..34].copy_from_slice(&CLIENT6[..12]);
            frame[34..38].copy_from_slice(&address.to_be_bytes());
            frame[38..54].copy_from_slice(&self.bytes[38..54]);
            frame[54..56].copy_from_slice(&port.to_be_bytes());
            return;
        }
        let frame: &mut [u8; 38] = match frame.first_chunk_mut() {
            Some(frame) => frame,
            None => return,
        };
        let template: &[u8; 38] = match self.bytes.first_chunk() {
            Some(template) => template,
            None => return,
        };
        *frame = *template;
        // What the address adds to the header's sum the identification takes away again, so that the checksum stays.
        frame[18..20].copy_from_slice(&(!(address as u16)).to_be_bytes());
        frame[26..30].copy_from_slice(&address.to_be_bytes());
        frame[34..36].copy_from_slice(&port.to_be_bytes());
    }
}

/// The numbers of flows in random order.
#[derive(Debug, Clone)]
pub(crate) struct Flows {
    mask: u64,
    state: u64,
}

impl Flows {
    /// Of so many, a power of two.
    pub(crate) fn new(flows: u64) -> Self {
        Self { mask: flows - 1, state: 1 }
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        // Knuth's MMIX; its upper bits are the random ones.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) & self.mask
    }
}

/// What tells a host's answer from [`Frame::new`]'s bytes: its ends, and the IPv4 header's checksum that goes with them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Back {
    ends: [u8; 12],
    sum: [u8; 2],
}

impl Back {
    /// Of a flow that has its routes; `networks` as for [`client_in`].
    pub(crate) fn new(farm: &Farm, forwarder: &Forwarder, networks: u64, flow: u64) -> Option<Self> {
        let key = key_in(networks, flow);
        let Key::V4(narrow) = key else { return None };
        let action = forwarder.routes4().entry(forwarder.routes4().find(&narrow)?).action();
        let back = match (return_key(&key, action, farm), action) {
            (Some((back, _)), _) => back,
            (None, Action::Send { endpoint, value, .. }) => {
                let PoolPort { address, port } = PoolPort::from_value(value);
                let endpoint = farm.endpoint(endpoint)?;
                let pool = farm.pools.get(endpoint.pool?)?.address(address as usize)?;
                Key::new((endpoint.address, endpoint.port?).into(), (pool, port).into(), key.protocol())?
            }
            _ => return None,
        };
        Self::of(&back)
    }

    /// With the ends of any key of IPv4.
    pub(crate) fn of(key: &Key) -> Option<Self> {
        let Key::V4(key) = key else { return None };
        let mut ends = [0; 12];
        ends[..4].copy_from_slice(&key.source);
        ends[4..8].copy_from_slice(&key.destination);
        ends[8..].copy_from_slice(&key.ports);
        let mut frame = Frame::new(false, 0);
        frame.bytes[26..38].copy_from_slice(&ends);
        frame.sum(0);
        Some(Self { ends, sum: [frame.bytes[24], frame.bytes[25]] })
    }

    /// Writes its headers over those of a packet that has been forwarded; `frame` is what they are beside that.
    #[inline(always)]
    pub(crate) fn write(&self, frame: &Frame, packet: &mut [u8]) {
        let (Some(packet), Some(template)) = (packet.first_chunk_mut::<38>(), frame.bytes.first_chunk::<38>()) else {
            return;
        };
        *packet = *template;
        packet[24..26].copy_from_slice(&self.sum);
        packet[26..].copy_from_slice(&self.ends);
    }
}

/// A farm of one service in each family.
pub(crate) fn farm(mode: Mode, timeouts: IdleTimeouts) -> Result<Farm, Box<dyn std::error::Error>> {
    farm_of(mode, timeouts, ENDPOINTS, false)
}

/// One of so many endpoints; where they are `shared`, a third service on the first one's VIP leads to the same sockets.
pub(crate) fn farm_of(
    mode: Mode,
    timeouts: IdleTimeouts,
    endpoints: u64,
    shared: bool,
) -> Result<Farm, Box<dyn std::error::Error>> {
    farm_with(mode, timeouts, endpoints, shared, 0)
}

/// One with routes to so many networks of clients, as [`client_in`] has them; all else is behind one gateway.
pub(crate) fn farm_towards(
    mode: Mode,
    timeouts: IdleTimeouts,
    networks: u64,
) -> Result<Farm, Box<dyn std::error::Error>> {
    farm_with(mode, timeouts, ENDPOINTS, false, networks)
}

fn farm_with(
    mode: Mode,
    timeouts: IdleTimeouts,
    endpoints: u64,
    shared: bool,
    networks: u64,
) -> Result<Farm, Box<dyn std::error::Error>> {
    let service = |id, vip| Service {
        id: ServiceId(id),
        protocol: protocol::TCP,
        ports: vec![80..=80],
        mode,
        no_endpoint: NoEndpoint::Drop,
        vip,
    };
    let other = Service { ports: vec![81..=81], ..service(3, 0) };
    let vip = |address: IpAddr| Vip { address, services: vec![], on_link: vec![0] };
    let host = |n: u64| Ipv4Addr::from(0x0afe_0001 + u32::try_from(n).unwrap_or(0));
    let endpoint = |service: usize, n: u64| Endpoint {
        service,
        host: HostId(u32::try_from(n).unwrap_or(0)),
        application: ApplicationId(1),
        address: host(n).into(),
        port: matches!(mode, Mode::Nat | Mode::FullNat).then_some(8080),
        directive: Directive::Active,
        backup: false,
        tunnel: match mode {
            Mode::Ipip => Tunnel::ipip(UNIT.into(), host(n).into()),
            Mode::Gue => Tunnel::gue(UNIT.into(), host(n).into(), 6080),
            _ => None,
        },
        pool: (mode == Mode::FullNat).then_some(0),
        local: None,
        hop: None,
    };
    let gateway = |n: u64| IpAddr::from(Ipv4Addr::from(0x0afe_fe01 + u32::try_from(n).unwrap_or(0)));
    // Four addresses have room for millions of connections to 64 endpoints.
    let pool = || {
        PoolPorts::new(
            (1..=4).map(|n| Ipv4Addr::new(10, 253, 0, n).into()).collect(),
            1024..=65535,
            &Toeplitz::new(&ToeplitzKey::from_seed(1)),
        )
    };
    Ok(Farm::new(FarmParts {
        generation: 1,
        vips: vec![vip(VIP.into()), vip(VIP6.into())],
        services: if shared { vec![service(1, 0), service(2, 1), other] } else { vec![service(1, 0), service(2, 1)] },
        endpoints: if shared { [0, 2].as_slice() } else { &[0] }
            .iter()
            .flat_map(|service| (0..endpoints).map(|n| endpoint(*service, n)))
            .collect(),
        pools: if mode == Mode::FullNat { vec![pool()?] } else { vec![] },
        ports: vec![Port { mac: MAC, mtu: 1500, vlan: None }],
        timeouts,
        twin_peers: Arc::new(TwinPeers::default().with(PEER.into(), 32)),
        prefixes: [
            Prefix { address: Ipv4Addr::new(10, 254, 0, 0).into(), length: 16, ways: vec![Way::OnLink(0)] },
            Prefix { address: Ipv4Addr::UNSPECIFIED.into(), length: 0, ways: vec![Way::Gateway(0, gateway(0))] },
        ]
        .into_iter()
        .chain((0..networks).map(|network| {
            let address = Ipv4Addr::from(FIRST_NETWORK + u32::try_from(network << 8).unwrap_or(0)).into();
            Prefix { address, length: 24, ways: vec![Way::Gateway(0, gateway(network % GATEWAYS))] }
        }))
        .collect(),
        neighbours: (0..endpoints)
            .map(|n| (host(n).into(), [2, 0, 0, 1, 0, u8::try_from(n).unwrap_or(0)]))
            .chain((0..GATEWAYS).map(|n| (gateway(n), [2, 0, 0, 2, 0, u8::try_from(n).unwrap_or(0)])))
            .map(|(address, mac)| Neighbour { port: 0, address, mac })
            .collect(),
    }))
}

/// The route that a flow's packets of one kind need.
pub(crate) fn key(six: bool, flow: u64) -> Key {
    key_of(six, client(flow))
}

/// The same over IPv4 of clients in so many networks.
pub(crate) fn key_in(networks: u64, flow: u64) -> Key {
    key_of(false, client_in(networks, flow))
}

fn key_of(six: bool, (address, port): (u32, u16)) -> Key {
    let [high, low] = port.to_be_bytes();
    let ports = [high, low, 0, 80];
    if six {
        let mut source = CLIENT6;
        source[12..].copy_from_slice(&address.to_be_bytes());
        Key::V6(Key6 { source, destination: VIP6.octets(), ports, protocol: protocol::TCP })
    } else {
        let (source, destination) = (address.to_be_bytes(), VIP.octets());
        Key::V4(Key4 { source, destination, ports, protocol: protocol::TCP })
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const UNIT: Ipv4Addr = Ipv4Addr::new(10, 254, 255, 1);
/// The unit's router.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 254, 255, 254);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
const CLIENT6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// 16.0.0.0, the first of the clients' networks.
const FIRST_NETWORK: u32 = 0x1000_0000;
const GATEWAYS: u64 = 8;
/// Hosts.
pub(crate) const ENDPOINTS: u64 = 64;
