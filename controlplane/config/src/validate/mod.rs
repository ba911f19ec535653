//! From the raw document to [`Config`]: parses text, fills defaults in, resolves names, and compares everything with
//! everything it could be at odds with.
//!
//! A value that is wrong is reported and replaced by something harmless, and the rest is checked on; what depends on it is
//! left unsaid. With any error there is no [`Config`], so the replacements never leave this module.

mod agents;
mod buffers;
mod dataplane;
mod endpoints;
mod hosts;
mod ports;
mod services;
mod values;

use std::collections::HashMap;
use std::hash::Hash;

use crate::machine::Machine;
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw;
use crate::report::{Report, Severity};
use crate::types::{Admin, Config, Unit};

/// What validation found.
pub(crate) struct Verdict {
    /// `None` if there was an error.
    pub(crate) config: Option<Config>,
    pub(crate) findings: Vec<(Severity, Place, Mistake)>,
}

/// Validates a document; at the places in `cut` there was something wrong that has been reported.
pub(crate) fn validate(document: &raw::Document, cut: Vec<Place>, machine: &Machine) -> Verdict {
    let mut check = Check { cut, findings: Vec::new() };
    let root = Place::root();
    let (unit, admin) = dataplane::unit_and_admin(&mut check, document);
    let mut network = ports::network(&mut check, document);
    let dataplane = dataplane::dataplane(&mut check, document.dataplane.as_ref(), &mut network, machine);
    ports::pool_ports(&mut check, document, &network, dataplane.shards);
    let agents = document.agents.as_ref().and_then(|raw| agents::agents(&mut check, &root.key("agents"), raw, &unit));
    let listens = document.agents.is_some() || check.is_cut(&root.key("agents"));
    let hosts = hosts::hosts(&mut check, &root.key("hosts"), document.hosts.as_deref().unwrap_or_default(), listens);
    let services = services::services(&mut check, document, &network, &hosts);
    let failed = check.findings.iter().any(|(severity, ..)| *severity == Severity::Error) || !check.cut.is_empty();
    let config = (!failed).then(|| Config {
        unit,
        admin,
        agents,
        dataplane,
        ports: network.ports,
        neighbours: network.neighbours,
        routes: network.routes,
        pools: network.pools,
        hosts: hosts.into_validated(),
        services,
        warnings: Report::default(),
    });
    Verdict { config, findings: check.findings }
}

/// Collects findings.
struct Check {
    cut: Vec<Place>,
    findings: Vec<(Severity, Place, Mistake)>,
}

impl Check {
    fn error(&mut self, place: &Place, mistake: Mistake) {
        self.findings.push((Severity::Error, place.clone(), mistake));
    }

    fn warning(&mut self, place: &Place, mistake: Mistake) {
        self.findings.push((Severity::Warning, place.clone(), mistake));
    }

    /// The value of a key that must be there; `what` says what to give.
    fn required<'v, T>(&mut self, value: Option<&'v T>, place: &Place, what: &'static str) -> Option<&'v T> {
        if value.is_none() && !self.is_cut(place) {
            self.error(place, Mistake::Missing { what });
        }
        value
    }

    /// Whether what stood at `place` was wrong, has been reported, and is therefore not in the document.
    fn is_cut(&self, place: &Place) -> bool {
        self.cut.iter().any(|cut| place.is_within(cut))
    }

    /// Whether something at or below `place` was cut.
    fn is_damaged(&self, place: &Place) -> bool {
        self.cut.iter().any(|cut| cut.is_within(place) || place.is_within(cut))
    }

    /// Reports `key` if it was seen before; `true` if it is the first.
    fn unique<K>(&mut self, seen: &mut Seen<K>, key: K, place: &Place, what: &'static str) -> bool
    where
        K: Hash + Eq + ToString,
    {
        if let Some(first) = seen.0.get(&key) {
            let (value, first) = (key.to_string(), first.to_string());
            self.error(place, Mistake::Duplicate { what, value, first });
            return false;
        }
        seen.0.insert(key, place.clone());
        true
    }
}

/// Where each value of one kind was seen first.
struct Seen<K>(HashMap<K, Place>);

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}
