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

use super::{NameRule, Part, Rules, Strategy};
use crate::{field::FieldErrors, meta};

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
