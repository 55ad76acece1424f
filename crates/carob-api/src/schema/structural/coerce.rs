//! What happens to a custom object on its way in, and when it is read: unknown fields go, nulls that mean nothing go, metadata is
//! brought into the form of ObjectMeta, defaults come.

use serde_json::{Map, Value};

use super::{Additional, Node};
use crate::schema::{self, Decoded};

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl Node {
    /// Prunes an object and gives what was unknown in it, as `unknown field "spec.x"`, sorted by path
    /// (apiextensions-apiserver pkg/apiserver/schema/pruning).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let (undeclared, open) = self.prune_noting(object);
        let mut unknown = [undeclared, open].concat();
        unknown.sort();
        unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect()
    }

    /// Prunes an object; gives the paths of what objects with declared fields do not declare, and of what was in objects of which
    /// nothing is declared. An apply refuses the former only.
    pub(crate) fn prune_noting(&self, object: &mut Value) -> (Vec<String>, Vec<String>) {
        let mut walk = Pruning::default();
        walk.prune(object, Some(self), true, false);
        (walk.unknown, walk.open)
    }

    /// Prunes a value that is no object of its own; gives the paths of what was unknown.
    pub(crate) fn prune_value(&self, value: &mut Value) -> Vec<String> {
        let mut walk = Pruning::default();
        walk.prune(value, Some(self), false, false);
        [walk.unknown, walk.open].concat()
    }

    /// Sets what has a default and is absent, after removing nulls that the schema does not allow
    /// (apiextensions-apiserver pkg/apiserver/schema/defaulting).
    pub fn apply_defaults(&self, value: &mut Value) {
        remove_nulls(value, Some(self));
        self.set_defaults(value);
    }

    /// The same for an object that an apply or a webhook made: its nulls are left to validation.
    pub(crate) fn set_defaults(&self, value: &mut Value) {
        set_defaults(value, Some(self));
    }

    /// Brings `metadata` of embedded objects into the form of ObjectMeta. Malformed fields are dropped if `lenient`.
    pub fn coerce_embedded(&self, value: &mut Value, lenient: bool) -> Result<Vec<String>, String> {
        let mut problems = Vec::new();
        coerce_below(value, self, lenient, &mut String::new(), &mut problems)?;
        Ok(problems)
    }
}

/// Brings an object's own metadata into the form of ObjectMeta; gives unknown and duplicate fields.
pub(crate) fn coerce_metadata(
    object: &mut Map<String, Value>,
    lenient: bool,
    path: &str,
) -> Result<Vec<String>, String> {
    let Some(metadata) = object.get_mut("metadata") else { return Ok(Vec::new()) };
    let ty = schema::builtin().get("meta.v1.ObjectMeta").expect("the table has ObjectMeta");
    let given = metadata.take();
    let (value, problems) = match schema::conform(ty, given.clone()) {
        Ok(Decoded { value, problems }) => (value, problems),
        Err(error) if !lenient => {
            *metadata = given;
            return Err(error.to_string());
        }
        Err(_) => {
            let fields = given.as_object().into_iter().flatten();
            let sound = fields.filter_map(|(key, value)| {
                let one = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
                schema::conform(ty, one)
                    .ok()
                    .and_then(|decoded| decoded.value.get(key).cloned().map(|v| (key.clone(), v)))
            });
            (Value::Object(sound.collect()), Vec::new())
        }
    };
    *metadata = value;
    let prefix = if path.is_empty() { "metadata".to_owned() } else { format!("{path}.metadata") };
    Ok(problems.into_iter().map(|problem| problem.replacen(" field \"", &format!(" field \"{prefix}."), 1)).collect())
}

