//! A bounded queue of keys that holds each key once.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Keys in the order in which they first came; a key that is waiting already is not queued again.
///
/// Holding a key once is what bounds the queue in practice; `limit` bounds it when the keys themselves are without end.
#[derive(Debug)]
pub struct KeyQueue<K> {
    limit: usize,
    state: Mutex<State<K>>,
    ready: Notify,
}

#[derive(Debug)]
struct State<K> {
    /// With the moment at which each came.
    order: VecDeque<(K, Instant)>,
    waiting: HashSet<K>,
    closed: bool,
}

/// The queue holds its limit of keys: this one was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the queue holds its limit of {limit} keys")]
pub struct KeyQueueFull {
    pub limit: usize,
}

impl<K: Hash + Eq + Clone> KeyQueue<K> {
    pub fn new(limit: usize) -> Self {
        let state = State { order: VecDeque::new(), waiting: HashSet::new(), closed: false };
        Self { limit, state: Mutex::new(state), ready: Notify::new() }
    }

    /// Queues `key` unless it is waiting already, and answers whether it was queued.
    pub fn push(&self, key: K) -> Result<bool, KeyQueueFull> {
        let mut state = self.lock();
        if state.closed || state.waiting.contains(&key) {
            return Ok(false);
        }
        if state.order.len() >= self.limit {
            return Err(KeyQueueFull { limit: self.limit });
        }
        state.waiting.insert(key.clone());
        state.order.push_back((key, Instant::now()));
        drop(state);
        self.ready.notify_one();
        Ok(true)
    }

    /// The oldest key, as soon as there is one; `None` once the queue is closed and empty.
    ///
    /// Cancel safe: a key is taken only when the future is ready.
    pub async fn pop(&self) -> Option<K> {
        self.pop_timed().await.map(|(key, _)| key)
    }

    /// As [`KeyQueue::pop`], with how long the key waited.
    pub async fn pop_timed(&self) -> Option<(K, Duration)> {
        loop {
            let ready = self.ready.notified();
            {
                let mut state = self.lock();
                if let Some((key, came)) = state.order.pop_front() {
                    state.waiting.remove(&key);
                    let more = !state.order.is_empty();
                    drop(state);
                    if more {
                        self.ready.notify_one();
                    }
                    return Some((key, came.elapsed()));
                }
                if state.closed {
                    drop(state);
                    self.ready.notify_one();
                    return None;
                }
            }
            ready.await;
        }
    }

    /// Ends the queue: what waits is still handed out, what comes later is dropped.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
        self.ready.notify_waiters();
    }

    pub fn len(&self) -> usize {
        self.lock().order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().expect("no holder of the queue panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_keeps_its_place() {
        let queue = KeyQueue::new(10);
        for key in ["a", "b", "a", "c", "b"] {
            queue.push(key).expect("within the limit");
        }
        queue.close();
        let mut seen = Vec::new();
        while let Some(key) = queue.pop().await {
            seen.push(key);
        }
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn a_full_queue_says_so() {
        let queue = KeyQueue::new(1);
        queue.push(1).expect("the first fits");
        assert_eq!(queue.push(2), Err(KeyQueueFull { limit: 1 }));
        assert_eq!(queue.push(1), Ok(false), "a key that waits already needs no place");
    }

    #[tokio::test]
    async fn every_consumer_is_woken_by_close() {
        let queue = Arc::new(KeyQueue::<u8>::new(1));
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move { queue.pop().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for consumer in consumers {
            assert_eq!(consumer.await.expect("the consumer does not panic"), None);
        }
    }
}
