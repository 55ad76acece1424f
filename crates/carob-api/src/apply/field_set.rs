//! Sets of fields, in the form of FieldsV1 (structured-merge-diff fieldpath/serialize.go).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

/// A tree of path elements. Elements are kept as FieldsV1 writes them: `f:name` a field, `k:{...}` an item by its keys,
/// `v:...` an item by its value, `i:...` an item by its index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// Whether the path that leads here is itself in the set.
    member: bool,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    pub(super) fn is_member(&self) -> bool {
        self.member
    }

    pub(super) fn enter(&mut self) {
        self.member = true;
    }

    pub(super) fn leave(&mut self) {
        self.member = false;
    }

    pub(super) fn child(&self, element: &str) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub(super) fn child_mut(&mut self, element: &str) -> Option<&mut FieldSet> {
        self.children.get_mut(element)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = (&String, &FieldSet)> {
        self.children.iter()
    }

    pub(super) fn remove_child(&mut self, element: &str) {
        self.children.remove(element);
    }

    pub(super) fn keep_children(&mut self, elements: &[&str]) {
        self.children.retain(|element, _| elements.contains(&element.as_str()));
    }

    /// Puts a child in its place unless it is empty.
    pub(super) fn put(&mut self, element: String, child: FieldSet) {
        if !child.is_empty() {
            self.place(element, child);
        }
    }

    fn place(&mut self, element: String, child: FieldSet) {
        match self.children.entry(element) {
            Entry::Vacant(place) => {
                place.insert(child);
            }
            Entry::Occupied(place) => place.into_mut().absorb(child),
        }
    }

    /// As [`FieldSet::extend`], of a set that is not needed any more.
    pub(super) fn absorb(&mut self, other: FieldSet) {
        self.member |= other.member;
        for (element, child) in other.children {
            self.place(element, child);
        }
    }

    pub(super) fn extend(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (element, child) in &other.children {
            self.children.entry(element.clone()).or_default().extend(child);
        }
    }

    /// Takes out what is in another set.
    pub(super) fn subtract(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        self.children.retain(|element, child| {
            if let Some(other) = other.children.get(element) {
                child.subtract(other);
            }
            !child.is_empty()
        });
    }

    pub(super) fn intersection(&self, other: &FieldSet) -> FieldSet {
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        FieldSet { member: self.member && other.member, children: children.collect() }
    }

    /// Paths of all members, printed as conflicts show them: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths("", &mut out);
        out
    }

    fn collect_paths(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (element, child) in &self.children {
            child.collect_paths(&format!("{path}{}", printed(element)), out);
        }
    }

    /// `None` for what is no FieldsV1.
    pub(super) fn from_json(value: &Value) -> Option<FieldSet> {
        let mut set = FieldSet::default();
        for (element, child) in value.as_object()? {
            if element == "." {
                set.member = true;
            } else {
                let mut child_set = FieldSet::from_json(child).filter(|_| is_element(element))?;
                // A childless element is a member; one with children only if it says so.
                child_set.member |= child_set.children.is_empty();
                set.children.insert(element.clone(), child_set);
            }
        }
        Some(set)
    }

    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in self.children.iter().filter(|(_, child)| !child.is_empty()) {
            map.insert(element.clone(), child.to_json());
        }
        Value::Object(map)
    }
}

/// Whether a text is a path element (structured-merge-diff fieldpath/serialize-pe.go).
fn is_element(text: &str) -> bool {
    match text.split_once(':') {
        Some(("f", _)) => true,
        Some(("k", keys)) => serde_json::from_str::<Map<String, Value>>(keys).is_ok(),
        Some(("v", value)) => serde_json::from_str::<Value>(value).is_ok(),
        Some(("i", index)) => index.parse::<i64>().is_ok(),
        _ => false,
    }
}

/// A path element as errors print it: `.name`, `[name="a"]`, `[="v"]`.
pub(super) fn printed(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or((element, ""));
    match kind {
        "f" => format!(".{rest}"),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        _ => format!("[{rest}]"),
    }
}
