//! Protobuf to JSON.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::wire::{Reader, Value as Wire, text};
use super::{DEPTH_MAX, ProtoError, open, time};
use crate::schema::{Element, FieldRef, Scalar, Shape, TypeRef};

/// Decodes a whole body into JSON with apiVersion and kind; `schema_of` finds the type of (apiVersion, kind).
pub fn decode<'t>(body: &[u8], schema_of: impl Fn(&str, &str) -> Option<TypeRef<'t>>) -> Result<Value, ProtoError> {
    let envelope = open(body)?;
    if envelope.content_type.contains("json") {
        return json_of(envelope.raw);
    }
    let ty = schema_of(envelope.api_version, envelope.kind)
        .ok_or_else(|| ProtoError::NoType(format!("{}, Kind={}", envelope.api_version, envelope.kind)))?;
    let mut object = message(ty, envelope.raw, 0)?;
    for (field, value) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
        if !value.is_empty() {
            object.insert(field.to_owned(), Value::from(value));
        }
    }
    Ok(Value::Object(object))
}

fn json_of(bytes: &[u8]) -> Result<Value, ProtoError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| ProtoError::malformed(format!("JSON inside a message: {error}")))
}

fn message(ty: TypeRef<'_>, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtoError> {
    let mut object = Map::new();
    read_level(ty, &[], bytes, &mut object, depth)?;
    Ok(object)
}

/// Reads one message of the wire, of which the embedded ones (those below `prefix`) lie flat in `object`.
fn read_level(
    ty: TypeRef<'_>,
    prefix: &[u8],
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    if depth > DEPTH_MAX {
        return Err(ProtoError::malformed(format!("messages are nested more than {DEPTH_MAX} deep")));
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        let here = |field: &FieldRef<'_>| {
            let number_of = field.wire_number();
            let levels = number_of.levels();
            levels.strip_prefix(prefix).and_then(<[u8]>::first).is_some_and(|first| u64::from(*first) == number)
        };
        // A number that the table does not know is of a newer version: it is passed over, as protobuf has it.
        let Some(field) = ty.fields().find(here) else { continue };
        let (level, levels) = (prefix.len() + 1, field.wire_number());
        match value {
            Wire::Bytes(bytes) if levels.levels().len() > level => {
                read_level(ty, &levels.levels()[..level], bytes, object, depth + 1)?;
            }
            value => put(Site { ty, field, depth }, value, object)?,
        }
    }
    Ok(())
}

/// Where in the message the reader is.
#[derive(Clone, Copy)]
struct Site<'t> {
    ty: TypeRef<'t>,
    field: FieldRef<'t>,
    depth: usize,
}

impl Site<'_> {
    fn mistyped(self) -> ProtoError {
        ProtoError::malformed(format!("field {}.{} has the wrong wire type", self.ty.name(), self.field.name()))
    }
}

