//! Which key ends when, in tokio time. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Expiries {
    ends: HashMap<Arc<str>, Instant>,
    order: BTreeSet<(Instant, Arc<str>)>,
}

impl Expiries {
    /// Notes that `key` now ends at `end`, or that it no longer does.
    pub(crate) fn set(&mut self, key: &Arc<str>, end: Option<Instant>) {
        let old = match end {
            Some(end) => {
                self.order.insert((end, Arc::clone(key)));
                self.ends.insert(Arc::clone(key), end).filter(|old| *old != end)
            }
            None => self.ends.remove(key),
        };
        if let Some(old) = old {
            self.order.remove(&(old, Arc::clone(key)));
        }
    }

    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.order.first().map(|(end, _)| *end)
    }

    /// Up to `max` keys whose end is not after `now`.
    pub(crate) fn due(&self, now: Instant, max: usize) -> Vec<Arc<str>> {
        self.order.iter().take_while(|(end, _)| *end <= now).take(max).map(|(_, key)| Arc::clone(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_has_one_end_at_a_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut expiries = Expiries::default();
        expiries.set(&a, Some(at(5)));
        expiries.set(&b, Some(at(3)));
        expiries.set(&b, Some(at(3)));
        assert_eq!(expiries.earliest(), Some(at(3)));
        assert_eq!(expiries.due(at(4), 9), [Arc::clone(&b)]);
        expiries.set(&b, Some(at(7)));
        assert_eq!(expiries.earliest(), Some(at(5)), "the old end is forgotten");
        assert_eq!(expiries.due(at(9), 1), [Arc::clone(&a)], "earliest first, no more than asked for");
        expiries.set(&a, None);
        expiries.set(&b, None);
        assert_eq!(expiries.earliest(), None);
    }
}
