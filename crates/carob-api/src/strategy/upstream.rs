//! What upstream's API server (v1.36.2) answered to objects that differ from a sound one in one place.
//!
//! `corpus/verdicts` has a file per kind: a sound object, and for each change of it the causes of upstream's 422.

use serde_json::{Value, json};

use crate::{
    kinds,
    lifecycle::{self, Creation},
    meta,
};

const FILES: [&str; 40] = [
    include_str!("../../corpus/verdicts/CSINode.json"),
    include_str!("../../corpus/verdicts/CSIStorageCapacity.json"),
    include_str!("../../corpus/verdicts/CertificateSigningRequest.json"),
    include_str!("../../corpus/verdicts/ClusterRole.json"),
    include_str!("../../corpus/verdicts/ClusterRoleBinding.json"),
    include_str!("../../corpus/verdicts/ControllerRevision.json"),
    include_str!("../../corpus/verdicts/CronJob.json"),
    include_str!("../../corpus/verdicts/DaemonSet.json"),
    include_str!("../../corpus/verdicts/Deployment.json"),
    include_str!("../../corpus/verdicts/EndpointSlice.json"),
    include_str!("../../corpus/verdicts/Endpoints.json"),
    include_str!("../../corpus/verdicts/FlowSchema.json"),
    include_str!("../../corpus/verdicts/HorizontalPodAutoscaler.json"),
    include_str!("../../corpus/verdicts/Ingress.json"),
    include_str!("../../corpus/verdicts/IngressClass.json"),
    include_str!("../../corpus/verdicts/Job.json"),
    include_str!("../../corpus/verdicts/Lease.json"),
    include_str!("../../corpus/verdicts/LimitRange.json"),
    include_str!("../../corpus/verdicts/MutatingWebhookConfiguration.json"),
    include_str!("../../corpus/verdicts/NetworkPolicy.json"),
    include_str!("../../corpus/verdicts/Node.json"),
    include_str!("../../corpus/verdicts/PersistentVolume.json"),
    include_str!("../../corpus/verdicts/PersistentVolumeClaim.json"),
    include_str!("../../corpus/verdicts/Pod.json"),
    include_str!("../../corpus/verdicts/PodDisruptionBudget.json"),
    include_str!("../../corpus/verdicts/PriorityLevelConfiguration.json"),
    include_str!("../../corpus/verdicts/ReplicaSet.json"),
    include_str!("../../corpus/verdicts/ReplicationController.json"),
    include_str!("../../corpus/verdicts/ResourceClaim.json"),
    include_str!("../../corpus/verdicts/ResourceQuota.json"),
    include_str!("../../corpus/verdicts/ResourceSlice.json"),
    include_str!("../../corpus/verdicts/Role.json"),
    include_str!("../../corpus/verdicts/RoleBinding.json"),
    include_str!("../../corpus/verdicts/RuntimeClass.json"),
    include_str!("../../corpus/verdicts/ServiceCIDR.json"),
    include_str!("../../corpus/verdicts/StatefulSet.json"),
    include_str!("../../corpus/verdicts/StorageClass.json"),
    include_str!("../../corpus/verdicts/ValidatingWebhookConfiguration.json"),
    include_str!("../../corpus/verdicts/VolumeAttachment.json"),
    include_str!("../../corpus/verdicts/VolumeAttributesClass.json"),
];

/// Field, reason and message of each cause, sorted; none when the object is accepted.
fn causes(object: Value) -> Value {
    let def = kinds::all().find(|def| def.kind() == meta::kind(&object)).expect("a built-in kind");
    let schema = def.hub_schema().expect("a schema");
    let mut object = schema.conform(object).expect("well-typed").value;
    let creation = Creation { uid: "u1", now: "2026-01-02T03:04:05Z".parse().expect("a time"), suffix: "bcdfg" };
    let namespace = if def.namespaced { "df" } else { "" };
    lifecycle::prepare_create(def, &mut object, namespace).expect("a namespace");
    lifecycle::complete_create(def, &mut object, &creation);
    let Err(status) = lifecycle::validate_create(def, &object) else { return json!([]) };
    let details = status.details.expect("details");
    let mut causes: Vec<_> =
        details.causes.into_iter().map(|cause| (cause.field, cause.reason, cause.message)).collect();
    causes.sort();
    json!(causes)
}

/// Puts a value at a pointer, or takes away what is there.
fn change(object: &mut Value, pointer: &str, to: Option<&Value>) {
    let (holder, last) = pointer.rsplit_once('/').expect("a pointer below the object");
    let last = last.replace("~1", "/").replace("~0", "~");
    match (object.pointer_mut(holder).expect("the place of a change"), to) {
        (Value::Array(items), Some(to)) => {
            let at = last.parse::<usize>().expect("an index");
            if at == items.len() { items.push(to.clone()) } else { items[at] = to.clone() }
        }
        (Value::Array(items), None) => drop(items.remove(last.parse().expect("an index"))),
        (Value::Object(map), Some(to)) => drop(map.insert(last, to.clone())),
        (Value::Object(map), None) => drop(map.remove(&last)),
        (other, _) => panic!("no place for a change in {other}"),
    }
}

#[test]
fn mistakes_are_reported_as_upstream_reports_them() {
    let mut wrong = Vec::new();
    for file in FILES {
        let file: Value = serde_json::from_str(file).expect("JSON");
        assert_eq!(causes(file["base"].clone()), json!([]), "{}", meta::kind(&file["base"]));
        let rows = file["rows"].as_array().expect("rows");
        assert!(!rows.is_empty());
        for row in rows {
            let mut object = file["base"].clone();
            let pointer = row["at"].as_str().expect("a pointer");
            change(&mut object, pointer, row.get("to"));
            let causes = causes(object);
            if causes != row["causes"] {
                let kind = meta::kind(&file["base"]);
                wrong.push(format!("{kind} {pointer} to {:?}:\n  {}\n  {causes}", row.get("to"), row["causes"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
