//! Values seen through their schema: which fields they have, how two differ, how one merges into another.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::field_set::FieldSet;
use crate::{
    patch::interleave,
    schema::{Element, FieldRef, ListType, Shape, TypeRef},
};

/// What is known about a value.
#[derive(Clone, Copy)]
pub(super) enum Node<'t> {
    Object(TypeRef<'t>),
    /// A map with keys of the user's choice.
    Map(Element<'t>),
    /// A list whose items are told apart.
    List(FieldRef<'t>, Element<'t>),
    /// Owned as a whole.
    Leaf,
    /// No schema: objects merge, lists are owned as a whole.
    Open,
}

impl<'t> Node<'t> {
    fn of_element(element: Element<'t>) -> Self {
        match element {
            Element::Object(ty) if !ty.is_atomic() => Node::Object(ty),
            _ => Node::Leaf,
        }
    }

    fn of_field(field: FieldRef<'t>) -> Self {
        if field.is_atomic() {
            return Node::Leaf;
        }
        match field.shape() {
            Shape::One(Element::Object(ty)) => Node::Object(ty),
            Shape::One(Element::Scalar(_)) => Node::Leaf,
            Shape::Map(element) => Node::Map(element),
            Shape::List(element) => Node::List(field, element),
        }
    }

    /// The node of a key of an object or map.
    fn key(self, key: &str) -> Node<'t> {
        match self {
            Node::Object(ty) => ty.field(key).map_or(Node::Open, Node::of_field),
            Node::Map(element) => Node::of_element(element),
            Node::Open => Node::Open,
            Node::List(..) | Node::Leaf => Node::Leaf,
        }
    }

    /// Whether keys are fields of a struct, not of the user's choice.
    fn has_field(self, key: &str) -> bool {
        matches!(self, Node::Object(ty) if ty.field(key).is_some())
    }
}

/// The path element of a list's item.
fn item_element(field: FieldRef<'_>, element: Element<'_>, item: &Value) -> String {
    if field.list_type() == ListType::Set {
        return format!("v:{item}");
    }
    let mut keys = Map::new();
    for key in field.list_keys() {
        let default = || {
            let Element::Object(ty) = element else { return None };
            serde_json::from_str(ty.field(key)?.default_json()?).ok()
        };
        if let Some(value) = item.get(key).cloned().or_else(default) {
            keys.insert(key.to_owned(), value);
        }
    }
    format!("k:{}", Value::Object(keys))
}

fn as_object(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The fields that a configuration sets.
pub(super) fn set_of(node: Node<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (node, value) {
        (Node::Object(_) | Node::Map(_) | Node::Open, Value::Object(map)) => {
            for (key, value) in map {
                let mut child = set_of(node.key(key), value);
                let is_empty = value.as_object().is_some_and(Map::is_empty);
                if value.is_null() || is_empty || (!node.has_field(key) && !matches!(node, Node::Open)) {
                    child.enter();
                }
                set.put(format!("f:{key}"), child);
            }
        }
        (Node::List(field, element), Value::Array(items)) => {
            for item in items {
                let mut child = set_of(Node::of_element(element), item);
                child.enter();
                set.put(item_element(field, element, item), child);
            }
        }
        _ => set.enter(),
    }
    set
}

/// What a write changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Added or modified.
    pub(super) set: FieldSet,
    pub(super) removed: FieldSet,
}

impl Changes {
    fn put(&mut self, element: &str, child: Changes) {
        self.set.put(element.to_owned(), child.set);
        self.removed.put(element.to_owned(), child.removed);
    }
}

/// How `new` differs from `old`.
pub(super) fn compare(node: Node<'_>, old: Option<&Value>, new: Option<&Value>) -> Changes {
    let mut changes = Changes::default();
    if old == new {
        return changes;
    }
    match (node, old, new) {
        (Node::Object(_) | Node::Map(_) | Node::Open, ..) if are(Value::is_object, old, new) => {
            let (old, new) = (as_object(old), as_object(new));
            let keys: BTreeSet<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
            for key in keys {
                let (old, new) = (old.and_then(|map| map.get(key)), new.and_then(|map| map.get(key)));
                if old == new {
                    continue;
                }
                changes.put(&format!("f:{key}"), compare(node.key(key), old, new));
            }
        }
        (Node::List(field, element), ..) if are(Value::is_array, old, new) => {
            let (old, new) = (items_by_id(field, element, old), items_by_id(field, element, new));
            let ids: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for id in ids {
                let (old, new) = (old.get(id).copied(), new.get(id).copied());
                changes.put(id, compare(Node::of_element(element), old, new));
            }
        }
        (_, Some(_), None) => {}
        _ => changes.set.enter(),
    }
    // A container that comes or goes is itself a change.
    match (old, new) {
        (None, Some(_)) => changes.set.enter(),
        (Some(_), None) => changes.removed.enter(),
        _ => {}
    }
    changes
}

