//! Whether something has to be reclaimed now, and what is told of the node (kubelet `pkg/kubelet/eviction`, synchronize). Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::thresholds::{EvictionConfig, Pressure, Signal, Threshold};

/// What there is of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

pub type Observations = BTreeMap<Signal, Observation>;

/// What is to be reclaimed, by which threshold and observation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shortage {
    pub threshold: Threshold,
    pub observation: Observation,
}

/// What follows from a look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    pub pressures: BTreeSet<Pressure>,
    pub shortage: Option<Shortage>,
}

/// What earlier looks have seen.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Since when the threshold of this place in the configuration has been met.
    met_since: BTreeMap<usize, Timestamp>,
    /// Those whose grace was over, and that are not through with their reclaim.
    reclaiming: BTreeSet<usize>,
    last_seen: BTreeMap<Pressure, Timestamp>,
}

impl Memory {
    /// Looks at what there is `now`.
    pub fn look(&mut self, config: &EvictionConfig, observations: &Observations, now: Timestamp) -> Verdict {
        let mut met = BTreeMap::new();
        for (index, threshold) in config.thresholds.iter().enumerate() {
            let Some(observation) = observations.get(&threshold.signal) else { continue };
            let mut needed = threshold.amount.of(observation.capacity);
            if self.reclaiming.contains(&index) {
                needed = needed.saturating_add(threshold.reclaim.of(observation.capacity));
            }
            if observation.available < needed {
                met.insert(index, (*threshold, *observation));
            }
        }
        self.met_since.retain(|index, _| met.contains_key(index));
        for (index, (threshold, _)) in &met {
            self.met_since.entry(*index).or_insert(now);
            self.last_seen.insert(threshold.signal.pressure(), now);
        }
        self.last_seen.retain(|_, seen| *seen >= now || crate::plan::after(*seen, config.transition) > now);
        let over = |index: &usize, threshold: &Threshold| {
            self.met_since.get(index).is_some_and(|since| crate::plan::after(*since, threshold.grace) <= now)
        };
        let due: BTreeMap<usize, (Threshold, Observation)> =
            met.into_iter().filter(|(index, (threshold, _))| over(index, threshold)).collect();
        self.reclaiming = due.keys().copied().collect();
        // Memory first: its want kills at random.
        let first = due.values().min_by_key(|(threshold, _)| threshold.signal != Signal::MemoryAvailable);
        Verdict {
            pressures: self.last_seen.keys().copied().collect(),
            shortage: first
                .map(|(threshold, observation)| Shortage { threshold: *threshold, observation: *observation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::eviction::thresholds::parse;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("within the calendar")
    }

    fn seen(memory: u64, disk: u64) -> Observations {
        let of = |available| Observation { available, capacity: 1000 };
        BTreeMap::from([(Signal::MemoryAvailable, of(memory)), (Signal::NodefsAvailable, of(disk))])
    }

    #[test]
    fn thresholds_are_met_with_their_grace_and_left_with_their_reclaim() {
        let thresholds =
            parse("nodefs.available<10%", "memory.available<200", "memory.available=30s", "nodefs.available=50");
        let config = EvictionConfig { thresholds: thresholds.expect("parsed"), transition: Duration::from_secs(60) };
        let mut memory = Memory::default();
        let mut look = |second, observations: Observations| {
            let verdict = memory.look(&config, &observations, at(second));
            let signal = verdict.shortage.map(|shortage| shortage.threshold.signal);
            (verdict.pressures.into_iter().collect::<Vec<_>>(), signal)
        };
        assert_eq!(look(0, seen(500, 500)), (vec![], None));
        assert_eq!(look(10, seen(100, 500)), (vec![Pressure::Memory], None), "the grace runs");
        assert_eq!(look(40, seen(100, 500)), (vec![Pressure::Memory], Some(Signal::MemoryAvailable)));
        assert_eq!(
            look(50, seen(100, 99)),
            (vec![Pressure::Memory, Pressure::Disk], Some(Signal::MemoryAvailable)),
            "memory goes first"
        );
        assert_eq!(look(60, seen(500, 120)), (vec![Pressure::Memory, Pressure::Disk], Some(Signal::NodefsAvailable)));
        assert_eq!(look(70, seen(500, 150)), (vec![Pressure::Memory, Pressure::Disk], None), "reclaimed and more");
        assert_eq!(look(80, seen(500, 120)), (vec![Pressure::Memory, Pressure::Disk], None));
        assert_eq!(look(115, seen(500, 500)), (vec![Pressure::Disk], None), "conditions last a while");
        assert_eq!(look(200, seen(500, 500)), (vec![], None));
    }
}
