//! Pulling: one job for each image and set of credentials, whoever waits for it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use carob_kit::Backoff;
use futures_util::FutureExt;
use http::StatusCode;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::blobs::{BlobError, BlobWriter, Lease};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::manifest::{DOCUMENT_LEN_MAX, Descriptor, Document, INDEX_DEPTH_MAX, Machine, Manifest, ManifestError};
use crate::progress::{NoProgress, Progress, ProgressEvent};
use crate::record::{ImageRecord, Names};
use crate::reference::Reference;
use crate::registry::{RegistryError, Session};
use crate::store::{ArchiveSource, Configured, ImageStore, InstallError, LAYERS_MAX, Naming, OpenArchive};

/// Layers of one image that are downloaded at the same time (docker and containerd: 3).
const DOWNLOADS_MAX: usize = 3;
/// Parts of a blob, of up to about 16 KiB each, between the network and the disk.
const CHUNKS_MAX: usize = 32;
/// How many bytes pass between two reports of progress.
const REPORT_LEN: u64 = 256 << 10;

/// A failed pull, shared by all who waited for it.
#[derive(Debug, Clone)]
pub struct PullError(Arc<PullFailure>);

impl PullError {
    /// What went wrong, for those who tell one failure from another.
    pub fn failure(&self) -> &PullFailure {
        &self.0
    }
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for PullError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl From<PullFailure> for PullError {
    fn from(failure: PullFailure) -> Self {
        Self(Arc::new(failure))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PullFailure {
    /// The registry says that there is no such image or tag.
    #[error("image {image} does not exist")]
    NotFound {
        image: String,
        #[source]
        source: Box<RegistryError>,
    },
    /// The registry wants (other) credentials. Many say so, too, of what does not exist.
    #[error("access to image {image} is denied")]
    Denied {
        image: String,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("pull image {image}")]
    Registry {
        image: String,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("manifest {expected} of image {image} has the digest {found}")]
    ManifestDigest { image: String, expected: Digest, found: Digest },
    #[error("manifest of image {image}")]
    Manifest {
        image: String,
        #[source]
        source: ManifestError,
    },
    #[error("manifest of image {image} lists {layers} layers, at most {LAYERS_MAX} are allowed")]
    TooManyLayers { image: String, layers: usize },
    #[error("blob {digest} of image {image} has {len} bytes, at most {max} are allowed")]
    TooLong { image: String, digest: Digest, len: u64, max: u64 },
    #[error("download blob {digest} of image {image}")]
    Download {
        image: String,
        digest: Digest,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("image {image}")]
    Blob {
        image: String,
        #[source]
        source: BlobError,
    },
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The task that did the work panicked: a bug.
    #[error("the pull of {image} failed")]
    Worker {
        image: String,
        #[source]
        source: tokio::task::JoinError,
    },
    /// The task went away without a result: a bug, or the runtime is shutting down.
    #[error("the pull of {image} was given up")]
    GivenUp { image: String },
}

impl PullFailure {
    fn of(reference: &Reference, source: RegistryError) -> Self {
        let image = reference.to_string();
        let status = source.status();
        let source = Box::new(source);
        match status {
            Some(StatusCode::NOT_FOUND) => Self::NotFound { image, source },
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Self::Denied { image, source },
            Some(_) | None => Self::Registry { image, source },
        }
    }
}

type Outcome = Result<Arc<ImageRecord>, PullError>;
type JobKey = (Reference, Option<Credentials>);

/// How often a request that may succeed later is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts before a failure is believed.
    pub attempts_max: u32,
    /// Between two attempts, doubling up to `delay_max`. A host's `Retry-After` goes before it.
    pub delay: Duration,
    pub delay_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts_max: 5, delay: Duration::from_millis(250), delay_max: Duration::from_secs(5) }
    }
}

/// The pulls that are under way.
#[derive(Debug, Default)]
pub(crate) struct Jobs(Mutex<HashMap<JobKey, Weak<Job>>>);

/// One pull. It ends when nobody holds it any more.
#[derive(Debug)]
struct Job {
    outcome: watch::Receiver<Option<Outcome>>,
    listeners: Arc<Listeners>,
    _task: AbortOnDropHandle<()>,
}

/// Everyone who wants to know how far it is.
#[derive(Default)]
struct Listeners(Mutex<Vec<Arc<dyn Progress>>>);

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listeners(..)")
    }
}

