//! `weir-decap`: attaches decapsulation of IPIP and GUE to a host's interface, takes it off, and prints its counters.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use weir_host_bpf::decap::{self, DecapError, Settings};

/// Takes the tunnel headers of Weir's ipip and gue services off, on hosts whose kernel has no ipip, ip6_tunnel or fou module.
///
/// The host carries the VIP on its loopback; set that up first: packets to addresses that the host gets later are not decapsulated
/// until the next attach.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print what libbpf and the kernel's verifier say.
    #[arg(long, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Decapsulate what comes in by an interface; stays until `detach`, and replaces an earlier attach.
    Attach {
        /// An Ethernet interface.
        interface: String,
        /// UDP port of GUE; 0: no GUE.
        #[arg(long, default_value_t = 6080)]
        gue_port: u16,
        /// A unit's address, or a prefix of such; repeat it for several. Without it everybody may send tunnelled packets.
        #[arg(long = "source", value_name = "ADDRESS", value_parser = address_or_prefix)]
        sources: Vec<IpNet>,
    },
    /// Take it off again.
    Detach {
        /// The interface.
        interface: String,
    },
    /// Print the counters: what was decapsulated, and what was passed on untouched although it looked like a tunnel's packet.
    Stats {
        /// The interface.
        interface: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.verbose {
        libbpf_rs::set_print(None);
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-decap: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), DecapError> {
    match command {
        Command::Attach { interface, gue_port, sources } => {
            if sources.is_empty() {
                eprintln!("weir-decap: no --source: {interface} takes tunnelled packets from everybody");
            }
            decap::attach(&interface, &Settings { gue_port, sources })
        }
        Command::Detach { interface } => decap::detach(&interface),
        Command::Stats { interface } => {
            let mut out = io::stdout().lock();
            for (name, count) in decap::stats(&interface)? {
                // A reader that has gone away wants no more.
                if writeln!(out, "{name} {count}").is_err() {
                    break;
                }
            }
            Ok(())
        }
    }
}

fn address_or_prefix(text: &str) -> Result<IpNet, ipnet::AddrParseError> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse())
}
