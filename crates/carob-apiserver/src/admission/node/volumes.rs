//! What a node may write about the volumes that its provisioner makes on its own disk (`carob.io/local`); upstream's nodes write
//! none. Everything is held against what is stored: the pool that the Node says it has, the claim, its class.

use std::collections::BTreeSet;

use carob_api::meta;
use carob_api::storage::{
    CONTENT_PROTECTION, LOCAL_POOL_LABEL, LOCAL_PROVISIONER, PROVISIONER_PROTECTION, SELECTED_NODE, local_pool_prefix,
    parse_local_handle, provisioned_name,
};
use serde_json::Value;

use super::super::Operation;
use super::super::reader::Reader;
use super::{Outcome, Request};
use crate::local_volumes::{is_in_pool, local_class_of, pool_of_node};

/// All that the spec of a volume on a node's disk has: one with anything else could lead elsewhere, or to a Secret.
const VOLUME_FIELDS: [&str; 8] = [
    "accessModes",
    "capacity",
    "claimRef",
    "local",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeMode",
];

impl Request<'_> {
    /// A Node says of no other's pool that it has it: its volumes would become this one's.
    pub(super) fn pool_label(&self) -> Outcome {
        let (new, old) = (meta::label(self.object, LOCAL_POOL_LABEL), meta::label(self.old, LOCAL_POOL_LABEL));
        let node = self.node;
        match new.filter(|_| new != old) {
            Some(pool) if !pool.starts_with(&local_pool_prefix(node)) => Err(format!(
                "node {node:?} is not allowed to label itself {LOCAL_POOL_LABEL}={pool}: the volumes there were made under \
                 another node's name"
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn own_pool(&self, reader: &Reader) -> Result<String, String> {
        let node = self.node;
        pool_of_node(reader, node).ok_or_else(|| format!("node {node:?} has no label {LOCAL_POOL_LABEL}"))
    }

    pub(super) fn volume(&self, reader: &Reader) -> Outcome {
        let node = self.node;
        if !self.subresource.is_empty() {
            return Err(format!("unexpected subresource {:?}", self.subresource));
        }
        let pool = self.own_pool(reader)?;
        let is_own = |volume: &Value| is_in_pool(volume, &pool);
        let others = Err(format!("node {node:?} can only write volumes of {LOCAL_PROVISIONER} that are on itself"));
        match self.operation {
            Operation::Create if is_own(self.object) => self.new_volume(reader),
            Operation::Update if is_own(self.old) && is_own(self.object) => self.changed_volume(),
            Operation::Delete if is_own(self.old) => self.deleted_volume(),
            Operation::Create | Operation::Update | Operation::Delete => others,
            Operation::Connect => Ok(()),
        }
    }

    /// It is made for a claim of the provisioner's classes that waits for one, here or anywhere.
    fn new_volume(&self, reader: &Reader) -> Outcome {
        let (node, volume) = (self.node, self.object);
        let fields = meta::at(volume, &["spec"]).and_then(Value::as_object);
        let surplus = fields.into_iter().flatten().find(|(field, _)| !VOLUME_FIELDS.contains(&field.as_str()));
        if let Some((field, _)) = surplus {
            return Err(format!("node {node:?} can not create volumes with spec.{field}"));
        }
        if !meta::owner_references(volume).is_empty() {
            return Err(format!("node {node:?} can not create volumes with owner references"));
        }
        let held = |field: &str| meta::text(volume, &["spec", "claimRef", field]);
        let uid = held("uid");
        let claim = reader.get("", "persistentvolumeclaims", held("namespace"), held("name"));
        let waits = |claim: &Value| meta::uid(claim) == uid && !meta::is_being_deleted(claim);
        let Some(claim) = claim.filter(|claim| !uid.is_empty() && waits(claim)) else {
            return Err(format!("node {node:?} can only create volumes for claims that are there"));
        };
        if meta::name(volume) != provisioned_name(uid) {
            return Err(format!("node {node:?} can only create the volume {:?} for its claim", provisioned_name(uid)));
        }
        let Some(class) = local_class_of(reader, &claim) else {
            return Err(format!("the claim of the volume has no class of {LOCAL_PROVISIONER}"));
        };
        let text = |field: &str| meta::text(volume, &["spec", field]);
        let policy = meta::str_at(&class, &["reclaimPolicy"]).unwrap_or("Delete");
        if text("storageClassName") != meta::name(&class) || text("persistentVolumeReclaimPolicy") != policy {
            return Err("the volume is not as the class of its claim says".to_owned());
        }
        let anywhere = meta::text(&class, &["volumeBindingMode"]) != "WaitForFirstConsumer";
        match meta::annotation(&claim, SELECTED_NODE) {
            Some(selected) if selected == node => Ok(()),
            // Whoever is second where all nodes may be first is told so. One that is lost goes to nobody.
            None if anywhere && !is_lost(reader, &claim, meta::name(volume)) => Ok(()),
            Some(_) | None => Err(format!("node {node:?} has not been chosen for the claim of the volume")),
        }
    }

    /// Its size, and whether its data is to be kept or removed first.
    fn changed_volume(&self) -> Outcome {
        let rest = |volume: &Value| {
            let mut rest = without_versions(volume);
            meta::remove(&mut rest, &["spec", "capacity"]);
            (rest, finalizers_but(volume, PROVISIONER_PROTECTION))
        };
        if rest(self.object) == rest(self.old) {
            return Ok(());
        }
        let node = self.node;
        Err(format!("node {node:?} can only change the capacity and the provisioner's finalizer of volumes"))
    }

    fn deleted_volume(&self) -> Outcome {
        let of = |path: &[&str]| meta::text(self.old, path);
        if of(&["status", "phase"]) == "Released" && of(&["spec", "persistentVolumeReclaimPolicy"]) == "Delete" {
            return Ok(());
        }
        let node = self.node;
        Err(format!("node {node:?} can only delete volumes that are released and whose policy is Delete"))
    }

    /// A node that cannot make the volume of a claim says so by taking its own name off it.
    pub(super) fn given_back(&self, reader: &Reader) -> Outcome {
        let node = self.node;
        let rest = |claim: &Value| {
            let mut rest = without_versions(claim);
            meta::remove(&mut rest, &["metadata", "annotations", SELECTED_NODE]);
            if meta::annotations(&rest).is_some_and(serde_json::Map::is_empty) {
                meta::remove(&mut rest, &["metadata", "annotations"]);
            }
            (rest, finalizers_but(claim, ""))
        };
        let was_chosen = meta::annotation(self.old, SELECTED_NODE) == Some(node)
            && meta::text(self.old, &["spec", "volumeName"]).is_empty()
            && local_class_of(reader, self.old).is_some();
        let is_taken_off = meta::annotation(self.object, SELECTED_NODE).is_none();
        if was_chosen && is_taken_off && rest(self.object) == rest(self.old) {
            return Ok(());
        }
        Err(format!(
            "node {node:?} may only update PVC status, and take its name off claims of {LOCAL_PROVISIONER} that it was chosen for"
        ))
    }

    /// How the snapshot of a content in this node's pool is, and that it has been removed or is kept.
    pub(super) fn content(&self, reader: &Reader) -> Outcome {
        let node = self.node;
        if self.operation != Operation::Update {
            return Err(format!("unexpected operation {:?}", self.operation));
        }
        let pool = self.own_pool(reader)?;
        let source = |field: &str| meta::str_at(self.old, &["spec", "source", field]);
        let is_here = |handle: &str| parse_local_handle(handle).is_some_and(|(of, _)| of == pool);
        let is_own = meta::text(self.old, &["spec", "driver"]) == LOCAL_PROVISIONER
            && source("volumeHandle").or(source("snapshotHandle")).is_some_and(is_here);
        if !is_own {
            return Err(format!(
                "node {node:?} can only write snapshot contents of {LOCAL_PROVISIONER} that are on itself"
            ));
        }
        let same_finalizers = |but: &str| finalizers_but(self.object, but) == finalizers_but(self.old, but);
        let (mut new, mut old) = (without_versions(self.object), without_versions(self.old));
        let is_allowed = if self.subresource == "status" {
            let handle = meta::str_at(self.object, &["status", "snapshotHandle"]);
            meta::remove(&mut new, &["status"]);
            meta::remove(&mut old, &["status"]);
            new == old && same_finalizers("") && handle.is_none_or(is_here)
        } else {
            let gains = meta::finalizers(self.object).count() > meta::finalizers(self.old).count();
            new == old && meta::is_being_deleted(self.old) && !gains && same_finalizers(CONTENT_PROTECTION)
        };
        if is_allowed {
            return Ok(());
        }
        Err(format!(
            "node {node:?} can only write the status of snapshot contents, and let go those that are being deleted"
        ))
    }
}

/// Whether the claim has had the volume, which is gone.
fn is_lost(reader: &Reader, claim: &Value, volume: &str) -> bool {
    meta::text(claim, &["spec", "volumeName"]) == volume && reader.get("", "persistentvolumes", "", volume).is_none()
}

/// The object without its finalizers and what the server itself writes at a change.
fn without_versions(object: &Value) -> Value {
    let mut object = object.clone();
    for field in ["resourceVersion", "managedFields", "generation", "finalizers"] {
        meta::remove(&mut object, &["metadata", field]);
    }
    object
}

fn finalizers_but(object: &Value, but: &str) -> BTreeSet<String> {
    meta::finalizers(object).filter(|finalizer| *finalizer != but).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use carob_api::storage::PROVISIONED_BY;
    use carob_store::{Expect, Options, Store, Txn};
    use serde_json::json;

    use super::*;

    const NULL: Value = Value::Null;

    fn with(object: &Value, change: &Value) -> Value {
        let mut object = object.clone();
        carob_api::patch::merge_patch(&mut object, change).expect("it applies");
        object
    }

    /// Nodes `n1` and `n2` with pools. `n1` was chosen for the claim `here`, `n2` for `there`, nobody for `early`; the class of
    /// `anywhere` waits for nobody; `others` has another provisioner's class, `bound` has its volume, and `lost` had one.
    async fn stored() -> Reader {
        let store = Store::in_memory(Options::default());
        let node = |pool: &str| json!({ "metadata": { "labels": { LOCAL_POOL_LABEL: pool } } });
        let class = |name: &str, provisioner: &str, mode: &str| json!({ "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": mode, "reclaimPolicy": "Delete" });
        let claim = |uid: &str, class: &str, node: Option<&str>, volume: &str| {
            json!({ "metadata": { "uid": uid, "name": uid, "namespace": "ns", "annotations": { SELECTED_NODE: node } },
                "spec": { "storageClassName": class, "volumeName": volume } })
        };
        for (key, object) in [
            ("minions/n1", node("pool-1")),
            ("minions/n2", node("pool-2")),
            ("minions/bare", json!({ "metadata": {} })),
            ("storageclasses/local", class("local", LOCAL_PROVISIONER, "WaitForFirstConsumer")),
            ("storageclasses/now", class("now", LOCAL_PROVISIONER, "Immediate")),
            ("storageclasses/csi", class("csi", "csi.example.com", "WaitForFirstConsumer")),
            ("persistentvolumeclaims/ns/here", claim("here", "local", Some("n1"), "")),
            ("persistentvolumeclaims/ns/there", claim("there", "local", Some("n2"), "")),
            ("persistentvolumeclaims/ns/early", claim("early", "local", None, "")),
            ("persistentvolumeclaims/ns/anywhere", claim("anywhere", "now", None, "")),
            ("persistentvolumeclaims/ns/others", claim("others", "csi", Some("n1"), "")),
            ("persistentvolumeclaims/ns/lost", claim("lost", "now", None, "pvc-lost")),
            ("persistentvolumeclaims/ns/bound", claim("bound", "local", Some("n1"), "pvc-bound")),
        ] {
            let put = Txn::put(format!("/registry/{key}"), Expect::Any, object.to_string());
            store.txn(put).await.expect("the store takes it");
        }
        Reader::new(store)
    }

    fn volume(claim: &str, class: &str, pool: &str) -> Value {
        json!({
            "metadata": { "name": format!("pvc-{claim}"), "annotations": { PROVISIONED_BY: LOCAL_PROVISIONER },
                "finalizers": [PROVISIONER_PROTECTION, "kubernetes.io/pv-protection"] },
            "spec": {
                "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "persistentVolumeReclaimPolicy": "Delete", "volumeMode": "Filesystem",
                "claimRef": { "kind": "PersistentVolumeClaim", "namespace": "ns", "name": claim, "uid": claim },
                "local": { "path": "/var/lib/carob/volumes/x/data" },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": LOCAL_POOL_LABEL, "operator": "In", "values": [pool] },
                ] }] } },
            },
            "status": { "phase": "Bound" },
        })
    }

    fn request<'a>(operation: Operation, subresource: &'a str, object: &'a Value, old: &'a Value) -> Request<'a> {
        Request { node: "n1", operation, subresource, namespace: "ns", name: "x", object, old }
    }

    #[tokio::test]
    async fn a_node_makes_volumes_for_claims_that_it_was_chosen_for_and_on_its_own_disk() {
        let reader = stored().await;
        let create = |volume: &Value| request(Operation::Create, "", volume, &NULL).volume(&reader);
        let good = volume("here", "local", "pool-1");
        assert_eq!(create(&good), Ok(()));
        assert_eq!(create(&volume("anywhere", "now", "pool-1")), Ok(()));
        for (claim, class, pool) in [
            ("here", "local", "pool-2"),
            ("there", "local", "pool-1"),
            ("early", "local", "pool-1"),
            ("others", "csi", "pool-1"),
            ("lost", "now", "pool-1"),
            ("gone", "local", "pool-1"),
            ("here", "now", "pool-1"),
        ] {
            assert!(create(&volume(claim, class, pool)).is_err(), "{claim} {class} {pool}");
        }
        let terms = json!([
            { "matchExpressions": [{ "key": LOCAL_POOL_LABEL, "operator": "In", "values": ["pool-1"] }] },
            { "matchExpressions": [{ "key": LOCAL_POOL_LABEL, "operator": "In", "values": ["pool-2"] }] },
        ]);
        for change in [
            json!({ "metadata": { "name": "mine" } }),
            json!({ "metadata": { "annotations": { PROVISIONED_BY: "csi.example.com" } } }),
            json!({ "metadata": { "annotations": null } }),
            json!({ "metadata": { "ownerReferences": [{ "kind": "Pod", "name": "p", "uid": "u" }] } }),
            json!({ "spec": { "local": null, "hostPath": { "path": "/" } } }),
            json!({ "spec": { "local": null, "nfs": { "server": "s", "path": "/" } } }),
            json!({ "spec": { "csi": { "nodeStageSecretRef": { "namespace": "kube-system", "name": "key" } } } }),
            json!({ "spec": { "mountOptions": ["ro"] } }),
            json!({ "spec": { "nodeAffinity": null } }),
            json!({ "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": terms } } } }),
            json!({ "spec": { "claimRef": null } }),
            json!({ "spec": { "claimRef": { "uid": null } } }),
            json!({ "spec": { "claimRef": { "name": "there" } } }),
            json!({ "spec": { "persistentVolumeReclaimPolicy": "Retain" } }),
        ] {
            assert!(create(&with(&good, &change)).is_err(), "{change}");
        }
        let bare = Request { node: "bare", ..request(Operation::Create, "", &good, &NULL) };
        assert!(bare.volume(&reader).is_err(), "it says of no pool that it has it");
    }

    #[tokio::test]
    async fn a_node_changes_of_its_own_volumes_the_size_and_its_finalizer() {
        let reader = stored().await;
        let update =
            |old: &Value, change: Value| request(Operation::Update, "", &with(old, &change), old).volume(&reader);
        let (own, other) = (volume("bound", "local", "pool-1"), volume("there", "local", "pool-2"));
        let grown = json!({ "spec": { "capacity": { "storage": "2Gi" } }, "metadata": { "resourceVersion": "2" } });
        let let_go = json!({ "metadata": { "finalizers": ["kubernetes.io/pv-protection"] } });
        for change in [&grown, &let_go] {
            assert_eq!(update(&own, change.clone()), Ok(()));
            assert!(update(&other, change.clone()).is_err());
        }
        for change in [
            json!({ "metadata": { "finalizers": [PROVISIONER_PROTECTION] } }),
            json!({ "metadata": { "finalizers": null } }),
            json!({ "metadata": { "labels": { "a": "b" } } }),
            json!({ "metadata": { "annotations": { PROVISIONED_BY: "csi.example.com" } } }),
            json!({ "metadata": { "ownerReferences": [{}] } }),
            json!({ "spec": { "claimRef": { "name": "there", "uid": "there" } } }),
            json!({ "spec": { "local": { "path": "/" } } }),
            json!({ "spec": { "persistentVolumeReclaimPolicy": "Retain" } }),
            json!({ "spec": { "nodeAffinity": null } }),
        ] {
            assert!(update(&own, change.clone()).is_err(), "{change}");
        }
        // Neither does it take one over.
        let mine = json!({ "spec": { "nodeAffinity": own["spec"]["nodeAffinity"] } });
        assert!(update(&other, mine).is_err());
        assert!(request(Operation::Update, "status", &own, &own).volume(&reader).is_err());

        let delete =
            |old: &Value, change: Value| request(Operation::Delete, "", &NULL, &with(old, &change)).volume(&reader);
        let released = json!({ "status": { "phase": "Released" } });
        assert_eq!(delete(&own, released.clone()), Ok(()));
        assert!(delete(&other, released.clone()).is_err());
        assert!(delete(&own, json!({})).is_err(), "it is bound");
        let kept = json!({ "status": { "phase": "Released" }, "spec": { "persistentVolumeReclaimPolicy": "Retain" } });
        assert!(delete(&own, kept).is_err());
        let by_hand = json!({ "status": { "phase": "Released" }, "metadata": { "annotations": null } });
        assert!(delete(&own, by_hand).is_err());
    }

    #[tokio::test]
    async fn a_node_takes_nothing_but_its_own_name_off_a_claim() {
        let reader = stored().await;
        let update = |name: &str, change: Value| {
            let old = reader.get("", "persistentvolumeclaims", "ns", name).expect("it is there");
            request(Operation::Update, "", &with(&old, &change), &old).claim(&reader)
        };
        let taken_off = json!({ "metadata": { "annotations": { SELECTED_NODE: null } } });
        assert_eq!(update("here", taken_off.clone()), Ok(()));
        assert_eq!(update("here", json!({ "metadata": { "annotations": null } })), Ok(()));
        for name in ["there", "others", "bound", "early"] {
            assert!(update(name, taken_off.clone()).is_err(), "{name}");
        }
        for change in [
            json!({ "metadata": { "annotations": { SELECTED_NODE: "n2" } } }),
            json!({ "metadata": { "annotations": { SELECTED_NODE: null, "a": "b" } } }),
            json!({ "metadata": { "annotations": { SELECTED_NODE: null }, "finalizers": ["x"] } }),
            json!({ "metadata": { "annotations": { SELECTED_NODE: null } }, "spec": { "volumeName": "pvc-x" } }),
        ] {
            assert!(update("here", change.clone()).is_err(), "{change}");
        }
        assert!(update("early", json!({ "metadata": { "annotations": { SELECTED_NODE: "n1" } } })).is_err());
        let claim = json!({});
        assert!(request(Operation::Create, "", &claim, &NULL).claim(&reader).is_err());
        assert!(request(Operation::Delete, "", &NULL, &claim).claim(&reader).is_err());
    }

    #[tokio::test]
    async fn a_node_tells_of_snapshots_in_its_own_pool() {
        let reader = stored().await;
        let old = json!({
            "metadata": { "name": "x", "finalizers": [CONTENT_PROTECTION] },
            "spec": { "driver": LOCAL_PROVISIONER, "deletionPolicy": "Delete",
                "source": { "volumeHandle": "pool-1/pvc-bound" } },
        });
        let update = |old: &Value, subresource: &str, change: Value| {
            request(Operation::Update, subresource, &with(old, &change), old).content(&reader)
        };
        let ready = json!({ "status": { "readyToUse": true, "snapshotHandle": "pool-1/snapshot-x" } });
        assert_eq!(update(&old, "status", ready.clone()), Ok(()));
        let going = with(&old, &json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
        let let_go = json!({ "metadata": { "finalizers": [] } });
        assert_eq!(update(&going, "", let_go.clone()), Ok(()));
        assert!(update(&old, "", let_go.clone()).is_err(), "nobody deletes it");
        assert!(update(&going, "", json!({ "metadata": { "finalizers": [CONTENT_PROTECTION, "x"] } })).is_err());
        assert!(update(&going, "", json!({ "spec": { "deletionPolicy": "Retain" } })).is_err());
        let elsewhere = json!({ "status": { "snapshotHandle": "pool-2/snapshot-x" } });
        assert!(update(&old, "status", elsewhere).is_err());
        assert!(update(&old, "status", json!({ "metadata": { "labels": { "a": "b" } } })).is_err());
        for change in [
            json!({ "spec": { "driver": "csi.example.com" } }),
            json!({ "spec": { "source": { "volumeHandle": "pool-2/pvc-there" } } }),
            json!({ "spec": { "source": { "volumeHandle": "pool-1" } } }),
        ] {
            assert!(update(&with(&old, &change), "status", ready.clone()).is_err(), "{change}");
        }
        assert!(request(Operation::Create, "", &old, &NULL).content(&reader).is_err());
        assert!(request(Operation::Delete, "", &NULL, &old).content(&reader).is_err());
    }

    #[test]
    fn a_node_has_no_pool_that_was_made_under_another_name() {
        let label = |old: Option<&str>, new: Option<&str>| {
            let node = |pool| json!({ "metadata": { "name": "n1", "labels": { LOCAL_POOL_LABEL: pool } } });
            let (old, new) = (node(old), node(new));
            Request { name: "n1", ..request(Operation::Update, "", &new, &old) }.own_node()
        };
        let own = format!("{}abc", local_pool_prefix("n1"));
        let other = format!("{}abc", local_pool_prefix("n2"));
        assert_eq!(label(None, Some(&own)), Ok(()));
        assert_eq!(label(Some(&own), None), Ok(()));
        assert_eq!(label(Some(&other), Some(&other)), Ok(()), "an administrator has said so");
        assert!(label(None, Some(&other)).is_err());
        assert!(label(Some(&own), Some("abc")).is_err());
    }
}
