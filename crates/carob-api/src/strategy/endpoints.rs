//! Endpoints (kubernetes pkg/apis/core/validation) and EndpointSlices (pkg/apis/discovery/validation).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Part, Rules, Strategy, old_forms, workload::immutable};
use crate::{
    addresses,
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle, meta, names,
};

/// Limits of one EndpointSlice.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
/// Limits of one endpoint of a slice.
const ADDRESSES_MAX: usize = 100;
const HINTS_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Endpoints;

impl Strategy for Endpoints {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { creates_on_update: true, ..Rules::PLAIN };
        &RULES
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_endpoints(new)
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        for (index, subset) in meta::items_at(obj, &["subsets"]).iter().enumerate() {
            subset_errors(subset, &FieldPath::new("subsets").index(index), &mut errors);
        }
        errors
    }

    /// What was accepted once may stay.
    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        if new.get("subsets") == old.get("subsets") { FieldErrors::new() } else { self.validate_create(new) }
    }
}

fn subset_errors(subset: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let lists = ["addresses", "notReadyAddresses"];
    if lists.iter().all(|list| meta::items_at(subset, &[list]).is_empty()) {
        errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for list in lists {
        for (index, address) in meta::items_at(subset, &[list]).iter().enumerate() {
            address_errors(address, &path.child(list).index(index), errors);
        }
    }
    let ports = meta::items_at(subset, &["ports"]);
    for (index, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        let (name, number) = (meta::text(port, &["name"]), meta::i64_at(port, &["port"]).unwrap_or_default());
        if !name.is_empty() {
            invalid_each(&path.child("name"), name, names::dns1123_label(name), errors);
        } else if ports.len() > 1 {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        invalid_each(&path.child("port"), number, names::port_number(number), errors);
        app_protocol_errors(port, &path, errors);
    }
}

fn address_errors(address: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (ip, name) = (meta::text(address, &["ip"]), meta::text(address, &["hostname"]));
    invalid_each(&path.child("ip"), ip, addresses::ip(ip), errors);
    if !name.is_empty() {
        invalid_each(&path.child("hostname"), name, names::dns1123_label(name), errors);
    }
    node_name_errors(address, path, errors);
    invalid_each(&path.child("ip"), ip, addresses::endpoint(ip), errors);
}

fn node_name_errors(holder: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(node) = meta::str_at(holder, &["nodeName"]) {
        invalid_each(&path.child("nodeName"), node, names::dns1123_subdomain(node), errors);
    }
}

fn app_protocol_errors(port: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(protocol) = meta::str_at(port, &["appProtocol"]) {
        invalid_each(&path.child("appProtocol"), protocol, names::qualified_name(protocol), errors);
    }
}

#[derive(Debug)]
pub(super) struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    /// v1 has no writes of this field, which v1beta1 had.
    fn prepare_create(&self, obj: &mut Value) {
        drop_topology(obj);
    }

    fn prepare_update(&self, _part: Part, new: &mut Value, old: &Value) {
        if new.get("endpoints") != old.get("endpoints") {
            drop_topology(new);
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        old_forms::of_slice(new, old)
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = slice_errors(obj);
        errors.extend(endpoints_errors(obj));
        errors
    }

    /// Endpoints that were accepted once may stay.
    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = slice_errors(new);
        if new.get("endpoints") != old.get("endpoints") {
            errors.extend(endpoints_errors(new));
        }
        immutable(new, old, &["addressType"], &mut errors);
        errors
    }
}

fn drop_topology(slice: &mut Value) {
    let endpoints = meta::at_mut(slice, &["endpoints"]).and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten() {
        meta::remove(endpoint, &["deprecatedTopology"]);
    }
}

fn slice_errors(slice: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if meta::text(slice, &["addressType"]).is_empty() {
        errors.push(FieldError::required(&FieldPath::new("addressType"), ""));
    }
    let (ports, path) = (meta::items_at(slice, &["ports"]), FieldPath::new("ports"));
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many(&path, Some(ports.len()), PORTS_MAX));
        return errors;
    }
    let mut known = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let (name, path) = (meta::text(port, &["name"]), path.index(index));
        if !name.is_empty() {
            invalid_each(&path.child("name"), name, names::dns1123_label(name), &mut errors);
        }
        if !known.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        app_protocol_errors(port, &path, &mut errors);
    }
    errors
}

