//! HorizontalPodAutoscalers (kubernetes pkg/apis/autoscaling: v2/defaults.go and validation).

use serde_json::{Value, json};

use super::fields::text;
use super::{Part, Rules, Strategy, resource_names};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    pod::value::quantity,
};

/// Longest period of a policy and longest window to look back in, seconds.
const PERIOD_SECONDS_MAX: i64 = 1800;
const WINDOW_SECONDS_MAX: i64 = 3600;
const METRIC_TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
/// The fields of the types of metrics, in upstream's order.
const METRIC_SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

#[derive(Debug)]
pub(super) struct HorizontalPodAutoscaler;

impl Strategy for HorizontalPodAutoscaler {
    fn rules(&self) -> &Rules {
        &Rules::STATUS
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = meta::at_mut(obj, &["spec"]) else { return };
        if meta::items_at(spec, &["metrics"]).is_empty() {
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
            meta::set(spec, &["metrics"], json!([metric]));
        }
        if meta::at(spec, &["behavior"]).is_none() {
            return;
        }
        let double = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let four = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        for (direction, defaults) in [
            ("scaleUp", json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [four, double]})),
            ("scaleDown", json!({"selectPolicy": "Max", "policies": [double]})),
        ] {
            let rules = meta::map_mut(spec, &["behavior", direction]);
            for (field, default) in defaults.as_object().into_iter().flatten() {
                rules.entry(field).or_insert_with(|| default.clone());
            }
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        validate_bounds(spec, &path, &mut errors);
        validate_reference(&spec["scaleTargetRef"], &path.child("scaleTargetRef"), &mut errors);
        for (index, metric) in meta::items_at(spec, &["metrics"]).iter().enumerate() {
            validate_metric(metric, &path.child("metrics").index(index), &mut errors);
        }
        let is_of_objects = |metric: &Value| matches!(text(metric, "type"), "Object" | "External");
        if number(spec, "minReplicas") == 0
            && meta::at(spec, &["minReplicas"]).is_some()
            && !meta::items_at(spec, &["metrics"]).iter().any(is_of_objects)
        {
            let message = "must specify at least one Object or External metric to support scaling to zero replicas";
            errors.push(FieldError::forbidden(&path.child("metrics"), message));
        }
        for direction in ["scaleUp", "scaleDown"] {
            if let Some(rules) = meta::at(spec, &["behavior", direction]) {
                validate_rules(rules, &path.child("behavior").child(direction), &mut errors);
            }
        }
        errors
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_least(obj, &mut errors);
        validate_target_version(obj, &mut errors);
        validate_object_versions(obj, &mut errors);
        errors
    }

    /// What was stored with a mistake that was none before may keep it.
    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part != Part::Main {
            return errors;
        }
        if meta::i64_at(old, &["spec", "minReplicas"]) != Some(0) || number(&new["spec"], "minReplicas") < 0 {
            validate_least(new, &mut errors);
        }
        let target =
            |obj: &Value, field: &str| meta::str_at(obj, &["spec", "scaleTargetRef", field]).map(str::to_owned);
        if ["apiVersion", "kind"].iter().any(|field| target(new, field) != target(old, field)) {
            validate_target_version(new, &mut errors);
        }
        let mut before = FieldErrors::new();
        validate_object_versions(old, &mut before);
        if before.is_empty() {
            validate_object_versions(new, &mut errors);
        }
        errors
    }
}

fn number(holder: &Value, field: &str) -> i64 {
    meta::i64_at(holder, &[field]).unwrap_or_default()
}

fn validate_least(obj: &Value, errors: &mut FieldErrors) {
    if let Some(least) = meta::i64_at(obj, &["spec", "minReplicas"]).filter(|least| *least < 1) {
        let path = FieldPath::new("spec").child("minReplicas");
        errors.push(FieldError::invalid(&path, least, "must be greater than or equal to 1"));
    }
}

