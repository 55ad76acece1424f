//! Watches: a stream of events over one prefix, from a revision or from the current state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carob_api::{ResourceDef, Status};
use carob_store::{Entry, Event, EventKind, ListOptions, ReadError, Revision, Watch, WatchItem};
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::Call;
use super::frames::{Encoder, EventType};
use super::get::{parse_revision, wait_for};
use super::list::validate;
use super::selection::Selection;
use crate::body::{Body, BoxError};
use crate::conversion::Converters;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::Offer;

/// Time between bookmarks (apiserver `pkg/storage/cacher`, `bookmarkFrequency`).
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch without a time-out of its own ends after this, or up to twice this (kube-apiserver `--min-request-timeout`).
const TIMEOUT_MIN_S: u64 = 1800;
/// Longest time-out that a client can ask for: its watch ends then all the same, and it watches again. Upstream has no
/// bound, and a number that overflows its nanoseconds ends the watch at once.
const TIMEOUT_MAX_S: u64 = 30 * 24 * 60 * 60;
/// Bytes of events that are sent as one piece.
const PIECE_LEN: usize = 64 * 1024;

/// What the client asked for, checked.
struct WatchQuery {
    revision: Option<Revision>,
    /// Start with an ADDED event for everything there is.
    initial: bool,
    /// Mark the end of the initial events.
    mark_end: bool,
    bookmarks: bool,
    timeout: Duration,
}

impl WatchQuery {
    fn parse(call: &Call<'_>) -> ApiResult<Self> {
        let query = &call.query;
        validate(query, true)?;
        let revision = parse_revision(query.text("resourceVersion"))?;
        let send = query.optional_flag("sendInitialEvents");
        let timeout_s = query
            .integer("timeoutSeconds")
            .map_err(|error| ApiError::from(Status::bad_request(error.to_string())))?
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0)
            .map(|seconds| seconds.min(TIMEOUT_MAX_S))
            .unwrap_or_else(|| TIMEOUT_MIN_S + carob_kit::random_u64() % TIMEOUT_MIN_S);
        let bookmarks = query.flag("allowWatchBookmarks");
        Ok(Self {
            revision,
            initial: send.unwrap_or(revision.is_none()),
            mark_end: send == Some(true) && bookmarks,
            bookmarks,
            timeout: Duration::from_secs(timeout_s),
        })
    }
}

/// Everything that one open watch holds.
struct Stream {
    def: Arc<ResourceDef>,
    converters: Arc<Converters>,
    watch: Watch,
    selection: Selection,
    encoder: Encoder,
    /// Initial objects still to be sent, the next one last.
    initial: Vec<Arc<Entry>>,
    /// The bookmark after the last initial object.
    end_of_initial: Option<Revision>,
    bookmarks: Option<Interval>,
    /// The watch's time is up, or the server shuts down. One future for the whole watch: with a thousand watches of one
    /// prefix, registering again at every event is what would cost most.
    end: BoxFuture<'static, ()>,
    done: bool,
}

/// What woke a watch up.
enum Wake {
    Item(WatchItem),
    Bookmark,
    End,
}

