//! Images for containers: whether to pull, with which credentials, and when to try again.

mod credentials;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carob_cri::v1::{Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use carob_cri::{Cri, CriError, PullProgress};
use carob_kit::{Backoff, Clock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ImageVolumeSource, Pod};
use tokio::sync::{Semaphore, watch};

use crate::events::{Events, Subject};
use crate::objects::{FetchError, Objects};
use crate::plan::FailureReason;
use crate::pod::{Member, PodId};

/// First and longest wait after a failed pull (kubelet `imageBackOffPeriod`, `MaxContainerBackOff`).
const BACKOFF_BASE: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Time for which a failed pull shows its error before it shows that it waits.
const ERROR_SHOWN: Duration = Duration::from_secs(1);
/// Pulls under way at a time on a node; further ones wait for their turn.
const PULLS_MAX: usize = 3;
/// Time between two events on how far a pull is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// An image that a container can be made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// The image's id.
    pub id: String,
    pub image: Image,
}

/// An image that something of a Pod needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    name: String,
    /// `None`: as the name's tag has it.
    policy: Option<String>,
    /// Whose events tell of it.
    subject: Subject,
}

impl Wanted {
    /// What a container is made from.
    pub fn by_container(pod: &Pod, member: &Member<'_>) -> Self {
        Self {
            name: member.spec.image.clone().unwrap_or_default(),
            policy: member.spec.image_pull_policy.clone(),
            subject: Subject::container(pod, member),
        }
    }

    /// What is mounted as a volume.
    pub fn by_volume(pod: &Pod, source: &ImageVolumeSource) -> Self {
        Self {
            name: source.reference.clone().unwrap_or_default(),
            policy: source.pull_policy.clone(),
            subject: Subject::pod(pod),
        }
    }
}

/// Why there is no image, in the words of the container's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageError {
    pub reason: FailureReason,
    pub message: String,
    pub retry_at: Timestamp,
}

/// Pulls of one Pod that failed, by image.
#[derive(Debug, Default)]
pub struct Attempts(BTreeMap<String, Attempt>);

#[derive(Debug)]
struct Attempt {
    backoff: Backoff,
    until: Timestamp,
    error: String,
}

pub struct Images {
    cri: Arc<dyn Cri>,
    objects: Arc<dyn Objects>,
    events: Arc<dyn Events>,
    clock: Arc<dyn Clock>,
    turns: Semaphore,
}

impl Images {
    pub fn new(cri: Arc<dyn Cri>, objects: Arc<dyn Objects>, events: Arc<dyn Events>, clock: Arc<dyn Clock>) -> Self {
        Self { cri, objects, events, clock, turns: Semaphore::new(PULLS_MAX) }
    }

