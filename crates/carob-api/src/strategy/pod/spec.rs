//! PodSpecs, of Pods and of templates (kubernetes pkg/apis/core/validation: ValidatePodSpec).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Holder, affinity, container, network, platform, resources, security, shared::containers, volume};
use crate::strategy::fields::{object_name, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle::validate_labels,
    meta, names,
};

/// Validates a PodSpec, in upstream's order. What the table of types says of single fields is checked elsewhere.
pub(crate) fn validate_spec(spec: &Value, of: Holder<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    let volumes = volume::validate_all(meta::items_at(spec, &["volumes"]), of, &path.child("volumes"), errors);
    let claims = validate_claims(spec, &path.child("resourceClaims"), errors);
    let around = container::Surroundings {
        volumes,
        claims,
        restart_policy: text(spec, "restartPolicy"),
        host_users: meta::bool_at(spec, &["hostUsers"]) != Some(false),
        grace_seconds: meta::i64_at(spec, &["terminationGracePeriodSeconds"]),
    };
    container::validate_all(spec, &around, path, errors);
    if let Some(own) = meta::at(spec, &["resources"]) {
        resources::validate_of_pod(own, spec, &around.claims, &path.child("resources"), errors);
    }
    network::validate_host_network(spec, of, path, errors);
    let labels = meta::at(spec, &["nodeSelector"]).and_then(Value::as_object);
    validate_labels(labels, &path.child("nodeSelector"), errors);
    security::validate_of_pod(spec, path, errors);
    if let Some(given) = meta::at(spec, &["affinity"]) {
        affinity::validate(given, &path.child("affinity"), errors);
    }
    network::validate_dns(spec, &path.child("dnsConfig"), errors);
    validate_gates(spec, path, errors);
    affinity::validate_spread(spec, &path.child("topologySpreadConstraints"), errors);
    platform::validate_host_process(spec, path, errors);
    validate_host_users(spec, path, errors);
    network::validate_hostname_override(spec, &path.child("hostnameOverride"), errors);
    validate_names(spec, path, errors);
    for (index, toleration) in meta::items_at(spec, &["tolerations"]).iter().enumerate() {
        affinity::validate_toleration(toleration, &path.child("tolerations").index(index), errors);
    }
    network::validate_host_aliases(spec, &path.child("hostAliases"), errors);
    validate_classes(spec, path, errors);
    if let Some(overhead) = meta::at(spec, &["overhead"]) {
        let limits = json!({ "limits": overhead });
        resources::validate_of_container(&limits, &BTreeSet::new(), &path.child("overhead"), errors);
    }
    platform::validate(spec, path, errors);
    if let Some(group) = meta::at(spec, &["schedulingGroup"]) {
        validate_scheduling_group(group, &path.child("schedulingGroup"), errors);
    }
    validate_file_volumes(spec, path, errors);
}

/// Claims of devices; answers their names.
fn validate_claims<'a>(spec: &'a Value, path: &FieldPath, errors: &mut FieldErrors) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, claim) in meta::items_at(spec, &["resourceClaims"]).iter().enumerate() {
        let path = path.index(index);
        match text(claim, "name") {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            name if !seen.insert(name) => errors.push(FieldError::duplicate(&path.child("name"), name)),
            name => invalid_each(&path.child("name"), name, names::dns1123_label(name), errors),
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        let given = sources.map(|field| meta::str_at(claim, &[field]));
        if given.iter().all(Option::is_some) {
            let message = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.push(FieldError::invalid(&path, claim.clone(), message));
        }
        if given.iter().all(Option::is_none) {
            let message = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.push(FieldError::invalid(&path, claim.clone(), message));
        }
        for (field, name) in sources.into_iter().zip(given) {
            if let Some(name) = name {
                object_name(name, false, &path.child(field), errors);
            }
        }
    }
    seen
}

/// Variables come out of files that other containers of the Pod have written.
fn validate_file_volumes(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let volumes = meta::items_at(spec, &["volumes"]);
    for (path, container) in containers(spec, path) {
        let path = path.child("env");
        for (index, variable) in meta::items_at(container, &["env"]).iter().enumerate() {
            let Some(reference) = meta::at(variable, &["valueFrom", "fileKeyRef"]) else { continue };
            let name = text(reference, "volumeName");
            let path = path.index(index).child("valueFrom").child("fileKeyRef").child("volumeName");
            match volumes.iter().rfind(|volume| text(volume, "name") == name) {
                None => errors.push(FieldError::not_found(&path, name)),
                Some(volume) if meta::at(volume, &["emptyDir"]).is_none() => {
                    errors.push(FieldError::invalid(&path, name, "referenced volume must be of type emptyDir"));
                }
                Some(_) => {}
            }
        }
    }
}

fn validate_names(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (field, check) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
    ] {
        let value = text(spec, field);
        if !value.is_empty() {
            invalid_each(&path.child(field), value, check(value), errors);
        }
    }
}

fn validate_classes(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let priority = text(spec, "priorityClassName");
    if !priority.is_empty() {
        object_name(priority, false, &path.child("priorityClassName"), errors);
    }
    if let Some(runtime) = meta::str_at(spec, &["runtimeClassName"]) {
        object_name(runtime, false, &path.child("runtimeClassName"), errors);
    }
    match meta::str_at(spec, &["preemptionPolicy"]) {
        Some("") => errors.push(FieldError::required(&path.child("preemptionPolicy"), "")),
        Some(policy) if !matches!(policy, "PreemptLowerPriority" | "Never") => {
            let supported = ["PreemptLowerPriority", "Never"];
            errors.push(FieldError::not_supported(&path.child("preemptionPolicy"), policy, &supported));
        }
        _ => {}
    }
}

fn validate_gates(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, gate) in meta::items_at(spec, &["readinessGates"]).iter().enumerate() {
        let ty = text(gate, "conditionType");
        let path = path.child("readinessGates").index(index).child("conditionType");
        invalid_each(&path, ty, names::qualified_name(ty), errors);
    }
    let mut seen = BTreeSet::new();
    for (index, gate) in meta::items_at(spec, &["schedulingGates"]).iter().enumerate() {
        let name = text(gate, "name");
        let path = path.child("schedulingGates").index(index);
        invalid_each(&path, name, names::qualified_name(name), errors);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

/// A group is named in one way, of which there is one so far.
fn validate_scheduling_group(group: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("podGroupName");
    match meta::str_at(group, &["podGroupName"]) {
        None => errors.push(FieldError::invalid(&path, Value::Null, "must specify one of: `podGroupName`")),
        Some(name) => object_name(name, false, &path, errors),
    }
}

/// A Pod with users of its own shares no other namespace with the host, and its devices could not be mapped.
fn validate_host_users(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const WHEN: &str = "when `hostUsers` is false";
    if meta::bool_at(spec, &["hostUsers"]) != Some(false) {
        return;
    }
    // The paths of the last two are upstream's.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if meta::bool_at(spec, &[field]) == Some(true) {
            errors.push(FieldError::forbidden(&path.child(shown), WHEN));
        }
    }
    for (path, container) in containers(spec, path) {
        if !meta::items_at(container, &["volumeDevices"]).is_empty() {
            errors.push(FieldError::forbidden(&path.child("volumeDevices"), WHEN));
        }
    }
}
