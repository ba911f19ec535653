//! Messages in an order that networks rarely give them: what a unit may believe after each.

use super::*;
use crate::row::{Directives, Identity, Status};
use crate::source::Rank;
use crate::table::Table;
use weir_health_load::{Directive, Health};

const HOST: HostId = HostId(4);
const OTHER_UNIT: UnitId = UnitId(2);

/// A unit that hears of one host: from itself, or from another unit.
struct Hearing {
    unit: UnitEnd,
    claims: Claims,
    now: Moment,
    life: Incarnation,
    sequence: u64,
}

impl Hearing {
    fn new(life: u64) -> Self {
        Hearing {
            unit: UnitEnd::new(UnitSettings::new(UnitId(1), Incarnation(1))),
            claims: Claims { hosts: [HOST].into(), ..Claims::default() },
            now: Moment(1_000_000),
            life: Incarnation(life),
            sequence: 0,
        }
    }

    fn wait(&mut self, ms: u64) {
        let until = self.now.after(Duration::from_millis(ms));
        while let Some(due) = self.unit.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.unit.handle_timeout(self.now);
        }
        self.now = until;
    }

    fn says(&mut self, body: Body) -> Result<(), Refusal> {
        self.sequence += 1;
        let message = Message { host: HOST, incarnation: self.life, sequence: self.sequence, body };
        self.unit.handle(Origin::Host(&self.claims), message, self.now)
    }

    fn changes(&mut self, rows: &[Row]) -> Result<(), Refusal> {
        self.says(change(rows))
    }

    fn beats(&mut self, table: &Table) -> Result<(), Refusal> {
        let beat = beat(self.life, self.sequence + 1, table);
        self.says(Body::Heartbeat(vec![beat]))
    }

    fn is_told(&mut self, body: Body) -> Result<(), Refusal> {
        let message = Message { host: HOST, incarnation: self.life, sequence: self.sequence, body };
        self.unit.handle(Origin::Unit(OTHER_UNIT), message, self.now)
    }

    fn presence(&self) -> Presence {
        self.unit.host(HOST).unwrap().presence()
    }

    fn rows(&self) -> Vec<Row> {
        self.unit.host(HOST).unwrap().table().rows().cloned().collect()
    }

    /// Whom the unit asks for rows.
    fn asked(&mut self) -> Vec<Peer> {
        let sent = std::iter::from_fn(|| self.unit.poll_transmit());
        sent.filter(|(_, message)| message.body.kind() == crate::message::Kind::GetTable).map(|(to, _)| to).collect()
    }
}

