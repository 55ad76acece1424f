//! How much of everything the server takes on at once, and what it answers beyond.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::{self, RequestBody};
use crate::error::ApiError;
use crate::identity::{GROUP_MASTERS, GROUP_NODES, UserInfo};

/// Limits of one server. The defaults are upstream's where upstream has one.
///
/// How many requests are answered at once is divided by priority levels ([`super::FlowControl`]). Of the places for bodies that are
/// being read a quarter is kept for nodes, the cluster's own parts and administrators, so that no other user can take them all.
/// Callers in process have as many places again, for themselves.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's accept queue.
    pub connections_max: usize,
    /// Seats of all priority levels together: requests that are answered at once. The sum of kube-apiserver's
    /// `--max-requests-inflight` and `--max-mutating-requests-inflight`.
    pub seats: usize,
    /// Requests whose body is being read at once, before they take a place; further ones get 429.
    pub bodies_in_flight_max: usize,
    /// Bytes of bodies that are being read or answered at once; a request whose body goes beyond gets 429.
    pub body_bytes_max: usize,
    /// Time for a request's body; beyond it 408.
    pub body_timeout: Duration,
    /// Time for the next piece of a request's body; beyond it 408.
    pub body_piece_timeout: Duration,
    /// Requests with large bodies that are answered at once, each on a thread of its own; further ones wait.
    pub heavy_max: usize,
    /// Time for one request that is not long-running (`--request-timeout`); beyond it 504.
    pub request_timeout: Duration,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the header of a request on an HTTP/1 connection.
    pub header_timeout: Duration,
    /// Time for which an HTTP/2 connection may have no request under way (apiserver `secure_serving.go`, `IdleTimeout`). The
    /// first request, and with it the connection's preface, has [`Limits::header_timeout`].
    pub idle_timeout: Duration,
    /// Header of a request, bytes; beyond it 431.
    pub header_len_max: usize,
    /// Streams of one HTTP/2 connection (`--http2-max-streams-per-connection`, Go's default).
    pub streams_per_connection_max: u32,
    /// Time that requests under way have to end when the server shuts down (`--shutdown-delay-duration` and its grace).
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            seats: 600,
            bodies_in_flight_max: 400,
            body_bytes_max: 256 * 1024 * 1024,
            body_timeout: Duration::from_secs(30),
            body_piece_timeout: Duration::from_secs(5),
            heavy_max: 4,
            request_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(32),
            idle_timeout: Duration::from_secs(90),
            header_len_max: 64 * 1024,
            streams_per_connection_max: 250,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Seconds after which a refused client should try again (apiserver `filters/maxinflight.go`, `retryAfter`).
pub(crate) const RETRY_AFTER_S: &str = "1";

/// Bytes of a body from which on a request is answered on a thread of its own: its decoding, merging and checking take
/// milliseconds, which the threads that serve all connections do not have.
const HEAVY_BODY_LEN: usize = 256 * 1024;
/// The same for a patch, which may make much of little.
const HEAVY_PATCH_LEN: usize = 16 * 1024;

/// Whether a request is answered on a thread of its own.
pub(crate) fn is_heavy(is_patch: bool, body_len: usize) -> bool {
    body_len >= if is_patch { HEAVY_PATCH_LEN } else { HEAVY_BODY_LEN }
}

/// Whose body takes which places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Masters in this process, the API server itself among them: nothing holds them up (upstream's flow schema `exempt`).
    Exempt,
    InProcess,
    /// Nodes, the cluster's own parts and administrators, by a socket.
    System,
    Other,
}

/// Before the names of the control plane's parts.
const COMPONENT_USER_PREFIX: &str = "system:kube-";

impl Class {
    /// Of a user who asks by a socket.
    pub(crate) fn of(user: &UserInfo) -> Self {
        let is_system = user.in_group(GROUP_MASTERS)
            || (user.in_group(GROUP_NODES) && user.as_node().is_some())
            || user.name.starts_with(COMPONENT_USER_PREFIX);
        if is_system { Self::System } else { Self::Other }
    }
}

/// So many of something, for the three classes.
#[derive(Debug, Clone)]
struct Places {
    in_process: Arc<Semaphore>,
    outside: Arc<Semaphore>,
    /// What of the outside's may go to [`Class::Other`].
    other: Arc<Semaphore>,
}

/// Some places, taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Vec<OwnedSemaphorePermit>);

impl Places {
    fn new(count: usize) -> Self {
        let semaphore = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self { in_process: semaphore(count), outside: semaphore(count), other: semaphore(count - count / 4) }
    }

    fn take(&self, class: Class, count: u32) -> Option<Taken> {
        let of = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_many_owned(count).ok();
        Some(Taken(match class {
            Class::Exempt => Vec::new(),
            Class::InProcess => vec![of(&self.in_process)?],
            Class::System => vec![of(&self.outside)?],
            Class::Other => vec![of(&self.other)?, of(&self.outside)?],
        }))
    }
}

