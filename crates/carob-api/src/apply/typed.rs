//! Values seen through their schema: which fields they have, how two differ, how one merges into another.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use super::field_set::{FieldSet, printed};
use crate::schema::{self, Element, FieldRef, ListType, Schema, Shape, TypeRef, structural};

/// What is known about a value.
#[derive(Clone, Copy)]
pub(super) enum Node<'t> {
    Object(TypeRef<'t>),
    /// A map with keys of the user's choice.
    Map(Element<'t>),
    /// A list whose items are told apart.
    List(List<'t>),
    /// An object or map of a custom kind.
    Custom(&'t structural::Node, Place),
    /// Owned as a whole.
    Leaf,
    /// No schema: objects merge, lists are owned as a whole.
    Open,
}

/// What a node of a custom kind's schema stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// An object with apiVersion, kind and metadata.
    Whole,
    Field,
}

/// The schema of a list whose items are told apart.
#[derive(Clone, Copy)]
pub(super) enum List<'t> {
    Table(FieldRef<'t>, Element<'t>),
    Custom(&'t structural::Node),
}

impl<'t> List<'t> {
    fn list_type(self) -> ListType {
        match self {
            List::Table(field, _) => field.list_type(),
            List::Custom(node) => node.list_type,
        }
    }

    fn item(self) -> Node<'t> {
        match self {
            List::Table(_, element) => Node::of_element(element),
            List::Custom(node) => node.items.as_deref().map_or(Node::Leaf, Node::of_custom),
        }
    }

    /// The keys that tell items apart, with what stands for an absent one.
    fn keys(self) -> Vec<(&'t str, Option<Value>)> {
        match self {
            List::Table(field, element) => {
                let default = |key: &str| {
                    let Element::Object(ty) = element else { return None };
                    let field = ty.field(key)?;
                    match (field.default_json(), field.shape()) {
                        (Some(default), _) => serde_json::from_str(default).ok(),
                        // What is always written has a value always.
                        (None, Shape::One(Element::Scalar(schema::Scalar::String))) if field.is_required() => {
                            Some("".into())
                        }
                        (None, _) => None,
                    }
                };
                field.list_keys().map(|key| (key, default(key))).collect()
            }
            List::Custom(node) => {
                let default = |key: &str| node.items.as_ref()?.property(key)?.default.as_deref().cloned();
                node.list_keys().map(|key| (key, default(key))).collect()
            }
        }
    }
}

impl<'t> Node<'t> {
    pub(super) fn root(schema: Option<Schema<'t>>) -> Self {
        match schema {
            None => Node::Open,
            Some(Schema::Table(ty)) => Node::Object(ty),
            Some(Schema::Custom(custom)) => Node::Custom(custom.node(), Place::Whole),
        }
    }

    fn of_custom(node: &'t structural::Node) -> Self {
        match node.ty {
            structural::Type::Array if node.list_type == ListType::Atomic => Node::Leaf,
            structural::Type::Array => Node::List(List::Custom(node)),
            structural::Type::Object if node.is_atomic_map => Node::Leaf,
            structural::Type::Object if node.is_embedded => Node::Custom(node, Place::Whole),
            structural::Type::Object => Node::Custom(node, Place::Field),
            structural::Type::Any if node.preserves_unknown => Node::Open,
            _ => Node::Leaf,
        }
    }

    fn custom_key(node: &'t structural::Node, place: Place, key: &str) -> Self {
        if place == Place::Whole && key == "metadata" {
            return schema::builtin().get("meta.v1.ObjectMeta").map_or(Node::Open, Node::Object);
        }
        node.key(key).map_or(Node::Open, Node::of_custom)
    }

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
            Shape::List(element) => Node::List(List::Table(field, element)),
        }
    }

    /// The node of a key of an object or map.
    fn key(self, key: &str) -> Node<'t> {
        match self {
            Node::Object(ty) => ty.field(key).map_or(Node::Open, Node::of_field),
            Node::Map(element) => Node::of_element(element),
            Node::Open => Node::Open,
            Node::Custom(node, place) => Node::custom_key(node, place, key),
            Node::List(_) | Node::Leaf => Node::Leaf,
        }
    }

    /// For a field that Go writes even when it is empty: whether it is a list.
    fn written(self, key: &str) -> Option<bool> {
        let Node::Object(ty) = self else { return None };
        let field = ty.field(key).filter(|field| field.is_written())?;
        Some(matches!(field.shape(), Shape::List(_)))
    }

    /// Whether keys are fields of a struct, not of the user's choice.
    fn has_field(self, key: &str) -> bool {
        match self {
            Node::Object(ty) => ty.field(key).is_some(),
            Node::Custom(node, place) => {
                node.property(key).is_some()
                    || (place == Place::Whole && matches!(key, "apiVersion" | "kind" | "metadata"))
            }
            _ => false,
        }
    }
}

