//! The admin API's answers: what a running unit tells `weirctl`, and what it does for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_admin::api::{
    AgentRow, AgentStatus, ApiError, CoreStatus, Counters, DirectiveChange, EndpointStatus, Flow, HealthChange,
    HostService, HostStatus, MbufStatus, PortCounters, PortStatus, Presence, Protocol, RouteCount, RouteList,
    RouteLookup, RssStatus, ServiceStatus, ShardMove, ShardStatus, Status, SteeredStatus, UnitApi,
};
use weir_config::Service;
use weir_dataplane::flow::{Key, protocol};
use weir_dpdk::{Port, RssSide, RssState};
use weir_health_load::{Directive, Health};
use weir_health_protocol::Row;
use weir_identity::{ApplicationId, EndpointId, HostId, Incarnation, Moment};

use crate::control::{Shared, link_is_up, statistics};
use crate::core_thread::{AskError, uptime};
use crate::knowledge::{Knowledge, Known};
use crate::routes::{self, NoPlace, Place};

/// A shard that is looked into.
type Visited = weir_dataplane::shard::Shard<crate::ports::PortQueue>;

/// A unit that answers.
pub struct Api {
    shared: Arc<Shared>,
}

impl Api {
    /// Answers for the unit that `shared` belongs to.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// New connections by endpoint, summed over the classifiers.
    fn chosen(&self, endpoint: EndpointId) -> u64 {
        self.shared.cores.classifiers().iter().map(|classifier| classifier.chosen(endpoint)).sum()
    }

    fn shard_status(&self) -> Vec<ShardStatus> {
        let cores = &self.shared.cores;
        let (capacity_ipv4, capacity_ipv6) = cores.capacities();
        let shards = cores.shards().iter().enumerate();
        shards
            .map(|(id, published)| {
                let (routes_ipv4, routes_ipv6) = published.routes();
                let cpu = number(cores.cpu_of(id).unwrap_or(0));
                ShardStatus { id: number(id), cpu, routes_ipv4, routes_ipv6, capacity_ipv4, capacity_ipv6 }
            })
            .collect()
    }

    /// What is known of the agents that the YAML names, and for how long each row has been as it is, in milliseconds.
    fn agents(&self) -> BTreeMap<HostId, (AgentStatus, BTreeMap<ApplicationId, u64>)> {
        let Some(cache) = self.shared.agents.get() else { return BTreeMap::new() };
        let hosts = self.shared.config.hosts.iter().filter(|host| host.agent);
        cache.with(|end, now| {
            let ago = |then: Moment| now.0.saturating_sub(then.0);
            let leaders = end.leaders();
            let known = |host: &weir_config::Host| {
                let cached = end.host(host.id)?;
                let was_heard = cached.incarnation() != Incarnation(0);
                let agent = AgentStatus {
                    presence: presence(cached.presence()),
                    since_ms: ago(cached.presence_since()),
                    heard_ms: was_heard.then(|| ago(cached.heard())),
                    rank: if was_heard { cached.rank().number() } else { 0 },
                    leader: cached.leader(),
                    group: cached.group().map(str::to_owned),
                    leads: leaders.contains(&host.id),
                    dns_name: cached.name().map(str::to_owned),
                };
                let since = |row: &Row| Some((row.application, ago(cached.row_since(row.application)?)));
                Some((host.id, (agent, cached.table().rows().filter_map(since).collect())))
            };
            hosts.filter_map(known).collect()
        })
    }

    fn service_named(&self, name: &str) -> Result<usize, ApiError> {
        let services = self.shared.config.services.iter();
        services
            .clone()
            .position(|service| service.name == name)
            .or_else(|| services.clone().position(|service| service.id.to_string() == name))
            .ok_or_else(|| ApiError::UnknownService(name.to_owned()))
    }

    fn host_named(&self, name: &str) -> Result<HostId, ApiError> {
        let hosts = self.shared.config.hosts.iter();
        hosts
            .clone()
            .find(|host| host.name == name)
            .or_else(|| hosts.clone().find(|host| host.id.to_string() == name))
            .map(|host| host.id)
            .ok_or_else(|| ApiError::UnknownHost(name.to_owned()))
    }

