//! The section `hosts`.

use std::collections::HashMap;
use std::net::IpAddr;

use weir_identity::HostId;

use super::{Check, Seen};
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw;
use crate::types::Host;

/// The hosts as far as they could be read, for those who refer to them.
#[derive(Default)]
pub(super) struct Hosts {
    all: Vec<Draft>,
    by_name: HashMap<String, usize>,
    /// A host's name was wrong or missing, so nobody can say that a name does not exist.
    pub(super) incomplete: bool,
}

/// A host, possibly without what was wrong.
pub(super) struct Draft {
    pub(super) id: Option<u32>,
    pub(super) name: Option<String>,
    pub(super) address: Option<IpAddr>,
    pub(super) agent: bool,
    pub(super) place: Place,
}

/// Checks each host, and that ids, names and addresses are their own.
pub(super) fn hosts(check: &mut Check, here: &Place, raw: &[raw::Host], listens: bool) -> Hosts {
    let (mut ids, mut names, mut addresses) = (Seen::default(), Seen::default(), Seen::default());
    let mut hosts = Hosts { incomplete: check.is_cut(here), ..Hosts::default() };
    for (i, raw) in raw.iter().enumerate() {
        let place = here.at(i);
        let id = check.id(raw.id, &place.key("id"));
        if let Some(id) = id {
            check.unique(&mut ids, id, &place.key("id"), "host id");
        }
        let name = check.name(raw.name.as_ref(), &place.key("name")).map(str::to_owned);
        match &name {
            Some(name) => {
                if check.unique(&mut names, name.clone(), &place.key("name"), "host name") {
                    hosts.by_name.insert(name.clone(), i);
                }
            }
            None => hosts.incomplete = true,
        }
        let at = place.key("address");
        let address = check
            .required(raw.address.as_ref(), &at, raw::AddressText::EXPECTED)
            .and_then(|text| check.address(text, &at));
        if let Some(address) = address {
            check.unique(&mut addresses, address, &at, "host address");
        }
        let agent = raw.agent.unwrap_or(false);
        if agent && !listens {
            check.error(&place.key("agent"), Mistake::NoAgents);
        }
        hosts.all.push(Draft { id, name, address, agent, place });
    }
    hosts
}

impl Hosts {
    /// The host of that name, with its index.
    pub(super) fn named(&self, name: &str) -> Option<(usize, &Draft)> {
        let index = *self.by_name.get(name)?;
        self.all.get(index).map(|host| (index, host))
    }

    /// The names there are.
    pub(super) fn names(&self) -> Vec<String> {
        self.all.iter().filter_map(|host| host.name.clone()).collect()
    }

    /// All hosts, in the file's order.
    pub(super) fn all(&self) -> &[Draft] {
        &self.all
    }

    /// The hosts for a [`crate::Config`]; all of them if there was no error.
    pub(super) fn into_validated(self) -> Vec<Host> {
        let host = |draft: Draft| {
            let Draft { agent, .. } = draft;
            Some(Host { id: HostId(draft.id?), name: draft.name?, address: draft.address?, agent })
        };
        self.all.into_iter().filter_map(host).collect()
    }
}
