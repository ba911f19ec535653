//! Load without its spikes: how a host smooths what it tells, and how a handler knows what it cannot have been told yet.

use weir_identity::Moment;

/// A value that follows its samples with a time constant of 1 s upwards and 5 s downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smoothed {
    value: f64,
    at: Moment,
}

impl Smoothed {
    /// Begins at `value`.
    #[must_use]
    pub fn new(value: f64, now: Moment) -> Smoothed {
        Smoothed { value, at: now }
    }

    /// Follows `sample`, which has been so since the last one.
    pub fn follow(&mut self, sample: f64, now: Moment) -> f64 {
        if now > self.at {
            let constant = if sample > self.value { RISE } else { FALL };
            let passed = now.since(self.at).as_secs_f64();
            self.at = now;
            self.value += (sample - self.value) * (1.0 - (-passed / constant).exp());
        }
        self.value
    }

    /// Where it is.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.value
    }
}

/// Seconds until a step up has come through to 63 %.
const RISE: f64 = 1.0;
/// And one down.
const FALL: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_faster_than_it_falls() {
        let mut load = Smoothed::new(0.0, Moment(0));
        assert!((load.follow(1.0, Moment(1_000)) - 0.632).abs() < 0.001);
        assert_eq!(load.follow(9.0, Moment(1_000)), load.value(), "no time has passed");
        for tick in 1..=100 {
            load.follow(1.0, Moment(1_000 + tick * 100));
        }
        assert!(load.value() > 0.999);
        let fallen = load.follow(0.0, Moment(16_000));
        assert!((fallen - 0.368).abs() < 0.001, "{fallen}");
    }
}
