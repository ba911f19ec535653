//! The codec of the messages; the layouts are in the crate's documentation. Total on any input, and canonical.

use std::net::IpAddr;

use thiserror::Error;
use weir_health_load::{Directive, Health};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};

use crate::message::{Beat, Body, GroupView, Message, Postulate, Wrong};
use crate::row::{DETAIL_MAX, Directives, Identity, Operation, Row, Status};
use crate::table::{CHUNK_BITS_MAX, chunk};

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Another version of the protocol; the rest was not looked at.
    #[error("protocol version {0}, not {VERSION}")]
    Version(u8),
    /// More bytes than any message has.
    #[error("{0} bytes are more than a message has")]
    Long(usize),
    /// The bytes end within a field.
    #[error("ends at byte {0}, within a field")]
    Short(usize),
    /// A field has a value that it cannot have.
    #[error("{field} is {value} at byte {at}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Behind it.
        at: usize,
    },
    /// Bytes are left behind the message.
    #[error("{0} bytes are left over")]
    Trailing(usize),
}

/// The bytes of a message.
#[must_use]
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend([VERSION, message.body.kind() as u8, 0, 0]);
    out.extend(message.host.0.to_be_bytes());
    out.extend(message.incarnation.0.to_be_bytes());
    out.extend(message.sequence.to_be_bytes());
    match &message.body {
        Body::Heartbeat(beats) => put_all(&mut out, beats, put_beat),
        Body::Goodbye => {}
        Body::RowChange { generation, operations } => {
            out.extend(generation.to_be_bytes());
            put_all(&mut out, operations, put_operation);
        }
        Body::GetTable { unit, unit_incarnation, digests } => {
            put_unit(&mut out, *unit, *unit_incarnation);
            out.push(u8::try_from(digests.len().trailing_zeros()).unwrap_or(0));
            digests.iter().for_each(|digest| out.extend(digest.to_be_bytes()));
        }
        Body::Table { unit, unit_incarnation, generation, digest, total, bits, chunks, rows } => {
            put_unit(&mut out, *unit, *unit_incarnation);
            out.extend(generation.to_be_bytes());
            out.extend(digest.to_be_bytes());
            out.extend(total.to_be_bytes());
            out.push(*bits);
            out.extend(chunks.to_be_bytes());
            put_all(&mut out, rows, put_row);
        }
        Body::Postulate(postulates) => put_all(&mut out, postulates, put_postulate),
        Body::PostulateWrong { unit, unit_incarnation, wrongs } => {
            put_unit(&mut out, *unit, *unit_incarnation);
            put_all(&mut out, wrongs, |out, wrong| {
                put_postulate(out, &wrong.postulate);
                out.push(wrong.known.map_or(NO_ROW, directive_byte));
            });
        }
        Body::PostulateRight { unit, unit_incarnation, rights } => {
            put_unit(&mut out, *unit, *unit_incarnation);
            put_all(&mut out, rights, put_postulate);
        }
        Body::Group(view) => put_group(&mut out, view),
    }
    out
}

