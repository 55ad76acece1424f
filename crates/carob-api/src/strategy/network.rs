//! Services and what goes with them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{NameRule, Part, Rules, Strategy, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle, meta, names,
};

/// Default of sessionAffinityConfig.clientIP.timeoutSeconds: three hours.
const AFFINITY_SECONDS: i64 = 3 * 60 * 60;

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    meta::str_at(value, path).unwrap_or_default()
}

/// Cluster IPs and node ports are allocated by the API server, not here.
#[derive(Debug)]
pub(super) struct Service;

impl Strategy for Service {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: NameRule::Label, ..Rules::STATUS };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        let Some(Value::Object(spec)) = meta::at_mut(obj, &["spec"]) else { return };
        let ty = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let Value::Object(port) = port else { continue };
            let number = port.get("port").cloned();
            let unset = port.get("targetPort").is_none_or(|t| t == &json!(0) || t == &json!(""));
            if let Some(number) = number.filter(|_| unset) {
                port.insert("targetPort".to_owned(), number);
            }
        }
        if ty != "ExternalName" {
            spec.entry("internalTrafficPolicy").or_insert("Cluster".into());
        }
        if ty == "NodePort" || ty == "LoadBalancer" {
            spec.entry("externalTrafficPolicy").or_insert("Cluster".into());
        }
        if ty == "LoadBalancer" {
            spec.entry("allocateLoadBalancerNodePorts").or_insert(true.into());
        }
        match spec.get("sessionAffinity").and_then(Value::as_str) {
            Some("ClientIP") => {
                spec.entry("sessionAffinityConfig")
                    .or_insert_with(|| json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
            }
            Some("None") => {
                spec.remove("sessionAffinityConfig");
            }
            _ => {}
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        meta::set(obj, &["status"], json!({"loadBalancer": {}}));
    }

    /// What belonged to the former type goes with it, unless the client changed it too
    /// (`pkg/registry/core/service/strategy.go`, dropTypeDependentFields).
    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {
        let is_external = |service: &Value| matches!(text(service, &["spec", "type"]), "NodePort" | "LoadBalancer");
        let path = ["spec", "externalTrafficPolicy"];
        if part == Part::Main && is_external(old) && !is_external(new) && meta::at(new, &path) == meta::at(old, &path) {
            meta::remove(new, &path);
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        let ty = text(spec, &["type"]);
        let ports = meta::items_at(spec, &["ports"]);
        if ports.is_empty() && text(spec, &["clusterIP"]) != "None" && ty != "ExternalName" {
            errors.push(FieldError::required(&path.child("ports"), ""));
        }
        validate_ports(ports, ty, &path.child("ports"), &mut errors);
        let selector = meta::at(spec, &["selector"]).and_then(Value::as_object);
        lifecycle::validate_labels(selector, &path.child("selector"), &mut errors);
        if ty == "ExternalName" {
            let name = text(spec, &["externalName"]);
            let path = path.child("externalName");
            if name.is_empty() {
                errors.push(FieldError::required(&path, ""));
            }
            let bare = name.strip_suffix('.').unwrap_or(name);
            for message in names::dns1123_subdomain(bare).into_iter().filter(|_| !name.is_empty()) {
                errors.push(FieldError::invalid(&path, name, message));
            }
        }
        if ty == "LoadBalancer" && text(spec, &["clusterIP"]) == "None" {
            let message = "may not be set to 'None' for LoadBalancer services";
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", message));
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (was, is) = (text(old, &["spec", "clusterIP"]), text(new, &["spec", "clusterIP"]));
        let kept_type = [old, new].iter().all(|s| text(s, &["spec", "type"]) != "ExternalName");
        if part == Part::Main && kept_type && !was.is_empty() && was != is {
            let path = FieldPath::new("spec").child("clusterIPs").index(0);
            errors.push(FieldError::invalid(&path, is, "may not change once set"));
        }
        errors
    }
}

fn validate_ports(ports: &[Value], ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let (mut names_seen, mut ports_seen, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = text(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else if !name.is_empty() {
            for message in names::dns1123_label(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, message));
            }
            if !names_seen.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        let number = meta::i64_at(port, &["port"]).unwrap_or_default();
        for message in names::port_number(number) {
            errors.push(FieldError::invalid(&path.child("port"), number, message));
        }
        match port.get("targetPort") {
            Some(Value::String(target)) => {
                for message in names::port_name(target) {
                    errors.push(FieldError::invalid(&path.child("targetPort"), target.as_str(), message));
                }
            }
            Some(Value::Number(target)) => {
                for message in names::port_number(target.as_i64().unwrap_or_default()) {
                    errors.push(FieldError::invalid(&path.child("targetPort"), target.clone(), message));
                }
            }
            _ => {}
        }
        let protocol = text(port, &["protocol"]);
        if !ports_seen.insert((protocol, number)) {
            errors.push(FieldError::duplicate(&path, json!({"protocol": protocol, "port": number})));
        }
        let node_port = meta::i64_at(port, &["nodePort"]).unwrap_or_default();
        if node_port != 0 && (ty == "ClusterIP" || ty.is_empty()) {
            let message = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(&path.child("nodePort"), message));
        }
        if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(&path.child("nodePort"), node_port));
        }
    }
}

#[derive(Debug)]
pub(super) struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if text(obj, &["addressType"]).is_empty() {
            errors.push(FieldError::required(&FieldPath::new("addressType"), ""));
        }
        for (index, endpoint) in meta::items_at(obj, &["endpoints"]).iter().enumerate() {
            if meta::items_at(endpoint, &["addresses"]).is_empty() {
                let path = FieldPath::new("endpoints").index(index).child("addresses");
                errors.push(FieldError::required(&path, "must contain at least 1 address"));
            }
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["addressType"], &mut errors);
        errors
    }
}

/// Names the address that some object has been given.
#[derive(Debug)]
pub(super) struct IpAddress;

impl Strategy for IpAddress {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: NameRule::Ip, ..Rules::COUNTED };
        &RULES
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let path = FieldPath::new("spec").child("parentRef");
        let Some(parent) = meta::at(obj, &["spec", "parentRef"]) else {
            return vec![FieldError::required(&path, "")];
        };
        let missing = ["resource", "name"].into_iter().filter(|field| text(parent, &[field]).is_empty());
        missing.map(|field| FieldError::required(&path.child(field), "")).collect()
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["spec", "parentRef"], &mut errors);
        errors
    }
}
