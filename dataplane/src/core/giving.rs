//! How a core gives a shard or classifier away to someone who may have stopped waiting: it arrives, or it stays where it is.
//!
//! A channel alone loses what is sent in the moment in which the receiver gives up. Here both ends first settle, by one atomic word, which
//! of them was earlier: no value is on its way unless its receiver is bound to wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

/// Both ends of a way for one value.
#[must_use]
pub fn giving<T>() -> (Giver<T>, Taker<T>) {
    let (to, from) = bounded(1);
    let state = Arc::new(AtomicU8::new(OPEN));
    (Giver { state: Arc::clone(&state), to }, Taker { state, from })
}

/// The end of the core that has the value.
#[derive(Debug)]
pub struct Giver<T> {
    /// Written once: by this end as it gives, or by the other as it gives up.
    state: Arc<AtomicU8>,
    to: Sender<T>,
}

/// The end of whoever wants it.
#[derive(Debug)]
pub struct Taker<T> {
    state: Arc<AtomicU8>,
    from: Receiver<T>,
}

impl<T> Giver<T> {
    /// Gives the value away.
    ///
    /// # Errors
    ///
    /// The value itself, if nobody waits for it any more.
    pub fn give(self, value: T) -> Result<(), T> {
        if !settle(&self.state, GIVEN) {
            return Err(value);
        }
        // The other end is there: it goes only by giving up first.
        self.to.send(value).map_err(crossbeam::channel::SendError::into_inner)
    }
}

impl<T> Taker<T> {
    /// Waits for the value; `None` if it has not been given in that time, and then it stays where it is, or if there is nothing to give.
    #[must_use]
    pub fn take(self, patience: Duration) -> Option<T> {
        if let Ok(value) = self.from.recv_timeout(patience) {
            return Some(value);
        }
        if settle(&self.state, GIVEN_UP) {
            return None;
        }
        // The giver was earlier: the value is there, or a moment away. Without one the giver has gone.
        self.from.recv().ok()
    }
}

impl<T> Drop for Taker<T> {
    fn drop(&mut self) {
        settle(&self.state, GIVEN_UP);
    }
}

/// Decides an open question; false if it was decided before.
fn settle(state: &AtomicU8, to: u8) -> bool {
    state.compare_exchange(OPEN, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

const OPEN: u8 = 0;
const GIVEN: u8 = 1;
const GIVEN_UP: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_is_given_too_late_stays() {
        let (giver, taker) = giving();
        assert_eq!(taker.take(Duration::ZERO), None);
        assert_eq!(giver.give(Box::new(7)), Err(Box::new(7)));
        let (giver, taker) = giving();
        drop(taker);
        assert_eq!(giver.give(7), Err(7));
        let (giver, taker) = giving();
        assert_eq!(giver.give(7), Ok(()));
        assert_eq!(taker.take(Duration::ZERO), Some(7));
    }

    #[test]
    fn who_gives_nothing_keeps_nobody_waiting() {
        let (giver, taker) = giving::<u8>();
        drop(giver);
        assert_eq!(taker.take(Duration::MAX), None);
    }

    #[test]
    fn in_a_race_exactly_one_end_has_it() {
        let (mut given, mut kept) = (0, 0);
        for round in 0..2_000u32 {
            let (giver, taker) = giving();
            let thread = thread::spawn(move || giver.give(round));
            // No patience at all, or too little: the two are as close as threads can be.
            let taken = taker.take(Duration::from_nanos(u64::from(round % 64) * 1000));
            let back = thread.join().unwrap();
            match (taken, back) {
                (Some(value), Ok(())) if value == round => given += 1,
                (None, Err(value)) if value == round => kept += 1,
                other => panic!("{round} has been lost or doubled: {other:?}"),
            }
        }
        assert_eq!(given + kept, 2_000);
    }
}
