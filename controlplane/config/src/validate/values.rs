//! Single values: text to addresses, durations and sizes, numbers within ranges.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;

use super::Check;
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw::{AddressText, DurationText, MacText, NumberOrRange, PortSet, PrefixText, SizeText};
use crate::types::Ports;

impl Check {
    /// A number within `range`, or the default.
    pub(super) fn number<T: Copy + TryFrom<u64>>(
        &mut self,
        value: Option<impl Into<u64> + Copy>,
        place: &Place,
        range: RangeInclusive<u64>,
        default: T,
    ) -> T {
        let Some(value) = value.map(Into::into) else { return default };
        if !range.contains(&value) {
            let range = format!("{} to {}", range.start(), range.end());
            self.error(place, Mistake::OutOfRange { value: value.to_string(), range });
            return default;
        }
        T::try_from(value).unwrap_or(default)
    }

    /// An id: required, and not 0.
    pub(super) fn id(&mut self, value: Option<u32>, place: &Place) -> Option<u32> {
        let id = *self.required(value.as_ref(), place, "a number from 1 to 4294967295, never used for another")?;
        if id == 0 {
            self.error(place, Mistake::OutOfRange { value: "0".to_owned(), range: "1 to 4294967295".to_owned() });
            return None;
        }
        Some(id)
    }

