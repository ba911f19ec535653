//! A client's flows to services that belong together, such as ESP and IKE, go to one host: each new one rejoins the others.

use std::task::Poll;
use std::time::Duration;

use weir_health_load::Directive;
use weir_identity::{EndpointId, Moment};
use weir_sessions::{Binding, Endpoint, Entry, SessionKey};

use super::Classifier;
use crate::farm::Association;
use crate::flow::Key;
use crate::plumbing::{Ask, Verdict};

impl<H> Classifier<H> {
    /// Where the client's other flows of the same association are, if that host serves this one, too, and is fit.
    pub(super) fn rejoin(&mut self, ask: &Ask, service: usize, now: Moment) -> Option<Verdict> {
        let key = session_key(self.farm.association(service)?, &ask.key);
        let ticket = self.ticket();
        // An answer that comes late finds nobody waiting: the flow is decided without it.
        let Poll::Ready(Some(binding)) = self.sessions.query(ticket, &key, now) else {
            return None;
        };
        let (id, _) = self
            .farm
            .endpoints_on(service, binding.endpoint.host)
            .find(|(_, endpoint)| endpoint.directive != Directive::Inactive)?;
        if !self.allotments.is_fit(self.farm.services[service].id, id) {
            return None;
        }
        self.counters.recalled += 1;
        Some(self.bind(id, ask, service, now))
    }

    /// Remembers the host for the client's other flows of the association.
    pub(super) fn associate(&mut self, id: EndpointId, ask: &Ask, service: usize, now: Moment) {
        let (Some(association), Some(endpoint)) = (self.farm.association(service), self.farm.endpoint(id)) else {
            return;
        };
        let &crate::farm::Endpoint { host, application, address, port, .. } = endpoint;
        let endpoint = Endpoint { host, application, address, port: port.unwrap_or(0) };
        let mode = self.farm.services[service].mode as u8;
        let binding = Binding { endpoint, mode, pool: None, sequence_delta: 0, flow_id: 0 };
        let key = session_key(association, &ask.key);
        // Without room its flows meet by chance only; nothing else depends on it.
        let _ = self.sessions.add(Entry { key, binding, incarnation: now.0, life: LIFE }, now);
    }
}

fn session_key(Association { kind, service }: Association, key: &Key) -> SessionKey {
    SessionKey::association(kind, service, key.source().ip())
}

/// An IKE association's usual lifetime (RFC 2407 section 4.5), from its last new flow on.
const LIFE: Duration = Duration::from_secs(28_800);
