//! Real core threads with shards that have no queue: how they end.

use std::io::Write;

use parking_lot::Mutex;
use weir_config::Machine;
use weir_dataplane::flow::ToeplitzKey;
use weir_dataplane::shard::Twin;
use weir_health_load::SharedHandler;

use super::*;
use crate::allotments::Standings;
use crate::knowledge::Knowledge;
use crate::unit::Assembly;

const UNIT: &str = r#"
unit: { id: 1, name: cores }
dataplane: { cpus: [0], shards: 2, routes: { ipv4: 1024, ipv6: 1024 } }
ports: [{ name: net0, device: "net_ring0", addresses: [192.0.2.1/24] }]
"#;

/// Two shards and a classifier on one core, and whether a core failed.
fn start() -> (Cores, Arc<AtomicBool>) {
    let config = Arc::new(weir_config::check("test", UNIT, &Machine::default()).unwrap());
    let key = ToeplitzKey::from_seed(1);
    let mut knowledge = Knowledge::new(Arc::clone(&config), vec![[2; 6]], &key).unwrap();
    let generation = knowledge.next_generation();
    let farm = Arc::new(knowledge.farm());
    let standings = Standings::new(generation, knowledge.standings(), SharedHandler::default());
    let standings = Arc::new(ArcSwap::from_pointee(standings));
    let assembly = Assembly { config: &config, farm: Arc::clone(&farm), standings, seed: 1, key, burst: 32 };
    let (shards, seats) = assembly.assemble(|_, _| (Err(0), Twin::Itself), || Box::new(|| None)).unwrap();
    let failed = Arc::new(AtomicBool::new(false));
    let cores = Cores::start(&config, shards, seats, &Arc::new(ArcSwap::new(farm)), &failed).unwrap();
    (cores, failed)
}

#[test]
fn a_core_that_panics_is_named_at_the_end() {
    let (cores, failed) = start();
    assert_eq!(cores.visit(0, |_, _| -> u8 { panic!("of a test") }), Err(AskError::Silent(0)));
    assert_eq!(cores.stop(), Some(0));
    assert!(failed.load(Ordering::Acquire), "the control plane has to hear of it");
    assert_eq!(cores.stop(), None, "what has ended does not end again");
}

#[test]
fn a_clean_stop_warns_of_nothing() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::fmt().with_writer({
        let log = Arc::clone(&log);
        move || Log(Arc::clone(&log))
    });
    tracing::subscriber::with_default(subscriber.finish(), || {
        let (cores, failed) = start();
        assert_eq!(cores.visit(1, |shard, _| shard.number()), Ok(1));
        assert_eq!((cores.stop(), failed.load(Ordering::Acquire)), (None, false));
        drop(cores);
        warn!("and this is how a warning looks");
    });
    let log = String::from_utf8(std::mem::take(&mut *log.lock())).unwrap();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
}

/// Where a log is gathered.
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
