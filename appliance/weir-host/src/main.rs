//! `weir-host`, the agent on a host: tells every unit how the host's applications are, and what is to be done with them.
//!
//! Applications report over HTTP and JSON on a Unix socket. In shell:
//!
//! ```sh
//! api() { curl -sS --unix-socket /run/weir-host.sock -X "$1" "http://weir-host/v1/applications/$2" -H content-type:application/json -d "$3"; }
//! api PUT 1 '{"capacity": 80, "lease": 10, "endpoint": "10.0.0.7:80"}'   # there, and gone again 10 s after the last report
//! api PUT 1/health '{"health": "healthy"}'                               # healthy, failing or unknown
//! api PUT 1/load '{"load": 12}'                                          # 0 to the capacity
//! api POST 1/lease ''                                                    # still there, nothing new
//! api DELETE 1 ''
//! ```
//!
//! In Python:
//!
//! ```python
//! import http.client, json, socket
//! class Agent(http.client.HTTPConnection):
//!     def connect(self):
//!         self.sock = socket.socket(socket.AF_UNIX)
//!         self.sock.connect("/run/weir-host.sock")
//! agent = Agent("weir-host")
//! agent.request("PUT", "/v1/applications/1/load", json.dumps({"load": 12}), {"content-type": "application/json"})
//! assert agent.getresponse().status == 200
//! ```
//!
//! `GET /v1/status` shows everything; `PUT /v1/directive` and `PUT /v1/applications/1/directive` with `{"target": "draining"}` direct. What
//! is nonsense (a load above the capacity, an application that is not there) is answered with 4xx and `{"error": …}`, and nothing is sent.
//! With `?host=9` a request is about a host that this one is a proxy for.
//!
//! # How it ends
//!
//! SIGTERM and SIGINT: the host's applications drain, units agree, `drain` passes (a second SIGTERM cuts that short), and the agent says
//! goodbye: nothing new comes to this host. A proxy says so of its own host only; the hosts that it watches just lose it.
//!
//! SIGUSR2: it ends at once without a word, for another one that goes on with its state: an upgrade of the agent. Units notice nothing
//! if that is there within three heartbeats. The same holds for one that has crashed.
//!
//! SIGHUP: it looks at certificate, key and revocation list now, and not only within the next second.

#![forbid(unsafe_code)]

mod api;
mod client;
mod config;
mod house;
mod keeper;
mod measure;
mod state;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde_json::json;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing_subscriber::EnvFilter;
use weir_health_link::{Agent, AgentError, GroupPlan, Keys, KeysError};
use weir_health_load::Directive;
use weir_health_protocol::HostSettings;
use weir_identity::HostId;

use crate::client::{ClientError, ask};
use crate::config::{Config, ConfigError};
use crate::house::House;

/// Tells Weir's units how this host's applications are
#[derive(Debug, Parser)]
#[command(name = "weir-host", version)]
struct Cli {
    /// The agent's socket
    #[arg(long, global = true, env = "WEIR_HOST_SOCKET", default_value_os_t = config::default_socket())]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run {
        /// Its configuration
        #[arg(long, default_value = "/etc/weir-host.yaml")]
        config: PathBuf,
    },
    /// What the agent says of its applications, and to whom
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Report for an application
    Report {
        /// Its number
        application: u32,
        /// Register it (or renew it) with this capacity, 0-99
        #[arg(long)]
        capacity: Option<u8>,
        /// With --capacity: it lapses so many seconds after the last report
        #[arg(long, requires = "capacity")]
        lease: Option<f64>,
        /// healthy, failing or unknown
        #[arg(long)]
        health: Option<String>,
        /// How much of its capacity is in use
        #[arg(long)]
        load: Option<u8>,
        #[command(flatten)]
        whose: Whose,
    },
    /// Delete an application's row
    Deregister {
        /// Its number
        application: u32,
        #[command(flatten)]
        whose: Whose,
    },
    /// Give an application nothing new; returns when every unit knows
    Drain {
        /// Its number [default: all]
        application: Option<u32>,
        #[command(flatten)]
        whose: Whose,
    },
    /// Give an application nothing at all; returns when every unit knows
    Deactivate {
        /// Its number [default: all]
        application: Option<u32>,
        #[command(flatten)]
        whose: Whose,
    },
    /// Take drain or deactivate back; returns when every unit knows
    Resume {
        /// Its number [default: all]
        application: Option<u32>,
        #[command(flatten)]
        whose: Whose,
    },
}

#[derive(Debug, Clone, Copy, clap::Args)]
struct Whose {
    /// A host that this one is a proxy for [default: its own]
    #[arg(long)]
    host: Option<u32>,
}

impl Whose {
    fn query(self) -> String {
        self.host.map_or_else(String::new, |host| format!("?host={host}"))
    }
}

