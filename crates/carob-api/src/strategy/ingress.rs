//! Ingresses and their classes (kubernetes pkg/apis/networking/validation).

use serde_json::Value;

use super::{Part, Rules, Strategy, service::point_errors, workload::immutable};
use crate::{
    addresses,
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const PATH_SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const PATH_ENDS: [&str; 2] = ["/..", "/."];
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Longest name of a class's controller, bytes.
const CONTROLLER_LEN_MAX: usize = 250;

#[derive(Debug)]
pub(super) struct Ingress;

impl Strategy for Ingress {
    fn rules(&self) -> &Rules {
        &Rules::WORKLOAD
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = spec_errors(obj, None);
        let class = meta::str_at(obj, &["spec", "ingressClassName"]);
        if let (Some(class), Some(annotated)) = (class, meta::annotation(obj, CLASS_ANNOTATION))
            && class != annotated
        {
            let path = FieldPath::new("annotations").child(CLASS_ANNOTATION);
            let message = "must match `ingressClassName` when both are specified";
            errors.push(FieldError::invalid(&path, annotated, message));
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let annotated = meta::annotation(new, CLASS_ANNOTATION).is_some();
        if old.is_some() || !annotated || meta::at(new, &["spec", "ingressClassName"]).is_some() {
            return Vec::new();
        }
        vec![format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead")]
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        if part == Part::Main { spec_errors(new, Some(old)) } else { status_errors(new, old) }
    }
}

fn status_errors(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let at = ["status", "loadBalancer", "ingress"];
    let path = FieldPath::new("status").child("loadBalancer").child("ingress");
    for (index, point) in meta::items_at(new, &at).iter().enumerate() {
        point_errors(point, meta::items_at(old, &at), &path.index(index), &mut errors);
    }
    errors
}

/// `old` at update: kinds of faults that it has already may stay.
fn spec_errors(obj: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
    let rules = meta::items_at(spec, &["rules"]);
    let default = meta::at(spec, &["defaultBackend"]);
    if rules.is_empty() && default.is_none() {
        let message = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&path, spec.get("rules").cloned().unwrap_or_default(), message));
    }
    if let Some(backend) = default {
        backend_errors(backend, &path.child("defaultBackend"), &mut errors);
    }
    let wildcards_may_be_wrong = old.is_some_and(|old| {
        meta::items_at(old, &["spec", "rules"]).iter().any(|rule| is_wildcard(rule) && !paths_of(rule).is_empty())
    });
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(index);
        host_errors(rule, &path.child("host"), &mut errors);
        if !(wildcards_may_be_wrong && is_wildcard(rule)) {
            http_errors(rule, &path.child("http"), &mut errors);
        }
    }
    let secrets_may_be_wrong = old.is_some_and(|old| {
        let secrets = meta::items_at(old, &["spec", "tls"]).iter().map(|tls| meta::text(tls, &["secretName"]));
        secrets.filter(|name| !name.is_empty()).any(|name| !names::dns1123_subdomain(name).is_empty())
    });
    for (index, tls) in meta::items_at(spec, &["tls"]).iter().enumerate() {
        tls_errors(tls, secrets_may_be_wrong, &path.child("tls").index(index), &mut errors);
    }
    if let Some(class) = meta::str_at(spec, &["ingressClassName"]) {
        invalid_each(&path.child("ingressClassName"), class, names::dns1123_subdomain(class), &mut errors);
    }
    errors
}

fn is_wildcard(rule: &Value) -> bool {
    meta::text(rule, &["host"]).contains('*')
}

/// What is wrong with a rule's paths.
fn paths_of(rule: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    http_errors(rule, &FieldPath::default(), &mut errors);
    errors
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns1123_subdomain(host) }
}

fn host_errors(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let host = meta::text(rule, &["host"]);
    if host.is_empty() {
        return;
    }
    if addresses::parse_lenient(host).is_some() {
        errors.push(FieldError::invalid(path, host, "must be a DNS name, not an IP address"));
    }
    invalid_each(path, host, host_name(host), errors);
}

fn http_errors(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(http) = meta::at(rule, &["http"]) else { return };
    let (paths, path) = (meta::items_at(http, &["paths"]), path.child("paths"));
    if paths.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    for (index, entry) in paths.iter().enumerate() {
        path_errors(entry, &path.index(index), errors);
    }
}

