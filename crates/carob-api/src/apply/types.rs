//! Whether an applied configuration of a custom kind has the types of its schema, in the words of structured-merge-diff
//! (typed/validate.go), which prints values as Go does.

use std::fmt;

use serde_json::Value;

use super::{field_set::printed, typed};
use crate::schema::structural::{Node, Type};

/// Adds what is of another type than the schema says. The object's own metadata is checked elsewhere.
pub(super) fn check(node: &Node, config: &Value, problems: &mut Vec<String>) {
    let Value::Object(fields) = config else { return };
    for (key, value) in fields {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")
            && let Some(below) = node.property(key)
        {
            check_value(below, value, &format!(".{key}"), problems);
        }
    }
}

fn check_value(node: &Node, value: &Value, path: &str, problems: &mut Vec<String>) {
    if value.is_null() || node.is_int_or_string {
        return;
    }
    let mut say = |what: fmt::Arguments<'_>| problems.push(format!("{path}: {what}"));
    match (node.ty, value) {
        (Type::Object, Value::Object(fields)) => {
            for (key, value) in fields {
                let is_meta = node.is_embedded && key == "metadata";
                if let Some(below) = node.key(key).filter(|_| !is_meta) {
                    check_value(below, value, &format!("{path}.{key}"), problems);
                }
            }
        }
        (Type::Array, Value::Array(items)) => {
            let Some(below) = node.items.as_deref() else { return };
            for (index, item) in items.iter().enumerate() {
                let element = typed::custom_item(node, item).map_or_else(|| format!("[{index}]"), |id| printed(&id));
                check_value(below, item, &format!("{path}{element}"), problems);
            }
        }
        (Type::Object, _) => say(format_args!("expected map, got &{{{}}}", Shown(value))),
        (Type::Array, _) => say(format_args!("expected list, got &{{{}}}", Shown(value))),
        (Type::String, Value::String(_)) => {}
        (Type::String, _) => {
            say(format_args!("expected string, got &value.valueUnstructured{{Value:{}}}", Syntax(value)))
        }
        (Type::Boolean, Value::Bool(_)) => {}
        (Type::Boolean, _) => say(format_args!("expected boolean, got &{{{}}}", Shown(value))),
        (Type::Integer | Type::Number, Value::Number(_)) => {}
        (Type::Integer | Type::Number, _) => {
            say(format_args!("expected numeric (int or float), got {}", type_of(value)))
        }
        (Type::Any, _) => {}
    }
}

/// The Go type that JSON of unknown form is decoded into, `%T`.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%v` prints it.
struct Shown<'v>(&'v Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("<nil>"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(number) => number_of(number, f),
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let joint = if index == 0 { "" } else { " " };
                    write!(f, "{joint}{}", Shown(item))?;
                }
                f.write_str("]")
            }
            Value::Object(fields) => {
                f.write_str("map[")?;
                for (index, (key, value)) in sorted(fields).into_iter().enumerate() {
                    let joint = if index == 0 { "" } else { " " };
                    write!(f, "{joint}{key}:{}", Shown(value))?;
                }
                f.write_str("]")
            }
        }
    }
}

/// A value as Go's `%#v` prints it.
struct Syntax<'v>(&'v Value);

impl fmt::Display for Syntax<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ty = type_of(self.0);
        match self.0 {
            Value::Null => f.write_str("interface {}(nil)"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(number) => number_of(number, f),
            Value::String(text) => write!(f, "{text:?}"),
            Value::Array(items) => {
                write!(f, "{ty}{{")?;
                for (index, item) in items.iter().enumerate() {
                    let joint = if index == 0 { "" } else { ", " };
                    write!(f, "{joint}{}", Syntax(item))?;
                }
                f.write_str("}")
            }
            Value::Object(fields) => {
                write!(f, "{ty}{{")?;
                for (index, (key, value)) in sorted(fields).into_iter().enumerate() {
                    let joint = if index == 0 { "" } else { ", " };
                    write!(f, "{joint}{key:?}:{}", Syntax(value))?;
                }
                f.write_str("}")
            }
        }
    }
}

fn sorted(fields: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by_key(|(key, _)| *key);
    fields
}

/// Go's `%v` of a number: the shortest digits, with an exponent below 1e-4 and from 1e21 on.
fn number_of(number: &serde_json::Number, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if number.is_i64() {
        return write!(f, "{number}");
    }
    let value = number.as_f64().unwrap_or_default();
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value != 0.0 && !(-4..21).contains(&exponent) {
        return write!(f, "{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs());
    }
    write!(f, "{value}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_of_another_type_is_told_in_the_words_of_go() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "text": {"type": "string"}, "flag": {"type": "boolean"}, "count": {"type": "integer"},
            "port": {"x-kubernetes-int-or-string": true}, "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "names": {"type": "array", "items": {"type": "string"}},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "number"}}}},
        }}}});
        let node = Node::parse(&schema).unwrap();
        for (spec, expect) in [
            (
                json!({"text": 2_147_483_648_u64}),
                ".spec.text: expected string, got &value.valueUnstructured{Value:2147483648}",
            ),
            (
                json!({"text": {"b": [1], "a": "x"}}),
                ".spec.text: expected string, got &value.valueUnstructured{Value:map[string]interface {}{\"a\":\"x\", \"b\":[]interface {}{1}}}",
            ),
            (json!({"flag": "x"}), ".spec.flag: expected boolean, got &{x}"),
            (json!({"count": "1"}), ".spec.count: expected numeric (int or float), got string"),
            (
                json!({"labels": [[], {"b": null, "a": 1.5}]}),
                ".spec.labels: expected map, got &{[[] map[a:1.5 b:<nil>]]}",
            ),
            (
                json!({"labels": {"a": true}}),
                ".spec.labels.a: expected string, got &value.valueUnstructured{Value:true}",
            ),
            (json!({"names": 1e30}), ".spec.names: expected list, got &{1e+30}"),
            (json!({"names": ["a", 1]}), ".spec.names[1]: expected string, got &value.valueUnstructured{Value:1}"),
            (
                json!({"items": [{"name": "a", "size": true}]}),
                ".spec.items[name=\"a\"].size: expected numeric (int or float), got bool",
            ),
        ] {
            let mut problems = Vec::new();
            check(&node, &json!({"spec": spec, "metadata": 1}), &mut problems);
            assert_eq!(problems, [expect], "{spec}");
        }
        let mut problems = Vec::new();
        check(&node, &json!({"spec": {"text": null, "port": [], "count": 1.5, "items": null}}), &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
    }
}
