//! Pods (kubernetes pkg/registry/core/pod/strategy.go).

mod affinity;
mod annotations;
mod container;
mod defaults;
mod env;
mod mount;
mod network;
mod overlaps;
mod platform;
mod plugins;
mod probe;
mod resize;
pub(super) mod resources;
mod security;
mod shared;
mod spec;
#[cfg(test)]
mod tests;
mod update;
mod volume;
mod warnings;

use serde_json::{Value, json};

pub use affinity::validate_label_selector;
pub(crate) use affinity::{validate_node_selector, validate_toleration};
pub(super) use annotations::validate as validate_annotations;
pub(crate) use defaults::default_spec;
pub(super) use security::validate_agreement;
pub(crate) use shared::Holder;
pub(crate) use spec::validate_spec;
pub(crate) use volume::{host_path as validate_host_path, nfs as validate_nfs};
pub(crate) use warnings::of_template as warnings_of_template;

use super::{Part, Rules, Strategy};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta,
    pod::value,
    pod_support,
};

#[derive(Debug)]
pub(crate) struct Pod;

impl Strategy for Pod {
    fn rules(&self) -> &Rules {
        /// Nobody but its owners says whose a Pod is.
        const RULES: Rules = Rules { status_metadata: &["annotations", "labels", "finalizers"], ..Rules::WORKLOAD };
        &RULES
    }

    fn default(&self, pod: &mut Value) {
        defaults::default_pod(pod);
    }

    fn prepare_create(&self, pod: &mut Value) {
        affinity::merge_label_keys(pod);
        let mut status = json!({"phase": "Pending", "qosClass": value::qos(pod).as_str()});
        if !meta::items_at(pod, &["spec", "schedulingGates"]).is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        meta::set(pod, &["status"], status);
    }

    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {
        match part {
            Part::Main => {}
            Part::Status => update::prepare_status(new, old),
            Part::EphemeralContainers => {
                let containers = meta::at(new, &["spec", "ephemeralContainers"]).cloned();
                keep_all_but_request(new, old);
                match containers {
                    Some(containers) => meta::set(new, &["spec", "ephemeralContainers"], containers),
                    None => {
                        meta::remove(new, &["spec", "ephemeralContainers"]);
                    }
                }
            }
            Part::Resize => {
                let given = std::mem::take(new);
                *new = given.clone();
                keep_all_but_request(new, old);
                resize::copy_resources(new, &given);
            }
            Part::Approval | Part::Finalize => *new = old.clone(),
        }
    }

    fn validate(&self, pod: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        annotations::validate(pod, &FieldPath::new("metadata").child("annotations"), &mut errors);
        validate_spec(&pod["spec"], Holder::Pod(pod), &path, &mut errors);
        validate_tokens(&pod["spec"], &path.child("volumes"), &mut errors);
        for list in ["containers", "initContainers"] {
            for (index, container) in meta::items_at(pod, &["spec", list]).iter().enumerate() {
                container::validate_image_of_pod(container, &path.child(list).index(index), &mut errors);
            }
        }
        errors
    }

    fn validate_create(&self, pod: &Value) -> FieldErrors {
        let path = FieldPath::new("spec");
        let mut errors = pod_support::refuse_unsupported(&pod["spec"], &path);
        if !meta::items_at(pod, &["spec", "ephemeralContainers"]).is_empty() {
            errors.push(FieldError::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
        }
        let gated = !meta::items_at(pod, &["spec", "schedulingGates"]).is_empty();
        if gated && meta::str_at(pod, &["spec", "nodeName"]).is_some() {
            let message = "cannot be set until all schedulingGates have been cleared";
            errors.push(FieldError::forbidden(&path.child("nodeName"), message));
        }
        security::validate_agreement(pod, &path, &mut errors);
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        match part {
            Part::Main => update::validate_main(new, old),
            Part::Status => update::validate_status(new, old),
            Part::EphemeralContainers => update::validate_ephemeral_containers(new, old),
            Part::Resize => resize::validate(new, old),
            Part::Approval | Part::Finalize => FieldErrors::new(),
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() { Vec::new() } else { warnings::of_pod(new) }
    }

    fn deletion_grace_seconds(&self, pod: &Value, requested: Option<i64>) -> Option<i64> {
        let own = meta::i64_at(pod, &["spec", "terminationGracePeriodSeconds"]).unwrap_or_default();
        let unscheduled = meta::str_at(pod, &["spec", "nodeName"]).is_none_or(str::is_empty);
        let done = matches!(meta::str_at(pod, &["status", "phase"]), Some("Failed" | "Succeeded"));
        match requested.unwrap_or(own) {
            _ if unscheduled || done => Some(0),
            seconds if seconds < 0 => Some(1),
            seconds => Some(seconds),
        }
    }
}

/// A token is of a service account. Admission gives Pods without one the namespace's own.
fn validate_tokens(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if !super::fields::text(spec, "serviceAccountName").is_empty() {
        return;
    }
    for (index, volume) in meta::items_at(spec, &["volumes"]).iter().enumerate() {
        let path = path.index(index).child("projected").child("sources");
        for (index, source) in meta::items_at(volume, &["projected", "sources"]).iter().enumerate() {
            if meta::at(source, &["serviceAccountToken"]).is_some() {
                let message = "must not be specified when serviceAccountName is not set";
                errors.push(FieldError::forbidden(&path.index(index).child("serviceAccountToken"), message));
            }
        }
    }
}

/// Everything but resourceVersion and managedFields is the stored object's.
fn keep_all_but_request(new: &mut Value, old: &Value) {
    let request = std::mem::take(new);
    *new = old.clone();
    for field in ["resourceVersion", "managedFields"] {
        match meta::at(&request, &["metadata", field]) {
            Some(value) => meta::set(new, &["metadata", field], value.clone()),
            None => {
                meta::remove(new, &["metadata", field]);
            }
        }
    }
    copy_field(new, old, "status");
}

/// The lists of a PodSpec that hold containers, with the field's name.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
