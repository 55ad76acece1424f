//! The claims of a StatefulSet's Pods: made before their Pods, and owned as the retention policy says
//! (`pkg/controller/statefulset/stateful_pod_control.go`).

use carob_client::{During, EventKind, Informer, ReconcileError};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::identity;
use crate::context::Context;
use crate::ownership::Owner;
use crate::pod_control::{PodControl, said};

const DELETE: &str = "Delete";

pub(super) struct Claims {
    context: Context,
    informer: Informer<PersistentVolumeClaim>,
}

/// Which owners take a claim with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    with_set: bool,
    with_pod: bool,
}

fn policy(set: &StatefulSet) -> Policy {
    let policy =
        set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.clone()).unwrap_or_default();
    Policy {
        with_set: policy.when_deleted.as_deref() == Some(DELETE),
        with_pod: policy.when_scaled.as_deref() == Some(DELETE),
    }
}

/// The owners that a claim should have; others' references stay. `pod` is its Pod where that is on its way out for good.
fn wanted_owners(held: &[OwnerReference], set: &Owner, pod: Option<&Owner>, policy: Policy) -> Vec<OwnerReference> {
    let ours = |reference: &OwnerReference| reference.kind == "StatefulSet" || reference.kind == "Pod";
    let mut owners: Vec<OwnerReference> = held.iter().filter(|reference| !ours(reference)).cloned().collect();
    // A Pod that is scaled away takes its claim along; the whole set's end does so only where no Pod does already.
    match pod.filter(|_| policy.with_pod) {
        Some(pod) => owners.push(OwnerReference { controller: Some(true), ..pod.reference.clone() }),
        None if policy.with_set => owners.push(set.reference.clone()),
        None => {}
    }
    owners
}

impl Claims {
    pub(super) fn new(context: Context) -> Self {
        Self { informer: context.informers.of(), context }
    }

    pub(super) fn informer(&self) -> &Informer<PersistentVolumeClaim> {
        &self.informer
    }

    /// Makes the claims of a Pod that is about to be made. Answers whether it may be made: not while an old claim of that
    /// name is still on its way out.
    pub(super) async fn ensure(
        &self,
        control: &PodControl,
        owner: &Owner,
        set: &StatefulSet,
        reference: &ObjectReference,
        ordinal: i32,
    ) -> Result<bool, ReconcileError> {
        let api: Api<PersistentVolumeClaim> = self.context.api(&owner.key.namespace);
        for (_, mut claim) in identity::claims(set, ordinal) {
            let name = claim.name_any();
            if let Some(held) = self.informer.get(Some(&owner.key.namespace), &name) {
                if held.metadata.deletion_timestamp.is_some() {
                    return Ok(false);
                }
                continue;
            }
            let owners = wanted_owners(&[], owner, None, policy(set));
            claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            let pod = format!("{}-{ordinal}", owner.key.name);
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let message = format!("create Claim {name} Pod {pod} in StatefulSet {} success", owner.key.name);
                    control.recorder().record(reference.clone(), EventKind::Normal, "SuccessfulCreate", message);
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => {
                    let message = format!(
                        "create Claim {name} for Pod {pod} in StatefulSet {} failed error: {}",
                        owner.key.name,
                        said(&error)
                    );
                    control.recorder().record(reference.clone(), EventKind::Warning, "FailedCreate", message);
                    return Err(error).during(|| format!("create claim {}/{name}", owner.key.namespace));
                }
            }
        }
        Ok(true)
    }

    /// Puts the owners of an existing Pod's claims right. `condemned` says that the Pod is beyond the number of replicas.
    pub(super) async fn keep_owners(
        &self,
        owner: &Owner,
        set: &StatefulSet,
        ordinal: i32,
        pod: &Pod,
        condemned: bool,
    ) -> Result<(), ReconcileError> {
        let api: Api<PersistentVolumeClaim> = self.context.api(&owner.key.namespace);
        let pod = condemned.then(|| Owner::of(pod));
        for (_, template) in identity::claims(set, ordinal) {
            let name = template.name_any();
            let Some(claim) = self.informer.get(Some(&owner.key.namespace), &name) else { continue };
            let held = claim.metadata.owner_references.clone().unwrap_or_default();
            let wanted = wanted_owners(&held, owner, pod.as_ref(), policy(set));
            if wanted == held {
                continue;
            }
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": wanted,
            }});
            let written = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            written.unless_gone(|| format!("set the owners of claim {}/{name}", owner.key.namespace))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_goes_with_its_set_or_with_its_pod_as_the_policy_says() {
        let owner =
            |kind: &str, uid: &str| OwnerReference { kind: kind.into(), uid: uid.into(), ..OwnerReference::default() };
        let mut set = Owner::of(&StatefulSet::default());
        set.reference = owner("StatefulSet", "s");
        let mut pod = Owner::of(&Pod::default());
        pod.reference = owner("Pod", "p");
        let other = owner("Other", "o");
        let shown = |held: &[OwnerReference], pod: Option<&Owner>, with_set, with_pod| {
            let owners = wanted_owners(held, &set, pod, Policy { with_set, with_pod });
            owners.iter().map(|owner| owner.uid.clone()).collect::<Vec<_>>().join(" ")
        };
        let held = [other, set.reference.clone()];
        assert_eq!(shown(&held, None, true, true), "o s");
        assert_eq!(shown(&held, None, false, true), "o");
        assert_eq!(shown(&held, Some(&pod), true, true), "o p");
        assert_eq!(shown(&held, Some(&pod), true, false), "o s");
        assert_eq!(shown(&[], Some(&pod), false, false), "");
    }
}
