//! What a claim says its volume begins with, and what of this pool that is. Pure.

use carob_api::storage::parse_local_handle;
use carob_client::snapshots::{GROUP, VolumeSnapshot, VolumeSnapshotContent};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::plan::{PROVISIONER, capacity, is_block, is_ours, pool_of, request};
use crate::pool::Origin;

/// What a volume begins with, by the names of objects in the claim's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Begins {
    Empty,
    /// As a copy of another claim's volume.
    Claim(String),
    Snapshot(String),
    /// A program of the user's makes and fills it.
    Others,
}

/// Why a volume cannot be made of what its claim names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It may be there later.
    Wait(String),
    Never(String),
}

/// Whether a claim's volume is a copy of something.
pub(crate) fn is_copy(claim: &PersistentVolumeClaim) -> bool {
    matches!(begins_with(claim), Ok(Begins::Claim(_) | Begins::Snapshot(_)))
}

pub(crate) fn begins_with(claim: &PersistentVolumeClaim) -> Result<Begins, String> {
    let Some(spec) = &claim.spec else { return Ok(Begins::Empty) };
    let (group, kind, name) = match (&spec.data_source_ref, &spec.data_source) {
        (Some(source), _) => {
            let elsewhere = source.namespace.as_ref().filter(|namespace| !namespace.is_empty());
            if elsewhere.is_some_and(|namespace| Some(namespace) != claim.metadata.namespace.as_ref()) {
                return Err("claim.spec.dataSourceRef is in another namespace, which is not supported".to_owned());
            }
            (&source.api_group, &source.kind, &source.name)
        }
        (None, Some(source)) => (&source.api_group, &source.kind, &source.name),
        (None, None) => return Ok(Begins::Empty),
    };
    Ok(match (group.as_deref().unwrap_or_default(), kind.as_str()) {
        ("", "PersistentVolumeClaim") => Begins::Claim(name.clone()),
        (GROUP, "VolumeSnapshot") => Begins::Snapshot(name.clone()),
        _ => Begins::Others,
    })
}

fn wait<T>(why: String) -> Result<T, Obstacle> {
    Err(Obstacle::Wait(why))
}

fn never<T>(why: String) -> Result<T, Obstacle> {
    Err(Obstacle::Never(why))
}

fn blockness(claim: &PersistentVolumeClaim) -> bool {
    is_block(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
}

/// The volume of the claim `name` to copy: `source` is that claim, and `volume` the one that it is bound to.
pub(crate) fn of_claim(
    claim: &PersistentVolumeClaim,
    name: &str,
    source: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
    pool: &str,
) -> Result<Origin, Obstacle> {
    let Some(source) = source else { return wait(format!("the claim {name} to copy from does not exist")) };
    if source.metadata.deletion_timestamp.is_some() {
        return wait(format!("the claim {name} to copy from is being deleted"));
    }
    let phase = source.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(volume) = volume.filter(|_| phase == Some("Bound")) else {
        return wait(format!("the claim {name} to copy from is not bound"));
    };
    let shown = volume.metadata.name.clone().unwrap_or_default();
    if !is_ours(volume) {
        return never(format!("the claim {name} to copy from has volume {shown}, which is not of {PROVISIONER}"));
    }
    if volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_ref()) != source.metadata.uid.as_ref() {
        return wait(format!("the claim {name} to copy from is not bound: volume {shown} is of another claim"));
    }
    if pool_of(volume) != Some(pool) {
        return never(format!("the claim {name} to copy from has its volume on another node"));
    }
    if blockness(source) != blockness(claim) {
        return never(format!("the claim {name} to copy from has another volumeMode"));
    }
    let (has, wanted) = (capacity(volume), request(claim));
    if has > wanted {
        return never(format!(
            "new PVC request must be greater than or equal in size to the specified PVC data source, requested {wanted} \
             but source is {has}"
        ));
    }
    Ok(Origin::Volume(shown))
}

