//! One lock a key: work on the same thing takes turns, work on others goes on.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Locks by key. It remembers those that someone holds or waits for, and no other for longer than until the next new key.
#[derive(Debug)]
pub struct KeyedLocks<K> {
    locks: Mutex<HashMap<K, Weak<AsyncMutex<()>>>>,
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self { locks: Mutex::default() }
    }
}

impl<K: Eq + Hash> KeyedLocks<K> {
    /// Waits until nobody else has this key's turn. The turn ends when the guard is dropped.
    pub async fn take<Q>(&self, key: &Q) -> OwnedMutexGuard<()>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        self.lock(key).lock_owned().await
    }

    fn lock<Q>(&self, key: &Q) -> Arc<AsyncMutex<()>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        // No holder panics half way through a change.
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        locks.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_same_key_waits() {
        let turns = KeyedLocks::<String>::default();
        let first = turns.take("a").await;
        let other = turns.take("b").await;
        let waits = tokio::time::timeout(Duration::from_secs(1), turns.take("a")).await;
        assert!(waits.is_err(), "the turn is taken");
        drop(first);
        let second = turns.take("a").await;
        drop((second, other));
        drop(turns.take("c").await);
        assert_eq!(turns.locks.lock().expect("no panic").len(), 1, "only the newest key is remembered");
    }
}
