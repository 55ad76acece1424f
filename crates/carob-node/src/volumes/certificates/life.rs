//! One certificate of a Pod, from the request for the first to the end of the Pod.

use std::sync::Arc;
use std::time::Duration;

use carob_api::pem;
use carob_kit::{Backoff, chain};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::keys::{self, KeyError};
use super::records::{Credentials, Pending, Record};
use super::{CertificateError, Key, State, Surroundings};
use crate::events::Subject;
use crate::objects::{FetchError, Reference};
use crate::plan::after;

/// Waits between two tries to ask, or to read the answer.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// So much later than a signer says a certificate is renewed at the most, so that those that came together do not go together.
const JITTER_S: u64 = 5 * 60;
/// How late a renewal is before its Pod is told.
const OVERDUE: Duration = Duration::from_secs(10 * 60);
/// The longest sleep: a clock that is set, or a machine that slept, is noticed after so long.
const SLEEP_MAX: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("service account {0:?} not found")]
    NoAccount(String),
    #[error("node {0:?} not found")]
    NoNode(String),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Issued(Credentials),
    Refused {
        how: &'static str,
        reason: String,
        message: String,
    },
    /// It was removed without an answer.
    Gone,
}

pub(super) struct Life {
    pub(super) with: Arc<Surroundings>,
    pub(super) key: Key,
    pub(super) pod: Arc<Pod>,
    pub(super) source: PodCertificateProjection,
    pub(super) state: watch::Sender<State>,
    pub(super) end: CancellationToken,
}

/// What a Pod is told of a certificate that is not renewed, and when.
struct Notice {
    at: Timestamp,
    reason: &'static str,
    message: &'static str,
}

