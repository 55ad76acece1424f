//! What a Service may say.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{is_external, is_headless, spec_text, wants_health_port};
use crate::{
    addresses,
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle, meta, names,
};

/// Longest `clientIP` affinity, seconds (MaxClientIPServiceAffinitySeconds).
const AFFINITY_SECONDS_MAX: i64 = 86_400;
const TRAFFIC_DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_FOR_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";

/// `old` at update: what it has already may stay, in whatever form.
pub(super) fn errors(service: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let (spec, path) = (&service["spec"], FieldPath::new("spec"));
    let ty = spec_text(service, "type");
    topology_errors(service, &mut errors);
    if meta::items_at(spec, &["ports"]).is_empty() && !is_headless(service) && ty != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    type_errors(service, ty, &path, &mut errors);
    ports_errors(meta::items_at(spec, &["ports"]), ty, &path.child("ports"), &mut errors);
    let selector = meta::at(spec, &["selector"]).and_then(Value::as_object);
    lifecycle::validate_labels(selector, &path.child("selector"), &mut errors);
    affinity_errors(spec, &path, &mut errors);
    external_address_errors(service, old, &path.child("externalIPs"), &mut errors);
    balancer_errors(service, old, ty, &path, &mut errors);
    traffic_errors(service, &path, &mut errors);
    errors
}

fn topology_errors(service: &Value, errors: &mut FieldErrors) {
    let (mode, hints) = (meta::annotation(service, TOPOLOGY_MODE), meta::annotation(service, TOPOLOGY_HINTS));
    if let (Some(mode), Some(hints)) = (mode, hints)
        && mode != hints
    {
        let path = FieldPath::new("metadata").child("annotations").key(TOPOLOGY_MODE);
        let message = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.push(FieldError::invalid(&path, mode, message));
    }
}

fn type_errors(service: &Value, ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    match ty {
        "LoadBalancer" | "NodePort" if is_headless(service) => {
            let message = format!("may not be set to 'None' for {ty} services");
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), super::NONE, message));
        }
        "ExternalName" => {
            let set = |field: &&str| {
                let value = meta::at(service, &["spec", field]);
                value.is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty()))
            };
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"].iter().filter(|field| set(field)) {
                let message = "may not be set for ExternalName services";
                errors.push(FieldError::forbidden(&path.child(field), message));
            }
            // A trailing dot says that the name is complete.
            let given = spec_text(service, "externalName");
            let name = given.strip_suffix('.').unwrap_or(given);
            let path = path.child("externalName");
            if name.is_empty() {
                errors.push(FieldError::required(&path, ""));
            } else {
                invalid_each(&path, name, names::dns1123_subdomain(name), errors);
            }
        }
        _ => {}
    }
}

fn ports_errors(ports: &[Value], ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let (mut known_names, mut known_ports, mut known_node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let (name, name_path) = (meta::text(port, &["name"]), path.child("name"));
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(&name_path, ""));
        } else if !name.is_empty() {
            invalid_each(&name_path, name, names::dns1123_label(name), errors);
            if !known_names.insert(name) {
                errors.push(FieldError::duplicate(&name_path, name));
            }
        }
        let number = meta::i64_at(port, &["port"]).unwrap_or_default();
        invalid_each(&path.child("port"), number, names::port_number(number), errors);
        if let Some(target) = meta::at(port, &["targetPort"]) {
            invalid_each(&path.child("targetPort"), target.clone(), names::port(target), errors);
        }
        if let Some(protocol) = meta::str_at(port, &["appProtocol"]) {
            invalid_each(&path.child("appProtocol"), protocol, names::qualified_name(protocol), errors);
        }
        let (protocol, node_port) =
            (meta::text(port, &["protocol"]), meta::i64_at(port, &["nodePort"]).unwrap_or_default());
        if node_port != 0 && ty == "ClusterIP" {
            let message = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(&path.child("nodePort"), message));
        }
        if node_port != 0 && !known_node_ports.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(&path.child("nodePort"), node_port));
        }
        if !known_ports.insert((protocol, number)) {
            errors.push(FieldError::duplicate(&path, port_as_shown(protocol, number)));
        }
    }
}

/// Upstream shows all fields of its own type.
fn port_as_shown(protocol: &str, number: i64) -> Value {
    json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number, "TargetPort": 0, "NodePort": 0})
}

