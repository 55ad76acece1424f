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

/// Whether a reference names this owner, be it this object or an earlier one of that name.
fn names(reference: &OwnerReference, owner: &Owner) -> bool {
    let id =
        |reference: &OwnerReference| (reference.api_version.clone(), reference.kind.clone(), reference.name.clone());
    id(reference) == id(&owner.reference)
}

/// The owners of a claim that is made for its set.
fn first_owners(set: &Owner, policy: Policy) -> Option<Vec<OwnerReference>> {
    policy.with_set.then(|| vec![set.reference.clone()])
}

/// The owners that a claim should have instead of those that it has; `None` where it has the right ones. `condemned` says that
/// its Pod is on its way out for good.
fn other_owners(
    held: &[OwnerReference],
    set: &Owner,
    pod: &Owner,
    condemned: bool,
    policy: Policy,
) -> Option<Vec<OwnerReference>> {
    let earlier = |owner: &Owner| held.iter().any(|held| names(held, owner) && held.uid != owner.reference.uid);
    if earlier(set) || earlier(pod) {
        // It is of an object that is gone, and goes with it.
        return None;
    }
    let ours = |reference: &OwnerReference| names(reference, set) || names(reference, pod);
    let mut owners: Vec<OwnerReference> = held.iter().filter(|reference| !ours(reference)).cloned().collect();
    // Who else controls the claim decides about its end.
    if !owners.iter().any(|reference| reference.controller == Some(true)) {
        // A Pod that is scaled away takes its claim along; the whole set's end does so only where no Pod does already.
        if policy.with_pod && condemned {
            owners.push(pod.reference.clone());
        } else if policy.with_set {
            owners.push(set.reference.clone());
        }
    }
    (owners != held).then_some(owners)
}

/// Whether a claim is about to go with the Pod that had the name of the one to come.
fn goes_with_earlier_pod(claim: &PersistentVolumeClaim, pod: &str, policy: Policy) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    policy.with_pod && owners.any(|owner| owner.kind == "Pod" && owner.api_version == "v1" && owner.name == pod)
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
        let pod = format!("{}-{ordinal}", owner.key.name);
        for (_, mut claim) in identity::claims(set, ordinal) {
            let name = claim.name_any();
            if let Some(held) = self.informer.get(Some(&owner.key.namespace), &name) {
                if held.metadata.deletion_timestamp.is_some() || goes_with_earlier_pod(&held, &pod, policy(set)) {
                    return Ok(false);
                }
                continue;
            }
            claim.metadata.owner_references = first_owners(owner, policy(set));
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
        let pod = Owner::of(pod);
        for (_, template) in identity::claims(set, ordinal) {
            let name = template.name_any();
            let Some(claim) = self.informer.get(Some(&owner.key.namespace), &name) else { continue };
            let held = claim.metadata.owner_references.clone().unwrap_or_default();
            let Some(wanted) = other_owners(&held, owner, &pod, condemned, policy(set)) else { continue };
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
        let owner = |kind: &str, uid: &str, controller| OwnerReference {
            kind: kind.into(),
            name: kind.to_lowercase(),
            uid: uid.into(),
            controller: Some(controller),
            ..OwnerReference::default()
        };
        let mut set = Owner::of(&StatefulSet::default());
        set.reference = owner("StatefulSet", "s", true);
        let mut pod = Owner::of(&Pod::default());
        pod.reference = owner("Pod", "p", true);
        let shown = |held: &[OwnerReference], condemned, with_set, with_pod| {
            let owners = other_owners(held, &set, &pod, condemned, Policy { with_set, with_pod });
            owners.map(|owners| owners.iter().map(|owner| owner.uid.clone()).collect::<Vec<_>>().join(" "))
        };
        let some = |text: &str| Some(text.to_owned());
        let held = [owner("Other", "o", false), set.reference.clone()];
        assert_eq!(shown(&held, false, true, true), None);
        assert_eq!(shown(&held, false, false, true), some("o"));
        assert_eq!(shown(&held, true, true, true), some("o p"));
        assert_eq!(shown(&held, true, true, false), None);
        assert_eq!(shown(&[], true, false, false), None);
        // Whoever else controls it has it.
        let managed = [owner("Other", "o", true), set.reference.clone()];
        assert_eq!(shown(&managed, true, true, true), some("o"));
        assert_eq!(shown(&managed[..1], true, true, true), None);
        // One of an earlier set, or of an earlier Pod, is left alone; one of another Pod is another's.
        assert_eq!(shown(&[owner("StatefulSet", "earlier", true)], false, true, true), None);
        assert_eq!(shown(&[owner("Pod", "earlier", true)], true, true, true), None);
        let other_pod = OwnerReference { name: "other".into(), ..owner("Pod", "q", false) };
        assert_eq!(shown(&[other_pod], false, true, false), some("q s"));
        // What does not control it does not take it along.
        let loose = OwnerReference { controller: None, ..set.reference.clone() };
        assert_eq!(shown(&[loose], false, true, true), some("s"));
    }

    #[test]
    fn a_claim_of_the_pod_before_is_waited_for() {
        let pod = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: "a-1".into(),
            ..OwnerReference::default()
        };
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.owner_references = Some(vec![pod]);
        let waits = |pod: &str, with_pod| goes_with_earlier_pod(&claim, pod, Policy { with_set: false, with_pod });
        assert_eq!([waits("a-1", true), waits("a-2", true), waits("a-1", false)], [true, false, false]);
    }
}
