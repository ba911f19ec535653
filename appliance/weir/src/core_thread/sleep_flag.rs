//! Whether a core sleeps, told so that work put into a ring is either seen by the core before it sleeps or its bringer sees it sleep.
//!
//! Both sides write one place and then read the other: the core its flag and then its rings, the other one the ring and then the flag.
//! A processor may let a read overtake the write before it, and then both would see what was before; the fences forbid that, on both
//! sides. The atomics come from the parent module, so that the test runs the same text under loom, which tries all interleavings.

use super::atomic::{AtomicBool, Ordering, fence};

/// One core's flag: the core writes, all others read.
#[derive(Debug)]
pub(super) struct SleepFlag(AtomicBool);

impl SleepFlag {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Says that the core is about to sleep; afterwards it has to look at its rings once more.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the core may sleep; to be asked after [`after_work`].
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// To be called once between putting work into rings and looking at the flags of those that it may be for.
#[inline]
pub(super) fn after_work() {
    fence(Ordering::SeqCst);
}
