//! The sleep flag once more on loom's atomics: every order in which two threads may see each other's writes is tried.

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}
#[expect(clippy::duplicate_mod, reason = "the same file, made of what loom offers")]
#[path = "sleep_flag.rs"]
mod sleep_flag;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use self::sleep_flag::{SleepFlag, after_work};

#[test]
fn work_is_seen_or_its_core_is_rung() {
    loom::model(|| {
        // A ring as its ends see it: how much has been put into it.
        let (ring, asleep) = (Arc::new(AtomicUsize::new(0)), Arc::new(SleepFlag::new()));
        let bringer = {
            let (ring, asleep) = (Arc::clone(&ring), Arc::clone(&asleep));
            thread::spawn(move || {
                ring.store(1, Ordering::Release);
                after_work();
                asleep.is_set()
            })
        };
        asleep.set();
        let seen = ring.load(Ordering::Acquire) == 1;
        let rung = bringer.join().unwrap();
        assert!(seen || rung, "the core sleeps, and nobody wakes it");
        asleep.clear();
    });
}
