//! Kinds that make Pods from a template: validation that they share, and their own defaults
//! (kubernetes pkg/apis/apps, pkg/apis/batch: v1/defaults.go and validation).

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Part, Rules, Strategy, pod};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle, meta, names,
    selector::LabelSelector,
};

pub(super) const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

pub(super) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    meta::str_at(value, path).unwrap_or_default()
}

/// Errors when a number is negative.
pub(super) fn not_negative(holder: &Value, field: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let value = meta::i64_at(holder, &[field]).unwrap_or_default();
    if value < 0 {
        errors.push(FieldError::invalid(&path.child(field), value, NOT_NEGATIVE));
    }
}

/// Errors when a field changed.
pub(super) fn immutable(new: &Value, old: &Value, field: &[&str], errors: &mut FieldErrors) {
    if meta::at(new, field) != meta::at(old, field) {
        let path = field.iter().fold(FieldPath::default(), |path, part| path.child(part));
        let value = meta::at(new, field).cloned().unwrap_or(Value::Null);
        errors.push(FieldError::invalid(&path, value, IMMUTABLE));
    }
}

fn validate_template(template: &Value, policies: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    validate_pods_of_template(template, path, errors);
    let policy = text(template, &["spec", "restartPolicy"]);
    if !policies.contains(&policy) {
        errors.push(FieldError::not_supported(&path.child("spec").child("restartPolicy"), policy, policies));
    }
}

pub(super) fn validate_pods_of_template(template: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let metadata = path.child("metadata");
    lifecycle::validate_labels(meta::labels(template), &metadata.child("labels"), errors);
    let spec = path.child("spec");
    pod::validate_spec(&template["spec"], &spec, errors);
    if !meta::items_at(template, &["spec", "ephemeralContainers"]).is_empty() {
        let message = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(&spec.child("ephemeralContainers"), message));
    }
}

/// The selector must be there, say something, and match the template.
fn validate_selector(spec: &Value, kind: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let path_selector = path.child("selector");
    let Some(selector) = meta::at(spec, &["selector"]) else {
        errors.push(FieldError::required(&path_selector, ""));
        return;
    };
    pod::validate_label_selector(selector, &path_selector, errors);
    match LabelSelector::from_json(selector) {
        Ok(parsed) if parsed.is_empty() => {
            let message = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid(&path_selector, selector.clone(), message));
        }
        Ok(parsed) if !parsed.matches(meta::labels(&spec["template"])) => {
            let labels = meta::at(spec, &["template", "metadata", "labels"]).cloned().unwrap_or(json!({}));
            let path = path.child("template").child("metadata").child("labels");
            errors.push(FieldError::invalid(&path, labels, "`selector` does not match template `labels`"));
        }
        Ok(_) => {}
        Err(error) => errors.push(FieldError::invalid(&path_selector, selector.clone(), error.to_string())),
    }
}

/// Warnings of a template, unless an update leaves it as it was.
pub(super) fn template_warnings(new: &Value, old: Option<&Value>, template: &[&str]) -> Vec<String> {
    let Some(given) = meta::at(new, template) else { return Vec::new() };
    if old.is_some_and(|old| meta::at(old, template) == Some(given)) {
        return Vec::new();
    }
    let path = template.iter().fold(FieldPath::default(), |path, part| path.child(part));
    pod::warnings_of_spec(&given["spec"], &path.child("spec"))
}

