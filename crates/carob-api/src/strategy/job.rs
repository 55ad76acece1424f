//! Jobs and CronJobs (kubernetes pkg/apis/batch: v1/defaults.go and validation).

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{
    Part, Rules, Strategy, pod,
    workload::{
        IMMUTABLE, immutable, name_warnings, read_selector, template_warnings, validate_match, validate_template,
    },
};
use crate::{
    cron,
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta, names,
    selector::LabelSelector,
};

/// A CronJob's name leaves room for the suffix of its Jobs: eleven characters of a DNS label.
const CRON_JOB_NAME_LEN_MAX: usize = 52;
const INDEXED: &str = "Indexed";
/// Completions and parallelism of an Indexed Job that a status is sure to list the indexes of.
const COMPLETIONS_TRACKED: i64 = 100_000;
const PARALLELISM_TRACKED: i64 = 10_000;
/// Pods of an Indexed Job at once.
const PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
/// Completions of an Indexed Job with a back-off limit per index above which less of the rest is allowed: [`OF_MANY_MAX`].
const MANY_COMPLETIONS: i64 = 100_000;
const OF_MANY_MAX: i64 = 10_000;
/// Failures of a Job's Pods by default.
const BACKOFF_LIMIT: i32 = 6;
const FAILURE_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
/// Patterns of Pod conditions of one rule.
const PATTERNS_MAX: usize = 20;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const MANAGED_BY_LEN_MAX: usize = 63;
const SUCCESS_RULES_MAX: usize = 20;
/// Longest list of indexes, bytes.
const SUCCEEDED_INDEXES_LEN_MAX: usize = 64 * 1024;
#[derive(Debug)]
pub(super) struct Job;

/// Defaults of Jobs alone: what a CronJob makes Jobs of stays as the user wrote it.
fn default_job(job: &mut Value) {
    if let Some(labels) = meta::at(job, &["spec", "template", "metadata", "labels"]).cloned()
        && meta::labels(job).is_none()
    {
        meta::set(job, &["metadata", "labels"], labels);
    }
    let Some(spec) = meta::at_mut(job, &["spec"]) else { return };
    if let Some(spec) = meta::at_mut(spec, &["template", "spec"]) {
        pod::default_spec(spec);
    }
    let Value::Object(spec) = spec else { return };
    let (per_index, by_policy) = (spec.contains_key("backoffLimitPerIndex"), spec.contains_key("podFailurePolicy"));
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".to_owned(), 1.into());
    }
    for (field, default) in [
        ("parallelism", json!(1)),
        // Per index nothing else bounds it.
        ("backoffLimit", json!(if per_index { i32::MAX } else { BACKOFF_LIMIT })),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!(if by_policy { "Failed" } else { "TerminatingOrFailed" })),
    ] {
        spec.entry(field).or_insert(default);
    }
}

impl Strategy for Job {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { orphans_by_default: true, ..Rules::WORKLOAD };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        if meta::at(obj, &["spec"]).is_some() {
            default_job(obj);
        }
    }

    /// Pods of a Job are told apart by the Job's uid, unless the user selects them. What the user has set is not overwritten:
    /// validation refuses it if it says something else.
    fn prepare_create(&self, job: &mut Value) {
        if meta::bool_at(job, &["spec", "manualSelector"]) == Some(true) {
            return;
        }
        let generated = generated_labels(job).map(|(key, value)| (key, value.to_owned()));
        let labels = meta::map_mut(job, &["spec", "template", "metadata", "labels"]);
        for (key, value) in generated {
            labels.entry(key).or_insert_with(|| value.into());
        }
        let uid = meta::uid(job).to_owned();
        let selector = meta::map_mut(job, &["spec", "selector", "matchLabels"]);
        selector.entry(CONTROLLER_UID).or_insert_with(|| uid.into());
    }

    fn validate(&self, job: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&job["spec"], FieldPath::new("spec"));
        validate_job_spec(spec, &path, &mut errors);
        if meta::at(spec, &["selector"]).is_none() {
            errors.push(FieldError::required(&path.child("selector"), ""));
        }
        if let Some(selector) = read_selector(spec, &path, &mut errors) {
            validate_match(&selector, &spec["template"], &path, &mut errors);
        }
        validate_generated(job, &mut errors);
        validate_hostnames(job, &mut errors);
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part != Part::Main {
            return errors;
        }
        for field in
            ["selector", "completionMode", "podFailurePolicy", "successPolicy", "backoffLimitPerIndex", "managedBy"]
        {
            immutable(new, old, &["spec", field], &mut errors);
        }
        validate_completions(new, old, &mut errors);
        if template_may_change(old) {
            let mut allowed = old["spec"]["template"]["spec"].clone();
            let wanted = &new["spec"]["template"]["spec"];
            take_changes(&mut allowed, wanted);
            if allowed != *wanted {
                let path = FieldPath::new("spec").child("template").child("spec");
                errors.push(FieldError::invalid(&path, wanted.clone(), IMMUTABLE));
            }
        } else {
            immutable(new, old, &["spec", "template"], &mut errors);
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = name_warnings(new, old);
        if old.is_none_or(|old| old.get("spec") != new.get("spec")) {
            warnings.extend(count_warning(&new["spec"], "spec"));
        }
        warnings.extend(template_warnings(new, old, &["spec", "template"]));
        warnings
    }
}

