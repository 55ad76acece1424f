//! Kinds that make Pods from a template: validation that they share, and their own defaults
//! (kubernetes pkg/apis/apps, pkg/apis/batch: v1/defaults.go and validation).

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::{Value, json};

use super::{NameRule, Part, Rules, Strategy, claim, old_forms, pod};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle, meta, names,
    selector::LabelSelector,
};

pub(super) const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

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

/// A template of Pods that run until they are deleted. `holder` is the kind in upstream's message.
fn validate_lasting_template(template: &Value, holder: &str, path: &FieldPath, errors: &mut FieldErrors) {
    validate_template(template, path, errors);
    validate_lasting(template, holder, path, errors);
}

fn validate_lasting(template: &Value, holder: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("spec");
    // Absent where there is no spec at all.
    let policy = meta::text(template, &["spec", "restartPolicy"]);
    if !matches!(policy, "" | "Always") {
        errors.push(FieldError::not_supported(&path.child("restartPolicy"), policy, &["Always"]));
    }
    if meta::at(template, &["spec", "activeDeadlineSeconds"]).is_some() {
        let message = format!("activeDeadlineSeconds in {holder} is not Supported");
        errors.push(FieldError::forbidden(&path.child("activeDeadlineSeconds"), message));
    }
}

/// A template of Pods (`ValidatePodTemplateSpec`). Upstream reports what is wrong with its metadata without that segment.
pub(super) fn validate_template(template: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_template_metadata(template, path, errors);
    let spec = path.child("spec");
    pod::validate_spec(&template["spec"], pod::Holder::Template, &spec, errors);
    pod::validate_agreement(template, &spec, errors);
    if !meta::items_at(template, &["spec", "ephemeralContainers"]).is_empty() {
        let message = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(&spec.child("ephemeralContainers"), message));
    }
}

fn validate_template_metadata(template: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    lifecycle::validate_labels(meta::labels(template), &path.child("labels"), errors);
    let path = path.child("annotations");
    lifecycle::validate_annotations(template, &path, errors);
    pod::validate_annotations(template, &path, errors);
}

/// Errors when a selector does not match the Pods that are made.
pub(super) fn validate_match(selector: &LabelSelector, template: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if !selector.matches(meta::labels(template)) {
        let labels = meta::at(template, &["metadata", "labels"]).cloned().unwrap_or_default();
        let path = path.child("template").child("metadata").child("labels");
        errors.push(FieldError::invalid(&path, labels, "`selector` does not match template `labels`"));
    }
}

/// The selector as a program reads it: none where it has mistakes, and one that matches nothing where it is absent.
pub(super) fn read_selector(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) -> Option<LabelSelector> {
    let given = meta::at(spec, &["selector"]);
    let before = errors.len();
    if let Some(given) = given {
        pod::validate_label_selector(given, &path.child("selector"), errors);
    }
    let parsed = LabelSelector::from_json(given.unwrap_or(&Value::Null));
    parsed.ok().filter(|_| errors.len() == before)
}

/// Errors when a selector is there and says nothing.
fn validate_says_something(spec: &Value, kind: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(selector) = meta::at(spec, &["selector"]) else { return };
    let says = |field: &str| meta::at(selector, &[field]).is_some();
    if !says("matchLabels") && !says("matchExpressions") {
        let message = format!("empty selector is invalid for {kind}");
        errors.push(FieldError::invalid(&path.child("selector"), selector.clone(), message));
    }
}

/// Warnings at create of a name that Pods get theirs from.
pub(super) fn name_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() { Vec::new() } else { old_forms::name_of_pods(new).into_iter().collect() }
}

