//! Cells that several kinds share.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::human_duration;
use crate::{meta, selector::LabelSelector};

pub(super) const NONE: &str = "<none>";
pub(super) const UNKNOWN: &str = "<unknown>";
pub(super) const UNSET: &str = "<unset>";

/// The value at a path with dots.
pub(super) fn at<'a>(obj: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(obj, |value, key| value.get(key))
}

pub(super) fn text<'a>(obj: &'a Value, path: &str) -> &'a str {
    at(obj, path).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(obj: &Value, path: &str) -> i64 {
    at(obj, path).and_then(Value::as_i64).unwrap_or_default()
}

pub(super) fn items<'a>(obj: &'a Value, path: &str) -> &'a [Value] {
    at(obj, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn or_none(text: String) -> Value {
    Value::String(if text.is_empty() { NONE.to_owned() } else { text })
}

/// Time since an RFC 3339 timestamp.
pub(super) fn since(time: Option<&str>, now: Timestamp) -> String {
    match time.and_then(|time| time.parse::<Timestamp>().ok()) {
        Some(time) => human_duration(now.as_second() - time.as_second()),
        None => UNKNOWN.to_owned(),
    }
}

pub(super) fn age(obj: &Value, now: Timestamp) -> Value {
    since(meta::str_at(obj, &["metadata", "creationTimestamp"]), now).into()
}

/// `a=b,c=d`.
pub(super) fn join_labels(labels: Option<&Map<String, Value>>) -> String {
    let pairs =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    pairs.collect::<Vec<_>>().join(",")
}

pub(super) fn selector(obj: &Value, path: &str) -> Value {
    let parsed = at(obj, path).map(LabelSelector::from_json);
    or_none(parsed.and_then(Result::ok).map(|s| s.to_string()).unwrap_or_default())
}

/// A column of one field of each container of a Pod template.
pub(super) fn of_containers(obj: &Value, pod_spec: &str, field: &str) -> Value {
    let containers = items(obj, &format!("{pod_spec}.containers"));
    let names: Vec<&str> = containers.iter().map(|c| text(c, field)).collect();
    names.join(",").into()
}

/// What a list of condition-like entries says about `ty`.
pub(super) fn condition<'a>(obj: &'a Value, ty: &str) -> Option<&'a Value> {
    items(obj, "status.conditions").iter().find(|condition| text(condition, "type") == ty)
}

/// What a ComponentStatus says of its component's health.
fn component_condition(component: &Value) -> Option<&Value> {
    items(component, "conditions").iter().find(|condition| text(condition, "type") == "Healthy")
}

pub(super) fn component_health(component: &Value, _: Timestamp) -> Value {
    let health = component_condition(component).map(|condition| text(condition, "status") == "True");
    health.map_or("Unknown", |healthy| if healthy { "Healthy" } else { "Unhealthy" }).into()
}

pub(super) fn component_message(component: &Value, _: Timestamp) -> Value {
    component_condition(component).map_or("", |condition| text(condition, "message")).into()
}

pub(super) fn component_error(component: &Value, _: Timestamp) -> Value {
    component_condition(component).map_or("", |condition| text(condition, "error")).into()
}

/// The first few of `parts`, and how many more there are.
pub(super) fn first_of(parts: &[String], max: usize) -> String {
    let shown = parts[..parts.len().min(max)].join(",");
    if parts.len() > max { format!("{shown} + {} more...", parts.len() - max) } else { shown }
}
