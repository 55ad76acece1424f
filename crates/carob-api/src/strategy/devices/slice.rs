//! ResourceSlices: the devices of a pool.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{LIST_MAX, duplicate_errors, each, effect_errors, qualified_errors};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    quantity::Quantity,
    strategy::{Part, Rules, Strategy, csi::driver_name_errors, workload::immutable},
};

/// Devices of a slice, and of one whose devices have taints or consume counters.
const DEVICES_MAX: usize = 128;
const ELABORATE_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
/// Limits of one device.
const ATTRIBUTES_MAX: usize = 32;
const TAINTS_MAX: usize = 16;
const CONSUMPTIONS_MAX: usize = 2;
const CONDITIONS_MAX: usize = 4;
/// Values that a capacity's policy lists.
const VALUES_MAX: usize = 10;
/// Longest text of an attribute, bytes.
const VALUE_LEN_MAX: usize = 64;

#[derive(Debug)]
pub(in crate::strategy) struct ResourceSlice;

impl Strategy for ResourceSlice {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        errors(obj, None)
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = errors(new, Some(old));
        for field in [&["spec", "pool", "name"][..], &["spec", "driver"], &["spec", "nodeName"]] {
            immutable(new, old, field, &mut errors);
        }
        errors
    }
}

fn errors(slice: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let (spec, path) = (&slice["spec"], FieldPath::new("spec"));
    driver_name_errors(meta::text(spec, &["driver"]), &path.child("driver"), &mut errors);
    pool_errors(&spec["pool"], &path.child("pool"), &mut errors);
    let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let set = place_errors(spec, &places, "must be either unset or set to a non-empty string", &path, &mut errors);
    let terms = meta::at(spec, &["nodeSelector"]).map(|selector| meta::items_at(selector, &["nodeSelectorTerms"]));
    if let Some(terms) = terms.filter(|terms| terms.len() != 1) {
        let path = path.child("nodeSelector").child("nodeSelectorTerms");
        errors.push(FieldError::invalid(&path, terms.to_vec(), "must have exactly one node selector term"));
    }
    let rule = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => errors.push(FieldError::required(&path, rule)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", set.join(", "));
            errors.push(FieldError::invalid(&path, shown, format!("{rule}, but multiple fields are set")));
        }
    }
    if meta::at(spec, &["sharedCounters"]).is_some() && meta::at(spec, &["devices"]).is_some() {
        errors.push(FieldError::invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let devices = meta::items_at(spec, &["devices"]);
    let elaborate = devices
        .iter()
        .any(|device| ["taints", "consumesCounters"].iter().any(|list| !meta::items_at(device, &[list]).is_empty()));
    let max = if elaborate { ELABORATE_DEVICES_MAX } else { DEVICES_MAX };
    let per_device = meta::bool_at(spec, &["perDeviceNodeSelection"]) == Some(true);
    let before = old.map(|old| meta::items_at(old, &["spec", "devices"])).unwrap_or_default();
    each(spec, "devices", max, &path, &mut errors, |device, path, errors| {
        let before = before.iter().find(|before| before["name"] == device["name"]);
        device_errors(device, before, per_device, path, errors);
    });
    duplicate_errors(spec, "devices", "name", max, &path, &mut errors);
    each(spec, "sharedCounters", COUNTER_SETS_MAX, &path, &mut errors, |set, path, errors| {
        counter_errors(set, "name", path, errors);
    });
    duplicate_errors(spec, "sharedCounters", "name", COUNTER_SETS_MAX, &path, &mut errors);
    errors
}

fn pool_errors(pool: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (name, name_path) = (meta::text(pool, &["name"]), path.child("name"));
    if name.is_empty() {
        errors.push(FieldError::required(&name_path, ""));
    } else {
        if name.len() > names::DNS1123_SUBDOMAIN_LEN_MAX {
            errors.push(FieldError::too_long(&name_path, names::DNS1123_SUBDOMAIN_LEN_MAX));
        }
        for part in name.split('/') {
            invalid_each(&name_path, part, names::dns1123_subdomain(part), errors);
        }
    }
    let number = |field| meta::i64_at(pool, &[field]).unwrap_or_default();
    if number("resourceSliceCount") <= 0 {
        let path = path.child("resourceSliceCount");
        errors.push(FieldError::invalid(&path, number("resourceSliceCount"), "must be greater than zero"));
    }
    if number("generation") < 0 {
        let path = path.child("generation");
        errors.push(FieldError::invalid(&path, number("generation"), "must be greater than or equal to zero"));
    }
}

/// Errors of each way to say where devices are, and the ways that are used.
fn place_errors(
    holder: &Value,
    places: &[&str],
    empty_name: &str,
    path: &FieldPath,
    errors: &mut FieldErrors,
) -> Vec<String> {
    let mut set = Vec::new();
    for place in places {
        match meta::at(holder, &[place]) {
            None => continue,
            Some(Value::Bool(false)) => {
                let message = "must be either unset or set to true";
                errors.push(FieldError::invalid(&path.child(place), false, message));
            }
            Some(Value::String(name)) if name.is_empty() => {
                errors.push(FieldError::invalid(&path.child(place), "", empty_name));
            }
            Some(value) => {
                if let Some(name) = value.as_str() {
                    invalid_each(&path.child(place), name, names::dns1123_subdomain(name), errors);
                }
                set.push(format!("`{place}`"));
            }
        }
    }
    set
}

fn entries<'a>(holder: &'a Value, field: &str) -> Vec<(&'a String, &'a Value)> {
    meta::at(holder, &[field]).and_then(Value::as_object).into_iter().flat_map(Map::iter).collect()
}