/// An Indexed Job of which a status cannot list all indexes that are done (kubernetes pkg/api/job/warnings.go).
fn count_warning(spec: &Value, path: &str) -> Option<String> {
    let number = |field| meta::i64_at(spec, &[field]).unwrap_or_default();
    let many = number("completions") > COMPLETIONS_TRACKED && number("parallelism") > PARALLELISM_TRACKED;
    (meta::text(spec, &["completionMode"]) == INDEXED && many).then(|| {
        format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        )
    })
}

/// The labels that tell a Job's Pods from others, under their names of today and of before.
fn generated_labels(job: &Value) -> [(&'static str, &str); 4] {
    let (uid, name) = (meta::uid(job), meta::name(job));
    [("controller-uid", uid), ("job-name", name), (CONTROLLER_UID, uid), (JOB_NAME, name)]
}

/// Whether what was generated is still what it was (`validateGeneratedSelector`).
fn validate_generated(job: &Value, errors: &mut FieldErrors) {
    let selector = meta::at(job, &["spec", "selector"]);
    let (Some(selector), false) = (selector, meta::bool_at(job, &["spec", "manualSelector"]) == Some(true)) else {
        return;
    };
    let path = FieldPath::new("spec");
    let labels_path = path.child("template").child("metadata").child("labels");
    let labels = meta::at(job, &["spec", "template", "metadata", "labels"]);
    for (key, expected) in generated_labels(job) {
        let message = format!("must be '{expected}'");
        match labels.and_then(|labels| meta::str_at(labels, &[key])) {
            None => errors.push(FieldError::required(&labels_path.key(key), message)),
            Some(given) if given != expected => {
                let shown = labels.cloned().unwrap_or_default();
                errors.push(FieldError::invalid(&labels_path.key(key), shown, message));
            }
            Some(_) => {}
        }
    }
    let expected: Map<String, Value> =
        generated_labels(job).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    if LabelSelector::from_json(selector).is_ok_and(|selector| !selector.matches(Some(&expected))) {
        errors.push(FieldError::invalid(&path.child("selector"), selector.clone(), "`selector` not auto-generated"));
    }
}

/// The hostname of an Indexed Job's last Pod must be one.
fn validate_hostnames(job: &Value, errors: &mut FieldErrors) {
    let completions = meta::i64_at(job, &["spec", "completions"]).filter(|completions| *completions > 0);
    let indexed = meta::text(job, &["spec", "completionMode"]) == INDEXED;
    let Some(completions) = completions.filter(|_| indexed) else { return };
    let name = meta::name(job);
    let hostname = format!("{name}-{}", completions.saturating_sub(1));
    if !names::dns1123_label(&hostname).is_empty() {
        let message = format!("will not able to create pod with invalid DNS label: {hostname}");
        errors.push(FieldError::invalid(&FieldPath::new("metadata").child("name"), name, message));
    }
}

/// An Indexed Job may be given more or less to complete, as long as all of it runs at once.
fn validate_completions(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let field = ["spec", "completions"];
    if meta::text(new, &["spec", "completionMode"]) != INDEXED {
        immutable(new, old, &field, errors);
    } else if let Some(completions) = meta::at(new, &field).filter(|given| meta::at(old, &field) != Some(given))
        && meta::at(new, &["spec", "parallelism"]) != Some(completions)
    {
        let path = FieldPath::new("spec").child("completions");
        let message = "can only be modified in tandem with spec.parallelism";
        errors.push(FieldError::invalid(&path, completions.clone(), message));
    }
}

/// Whether a Job's Pods may be given other places and other needs: while it is suspended and has none
/// (pkg/registry/batch/job/strategy.go, shouldAllowMutablePodTemplate).
fn template_may_change(old: &Value) -> bool {
    let is_suspended = meta::bool_at(old, &["spec", "suspend"]) == Some(true);
    let never_started = meta::at(old, &["status", "startTime"]).is_none();
    let shown = meta::items_at(old, &["status", "conditions"]).iter().any(|condition| {
        meta::text(condition, &["type"]) == "Suspended" && meta::text(condition, &["status"]) == "True"
    });
    is_suspended && (never_started || shown) && meta::i64_at(old, &["status", "active"]).unwrap_or_default() == 0
}

/// Takes over what may change of a suspended Job's Pods (pkg/apis/batch/validation, validatePodTemplateUpdate).
fn take_changes(spec: &mut Value, wanted: &Value) {
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        copy_field(spec, wanted, field);
    }
    if !wanted["affinity"].is_null() || !spec["affinity"].is_null() {
        let mut affinity = if spec["affinity"].is_object() { spec["affinity"].clone() } else { json!({}) };
        copy_field(&mut affinity, &wanted["affinity"], "nodeAffinity");
        let is_cleared = wanted["affinity"].is_null() && affinity == json!({});
        spec["affinity"] = affinity;
        if is_cleared {
            copy_field(spec, wanted, "affinity");
        }
    }
    for list in ["containers", "initContainers"] {
        let wanted = meta::items_at(wanted, &[list]);
        let containers = meta::at_mut(spec, &[list]).and_then(Value::as_array_mut);
        let Some(containers) = containers.filter(|containers| containers.len() == wanted.len()) else { continue };
        for (container, wanted) in containers.iter_mut().zip(wanted) {
            if container["name"] == wanted["name"] {
                copy_field(container, wanted, "resources");
            }
        }
    }
}

