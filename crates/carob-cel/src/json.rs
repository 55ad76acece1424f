//! Between JSON and values: views of what is read (apiserver pkg/cel/common/valuesunstructured.go) and JSON of what is made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

use crate::decl::DeclType;
use crate::error::EvalError;
use crate::functions::time;
use crate::value::{List, Map, Text, Value};

/// How deep a value that becomes JSON may be: what a parser of JSON reads.
const DEPTH_MAX: usize = 128;

/// The value that a piece of JSON is: scalars at once, lists and maps as views.
///
/// ```
/// use carob_cel::{DeclType, Value, view};
/// let json = serde_json::json!("2026-01-02T03:04:05Z");
/// assert!(matches!(view(&json, Some(&DeclType::Timestamp { date_only: false })), Ok(Value::Timestamp(_))));
/// ```
pub fn view<'a>(json: &'a Json, decl: Option<&'a DeclType>) -> Result<Value<'a>, EvalError> {
    Ok(match (json, decl) {
        (Json::Null, _) => Value::Null,
        (Json::Bool(value), None | Some(DeclType::Dyn | DeclType::Bool)) => Value::Bool(*value),
        (Json::String(text), Some(decl)) => return string(text, decl),
        (Json::String(text), None) => Value::String(Text::Borrowed(text)),
        (Json::Number(number), None | Some(DeclType::Dyn)) => number_of(number),
        (Json::Number(number), Some(DeclType::Double)) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        (Json::Number(number), Some(DeclType::Int | DeclType::IntOrString { .. })) => match number.as_i64() {
            Some(value) => Value::Int(value),
            None => return Err(invalid("int", json)),
        },
        (Json::Number(number), Some(DeclType::Uint)) => match number.as_u64() {
            Some(value) => Value::Uint(value),
            None => return Err(invalid("uint", json)),
        },
        (Json::Array(items), None | Some(DeclType::Dyn)) => Value::List(List::Json { items, decl: None }),
        (Json::Array(items), Some(DeclType::List { .. })) => Value::List(List::Json { items, decl }),
        (Json::Object(map), None | Some(DeclType::Dyn)) => Value::Map(Map::Json { map, decl: None }),
        (Json::Object(map), Some(DeclType::Object(_) | DeclType::Map { .. })) => Value::Map(Map::Json { map, decl }),
        (_, Some(decl)) => return Err(invalid(&crate::types::Type::of(decl).to_string(), json)),
    })
}

fn invalid(expected: &str, json: &Json) -> EvalError {
    let got = match json {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    };
    EvalError::new(format!("invalid data, expected {expected}, got {got}"))
}

/// A number without a schema is what Go's decoder makes of it: an int64 where it fits, else a float64.
fn number_of(number: &serde_json::Number) -> Value<'static> {
    match number.as_i64() {
        Some(value) => Value::Int(value),
        None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
    }
}

fn string<'a>(text: &'a str, decl: &DeclType) -> Result<Value<'a>, EvalError> {
    Ok(match decl {
        DeclType::Dyn | DeclType::String { .. } | DeclType::IntOrString { .. } => Value::String(Text::Borrowed(text)),
        DeclType::Timestamp { date_only: false } => match time::date_time(text) {
            Some(time) => Value::Timestamp(time),
            None => return Err(EvalError::new(format!("Invalid date-time formatted string {text}"))),
        },
        DeclType::Timestamp { date_only: true } => match time::date(text) {
            Some(time) => Value::Timestamp(time),
            None => return Err(EvalError::new(format!("Invalid date formatted string {text}"))),
        },
        DeclType::Duration => match time::worded_duration(text) {
            Some(nanos) => Value::Duration(nanos),
            None => return Err(EvalError::new(format!("Invalid duration {text}"))),
        },
        DeclType::Bytes { .. } => match STANDARD.decode(text) {
            Ok(bytes) => Value::Bytes(bytes.into()),
            Err(error) => return Err(EvalError::new(format!("Invalid byte formatted string {text}: {error}"))),
        },
        other => return Err(invalid(&crate::types::Type::of(other).to_string(), &Json::String(String::new()))),
    })
}

/// What a value is as JSON: objects of mutations, lists, maps with text keys, scalars. An optional that is none is left out where it
/// is a field.
pub fn to_json(value: &Value<'_>) -> Result<Json, EvalError> {
    build(value, 0)
}

fn build(value: &Value<'_>, depth: usize) -> Result<Json, EvalError> {
    if depth > DEPTH_MAX {
        return Err(EvalError::TooDeep);
    }
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        Value::Uint(value) => Json::from(*value),
        Value::Double(value) => match serde_json::Number::from_f64(*value) {
            Some(number) => Json::Number(number),
            None => return Err(EvalError::new(format!("unsupported double value: {value}"))),
        },
        Value::String(text) => Json::String(text.to_string()),
        Value::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
        Value::Timestamp(value) => Json::String(value.to_string()),
        Value::Duration(nanos) => Json::String(time::duration_text(*nanos)),
        Value::List(List::Json { items, .. }) => Json::Array((*items).clone()),
        Value::List(List::Values(values)) => {
            let items: Result<Vec<Json>, EvalError> = values.iter().map(|value| build(value, depth + 1)).collect();
            Json::Array(items?)
        }
        Value::Map(Map::Json { map, .. }) => Json::Object((*map).clone()),
        Value::Map(Map::Entries(entries)) => {
            let mut map = serde_json::Map::new();
            for (key, value) in entries.0.iter() {
                let Value::String(name) = key.to_value() else {
                    return Err(EvalError::new(format!("unsupported map key type: {}", key.to_value().type_name())));
                };
                map.insert(name.to_string(), build(value, depth + 1)?);
            }
            Json::Object(map)
        }
        Value::Message(message) => {
            let mut map = serde_json::Map::new();
            for (name, value) in &message.fields {
                let name = crate::escape::unescape(name)
                    .ok_or_else(|| EvalError::new(format!("invalid field name: {name}")))?;
                map.insert(name.into_owned(), build(value, depth + 1)?);
            }
            Json::Object(map)
        }
        Value::Optional(Some(inner)) => build(inner, depth + 1)?,
        Value::Quantity(quantity) => Json::String(quantity.to_string()),
        other => return Err(EvalError::new(format!("unsupported type for JSON: {}", other.type_name()))),
    })
}
