//! From `openAPIV3Schema` to nodes.

use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::{Additional, Bound, Checks, Node, Pattern, Rule, Type};
use crate::{regexes::go_regex, schema::ListType};

/// Levels of a schema; deeper ones are refused. Objects themselves are read to 128 levels.
pub const DEPTH_MAX: usize = 128;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error("the schema is nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
}

impl Node {
    /// Reads a schema that was validated as structural; what is not structural in it is left out.
    pub fn parse(schema: &Value) -> Result<Node, SchemaError> {
        node(schema, DEPTH_MAX)
    }
}

fn node(schema: &Value, depth: usize) -> Result<Node, SchemaError> {
    let depth = depth.checked_sub(1).ok_or(SchemaError::TooDeep)?;
    let Some(map) = schema.as_object() else { return Ok(Node::default()) };
    let flag = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or_default();
    let text = |name: &str| map.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut properties = Vec::new();
    for (name, schema) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        properties.push((name.as_str().into(), node(schema, depth)?));
    }
    properties.sort_by(|(a, _): &(Box<str>, Node), (b, _)| a.cmp(b));
    let items = map.get("items").map(|items| node(items, depth)).transpose()?;
    let additional = match map.get("additionalProperties") {
        None | Some(Value::Null) => Additional::Unstated,
        Some(Value::Bool(allowed)) => Additional::Any(*allowed),
        Some(schema) => Additional::Node(Box::new(node(schema, depth)?)),
    };
    Ok(Node {
        ty: type_named(text("type")),
        nullable: flag("nullable"),
        preserves_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        is_embedded: flag("x-kubernetes-embedded-resource"),
        is_int_or_string: flag("x-kubernetes-int-or-string"),
        is_atomic_map: text("x-kubernetes-map-type") == "atomic",
        list_type: match text("x-kubernetes-list-type") {
            "map" => ListType::Map,
            "set" => ListType::Set,
            _ => ListType::Atomic,
        },
        list_keys: texts(map.get("x-kubernetes-list-map-keys")),
        properties: properties.into(),
        items: items.map(Box::new),
        additional,
        default: map.get("default").filter(|value| !value.is_null()).cloned().map(Box::new),
        checks: checks(map, depth)?,
    })
}

fn type_named(name: &str) -> Type {
    match name {
        "string" => Type::String,
        "number" => Type::Number,
        "integer" => Type::Integer,
        "boolean" => Type::Boolean,
        "array" => Type::Array,
        "object" => Type::Object,
        _ => Type::Any,
    }
}

fn texts(list: Option<&Value>) -> Box<[Box<str>]> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(|item| item.as_str().map(Into::into)).collect()
}

fn checks(map: &Map<String, Value>, depth: usize) -> Result<Option<Box<Checks>>, SchemaError> {
    const NAMES: [&str; 19] = [
        "format",
        "pattern",
        "enum",
        "minimum",
        "maximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "x-kubernetes-validations",
        "uniqueItems",
    ];
    if !NAMES.iter().any(|name| map.contains_key(*name)) {
        return Ok(None);
    }
    let number = |name: &str| map.get(name).and_then(Value::as_f64);
    let count = |name: &str| map.get(name).and_then(Value::as_u64);
    let bound = |name: &str, exclusive: &str| {
        let exclusive = map.get(exclusive).and_then(Value::as_bool).unwrap_or_default();
        number(name).map(|value| Bound { value, exclusive })
    };
    let nodes = |name: &str| -> Result<Box<[Node]>, SchemaError> {
        map.get(name).and_then(Value::as_array).into_iter().flatten().map(|schema| node(schema, depth)).collect()
    };
    let text = |name: &str| map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    Ok(Some(Box::new(Checks {
        format: text("format").map(Into::into),
        pattern: text("pattern").map(|text| Pattern { text: text.into(), compiled: OnceLock::new() }),
        allowed: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default().into(),
        minimum: bound("minimum", "exclusiveMinimum"),
        maximum: bound("maximum", "exclusiveMaximum"),
        multiple_of: number("multipleOf"),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        required: texts(map.get("required")),
        all_of: nodes("allOf")?,
        any_of: nodes("anyOf")?,
        one_of: nodes("oneOf")?,
        not: map.get("not").map(|schema| node(schema, depth)).transpose()?.map(Box::new),
        rules: map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten().map(rule).collect(),
    })))
}

fn rule(value: &Value) -> Rule {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().into();
    Rule {
        rule: text("rule"),
        message: text("message"),
        message_expression: text("messageExpression"),
        reason: text("reason"),
        field_path: text("fieldPath"),
        optional_old_self: value.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or_default(),
    }
}

/// What is wrong with a regular expression; `None` for a sound one.
pub(crate) fn pattern_problem(text: &str) -> Option<String> {
    go_regex(text).err().map(|error| error.to_string())
}