fn path_errors(entry: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(ty) = meta::str_at(entry, &["pathType"]) else {
        errors.push(FieldError::required(&path.child("pathType"), "pathType must be specified"));
        return;
    };
    let text = meta::text(entry, &["path"]);
    let mut refuse = |message: String| errors.push(FieldError::invalid(&path.child("path"), text, message));
    let is_strict = matches!(ty, "Exact" | "Prefix");
    if is_strict || ty == "ImplementationSpecific" {
        if !text.starts_with('/') && (is_strict || !text.is_empty()) {
            refuse("must be an absolute path".to_owned());
        }
        if is_strict {
            for sequence in PATH_SEQUENCES.into_iter().filter(|sequence| text.contains(sequence)) {
                refuse(format!("must not contain '{sequence}'"));
            }
            for end in PATH_ENDS.into_iter().filter(|end| text.ends_with(end)) {
                refuse(format!("cannot end with '{end}'"));
            }
        }
    } else {
        errors.push(FieldError::not_supported(&path.child("pathType"), ty, &PATH_TYPES));
    }
    backend_errors(&entry["backend"], &path.child("backend"), errors);
}

fn backend_errors(backend: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match (meta::at(backend, &["resource"]), meta::at(backend, &["service"])) {
        (Some(_), Some(_)) => {
            errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (Some(resource), None) => reference_errors(resource, &path.child("resource"), errors),
        (None, Some(service)) => service_errors(service, path, errors),
        (None, None) => errors.push(FieldError::invalid(path, "", "resource or service backend is required")),
    }
}

fn service_errors(service: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (name, at) = (meta::text(service, &["name"]), path.child("service"));
    if name.is_empty() {
        errors.push(FieldError::required(&at.child("name"), ""));
    } else {
        invalid_each(&at.child("name"), name, names::dns1123_label(name), errors);
    }
    let port_name = meta::text(service, &["port", "name"]);
    let number = meta::i64_at(service, &["port", "number"]).unwrap_or_default();
    let at = at.child("port");
    match (port_name.is_empty(), number == 0) {
        (false, false) => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
        (false, true) => invalid_each(&at.child("name"), port_name, names::port_name(port_name), errors),
        (true, false) => invalid_each(&at.child("number"), number, names::port_number(number), errors),
        (true, true) => errors.push(FieldError::required(path, "port name or number is required")),
    }
}

/// What a backend or a class's parameters refer to.
fn reference_errors(reference: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(group) = meta::str_at(reference, &["apiGroup"]) {
        invalid_each(&path.child("apiGroup"), group, names::dns1123_subdomain(group), errors);
    }
    for field in ["kind", "name"] {
        let (value, path) = (meta::text(reference, &[field]), path.child(field));
        if value.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            invalid_each(&path, value, names::path_segment(value), errors);
        }
    }
}

fn tls_errors(tls: &Value, secrets_may_be_wrong: bool, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, host) in meta::texts(tls, &["hosts"]).into_iter().enumerate() {
        invalid_each(&path.child("hosts").index(index), host, host_name(host), errors);
    }
    let secret = meta::text(tls, &["secretName"]);
    if !secret.is_empty() && !secrets_may_be_wrong {
        invalid_each(&path.child("secretName"), secret, names::dns1123_subdomain(secret), errors);
    }
}

#[derive(Debug)]
pub(super) struct IngressClass;

impl Strategy for IngressClass {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        let (controller, controller_path) = (meta::text(obj, &["spec", "controller"]), path.child("controller"));
        if controller.len() > CONTROLLER_LEN_MAX {
            errors.push(FieldError::too_long(&controller_path, CONTROLLER_LEN_MAX));
        }
        if controller.is_empty() {
            errors.push(FieldError::required(&controller_path, ""));
        } else {
            let faults = names::domain_prefixed_path(controller).into_iter();
            errors.extend(faults.map(|(part, message)| FieldError::invalid(&controller_path, part, message)));
        }
        if let Some(parameters) = meta::at(obj, &["spec", "parameters"]) {
            parameters_errors(parameters, &path.child("parameters"), &mut errors);
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["spec", "controller"], &mut errors);
        errors
    }
}

