//! What the node writes about Pods.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource as _};
use serde::Deserialize;
use serde_json::Value;

use crate::pod::PodId;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API has no Pod of this name.
    #[error("the pod {0} is gone")]
    Gone(PodId),
    #[error("{operation} of the pod {id}")]
    Failed {
        operation: &'static str,
        id: PodId,
        #[source]
        source: Box<kube::Error>,
    },
}

#[async_trait]
pub trait PodApi: Send + Sync {
    /// Patches the status (strategic merge).
    async fn patch_status(&self, id: &PodId, body: &Value) -> Result<(), WriteError>;
    /// Removes a Pod that has ended from the API.
    async fn confirm_deletion(&self, id: &PodId) -> Result<(), WriteError>;
    /// Makes the mirror of the static Pod `id`; that there is a Pod of the name already is no error.
    async fn create(&self, id: &PodId, mirror: &Pod) -> Result<(), WriteError>;
}

/// [`PodApi`] over a client.
pub struct ApiPods(pub Client);

/// What is read of the answer to a write: the object itself comes with the watch.
#[derive(Deserialize)]
struct Written {
    metadata: WrittenMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMeta {
    #[serde(default)]
    resource_version: String,
}

impl ApiPods {
    /// Patches the status (strategic merge). Answers with the Pod's resourceVersion after it; zero from a server whose
    /// versions are no numbers (before v1.35).
    pub async fn write_status(&self, id: &PodId, body: &Value) -> Result<u64, WriteError> {
        let failed = |error| write_error("the status update", id, error);
        let request = kube::core::Request::new(Pod::url_path(&(), Some(&id.namespace)))
            .patch_subresource("status", &id.name, &PatchParams::default(), &Patch::Strategic(body))
            .map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        let written: Written = self.0.request(request).await.map_err(failed)?;
        Ok(written.metadata.resource_version.parse().unwrap_or(0))
    }
}

#[async_trait]
impl PodApi for ApiPods {
    async fn patch_status(&self, id: &PodId, body: &Value) -> Result<(), WriteError> {
        self.write_status(id, body).await.map(drop)
    }

    async fn confirm_deletion(&self, id: &PodId) -> Result<(), WriteError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &id.namespace);
        let preconditions = Preconditions { uid: Some(id.uid.clone()), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let deleted = api.delete(&id.name, &params).await;
        deleted.map(|_| ()).map_err(|error| write_error("the final deletion", id, error))
    }

    async fn create(&self, id: &PodId, mirror: &Pod) -> Result<(), WriteError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &id.namespace);
        match api.create(&PostParams::default(), mirror).await {
            Ok(_) => Ok(()),
            // The watch shows it in a moment, and then it is compared.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            // A namespace that is missing may yet be made.
            Err(error) => {
                Err(WriteError::Failed { operation: "the creation", id: id.clone(), source: Box::new(error) })
            }
        }
    }
}

fn write_error(operation: &'static str, id: &PodId, error: kube::Error) -> WriteError {
    match &error {
        kube::Error::Api(status) if status.code == 404 => WriteError::Gone(id.clone()),
        // A 409 is no proof that the Pod is another one by now: a server that was overtaken too often answers so as well. The
        // watch says when a Pod is gone.
        _ => WriteError::Failed { operation, id: id.clone(), source: Box::new(error) },
    }
}
