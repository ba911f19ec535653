//! `weir`: runs a unit, checks configurations, prints their schema, replays captures.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weir::replay::{self, Replay};
use weir::unit;

/// A load-balancing appliance: classifiers decide once per connection, forwarders only forward.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit status: 0 done, 1 refused or failed (the message says why), 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a unit until SIGTERM or SIGINT.
    Run {
        /// The unit's YAML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check configurations; all problems of all files in one go.
    Check {
        /// YAML files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print problems as JSON.
        #[arg(long)]
        json: bool,
        /// The files are for other machines: say nothing about CPUs and memory.
        #[arg(long)]
        elsewhere: bool,
    },
    /// Print the configuration's JSON Schema, for editors.
    Schema,
    /// Run the forwarder and classifier over capture files: deterministic, no root, no network.
    Replay {
        /// The unit's YAML; ports need addresses, neighbours and routes come from it alone.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// A pcap or pcapng file with what arrives, at the named port or the first one.
        #[arg(long = "in", required = true, value_name = "[PORT=]FILE", value_parser = port_file)]
        input: Vec<PortFile>,
        /// A pcap file for what leaves, by the named port or by all that have no file of their own.
        #[arg(long = "out", value_name = "[PORT=]FILE", value_parser = port_file)]
        output: Vec<PortFile>,
        /// A pcap file for what goes to the kernel.
        #[arg(long, value_name = "FILE")]
        twin: Option<PathBuf>,
        /// Packets in a burst.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=32))]
        burst: u16,
        /// Print counters, drops and routes as JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let done = match cli.command {
        Command::Run { config } => run(&config),
        Command::Check { files, json, elsewhere } => check(&files, json, elsewhere),
        Command::Schema => print(&format!("{:#}\n", weir_config::schema())),
        Command::Replay { config, input, output, twin, burst, json } => {
            let replay = Replay { inputs: pairs(input), outputs: pairs(output), twin, burst: usize::from(burst) };
            run_replay(&config, &replay, json)
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(path: &PathBuf) -> bool {
    let Some(config) = load(path) else {
        return false;
    };
    match unit::run(config) {
        Ok(()) => true,
        Err(error) => fail(&error),
    }
}

fn check(files: &[PathBuf], json: bool, elsewhere: bool) -> bool {
    let mut good = true;
    let mut problems = Vec::new();
    let machine = if elsewhere { weir_config::Machine::default() } else { weir_config::Machine::this() };
    for file in files {
        let (report, notes) = match weir_config::load_for(file, &machine) {
            Ok(config) => (config.warnings.clone(), Some(notes(&config))),
            Err(report) => (report, None),
        };
        good &= notes.is_some();
        if json {
            problems.extend(report.problems().iter().map(|problem| serde_json::json!(problem)));
        } else {
            eprint!("{}", report.render(io::stderr().is_terminal()));
            if let Some(notes) = notes {
                let name = file.display();
                print(&format!("{name}: ok\n"));
                for note in notes {
                    print(&format!("{name}: {note}\n"));
                }
            }
        }
    }
    if json {
        print(&format!("{:#}\n", serde_json::Value::Array(problems)));
    }
    good
}

/// What is worth knowing of a good configuration.
fn notes(config: &weir_config::Config) -> Vec<String> {
    let mut notes = vec![format!("memory: {}", config.memory())];
    if let Some(port) = config.one_armed() {
        notes.push(format!(
            "note: clients and hosts are both behind port `{}`: a NIC can deal one side's packets to the shards that own them, and of \
             the other side's most are handed over; a port for each side has none of that",
            port.name
        ));
    }
    notes
}

fn run_replay(path: &PathBuf, replay: &Replay, json: bool) -> bool {
    let Some(config) = load(path) else {
        return false;
    };
    match replay::run(config, replay) {
        Ok(outcome) if json => match serde_json::to_string_pretty(&outcome) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => fail(&error),
        },
        Ok(outcome) => {
            let mut text = format!(
                "{} packets in, {} out, {} to the kernel, {} dropped, {} routes\n",
                outcome.packets_in,
                outcome.packets_out,
                outcome.twin,
                outcome.drops.values().sum::<u64>(),
                outcome.routes.len()
            );
            for (reason, packets) in &outcome.drops {
                text += &format!("  dropped {reason}: {packets}\n");
            }
            if outcome.drops.contains_key("unresolved") {
                text += "  help: no kernel is asked here: give the hosts' and gateways' addresses under `neighbours`\n";
            }
            print(&text)
        }
        Err(error) => fail(&error),
    }
}

/// The configuration, if there is no doubt about it; else its problems are printed.
fn load(path: &PathBuf) -> Option<weir_config::Config> {
    match weir_config::load(path) {
        Ok(config) => {
            eprint!("{}", config.warnings.render(io::stderr().is_terminal()));
            Some(config)
        }
        Err(report) => {
            eprint!("{}", report.render(io::stderr().is_terminal()));
            None
        }
    }
}

/// Prints to standard output; a reader that has gone away is no failure.
fn print(text: &str) -> bool {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error),
        _ => true,
    }
}

fn fail(error: &dyn std::error::Error) -> bool {
    eprintln!("weir: {error}");
    false
}

#[derive(Debug, Clone)]
struct PortFile {
    port: Option<String>,
    file: PathBuf,
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a result")]
fn port_file(text: &str) -> Result<PortFile, String> {
    Ok(match text.split_once('=') {
        Some((port, file)) if !port.contains('/') => PortFile { port: Some(port.to_owned()), file: file.into() },
        _ => PortFile { port: None, file: text.into() },
    })
}

fn pairs(files: Vec<PortFile>) -> Vec<(Option<String>, PathBuf)> {
    files.into_iter().map(|file| (file.port, file.file)).collect()
}
