//! Refuses policies that cannot work: expressions that do not compile or give the wrong type, fields that contradict each other
//! (pkg/apis/admissionregistration/validation).

use std::collections::BTreeSet;

use async_trait::async_trait;
use carob_api::field::{FieldError, FieldPath};
use carob_api::strategy::pod::validate_label_selector;
use carob_api::{Status, meta, names};
use serde_json::Value;

use super::definition::{Compiled, Compiler, Declared, Gives, compile, environment};
use crate::admission::{Admission, Operation, Validator};

/// How many match conditions a policy may have.
const MATCH_CONDITIONS_MAX: usize = 64;
/// How many audit annotations a policy may have (maxAuditAnnotations).
const AUDIT_ANNOTATIONS_MAX: usize = 20;
/// The longest expression of an audit annotation, in bytes (maxAuditAnnotationValueExpressionLength).
const AUDIT_EXPRESSION_BYTES_MAX: usize = 5 * 1024;
/// What a mutating policy can be about.
const MUTATED: [&str; 3] = ["*", "CREATE", "UPDATE"];
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const KINDS: [&str; 4] = [
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

/// A link that looks at policies and bindings themselves.
pub(crate) struct PolicyForm;

#[async_trait]
impl Validator for PolicyForm {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.def.group() == "admissionregistration.k8s.io"
            && KINDS.contains(&write.kind)
            && write.subresource.is_empty()
            && matches!(write.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        // What was accepted once stays acceptable while its spec is not touched.
        if old.is_some_and(|old| old["spec"] == object["spec"]) {
            return Ok(());
        }
        let spec = FieldPath::new("spec");
        let errors = match write.kind {
            "ValidatingAdmissionPolicy" => policy_errors(object, &spec),
            "MutatingAdmissionPolicy" => mutating_errors(&object["spec"], &spec),
            "ValidatingAdmissionPolicyBinding" => validating_binding_errors(&object["spec"], &spec),
            _ => binding_errors(&object["spec"], &spec),
        };
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(write.def.group(), write.kind, meta::name(object), &errors))
    }
}

fn text<'a>(json: &'a Value, field: &str) -> &'a str {
    meta::str_at(json, &[field]).unwrap_or_default()
}

fn check(path: &FieldPath, text: &str, compiled: &Compiled, errors: &mut Vec<FieldError>) {
    if let Err(why) = compiled {
        errors.push(FieldError::invalid(path, text, why.clone()));
    }
}

fn one_of(path: &FieldPath, value: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !allowed.contains(&value) {
        errors.push(FieldError::not_supported(path, value, allowed));
    }
}

/// What all policies have: everything up to their variables. Answers with a compiler that knows those.
fn common_errors(json: &Value, spec: &FieldPath, errors: &mut Vec<FieldError>) -> Compiler {
    let params = json["paramKind"].is_object();
    if let Some(policy) = meta::str_at(json, &["failurePolicy"]) {
        one_of(&spec.child("failurePolicy"), policy, &["Fail", "Ignore"], errors);
    }
    if params {
        param_kind_errors(&json["paramKind"], &spec.child("paramKind"), errors);
    }
    let constraints = spec.child("matchConstraints");
    if json["matchConstraints"].is_object() {
        match_errors(&json["matchConstraints"], &constraints, errors);
        if meta::items_at(json, &["matchConstraints", "resourceRules"]).is_empty() {
            errors.push(FieldError::required(&constraints.child("resourceRules"), ""));
        }
    } else {
        errors.push(FieldError::required(&constraints, ""));
    }
    match_condition_errors(json, &spec.child("matchConditions"), params, errors);
    let mut compiler = Compiler::new(params);
    variable_errors(json, &spec.child("variables"), &mut compiler, errors);
    compiler
}

