//! What may be said on weirctl's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use weir_admin::api::Protocol;

/// Asks and directs a running Weir unit over its admin socket.
#[derive(Debug, Parser)]
#[command(name = "weirctl", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The unit's admin socket [default: the only one in /run/weir]
    #[arg(long, global = true, env = "WEIR_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Print the unit's JSON instead of tables
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The unit: ports, cores, shards, packet buffers
    Status,
    /// Services and their endpoints
    Services,
    /// Hosts: list, drain, resume
    Hosts {
        #[command(subcommand)]
        action: Option<HostAction>,
    },
    /// Routes: look one up, list, count
    #[command(subcommand)]
    Routes(RouteAction),
    /// Counters and drop reasons
    Counters(CounterArgs),
    /// Shards: move one to another core
    #[command(subcommand)]
    Shards(ShardAction),
    /// The cluster's authority and its nodes' certificates
    Pki {
        /// The authority's directory
        #[arg(long, global = true, env = "WEIR_PKI", default_value = "/etc/weir/pki", value_name = "DIR")]
        dir: PathBuf,
        #[command(subcommand)]
        action: PkiAction,
    },
    /// Print the completions for a shell
    Completions {
        /// Whose syntax
        shell: Shell,
    },
    /// Print the manual page, or write one per command
    Man {
        /// Write all pages into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostAction {
    /// Give a host no new connections; existing ones go on
    Drain(HostArgs),
    /// Give a host new connections again
    Resume(HostArgs),
    /// What changed lately in the hosts' health, newest first
    Changes,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiAction {
    /// Make the cluster's authority
    Init,
    /// Make a unit's key and certificate
    Unit {
        /// The unit's id (unit.id in its YAML)
        id: u32,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Make a host's key and certificate, or a proxy's for several hosts
    Host {
        /// The hosts' ids (hosts[].id in the units' YAML)
        #[arg(required = true)]
        ids: Vec<u32>,
        /// What to call it [default: host-ID]
        #[arg(long)]
        name: Option<String>,
        /// The group whose member it is
        #[arg(long, requires = "members")]
        group: Option<String>,
        /// The hosts that the group's leader may speak for: 1-20,31
        #[arg(long, requires = "group", value_delimiter = ',', value_parser = members, value_name = "FROM-TO")]
        members: Vec<(u32, u32)>,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Make a new key and certificate for a node that has one
    Renew {
        /// As it was called: unit-1, host-7, …
        name: String,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Revoke all certificates of a node; copy revoked.pem to the units
    Revoke {
        /// As it was called: unit-1, host-7, …
        name: String,
    },
}

fn members(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err("a host's id, or two with a '-' between them".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Lifetime {
    /// How long it is good
    #[arg(long, default_value_t = 365)]
    pub(crate) days: u16,
}

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// The host's name or id
    pub(crate) host: String,
    /// Only for this service (name or id) [default: all it serves]
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RouteAction {
    /// The routes of one connection; exit code 1 if there is none
    Lookup {
        /// The client's address and port; IPv6 in brackets
        #[arg(value_name = "CLIENT:PORT")]
        client: SocketAddr,
        /// The virtual address and port
        #[arg(value_name = "VIP:PORT")]
        vip: SocketAddr,
        /// tcp or udp
        #[arg(long, default_value = "tcp")]
        protocol: Protocol,
    },
    /// Some routes, in no order; it may take a while in a large table
    List {
        /// Most routes to print
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Only of this service (name or id)
        #[arg(long, value_name = "SERVICE")]
        service: Option<String>,
    },
    /// How many routes each shard holds
    Count,
}

#[derive(Debug, Args)]
pub(crate) struct CounterArgs {
    /// Leave out counters that are 0 (this is the default)
    #[arg(long, conflicts_with = "all")]
    pub(crate) nonzero: bool,
    /// Counters that are 0 too
    #[arg(long)]
    pub(crate) all: bool,
    /// Print again after each interval, with rates; such as 1s or 500ms
    #[arg(long, value_name = "INTERVAL", value_parser = interval)]
    pub(crate) watch: Option<Duration>,
    /// End after so many prints [default: never]
    #[arg(long, value_name = "N", requires = "watch")]
    pub(crate) times: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShardAction {
    /// Move a shard to the forwarding core on a CPU, while it forwards
    Move {
        /// The shard's number
        shard: u32,
        /// The CPU's number
        cpu: u32,
    },
}

fn interval(text: &str) -> Result<Duration, IntervalError> {
    let interval = humantime::parse_duration(text)?;
    if interval < SHORTEST_INTERVAL { Err(IntervalError::TooShort(interval)) } else { Ok(interval) }
}

/// Why a text is no interval.
#[derive(Debug, thiserror::Error)]
enum IntervalError {
    #[error(transparent)]
    Syntax(#[from] humantime::DurationError),
    #[error("{0:?} is shorter than {SHORTEST_INTERVAL:?}")]
    TooShort(Duration),
}

/// Asking more often would measure the asking.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the unit refused, or what was looked up does not exist
  2  wrong usage, or no unit could be asked";