fn validate_job_spec(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let number = |field: &str| meta::i64_at(spec, &[field]);
    let is_indexed = meta::text(spec, &["completionMode"]) == INDEXED;
    if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
        let path = path.child("backoffLimitPerIndex");
        errors.push(FieldError::required(&path, "when maxFailedIndexes is specified"));
    }
    if let Some(manager) = meta::str_at(spec, &["managedBy"]) {
        let path = path.child("managedBy");
        if manager.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            let wrong = names::domain_prefixed_path(manager).into_iter();
            errors.extend(wrong.map(|(part, why)| FieldError::invalid(&path, part, why)));
        }
        if manager.len() > MANAGED_BY_LEN_MAX {
            errors.push(FieldError::too_long(&path, MANAGED_BY_LEN_MAX));
        }
    }
    if is_indexed {
        validate_indexed(spec, path, errors);
    } else if matches!(meta::str_at(spec, &["completionMode"]), None | Some("NonIndexed")) {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(value) = number(field) {
                errors.push(FieldError::invalid(&path.child(field), value, "requires indexed completion mode"));
            }
        }
    }
    let template = &spec["template"];
    let policy = meta::at(spec, &["podFailurePolicy"]);
    if let Some(policy) = policy {
        validate_failure_policy(policy, spec, &path.child("podFailurePolicy"), errors);
    }
    if let Some(success) = meta::at(spec, &["successPolicy"]) {
        let path = path.child("successPolicy");
        if is_indexed {
            validate_success_policy(success, number("completions").unwrap_or_default(), &path, errors);
        } else {
            errors.push(FieldError::invalid(&path, success.clone(), "requires indexed completion mode"));
        }
    }
    if policy.is_some() && meta::text(spec, &["podReplacementPolicy"]) == "TerminatingOrFailed" {
        let path = path.child("podReplacementPolicy");
        errors.push(FieldError::not_supported(&path, "TerminatingOrFailed", &["Failed"]));
    }
    validate_template(template, &path.child("template"), errors);
    let restart_path = path.child("template").child("spec").child("restartPolicy");
    match meta::text(template, &["spec", "restartPolicy"]) {
        "" | "Always" => {
            errors.push(FieldError::required(&restart_path, r#"valid values: "OnFailure", "Never""#));
        }
        "Never" => {}
        restart if restart != "OnFailure" => {
            errors.push(FieldError::not_supported(&restart_path, restart, &["OnFailure", "Never"]));
        }
        restart if policy.is_some() => {
            let message = r#"only "Never" is supported when podFailurePolicy is specified"#;
            errors.push(FieldError::invalid(&restart_path, restart, message));
        }
        _ => {}
    }
}

/// The lengths of completedIndexes and failedIndexes are bounded by these.
fn validate_indexed(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let number = |field: &str| meta::i64_at(spec, &[field]);
    let mut at_most = |field: &str, max: i64, when: &str| {
        if let Some(value) = number(field).filter(|value| *value > max) {
            let message = format!("must be less than or equal to {max}{when}");
            errors.push(FieldError::invalid(&path.child(field), value, message));
        }
    };
    at_most("parallelism", PARALLELISM_MAX, " when completion mode is Indexed");
    let Some(completions) = number("completions") else {
        errors.push(FieldError::required(&path.child("completions"), "when completion mode is Indexed"));
        return;
    };
    if let Some(failed) = number("maxFailedIndexes").filter(|failed| *failed > completions) {
        let path = path.child("maxFailedIndexes");
        errors.push(FieldError::invalid(&path, failed, "must be less than or equal to completions"));
    }
    let mut at_most = |field: &str, max: i64, when: &str| {
        if let Some(value) = number(field).filter(|value| *value > max) {
            let message = format!("must be less than or equal to {max}{when}");
            errors.push(FieldError::invalid(&path.child(field), value, message));
        }
    };
    at_most("maxFailedIndexes", FAILED_INDEXES_MAX, "");
    if completions > MANY_COMPLETIONS && number("backoffLimitPerIndex").is_some() {
        let when = format!(" when completions are above {MANY_COMPLETIONS} and used with backoff limit per index");
        at_most("parallelism", OF_MANY_MAX, &when);
        at_most("maxFailedIndexes", OF_MANY_MAX, &when);
        if number("maxFailedIndexes").is_none() {
            let message = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.push(FieldError::required(&path.child("maxFailedIndexes"), message));
        }
    }
}

fn validate_failure_policy(policy: &Value, spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let rules = meta::items_at(policy, &["rules"]);
    let path = path.child("rules");
    if rules.len() > FAILURE_RULES_MAX {
        errors.push(FieldError::too_many(&path, Some(rules.len()), FAILURE_RULES_MAX));
    }
    let lists = ["containers", "initContainers"].map(|list| meta::items_at(spec, &["template", "spec", list]));
    let names: HashSet<&str> = lists.into_iter().flatten().map(|container| meta::text(container, &["name"])).collect();
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let action = meta::text(rule, &["action"]);
        if action.is_empty() {
            let message = r#"valid values: ["Count" "FailIndex" "FailJob" "Ignore"]"#;
            errors.push(FieldError::required(&path.child("action"), message));
        } else if action == "FailIndex" && meta::at(spec, &["backoffLimitPerIndex"]).is_none() {
            let message = "requires the backoffLimitPerIndex to be set";
            errors.push(FieldError::invalid(&path.child("action"), action, message));
        } else if !ACTIONS.contains(&action) {
            errors.push(FieldError::not_supported(&path.child("action"), action, &ACTIONS));
        }
        let codes = meta::at(rule, &["onExitCodes"]);
        let conditions = meta::items_at(rule, &["onPodConditions"]);
        if let Some(codes) = codes {
            validate_exit_codes(codes, &names, &path.child("onExitCodes"), errors);
        }
        if conditions.len() > PATTERNS_MAX {
            errors.push(FieldError::too_many(&path.child("onPodConditions"), Some(conditions.len()), PATTERNS_MAX));
        }
        for (index, pattern) in conditions.iter().enumerate() {
            let path = path.child("onPodConditions").index(index);
            let kind = meta::text(pattern, &["type"]);
            let wrong = names::qualified_name(kind).into_iter();
            errors.extend(wrong.map(|why| FieldError::invalid(&path.child("type"), kind, why)));
            let status = meta::text(pattern, &["status"]);
            if status.is_empty() {
                let message = r#"valid values: ["False" "True" "Unknown"]"#;
                errors.push(FieldError::required(&path.child("status"), message));
            } else if !matches!(status, "True" | "False" | "Unknown") {
                let known = ["False", "True", "Unknown"];
                errors.push(FieldError::not_supported(&path.child("status"), status, &known));
            }
        }
        if codes.is_some() != conditions.is_empty() {
            let which = if codes.is_some() {
                "both OnExitCodes and OnPodConditions is not supported"
            } else {
                "one of OnExitCodes and OnPodConditions is required"
            };
            errors.push(FieldError::invalid_unshown(&path, format!("specifying {which}")));
        }
    }
}

