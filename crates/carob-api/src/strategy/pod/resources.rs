//! Resource lists: sums, and their validation (kubernetes pkg/apis/core/validation).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
    pod::is_extended,
    quantity::Quantity,
};

pub(in crate::strategy) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// The quantity of one resource in a list.
pub(super) fn amount(list: Option<&Value>, name: &str) -> Option<Quantity> {
    list?.get(name)?.as_str()?.parse().ok()
}

/// Requests of all containers, by resource.
pub(super) fn sum_of_requests(containers: Option<&Vec<Value>>) -> BTreeMap<String, Quantity> {
    let mut sums: BTreeMap<String, Quantity> = BTreeMap::new();
    for container in containers.into_iter().flatten() {
        let requests = meta::at(container, &["resources", "requests"]).and_then(Value::as_object);
        for (name, value) in requests.into_iter().flatten() {
            if let Some(quantity) = value.as_str().and_then(|text| text.parse::<Quantity>().ok()) {
                let sum = sums.get(name).map_or(quantity, |sum| sum.saturating_add(quantity));
                sums.insert(name.clone(), sum);
            }
        }
    }
    sums
}

fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Validates `resources` of a container or a Pod.
pub(super) fn validate(resources: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let list = |field: &str| meta::at(resources, &[field]).and_then(Value::as_object);
    let (limits, requests) = (list("limits"), list("requests"));
    validate_list(limits, &path.child("limits"), errors);
    validate_list(requests, &path.child("requests"), errors);
    let limits_path = path.child("limits");
    for (name, limit) in limits.into_iter().flatten() {
        let request = requests.and_then(|r| r.get(name));
        if is_extended(name) && request.is_some_and(|request| request != limit) {
            let message = format!("must be equal to {name} request");
            errors.push(FieldError::invalid(&limits_path.key(name), limit.clone(), message));
        }
    }
    let path = path.child("requests");
    for (name, request) in requests.into_iter().flatten() {
        let limit = limits.and_then(|l| l.get(name));
        match limit {
            Some(limit) => {
                let (want, have) = (parse(request), parse(limit));
                if !is_extended(name) && want > have {
                    let limit = limit.as_str().unwrap_or_default();
                    let message = format!("must be less than or equal to {name} limit of {limit}");
                    errors.push(FieldError::invalid(&path, request.clone(), message));
                }
            }
            None if is_extended(name) => {
                let message = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&limits_path, message));
            }
            None => {}
        }
    }
}

fn parse(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

fn validate_list(list: Option<&Map<String, Value>>, path: &FieldPath, errors: &mut FieldErrors) {
    for (name, value) in list.into_iter().flatten() {
        let item = path.key(name);
        for message in names::qualified_name(name) {
            errors.push(FieldError::invalid(&item, name.as_str(), message));
        }
        if !name.contains('/') && !is_standard(name) {
            let message = if matches!(name.as_str(), "pods" | "storage" | "services") {
                "must be a standard resource for containers"
            } else {
                "must be a standard resource type or fully qualified"
            };
            errors.push(FieldError::invalid(&item, name.as_str(), message));
        }
        match parse(value) {
            Some(quantity) if quantity.is_negative() => {
                errors.push(FieldError::invalid(&item, value.clone(), NOT_NEGATIVE));
            }
            Some(quantity) if is_extended(name) && quantity.milli() % 1000 != 0 => {
                errors.push(FieldError::invalid(&item, value.clone(), "must be an integer"));
            }
            _ => {}
        }
    }
}
