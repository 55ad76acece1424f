//! Seats and queues (apiserver `pkg/util/flowcontrol/fairqueuing`). Pure: who waits is the caller's.
//!
//! Each level has seats of its own by its shares. Seats that it does not use and may lend, others take. Requests beyond wait in the
//! level's queues: a flow has a hand of them and enters the shortest, and queues take turns, so a flow that floods its hand
//! holds up few others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::{Beyond, Level, Limit};
use super::queues::{Queues, Waiter};

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The level queues nothing.
    Concurrency,
    QueueFull,
    Timeout,
}

impl Rejection {
    /// As the metrics name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::Timeout => "time-out",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Granted,
    /// The waiter is asked for when it is its turn.
    Queued(u64),
    Rejected(Rejection),
}

struct State<W> {
    limit: Limit,
    /// Seats by the level's shares, what of them may be lent, and what may be borrowed beside them.
    nominal: u32,
    lendable: u32,
    borrowable: u32,
    used: u32,
    queues: Queues<W>,
}

/// The seats of a server.
pub(super) struct Dispatch<W> {
    total: u32,
    levels: BTreeMap<String, State<W>>,
    last_id: u64,
}

/// A waiter whose turn it is; its seats are taken.
pub(super) struct Granted<W> {
    pub(super) level: String,
    pub(super) seats: u32,
    pub(super) who: W,
}

/// What one level does, for the metrics.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) level: String,
    pub(super) nominal: u32,
    pub(super) used: u32,
    pub(super) waiting: usize,
}

impl<W> Dispatch<W> {
    pub(super) fn new(total: u32) -> Self {
        Self { total, levels: BTreeMap::new(), last_id: 0 }
    }

