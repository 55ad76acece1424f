//! JSON to messages.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;

use super::{ProtoError, duration, wire};
use crate::schema::{self, Element, FieldRef, Scalar, Shape, TypeRef};

/// The type of a CRD's schema, which its unions refer to.
pub(super) fn json_schema_props() -> TypeRef<'static> {
    schema::builtin().get("apiextensions.v1.JSONSchemaProps").expect("a type of the built-in table")
}

/// Encodes one message, fields in ascending order.
pub(super) fn message(ty: TypeRef<'_>, obj: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut out = Vec::new();
    if let Value::Object(map) = obj {
        let mut fields: Vec<(FieldRef<'_>, &Value)> = map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .filter_map(|(name, value)| Some((ty.field(name)?, value)))
            .filter(|(field, _)| !field.wire_number().levels().is_empty())
            .collect();
        fields.sort_by_key(|(field, _)| field.wire_number().0);
        level(&fields, 0, &mut out)?;
    }
    Ok(out)
}

/// Writes fields that share the first `depth` levels; deeper ones go into an embedded message together.
fn level(fields: &[(FieldRef<'_>, &Value)], depth: usize, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    let mut rest = fields;
    while let Some((field, value)) = rest.first() {
        let levels = field.wire_number();
        let number = levels.0[depth];
        if levels.levels().len() == depth + 1 {
            put(u32::from(number), field.shape(), value, out)?;
            rest = &rest[1..];
            continue;
        }
        let together = rest.iter().take_while(|(field, _)| field.wire_number().0[depth] == number).count();
        let mut embedded = Vec::new();
        level(&rest[..together], depth + 1, &mut embedded)?;
        wire::put_bytes(out, u32::from(number), &embedded);
        rest = &rest[together..];
    }
    Ok(())
}

fn put(number: u32, shape: Shape<'_>, value: &Value, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    match (shape, value) {
        (Shape::One(element), value) => put_element(number, element, value, out),
        (Shape::List(element), Value::Array(items)) => {
            items.iter().try_for_each(|item| put_element(number, element, item, out))
        }
        (Shape::Map(element), Value::Object(map)) => map.iter().try_for_each(|(key, value)| {
            let mut entry = Vec::new();
            wire::put_bytes(&mut entry, 1, key.as_bytes());
            put_element(2, element, value, &mut entry)?;
            wire::put_bytes(out, number, &entry);
            Ok(())
        }),
        _ => Err(ProtoError::Malformed("a value has another shape than its field")),
    }
}

fn put_element(number: u32, element: Element<'_>, value: &Value, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    const WRONG: ProtoError = ProtoError::Malformed("a value has another type than its field");
    let scalar = match element {
        Element::Object(ty) => {
            wire::put_bytes(out, number, &message(ty, value)?);
            return Ok(());
        }
        Element::Scalar(scalar) => scalar,
    };
    match (scalar, value) {
        (Scalar::String, Value::String(text)) => wire::put_bytes(out, number, text.as_bytes()),
        (Scalar::Bool, Value::Bool(flag)) => wire::put_integer(out, number, i64::from(*flag)),
        (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => {
            wire::put_integer(out, number, n.as_i64().ok_or(WRONG)?);
        }
        (Scalar::Double, Value::Number(n)) => wire::put_double(out, number, n.as_f64().ok_or(WRONG)?),
        (Scalar::Bytes, Value::String(text)) => {
            wire::put_bytes(out, number, &STANDARD.decode(text).map_err(|_| WRONG)?);
        }
        (Scalar::Quantity, Value::String(text)) => {
            let mut inner = Vec::new();
            wire::put_bytes(&mut inner, 1, text.as_bytes());
            wire::put_bytes(out, number, &inner);
        }
        (Scalar::IntOrString, value) => wire::put_bytes(out, number, &int_or_string(value).ok_or(WRONG)?),
        (Scalar::Duration, Value::String(text)) => wire::put_bytes(out, number, &duration::encode(text).ok_or(WRONG)?),
        (Scalar::Time | Scalar::MicroTime, Value::String(text)) => {
            let time: Timestamp = text.parse().map_err(|_| WRONG)?;
            let mut inner = Vec::new();
            wire::put_integer(&mut inner, 1, time.as_second());
            // metav1.Time has no fraction; what MicroTime has is kept.
            wire::put_integer(&mut inner, 2, i64::from(time.subsec_nanosecond()));
            wire::put_bytes(out, number, &inner);
        }
        (Scalar::Strings, Value::Array(items)) => {
            let mut inner = Vec::new();
            for item in items {
                wire::put_bytes(&mut inner, 1, item.as_str().ok_or(WRONG)?.as_bytes());
            }
            wire::put_bytes(out, number, &inner);
        }
        (Scalar::Fields | Scalar::Raw | Scalar::Json, value) => {
            let mut inner = Vec::new();
            wire::put_bytes(&mut inner, 1, value.to_string().as_bytes());
            wire::put_bytes(out, number, &inner);
        }
        (Scalar::SchemaOrArray | Scalar::SchemaOrBool | Scalar::SchemaOrStrings, value) => {
            wire::put_bytes(out, number, &schema_or(scalar, value)?);
        }
        _ => return Err(WRONG),
    }
    Ok(())
}

fn int_or_string(value: &Value) -> Option<Vec<u8>> {
    let (is_text, number, text) = match value {
        Value::Number(n) => (0, n.as_i64()?, ""),
        Value::String(text) => (1, 0, text.as_str()),
        _ => return None,
    };
    let mut out = Vec::new();
    wire::put_integer(&mut out, 1, is_text);
    wire::put_integer(&mut out, 2, number);
    wire::put_bytes(&mut out, 3, text.as_bytes());
    Some(out)
}

fn schema_or(scalar: Scalar, value: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut out = Vec::new();
    match (scalar, value) {
        (Scalar::SchemaOrBool, Value::Bool(allows)) => wire::put_integer(&mut out, 1, i64::from(*allows)),
        (Scalar::SchemaOrBool, schema) => {
            // A schema implies that it allows something.
            wire::put_integer(&mut out, 1, 1);
            wire::put_bytes(&mut out, 2, &message(json_schema_props(), schema)?);
        }
        (_, Value::Array(items)) => {
            for item in items {
                match item {
                    Value::String(text) => wire::put_bytes(&mut out, 2, text.as_bytes()),
                    schema => wire::put_bytes(&mut out, 2, &message(json_schema_props(), schema)?),
                }
            }
        }
        (_, schema) => wire::put_bytes(&mut out, 1, &message(json_schema_props(), schema)?),
    }
    Ok(out)
}

/// One event of a watch stream, without the length that frames it. `object` is a whole body with magic and envelope.
pub fn watch_event(ty: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    wire::put_bytes(&mut raw, 1, object);
    let mut out = Vec::with_capacity(raw.len() + ty.len() + 12);
    wire::put_bytes(&mut out, 1, ty.as_bytes());
    wire::put_bytes(&mut out, 2, &raw);
    out
}