    fn direct(&self, host: &str, service: Option<&str>, to: Directive) -> Result<Vec<DirectiveChange>, ApiError> {
        let host_id = self.host_named(host)?;
        let wanted = service.map(|service| self.service_named(service)).transpose()?;
        let concerns = |knowledge: &Knowledge, id: EndpointId| {
            let known = &knowledge.endpoints[id.index()];
            knowledge.settings(known).1.host == host_id && wanted.is_none_or(|service| service == known.service)
        };
        let serves = {
            let knowledge = self.shared.knowledge.lock();
            knowledge.known().any(|(id, _)| concerns(&knowledge, id))
        };
        if !serves {
            let service = service.unwrap_or("any service").to_owned();
            return Err(ApiError::NotServed { host: host.to_owned(), service });
        }
        let changed = self.shared.direct(to, concerns);
        let knowledge = self.shared.knowledge.lock();
        let changes = changed.into_iter().map(|(id, from)| {
            let (service, endpoint) = knowledge.settings(&knowledge.endpoints[id.index()]);
            let (host, service) = (endpoint.host_name.clone(), service.name.clone());
            DirectiveChange { host, service, from: directive(from), to: directive(to) }
        });
        Ok(changes.collect())
    }
}

impl UnitApi for Api {
    async fn status(&self) -> Result<Status, ApiError> {
        let shared = &self.shared;
        let (macs, kernel) = {
            let knowledge = shared.knowledge.lock();
            (knowledge.macs.clone(), knowledge.routing.kernel().cloned())
        };
        // A driver over an interface does not notice when that goes; the kernel does.
        let link_up = |settings| match (crate::knowledge::interface(settings), &kernel) {
            (Some(interface), Some(kernel)) => link_is_up(kernel, interface) == Some(true),
            _ => true,
        };
        let ports = shared.config.ports.iter().zip(&shared.ports).zip(&macs).enumerate().map(
            |(index, ((settings, ports), mac))| {
                let sums = statistics(ports);
                let of = |name: &str| sums.get(name).copied().unwrap_or(0);
                PortStatus {
                    name: settings.name.clone(),
                    device: device_name(&settings.device),
                    mac: weir_dataplane::wire::ethernet::MacAddress(*mac).to_string(),
                    link_up: link_up(settings) && ports.iter().all(|port| port.link().is_ok_and(|link| link.up)),
                    rss: rss(ports),
                    steered: {
                        let share = shared.cores.share(index);
                        SteeredStatus { received: share.received, handed_over: share.foreign }
                    },
                    rx: PortCounters {
                        packets: of("rx_packets"),
                        bytes: of("rx_bytes"),
                        missed: of("rx_missed") + of("rx_no_mbuf"),
                        errors: of("rx_errors"),
                    },
                    tx: PortCounters {
                        packets: of("tx_packets"),
                        bytes: of("tx_bytes"),
                        missed: 0,
                        errors: of("tx_errors"),
                    },
                }
            },
        );
        let cores = shared.cores.cores().into_iter().map(|(cpu, shards, classifiers, busy)| CoreStatus {
            cpu: number(cpu),
            shards: shards.into_iter().map(number).collect(),
            classifiers: classifiers.into_iter().map(number).collect(),
            busy,
        });
        Ok(Status {
            unit: shared.config.unit.id,
            name: shared.config.unit.name.clone(),
            incarnation: shared.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: env!("WEIR_REVISION").to_owned(),
            dpdk: env!("WEIR_DPDK").to_owned(),
            uptime_ms: uptime().0,
            ports: ports.collect(),
            cores: cores.collect(),
            shards: self.shard_status(),
            mbufs: MbufStatus { in_use: shared.pool.in_use().into(), total: shared.pool.size().into() },
        })
    }

