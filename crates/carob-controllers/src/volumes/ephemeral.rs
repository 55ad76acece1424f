//! The claims of Pods' ephemeral volumes: each Pod owns its own (`pkg/controller/volume/ephemeral`).

use std::sync::Arc;

use carob_api::storage::ephemeral_claim;
use carob_client::{
    During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};

use crate::context::Context;
use crate::namespaces;
use crate::ownership::Owner;
use crate::pod_control::said;
use crate::pods;

pub(crate) struct EphemeralClaims {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    recorder: EventRecorder,
}

impl EphemeralClaims {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            pods: context.informers.of(),
            claims: context.informers.of(),
            recorder: context.recorder("ephemeral_volume"),
            context,
        }
    }

    /// The Pod whose ephemeral volume a claim is or was.
    pub(crate) fn pod_of_claim(change: carob_client::Change<'_, PersistentVolumeClaim>) -> Option<ObjectKey> {
        let owner = pods::controller(&change.latest().metadata).filter(|owner| owner.kind == "Pod")?;
        change.new.is_none().then(|| ObjectKey::new(&*change.key().namespace, &owner.name))
    }

    async fn make(&self, pod: &Arc<Pod>, volume: &Volume) -> Result<(), ReconcileError> {
        let (owner, of_pod) = (Owner::of(&**pod), ObjectKey::of(&**pod));
        let Some(template) = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref()) else {
            return Ok(());
        };
        let name = ephemeral_claim(&of_pod.name, &volume.name);
        if let Some(held) = self.claims.get(Some(&of_pod.namespace), &name) {
            if pods::controller(&held.metadata).is_some_and(|held| held.uid == owner.uid) {
                return Ok(());
            }
            let message = format!(
                "PVC \"{}/{name}\" was not created for pod {of_pod:?}",
                of_pod.namespace,
                of_pod = of_pod.to_string()
            );
            self.recorder.record(reference(&**pod), EventKind::Warning, "FailedMount", message.clone());
            return Err(ReconcileError::Unusable(message));
        }
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let annotations = template.metadata.as_ref().and_then(|meta| meta.annotations.clone());
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            labels,
            annotations,
            owner_references: Some(vec![owner.reference]),
            ..ObjectMeta::default()
        };
        let claim = PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), status: None };
        let api: Api<PersistentVolumeClaim> = self.context.api(&of_pod.namespace);
        match api.create(&PostParams::default(), &claim).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() || namespaces::is_terminating(&status) => {
                Ok(())
            }
            Err(error) => {
                let message = format!("ephemeral volume {}: create PVC {name}: {}", volume.name, said(&error));
                self.recorder.record(reference(&**pod), EventKind::Warning, "FailedCreate", message);
                Err(error).during(|| format!("create claim {}/{name}", of_pod.namespace))
            }
        }
    }
}

impl Reconcile for EphemeralClaims {
    /// A Pod.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "ephemeral-volume"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(pod) = self.pods.get_key(&key).filter(|pod| pods::is_active(pod)) else { return Ok(Requeue::No) };
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut outcome = Ok(());
        for volume in volumes.filter(|volume| volume.ephemeral.is_some()) {
            outcome = outcome.and(self.make(&pod, volume).await);
        }
        outcome.map(|()| Requeue::No)
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.pods.subject(key)
    }
}
