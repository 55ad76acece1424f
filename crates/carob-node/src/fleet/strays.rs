//! What is on the machine of Pods that ended while the node was away.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use carob_cri::CriError;
use carob_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use carob_kit::{Backoff, chain};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Fleet, From, Known, SUBSCRIBE_BASE, SUBSCRIBE_MAX};
use crate::allocation::Allocation;
use crate::config::labels;
use crate::csi::CsiError;
use crate::files::FilesError;
use crate::pod::PodId;
use crate::volumes::UnmountError;
use crate::worker::{Order, Tools};

/// Waits between tries to remove what is left of a Pod.
const SWEEP_BASE: Duration = Duration::from_secs(1);
const SWEEP_MAX: Duration = Duration::from_secs(60);

impl Fleet {
    /// Ends what runs here of Pods that nobody wants any more: they were deleted while the node was away.
    pub(super) async fn end_strays(self: &Arc<Self>, from: From) {
        let mut retry = Backoff::new(SUBSCRIBE_BASE, SUBSCRIBE_MAX);
        loop {
            match self.strays(from).await {
                Ok(strays) => {
                    for pod in strays {
                        let id = PodId::of(&pod);
                        tracing::info!(pod = %id, "ending a pod that is wanted no longer");
                        let order = Order { gone: true, ..Order::new(Arc::new(pod)) };
                        self.start_worker(id, order, Allocation::default(), None);
                    }
                    return;
                }
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(%error, ?delay, "cannot list what the runtime has");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    async fn strays(&self, from: From) -> Result<Vec<Pod>, CriError> {
        let sandboxes = self.tools.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        let containers = self.tools.cri.list_containers(ListContainersRequest::default()).await?.containers;
        let manifests = self.manifests.borrow().clone();
        let mut strays: HashMap<String, Pod> = HashMap::new();
        for sandbox in sandboxes {
            let Some(meta) = sandbox.metadata else { continue };
            let id = PodId { namespace: meta.namespace, name: meta.name, uid: meta.uid };
            let wanted = self.workers().contains_key(&id.uid) || manifests.of_uid(&id.uid).is_some();
            if wanted || id.is_static() != (from == From::Manifests) || strays.contains_key(&id.uid) {
                continue;
            }
            let of_pod = containers.iter().filter(|container| container.labels.get(labels::POD_UID) == Some(&id.uid));
            let names: HashSet<String> =
                of_pod.filter_map(|container| container.metadata.as_ref().map(|meta| meta.name.clone())).collect();
            let containers = names.into_iter().map(|name| Container { name, ..Container::default() }).collect();
            let metadata = ObjectMeta {
                name: Some(id.name),
                namespace: Some(id.namespace),
                uid: Some(id.uid.clone()),
                ..ObjectMeta::default()
            };
            let spec = PodSpec { containers, ..PodSpec::default() };
            strays.insert(id.uid, Pod { metadata, spec: Some(spec), status: None });
        }
        Ok(strays.into_values().collect())
    }

    /// Removes the directories of Pods that nobody knows: they ended while the machine was down. Not before all that could
    /// know them have been heard.
    pub(super) async fn sweep_once(&self, known: &mut Known) {
        if known.swept || !known.api || !known.manifests {
            return;
        }
        known.swept = true;
        if let Err(error) = self.sweep().await {
            tracing::warn!(error = %chain(&error), "cannot remove what is left of pods that are gone");
        }
    }

    async fn sweep(&self) -> Result<(), SweepError> {
        let mut uids: BTreeSet<String> = self.tools.volumes.csi().pods_on_disk().await?.into_iter().collect();
        for entry in fs_err::read_dir(self.tools.dirs.pods())? {
            uids.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        for uid in uids {
            if self.workers().contains_key(&uid) || self.manifests.borrow().of_uid(&uid).is_some() {
                continue;
            }
            tracing::info!(uid, "removing what is left of a pod that is gone");
            let tools = Arc::clone(&self.tools);
            self.until_done("remove what is left of a pod that is gone", move || {
                let (tools, uid) = (Arc::clone(&tools), uid.clone());
                async move { remove(&tools, &uid).await }
            });
        }
        let csi = self.tools.volumes.csi().clone();
        self.until_done("unstage volumes that no pod has", move || {
            let csi = csi.clone();
            async move { csi.unstage_left().await.map_err(SweepError::from) }
        });
        Ok(())
    }

    /// Does the work until it succeeds or the node ends: a driver may have to register first.
    fn until_done<W, F>(&self, what: &'static str, work: W)
    where
        W: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), SweepError>> + Send,
    {
        let shutdown = self.shutdown.clone();
        let repeated = async move {
            let mut retry = Backoff::new(SWEEP_BASE, SWEEP_MAX);
            while let Err(error) = work().await {
                let delay = retry.fail();
                tracing::warn!(error = %chain(&error), ?delay, "cannot {what}");
                tokio::time::sleep(delay).await;
            }
        };
        self.tasks.spawn(async move {
            tokio::select! {
                () = repeated => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn remove(tools: &Arc<Tools>, uid: &str) -> Result<(), SweepError> {
    tools.volumes.unmount(uid).await?;
    let dir = tools.dirs.pod(uid);
    let removed = tools.files.run(uid, "remove what is on disk", move || crate::volumes::remove_dir(&dir));
    Ok(removed.await??)
}

/// Why something of a Pod that is gone is still there.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error(transparent)]
    Csi(#[from] CsiError),
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("remove what is on disk")]
    Io(#[from] std::io::Error),
}