/// The path element of a list's item.
fn item_element(list: List<'_>, item: &Value) -> String {
    if list.list_type() == ListType::Set {
        return format!("v:{}", go_json(item));
    }
    let mut keys = Map::new();
    for (key, default) in list.keys() {
        if let Some(value) = item.get(key).cloned().or(default) {
            keys.insert(key.to_owned(), value);
        }
    }
    format!("k:{}", go_json(&Value::Object(keys)))
}

/// JSON as Go writes it, with what HTML would read escaped: path elements are compared as text, also with upstream's.
fn go_json(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(['<', '>', '&']) {
        return text;
    }
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// The path element of an item of a custom kind's list, if its items are told apart.
pub(super) fn custom_item(node: &structural::Node, item: &Value) -> Option<String> {
    (node.list_type != ListType::Atomic).then(|| item_element(List::Custom(node), item))
}

fn as_object(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The fields that a configuration sets.
pub(super) fn set_of(node: Node<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (node, value) {
        (Node::Object(_) | Node::Map(_) | Node::Custom(..) | Node::Open, Value::Object(map)) => {
            for (key, value) in map {
                let mut child = set_of(node.key(key), value);
                let is_empty = value.as_object().is_some_and(Map::is_empty);
                if value.is_null() || is_empty || (!node.has_field(key) && !matches!(node, Node::Open)) {
                    child.enter();
                }
                set.put(format!("f:{key}"), child);
            }
        }
        (Node::List(list), Value::Array(items)) => {
            for item in items {
                let mut child = set_of(list.item(), item);
                child.enter();
                set.put(item_element(list, item), child);
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
    fn put(&mut self, element: String, child: Changes) {
        if !child.removed.is_empty() {
            self.removed.put(element.clone(), child.removed);
        }
        self.set.put(element, child.set);
    }
}

/// How `new` differs from `old`.
pub(super) fn compare(node: Node<'_>, old: Option<&Value>, new: Option<&Value>) -> Changes {
    let mut changes = Changes::default();
    if old == new {
        return changes;
    }
    match (node, old, new) {
        (Node::Object(_) | Node::Map(_) | Node::Custom(..) | Node::Open, ..) if are(Value::is_object, old, new) => {
            let (old, new) = (as_object(old), as_object(new));
            let gone = old.into_iter().flat_map(Map::keys).filter(|key| new.is_none_or(|new| !new.contains_key(*key)));
            let (no_map, no_list) = (Value::Object(Map::new()), Value::Array(Vec::new()));
            for key in new.into_iter().flat_map(Map::keys).chain(gone) {
                let empty = || node.written(key).map(|is_list| if is_list { &no_list } else { &no_map });
                let old = old.and_then(|map| map.get(key).or_else(empty));
                let new = new.and_then(|map| map.get(key).or_else(empty));
                if old == new {
                    continue;
                }
                changes.put(["f:", key].concat(), compare(node.key(key), old, new));
            }
        }
        (Node::List(list), ..) if are(Value::is_array, old, new) => {
            let (old, new) = (items_by_id(list, old), items_by_id(list, new));
            let ids: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for id in ids {
                let (old, new) = (old.get(id).copied(), new.get(id).copied());
                changes.put(id.clone(), compare(list.item(), old, new));
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
fn items_by_id<'v>(list: List<'_>, items: Option<&'v Value>) -> BTreeMap<String, &'v Value> {
    let items = items.and_then(Value::as_array).into_iter().flatten();
    items.map(|item| (item_element(list, item), item)).collect()
}

/// Whether what there is of both is of one form; null is an empty container beside one that is not empty.
fn are(form: fn(&Value) -> bool, a: Option<&Value>, b: Option<&Value>) -> bool {
    let has_some = |value: Option<&Value>| value.is_some_and(|value| !value.is_null() && !is_empty_container(value));
    let fits = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || form(value));
    fits(a) && fits(b) && (has_some(a) || has_some(b))
}

/// `live` with what `config` says.
pub(super) fn merge(node: Node<'_>, live: Option<&Value>, config: &Value) -> Value {
    match (node, live, config) {
        (
            Node::Object(_) | Node::Map(_) | Node::Custom(..) | Node::Open,
            Some(Value::Object(live)),
            Value::Object(config),
        ) => {
            let mut merged = live.clone();
            for (key, value) in config {
                merged.insert(key.clone(), merge(node.key(key), live.get(key), value));
            }
            Value::Object(merged)
        }
        (Node::List(list), Some(Value::Array(live)), Value::Array(config)) => {
            Value::Array(merge_lists(list, live, config))
        }
        // Nothing is merged into a container; only one that is empty becomes null (typed/merge.go, `doMap`).
        (Node::Object(_) | Node::Map(_) | Node::Custom(..), Some(live @ Value::Object(fields)), Value::Null)
            if !fields.is_empty() =>
        {
            live.clone()
        }
        (Node::List(_), Some(live @ Value::Array(items)), Value::Null) if !items.is_empty() => live.clone(),
        _ => config.clone(),
    }
}

/// Live items keep their order and stand before what the configuration adds, but for those that it names in another
/// order (structured-merge-diff typed/merge.go, `visitListItems`).
fn merge_lists(list: List<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let node = list.item();
    let id = |item: &Value| item_element(list, item);
    let (live_ids, config_ids): (Vec<String>, Vec<String>) =
        (live.iter().map(id).collect(), config.iter().map(id).collect());
    // An item that is there several times is merged with nothing.
    let mut live_places: HashMap<&str, Option<usize>> = HashMap::with_capacity(live.len());
    for (place, id) in live_ids.iter().enumerate() {
        live_places.entry(id).and_modify(|place| *place = None).or_insert(Some(place));
    }
    let wanted: HashSet<&str> = config_ids.iter().map(String::as_str).collect();
    let mut shared = config_ids.iter().map(String::as_str).filter(|id| live_places.contains_key(id)).peekable();
    let mut taken = HashSet::with_capacity(config.len());
    let mut merged = Vec::with_capacity(live.len().max(config.len()));
    let (mut at_live, mut at_config) = (0, 0);
    while at_live < live.len() || at_config < config.len() {
        let (left, right) = (live_ids.get(at_live).map(String::as_str), config_ids.get(at_config).map(String::as_str));
        if let Some(left) = left {
            if !wanted.contains(left) {
                merged.push(live[at_live].clone());
                at_live += 1;
                continue;
            }
            let waits = shared.peek().is_some_and(|next| *next != left);
            if waits && right.is_some_and(|right| right != left) {
                at_live += 1;
                continue;
            }
            if taken.contains(left) {
                at_live += 1;
            }
        }
        let Some(right) = right else { continue };
        if left == Some(right) {
            at_live += 1;
        }
        let of_live = live_places.get(right).copied().flatten().map(|place| &live[place]);
        merged.push(merge(node, of_live, &config[at_config]));
        taken.insert(right);
        shared.next_if(|next| *next == right);
        at_config += 1;
    }
    merged
}

/// What makes a configuration's lists ambiguous: items of one key, and items without any. Paths and texts are those of
/// structured-merge-diff (typed/validate.go).
pub(super) fn check_lists(node: Node<'_>, value: &Value, path: &str, problems: &mut Vec<String>) {
    match (node, value) {
        (Node::Object(_) | Node::Map(_) | Node::Custom(..) | Node::Open, Value::Object(map)) => {
            for (key, value) in map.iter().filter(|(_, value)| value.is_array() || value.is_object()) {
                check_lists(node.key(key), value, &format!("{path}.{key}"), problems);
            }
        }
        (Node::List(list), Value::Array(items)) => {
            let mut seen = HashSet::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                let id = item_element(list, item);
                if id == NO_KEYS {
                    let keys: Vec<String> = list.keys().iter().map(|(key, _)| format!("{key:?}")).collect();
                    problems.push(format!(
                        "{path}: element {index}: associative list with keys has an element that omits all key fields [{}] \
                         (and doesn't have default values for any key fields)",
                        keys.join(" ")
                    ));
                    return;
                }
                let printed = printed(&id);
                if item.is_object() {
                    check_lists(list.item(), item, &format!("{path}{printed}"), problems);
                }
                if !seen.insert(id) {
                    problems.push(format!("{path}: duplicate entries for key {printed}"));
                }
            }
        }
        _ => {}
    }
}

/// The path element of an item that has none of its list's keys.
const NO_KEYS: &str = "k:{}";

/// The paths of fields in `value` that its built-in type does not have. A custom kind's are pruned when they are written.
pub(super) fn find_undeclared(node: Node<'_>, value: &Value, path: &str, undeclared: &mut Vec<String>) {
    match (node, value) {
        (Node::Object(_) | Node::Map(_) | Node::Custom(..), Value::Object(map)) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                if matches!(node, Node::Object(_)) && !node.has_field(key) {
                    undeclared.push(path);
                } else {
                    find_undeclared(node.key(key), value, &path, undeclared);
                }
            }
        }
        (Node::List(list), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                find_undeclared(list.item(), item, &format!("{path}[{index}]"), undeclared);
            }
        }
        _ => {}
    }
}

/// The paths of objects and lists in `value` that are owned as a whole, as structured-merge-diff prints them.
pub(super) fn find_atomics(node: Node<'_>, value: &Value, path: &str, atomics: &mut Vec<String>) {
    match (node, value) {
        (Node::Leaf, Value::Object(_) | Value::Array(_)) => atomics.push(path.to_owned()),
        (Node::Object(_) | Node::Map(_) | Node::Custom(..), Value::Object(map)) => {
            for (key, value) in map {
                find_atomics(node.key(key), value, &format!("{path}.{key}"), atomics);
            }
        }
        (Node::List(list), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                find_atomics(list.item(), item, &format!("{path}[{index}]"), atomics);
            }
        }
        _ => {}
    }
}

/// Takes `dropped` out of a value, and the containers that this empties, but nothing that is in `kept`.
pub(super) fn remove(node: Node<'_>, value: &mut Value, dropped: &FieldSet, kept: &FieldSet) {
    match (node, value) {
        (Node::List(list), Value::Array(items)) => {
            let node = list.item();
            items.retain_mut(|value| {
                let element = item_element(list, value);
                let dropped = dropped.child(&element);
                dropped
                    .is_none_or(|dropped| !is_removed(node, value, dropped.is_member(), dropped, kept.child(&element)))
            });
        }
        (Node::Object(_) | Node::Map(_) | Node::Custom(..) | Node::Open, Value::Object(map)) => {
            for (element, dropped) in dropped.children() {
                let Some(key) = element.strip_prefix("f:") else { continue };
                let Some(child) = map.get_mut(key) else { continue };
                // A field of a struct is its owner's as soon as anything below it is (fieldpath, EnsureNamedFieldsAreMembers).
                let is_member = dropped.is_member() || node.has_field(key) && !dropped.is_empty();
                if is_removed(node.key(key), child, is_member, dropped, kept.child(element)) {
                    map.remove(key);
                }
            }
        }
        _ => {}
    }
}

/// Whether a child goes, after what is dropped within it has gone. A member of what is dropped goes with all that nobody owns in it.
fn is_removed(node: Node<'_>, child: &mut Value, is_member: bool, dropped: &FieldSet, kept: Option<&FieldSet>) -> bool {
    let unclaimed = kept.is_none_or(FieldSet::is_empty);
    if is_member && unclaimed {
        return true;
    }
    remove(node, child, dropped, kept.unwrap_or(&FieldSet::default()));
    unclaimed && is_empty_container(child)
}

fn is_empty_container(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
