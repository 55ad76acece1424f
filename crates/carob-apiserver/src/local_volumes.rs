//! Whose the volumes of `carob.io/local` are: each is in the pool of one node, which the Node says by a label and the volume by its
//! affinity. What the node authorizer and NodeRestriction both ask.

use carob_api::meta;
use carob_api::storage::{BETA_CLASS, LOCAL_POOL_LABEL, LOCAL_PROVISIONER, PROVISIONED_BY};
use serde_json::{Value, json};

use crate::admission::Reader;

/// The pool that the Node says it has.
pub(crate) fn pool_of_node(reader: &Reader, node: &str) -> Option<String> {
    let node = reader.get("", "nodes", "", node)?;
    meta::label(&node, LOCAL_POOL_LABEL).filter(|pool| !pool.is_empty()).map(str::to_owned)
}

/// Whether the volume is of the provisioner, a directory or a file, in this pool and in no other.
pub(crate) fn is_in_pool(volume: &Value, pool: &str) -> bool {
    let affinity = json!({ "required": { "nodeSelectorTerms": [{
        "matchExpressions": [{ "key": LOCAL_POOL_LABEL, "operator": "In", "values": [pool] }],
    }] } });
    meta::annotation(volume, PROVISIONED_BY) == Some(LOCAL_PROVISIONER)
        && meta::at(volume, &["spec", "nodeAffinity"]) == Some(&affinity)
        && meta::at(volume, &["spec", "local", "path"]).is_some()
}

/// Whether the claim is bound to a volume in the pool of the node.
pub(crate) fn is_claim_of(reader: &Reader, node: &str, namespace: &str, name: &str) -> bool {
    let Some(claim) = reader.get("", "persistentvolumeclaims", namespace, name) else { return false };
    let Some(volume) = reader.get("", "persistentvolumes", "", meta::text(&claim, &["spec", "volumeName"])) else {
        return false;
    };
    meta::text(&volume, &["spec", "claimRef", "uid"]) == meta::uid(&claim)
        && pool_of_node(reader, node).is_some_and(|pool| is_in_pool(&volume, &pool))
}

/// The StorageClass of the claim, if it is one of the provisioner's.
pub(crate) fn local_class_of(reader: &Reader, claim: &Value) -> Option<Value> {
    let field = meta::text(claim, &["spec", "storageClassName"]);
    let class =
        reader.get("storage.k8s.io", "storageclasses", "", meta::annotation(claim, BETA_CLASS).unwrap_or(field))?;
    (meta::text(&class, &["provisioner"]) == LOCAL_PROVISIONER).then_some(class)
}