/// Puts one occurrence of a field where it belongs.
fn put(site: Site<'_>, value: Wire<'_>, object: &mut Map<String, Value>) -> Result<(), ProtoError> {
    let field = site.field;
    match field.shape() {
        Shape::One(element) => {
            let value = element_of(site, element, value)?;
            let means_nothing = value.is_null() || (is_zero(&value) && !field.is_pointer() && !field.is_required());
            if !means_nothing {
                object.insert(field.name().to_owned(), value);
            }
        }
        Shape::List(element) => {
            let list = object.entry(field.name()).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Err(site.mistyped()) };
            match (element, value) {
                (Element::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool), Wire::Bytes(packed)) => {
                    let mut reader = Reader::new(packed);
                    while let Some(number) = reader.next_packed()? {
                        list.push(element_of(site, element, Wire::Varint(number))?);
                    }
                }
                (element, value) => list.push(element_of(site, element, value)?),
            }
        }
        Shape::Map(element) => {
            let Wire::Bytes(entry) = value else { return Err(site.mistyped()) };
            let (mut key, mut found) = ("", None);
            let mut reader = Reader::new(entry);
            while let Some((number, value)) = reader.next_field()? {
                match (number, value) {
                    (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                    (2, value) => found = Some(value),
                    (_, _) => {}
                }
            }
            let value = element_of(site, element, found.unwrap_or(Wire::Bytes(&[])))?;
            let map = object.entry(field.name()).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(map) = map else { return Err(site.mistyped()) };
            map.insert(key.to_owned(), value);
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn element_of(site: Site<'_>, element: Element<'_>, value: Wire<'_>) -> Result<Value, ProtoError> {
    match (element, value) {
        (Element::Object(ty), Wire::Bytes(bytes)) => message(ty, bytes, site.depth + 1).map(Value::Object),
        (Element::Scalar(scalar), value) => scalar_of(site, scalar, value),
        (Element::Object(_), _) => Err(site.mistyped()),
    }
}

fn scalar_of(site: Site<'_>, scalar: Scalar, value: Wire<'_>) -> Result<Value, ProtoError> {
    Ok(match (scalar, value) {
        (Scalar::Bool, Wire::Varint(value)) => Value::from(value != 0),
        (Scalar::Int32 | Scalar::Int64, Wire::Varint(value)) => Value::from(value.cast_signed()),
        (Scalar::Double, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
        (Scalar::String, Wire::Bytes(bytes)) => Value::from(text(bytes)?),
        (Scalar::Bytes, Wire::Bytes(bytes)) => Value::from(BASE64_STANDARD.encode(bytes)),
        (Scalar::Time, Wire::Bytes(bytes)) => time::decode(bytes, false)?.into(),
        (Scalar::MicroTime, Wire::Bytes(bytes)) => time::decode(bytes, true)?.into(),
        (Scalar::Quantity, Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(text_bytes)) => Value::from(text(text_bytes)?),
            // Go's zero Quantity writes an empty message.
            _ => Value::from("0"),
        },
        (Scalar::Raw | Scalar::Fields | Scalar::Json, Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(raw)) => json_of(raw)?,
            _ => Value::Null,
        },
        (Scalar::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Scalar::Strings, Wire::Bytes(bytes)) => strings(bytes, 1)?,
        (Scalar::SchemaOrArray, Wire::Bytes(bytes)) => match (first(bytes, 1)?, schemas(site, bytes, 2)?) {
            (Some(Wire::Bytes(schema)), _) => schema_of(site, schema)?,
            (_, schemas) => schemas,
        },
        (Scalar::SchemaOrBool, Wire::Bytes(bytes)) => match (first(bytes, 1)?, first(bytes, 2)?) {
            (_, Some(Wire::Bytes(schema))) => schema_of(site, schema)?,
            (allows, _) => Value::from(matches!(allows, Some(Wire::Varint(1)))),
        },
        (Scalar::SchemaOrStrings, Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(schema)) => schema_of(site, schema)?,
            _ => strings(bytes, 2)?,
        },
        (_, _) => return Err(site.mistyped()),
    })
}

/// The last value of field `number` in a message.
fn first(message: &[u8], number: u64) -> Result<Option<Wire<'_>>, ProtoError> {
    let mut found = None;
    let mut reader = Reader::new(message);
    while let Some((at, value)) = reader.next_field()? {
        if at == number {
            found = Some(value);
        }
    }
    Ok(found)
}

/// `intstr.IntOrString`: which of the two, the number, the string.
fn int_or_string(message: &[u8]) -> Result<Value, ProtoError> {
    match (first(message, 1)?, first(message, 2)?, first(message, 3)?) {
        (Some(Wire::Varint(1)), _, Some(Wire::Bytes(bytes))) => Ok(Value::from(text(bytes)?)),
        (Some(Wire::Varint(1)), _, _) => Ok(Value::from("")),
        (_, Some(Wire::Varint(number)), _) => Ok(Value::from(number.cast_signed())),
        (_, _, _) => Ok(Value::from(0)),
    }
}

fn strings(message: &[u8], number: u64) -> Result<Value, ProtoError> {
    let mut items = Vec::new();
    let mut reader = Reader::new(message);
    while let Some((at, value)) = reader.next_field()? {
        if let (true, Wire::Bytes(bytes)) = (at == number, value) {
            items.push(Value::from(text(bytes)?));
        }
    }
    Ok(Value::Array(items))
}

fn schemas(site: Site<'_>, message: &[u8], number: u64) -> Result<Value, ProtoError> {
    let mut items = Vec::new();
    let mut reader = Reader::new(message);
    while let Some((at, value)) = reader.next_field()? {
        if let (true, Wire::Bytes(bytes)) = (at == number, value) {
            items.push(schema_of(site, bytes)?);
        }
    }
    Ok(json!(items))
}

/// A CRD's schema stands in a schema: its type is the one in which the field stands.
fn schema_of(site: Site<'_>, bytes: &[u8]) -> Result<Value, ProtoError> {
    message(site.ty, bytes, site.depth + 1).map(Value::Object)
}
