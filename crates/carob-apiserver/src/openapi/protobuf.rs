//! OpenAPI v2 as protobuf (gnostic `openapiv2/OpenAPIv2.proto`): what kubectl before v1.27 validates and explains with.
//!
//! Only the fields that carob's own document uses have a number here; any other is an error and not left out.

use carob_api::proto::wire::{put_bytes, put_double, put_flag, put_integer};
use serde_json::Value;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the protobuf form of OpenAPI has no place for {key:?} in {message}")]
pub(super) struct NoPlace {
    message: &'static str,
    key: String,
}

type Written = Result<(), NoPlace>;
type Write = fn(&Value, &mut Vec<u8>) -> Written;

/// How a field's JSON becomes protobuf.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Texts,
    Flag,
    Integer,
    Double,
    /// Any JSON, as the YAML that it is too.
    Any,
    Anys,
    Message(Write),
    Messages(Write),
    /// A map of messages, in order: each a message of name and value, in a message of its own or, without one, in place.
    Named {
        within: Option<u32>,
        value: Write,
    },
}

/// A field's key in JSON, its number and its form.
type Field = (&'static str, u32, Form);

/// Writes the fields of an object; those that begin with `x-` go to the field numbered `extensions`.
fn fields(
    message: &'static str,
    known: &[Field],
    extensions: Option<u32>,
    value: &Value,
    out: &mut Vec<u8>,
) -> Written {
    for (key, value) in value.as_object().into_iter().flatten() {
        if let Some((_, number, form)) = known.iter().find(|(name, ..)| name == key) {
            field(*number, *form, value, out)?;
        } else if let (Some(number), true) = (extensions, key.starts_with("x-")) {
            put_bytes(out, number, &named(key, &any(value)));
        } else {
            return Err(NoPlace { message, key: key.clone() });
        }
    }
    Ok(())
}

fn field(number: u32, form: Form, value: &Value, out: &mut Vec<u8>) -> Written {
    match form {
        Form::Text => put_bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Form::Flag => put_flag(out, number, value.as_bool().unwrap_or_default()),
        Form::Integer => put_integer(out, number, value.as_i64().unwrap_or_default()),
        Form::Double => put_double(out, number, value.as_f64().unwrap_or_default()),
        Form::Any => put_bytes(out, number, &any(value)),
        Form::Message(write) => put_bytes(out, number, &message(value, write)?),
        Form::Texts => each(value, |one| field(number, Form::Text, one, out))?,
        Form::Anys => each(value, |one| field(number, Form::Any, one, out))?,
        Form::Messages(write) => each(value, |one| field(number, Form::Message(write), one, out))?,
        Form::Named { within, value: write } => {
            let mut entries = Vec::new();
            let entry_number = within.unwrap_or(number);
            for (key, value) in value.as_object().into_iter().flatten() {
                put_bytes(&mut entries, entry_number, &named(key, &message(value, write)?));
            }
            match within {
                Some(_) => put_bytes(out, number, &entries),
                None => out.extend_from_slice(&entries),
            }
        }
    }
    Ok(())
}

fn each(list: &Value, write: impl FnMut(&Value) -> Written) -> Written {
    list.as_array().into_iter().flatten().try_for_each(write)
}

fn message(value: &Value, write: Write) -> Result<Vec<u8>, NoPlace> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

/// One message as the only field of another.
fn wrapped(number: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, number, inner);
    out
}

/// `NamedAny` and its like.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = wrapped(1, name.as_bytes());
    put_bytes(&mut out, 2, value);
    out
}

fn any(value: &Value) -> Vec<u8> {
    wrapped(2, value.to_string().as_bytes())
}

/// The whole document.
pub(super) fn document(value: &Value) -> Result<Vec<u8>, NoPlace> {
    let known: [Field; 4] = [
        ("swagger", 1, Form::Text),
        ("info", 2, Form::Message(info)),
        ("paths", 8, Form::Named { within: Some(2), value: path_item }),
        ("definitions", 9, Form::Named { within: Some(1), value: schema }),
    ];
    let mut out = Vec::new();
    fields("Document", &known, Some(16), value, &mut out)?;
    Ok(out)
}

fn info(value: &Value, out: &mut Vec<u8>) -> Written {
    fields("Info", &[("title", 1, Form::Text), ("version", 2, Form::Text)], Some(7), value, out)
}

fn path_item(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 6] = [
        ("get", 2, Form::Message(operation)),
        ("put", 3, Form::Message(operation)),
        ("post", 4, Form::Message(operation)),
        ("delete", 5, Form::Message(operation)),
        ("patch", 8, Form::Message(operation)),
        ("parameters", 9, Form::Messages(parameter)),
    ];
    fields("PathItem", &known, Some(10), value, out)
}