/// The items of a list by their path elements. Of items with the same one the last counts.
fn items_by_id<'v>(field: FieldRef<'_>, element: Element<'_>, list: Option<&'v Value>) -> BTreeMap<String, &'v Value> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items.map(|item| (item_element(field, element, item), item)).collect()
}

/// Whether what there is of both is of one form.
fn are(form: fn(&Value) -> bool, a: Option<&Value>, b: Option<&Value>) -> bool {
    a.is_none_or(form) && b.is_none_or(form)
}

/// `live` with what `config` says.
pub(super) fn merge(node: Node<'_>, live: Option<&Value>, config: &Value) -> Value {
    match (node, live, config) {
        (Node::Object(_) | Node::Map(_) | Node::Open, Some(Value::Object(live)), Value::Object(config)) => {
            let mut merged = live.clone();
            for (key, value) in config {
                merged.insert(key.clone(), merge(node.key(key), live.get(key), value));
            }
            Value::Object(merged)
        }
        (Node::List(field, element), Some(Value::Array(live)), Value::Array(config)) => {
            let id = |item: &Value| item_element(field, element, item);
            let order: Vec<String> = live.iter().map(id).collect();
            let wanted: Vec<String> = config.iter().map(id).collect();
            let applied = config.iter().map(|item| {
                let live = order.iter().position(|other| *other == id(item)).map(|index| &live[index]);
                merge(Node::of_element(element), live, item)
            });
            let others = live.iter().filter(|item| !wanted.contains(&id(item))).cloned();
            let place = |item: &Value| order.iter().position(|other| *other == id(item));
            Value::Array(interleave(applied.collect(), others.collect(), place))
        }
        _ => config.clone(),
    }
}

/// Takes `dropped` out of a value, and the containers that this empties, but nothing that is in `kept`.
pub(super) fn remove(node: Node<'_>, value: &mut Value, dropped: &FieldSet, kept: &FieldSet) {
    for (element, dropped) in dropped.children() {
        let kept_below = kept.child(element);
        let Some((child_node, id)) = locate(node, value, element) else { continue };
        let whole = dropped.is_member() && kept_below.is_none_or(FieldSet::is_empty);
        let empty_set = FieldSet::default();
        let emptied = !whole && {
            let Some(child) = child_mut(value, &id) else { continue };
            remove(child_node, child, dropped, kept_below.unwrap_or(&empty_set));
            kept_below.is_none_or(FieldSet::is_empty) && is_empty_container(child)
        };
        if whole || emptied {
            match (&mut *value, id) {
                (Value::Object(map), Place::Key(key)) => {
                    map.remove(key);
                }
                (Value::Array(items), Place::Index(index)) => {
                    items.remove(index);
                }
                _ => {}
            }
        }
    }
}

enum Place<'a> {
    Key(&'a str),
    Index(usize),
}

fn locate<'t, 'e>(node: Node<'t>, value: &Value, element: &'e str) -> Option<(Node<'t>, Place<'e>)> {
    match (node, element.strip_prefix("f:")) {
        (Node::List(field, item), None) => {
            let index = value.as_array()?.iter().position(|i| item_element(field, item, i) == element)?;
            Some((Node::of_element(item), Place::Index(index)))
        }
        (Node::Object(_) | Node::Map(_) | Node::Open, Some(key)) if value.get(key).is_some() => {
            Some((node.key(key), Place::Key(key)))
        }
        _ => None,
    }
}

fn child_mut<'v>(value: &'v mut Value, place: &Place<'_>) -> Option<&'v mut Value> {
    match place {
        Place::Key(key) => value.get_mut(key),
        Place::Index(index) => value.get_mut(index),
    }
}

fn is_empty_container(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