    async fn services(&self) -> Result<Vec<ServiceStatus>, ApiError> {
        let knowledge = self.shared.knowledge.lock();
        let now = uptime();
        let services = self.shared.config.services.iter().enumerate().map(|(index, service)| ServiceStatus {
            id: service.id,
            name: service.name.clone(),
            vip: service.vip,
            protocol: protocol_of(service),
            ports: service.ports.to_string(),
            mode: mode_of(service).to_owned(),
            select: match service.select {
                weir_config::Select::Tokens => "tokens",
                weir_config::Select::Percentages => "percentages",
                weir_config::Select::Hash => "hash",
                weir_config::Select::RoundRobin => "round-robin",
                weir_config::Select::LeastConnection => "least-connection",
            }
            .to_owned(),
            no_endpoint: match service.no_endpoint {
                weir_config::NoEndpoint::Drop => "drop",
                weir_config::NoEndpoint::Reset => "reset",
            }
            .to_owned(),
            refused: self.shared.cores.classifiers().iter().map(|classifier| classifier.refused(index)).sum(),
            endpoints: knowledge
                .known()
                .filter(|(_, known)| known.service == index)
                .map(|(id, known)| {
                    let (_, settings) = knowledge.settings(known);
                    EndpointStatus {
                        host: settings.host,
                        host_name: settings.host_name.clone(),
                        address: settings.address,
                        port: settings.port,
                        capacity: known.free(settings.capacity),
                        directive: directive(known.effective_directive()),
                        health: health(known.health),
                        since_ms: now.0.saturating_sub(known.since.0),
                        new_connections: self.chosen(id),
                        backup: settings.backup,
                    }
                })
                .collect(),
        });
        Ok(services.collect())
    }

    async fn hosts(&self) -> Result<Vec<HostStatus>, ApiError> {
        let agents = self.agents();
        let knowledge = self.shared.knowledge.lock();
        let recent = self.shared.recent.lock();
        let now = uptime();
        let of_host = |known: &Known, host| knowledge.settings(known).1.host == host;
        let hosts = self.shared.config.hosts.iter().map(|host| HostStatus {
            id: host.id,
            name: host.name.clone(),
            address: host.address,
            mac: knowledge
                .routing
                .mac_of(host.address)
                .map(|mac| weir_dataplane::wire::ethernet::MacAddress(mac).to_string()),
            agent: agents.get(&host.id).map(|(agent, _)| agent.clone()),
            services: knowledge
                .known()
                .filter(|(_, known)| of_host(known, host.id))
                .map(|(id, known)| {
                    let (service, settings) = knowledge.settings(known);
                    let since = agents.get(&host.id).and_then(|(_, rows)| rows.get(&settings.application));
                    HostService {
                        service: service.id,
                        name: service.name.clone(),
                        directive: directive(known.effective_directive()),
                        health: health(known.health),
                        since_ms: now.0.saturating_sub(known.since.0),
                        new_connections: self.chosen(id),
                        agent: known.said.map(|said| AgentRow {
                            health: health(said.status.health),
                            load: said.status.load,
                            capacity: said.status.capacity,
                            target: directive(said.directives.target),
                            current: directive(said.directives.current),
                            live: said.live,
                            since_ms: since.copied().unwrap_or(0),
                        }),
                    }
                })
                .collect(),
            recent: recent
                .iter()
                .filter_map(|change| {
                    let known = knowledge.endpoints.get(change.endpoint.index())?;
                    of_host(known, host.id).then(|| HealthChange {
                        ago_ms: now.0.saturating_sub(change.at.0),
                        service: knowledge.settings(known).0.name.clone(),
                        from: health(change.from),
                        to: health(change.to),
                        reason: change.reason.clone(),
                    })
                })
                .collect(),
        });
        Ok(hosts.collect())
    }

    async fn drain(&self, host: &str, service: Option<&str>) -> Result<Vec<DirectiveChange>, ApiError> {
        self.direct(host, service, Directive::Draining)
    }

    async fn resume(&self, host: &str, service: Option<&str>) -> Result<Vec<DirectiveChange>, ApiError> {
        self.direct(host, service, Directive::Active)
    }

