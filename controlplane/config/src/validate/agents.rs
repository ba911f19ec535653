//! The section `agents`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use weir_identity::UnitId;

use super::{Check, Seen};
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw;
use crate::types::{Agents, Unit};

/// Checks where agents connect, and the other units.
pub(super) fn agents(check: &mut Check, here: &Place, raw: &raw::Agents, own: &Unit) -> Option<Agents> {
    let listen = socket_address(check, raw.listen.as_ref(), &here.key("listen"));
    let keys = raw.keys.clone().unwrap_or_else(|| "/etc/weir/keys".to_owned());
    if !keys.starts_with('/') || keys.contains('\0') {
        check.error(&here.key("keys"), Mistake::Unparsable { text: keys.clone(), expected: "an absolute path" });
    }
    let checks = raw.checks.as_ref().and_then(|text| socket_address(check, Some(text), &here.key("checks")));
    let http = raw.http.as_ref().and_then(|text| socket_address(check, Some(text), &here.key("http")));
    let mut seen = Seen::default();
    let mut peers = BTreeMap::new();
    for (i, raw) in raw.peers.iter().flatten().enumerate() {
        let place = here.key("peers").at(i);
        let unit = check.id(raw.unit, &place.key("unit"));
        let address = socket_address(check, raw.listen.as_ref(), &place.key("listen"));
        let (Some(unit), Some(address)) = (unit, address) else { continue };
        if unit == own.id.0 {
            check.error(&place.key("unit"), Mistake::PeerIsSelf { unit });
        } else if check.unique(&mut seen, unit, &place.key("unit"), "peer") {
            peers.insert(UnitId(unit), address);
        }
    }
    Some(Agents { listen: listen?, keys: PathBuf::from(keys), checks, http, peers })
}

fn socket_address(check: &mut Check, text: Option<&String>, place: &Place) -> Option<SocketAddr> {
    const WHAT: &str = "an address with a port, such as 192.0.2.1:7300 or [2001:db8::1]:7300";
    let text = check.required(text, place, WHAT)?;
    let parsed = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    if parsed.is_none() {
        check.error(place, Mistake::Unparsable { text: text.clone(), expected: WHAT });
    }
    parsed
}
