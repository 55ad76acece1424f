//! How much of everything the server takes on at once, and what it answers beyond.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits of one server. The defaults are upstream's where upstream has one.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's accept queue.
    pub connections_max: usize,
    /// Reads under way at once (kube-apiserver `--max-requests-inflight`); further ones get 429.
    pub reads_in_flight_max: usize,
    /// Writes under way at once (`--max-mutating-requests-inflight`); further ones get 429.
    pub writes_in_flight_max: usize,
    /// Time for one request that is not long-running (`--request-timeout`); beyond it 504.
    pub request_timeout: Duration,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the header of a request on an HTTP/1 connection.
    pub header_timeout: Duration,
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
            reads_in_flight_max: 400,
            writes_in_flight_max: 200,
            request_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(32),
            header_len_max: 64 * 1024,
            streams_per_connection_max: 250,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Seconds after which a refused client should try again (apiserver `filters/maxinflight.go`, `retryAfter`).
pub(crate) const RETRY_AFTER_S: &str = "1";

/// Counts requests that are being answered.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl InFlight {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            reads: Arc::new(Semaphore::new(limits.reads_in_flight_max)),
            writes: Arc::new(Semaphore::new(limits.writes_in_flight_max)),
        }
    }

    /// A place for one request, or `None` when all are taken.
    pub(crate) fn enter(&self, mutating: bool) -> Option<OwnedSemaphorePermit> {
        let places = if mutating { &self.writes } else { &self.reads };
        Arc::clone(places).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_writers_have_places_of_their_own() {
        let limits = Limits { reads_in_flight_max: 1, writes_in_flight_max: 1, ..Limits::default() };
        let in_flight = InFlight::new(&limits);
        let reader = in_flight.enter(false);
        assert!(reader.is_some());
        assert!(in_flight.enter(false).is_none());
        assert!(in_flight.enter(true).is_some());
        drop(reader);
        assert!(in_flight.enter(false).is_some());
    }
}
