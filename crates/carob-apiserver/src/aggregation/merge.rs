//! OpenAPI v2 of several servers in one document (kube-openapi pkg/aggregator). Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

const DEFINITIONS: &str = "#/definitions/";
/// Names that are tried for a definition whose own name means something else here.
const RENAMES_MAX: usize = 64;

/// Adds to `own` what `other` says of one group and version: its paths, and the definitions that they need. A definition that has the
/// name of a different one gets another name.
pub(crate) fn merge_v2(own: &mut Value, other: &Value, root: &str) {
    let below = format!("{root}/");
    let of_version = |path: &str| path == root || path.starts_with(&below);
    let Some(paths) = other.get("paths").and_then(Value::as_object) else { return };
    let empty = Map::new();
    let definitions = other.get("definitions").and_then(Value::as_object).unwrap_or(&empty);
    let mut paths: Map<String, Value> =
        paths.iter().filter(|(path, _)| of_version(path)).map(|(path, item)| (path.clone(), item.clone())).collect();
    let mut needed = BTreeSet::new();
    let mut open = Vec::new();
    for item in paths.values() {
        references(item, &mut open);
    }
    while let Some(name) = open.pop() {
        if let Some(definition) = definitions.get(&name)
            && needed.insert(name)
        {
            references(definition, &mut open);
        }
    }
    let names = new_names(own, definitions, &needed);
    let mut added: Map<String, Value> = Map::new();
    for name in &needed {
        let (Some(definition), Some(new)) = (definitions.get(name), names.get(name)) else { continue };
        let mut definition = definition.clone();
        rename(&mut definition, &names);
        added.insert(new.clone(), definition);
    }
    for item in paths.values_mut() {
        rename(item, &names);
    }
    for (field, entries) in [("paths", paths), ("definitions", added)] {
        if let Some(map) = own.get_mut(field).and_then(Value::as_object_mut) {
            for (key, value) in entries {
                map.entry(key).or_insert(value);
            }
        }
    }
}

fn new_names(own: &Value, definitions: &Map<String, Value>, needed: &BTreeSet<String>) -> BTreeMap<String, String> {
    let held = own.get("definitions").and_then(Value::as_object);
    let fits = |name: &str, wanted: &Value| held.and_then(|held| held.get(name)).is_none_or(|other| other == wanted);
    let name_of = |name: &String| {
        let wanted = definitions.get(name)?;
        if fits(name, wanted) {
            return Some(name.clone());
        }
        (2..2 + RENAMES_MAX).map(|number| format!("{name}_v{number}")).find(|new| fits(new, wanted))
    };
    needed.iter().filter_map(|name| Some((name.clone(), name_of(name)?))).collect()
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("$ref", Value::String(reference)) => {
                        found.extend(reference.strip_prefix(DEFINITIONS).map(str::to_owned));
                    }
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match (key.as_str(), &mut *value) {
                    ("$ref", Value::String(reference)) => {
                        let new = reference.strip_prefix(DEFINITIONS).and_then(|name| names.get(name));
                        if let Some(new) = new {
                            *reference = format!("{DEFINITIONS}{new}");
                        }
                    }
                    _ => rename(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_version_needs_is_taken_and_names_stay_apart() {
        let of = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
        let mut own = json!({
            "paths": { "/api/v1": 1 },
            "definitions": { "Meta": { "type": "object" }, "Time": { "type": "string" } },
        });
        let other = json!({
            "paths": {
                "/apis/example.com/v1/flunders": { "get": { "schema": of("Flunder") } },
                "/apis/example.com/v1beta1/flunders": { "get": { "schema": of("Beta") } },
                "/apis": {},
            },
            "definitions": {
                "Flunder": { "properties": { "metadata": of("Meta"), "self": of("Flunder") } },
                "Meta": { "properties": { "time": of("Time") } },
                "Time": { "type": "string" },
                "Beta": {}, "Unused": {},
            },
        });
        merge_v2(&mut own, &other, "/apis/example.com/v1");
        assert_eq!(
            own,
            json!({
                "paths": { "/api/v1": 1, "/apis/example.com/v1/flunders": { "get": { "schema": of("Flunder") } } },
                "definitions": {
                    "Meta": { "type": "object" }, "Time": { "type": "string" },
                    "Flunder": { "properties": { "metadata": of("Meta_v2"), "self": of("Flunder") } },
                    "Meta_v2": { "properties": { "time": of("Time") } },
                },
            })
        );
    }
}
