//! Removes PodCertificateRequests that are no longer of use (`pkg/controller/certificates/cleaner/pcrcleaner.go`).

use std::time::Duration;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::context::Context;

/// How long a request is kept, whatever became of it: all who have to do with it are faster.
const KEPT: Duration = Duration::from_secs(15 * 60);

pub(crate) struct PodCertificateCleaner {
    context: Context,
    requests: Informer<PodCertificateRequest>,
}

impl PodCertificateCleaner {
    pub(crate) fn new(context: Context) -> Self {
        Self { requests: context.informers.of(), context }
    }

    pub(crate) fn requests(&self) -> &Informer<PodCertificateRequest> {
        &self.requests
    }
}

/// How long the request is still kept. Pure.
fn left(request: &PodCertificateRequest, now: Timestamp) -> Option<Duration> {
    let end = request.metadata.creation_timestamp.as_ref()?.0.checked_add(KEPT).ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

impl Reconcile for PodCertificateCleaner {
    /// A PodCertificateRequest.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "podcertificaterequestcleaner"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let request = self.requests.get_key(&key).filter(|request| request.metadata.deletion_timestamp.is_none());
        let Some(request) = request else { return Ok(Requeue::No) };
        let Some(left) = left(&request, self.context.now()) else { return Ok(Requeue::No) };
        if !left.is_zero() {
            return Ok(Requeue::After(left));
        }
        let preconditions = Preconditions { uid: request.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api: Api<PodCertificateRequest> =
            self.context.api(request.metadata.namespace.as_deref().unwrap_or_default());
        let deleted = api.delete(&key.name, &params).await;
        deleted.unless_gone(|| format!("delete pod certificate request {key}"))?;
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;

    #[test]
    fn a_request_is_kept_for_a_quarter_of_an_hour() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let metadata = ObjectMeta { creation_timestamp: Some(Time(at(1000))), ..ObjectMeta::default() };
        let request = PodCertificateRequest { metadata, ..PodCertificateRequest::default() };
        assert_eq!(left(&request, at(1000)), Some(KEPT));
        assert_eq!(left(&request, at(1899)), Some(Duration::from_secs(1)));
        assert_eq!(left(&request, at(1900)), Some(Duration::ZERO));
        assert_eq!(left(&request, at(5000)), Some(Duration::ZERO));
        assert_eq!(left(&PodCertificateRequest::default(), at(5000)), None);
    }
}