/// A named set of counters; `name` is the field with the name.
fn counter_errors(set: &Value, name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let (text, name_path) = (meta::text(set, &[name]), path.child(name));
    if text.is_empty() {
        errors.push(FieldError::required(&name_path, ""));
    } else {
        invalid_each(&name_path, text, names::dns1123_label(text), errors);
    }
    let (counters, path) = (entries(set, "counters"), path.child("counters"));
    if counters.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else if counters.len() > COUNTERS_MAX {
        errors.push(FieldError::too_many(&path, Some(counters.len()), COUNTERS_MAX));
        return;
    }
    for (key, _) in counters {
        invalid_each(&path, key.as_str(), names::dns1123_label(key), errors);
    }
}

fn device_errors(device: &Value, before: Option<&Value>, per_device: bool, path: &FieldPath, errors: &mut FieldErrors) {
    let name = meta::text(device, &["name"]);
    invalid_each(&path.child("name"), name, names::dns1123_label(name), errors);
    let (attributes, capacity) = (entries(device, "attributes"), entries(device, "capacity"));
    let count = attributes.len() + capacity.len();
    if count > ATTRIBUTES_MAX {
        let message = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.push(FieldError::invalid(path, count, message));
    }
    for (key, attribute) in attributes {
        let path = path.child("attributes");
        qualified_errors(key, &path, errors);
        attribute_errors(attribute, &path.key(key), errors);
    }
    let is_shared = meta::bool_at(device, &["allowMultipleAllocations"]) == Some(true);
    for (key, amount) in capacity {
        let path = path.child("capacity");
        qualified_errors(key, &path, errors);
        if let Some(policy) = meta::at(amount, &["requestPolicy"]) {
            let path = path.key(key).child("requestPolicy");
            if is_shared {
                policy_errors(quantity(amount, "value"), policy, &path, errors);
            } else {
                errors.push(FieldError::forbidden(&path, "allowMultipleAllocations must be true"));
            }
        }
    }
    if before.is_none_or(|before| before["taints"] != device["taints"]) {
        each(device, "taints", TAINTS_MAX, path, errors, taint_errors);
    }
    each(device, "consumesCounters", CONSUMPTIONS_MAX, path, errors, |set, path, errors| {
        counter_errors(set, "counterSet", path, errors);
    });
    duplicate_errors(device, "consumesCounters", "counterSet", CONSUMPTIONS_MAX, path, errors);
    device_place_errors(device, per_device, path, errors);
    condition_errors(device, path, errors);
}

fn taint_errors(taint: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let text = |field| meta::text(taint, &[field]);
    invalid_each(&path.child("key"), text("key"), names::qualified_name(text("key")), errors);
    invalid_each(&path.child("value"), text("value"), names::label_value(text("value")), errors);
    if text("effect").is_empty() {
        errors.push(FieldError::required(&path.child("effect"), ""));
    }
    effect_errors(text("effect"), path, errors);
}

fn device_place_errors(device: &Value, per_device: bool, path: &FieldPath, errors: &mut FieldErrors) {
    let places = ["nodeName", "nodeSelector", "allNodes"];
    if !per_device {
        if places.iter().any(|place| meta::at(device, &[place]).is_some()) {
            let message = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set \
                           to true in the ResourceSlice spec";
            errors.push(FieldError::invalid(path, Value::Null, message));
        }
        return;
    }
    let set = place_errors(device, &places, "must not be empty", path, errors);
    let message = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is \
                   set to true in the ResourceSlice spec";
    match set.len() {
        0 => errors.push(FieldError::required(path, message)),
        1 => {}
        _ => errors.push(FieldError::invalid(path, format!("{{{}}}", set.join(", ")), message)),
    }
}