fn coerce_below(
    value: &mut Value,
    node: &Node,
    lenient: bool,
    path: &mut String,
    problems: &mut Vec<String>,
) -> Result<(), String> {
    let len = path.len();
    match value {
        Value::Object(map) => {
            if node.is_embedded {
                problems.extend(coerce_metadata(map, lenient, path)?);
            }
            for (key, value) in map.iter_mut() {
                if let Some(node) = node.key(key) {
                    push_key(path, key);
                    coerce_below(value, node, lenient, path, problems)?;
                    path.truncate(len);
                }
            }
        }
        Value::Array(items) => {
            if let Some(node) = &node.items {
                for (index, value) in items.iter_mut().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    coerce_below(value, node, lenient, path, problems)?;
                    path.truncate(len);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// Paths of unknown fields that are reported for one object; the rest is pruned in silence, as upstream's limit has it.
const UNKNOWN_MAX: usize = 100;

#[derive(Default)]
struct Pruning {
    path: String,
    /// In objects that declare fields.
    unknown: Vec<String>,
    /// In objects of which nothing is declared but that they are objects.
    open: Vec<String>,
}

impl Pruning {
    fn note(&mut self, key: &str, node: Option<&Node>) {
        if self.unknown.len() + self.open.len() < UNKNOWN_MAX {
            let joint = if self.path.is_empty() { "" } else { "." };
            let is_open = node.is_some_and(|node| node.properties().next().is_none());
            let noted = if is_open { &mut self.open } else { &mut self.unknown };
            noted.push(format!("{}{joint}{key}", self.path));
        }
    }

    fn below(&mut self, key: &str, value: &mut Value, node: Option<&Node>) {
        let len = self.path.len();
        push_key(&mut self.path, key);
        self.prune(value, node, false, false);
        self.path.truncate(len);
    }

    /// `skips`: unknown fields of this value are kept, as a list that preserves them has it for its items.
    fn prune(&mut self, value: &mut Value, node: Option<&Node>, is_root: bool, skips: bool) {
        let preserves = skips || node.is_some_and(|node| node.preserves_unknown);
        match value {
            Value::Object(map) => {
                let keeps_meta = is_root || node.is_some_and(|node| node.is_embedded);
                map.retain(|key, value| {
                    if keeps_meta && META.contains(&key.as_str()) {
                        return true;
                    }
                    let additional = node.map(|node| &node.additional);
                    if let Some(known) = node.and_then(|node| node.key(key)) {
                        self.below(key, value, Some(known));
                        return true;
                    }
                    match additional {
                        Some(Additional::Any(_)) => {
                            // Upstream descends without a schema here, which prunes what is below.
                            if !preserves {
                                self.below(key, value, None);
                            }
                            true
                        }
                        _ if preserves => true,
                        _ => {
                            self.note(key, node);
                            false
                        }
                    }
                });
            }
            Value::Array(items) => {
                let item = node.and_then(|node| node.items.as_deref());
                if preserves && item.is_none() {
                    return;
                }
                let len = self.path.len();
                for (index, value) in items.iter_mut().enumerate() {
                    self.path.push_str(&format!("[{index}]"));
                    self.prune(value, item, false, preserves);
                    self.path.truncate(len);
                }
            }
            _ => {}
        }
    }
}

fn is_stray_null(value: &Value, node: Option<&Node>) -> bool {
    value.is_null() && node.is_some_and(|node| !node.nullable)
}

fn remove_nulls(value: &mut Value, node: Option<&Node>) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let node = node.and_then(|node| node.key(key));
            if is_stray_null(value, node) && node.is_some_and(|node| node.default.is_none()) {
                return false;
            }
            remove_nulls(value, node);
            true
        }),
        Value::Array(items) => {
            let node = node.and_then(|node| node.items.as_deref());
            for item in items {
                remove_nulls(item, node);
            }
        }
        _ => {}
    }
}

fn set_defaults(value: &mut Value, node: Option<&Node>) {
    let Some(node) = node else { return };
    match value {
        Value::Object(map) => {
            for (name, property) in node.properties() {
                if let Some(default) = &property.default
                    && map.get(name).is_none_or(|value| is_stray_null(value, Some(property)))
                {
                    map.insert(name.to_owned(), (**default).clone());
                }
            }
            for (key, value) in map.iter_mut() {
                let below = node.key(key);
                default_null(value, below);
                set_defaults(value, below);
            }
        }
        Value::Array(items) => {
            for item in items {
                default_null(item, node.items.as_deref());
                set_defaults(item, node.items.as_deref());
            }
        }
        _ => {}
    }
}

fn default_null(value: &mut Value, node: Option<&Node>) {
    if is_stray_null(value, node)
        && let Some(default) = node.and_then(|node| node.default.as_deref())
    {
        *value = default.clone();
    }
}