    /// A name: required, of the allowed characters.
    pub(super) fn name<'v>(&mut self, value: Option<&'v String>, place: &Place) -> Option<&'v str> {
        let name = self.required(value, place, "a name: 1 to 63 letters, digits, `-`, `_` and `.`")?;
        let good = (1..=63).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !good {
            self.error(place, Mistake::BadName { name: name.clone() });
            return None;
        }
        Some(name)
    }

    /// A kernel interface's name.
    pub(super) fn interface(&mut self, name: &str, place: &Place) {
        let good = (1..=15).contains(&name.len())
            && !name.chars().any(|c| c.is_whitespace() || c.is_control() || "/:".contains(c))
            && name != "."
            && name != "..";
        if !good {
            self.error(place, Mistake::BadInterface { name: name.to_owned() });
        }
    }

    /// An address that one machine can have and others can reach.
    pub(super) fn address(&mut self, text: &AddressText, place: &Place) -> Option<IpAddr> {
        let Ok(address) = text.0.parse() else {
            self.error(place, Mistake::Unparsable { text: text.0.clone(), expected: AddressText::EXPECTED });
            return None;
        };
        self.unicast(address, place).then_some(address)
    }

    /// Reports an address that cannot be one machine's.
    pub(super) fn unicast(&mut self, address: IpAddr, place: &Place) -> bool {
        let kind = match address {
            _ if address.is_unspecified() => "the unspecified address",
            _ if address.is_loopback() => "a loopback address",
            _ if address.is_multicast() => "a multicast address",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
            IpAddr::V4(v4) if v4.octets()[0] == 0 => "an address of \"this network\" (RFC 1122)",
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
            _ => return true,
        };
        self.error(place, Mistake::NotUnicast { address, kind });
        false
    }

    /// A prefix, host bits allowed. A lone address is one of full length if `lone`.
    pub(super) fn prefix(&mut self, text: &PrefixText, place: &Place, lone: bool) -> Option<IpNet> {
        let parsed = match text.0.parse::<IpAddr>() {
            Ok(address) if lone => Some(IpNet::from(address)),
            _ => text.0.parse::<IpNet>().ok(),
        };
        if parsed.is_none() {
            self.error(place, Mistake::Unparsable { text: text.0.clone(), expected: PrefixText::EXPECTED });
        }
        parsed
    }

    /// A prefix without host bits.
    pub(super) fn network_prefix(&mut self, text: &PrefixText, place: &Place, lone: bool) -> Option<IpNet> {
        let prefix = self.prefix(text, place, lone)?;
        if prefix != prefix.trunc() {
            self.error(place, Mistake::HostBits { prefix });
            return None;
        }
        Some(prefix)
    }

    /// A station's MAC address.
    pub(super) fn mac(&mut self, text: &MacText, place: &Place) -> Option<[u8; 6]> {
        let parts: Vec<&str> = text.0.split([':', '-']).collect();
        let bytes: Option<Vec<u8>> = parts
            .iter()
            .map(|part| {
                let hex = (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                if hex { u8::from_str_radix(part, 16).ok() } else { None }
            })
            .collect();
        let Some(mac) = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) else {
            self.error(place, Mistake::Unparsable { text: text.0.clone(), expected: MacText::EXPECTED });
            return None;
        };
        let kind = match mac {
            [0, 0, 0, 0, 0, 0] => "all zero",
            [first, ..] if first & 1 == 1 => "a group address",
            _ => return Some(mac),
        };
        self.error(place, Mistake::NotStation { mac: text.0.clone(), kind });
        None
    }

    /// A duration within `range`, or the default. Whole milliseconds count.
    pub(super) fn duration(
        &mut self,
        text: Option<&DurationText>,
        place: &Place,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(text) = text else { return default };
        let Ok(duration) = humantime::parse_duration(text.0.trim()) else {
            self.error(place, Mistake::Unparsable { text: text.0.clone(), expected: DurationText::EXPECTED });
            return default;
        };
        if range.contains(&duration) {
            return duration;
        }
        let show = humantime::format_duration;
        let range = format!("{} to {}", show(*range.start()), show(*range.end()));
        let mistake = match duration.is_zero() {
            true => Mistake::ZeroDuration { range },
            false => Mistake::OutOfRange { value: text.0.clone(), range },
        };
        self.error(place, mistake);
        default
    }

    /// A whole number of MiB within `range`, or the default.
    pub(super) fn mebibytes(
        &mut self,
        text: Option<&SizeText>,
        place: &Place,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some(text) = text else { return default };
        let Ok(size) = text.0.trim().parse::<ByteSize>() else {
            self.error(place, Mistake::Unparsable { text: text.0.clone(), expected: SizeText::EXPECTED });
            return default;
        };
        let (mebibytes, rest) = (size.as_u64() >> 20, size.as_u64() & 0xf_ffff);
        if rest != 0 || !range.contains(&mebibytes) {
            let range = format!("a whole number of MiB from {}MiB to {}MiB", range.start(), range.end());
            self.error(place, Mistake::OutOfRange { value: text.0.clone(), range });
            return default;
        }
        mebibytes
    }

    /// First and last of a number or range, both within `range`.
    pub(super) fn bounds(
        &mut self,
        value: &NumberOrRange,
        place: &Place,
        range: &RangeInclusive<u64>,
        expected: &'static str,
    ) -> Option<(u64, u64)> {
        let (first, last) = match value {
            NumberOrRange::Number(number) => (*number, *number),
            NumberOrRange::Range(text) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let digits = |text: &str| {
                    let text = text.trim();
                    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
                };
                let (Some(first), Some(last)) = (digits(first), digits(last)) else {
                    self.error(place, Mistake::Unparsable { text: text.clone(), expected });
                    return None;
                };
                (first, last)
            }
        };
        if let Some(value) = [first, last].into_iter().find(|value| !range.contains(value)) {
            let range = format!("{} to {}", range.start(), range.end());
            self.error(place, Mistake::OutOfRange { value: value.to_string(), range });
            return None;
        }
        if first > last {
            self.error(place, Mistake::BackwardRange { start: first, end: last });
            return None;
        }
        Some((first, last))
    }

    /// One port range.
    pub(super) fn port_range(&mut self, value: &NumberOrRange, place: &Place) -> Option<RangeInclusive<u16>> {
        let (first, last) = self.bounds(value, place, &PORTS, "a port or a range such as \"8000-8099\"")?;
        Some(u16::try_from(first).ok()?..=u16::try_from(last).ok()?)
    }

    /// A service's ports, sorted and merged.
    pub(super) fn ports(&mut self, set: &PortSet, place: &Place) -> Option<Ports> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        match set {
            PortSet::One(NumberOrRange::Range(word)) if word == "all" => return Some(Ports::All),
            PortSet::One(one) => ranges.push(self.port_range(one, place)?),
            PortSet::Several(several) => {
                let mut good = true;
                for (i, one) in several.iter().enumerate() {
                    let Some(range) = self.port_range(one, &place.at(i)) else {
                        good = false;
                        continue;
                    };
                    let common = |other: &RangeInclusive<u16>| {
                        let port = *range.start().max(other.start());
                        (range.contains(&port) && other.contains(&port)).then_some(port)
                    };
                    if let Some(port) = ranges.iter().find_map(common) {
                        self.error(&place.at(i), Mistake::RepeatedPort { port });
                    }
                    ranges.push(range);
                }
                if several.is_empty() {
                    self.error(place, Mistake::Empty { what: "at least one port" });
                }
                if !good {
                    return None;
                }
            }
        }
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*range.end().max(last.end());
                }
                _ => merged.push(range),
            }
        }
        (!merged.is_empty()).then_some(Ports::Ranges(merged))
    }
}

/// Port numbers; 0 is reserved (RFC 6335, section 6).
pub(super) const PORTS: RangeInclusive<u64> = 1..=65_535;
