//! Claims, volumes, storage classes and attach limits.

use carob_api::storage::{BETA_CLASS, BIND_COMPLETED, SELECTED_NODE};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};

use super::resources::value;
use super::{ConvertError, Converter, label_selector};
use crate::model::{
    Bytes, ClaimFacts, ClaimKey, ClassFacts, DriverLimit, NodeRequirement, NodeSelectorTerm, Operator, Requirement,
    Str, VolumeInfo,
};

/// Labels of a volume that say where it can be reached; several values are joined by `__`.
const ZONE_LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn shared(text: Option<&String>) -> Option<Str> {
    text.filter(|text| !text.is_empty()).map(|text| Str::from(text.as_str()))
}

fn all(texts: Option<&Vec<String>>) -> Vec<Str> {
    texts.into_iter().flatten().map(|text| Str::from(text.as_str())).collect()
}

pub fn claim(claim: &PersistentVolumeClaim) -> Result<ClaimFacts, ConvertError> {
    let spec = claim.spec.as_ref().ok_or(ConvertError::Missing { field: "spec" })?;
    let annotations = claim.metadata.annotations.as_ref();
    let annotation = |key: &str| annotations.and_then(|annotations| annotations.get(key));
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let request = requests.and_then(|requests| requests.get("storage"));
    let volume = shared(spec.volume_name.as_ref());
    Ok(ClaimFacts {
        uid: claim.metadata.uid.as_deref().unwrap_or_default().into(),
        bound: volume.is_some() && annotation(BIND_COMPLETED).is_some(),
        volume,
        class: shared(annotation(BETA_CLASS).or(spec.storage_class_name.as_ref())),
        request: Bytes(request.map_or(Ok(0), |quantity| value("spec.resources.requests.storage", quantity))?),
        access_modes: all(spec.access_modes.as_ref()),
        selector: spec.selector.as_ref().map(|selector| label_selector(Some(selector))).transpose()?,
        terminating: claim.metadata.deletion_timestamp.is_some(),
        lost: claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost"),
        volume_mode_block: spec.volume_mode.as_deref() == Some("Block"),
        selected_node: shared(annotation(SELECTED_NODE)),
        owners: claim.metadata.owner_references.iter().flatten().map(|owner| Str::from(owner.uid.as_str())).collect(),
    })
}

pub fn persistent_volume(converter: &mut Converter, volume: &PersistentVolume) -> Result<VolumeInfo, ConvertError> {
    let name = volume.metadata.name.as_deref().ok_or(ConvertError::Missing { field: "metadata.name" })?;
    let spec = volume.spec.as_ref().ok_or(ConvertError::Missing { field: "spec" })?;
    let capacity = spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let labels = volume.metadata.labels.as_ref();
    let zone = |key: &&str| {
        let values = labels?.get(*key)?.split("__").map(Str::from).collect();
        Some((Str::from(*key), values))
    };
    let owner = spec.claim_ref.as_ref().and_then(|claim| {
        Some(ClaimKey { namespace: claim.namespace.as_deref()?.into(), name: claim.name.as_deref()?.into() })
    });
    Ok(VolumeInfo {
        claim_uid: shared(spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_ref())),
        name: name.into(),
        labels: converter.labels(labels),
        capacity: Bytes(capacity.map_or(Ok(0), |quantity| value("spec.capacity.storage", quantity))?),
        class: spec.storage_class_name.as_deref().unwrap_or_default().into(),
        access_modes: all(spec.access_modes.as_ref()),
        volume_mode_block: spec.volume_mode.as_deref() == Some("Block"),
        affinity: required.map(|selector| converter.node_terms(selector)).transpose()?,
        zones: ZONE_LABELS.iter().filter_map(zone).collect(),
        claim: owner,
        csi_driver: spec.csi.as_ref().map(|csi| Str::from(csi.driver.as_str())),
        csi_handle: spec.csi.as_ref().map(|csi| Str::from(csi.volume_handle.as_str())),
        available: matches!(phase, None | Some("" | "Available")),
    })
}

pub fn class(class: &StorageClass) -> ClassFacts {
    ClassFacts {
        provisioner: class.provisioner.as_str().into(),
        waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        topologies: class.allowed_topologies.iter().flatten().map(topology).collect(),
    }
}

fn topology(term: &TopologySelectorTerm) -> NodeSelectorTerm {
    let requirement = |label: &k8s_openapi::api::core::v1::TopologySelectorLabelRequirement| {
        let values: Vec<&str> = label.values.iter().map(String::as_str).collect();
        NodeRequirement::Label(Requirement::new(&label.key, Operator::In, &values))
    };
    NodeSelectorTerm(term.match_label_expressions.iter().flatten().map(requirement).collect())
}

/// How many volumes each driver attaches; drivers without a limit are left out.
pub fn csi_limits(node: &CSINode) -> Vec<DriverLimit> {
    let limit = |driver: &k8s_openapi::api::storage::v1::CSINodeDriver| {
        let count = driver.allocatable.as_ref()?.count?;
        Some(DriverLimit { driver: driver.name.as_str().into(), count: i64::from(count) })
    };
    node.spec.drivers.iter().filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_bound_once_the_controller_says_so() {
        let bound = |annotations: serde_json::Value| {
            let spec = json!({"volumeName": "v", "resources": {"requests": {"storage": "1Gi"}}});
            let object = json!({"metadata": {"name": "c", "annotations": annotations}, "spec": spec});
            let object: PersistentVolumeClaim = serde_json::from_value(object).expect("a claim");
            let facts = claim(&object).expect("a valid claim");
            assert_eq!(facts.request, Bytes(1 << 30));
            facts.bound
        };
        assert!(!bound(json!({})));
        assert!(bound(json!({BIND_COMPLETED: "yes"})));
    }

    #[test]
    fn a_volume_may_be_in_several_zones() {
        let object: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": "a__b"}},
            "spec": {"capacity": {"storage": "5Gi"}}
        }))
        .expect("a volume");
        let info = persistent_volume(&mut Converter::default(), &object).expect("a valid volume");
        let allowed: Vec<Str> = vec!["a".into(), "b".into()];
        assert_eq!(info.zones, [("topology.kubernetes.io/zone".into(), allowed)]);
        assert!(!info.labels.is_empty());
    }
}