    /// Takes over the levels. What is under way and what waits stays.
    pub(super) fn configure<'l>(&mut self, levels: impl Iterator<Item = &'l Arc<Level>>) {
        let limits: BTreeMap<&str, &Limit> =
            levels.filter_map(|level| Some((level.name.as_str(), level.limit.as_ref()?))).collect();
        let sum: u64 = limits.values().map(|limit| u64::from(limit.shares)).sum();
        self.levels
            .retain(|name, state| limits.contains_key(name.as_str()) || state.used > 0 || state.queues.waiting() > 0);
        for (name, limit) in limits {
            let seats = (u64::from(self.total) * u64::from(limit.shares)).div_ceil(sum.max(1));
            let nominal = u32::try_from(seats).unwrap_or(self.total);
            let percent =
                |percent: u32| u32::try_from(u64::from(nominal) * u64::from(percent) / 100).unwrap_or(self.total);
            let state = self.levels.entry(name.to_owned()).or_insert_with(|| State::new(limit.clone()));
            state.nominal = nominal;
            state.lendable = percent(limit.lendable_percent);
            state.borrowable = limit.borrowing_percent.map_or(self.total, percent);
            state.set_limit(limit);
        }
    }

    /// Asks for seats. `who` is kept if the request has to wait.
    pub(super) fn enter(&mut self, level: &str, flow: u64, seats: u32, who: impl FnOnce() -> W) -> Entered {
        let waits_already = self.levels.get(level).is_some_and(|state| state.queues.waiting() > 0);
        let seats = self.clamp(level, seats);
        if !waits_already && self.fits(level, seats) {
            self.take(level, seats);
            return Entered::Granted;
        }
        let id = self.last_id + 1;
        let Some(state) = self.levels.get_mut(level) else { return Entered::Granted };
        let entered = state.queue(Waiter { id, seats, flow, who: () }, who);
        if matches!(entered, Entered::Queued(_)) {
            self.last_id = id;
        }
        entered
    }

    /// No request needs more seats than its level has.
    pub(super) fn clamp(&self, level: &str, seats: u32) -> u32 {
        self.levels.get(level).map_or(seats, |state| seats.min(state.nominal.max(1)))
    }

    /// Gives seats back. Answers who is let in by that.
    pub(super) fn release(&mut self, level: &str, seats: u32) -> Vec<Granted<W>> {
        if let Some(state) = self.levels.get_mut(level) {
            state.used = state.used.saturating_sub(seats);
        }
        self.advance(level)
    }

    /// A waiter gave up. Answers who is let in by that.
    pub(super) fn give_up(&mut self, level: &str, id: u64) -> Vec<Granted<W>> {
        if let Some(state) = self.levels.get_mut(level) {
            state.queues.remove(id);
        }
        self.advance(level)
    }

    /// Lets in who fits: of the level that seats came back to first, then of those that may borrow them.
    pub(super) fn advance(&mut self, first: &str) -> Vec<Granted<W>> {
        let mut granted = Vec::new();
        let waiting = self.levels.iter().filter(|(name, state)| state.queues.waiting() > 0 && *name != first);
        let names: Vec<String> =
            std::iter::once(first.to_owned()).chain(waiting.map(|(name, _)| name.clone())).collect();
        for name in names {
            while let Some(seats) = self.levels.get(&name).and_then(State::next_seats) {
                if !self.fits(&name, seats) {
                    break;
                }
                let Some(waiter) = self.levels.get_mut(&name).and_then(|state| state.queues.pop()) else { break };
                self.take(&name, seats);
                granted.push(Granted { level: name.clone(), seats, who: waiter.who });
            }
        }
        granted
    }

    fn take(&mut self, level: &str, seats: u32) {
        if let Some(state) = self.levels.get_mut(level) {
            state.used = state.used.saturating_add(seats);
        }
    }

    /// Whether a level may have so many seats more: its own, or what others may lend and do not use.
    fn fits(&self, level: &str, seats: u32) -> bool {
        let Some(own) = self.levels.get(level) else { return true };
        let wanted = own.used.saturating_add(seats);
        if wanted > own.nominal.saturating_add(own.borrowable) {
            return false;
        }
        if wanted <= own.nominal {
            // What it has lent comes back when whoever has it is done.
            let used: u64 = self.levels.values().map(|state| u64::from(state.used)).sum();
            let reserve: u64 = self.levels.values().map(|state| u64::from(state.nominal)).sum();
            return used + u64::from(seats) <= reserve.max(u64::from(self.total));
        }
        let lent: u64 = self
            .levels
            .iter()
            .filter(|(name, _)| *name != level)
            .map(|(_, state)| u64::from(state.lendable.min(state.nominal.saturating_sub(state.used))))
            .sum();
        let borrowed: u64 = self
            .levels
            .iter()
            .filter(|(name, _)| *name != level)
            .map(|(_, state)| u64::from(state.used.saturating_sub(state.nominal)))
            .sum();
        borrowed + u64::from(wanted - own.nominal) <= lent
    }

    pub(super) fn usage(&self) -> Vec<Usage> {
        let one = |(name, state): (&String, &State<W>)| Usage {
            level: name.clone(),
            nominal: state.nominal,
            used: state.used,
            waiting: state.queues.waiting(),
        };
        self.levels.iter().map(one).collect()
    }
}

impl<W> State<W> {
    fn new(limit: Limit) -> Self {
        let queues = Queues::new(limit.beyond.queues());
        Self { limit, nominal: 0, lendable: 0, borrowable: 0, used: 0, queues }
    }

    fn set_limit(&mut self, limit: &Limit) {
        self.queues.set_count(limit.beyond.queues());
        self.limit = limit.clone();
    }

    fn queue(&mut self, waiter: Waiter<()>, who: impl FnOnce() -> W) -> Entered {
        let Beyond::Queue { hand, len_max, .. } = self.limit.beyond else {
            return Entered::Rejected(Rejection::Concurrency);
        };
        let Some(at) = self.queues.shortest(waiter.flow, hand) else {
            return Entered::Rejected(Rejection::Concurrency);
        };
        if self.queues.len(at) >= len_max {
            return Entered::Rejected(Rejection::QueueFull);
        }
        let Waiter { id, seats, flow, who: () } = waiter;
        self.queues.push(at, Waiter { id, seats, flow, who: who() });
        Entered::Queued(id)
    }

