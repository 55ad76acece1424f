//! PodTopologyLabels: a Pod learns the zone and region of the node that it is bound to (plugin/pkg/admission/podtopologylabels).

use async_trait::async_trait;
use carob_api::{Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Mutator, Operation, is_new_pod};

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopologyLabels {
    pub(super) reader: Reader,
}

fn is_binding(write: &Admission<'_>) -> bool {
    write.operation == Operation::Create
        && (write.is("", "bindings") || (write.is("", "pods") && write.subresource == "binding"))
}

#[async_trait]
impl Mutator for PodTopologyLabels {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new_pod(write) || is_binding(write)
    }

    /// A Binding's labels become its Pod's.
    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let node = if is_binding(write) {
            let kind = meta::str_at(object, &["target", "kind"]).unwrap_or_default();
            meta::str_at(object, &["target", "name"]).filter(|_| kind == "Node")
        } else {
            meta::str_at(object, &["spec", "nodeName"])
        };
        let node = node.filter(|node| !node.is_empty()).and_then(|node| self.reader.get("", "nodes", "", node));
        if let Some(node) = node {
            copy_labels(&node, object);
        }
        Ok(())
    }
}

fn copy_labels(node: &Value, object: &mut Value) {
    for key in LABELS {
        if let Some(value) = meta::label(node, key).map(str::to_owned) {
            meta::set(object, &["metadata", "labels", key], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_zone_and_region_are_copied_and_the_nodes_win() {
        let node = json!({ "metadata": { "labels": { LABELS[0]: "a", LABELS[1]: "r", "disk": "ssd" } } });
        let mut binding = json!({ "metadata": { "labels": { "own": "x", LABELS[0]: "b" } } });
        copy_labels(&node, &mut binding);
        assert_eq!(binding["metadata"]["labels"], json!({ "own": "x", LABELS[0]: "a", LABELS[1]: "r" }));
        let mut bare = json!({ "metadata": {} });
        copy_labels(&json!({ "metadata": {} }), &mut bare);
        assert_eq!(bare, json!({ "metadata": {} }));
    }
}
