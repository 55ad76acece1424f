//! How a Service may change, and what follows from it.

use serde_json::{Value, json};

use super::{is_external, is_headless, spec, spec_text, wants_health_port};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
    strategy::workload::IMMUTABLE,
};

const ADDRESS_LIST: [&str; 2] = ["spec", "clusterIPs"];
const FAMILY_LIST: [&str; 2] = ["spec", "ipFamilies"];
const HEALTH_PORT: [&str; 2] = ["spec", "healthCheckNodePort"];
const FIXED: &str = "may not change once set";

fn has_addresses(service: &Value) -> bool {
    spec_text(service, "type") != "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    matches!(spec_text(service, "type"), "NodePort" | "LoadBalancer")
}

fn node_ports(service: &Value) -> Vec<i64> {
    let ports = meta::items_at(service, &["spec", "ports"]).iter();
    ports.filter_map(|port| meta::i64_at(port, &["nodePort"])).filter(|port| *port != 0).collect()
}

fn same(new: &Value, old: &Value, field: &str) -> bool {
    meta::at(new, &["spec", field]) == meta::at(old, &["spec", field])
}

/// A client that leaves out what it was given keeps it (pkg/registry/core/service/storage, patchAllocatedValues).
pub(super) fn keep_allocated(new: &mut Value, old: &Value) {
    if has_addresses(new) && has_addresses(old) {
        for field in ["clusterIP", "clusterIPs"] {
            let absent = meta::at(new, &["spec", field]).is_none_or(|value| value == "" || value == &json!([]));
            if let Some(value) = meta::at(old, &["spec", field]).filter(|_| absent) {
                meta::set(new, &["spec", field], value.clone());
            }
        }
    }
    if has_node_ports(new) && has_node_ports(old) {
        let (now, before) = (node_ports(new), node_ports(old));
        let old_ports = meta::items_at(old, &["spec", "ports"]);
        let ports = meta::at_mut(new, &["spec", "ports"]).and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter(|port| meta::i64_at(port, &["nodePort"]).unwrap_or(0) == 0) {
            let name = meta::text(port, &["name"]).to_owned();
            let had = old_ports.iter().rfind(|old| meta::text(old, &["name"]) == name);
            let had = had.and_then(|old| meta::i64_at(old, &["nodePort"])).unwrap_or_default();
            if had != 0 && !(now.contains(&had) && before.contains(&had)) {
                meta::set(port, &["nodePort"], had);
            }
        }
    }
    let health = meta::i64_at(old, &HEALTH_PORT).unwrap_or_default();
    if wants_health_port(new) && wants_health_port(old) && health != 0 && meta::at(new, &HEALTH_PORT).is_none() {
        meta::set(new, &HEALTH_PORT, health);
    }
}

/// Clients that know one address only change the list with it (the same place, normalizeClusterIPs).
pub(super) fn keep_addresses_in_step(new: &mut Value, old: Option<&Value>) {
    let one = spec_text(new, "clusterIP").to_owned();
    let list = meta::texts(new, &ADDRESS_LIST);
    let Some(old) = old else {
        if !one.is_empty() && list.is_empty() {
            meta::set(new, &ADDRESS_LIST, json!([one]));
        }
        return;
    };
    let (old_one, old_list) = (spec_text(old, "clusterIP"), meta::texts(old, &ADDRESS_LIST));
    if list.is_empty() && !old_list.is_empty() && one == old_one {
        meta::set(new, &ADDRESS_LIST, json!(old_list));
    } else if one != old_one && list == old_list && one.is_empty() {
        meta::remove(new, &ADDRESS_LIST);
    } else if one != old_one && list == old_list {
        meta::set(new, &ADDRESS_LIST, json!([one]));
    }
}

