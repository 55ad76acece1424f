//! A map that forgets what was used longest ago.

use std::collections::{BTreeMap, HashMap};

/// At most `limit` values; the least recently used one makes room.
pub(super) struct Recent<V> {
    limit: usize,
    values: HashMap<u64, (u64, V)>,
    /// Key by time of use.
    uses: BTreeMap<u64, u64>,
    clock: u64,
}

impl<V> Recent<V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, values: HashMap::new(), uses: BTreeMap::new(), clock: 0 }
    }

    /// The value of `key`, made by `make` if there is none, counted as used now.
    pub(super) fn entry(&mut self, key: u64, make: impl FnOnce() -> V) -> &mut V {
        self.clock += 1;
        if let Some((used, _)) = self.values.get(&key) {
            self.uses.remove(used);
        } else if self.values.len() >= self.limit
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.uses.insert(self.clock, key);
        let slot = self.values.entry(key).or_insert_with(|| (0, make()));
        slot.0 = self.clock;
        &mut slot.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_value_makes_room() {
        let mut recent = Recent::new(2);
        *recent.entry(1, || 0) = 10;
        *recent.entry(2, || 0) = 20;
        assert_eq!(*recent.entry(1, || 0), 10);
        recent.entry(3, || 30);
        assert_eq!(*recent.entry(1, || -1), 10, "used a moment ago");
        assert_eq!(*recent.entry(2, || -1), -1, "was forgotten");
        assert_eq!(recent.values.len(), 2);
        assert_eq!(recent.uses.len(), 2);
    }
}
