//! The sections `unit`, `admin` and `dataplane`.

use std::path::PathBuf;
use std::time::Duration;

use weir_identity::UnitId;

use super::ports::Network;
use super::{Admin, Check, Unit, buffers};
use crate::machine::{Machine, Memory};
use crate::memory::MemoryNeed;
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw::{self, NumberOrRange};
use crate::types::{Dataplane, Device, Idle, Port, Timeouts, Twins};

/// Who the unit is and where it is administered.
pub(super) fn unit_and_admin(check: &mut Check, document: &raw::Document) -> (Unit, Admin) {
    let here = Place::root().key("unit");
    let mut unit = Unit { id: UnitId(0), name: String::new(), state: None };
    if let Some(raw) = check.required(document.unit.as_ref(), &here, "unit: { id: 1, name: weir-1 }") {
        unit.id = UnitId(check.id(raw.id, &here.key("id")).unwrap_or(0));
        unit.name = check.name(raw.name.as_ref(), &here.key("name")).unwrap_or_default().to_owned();
        if let Some(state) = &raw.state {
            if !state.starts_with('/') || state.contains('\0') {
                let (text, expected) = (state.clone(), "an absolute path of a directory");
                check.error(&here.key("state"), Mistake::Unparsable { text, expected });
            }
            unit.state = Some(PathBuf::from(state));
        }
    }
    let socket = match document.admin.as_ref().and_then(|admin| admin.socket.as_ref()) {
        Some(socket) => {
            if !socket.starts_with('/') || socket.ends_with('/') || socket.len() > 107 || socket.contains('\0') {
                let mistake = Mistake::BadSocket { path: socket.clone() };
                check.error(&Place::root().key("admin").key("socket"), mistake);
            }
            PathBuf::from(socket)
        }
        None => PathBuf::from(format!("/run/weir/{}.sock", unit.name)),
    };
    (unit, Admin { socket })
}

/// Cores, memory and tables, and whether the ports' queues fit them.
pub(super) fn dataplane(
    check: &mut Check,
    raw: Option<&raw::Dataplane>,
    network: &mut Network,
    machine: &Machine,
) -> Dataplane {
    let here = Place::root().key("dataplane");
    let default = raw::Dataplane::default();
    let raw = raw.unwrap_or(&default);
    let cpus = cpus(check, raw.cpus.as_deref(), &here.key("cpus"), machine).unwrap_or_else(|| vec![0]);
    let classifier_cpus = self::cpus(check, raw.classifier_cpus.as_deref(), &here.key("classifier_cpus"), machine)
        .unwrap_or_else(|| cpus.iter().rev().take(1).copied().collect());
    let most_queues = network.ports.iter().map(|port| usize::from(port.queues)).max().unwrap_or(1);
    let by_default = cpus.len().max(most_queues).min(MOST_SHARDS);
    let shards = check.number(raw.shards, &here.key("shards"), 1..=MOST_SHARDS as u64, by_default);
    let classifiers = check.number(raw.classifiers, &here.key("classifiers"), 1..=256, 1);
    let sizes = raw.routes.clone().unwrap_or_default();
    let routes = here.key("routes");
    let mut dataplane = Dataplane {
        shards,
        classifiers,
        cpus,
        classifier_cpus,
        idle: match raw.idle {
            Some(raw::Idle::Spin) => Idle::Spin,
            Some(raw::Idle::Poll) => Idle::Poll,
            Some(raw::Idle::Adaptive) | None => Idle::Adaptive,
        },
        hugepages: raw.hugepages.unwrap_or(false),
        memory_mib: check.mebibytes(raw.memory.as_ref(), &here.key("memory"), 32..=1 << 20, 256),
        mbufs: check.number(raw.mbufs, &here.key("mbufs"), 1024..=1 << 24, 16_384),
        populate: raw.populate.unwrap_or(true),
        burst: check.number(raw.burst, &here.key("burst"), 1..=32, 32),
        routes_ipv4: check.number(sizes.ipv4, &routes.key("ipv4"), ROUTES, 262_144),
        routes_ipv6: check.number(sizes.ipv6, &routes.key("ipv6"), ROUTES, 65_536),
        timeouts: timeouts(check, raw.timeouts.as_ref(), &here.key("timeouts")),
        seed: raw.seed,
        pending: check.number(raw.pending, &here.key("pending"), 1..=65_536, 1024),
        twin: twins(check, raw.twin.as_ref(), &here.key("twin")),
    };
    network.give_queues(dataplane.shards);
    if !check.is_damaged(&here) {
        cores(check, &here, &mut dataplane);
        buffers::memory(check, &here, &dataplane, network);
        if let Some(has) = machine.memory {
            all_memory(check, &here, &dataplane, network, has);
        }
    }
    let real = |(_, port): &(usize, &Port)| !matches!(port.device, Device::Vlan { .. });
    for (i, port) in network.ports.iter().enumerate().filter(real) {
        let place = Place::root().key("ports").at(i);
        if usize::from(port.queues) > dataplane.shards && !check.is_damaged(&here.key("shards")) {
            let mistake = Mistake::QueuesOverShards { queues: port.queues, shards: dataplane.shards };
            check.error(&place.key("queues"), mistake);
        } else if usize::from(port.queues) < dataplane.shards && port.queues_given && !check.is_damaged(&here) {
            let mistake = Mistake::FewQueues { queues: port.queues, shards: dataplane.shards };
            check.warning(&place.key("queues"), mistake);
        }
        if matches!(port.device, Device::Pci(_)) && !dataplane.hugepages && !check.is_damaged(&here.key("hugepages")) {
            check.error(&place.key("device"), Mistake::PciWithoutHugepages);
        }
    }
    dataplane
}

