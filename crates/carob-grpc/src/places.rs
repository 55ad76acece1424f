//! The places of a server's connections, and which connection makes room when there is none.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection without a call for so long may be closed for another one. Shorter, a caller would lose the connection that it
/// has just made for its first call.
const IDLE_MIN: Duration = Duration::from_secs(1);

pub(crate) struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
    /// A call has ended, or a connection: one may be idle that was not.
    changed: Notify,
}

#[derive(Default)]
struct Taken {
    next_id: u64,
    connections: HashMap<u64, Connection>,
}

struct Connection {
    calls: usize,
    /// Of a connection without a call: since when.
    idle_since: Instant,
    leave: CancellationToken,
}

impl Places {
    pub(crate) fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(connections_max)),
            taken: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // No holder panics half way through a change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection. Where all are taken, the connection that has been idle the longest is asked to leave;
    /// where none is idle, this waits.
    pub(crate) async fn take(self: &Arc<Self>) -> Place {
        let permit = loop {
            let again = self.make_room();
            let again = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                permit = Arc::clone(&self.free).acquire_owned() => break permit.expect("it is never closed"),
                () = self.changed.notified() => {}
                () = again => {}
            }
        };
        let leave = CancellationToken::new();
        let mut taken = self.taken();
        let id = taken.next_id;
        taken.next_id += 1;
        taken.connections.insert(id, Connection { calls: 0, idle_since: Instant::now(), leave: leave.clone() });
        drop(taken);
        Place { held: Arc::new(Held { places: Arc::clone(self), id, _permit: permit }), leave }
    }

    /// Asks a connection to leave if there is need and one that may be asked. Answers when to look again, if that is known.
    fn make_room(&self) -> Option<Instant> {
        if self.free.available_permits() > 0 {
            return None;
        }
        let taken = self.taken();
        if taken.connections.values().any(|connection| connection.leave.is_cancelled()) {
            return None;
        }
        let idle = taken.connections.values().filter(|connection| connection.calls == 0);
        let longest = idle.min_by_key(|connection| connection.idle_since)?;
        let may_leave = longest.idle_since + IDLE_MIN;
        if may_leave > Instant::now() {
            return Some(may_leave);
        }
        longest.leave.cancel();
        None
    }
}

/// A connection's place, free again when it and its calls are dropped.
#[derive(Clone)]
pub(crate) struct Place {
    held: Arc<Held>,
    /// Cancelled when the connection has to make room.
    pub(crate) leave: CancellationToken,
}

struct Held {
    places: Arc<Places>,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.places.taken().connections.remove(&self.id);
        self.places.changed.notify_one();
    }
}

impl Place {
    /// Counts a call until it is dropped.
    pub(crate) fn begin_call(&self) -> Call {
        if let Some(connection) = self.held.places.taken().connections.get_mut(&self.held.id) {
            connection.calls += 1;
        }
        Call(Arc::clone(&self.held))
    }
}

/// A call that has not ended.
pub(crate) struct Call(Arc<Held>);

impl Drop for Call {
    fn drop(&mut self) {
        let Held { places, id, .. } = &*self.0;
        if let Some(connection) = places.taken().connections.get_mut(id) {
            connection.calls -= 1;
            connection.idle_since = Instant::now();
        }
        places.changed.notify_one();
    }
}

/// An answer's body, which ends its call when it has been sent or is given up.
pub(crate) struct Counted<B> {
    pub(crate) body: B,
    pub(crate) _call: Call,
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