fn attribute_errors(attribute: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(text) = meta::str_at(attribute, &["string"]) {
        length_errors(text, &path.child("string"), errors);
    }
    if let Some(version) = meta::str_at(attribute, &["version"]) {
        let path = path.child("version");
        if !is_version(version) {
            let message = "must be a string compatible with semver.org spec 2.0.0";
            errors.push(FieldError::invalid(&path, version, message));
        }
        length_errors(version, &path, errors);
    }
    let set = ["bool", "int", "string", "version"].iter().filter(|field| meta::at(attribute, &[field]).is_some());
    match set.count() {
        0 => errors.push(FieldError::invalid(path, "", "exactly one value must be specified")),
        1 => {}
        _ => errors.push(FieldError::invalid(path, attribute.clone(), "exactly one value must be specified")),
    }
}

fn length_errors(text: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if text.len() > VALUE_LEN_MAX {
        errors.push(FieldError::too_long(path, VALUE_LEN_MAX));
    }
}

/// A version as semver.org has it.
fn is_version(text: &str) -> bool {
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (numbers, pre) = text.split_once('-').map_or((text, None), |(numbers, pre)| (numbers, Some(pre)));
    let is_number = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let is_pre = |part: &str| is_word(part) && (is_number(part) || part.bytes().any(|b| !b.is_ascii_digit()));
    let numbers: Vec<&str> = numbers.split('.').collect();
    numbers.len() == 3
        && numbers.into_iter().all(is_number)
        && pre.is_none_or(|pre| pre.split('.').all(is_pre))
        && build.is_none_or(|build| build.split('.').all(is_word))
}

fn quantity(holder: &Value, field: &str) -> Option<Quantity> {
    meta::str_at(holder, &[field])?.parse().ok()
}

/// How much of a shared capacity a request may ask for.
fn policy_errors(capacity: Option<Quantity>, policy: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let values: Vec<Quantity> =
        meta::texts(policy, &["validValues"]).into_iter().filter_map(|text| text.parse().ok()).collect();
    let range = meta::at(policy, &["validRange"]);
    let (kind, default) = match (values.is_empty(), range) {
        (false, Some(_)) => {
            let message = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the \
                           same time";
            errors.push(FieldError::forbidden(path, message));
            return;
        }
        (true, None) => return,
        (false, None) => ("validValues", quantity(policy, "default")),
        (true, Some(_)) => ("validRange", quantity(policy, "default")),
    };
    let (Some(default), Some(capacity)) = (default, capacity) else {
        errors.push(FieldError::required(&path.child("default"), format!("required when {kind} is defined")));
        return;
    };
    match range {
        None => value_errors(&values, default, capacity, &path.child(kind), errors),
        Some(range) => range_errors(range, default, capacity, &path.child(kind), errors),
    }
}

fn value_errors(
    values: &[Quantity],
    default: Quantity,
    capacity: Quantity,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    for (index, pair) in values.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        let message = "values must be sorted in ascending order";
        errors.push(FieldError::invalid(&path.index(index + 1), pair[1].to_string(), message));
    }
    if values.len() > VALUES_MAX {
        errors.push(FieldError::too_many(path, Some(values.len()), VALUES_MAX));
    } else {
        let mut known = BTreeSet::new();
        for (index, value) in values.iter().enumerate() {
            if *value > capacity {
                let message = format!("option is larger than capacity value: {capacity}");
                errors.push(FieldError::invalid(&path.index(index), value.to_string(), message));
            }
            if !known.insert(value.value()) {
                errors.push(FieldError::duplicate(&path.index(index), value.value().to_string()));
            }
        }
    }
    if values.len() > VALUES_MAX || !values.contains(&default) {
        let message = "default value is not valid according to the requestPolicy";
        errors.push(FieldError::invalid(path, default.to_string(), message));
    }
}