    /// The level may have become smaller since.
    fn next_seats(&self) -> Option<u32> {
        self.queues.front().map(|waiter| waiter.seats.min(self.nominal.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(name: &str, shares: u32, lendable_percent: u32, beyond: Beyond) -> Arc<Level> {
        let limit = Some(Limit { shares, lendable_percent, borrowing_percent: None, beyond });
        Arc::new(Level { name: name.to_owned(), uid: String::new(), limit })
    }

    const QUEUES: Beyond = Beyond::Queue { queues: 8, hand: 2, len_max: 3 };

    fn made(levels: &[Arc<Level>]) -> Dispatch<u32> {
        let mut dispatch = Dispatch::new(10);
        dispatch.configure(levels.iter());
        dispatch
    }

    fn granted(list: &[Granted<u32>]) -> Vec<u32> {
        list.iter().map(|one| one.who).collect()
    }

    #[test]
    fn levels_have_their_shares_and_lend_what_they_may() {
        let mut dispatch = made(&[level("a", 50, 0, Beyond::Reject), level("b", 50, 40, Beyond::Reject)]);
        for _ in 0..5 {
            assert_eq!(dispatch.enter("a", 0, 1, || 0), Entered::Granted);
        }
        // Two of b's five seats may be lent.
        assert_eq!(dispatch.enter("a", 0, 2, || 0), Entered::Granted);
        assert_eq!(dispatch.enter("a", 0, 1, || 0), Entered::Rejected(Rejection::Concurrency));
        for _ in 0..3 {
            assert_eq!(dispatch.enter("b", 0, 1, || 0), Entered::Granted);
        }
        assert_eq!(dispatch.enter("b", 0, 1, || 0), Entered::Rejected(Rejection::Concurrency), "the rest is lent");
        dispatch.release("a", 2);
        assert_eq!(dispatch.enter("b", 0, 2, || 0), Entered::Granted);
        assert_eq!(dispatch.enter("a", 0, 1, || 0), Entered::Rejected(Rejection::Concurrency), "b uses all of its own");
    }

    #[test]
    fn a_flow_that_floods_its_queues_does_not_hold_up_others() {
        let mut dispatch = made(&[level("a", 10, 0, QUEUES)]);
        assert_eq!(dispatch.enter("a", 1, 10, || 0), Entered::Granted);
        let mut queued = 0;
        let full = loop {
            match dispatch.enter("a", 1, 1, || 1) {
                Entered::Queued(_) => queued += 1,
                other => break other,
            }
        };
        assert_eq!((full, queued), (Entered::Rejected(Rejection::QueueFull), 6), "two queues of three");
        assert!(matches!(dispatch.enter("a", 60, 1, || 2), Entered::Queued(_)), "another flow has other queues");
        assert_eq!(granted(&dispatch.release("a", 3)), [1, 1, 2], "queues take turns");
        assert_eq!(dispatch.usage()[0].used, 10);
    }

    #[test]
    fn queues_take_turns() {
        let mut dispatch = made(&[level("a", 10, 0, Beyond::Queue { queues: 2, hand: 1, len_max: 9 })]);
        dispatch.enter("a", 0, 10, || 0);
        for who in [10, 11, 12] {
            dispatch.enter("a", 0, 10, || who);
        }
        dispatch.enter("a", 1, 10, || 20);
        let mut order = Vec::new();
        for _ in 0..4 {
            order.extend(granted(&dispatch.release("a", 10)));
        }
        assert_eq!(order, [10, 20, 11, 12]);
    }

    #[test]
    fn who_gives_up_lets_others_pass_and_a_change_of_levels_loses_nobody() {
        let mut dispatch = made(&[level("a", 10, 0, QUEUES)]);
        dispatch.enter("a", 0, 10, || 0);
        let Entered::Queued(wide) = dispatch.enter("a", 0, 10, || 1) else { panic!("it waits") };
        dispatch.enter("a", 0, 1, || 2);
        assert!(granted(&dispatch.release("a", 1)).is_empty(), "the first needs ten");
        assert_eq!(granted(&dispatch.give_up("a", wide)), [2]);
        dispatch.enter("a", 5, 9, || 3);
        dispatch.configure([level("a", 10, 0, Beyond::Reject), level("b", 10, 0, QUEUES)].iter());
        assert_eq!(dispatch.usage()[0], Usage { level: "a".to_owned(), nominal: 5, used: 10, waiting: 1 });
        dispatch.configure([level("b", 10, 0, QUEUES)].iter());
        assert_eq!(dispatch.usage().len(), 2, "it stays until it is empty");
        let left: Vec<u32> = (0..10).flat_map(|_| granted(&dispatch.release("a", 1))).collect();
        assert_eq!(left, [3]);
    }
}
