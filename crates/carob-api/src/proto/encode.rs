//! JSON to protobuf.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use super::wire::{put_bytes, put_fixed64, put_number};
use super::{DEPTH_MAX, MAGIC, MEDIA_TYPE, ProtoError, time};
use crate::meta;
use crate::schema::{Element, FieldRef, Scalar, Shape, TypeRef};

/// Encodes an object into the envelope.
pub fn encode(ty: TypeRef<'_>, obj: &Value) -> Result<Vec<u8>, ProtoError> {
    let object = obj.as_object().ok_or_else(|| ProtoError::malformed("an object was expected"))?;
    let raw = message(ty, object, 0)?;
    Ok(envelope(meta::api_version(obj), meta::kind(obj), &raw, ""))
}

/// The envelope around bytes, which are protobuf unless `content_type` says otherwise (custom resources as JSON).
pub fn envelope(api_version: &str, kind: &str, raw: &[u8], content_type: &str) -> Vec<u8> {
    let mut type_meta = Vec::new();
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + type_meta.len() + 32);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, if content_type == MEDIA_TYPE { b"" } else { content_type.as_bytes() });
    out
}

fn message(ty: TypeRef<'_>, object: &Map<String, Value>, depth: usize) -> Result<Vec<u8>, ProtoError> {
    if depth > DEPTH_MAX {
        return Err(ProtoError::malformed(format!("objects are nested more than {DEPTH_MAX} deep")));
    }
    let known = object.iter().filter(|(_, value)| !value.is_null());
    let mut fields: Vec<Site<'_, '_>> = known
        .filter_map(|(name, value)| Some(Site { ty, field: ty.field(name)?, value, depth }))
        .filter(|site| !site.field.wire_number().levels().is_empty())
        .collect();
    fields.sort_by_key(|site| site.field.wire_number().0);
    let mut out = Vec::new();
    write_level(&fields, 0, &mut out)?;
    Ok(out)
}

/// A field with its value.
#[derive(Clone, Copy)]
struct Site<'t, 'v> {
    ty: TypeRef<'t>,
    field: FieldRef<'t>,
    value: &'v Value,
    depth: usize,
}

impl Site<'_, '_> {
    fn mistyped(self) -> ProtoError {
        ProtoError::malformed(format!("the value of {}.{} has another type", self.ty.name(), self.field.name()))
    }
}

/// Writes fields that are sorted by number; those that share a message of the wire at this level are adjacent.
fn write_level(fields: &[Site<'_, '_>], level: usize, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    for group in fields.chunk_by(|a, b| a.field.wire_number().0[level] == b.field.wire_number().0[level]) {
        let numbers = group[0].field.wire_number();
        let number = numbers.0[level];
        if numbers.levels().len() > level + 1 {
            let mut embedded = Vec::new();
            write_level(group, level + 1, &mut embedded)?;
            put_bytes(out, number, &embedded);
        } else {
            group.iter().try_for_each(|site| write_field(*site, number, out))?;
        }
    }
    Ok(())
}

fn write_field(site: Site<'_, '_>, number: u8, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    match (site.field.shape(), site.value) {
        (Shape::One(element), value) => write_element(site, element, value, number, out),
        (Shape::List(element), Value::Array(items)) => {
            items.iter().try_for_each(|item| write_element(site, element, item, number, out))
        }
        (Shape::Map(element), Value::Object(map)) => map.iter().try_for_each(|(key, value)| {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            write_element(site, element, value, 2, &mut entry)?;
            put_bytes(out, number, &entry);
            Ok(())
        }),
        (Shape::List(_) | Shape::Map(_), _) => Err(site.mistyped()),
    }
}

fn write_element(
    site: Site<'_, '_>,
    element: Element<'_>,
    value: &Value,
    number: u8,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    match (element, value) {
        (Element::Object(ty), Value::Object(object)) => {
            put_bytes(out, number, &message(ty, object, site.depth + 1)?);
            Ok(())
        }
        // A null in a list of objects is Go's zero object.
        (Element::Object(_), Value::Null) => {
            put_bytes(out, number, b"");
            Ok(())
        }
        (Element::Object(_), _) => Err(site.mistyped()),
        (Element::Scalar(scalar), value) => write_scalar(site, scalar, value, number, out),
    }
}

