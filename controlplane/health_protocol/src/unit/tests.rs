//! Messages in an order that networks rarely give them: what a unit may believe after each.

use super::*;
use crate::row::{Directives, Identity, Status};
use crate::table::Table;
use weir_health_load::{Directive, Health};

const HOST: HostId = HostId(4);

/// A unit that hears of one host.
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
            claims: Claims { hosts: [HOST].into() },
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