fn endpoints_errors(slice: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let (endpoints, path) = (meta::items_at(slice, &["endpoints"]), FieldPath::new("endpoints"));
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(&path, Some(endpoints.len()), ENDPOINTS_MAX));
        return errors;
    }
    let ty = meta::text(slice, &["addressType"]);
    for (index, endpoint) in endpoints.iter().enumerate() {
        endpoint_errors(endpoint, ty, &path.index(index), &mut errors);
    }
    errors
}

fn endpoint_errors(endpoint: &Value, ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let (list, list_path) = (meta::texts(endpoint, &["addresses"]), path.child("addresses"));
    if list.is_empty() {
        errors.push(FieldError::required(&list_path, "must contain at least 1 address"));
    } else if list.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(&list_path, Some(list.len()), ADDRESSES_MAX));
    }
    for (index, address) in list.into_iter().enumerate() {
        slice_address_errors(address, ty, &list_path, index, errors);
    }
    node_name_errors(endpoint, path, errors);
    let topology = meta::at(endpoint, &["deprecatedTopology"]).and_then(Value::as_object);
    lifecycle::validate_labels(topology, &path.child("deprecatedTopology"), errors);
    if let Some(name) = meta::str_at(endpoint, &["hostname"]) {
        invalid_each(&path.child("hostname"), name, names::dns1123_label(name), errors);
    }
    let hints = path.child("hints");
    for (list, check) in
        [("forZones", names::label_value as fn(&str) -> Vec<String>), ("forNodes", names::dns1123_subdomain)]
    {
        let items = meta::items_at(endpoint, &["hints", list]);
        let path = hints.child(list);
        if items.len() > HINTS_MAX {
            errors.push(FieldError::too_many(&path, Some(items.len()), HINTS_MAX));
            return;
        }
        let mut known = BTreeSet::new();
        for (index, hint) in items.iter().enumerate() {
            let (name, path) = (meta::text(hint, &["name"]), path.index(index).child("name"));
            if !known.insert(name) {
                errors.push(FieldError::duplicate(&path, name));
            }
            invalid_each(&path, name, check(name), errors);
        }
    }
}

fn slice_address_errors(address: &str, ty: &str, list: &FieldPath, index: usize, errors: &mut FieldErrors) {
    let path = list.index(index);
    let faults = match ty {
        "IPv4" => addresses::ip(address),
        "IPv6" => addresses::canonical_ip(address),
        "FQDN" => return domain_name_errors(address, &path, errors),
        // A type that there is not has been refused.
        _ => return,
    };
    if !faults.is_empty() {
        return invalid_each(&path, address, faults, errors);
    }
    let is_ipv4 = addresses::parse_lenient(address).is_some_and(|address| address.is_ipv4());
    if is_ipv4 != (ty == "IPv4") {
        errors.push(FieldError::invalid(list, address, format!("must be an {ty} address")));
    }
    invalid_each(&path, address, addresses::endpoint(address), errors);
}

/// A name of two parts or more (apimachinery pkg/util/validation, `IsFullyQualifiedDomainName`).
fn domain_name_errors(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let faults = names::dns1123_subdomain(name);
    if !faults.is_empty() {
        errors.push(FieldError::invalid(path, name, faults.join(",")));
    } else if !name.contains('.') {
        let message = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, name, message));
    } else if let Some((label, faults)) =
        name.split('.').map(|label| (label, names::dns1123_label(label))).find(|(_, faults)| !faults.is_empty())
    {
        errors.push(FieldError::invalid(path, label, faults.join(",")));
    }
}