    async fn routes_lookup(&self, flow: Flow) -> Result<RouteLookup, ApiError> {
        let protocol = match flow.protocol {
            Protocol::Tcp => protocol::TCP,
            Protocol::Udp => protocol::UDP,
            Protocol::Esp => protocol::ESP,
            Protocol::Gre => protocol::GRE,
        };
        let key = Key::new(flow.client, flow.vip, protocol)
            .ok_or_else(|| ApiError::BadRequest("client and VIP are of different families".to_owned()))?;
        let owners = self.visit(0, |shard: &Visited, _| shard.forwarder().owners().clone()).await?;
        let shard = owners.client_is_source(&key);
        let farm = self.shared.farms.load_full();
        let there = Arc::clone(&farm);
        let look = move |visited: &Visited, now| routes::lookup(visited.forwarder(), &there, &key, millis(now));
        let seen = self.visit(shard, look).await?;
        let show = routes::Show::new(&farm, &self.shared.config);
        Ok(RouteLookup { shard: number(shard), routes: seen.iter().filter_map(|seen| show.one(seen, shard)).collect() })
    }

    async fn routes_list(
        &self,
        limit: usize,
        service: Option<&str>,
        from: Option<&str>,
    ) -> Result<RouteList, ApiError> {
        let service = service.map(|service| self.service_named(service)).transpose()?;
        let limit = limit.min(MOST_ROUTES);
        let mut at: Place = match from {
            Some(from) => from.parse().map_err(|error: NoPlace| ApiError::BadRequest(error.to_string()))?,
            None => Place::default(),
        };
        let farm = self.shared.farms.load_full();
        let (mut found, mut looks) = (Vec::new(), 0);
        // One more than wanted tells whether there are more. Whoever asked may be gone: then this future is dropped between two visits.
        while at.shard < self.shared.cores.shards().len() && found.len() <= limit && looks < LOOKS_A_PAGE {
            looks += 1;
            let (farm, config) = (Arc::clone(&farm), Arc::clone(&self.shared.config));
            let most = limit + 1 - found.len();
            let look = move |visited: &Visited, now| {
                let wanted = |flow: &Flow| {
                    service.is_none_or(|index| {
                        let service: &Service = &config.services[index];
                        service.vip == flow.vip.ip()
                            && service.ports.contains(flow.vip.port())
                            && protocol_of(service) == flow.protocol
                    })
                };
                routes::page(visited.forwarder(), &farm, at, most, wanted, millis(now))
            };
            let (seen, next) = self.visit(at.shard, look).await?;
            found.extend(seen);
            at = next;
        }
        if found.len() > limit
            && let Some(extra) = found.pop()
        {
            at = extra.place;
        }
        let next = (at.shard < self.shared.cores.shards().len()).then(|| at.to_string());
        let show = routes::Show::new(&farm, &self.shared.config);
        let routes = found.iter().filter_map(|seen| show.one(seen, seen.place.shard)).collect();
        Ok(RouteList { routes, more: next.is_some(), next })
    }

    async fn routes_count(&self) -> Result<RouteCount, ApiError> {
        let shards = self.shard_status();
        Ok(RouteCount { total: shards.iter().map(|shard| shard.routes_ipv4 + shard.routes_ipv6).sum(), shards })
    }

    async fn counters(&self) -> Result<Counters, ApiError> {
        let shared = &self.shared;
        let mut counters = Counters::default();
        for (id, published) in shared.cores.shards().iter().enumerate() {
            let shard = counters.shards.entry(number(id)).or_default();
            for (name, value) in published.counters() {
                shard.insert(name.to_owned(), value);
                *counters.totals.entry(name.to_owned()).or_insert(0) += value;
            }
            for (reason, value) in published.drops() {
                *counters.drops.entry(reason.name().to_owned()).or_insert(0) += value;
            }
        }
        if let Some(cache) = shared.agents.get() {
            for (name, value) in cache.with(|end, _| end.refusals()).by_name() {
                counters.totals.insert(format!("agents_refused_{}", name.replace('-', "_")), value);
            }
            for (name, value) in cache.handshakes().by_name() {
                counters.totals.insert(format!("agents_handshakes_{name}"), value);
            }
        }
        for classifier in shared.cores.classifiers() {
            for (name, value) in classifier.counters() {
                *counters.totals.entry(format!("classifier_{name}")).or_insert(0) += value;
            }
        }
        for (settings, ports) in shared.config.ports.iter().zip(&shared.ports) {
            let sums: BTreeMap<String, u64> =
                statistics(ports).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            counters.ports.insert(settings.name.clone(), sums);
        }
        Ok(counters)
    }