/// The snapshot `name`: `snapshot` is the object and `content` the one that it is bound to.
pub(crate) fn of_snapshot(
    claim: &PersistentVolumeClaim,
    name: &str,
    snapshot: Option<&VolumeSnapshot>,
    content: Option<&VolumeSnapshotContent>,
    pool: &str,
) -> Result<Origin, Obstacle> {
    let Some(snapshot) = snapshot else { return wait(format!("the snapshot {name} does not exist")) };
    if snapshot.metadata.deletion_timestamp.is_some() {
        return never(format!("the snapshot {name} is being deleted"));
    }
    let status = snapshot.status.clone().unwrap_or_default();
    let Some(content) = content.filter(|content| {
        snapshot.is_named_by(content) && content.spec.volume_snapshot_ref.uid == snapshot.metadata.uid
    }) else {
        return wait(format!("the snapshot {name} is not bound to a content"));
    };
    if content.spec.driver != PROVISIONER {
        return never(format!("the snapshot {name} is of {}, not of {PROVISIONER}", content.spec.driver));
    }
    let of_content = content.status.clone().unwrap_or_default();
    if status.ready_to_use != Some(true) || of_content.ready_to_use != Some(true) {
        let error = status.error.or(of_content.error).and_then(|error| error.message);
        return wait(match error {
            Some(error) => format!("the snapshot {name} is not ready to use: {error}"),
            None => format!("the snapshot {name} is not ready to use"),
        });
    }
    let handle = of_content.snapshot_handle.unwrap_or_default();
    let Some((of_pool, in_pool)) = parse_local_handle(&handle) else {
        return never(format!("the snapshot {name} has the handle {handle:?}, which is none of {PROVISIONER}"));
    };
    if of_pool != pool {
        return never(format!("the snapshot {name} is on another node"));
    }
    if content.spec.source_volume_mode.is_some()
        && is_block(content.spec.source_volume_mode.as_ref()) != blockness(claim)
    {
        return never(format!("the snapshot {name} is of a volume with another volumeMode"));
    }
    let (has, wanted) = (of_content.restore_size.unwrap_or(0), request(claim));
    if has > wanted {
        return never(format!(
            "requested volume size {wanted} is less than the size {has} for the source snapshot {name}"
        ));
    }
    Ok(Origin::Snapshot(in_pool.to_owned()))
}

#[cfg(test)]
mod tests {
    use carob_api::storage::{LOCAL_POOL_LABEL, PROVISIONED_BY};
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn with<T: DeserializeOwned>(mut object: Value, change: &Value) -> T {
        carob_api::patch::merge_patch(&mut object, change).expect("it applies");
        serde_json::from_value(object).expect("an object of that kind")
    }

