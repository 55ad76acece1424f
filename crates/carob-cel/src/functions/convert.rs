//! Conversions between types, and the sizes of values (cel-go common/types).

use std::sync::Arc;

use super::{Context, Cost, Overload, T, function, method, time};
use crate::error::EvalError;
use crate::types::Named;
use crate::value::{Text, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

const LIST_A: T = T::List(&T::A);
const MAP_AB: T = T::Map(&T::A, &T::B);

pub(super) static OVERLOADS: &[Overload] = &[
    function("size", &[T::Bytes], T::Int, Cost::Unit, size),
    method("size", &[T::Bytes], T::Int, Cost::Unit, size),
    function("size", &[LIST_A], T::Int, Cost::Unit, size),
    method("size", &[LIST_A], T::Int, Cost::Unit, size),
    function("size", &[MAP_AB], T::Int, Cost::Unit, size),
    method("size", &[MAP_AB], T::Int, Cost::Unit, size),
    function("size", &[T::String], T::Int, Cost::Unit, size),
    method("size", &[T::String], T::Int, Cost::Unit, size),
    function("type", &[T::A], T::TypeOfA, Cost::Unit, type_of),
    function("dyn", &[T::A], T::Dyn, Cost::Unit, identity),
    function("bool", &[T::Bool], T::Bool, Cost::Unit, identity),
    function("bool", &[T::String], T::Bool, Cost::Unit, to_bool),
    function("bytes", &[T::Bytes], T::Bytes, Cost::Unit, identity),
    function("bytes", &[T::String], T::Bytes, Cost::StringToBytes, to_bytes),
    function("double", &[T::Double], T::Double, Cost::Unit, identity),
    function("double", &[T::Int], T::Double, Cost::Unit, to_double),
    function("double", &[T::String], T::Double, Cost::Unit, to_double),
    function("double", &[T::Uint], T::Double, Cost::Unit, to_double),
    function("duration", &[T::Duration], T::Duration, Cost::Unit, identity),
    function("duration", &[T::Int], T::Duration, Cost::Unit, to_duration),
    function("duration", &[T::String], T::Duration, Cost::Unit, to_duration),
    function("int", &[T::Int], T::Int, Cost::Unit, identity),
    function("int", &[T::Double], T::Int, Cost::Unit, to_int),
    function("int", &[T::Duration], T::Int, Cost::Unit, to_int),
    function("int", &[T::String], T::Int, Cost::Unit, to_int),
    function("int", &[T::Timestamp], T::Int, Cost::Unit, to_int),
    function("int", &[T::Uint], T::Int, Cost::Unit, to_int),
    function("string", &[T::String], T::String, Cost::Unit, identity),
    function("string", &[T::Bool], T::String, Cost::Unit, to_string),
    function("string", &[T::Bytes], T::String, Cost::BytesToString, to_string),
    function("string", &[T::Double], T::String, Cost::Unit, to_string),
    function("string", &[T::Duration], T::String, Cost::Unit, to_string),
    function("string", &[T::Int], T::String, Cost::Unit, to_string),
    function("string", &[T::Timestamp], T::String, Cost::Unit, to_string),
    function("string", &[T::Uint], T::String, Cost::Unit, to_string),
    function("string", &[T::Named(Named::Ip)], T::String, Cost::Unit, to_string),
    function("string", &[T::Named(Named::Cidr)], T::String, Cost::Unit, to_string),
    function("timestamp", &[T::Timestamp], T::Timestamp, Cost::Unit, identity),
    function("timestamp", &[T::Int], T::Timestamp, Cost::Unit, to_timestamp),
    function("timestamp", &[T::String], T::Timestamp, Cost::Unit, to_timestamp),
    function("uint", &[T::Uint], T::Uint, Cost::Unit, identity),
    function("uint", &[T::Double], T::Uint, Cost::Unit, to_uint),
    function("uint", &[T::Int], T::Uint, Cost::Unit, to_uint),
    function("uint", &[T::String], T::Uint, Cost::Unit, to_uint),
];

/// Functions whose call on a constant is a constant (cel-go overloads.IsTypeConversionFunction).
pub(crate) fn is_conversion(name: &str) -> bool {
    matches!(name, "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "type" | "uint")
}

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn identity<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(args[0].clone())
}

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn size<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::try_from(args[0].size()).unwrap_or(i64::MAX)))
}

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn type_of<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Type(Text::Shared(args[0].type_name().into())))
}

