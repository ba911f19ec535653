//! How long an idle core may sleep: longer and longer, but never so long that a NIC's receive queue could run over meanwhile.

use std::time::Duration;

/// How long a receive queue lasts at a link's speed, with the smallest frames. Devices that do not say their speed are taken for
/// those of 10 Gbit/s.
#[must_use]
pub fn lasts(descriptors: u16, mbps: Option<u32>) -> Duration {
    let mbps = mbps.filter(|mbps| *mbps > 0).unwrap_or(UNKNOWN_MBPS);
    Duration::from_nanos(u64::from(descriptors) * SMALLEST_FRAME_BITS * 1000 / u64::from(mbps))
}

/// The sleeps of one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Naps {
    longest: Option<Duration>,
}

impl Default for Naps {
    fn default() -> Self {
        Self { longest: Some(LONGEST) }
    }
}

impl Naps {
    /// Keeps to half the time that one more receive queue lasts, less what waking up takes.
    pub fn watch(&mut self, lasts: Duration) {
        let limit = (lasts / 2).checked_sub(WAKING).filter(|limit| *limit >= WORTHWHILE);
        self.longest = self.longest.zip(limit).map(|(longest, limit)| longest.min(limit));
    }

    /// Whether some queue bounds the sleep below what it is without: then the kernel has to keep the time exactly.
    #[must_use]
    pub fn bounded(&self) -> bool {
        self.longest.is_some_and(|longest| longest < LONGEST)
    }

    /// How long to sleep after so many turns without work; `None`: not at all, since some queue would not last.
    #[must_use]
    pub fn after(&self, turns: u32) -> Option<Duration> {
        let wanted = SHORTEST.saturating_mul(1 << (turns / 4).min(8));
        self.longest.map(|longest| wanted.min(longest))
    }
}

/// On the wire: 64 bytes, preamble, and the gap between frames.
const SMALLEST_FRAME_BITS: u64 = (64 + 8 + 12) * 8;
const UNKNOWN_MBPS: u32 = 10_000;
const SHORTEST: Duration = Duration::from_micros(10);
const LONGEST: Duration = Duration::from_micros(200);
/// From the end of a sleep to the first packet taken, on a CPU that does not sink into its deepest sleep.
const WAKING: Duration = Duration::from_micros(20);
/// A shorter sleep costs more than it saves.
const WORTHWHILE: Duration = Duration::from_micros(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn with(queues: &[(u16, u32)]) -> Naps {
        let mut naps = Naps::default();
        queues.iter().for_each(|&(descriptors, mbps)| naps.watch(lasts(descriptors, Some(mbps))));
        naps
    }

    #[test]
    fn a_queue_lasts_as_long_as_line_rate_needs_to_fill_it() {
        // 14.88 and 148.8 million packets a second.
        assert_eq!(lasts(1488, Some(10_000)).as_micros(), 99);
        assert_eq!(lasts(1488, Some(100_000)).as_nanos(), 9_999);
        assert_eq!(lasts(1024, None), lasts(1024, Some(10_000)));
    }

    #[test]
    fn without_a_nic_sleeps_double_up_to_the_longest() {
        let naps = Naps::default();
        assert_eq!(
            [0, 3, 4, 8, 1000].map(|turns| naps.after(turns)),
            [10, 10, 20, 40, 200].map(|micros| Some(Duration::from_micros(micros)))
        );
        assert!(!naps.bounded());
    }

    #[test]
    fn no_sleep_lets_a_queue_run_over() {
        for mbps in [1_000, 10_000, 25_000, 100_000, 200_000] {
            for descriptors in [64, 256, 1024, 4096, 16_384] {
                let naps = with(&[(descriptors, mbps)]);
                let asleep = naps.after(u32::MAX).map_or(Duration::ZERO, |nap| nap + WAKING);
                assert!(asleep <= lasts(descriptors, Some(mbps)) / 2, "{descriptors} at {mbps} Mbit/s: {asleep:?}");
            }
        }
    }

    #[test]
    fn the_smallest_queue_decides() {
        assert_eq!(with(&[(1024, 1_000)]).after(100), Some(LONGEST), "0.7 ms at 1 Gbit/s");
        let ten = with(&[(1024, 10_000)]);
        assert!(ten.bounded() && ten.after(100).is_some_and(|nap| nap < Duration::from_micros(15)));
        assert_eq!(with(&[(1024, 1_000), (1024, 10_000)]), ten);
        // 6.9 microseconds: awake all the time, whatever the other queues are.
        assert_eq!(with(&[(1024, 100_000), (16_384, 1_000)]).after(100), None);
        assert!(with(&[(16_384, 100_000)]).after(100).is_some());
    }
}
