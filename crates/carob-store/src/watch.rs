//! One reader of a prefix's events.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::{Entry, Event, Revision};
use crate::hub::{Found, Group};
use crate::index::ReadError;
use crate::limits::WATCH_CHUNK_MAX;
use crate::shared::Shared;

/// Every event of a prefix after a revision, in order, each once.
///
/// A watch holds a cursor, not a queue: it never slows a writer, and when it is so slow that history is compacted past
/// its cursor, it ends with [`WatchItem::Lagged`].
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    prefix: Arc<str>,
    group: Arc<Group>,
    reader: Reader,
}

/// Where in its group a watch is.
#[derive(Debug)]
struct Reader {
    /// The revision up to which events have been taken out of the group.
    cursor: Revision,
    /// Events taken out and not yet returned.
    taken: VecDeque<Arc<Event>>,
    /// The revision of the event returned last, or where the watch began.
    returned: Revision,
}

#[derive(Debug, Clone)]
pub enum WatchItem {
    Event(Arc<Event>),
    /// Events were missed: read again. The last item but for its repetition.
    Lagged,
    /// The store was closed. The last item but for its repetition.
    Closed,
}

impl Watch {
    pub(crate) fn start(shared: &Arc<Shared>, prefix: &str, after: Revision) -> Result<Self, ReadError> {
        let index = shared.read();
        index.check(after)?;
        let (prefix, group) = shared.hub.lock().join(&index, prefix, after);
        drop(index);
        Ok(Self::at(shared, prefix, group, after))
    }

    /// Both under one hold of the index's lock, so that history cannot move on between them.
    pub(crate) fn start_with_list(shared: &Arc<Shared>, prefix: &str) -> (Vec<Arc<Entry>>, Self) {
        let index = shared.read();
        let current = index.current();
        let entries = index.range(prefix, None, current).cloned().collect();
        let (prefix, group) = shared.hub.lock().join(&index, prefix, current);
        drop(index);
        (entries, Self::at(shared, prefix, group, current))
    }

    fn at(shared: &Arc<Shared>, prefix: Arc<str>, group: Arc<Group>, after: Revision) -> Self {
        let reader = Reader { cursor: after, taken: VecDeque::new(), returned: after };
        Self { shared: Arc::clone(shared), prefix, group, reader }
    }

    /// Whether [`Watch::try_next`] has something to return. Every change that a writer has been told of is seen here.
    pub fn is_behind(&self) -> bool {
        !self.reader.taken.is_empty() || self.group.is_beyond(self.reader.cursor)
    }

    /// The next event, as soon as there is one. Cancel safe.
    pub async fn next(&mut self) -> WatchItem {
        loop {
            // Made before the look, so that no event slips through between the look and the wait.
            let changed = self.group.changed();
            if let Some(item) = self.reader.next(&self.group) {
                return item;
            }
            changed.await;
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<WatchItem> {
        self.reader.next(&self.group)
    }

    /// A revision up to which everything has been returned: what a bookmark may say.
    pub fn progress(&mut self) -> Revision {
        // Events are in their group before the current revision moves on, so what is not there now is later than it.
        let current = self.shared.current();
        if self.reader.take(&self.group) == Found::Nothing {
            self.reader.returned = self.reader.returned.max(current);
        }
        self.reader.returned
    }
}

impl Reader {
    fn next(&mut self, group: &Group) -> Option<WatchItem> {
        match self.take(group) {
            Found::Events => {}
            Found::Nothing => return None,
            Found::Lagged => return Some(WatchItem::Lagged),
            Found::Closed => return Some(WatchItem::Closed),
        }
        let event = self.taken.pop_front()?;
        self.returned = event.revision();
        Some(WatchItem::Event(event))
    }

    /// Makes sure that events are taken out, if there are any.
    fn take(&mut self, group: &Group) -> Found {
        if !self.taken.is_empty() {
            return Found::Events;
        }
        let found = group.read(self.cursor, WATCH_CHUNK_MAX, &mut self.taken);
        self.cursor = self.taken.back().map_or(self.cursor, |event| event.revision());
        found
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.hub.lock().leave(&self.prefix);
    }
}
