//! Services (kubernetes pkg/registry/core/service, pkg/apis/core/validation).
//!
//! Addresses and node ports are given away by the API server, not here.

mod families;
mod spec;
#[cfg(test)]
mod tests;
mod update;

use serde_json::{Map, Value, json};

pub(super) use spec::point_errors;

use super::{NameRule, Part, Rules, Strategy, old_forms};
use crate::{
    field::{FieldErrors, FieldPath},
    meta,
};

/// Default of sessionAffinityConfig.clientIP.timeoutSeconds: three hours.
const AFFINITY_SECONDS: i64 = 3 * 60 * 60;
/// What a headless Service has instead of an address.
const NONE: &str = "None";

#[derive(Debug)]
pub(super) struct Service;

fn spec_text<'a>(service: &'a Value, field: &str) -> &'a str {
    meta::text(service, &["spec", field])
}

fn is_headless(service: &Value) -> bool {
    meta::texts(service, &["spec", "clusterIPs"]) == [NONE]
}

/// Whether other machines reach the Service: what `externalTrafficPolicy` is about.
fn is_external(service: &Value) -> bool {
    match spec_text(service, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !meta::items_at(service, &["spec", "externalIPs"]).is_empty(),
        _ => false,
    }
}

/// Whether load balancers ask on a port of its own which nodes have endpoints.
fn wants_health_port(service: &Value) -> bool {
    spec_text(service, "type") == "LoadBalancer" && spec_text(service, "externalTrafficPolicy") == "Local"
}

/// What of a Service has a newer form or does nothing (kubernetes pkg/api/service/warnings.go).
fn warnings(service: &Value) -> Vec<String> {
    let is_external_name = spec_text(service, "type") == "ExternalName";
    let is_headless = is_headless(service) && spec_text(service, "type") == "ClusterIP";
    let has_external_ips = !meta::items_at(service, &["spec", "externalIPs"]).is_empty();
    let affinity = spec_text(service, "sessionAffinity");
    let found = [
        (
            meta::annotation(service, "service.kubernetes.io/topology-aware-hints").is_some(),
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
        ),
        (
            is_headless && !spec_text(service, "loadBalancerIP").is_empty(),
            "spec.loadBalancerIP is ignored for headless services",
        ),
        (is_headless && has_external_ips, "spec.externalIPs is ignored for headless services"),
        (is_headless && affinity != "None", "spec.SessionAffinity is ignored for headless services"),
        (
            has_external_ips && !is_headless && !is_external_name,
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        ),
        (has_external_ips && is_external_name, "spec.externalIPs is ignored when spec.type is \"ExternalName\""),
        (
            !is_external_name && !spec_text(service, "externalName").is_empty(),
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        ),
        (
            spec_text(service, "trafficDistribution") == "PreferClose",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ),
    ];
    let mut warnings: Vec<String> =
        found.into_iter().filter(|(holds, _)| *holds).map(|(_, message)| message.to_owned()).collect();
    let path = FieldPath::new("spec");
    for list in ["clusterIPs", "externalIPs"] {
        let addresses = meta::texts(service, &["spec", list]).into_iter().enumerate();
        warnings.extend(addresses.filter_map(|(index, ip)| old_forms::ip(ip, &path.child(list).index(index))));
    }
    warnings.extend(old_forms::ip(spec_text(service, "loadBalancerIP"), &path.child("loadBalancerIP")));
    let ranges = meta::texts(service, &["spec", "loadBalancerSourceRanges"]).into_iter().enumerate();
    let ranges_path = path.child("loadBalancerSourceRanges");
    warnings.extend(ranges.filter_map(|(index, block)| old_forms::cidr(block, &ranges_path.index(index))));
    warnings
}

impl Strategy for Service {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: NameRule::Label, creates_on_update: true, ..Rules::STATUS };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        let external = is_external(obj);
        if let Some(Value::Object(spec)) = meta::at_mut(obj, &["spec"]) {
            default_spec(spec, external);
        }
        if spec_text(obj, "type") == "LoadBalancer" {
            let ingress = meta::at_mut(obj, &["status", "loadBalancer", "ingress"]).and_then(Value::as_array_mut);
            for point in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
                if point.get("ip").is_some() {
                    point.entry("ipMode").or_insert_with(|| "VIP".into());
                }
            }
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(new)
    }

    fn prepare_create(&self, obj: &mut Value) {
        meta::set(obj, &["status"], json!({"loadBalancer": {}}));
        update::keep_addresses_in_step(obj, None);
    }

    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {
        if part == Part::Main {
            update::keep_allocated(new, old);
            update::keep_addresses_in_step(new, Some(old));
            update::drop_what_the_type_has_not(new, old);
        }
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let errors = families::errors(obj, None);
        if errors.is_empty() { spec::errors(obj, None) } else { errors }
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        match part {
            Part::Main => {
                // Addresses are checked before they are given away, and the rest only where they are right.
                let mut errors = families::errors(new, Some(old));
                if errors.is_empty() {
                    errors = update::errors(new, old);
                    errors.extend(spec::errors(new, Some(old)));
                }
                errors
            }
            Part::Status => spec::status_errors(new, old),
            _ => FieldErrors::new(),
        }
    }
}

fn default_spec(spec: &mut Map<String, Value>, external: bool) {
    let ty = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Value::Object(port) = port else { continue };
        let number = port.get("port").cloned();
        let unset = port.get("targetPort").is_none_or(|t| t == &json!(0) || t == &json!(""));
        if unset {
            port.insert("targetPort".to_owned(), number.unwrap_or_else(|| json!(0)));
        }
    }
    if matches!(ty.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        spec.entry("internalTrafficPolicy").or_insert("Cluster".into());
    }
    if external {
        spec.entry("externalTrafficPolicy").or_insert("Cluster".into());
    }
    if ty == "LoadBalancer" {
        spec.entry("allocateLoadBalancerNodePorts").or_insert(true.into());
    }
    match spec.get("sessionAffinity").and_then(Value::as_str) {
        Some("ClientIP") => {
            let given = spec.get("sessionAffinityConfig").and_then(|c| meta::at(c, &["clientIP", "timeoutSeconds"]));
            if given.is_none() {
                let config = json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}});
                spec.insert("sessionAffinityConfig".to_owned(), config);
            }
        }
        Some("None") => {
            spec.remove("sessionAffinityConfig");
        }
        _ => {}
    }
}
