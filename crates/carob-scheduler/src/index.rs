//! Nodes by score: the best is found, and one node's score changed, without looking at the others.

use std::collections::BTreeMap;

use crate::snapshot::NodeSlot;

/// A node's score and its place among those that score the same.
#[derive(Clone, Copy, Debug)]
struct Place {
    score: i64,
    /// [`NOWHERE`] for nodes without a score.
    at: u32,
}

const NOWHERE: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(crate) struct ScoreIndex {
    by_score: BTreeMap<i64, Vec<NodeSlot>>,
    /// By slot.
    places: Vec<Place>,
}

impl ScoreIndex {
    /// Gives a node a score, or none.
    pub(crate) fn set(&mut self, slot: NodeSlot, score: Option<i64>) {
        if self.places.len() <= slot.index() {
            self.places.resize(slot.index() + 1, Place { score: 0, at: NOWHERE });
        }
        let held = self.places[slot.index()];
        if (held.at != NOWHERE).then_some(held.score) == score {
            return;
        }
        if held.at != NOWHERE {
            self.remove(held);
        }
        self.places[slot.index()].at = NOWHERE;
        if let Some(score) = score {
            let same = self.by_score.entry(score).or_default();
            let at = u32::try_from(same.len()).expect("slots are numbered by u32");
            same.push(slot);
            self.places[slot.index()] = Place { score, at };
        }
    }

    /// The scores from the highest on, each with all nodes that have it, in no particular order.
    pub(crate) fn best_first(&self) -> impl Iterator<Item = (i64, &[NodeSlot])> {
        self.by_score.iter().rev().map(|(score, slots)| (*score, &**slots))
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.places.capacity() * (size_of::<Place>() + size_of::<NodeSlot>())
    }

    fn remove(&mut self, place: Place) {
        let same = self.by_score.get_mut(&place.score).expect("a place names a score in use");
        same.swap_remove(place.at as usize);
        if let Some(moved) = same.get(place.at as usize) {
            self.places[moved.index()] = place;
        }
        if same.is_empty() {
            self.by_score.remove(&place.score);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_right_after_any_change() {
        let mut index = ScoreIndex::default();
        let mut plain: BTreeMap<usize, i64> = BTreeMap::new();
        let mut random = 12345u64;
        for _ in 0..5000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (slot, score) = ((random >> 33) as usize % 40, (random >> 50) as i64 % 12);
            let score = (score != 0).then_some(score);
            index.set(NodeSlot::at(slot), score);
            match score {
                Some(score) => plain.insert(slot, score),
                None => plain.remove(&slot),
            };
            let mut expected: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
            for (slot, score) in &plain {
                expected.entry(-score).or_default().push(*slot);
            }
            let got = index.best_first().map(|(score, slots)| {
                let mut slots: Vec<usize> = slots.iter().map(|slot| slot.index()).collect();
                slots.sort_unstable();
                (-score, slots)
            });
            assert!(got.eq(expected));
        }
    }
}
