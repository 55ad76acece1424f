//! Nodes: what their agents may write (plugin/pkg/admission/noderestriction), and how a new one begins.

use async_trait::async_trait;
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use serde_json::{Value, json};

use super::{Admission, Mutator, Operation, Validator};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Labels that isolate workloads: agents may not set them on their own Node.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

/// TaintNodesByCondition: nothing is scheduled to a Node before it has said that it is ready
/// (plugin/pkg/admission/nodetaint). The node lifecycle controller takes the taint away.
pub(super) struct NotReadyTaint;

#[async_trait]
impl Mutator for NotReadyTaint {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.operation == Operation::Create && write.def.group().is_empty() && write.def.plural() == "nodes"
    }

    async fn mutate(&self, _write: &Admission<'_>, node: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let conditions = meta::items_at(node, &["status", "conditions"]);
        // A Node that comes ready would lose the taint at once.
        let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let mut taints = meta::items_at(node, &["spec", "taints"]).to_vec();
        if !ready && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
            taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
            meta::set(node, &["spec", "taints"], taints);
        }
        Ok(())
    }
}

pub(super) struct NodeRestriction;

#[async_trait]
impl Validator for NodeRestriction {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.user.as_node().is_some()
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (Some(node), Some(object)) = (write.user.as_node(), object) else { return Ok(()) };
        let why = match (write.def.group(), write.def.plural(), write.operation) {
            ("", "pods", Operation::Create) if write.subresource.is_empty() => pod(node, object),
            ("", "nodes", _) => own_node(node, object, old),
            ("coordination.k8s.io", "leases", Operation::Create)
            | ("storage.k8s.io", "csinodes", Operation::Create) => named(node, write.def.plural(), object),
            _ => Ok(()),
        };
        why.map_err(|why| {
            Status::forbidden(GroupResource::new(write.def.group(), write.def.plural()), write.name, &why)
        })
    }
}

fn pod(node: &str, pod: &Value) -> Result<(), String> {
    if meta::annotation(pod, MIRROR_ANNOTATION).is_none() {
        return Err(format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        ));
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
    let labels =
        |object: Option<&Value>, key: &str| object.and_then(|object| meta::label(object, key).map(str::to_owned));
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
