//! The health & load protocol between hosts and units, sans-IO: each host's table is the truth, and each unit's cache a copy that is
//! provably right.
//!
//! A [`HostEnd`] keeps one host's table, a [`UnitEnd`] the consolidated cache of all of them, by host and by application. Both take
//! messages and time as arguments and give messages to be sent; the bytes are made and read by [`encode`] and [`decode`].
//!
//! # How a cache stays right
//!
//! Every change of a table raises its *generation*, and is the *version* of the row it changed. So changes may come twice, late, or in
//! any order: the higher version wins, and a deleted row's version is remembered until it cannot matter. A heartbeat carries the
//! digest of the whole table. Where the cache's differs (and no change has overtaken the heartbeat), the unit is in *doubt*: after a
//! grace it asks with the digests of its chunks, and is sent the chunks that differ, each as a whole; an empty cache has one empty
//! chunk and gets everything. A host that was not live only becomes so when its rows are right; one that is live stops being
//! so after three missed heartbeats, or when its rows have been in doubt for as long.
//!
//! A life of a host is an *incarnation*. A unit that knows a later one refuses messages of an earlier one, and says which it knows:
//! a host whose clock went back takes the next number. Counters of earlier lives, late and repeated messages are refused and counted.
//!
//! # Several sources for one host
//!
//! A host may be spoken for by its own agent and by proxies; which of them counts is said at [`Rank`].
//!
//! # Units among themselves
//!
//! A host is linked to two units. Each tells the others what the host tells it directly, heartbeats several in one message; what came
//! from a unit is not passed on. A unit that has no link to a host asks the unit it heard the host through.
//!
//! # Groups
//!
//! The hosts of a group elect a leader, which sends one consolidated heartbeat for all of them ([`GroupEnd`]): each host's own heartbeats,
//! which its members send to it instead of to the units; it never makes one up. It answers each; a member whose heartbeats are not answered
//! beats for itself again, and after two and a half of them the *deputy*, whom the leader has named before, leads. Of two leaders that
//! meet the one with the lower number stays; a newcomer follows whoever leads. Only hosts with a link to a unit lead. A host that reaches no
//! unit and no leader asks any host of the group to pass its heartbeat on (bit 0 of its flags).
//!
//! A unit takes from a leader only what its certificate vouches for, and of that only that the host lives, and a digest: it compares it
//! and asks where it differs. A host's life, its message counter and its rows come from the host itself; what a leader says of them
//! cannot stand in their way. Units mark what they pass on of a leader's word.
//!
//! # From target to current
//!
//! Units obey a row's target directive as soon as they have it. The host then *postulates* that they have: a unit says right or wrong; a
//! wrong one is sent the row again, and the host asks again until every unit has said right or has been out of reach for so long that it
//! has aged the host out. A unit says right for those behind it, too. Then the target is current.
//!
//! # Bytes, version 1
//!
//! All numbers are big-endian. On a stream each message has its length in front of it (4 bytes); in a datagram it is alone. Nothing may
//! follow a message; the reserved bytes are 0.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 1 | version: 1 |
//! | 1 | 1 | kind |
//! | 2 | 2 | reserved |
//! | 4 | 4 | host |
//! | 8 | 8 | incarnation of the host |
//! | 16 | 8 | sequence |
//! | 24 | | body |
//!
//! | kind | body |
//! |---|---|
//! | 1 heartbeat | count (2), then *beats* |
//! | 2 goodbye | nothing |
//! | 3 row change | generation (8), count (2), then *operations* |
//! | 4 get table snapshot | unit (4), its incarnation (8), bits (1), 2^bits digests (8 each) |
//! | 5 send table snapshot | the unit that asked (4), its incarnation (8), generation (8), digest (8) and number of rows (2) of the whole table, bits (1), set of chunks (8; bit n is chunk n), count (2), then *rows* |
//! | 6 postulate table state | count (2), then *postulates* |
//! | 7 postulate wrong | unit (4), its incarnation (8), count (2), then postulates, each with the known target (1; 255: no row) |
//! | 8 postulate right | unit (4), its incarnation (8), count (2), then *postulates* |
//! | 9 group | length of the group's name (1, to 63) and the name, flags (1: bit 0 linked to a unit, bit 1 asks, bit 2 has a leader, bit 3 has a deputy), if so the leader (4), if so the deputy (4), members (2) |
//!
//! - A host's incarnation: 3 - rank (2 bits), milliseconds since 1970 when that life began (42 bits), chance (20 bits).
//! - *beat*: flags (1: bit 0 pass it on, bit 1 has a name, bit 2 vouched for by a leader, bit 3 and is leaving), incarnation (8), digest (8), then as
//!   *short numbers* host, sequence, generation, rows, interval in ms (not 0) and, if so, the leader; if there is one the length of the name (1) and the name.
//! - *short number*: seven bits in each byte, the lowest first, bit 7 if there are more; in as few bytes as possible. A leader speaks for many.
//! - *operation*: 1 and a *row*: it is there; 2, application (4), version (8), *state*: it is another; 3, application (4), version (8): it is gone.
//! - *row*: application (4), version (8), *state*, protocol (1), VIP, endpoint, length of the detail (1, to 128), detail in UTF-8. VIP and
//!   endpoint: 0, or 4 or 6 and address (4 or 16) and port (2).
//! - *state*: health (1: 0 unknown, 1 healthy, 2 failing), load (1), capacity (1; load ≤ capacity ≤ 99), target (1), current (1).
//! - *postulate*: application (4), version (8), target (1). Directives: 0 active, 1 draining, 2 inactive.
//!
//! Chunk of a row: the `bits` (0–6) highest bits of application × 0x9e3779b1 mod 2^32. Digest of rows: the sum mod 2^64 of each row's
//! SipHash-1-3 (keys "weir-row", "-digest1") over its bytes as above.

#![forbid(unsafe_code)]

mod cache;
mod group;
mod host;
mod hosts;
mod message;
mod planted;
mod refusal;
mod relay;
mod row;
#[cfg(test)]
mod simulator;
mod source;
mod table;
mod unit;
mod wire;

pub use cache::{CachedHost, Presence};
pub use group::{GroupEnd, GroupSettings, Role, To};
pub use host::{HostEnd, HostSettings, LIFE_BITS, ToUnit};
pub use message::{Beat, Body, GroupView, Kind, Message, Postulate, Wrong};
pub use refusal::{Refusal, Refusals};
pub use row::{CAPACITY_MAX, DETAIL_MAX, Directives, Identity, Operation, ROWS_MAX, Row, RowError, Status};
pub use source::Rank;
pub use table::{CHUNK_BITS_MAX, Table, chunk, chunk_bits};
pub use unit::{Claims, Origin, Peer, UnitEnd, UnitSettings};
pub use wire::{DecodeError, GROUP_MAX, MESSAGE_MAX, VERSION, decode, encode};
