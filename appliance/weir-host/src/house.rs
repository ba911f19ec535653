//! The agent with what it keeps of its hosts' applications: one lock for both, so that reports and rows never differ.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use weir_health_link::Agent;
use weir_health_load::Directive;
use weir_health_protocol::{HostEnd, RowError};
use weir_identity::{ApplicationId, HostId, Moment};

use crate::keeper::Keeper;

/// All that the agent speaks for.
#[derive(Debug)]
pub(crate) struct House {
    agent: Agent,
    own: HostId,
    keepers: Mutex<BTreeMap<HostId, Keeper>>,
}

impl House {
    pub(crate) fn new(agent: Agent, own: HostId) -> House {
        let keepers = agent.hosts().into_iter().map(|host| (host, Keeper::default())).collect();
        House { agent, own, keepers: Mutex::new(keepers) }
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(crate) fn into_agent(self) -> Agent {
        self.agent
    }

    pub(crate) fn hosts(&self) -> Vec<HostId> {
        self.agent.hosts()
    }

    /// Acts on one of its hosts.
    pub(crate) fn with<R>(&self, host: HostId, act: impl FnOnce(&mut Keeper, &mut HostEnd, Moment) -> R) -> Option<R> {
        let mut keepers = self.keepers.lock();
        let keeper = keepers.get_mut(&host)?;
        self.agent.with(host, |end, now| act(keeper, end, now))
    }

    /// Acts on the host that it runs on.
    pub(crate) fn own(
        &self,
        act: impl FnOnce(&mut Keeper, &mut HostEnd, Moment) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        self.with(self.own, act).unwrap_or(Ok(()))
    }

    /// Wants the same of all its applications.
    pub(crate) fn direct_all(&self, target: Directive) {
        for host in self.hosts() {
            self.with(host, |_, end, now| {
                let all: Vec<ApplicationId> = end.table().rows().map(|row| row.application).collect();
                for application in all {
                    // It was there a moment ago, under the same lock.
                    let _ = end.direct(application, target, now);
                }
            });
        }
    }

    /// Do all units know all directives?
    pub(crate) fn is_settled(&self) -> bool {
        let settled = |end: &HostEnd| end.table().rows().all(|row| row.directives.target == row.directives.current);
        self.hosts().into_iter().all(|host| self.with(host, |_, end, _| settled(end)).unwrap_or(true))
    }
}