fn policy_errors(object: &Value, spec: &FieldPath) -> Vec<FieldError> {
    let json = &object["spec"];
    let mut errors = Vec::new();
    let compiler = common_errors(json, spec, &mut errors);
    let (validations, annotations) =
        (meta::items_at(json, &["validations"]), meta::items_at(json, &["auditAnnotations"]));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required(&spec.child("validations"), detail));
        errors.push(FieldError::required(&spec.child("auditAnnotations"), detail));
    }
    for (index, validation) in validations.iter().enumerate() {
        validation_errors(validation, &spec.child("validations").index(index), &compiler, &mut errors);
    }
    annotation_errors(meta::name(object), annotations, &spec.child("auditAnnotations"), &compiler, &mut errors);
    errors
}

fn mutating_errors(json: &Value, spec: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let compiler = common_errors(json, spec, &mut errors);
    let path = spec.child("matchConstraints").child("resourceRules").child("operations");
    let rules = meta::items_at(json, &["matchConstraints", "resourceRules"]).iter();
    for operation in rules.flat_map(|rule| meta::items_at(rule, &["operations"])).filter_map(Value::as_str) {
        // Only what is created or changed can be mutated.
        if !MUTATED.contains(&operation) {
            errors.push(FieldError::not_supported(&path, operation, &MUTATED));
        }
    }
    let mutations = meta::items_at(json, &["mutations"]);
    if mutations.is_empty() {
        errors.push(FieldError::required(&spec.child("mutations"), "mutations must contain at least one item"));
    }
    for (index, mutation) in mutations.iter().enumerate() {
        mutation_errors(mutation, &spec.child("mutations").index(index), &compiler, &mut errors);
    }
    one_of(&spec.child("reinvocationPolicy"), text(json, "reinvocationPolicy"), &["IfNeeded", "Never"], &mut errors);
    errors
}

fn mutation_errors(json: &Value, path: &FieldPath, compiler: &Compiler, errors: &mut Vec<FieldError>) {
    let kind = text(json, "patchType");
    let (field, other, gives) = match kind {
        "JSONPatch" => ("jsonPatch", "applyConfiguration", Gives::JsonPatches),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", Gives::Object),
        kind => return one_of(&path.child("patchType"), kind, &["ApplyConfiguration", "JSONPatch"], errors),
    };
    if json[other].is_object() {
        let detail = format!("must not be specified when patchType is {kind}");
        errors.push(FieldError::invalid(&path.child(other), format!("{{{other}}}"), detail));
    }
    let path = path.child(field);
    if !json[field].is_object() {
        errors.push(FieldError::required(&path, format!("must be specified when patchType is {kind}")));
        return;
    }
    let (path, expression) = (path.child("expression"), text(&json[field], "expression").trim());
    if expression.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else {
        check(&path, expression, &compiler.expression(expression, gives), errors);
    }
}

fn param_kind_errors(json: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let api_version = text(json, "apiVersion");
    let (group, version) = meta::group_version(api_version);
    if api_version.is_empty() {
        errors.push(FieldError::required(&path.child("apiVersion"), ""));
    } else if version.is_empty() {
        errors.push(FieldError::invalid(&path.child("apiVersion"), api_version, "version must be specified"));
    } else {
        let group_faults = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        for (value, faults) in [(group, group_faults), (version, names::dns1035_label(version))] {
            if !faults.is_empty() {
                errors.push(FieldError::invalid(&path.child("apiVersion"), value, faults.join(",")));
            }
        }
    }
    let kind = text(json, "kind");
    if kind.is_empty() {
        errors.push(FieldError::required(&path.child("kind"), ""));
        return;
    }
    let faults = names::dns1035_label(&kind.to_lowercase());
    if !faults.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", faults.join(","));
        errors.push(FieldError::invalid(&path.child("kind"), kind, detail));
    }
}