fn parameters_errors(parameters: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    reference_errors(parameters, path, errors);
    let namespace = meta::str_at(parameters, &["namespace"]);
    let namespace_path = path.child("namespace");
    match (meta::text(parameters, &["scope"]), namespace) {
        ("Namespace", None) => {
            errors.push(FieldError::required(&namespace_path, "`parameters.scope` is set to 'Namespace'"));
        }
        ("Namespace", Some(namespace)) => {
            invalid_each(&namespace_path, namespace, names::dns1123_label(namespace), errors);
        }
        ("Cluster", Some(_)) => {
            errors.push(FieldError::forbidden(&namespace_path, "`parameters.scope` is set to 'Cluster'"));
        }
        ("Cluster", None) => {}
        (other, _) => {
            errors.push(FieldError::not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let object = json!({"metadata": {"name": "a"}, "spec": spec});
        Ingress.validate_create(&object).iter().map(ToString::to_string).collect()
    }

    fn of_path(entry: Value) -> Vec<String> {
        faults(json!({"rules": [{"http": {"paths": [entry]}}]}))
    }

    fn of_backend(backend: Value) -> Vec<String> {
        faults(json!({"defaultBackend": backend}))
    }

    #[test]
    fn what_upstream_takes_is_taken() {
        let backend = json!({"service": {"name": "1a", "port": {"number": 80}}});
        for (ty, path) in [("Exact", "/"), ("Prefix", "/a//".trim_end_matches('/')), ("ImplementationSpecific", "")] {
            assert_eq!(of_path(json!({"pathType": ty, "path": path, "backend": backend})), [""; 0]);
        }
        let spec = json!({"defaultBackend": backend, "rules": [{"host": "*.a.b"}], "tls": [{"hosts": ["*.a", "b"]}]});
        assert_eq!(faults(spec), [""; 0]);
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        let backend = json!({"resource": {"kind": "a", "name": "b"}});
        let cases = [
            (faults(json!({})), "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"),
            (of_path(json!({})), "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"),
            (
                of_path(json!({"pathType": "Glob", "backend": backend})),
                "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Glob\": supported values: \"Exact\", \
                 \"ImplementationSpecific\", \"Prefix\"",
            ),
            (
                of_path(json!({"pathType": "Exact", "backend": backend})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"\": must be an absolute path",
            ),
            (
                of_path(json!({"pathType": "Prefix", "path": "/a//b", "backend": backend})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b\": must not contain '//'",
            ),
            (
                of_path(json!({"pathType": "Prefix", "path": "/a/..", "backend": backend})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a/..\": cannot end with '/..'",
            ),
            (
                of_path(json!({"pathType": "Exact", "path": "/"})),
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ),
            (
                faults(json!({"rules": [{"host": "1.2.3.4"}]})),
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ),
            (faults(json!({"rules": [{"http": {}}]})), "spec.rules[0].http.paths: Required value"),
            (
                of_backend(json!({"service": {"name": "a", "port": {"name": "b", "number": 1}}})),
                "spec.defaultBackend: Invalid value: \"\": cannot set both port name & port number",
            ),
            (
                of_backend(json!({"service": {"port": {"number": 70000}}})),
                "spec.defaultBackend.service.name: Required value; spec.defaultBackend.service.port.number: Invalid \
                 value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                of_backend(json!({"service": {"name": "a"}})),
                "spec.defaultBackend: Required value: port name or number is required",
            ),
            (
                of_backend(json!({"resource": {"name": "a/b"}})),
                "spec.defaultBackend.resource.kind: Required value; spec.defaultBackend.resource.name: Invalid value: \
                 \"a/b\": may not contain '/'",
            ),
        ];
        for (faults, expected) in cases {
            assert_eq!(faults.join("; "), expected);
        }
    }

    #[test]
    fn a_class_names_its_controller_and_keeps_it() {
        let class = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
        let faults = |spec| {
            let errors = IngressClass.validate(&class(spec)).iter().map(ToString::to_string).collect::<Vec<_>>();
            errors.join("; ")
        };
        let parameters = |scope: &str, namespace: Option<&str>| {
            let parameters = json!({"kind": "a", "name": "b", "scope": scope, "namespace": namespace});
            json!({"controller": "a.b/c", "parameters": parameters})
        };
        assert_eq!(faults(parameters("Cluster", None)), "");
        assert_eq!(faults(json!({})), "spec.controller: Required value");
        assert_eq!(
            faults(parameters("Namespace", None)),
            "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"
        );
        assert_eq!(
            faults(parameters("Cluster", Some("a"))),
            "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"
        );
        let changed = IngressClass.validate_update(
            Part::Main,
            &class(json!({"controller": "a.b/d"})),
            &class(json!({"controller": "a.b/c"})),
        );
        assert_eq!(changed[0].to_string(), "spec.controller: Invalid value: \"a.b/d\": field is immutable");
    }
}
