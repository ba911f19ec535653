//! `weirctl counters`: the unit's counters once, or again and again with rates.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use weir_admin::Client;
use weir_admin::api::Counters;

use crate::cli::CounterArgs;
use crate::{Failure, tables};

/// Prints them as asked.
pub(crate) fn run(client: &Client, args: &CounterArgs, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let mut last: Option<(Instant, BTreeMap<String, u64>)> = None;
    let mut left = args.times.unwrap_or(if args.watch.is_some() { u64::MAX } else { 1 });
    while left > 0 {
        let reply = client.counters()?;
        if json {
            writeln!(out, "{}", reply.json)?;
        } else {
            #[expect(clippy::disallowed_methods, reason = "rates need the time between two prints")]
            let now = Instant::now();
            let flat = flatten(&reply.value);
            let rows: Vec<_> = flat
                .iter()
                .filter(|(_, value)| args.all || **value != 0)
                .map(|(name, value)| (name.clone(), *value, rate(name, *value, now, last.as_ref())))
                .collect();
            if last.is_some() {
                writeln!(out)?;
            }
            write!(out, "{}", tables::counters(&rows))?;
            last = Some((now, flat));
        }
        out.flush()?;
        left -= 1;
        if let Some(interval) = args.watch.filter(|_| left > 0) {
            std::thread::sleep(interval);
        }
    }
    Ok(())
}

/// All counters under one name each: `name`, `drop.reason`, `port.NAME.counter`, `shard.ID.counter`.
fn flatten(counters: &Counters) -> BTreeMap<String, u64> {
    let totals = counters.totals.iter().map(|(name, value)| (name.clone(), *value));
    let drops = counters.drops.iter().map(|(reason, value)| (format!("drop.{reason}"), *value));
    let ports = counters
        .ports
        .iter()
        .flat_map(|(port, group)| group.iter().map(move |(name, value)| (format!("port.{port}.{name}"), *value)));
    let shards = counters
        .shards
        .iter()
        .flat_map(|(shard, group)| group.iter().map(move |(name, value)| (format!("shard.{shard}.{name}"), *value)));
    totals.chain(drops).chain(ports).chain(shards).collect()
}

/// Per second since the last print. A counter that went back belongs to a unit that was started again: no rate.
fn rate(name: &str, value: u64, now: Instant, last: Option<&(Instant, BTreeMap<String, u64>)>) -> Option<f64> {
    let (then, values) = last?;
    let grown = value.checked_sub(values.get(name).copied().unwrap_or(0))?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for reading")]
    let grown = grown as f64;
    let seconds = now.duration_since(*then).as_secs_f64();
    (seconds > 0.0).then(|| grown / seconds)
}