impl Progress for Listeners {
    fn event(&self, event: ProgressEvent) {
        for listener in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            listener.event(event.clone());
        }
    }
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobKey, Weak<Job>>> {
        // No holder panics half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    /// Fetches the image that `reference` means now, unpacks it, and names it. Concurrent pulls of one image with the
    /// same credentials share one job, which ends when the last caller drops its future: that is how to cancel.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<ImageRecord>, PullError> {
        let job = self.job(reference, credentials);
        job.listeners.0.lock().unwrap_or_else(PoisonError::into_inner).push(progress);
        let mut outcome = job.outcome.clone();
        let result = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        result.unwrap_or_else(|| Err(PullFailure::GivenUp { image: reference.to_string() }.into()))
    }

    fn job(&self, reference: &Reference, credentials: Option<&Credentials>) -> Arc<Job> {
        let key = (reference.clone(), credentials.cloned());
        let mut jobs = self.inner.jobs.lock();
        let running = jobs.get(&key).and_then(Weak::upgrade).filter(|job| job.outcome.borrow().is_none());
        if let Some(job) = running {
            return job;
        }
        jobs.retain(|_, job| job.strong_count() > 0);
        let (sender, outcome) = watch::channel(None);
        let listeners = Arc::new(Listeners::default());
        let progress: Arc<dyn Progress> = Arc::clone(&listeners) as Arc<dyn Progress>;
        let (store, wanted) = (self.clone(), key.clone());
        let task = tokio::spawn(async move {
            let outcome = Pull { store: &store, reference: &wanted.0, progress: &progress }
                .run(wanted.1.as_ref())
                .await
                .map_err(PullError::from);
            // Whoever waited may have gone in this very moment.
            sender.send_replace(Some(outcome));
        });
        let job = Arc::new(Job { outcome, listeners, _task: AbortOnDropHandle::new(task) });
        jobs.insert(key, Arc::downgrade(&job));
        job
    }
}

/// One pull under way.
struct Pull<'a> {
    store: &'a ImageStore,
    reference: &'a Reference,
    progress: &'a Arc<dyn Progress>,
}

/// A manifest for this machine, and the digest of the document that the name means.
struct Resolved {
    named: Digest,
    digest: Digest,
    bytes: Bytes,
    manifest: Manifest,
}

