//! Which objects belong to a controller: those that name it as their controller and match its selector. Orphans that match
//! are adopted, what no longer matches is released (`pkg/controller/controller_ref_manager.go`).

use std::future::Future;
use std::sync::Arc;

use carob_client::{Change, During, Informer, ObjectKey, ReconcileError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::pods;

/// A controller as its objects name it.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) reference: OwnerReference,
    deleting: bool,
}

impl Owner {
    pub(crate) fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        let uid = meta.uid.clone().unwrap_or_default();
        let reference = OwnerReference {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: meta.name.clone().unwrap_or_default(),
            uid: uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        Self { key: ObjectKey::of(object), uid, reference, deleting: meta.deletion_timestamp.is_some() }
    }
}

/// The key of the controller of that kind that an object names, if it names one.
pub(crate) fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<ObjectKey> {
    let owner = pods::controller(meta)?;
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    (owner.kind == K::kind(&()) && group == K::group(&()))
        .then(|| ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), &owner.name))
}

pub(crate) fn selector(selector: &LabelSelector, of: &ObjectKey) -> Result<Selector, ReconcileError> {
    Selector::try_from(selector.clone()).map_err(|cause| ReconcileError::Other {
        operation: format!("read the selector of {of}"),
        cause: Box::new(cause),
    })
}

pub(crate) fn selects(selector: &Selector, meta: &ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&Default::default()),
    }
}

/// The owners that a change of an object concerns: those that manage it, and, where nobody does, those that select it.
pub(crate) fn owners_of<K, O>(
    owners: &Informer<K>,
    change: Change<'_, O>,
    selector: impl Fn(&K) -> Option<Selector>,
) -> Vec<ObjectKey>
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
    O: Resource,
{
    let mut keys: Vec<ObjectKey> = change.versions().filter_map(|object| controller_key::<K>(object.meta())).collect();
    if let Some(orphan) = change.new.filter(|object| pods::controller(object.meta()).is_none()) {
        let wants = |owner: &K| selector(owner).is_some_and(|selector| selects(&selector, orphan.meta()));
        let near = owners.list_in(&change.key().namespace);
        keys.extend(near.iter().filter(|owner| wants(owner)).map(|owner| ObjectKey::of(&**owner)));
    }
    keys.dedup();
    keys
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Ours,
    Adopt,
    Release,
    NotOurs,
}

fn judge(meta: &ObjectMeta, owner: &Owner, matches: bool) -> Claim {
    match pods::controller(meta) {
        Some(controller) if controller.uid != owner.uid => Claim::NotOurs,
        Some(_) if matches => Claim::Ours,
        Some(_) if owner.deleting => Claim::NotOurs,
        Some(_) => Claim::Release,
        None if matches && !owner.deleting && meta.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::NotOurs,
    }
}

/// What was claimed, and the newest resourceVersion that the claiming wrote.
pub(crate) struct Claimed<K> {
    pub(crate) objects: Vec<Arc<K>>,
    pub(crate) version: u64,
}

/// Takes from `candidates` those that are `owner`'s, adopting and releasing on the way.
///
/// `still_owner` asks the API itself whether the owner lives, once, before the first adoption.
pub(crate) async fn claim<K>(
    api: &Api<K>,
    owner: &Owner,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
    still_owner: impl Future<Output = Result<bool, ReconcileError>>,
) -> Result<Claimed<K>, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    claim_with(api, owner, selector, candidates, still_owner, &[]).await
}

