//! A unit with made-up contents, for tests of weirctl against the real admin server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_admin::api::{
    AgentRow, AgentStatus, ApiError, CoreStatus, Counters, Direction, Directive, DirectiveChange, EndpointStatus, Flow,
    Health, HealthChange, HostService, HostStatus, MbufStatus, PortCounters, PortStatus, Presence, Protocol,
    RouteCount, RouteEndpoint, RouteEntry, RouteList, RouteLookup, RssStatus, ServiceStatus, ShardMove, ShardStatus,
    Status, SteeredStatus, UnitApi,
};
use weir_admin::server::AdminSocket;
use weir_identity::{HostId, Incarnation, ServiceId, UnitId};

/// Serves the fake until it is dropped.
pub(crate) struct Served {
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    pub(crate) fn start() -> Served {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weir-1.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Bound before any client comes: they wait in the backlog until it is served.
        let bound = AdminSocket::bind(&socket).unwrap();
        runtime.spawn(bound.serve(Arc::new(Fake::default()), std::future::pending()));
        Served { socket, _directory: directory, _runtime: runtime }
    }
}

/// The unit; its packet counter grows with each question.
#[derive(Debug, Default)]
struct Fake {
    asked: AtomicU64,
}

impl UnitApi for Fake {
    async fn status(&self) -> Result<Status, ApiError> {
        Ok(Status {
            unit: UnitId(1),
            name: "weir-1".into(),
            incarnation: Incarnation(1_700_000_000_123),
            version: "0.1.0".into(),
            revision: "abc1234".into(),
            dpdk: "22.11.7".into(),
            uptime_ms: 273_600_000,
            ports: vec![PortStatus {
                name: "net0".into(),
                device: "af_packet:weir0".into(),
                mac: "02:00:00:00:00:01".into(),
                link_up: true,
                rss: RssStatus::Hint { why: "both sides are hashed".into() },
                steered: SteeredStatus { received: 123_456, handed_over: 61_700 },
                rx: PortCounters { packets: 123_456, bytes: 1_572_864, missed: 7, errors: 0 },
                tx: PortCounters { packets: 123_000, bytes: 512, missed: 0, errors: 2 },
            }],
            cores: vec![CoreStatus { cpu: 2, shards: vec![0, 1], classifiers: vec![], busy: 0.127 }],
            shards: shards(),
            mbufs: MbufStatus { in_use: 1024, total: 16_384 },
        })
    }

    async fn services(&self) -> Result<Vec<ServiceStatus>, ApiError> {
        let endpoint = |host, capacity, health, backup| EndpointStatus {
            host: HostId(host),
            host_name: format!("host-{host}"),
            address: format!("10.80.0.1{host}").parse().unwrap(),
            port: None,
            capacity,
            directive: Directive::Active,
            health,
            since_ms: 312_000,
            new_connections: 4_200,
            backup,
        };
        Ok(vec![ServiceStatus {
            id: ServiceId(1),
            name: "web".into(),
            vip: "10.80.0.100".parse().unwrap(),
            protocol: Protocol::Tcp,
            ports: "80,8000-8099".into(),
            mode: "dsr".into(),
            select: "tokens".into(),
            no_endpoint: "drop".into(),
            refused: 3,
            endpoints: vec![endpoint(1, 50, Health::Healthy, false), endpoint(2, 0, Health::Failing, true)],
        }])
    }

    async fn hosts(&self) -> Result<Vec<HostStatus>, ApiError> {
        let change = HealthChange {
            ago_ms: 1_250,
            service: "web".into(),
            from: Health::Healthy,
            to: Health::Failing,
            reason: "connect: refused".into(),
        };
        let watched = HostStatus {
            id: HostId(2),
            name: "host-2".into(),
            address: "10.80.0.12".parse().unwrap(),
            mac: None,
            agent: Some(AgentStatus {
                presence: Presence::Live,
                since_ms: 61_000,
                heard_ms: Some(400),
                rank: 1,
                leader: None,
                group: Some("rack-3".into()),
                leads: true,
                dns_name: None,
            }),
            services: vec![HostService {
                service: ServiceId(1),
                name: "web".into(),
                directive: Directive::Draining,
                health: Health::Healthy,
                since_ms: 60_000,
                new_connections: 7,
                agent: Some(AgentRow {
                    health: Health::Healthy,
                    load: 12,
                    capacity: 60,
                    target: Directive::Draining,
                    current: Directive::Active,
                    live: true,
                    since_ms: 2_000,
                }),
            }],
            recent: vec![],
        };
        let probed = HostStatus {
            id: HostId(1),
            name: "host-1".into(),
            address: "10.80.0.11".parse().unwrap(),
            mac: None,
            agent: None,
            services: vec![HostService {
                service: ServiceId(1),
                name: "web".into(),
                directive: Directive::Draining,
                health: Health::Failing,
                since_ms: 1_250,
                new_connections: 4_200,
                agent: None,
            }],
            recent: vec![change],
        };
        Ok(vec![probed, watched])
    }