fn write_scalar(
    site: Site<'_, '_>,
    scalar: Scalar,
    value: &Value,
    number: u8,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let text = || value.as_str().ok_or_else(|| site.mistyped());
    match scalar {
        Scalar::Bool => put_number(out, number, u64::from(value.as_bool().ok_or_else(|| site.mistyped())?)),
        Scalar::Int32 | Scalar::Int64 => {
            put_number(out, number, value.as_i64().ok_or_else(|| site.mistyped())?.cast_unsigned());
        }
        Scalar::Double => put_fixed64(out, number, value.as_f64().ok_or_else(|| site.mistyped())?.to_bits()),
        Scalar::String => put_bytes(out, number, text()?.as_bytes()),
        Scalar::Bytes => put_bytes(out, number, &BASE64_STANDARD.decode(text()?).map_err(|_| site.mistyped())?),
        Scalar::Time | Scalar::MicroTime => put_bytes(out, number, &time::encode(text()?)?),
        Scalar::Quantity => {
            // A quantity may be a JSON number; its canonical text is what stands on the wire.
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            put_bytes(out, number, &field_bytes(1, text.as_bytes()));
        }
        Scalar::Raw | Scalar::Fields | Scalar::Json => {
            put_bytes(out, number, &field_bytes(1, value.to_string().as_bytes()));
        }
        Scalar::IntOrString => put_bytes(out, number, &int_or_string(site, value)?),
        Scalar::Strings => put_bytes(out, number, &strings(site, value, 1)?),
        Scalar::SchemaOrArray | Scalar::SchemaOrBool | Scalar::SchemaOrStrings => {
            put_bytes(out, number, &schema_or(site, scalar, value)?);
        }
    }
    Ok(())
}

fn field_bytes(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, number, bytes);
    out
}

fn int_or_string(site: Site<'_, '_>, value: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut out = Vec::new();
    match value {
        Value::String(text) => {
            put_number(&mut out, 1, 1);
            put_bytes(&mut out, 3, text.as_bytes());
        }
        Value::Number(number) => {
            put_number(&mut out, 1, 0);
            put_number(&mut out, 2, number.as_i64().ok_or_else(|| site.mistyped())?.cast_unsigned());
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return Err(site.mistyped()),
    }
    Ok(out)
}

fn strings(site: Site<'_, '_>, value: &Value, number: u8) -> Result<Vec<u8>, ProtoError> {
    let mut out = Vec::new();
    for item in value.as_array().ok_or_else(|| site.mistyped())? {
        put_bytes(&mut out, number, item.as_str().ok_or_else(|| site.mistyped())?.as_bytes());
    }
    Ok(out)
}

/// A schema, or what its place may hold instead: a list of schemas, a boolean, a list of strings.
fn schema_or(site: Site<'_, '_>, scalar: Scalar, value: &Value) -> Result<Vec<u8>, ProtoError> {
    let schema = |value: &Value| match value {
        Value::Object(object) => message(site.ty, object, site.depth + 1),
        _ => Err(site.mistyped()),
    };
    let mut out = Vec::new();
    match (scalar, value) {
        (Scalar::SchemaOrBool, Value::Bool(allows)) => put_number(&mut out, 1, u64::from(*allows)),
        (Scalar::SchemaOrBool, value) => {
            put_number(&mut out, 1, 1);
            put_bytes(&mut out, 2, &schema(value)?);
        }
        (Scalar::SchemaOrArray, Value::Array(items)) => {
            for item in items {
                put_bytes(&mut out, 2, &schema(item)?);
            }
        }
        (Scalar::SchemaOrStrings, Value::Array(_)) => out = strings(site, value, 2)?,
        (_, value) => put_bytes(&mut out, 1, &schema(value)?),
    }
    Ok(out)
}
