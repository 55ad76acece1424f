//! What the node writes about Pods.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::Value;

use crate::pod::PodId;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The Pod is gone, or is another one by now: nothing is left to write.
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
}

/// [`PodApi`] over a client.
pub struct ApiPods(pub Client);

#[async_trait]
impl PodApi for ApiPods {
    async fn patch_status(&self, id: &PodId, body: &Value) -> Result<(), WriteError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &id.namespace);
        let patched = api.patch_status(&id.name, &PatchParams::default(), &Patch::Strategic(body)).await;
        patched.map(|_| ()).map_err(|error| write_error("the status update", id, error))
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
}

fn write_error(operation: &'static str, id: &PodId, error: kube::Error) -> WriteError {
    match &error {
        // 409 is the uid of the body or the precondition that no longer fits.
        kube::Error::Api(status) if status.code == 404 || status.code == 409 => WriteError::Gone(id.clone()),
        _ => WriteError::Failed { operation, id: id.clone(), source: Box::new(error) },
    }
}
