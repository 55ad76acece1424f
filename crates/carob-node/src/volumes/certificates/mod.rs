//! Certificates of Pods: asked for by the node, given by a signer, renewed in time (`pkg/kubelet/podcertificate`).
//!
//! Each source of a volume has a task of its own ([`life`]) from the first look at its volume until the Pod's end. Volumes take
//! what it shows at the moment, and are made again when it shows something else. A kubelet forgets at a restart what it has
//! asked for and got, and asks anew; here that is noted in memory that lasts ([`records`]).

mod keys;
mod life;
mod records;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_kit::Clock;
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::files::Files;
use crate::objects::Objects;
use crate::paths::PodDirs;
use life::Life;
pub use records::Credentials;
use records::Records;

/// How long a certificate is waited for before its Pod says what it waits for.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("credential bundle is not issued yet: {0}")]
    Waiting(String),
    #[error("PodCertificateRequest was permanently {how}: reason={reason:?} message={message:?}")]
    Refused { how: &'static str, reason: String, message: String },
}

/// One source of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    volume: String,
    source: usize,
}

/// What a source has to show.
type State = Result<Arc<Credentials>, CertificateError>;

struct Live {
    state: watch::Receiver<State>,
    end: CancellationToken,
    task: JoinHandle<()>,
}

/// The certificates of all Pods.
pub struct PodCertificates {
    with: Arc<Surroundings>,
    live: Mutex<HashMap<Key, Live>>,
}

/// What lives work with.
struct Surroundings {
    objects: Arc<dyn Objects>,
    events: Arc<dyn Events>,
    clock: Arc<dyn Clock>,
    records: Records,
    node_name: String,
}

impl PodCertificates {
    pub fn new(
        files: Files,
        dirs: PodDirs,
        objects: Arc<dyn Objects>,
        events: Arc<dyn Events>,
        clock: Arc<dyn Clock>,
        node_name: String,
    ) -> Self {
        let records = Records { files, dirs };
        let with = Surroundings { objects, events, clock, records, node_name };
        Self { with: Arc::new(with), live: Mutex::default() }
    }

    /// The certificate of a source, which is asked for if it was not. One that is to come soon is waited for.
    pub(super) async fn get(
        &self,
        pod: &Arc<Pod>,
        volume: &str,
        (index, source): (usize, &PodCertificateProjection),
    ) -> State {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut state = self.follow(Key { uid, volume: volume.to_owned(), source: index }, pod, source);
        let settled = state.wait_for(|state| !matches!(state, Err(CertificateError::Waiting(_))));
        // Whatever it waits for after that, it says.
        if let Ok(Ok(settled)) = tokio::time::timeout(PATIENCE, settled).await {
            return settled.clone();
        }
        state.borrow().clone()
    }

    fn follow(&self, key: Key, pod: &Arc<Pod>, source: &PodCertificateProjection) -> watch::Receiver<State> {
        let mut live = self.live();
        // A task ends before its Pod where the signer refused. One that panicked is begun anew.
        let is_good = |known: &&Live| !known.task.is_finished() || is_refused(&known.state.borrow());
        if let Some(known) = live.get(&key).filter(is_good) {
            return known.state.clone();
        }
        let begin = CertificateError::Waiting("it has not been asked for".to_owned());
        let (sender, state) = watch::channel(Err(begin));
        let end = CancellationToken::new();
        let (pod, source) = (Arc::clone(pod), source.clone());
        let life =
            Life { with: Arc::clone(&self.with), key: key.clone(), pod, source, state: sender, end: end.clone() };
        let task = tokio::spawn(life.run());
        live.insert(key, Live { state: state.clone(), end, task });
        state
    }

    /// Tells when what the Pod's sources show changes, one for each.
    pub(crate) fn changes(&self, uid: &str) -> Vec<Changes> {
        let live = self.live();
        live.iter().filter(|(key, _)| key.uid == uid).map(|(_, live)| Changes(live.state.clone())).collect()
    }

    /// Ends what is done for the Pod, and waits for it: nothing is written after that.
    pub(super) async fn end(&self, uid: &str) {
        let ended: Vec<Live> = self.live().extract_if(|key, _| key.uid == uid).map(|(_, live)| live).collect();
        for live in ended {
            live.end.cancel();
            // One that panicked has ended too, which is logged where it did.
            drop(live.task.await);
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Key, Live>> {
        self.live.lock().expect("no holder of the certificates panics")
    }
}

fn is_refused(state: &State) -> bool {
    matches!(state, Err(CertificateError::Refused { .. }))
}

/// See [`PodCertificates::changes`].
pub(crate) struct Changes(watch::Receiver<State>);

impl Changes {
    /// Ready after the next change. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The Pod has ended.
            std::future::pending::<()>().await;
        }
    }
}