fn match_errors(json: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if let Some(policy) = meta::str_at(json, &["matchPolicy"]) {
        one_of(&path.child("matchPolicy"), policy, &["Equivalent", "Exact"], errors);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(selector) = meta::at(json, &[field]) {
            validate_label_selector(selector, &path.child(field), errors);
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in meta::items_at(json, &[list]).iter().enumerate() {
            rule_errors(rule, &path.child(list).index(index), errors);
        }
    }
}

fn rule_errors(rule: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        let items = meta::items_at(rule, &[field]);
        if items.is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
        }
        if field != "resources" && items.len() > 1 && items.iter().any(|item| item == "*") {
            let detail = "if '*' is present, must not specify other ".to_owned()
                + match field {
                    "operations" => "operations",
                    "apiGroups" => "API groups",
                    _ => "API versions",
                };
            errors.push(FieldError::invalid(&path.child(field), rule[field].clone(), detail));
        }
    }
    for (index, operation) in meta::items_at(rule, &["operations"]).iter().enumerate() {
        let allowed = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        one_of(&path.child("operations").index(index), operation.as_str().unwrap_or_default(), &allowed, errors);
    }
    if let Some(scope) = meta::str_at(rule, &["scope"]) {
        one_of(&path.child("scope"), scope, &["*", "Cluster", "Namespaced"], errors);
    }
    let mut seen = BTreeSet::new();
    for (index, name) in meta::items_at(rule, &["resourceNames"]).iter().filter_map(Value::as_str).enumerate() {
        let path = path.child("resourceNames").index(index);
        errors.extend(names::path_segment(name).into_iter().map(|fault| FieldError::invalid(&path, name, fault)));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

fn match_condition_errors(json: &Value, path: &FieldPath, params: bool, errors: &mut Vec<FieldError>) {
    let conditions = meta::items_at(json, &["matchConditions"]);
    if conditions.len() > MATCH_CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, Some(conditions.len()), MATCH_CONDITIONS_MAX));
    }
    // The conditions of a policy cannot read its variables when they are written, as upstream has it.
    let environment = environment(Declared { params, authorizer: true });
    let mut seen = BTreeSet::new();
    for (index, condition) in conditions.iter().take(MATCH_CONDITIONS_MAX).enumerate() {
        let path = path.index(index);
        let expression = text(condition, "expression").trim();
        if expression.is_empty() {
            errors.push(FieldError::required(&path.child("expression"), ""));
        } else {
            check(&path.child("expression"), expression, &compile(&environment, expression, Gives::Bool), errors);
        }
        let name = text(condition, "name");
        let path = path.child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        errors.extend(names::qualified_name(name).into_iter().map(|fault| FieldError::invalid(&path, name, fault)));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

/// An identifier that no word of the language is.
fn is_identifier(name: &str) -> bool {
    let first = name.as_bytes().first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    first
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && carob_cel::escape(name).is_some_and(|escaped| escaped == name || name.contains("__"))
}

fn variable_errors(json: &Value, path: &FieldPath, compiler: &mut Compiler, errors: &mut Vec<FieldError>) {
    for (index, variable) in meta::items_at(json, &["variables"]).iter().enumerate() {
        let path = path.index(index);
        let (name, expression) = (text(variable, "name"), text(variable, "expression"));
        if name.trim().is_empty() {
            errors.push(FieldError::required(&path.child("name"), "name is not specified"));
        } else if !is_identifier(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, "must be a valid CEL identifier"));
        }
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&path.child("expression"), "expression is not specified"));
        } else {
            check(&path.child("expression"), expression, &compiler.variable(name, expression), errors);
        }
    }
}