/// What the former type had and the new one has not goes, unless the client changed it too: then it is an error
/// (pkg/registry/core/service/strategy.go, dropTypeDependentFields).
pub(super) fn drop_what_the_type_has_not(new: &mut Value, old: &Value) {
    let mut dropped = Vec::new();
    if has_addresses(old) && !has_addresses(new) {
        if same(new, old, "clusterIP") && same(new, old, "clusterIPs") {
            dropped.extend(["clusterIP", "clusterIPs"]);
        }
        dropped.extend(["ipFamilies", "ipFamilyPolicy"].into_iter().filter(|field| same(new, old, field)));
    }
    if wants_health_port(old) && !wants_health_port(new) && same(new, old, "healthCheckNodePort") {
        dropped.push("healthCheckNodePort");
    }
    if spec_text(old, "type") == "LoadBalancer" && spec_text(new, "type") != "LoadBalancer" {
        let fields = ["allocateLoadBalancerNodePorts", "loadBalancerClass"].into_iter();
        dropped.extend(fields.filter(|field| same(new, old, field)));
    }
    if is_external(old) && !is_external(new) && same(new, old, "externalTrafficPolicy") {
        dropped.push("externalTrafficPolicy");
    }
    for field in dropped {
        meta::remove(new, &["spec", field]);
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let before = node_ports(old);
        if node_ports(new).iter().all(|port| before.contains(port)) {
            let ports = meta::at_mut(new, &["spec", "ports"]).and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten() {
                meta::remove(port, &["nodePort"]);
            }
        }
    }
    if spec_text(new, "type") != "LoadBalancer" {
        meta::set(new, &["status", "loadBalancer"], json!({}));
    }
}

pub(super) fn errors(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if has_addresses(new) && has_addresses(old) {
        let was_and_is_headless = (is_headless(old), is_headless(new));
        if was_and_is_headless != (true, true) {
            list_errors(new, old, &ADDRESSES, &mut errors);
        }
        if was_and_is_headless == (false, false) {
            list_errors(new, old, &FAMILIES, &mut errors);
        }
    }
    class_errors(new, old, &mut errors);
    let health = |service: &Value| meta::i64_at(service, &HEALTH_PORT).unwrap_or_default();
    if wants_health_port(old) && wants_health_port(new) && health(old) != health(new) {
        errors.push(FieldError::forbidden(&FieldPath::new("spec").child("healthCheckNodePort"), IMMUTABLE));
    }
    errors
}

fn class_errors(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("spec");
    let both = [new, old].iter().all(|service| spec_text(service, "type") == "LoadBalancer");
    if both && !same(new, old, "loadBalancerClass") {
        let class = new["spec"]["loadBalancerClass"].clone();
        errors.push(FieldError::invalid(&path.child("loadBalancerClass"), class, FIXED));
    }
    spec::class_errors(new, &path, errors);
}

/// A list with an entry per family, whose first entry stays.
struct PerFamily {
    at: [&'static str; 2],
    /// What upstream calls the entry that stays.
    primary: &'static str,
    secondary: &'static str,
    /// Whether each changed entry is reported at its place, or at the first.
    indexed: bool,
}

const ADDRESSES: PerFamily =
    PerFamily { at: ADDRESS_LIST, primary: "primary clusterIP", secondary: "secondary clusterIP", indexed: true };
const FAMILIES: PerFamily =
    PerFamily { at: FAMILY_LIST, primary: "primary ipFamily", secondary: "secondary ipFamily", indexed: false };

/// A second entry may be added; the second goes only where the Service says that it wants one.
fn list_errors(new: &Value, old: &Value, list: &PerFamily, errors: &mut FieldErrors) {
    let (is, was) = (meta::texts(new, &list.at), meta::texts(old, &list.at));
    let path = FieldPath::new("spec").child(list.at[1]);
    let mut refuse = |index: usize, message: &str| {
        errors.push(FieldError::invalid(&path.index(index), json!(is), message));
    };
    if is.len() == was.len() {
        for index in (0..is.len()).filter(|index| is[*index] != was[*index]) {
            refuse(if list.indexed { index } else { 0 }, FIXED);
        }
        return;
    }
    // Upstream asks for addresses here, whichever list it is.
    if is.len() < was.len() && meta::texts(new, &ADDRESS_LIST).is_empty() {
        refuse(0, &format!("{} can not be unset", list.primary));
    }
    if let (Some(is), Some(was)) = (is.first(), was.first())
        && is != was
    {
        refuse(0, FIXED);
    }
    if is.len() == 1 && was.len() > 1 && spec_text(new, "ipFamilyPolicy") != "SingleStack" {
        let message = format!("must be set to 'SingleStack' when releasing the {}", list.secondary);
        let policy = new["spec"]["ipFamilyPolicy"].clone();
        errors.push(FieldError::invalid(&FieldPath::new("spec").child("ipFamilyPolicy"), policy, message));
    }
}