fn validate_exit_codes(codes: &Value, containers: &HashSet<&str>, path: &FieldPath, errors: &mut FieldErrors) {
    let operator = meta::text(codes, &["operator"]);
    if operator.is_empty() {
        errors.push(FieldError::required(&path.child("operator"), r#"valid values: ["In" "NotIn"]"#));
    } else if !matches!(operator, "In" | "NotIn") {
        errors.push(FieldError::not_supported(&path.child("operator"), operator, &["In", "NotIn"]));
    }
    if let Some(name) = meta::str_at(codes, &["containerName"]).filter(|name| !containers.contains(name)) {
        let message = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(&path.child("containerName"), name, message));
    }
    let listed = meta::items_at(codes, &["values"]);
    let path = path.child("values");
    if listed.is_empty() {
        errors.push(FieldError::invalid(&path, Value::Null, "at least one value is required"));
    } else if listed.len() > EXIT_CODES_MAX {
        errors.push(FieldError::too_many(&path, Some(listed.len()), EXIT_CODES_MAX));
    }
    let mut seen = HashSet::with_capacity(listed.len());
    for (index, code) in listed.iter().enumerate() {
        if operator == "In" && code.as_i64() == Some(0) {
            errors.push(FieldError::invalid(&path.index(index), 0, "must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            errors.push(FieldError::duplicate(&path.index(index), code.clone()));
        }
    }
    if !listed.is_sorted_by_key(|code| code.as_i64()) {
        errors.push(FieldError::invalid(&path, Value::from(listed), "must be ordered"));
    }
}

fn validate_success_policy(policy: &Value, completions: i64, path: &FieldPath, errors: &mut FieldErrors) {
    let rules = meta::items_at(policy, &["rules"]);
    let path = path.child("rules");
    if rules.is_empty() {
        let message = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(&path, message));
    }
    if rules.len() > SUCCESS_RULES_MAX {
        errors.push(FieldError::too_many(&path, Some(rules.len()), SUCCESS_RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let (indexes, count) = (meta::str_at(rule, &["succeededIndexes"]), meta::i64_at(rule, &["succeededCount"]));
        if indexes.is_none() && count.is_none() {
            let message = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(&path, message));
        }
        let mut total = 0;
        if let Some(indexes) = indexes {
            let path = path.child("succeededIndexes");
            if indexes.len() > SUCCEEDED_INDEXES_LEN_MAX {
                errors.push(FieldError::too_long(&path, SUCCEEDED_INDEXES_LEN_MAX));
            }
            match count_indexes(indexes, completions) {
                Ok(counted) => total = counted,
                Err(why) => {
                    errors.push(FieldError::invalid(&path, indexes, format!("error parsing succeededIndexes: {why}")));
                }
            }
        }
        let Some(count) = count else { continue };
        let path = path.child("succeededCount");
        if count > completions {
            let what = "the number of specified completions";
            errors.push(FieldError::invalid(
                &path,
                count,
                format!("must be less than or equal to {completions} ({what})"),
            ));
        }
        if indexes.is_some() && count > total {
            let what = "the number of indexes in the specified succeededIndexes field";
            errors.push(FieldError::invalid(&path, count, format!("must be less than or equal to {total} ({what})")));
        }
    }
}

/// How many indexes intervals like `0,2-4` name, without a list of them: there may be two thousand million.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let number = |text: &str| -> Result<i64, String> {
        let number: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if number >= completions { Err(format!("too large index: {text:?}")) } else { Ok(number) }
    };
    let (mut total, mut last) = (0_i64, None);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = interval.split('-').collect();
        let (first, end) = match ends[..] {
            [one] => (number(one)?, number(one)?),
            [first, end] => (number(first)?, number(end)?),
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts \
                     separated by '-'"
                ));
            }
        };
        let disordered =
            |previous: i64, current: i64| format!("non-increasing order, previous: {previous}, current: {current}");
        if ends.len() == 2 && first >= end {
            return Err(disordered(first, end));
        }
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(disordered(last, first));
        }
        total = total.saturating_add(end.saturating_sub(first)).saturating_add(1);
        last = Some(end);
    }
    Ok(total)
}

