//! What a write takes that other objects take from too: addresses and ports of Services, the amounts of quotas. It is
//! taken before the object is stored, and given back where it is not.

mod quota;

use async_trait::async_trait;
use carob_api::{ResourceDef, Status};
use serde_json::Value;

use crate::admission::Admission;
pub(crate) use quota::ResourceQuota;

/// When a reservation is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before validation: the object is not complete without what is taken for it.
    Completing,
    /// After validation and admission, when nothing but the store can still refuse the object.
    Counting,
}

/// A supply that objects of some kinds take from.
#[async_trait]
pub(crate) trait Reserve: Send + Sync {
    /// Chooses the supply by the kind.
    fn concerns(&self, def: &ResourceDef) -> bool;

    fn stage(&self) -> Stage;

    /// Takes what `new` needs beyond what `old` holds; `None` where that is nothing.
    async fn reserve<'a>(
        &'a self,
        write: &Admission<'_>,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reserved + 'a>>, Status>;

    /// After `new` (absent after a deletion) took the place of `old` in the store: what only `old` held is free.
    async fn release(&self, _old: &Value, _new: Option<&Value>) {}
}

/// What one write took. Dropped without a word it goes back, unless a commit is under way.
#[async_trait]
pub(crate) trait Reserved: Send {
    /// The commit is under way. If its future is dropped now, the write may still go through: nothing goes back.
    fn begin(&mut self);

    /// The commit's outcome is known; what an object that was not stored took goes back.
    async fn settle(self: Box<Self>, stored: bool);
}

/// All supplies.
pub(crate) struct Reservations(Vec<Box<dyn Reserve>>);

impl Reservations {
    pub(crate) fn new(supplies: Vec<Box<dyn Reserve>>) -> Self {
        Self(supplies)
    }

    /// Takes from every supply of `stage` that the kind concerns and adds it to `held`.
    pub(crate) async fn reserve<'a>(
        &'a self,
        stage: Stage,
        write: &Admission<'_>,
        new: &mut Value,
        old: Option<&Value>,
        held: &mut Held<'a>,
    ) -> Result<(), Status> {
        for supply in self.0.iter().filter(|supply| supply.stage() == stage && supply.concerns(write.def)) {
            held.0.extend(supply.reserve(write, new, old).await?);
        }
        Ok(())
    }

    pub(crate) async fn release(&self, def: &ResourceDef, old: &Value, new: Option<&Value>) {
        for supply in self.0.iter().filter(|supply| supply.concerns(def)) {
            supply.release(old, new).await;
        }
    }
}

/// Everything that one write took.
#[derive(Default)]
#[must_use]
pub(crate) struct Held<'a>(Vec<Box<dyn Reserved + 'a>>);

impl Held<'_> {
    /// Carries the commit out and settles by its outcome.
    pub(crate) async fn commit<T, E>(mut self, commit: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.0.iter_mut().for_each(|reserved| reserved.begin());
        let outcome = commit.await;
        for reserved in self.0 {
            reserved.settle(outcome.is_ok()).await;
        }
        outcome
    }
}
