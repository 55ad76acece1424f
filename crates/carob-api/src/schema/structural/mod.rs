//! The schema of a custom kind: a structural schema (apiextensions-apiserver pkg/apiserver/schema) as a compact tree.
//!
//! One node says what a value at a place may be. Pruning, defaulting, validation and server-side apply walk the same nodes.
//! Descriptions, titles and examples are not kept: OpenAPI takes them from the stored CustomResourceDefinition.

mod check;
mod coerce;
mod embedded;
mod format;
mod parse;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use regex::Regex;
use serde_json::Value;

pub use check::Place;
pub(crate) use coerce::coerce_metadata;
pub(crate) use format::is_known_format;
pub(crate) use parse::pattern_problem;
pub use parse::{DEPTH_MAX, SchemaError};

use super::ListType;
use crate::regexes::go_regex;

/// The JSON type that a schema asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    /// None stated.
    #[default]
    Any,
    String,
    Number,
    Integer,
    Boolean,
    Array,
    Object,
}

/// What a value may be.
#[derive(Debug, Default)]
pub struct Node {
    pub ty: Type,
    pub nullable: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserves_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub is_embedded: bool,
    pub is_int_or_string: bool,
    /// `x-kubernetes-map-type: atomic`.
    pub is_atomic_map: bool,
    pub list_type: ListType,
    list_keys: Box<[Box<str>]>,
    /// Sorted by name.
    properties: Box<[(Box<str>, Node)]>,
    pub items: Option<Box<Node>>,
    pub additional: Additional,
    pub default: Option<Box<Value>>,
    checks: Option<Box<Checks>>,
}

/// What keys beside the properties may hold.
#[derive(Debug, Default)]
pub enum Additional {
    /// Nothing is said: such keys are unknown fields.
    #[default]
    Unstated,
    /// `true` or `false`.
    Any(bool),
    Node(Box<Node>),
}

/// Conditions on a value beyond its type.
#[derive(Debug, Default)]
struct Checks {
    format: Option<Box<str>>,
    pattern: Option<Pattern>,
    allowed: Box<[Value]>,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    required: Box<[Box<str>]>,
    all_of: Box<[Node]>,
    any_of: Box<[Node]>,
    one_of: Box<[Node]>,
    not: Option<Box<Node>>,
    rules: Box<[Rule]>,
}

#[derive(Debug, Clone, Copy)]
struct Bound {
    value: f64,
    exclusive: bool,
}

/// A regular expression, compiled when it is first needed. Matching takes linear time, whatever the expression.
#[derive(Debug)]
struct Pattern {
    text: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// `None` for an expression that cannot be compiled, which a CustomResourceDefinition is refused for.
    fn get(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| go_regex(&self.text).ok()).as_ref()
    }
}

/// An entry of `x-kubernetes-validations`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub rule: Box<str>,
    pub message: Box<str>,
    pub message_expression: Box<str>,
    pub reason: Box<str>,
    pub field_path: Box<str>,
    pub optional_old_self: bool,
}

impl Node {
    /// Anything goes.
    pub fn open() -> Self {
        Self { preserves_unknown: true, ..Self::default() }
    }

    pub fn property(&self, name: &str) -> Option<&Node> {
        let at = self.properties.binary_search_by(|(own, _)| (**own).cmp(name)).ok()?;
        Some(&self.properties[at].1)
    }

    pub fn properties(&self) -> impl ExactSizeIterator<Item = (&str, &Node)> {
        self.properties.iter().map(|(name, node)| (&**name, node))
    }

    /// What is below a key: a property's node, or that of additional properties.
    pub fn key(&self, name: &str) -> Option<&Node> {
        self.property(name).or(match &self.additional {
            Additional::Node(node) => Some(node),
            Additional::Any(_) | Additional::Unstated => None,
        })
    }

    pub fn list_keys(&self) -> impl Iterator<Item = &str> {
        self.list_keys.iter().map(|key| &**key)
    }

    pub fn rules(&self) -> &[Rule] {
        self.checks.as_ref().map_or(&[], |checks| &checks.rules)
    }

    /// Names of properties that an object has to have.
    pub fn required(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().flat_map(|checks| checks.required.iter().map(|name| &**name))
    }

    pub fn max_length(&self) -> Option<u64> {
        self.checks.as_ref()?.max_length
    }

    pub fn max_items(&self) -> Option<u64> {
        self.checks.as_ref()?.max_items
    }

    pub fn max_properties(&self) -> Option<u64> {
        self.checks.as_ref()?.max_properties
    }

    pub fn format(&self) -> Option<&str> {
        self.checks.as_ref()?.format.as_deref()
    }

    pub fn allowed_values(&self) -> &[Value] {
        self.checks.as_ref().map_or(&[], |checks| &checks.allowed)
    }

    /// Whether this node or one below it has a default.
    pub fn has_defaults(&self) -> bool {
        self.any(&|node| node.default.is_some())
    }

    /// Whether this node or one below it has rules.
    pub fn has_rules(&self) -> bool {
        self.any(&|node| !node.rules().is_empty())
    }

    fn any(&self, wanted: &impl Fn(&Node) -> bool) -> bool {
        wanted(self)
            || self.properties.iter().any(|(_, node)| node.any(wanted))
            || self.items.as_ref().is_some_and(|node| node.any(wanted))
            || matches!(&self.additional, Additional::Node(node) if node.any(wanted))
    }
}
