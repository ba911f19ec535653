//! The unit's answers as tables for people: plain columns that fit 80 characters, one line per row when piped.

use std::io::IsTerminal;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use weir_admin::api::{
    AgentStatus, Direction, DirectiveChange, Flow, HostStatus, RouteCount, RouteEndpoint, RouteEntry, RouteList,
    RouteLookup, ServiceStatus, ShardMove, ShardStatus, Status,
};

/// The unit itself.
pub(crate) fn status(status: &Status) -> String {
    let mut text = format!(
        "unit {} {}  incarnation {}\nweir {} ({})  DPDK {}  up {}\nmbufs {} of {} in use\n\n",
        status.unit,
        status.name,
        status.incarnation,
        status.version,
        status.revision,
        status.dpdk,
        duration(status.uptime_ms),
        status.mbufs.in_use,
        status.mbufs.total
    );
    let mut ports = table(&["PORT", "LINK", "MAC", "RSS", "HANDED-OVER", "DEVICE"], &[4]);
    let mut traffic = table(
        &["PORT", "RX-PACKETS", "RX-BYTES", "MISSED", "RX-ERR", "TX-PACKETS", "TX-BYTES", "TX-ERR"],
        &[1, 2, 3, 4, 5, 6, 7],
    );
    for port in &status.ports {
        let link = if port.link_up { "up" } else { "DOWN" };
        ports.add_row([&port.name, link, &port.mac, &port.rss.to_string(), &port.steered.to_string(), &port.device]);
        traffic.add_row([
            port.name.clone(),
            port.rx.packets.to_string(),
            bytes(port.rx.bytes),
            port.rx.missed.to_string(),
            port.rx.errors.to_string(),
            port.tx.packets.to_string(),
            bytes(port.tx.bytes),
            port.tx.errors.to_string(),
        ]);
    }
    let mut cores = table(&["CPU", "BUSY", "SHARDS", "CLASSIFIERS"], &[0, 1]);
    for core in &status.cores {
        let busy = format!("{:.0}%", core.busy * 100.0);
        cores.add_row([core.cpu.to_string(), busy, numbers(&core.shards), numbers(&core.classifiers)]);
    }
    for part in [&ports, &traffic, &cores, &shards(&status.shards)] {
        text.push_str(&plain(part));
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Services and their endpoints.
pub(crate) fn services(services: &[ServiceStatus]) -> String {
    let mut text = String::new();
    for service in services {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!(
            "service {} {}  {} {}:{}\n{}, select {}, no endpoint: {} ({} refused)\n",
            service.id,
            service.name,
            service.protocol,
            service.vip,
            service.ports,
            service.mode,
            service.select,
            service.no_endpoint,
            service.refused
        ));
        let mut endpoints =
            table(&["HOST", "ADDRESS", "HEALTH", "SINCE", "DIRECTIVE", "CAPACITY", "NEW", ""], &[3, 5, 6]);
        for endpoint in &service.endpoints {
            let address = match endpoint.port {
                Some(port) => std::net::SocketAddr::new(endpoint.address, port).to_string(),
                None => endpoint.address.to_string(),
            };
            endpoints.add_row([
                endpoint.host_name.clone(),
                address,
                endpoint.health.to_string(),
                duration(endpoint.since_ms),
                endpoint.directive.to_string(),
                endpoint.capacity.to_string(),
                endpoint.new_connections.to_string(),
                if endpoint.backup { "backup".to_owned() } else { String::new() },
            ]);
        }
        text.push_str(&plain(&endpoints));
    }
    text
}

/// Hosts, one row per service of each: what the unit believes, and below it what their agents say and which groups they form.
pub(crate) fn hosts(hosts: &[HostStatus]) -> String {
    let mut rows = table(&["ID", "HOST", "ADDRESS", "SERVICE", "HEALTH", "SINCE", "DIRECTIVE", "NEW"], &[0, 5, 7]);
    for host in hosts {
        let (id, address) = (host.id.to_string(), host.address.to_string());
        if host.services.is_empty() {
            rows.add_row([&id, &host.name, &address, "-", "-", "-", "-", "-"]);
        }
        for service in &host.services {
            rows.add_row([
                id.clone(),
                host.name.clone(),
                address.clone(),
                service.name.clone(),
                service.health.to_string(),
                duration(service.since_ms),
                service.directive.to_string(),
                service.new_connections.to_string(),
            ]);
        }
    }
    let mut text = plain(&rows);
    if hosts.iter().any(|host| host.agent.is_some()) {
        text.push('\n');
        text.push_str(&plain(&agents(hosts)));
    }
    if hosts.iter().filter_map(|host| host.agent.as_ref()).any(|agent| agent.group.is_some()) {
        text.push('\n');
        text.push_str(&plain(&groups(hosts)));
    }
    text
}

fn agents(hosts: &[HostStatus]) -> Table {
    let header = ["HOST", "AGENT", "HEARD", "SERVICE", "SAYS", "SINCE", "LOAD", "TARGET", "CURRENT"];
    let mut rows = table(&header, &[2, 5, 6]);
    for (host, agent) in hosts.iter().filter_map(|host| Some((host, host.agent.as_ref()?))) {
        let heard = agent.heard_ms.map_or_else(|| "-".to_owned(), duration);
        for service in &host.services {
            let mut row = vec![host.name.clone(), agent_state(agent), heard.clone(), service.name.clone()];
            if let Some(said) = &service.agent {
                row.extend([
                    said.health.to_string(),
                    duration(said.since_ms),
                    format!("{}/{}", said.load, said.capacity),
                    said.target.to_string(),
                    said.current.to_string(),
                ]);
            }
            row.resize(header.len(), "-".to_owned());
            rows.add_row(row);
        }
    }
    rows
}

/// Who is in which group, and who sends whose heartbeats.
fn groups(hosts: &[HostStatus]) -> Table {
    let mut rows = table(&["HOST", "GROUP", "LEADER"], &[]);
    for host in hosts {
        let Some((agent, group)) = host.agent.as_ref().and_then(|agent| Some((agent, agent.group.as_ref()?))) else {
            continue;
        };
        let leader = match agent.leader {
            _ if agent.leads => "leads".to_owned(),
            None => "-".to_owned(),
            Some(leader) => {
                let known = hosts.iter().find(|host| host.id == leader);
                known.map_or_else(|| leader.to_string(), |leader| leader.name.clone())
            }
        };
        rows.add_row([&host.name, group, &leader]);
    }
    rows
}

/// Whether it is there, and whether it is the host's own.
fn agent_state(agent: &AgentStatus) -> String {
    match (agent.rank, agent.leader) {
        (0, None) => agent.presence.to_string(),
        (0, Some(leader)) => format!("{} by {leader}", agent.presence),
        (rank, _) => format!("{}, proxy {rank}", agent.presence),
    }
}

/// What changed in the hosts' health, newest first.
pub(crate) fn health_changes(hosts: &[HostStatus]) -> String {
    let mut changes: Vec<_> =
        hosts.iter().flat_map(|host| host.recent.iter().map(move |change| (host, change))).collect();
    changes.sort_by_key(|(_, change)| change.ago_ms);
    let mut rows = table(&["AGO", "HOST", "SERVICE", "FROM", "TO", "REASON"], &[0]);
    for (host, change) in changes {
        rows.add_row([
            duration(change.ago_ms),
            host.name.clone(),
            change.service.clone(),
            change.from.to_string(),
            change.to.to_string(),
            change.reason.clone(),
        ]);
    }
    plain(&rows)
}

/// What drain and resume did.
pub(crate) fn directive_changes(changes: &[DirectiveChange]) -> String {
    let mut text = String::new();
    for DirectiveChange { host, service, from, to } in changes {
        let line = if from == to {
            format!("{host} {service}: {to} already\n")
        } else {
            format!("{host} {service}: {from} -> {to}\n")
        };
        text.push_str(&line);
    }
    text
}

/// The routes of one connection.
pub(crate) fn route_lookup(lookup: &RouteLookup) -> String {
    format!("{}in shard {}\n", routes(&lookup.routes), lookup.shard)
}

/// Some routes.
pub(crate) fn route_list(list: &RouteList) -> String {
    let mut text = routes(&list.routes);
    if list.more {
        text.push_str(&format!("… more than {} (--limit)\n", list.routes.len()));
    }
    text
}

fn routes(routes: &[RouteEntry]) -> String {
    let mut rows = table(&["FLOW", "ACTION", "STATE", "IDLE", "LEFT"], &[3, 4]);
    for route in routes {
        let Flow { client, vip, protocol } = route.flow;
        let arrow = match route.direction {
            Direction::ToHost => ">",
            Direction::ToClient => "<",
        };
        let action = match &route.endpoint {
            Some(RouteEndpoint { mode, name, source: Some(source), .. }) => format!("{mode} {name} as {source}"),
            Some(endpoint) => format!("{} {}", endpoint.mode, endpoint.name),
            None => route.action.clone(),
        };
        rows.add_row([
            format!("{protocol} {client} {arrow} {vip}"),
            action,
            route.state.clone(),
            duration(route.idle_ms),
            duration(route.expires_in_ms),
        ]);
    }
    plain(&rows)
}

/// How many routes there are.
pub(crate) fn route_count(count: &RouteCount) -> String {
    format!("{}{} routes\n", plain(&shards(&count.shards)), count.total)
}

/// A shard's move.
pub(crate) fn shard_move(moved: &ShardMove) -> String {
    format!("shard {}: CPU {} -> CPU {}\n", moved.shard, moved.from_cpu, moved.to_cpu)
}

/// Counters: name, value, and the rate since the last print if there was one.
pub(crate) fn counters(rows: &[(String, u64, Option<f64>)]) -> String {
    let rated = rows.iter().any(|(_, _, rate)| rate.is_some());
    let mut lines =
        if rated { table(&["COUNTER", "VALUE", "PER-SECOND"], &[1, 2]) } else { table(&["COUNTER", "VALUE"], &[1]) };
    for (name, value, rate) in rows {
        let mut row = vec![name.clone(), value.to_string()];
        row.extend(rate.map(|rate| format!("{rate:.0}")));
        lines.add_row(row);
    }
    plain(&lines)
}

fn shards(shards: &[ShardStatus]) -> Table {
    let mut rows = table(&["SHARD", "CPU", "IPV4-ROUTES", "OF", "IPV6-ROUTES", "OF"], &[0, 1, 2, 3, 4, 5]);
    for shard in shards {
        rows.add_row([
            u64::from(shard.id),
            u64::from(shard.cpu),
            shard.routes_ipv4,
            shard.capacity_ipv4,
            shard.routes_ipv6,
            shard.capacity_ipv6,
        ]);
    }
    rows
}

/// A table without lines; the columns in `right` hold numbers.
fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    match terminal_width() {
        // Cells wrap where a row is wider than the terminal.
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// With a line's end, and none of the blanks before it.
fn plain(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn terminal_width() -> Option<u16> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col);
    Some(if columns == 0 { 80 } else { columns.max(40) })
}

fn numbers(numbers: &[u32]) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

/// At most five characters: `350ms`, `1.2s`, `5m12s`, `59m`, `3d4h`.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0 => format!("{ms}ms"),
        1..=9 => format!("{seconds}.{}s", ms % 1000 / 100),
        10..=59 => format!("{seconds}s"),
        60..=599 => format!("{minutes}m{}s", seconds % 60),
        600..=3599 => format!("{minutes}m"),
        3600..=35_999 => format!("{hours}h{}m", minutes % 60),
        36_000..=86_399 => format!("{hours}h"),
        86_400..=863_999 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

/// Three digits and a binary unit: `1.50MiB`.
fn bytes(count: u64) -> String {
    let mut whole = count;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] {
        if whole < 1024 {
            return match (unit, whole) {
                ("B", _) => format!("{whole}{unit}"),
                (_, 0..=9) => format!("{whole}.{:02}{unit}", rest * 100 / 1024),
                (_, 10..=99) => format!("{whole}.{}{unit}", rest * 10 / 1024),
                _ => format!("{whole}{unit}"),
            };
        }
        rest = whole % 1024;
        whole /= 1024;
    }
    format!("{whole}EiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_short() {
        let durations: Vec<String> =
            [0, 999, 1_250, 12_000, 312_000, 3_599_000, 7_380_000, 273_600_000].into_iter().map(duration).collect();
        assert_eq!(durations, ["0ms", "999ms", "1.2s", "12s", "5m12s", "59m", "2h3m", "3d4h"]);
        let sizes: Vec<String> =
            [0, 1023, 1024, 1_572_864, 52_428_800, 1 << 40, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(sizes, ["0B", "1023B", "1.00KiB", "1.50MiB", "50.0MiB", "1.00TiB", "15EiB"]);
    }
}
