//! Strategic merge patch, by the schema table (apimachinery pkg/util/strategicpatch).
//!
//! Flow for each object of the patch: `$patch` decides whether it merges at all, `$retainKeys` clears what the object
//! may no longer have, then each field merges by its shape, and lists with `$setElementOrder` are put in order.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Element, Shape, TypeRef};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of type `ty`.
pub fn strategic_merge(ty: TypeRef<'_>, doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("invalid patch: must be an object".to_owned()));
    };
    let Value::Object(map) = doc else {
        return Err(PatchError::Unprocessable("the object to patch is no object".to_owned()));
    };
    merge_map(map, patch, Node::Typed(ty))
}

/// What is known about a value of the patch.
#[derive(Clone, Copy)]
enum Node<'t> {
    Typed(TypeRef<'t>),
    /// A map whose values are of one type.
    MapOf(TypeRef<'t>),
    /// Nothing: objects merge, lists are replaced.
    Open,
}

/// How one field merges.
struct FieldRule<'t> {
    node: Node<'t>,
    /// Lists only: whether items merge, and by which key.
    merges: bool,
    merge_key: Option<&'t str>,
    replaces: bool,
}

impl<'t> Node<'t> {
    fn field(self, name: &str) -> FieldRule<'t> {
        let open = FieldRule { node: Node::Open, merges: false, merge_key: None, replaces: false };
        match self {
            Node::Open => open,
            Node::MapOf(ty) => FieldRule { node: Node::Typed(ty), ..open },
            Node::Typed(ty) => {
                let Some(field) = ty.field(name) else { return open };
                let node = match field.shape() {
                    Shape::One(Element::Object(ty)) | Shape::List(Element::Object(ty)) => Node::Typed(ty),
                    Shape::Map(Element::Object(ty)) => Node::MapOf(ty),
                    _ => Node::Open,
                };
                let (merges, merge_key) = (field.merges(), field.merge_key());
                FieldRule { node, merges, merge_key, replaces: field.replaces() }
            }
        }
    }
}

fn bad(text: impl Into<String>) -> PatchError {
    PatchError::Unprocessable(text.into())
}

fn merge_map(doc: &mut Map<String, Value>, patch: &Map<String, Value>, node: Node<'_>) -> Result<(), PatchError> {
    match patch.get(DIRECTIVE).map(|directive| (directive, directive.as_str())) {
        None | Some((_, Some("merge"))) => {}
        Some((_, Some("replace"))) => {
            *doc = without_directives(patch)?;
            return Ok(());
        }
        Some((_, Some("delete"))) => {
            doc.clear();
            return Ok(());
        }
        Some((directive, _)) => return Err(bad(format!("unknown patch type: {directive}"))),
    }
    retain_keys(doc, patch)?;
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(doc, field, value)?;
        } else {
            let order = patch.get(&format!("{SET_ORDER}{key}"));
            merge_field(doc, key, value, order, node)?;
        }
    }
    for (key, order) in patch {
        // An order without a patch of the list itself only moves items.
        if let Some(field) = key.strip_prefix(SET_ORDER)
            && !patch.contains_key(field)
        {
            let rule = node.field(field);
            if let Some(Value::Array(items)) = doc.get_mut(field) {
                let before = items.clone();
                set_order(items, &before, order, rule.merge_key)?;
            }
        }
    }
    Ok(())
}

/// Drops what `$retainKeys` does not name. The patch may only set what it names.
fn retain_keys(doc: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), PatchError> {
    let Some(list) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let wrong = || bad("invalid patch format of retainKeys");
    let list = list.as_array().ok_or_else(wrong)?;
    let names = |key: &str| list.iter().any(|item| item.as_str() == Some(key));
    let stray = patch.iter().any(|(key, value)| {
        let is_directive =
            key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM_LIST);
        !is_directive && !value.is_null() && !names(key)
    });
    if stray {
        return Err(wrong());
    }
    doc.retain(|key, _| names(key));
    Ok(())
}

