//! What is on the machine of Pods that ended while the node was away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use carob_cri::CriError;
use carob_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use carob_kit::Backoff;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Fleet, From, Known, SUBSCRIBE_BASE, SUBSCRIBE_MAX};
use crate::allocation::Allocation;
use crate::config::labels;
use crate::pod::PodId;
use crate::worker::Order;

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
            tracing::warn!(%error, "cannot remove what is left of pods that are gone");
        }
    }

    async fn sweep(&self) -> std::io::Result<()> {
        for entry in fs_err::read_dir(self.tools.dirs.pods())? {
            let uid = entry?.file_name().to_string_lossy().into_owned();
            if self.workers().contains_key(&uid) || self.manifests.borrow().of_uid(&uid).is_some() {
                continue;
            }
            tracing::info!(uid, "removing what is left of a pod that is gone");
            let (tools, of_pod) = (Arc::clone(&self.tools), uid.clone());
            let removed = self.tools.files.run(&uid, "remove what is on disk", move || -> std::io::Result<()> {
                tools.volumes.unmount(&of_pod)?;
                crate::volumes::remove_dir(&tools.dirs.pod(&of_pod))
            });
            removed.await.map_err(std::io::Error::from)??;
        }
        Ok(())
    }
}
