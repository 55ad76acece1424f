//! Accessors of an object's metadata. They read what is there; an absent or mistyped field reads as absent, because
//! decoding has refused wrong types before anything gets here.

use serde_json::{Map, Value};

pub fn str_at<'a>(obj: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(obj, path)?.as_str()
}

/// The text at `path`, empty when there is none.
pub fn text<'a>(obj: &'a Value, path: &[&str]) -> &'a str {
    str_at(obj, path).unwrap_or_default()
}

/// The texts of the list at `path`.
pub fn texts<'a>(obj: &'a Value, path: &[&str]) -> Vec<&'a str> {
    items_at(obj, path).iter().filter_map(Value::as_str).collect()
}

pub fn i64_at(obj: &Value, path: &[&str]) -> Option<i64> {
    at(obj, path)?.as_i64()
}

pub fn bool_at(obj: &Value, path: &[&str]) -> Option<bool> {
    at(obj, path)?.as_bool()
}

/// The items of the list at `path`; empty when there is none.
pub fn items_at<'a>(obj: &'a Value, path: &[&str]) -> &'a [Value] {
    at(obj, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The value at `path`, unless it or a parent is absent or null.
pub fn at<'a>(obj: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let value = path.iter().try_fold(obj, |value, key| value.get(key))?;
    (!value.is_null()).then_some(value)
}

pub fn at_mut<'a>(obj: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    let value = path.iter().try_fold(obj, |value, key| value.get_mut(key))?;
    (!value.is_null()).then_some(value)
}

/// The map at `path`, made (with its parents) when absent. What stands in the way and is no map is replaced.
pub fn map_mut<'a>(obj: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut here = into_map(obj);
    for key in path {
        here = into_map(here.entry(*key).or_insert_with(|| Value::Object(Map::new())));
    }
    here
}

fn into_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("was made a map above"),
    }
}

/// Sets the field at `path`, making its parents.
pub fn set(obj: &mut Value, path: &[&str], value: impl Into<Value>) {
    if let Some((last, parents)) = path.split_last() {
        map_mut(obj, parents).insert((*last).to_owned(), value.into());
    }
}

/// Takes the field at `path` out, if it is there.
pub fn remove(obj: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    at_mut(obj, parents)?.as_object_mut()?.remove(*last)
}

pub fn api_version(obj: &Value) -> &str {
    str_at(obj, &["apiVersion"]).unwrap_or_default()
}

pub fn kind(obj: &Value) -> &str {
    str_at(obj, &["kind"]).unwrap_or_default()
}

/// Splits an apiVersion: `apps/v1` is ("apps", "v1") and `v1` is ("", "v1").
pub fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

pub fn name(obj: &Value) -> &str {
    str_at(obj, &["metadata", "name"]).unwrap_or_default()
}

pub fn generate_name(obj: &Value) -> &str {
    str_at(obj, &["metadata", "generateName"]).unwrap_or_default()
}

pub fn namespace(obj: &Value) -> &str {
    str_at(obj, &["metadata", "namespace"]).unwrap_or_default()
}

pub fn uid(obj: &Value) -> &str {
    str_at(obj, &["metadata", "uid"]).unwrap_or_default()
}

pub fn resource_version(obj: &Value) -> &str {
    str_at(obj, &["metadata", "resourceVersion"]).unwrap_or_default()
}

pub fn generation(obj: &Value) -> i64 {
    i64_at(obj, &["metadata", "generation"]).unwrap_or_default()
}

pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    str_at(obj, &["metadata", "labels", key])
}

pub fn labels(obj: &Value) -> Option<&Map<String, Value>> {
    at(obj, &["metadata", "labels"])?.as_object()
}

pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    str_at(obj, &["metadata", "annotations", key])
}

pub fn annotations(obj: &Value) -> Option<&Map<String, Value>> {
    at(obj, &["metadata", "annotations"])?.as_object()
}

pub fn finalizers(obj: &Value) -> impl Iterator<Item = &str> {
    items_at(obj, &["metadata", "finalizers"]).iter().filter_map(Value::as_str)
}

pub fn owner_references(obj: &Value) -> &[Value] {
    items_at(obj, &["metadata", "ownerReferences"])
}

/// The owner reference with `controller: true`.
pub fn controller_of(obj: &Value) -> Option<&Value> {
    owner_references(obj).iter().find(|owner| bool_at(owner, &["controller"]) == Some(true))
}

pub fn deletion_timestamp(obj: &Value) -> Option<&str> {
    str_at(obj, &["metadata", "deletionTimestamp"])
}

pub fn is_being_deleted(obj: &Value) -> bool {
    deletion_timestamp(obj).is_some()
}

/// RFC 3339 with seconds, as metav1.Time prints: `2026-01-02T03:04:05Z`.
pub fn format_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with six digits of a second, as metav1.MicroTime prints.
pub fn format_micro_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
