//! Messages to JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    ProtoError, duration,
    wire::{Field, Reader},
};
use crate::{
    meta,
    quantity::Quantity,
    schema::{Element, FieldRef, OnWire, Scalar, Shape, TypeRef, is_kept},
};

/// Decodes one message. Fields that the table does not know are skipped, as clients may be newer.
pub(super) fn message(ty: TypeRef<'_>, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtoError> {
    let mut map = Map::new();
    level(ty, &[], bytes, depth, &mut map)?;
    map.retain(|name, value| ty.field(name).is_some_and(|field| is_kept(field, value)));
    Ok(map)
}

/// Reads the fields below `prefix`: those of an embedded message belong to the object that embeds it.
fn level(
    ty: TypeRef<'_>,
    prefix: &[u8],
    bytes: &[u8],
    depth: usize,
    map: &mut Map<String, Value>,
) -> Result<(), ProtoError> {
    let depth = depth.checked_sub(1).ok_or(ProtoError::TooDeep { max: super::DEPTH_MAX })?;
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        let Ok(number) = u8::try_from(number) else { continue };
        match ty.on_wire(prefix, number) {
            OnWire::Field(field) => put(field, value, depth, map)?,
            OnWire::Embedded => level(ty, &[prefix, &[number]].concat(), value.bytes()?, depth, map)?,
            OnWire::Unknown => {}
        }
    }
    Ok(())
}

fn put(field: FieldRef<'_>, value: Field<'_>, depth: usize, map: &mut Map<String, Value>) -> Result<(), ProtoError> {
    match field.shape() {
        Shape::One(one) => {
            map.insert(field.name().to_owned(), element(one, value, depth)?);
        }
        Shape::List(item) => {
            let list = map.entry(field.name()).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = list else { return Ok(()) };
            match (item, value) {
                // Packed numbers: proto3 clients may send them.
                (Element::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64), Field::Bytes(packed)) => {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        items.push(element(item, Field::Varint(reader.varint()?), depth)?);
                    }
                }
                _ => items.push(element(item, value, depth)?),
            }
        }
        Shape::Map(item) => {
            let mut entry = (String::new(), None);
            let mut reader = Reader::new(value.bytes()?);
            while let Some((number, value)) = reader.next_field()? {
                match number {
                    1 => value.text()?.clone_into(&mut entry.0),
                    2 => entry.1 = Some(value),
                    _ => {}
                }
            }
            let value = element(item, entry.1.unwrap_or(Field::Bytes(&[])), depth)?;
            let map = map.entry(field.name()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(entry.0, value);
            }
        }
    }
    Ok(())
}

fn element(element: Element<'_>, value: Field<'_>, depth: usize) -> Result<Value, ProtoError> {
    let scalar = match element {
        Element::Object(ty) => return message(ty, value.bytes()?, depth).map(Value::Object),
        Element::Scalar(scalar) => scalar,
    };
    Ok(match scalar {
        Scalar::String => value.text()?.into(),
        Scalar::Bool => (value.integer()? != 0).into(),
        Scalar::Int32 | Scalar::Int64 => value.integer()?.into(),
        Scalar::Double => value.double()?.into(),
        Scalar::Bytes => STANDARD.encode(value.bytes()?).into(),
        Scalar::Quantity => quantity(value.bytes()?)?,
        Scalar::IntOrString => int_or_string(value.bytes()?)?,
        Scalar::Duration => duration::decode(value.bytes()?)?.into(),
        Scalar::Time => time(value.bytes()?, meta::format_time)?,
        Scalar::MicroTime => time(value.bytes()?, meta::format_micro_time)?,
        Scalar::Strings => strings(value.bytes()?)?,
        Scalar::Fields => raw_json(value.bytes()?, "FieldsV1")?,
        Scalar::Raw => raw_json(value.bytes()?, "RawExtension")?,
        Scalar::Json => raw_json(value.bytes()?, "JSON")?,
        Scalar::SchemaOrArray | Scalar::SchemaOrBool | Scalar::SchemaOrStrings => {
            schema_or(scalar, value.bytes()?, depth)?
        }
    })
}

fn quantity(bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut text = "";
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        if number == 1 {
            text = value.text()?;
        }
    }
    if text.is_empty() {
        return Ok("0".into());
    }
    let quantity = Quantity::parse(text).map_err(|_| ProtoError::Malformed("quantity has the wrong form"))?;
    Ok(quantity.to_string().into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut is_text, mut number_value, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        match number {
            1 => is_text = value.integer()? == 1,
            2 => number_value = value.integer()?,
            3 => text = value.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number_value.into() })
}

/// An empty message is Go's zero time: unset.
fn time(bytes: &[u8], format: fn(Timestamp) -> String) -> Result<Value, ProtoError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        match number {
            1 => seconds = value.integer()?,
            2 => nanos = value.integer()?,
            _ => {}
        }
    }
    let out_of_range = ProtoError::Malformed("time out of range");
    let nanos = i32::try_from(nanos).map_err(|_| ProtoError::Malformed("time out of range"))?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| out_of_range)?;
    Ok(format(time).into())
}

fn strings(bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut items = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        if number == 1 {
            items.push(Value::from(value.text()?));
        }
    }
    Ok(Value::Array(items))
}

/// A message whose only field holds JSON.
fn raw_json(bytes: &[u8], what: &'static str) -> Result<Value, ProtoError> {
    let mut raw: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        if number == 1 {
            raw = value.bytes()?;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(raw).map_err(|_| ProtoError::NotJson(what))
}

/// The unions of a CRD's schema: a schema, or something simpler.
fn schema_or(scalar: Scalar, bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let props = super::encode::json_schema_props();
    let nested =
        |value: Field<'_>| -> Result<Value, ProtoError> { message(props, value.bytes()?, depth).map(Value::Object) };
    let (mut schema, mut list, mut allows) = (None, Vec::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next_field()? {
        match (scalar, number) {
            (Scalar::SchemaOrBool, 1) => allows = Some(value.integer()? != 0),
            (Scalar::SchemaOrBool, 2) | (_, 1) => schema = Some(nested(value)?),
            (Scalar::SchemaOrArray, 2) => list.push(nested(value)?),
            (Scalar::SchemaOrStrings, 2) => list.push(Value::from(value.text()?)),
            _ => {}
        }
    }
    Ok(match (schema, allows) {
        (Some(schema), _) => schema,
        (None, Some(allows)) => allows.into(),
        (None, None) if scalar == Scalar::SchemaOrBool => json!(false),
        (None, None) => Value::Array(list),
    })
}
