//! What the scheduler was doing when it panicked. A panic costs it what it remembers, which is built again from the API; an
//! object or a Pod that makes it panic again and again is left alone until it changes, so that all others are scheduled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_client::ObjectKey;

use super::inbox::{Changed, Kind, Sources};
use crate::queue::Unit;

/// Panics over the same thing after which it is left alone.
const PANICS_MAX: u32 = 3;
/// Things that are remembered. Full, all of them get another chance.
const REMEMBERED_MAX: usize = 1024;
/// A gang has no version of its own: it is tried again after this long.
const GANG_LEFT_FOR: Duration = Duration::from_secs(600);

/// One step of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    /// Taking in what an object has become.
    Change(Changed),
    /// Deciding about a Pod or a gang.
    Decision(Unit),
}

impl Doing {
    /// The version of the object that it is about.
    fn version(&self, sources: &Sources) -> Option<String> {
        match self {
            Self::Change(changed) => sources.version(changed),
            Self::Decision(Unit::Pod(pod)) => {
                let key = ObjectKey { namespace: pod.namespace.clone(), name: pod.name.clone() };
                sources.version(&Changed { kind: Kind::Pod, key })
            }
            Self::Decision(Unit::Gang(_)) => None,
        }
    }
}

struct Panics {
    count: u32,
    version: Option<String>,
    /// Of the clock's monotonic time.
    last: Duration,
    told: bool,
}

/// Shared by one loop of the scheduler and the next.
#[derive(Clone, Default)]
pub(super) struct Suspects(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    doing: Option<Doing>,
    panics: HashMap<Doing, Panics>,
}

/// What to do with a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Go,
    /// Leave it alone; `first` the first time that this is answered.
    Leave {
        first: bool,
    },
}

impl Suspects {
    /// The state is plain data, whole between any two statements that touch it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a step begins, unless it is to be left alone.
    pub(super) fn begin(&self, doing: Doing, sources: &Sources, now: Duration) -> Judgement {
        let mut state = self.state();
        if let Some(known) = state.panics.get_mut(&doing).filter(|known| known.count >= PANICS_MAX) {
            let changed = known.version != doing.version(sources);
            let rested = known.version.is_none() && now.saturating_sub(known.last) >= GANG_LEFT_FOR;
            if !changed && !rested {
                return Judgement::Leave { first: !std::mem::replace(&mut known.told, true) };
            }
            state.panics.remove(&doing);
        }
        state.doing = Some(doing);
        Judgement::Go
    }

    pub(super) fn end(&self) {
        self.state().doing = None;
    }

    /// Counts a panic against what was being done. Answers what that was.
    pub(super) fn panicked(&self, sources: &Sources, now: Duration) -> Option<Doing> {
        let mut state = self.state();
        let doing = state.doing.take()?;
        let version = doing.version(sources);
        if state.panics.len() >= REMEMBERED_MAX {
            state.panics.clear();
        }
        let fresh = || Panics { count: 0, version: version.clone(), last: now, told: false };
        let known = state.panics.entry(doing.clone()).or_insert_with(fresh);
        if known.version != version {
            *known = Panics { count: 0, version, last: now, told: false };
        }
        known.count += 1;
        known.last = now;
        Some(doing)
    }
}