#[derive(Debug)]
pub(super) struct CronJob;

impl Strategy for CronJob {
    fn rules(&self) -> &Rules {
        &Rules::WORKLOAD
    }

    fn default(&self, obj: &mut Value) {
        if let Some(spec) = meta::at_mut(obj, &["spec", "jobTemplate", "spec", "template", "spec"]) {
            pod::default_spec(spec);
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        let (job, path) = (&spec["jobTemplate"]["spec"], path.child("jobTemplate").child("spec"));
        validate_job_spec(job, &path, &mut errors);
        if let Some(selector) = meta::at(job, &["selector"]) {
            let message = "`selector` will be auto-generated";
            errors.push(FieldError::invalid(&path.child("selector"), selector.clone(), message));
        }
        if meta::bool_at(job, &["manualSelector"]) == Some(true) {
            errors.push(FieldError::not_supported(&path.child("manualSelector"), true, &["nil", "false"]));
        }
        errors
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_when(obj, None, &mut errors);
        let name = meta::name(obj);
        if name.len() > CRON_JOB_NAME_LEN_MAX {
            let message = format!("must be no more than {CRON_JOB_NAME_LEN_MAX} characters");
            errors.push(FieldError::invalid(&FieldPath::new("metadata").child("name"), name, message));
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part == Part::Main {
            validate_when(new, Some(old), &mut errors);
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = name_warnings(new, old);
        if old.is_none_or(|old| old.get("spec") != new.get("spec")) {
            warnings.extend(count_warning(&new["spec"]["jobTemplate"]["spec"], "spec.jobTemplate.spec"));
        }
        warnings.extend(template_warnings(new, old, &["spec", "jobTemplate", "spec", "template"]));
        // Only what is stored already may still say so. The path is upstream's.
        if old.is_some() && meta::text(new, &["spec", "schedule"]).contains("TZ") {
            let message = "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
                           https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
            warnings.push(message.to_owned());
        }
        warnings
    }
}

/// Schedule and zone must be what the controller can read. What is stored already may stay.
fn validate_when(obj: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = FieldPath::new("spec");
    let schedule = meta::text(obj, &["spec", "schedule"]);
    let zone = meta::str_at(obj, &["spec", "timeZone"]);
    let schedule_path = path.child("schedule");
    if schedule.is_empty() {
        errors.push(FieldError::required(&schedule_path, ""));
    } else {
        if let Err(error) = cron::Schedule::parse(schedule) {
            errors.push(FieldError::invalid(&schedule_path, schedule, error.to_string()));
        }
        let had_zone = old.is_some_and(|old| meta::text(old, &["spec", "schedule"]).contains("TZ"));
        if schedule.contains("TZ") && !had_zone {
            let message = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(FieldError::invalid(&schedule_path, schedule, message));
        } else if schedule.contains("TZ") && zone.is_some() {
            let message = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
            errors.push(FieldError::invalid(&schedule_path, schedule, message));
        }
    }
    if let Some(name) = zone
        && old.is_none_or(|old| meta::str_at(old, &["spec", "timeZone"]) != zone)
    {
        let path = path.child("timeZone");
        errors.extend(cron::check_zone(name).into_iter().map(|why| FieldError::invalid(&path, name, why)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an update of a Job's template is refused for.
    fn refused(status: Value, change: impl Fn(&mut Value)) -> usize {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}});
        let old = json!({"spec": {"suspend": true, "template": template}, "status": status});
        let mut new = old.clone();
        change(&mut new["spec"]["template"]);
        Job.validate_update(Part::Main, &new, &old).len()
    }

    #[test]
    fn a_suspended_job_without_pods_may_be_given_other_needs_and_places() {
        let shown = || {
            json!({"startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Suspended", "status": "True"}]})
        };
        let needs =
            |template: &mut Value| template["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
        let places = |template: &mut Value| {
            template["metadata"]["labels"]["x"] = json!("y");
            template["spec"]["nodeSelector"] = json!({"a": "b"});
            template["spec"]["affinity"] = json!({"nodeAffinity": {"preferred": []}});
        };
        for status in [json!({}), shown()] {
            assert_eq!((refused(status.clone(), needs), refused(status, places)), (0, 0));
        }
        let mut active = shown();
        active["active"] = json!(1);
        for status in [active, json!({"startTime": "2026-01-01T00:00:00Z"})] {
            assert_eq!((refused(status.clone(), needs), refused(status, places)), (1, 1));
        }
        let image = |template: &mut Value| template["spec"]["containers"][0]["image"] = json!("other");
        let near_pods = |template: &mut Value| template["spec"]["affinity"] = json!({"podAffinity": {}});
        let renamed = |template: &mut Value| template["spec"]["containers"][0]["name"] = json!("d");
        assert_eq!([refused(shown(), image), refused(shown(), near_pods), refused(shown(), renamed)], [1, 1, 1]);
    }
}
