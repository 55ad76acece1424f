//! Strategic merge patch, by the schema table (apimachinery pkg/util/strategicpatch).
//!
//! Flow for each object of the patch: `$patch` decides whether it merges at all, `$retainKeys` clears what the object
//! may no longer have, then each field merges by its shape. A merged list has the order of `$setElementOrder`, or else of
//! the patch, for what these name; other items keep their order, and stand before the first that followed them.
//!
//! Items are found by an index of their keys: a patch of n items costs n log n, not n².

use std::collections::{HashMap, HashSet};

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
    if let Some(directive) = patch.get(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => *doc = without_directives(patch),
            Some("delete") => doc.clear(),
            _ => return Err(unknown_directive(directive, patch)),
        }
        return Ok(());
    }
    retain_keys(doc, patch)?;
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            merge_in_order(doc, field, patch.get(field), order, node)?;
        }
    }
    for (key, value) in patch {
        if key == RETAIN_KEYS || key.starts_with(SET_ORDER) || patch.contains_key(&format!("{SET_ORDER}{key}")) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(doc, field, value)?;
        } else {
            merge_field(doc, key, value, node)?;
        }
    }
    Ok(())
}

fn unknown_directive(directive: &Value, patch: &Map<String, Value>) -> PatchError {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    bad(format!("unknown patch type: {directive} in map: {}", Value::Object(patch.clone())))
}

/// Drops what `$retainKeys` does not name. The patch may only set what it names.
fn retain_keys(doc: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), PatchError> {
    let Some(list) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let wrong = || bad("invalid patch format of retainKeys");
    let names: HashSet<&str> = list.as_array().ok_or_else(wrong)?.iter().filter_map(Value::as_str).collect();
    let stray = patch.iter().any(|(key, value)| {
        let is_directive = key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM_LIST);
        !is_directive && !value.is_null() && !names.contains(key.as_str())
    });
    if stray {
        return Err(wrong());
    }
    doc.retain(|key, _| names.contains(key.as_str()));
    Ok(())
}

fn delete_from_list(doc: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), PatchError> {
    if values.is_null() {
        doc.remove(field);
        return Ok(());
    }
    let values = values.as_array().ok_or_else(|| bad("invalid patch format of primitive list"))?;
    if let Some(Value::Array(items)) = doc.get_mut(field) {
        let values: HashSet<&Value> = values.iter().collect();
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

/// Merges the list that has a `$setElementOrder`, if the patch has it at all, and puts it in that order.
fn merge_in_order(
    doc: &mut Map<String, Value>,
    field: &str,
    patch: Option<&Value>,
    order: &Value,
    node: Node<'_>,
) -> Result<(), PatchError> {
    let no_list = || bad("invalid patch format of setElementOrder list");
    let rule = node.field(field);
    let order = order.as_array().ok_or_else(no_list)?;
    let patch = patch.map(|patch| patch.as_array().ok_or_else(no_list)).transpose()?;
    let before = match doc.get(field) {
        Some(Value::Array(items)) => Some(items.clone()),
        Some(_) => return Err(no_list()),
        None => None,
    };
    if let Some(patch) = patch {
        check_order(patch, order, rule.merge_key)?;
    }
    let merged = match (&before, patch) {
        (None, None) => return Ok(()),
        (Some(before), None) => before.clone(),
        (None, Some(patch)) => cleaned_items(patch),
        (Some(before), Some(patch)) if rule.merges => merge_list(before.clone(), patch, &rule)?,
        (Some(_), Some(patch)) => patch.clone(),
    };
    let merged = arrange(merged, order, before.as_deref().unwrap_or_default(), rule.merge_key)?;
    doc.insert(field.to_owned(), Value::Array(merged));
    Ok(())
}

fn merge_field(doc: &mut Map<String, Value>, key: &str, value: &Value, node: Node<'_>) -> Result<(), PatchError> {
    let rule = node.field(key);
    match (doc.get_mut(key), value) {
        (_, Value::Null) => {
            doc.remove(key);
        }
        (Some(Value::Object(target)), Value::Object(patch)) if !rule.replaces => merge_map(target, patch, rule.node)?,
        (Some(Value::Array(items)), Value::Array(patch)) if rule.merges => {
            *items = merge_list(std::mem::take(items), patch, &rule)?;
        }
        (Some(target @ Value::Array(_)), Value::Array(_)) => *target = value.clone(),
        (_, value) => match clean(value) {
            Some(value) => {
                doc.insert(key.to_owned(), value);
            }
            None => {
                doc.remove(key);
            }
        },
    }
    Ok(())
}

/// A list with a patch merged into it, in the patch's order.
fn merge_list(items: Vec<Value>, patch: &[Value], rule: &FieldRule<'_>) -> Result<Vec<Value>, PatchError> {
    if items.is_empty() && patch.is_empty() {
        return Ok(items);
    }
    let mut kinds = items.iter().chain(patch).map(std::mem::discriminant);
    let first = kinds.next();
    if kinds.any(|kind| Some(kind) != first) {
        return Err(bad("list element types are not identical"));
    }
    match patch.first().or(items.first()) {
        Some(Value::Array(_)) => Err(bad("lists of lists are not supported")),
        Some(Value::Object(_)) => merge_objects(items, patch, rule),
        _ => {
            let mut seen = HashSet::new();
            let mut merged: Vec<Value> = items.iter().chain(patch).cloned().collect();
            merged.retain(|item| seen.insert(item.clone()));
            arrange(merged, patch, &items, None)
        }
    }
}

fn merge_objects(mut items: Vec<Value>, patch: &[Value], rule: &FieldRule<'_>) -> Result<Vec<Value>, PatchError> {
    let key = rule.merge_key.ok_or_else(|| bad("cannot merge lists without merge key"))?;
    let mut plain = Vec::with_capacity(patch.len());
    let mut deleted = HashSet::new();
    let mut replaces = false;
    for item in patch {
        let Value::Object(map) = item else { continue };
        match map.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    deleted.insert(map.get(key).ok_or_else(|| missing_key(item, key))?);
                }
                // Such an item only marks the list as replaced by the others.
                Some("replace") => replaces = true,
                Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
                _ => return Err(unknown_directive(directive, map)),
            },
        }
    }
    if replaces {
        let items: Vec<Value> = plain.into_iter().cloned().collect();
        return arrange(items.clone(), &[], &items, Some(key));
    }
    items.retain(|item| item.get(key).is_none_or(|id| !deleted.contains(id)));
    let before = items.clone();
    let mut places = HashMap::with_capacity(items.len());
    for (place, item) in before.iter().enumerate() {
        if let Some(id) = item.get(key) {
            places.entry(id).or_insert(place);
        }
    }
    for item in &plain {
        let Value::Object(map) = item else { continue };
        let id = map.get(key).ok_or_else(|| missing_key(item, key))?;
        let place = *places.entry(id).or_insert(items.len());
        match items.get_mut(place) {
            Some(Value::Object(target)) => merge_map(target, map, rule.node)?,
            _ => items.push(Value::Object(without_directives(map))),
        }
    }
    let order: Vec<Value> = plain.into_iter().cloned().collect();
    arrange(items, &order, &before, Some(key))
}