/// Warnings of a template, unless an update leaves it as it was.
pub(super) fn template_warnings(new: &Value, old: Option<&Value>, template: &[&str]) -> Vec<String> {
    let Some(given) = meta::at(new, template) else { return Vec::new() };
    if old.is_some_and(|old| meta::at(old, template) == Some(given)) {
        return Vec::new();
    }
    let path = template.iter().fold(FieldPath::default(), |path, part| path.child(part));
    pod::warnings_of_template(given, &path)
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
    /// The strategy's field, and what a rolling update says by default.
    fn rolling_update(self) -> Option<(&'static str, Value)> {
        match self {
            Kind::Deployment => Some(("strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}))),
            Kind::DaemonSet => Some(("updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}))),
            Kind::StatefulSet | Kind::ReplicaSet => None,
        }
    }
}

/// A StatefulSet's claims say what they are, and that nothing has bound them.
fn default_claims(set: &mut Value) {
    let claims = meta::at_mut(set, &["spec", "volumeClaimTemplates"]).and_then(Value::as_array_mut);
    for claim in claims.into_iter().flatten() {
        meta::set(claim, &["apiVersion"], "v1");
        meta::set(claim, &["kind"], "PersistentVolumeClaim");
        meta::map_mut(claim, &["status"]).entry("phase").or_insert_with(|| "Pending".into());
    }
}

/// The template as a StatefulSet's Pods have it: with volumes of its claims, which take the place of volumes of the same names,
/// and with names that are the set's to give.
fn template_of_set(spec: &Value) -> Cow<'_, Value> {
    let template = &spec["template"];
    let claims = meta::items_at(spec, &["volumeClaimTemplates"]);
    let named = ["hostname", "subdomain"].iter().any(|field| !meta::text(template, &["spec", field]).is_empty());
    if claims.is_empty() && !named {
        return Cow::Borrowed(template);
    }
    let mut template = template.clone();
    for field in ["hostname", "subdomain"] {
        meta::remove(&mut template, &["spec", field]);
    }
    let names: BTreeSet<&str> = claims.iter().map(meta::name).collect();
    let volumes = meta::items_at(&template, &["spec", "volumes"]).iter();
    let others = volumes.filter(|volume| !names.contains(meta::text(volume, &["name"]))).cloned();
    let of_claims = names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let all: Vec<Value> = of_claims.chain(others).collect();
    if !all.is_empty() {
        meta::set(&mut template, &["spec", "volumes"], all);
    }
    Cow::Owned(template)
}

impl Strategy for Replicated {
    fn rules(&self) -> &Rules {
        /// The names of a set's Pods are host names, and begin with the set's.
        const OF_SET: Rules = Rules { name: NameRule::Label, ..Rules::WORKLOAD };
        const OF_DEPLOYMENT: Rules =
            Rules { status_metadata: &["annotations", "finalizers", "ownerReferences"], ..Rules::WORKLOAD };
        match self.kind {
            Kind::Deployment => &OF_DEPLOYMENT,
            Kind::StatefulSet => &OF_SET,
            Kind::ReplicaSet | Kind::DaemonSet => &Rules::WORKLOAD,
        }
    }

    fn default(&self, obj: &mut Value) {
        if let Some(spec) = meta::at_mut(obj, &["spec", "template", "spec"]) {
            pod::default_spec(spec);
        }
        if self.kind == Kind::StatefulSet {
            default_claims(obj);
        }
        // A StatefulSet that names its strategy gets no parameters (apps/v1/defaults.go, SetDefaults_StatefulSet).
        if self.kind == Kind::StatefulSet {
            if meta::text(obj, &["spec", "updateStrategy", "type"]).is_empty() {
                meta::set(obj, &["spec", "updateStrategy", "type"], "RollingUpdate");
                meta::map_mut(obj, &["spec", "updateStrategy", "rollingUpdate"]).entry("partition").or_insert(0.into());
            }
        } else if let Some((field, default)) = self.kind.rolling_update()
            && meta::text(obj, &["spec", field, "type"]) == "RollingUpdate"
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
        match self.kind {
            Kind::Deployment | Kind::ReplicaSet => validate_sets(spec, &path, &mut errors),
            Kind::DaemonSet => validate_daemon_set(spec, &path, &mut errors),
            Kind::StatefulSet => validate_stateful_set(spec, &path, &mut errors),
        }
        if self.kind == Kind::Deployment {
            validate_deployment_strategy(&spec["strategy"], &path.child("strategy"), &mut errors);
            let deadline = meta::i64_at(spec, &["progressDeadlineSeconds"]);
            let ready = meta::i64_at(spec, &["minReadySeconds"]).unwrap_or_default();
            if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
                let path = path.child("progressDeadlineSeconds");
                errors.push(FieldError::invalid(&path, deadline, "must be greater than minReadySeconds"));
            }
        }
        errors
    }

    /// What a StatefulSet cannot change is not looked at again.
    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if self.kind == Kind::StatefulSet {
            let path = FieldPath::new("spec");
            for (index, claim) in meta::items_at(obj, &["spec", "volumeClaimTemplates"]).iter().enumerate() {
                let path = path.child("volumeClaimTemplates").index(index).child("spec");
                claim::validate_spec(&claim["spec"], &path, &mut errors);
            }
            let service = meta::text(obj, &["spec", "serviceName"]);
            if !service.is_empty() {
                let path = path.child("serviceName");
                invalid_each(&path, service, names::dns1123_label(service), &mut errors);
            }
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
        let mut warnings = match self.kind {
            Kind::Deployment | Kind::ReplicaSet => name_warnings(new, old),
            Kind::DaemonSet | Kind::StatefulSet => Vec::new(),
        };
        warnings.extend(template_warnings(new, old, &["spec", "template"]));
        for (index, claim) in meta::items_at(new, &["spec", "volumeClaimTemplates"]).iter().enumerate() {
            let path = FieldPath::new("spec").child("volumeClaimTemplates").index(index);
            warnings.extend(old_forms::of_claim_spec(&claim["spec"], &path));
        }
        let history = meta::i64_at(new, &["spec", "revisionHistoryLimit"]);
        if self.kind == Kind::StatefulSet && history.is_some_and(|history| history < 0) {
            let message = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
                           recommended";
            warnings.push(message.to_owned());
        }
        warnings
    }
}

/// Deployments, and ReplicaSets, of which upstream's messages speak as of Deployments and the other way round.
fn validate_sets(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if meta::at(spec, &["selector"]).is_none() {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    let selector = read_selector(spec, path, errors);
    validate_says_something(spec, "deployment", path, errors);
    let Some(selector) = selector else {
        let given = spec["selector"].clone();
        errors.push(FieldError::invalid(&path.child("selector"), given, "invalid label selector"));
        return;
    };
    if !selector.is_empty() {
        validate_match(&selector, &spec["template"], path, errors);
    }
    validate_lasting_template(&spec["template"], "ReplicaSet", &path.child("template"), errors);
}

fn validate_daemon_set(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(selector) = read_selector(spec, path, errors) {
        validate_match(&selector, &spec["template"], path, errors);
    }
    validate_says_something(spec, "daemonset", path, errors);
    validate_lasting_template(&spec["template"], "DaemonSet", &path.child("template"), errors);
    let (strategy, path) = (&spec["updateStrategy"], path.child("updateStrategy"));
    match meta::text(strategy, &["type"]) {
        "" | "OnDelete" => {}
        "RollingUpdate" => {
            let (rolling, path) = (&strategy["rollingUpdate"], path.child("rollingUpdate"));
            for field in ["maxUnavailable", "maxSurge"] {
                validate_amount(rolling.get(field), &path.child(field), errors);
                not_above_all(rolling.get(field), &path.child(field), errors);
            }
            match ["maxUnavailable", "maxSurge"].map(|field| amount(rolling.get(field)) != 0) {
                [true, true] => {
                    let surge = rolling["maxSurge"].clone();
                    let message = "may not be set when maxUnavailable is non-zero";
                    errors.push(FieldError::invalid(&path.child("maxSurge"), surge, message));
                }
                [false, false] => {
                    let message = "cannot be 0 when maxSurge is 0";
                    errors.push(FieldError::required(&path.child("maxUnavailable"), message));
                }
                _ => {}
            }
        }
        _ => errors.push(FieldError::not_supported(&path, strategy.clone(), &["RollingUpdate", "OnDelete"])),
    }
}

fn validate_deployment_strategy(strategy: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let rolling_path = path.child("rollingUpdate");
    match (meta::text(strategy, &["type"]), meta::at(strategy, &["rollingUpdate"])) {
        ("", _) | ("Recreate", None) => {}
        ("Recreate", Some(_)) => {
            let message = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&rolling_path, message));
        }
        ("RollingUpdate", rolling) => {
            let value = |field: &str| rolling.and_then(|rolling| rolling.get(field));
            for field in ["maxUnavailable", "maxSurge"] {
                validate_amount(value(field), &rolling_path.child(field), errors);
            }
            let path = rolling_path.child("maxUnavailable");
            if amount(value("maxUnavailable")) == 0 && amount(value("maxSurge")) == 0 {
                let given = value("maxUnavailable").cloned().unwrap_or_default();
                errors.push(FieldError::invalid(&path, given, "may not be 0 when `maxSurge` is 0"));
            }
            not_above_all(value("maxUnavailable"), &path, errors);
        }
        _ => errors.push(FieldError::not_supported(path, strategy.clone(), &["Recreate", "RollingUpdate"])),
    }
}

fn validate_stateful_set(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const POLICIES: [&str; 2] = ["Retain", "Delete"];
    let management = meta::text(spec, &["podManagementPolicy"]);
    if !matches!(management, "" | "OrderedReady" | "Parallel") {
        let message = "must be 'OrderedReady' or 'Parallel'";
        errors.push(FieldError::invalid(&path.child("podManagementPolicy"), management, message));
    }
    validate_set_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
    for field in ["whenDeleted", "whenScaled"] {
        let policy = meta::text(spec, &["persistentVolumeClaimRetentionPolicy", field]);
        if !policy.is_empty() && !POLICIES.contains(&policy) {
            let path = path.child("persistentVolumeClaimRetentionPolicy").child(field);
            errors.push(FieldError::not_supported(&path, policy, &POLICIES));
        }
    }
    if meta::at(spec, &["selector"]).is_none() {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    let selector = read_selector(spec, path, errors);
    validate_says_something(spec, "statefulset", path, errors);
    let template_path = path.child("template");
    if let Some(selector) = selector {
        if !selector.is_empty() {
            validate_match(&selector, &spec["template"], path, errors);
        }
        let template = template_of_set(spec);
        validate_template(&template, &template_path, errors);
        // Upstream looks at the metadata a second time.
        validate_template_metadata(&template, &template_path, errors);
    } else {
        errors.push(FieldError::invalid(&path.child("selector"), spec["selector"].clone(), ""));
    }
    validate_lasting(&spec["template"], "StatefulSet", &template_path, errors);
}

fn validate_set_strategy(strategy: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let rolling = meta::at(strategy, &["rollingUpdate"]);
    let rolling_path = path.child("rollingUpdate");
    match meta::text(strategy, &["type"]) {
        "OnDelete" => {
            if let Some(rolling) = rolling {
                let message = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(FieldError::invalid(&rolling_path, rolling.clone(), message));
            }
        }
        "RollingUpdate" => {
            let path = rolling_path.child("maxUnavailable");
            if let Some(most) = rolling.and_then(|rolling| meta::at(rolling, &["maxUnavailable"])) {
                validate_amount(Some(most), &path, errors);
                if amount(Some(most)) == 0 {
                    errors.push(FieldError::invalid(&path, most.clone(), "cannot be 0"));
                }
                not_above_all(Some(most), &path, errors);
            }
        }
        "" => {}
        _ => {
            let message = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(FieldError::invalid(path, strategy.clone(), message));
        }
    }
}

/// The number of a count or of a percentage; zero where there is neither.
fn amount(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::Number(number)) => number.as_i64().unwrap_or_default(),
        Some(Value::String(given)) => given.strip_suffix('%').unwrap_or(given).parse().unwrap_or_default(),
        _ => 0,
    }
}

