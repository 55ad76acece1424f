//! `format` (cel-go ext/formatting.go): `%s %d %f %e %b %x %X %o`, with the precision of doubles. Numbers look as in en_US.

use std::fmt::Write as _;

use super::convert::{double_text, text_of};
use super::{Context, Cost, Overload, T, method};
use crate::error::EvalError;
use crate::functions::strings::TEXT_BYTES_MAX;
use crate::value::{List, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

/// Digits behind the point unless a clause says otherwise.
const PRECISION_DEFAULT: usize = 6;
/// More digits than a double has are all zeros; more are refused.
const PRECISION_MAX: usize = 1_000;
/// How deep lists and maps are written.
const DEPTH_MAX: usize = 128;

pub(super) static OVERLOADS: &[Overload] =
    &[method("format", &[T::String, T::List(&T::Dyn)], T::String, Cost::Format, format_text)];

/// One thing of a format string.
#[derive(Debug, PartialEq)]
pub(crate) enum Clause<'f> {
    Text(&'f str),
    Value { verb: char, precision: Option<usize> },
}

/// What is in a format string.
pub(crate) fn clauses(format: &str) -> Result<Vec<Clause<'_>>, String> {
    let mut out = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        if at > 0 {
            out.push(Clause::Text(&rest[..at]));
        }
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('%') {
            out.push(Clause::Text("%"));
            rest = tail;
            continue;
        }
        let mut precision = None;
        if let Some(tail) = rest.strip_prefix('.') {
            let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
            let number = tail[..digits].parse().ok().filter(|precision| *precision <= PRECISION_MAX);
            if number.is_none() {
                return Err("could not parse formatting clause: error while parsing precision".to_owned());
            }
            precision = number;
            rest = &tail[digits..];
        }
        let Some(verb) = rest.chars().next() else { return Err("unexpected end of string".to_owned()) };
        if !"sdfebxXo".contains(verb) {
            return Err(format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\""));
        }
        rest = &rest[verb.len_utf8()..];
        out.push(Clause::Value { verb, precision });
    }
    if !rest.is_empty() {
        out.push(Clause::Text(rest));
    }
    Ok(out)
}

/// What a clause cannot write, in upstream's words.
pub(crate) fn refusal(verb: char, type_name: &str) -> String {
    let rule = match verb {
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
        'o' => "octal clause can only be used on integers",
        _ => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"
        }
    };
    format!("{rule}, was given {type_name}")
}

fn format_text<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let Value::List(list) = &args[1] else { return Err(EvalError::no_such_overload()) };
    let clauses = clauses(args[0].as_str()?).map_err(EvalError::new)?;
    let mut out = String::new();
    let mut next = 0;
    for clause in clauses {
        match clause {
            Clause::Text(text) => out.push_str(text),
            Clause::Value { verb, precision } => {
                let value = argument(list, next)?;
                next += 1;
                write_value(&mut out, verb, precision.unwrap_or(PRECISION_DEFAULT), &value)?;
            }
        }
        if out.len() > TEXT_BYTES_MAX {
            return Err(EvalError::MemoryExceeded);
        }
    }
    Ok(Value::text(out))
}

fn argument<'a>(list: &List<'a>, at: usize) -> Result<Value<'a>, EvalError> {
    list.at(at).unwrap_or_else(|| Err(EvalError::new(format!("index {at} out of range"))))
}

fn write_value(out: &mut String, verb: char, precision: usize, value: &Value<'_>) -> Result<(), EvalError> {
    let text = match (verb, value) {
        ('s', value) => return write_string(out, value, 0),
        ('d', Value::Int(value)) => value.to_string(),
        ('d', Value::Uint(value)) => value.to_string(),
        ('f' | 'e', value) => match double_of(value) {
            Some(double) if verb == 'f' => fixed(double, precision),
            Some(double) => scientific(double, precision),
            None => return Err(wrong(verb, value)),
        },
        ('b', Value::Int(value)) => signed(*value, |out, value| write!(out, "{value:b}")),
        ('b', Value::Uint(value)) => format!("{value:b}"),
        ('b', Value::Bool(value)) => u8::from(*value).to_string(),
        ('o', Value::Int(value)) => signed(*value, |out, value| write!(out, "{value:o}")),
        ('o', Value::Uint(value)) => format!("{value:o}"),
        ('x', Value::Int(value)) => signed(*value, |out, value| write!(out, "{value:x}")),
        ('X', Value::Int(value)) => signed(*value, |out, value| write!(out, "{value:X}")),
        ('x', Value::Uint(value)) => format!("{value:x}"),
        ('X', Value::Uint(value)) => format!("{value:X}"),
        ('x' | 'X', Value::String(text)) => hex(text.as_bytes(), verb == 'X'),
        ('x' | 'X', Value::Bytes(bytes)) => hex(bytes, verb == 'X'),
        (verb, value) => return Err(wrong(verb, value)),
    };
    out.push_str(&text);
    Ok(())
}

