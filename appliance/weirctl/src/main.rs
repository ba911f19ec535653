//! `weirctl`, the operator's command line: asks a unit over its admin socket and prints tables or the unit's own JSON.

#![forbid(unsafe_code)]

use std::error::Error as _;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use thiserror::Error;
use weir_admin::api::Flow;
use weir_admin::{Client, ClientError, Reply};

use crate::cli::{Cli, Command, HostAction, RouteAction, ShardAction};
use crate::socket::SocketError;

mod cli;
mod counters;
mod pki;
mod socket;
mod tables;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::stdout().lock();
    match run(&cli, &mut out).and_then(|()| out.flush().map_err(Failure::Output)) {
        Ok(()) => ExitCode::SUCCESS,
        // `weirctl … | head` has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: &Cli, out: &mut impl Write) -> Result<(), Failure> {
    // These need no unit.
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "weirctl", &mut script);
            return Ok(out.write_all(&script)?);
        }
        Command::Man { dir: None } => return Ok(clap_mangen::Man::new(Cli::command()).render(out)?),
        Command::Man { dir: Some(dir) } => return Ok(clap_mangen::generate_to(Cli::command(), dir)?),
        Command::Pki { dir, action } => return pki::run(dir, action, out),
        _ => {}
    }
    let path = match &cli.socket {
        Some(path) => path.clone(),
        None => socket::only_one(Path::new(socket::DIRECTORY))?,
    };
    let client = Client::new(path);
    match &cli.command {
        Command::Status => show(cli, out, &client.status()?, tables::status),
        Command::Services => show(cli, out, &client.services()?, |list| tables::services(list)),
        Command::Hosts { action: None } => show(cli, out, &client.hosts()?, |list| tables::hosts(list)),
        Command::Hosts { action: Some(HostAction::Changes) } => {
            show(cli, out, &client.hosts()?, |list| tables::health_changes(list))
        }
        Command::Hosts { action: Some(HostAction::Drain(args)) } => {
            let reply = client.drain(&args.host, args.service.as_deref())?;
            show(cli, out, &reply, |changes| tables::directive_changes(changes))
        }
        Command::Hosts { action: Some(HostAction::Resume(args)) } => {
            let reply = client.resume(&args.host, args.service.as_deref())?;
            show(cli, out, &reply, |changes| tables::directive_changes(changes))
        }
        Command::Routes(RouteAction::Lookup { client: from, vip, protocol }) => {
            let flow = Flow { client: *from, vip: *vip, protocol: *protocol };
            let reply = client.routes_lookup(&flow)?;
            if cli.json || !reply.value.routes.is_empty() {
                show(cli, out, &reply, tables::route_lookup)?;
            }
            if reply.value.routes.is_empty() {
                return Err(Failure::NoRoute { flow, shard: reply.value.shard });
            }
            Ok(())
        }
        Command::Routes(RouteAction::List { limit, service }) => {
            show(cli, out, &client.routes_list(*limit, service.as_deref())?, tables::route_list)
        }
        Command::Routes(RouteAction::Count) => show(cli, out, &client.routes_count()?, tables::route_count),
        Command::Counters(args) => counters::run(&client, args, cli.json, out),
        Command::Shards(ShardAction::Move { shard, cpu }) => {
            show(cli, out, &client.move_shard(*shard, *cpu)?, tables::shard_move)
        }
        Command::Pki { .. } | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

/// Prints an answer as JSON or as a table.
fn show<T>(cli: &Cli, out: &mut impl Write, reply: &Reply<T>, table: impl Fn(&T) -> String) -> Result<(), Failure> {
    if cli.json {
        writeln!(out, "{}", reply.json)?;
    } else {
        write!(out, "{}", table(&reply.value))?;
    }
    Ok(())
}

/// The error, what caused it, and what to do about it: each on its own line.
fn report(failure: &Failure) {
    eprintln!("weirctl: {failure}");
    let mut cause = failure.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    if let Failure::Client(error) = failure
        && let Some(hint) = error.hint()
    {
        eprintln!("  hint: {hint}");
    }
}

/// Why a command was not done.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no route for {} {} to {}; shard {shard} would hold it", flow.protocol, flow.client, flow.vip)]
    NoRoute { flow: Flow, shard: u32 },
    #[error(transparent)]
    Pki(#[from] weir_pki::PkiError),
    #[error("cannot write")]
    Output(#[from] io::Error),
}

impl Failure {
    /// As `--help` documents them.
    fn exit_code(&self) -> u8 {
        match self {
            Failure::NoRoute { .. }
            | Failure::Client(ClientError::Refused { .. })
            | Failure::Pki(_)
            | Failure::Output(_) => 1,
            Failure::Socket(_) | Failure::Client(_) => 2,
        }
    }
}
