//! One EAL for all tests of a binary: they run in threads of one process, and EAL starts once a process.

use parking_lot::Mutex;

use crate::eal::{Eal, EalError, EalOptions, MemoryMode};

/// EAL without huge pages, PCI and devices, started by whoever asks first.
///
/// # Panics
///
/// If EAL does not start: a test cannot go on then.
#[must_use]
pub fn test_eal() -> Eal {
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock();
    let options = EalOptions {
        program: "test".to_owned(),
        file_prefix: format!("test-{}", std::process::id()),
        memory: MemoryMode::NoHuge { mib: 256 },
        ..EalOptions::default()
    };
    match Eal::init(&options) {
        Ok(eal) => eal,
        Err(EalError::AlreadyRunning) => Eal::running().expect("it said so"),
        Err(error) => panic!("{error}"),
    }
}
