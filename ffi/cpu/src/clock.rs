//! Clocks for the drivers and the counters: the cycle counter, and the CPU time a thread has used.

use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time-stamp counter now: ticks at [`tsc_hz`], the same on all cores of a machine with an invariant TSC.
#[inline(always)]
#[must_use]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: RDTSC is in x86-64's baseline and reads a counter; Linux leaves it open to user space.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        nanoseconds(ClockId::Monotonic)
    }
}

/// Ticks of [`tsc`] per second. The first call measures for 20 ms against `CLOCK_MONOTONIC`; later ones return what it found.
#[must_use]
pub fn tsc_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let (first_tick, first_time) = simultaneous();
        loop {
            let (tick, time) = simultaneous();
            let elapsed = time - first_time;
            if elapsed >= CALIBRATION_NANOSECONDS {
                let hz = u128::from(tick - first_tick) * 1_000_000_000 / u128::from(elapsed);
                return u64::try_from(hz).unwrap_or(u64::MAX);
            }
            std::hint::spin_loop();
        }
    })
}

/// The CPU time that the calling thread has used since it began, in user and kernel mode.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ThreadCPUTime))
}

const CALIBRATION_NANOSECONDS: u64 = 20_000_000;

/// One reading of both clocks: of several tries the one that was interrupted least.
fn simultaneous() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..5 {
        let before = tsc();
        let time = nanoseconds(ClockId::Monotonic);
        let spread = tsc().wrapping_sub(before);
        if spread < best.0 {
            best = (spread, before + spread / 2, time);
        }
    }
    (best.1, best.2)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither clock is ever negative.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_runs_at_the_measured_rate() {
        let hz = tsc_hz();
        assert!((100_000_000..20_000_000_000).contains(&hz), "{hz}");
        let (tick, time) = simultaneous();
        let (mut later_tick, mut later_time) = (tick, time);
        while later_time - time < 30_000_000 {
            (later_tick, later_time) = simultaneous();
        }
        let measured = u128::from(later_tick - tick) * 1_000_000_000 / u128::from(later_time - time);
        let error = measured.abs_diff(u128::from(hz)) * 100 / u128::from(hz);
        assert!(error < 2, "{measured} Hz against {hz} Hz");
    }

    #[test]
    fn cpu_time_grows_with_work_and_never_shrinks() {
        let start = thread_cpu_time();
        let mut sum = 0_u64;
        while thread_cpu_time() - start < Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }
}