/// Why the program ends with an error.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}: {1}")]
    Socket(PathBuf, std::io::Error),
    #[error("group.members: host {0} itself is not in {1}")]
    NotMember(HostId, String),
    #[error("host: the certificate names {0} hosts; say which one this is")]
    WhichHost(usize),
    #[error("probes: {0}")]
    Probes(#[from] weir_health_load::ProbeStateError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("not every unit knows within {0:?}")]
    NotSettled(Duration),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("weir-host: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Run { config } => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            let config = Config::load(config)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(config))
        }
        Command::Status { json } => {
            let status = ask(&cli.socket, "GET", "/v1/status", None)?;
            if *json {
                println!("{status}")
            } else {
                print!("{}", client::table(&status))
            }
            Ok(())
        }
        Command::Report { application, capacity, lease, health, load, whose } => {
            let (path, query) = (format!("/v1/applications/{application}"), whose.query());
            if let Some(capacity) = capacity {
                ask(
                    &cli.socket,
                    "PUT",
                    &format!("{path}{query}"),
                    Some(&json!({ "capacity": capacity, "lease": lease })),
                )?;
            }
            if let Some(health) = health {
                ask(&cli.socket, "PUT", &format!("{path}/health{query}"), Some(&json!({ "health": health })))?;
            }
            if let Some(load) = load {
                ask(&cli.socket, "PUT", &format!("{path}/load{query}"), Some(&json!({ "load": load })))?;
            }
            if capacity.is_none() && health.is_none() && load.is_none() {
                ask(&cli.socket, "POST", &format!("{path}/lease{query}"), None)?;
            }
            Ok(())
        }
        Command::Deregister { application, whose } => {
            ask(&cli.socket, "DELETE", &format!("/v1/applications/{application}{}", whose.query()), None)?;
            Ok(())
        }
        Command::Drain { application, whose } => direct(cli, *application, *whose, "draining"),
        Command::Deactivate { application, whose } => direct(cli, *application, *whose, "inactive"),
        Command::Resume { application, whose } => direct(cli, *application, *whose, "active"),
    }
}

/// Directs, and waits until every unit knows.
fn direct(cli: &Cli, application: Option<u32>, whose: Whose, target: &str) -> Result<(), Failure> {
    let query = whose.query();
    let path = match application {
        Some(application) => format!("/v1/applications/{application}/directive{query}"),
        None => format!("/v1/directive{query}"),
    };
    ask(&cli.socket, "PUT", &path, Some(&json!({ "target": target })))?;
    for _ in 0..SETTLE.as_millis() / 50 {
        let status = ask(&cli.socket, "GET", "/v1/status", None)?;
        let mut rows = status["hosts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|known| whose.host.map_or(known["rank"] == 0, |host| known["host"] == host))
            .flat_map(|host| host["applications"].as_array().into_iter().flatten());
        let concerned =
            |row: &serde_json::Value| application.is_none_or(|application| row["application"] == application);
        if rows.all(|row| !concerned(row) || row["target"] == row["current"]) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Failure::NotSettled(SETTLE))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let keys = Keys::load(&config.keys)?;
    let named = &keys.names().hosts;
    let own = match (config.host, named.first(), named.len()) {
        (Some(host), ..) => host,
        (None, Some(host), 1) => *host,
        (None, _, count) => return Err(Failure::WhichHost(count)),
    };
    let settings = |host: HostId| HostSettings { interval: config.heartbeat, ..HostSettings::new(host) };
    let mut hosts = vec![HostSettings { name: config.name.clone(), ..settings(own) }];
    hosts.extend(config.proxied.iter().map(|proxied| HostSettings { rank: proxied.rank, ..settings(proxied.host) }));
    let listener = api::bind(&config.socket).map_err(|error| Failure::Socket(config.socket.clone(), error))?;
    let left = state::load(&config.state(), &config, own);
    let group = match &config.group {
        None => None,
        Some(group) => {
            let listen = *group.members.get(&own).ok_or_else(|| Failure::NotMember(own, group.name.clone()))?;
            Some(GroupPlan { group: group.name.clone(), host: own, listen, peers: group.members.clone() })
        }
    };
    let agent = Agent::spawn_in_group(hosts, config.units.clone(), group, &keys)?;
    // Until something is waited for nothing is sent: units hear of the tables as they are then.
    let house = Arc::new(House::new(agent, own, &left));
    let watching = watch::begin(&config, own, &house)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut hand_over, mut renewed) = (signal(SignalKind::user_defined2())?, signal(SignalKind::hangup())?);
    tracing::info!(host = %own, socket = %config.socket.display(), "agent runs");
    let mut served = tokio::spawn(api::serve(listener, Arc::clone(&house)));
    let is_end = loop {
        tokio::select! {
            ended = &mut served => {
                ended.map_err(std::io::Error::other)??;
                break true;
            }
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break true,
            _ = hand_over.recv() => break false,
            _ = renewed.recv() => house.agent().look_at_keys(),
        }
    };
    drop(watching);
    if is_end {
        tracing::info!(drain = ?config.drain, "ends: nothing new to this host");
        house.direct_all(own, Directive::Draining);
        let settled = async {
            while !house.is_settled(own) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(SETTLE, settled).await.is_err() {
            tracing::warn!("not every unit has agreed");
        }
        tokio::select! {
            () = sleep(config.drain) => {}
            _ = terminate.recv() => {}
        }
        let _ = std::fs::remove_file(config.state());
    } else {
        state::save(&config.state(), &house.tables(&config))?;
    }
    let _ = std::fs::remove_file(&config.socket);
    let gone: &[HostId] = if is_end { std::slice::from_ref(&own) } else { &[] };
    house.agent().end(gone).await;
    tracing::info!(goodbye = is_end, "has ended");
    Ok(())
}

/// A unit that has not answered by then is out of reach, and has given this host up.
const SETTLE: Duration = Duration::from_secs(10);
