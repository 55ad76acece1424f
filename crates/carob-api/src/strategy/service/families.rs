//! Addresses of a Service and their families (`ValidateServiceClusterIPsRelatedFields`).

use serde_json::{Value, json};

use super::{NONE, is_headless, spec_text};
use crate::{
    addresses,
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta,
};

/// One of each family.
const ADDRESSES_MAX: usize = 2;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

pub(super) fn errors(service: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    // An ExternalName has neither, which is checked with its type.
    if spec_text(service, "type") != "ExternalName" {
        find_errors(service, old, &mut errors);
    }
    errors
}

fn find_errors(service: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = FieldPath::new("spec").child("clusterIPs");
    let list = meta::texts(service, &["spec", "clusterIPs"]);
    let families = meta::texts(service, &["spec", "ipFamilies"]);
    step_errors(spec_text(service, "clusterIP"), &list, &path, errors);
    family_errors(&families, errors);
    let known = old.map(|old| meta::texts(old, &["spec", "clusterIPs"])).unwrap_or_default();
    let since = errors.len();
    for (index, address) in list.iter().enumerate() {
        if index == 0 && *address == NONE {
            if list.len() > 1 {
                let message = "'None' must be the first and only value";
                errors.push(FieldError::invalid(&path, json!(list), message));
            }
        } else if !known.contains(address) {
            invalid_each(&path.index(index), *address, addresses::ip(address), errors);
        }
    }
    let malformed = errors.len() > since;
    if list.len() > ADDRESSES_MAX {
        errors.push(FieldError::invalid(&path, json!(list), "may only hold up to 2 values"));
    }
    if malformed {
        return;
    }
    let is_ipv6 = |address: &str| addresses::parse_lenient(address).is_some_and(|address| address.is_ipv6());
    if list.len() > 1 && list.iter().all(|address| is_ipv6(address) == is_ipv6(list[0])) {
        let message = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(&path, json!(list), message));
    }
    if is_headless(service) {
        return;
    }
    for (index, (address, family)) in list.iter().zip(&families).enumerate() {
        let expected = match (*family, is_ipv6(address)) {
            ("IPv4", true) => "an IPv4",
            ("IPv6", false) => "an IPv6",
            _ => continue,
        };
        let message = format!("expected {expected} value as indicated by `ipFamilies[{index}]`");
        errors.push(FieldError::invalid(&path.index(index), *address, message));
    }
}

fn family_errors(families: &[&str], errors: &mut FieldErrors) {
    for (index, family) in families.iter().enumerate() {
        let path = FieldPath::new("spec").child("ipFamilies").index(index);
        if !FAMILIES.contains(family) {
            errors.push(FieldError::not_supported(&path, *family, &FAMILIES));
        }
        if families[..index].contains(family) {
            errors.push(FieldError::duplicate(&path, *family));
        }
    }
}

/// The one address is the first of the list.
fn step_errors(one: &str, list: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    match (one, list.first()) {
        ("", Some(_)) => {
            let message = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(path, json!(list), message));
        }
        (_, None) if !one.is_empty() => errors.push(FieldError::required(path, "")),
        (one, Some(first)) if one != *first => {
            errors.push(FieldError::invalid(path, json!(list), "first value must match `clusterIP`"));
        }
        _ => {}
    }
}
