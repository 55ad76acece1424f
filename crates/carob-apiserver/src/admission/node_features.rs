//! NodeDeclaredFeatureValidator: a running Pod is not changed into what its node cannot do
//! (plugin/pkg/admission/nodedeclaredfeatures).

use async_trait::async_trait;
use carob_api::pod::features_to_resize;
use carob_api::pod::value::same_resources;
use carob_api::{Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Operation, Validator};

pub(super) struct NodeDeclaredFeatures {
    pub(super) reader: Reader,
}

#[async_trait]
impl Validator for NodeDeclaredFeatures {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.operation == Operation::Update && write.is("", "pods") && ["", "resize"].contains(&write.subresource)
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old)) = (object, old) else { return Ok(()) };
        let Some(node) = meta::str_at(new, &["spec", "nodeName"]).filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let mut needed = needed(new, old).peekable();
        if needed.peek().is_none() {
            return Ok(());
        }
        let Some(found) = self.reader.get("", "nodes", "", node) else {
            return Err(write.forbidden(Some(new), &format!("node {node:?} not found")));
        };
        let declared = meta::texts(&found, &["status", "declaredFeatures"]);
        let missing: Vec<_> = needed.filter(|feature| !declared.contains(feature)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        let why = format!("pod update requires features {missing} which are not available on node {node:?}");
        Err(write.forbidden(Some(new), &why))
    }
}

fn needed(new: &Value, old: &Value) -> impl Iterator<Item = &'static str> {
    let of_pod = !same_resources(&new["spec"]["resources"], &old["spec"]["resources"]);
    let [new, old] = [new, old].map(|pod| meta::items_at(pod, &["spec", "initContainers"]));
    let of_init_containers = new
        .iter()
        .zip(old)
        .any(|(new, old)| old["restartPolicy"] != "Always" && !same_resources(&new["resources"], &old["resources"]));
    features_to_resize(of_pod, of_init_containers)
}
