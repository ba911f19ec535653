//! Probes that watch endpoints from outside: the driver that asks each of them now and then, and says when its health changes.
//!
//! A [`Target`] is an endpoint and what to ask it. Targets that ask the same address the same thing share one probe, however many
//! services and endpoints follow it: a host of hundreds of services is asked once. Each follower counts its own rise and fall
//! ([`ProbeState`]); a change comes as a [`HealthChange`] through a channel. The endpoint's own
//! address is asked, never the VIP: hosts in dsr mode carry the VIP on their loopback, and from a unit it leads elsewhere.
//! What fails on this side (no file descriptors, a source address that is not ours) says nothing about an endpoint and counts neither
//! way.

#![forbid(unsafe_code)]

mod question;
mod status;
mod watcher;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use weir_health_load::{Health, ProbeState, ProbeStateError};
use weir_identity::EndpointId;

pub use question::{Reason, host_header};
use watcher::{Following, watch_over};

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The endpoint's own address, and the port that answers probes.
    pub address: SocketAddr,
    /// What is asked.
    pub kind: Kind,
    /// An answer later than this is a failure.
    pub timeout: Duration,
    /// Ask from this address instead of the one the kernel would choose.
    pub source: Option<IpAddr>,
    /// Ask through this interface, whatever the routes say.
    pub interface: Option<String>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Does it accept a TCP connection?
    Tcp,
    /// How does it answer an HTTP/1.1 GET?
    Http {
        /// The request target, without spaces or control characters.
        path: String,
        /// The `Host` header, in brackets if it is an IPv6 address. Services that give the same one share the probe.
        host: String,
        /// Which status is a success.
        expect: Expect,
    },
}

/// Which HTTP status is a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Expect {
    /// Any 2xx or 3xx.
    #[default]
    Good,
    /// This one only.
    Status(u16),
}

/// An endpoint to be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The endpoint; in one target only.
    pub endpoint: EndpointId,
    /// How it is probed.
    pub question: Question,
    /// Time from one probe's start to the next, give or take a tenth; the shortest counts where targets share a probe.
    pub interval: Duration,
    /// Successes in a row that make it healthy; at least 1.
    pub rise: u32,
    /// Failures in a row that make it failing; at least 1.
    pub fall: u32,
}

/// An endpoint's health is no longer what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthChange {
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// Healthy or failing.
    pub health: Health,
    /// The observation that decided.
    pub reason: Reason,
}

/// The running probes. Dropping it ends them; [`Probes::stop`] also waits until they have ended.
#[derive(Debug)]
pub struct Probes {
    running: HashMap<Question, Running>,
    changes: mpsc::Sender<HealthChange>,
}

#[derive(Debug)]
struct Running {
    following: watch::Sender<Following>,
    task: JoinHandle<()>,
}

impl Probes {
    /// Begins to probe; every target's health is unknown at first. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// A target whose rise or fall is 0; nothing runs then.
    pub fn spawn(targets: Vec<Target>, changes: mpsc::Sender<HealthChange>) -> Result<Probes, ProbeStateError> {
        let mut probes = Probes { running: HashMap::new(), changes };
        probes.update(targets)?;
        Ok(probes)
    }

    /// Probes these targets from now on. A target that stays the same keeps its health and its counts; a new or changed one begins
    /// as unknown, and of one that is gone nothing more is heard, except for changes that are in the channel already.
    ///
    /// # Errors
    /// A target whose rise or fall is 0; nothing changed then.
    pub fn update(&mut self, targets: Vec<Target>) -> Result<(), ProbeStateError> {
        let mut wanted: HashMap<Question, Following> = HashMap::new();
        for Target { endpoint, question, interval, rise, fall } in targets {
            let state = ProbeState::new(rise, fall)?;
            let following = wanted.entry(question).or_insert_with(|| Following::new(interval));
            following.interval = following.interval.min(interval);
            following.followers.insert(endpoint, state);
        }
        self.running.retain(|question, _| wanted.contains_key(question));
        for (question, following) in wanted {
            match self.running.get(&question) {
                Some(running) => {
                    running.following.send_if_modified(|known| {
                        let differs = *known != following;
                        *known = following;
                        differs
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(following);
                    let task = tokio::spawn(watch_over(question.clone(), receiver, self.changes.clone()));
                    self.running.insert(question, Running { following: sender, task });
                }
            }
        }
        Ok(())
    }

    /// How many different probes are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Is nothing probed?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Ends all probes, also those that are waiting for an answer, and returns when the last has ended.
    pub async fn stop(self) {
        // All are told before the first is waited for.
        let tasks: Vec<_> = self.running.into_values().map(|running| running.task).collect();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a probe ended badly");
            }
        }
    }
}