fn validate_bounds(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (least, most) = (meta::i64_at(spec, &["minReplicas"]).unwrap_or(1), number(spec, "maxReplicas"));
    let path = path.child("maxReplicas");
    if most == 0 {
        errors.push(FieldError::required(&path, "must be set and greater than 0"));
    } else if most < 0 {
        errors.push(FieldError::invalid(&path, most, "must be greater than or equal to 1"));
    }
    if most < least {
        errors.push(FieldError::invalid(&path, most, "must be greater than or equal to `minReplicas`"));
    }
}

/// A segment of a path, which must be there.
fn validate_segment(holder: &Value, field: &str, missing: &str, path: &FieldPath, errors: &mut FieldErrors) {
    match text(holder, field) {
        "" => errors.push(FieldError::required(&path.child(field), missing)),
        given => invalid_each(&path.child(field), given, names::path_segment(given), errors),
    }
}

fn validate_reference(reference: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_segment(reference, "kind", "", path, errors);
    validate_segment(reference, "name", "", path, errors);
}

fn validate_version(reference: &Value, may_be_core: bool, path: &FieldPath, errors: &mut FieldErrors) {
    let version = text(reference, "apiVersion");
    let message = match version.matches('/').count() {
        0 | 1 if may_be_core || !meta::group_version(version).0.is_empty() => return,
        0 | 1 => "apiVersion must specify API group".to_owned(),
        _ => format!("unexpected GroupVersion string: {version}"),
    };
    errors.push(FieldError::invalid(&path.child("apiVersion"), version, message));
}

/// What can be scaled has a group, but for the one kind that was there before groups.
fn validate_target_version(obj: &Value, errors: &mut FieldErrors) {
    let target = &obj["spec"]["scaleTargetRef"];
    let may_be_core = text(target, "kind") == "ReplicationController";
    validate_version(target, may_be_core, &FieldPath::new("spec").child("scaleTargetRef"), errors);
}

fn validate_object_versions(obj: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("spec").child("metrics");
    for (index, metric) in meta::items_at(obj, &["spec", "metrics"]).iter().enumerate() {
        if let Some(object) = meta::at(metric, &["object"]) {
            let path = path.index(index).child("object").child("describedObject");
            validate_version(&object["describedObject"], true, &path, errors);
        }
    }
}

fn validate_metric(metric: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let ty = text(metric, "type");
    let type_path = path.child("type");
    if ty.is_empty() {
        errors.push(FieldError::required(&type_path, "must specify a metric source type"));
    }
    if !METRIC_TYPES.contains(&ty) {
        // Upstream says so twice.
        for _ in 0..2 {
            errors.push(FieldError::not_supported(&type_path, ty, &METRIC_TYPES));
        }
    }
    let given: Vec<&str> =
        METRIC_SOURCES.map(|(_, field)| field).into_iter().filter(|f| meta::at(metric, &[f]).is_some()).collect();
    if let Some(field) = given.first() {
        validate_source(field, &metric[*field], &path.child(field), errors);
    }
    let expected = METRIC_SOURCES.iter().find(|(of, _)| *of == ty).map(|(_, field)| *field);
    if let Some(expected) = expected.filter(|expected| !given.contains(expected)) {
        let message = "must populate information for the given metric source";
        errors.push(FieldError::required(&path.child(expected), message));
    }
    if given.len() != 1 {
        for field in given.into_iter().filter(|field| Some(*field) != expected) {
            errors.push(FieldError::forbidden(&path.child(field), "must populate the given metric source only"));
        }
    }
}

fn validate_source(field: &str, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let target_path = path.child("target");
    let target = &source["target"];
    let has = |field: &str| meta::at(target, &[field]).is_some();
    match field {
        "object" | "external" | "pods" => {
            if field == "object" {
                validate_reference(&source["describedObject"], &path.child("describedObject"), errors);
            }
            validate_segment(&source["metric"], "name", "must specify a metric name", &path.child("metric"), errors);
        }
        _ => validate_resource(field, source, path, errors),
    }
    validate_target(target, &target_path, errors);
    let (missing, place) = match field {
        "object" if !has("value") && !has("averageValue") => {
            ("must set either a target value or averageValue", "averageValue")
        }
        "external" if !has("value") && !has("averageValue") => {
            ("must set either a target value for metric or a per-pod target", "averageValue")
        }
        "external" if has("value") && has("averageValue") => {
            let message = "may not set both a target value for metric and a per-pod target";
            errors.push(FieldError::forbidden(&target_path.child("value"), message));
            return;
        }
        "pods" if !has("averageValue") => ("must specify a positive target averageValue", "averageValue"),
        "resource" | "containerResource" if !has("averageUtilization") && !has("averageValue") => {
            ("must set either a target raw value or a target utilization", "averageUtilization")
        }
        "resource" | "containerResource" if has("averageUtilization") && has("averageValue") => {
            let message = "may not set both a target raw value and a target utilization";
            errors.push(FieldError::forbidden(&target_path.child("averageValue"), message));
            return;
        }
        _ => return,
    };
    errors.push(FieldError::required(&target_path.child(place), missing));
}

