//! Nodes by score: the best is found, and one node's score changed, without looking at the others.

use std::collections::BTreeMap;

use crate::snapshot::NodeSlot;

#[derive(Debug, Default)]
pub(crate) struct ScoreIndex {
    by_score: BTreeMap<i64, Vec<NodeSlot>>,
    /// Per slot: its score and its place among those that score the same.
    places: Vec<Option<(i64, usize)>>,
    len: usize,
}

impl ScoreIndex {
    /// How many nodes have a score.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives a node a score, or none.
    pub(crate) fn set(&mut self, slot: NodeSlot, score: Option<i64>) {
        if self.places.len() <= slot.index() {
            self.places.resize(slot.index() + 1, None);
        }
        if self.places[slot.index()].map(|(held, _)| held) == score {
            return;
        }
        if let Some((held, at)) = self.places[slot.index()].take() {
            self.remove(held, at);
        }
        if let Some(score) = score {
            let same = self.by_score.entry(score).or_default();
            same.push(slot);
            self.places[slot.index()] = Some((score, same.len() - 1));
            self.len += 1;
        }
    }

    /// The highest score and all nodes that have it, in no particular order.
    pub(crate) fn best(&self) -> Option<(i64, &[NodeSlot])> {
        self.by_score.last_key_value().map(|(score, slots)| (*score, &**slots))
    }

    fn remove(&mut self, score: i64, at: usize) {
        let same = self.by_score.get_mut(&score).expect("a place names a score in use");
        same.swap_remove(at);
        if let Some(moved) = same.get(at) {
            self.places[moved.index()] = Some((score, at));
        }
        if same.is_empty() {
            self.by_score.remove(&score);
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_best_after_any_change() {
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
            let best = plain.values().max().copied();
            assert_eq!(index.best().map(|(score, _)| score), best);
            let count = plain.values().filter(|score| Some(**score) == best).count();
            assert_eq!(index.best().map_or(0, |(_, slots)| slots.len()), count);
            assert_eq!(index.len(), plain.len());
        }
    }
}
