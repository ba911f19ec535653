//! How many of a port's packets come in at other shards than their flows': told in the log whenever that changes.

use std::time::Duration;

use tracing::info;
use weir_config::Config;
use weir_dataplane::shard::Share;
use weir_identity::Moment;

/// What was told last of each port.
#[derive(Debug, Default)]
pub struct Steering {
    last: Moment,
    ports: Vec<Told>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    seen: Share,
    percent: Option<u64>,
}

impl Steering {
    /// Looks at the ports now and then, in the order of the YAML.
    pub fn follow(&mut self, now: Moment, config: &Config, share: impl Fn(usize) -> Share) {
        if now.since(self.last) < EVERY || config.dataplane.shards < 2 {
            return;
        }
        self.last = now;
        self.ports.resize_with(config.ports.len(), Told::default);
        for (index, (port, told)) in config.ports.iter().zip(&mut self.ports).enumerate() {
            if let Some(percent) = told.news(share(index)) {
                info!(port = %port.name, "{percent} % of packets came in at another shard than their flow's and were handed over");
            }
        }
    }
}

impl Told {
    /// The share of foreign packets in percent since the last look, if there were enough of them and it is another than was told.
    fn news(&mut self, now: Share) -> Option<u64> {
        let received = now.received.saturating_sub(self.seen.received);
        let foreign = now.foreign.saturating_sub(self.seen.foreign);
        if received < ENOUGH {
            return None;
        }
        self.seen = now;
        let percent = foreign * 100 / received;
        let another = self.percent.is_none_or(|told| told.abs_diff(percent) >= NEWS);
        if another {
            self.percent = Some(percent);
        }
        another.then_some(percent)
    }
}

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// Packets of which a share says something.
const ENOUGH: u64 = 10_000;
/// Percents by which a share has to differ to be told again.
const NEWS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_told_when_it_changes() {
        let mut told = Told::default();
        let share = |received, foreign| Share { received, foreign };
        assert_eq!(told.news(share(9_999, 9_999)), None, "too few to say");
        assert_eq!(told.news(share(10_000, 5_000)), Some(50));
        assert_eq!(told.news(share(20_000, 10_900)), None, "59 of 100 is about the same");
        assert_eq!(told.news(share(30_000, 10_900)), Some(0));
        assert_eq!(told.news(share(40_000, 10_900)), None);
    }
}