fn operation(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 4] = [
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Texts),
        ("parameters", 8, Form::Messages(parameter)),
        ("responses", 9, Form::Named { within: Some(1), value: response }),
    ];
    fields("Operation", &known, Some(13), value, out)
}

/// `ParametersItem` of `Parameter` of a body, or of what its place says.
fn parameter(value: &Value, out: &mut Vec<u8>) -> Written {
    let (kind, inner) = match value["in"].as_str() {
        Some("body") => (1, message(value, body_parameter)?),
        Some("path") => (2, wrapped(4, &message(value, path_parameter)?)),
        _ => (2, wrapped(3, &message(value, query_parameter)?)),
    };
    put_bytes(out, 1, &wrapped(kind, &inner));
    Ok(())
}

fn body_parameter(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 4] = [
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::Message(schema)),
    ];
    fields("BodyParameter", &known, Some(6), value, out)
}

fn query_parameter(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 5] = [
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("name", 4, Form::Text),
        ("type", 6, Form::Text),
        ("uniqueItems", 20, Form::Flag),
    ];
    fields("QueryParameterSubSchema", &known, Some(23), value, out)
}

fn path_parameter(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 5] = [
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("uniqueItems", 19, Form::Flag),
    ];
    fields("PathParameterSubSchema", &known, Some(22), value, out)
}

/// `ResponseValue` of a `Response`.
fn response(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 2] = [("description", 1, Form::Text), ("schema", 2, Form::Message(one_schema))];
    let mut inner = Vec::new();
    fields("Response", &known, Some(5), value, &mut inner)?;
    put_bytes(out, 1, &inner);
    Ok(())
}

/// A message whose only field is a schema: `SchemaItem`, `ItemsItem`.
fn one_schema(value: &Value, out: &mut Vec<u8>) -> Written {
    put_bytes(out, 1, &message(value, schema)?);
    Ok(())
}

fn additional_properties(value: &Value, out: &mut Vec<u8>) -> Written {
    match value.as_bool() {
        Some(allowed) => put_flag(out, 2, allowed),
        None => one_schema(value, out)?,
    }
    Ok(())
}

/// `TypeItem`.
fn type_item(value: &Value, out: &mut Vec<u8>) -> Written {
    field(1, Form::Text, value, out)
}

fn schema(value: &Value, out: &mut Vec<u8>) -> Written {
    let known: [Field; 25] = [
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Double),
        ("maximum", 7, Form::Double),
        ("exclusiveMaximum", 8, Form::Flag),
        ("minimum", 9, Form::Double),
        ("exclusiveMinimum", 10, Form::Flag),
        ("maxLength", 11, Form::Integer),
        ("minLength", 12, Form::Integer),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Integer),
        ("minItems", 15, Form::Integer),
        ("uniqueItems", 16, Form::Flag),
        ("maxProperties", 17, Form::Integer),
        ("minProperties", 18, Form::Integer),
        ("required", 19, Form::Texts),
        ("enum", 20, Form::Anys),
        ("additionalProperties", 21, Form::Message(additional_properties)),
        ("type", 22, Form::Message(type_item)),
        ("items", 23, Form::Message(one_schema)),
        ("allOf", 24, Form::Messages(schema)),
        ("properties", 25, Form::Named { within: Some(1), value: schema }),
    ];
    fields("Schema", &known, Some(31), value, out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_as_protobuf() {
        let found = document(&json!({
            "swagger": "2.0",
            "definitions": { "a.B": { "type": "object", "properties": { "c": { "$ref": "#/d" } }, "x-k": [1] } },
        }));
        let property = named("c", &wrapped(1, b"#/d"));
        let mut schema = wrapped(25, &wrapped(1, &property));
        put_bytes(&mut schema, 22, &wrapped(1, b"object"));
        put_bytes(&mut schema, 31, &named("x-k", &wrapped(2, b"[1]")));
        let mut expected = wrapped(9, &wrapped(1, &named("a.B", &schema)));
        put_bytes(&mut expected, 1, b"2.0");
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn nothing_is_left_out() {
        let unknown = json!({ "definitions": { "a": { "oneOf": [] } } });
        assert_eq!(document(&unknown), Err(NoPlace { message: "Schema", key: "oneOf".to_owned() }));
        let bounds = document(&json!({ "definitions": { "a": { "maxItems": 3, "minimum": 0.5 } } }));
        let mut schema = wrapped_integer(14, 3);
        schema.extend([9 << 3 | 1, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f]);
        assert_eq!(bounds, Ok(wrapped(9, &wrapped(1, &named("a", &schema)))));
    }

    fn wrapped_integer(number: u32, value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        put_integer(&mut out, number, value);
        out
    }
}