/// Errors when a percentage is of more than there is.
pub(super) fn not_above_all(value: Option<&Value>, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(Value::String(given)) = value
        && names::percent(given).is_empty()
        && given.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok()).is_none_or(|percent| percent > 100)
    {
        errors.push(FieldError::invalid(path, given.as_str(), "must not be greater than 100%"));
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
    // Objects that were stored before these defaults were may be changed too.
    let mut old = old.clone();
    default_claims(&mut old);
    if fixed(new) != fixed(&old) {
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
        let template = meta::at(spec, &["template"]);
        let selector = meta::at(spec, &["selector"]).and_then(Value::as_object);
        match (selector, template) {
            (None, _) => errors.push(FieldError::required(&path.child("selector"), "")),
            (Some(selector), Some(template)) => {
                validate_match(&LabelSelector::from_map(selector), template, &path, &mut errors);
            }
            (Some(_), None) => {}
        }
        match template {
            None => errors.push(FieldError::required(&path.child("template"), "")),
            Some(template) => {
                let path = path.child("template");
                validate_lasting_template(template, "ReplicationController", &path, &mut errors);
            }
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = name_warnings(new, old);
        warnings.extend(template_warnings(new, old, &["spec", "template"]));
        warnings
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
        validate_template(&obj["template"], &FieldPath::new("template"), &mut errors);
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old, &["template"])
    }
}

/// What a controller keeps of an earlier state: an object that does not change.
#[derive(Debug)]
pub(super) struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let message = match meta::at(obj, &["data"]) {
            Some(Value::Object(_)) => return FieldErrors::new(),
            Some(_) => "data must be a valid JSON object",
            None => "data is mandatory",
        };
        vec![FieldError::required(&FieldPath::new("data"), message)]
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["data"], &mut errors);
        errors
    }
}