    fn claim(change: &Value) -> PersistentVolumeClaim {
        let object = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"},
            "spec": {"resources": {"requests": {"storage": "1000"}}}});
        with(object, change)
    }

    #[test]
    fn what_a_volume_begins_with() {
        let begins = |spec: Value| begins_with(&claim(&json!({"spec": spec})));
        let snapshot = json!({"apiGroup": GROUP, "kind": "VolumeSnapshot", "name": "s"});
        assert_eq!(begins(json!({})), Ok(Begins::Empty));
        assert_eq!(begins(json!({"dataSource": snapshot})), Ok(Begins::Snapshot("s".to_owned())));
        let of_claim = json!({"kind": "PersistentVolumeClaim", "name": "d", "namespace": "ns"});
        assert_eq!(begins(json!({"dataSourceRef": of_claim})), Ok(Begins::Claim("d".to_owned())));
        let other = json!({"apiGroup": "example.com", "kind": "Book", "name": "b"});
        assert_eq!(begins(json!({"dataSourceRef": other})), Ok(Begins::Others));
        let far = json!({"kind": "PersistentVolumeClaim", "name": "d", "namespace": "far"});
        assert!(begins(json!({"dataSourceRef": far})).is_err());
    }

    #[test]
    fn a_claim_is_copied_when_it_is_bound_here_and_fits() {
        let of = |change: Value| {
            let source: PersistentVolumeClaim =
                with(json!({"metadata": {"name": "d", "uid": "du"}, "status": {"phase": "Bound"}}), &change["claim"]);
            let volume = json!({"metadata": {"name": "v", "annotations": {PROVISIONED_BY: PROVISIONER}}, "spec": {
                "capacity": {"storage": "1000"}, "claimRef": {"uid": "du"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": LOCAL_POOL_LABEL, "operator": "In", "values": ["pool"]}]}]}}}});
            let volume: PersistentVolume = with(volume, &change["volume"]);
            super::of_claim(&claim(&change["new"]), "d", Some(&source), Some(&volume), "pool")
        };
        assert_eq!(of(json!({"new": {}, "claim": {}, "volume": {}})), Ok(Origin::Volume("v".to_owned())));
        for (new, claim, volume, waits) in [
            (json!({}), json!({"status": {"phase": "Pending"}}), json!({}), true),
            (json!({}), json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), json!({}), true),
            (json!({}), json!({}), json!({"spec": {"claimRef": {"uid": "other"}}}), true),
            (json!({}), json!({}), json!({"metadata": {"annotations": null}}), false),
            (json!({}), json!({}), json!({"spec": {"nodeAffinity": null}}), false),
            (json!({}), json!({"spec": {"volumeMode": "Block"}}), json!({}), false),
            (json!({"spec": {"resources": {"requests": {"storage": "999"}}}}), json!({}), json!({}), false),
        ] {
            let found = of(json!({"new": new, "claim": claim, "volume": volume}));
            assert_eq!(matches!(found, Err(Obstacle::Wait(_))), waits, "{found:?}");
            assert!(found.is_err());
        }
        assert!(matches!(super::of_claim(&claim(&json!({})), "d", None, None, "pool"), Err(Obstacle::Wait(_))));
    }

    #[test]
    fn a_snapshot_is_restored_when_it_is_ready_here_and_fits() {
        let of = |change: Value| {
            let snapshot = json!({"metadata": {"name": "s", "namespace": "ns", "uid": "su"},
                "status": {"boundVolumeSnapshotContentName": "x", "readyToUse": true}});
            let content = json!({"metadata": {"name": "x"}, "spec": {"driver": PROVISIONER,
                    "volumeSnapshotRef": {"namespace": "ns", "name": "s", "uid": "su"}},
                "status": {"readyToUse": true, "restoreSize": 1000, "snapshotHandle": "pool/snapshot-1"}});
            let (snapshot, content) =
                (with::<VolumeSnapshot>(snapshot, &change["snapshot"]), with(content, &change["content"]));
            of_snapshot(&claim(&json!({})), "s", Some(&snapshot), Some(&content), "pool")
        };
        assert_eq!(of(json!({"snapshot": {}, "content": {}})), Ok(Origin::Snapshot("snapshot-1".to_owned())));
        for (snapshot, content, waits) in [
            (json!({"status": {"readyToUse": false}}), json!({}), true),
            (json!({}), json!({"status": {"readyToUse": null}}), true),
            (json!({}), json!({"spec": {"volumeSnapshotRef": {"uid": "other"}}}), true),
            (json!({}), json!({"spec": {"volumeSnapshotRef": {"uid": null}}}), true),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), json!({}), false),
            (json!({}), json!({"spec": {"driver": "other"}}), false),
            (json!({}), json!({"spec": {"sourceVolumeMode": "Block"}}), false),
            (json!({}), json!({"status": {"snapshotHandle": "elsewhere/snapshot-1"}}), false),
            (json!({}), json!({"status": {"snapshotHandle": "snapshot-1"}}), false),
            (json!({}), json!({"status": {"restoreSize": 1001}}), false),
        ] {
            let found = of(json!({"snapshot": snapshot, "content": content}));
            assert_eq!(matches!(found, Err(Obstacle::Wait(_))), waits, "{found:?}");
            assert!(found.is_err());
        }
    }
}