    /// Sees to it that an image is here, as its pull policy wants (kubelet `EnsureImageExists`).
    pub async fn ensure(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        sandbox: &PodSandboxConfig,
        attempts: &std::sync::Mutex<Attempts>,
    ) -> Result<Ready, ImageError> {
        let Wanted { name, policy, subject } = wanted;
        let reference = self.reference(name, subject)?;
        let present = self.status(&reference).await.map_err(|error| {
            let message = format!("Failed to inspect image {name:?}: {error}");
            self.events.warning(subject, "InspectFailed", message.clone());
            self.failure(FailureReason::ImageInspectError, message)
        })?;
        let policy = policy.as_deref().unwrap_or_else(|| default_policy(&reference));
        match (policy, present) {
            ("Never", None) => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                self.events.warning(subject, "ErrImageNeverPull", message.clone());
                Err(self.failure(FailureReason::ErrImageNeverPull, message))
            }
            ("Never" | "IfNotPresent", Some(image)) => {
                let message =
                    format!("Container image {name:?} already present on machine and can be accessed by the pod");
                self.events.normal(subject, "Pulled", message);
                Ok(Ready { id: image.id.clone(), image })
            }
            // An image that was imported under this name has no registry that could have a newer one.
            ("Always", Some(image)) if is_imported(&image) => {
                let message =
                    format!("Container image {name:?} was imported on this machine: no registry is asked for it");
                self.events.normal(subject, "Pulled", message);
                Ok(Ready { id: image.id.clone(), image })
            }
            _ => {
                self.check_backoff(name, subject, attempts)?;
                self.pull(pod, name, &reference, sandbox, subject, attempts).await
            }
        }
    }

    fn reference(&self, name: &str, subject: &Subject) -> Result<String, ImageError> {
        with_default_tag(name).map_err(|why| {
            let message =
                format!("Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {why}");
            self.events.warning(subject, "InspectFailed", message.clone());
            self.failure(FailureReason::InvalidImageName, message)
        })
    }

    async fn status(&self, reference: &str) -> Result<Option<Image>, CriError> {
        let spec = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
        Ok(self.cri.image_status(ImageStatusRequest { image: Some(spec), verbose: false }).await?.image)
    }

    fn failure(&self, reason: FailureReason, message: String) -> ImageError {
        ImageError { reason, message, retry_at: crate::plan::after(self.clock.now(), BACKOFF_BASE) }
    }

    fn check_backoff(
        &self,
        name: &str,
        subject: &Subject,
        attempts: &std::sync::Mutex<Attempts>,
    ) -> Result<(), ImageError> {
        let attempts = attempts.lock().expect("no holder of the attempts panics");
        let Some(attempt) = attempts.0.get(name).filter(|attempt| self.clock.now() < attempt.until) else {
            return Ok(());
        };
        self.events.normal(subject, "BackOff", format!("Back-off pulling image {name:?}"));
        let message = format!("Back-off pulling image {name:?}: ErrImagePull: {}", attempt.error);
        Err(ImageError { reason: FailureReason::ImagePullBackOff, message, retry_at: attempt.until })
    }

    async fn pull(
        &self,
        pod: &Pod,
        name: &str,
        reference: &str,
        sandbox: &PodSandboxConfig,
        subject: &Subject,
        attempts: &std::sync::Mutex<Attempts>,
    ) -> Result<Ready, ImageError> {
        let asked = self.clock.monotonic();
        let turn = self.turns.acquire().await;
        debug_assert!(turn.is_ok(), "the semaphore is never closed");
        self.events.normal(subject, "Pulling", format!("Pulling image {name:?}"));
        let began = self.clock.monotonic();
        let pulled = self.pull_with_secrets(pod, reference, sandbox, subject).await;
        let image = match pulled {
            Ok(()) => self.status(reference).await.map_err(|error| error.message),
            Err(message) => Err(message),
        };
        let ended = self.clock.monotonic();
        match image {
            Ok(Some(image)) => {
                attempts.lock().expect("no holder of the attempts panics").0.remove(name);
                let message = format!(
                    "Successfully pulled image {name:?} in {} ({} including waiting). Image size: {} bytes.",
                    millis(ended.saturating_sub(began)),
                    millis(ended.saturating_sub(asked)),
                    image.size
                );
                self.events.normal(subject, "Pulled", message);
                Ok(Ready { id: image.id.clone(), image })
            }
            Ok(None) => {
                Err(self.pull_failed(name, "the image vanished after it was pulled".to_owned(), subject, attempts))
            }
            Err(message) => Err(self.pull_failed(name, message, subject, attempts)),
        }
    }

    fn pull_failed(
        &self,
        name: &str,
        error: String,
        subject: &Subject,
        attempts: &std::sync::Mutex<Attempts>,
    ) -> ImageError {
        self.events.warning(subject, "Failed", format!("Failed to pull image {name:?}: {error}"));
        self.events.warning(subject, "Failed", "Error: ErrImagePull".to_owned());
        let now = self.clock.now();
        let mut attempts = attempts.lock().expect("no holder of the attempts panics");
        let attempt = attempts.0.entry(name.to_owned()).or_insert_with(|| Attempt {
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
            until: now,
            error: String::new(),
        });
        attempt.until = crate::plan::after(now, attempt.backoff.fail());
        attempt.error.clone_from(&error);
        let retry_at = crate::plan::after(now, ERROR_SHOWN);
        ImageError { reason: FailureReason::ErrImagePull, message: error, retry_at }
    }

    /// Tries each credential that fits the registry, then none. The error is the last one.
    async fn pull_with_secrets(
        &self,
        pod: &Pod,
        reference: &str,
        sandbox: &PodSandboxConfig,
        subject: &Subject,
    ) -> Result<(), String> {
        let secrets = self.secrets(pod).await.map_err(|error| carob_kit::chain(&error).to_string())?;
        let mut keys: Vec<_> = credentials::matching(&secrets, reference).into_iter().map(Some).collect();
        if keys.is_empty() {
            keys.push(None);
        }
        let mut last = String::new();
        for auth in keys {
            let spec = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
            let request = PullImageRequest { image: Some(spec), auth, sandbox_config: Some(sandbox.clone()) };
            match self.pull_telling(request, reference, subject).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error.message,
            }
        }
        Err(last)
    }

    async fn secrets(&self, pod: &Pod) -> Result<Vec<Arc<k8s_openapi::api::core::v1::Secret>>, FetchError> {
        let id = PodId::of(pod);
        let mut found = Vec::new();
        for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            // One that is missing is passed over: the image may be public (kubelet getPullSecretsForPod).
            found.extend(self.objects.secret(&id.namespace, &reference.name).await?);
        }
        Ok(found)
    }

    /// Pulls and tells from time to time how far it is.
    async fn pull_telling(&self, request: PullImageRequest, name: &str, subject: &Subject) -> Result<(), CriError> {
        let (progress, seen) = watch::channel(PullProgress::default());
        let pull = self.cri.pull_image_with_progress(request, progress);
        tokio::pin!(pull);
        loop {
            tokio::select! {
                done = &mut pull => return done.map(|_| ()),
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    let PullProgress { bytes_done, bytes_total, layers_done, layers_total } = *seen.borrow();
                    let message = format!(
                        "Pulling image {name:?}: {} of {} MiB, {layers_done} of {layers_total} layers",
                        bytes_done >> 20,
                        bytes_total >> 20
                    );
                    self.events.normal(subject, "Pulling", message);
                }
            }
        }
    }
}

