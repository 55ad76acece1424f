//! LimitRanges (kubernetes pkg/apis/core/validation `ValidateLimitRange`).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Rules, Strategy, resource_names};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    quantity::Quantity,
};

const TYPES: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];
/// Amounts whose thousandths still fit (apimachinery pkg/api/resource: MaxMilliValue).
const MILLI_MAX: i64 = i64::MAX / 1000;

#[derive(Debug)]
pub(super) struct LimitRange;

impl Strategy for LimitRange {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    /// A container's default limit is its maximum, its default request its default limit or its minimum.
    fn default(&self, obj: &mut Value) {
        for item in meta::at_mut(obj, &["spec", "limits"]).and_then(Value::as_array_mut).into_iter().flatten() {
            if meta::str_at(item, &["type"]) != Some("Container") {
                continue;
            }
            for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                let Some(given) = meta::at(item, &[source]).and_then(Value::as_object).cloned() else { continue };
                let target = meta::map_mut(item, &[target]);
                for (name, value) in given {
                    target.entry(name).or_insert(value);
                }
            }
        }
    }

    /// One without a name is called by its UID.
    fn prepare_create(&self, obj: &mut Value) {
        if meta::name(obj).is_empty() {
            let uid = meta::uid(obj).to_owned();
            meta::set(obj, &["metadata", "name"], uid);
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let mut types = BTreeSet::new();
        for (index, limit) in meta::items_at(obj, &["spec", "limits"]).iter().enumerate() {
            let path = FieldPath::new("spec").child("limits").index(index);
            let ty = meta::text(limit, &["type"]);
            type_errors(ty, &path.child("type"), &mut errors);
            if !types.insert(ty) {
                errors.push(FieldError::duplicate(&path.child("type"), ty));
            }
            limit_errors(limit, ty, &path, &mut errors);
        }
        errors
    }
}

fn type_errors(ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let mut messages = names::qualified_name(ty);
    if messages.is_empty() && !ty.contains('/') && !TYPES.contains(&ty) {
        messages.push("must be a standard limit type or fully qualified".to_owned());
    }
    invalid_each(path, ty, messages, errors);
}

fn list<'a>(limit: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    meta::at(limit, &[field]).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn limit_errors(limit: &Value, ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let name_check =
        if matches!(ty, "Pod" | "Container") { resource_names::of_containers } else { resource_names::resource };
    let mut resources = BTreeSet::new();
    for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if ty == "Pod" && field.starts_with("default") {
            if list(limit, field).next().is_some() {
                let message = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(&path.child(field), message));
            }
            continue;
        }
        for (name, _) in list(limit, field) {
            invalid_each(&path.child(field).key(name), name.as_str(), name_check(name), errors);
            resources.insert(name.as_str());
        }
    }
    let has_storage = |field| meta::at(limit, &[field, "storage"]).is_some();
    if ty == "PersistentVolumeClaim" && !has_storage("min") && !has_storage("max") {
        let message = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(FieldError::required(&path.child("limits"), message));
    }
    for name in resources {
        Amounts::of(limit, ty, name).errors(name, path, errors);
    }
}

/// What one limit says of one resource.
struct Amounts {
    min: Option<Quantity>,
    max: Option<Quantity>,
    default: Option<Quantity>,
    request: Option<Quantity>,
    ratio: Option<Quantity>,
}

impl Amounts {
    fn of(limit: &Value, ty: &str, name: &str) -> Self {
        let amount = |field: &str| meta::str_at(limit, &[field, name])?.parse().ok();
        // Refused as a whole for Pods.
        let default = |field| if ty == "Pod" { None } else { amount(field) };
        Self {
            min: amount("min"),
            max: amount("max"),
            default: default("default"),
            request: default("defaultRequest"),
            ratio: amount("maxLimitRequestRatio"),
        }
    }