/// As [`claim`]; objects get these finalizers when they are adopted, and lose them when they are released.
pub(crate) async fn claim_with<K>(
    api: &Api<K>,
    owner: &Owner,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
    still_owner: impl Future<Output = Result<bool, ReconcileError>>,
    finalizers: &[&str],
) -> Result<Claimed<K>, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut claimed = Claimed { objects: Vec::new(), version: 0 };
    let mut orphans = Vec::new();
    for object in candidates {
        match judge(object.meta(), owner, selects(selector, object.meta())) {
            Claim::Ours => claimed.objects.push(object),
            Claim::Adopt => orphans.push(object),
            Claim::Release => {
                let mut patch = json!({"ownerReferences": [{"$patch": "delete", "uid": owner.uid}]});
                if !finalizers.is_empty() {
                    patch["$deleteFromPrimitiveList/finalizers"] = json!(finalizers);
                }
                let written = change_meta(api, &*object, patch, || format!("release it from {}", owner.key)).await?;
                claimed.version = claimed.version.max(written.as_ref().map_or(0, version));
            }
            Claim::NotOurs => {}
        }
    }
    if !orphans.is_empty() && still_owner.await? {
        for object in orphans {
            let mut patch = json!({"ownerReferences": [owner.reference]});
            if !finalizers.is_empty() {
                patch["finalizers"] = json!(finalizers);
            }
            let adopted = change_meta(api, &*object, patch, || format!("adopt it for {}", owner.key)).await?;
            if let Some(adopted) = adopted {
                claimed.version = claimed.version.max(version(&adopted));
                claimed.objects.push(Arc::new(adopted));
            }
        }
    }
    Ok(claimed)
}

async fn change_meta<K>(
    api: &Api<K>,
    object: &K,
    mut meta: serde_json::Value,
    operation: impl FnOnce() -> String,
) -> Result<Option<K>, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    meta["uid"] = json!(object.meta().uid);
    let patch = json!({"metadata": meta});
    let written = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    match written {
        // Replaced by a namesake (409 on the uid), or already without the reference (422): not ours any more.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_invalid() => Ok(None),
        written => written.unless_gone(|| format!("{} {name}: {}", K::kind(&()), operation())),
    }
}

/// The resourceVersion of an object as a number; 0 if it has none.
pub(crate) fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Asks the API itself whether an owner lives.
pub(crate) async fn still_owner<K>(api: &Api<K>, owner: &Owner) -> Result<bool, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let found = api.get_opt(&owner.key.name).await.during(|| format!("get {} {}", K::kind(&()), owner.key))?;
    Ok(found.is_some_and(|found| {
        found.meta().uid.as_deref() == Some(&owner.uid) && found.meta().deletion_timestamp.is_none()
    }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn owner(deleting: bool) -> Owner {
        let deletion_timestamp = deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        let metadata = ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("u1".into()),
            deletion_timestamp,
            ..ObjectMeta::default()
        };
        Owner::of(&ReplicaSet { metadata, ..ReplicaSet::default() })
    }

    fn pod(controller: Option<&str>, deleting: bool) -> ObjectMeta {
        let reference = controller.map(|uid| OwnerReference { uid: uid.to_owned(), ..owner(false).reference });
        ObjectMeta {
            namespace: Some("ns".into()),
            owner_references: reference.map(|reference| vec![reference]),
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn orphans_that_match_are_adopted_and_own_ones_that_do_not_are_released() {
        // controller, pod deleting, matches, owner deleting
        let cases = [
            (Some("u1"), false, true, false, Claim::Ours),
            (Some("u1"), true, true, true, Claim::Ours),
            (Some("u1"), false, false, false, Claim::Release),
            (Some("u1"), false, false, true, Claim::NotOurs),
            (Some("u2"), false, true, false, Claim::NotOurs),
            (None, false, true, false, Claim::Adopt),
            (None, false, true, true, Claim::NotOurs),
            (None, true, true, false, Claim::NotOurs),
            (None, false, false, false, Claim::NotOurs),
        ];
        for (controller, pod_deleting, matches, owner_deleting, expected) in cases {
            let judged = judge(&pod(controller, pod_deleting), &owner(owner_deleting), matches);
            assert_eq!(judged, expected, "{controller:?} {pod_deleting} {matches} {owner_deleting}");
        }
    }

    #[test]
    fn a_controller_is_found_by_group_and_kind() {
        let meta = pod(Some("u1"), false);
        assert_eq!(controller_key::<ReplicaSet>(&meta), Some(ObjectKey::new("ns", "web")));
        assert_eq!(controller_key::<Pod>(&meta), None);
    }
}