/// Warns of CPUs that would have no shard or classifier, or fewer than others.
fn cores(check: &mut Check, here: &Place, dataplane: &mut Dataplane) {
    let pairs = [
        ("cpus", dataplane.cpus.len(), dataplane.shards, "shards"),
        ("classifier_cpus", dataplane.classifier_cpus.len(), dataplane.classifiers, "classifiers"),
    ];
    for (key, cpus, count, of) in pairs {
        if cpus > count {
            check.warning(&here.key(key), Mistake::IdleCpus { cpus, count, of });
        }
    }
    let (shards, cpus) = (dataplane.shards, dataplane.cpus.len());
    if shards > cpus && shards % cpus != 0 {
        check.warning(&here.key("shards"), Mistake::UnevenShards { shards, cpus, most: MOST_SHARDS });
    }
}

/// Compares all that a unit takes with what the machine has.
fn all_memory(check: &mut Check, here: &Place, dataplane: &Dataplane, network: &Network, has: Memory) {
    let need = MemoryNeed::of(dataplane, &network.ports, !network.pools.is_empty());
    if dataplane.hugepages && need.buffers > has.huge {
        let (need_mib, has_mib) = (need.buffers.div_ceil(1 << 20), has.huge >> 20);
        check.error(&here.key("hugepages"), Mistake::FewHugePages { need_mib, has_mib });
    }
    // Who does not ask for huge pages gets none of those that are reserved.
    let usable = if dataplane.hugepages { has.total } else { has.total - has.huge.min(has.total) };
    if need.total() > usable {
        let reserved = has.total - usable;
        check.error(&here.key("routes"), Mistake::MemoryOverMachine { need, usable, reserved });
    }
}

/// A list of CPUs: distinct, at least one; a warning for those that this machine lacks.
fn cpus(check: &mut Check, raw: Option<&[NumberOrRange]>, here: &Place, machine: &Machine) -> Option<Vec<usize>> {
    let mut seen = super::Seen::default();
    let mut cpus = Vec::new();
    for (i, entry) in raw?.iter().enumerate() {
        let place = here.at(i);
        let Some((first, last)) = check.bounds(entry, &place, &CPUS, "a CPU's number or a range such as \"2-5\"")
        else {
            continue;
        };
        for cpu in (first..=last).filter_map(|cpu| usize::try_from(cpu).ok()) {
            if check.unique(&mut seen, cpu, &place, "CPU") {
                cpus.push(cpu);
            }
            if machine.cpus.as_ref().is_some_and(|known| !known.contains(&cpu)) {
                check.warning(&place, Mistake::NoSuchCpu { cpu });
            }
        }
    }
    if raw?.is_empty() {
        check.error(here, Mistake::Empty { what: "at least one CPU" });
    }
    (!cpus.is_empty()).then_some(cpus)
}

fn timeouts(check: &mut Check, raw: Option<&raw::Timeouts>, here: &Place) -> Timeouts {
    let default = raw::Timeouts::default();
    let raw = raw.unwrap_or(&default);
    let mut timeout = |text: &Option<raw::DurationText>, key: &str, default: u64| {
        check.duration(text.as_ref(), &here.key(key), MILLISECOND..=MONTH, Duration::from_secs(default))
    };
    Timeouts {
        opening: timeout(&raw.opening, "opening", 10),
        established: timeout(&raw.established, "established", 3600),
        closing: timeout(&raw.closing, "closing", 60),
        udp: timeout(&raw.udp, "udp", 60),
        refused: timeout(&raw.refused, "refused", 10),
    }
}

/// What the kernel gets by the ports' twins.
fn twins(check: &mut Check, raw: Option<&raw::Twins>, here: &Place) -> Twins {
    let default = raw::Twins::default();
    let raw = raw.unwrap_or(&default);
    let mut seen = super::Seen::default();
    let mut peers = Vec::new();
    for (i, text) in raw.peers.iter().flatten().enumerate() {
        let place = here.key("peers").at(i);
        let Some(prefix) = check.network_prefix(text, &place, true) else { continue };
        if prefix.prefix_len() == 0 {
            check.error(&place, Mistake::EverybodyIsPeer { prefix });
        } else if check.unique(&mut seen, prefix, &place, "peer") {
            peers.push(prefix);
        }
    }
    let mut rate = |value, key, default| check.number(value, &here.key(key), TWIN_RATES, default);
    Twins {
        packets_per_second: rate(raw.packets_per_second, "packets_per_second", 20_000),
        control_packets_per_second: rate(raw.control_packets_per_second, "control_packets_per_second", 50_000),
        peers,
    }
}

/// The shortest duration that a unit's clock tells from none.
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const ROUTES: std::ops::RangeInclusive<u64> = 1024..=1_000_000_000;
const TWIN_RATES: std::ops::RangeInclusive<u64> = 1..=10_000_000;
/// CPU numbers that an affinity mask can hold.
const CPUS: std::ops::RangeInclusive<u64> = 0..=1023;
/// Buckets of flows that shards are dealt: one more would have none.
const MOST_SHARDS: usize = 128;
