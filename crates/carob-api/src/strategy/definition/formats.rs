//! Formats that a definition's schemas name and nothing checks (apiextensions-apiserver pkg/registry/customresourcedefinition).

use serde_json::Value;

use crate::{meta, schema::structural::is_known_format};

/// What a schema holds as a schema, a list of them or a map of them.
const SINGLE: [&str; 3] = ["not", "additionalProperties", "additionalItems"];
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const MAPS: [&str; 4] = ["properties", "patternProperties", "definitions", "dependencies"];

/// The formats of a definition's schemas that are not known for their types, each once.
pub(super) fn unrecognized(definition: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for version in meta::items_at(definition, &["spec", "versions"]) {
        if let Some(schema) = meta::at(version, &["schema", "openAPIV3Schema"]) {
            collect(schema, &mut found);
        }
    }
    found
}

fn collect(schema: &Value, found: &mut Vec<String>) {
    let format = meta::text(schema, &["format"]);
    if !format.is_empty() && !is_known(meta::text(schema, &["type"]), format) && !found.iter().any(|f| f == format) {
        found.push(format.to_owned());
    }
    for below in SINGLE.into_iter().filter_map(|name| schema.get(name)) {
        collect(below, found);
    }
    for below in LISTS.into_iter().flat_map(|name| meta::items_at(schema, &[name])) {
        collect(below, found);
    }
    for (_, below) in MAPS.into_iter().filter_map(|name| schema.get(name)?.as_object()).flatten() {
        collect(below, found);
    }
    match schema.get("items") {
        Some(Value::Array(items)) => {
            for below in items {
                collect(below, found);
            }
        }
        Some(below) => collect(below, found),
        None => {}
    }
}

fn is_known(ty: &str, format: &str) -> bool {
    match ty {
        "" | "string" => is_known_format(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}
