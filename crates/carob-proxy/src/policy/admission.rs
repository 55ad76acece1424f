//! Pods that are about to run: their rules are in force before anything of them can send or be reached.
//!
//! The API shows a Pod's address only after its sandbox is made, and by then its containers may run. So the node says the
//! address itself, and waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_client::ObjectKey;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, oneshot};

/// How long a Pod's start waits for its rules before it is tried again.
const WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
#[error("the network policies of the pod are not in force after {} s", WAIT_MAX.as_secs())]
pub struct NotInForce;

/// A Pod as the node knows it.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) pod: Arc<Pod>,
    pub(super) addresses: Vec<IpAddr>,
    in_force: bool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Pods of this machine that were asked for and are not gone.
    expected: HashMap<ObjectKey, Expected>,
    waiting: Vec<(ObjectKey, oneshot::Sender<()>)>,
    /// Whether the policies are known that rules are made from.
    are_policies_known: bool,
}

/// Where the node says which Pods are about to run. It may be asked before the rules are kept, and is answered once they are.
#[derive(Debug, Default)]
pub struct Admissions {
    inner: Mutex<Inner>,
    arrived: Notify,
}

impl Admissions {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// No holder leaves it half changed.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the rules for the Pod under these addresses are in force. Cancel safe.
    ///
    /// A static Pod does not wait for an API that has not been reached since this process started: its rules follow then.
    pub async fn admit(&self, pod: &Arc<Pod>, addresses: &[IpAddr]) -> Result<(), NotInForce> {
        let is_on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        if is_on_host || addresses.is_empty() {
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.inner();
            let key = ObjectKey::of(&**pod);
            let is_known =
                |known: &&Expected| known.pod.metadata.uid == pod.metadata.uid && known.addresses == addresses;
            match inner.expected.get(&key).filter(is_known) {
                Some(known) if known.in_force => return Ok(()),
                Some(_) => {}
                None => {
                    let expected = Expected { pod: Arc::clone(pod), addresses: addresses.to_vec(), in_force: false };
                    inner.expected.insert(key.clone(), expected);
                }
            }
            // Nobody can say when the API will be reached, and a Pod of a manifest runs without it.
            if !inner.are_policies_known && is_from_manifest(pod) {
                return Ok(());
            }
            inner.waiting.push((key, sender));
        }
        self.arrived.notify_one();
        match tokio::time::timeout(WAIT_MAX, receiver).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotInForce),
        }
    }

    pub(super) fn policies_are_known(&self) {
        self.inner().are_policies_known = true;
    }

    /// Waits for Pods that nobody has looked at.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.inner().waiting.is_empty()
    }

    pub(super) fn take_waiting(&self) -> Vec<(ObjectKey, oneshot::Sender<()>)> {
        std::mem::take(&mut self.inner().waiting)
    }

    pub(super) fn keys(&self) -> Vec<ObjectKey> {
        self.inner().expected.keys().cloned().collect()
    }

    pub(super) fn expected(&self, key: &ObjectKey) -> Option<Expected> {
        self.inner().expected.get(key).cloned()
    }

    /// The rules are written that were made with these.
    pub(super) fn in_force(&self, waiting: Vec<(ObjectKey, oneshot::Sender<()>)>) {
        let mut inner = self.inner();
        for (key, sender) in waiting {
            if let Some(expected) = inner.expected.get_mut(&key) {
                expected.in_force = true;
            }
            // Nobody listens any more where the wait was given up.
            if sender.send(()).is_err() {}
        }
    }

    /// The Pod is gone. Answers whether it was expected.
    pub(super) fn forget(&self, key: &ObjectKey, uid: Option<&str>) -> bool {
        let mut inner = self.inner();
        let is_it = inner.expected.get(key).is_some_and(|known| known.pod.metadata.uid.as_deref() == uid);
        if is_it {
            inner.expected.remove(key);
        }
        is_it
    }
}

/// Whether the Pod comes from a file or a URL of its node, as the kubelet marks it (`pkg/kubelet/types/pod_update.go`).
fn is_from_manifest(pod: &Pod) -> bool {
    const SOURCE: &str = "kubernetes.io/config.source";
    let source = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOURCE));
    source.is_some_and(|source| source != "api")
}