/// The message that these bytes are.
///
/// # Errors
/// [`DecodeError`] for anything but exactly one message of this version.
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(DecodeError::Long(bytes.len()));
    }
    let mut reader = Reader { bytes, at: 0 };
    let version = reader.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = reader.u8()?;
    let reserved = reader.u16()?;
    reader.require("the reserved field", reserved.into(), reserved == 0)?;
    let host = HostId(reader.u32()?);
    let incarnation = Incarnation(reader.u64()?);
    let sequence = reader.u64()?;
    let body = match kind {
        1 => Body::Heartbeat(reader.all(Reader::beat)?),
        2 => Body::Goodbye,
        3 => Body::RowChange { generation: reader.u64()?, operations: reader.all(Reader::operation)? },
        4 => {
            let (unit, unit_incarnation) = reader.unit()?;
            let chunks = 1_usize << reader.bits()?;
            let digests = (0..chunks).map(|_| reader.u64()).collect::<Result<_, _>>()?;
            Body::GetTable { unit, unit_incarnation, digests }
        }
        5 => {
            let (unit, unit_incarnation) = reader.unit()?;
            let (generation, digest, total) = (reader.u64()?, reader.u64()?, reader.u16()?);
            let (bits, chunks) = (reader.bits()?, reader.u64()?);
            reader.require("the set of chunks", chunks, bits == CHUNK_BITS_MAX || chunks >> (1 << bits) == 0)?;
            let rows = reader.all(|reader| {
                let row = reader.row()?;
                let here = chunks >> chunk(row.application, bits) & 1 == 1;
                reader.require("the chunk of a row", row.application.0.into(), here)?;
                Ok(row)
            })?;
            Body::Table { unit, unit_incarnation, generation, digest, total, bits, chunks, rows }
        }
        6 => Body::Postulate(reader.all(Reader::postulate)?),
        7 => {
            let (unit, unit_incarnation) = reader.unit()?;
            let wrongs = reader.all(|reader| {
                let postulate = reader.postulate()?;
                let known = if reader.peek() == Some(NO_ROW) {
                    reader.at += 1;
                    None
                } else {
                    Some(reader.directive()?)
                };
                Ok(Wrong { postulate, known })
            })?;
            Body::PostulateWrong { unit, unit_incarnation, wrongs }
        }
        8 => {
            let (unit, unit_incarnation) = reader.unit()?;
            Body::PostulateRight { unit, unit_incarnation, rights: reader.all(Reader::postulate)? }
        }
        9 => Body::Group(reader.group()?),
        _ => return Err(DecodeError::Value { field: "the kind", value: kind.into(), at: 2 }),
    };
    match bytes.len() - reader.at {
        0 => Ok(Message { host, incarnation, sequence, body }),
        left => Err(DecodeError::Trailing(left)),
    }
}

fn put_all<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    // State machines never make more; what they would lose here, a digest brings back.
    let count = u16::try_from(items.len()).unwrap_or(u16::MAX);
    out.extend(count.to_be_bytes());
    items.iter().take(count.into()).for_each(|item| put(out, item));
}

fn put_unit(out: &mut Vec<u8>, unit: UnitId, incarnation: Incarnation) {
    out.extend(unit.0.to_be_bytes());
    out.extend(incarnation.0.to_be_bytes());
}

fn put_beat(out: &mut Vec<u8>, beat: &Beat) {
    let named = beat.name.as_deref();
    out.push(flag_bits([beat.forward, named.is_some(), beat.voucher.is_some(), beat.leaving]));
    out.extend(beat.incarnation.0.to_be_bytes());
    out.extend(beat.digest.to_be_bytes());
    put_short(out, beat.host.0.into());
    put_short(out, beat.sequence);
    put_short(out, beat.generation);
    put_short(out, beat.rows.into());
    put_short(out, beat.interval_ms.into());
    if let Some(voucher) = beat.voucher {
        put_short(out, voucher.0.into());
    }
    if let Some(name) = named {
        put_text(out, name);
    }
}

/// Seven bits in each byte, the lowest first; the highest bit says that there are more.
fn put_short(out: &mut Vec<u8>, mut number: u64) {
    while number > LOW_BITS.into() {
        out.push(number.to_le_bytes()[0] | MORE);
        number >>= LOW_BITS.count_ones();
    }
    out.push(number.to_le_bytes()[0]);
}

fn put_group(out: &mut Vec<u8>, view: &GroupView) {
    put_text(out, &view.group);
    out.push(flag_bits([view.linked, view.asks, view.leader.is_some(), view.deputy.is_some()]));
    for host in [view.leader, view.deputy].into_iter().flatten() {
        out.extend(host.0.to_be_bytes());
    }
    out.extend(view.members.to_be_bytes());
}

/// The first is the lowest bit.
fn flag_bits(flags: [bool; 4]) -> u8 {
    flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag))
}

