//! Rates of counters, each from two readings of which the older is kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Readings that are closer give no rate worth the name (kubelet's own stats provider waits as long).
const APART_MIN_NS: i64 = 1_000_000_000;
/// Counters that are remembered: containers and Pods of one node.
const COUNTERS_MAX: usize = 16_384;

#[derive(Clone, Copy)]
struct Reading {
    at_ns: i64,
    cpu_ns: u64,
    /// Billionths of a core.
    rate: Option<u64>,
}

/// By what the counter is of.
#[derive(Default)]
pub(in crate::server) struct Rates(Mutex<HashMap<String, Reading>>);

impl Rates {
    /// What the counter grew by per second since the reading before, in billionths of a core; `None` after the first.
    pub(super) fn note(&self, of: &str, at_ns: i64, cpu_ns: u64) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = all.get(of).copied() else {
            if all.len() >= COUNTERS_MAX {
                all.clear();
            }
            all.insert(of.to_owned(), Reading { at_ns, cpu_ns, rate: None });
            return None;
        };
        let apart = at_ns.saturating_sub(old.at_ns);
        if apart < APART_MIN_NS {
            return old.rate;
        }
        let grown = u128::from(cpu_ns.saturating_sub(old.cpu_ns));
        let rate = u128::try_from(apart).ok().map(|apart| grown * 1_000_000_000 / apart);
        let rate = rate.and_then(|rate| u64::try_from(rate).ok());
        all.insert(of.to_owned(), Reading { at_ns, cpu_ns, rate });
        rate
    }

    /// Forgets the counters that are gone.
    pub(super) fn keep(&self, there: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|of, _| there(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_takes_two_readings_apart() {
        const SECOND: i64 = 1_000_000_000;
        let rates = Rates::default();
        assert_eq!(rates.note("a", 0, 5), None);
        assert_eq!(rates.note("a", SECOND / 2, 9), None, "too close");
        assert_eq!(rates.note("a", 2 * SECOND, 1_000_000_005), Some(500_000_000));
        assert_eq!(rates.note("a", 2 * SECOND + 1, 7), Some(500_000_000), "the last rate stands");
        assert_eq!(rates.note("a", 4 * SECOND, 0), Some(0), "a counter that went back has not grown");
        rates.keep(|_| false);
        assert_eq!(rates.note("a", 9 * SECOND, 0), None);
    }
}
