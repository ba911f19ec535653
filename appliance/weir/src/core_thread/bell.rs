//! How other threads wake a core that sleeps: a flag that says so, and an event that its sleep also waits for.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::sleep_flag::{SleepFlag, after_work};

/// One core's bell.
#[derive(Debug)]
pub(super) struct Bell {
    asleep: SleepFlag,
    event: Arc<OwnedFd>,
}

impl Bell {
    pub(super) fn new() -> Result<Self, Errno> {
        let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        Ok(Self { asleep: SleepFlag::new(), event })
    }

    /// What the core's sleep waits for.
    pub(super) fn event(&self) -> &Arc<OwnedFd> {
        &self.event
    }

    /// Says that the core is about to sleep; it has to look at its rings once more before it does.
    pub(super) fn fall_asleep(&self) {
        self.asleep.set();
    }

    /// Says that it is awake, and forgets that it was rung.
    pub(super) fn wake(&self) {
        self.asleep.clear();
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.event, &mut count);
    }

    /// Wakes the core whether it sleeps or not.
    pub(super) fn ring(&self) {
        // It can fail only when it has been rung 2^64 times without being heard.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }
}

/// Wakes those cores that sleep; work for them has been put into rings before.
#[inline]
pub(super) fn ring_sleepers(bells: &[Arc<Bell>]) {
    after_work();
    bells.iter().filter(|bell| bell.asleep.is_set()).for_each(|bell| bell.ring());
}