impl Life {
    /// Runs until the Pod ends, or until the signer refuses.
    pub(super) async fn run(self) {
        let mut record = self.with.records.read(&self.key).await;
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        loop {
            if let Some(issued) = &record.issued {
                self.show(Ok(Arc::new(issued.clone())));
                // A request that was made before a restart is not made again.
                if record.pending.is_none() && self.sleep_until(issued.refresh_at).await.is_none() {
                    return;
                }
            }
            if record.pending.is_none() {
                let Some(pending) = self.ask_until_done(record.issued.is_some(), &mut retry).await else { return };
                record.pending = Some(pending);
                self.note(&record).await;
            }
            let Some(pending) = &record.pending else { continue };
            let Some(outcome) = self.outcome(pending, record.issued.as_ref()).await else { return };
            match outcome {
                Outcome::Issued(issued) => {
                    retry.reset();
                    record = Record { issued: Some(issued), pending: None };
                    self.note(&record).await;
                }
                Outcome::Refused { how, reason, message } => {
                    record.pending = None;
                    self.note(&record).await;
                    self.show(Err(CertificateError::Refused { how, reason, message }));
                    return;
                }
                Outcome::Gone => {
                    record.pending = None;
                    if self.wait(retry.fail()).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Nobody may look any more.
    fn show(&self, state: State) {
        self.state.send_if_modified(|shown| {
            let changes = *shown != state;
            *shown = state;
            changes
        });
    }

    fn tell(&self, reason: &str, message: String) {
        self.with.events.warning(&Subject::pod(&self.pod), reason, message);
    }

    /// Without a record, a restart asks again, as a kubelet does.
    async fn note(&self, record: &Record) {
        if let Err(error) = self.with.records.write(&self.key, record).await {
            warn!(pod = self.key.uid, volume = self.key.volume, error = %chain(&error), "a certificate is not noted");
        }
    }

    /// `None` when the Pod ends.
    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.end.run_until_cancelled(work).await
    }

    async fn wait(&self, time: Duration) -> Option<()> {
        self.unless_ended(tokio::time::sleep(time)).await
    }

    async fn sleep_until(&self, at: Timestamp) -> Option<()> {
        loop {
            let left = Duration::try_from(at.duration_since(self.with.clock.now())).unwrap_or(Duration::ZERO);
            if left.is_zero() {
                return Some(());
            }
            self.wait(left.min(SLEEP_MAX)).await?;
        }
    }

    async fn ask_until_done(&self, renews: bool, retry: &mut Backoff) -> Option<Pending> {
        loop {
            let error = match self.unless_ended(self.ask()).await? {
                Ok(pending) => return Some(pending),
                Err(error) => error,
            };
            if renews {
                let (pod, volume) = (&self.key.uid, &self.key.volume);
                warn!(pod, volume, error = %chain(&error), "a certificate cannot be renewed");
            } else {
                self.show(Err(CertificateError::Waiting(chain(&error).to_string())));
            }
            self.wait(retry.fail()).await?;
        }
    }

    async fn ask(&self) -> Result<Pending, AskError> {
        let (objects, node) = (&self.with.objects, &self.with.node_name);
        let (meta, namespace) = (&self.pod.metadata, self.namespace());
        let account_name =
            self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
        let account = objects.service_account(namespace, &account_name).await?;
        let account = account.ok_or_else(|| AskError::NoAccount(format!("{namespace}/{account_name}")))?;
        let node_object = objects.node(node).await?.ok_or_else(|| AskError::NoNode(node.clone()))?;
        let key = keys::Key::make(&self.source.key_type)?;
        let (pod_name, pod_uid) = (meta.name.clone().unwrap_or_default(), self.key.uid.clone());
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                generate_name: Some("req-".to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: pod_name.clone(),
                    uid: pod_uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: self.source.signer_name.clone(),
                pod_name,
                pod_uid,
                service_account_name: account_name,
                service_account_uid: account.metadata.uid.clone().unwrap_or_default(),
                node_name: node.clone(),
                node_uid: node_object.metadata.uid.clone().unwrap_or_default(),
                max_expiration_seconds: self.source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(key.request_der),
                unverified_user_annotations: self.source.user_annotations.clone(),
                ..PodCertificateRequestSpec::default()
            },
            status: None,
        };
        let made = objects.create_certificate_request(&request).await?;
        Ok(Pending { request: made.metadata.name.unwrap_or_default(), key_pem: key.pem })
    }

    /// Waits for the signer. `None` when the Pod ends.
    async fn outcome(&self, pending: &Pending, issued: Option<&Credentials>) -> Option<Outcome> {
        let (namespace, name) = (self.namespace(), pending.request.as_str());
        let shown = format!("PodCertificateRequest {namespace}/{name}");
        if issued.is_none() {
            let why = format!("{shown} waits for signer {:?}", self.source.signer_name);
            self.show(Err(CertificateError::Waiting(why)));
        }
        let mut watch = self.with.objects.watch(&Reference::CertificateRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: self.with.node_name.clone(),
        });
        let mut notices = notices(issued).into_iter().peekable();
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        loop {
            let read = self.with.objects.certificate_request(namespace, name);
            let again = match self.unless_ended(read).await? {
                Ok(request) => {
                    if let Some(outcome) = outcome(request.as_deref(), pending) {
                        if let Outcome::Refused { how, reason, message } = &outcome {
                            let (event, said) =
                                if *how == "denied" { ("Denied", "was denied") } else { ("Failed", "failed") };
                            self.tell(event, format!("{shown} {said}, reason={reason:?}, message={message:?}"));
                        }
                        return Some(outcome);
                    }
                    None
                }
                Err(error) => {
                    warn!(request = %shown, error = %chain(&error), "the answer to a request cannot be read");
                    Some(retry.fail())
                }
            };
            let next = notices.peek().map(|notice| notice.at);
            tokio::select! {
                changed = self.unless_ended(watch.changed()) => changed?,
                Some(()) = async { self.wait(again?).await } => {}
                Some(()) = async { self.sleep_until(next?).await } => {
                    if let Some(due) = notices.next() {
                        self.tell(due.reason, due.message.to_owned());
                    }
                }
            }
        }
    }
}

/// What is to be told while `issued` is not renewed, in order.
fn notices(issued: Option<&Credentials>) -> Vec<Notice> {
    let Some(issued) = issued else { return Vec::new() };
    let mut notices = vec![
        Notice {
            at: after(issued.refresh_at, OVERDUE),
            reason: "CertificateOverdueForRefresh",
            message: "PodCertificate refresh overdue",
        },
        Notice { at: issued.not_after, reason: "CertificateExpired", message: "PodCertificate expired" },
    ];
    notices.sort_by_key(|notice| notice.at);
    notices
}

/// How a request ended, if it did. Pure but for the jitter.
fn outcome(request: Option<&PodCertificateRequest>, pending: &Pending) -> Option<Outcome> {
    let Some(request) = request else { return Some(Outcome::Gone) };
    let status = request.status.as_ref()?;
    let condition = status.conditions.iter().flatten().find(|condition| {
        matches!(condition.type_.as_str(), "Issued" | "Denied" | "Failed") && condition.status == "True"
    })?;
    let refused =
        |how| Some(Outcome::Refused { how, reason: condition.reason.clone(), message: condition.message.clone() });
    match condition.type_.as_str() {
        "Denied" => refused("denied"),
        "Failed" => refused("failed"),
        _ => issued(status, pending).map(Outcome::Issued),
    }
}

/// `None` where times are missing, which the API lets nobody write.
fn issued(status: &PodCertificateRequestStatus, pending: &Pending) -> Option<Credentials> {
    let jitter = Duration::from_millis(carob_kit::random_u64() % (JITTER_S * 1000));
    let blocks = pem::blocks(status.certificate_chain.as_deref()?);
    Some(Credentials {
        key_pem: pending.key_pem.clone(),
        // Nothing that stands between certificates.
        chain_pem: blocks.map(|block| pem::encode(pem::CERTIFICATE, &block.contents)).collect(),
        refresh_at: after(status.begin_refresh_at.as_ref()?.0, jitter),
        not_after: status.not_after.as_ref()?.0,
    })
}