fn row(application: u32, version: u64) -> Row {
    Row {
        application: ApplicationId(application),
        version,
        identity: Identity::default(),
        status: Status { health: Health::Healthy, load: 0, capacity: 9 },
        directives: Directives { target: Directive::Active, current: Directive::Active },
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::default();
    for row in rows {
        table.insert(row.clone());
    }
    table
}

fn generation(table: &Table) -> u64 {
    table.rows().map(|row| row.version).max().unwrap_or(0)
}

fn beat(life: Incarnation, sequence: u64, table: &Table) -> Beat {
    Beat {
        voucher: None,
        leaving: false,
        host: HOST,
        incarnation: life,
        sequence,
        generation: generation(table),
        digest: table.digest(),
        rows: table.len().try_into().unwrap(),
        interval_ms: 1_000,
        forward: false,
        name: None,
    }
}

fn change(rows: &[Row]) -> Body {
    let generation = rows.iter().map(|row| row.version).max().unwrap_or(0);
    Body::RowChange { generation, operations: rows.iter().cloned().map(Operation::Add).collect() }
}

/// A silent host of which this unit has missed version 2; version 3 has overtaken the heartbeat that tells so.
fn overtaken() -> Hearing {
    let mut hearing = Hearing::new(7);
    hearing.changes(&[row(1, 1)]).unwrap();
    hearing.beats(&table(&[row(1, 1)])).unwrap();
    assert_eq!(hearing.presence(), Presence::Live);
    hearing.wait(5_000);
    assert_eq!(hearing.presence(), Presence::Silent);
    hearing.changes(&[row(3, 3)]).unwrap();
    hearing.beats(&table(&[row(1, 1), row(2, 2)])).unwrap();
    hearing
}

#[test]
fn a_heartbeat_that_was_overtaken_does_not_make_wrong_rows_good() {
    let mut hearing = overtaken();
    assert_eq!(hearing.presence(), Presence::Silent);
    // Nor does a change after it.
    hearing.changes(&[row(4, 4)]).unwrap();
    assert_eq!(hearing.presence(), Presence::Silent);
    // The next heartbeat says that rows are missing, and which.
    let truth = table(&[row(1, 1), row(2, 2), row(3, 3), row(4, 4)]);
    hearing.beats(&truth).unwrap();
    assert_eq!(hearing.presence(), Presence::Silent);
    hearing.wait(100);
    assert_eq!(hearing.asked(), [Peer::Host(HOST)]);
    hearing.changes(&[row(2, 2)]).unwrap();
    assert_eq!((hearing.presence(), hearing.rows().len()), (Presence::Live, 4));
}

#[test]
fn a_heartbeat_that_was_overtaken_leaves_a_live_host_live() {
    let mut hearing = Hearing::new(7);
    hearing.changes(&[row(1, 1)]).unwrap();
    hearing.beats(&table(&[row(1, 1)])).unwrap();
    hearing.changes(&[row(2, 2)]).unwrap();
    hearing.beats(&table(&[row(1, 1)])).unwrap();
    assert_eq!(hearing.presence(), Presence::Live);
    hearing.wait(1_000);
    assert_eq!(hearing.asked(), []);
}

/// Another unit's copy of the host, whole.
fn copy(hearing: &Hearing, table: &Table) -> Body {
    let (unit, unit_incarnation) = hearing.unit.unit();
    Body::Table {
        unit,
        unit_incarnation,
        generation: generation(table),
        digest: table.digest(),
        total: table.len().try_into().unwrap(),
        bits: 0,
        chunks: 1,
        rows: table.rows().cloned().collect(),
    }
}

#[test]
fn rows_from_another_unit_make_no_host_live() {
    let mut hearing = Hearing::new(7);
    let truth = table(&[row(1, 1), row(2, 2)]);
    // The host's last words, which were under way when this unit started.
    hearing.is_told(change(&[row(2, 2)])).unwrap();
    hearing.wait(10);
    assert_eq!(hearing.asked(), [Peer::Unit(OTHER_UNIT)]);
    hearing.is_told(copy(&hearing, &truth)).unwrap();
    assert_eq!((hearing.presence(), hearing.rows().len()), (Presence::Expected, 2));
    hearing.wait(4_000);
    assert_eq!(hearing.presence(), Presence::Silent);
    // It was not dead after all.
    hearing.beats(&truth).unwrap();
    assert_eq!(hearing.presence(), Presence::Live);
}

#[test]
fn rows_of_a_next_life_do_not_make_a_silent_host_live() {
    let mut hearing = Hearing::new(7);
    hearing.beats(&Table::default()).unwrap();
    // It is heard all the time, but silent: it does not give the row that it has.
    for _ in 0..5 {
        hearing.wait(1_000);
        hearing.beats(&table(&[row(1, 1)])).unwrap();
    }
    assert_eq!(hearing.presence(), Presence::Silent);
    (hearing.life, hearing.sequence) = (Incarnation(8), 0);
    let truth = table(&[row(5, 1)]);
    hearing.is_told(change(&[row(5, 1)])).unwrap();
    hearing.is_told(copy(&hearing, &truth)).unwrap();
    assert_eq!((hearing.presence(), hearing.rows()), (Presence::Silent, vec![row(5, 1)]));
    hearing.beats(&truth).unwrap();
    assert_eq!(hearing.presence(), Presence::Live);
}

#[test]
fn a_source_of_which_only_rows_were_heard_takes_nobodys_place() {
    let (best, second) = (Rank::new(0).unwrap(), Rank::new(1).unwrap());
    let mut hearing = Hearing::new(0);
    hearing.life = second.life(7);
    hearing.is_told(change(&[])).unwrap();
    hearing.life = best.life(7);
    let beat = Beat { interval_ms: 100, ..beat(hearing.life, 1, &Table::default()) };
    hearing.says(Body::Heartbeat(vec![beat])).unwrap();
    assert_eq!(hearing.presence(), Presence::Live);
    hearing.wait(400);
    assert_eq!((hearing.presence(), hearing.unit.host(HOST).unwrap().rank()), (Presence::Silent, best));
}

/// A host that said goodbye a while ago.
fn gone() -> Hearing {
    let mut hearing = Hearing::new(7);
    hearing.changes(&[row(1, 1)]).unwrap();
    hearing.beats(&table(&[row(1, 1)])).unwrap();
    hearing.says(Body::Goodbye).unwrap();
    hearing.wait(5_000);
    assert_eq!((hearing.presence(), hearing.rows()), (Presence::Gone, vec![]));
    hearing
}

#[test]
fn a_goodbye_does_not_count_for_the_next_life() {
    let mut hearing = gone();
    hearing.unit.handle_unit_up(OTHER_UNIT, hearing.now);
    (hearing.life, hearing.sequence) = (Incarnation(8), 0);
    hearing.changes(&[row(2, 1)]).unwrap();
    assert_eq!((hearing.presence(), hearing.rows()), (Presence::Expected, vec![row(2, 1)]));
    let sent: Vec<_> = std::iter::from_fn(|| hearing.unit.poll_transmit()).collect();
    assert!(sent.iter().any(|(to, said)| (to, &said.body) == (&Peer::Unit(OTHER_UNIT), &change(&[row(2, 1)]))));
    // It is waited for as any other that is new, and asked for the rows that are missing.
    hearing.wait(10);
    assert_eq!((hearing.presence(), hearing.asked()), (Presence::Expected, vec![Peer::Host(HOST)]));
    hearing.beats(&table(&[row(2, 1)])).unwrap();
    assert_eq!(hearing.presence(), Presence::Live);
}

#[test]
fn a_goodbye_counts_for_its_own_life_whatever_comes_late() {
    let mut hearing = gone();
    hearing.changes(&[row(2, 2)]).unwrap_err();
    assert_eq!((hearing.presence(), hearing.rows()), (Presence::Gone, vec![]));
    // A next life of which nothing but its end is heard.
    hearing.life = Incarnation(8);
    hearing.says(Body::Goodbye).unwrap();
    hearing.changes(&[row(2, 2)]).unwrap_err();
    assert_eq!((hearing.presence(), hearing.rows()), (Presence::Gone, vec![]));
}

#[test]
fn every_other_unit_is_asked_in_its_turn() {
    for (direct, through) in [(false, None), (false, Some(UnitId(90))), (true, Some(UnitId(90)))] {
        let mut cached = CachedHost::new(direct, Moment(0));
        cached.through = through;
        for count in 1..=6 {
            let way = |attempt| cached.way(HOST, attempt, |round| Some(UnitId(round % count)));
            let asked: Vec<Peer> = (0..3 * count).filter_map(way).collect();
            assert!((0..count).all(|unit| asked.contains(&Peer::Unit(UnitId(unit)))), "{asked:?}");
            assert_eq!(asked.contains(&Peer::Host(HOST)), direct);
        }
    }
}