impl Pull<'_> {
    /// For errors.
    fn image(&self) -> String {
        self.reference.to_string()
    }

    /// Asks one host after the other; the last one's failure is the result.
    async fn run(&self, credentials: Option<&Credentials>) -> Result<Arc<ImageRecord>, PullFailure> {
        let failed = |source| PullFailure::of(self.reference, source);
        let sessions = self.store.inner.registries.sessions(self.reference, credentials).map_err(failed)?;
        let mut failure: Option<PullFailure> = None;
        for session in sessions {
            if let Some(error) = &failure {
                let (image, error, next) = (self.reference, carob_kit::chain(error), session.host());
                tracing::warn!(%image, %error, next, "one host could not serve the image; another one is asked");
            }
            match self.from(&session).await {
                Ok(image) => return Ok(image),
                Err(error) => failure = Some(error),
            }
        }
        let none = || failed(RegistryError::NoAddress { host: self.reference.registry().to_owned() });
        Err(failure.unwrap_or_else(none))
    }

    async fn from(&self, session: &Arc<Session>) -> Result<Arc<ImageRecord>, PullFailure> {
        let resolved = self.resolve(session).await?;
        let manifest = resolved.manifest;
        let config = self.config(session, &manifest.config).await?;
        let configured = Configured::new(config, manifest.layers.len())?;
        let _leases = self.store.lease_layers(&configured);
        let sizes = manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size));
        self.progress.event(ProgressEvent::Resolved { layers: sizes.collect() });
        let slots = Arc::new(Semaphore::new(DOWNLOADS_MAX));
        let archives: Vec<(Digest, ArchiveSource<'_, PullFailure>)> = configured
            .layers()
            .zip(&manifest.layers)
            .map(|(layer, blob)| {
                // What is here stays here, for there is a lease on it: its archive will not be asked for.
                let is_needed = !self.store.has_layer(&layer);
                (blob.digest.clone(), self.archive(session, blob, &slots, is_needed))
            })
            .collect();
        let mut names = Names::default();
        names.tags.extend(self.reference.tagged().filter(|_| self.reference.digest().is_none()));
        names.digests.push(self.reference.with_digest(&resolved.named));
        let naming = Naming { names, manifest: Some((resolved.digest, resolved.bytes.into())) };
        self.store.install(configured, archives, naming, self.progress).await
    }

    /// The manifest for this machine, each document checked against the digest that led to it.
    async fn resolve(&self, session: &Session) -> Result<Resolved, PullFailure> {
        let manifest_error = |source| PullFailure::Manifest { image: self.image(), source };
        let mut expected = self.reference.digest().cloned();
        let mut named = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let name = match &expected {
                Some(digest) => digest.to_string(),
                None => self.reference.tag().unwrap_or_default().to_owned(),
            };
            let (digest, bytes) = retrying(self.store.inner.retry, |_, _| {}, || session.manifest(&name))
                .await
                .map_err(|source| PullFailure::of(self.reference, source))?;
            if let Some(expected) = expected.filter(|expected| *expected != digest) {
                return Err(PullFailure::ManifestDigest { image: self.image(), expected, found: digest });
            }
            let top = named.get_or_insert_with(|| digest.clone()).clone();
            match Document::parse(&bytes).map_err(manifest_error)? {
                Document::Manifest(manifest) if manifest.layers.len() > LAYERS_MAX => {
                    let layers = manifest.layers.len();
                    return Err(PullFailure::TooManyLayers { image: self.image(), layers });
                }
                Document::Manifest(manifest) => return Ok(Resolved { named: top, digest, bytes, manifest }),
                Document::Index(index) => {
                    let chosen = Machine::this().choose(&index).map_err(manifest_error)?;
                    expected = Some(chosen.digest.clone());
                }
            }
        }
        Err(manifest_error(ManifestError::TooDeep))
    }

    /// The configuration: from here when an earlier pull brought it.
    async fn config(&self, session: &Arc<Session>, descriptor: &Descriptor) -> Result<Vec<u8>, PullFailure> {
        self.refuse_longer_than(DOCUMENT_LEN_MAX, descriptor)?;
        let blobs = &self.store.inner.blobs;
        let lease = blobs.leases.take(&descriptor.digest);
        if !blobs.path(&descriptor.digest).exists() {
            // Progress is of layers.
            let progress = Arc::new(NoProgress);
            Download { progress, ..Download::new(self, session, descriptor) }.run().await?;
        }
        let bytes = blobs.read(&descriptor.digest);
        drop(lease);
        bytes.map_err(|source| PullFailure::Blob { image: self.image(), source })
    }

    fn refuse_longer_than(&self, max: u64, descriptor: &Descriptor) -> Result<(), PullFailure> {
        if descriptor.size <= max {
            return Ok(());
        }
        let digest = descriptor.digest.clone();
        Err(PullFailure::TooLong { image: self.image(), digest, len: descriptor.size, max })
    }

    /// A layer's archive. If it is needed, its download starts now and goes on while earlier layers are unpacked; else
    /// it would start when the archive is asked for. It ends when the archive is dropped.
    fn archive(
        &self,
        session: &Arc<Session>,
        blob: &Descriptor,
        slots: &Arc<Semaphore>,
        is_needed: bool,
    ) -> ArchiveSource<'static, PullFailure> {
        if let Err(error) = self.refuse_longer_than(self.store.inner.limits.bytes_max, blob) {
            return async move { Err(error) }.boxed();
        }
        let blobs = &self.store.inner.blobs;
        let lease = Some(blobs.leases.take(&blob.digest));
        let archive = Archive { lease, path: blobs.path(&blob.digest), store: self.store.clone() };
        let download = Download::new(self, session, blob);
        let (slots, image) = (Arc::clone(slots), self.image());
        let run = async move {
            // The semaphore is never closed; without a slot the download would only be less orderly.
            let _slot = slots.acquire_owned().await.ok();
            download.run().await
        };
        let here = if is_needed {
            let task = AbortOnDropHandle::new(tokio::spawn(run));
            let joined = async move { task.await.map_err(|source| PullFailure::Worker { image, source })? };
            joined.boxed()
        } else {
            run.boxed()
        };
        async move {
            here.await?;
            let open: OpenArchive = Box::new(move || {
                let file = fs_err::File::open(&archive.path)?;
                Ok(Box::new(ReadArchive { file: file.into_file(), _archive: archive }))
            });
            Ok(open)
        }
        .boxed()
    }
}

/// The archive of a layer: kept for as long as someone is to unpack it, not longer.
struct Archive {
    lease: Option<Lease>,
    path: std::path::PathBuf,
    store: ImageStore,
}

impl Drop for Archive {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let digest = lease.digest().clone();
        drop(lease);
        if self.store.inner.blobs.leases.is_held(&digest) {
            return;
        }
        if let Err(error) = crate::blobs::remove_if_there(&self.path) {
            tracing::warn!(%error, "the archive of an unpacked layer stays until images are removed");
        }
    }
}

struct ReadArchive {
    file: std::fs::File,
    _archive: Archive,
}

