//! Nodes.

use k8s_openapi::api::core::v1::{Node, Taint as ApiTaint};

use super::resources::value;
use super::{ConvertError, Converter};
use crate::model::{Bytes, Effect, NodeInfo, Resources, Str, Taint};

pub(super) fn effect(name: &str) -> Result<Effect, ConvertError> {
    match name {
        "NoSchedule" => Ok(Effect::NoSchedule),
        "PreferNoSchedule" => Ok(Effect::PreferNoSchedule),
        "NoExecute" => Ok(Effect::NoExecute),
        other => Err(ConvertError::Effect { effect: other.to_owned() }),
    }
}

/// An image name as nodes list it: with the tag `latest` where it has none (imagelocality normalizedImageName).
pub(super) fn normalized_image(name: &str) -> String {
    let after_slash = name.rfind('/').map_or(0, |at| at + 1);
    if name[after_slash..].contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

impl Converter {
    pub fn node(&mut self, node: &Node) -> Result<NodeInfo, ConvertError> {
        let name = node.metadata.name.as_deref().ok_or(ConvertError::Missing { field: "metadata.name" })?;
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let max_pods = allocatable.and_then(|amounts| amounts.get("pods"));
        let taints = spec.and_then(|spec| spec.taints.as_ref());
        Ok(NodeInfo {
            name: self.text(name),
            labels: self.labels(node.metadata.labels.as_ref()),
            taints: taints.into_iter().flatten().map(|taint| self.taint(taint)).collect::<Result<_, _>>()?,
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            declared_features: status
                .and_then(|status| status.declared_features.as_ref())
                .into_iter()
                .flatten()
                .map(|feature| self.text(feature))
                .collect(),
            allocatable: allocatable
                .map_or_else(|| Ok(Resources::default()), |all| self.amounts(all, "status.allocatable"))?,
            max_pods: max_pods.map_or(Ok(0), |quantity| value("status.allocatable.pods", quantity))?,
            images: self.images(node),
        })
    }

    fn taint(&mut self, taint: &ApiTaint) -> Result<Taint, ConvertError> {
        Ok(Taint {
            key: self.text(&taint.key),
            value: self.text(taint.value.as_deref().unwrap_or_default()),
            effect: effect(&taint.effect)?,
        })
    }

    fn images(&mut self, node: &Node) -> Vec<(Str, Bytes)> {
        let mut images = Vec::new();
        for image in node.status.iter().flat_map(|status| status.images.iter().flatten()) {
            let size = Bytes(image.size_bytes.unwrap_or(0));
            for name in image.names.iter().flatten() {
                images.push((self.text(name), size));
            }
        }
        images.sort();
        images.dedup_by(|later, earlier| later.0 == earlier.0);
        images
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MilliCpu;
    use serde_json::json;

    #[test]
    fn a_node_keeps_what_decisions_need() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"zone": "a"}},
            "spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "NoExecute"}]},
            "status": {"allocatable": {"cpu": "1500m", "memory": "2Gi", "pods": "110", "example.com/gpu": "2"},
                "declaredFeatures": ["F"], "images": [{"names": ["b:1", "a@sha256:0"], "sizeBytes": 7}]}
        }))
        .expect("a Node");
        let info = Converter::default().node(&node).expect("a valid Node");
        assert_eq!(info.allocatable.cpu, MilliCpu(1500));
        assert_eq!(info.allocatable.memory, Bytes(2 << 30));
        assert_eq!((info.max_pods, info.allocatable.scalar("example.com/gpu")), (110, 2));
        assert_eq!(info.image("b:1"), Some(Bytes(7)));
        assert!(info.unschedulable);
        assert_eq!(info.declared_features, [Str::from("F")]);
        assert_eq!(info.taints[0].effect, Effect::NoExecute);
    }

    #[test]
    fn images_without_a_tag_are_the_latest() {
        for (name, expected) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("host:5000/busybox", "host:5000/busybox:latest"),
            ("host/a@sha256:0", "host/a@sha256:0"),
        ] {
            assert_eq!(normalized_image(name), expected);
        }
    }
}
