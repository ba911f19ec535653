//! The agent with what it keeps of its hosts' applications: one lock for both, so that reports and rows never differ.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use weir_health_link::Agent;
use weir_health_load::Directive;
use weir_health_protocol::HostEnd;
use weir_identity::{HostId, Moment};

use crate::config::Config;
use crate::keeper::Keeper;
use crate::state::Tables;

/// All that the agent speaks for.
#[derive(Debug)]
pub(crate) struct House {
    agent: Agent,
    own: HostId,
    keepers: Mutex<BTreeMap<HostId, Keeper>>,
}

impl House {
    /// Goes on with what the last agent left.
    pub(crate) fn new(agent: Agent, own: HostId, left: &Tables) -> House {
        let keepers = agent.hosts().into_iter().map(|host| (host, Keeper::default())).collect();
        let house = House { agent, own, keepers: Mutex::new(keepers) };
        for (host, row) in left.0.iter().flat_map(|(host, rows)| rows.iter().map(move |row| (*host, row))) {
            if let Some(Err(error)) = house.with(host, |keeper, end, now| keeper.restore(end, row, now)) {
                tracing::warn!(%host, application = %row.application, %error, "not taken over");
            }
        }
        house
    }

    /// What the next agent needs to go on.
    pub(crate) fn tables(&self, config: &Config) -> Tables {
        let of = |host: HostId| {
            let mut rows = self.with(host, |keeper, end, _| keeper.save(end))?;
            for row in &mut rows {
                row.by_itself = config.application(self.own, host, row.application).is_none();
            }
            Some((host, rows))
        };
        Tables(self.hosts().into_iter().filter_map(of).collect())
    }

    /// The host that it runs on.
    pub(crate) fn own_host(&self) -> HostId {
        self.own
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
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

    /// Wants the same of all of a host's applications.
    pub(crate) fn direct_all(&self, host: HostId, target: Directive) {
        self.with(host, |keeper, end, now| keeper.direct_all(end, target, now));
    }

    /// Do all units know all of a host's directives?
    pub(crate) fn is_settled(&self, host: HostId) -> bool {
        let settled = |end: &HostEnd| end.table().rows().all(|row| row.directives.target == row.directives.current);
        self.with(host, |_, end, _| settled(end)).unwrap_or(true)
    }
}