fn affinity_errors(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let seconds = meta::i64_at(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
    if meta::text(spec, &["sessionAffinity"]) == "ClientIP"
        && let Some(seconds) = seconds.filter(|seconds| !(1..=AFFINITY_SECONDS_MAX).contains(seconds))
    {
        let path = path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
        let message = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        errors.push(FieldError::invalid(&path, seconds, message));
    }
}

fn external_address_errors(service: &Value, old: Option<&Value>, path: &FieldPath, errors: &mut FieldErrors) {
    let known = old.map(|old| meta::texts(old, &["spec", "externalIPs"])).unwrap_or_default();
    for (index, address) in meta::texts(service, &["spec", "externalIPs"]).into_iter().enumerate() {
        let mut messages = if known.contains(&address) { Vec::new() } else { addresses::ip(address) };
        if messages.is_empty() {
            messages = addresses::endpoint(address);
        }
        invalid_each(&path.index(index), address, messages, errors);
    }
}

/// What concerns load balancers alone.
fn balancer_errors(service: &Value, old: Option<&Value>, ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let is_balancer = ty == "LoadBalancer";
    let ranges_at = ["spec", "loadBalancerSourceRanges"];
    let ranges = meta::texts(service, &ranges_at);
    let annotation = meta::annotation(service, SOURCE_RANGES);
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if !is_balancer {
            errors.push(FieldError::forbidden(&path, ONLY_FOR_BALANCERS));
        }
        let known: Vec<&str> = old.map(|old| meta::texts(old, &ranges_at)).unwrap_or_default();
        for (index, range) in ranges.into_iter().map(str::trim).enumerate() {
            if !known.iter().any(|known| known.trim() == range) {
                invalid_each(&path.index(index), range, addresses::cidr(range), errors);
            }
        }
    } else if let Some(ranges) = annotation {
        let path = FieldPath::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !is_balancer {
            errors.push(FieldError::forbidden(&path, ONLY_FOR_BALANCERS));
        }
        let is_new = old.is_none_or(|old| meta::annotation(old, SOURCE_RANGES) != Some(ranges));
        if is_new && !ranges.trim().is_empty() {
            for range in ranges.split(',').map(str::trim) {
                invalid_each(&path, range, addresses::cidr(range), errors);
            }
        }
    }
    if !is_balancer && meta::at(service, &["spec", "allocateLoadBalancerNodePorts"]).is_some() {
        errors.push(FieldError::forbidden(&path.child("allocateLoadBalancerNodePorts"), ONLY_FOR_BALANCERS));
    }
    class_errors(service, path, errors);
}

pub(super) fn class_errors(service: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(class) = meta::str_at(service, &["spec", "loadBalancerClass"]) else { return };
    let path = path.child("loadBalancerClass");
    if spec_text(service, "type") == "LoadBalancer" {
        invalid_each(&path, class, names::qualified_name(class), errors);
    } else {
        errors.push(FieldError::forbidden(&path, ONLY_FOR_BALANCERS));
    }
}

fn traffic_errors(service: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let policy = spec_text(service, "externalTrafficPolicy");
    if !policy.is_empty() && !is_external(service) {
        let message = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(&path.child("externalTrafficPolicy"), policy, message));
    }
    // A Service that wants one and has none is given one.
    let health = meta::i64_at(service, &["spec", "healthCheckNodePort"]).unwrap_or_default();
    let health_path = path.child("healthCheckNodePort");
    if health != 0 && wants_health_port(service) {
        invalid_each(&health_path, health, names::port_number(health), errors);
    } else if health != 0 {
        let message = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(&health_path, health, message));
    }
    if let Some(given) = meta::str_at(service, &["spec", "trafficDistribution"])
        && !TRAFFIC_DISTRIBUTIONS.contains(&given)
    {
        let path = path.child("trafficDistribution");
        errors.push(FieldError::not_supported(&path, given, &TRAFFIC_DISTRIBUTIONS));
    }
}

/// What a load balancer's status may say (`ValidateLoadBalancerStatus`).
pub(super) fn status_errors(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let ingress_at = ["status", "loadBalancer", "ingress"];
    let path = FieldPath::new("status").child("loadBalancer").child("ingress");
    let ingress = meta::items_at(new, &ingress_at);
    if spec_text(new, "type") != "LoadBalancer" && !ingress.is_empty() {
        errors.push(FieldError::forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'"));
        return errors;
    }
    for (index, point) in ingress.iter().enumerate() {
        let path = path.index(index);
        point_errors(point, meta::items_at(old, &ingress_at), &path, &mut errors);
        let mode = meta::str_at(point, &["ipMode"]);
        match (meta::text(point, &["ip"]).is_empty(), mode) {
            (false, None) => {
                errors.push(FieldError::required(&path.child("ipMode"), "must be specified when `ip` is set"));
            }
            (true, Some(_)) => {
                let message = "may not be specified when `ip` is not set";
                errors.push(FieldError::forbidden(&path.child("ipMode"), message));
            }
            (false, Some(mode)) if !["Proxy", "VIP"].contains(&mode) => {
                errors.push(FieldError::not_supported(&path.child("ipMode"), mode, &["Proxy", "VIP"]));
            }
            _ => {}
        }
    }
    errors
}

/// Address and name of a point where traffic comes in; `known` are those that there were.
pub(in crate::strategy) fn point_errors(point: &Value, known: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    let (address, name) = (meta::text(point, &["ip"]), meta::text(point, &["hostname"]));
    if !address.is_empty() && !known.iter().any(|known| meta::text(known, &["ip"]) == address) {
        invalid_each(&path.child("ip"), address, addresses::ip(address), errors);
    }
    if !name.is_empty() {
        let mut messages = names::dns1123_subdomain(name);
        if addresses::parse_lenient(name).is_some() {
            messages.push("must be a DNS name, not an IP address".to_owned());
        }
        invalid_each(&path.child("hostname"), name, messages, errors);
    }
}