fn put_operation(out: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Add(row) => {
            out.push(1);
            put_row(out, row);
        }
        Operation::Update { application, version, status, directives } => {
            out.push(2);
            out.extend(application.0.to_be_bytes());
            out.extend(version.to_be_bytes());
            put_state(out, *status, *directives);
        }
        Operation::Delete { application, version } => {
            out.push(3);
            out.extend(application.0.to_be_bytes());
            out.extend(version.to_be_bytes());
        }
    }
}

pub(crate) fn put_row(out: &mut Vec<u8>, row: &Row) {
    out.extend(row.application.0.to_be_bytes());
    out.extend(row.version.to_be_bytes());
    put_state(out, row.status, row.directives);
    out.push(row.identity.protocol);
    for address in [&row.identity.vip, &row.identity.endpoint] {
        match address {
            None => out.push(0),
            Some((IpAddr::V4(address), port)) => {
                out.push(4);
                out.extend(address.octets());
                out.extend(port.to_be_bytes());
            }
            Some((IpAddr::V6(address), port)) => {
                out.push(6);
                out.extend(address.octets());
                out.extend(port.to_be_bytes());
            }
        }
    }
    put_text(out, &row.identity.detail);
}

fn put_state(out: &mut Vec<u8>, status: Status, directives: Directives) {
    let health = match status.health {
        Health::Unknown => 0,
        Health::Healthy => 1,
        Health::Failing => 2,
    };
    let Directives { target, current } = directives;
    out.extend([health, status.load, status.capacity, directive_byte(target), directive_byte(current)]);
}

fn put_postulate(out: &mut Vec<u8>, postulate: &Postulate) {
    out.extend(postulate.application.0.to_be_bytes());
    out.extend(postulate.version.to_be_bytes());
    out.push(directive_byte(postulate.target));
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).unwrap_or(0);
    out.push(length);
    out.extend(&text.as_bytes()[..length.into()]);
}