fn validation_errors(json: &Value, path: &FieldPath, compiler: &Compiler, errors: &mut Vec<FieldError>) {
    let (expression, message) = (text(json, "expression"), text(json, "message"));
    if expression.trim().is_empty() {
        errors.push(FieldError::required(&path.child("expression"), "expression is not specified"));
    } else {
        check(&path.child("expression"), expression, &compiler.expression(expression, Gives::Bool), errors);
    }
    let made = text(json, "messageExpression");
    let non_empty = "must be non-empty if specified";
    if !made.is_empty() && made.trim().is_empty() {
        errors.push(FieldError::invalid(&path.child("messageExpression"), made, non_empty));
    } else if !made.is_empty() {
        check(&path.child("messageExpression"), made, &compiler.expression(made, Gives::Text), errors);
    }
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(FieldError::invalid(&path.child("message"), message, non_empty));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
    }
    if let Some(reason) = meta::str_at(json, &["reason"])
        && !REASONS.contains(&reason)
    {
        errors.push(FieldError::not_supported(&path.child("reason"), reason, &REASONS));
    }
}

fn annotation_errors(
    policy: &str,
    list: &[Value],
    path: &FieldPath,
    compiler: &Compiler,
    errors: &mut Vec<FieldError>,
) {
    if list.len() > AUDIT_ANNOTATIONS_MAX {
        let detail = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        errors.push(FieldError::invalid(path, Value::Array(list.to_vec()), detail));
    }
    let mut seen = BTreeSet::new();
    for (index, annotation) in list.iter().enumerate() {
        let path = path.index(index);
        let (key, expression) = (text(annotation, "key"), text(annotation, "valueExpression"));
        let full = format!("{policy}/{key}");
        let faults = names::qualified_name(&full).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid(&path.child("key"), full.as_str(), fault)));
        if !seen.insert(key) {
            errors.push(FieldError::duplicate(&path.child("key"), key));
        }
        let path = path.child("valueExpression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&path, "valueExpression is not specified"));
        } else if expression.trim().len() > AUDIT_EXPRESSION_BYTES_MAX {
            let detail = format!("must not exceed {AUDIT_EXPRESSION_BYTES_MAX} bytes in length");
            errors.push(FieldError::required(&path, detail));
        } else {
            check(&path, expression, &compiler.expression(expression.trim(), Gives::TextOrNull), errors);
        }
    }
}

fn binding_errors(json: &Value, spec: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = text(json, "policyName");
    let path = spec.child("policyName");
    if policy.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else {
        let faults = names::dns1123_subdomain(policy).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid(&path, policy, fault)));
    }
    if json["paramRef"].is_object() {
        param_ref_errors(&json["paramRef"], &spec.child("paramRef"), &mut errors);
    }
    if json["matchResources"].is_object() {
        match_errors(&json["matchResources"], &spec.child("matchResources"), &mut errors);
    }
    errors
}

fn validating_binding_errors(json: &Value, spec: &FieldPath) -> Vec<FieldError> {
    let mut errors = binding_errors(json, spec);
    let path = spec.child("validationActions");
    let mut seen = BTreeSet::new();
    for (index, action) in meta::items_at(json, &["validationActions"]).iter().filter_map(Value::as_str).enumerate() {
        one_of(&path.index(index), action, &ACTIONS, &mut errors);
        if !seen.insert(action) {
            errors.push(FieldError::duplicate(&path.index(index), action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response \
                      and headers serves no purpose)";
        errors.push(FieldError::invalid(&path, json["validationActions"].clone(), detail));
    }
    if seen.is_empty() {
        errors.push(FieldError::required(&path, "at least one validation action is required"));
    }
    errors
}

fn param_ref_errors(json: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let name = text(json, "name");
    let selector = meta::at(json, &["selector"]).filter(|selector| selector.is_object());
    if !name.is_empty() {
        let faults = names::path_segment(name).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid(&path.child("name"), name, fault)));
    }
    if let Some(selector) = selector {
        validate_label_selector(selector, &path.child("selector"), errors);
        if !name.is_empty() {
            for field in ["name", "selector"] {
                errors.push(FieldError::forbidden(&path.child(field), "name and selector are mutually exclusive"));
            }
        }
    } else if name.is_empty() {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    one_of(&path.child("parameterNotFoundAction"), text(json, "parameterNotFoundAction"), &["Deny", "Allow"], errors);
}
