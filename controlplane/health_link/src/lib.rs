//! The health & load protocol over QUIC with mutual TLS: the drivers of both ends.
//!
//! An [`Agent`] speaks for a host (or, as a proxy, for several) to two of the units it knows; a [`Listener`] keeps a unit's
//! consolidated cache. What a node may say is in its certificate: a DNS name `7.host.weir` for each host, `1.unit.weir` for a unit.
//! A member of a group has names like `1-20.rack-3.group.weir`, too: it may say, as the group's leader, that the hosts 1 to 20 live. Members
//! listen for each other ([`GroupPlan`]) and link as the group's state machine wants.
//!
//! Heartbeats and the answers to them go in datagrams, everything else over one ordered stream each way; each message on it has its length in front of it. The
//! protocol's name (ALPN) is `weir-health/1`. Who dials says how soon silence ends a
//! connection: units after a second; a host after three and a half heartbeats, which are all that keeps it up, and at least ten seconds; a member of a group after two
//! and a half minutes. Whatever a dialler sends has to be acknowledged within a second. A node has at most four links to a unit, and may send 500 messages a
//! second after a burst of 1000; more has to wait and is counted.
//!
//! A unit drives all of its connections in one task, on `quinn-proto`'s state machines: what a turn costs is given by the packets that have
//! come and the timers that are due, not by the number of hosts. Thousands of hosts may come at once, and whoever does not mean well, too:
//!
//! - 512 handshakes with nodes whose address may be forged; any further newcomer, and whoever of them has not begun
//!   after 250 ms, has to prove its address first (RFC 9000, 8.1.2), which leaves nothing behind at the unit.
//! - 1024 in all, at most 256 of them with one proven address (the first half of it with IPv6). A handshake has three seconds.
//! - 16,384 that have proven their address may wait. Addresses take turns; of those from one the latest is served first, since who has
//!   waited for long has given up, and whoever has most waiting loses the oldest when there are too many. Nobody waits for longer than 10 s.
//! - 96 that were begun within the last quarter of a second and are not finished: others wait meanwhile, at no cost to either end, and those
//!   that are begun are soon done.
//! - 65,536 links.
//!
//! A host waits ten seconds for a unit, but after one it tries another beside it, and tries less often while there is none to be had. A unit
//! that did not answer is asked whether it is there (a packet of a QUIC version that nobody has) before it is dialled again. Heartbeats
//! are acknowledged as they come (ACK frequency extension: threshold 0): an acknowledgement that waits for the next heartbeat would be half as
//! many, but a lost change would be repaired, and a dead unit noticed, seconds later. Only the leader of a group acknowledges with its
//! answer. `cargo bench -p weir-health-link --bench scale` measures what 10,000 hosts cost.
//!
//! Whoever was linked to a unit comes back with a ticket (resumption, RFC 8446, section 2.2): without certificates and signatures, which are
//! most of what a handshake costs, and to the unit's next life, too, as long as it has its key. Nothing is gained by it that a full handshake
//! would not give: the certificates in the ticket are judged again, by the authority, the list of revoked ones and the time, and they say for
//! whom the peer may speak; the key exchange is done anew; no data comes with the first packet. A ticket is good for a week, and links to units
//! are made anew every few days. Whoever has a unit's key could make tickets, and speak to this unit as any host; to other units it could do so
//! without, since units pass on what hosts say. A host's other keys, authority or list, or a unit's other key or authority, begin with a full handshake.
//!
//! Connection ids and reset tokens are made from the node's key, so that a node that was killed and started again is noticed with the next
//! packet.
//!
//! A node follows its files: a renewed certificate is shown with the next connection, and a peer whose certificate is revoked loses
//! its connection within a second.

#![forbid(unsafe_code)]

mod admission;
mod agent;
mod checks;
mod cids;
mod clock;
mod group;
mod http;
mod hub;
mod keys;
mod line;
mod link;
mod listener;
mod question;
mod renewal;
mod slots;
mod tickets;

pub use agent::{Agent, AgentError, GroupPlan, GroupStatus};
pub use checks::Checks;
pub use clock::new_life;
pub use http::Pages;
pub use hub::Handshakes;
pub use keys::{Keys, KeysError, Names, host_name, names, unit_name};
pub use listener::{Cache, ListenError, ListenSettings, Listener};