pub(crate) fn overflow(kind: &str) -> EvalError {
    EvalError::new(format!("{kind} overflow"))
}

fn to_bool<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match args[0].as_str()? {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
        text => Err(EvalError::new(format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))),
    }
}

fn to_bytes<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bytes(Arc::from(args[0].as_str()?.as_bytes())))
}

fn to_double<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Double(match &args[0] {
        Value::Int(value) => *value as f64,
        Value::Uint(value) => *value as f64,
        other => {
            let text = other.as_str()?;
            parse_double(text)
                .ok_or_else(|| EvalError::new(format!("strconv.ParseFloat: parsing {text:?}: invalid syntax")))?
        }
    }))
}

fn parse_double(text: &str) -> Option<f64> {
    // Rust reads what Go reads, but for hexadecimal and underscores, which no one writes as a string of JSON.
    text.parse().ok()
}

fn to_duration<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Duration(match &args[0] {
        Value::Int(nanos) => *nanos,
        other => {
            let text = other.as_str()?;
            time::duration(text).ok_or_else(|| EvalError::new(format!("time: invalid duration {text:?}")))?
        }
    }))
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn to_int<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(match &args[0] {
        // The bounds themselves are excluded, as the conversion loses what is behind the point (cel-go overflow.go).
        Value::Double(value) if *value > -(2f64.powi(63)) && *value < 2f64.powi(63) => *value as i64,
        Value::Double(_) => return Err(overflow("integer")),
        Value::Duration(nanos) => *nanos,
        Value::Timestamp(time) => time.nanos().div_euclid(1_000_000_000) as i64,
        Value::Uint(value) => i64::try_from(*value).map_err(|_| overflow("integer"))?,
        other => {
            let text = other.as_str()?;
            text.parse().map_err(|_| number_error("ParseInt", text))?
        }
    }))
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn to_uint<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Uint(match &args[0] {
        Value::Double(value) if *value >= 0.0 && *value < 2f64.powi(64) => *value as u64,
        Value::Double(_) => return Err(overflow("unsigned integer")),
        Value::Int(value) => u64::try_from(*value).map_err(|_| overflow("unsigned integer"))?,
        other => {
            let text = other.as_str()?;
            text.parse().map_err(|_| number_error("ParseUint", text))?
        }
    }))
}

fn number_error(function: &str, text: &str) -> EvalError {
    let digits = text.trim_start_matches(['-', '+']);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let fault = if number { "value out of range" } else { "invalid syntax" };
    EvalError::new(format!("strconv.{function}: parsing {text:?}: {fault}"))
}

fn to_timestamp<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let time = match &args[0] {
        Value::Int(seconds) => time::Time::from_seconds(*seconds),
        other => {
            let text = other.as_str()?;
            match time::rfc3339(text) {
                Some(time) => Some(time),
                None => {
                    return Err(EvalError::new(format!(
                        "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse"
                    )));
                }
            }
        }
    };
    time.map(Value::Timestamp).ok_or_else(|| overflow("timestamp"))
}

fn to_string<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    text_of(&args[0]).map(Value::text)
}

/// A scalar as text.
pub(crate) fn text_of(value: &Value<'_>) -> Result<String, EvalError> {
    Ok(match value {
        Value::String(text) => text.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => double_text(*value),
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Timestamp(value) => value.to_string(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return Err(EvalError::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        Value::Type(name) => name.to_string(),
        other => return Err(EvalError::new(format!("type conversion error from '{}' to 'string'", other.type_name()))),
    })
}

/// From which power of ten on Go writes an exponent.
const EXPONENT_MIN: i32 = 6;

/// Go's `strconv.FormatFloat(v, 'g', -1, 64)`: the shortest text, with an exponent for what is large or small.
pub(crate) fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..EXPONENT_MIN).contains(&exponent) {
        return format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    format!("{value}")
}
