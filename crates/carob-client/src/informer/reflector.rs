//! Keeps one store like the API's: list, watch, and again where that broke off.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use carob_kit::{Backoff, chain, keep_running, random_u64};
use http::Request;
use http_body_util::BodyExt;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::response::Status;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::lines::{LineError, Lines};
use super::{ObjectKey, Progress, Selection};

/// Waits between failed tries to watch (client-go `tools/cache/reflector.go` waits 0.8 to 30 s; a local API answers sooner).
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How long the server is asked to keep a watch; a random part up to as much again spreads re-connects (client-go
/// `tools/cache/reflector.go`, minWatchTimeout).
const WATCH_SECS: u32 = 300;
/// A watch that is silent this long after the server should have ended it is a dead connection.
const WATCH_OVERDUE: Duration = Duration::from_secs(10);
/// Objects in one page of a list, where streaming lists are not served (client-go `tools/pager`).
const PAGE_OBJECTS: u32 = 500;

/// What to watch.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) path: String,
    pub(super) selection: Selection,
    pub(super) metadata_only: bool,
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchEnd {
    #[error("build the request")]
    Build(#[source] Box<kube::core::request::Error>),
    #[error("send the request")]
    Send(#[source] Box<kube::Error>),
    #[error("{} ({})", .0.message, .0.code)]
    Refused(Box<Status>),
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("the answer is not JSON of the API")]
    Decode(#[source] serde_json::Error),
    #[error("the connection is silent past the end of the watch")]
    Silent,
}

impl WatchEnd {
    /// The revision to resume from is no longer in the server's history.
    fn is_expired(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 410)
    }

    /// The server knows no streaming lists.
    fn is_refused_list(&self) -> bool {
        matches!(self, Self::Refused(status) if matches!(status.code, 400 | 422))
    }
}

/// Where the store stands relative to the API.
enum Position {
    /// It may hold objects that are gone: list first.
    Unknown,
    /// It is as the API was at this resourceVersion.
    At(String),
}

/// What a reflector fills. It does not know the type of the objects: its code would be there once for every kind.
pub(super) trait Replica: Send + Sync {
    /// Takes the version of an object that the API has. One that cannot be decoded stays as it was known before, since to
    /// leave it out would look as if it had been deleted.
    fn put(&self, object: &RawValue, metadata_only: bool) -> Result<(), serde_json::Error>;

    fn remove(&self, key: &ObjectKey);

    /// Removes every object that a complete list did not hold.
    fn retain(&self, listed: &HashSet<ObjectKey>);

    fn progress(&self) -> &Progress;
}

/// Follows `source` into `replica` until `end`. A panic, which some object may cause again and again, costs a new list and a
/// wait that grows: what is held stays readable.
pub(super) async fn reflect(client: kube::Client, source: Source, replica: Arc<dyn Replica>, end: CancellationToken) {
    let follow = || {
        let mut reflector = Reflector {
            client: client.clone(),
            source: source.clone(),
            replica: Arc::clone(&replica),
            position: Position::Unknown,
            streaming_lists: true,
            retry: fresh_retry(),
        };
        async move { reflector.run().await }
    };
    tokio::select! {
        biased;
        () = end.cancelled() => {}
        () = keep_running(follow) => {}
    }
}

fn fresh_retry() -> Backoff {
    Backoff::new(RETRY_FIRST, RETRY_LONGEST)
}

struct Reflector {
    client: kube::Client,
    source: Source,
    replica: Arc<dyn Replica>,
    position: Position,
    streaming_lists: bool,
    retry: Backoff,
}

impl Reflector {
    async fn run(&mut self) {
        loop {
            let Err(ended) = self.watch_once().await else { continue };
            if ended.is_expired() {
                debug!(path = self.source.path, "the watch fell out of the server's history: list again");
                self.position = Position::Unknown;
            }
            if self.streaming_lists && ended.is_refused_list() && matches!(self.position, Position::Unknown) {
                debug!(path = self.source.path, "the server has no streaming lists: list in pages");
                self.streaming_lists = false;
                continue;
            }
            let wait = with_jitter(self.retry.fail());
            warn!(path = self.source.path, ?wait, "watch: {}", chain(&ended));
            tokio::time::sleep(wait).await;
        }
    }

    /// One list if need be, then one watch until it ends. `Ok` is an end as agreed with the server.
    async fn watch_once(&mut self) -> Result<(), WatchEnd> {
        if matches!(self.position, Position::Unknown) && !self.streaming_lists {
            self.list_pages().await?;
        }
        let mut listed = match &self.position {
            Position::Unknown => Some(HashSet::new()),
            Position::At(_) => None,
        };
        let timeout_secs = WATCH_SECS + u32::try_from(random_u64() % u64::from(WATCH_SECS)).unwrap_or(0);
        let mut lines = self.open_watch(timeout_secs).await?;
        let silence_max = Duration::from_secs(timeout_secs.into()) + WATCH_OVERDUE;
        loop {
            let line = tokio::time::timeout(silence_max, lines.next()).await.map_err(|_| WatchEnd::Silent)??;
            match line {
                None => return Ok(()),
                Some(line) if line.is_empty() => {}
                Some(line) => self.take(&line, &mut listed)?,
            }
            self.retry.reset();
        }
    }

    async fn open_watch(&self, timeout_secs: u32) -> Result<Lines, WatchEnd> {
        self.replica.progress().watches.fetch_add(1, Ordering::Relaxed);
        let params = WatchParams {
            label_selector: self.source.selection.labels.clone(),
            field_selector: self.source.selection.fields.clone(),
            timeout: Some(timeout_secs),
            bookmarks: true,
            send_initial_events: matches!(self.position, Position::Unknown),
        };
        // An empty version asks for a list that is as new as the store.
        let version = match &self.position {
            Position::Unknown => "",
            Position::At(version) => version,
        };
        let request = kube::core::Request::new(&self.source.path);
        let request = if self.source.metadata_only {
            request.watch_metadata(&params, version)
        } else {
            request.watch(&params, version)
        };
        Ok(Lines::new(self.send(request).await?))
    }

    async fn send(&self, request: Result<Request<Vec<u8>>, kube::core::request::Error>) -> Result<Body, WatchEnd> {
        let request = request.map_err(|error| WatchEnd::Build(Box::new(error)))?;
        let response =
            self.client.send(request.map(Body::from)).await.map_err(|error| WatchEnd::Send(Box::new(error)))?;
        let code = response.status();
        let body = response.into_body();
        if code.is_success() {
            return Ok(body);
        }
        let bytes = collect(body).await?;
        let status = serde_json::from_slice::<Status>(&bytes)
            .unwrap_or_else(|_| Status::failure(&String::from_utf8_lossy(&bytes), "").with_code(code.as_u16()));
        Err(WatchEnd::Refused(status.boxed()))
    }

    /// Takes one event in. `listed` collects the keys of a streaming list until its end.
    fn take(&mut self, line: &Bytes, listed: &mut Option<HashSet<ObjectKey>>) -> Result<(), WatchEnd> {
        let event: RawEvent<'_> = serde_json::from_slice(line).map_err(WatchEnd::Decode)?;
        if event.kind == "ERROR" {
            let status: Status = serde_json::from_str(event.object.get()).map_err(WatchEnd::Decode)?;
            return Err(WatchEnd::Refused(status.boxed()));
        }
        let head: Head = serde_json::from_str(event.object.get()).map_err(WatchEnd::Decode)?;
        let key = ObjectKey::new(&head.metadata.namespace, &head.metadata.name);
        match event.kind {
            "ADDED" | "MODIFIED" => {
                self.put(&key, event.object);
                if let Some(listed) = listed {
                    listed.insert(key);
                }
            }
            "DELETED" => self.replica.remove(&key),
            "BOOKMARK" if head.metadata.annotations.as_ref().is_some_and(ListEnd::is_marked) => {
                if let Some(listed) = listed.take() {
                    self.replica.retain(&listed);
                    self.position = Position::At(head.metadata.resource_version.clone());
                }
            }
            _ => {}
        }
        if let Position::At(version) = &mut self.position {
            *version = head.metadata.resource_version;
            self.publish();
        }
        Ok(())
    }

    /// Tells those who wait how far the store is.
    fn publish(&self) {
        let Position::At(version) = &self.position else { return };
        let progress = self.replica.progress();
        // Versions of servers before v1.35 may be no numbers: then nobody can wait for one.
        if let Ok(version) = version.parse::<u64>() {
            progress.version.send_if_modified(|reached| {
                let later = version > *reached;
                *reached = version.max(*reached);
                later
            });
        }
        progress.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    fn put(&self, key: &ObjectKey, object: &RawValue) {
        if let Err(error) = self.replica.put(object, self.source.metadata_only) {
            self.replica.progress().undecodable.fetch_add(1, Ordering::Relaxed);
            warn!(path = self.source.path, %key, "decode an object: {error}");
        }
    }

    /// Lists in pages, for servers without streaming lists.
    async fn list_pages(&mut self) -> Result<(), WatchEnd> {
        let mut params = ListParams {
            label_selector: self.source.selection.labels.clone(),
            field_selector: self.source.selection.fields.clone(),
            limit: Some(PAGE_OBJECTS),
            ..ListParams::default()
        };
        let mut listed = HashSet::new();
        loop {
            let request = kube::core::Request::new(&self.source.path);
            let request =
                if self.source.metadata_only { request.list_metadata(&params) } else { request.list(&params) };
            let bytes = collect(self.send(request).await?).await?;
            let page: Page<'_> = serde_json::from_slice(&bytes).map_err(WatchEnd::Decode)?;
            for object in page.items {
                let head: Head = serde_json::from_str(object.get()).map_err(WatchEnd::Decode)?;
                let key = ObjectKey::new(&head.metadata.namespace, &head.metadata.name);
                self.put(&key, object);
                listed.insert(key);
            }
            match page.metadata.next {
                Some(next) if !next.is_empty() => params.continue_token = Some(next),
                _ => {
                    self.replica.retain(&listed);
                    self.position = Position::At(page.metadata.resource_version);
                    self.publish();
                    return Ok(());
                }
            }
        }
    }
}

async fn collect(body: Body) -> Result<Bytes, WatchEnd> {
    let body = body.collect().await.map_err(|error| WatchEnd::Line(LineError::Read(Box::new(error))))?;
    Ok(body.to_bytes())
}

/// Up to twice `wait`, so that many watches that broke together do not return together.
fn with_jitter(wait: Duration) -> Duration {
    let span = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX).max(1);
    wait + Duration::from_nanos(random_u64() % span)
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageHead,
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageHead {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// What every object has, however wrong the rest of it is.
#[derive(Deserialize)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
    annotations: Option<ListEnd>,
}

/// The annotation on the bookmark that ends a streaming list (apimachinery `meta/v1`, InitialEventsAnnotationKey).
#[derive(Deserialize)]
struct ListEnd {
    #[serde(rename = "k8s.io/initial-events-end")]
    mark: Option<String>,
}

impl ListEnd {
    fn is_marked(&self) -> bool {
        self.mark.as_deref() == Some("true")
    }
}
