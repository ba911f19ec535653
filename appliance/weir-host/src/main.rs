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

#![forbid(unsafe_code)]

mod api;
mod client;
mod config;
mod house;
mod keeper;
mod measure;
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
    },
    /// Delete an application's row
    Deregister {
        /// Its number
        application: u32,
    },
    /// Give an application nothing new; returns when every unit knows
    Drain {
        /// Its number [default: all]
        application: Option<u32>,
    },
    /// Give an application nothing at all; returns when every unit knows
    Deactivate {
        /// Its number [default: all]
        application: Option<u32>,
    },
    /// Take drain or deactivate back; returns when every unit knows
    Resume {
        /// Its number [default: all]
        application: Option<u32>,
    },
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
        Command::Report { application, capacity, lease, health, load } => {
            let path = format!("/v1/applications/{application}");
            if let Some(capacity) = capacity {
                ask(&cli.socket, "PUT", &path, Some(&json!({ "capacity": capacity, "lease": lease })))?;
            }
            if let Some(health) = health {
                ask(&cli.socket, "PUT", &format!("{path}/health"), Some(&json!({ "health": health })))?;
            }
            if let Some(load) = load {
                ask(&cli.socket, "PUT", &format!("{path}/load"), Some(&json!({ "load": load })))?;
            }
            if capacity.is_none() && health.is_none() && load.is_none() {
                ask(&cli.socket, "POST", &format!("{path}/lease"), None)?;
            }
            Ok(())
        }
        Command::Deregister { application } => {
            ask(&cli.socket, "DELETE", &format!("/v1/applications/{application}"), None)?;
            Ok(())
        }
        Command::Drain { application } => direct(cli, *application, "draining"),
        Command::Deactivate { application } => direct(cli, *application, "inactive"),
        Command::Resume { application } => direct(cli, *application, "active"),
    }
}

/// Directs, and waits until every unit knows.
fn direct(cli: &Cli, application: Option<u32>, target: &str) -> Result<(), Failure> {
    let path = match application {
        Some(application) => format!("/v1/applications/{application}/directive"),
        None => "/v1/directive".to_owned(),
    };
    ask(&cli.socket, "PUT", &path, Some(&json!({ "target": target })))?;
    for _ in 0..SETTLE.as_millis() / 50 {
        let status = ask(&cli.socket, "GET", "/v1/status", None)?;
        let mut rows = status["hosts"]
            .as_array()
            .into_iter()
            .flatten()
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
    hosts.extend(config.proxied.iter().map(|proxied| settings(proxied.host)));
    let listener = api::bind(&config.socket).map_err(|error| Failure::Socket(config.socket.clone(), error))?;
    let group = match &config.group {
        None => None,
        Some(group) => {
            let listen = *group.members.get(&own).ok_or_else(|| Failure::NotMember(own, group.name.clone()))?;
            Some(GroupPlan { group: group.name.clone(), host: own, listen, peers: group.members.clone() })
        }
    };
    let agent = Agent::spawn_in_group(hosts, config.units.clone(), group, &keys)?;
    let house = Arc::new(House::new(agent, own));
    let watching = watch::begin(&config, own, &house)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(host = %own, socket = %config.socket.display(), "agent runs");
    tokio::select! {
        served = api::serve(listener, Arc::clone(&house)) => served?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(drain = ?config.drain, "ends: nothing new to this host");
    drop(watching);
    house.direct_all(Directive::Draining);
    let settled = async {
        while !house.is_settled() {
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
    let _ = std::fs::remove_file(&config.socket);
    // Requests that are still being answered hold it for a moment.
    let mut house = house;
    let house = loop {
        match Arc::try_unwrap(house) {
            Ok(house) => break house,
            Err(shared) => house = shared,
        }
        sleep(Duration::from_millis(10)).await;
    };
    house.into_agent().goodbye().await;
    tracing::info!("goodbye");
    Ok(())
}

/// A unit that has not answered by then is out of reach, and has given this host up.
const SETTLE: Duration = Duration::from_secs(10);
