//! Facts of upstream's tests, hostile expressions, and properties.

mod costs;
mod hostile;
mod language;
mod libraries;
mod typed;

use crate::activation::{Activation, Budget};
use crate::program::Environment;
use crate::value::Value;

/// A value as short text: `[1, "a", {"k": true}]`, `optional(1)`, `none`.
fn text(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Uint(value) => format!("{value}u"),
        Value::Double(value) => format!("{value:?}"),
        Value::String(value) => format!("{:?}", &**value),
        Value::Bytes(bytes) => format!("b{:?}", String::from_utf8_lossy(bytes)),
        Value::List(list) => {
            let items: Vec<String> =
                list.iter().map(|item| item.map_or_else(|error| error.to_string(), |item| text(&item))).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let pair = |key: &Value<'_>| {
                let value =
                    map.get(key).map(|value| value.map_or_else(|error| error.to_string(), |value| text(&value)));
                format!("{}: {}", text(key), value.unwrap_or_default())
            };
            format!("{{{}}}", map.keys().iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Value::Optional(None) => "none".to_owned(),
        Value::Optional(Some(inner)) => format!("optional({})", text(inner)),
        Value::Message(message) => {
            let fields: Vec<String> =
                message.fields.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
            format!("{}{{{}}}", message.name, fields.join(", "))
        }
        Value::Quantity(quantity) => quantity.to_string(),
        other => crate::functions::convert::text_of(other).unwrap_or_else(|_| other.type_name().to_owned()),
    }
}

fn run(expression: &str) -> Result<String, String> {
    let program = Environment::new().with_messages().compile(expression).map_err(|error| error.to_string())?;
    match program.evaluate(&Activation::new(), &mut Budget::new(crate::BUDGET_COST_MAX)) {
        Ok(value) => Ok(text(&value)),
        Err(error) => Err(error.to_string()),
    }
}

#[track_caller]
fn gives(expression: &str, expected: &str) {
    assert_eq!(run(expression).as_deref(), Ok(expected), "{expression}");
}

/// The first fault's text, whether of compilation or of evaluation, contains this.
#[track_caller]
fn fails(expression: &str, expected: &str) {
    match run(expression) {
        Ok(value) => panic!("{expression} gives {value}, not a fault with {expected}"),
        Err(fault) => assert!(fault.contains(expected), "{expression}: {fault}"),
    }
}

#[track_caller]
fn table(cases: &[(&str, &str)]) {
    for (expression, expected) in cases {
        gives(expression, expected);
    }
}

#[track_caller]
fn faults(cases: &[(&str, &str)]) {
    for (expression, expected) in cases {
        fails(expression, expected);
    }
}
