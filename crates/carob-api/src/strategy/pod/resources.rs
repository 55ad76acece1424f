//! Requests and limits (kubernetes pkg/apis/core/validation: ValidateContainerResourceRequirements and its siblings).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::strategy::fields::text;
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    pod::{is_pod_level, value},
    quantity::Quantity,
    strategy::resource_names,
};

const HUGE_PAGES: &str = "hugepages-";

type NameCheck = fn(&str, &FieldPath, &mut FieldErrors);

/// The quantity of one resource in a list.
pub(super) fn amount(list: Option<&Value>, name: &str) -> Option<Quantity> {
    list?.get(name)?.as_str()?.parse().ok()
}

fn is_huge(name: &str) -> bool {
    name.starts_with(HUGE_PAGES)
}

/// Whether a node may promise more of it than it has.
pub(super) fn may_overcommit(name: &str) -> bool {
    (!name.contains('/') || name.contains("kubernetes.io/")) && !is_huge(name)
}

/// `resources` of a container.
pub(super) fn validate_of_container(
    resources: &Value,
    claims: &BTreeSet<&str>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    validate(resources, of_containers, claims, path, errors);
}

/// `resources` of a Pod as a whole.
pub(super) fn validate_of_pod(
    resources: &Value,
    spec: &Value,
    claims: &BTreeSet<&str>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    if meta::str_at(spec, &["os", "name"]) == Some("windows") {
        errors.push(FieldError::forbidden(path, "may not be set for a windows pod"));
        return;
    }
    if meta::at(resources, &["claims"]).is_some() {
        let message = "claims may not be set for Resources at pod-level";
        errors.push(FieldError::forbidden(&path.child("claims"), message));
    }
    validate(resources, of_pods, claims, path, errors);
    validate_consistency(resources, spec, path, errors);
}

fn validate(
    resources: &Value,
    check_name: NameCheck,
    claims: &BTreeSet<&str>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let list = |field: &str| meta::at(resources, &[field]).and_then(Value::as_object);
    let (limits, requests) = (list("limits"), list("requests"));
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    validate_list(limits, check_name, &limits_path, errors);
    validate_list(requests, check_name, &requests_path, errors);
    for (name, request) in requests.into_iter().flatten() {
        let Some(limit) = limits.and_then(|limits| limits.get(name)) else {
            if !may_overcommit(name) {
                let message = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&limits_path, message));
            }
            continue;
        };
        let (asked, most) = (value::quantity(request), value::quantity(limit));
        let relation = if asked != most && !may_overcommit(name) {
            "equal"
        } else if asked > most {
            "less than or equal"
        } else {
            continue;
        };
        let message = format!("must be {relation} to {name} limit of {most}");
        errors.push(FieldError::invalid(&requests_path, request.clone(), message));
    }
    let names = || limits.into_iter().chain(requests).flat_map(Map::keys);
    if names().any(|name| is_huge(name)) && !names().any(|name| matches!(name.as_str(), "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
    validate_claims(resources, claims, &path.child("claims"), errors);
}

fn validate_list(list: Option<&Map<String, Value>>, check_name: NameCheck, path: &FieldPath, errors: &mut FieldErrors) {
    for (name, given) in list.into_iter().flatten() {
        let path = path.key(name);
        check_name(name, &path, errors);
        resource_names::amount_errors(name, given, &path, errors);
        if is_huge(name) && !is_divisible(name, value::quantity(given)) {
            let shown = value::quantity(given);
            let message = format!("{shown} is not positive integer multiple of {name}");
            errors.push(FieldError::invalid(&path, given.clone(), message));
        }
    }
}

/// Whether huge pages are asked for in whole pages, whose size the name ends with.
fn is_divisible(name: &str, amount: Quantity) -> bool {
    let size = name.strip_prefix(HUGE_PAGES).and_then(|size| size.parse::<Quantity>().ok());
    let size = size.filter(|size| size.value() > 0 && size.milli() % 1000 == 0);
    size.is_some_and(|size| amount.value() % size.value() == 0)
}

/// What a Pod as a whole may ask for (`validatePodResourceName`).
fn of_pods(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let wrong = resource_names::resource(name);
    if wrong.is_empty() && !is_pod_level(name) {
        errors.push(FieldError::not_supported(path, name, &["cpu", HUGE_PAGES, "memory"]));
    }
    invalid_each(path, name, wrong, errors);
}

fn of_containers(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    invalid_each(path, name, resource_names::of_containers(name), errors);
}

/// A Pod as a whole asks for as much as its containers do, and none of them may take more than it.
fn validate_consistency(resources: &Value, spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let own = |which: &str, name: &str| amount(resources.get(which), name);
    for (which, only_huge) in [("requests", false), ("limits", true)] {
        for (name, sum) in value::of_containers(spec, which) {
            let Some(own) = own(which, &name).filter(|own| (!only_huge || is_huge(&name)) && sum > *own) else {
                continue;
            };
            let message = format!("must be greater than or equal to aggregate container {which} of {sum}");
            errors.push(FieldError::invalid(&path.child(which).key(&name), own.to_string(), message));
        }
    }
    for (index, container) in meta::items_at(spec, &["containers"]).iter().enumerate() {
        for (name, limit) in value::amounts_at(container, &["resources", "limits"]) {
            if let Some(most) = own("limits", &name).filter(|most| limit > *most) {
                let path = path.child("containers").index(index).key(&name).child("limits");
                let message = format!("must be less than or equal to pod limits of {most}");
                errors.push(FieldError::invalid(&path, limit.to_string(), message));
            }
        }
    }
}

/// Claims that a container takes, by name and perhaps by request.
fn validate_claims(resources: &Value, known: &BTreeSet<&str>, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (index, claim) in meta::items_at(resources, &["claims"]).iter().enumerate() {
        let path = path.index(index);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        let whole = |key: &str| key.split_once('/').is_some_and(|(of, _)| of == name);
        let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        if seen.contains(name) {
            errors.push(FieldError::duplicate(&path, name));
        } else {
            if !request.is_empty() {
                invalid_each(&path.child("request"), request, names::dns1123_label(request), errors);
            }
            if seen.contains(&key) || (request.is_empty() && seen.iter().any(|key| whole(key))) {
                errors.push(FieldError::duplicate(&path, key.as_str()));
            }
            seen.insert(key);
        }
        if !known.contains(name) {
            errors.push(FieldError::not_found(&path, name));
        }
    }
}