fn validate_resource(field: &str, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match text(source, "name") {
        "" => errors.push(FieldError::required(&path.child("name"), "must specify a resource name")),
        name if field == "containerResource" => {
            invalid_each(&path.child("name"), name, resource_names::of_containers(name), errors);
        }
        _ => {}
    }
    if field == "containerResource" {
        match text(source, "container") {
            "" => errors.push(FieldError::required(&path.child("container"), "must specify a container")),
            name => invalid_each(&path.child("container"), name, names::dns1123_label(name), errors),
        }
    }
}

fn validate_target(target: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let ty = text(target, "type");
    if ty.is_empty() {
        errors.push(FieldError::required(&path.child("type"), "must specify a metric target type"));
    }
    if !matches!(ty, "Utilization" | "Value" | "AverageValue") {
        let message = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(&path.child("type"), ty, message));
    }
    for field in ["value", "averageValue"] {
        if let Some(given) = meta::at(target, &[field]).filter(|given| quantity(given) <= quantity(&Value::Null)) {
            errors.push(FieldError::invalid(&path.child(field), given.clone(), "must be positive"));
        }
    }
    if let Some(percent) = meta::i64_at(target, &["averageUtilization"]).filter(|percent| *percent < 1) {
        errors.push(FieldError::invalid(&path.child("averageUtilization"), percent, "must be greater than 0"));
    }
}

fn validate_rules(rules: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const SELECT: [&str; 3] = ["Disabled", "Max", "Min"];
    let window_path = path.child("stabilizationWindowSeconds");
    match meta::i64_at(rules, &["stabilizationWindowSeconds"]) {
        Some(window) if window < 0 => {
            errors.push(FieldError::invalid(&window_path, window, "must be greater than or equal to zero"));
        }
        Some(window) if window > WINDOW_SECONDS_MAX => {
            let message = format!("must be less than or equal to {WINDOW_SECONDS_MAX}");
            errors.push(FieldError::invalid(&window_path, window, message));
        }
        _ => {}
    }
    if let Some(select) = meta::str_at(rules, &["selectPolicy"]).filter(|select| !SELECT.contains(select)) {
        errors.push(FieldError::not_supported(&path.child("selectPolicy"), select, &SELECT));
    }
    let policies = meta::items_at(rules, &["policies"]);
    if policies.is_empty() {
        errors.push(FieldError::required(&path.child("policies"), "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        let path = path.child("policies").index(index);
        let ty = text(policy, "type");
        if !matches!(ty, "Pods" | "Percent") {
            errors.push(FieldError::not_supported(&path.child("type"), ty, &["Percent", "Pods"]));
        }
        for field in ["value", "periodSeconds"].into_iter().filter(|field| number(policy, field) <= 0) {
            let given = number(policy, field);
            errors.push(FieldError::invalid(&path.child(field), given, "must be greater than zero"));
        }
        let period = number(policy, "periodSeconds");
        if period > PERIOD_SECONDS_MAX {
            let message = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
            errors.push(FieldError::invalid(&path.child("periodSeconds"), period, message));
        }
    }
    if let Some(tolerance) = meta::at(rules, &["tolerance"]).filter(|tolerance| quantity(tolerance).is_negative()) {
        let path = path.child("tolerance");
        errors.push(FieldError::invalid(&path, tolerance.clone(), resource_names::NOT_NEGATIVE));
    }
}
