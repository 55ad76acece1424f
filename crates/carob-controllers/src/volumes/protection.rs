//! What keeps a claim that Pods use and a volume that a claim is bound to (`pkg/controller/volume/{pvc,pv}protection`).

use std::time::Duration;

use carob_api::storage::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::decide::phase;
use super::users::{ClaimUsers, Hold};
use crate::context::Context;

/// The finalizers that an object should have; `None` where it has them. Pure.
fn finalizers(meta: &ObjectMeta, ours: &str, in_use: bool) -> Option<Vec<String>> {
    let mut held = meta.finalizers.clone().unwrap_or_default();
    let has = held.iter().any(|name| name == ours);
    match (meta.deletion_timestamp.is_some(), has) {
        // What was made before admission gave it one gets it here.
        (false, false) => held.push(ours.to_owned()),
        (true, true) if !in_use => held.retain(|name| name != ours),
        _ => return None,
    }
    Some(held)
}

fn patch(meta: &ObjectMeta, finalizers: &[String]) -> Patch<Value> {
    let version = &meta.resource_version;
    Patch::Merge(json!({"metadata": {"uid": meta.uid, "resourceVersion": version, "finalizers": finalizers}}))
}

fn is_going(meta: &ObjectMeta, ours: &str) -> bool {
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|name| name == ours)
}

pub(crate) struct ClaimProtection {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    users: ClaimUsers,
    /// The last list of a namespace's Pods: many claims that go together share one.
    last: Mutex<Option<Listed>>,
}

/// What the Pods of a namespace held at a moment.
struct Listed {
    namespace: String,
    began: Duration,
    holds: Vec<Hold>,
}

impl ClaimProtection {
    pub(crate) fn new(context: Context, users: ClaimUsers) -> Self {
        Self { claims: context.informers.of(), users, last: Mutex::new(None), context }
    }

    /// Whether a Pod uses the claim. Where the informer knows none, the API is asked: a Pod may be too new for it.
    async fn in_use(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> Result<bool, ReconcileError> {
        if self.users.uses(key, claim) {
            return Ok(true);
        }
        // The claim is on its way out: Pods that come from now on are not started with it, so a later list is as good.
        let now = self.context.clock.monotonic();
        let mut last = self.last.lock().await;
        if let Some(listed) = last.as_ref().filter(|listed| *listed.namespace == *key.namespace && listed.began >= now)
        {
            return Ok(listed.holds.iter().any(|hold| hold.keeps(key, claim)));
        }
        let began = self.context.clock.monotonic();
        let api: Api<Pod> = self.context.api(&key.namespace);
        let list = api.list(&ListParams::default()).await.during(|| format!("list the pods of {}", key.namespace))?;
        let holds: Vec<Hold> = list.items.iter().flat_map(Hold::of).collect();
        let in_use = holds.iter().any(|hold| hold.keeps(key, claim));
        *last = Some(Listed { namespace: key.namespace.to_string(), began, holds });
        Ok(in_use)
    }
}

impl Reconcile for ClaimProtection {
    /// A claim.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(claim) = self.claims.get_key(&key) else { return Ok(Requeue::No) };
        let in_use = is_going(&claim.metadata, CLAIM_PROTECTION) && self.in_use(&key, &claim).await?;
        let Some(wanted) = finalizers(&claim.metadata, CLAIM_PROTECTION, in_use) else { return Ok(Requeue::No) };
        let api: Api<PersistentVolumeClaim> = self.context.api(&key.namespace);
        let written = api.patch(&key.name, &PatchParams::default(), &patch(&claim.metadata, &wanted)).await;
        written.unless_gone(|| format!("write the finalizers of claim {key}"))?;
        Ok(Requeue::No)
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.claims.subject(key)
    }
}

pub(crate) struct VolumeProtection {
    context: Context,
    volumes: Informer<PersistentVolume>,
}

impl VolumeProtection {
    pub(crate) fn new(context: Context) -> Self {
        Self { volumes: context.informers.of(), context }
    }
}

impl Reconcile for VolumeProtection {
    /// A volume.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "persistentvolume-protection"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(volume) = self.volumes.get_key(&key) else { return Ok(Requeue::No) };
        let in_use = phase(&volume) == "Bound";
        let Some(wanted) = finalizers(&volume.metadata, VOLUME_PROTECTION, in_use) else { return Ok(Requeue::No) };
        let api = self.context.cluster_api::<PersistentVolume>();
        let written = api.patch(&key.name, &PatchParams::default(), &patch(&volume.metadata, &wanted)).await;
        written.unless_gone(|| format!("write the finalizers of volume {}", key.name))?;
        Ok(Requeue::No)
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.volumes.subject(key)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn the_finalizer_comes_at_once_and_goes_when_nothing_uses_the_object_any_more() {
        let meta = |held: &[&str], going: bool| ObjectMeta {
            finalizers: Some(held.iter().map(ToString::to_string).collect()),
            deletion_timestamp: going.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        };
        let shown = |held: &[&str], going, in_use| finalizers(&meta(held, going), "p", in_use).map(|all| all.join(" "));
        assert_eq!(shown(&["a"], false, false).as_deref(), Some("a p"));
        assert_eq!(shown(&["a", "p"], false, true), None);
        assert_eq!(shown(&["p", "a"], true, true), None);
        assert_eq!(shown(&["p", "a"], true, false).as_deref(), Some("a"));
        assert_eq!(shown(&["a"], true, false), None, "nothing is added to what is on its way out");
    }
}