fn directive_byte(directive: Directive) -> u8 {
    match directive {
        Directive::Active => 0,
        Directive::Draining => 1,
        Directive::Inactive => 2,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let taken = self.bytes[self.at..].first_chunk().ok_or(DecodeError::Short(self.bytes.len()))?;
        self.at += N;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_be_bytes)
    }

    /// A number of [`put_short`], in no more bytes than it takes.
    fn short<T: TryFrom<u64>>(&mut self) -> Result<T, DecodeError> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.u8()?;
            let bits = u64::from(byte & LOW_BITS);
            self.require("a short number's byte", byte.into(), shift < u64::BITS && bits << shift >> shift == bits)?;
            number |= bits << shift;
            if byte & MORE == 0 {
                self.require("a short number's last byte", 0, byte > 0 || shift == 0)?;
                let field = "a short number";
                return T::try_from(number).map_err(|_| DecodeError::Value { field, value: number, at: self.at });
            }
            shift += LOW_BITS.count_ones();
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn require(&self, field: &'static str, value: u64, holds: bool) -> Result<(), DecodeError> {
        if holds { Ok(()) } else { Err(DecodeError::Value { field, value, at: self.at }) }
    }

    /// A count and so many items. Memory grows with the bytes that are there, not with the count.
    fn all<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
        let count = self.u16()?;
        (0..count).map(|_| item(self)).collect()
    }

    fn unit(&mut self) -> Result<(UnitId, Incarnation), DecodeError> {
        Ok((UnitId(self.u32()?), Incarnation(self.u64()?)))
    }

    fn bits(&mut self) -> Result<u8, DecodeError> {
        let bits = self.u8()?;
        self.require("the chunks' power of two", bits.into(), bits <= CHUNK_BITS_MAX)?;
        Ok(bits)
    }

    fn beat(&mut self) -> Result<Beat, DecodeError> {
        let [forward, named, vouched, leaving] = self.flags("the heartbeat's flags")?;
        self.require("leaving without a voucher", 1, vouched || !leaving)?;
        let (incarnation, digest) = (Incarnation(self.u64()?), self.u64()?);
        let (host, sequence, generation) = (HostId(self.short()?), self.short()?, self.short()?);
        let (rows, interval_ms) = (self.short()?, self.short()?);
        self.require("the heartbeat's interval", 0, interval_ms > 0)?;
        let voucher = if vouched { Some(HostId(self.short()?)) } else { None };
        let name = if named { Some(self.text("the name", NAME_MAX)?) } else { None };
        Ok(Beat { host, incarnation, sequence, generation, digest, rows, interval_ms, forward, voucher, leaving, name })
    }

    fn flags(&mut self, field: &'static str) -> Result<[bool; 4], DecodeError> {
        let flags = self.u8()?;
        self.require(field, flags.into(), flags < 16)?;
        Ok([1, 2, 4, 8].map(|bit| flags & bit != 0))
    }

    fn group(&mut self) -> Result<GroupView, DecodeError> {
        let group = self.text("the group's name", GROUP_MAX)?;
        let [linked, asks, led, deputised] = self.flags("the group's flags")?;
        let leader = if led { Some(HostId(self.u32()?)) } else { None };
        let deputy = if deputised { Some(HostId(self.u32()?)) } else { None };
        Ok(GroupView { group, linked, asks, leader, deputy, members: self.u16()? })
    }

    fn operation(&mut self) -> Result<Operation, DecodeError> {
        let operation = self.u8()?;
        Ok(match operation {
            1 => Operation::Add(self.row()?),
            2 => {
                let (application, version) = (ApplicationId(self.u32()?), self.u64()?);
                let (status, directives) = self.state()?;
                Operation::Update { application, version, status, directives }
            }
            3 => Operation::Delete { application: ApplicationId(self.u32()?), version: self.u64()? },
            _ => return Err(DecodeError::Value { field: "the operation", value: operation.into(), at: self.at }),
        })
    }

    fn row(&mut self) -> Result<Row, DecodeError> {
        let (application, version) = (ApplicationId(self.u32()?), self.u64()?);
        let (status, directives) = self.state()?;
        let protocol = self.u8()?;
        let (vip, endpoint) = (self.address()?, self.address()?);
        let detail = self.text("the detail's length", DETAIL_MAX)?;
        let identity = Identity { protocol, vip, endpoint, detail };
        Ok(Row { application, version, identity, status, directives })
    }

    fn state(&mut self) -> Result<(Status, Directives), DecodeError> {
        let health = self.u8()?;
        let health = match health {
            0 => Health::Unknown,
            1 => Health::Healthy,
            2 => Health::Failing,
            _ => return Err(DecodeError::Value { field: "the health", value: health.into(), at: self.at }),
        };
        let status = Status { health, load: self.u8()?, capacity: self.u8()? };
        self.require("load or capacity", status.load.into(), status.check().is_ok())?;
        Ok((status, Directives { target: self.directive()?, current: self.directive()? }))
    }

    fn directive(&mut self) -> Result<Directive, DecodeError> {
        let byte = self.u8()?;
        Ok(match byte {
            0 => Directive::Active,
            1 => Directive::Draining,
            2 => Directive::Inactive,
            _ => return Err(DecodeError::Value { field: "the directive", value: byte.into(), at: self.at }),
        })
    }

    fn postulate(&mut self) -> Result<Postulate, DecodeError> {
        let application = ApplicationId(self.u32()?);
        Ok(Postulate { application, version: self.u64()?, target: self.directive()? })
    }

    fn address(&mut self) -> Result<Option<(IpAddr, u16)>, DecodeError> {
        let family = self.u8()?;
        Ok(match family {
            0 => None,
            4 => Some((self.take::<4>()?.into(), self.u16()?)),
            6 => Some((self.take::<16>()?.into(), self.u16()?)),
            _ => return Err(DecodeError::Value { field: "the address family", value: family.into(), at: self.at }),
        })
    }

    fn text(&mut self, field: &'static str, longest: usize) -> Result<String, DecodeError> {
        let length = self.u8()?;
        self.require(field, length.into(), usize::from(length) <= longest)?;
        let (text, _) =
            self.bytes[self.at..].split_at_checked(length.into()).ok_or(DecodeError::Short(self.bytes.len()))?;
        self.at += text.len();
        let bad =
            DecodeError::Value { field: "a text that is not UTF-8, with length", value: length.into(), at: self.at };
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| bad)
    }
}