fn range_errors(range: &Value, default: Quantity, capacity: Quantity, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(min) = quantity(range, "min") else {
        errors.push(FieldError::required(&path.child("min"), "required when validRange is defined"));
        return;
    };
    let mut refuse = |field: &str, shown: Quantity, message: String| {
        errors.push(FieldError::invalid(&path.child(field), shown.to_string(), message));
    };
    if min > capacity {
        refuse("min", min, format!("min is larger than capacity value: {capacity}"));
    }
    if default < min {
        refuse("min", default, format!("default is less than min: {min}"));
    }
    let max = quantity(range, "max");
    if let Some(max) = max {
        if min > max {
            refuse("max", min, format!("min is larger than max: {max}"));
        }
        if max > capacity {
            refuse("max", max, format!("max is larger than capacity value: {capacity}"));
        }
        if default > max {
            refuse("max", default, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = quantity(range, "step") else { return };
    let next = min.saturating_add(step);
    if next > capacity {
        refuse("step", step, format!("one step {next} is larger than capacity value: {capacity}"));
    }
    for value in [Some(default), max].into_iter().flatten() {
        let over = value.value().saturating_sub(min.value()).checked_rem(step.value());
        if over != Some(0) {
            refuse("step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
}

/// Conditions that a node waits for, and those that say that it need not wait.
fn condition_errors(device: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let lists = ["bindingConditions", "bindingFailureConditions"];
    let [conditions, failures] = lists.map(|list| meta::texts(device, &[list]));
    for (list, items) in lists.into_iter().zip([&conditions, &failures]) {
        each(device, list, CONDITIONS_MAX, path, errors, |name, path, errors| {
            let name = name.as_str().unwrap_or_default();
            invalid_each(path, name, names::qualified_name(name), errors);
        });
        let path = path.child(list);
        for (index, name) in items.iter().enumerate().take(LIST_MAX) {
            if items[..index].contains(name) {
                errors.push(FieldError::duplicate(&path.index(index), *name));
            }
            if list == lists[1] && conditions.contains(name) {
                let message = "bindingFailureConditions must not overlap with bindingConditions";
                errors.push(FieldError::invalid(&path.index(index), *name, message));
            }
        }
    }
    for (missing, given, items) in
        [(lists[0], lists[1], (&conditions, &failures)), (lists[1], lists[0], (&failures, &conditions))]
    {
        if items.0.is_empty() && !items.1.is_empty() {
            let message = format!("{missing} are required to use {given}");
            errors.push(FieldError::invalid(&path.child(missing), Value::Null, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(change: impl Fn(&mut Value)) -> String {
        let mut slice = json!({"spec": {"driver": "a.b", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "nodeName": "n", "devices": [{"name": "d"}]}});
        change(&mut slice["spec"]);
        ResourceSlice.validate_create(&slice).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn slices() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 8] = [
            (|_| {}, ""),
            (
                |s| s["allNodes"] = json!(true),
                "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, \
                 `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
            ),
            (|s| s["pool"]["name"] = json!(""), "spec.pool.name: Required value"),
            (
                |s| s["pool"]["resourceSliceCount"] = json!(0),
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
            ),
            (
                |s| s["devices"][0]["attributes"] = json!({"x": {}}),
                "spec.devices[0].attributes[x]: Invalid value: \"\": exactly one value must be specified",
            ),
            (
                |s| s["devices"][0]["attributes"] = json!({"x": {"version": "1.2"}}),
                "spec.devices[0].attributes[x].version: Invalid value: \"1.2\": must be a string compatible with \
                 semver.org spec 2.0.0",
            ),
            (|s| s["devices"][0]["taints"] = json!([{"key": "k"}]), "spec.devices[0].taints[0].effect: Required value"),
            (|s| s["devices"] = json!([{"name": "d"}, {"name": "d"}]), "spec.devices[1]: Duplicate value: \"d\""),
        ];
        for (change, expected) in cases {
            assert_eq!(of(change), expected);
        }
        assert!(["1.2.3", "0.0.0-a.1+b.01"].into_iter().all(is_version));
        assert!(!["01.2.3", "1.2", "1.2.3-", "1.2.3-01"].into_iter().any(is_version));
    }

    #[test]
    fn policies_fit_their_capacity() {
        let of_policy = |policy: Value| {
            of(|spec| {
                let capacity = json!({"x": {"value": "10", "requestPolicy": policy}});
                spec["devices"][0] = json!({"name": "d", "allowMultipleAllocations": true, "capacity": capacity});
            })
        };
        assert_eq!(of_policy(json!({"default": "2", "validValues": ["2", "4"]})), "");
        assert_eq!(of_policy(json!({"default": "2", "validRange": {"min": "2", "max": "10", "step": "2"}})), "");
        let path = "spec.devices[0].capacity[x].requestPolicy";
        assert_eq!(
            of_policy(json!({"default": "3", "validValues": ["4", "2"]})),
            format!(
                "{path}.validValues[1]: Invalid value: \"2\": values must be sorted in ascending order; \
                 {path}.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy"
            )
        );
        assert_eq!(
            of_policy(json!({"default": "3", "validRange": {"min": "2", "step": "2"}})),
            format!(
                "{path}.validRange.step: Invalid value: \"3\": value is not a multiple of a given step (2) from (2)"
            )
        );
        assert_eq!(
            of_policy(json!({"validRange": {"min": "2"}})),
            format!("{path}.default: Required value: required when validRange is defined")
        );
    }
}
