//! Any bytes as one kind of message: what is decoded is canonical, and no end of the protocol panics on it, whoever sends it.

#![no_main]

use std::collections::BTreeSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use weir_health_load::Directive;
use weir_health_protocol::{
    Claims, GroupEnd, GroupSettings, HostEnd, HostSettings, Identity, Origin, UnitEnd, UnitSettings, VERSION, decode, encode,
};
use weir_identity::{ApplicationId, HostId, Incarnation, Moment, UnitId};

/// This target's message, by its name.
const NAMES: [&str; 9] = [
    "heartbeat",
    "goodbye",
    "row-change",
    "get-table",
    "table",
    "postulate",
    "postulate-wrong",
    "postulate-right",
    "group",
];

fuzz_target!(|bytes: &[u8]| {
    let kind = NAMES.iter().position(|name| *name == env!("CARGO_BIN_NAME")).expect("a target is named as a message");
    let kind = u8::try_from(kind + 1).expect("there are nine");
    let bytes = [&[VERSION, kind, 0, 0], bytes].concat();
    let Ok(message) = decode(&bytes) else { return };
    assert_eq!(encode(&message), bytes);

    let (host, now) = (message.host, Moment(1_000));
    let claims = Claims { hosts: BTreeSet::from([host]), vouches: [("g".into(), vec![(HostId(0), HostId(100))])].into() };
    let mut unit = UnitEnd::new(UnitSettings::new(UnitId(1), Incarnation(1)));
    unit.handle_unit_up(UnitId(2), now);
    for (origin, now) in [(Origin::Host(&claims), now), (Origin::Unit(UnitId(2)), Moment(1_500)), (Origin::Host(&claims), Moment(9_000))] {
        let _ = unit.handle(origin, message.clone(), now);
        unit.handle_timeout(Moment(now.0 + 400));
        while unit.poll_transmit().is_some() {}
    }

    let settings = HostSettings { grouped: true, ..HostSettings::new(host) };
    let mut end = HostEnd::new(settings, message.incarnation, now);
    for application in (0..3).map(ApplicationId) {
        let _ = end.register(application, Identity::default(), 50, Directive::Active);
        let _ = end.direct(application, Directive::Draining, now);
    }
    end.handle_link_up(UnitId(1), now);
    let peers = BTreeSet::from([HostId(1), HostId(2), HostId(3)]);
    let settings = GroupSettings { group: "g".into(), host, peers, interval: Duration::from_secs(1) };
    let mut group = GroupEnd::new(settings, now);
    group.handle_link_up(HostId(2), now);
    for later in [0, 1_200, 2_500] {
        let now = Moment(now.0 + later);
        let _ = end.handle(UnitId(1), message.clone(), now);
        let _ = group.handle(HostId(2), message.clone(), now);
        group.handle_units(true, now);
        end.handle_timeout(now);
        group.handle_timeout(now);
        while let Some(out) = end.poll_transmit() {
            group.route(out, now);
        }
        while group.poll_transmit().is_some() {}
    }
});