/// The version that is spoken here.
pub const VERSION: u8 = 1;
/// Of a byte of a short number.
const LOW_BITS: u8 = 0x7f;
const MORE: u8 = 0x80;
/// The longest message, in bytes.
pub const MESSAGE_MAX: usize = 256 * 1024;
/// The longest DNS name.
pub(crate) const NAME_MAX: usize = 255;
/// The longest name of a group: a label in a certificate's DNS name.
pub const GROUP_MAX: usize = 63;
/// In place of a directive: there is no such row.
const NO_ROW: u8 = 255;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::tests::{directive, row};

    fn beat() -> impl Strategy<Value = Beat> {
        (
            (any::<[u64; 4]>(), [0..64_u32, 0..64]),
            any::<(u32, u16, [bool; 2], Option<u32>)>(),
            1..=u16::MAX,
            prop::option::of("[a-z0-9.-]{0,60}"),
        )
            .prop_map(
                |(
                    ([incarnation, sequence, generation, digest], [short, shorter]),
                    (host, rows, [forward, leaving], voucher),
                    interval_ms,
                    name,
                )| Beat {
                    host: HostId(host),
                    incarnation: Incarnation(incarnation),
                    sequence: sequence >> short,
                    generation: generation >> shorter,
                    digest,
                    rows,
                    interval_ms,
                    forward,
                    voucher: voucher.map(HostId),
                    leaving: voucher.is_some() && leaving,
                    name,
                },
            )
    }

    fn operation() -> impl Strategy<Value = Operation> {
        (0..3, row()).prop_map(|(kind, row)| match kind {
            0 => Operation::Add(row),
            1 => {
                let Row { application, version, status, directives, .. } = row;
                Operation::Update { application, version, status, directives }
            }
            _ => Operation::Delete { application: row.application, version: row.version },
        })
    }

    fn postulate() -> impl Strategy<Value = Postulate> {
        (any::<u32>(), any::<u64>(), directive()).prop_map(|(application, version, target)| Postulate {
            application: ApplicationId(application),
            version,
            target,
        })
    }

    fn body() -> impl Strategy<Value = Body> {
        let unit = || any::<(u32, u64)>().prop_map(|(unit, incarnation)| (UnitId(unit), Incarnation(incarnation)));
        prop_oneof![
            prop::collection::vec(beat(), 0..5).prop_map(Body::Heartbeat),
            Just(Body::Goodbye),
            (any::<u64>(), prop::collection::vec(operation(), 0..6))
                .prop_map(|(generation, operations)| Body::RowChange { generation, operations }),
            (unit(), 0..=CHUNK_BITS_MAX, any::<u64>()).prop_map(|((unit, unit_incarnation), bits, seed)| {
                let digests = (0..1_u64 << bits).map(|i| seed.wrapping_mul(i)).collect();
                Body::GetTable { unit, unit_incarnation, digests }
            }),
            (any::<[u64; 3]>(), (unit(), any::<u16>()), 0..=CHUNK_BITS_MAX, prop::collection::vec(row(), 0..6))
                .prop_map(|([generation, digest, chunks], ((unit, unit_incarnation), total), bits, mut rows)| {
                    let chunks = if bits == CHUNK_BITS_MAX { chunks } else { chunks & ((1 << (1 << bits)) - 1) };
                    rows.retain(|row| chunks >> chunk(row.application, bits) & 1 == 1);
                    Body::Table { unit, unit_incarnation, generation, digest, total, bits, chunks, rows }
                }),
            prop::collection::vec(postulate(), 0..4).prop_map(Body::Postulate),
            (unit(), prop::collection::vec((postulate(), prop::option::of(directive())), 0..4)).prop_map(
                |((unit, unit_incarnation), wrongs)| Body::PostulateWrong {
                    unit,
                    unit_incarnation,
                    wrongs: wrongs.into_iter().map(|(postulate, known)| Wrong { postulate, known }).collect(),
                }
            ),
            (unit(), prop::collection::vec(postulate(), 0..4)).prop_map(|((unit, unit_incarnation), rights)| {
                Body::PostulateRight { unit, unit_incarnation, rights }
            }),
            ("[a-z0-9-]{0,63}", any::<([bool; 2], Option<u32>, Option<u32>, u16)>()).prop_map(
                |(group, ([linked, asks], leader, deputy, members))| {
                    let (leader, deputy) = (leader.map(HostId), deputy.map(HostId));
                    Body::Group(GroupView { group, linked, asks, leader, deputy, members })
                }
            ),
        ]
    }

    pub(crate) fn message() -> impl Strategy<Value = Message> {
        (any::<(u32, u64, u64)>(), body()).prop_map(|((host, incarnation, sequence), body)| Message {
            host: HostId(host),
            incarnation: Incarnation(incarnation),
            sequence,
            body,
        })
    }

    proptest! {
        #[test]
        fn every_message_survives_the_wire(message in message()) {
            let bytes = encode(&message);
            prop_assert_eq!(decode(&bytes).unwrap(), message);
            for end in 0..bytes.len() {
                prop_assert!(decode(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn no_bytes_panic_and_all_that_is_read_is_canonical(
            message in message(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            garbage in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = decode(&garbage);
            let mut bytes = encode(&message);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(read) = decode(&bytes) {
                prop_assert_eq!(encode(&read), bytes);
            }
        }
    }

    #[test]
    fn a_heartbeat_has_these_bytes() {
        let beat = Beat {
            host: HostId(7),
            incarnation: Incarnation(0x0102),
            sequence: 3,
            generation: 4,
            digest: 0x55,
            rows: 2,
            interval_ms: 1000,
            forward: true,
            voucher: None,
            leaving: false,
            name: Some("h7".into()),
        };
        let body = Body::Heartbeat(vec![beat]);
        let message = Message { host: HostId(7), incarnation: Incarnation(0x0102), sequence: 3, body };
        let head = [1, 1, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3];
        let count_flags_and_life = [0, 1, 3, 0, 0, 0, 0, 0, 0, 1, 2];
        let rest = [0, 0, 0, 0, 0, 0, 0, 0x55, 7, 3, 4, 2, 0xe8, 7, 2, b'h', b'7'];
        let bytes = [&head[..], &count_flags_and_life, &rest].concat();
        assert_eq!(encode(&message), bytes);
        // A short number is as short as it can be.
        let at = bytes.iter().rposition(|byte| *byte == 0xe8).unwrap();
        let (mut longer, mut larger) = (bytes.clone(), bytes);
        longer.splice(at..at + 2, [0xe8, 0x87, 0]);
        larger.splice(at..at + 2, [0xff, 0xff, 4]);
        for bytes in [longer, larger] {
            assert!(matches!(decode(&bytes), Err(DecodeError::Value { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn a_full_heartbeat_fits_into_a_datagram() {
        let beat = Beat {
            host: HostId(100_000),
            incarnation: Incarnation(u64::MAX),
            sequence: (1 << 28) - 1,
            generation: (1 << 28) - 1,
            digest: u64::MAX,
            rows: 1_000,
            interval_ms: 1_000,
            forward: false,
            voucher: Some(HostId(100_000)),
            leaving: false,
            name: None,
        };
        let body = Body::Heartbeat(vec![beat; crate::unit::BEATS_MAX]);
        let bytes = encode(&Message { host: HostId(1), incarnation: Incarnation(0), sequence: 0, body });
        // QUIC's packets have 1200 bytes at least (RFC 9000, 14.1): 40 for header, connection id, frame and tag.
        assert!(bytes.len() <= 1200 - 40, "{} bytes", bytes.len());
    }

    #[test]
    fn other_versions_are_refused_by_their_number() {
        assert_eq!(decode(&[2, 9, 9]), Err(DecodeError::Version(2)));
        assert_eq!(decode(&[]), Err(DecodeError::Short(0)));
        assert_eq!(decode(&vec![1; MESSAGE_MAX + 1]), Err(DecodeError::Long(MESSAGE_MAX + 1)));
    }
}