fn wrong(verb: char, value: &Value<'_>) -> EvalError {
    EvalError::new(format!("error during formatting: {}", refusal(verb, value.type_name())))
}

fn double_of(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(value) => Some(*value),
        Value::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// The sign and the digits of the absolute value, as Go writes integers of other bases.
fn signed(value: i64, write: impl FnOnce(&mut String, u64) -> std::fmt::Result) -> String {
    let mut out = String::from(if value < 0 { "-" } else { "" });
    // Writing to a string does not fail.
    if write(&mut out, value.unsigned_abs()).is_err() {
        out.clear();
    }
    out
}

fn hex(bytes: &[u8], upper: bool) -> String {
    let digits: &[u8; 16] = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    bytes
        .iter()
        .flat_map(|byte| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

fn not_finite(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        return Some("NaN");
    }
    value.is_infinite().then_some(if value > 0.0 { "∞" } else { "-∞" })
}

/// Thousands are set off by commas.
fn fixed(value: f64, precision: usize) -> String {
    if let Some(text) = not_finite(value) {
        return text.to_owned();
    }
    let plain = format!("{:.*}", precision, value.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut out = String::from(if value.is_sign_negative() { "-" } else { "" });
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// `1.052033 × 10⁰³`, with spaces that do not break.
fn scientific(value: f64, precision: usize) -> String {
    if let Some(text) = not_finite(value) {
        return text.to_owned();
    }
    let plain = format!("{value:.precision$e}");
    let (digits, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mut out = format!("{digits}\u{a0}×\u{a0}10");
    if exponent < 0 {
        out.push('⁻');
    }
    let superscripts = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    for digit in format!("{:02}", exponent.abs()).bytes() {
        out.push(superscripts[usize::from(digit - b'0')]);
    }
    out
}

fn write_string(out: &mut String, value: &Value<'_>, depth: usize) -> Result<(), EvalError> {
    if depth > DEPTH_MAX {
        return Err(EvalError::TooDeep);
    }
    if out.len() > TEXT_BYTES_MAX {
        return Err(EvalError::MemoryExceeded);
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::List(list) => {
            out.push('[');
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_member(out, &item?, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            let mut pairs = Vec::new();
            for key in map.keys() {
                let (mut key_text, mut value_text) = (String::new(), String::new());
                write_member(&mut key_text, &key, depth + 1)?;
                if let Some(value) = map.get(&key) {
                    write_member(&mut value_text, &value?, depth + 1)?;
                }
                pairs.push((key_text, value_text));
            }
            pairs.sort();
            let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            out.push('{');
            out.push_str(&pairs.join(", "));
            out.push('}');
        }
        Value::Double(value) => out.push_str(&double_text(*value)),
        Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::String(_)
        | Value::Bytes(_)
        | Value::Timestamp(_)
        | Value::Duration(_)
        | Value::Type(_) => out.push_str(&text_of(value)?),
        other => return Err(wrong('s', other)),
    }
    Ok(())
}

/// What is in a list or a map is written as it would be in an expression.
fn write_member(out: &mut String, value: &Value<'_>, depth: usize) -> Result<(), EvalError> {
    match value {
        Value::String(text) => out.push_str(&format!("{:?}", &**text)),
        Value::Bytes(_) => out.push_str(&format!("b{:?}", text_of(value)?)),
        Value::Double(double) if !double.is_finite() => out.push_str(&format!("{:?}", double_text(*double))),
        Value::Double(double) => out.push_str(&format!("{double:.PRECISION_DEFAULT$}")),
        Value::Timestamp(_) => out.push_str(&format!("timestamp({:?})", text_of(value)?)),
        Value::Duration(_) => out.push_str(&format!("duration({:?})", text_of(value)?)),
        Value::Type(name) => out.push_str(&format!("type({name})")),
        other => return write_string(out, other, depth),
    }
    Ok(())
}
