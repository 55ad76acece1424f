//! NodeRestriction: what a node's agent writes is about its own node (plugin/pkg/admission/noderestriction).

use async_trait::async_trait;
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use serde_json::Value;

use super::{Admission, Operation, Validator};

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Labels that isolate workloads: agents may not set them on their own Node.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

pub(super) struct NodeRestriction;

#[async_trait]
impl Validator for NodeRestriction {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.user.as_node().is_some()
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (Some(node), Some(object)) = (write.user.as_node(), object) else { return Ok(()) };
        let why = match (write.def.group, write.def.plural, write.operation) {
            ("", "pods", Operation::Create) => pod(node, object),
            ("", "nodes", _) => own_node(node, object, old),
            ("coordination.k8s.io", "leases", Operation::Create) | ("storage.k8s.io", "csinodes", Operation::Create) => {
                named(node, write.def.plural, object)
            }
            _ => Ok(()),
        };
        why.map_err(|why| Status::forbidden(GroupResource::new(write.def.group, write.def.plural), write.name, &why))
    }
}

fn pod(node: &str, pod: &Value) -> Result<(), String> {
    if meta::annotation(pod, MIRROR_ANNOTATION).is_none() {
        return Err(format!("pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"));
    }
    if meta::str_at(pod, &["spec", "nodeName"]) != Some(node) {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    match meta::owner_references(pod) {
        [owner] if owner["kind"] == "Node" && owner["name"] == node => Ok(()),
        [] => Err(format!("node {node:?} can only create pods with an owner reference set to itself")),
        _ => Err(format!("node {node:?} can only create pods with a single owner reference set to itself")),
    }
}

fn named(node: &str, resource: &str, object: &Value) -> Result<(), String> {
    if meta::name(object) == node {
        return Ok(());
    }
    Err(format!("can only access {resource} with the same name as the requesting node"))
}

fn own_node(node: &str, object: &Value, old: Option<&Value>) -> Result<(), String> {
    if meta::name(object) != node {
        return Err(format!("node {node:?} is not allowed to modify node {:?}", meta::name(object)));
    }
    let labels = |object: Option<&Value>, key: &str| object.and_then(|object| meta::label(object, key).map(str::to_owned));
    let keys = [Some(object), old].into_iter().flatten().filter_map(meta::labels).flat_map(|labels| labels.keys());
    let changed = keys.filter(|key| key.contains(RESTRICTED_LABELS) && labels(Some(object), key) != labels(old, key));
    if let Some(key) = changed.into_iter().next() {
        return Err(format!("is not allowed to modify labels: {key}"));
    }
    let taints = |object: &Value| meta::items_at(object, &["spec", "taints"]).to_vec();
    if old.is_some_and(|old| taints(old) != taints(object)) {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    Ok(())
}
