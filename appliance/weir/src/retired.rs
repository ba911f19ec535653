//! What cores read and control replaces: the old values stay with control until no core has them, so that no core ever frees one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// A value that is replaced as a whole, and those that were replaced and may still be read.
#[derive(Debug)]
pub struct Published<T> {
    current: Arc<ArcSwap<T>>,
    /// With each whether nobody else had it when it was looked at last.
    retired: Mutex<Vec<(Arc<T>, bool)>>,
}

impl<T> Published<T> {
    /// Goes on with what cores read already.
    #[must_use]
    pub fn new(current: Arc<ArcSwap<T>>) -> Self {
        Self { current, retired: Mutex::default() }
    }

    /// What is read now.
    #[must_use]
    pub fn load_full(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Replaces it; the old value lives on until [`Published::free`] finds that nobody reads it.
    pub fn store(&self, new: T) {
        let old = self.current.swap(Arc::new(new));
        self.retired.lock().push((old, false));
    }

    /// Frees what nobody else has had twice in a row, on this thread; to be called now and then, for all that is given back.
    ///
    /// Twice, because a core that lets a value go may be a moment away from letting go what it had taken out of it.
    pub fn free(&self) {
        let mut retired = self.retired.lock();
        let alone_twice = |(value, alone): &mut (Arc<T>, bool)| {
            let was_alone = std::mem::replace(alone, Arc::strong_count(value) == 1);
            was_alone && *alone
        };
        let gone: Vec<_> = retired.extract_if(.., alone_twice).collect();
        drop(retired);
        drop(gone);
    }

    /// How many are kept that were replaced.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::ThreadId;

    use arc_swap::Cache;

    use super::*;

    /// Notes on which thread it is freed.
    struct Value(u32, Arc<Mutex<Vec<(u32, ThreadId)>>>);

    impl Drop for Value {
        fn drop(&mut self) {
            self.1.lock().push((self.0, std::thread::current().id()));
        }
    }

    #[test]
    fn what_readers_let_go_is_freed_here() {
        let freed = Arc::default();
        let value = |number| Value(number, Arc::clone(&freed));
        let current = Arc::new(ArcSwap::from_pointee(value(0)));
        let published = Arc::new(Published::new(Arc::clone(&current)));
        let (seen, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let reader = std::thread::spawn({
            let (seen, done) = (Arc::clone(&seen), Arc::clone(&done));
            let mut cache = Cache::new(current);
            move || {
                while done.load(Ordering::Acquire) == 0 {
                    seen.store(1 + cache.load().0 as usize, Ordering::Release);
                    std::thread::yield_now();
                }
                let last = Arc::clone(cache.load());
                drop(cache);
                last.0
            }
        });
        let read = |number| {
            while seen.load(Ordering::Acquire) != 1 + number {
                std::thread::yield_now();
            }
        };
        for number in 1..100 {
            read(number as usize - 1);
            published.store(value(number));
            published.free();
        }
        read(99);
        // The reader has the newest only.
        published.free();
        published.free();
        assert_eq!(published.retired(), 0);
        done.store(1, Ordering::Release);
        assert_eq!(reader.join().unwrap(), 99);
        let freed = freed.lock();
        assert_eq!(freed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..99).collect::<Vec<_>>());
        assert!(freed.iter().all(|(_, thread)| *thread == std::thread::current().id()));
    }

    #[test]
    fn what_is_read_stays() {
        let current = Arc::new(ArcSwap::from_pointee(1));
        let published = Published::new(Arc::clone(&current));
        let reader = published.load_full();
        published.store(2);
        (0..5).for_each(|_| published.free());
        assert_eq!((published.retired(), *published.load_full(), *reader), (1, 2, 1));
        drop(reader);
        published.free();
        assert_eq!(published.retired(), 1, "it was read the last time");
        published.free();
        assert_eq!(published.retired(), 0);
    }
}
