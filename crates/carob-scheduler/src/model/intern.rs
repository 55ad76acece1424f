//! Equal values are held once: ten thousand Pods of one Deployment share one template and its strings.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// A shared string.
pub type Str = Arc<str>;

/// How many values a pool holds before it first looks for values that nobody uses any more.
const FIRST_SWEEP: usize = 1024;

/// A set of shared values. Values that only the pool still holds are dropped each time it has doubled, so that it stays
/// within twice what is in use.
#[derive(Debug)]
pub struct Pool<T: ?Sized> {
    held: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized + Hash + Eq> Default for Pool<T> {
    fn default() -> Self {
        Self { held: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    /// The shared value equal to `value`.
    pub fn share<Q>(&mut self, value: Q) -> Arc<T>
    where
        Q: Borrow<T> + Into<Arc<T>>,
    {
        if let Some(held) = self.held.get(value.borrow()) {
            return Arc::clone(held);
        }
        if self.held.len() >= self.sweep_at {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = (self.held.len() * 2).max(FIRST_SWEEP);
        }
        let shared: Arc<T> = value.into();
        self.held.insert(Arc::clone(&shared));
        shared
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one() {
        let mut pool = Pool::<str>::default();
        let a = pool.share("zone-a");
        let b = pool.share("zone-a");
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn unused_values_are_dropped() {
        let mut pool = Pool::<str>::default();
        let kept = pool.share("kept");
        for n in 0..FIRST_SWEEP * 8 {
            pool.share(n.to_string().as_str());
        }
        assert!(pool.len() <= FIRST_SWEEP + 1, "{} values held", pool.len());
        assert!(Arc::ptr_eq(&kept, &pool.share("kept")));
    }
}