/// A duration as Go prints it, rounded to milliseconds as upstream does in this message.
fn millis(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        format!("{ms}ms")
    } else {
        format!("{}s", duration.as_secs_f64().mul_add(1000.0, 0.5).floor() / 1000.0)
    }
}

/// Whether an image came out of an archive: what a registry gave has the digest under which that registry knows it.
fn is_imported(image: &Image) -> bool {
    image.repo_digests.is_empty()
}

/// `Always` for `latest`, else `IfNotPresent` (API defaults, for Pods that did not pass through them).
fn default_policy(reference: &str) -> &'static str {
    if reference.ends_with(":latest") { "Always" } else { "IfNotPresent" }
}

/// Appends `:latest` to a name that has neither tag nor digest. The error says what is wrong with the name.
fn with_default_tag(name: &str) -> Result<String, &'static str> {
    const BAD: &str = "invalid reference format";
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(BAD);
    }
    let last_slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[last_slash..].rfind(':') {
        Some(colon) => (&rest[..last_slash + colon], Some(&rest[last_slash + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) || !is_path(path) {
        return Err(BAD);
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{name}:latest") } else { name.to_owned() })
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128 && bytes.next().is_some_and(word) && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn is_path(path: &str) -> bool {
    let (host, rest) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, path),
    };
    let part_fine = |part: &str| {
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        edge(part.bytes().next())
            && edge(part.bytes().next_back())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
    };
    let host_fine = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
    };
    host.is_none_or(host_fine) && !rest.is_empty() && rest.split('/').all(part_fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_or_are_refused() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for (name, expect) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.2", Some("nginx:1.2")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("registry.example/a/b:v1", Some("registry.example/a/b:v1")),
            ("[::1]:5000/a", Some("[::1]:5000/a:latest")),
            (digest.as_str(), Some(digest.as_str())),
            ("", None),
            ("Nginx", None),
            ("a b", None),
            ("a/", None),
            ("a:", None),
            ("a@sha256:12", None),
            ("-a", None),
            ("a//b", None),
        ] {
            assert_eq!(with_default_tag(name).ok().as_deref(), expect, "{name}");
        }
    }

    #[test]
    fn durations_read_as_upstream_prints_them() {
        assert_eq!(millis(Duration::from_millis(12)), "12ms");
        assert_eq!(millis(Duration::from_micros(1_234_400)), "1.234s");
        assert_eq!(millis(Duration::from_secs(61)), "61s");
    }
}