/// Deployments, ReplicaSets, DaemonSets and StatefulSets.
#[derive(Debug)]
pub(super) struct Replicated {
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Deployment,
    ReplicaSet,
    DaemonSet,
    StatefulSet,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Deployment => "deployment",
            Kind::ReplicaSet => "deployment",
            Kind::DaemonSet => "daemonset",
            Kind::StatefulSet => "statefulset",
        }
    }

    /// The strategy's field, and what a rolling update says by default.
    fn rolling_update(self) -> Option<(&'static str, Value)> {
        match self {
            Kind::Deployment => Some(("strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}))),
            Kind::DaemonSet => Some(("updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}))),
            Kind::StatefulSet => Some(("updateStrategy", json!({"partition": 0}))),
            Kind::ReplicaSet => None,
        }
    }
}

/// The template with the volumes that a StatefulSet makes of its claims: containers may mount them.
fn template_with_claims(spec: &Value) -> Cow<'_, Value> {
    let template = &spec["template"];
    let claims = meta::items_at(spec, &["volumeClaimTemplates"]);
    if claims.is_empty() {
        return Cow::Borrowed(template);
    }
    let name = |claim: &Value| meta::name(claim).to_owned();
    let volumes = meta::items_at(template, &["spec", "volumes"]).iter();
    // A claim's volume takes the place of one of the same name in the template.
    let others = volumes.filter(|volume| !claims.iter().any(|claim| name(claim) == text(volume, &["name"])));
    let mut all: Vec<Value> = others.cloned().collect();
    all.extend(
        claims
            .iter()
            .map(|claim| json!({"name": meta::name(claim), "persistentVolumeClaim": {"claimName": meta::name(claim)}})),
    );
    let mut template = template.clone();
    meta::set(&mut template, &["spec", "volumes"], all);
    Cow::Owned(template)
}

impl Strategy for Replicated {
    fn rules(&self) -> &Rules {
        &Rules::WORKLOAD
    }

    fn default(&self, obj: &mut Value) {
        if let Some(spec) = meta::at_mut(obj, &["spec", "template", "spec"]) {
            pod::default_spec(spec);
        }
        if let Some((field, default)) = self.kind.rolling_update()
            && text(obj, &["spec", field, "type"]) == "RollingUpdate"
        {
            let given = meta::map_mut(obj, &["spec", field, "rollingUpdate"]);
            for (name, value) in default.as_object().cloned().unwrap_or_default() {
                given.entry(name).or_insert(value);
            }
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        validate_selector(spec, self.kind.word(), &path, &mut errors);
        let template = template_with_claims(spec);
        validate_template(template.as_ref(), &["Always"], &path.child("template"), &mut errors);
        if let Some((field, _)) = self.kind.rolling_update() {
            validate_rolling_update(&spec[field], self.kind, &path.child(field), &mut errors);
        }
        let deadline = meta::i64_at(spec, &["progressDeadlineSeconds"]);
        let ready = meta::i64_at(spec, &["minReadySeconds"]).unwrap_or_default();
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
            let path = path.child("progressDeadlineSeconds");
            errors.push(FieldError::invalid(&path, deadline, "must be greater than minReadySeconds"));
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part != Part::Main {
            return errors;
        }
        if self.kind == Kind::StatefulSet {
            validate_stateful_set_update(new, old, &mut errors);
        } else {
            immutable(new, old, &["spec", "selector"], &mut errors);
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old, &["spec", "template"])
    }
}

fn validate_rolling_update(strategy: &Value, kind: Kind, path: &FieldPath, errors: &mut FieldErrors) {
    let rolling = meta::at(strategy, &["rollingUpdate"]);
    let ty = text(strategy, &["type"]);
    let path = path.child("rollingUpdate");
    match (ty, rolling) {
        ("Recreate", Some(_)) => {
            let message = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&path, message));
            return;
        }
        ("RollingUpdate", Some(_)) => {}
        _ => return,
    }
    let amounts = ["maxUnavailable", "maxSurge"].map(|field| {
        let value = meta::at(strategy, &["rollingUpdate", field]);
        validate_amount(value, &path.child(field), errors);
        value.is_none_or(is_zero)
    });
    if amounts == [true, true] && kind != Kind::StatefulSet {
        let message = if kind == Kind::Deployment {
            "may not be 0 when `maxSurge` is 0"
        } else {
            "cannot be 0 when maxSurge is 0"
        };
        let value = meta::at(strategy, &["rollingUpdate", "maxUnavailable"]).cloned().unwrap_or(Value::from(0));
        errors.push(FieldError::invalid(&path.child("maxUnavailable"), value, message));
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.trim_end_matches('%').parse::<i64>() == Ok(0),
        _ => false,
    }
}

/// A count or a percentage.
pub(super) fn validate_amount(value: Option<&Value>, path: &FieldPath, errors: &mut FieldErrors) {
    match value {
        Some(Value::String(given)) => {
            for message in names::percent(given) {
                errors.push(FieldError::invalid(path, given.as_str(), message));
            }
        }
        Some(Value::Number(number)) if number.as_i64().is_some_and(|n| n < 0) => {
            errors.push(FieldError::invalid(path, Value::Number(number.clone()), NOT_NEGATIVE));
        }
        _ => {}
    }
}

fn validate_stateful_set_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    const CHANGEABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |obj: &Value| {
        let fields = meta::at(obj, &["spec"]).and_then(Value::as_object).into_iter().flatten();
        let fixed = fields.filter(|(key, _)| !CHANGEABLE.contains(&key.as_str()));
        fixed.map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>()
    };
    if fixed(new) != fixed(old) {
        let message = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                       'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                       'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden(&FieldPath::new("spec"), message));
    }
}

#[derive(Debug)]
pub(super) struct ReplicationController;

impl Strategy for ReplicationController {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { orphans_by_default: true, ..Rules::WORKLOAD };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        if let Some(spec) = meta::at_mut(obj, &["spec", "template", "spec"]) {
            pod::default_spec(spec);
        }
        let Some(labels) = meta::at(obj, &["spec", "template", "metadata", "labels"]).cloned() else { return };
        for path in [&["spec", "selector"][..], &["metadata", "labels"]] {
            if meta::at(obj, path).and_then(Value::as_object).is_none_or(serde_json::Map::is_empty) {
                meta::set(obj, path, labels.clone());
            }
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        let selector = meta::at(spec, &["selector"]).and_then(Value::as_object);
        match selector.filter(|selector| !selector.is_empty()) {
            None => errors.push(FieldError::required(&path.child("selector"), "")),
            Some(selector) if !LabelSelector::from_map(selector).matches(meta::labels(&spec["template"])) => {
                let labels = meta::at(spec, &["template", "metadata", "labels"]).cloned().unwrap_or(json!({}));
                let path = path.child("template").child("metadata").child("labels");
                errors.push(FieldError::invalid(&path, labels, "`selector` does not match template `labels`"));
            }
            Some(_) => {}
        }
        if meta::at(spec, &["template"]).is_none() {
            errors.push(FieldError::required(&path.child("template"), ""));
        } else {
            validate_template(&spec["template"], &["Always"], &path.child("template"), &mut errors);
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old, &["spec", "template"])
    }
}

#[derive(Debug)]
pub(super) struct PodTemplate;

impl Strategy for PodTemplate {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn default(&self, obj: &mut Value) {
        if let Some(spec) = meta::at_mut(obj, &["template", "spec"]) {
            pod::default_spec(spec);
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let policies = ["Always", "Never", "OnFailure"];
        validate_template(&obj["template"], &policies, &FieldPath::new("template"), &mut errors);
        errors
    }
}