impl io::Read for ReadArchive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// One blob on its way from a host into the store.
struct Download {
    store: ImageStore,
    session: Arc<Session>,
    image: String,
    digest: Digest,
    len: u64,
    progress: Arc<dyn Progress>,
}

impl Download {
    fn new(pull: &Pull<'_>, session: &Arc<Session>, blob: &Descriptor) -> Self {
        Self {
            store: pull.store.clone(),
            session: Arc::clone(session),
            image: pull.image(),
            digest: blob.digest.clone(),
            len: blob.size,
            progress: Arc::clone(pull.progress),
        }
    }

    /// Downloads, from the start again when it breaks off.
    async fn run(&self) -> Result<(), PullFailure> {
        if self.store.inner.blobs.path(&self.digest).exists() {
            return Ok(());
        }
        let report = |attempt, error: &FetchError| {
            let reason = carob_kit::chain(error).to_string();
            self.progress.event(ProgressEvent::Retrying { layer: self.digest.clone(), attempt, reason });
        };
        let image = || self.image.clone();
        retrying(self.store.inner.retry, report, || self.fetch()).await.map_err(|error| match error {
            FetchError::Registry(source) => {
                PullFailure::Download { image: image(), digest: self.digest.clone(), source: Box::new(source) }
            }
            FetchError::Blob(source) => PullFailure::Blob { image: image(), source },
            FetchError::Worker(source) => PullFailure::Worker { image: image(), source },
        })
    }

    async fn fetch(&self) -> Result<(), FetchError> {
        let mut download = self.session.blob(&self.digest).await?;
        let writer = self.store.inner.blobs.writer(&self.digest)?;
        let (chunks, received) = tokio::sync::mpsc::channel(CHUNKS_MAX);
        let len = self.len;
        let write = AbortOnDropHandle::new(tokio::task::spawn_blocking(move || write(writer, received, len)));
        let (mut done, mut reported) = (0, 0);
        while let Some(chunk) = download.chunk().await? {
            done += chunk.len() as u64;
            // The writer ends early only with an error, which is about to be seen.
            if done > self.len || chunks.send(chunk).await.is_err() {
                break;
            }
            if done - reported >= REPORT_LEN {
                reported = done;
                self.report(done);
            }
        }
        drop(chunks);
        write.await.map_err(FetchError::Worker)??;
        if done != self.len {
            let (digest, expected) = (self.digest.clone(), self.len);
            return Err(FetchError::Blob(BlobError::Size { digest, expected, found: done }));
        }
        self.report(done);
        Ok(())
    }

    fn report(&self, done_bytes: u64) {
        let layer = self.digest.clone();
        self.progress.event(ProgressEvent::Downloading { layer, done_bytes, total_bytes: self.len });
    }
}

/// Hashes and writes on a thread that may wait for the disk.
fn write(mut writer: BlobWriter, mut received: tokio::sync::mpsc::Receiver<Bytes>, len: u64) -> Result<(), BlobError> {
    while let Some(chunk) = received.blocking_recv() {
        writer.write(&chunk)?;
    }
    // Less than was promised means that the sender gave up: it says why.
    if writer.len() < len { Ok(()) } else { writer.commit(len) }
}

/// Why one attempt at a blob failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("the worker that wrote the blob failed")]
    Worker(#[source] tokio::task::JoinError),
}

/// Whether and when to try again.
trait Retry {
    fn is_transient(&self) -> bool;
    fn retry_after(&self) -> Option<Duration>;
}

impl Retry for RegistryError {
    fn is_transient(&self) -> bool {
        self.is_transient()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after()
    }
}

impl Retry for FetchError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            // What came over the network was not what was promised; it may be, the next time.
            Self::Blob(BlobError::Size { .. } | BlobError::Digest { .. }) => true,
            Self::Blob(BlobError::Write { .. } | BlobError::Read { .. }) | Self::Worker(_) => false,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registry(error) => error.retry_after(),
            Self::Blob(_) | Self::Worker(_) => None,
        }
    }
}

/// Tries again, with growing delays, what may succeed later. Reports every attempt that follows a failure.
async fn retrying<T, E: Retry, F: Future<Output = Result<T, E>>>(
    policy: RetryPolicy,
    report: impl Fn(u32, &E),
    attempt: impl Fn() -> F,
) -> Result<T, E> {
    let mut backoff = Backoff::new(policy.delay, policy.delay_max);
    loop {
        match attempt().await {
            Err(error) if error.is_transient() && backoff.failures() + 1 < policy.attempts_max => {
                let delay = backoff.fail();
                report(backoff.failures() + 1, &error);
                tokio::time::sleep(error.retry_after().unwrap_or(delay)).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
