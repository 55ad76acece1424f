//! The queues of a priority level (apiserver `pkg/util/flowcontrol/fairqueuing`, `pkg/util/shufflesharding`).

use std::collections::{BTreeMap, VecDeque};

/// No flow has more queues: it is as many as 60 bits of its number choose (upstream's `MaxHashBits`) where there are two or more.
const HAND_MAX: usize = 60;

/// A request that waits.
pub(super) struct Waiter<W> {
    pub(super) id: u64,
    pub(super) seats: u32,
    pub(super) flow: u64,
    pub(super) who: W,
}

/// Queues that take turns. Only those are held that a request waits in: a level may have millions.
pub(super) struct Queues<W> {
    count: usize,
    filled: BTreeMap<usize, VecDeque<Waiter<W>>>,
    /// The queue whose turn is next, if a request waits in it.
    turn: usize,
    waiting: usize,
}

impl<W> Queues<W> {
    pub(super) fn new(count: usize) -> Self {
        Self { count, filled: BTreeMap::new(), turn: 0, waiting: 0 }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn len(&self, at: usize) -> usize {
        self.filled.get(&at).map_or(0, VecDeque::len)
    }

    /// Another number of queues is other queues. Those who wait are dealt to them, and stay even where there are none any more.
    pub(super) fn set_count(&mut self, count: usize) {
        if count == self.count {
            return;
        }
        let mut fresh = Self::new(count);
        for waiter in std::mem::take(&mut self.filled).into_values().flatten() {
            fresh.push(hand_of(waiter.flow, count, 1).first().copied().unwrap_or(0), waiter);
        }
        *self = fresh;
    }

    /// The shortest of the queues that a flow has, if there is any queue.
    pub(super) fn shortest(&self, flow: u64, hand: usize) -> Option<usize> {
        hand_of(flow, self.count, hand).into_iter().min_by_key(|at| self.len(*at))
    }

    pub(super) fn push(&mut self, at: usize, waiter: Waiter<W>) {
        self.filled.entry(at).or_default().push_back(waiter);
        self.waiting += 1;
    }

    pub(super) fn remove(&mut self, id: u64) {
        for queue in self.filled.values_mut() {
            let before = queue.len();
            queue.retain(|waiter| waiter.id != id);
            self.waiting -= before - queue.len();
        }
        self.filled.retain(|_, queue| !queue.is_empty());
    }

    /// The next queue that a request waits in.
    fn next(&self) -> Option<usize> {
        self.filled.range(self.turn..).chain(&self.filled).next().map(|(at, _)| *at)
    }

    pub(super) fn front(&self) -> Option<&Waiter<W>> {
        self.filled.get(&self.next()?)?.front()
    }

    pub(super) fn pop(&mut self) -> Option<Waiter<W>> {
        let at = self.next()?;
        let queue = self.filled.get_mut(&at)?;
        let waiter = queue.pop_front()?;
        if queue.is_empty() {
            self.filled.remove(&at);
        }
        self.turn = at + 1;
        self.waiting -= 1;
        Some(waiter)
    }
}

/// The queues of a flow: different ones, by its number.
fn hand_of(flow: u64, queues: usize, hand: usize) -> Vec<usize> {
    let hand = hand.min(queues).min(HAND_MAX);
    let (mut number, mut dealt, mut sorted) = (flow, Vec::with_capacity(hand), Vec::<usize>::with_capacity(hand));
    for left in (queues - hand + 1..=queues).rev() {
        let count = left as u64;
        let mut at = usize::try_from(number % count).unwrap_or(0);
        number /= count;
        // It counts the queues that are not dealt yet.
        let place = sorted.iter().take_while(|taken| {
            let is_below = **taken <= at;
            at += usize::from(is_below);
            is_below
        });
        let place = place.count();
        sorted.insert(place, at);
        dealt.push(at);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hands_are_of_different_queues_and_of_all_of_them() {
        for flow in [0, 7, 12_345_678, u64::MAX] {
            for (queues, hand, len) in [(64, 6, 6), (2, 6, 2), (0, 6, 0), (5, 5, 5), (usize::MAX, usize::MAX, HAND_MAX)]
            {
                let dealt = hand_of(flow, queues, hand);
                let unique: BTreeSet<usize> = dealt.iter().copied().collect();
                assert_eq!((dealt.len(), unique.len()), (len, len), "{flow} {queues} {hand}");
                assert!(dealt.iter().all(|at| *at < queues));
            }
        }
        // Every queue is the first of as many flows as every other one.
        let firsts: BTreeSet<usize> = (0..12).map(|flow| hand_of(flow, 4, 2)[0]).collect();
        let hands: BTreeSet<Vec<usize>> = (0..12).map(|flow| hand_of(flow, 4, 2)).collect();
        assert_eq!((firsts.len(), hands.len()), (4, 12));
    }

    #[test]
    fn as_many_queues_as_a_number_says_cost_nothing() {
        let mut queues = Queues::new(usize::MAX);
        for id in 0..3 {
            let at = queues.shortest(id << 40, usize::MAX).expect("there are queues");
            queues.push(at, Waiter { id, seats: 1, flow: id, who: () });
        }
        queues.remove(1);
        assert_eq!((queues.waiting(), queues.filled.len()), (2, 2));
        assert!(queues.pop().is_some() && queues.pop().is_some() && queues.pop().is_none());
        assert_eq!((queues.waiting(), queues.filled.len()), (0, 0));
    }
}