    fn errors(&self, name: &str, path: &FieldPath, errors: &mut FieldErrors) {
        // Which amount may not be greater than which, at what field, and whether the first is the one shown.
        let order = [
            (self.min, self.max, "min", true, "min value {} is greater than max value {}"),
            (self.min, self.request, "defaultRequest", false, "min value {} is greater than default request value {}"),
            (self.request, self.max, "defaultRequest", true, "default request value {} is greater than max value {}"),
            (
                self.request,
                self.default,
                "defaultRequest",
                true,
                "default request value {} is greater than default limit value {}",
            ),
            (self.min, self.default, "default", true, "min value {} is greater than default value {}"),
            (self.default, self.max, "default", false, "default value {} is greater than max value {}"),
        ];
        for (less, greater, field, shows_less, text) in order {
            if let (Some(less), Some(greater)) = (less, greater)
                && less > greater
            {
                let message = text.replacen("{}", &less.to_string(), 1).replacen("{}", &greater.to_string(), 1);
                let shown = if shows_less { less } else { greater };
                errors.push(FieldError::invalid(&path.child(field).key(name), shown.to_string(), message));
            }
        }
        self.ratio_errors(&path.child("maxLimitRequestRatio").key(name), errors);
        let overcommits = (!name.contains('/') || name.contains("kubernetes.io/")) && !name.starts_with("hugepages-");
        if let (Some(default), Some(request)) = (self.default, self.request)
            && !overcommits
            && default != request
        {
            let message = format!("default value {default} must equal to defaultRequest value {request} in {name}");
            errors.push(FieldError::invalid(&path.child("defaultRequest").key(name), request.to_string(), message));
        }
    }

    fn ratio_errors(&self, path: &FieldPath, errors: &mut FieldErrors) {
        let Some(ratio) = self.ratio else { return };
        if ratio.milli() < 1000 {
            let message = format!("ratio {ratio} is less than 1");
            errors.push(FieldError::invalid(path, ratio.to_string(), message));
        }
        let (Some(min), Some(max)) = (self.min, self.max) else { return };
        let is_small = [ratio, min, max].iter().all(|amount| amount.value() < MILLI_MAX);
        let as_float = |amount: Quantity| if is_small { amount.milli() as f64 / 1000.0 } else { amount.value() as f64 };
        let greatest = as_float(max) / as_float(min);
        if as_float(ratio) > greatest {
            let message = format!("ratio {ratio} is greater than max/min = {greatest:.6}");
            errors.push(FieldError::invalid(path, ratio.to_string(), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(limit: Value) -> String {
        let errors = LimitRange.validate(&json!({"spec": {"limits": [limit]}}));
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let of = |amounts: Value| {
            let mut limit = json!({"type": "Container"});
            for (field, amount) in amounts.as_object().expect("a test's amounts") {
                limit[field] = json!({"cpu": amount});
            }
            faults(limit)
        };
        assert_eq!(
            of(json!({"min": "1", "max": "2", "default": "2", "defaultRequest": "1", "maxLimitRequestRatio": "2"})),
            ""
        );
        let cases = [
            (
                json!({"min": "2", "max": "1"}),
                "min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"min": "2", "defaultRequest": "1"}),
                "defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
            ),
            (
                json!({"max": "1", "defaultRequest": "2"}),
                "defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max value 1",
            ),
            (
                json!({"default": "1", "defaultRequest": "2"}),
                "defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
            ),
            (
                json!({"min": "2", "default": "1"}),
                "default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            ),
            (
                json!({"max": "1", "default": "2"}),
                "default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
            ),
            (
                json!({"maxLimitRequestRatio": "500m"}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
            ),
            (
                json!({"min": "100m", "max": "1", "maxLimitRequestRatio": "11"}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"11\": ratio 11 is greater than max/min = 10.000000",
            ),
        ];
        for (amounts, expected) in cases {
            assert_eq!(of(amounts), format!("spec.limits[0].{expected}"));
        }
    }

    #[test]
    fn types_limit_what_they_have() {
        let cases = [
            (json!({"type": "Pod", "max": {"cpu": "1"}}), ""),
            (json!({"type": "a.b/c", "max": {"storage": "1"}}), ""),
            (json!({"type": "PersistentVolumeClaim", "min": {"storage": "1"}}), ""),
            (
                json!({"type": "Other"}),
                "spec.limits[0].type: Invalid value: \"Other\": must be a standard limit type or fully qualified",
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}}),
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                json!({"type": "Container", "max": {"storage": "1"}}),
                "spec.limits[0].max[storage]: Invalid value: \"storage\": must be a standard resource for containers",
            ),
            (
                json!({"type": "PersistentVolumeClaim", "max": {"cpu": "1"}}),
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither \
                 was provided",
            ),
            (
                json!({"type": "Container", "default": {"a.b/c": "2"}, "defaultRequest": {"a.b/c": "1"}}),
                "spec.limits[0].defaultRequest[a.b/c]: Invalid value: \"1\": default value 2 must equal to defaultRequest \
                 value 1 in a.b/c",
            ),
        ];
        for (limit, expected) in cases {
            assert_eq!(faults(limit), expected);
        }
    }
}