    async fn drain(&self, host: &str, service: Option<&str>) -> Result<Vec<DirectiveChange>, ApiError> {
        direct(host, service, Directive::Active, Directive::Draining)
    }

    async fn resume(&self, host: &str, service: Option<&str>) -> Result<Vec<DirectiveChange>, ApiError> {
        direct(host, service, Directive::Active, Directive::Active)
    }

    async fn routes_lookup(&self, flow: Flow) -> Result<RouteLookup, ApiError> {
        let routes = if flow.client.port() == 40_001 { vec![route(flow)] } else { vec![] };
        Ok(RouteLookup { shard: 1, routes })
    }

    /// Pages of no more than two of three routes, and an empty one before the last.
    async fn routes_list(
        &self,
        limit: usize,
        service: Option<&str>,
        from: Option<&str>,
    ) -> Result<RouteList, ApiError> {
        if let Some(service) = service.filter(|service| *service != "web & more") {
            return Err(ApiError::UnknownService(service.into()));
        }
        let flow = |n| Flow {
            client: format!("198.51.100.7:{n}").parse().unwrap(),
            vip: "10.80.0.100:80".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        let (first, most): (usize, usize) = match from {
            None => (0, 2),
            Some("1") => (1, 2),
            Some("2 (seen)") => return Ok(RouteList { more: true, next: Some("2".into()), ..RouteList::default() }),
            Some("2") => (2, 2),
            Some(from) => return Err(ApiError::BadRequest(format!("no place {from}"))),
        };
        let end = 3.min(first + most.min(limit));
        let routes = (first..end).map(|n| route(flow(40_001 + n))).collect();
        let next = [None, Some("1"), Some("2 (seen)"), None][end].map(str::to_owned);
        Ok(RouteList { routes, more: next.is_some(), next })
    }

    async fn routes_count(&self) -> Result<RouteCount, ApiError> {
        Ok(RouteCount { total: 15, shards: shards() })
    }

    async fn counters(&self) -> Result<Counters, ApiError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Ok(Counters {
            totals: map(&[("packets", 1_000_000 + asked * 5_000), ("diverts", 0)]),
            drops: map(&[("no_route", 12), ("bad_checksum", 0)]),
            ports: BTreeMap::from([("net0".to_owned(), map(&[("rx_packets", 9)]))]),
            shards: BTreeMap::from([(0, map(&[("hits", 8)]))]),
        })
    }

    async fn move_shard(&self, shard: u32, cpu: u32) -> Result<ShardMove, ApiError> {
        match (shard, cpu) {
            (0..=1, 2..=3) => Ok(ShardMove { shard, from_cpu: 2, to_cpu: cpu }),
            (0..=1, _) => Err(ApiError::UnknownCpu(cpu)),
            _ => Err(ApiError::UnknownShard(shard)),
        }
    }
}

fn direct(host: &str, service: Option<&str>, from: Directive, to: Directive) -> Result<Vec<DirectiveChange>, ApiError> {
    if host != "host-1" {
        return Err(ApiError::UnknownHost(host.into()));
    }
    let change = |service: &str| DirectiveChange { host: host.into(), service: service.into(), from, to };
    Ok(service.map_or_else(|| vec![change("web"), change("dns")], |service| vec![change(service)]))
}

fn route(flow: Flow) -> RouteEntry {
    RouteEntry {
        flow,
        direction: Direction::ToHost,
        action: "send".into(),
        endpoint: Some(RouteEndpoint {
            host: HostId(1),
            name: "host-1".into(),
            address: "10.80.0.11:80".parse().unwrap(),
            mode: "dsr".into(),
            source: None,
        }),
        state: "established".into(),
        idle_ms: 350,
        expires_in_ms: 3_599_000,
        shard: 1,
    }
}

fn shards() -> Vec<ShardStatus> {
    let shard = |id, routes_ipv4, routes_ipv6| ShardStatus {
        id,
        cpu: 2,
        routes_ipv4,
        routes_ipv6,
        capacity_ipv4: 50_000,
        capacity_ipv6: 50_000,
    };
    vec![shard(0, 10, 0), shard(1, 4, 1)]
}
