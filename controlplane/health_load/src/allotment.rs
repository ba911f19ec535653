//! The seam between a classifier and the health & load handler: one endpoint for each new connection, now or later.

use std::task::Poll;

use weir_identity::{EndpointId, Moment, ServiceId, Ticket};

/// A classifier asks for an endpoint for one new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Names the question, should the answer come later.
    pub ticket: Ticket,
    /// The service the connection is for.
    pub service: ServiceId,
    /// A keyed hash of the client's address and port; services that select by hash go by it alone.
    pub client: u64,
    /// An endpoint to be passed over as long as any other fits (an affinity that had to yield, say).
    pub avoid: Option<EndpointId>,
}

/// Whoever has allotments to spend.
pub trait Allotments: Send {
    /// Consumes a share of the service's allotment.
    ///
    /// `Ready(None)`: no endpoint fits. `Pending`: the answer comes by [`Allotments::poll_answer`] with the same ticket.
    fn take(&mut self, request: Request, now: Moment) -> Poll<Option<EndpointId>>;

    /// The next late answer, if there is one. To be asked now and then in any case: what began and ended is told to the handler then.
    fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<EndpointId>)>;

    /// Where an existing connection nobody remembers most probably is: consistent hash over active and draining endpoints.
    ///
    /// Consumes nothing; the same on every unit with the same standings.
    fn guess(&mut self, service: ServiceId, client: u64) -> Option<EndpointId>;

    /// A connection of a service began at an endpoint, whoever chose it.
    fn began(&mut self, _service: ServiceId, _endpoint: EndpointId) {}

    /// A connection that [began](Allotments::began) is over, or is not known of any more.
    fn ended(&mut self, _service: ServiceId, _endpoint: EndpointId) {}

    /// Whether an endpoint of a service can take more of a session that it has, which is not for want of health.
    fn is_fit(&mut self, _service: ServiceId, _endpoint: EndpointId) -> bool {
        true
    }
}
