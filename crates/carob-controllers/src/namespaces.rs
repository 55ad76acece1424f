//! What controllers that put one object into each namespace share.

use carob_client::{During, ReconcileError};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::PostParams;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let terminating = namespace.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Terminating");
    namespace.metadata.deletion_timestamp.is_none() && !terminating
}

/// Creates an object unless it is there already or its namespace is going away.
pub(crate) async fn create_in<K>(
    api: &Api<K>,
    object: &K,
    operation: impl FnOnce() -> String,
) -> Result<(), ReconcileError>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status))
            if status.is_already_exists() || is_terminating(&status) || status.is_not_found() =>
        {
            Ok(())
        }
        created => created.during(operation).map(drop),
    }
}

/// Whether a request was refused because its namespace is being deleted.
pub(crate) fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