    async fn move_shard(&self, shard: u32, cpu: u32) -> Result<ShardMove, ApiError> {
        let shared = Arc::clone(&self.shared);
        let moved = tokio::task::spawn_blocking(move || shared.cores.move_shard(shard as usize, cpu as usize)).await;
        let from = moved.map_err(|_| ApiError::Stopping)?.map_err(refusal)?;
        Ok(ShardMove { shard, from_cpu: number(from), to_cpu: cpu })
    }
}

impl Api {
    async fn visit<T: Send + 'static>(
        &self,
        shard: usize,
        look: impl Fn(&Visited, Moment) -> T + Send + Sync + 'static,
    ) -> Result<T, ApiError> {
        let shared = Arc::clone(&self.shared);
        let visited = tokio::task::spawn_blocking(move || shared.cores.visit(shard, look)).await;
        visited.map_err(|_| ApiError::Stopping)?.map_err(refusal)
    }
}

fn refusal(error: AskError) -> ApiError {
    match error {
        AskError::NoShard(shard) => ApiError::UnknownShard(number(shard)),
        AskError::NoCore(cpu) => ApiError::UnknownCpu(number(cpu)),
        AskError::Silent(cpu) => ApiError::NoAnswer { part: format!("core {cpu}"), waited_ms: 1000 },
    }
}

/// Of a port that is several of DPDK's, the kernel chooses.
fn rss(ports: &[Port]) -> RssStatus {
    let [port] = ports else { return RssStatus::None };
    match port.rss() {
        RssState::Exact(side) => RssStatus::Exact {
            by: match side {
                RssSide::Source => "source",
                RssSide::Destination => "destination",
                RssSide::Both => "both",
            }
            .to_owned(),
        },
        RssState::Hint(why) => RssStatus::Hint { why: why.to_string() },
        RssState::None => RssStatus::None,
    }
}

fn presence(presence: weir_health_protocol::Presence) -> Presence {
    match presence {
        weir_health_protocol::Presence::Expected => Presence::Expected,
        weir_health_protocol::Presence::Live => Presence::Live,
        weir_health_protocol::Presence::Silent => Presence::Silent,
        weir_health_protocol::Presence::Gone => Presence::Gone,
    }
}

fn directive(directive: Directive) -> weir_admin::api::Directive {
    match directive {
        Directive::Active => weir_admin::api::Directive::Active,
        Directive::Draining => weir_admin::api::Directive::Draining,
        Directive::Inactive => weir_admin::api::Directive::Inactive,
    }
}

fn health(health: Health) -> weir_admin::api::Health {
    match health {
        Health::Healthy => weir_admin::api::Health::Healthy,
        Health::Failing => weir_admin::api::Health::Failing,
        Health::Unknown => weir_admin::api::Health::Unknown,
    }
}

fn protocol_of(service: &Service) -> Protocol {
    match service.protocol {
        weir_config::Protocol::Tcp => Protocol::Tcp,
        weir_config::Protocol::Udp => Protocol::Udp,
        weir_config::Protocol::Esp => Protocol::Esp,
        weir_config::Protocol::Gre => Protocol::Gre,
    }
}

fn mode_of(service: &Service) -> &'static str {
    match service.mode {
        weir_config::Mode::Dsr => "dsr",
        weir_config::Mode::Nat => "nat",
        weir_config::Mode::FullNat { .. } => "full-nat",
        weir_config::Mode::Ipip => "ipip",
        weir_config::Mode::Gue { .. } => "gue",
    }
}

fn device_name(device: &weir_config::Device) -> String {
    match device {
        weir_config::Device::AfPacket(interface) => format!("af_packet:{interface}"),
        weir_config::Device::AfXdp(interface) => format!("af_xdp:{interface}"),
        weir_config::Device::Pci(name) | weir_config::Device::Vdev(name) => name.clone(),
        weir_config::Device::Vlan { parent, id } => format!("vlan:{parent}.{id}"),
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "the tables' clock wraps")]
fn millis(now: weir_identity::Moment) -> u32 {
    now.0 as u32
}

/// Routes of one page.
const MOST_ROUTES: usize = 10_000;
/// Visits to cores for one page: a filter that finds little must not keep a request for long.
const LOOKS_A_PAGE: usize = 512;