pub(crate) async fn watch(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.negotiate(Offer::Collection)?;
    let mut selection = Selection::parse(&call.def, &call.query)?;
    if !call.name.is_empty() {
        // The old path /watch/.../name.
        selection = selection.and_name(&call.name);
    }
    let query = WatchQuery::parse(call)?;
    if let Some(revision) = query.revision {
        wait_for(call.api, revision).await?;
    }
    let encoder = Encoder::new(call, form)?;
    let content_type = encoder.content_type();
    let body = match open(call, selection, &query, encoder).await? {
        Ok(stream) => Body::stream(futures_util::stream::unfold(Box::new(stream), next_piece)),
        Err(mut expired) => Body::from(expired.encoder.error(&expired.status)?),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// A watch that cannot begin where it was asked to.
struct Expired {
    encoder: Encoder,
    status: Status,
}

async fn open(
    call: &Call<'_>,
    selection: Selection,
    query: &WatchQuery,
    encoder: Encoder,
) -> ApiResult<Result<Stream, Box<Expired>>> {
    let store = &call.api.store;
    // A watch of one object is not woken for others. Its key may begin those of others; the selection knows better.
    let prefix = selection.only_key(&call.namespace).unwrap_or_else(|| call.prefix());
    let opened = if query.initial {
        store
            .list(&prefix, ListOptions::default())
            .and_then(|page| Ok((store.watch(&prefix, page.revision)?, page.entries, page.revision)))
    } else {
        let after = query.revision.unwrap_or_else(|| store.current());
        store.watch(&prefix, after).map(|watch| (watch, Vec::new(), after))
    };
    let (watch, initial, revision) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(Box::new(Expired { encoder, status: too_old(error) }))),
    };
    let mut initial = call.api.converters.hubs(&call.def, initial).await?;
    initial.retain(|entry| selection.matches(entry));
    initial.reverse();
    let now = Instant::now();
    let bookmarks = query.bookmarks.then(|| {
        let mut interval = tokio::time::interval_at(now + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    });
    Ok(Ok(Stream {
        def: Arc::clone(&call.def),
        converters: Arc::clone(&call.api.converters),
        watch,
        selection,
        encoder,
        initial,
        end_of_initial: query.mark_end.then_some(revision),
        bookmarks,
        end: Box::pin(end(carob_kit::moment_after(now, query.timeout), call.api.closing())),
        done: false,
    }))
}

/// Waits until `deadline` or until the server shuts down.
async fn end(deadline: Instant, mut closing: tokio::sync::watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep_until(deadline) => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

/// Worded as apiserver `pkg/storage/cacher/watch_cache.go` words it.
fn too_old(error: ReadError) -> Status {
    match error {
        ReadError::Compacted { requested, compacted } => {
            Status::expired(&format!("too old resource version: {requested} ({compacted})"))
        }
        ReadError::Future { requested, current } => {
            Status::timeout(&format!("Too large resource version: {requested}, current: {current}"), 1)
        }
    }
}

async fn next_piece(mut stream: Box<Stream>) -> Option<(Result<Bytes, BoxError>, Box<Stream>)> {
    if stream.done {
        return None;
    }
    match stream.fill().await {
        Ok(piece) if piece.is_empty() => None,
        Ok(piece) => Some((Ok(Bytes::from(piece)), stream)),
        Err(error) => {
            stream.done = true;
            Some((Err(error.into()), stream))
        }
    }
}

impl Stream {
    /// The next bytes to send: at least one event unless the watch has ended.
    async fn fill(&mut self) -> ApiResult<Vec<u8>> {
        let mut out = Vec::new();
        self.initial_events(&mut out)?;
        while out.is_empty() && !self.done {
            match self.wake().await {
                Wake::Item(item) => self.item(&item, &mut out).await?,
                Wake::Bookmark => {
                    let revision = self.watch.progress();
                    self.encoder.bookmark(&mut out, revision, false)?;
                }
                Wake::End => self.done = true,
            }
        }
        // What has come meanwhile goes along.
        while !self.done && self.initial.is_empty() && out.len() < PIECE_LEN {
            let Some(item) = self.watch.try_next() else { break };
            self.item(&item, &mut out).await?;
        }
        Ok(out)
    }

    fn initial_events(&mut self, out: &mut Vec<u8>) -> ApiResult<()> {
        while out.len() < PIECE_LEN {
            let Some(entry) = self.initial.pop() else { break };
            self.encoder.event(out, EventType::Added, &entry, entry.mod_revision)?;
        }
        if self.initial.is_empty()
            && let Some(revision) = self.end_of_initial.take()
        {
            self.initial = Vec::new();
            self.encoder.bookmark(out, revision, true)?;
        }
        Ok(())
    }

    /// Every arm is cancel safe: an event, a tick or a flag is taken only by the arm that completes.
    async fn wake(&mut self) -> Wake {
        let tick = async {
            match &mut self.bookmarks {
                Some(interval) => drop(interval.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            item = self.watch.next() => Wake::Item(item),
            () = tick => Wake::Bookmark,
            () = self.end.as_mut() => Wake::End,
        }
    }

    async fn item(&mut self, item: &WatchItem, out: &mut Vec<u8>) -> ApiResult<()> {
        match item {
            WatchItem::Event(event) => match self.event(event, out).await {
                Ok(()) => Ok(()),
                Err(error) => self.fail(error.status(), out),
            },
            WatchItem::Lagged => {
                let text = "too old resource version: the watch fell behind what is kept of the past";
                self.fail(&Status::expired(text), out)
            }
            WatchItem::Closed => {
                self.done = true;
                Ok(())
            }
        }
    }

    /// Tells the client why its watch ends.
    fn fail(&mut self, status: &Status, out: &mut Vec<u8>) -> ApiResult<()> {
        self.done = true;
        out.extend_from_slice(&self.encoder.error(status)?);
        Ok(())
    }

    /// An object that a change brings into the selection is ADDED, one that it takes out is DELETED.
    async fn event(&mut self, event: &Event, out: &mut Vec<u8>) -> ApiResult<()> {
        let before = match &event.previous {
            Some(previous) => Some(self.converters.shared_hub(&self.def, previous).await?),
            None => None,
        };
        let before = before.filter(|previous| self.selection.matches(previous));
        let after = match event.kind {
            EventKind::Put => Some(self.converters.shared_hub(&self.def, &event.entry).await?),
            EventKind::Delete => None,
        };
        let after = after.filter(|entry| self.selection.matches(entry));
        let revision = event.revision();
        match (before, after) {
            (None, None) => Ok(()),
            (None, Some(entry)) => self.encoder.event(out, EventType::Added, &entry, revision),
            (Some(_), Some(entry)) => self.encoder.event(out, EventType::Modified, &entry, revision),
            (Some(previous), None) => self.encoder.event(out, EventType::Deleted, &previous, revision),
        }
    }
}