fn delete_from_list(doc: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), PatchError> {
    let values = values.as_array().ok_or_else(|| bad("invalid patch format of primitive list"))?;
    if let Some(Value::Array(items)) = doc.get_mut(field) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn merge_field(
    doc: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    order: Option<&Value>,
    node: Node<'_>,
) -> Result<(), PatchError> {
    let rule = node.field(key);
    match (doc.get_mut(key), value) {
        (_, Value::Null) => {
            doc.remove(key);
        }
        (Some(Value::Object(target)), Value::Object(patch)) if !rule.replaces => merge_map(target, patch, rule.node)?,
        (Some(Value::Array(items)), Value::Array(patch)) if rule.merges => {
            let before = items.clone();
            merge_list(items, patch, &rule)?;
            if let Some(order) = order {
                check_order(patch, order, rule.merge_key)?;
                set_order(items, &before, order, rule.merge_key)?;
            }
        }
        (None, value) => {
            if let Some(value) = clean(value)? {
                doc.insert(key.to_owned(), value);
            }
        }
        (Some(target), value) => {
            if let Some(value) = clean(value)? {
                *target = value;
            }
        }
    }
    Ok(())
}

fn merge_list(items: &mut Vec<Value>, patch: &[Value], rule: &FieldRule<'_>) -> Result<(), PatchError> {
    let of_objects = items.iter().chain(patch).any(Value::is_object);
    if !of_objects {
        for value in patch {
            if !items.contains(value) {
                items.push(value.clone());
            }
        }
        return Ok(());
    }
    let key = rule.merge_key.ok_or_else(|| bad("cannot merge lists of objects without a merge key"))?;
    if patch.iter().any(|item| directive(item) == Some("replace")) {
        items.clear();
    }
    for item in patch {
        let Value::Object(map) = item else {
            return Err(bad("invalid patch format: list of objects holds another value"));
        };
        match directive(item) {
            None => merge_item(items, map, key, rule.node)?,
            // Marks the list as replaced; may carry an item of its own.
            Some("replace") => {
                if map.len() > 1 {
                    items.push(Value::Object(without_directives(map)?));
                }
            }
            Some("delete") => {
                let id = map.get(key).ok_or_else(|| missing_key(map, key))?;
                items.retain(|item| item.get(key) != Some(id));
            }
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(bad(format!("unknown patch type: {other}"))),
        }
    }
    Ok(())
}

fn directive(item: &Value) -> Option<&str> {
    item.get(DIRECTIVE)?.as_str()
}

fn missing_key(map: &Map<String, Value>, key: &str) -> PatchError {
    bad(format!("map: {} does not contain declared merge key: {key}", Value::Object(map.clone())))
}

fn merge_item(items: &mut Vec<Value>, patch: &Map<String, Value>, key: &str, node: Node<'_>) -> Result<(), PatchError> {
    let id = patch.get(key).ok_or_else(|| missing_key(patch, key))?;
    let existing = items.iter_mut().find(|item| item.get(key) == Some(id));
    match existing {
        Some(Value::Object(map)) => merge_map(map, patch, node),
        _ => {
            items.push(Value::Object(without_directives(patch)?));
            Ok(())
        }
    }
}

/// A value of the patch as it enters the object: without directives and nulls. `None` for one that deletes itself.
fn clean(value: &Value) -> Result<Option<Value>, PatchError> {
    Ok(Some(match value {
        Value::Object(map) if directive(value) == Some("delete") => {
            if map.len() > 1 {
                return Ok(None);
            }
            Value::Object(Map::new())
        }
        Value::Object(map) => Value::Object(without_directives(map)?),
        Value::Array(items) => {
            let mut cleaned = Vec::with_capacity(items.len());
            for item in items {
                let only_directive = item.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(DIRECTIVE));
                if only_directive || directive(item) == Some("delete") {
                    continue;
                }
                cleaned.extend(clean(item)?);
            }
            Value::Array(cleaned)
        }
        scalar => scalar.clone(),
    }))
}

fn without_directives(map: &Map<String, Value>) -> Result<Map<String, Value>, PatchError> {
    let mut cleaned = Map::new();
    for (key, value) in map {
        let is_directive =
            key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM_LIST);
        if is_directive || value.is_null() {
            continue;
        }
        if let Some(value) = clean(value)? {
            cleaned.insert(key.clone(), value);
        }
    }
    Ok(cleaned)
}

/// What an item of a list is known by: its merge key's value, or itself.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> &'a Value {
    key.and_then(|key| item.get(key)).unwrap_or(item)
}

/// Every item of the patch must have a place in the order.
fn check_order(patch: &[Value], order: &Value, key: Option<&str>) -> Result<(), PatchError> {
    let order_list = order.as_array().ok_or_else(|| bad("invalid patch format of setElementOrder list"))?;
    let mut places = order_list.iter().map(|item| identity(item, key));
    let kept = patch.iter().filter(|item| directive(item) != Some("delete"));
    for item in kept {
        if !places.any(|place| place == identity(item, key)) {
            return Err(bad(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{order}\n",
                Value::Array(patch.to_vec())
            )));
        }
    }
    Ok(())
}

/// Puts the items that `order` names in its order, and the others where they were relative to them.
fn set_order(items: &mut Vec<Value>, before: &[Value], order: &Value, key: Option<&str>) -> Result<(), PatchError> {
    let order = order.as_array().ok_or_else(|| bad("invalid patch format of setElementOrder list"))?;
    let place = |item: &Value| order.iter().position(|o| identity(o, key) == identity(item, key));
    let server = |item: &Value| before.iter().position(|b| identity(b, key) == identity(item, key));
    let (mut ordered, mut others): (Vec<Value>, Vec<Value>) = items.drain(..).partition(|item| place(item).is_some());
    ordered.sort_by_key(|item| place(item));
    others.sort_by(|a, b| match (server(a), server(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => Ordering::Equal,
    });
    *items = super::interleave(ordered, others, server);
    Ok(())
}
