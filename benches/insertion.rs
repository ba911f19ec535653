//! How long single insertions take while a route table grows to its full size; one line of JSON.
//!
//! The table has all its address space from the beginning, so no insertion rehashes; a page that is touched for the first time has to
//! come from the kernel. Times are the machine's, with all that it does in between.

#[allow(dead_code, reason = "the other benches use other parts")]
mod farm;

use clap::Parser;
use hdrhistogram::Histogram;
use weir_cpu::{tsc, tsc_hz};
use weir_dataplane::flow::{FlowHash, Key};
use weir_dataplane::route_table::{Action, Mode, Route, RouteTable, Slot4, State};
use weir_identity::EndpointId;

#[derive(Debug, Parser)]
struct Options {
    /// Routes, as many as the table has room for; 64 bytes each.
    #[arg(long, default_value_t = 100_000_000)]
    flows: u64,
    /// The CPU to run on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    core_affinity::set_for_current(core_affinity::CoreId { id: options.cpu });
    let mut table = RouteTable::<Slot4>::new(usize::try_from(options.flows)?, FlowHash::new(0x5745_4952))?;
    let action = Action::Send { endpoint: EndpointId(1), mode: Mode::Dsr, value: 0 };
    let route = Route { action, state: State::Established };
    let mut times = Histogram::<u64>::new_with_bounds(1, u32::MAX.into(), 3)?;
    for flow in 0..options.flows {
        let Key::V4(key) = farm::key(false, flow) else { return Err("not IPv4".into()) };
        let before = tsc();
        table.insert(&key, route, 1).map_err(|_| format!("no room for route {flow}"))?;
        times.saturating_record(tsc() - before);
    }
    let nanos = |part: f64| times.value_at_quantile(part) as f64 * 1e9 / tsc_hz() as f64;
    println!(
        "{{\"name\":\"weir insertion\",\"flows\":{},\"bytes_per_route\":{:.1},\"p50_ns\":{:.0},\"p99_ns\":{:.0},\"p9999_ns\":{:.0},\"max_us\":{:.0}}}",
        options.flows,
        table.bytes() as f64 / options.flows as f64,
        nanos(0.5),
        nanos(0.99),
        nanos(0.9999),
        nanos(1.0) / 1000.0
    );
    Ok(())
}