impl Taken {
    /// Permits of one semaphore become one.
    fn extend(&mut self, more: Taken) {
        if self.0.is_empty() {
            self.0 = more.0;
            return;
        }
        for (own, more) in self.0.iter_mut().zip(more.0) {
            own.merge(more);
        }
    }
}

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There is no place.
    Full,
    Error(ApiError),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// Counts requests that are being read, and those that take long to compute.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    bodies: Places,
    /// In units of [`BYTES_UNIT`].
    body_bytes: Places,
    heavy: Arc<Semaphore>,
    body_timeout: Duration,
    body_piece_timeout: Duration,
}

/// Bodies are counted in KiB, begun ones whole.
const BYTES_UNIT: usize = 1024;

impl InFlight {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            bodies: Places::new(limits.bodies_in_flight_max),
            body_bytes: Places::new(limits.body_bytes_max / BYTES_UNIT),
            heavy: Arc::new(Semaphore::new(limits.heavy_max)),
            body_timeout: limits.body_timeout,
            body_piece_timeout: limits.body_piece_timeout,
        }
    }

    /// Waits for one of the few places of requests that take long to compute.
    pub(crate) async fn enter_heavy(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.heavy).acquire_owned().await.ok()
    }

    /// Reads a body, before the request takes a place: a client that sends slowly, or not at all, holds up nobody but those
    /// of its class. The bytes count until what comes with them is dropped.
    pub(crate) async fn read(&self, class: Class, body: RequestBody) -> Result<(Bytes, Taken), Refused> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), Taken(Vec::new())));
        }
        let _reading = self.bodies.take(class, 1).ok_or(Refused::Full)?;
        let mut held = Taken(Vec::new());
        let mut units = 0;
        let read = body::read_counted(body, self.body_piece_timeout, |len| {
            let more = len.div_ceil(BYTES_UNIT).saturating_sub(units);
            units += more;
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            held.extend(self.body_bytes.take(class, more).ok_or(Refused::Full)?);
            Ok::<(), Refused>(())
        });
        let outcome = tokio::time::timeout(self.body_timeout, read).await;
        let whole = outcome.unwrap_or_else(|_| Err(Refused::Error(body::late())))?;
        Ok((whole, held))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;
    use crate::identity::{GROUP_SERVICE_ACCOUNTS, UserInfo};

    fn in_flight() -> InFlight {
        let limits = Limits { bodies_in_flight_max: 4, body_bytes_max: 8 * 1024, ..Limits::default() };
        InFlight::new(&limits)
    }

    #[test]
    fn no_user_takes_the_places_of_nodes_and_of_callers_in_process() {
        let places = Places::new(4);
        let account = UserInfo::new("system:serviceaccount:default:x", [GROUP_SERVICE_ACCOUNTS.to_owned()]);
        assert_eq!(Class::of(&account), Class::Other);
        let taken: Vec<_> = std::iter::from_fn(|| places.take(Class::of(&account), 1)).collect();
        assert_eq!(taken.len(), 3);
        assert_eq!(Class::of(&UserInfo::node("n")), Class::System);
        assert!(places.take(Class::System, 1).is_some());
        assert!(places.take(Class::InProcess, 1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_holds_no_place_and_is_given_up() {
        let in_flight = in_flight();
        let silent =
            || StreamBody::new(futures_util::stream::pending::<Result<_, crate::body::BoxError>>()).boxed_unsync();
        let stuck: Vec<_> = (0..3).map(|_| Box::pin(in_flight.read(Class::Other, silent()))).collect();
        let mut stuck = futures_util::future::join_all(stuck);
        assert!(futures_util::FutureExt::now_or_never(&mut stuck).is_none());
        assert!(matches!(in_flight.read(Class::Other, silent()).await, Err(Refused::Full)));
        let whole = body::whole(Bytes::from_static(b"{}"));
        assert_eq!(in_flight.read(Class::System, whole).await.expect("a place is kept").0, "{}");
        for outcome in stuck.await {
            assert!(matches!(outcome, Err(Refused::Error(error)) if error.status().code == 408));
        }
    }

    #[tokio::test]
    async fn bytes_of_bodies_are_counted_until_they_are_dropped() {
        let in_flight = in_flight();
        let body = || Full::new(Bytes::from(vec![b'x'; 5000])).map_err(|never| match never {}).boxed_unsync();
        let first = in_flight.read(Class::Other, body()).await.expect("five of six KiB");
        assert!(matches!(in_flight.read(Class::Other, body()).await, Err(Refused::Full)));
        drop(first);
        assert!(in_flight.read(Class::Other, body()).await.is_ok());
    }
}
