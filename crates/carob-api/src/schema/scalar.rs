//! Scalars: which JSON they accept, and their canonical form.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Number, Value};

use super::Scalar;
use crate::{meta, quantity::Quantity};

/// A scalar as the parser hands it over.
pub(super) enum Given<'a> {
    Bool(bool),
    Number(Number),
    String(Cow<'a, str>),
}

/// Why a scalar is not accepted.
pub(super) enum Refusal {
    /// Wrong JSON type; what was given, in encoding/json's words.
    Type(String),
    /// Right type, wrong form; the whole error.
    Form(String),
}

impl Given<'_> {
    /// encoding/json's word for the value.
    pub(super) fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Given::Bool(_) => "bool",
            Given::Number(_) => "number",
            Given::String(_) => "string",
        })
    }

    pub(super) fn into_value(self) -> Value {
        match self {
            Given::Bool(b) => Value::Bool(b),
            Given::Number(n) => Value::Number(n),
            Given::String(s) => Value::String(s.into_owned()),
        }
    }
}

/// Whether any JSON is accepted.
pub(super) fn is_open(scalar: Scalar) -> bool {
    match scalar {
        Scalar::Fields
        | Scalar::Raw
        | Scalar::Json
        | Scalar::SchemaOrArray
        | Scalar::SchemaOrBool
        | Scalar::SchemaOrStrings => true,
        Scalar::String
        | Scalar::Bool
        | Scalar::Int32
        | Scalar::Int64
        | Scalar::Double
        | Scalar::Bytes
        | Scalar::Quantity
        | Scalar::IntOrString
        | Scalar::Time
        | Scalar::MicroTime
        | Scalar::Duration
        | Scalar::Strings => false,
    }
}

/// The Go type's name in decode errors.
pub(super) fn go_name(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::String => "string",
        Scalar::Bool => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Double => "float64",
        Scalar::Bytes => "[]uint8",
        Scalar::Quantity => "resource.Quantity",
        Scalar::IntOrString => "intstr.IntOrString",
        Scalar::Time => "v1.Time",
        Scalar::MicroTime => "v1.MicroTime",
        Scalar::Duration => "v1.Duration",
        Scalar::Strings => "[]string",
        Scalar::Fields => "v1.FieldsV1",
        Scalar::Raw => "runtime.RawExtension",
        Scalar::Json => "v1.JSON",
        Scalar::SchemaOrArray => "v1.JSONSchemaPropsOrArray",
        Scalar::SchemaOrBool => "v1.JSONSchemaPropsOrBool",
        Scalar::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray",
    }
}

/// Checks a scalar and brings it into canonical form.
pub(super) fn accept(scalar: Scalar, given: Given<'_>) -> Result<Value, Refusal> {
    match (scalar, given) {
        (Scalar::String | Scalar::Duration, Given::String(s)) => Ok(Value::String(s.into_owned())),
        (Scalar::Bool, Given::Bool(b)) => Ok(Value::Bool(b)),
        (Scalar::Int32 | Scalar::IntOrString, Given::Number(n)) => {
            integer(&n, i64::from(i32::MIN), i64::from(i32::MAX))
        }
        (Scalar::Int64, Given::Number(n)) => integer(&n, i64::MIN, i64::MAX),
        (Scalar::Double, Given::Number(n)) => Ok(Value::Number(n)),
        (Scalar::IntOrString, Given::String(s)) => Ok(Value::String(s.into_owned())),
        (Scalar::Bytes, Given::String(s)) => canonical_base64(&s),
        (Scalar::Quantity, Given::String(s)) => quantity(&s),
        (Scalar::Quantity, Given::Number(n)) => quantity(&n.to_string()),
        (Scalar::Time, Given::String(s)) => time(&s, meta::format_time),
        (Scalar::MicroTime, Given::String(s)) => time(&s, meta::format_micro_time),
        (scalar, given) if is_open(scalar) => Ok(given.into_value()),
        (_, given) => Err(Refusal::Type(given.kind().into_owned())),
    }
}

fn integer(n: &Number, min: i64, max: i64) -> Result<Value, Refusal> {
    match n.as_i64() {
        Some(value) if (min..=max).contains(&value) => Ok(Value::from(value)),
        _ => Err(Refusal::Type(format!("number {n}"))),
    }
}

fn quantity(text: &str) -> Result<Value, Refusal> {
    let quantity = Quantity::parse(text).map_err(|error| Refusal::Form(error.to_string()))?;
    Ok(Value::String(quantity.to_string()))
}

fn time(text: &str, format: fn(jiff::Timestamp) -> String) -> Result<Value, Refusal> {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(Value::String(format(time))),
        Err(_) => Err(Refusal::Form(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
        ))),
    }
}

/// Base64 as it is stored: Go reads over line breaks and does not write them.
fn canonical_base64(text: &str) -> Result<Value, Refusal> {
    let is_break = |c: char| matches!(c, '\r' | '\n');
    let whole: Cow<'_, str> = if text.contains(is_break) { text.replace(is_break, "").into() } else { text.into() };
    match STANDARD.decode(&*whole) {
        Ok(_) => Ok(Value::String(whole.into_owned())),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol { offset: at, .. } => {
                    at
                }
                _ => text.len(),
            };
            Err(Refusal::Form(format!("illegal base64 data at input byte {at}")))
        }
    }
}