fn missing_key(item: &Value, key: &str) -> PatchError {
    bad(format!("map: {item} does not contain declared merge key: {key}"))
}

/// A value of the patch as it enters the object: without nulls and directives. `None` for an object with a directive.
fn clean(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => return None,
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(cleaned_items(items)),
        scalar => scalar.clone(),
    })
}

fn cleaned_items(items: &[Value]) -> Vec<Value> {
    items.iter().filter_map(clean).collect()
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    let is_directive = |key: &str| {
        key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM_LIST)
    };
    let fields = map.iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
    fields.filter_map(|(key, value)| Some((key.clone(), clean(value)?))).collect()
}

/// What an item of a list is known by: its merge key's value, or itself.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Result<&'a Value, PatchError> {
    key.map_or(Ok(item), |key| item.get(key).ok_or_else(|| missing_key(item, key)))
}

/// Where each item stands, by its identity; of several with one identity the first counts.
fn places<'a>(items: &'a [Value], key: Option<&str>) -> Result<HashMap<&'a Value, usize>, PatchError> {
    let mut places = HashMap::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        places.entry(identity(item, key)?).or_insert(place);
    }
    Ok(places)
}

/// Every item of the patch that is not deleted must have a place in the order, and in the order's order.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if order.is_empty() || patch.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let id = identity(item, key)?;
        let found = rest.find_map(|other| match identity(other, key) {
            Ok(other) if other == id => Some(Ok(())),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        found.unwrap_or_else(|| {
            Err(bad(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::Array(patch.to_vec()),
                Value::Array(order.to_vec())
            )))
        })?;
    }
    Ok(())
}

/// Puts the items that `order` names in its order and the others in that of `before`. One of the others goes before the
/// first named item that stood behind it.
fn arrange(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Result<Vec<Value>, PatchError> {
    let (order, before) = (places(order, key)?, places(before, key)?);
    let (mut named, mut others) = (Vec::with_capacity(order.len()), Vec::with_capacity(items.len()));
    for item in items {
        let id = identity(&item, key)?;
        let (place, earlier) = (order.get(id).copied(), before.get(id).copied());
        match place {
            Some(place) => named.push((place, earlier, item)),
            None => others.push((earlier.unwrap_or(usize::MAX), earlier, item)),
        }
    }
    named.sort_by_key(|(place, ..)| *place);
    others.sort_by_key(|(place, ..)| *place);
    let mut arranged = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    for (_, earlier, item) in others {
        let precedes = |next: &(usize, Option<usize>, Value)| matches!((earlier, next.1), (Some(a), Some(b)) if a < b);
        while let Some(next) = named.next_if(|next| !precedes(next)) {
            arranged.push(next.2);
        }
        arranged.push(item);
    }
    arranged.extend(named.map(|(_, _, item)| item));
    Ok(arranged)
}
