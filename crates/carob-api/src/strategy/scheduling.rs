//! Groups of Pods that are scheduled together: Workload and PodGroup of scheduling.k8s.io/v1alpha2 (kubernetes
//! pkg/apis/scheduling/v1alpha2/zz_generated.validations.go, with all gates of that version on but that of device claims),
//! and the PodGroup of the coscheduling plugin.

use serde_json::Value;

use super::fields::text;
use super::{Part, Rules, Strategy, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

/// WorkloadMaxPodGroupTemplates.
const TEMPLATES_MAX: usize = 8;
/// TopologyConstraints of one group.
const TOPOLOGY_MAX: usize = 1;
/// HighestUserDefinablePriority.
const PRIORITY_MAX: i64 = 1_000_000_000;
const DISRUPTION_MODES: [&str; 2] = ["Pod", "PodGroup"];

/// A name that has to be there and be well formed.
fn required_name(
    holder: &Value,
    field: &str,
    check: fn(&str) -> Vec<String>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (value, path) = (text(holder, field), path.child(field));
    if value.is_empty() {
        errors.push(FieldError::required(&path, ""));
        return;
    }
    optional_name(value, check, &path, errors);
}

fn optional_name(value: &str, check: fn(&str) -> Vec<String>, path: &FieldPath, errors: &mut FieldErrors) {
    if !value.is_empty() {
        errors.extend(check(value).into_iter().map(|message| FieldError::invalid(path, value, message)));
    }
}

/// What a PodGroup and the template of one have in common.
fn validate_group(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_policy(&spec["schedulingPolicy"], &path.child("schedulingPolicy"), errors);
    let topology = meta::items_at(spec, &["schedulingConstraints", "topology"]);
    let topology_path = path.child("schedulingConstraints").child("topology");
    if topology.len() > TOPOLOGY_MAX {
        errors.push(FieldError::too_many(&topology_path, Some(topology.len()), TOPOLOGY_MAX));
    }
    for (index, constraint) in topology.iter().take(TOPOLOGY_MAX).enumerate() {
        required_name(constraint, "key", names::qualified_name, &topology_path.index(index), errors);
    }
    if !meta::items_at(spec, &["resourceClaims"]).is_empty() {
        let message = "dynamic resource allocation is not supported";
        errors.push(FieldError::forbidden(&path.child("resourceClaims"), message));
    }
    let mode = text(spec, "disruptionMode");
    if !mode.is_empty() && !DISRUPTION_MODES.contains(&mode) {
        errors.push(FieldError::not_supported(&path.child("disruptionMode"), mode, &DISRUPTION_MODES));
    }
    let class = text(spec, "priorityClassName");
    optional_name(class, names::dns1123_subdomain, &path.child("priorityClassName"), errors);
    if let Some(priority) = meta::i64_at(spec, &["priority"]).filter(|priority| *priority > PRIORITY_MAX) {
        let message = format!("must be less than or equal to {PRIORITY_MAX}");
        errors.push(FieldError::invalid(&path.child("priority"), priority, message));
    }
}

/// Exactly one policy is set (apimachinery pkg/api/validate/union.go).
fn validate_policy(policy: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let gang = meta::at(policy, &["gang"]);
    match (meta::at(policy, &["basic"]).is_some(), gang) {
        (false, None) => errors.push(FieldError::invalid(path, "", "must specify one of: `basic`, `gang`")),
        (true, Some(_)) => {
            let message = "exactly one of `basic`, `gang` is required, but multiple fields are set";
            errors.push(FieldError::invalid(path, "{`basic`, `gang`}", message));
        }
        (true, None) => {}
        (false, Some(gang)) => {
            let path = path.child("gang").child("minCount");
            match meta::i64_at(gang, &["minCount"]).unwrap_or_default() {
                0 => errors.push(FieldError::required(&path, "")),
                count if count < 0 => {
                    errors.push(FieldError::invalid(&path, count, "must be greater than or equal to 1"));
                }
                _ => {}
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct PodGroup;

impl Strategy for PodGroup {
    fn rules(&self) -> &Rules {
        &Rules::STATUS_ALONE
    }

    fn default(&self, obj: &mut Value) {
        if text(&obj["spec"], "disruptionMode").is_empty() {
            meta::set(obj, &["spec", "disruptionMode"], DISRUPTION_MODES[0]);
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        if let Some(reference) = meta::at(spec, &["podGroupTemplateRef"]) {
            let path = path.child("podGroupTemplateRef");
            match meta::at(reference, &["workload"]) {
                Some(workload) => {
                    let path = path.child("workload");
                    required_name(workload, "workloadName", names::dns1123_subdomain, &path, &mut errors);
                    required_name(workload, "podGroupTemplateName", names::dns1123_label, &path, &mut errors);
                }
                None => errors.push(FieldError::invalid(&path, "", "must specify one of: `workload`")),
            }
        }
        validate_group(spec, &path, &mut errors);
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let fields = [
            "podGroupTemplateRef",
            "schedulingPolicy",
            "schedulingConstraints",
            "resourceClaims",
            "disruptionMode",
            "priorityClassName",
            "priority",
        ];
        for field in fields.into_iter().filter(|_| part == Part::Main) {
            immutable(new, old, &["spec", field], &mut errors);
        }
        errors
    }
}

#[derive(Debug)]
pub(super) struct Workload;

impl Strategy for Workload {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        if let Some(controller) = meta::at(obj, &["spec", "controllerRef"]) {
            let path = path.child("controllerRef");
            let group = text(controller, "apiGroup");
            optional_name(group, names::dns1123_subdomain, &path.child("apiGroup"), &mut errors);
            required_name(controller, "kind", names::path_segment, &path, &mut errors);
            required_name(controller, "name", names::path_segment, &path, &mut errors);
        }
        let path = path.child("podGroupTemplates");
        let templates = meta::items_at(obj, &["spec", "podGroupTemplates"]);
        match templates.len() {
            0 => errors.push(FieldError::required(&path, "must have at least one item")),
            count if count > TEMPLATES_MAX => {
                errors.push(FieldError::too_many(&path, Some(count), TEMPLATES_MAX));
                return errors;
            }
            _ => {}
        }
        for (index, template) in templates.iter().enumerate() {
            let (name, path) = (text(template, "name"), path.index(index));
            required_name(template, "name", names::dns1123_label, &path, &mut errors);
            if templates[..index].iter().any(|earlier| text(earlier, "name") == name) {
                errors.push(FieldError::duplicate(&path, name));
            }
            validate_group(template, &path, &mut errors);
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        for field in ["controllerRef", "podGroupTemplates"] {
            immutable(new, old, &["spec", field], &mut errors);
        }
        errors
    }
}

/// The PodGroup that the label `scheduling.x-k8s.io/pod-group` names.
#[derive(Debug)]
pub(super) struct LabelPodGroup;

impl Strategy for LabelPodGroup {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::WORKLOAD_ALONE };
        &RULES
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let ignored = meta::at(new, &["spec", "minResources"]).and_then(Value::as_object);
        let warning = "spec.minResources has no effect: the requests of the group's Pods decide";
        ignored.filter(|map| !map.is_empty()).map(|_| warning.to_owned()).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_group_has_one_policy_and_a_sound_one() {
        let cases = [
            (json!({"schedulingPolicy": {"basic": {}}}), None),
            (json!({"schedulingPolicy": {"gang": {"minCount": 3}}}), None),
            (json!({}), Some("spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`")),
            (
                json!({"schedulingPolicy": {"basic": {}, "gang": {"minCount": 1}}}),
                Some(
                    "spec.schedulingPolicy: Invalid value: \"{`basic`, `gang`}\": exactly one of `basic`, `gang` is \
                     required, but multiple fields are set",
                ),
            ),
            (json!({"schedulingPolicy": {"gang": {}}}), Some("spec.schedulingPolicy.gang.minCount: Required value")),
            (
                json!({"schedulingPolicy": {"gang": {"minCount": -1}}}),
                Some("spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1"),
            ),
            (
                json!({"schedulingPolicy": {"basic": {}}, "schedulingConstraints": {"topology": [{"key": "a"}, {"key": "b"}]}}),
                Some("spec.schedulingConstraints.topology: Too many: 2: must have at most 1 item"),
            ),
            (
                json!({"schedulingPolicy": {"basic": {}}, "schedulingConstraints": {"topology": [{}]}}),
                Some("spec.schedulingConstraints.topology[0].key: Required value"),
            ),
            (
                json!({"schedulingPolicy": {"basic": {}}, "disruptionMode": "All"}),
                Some("spec.disruptionMode: Unsupported value: \"All\": supported values: \"Pod\", \"PodGroup\""),
            ),
            (
                json!({"schedulingPolicy": {"basic": {}}, "resourceClaims": [{"name": "x"}]}),
                Some("spec.resourceClaims: Forbidden: dynamic resource allocation is not supported"),
            ),
            (
                json!({"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": {"workload": {"workloadName": "w"}}}),
                Some("spec.podGroupTemplateRef.workload.podGroupTemplateName: Required value"),
            ),
        ];
        for (spec, expected) in cases {
            let found = messages(&PodGroup.validate(&json!({"spec": spec})));
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{spec}");
        }
    }

    #[test]
    fn the_spec_of_a_group_stays_as_it_was_made() {
        let old = json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 3}}, "disruptionMode": "Pod"}});
        let mut new = old.clone();
        new["spec"]["schedulingPolicy"]["gang"]["minCount"] = json!(4);
        new["spec"]["disruptionMode"] = json!("PodGroup");
        let errors = messages(&PodGroup.validate_update(Part::Main, &new, &old));
        assert!(errors.len() == 2 && errors.iter().all(|error| error.ends_with("field is immutable")), "{errors:?}");
        assert_eq!(PodGroup.validate_update(Part::Status, &new, &old), []);
    }

    #[test]
    fn a_workload_has_one_to_eight_templates_of_different_names() {
        let of = |names: &[&str]| {
            let template = |name: &&str| json!({"name": name, "schedulingPolicy": {"basic": {}}});
            let templates: Vec<Value> = names.iter().map(template).collect();
            messages(&Workload.validate(&json!({"spec": {"podGroupTemplates": templates}})))
        };
        assert_eq!(of(&["a", "b"]), [""; 0]);
        assert_eq!(of(&[]), ["spec.podGroupTemplates: Required value: must have at least one item"]);
        assert_eq!(of(&["a", "a"]), ["spec.podGroupTemplates[1]: Duplicate value: \"a\""]);
        assert_eq!(of(&[""]), ["spec.podGroupTemplates[0].name: Required value"]);
        assert_eq!(of(&["a"; 9]), ["spec.podGroupTemplates: Too many: 9: must have at most 8 items"]);
    }

    #[test]
    fn a_field_without_effect_is_told() {
        let group = json!({"spec": {"minMember": 2, "minResources": {"cpu": "4"}}});
        assert_eq!(LabelPodGroup.warnings(&group, None).len(), 1);
        assert_eq!(LabelPodGroup.warnings(&json!({"spec": {"minMember": 2}}), None), [""; 0]);
    }
}
