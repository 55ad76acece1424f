//! The schema of a kind: a type of the built-in table, or the structural schema of a custom kind. Callers do not care which.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::{DecodeError, Decoded, TypeRef, apply_defaults, check_allowed, conform, decode, structural};
use crate::field::FieldErrors;

/// What objects of a kind look like. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub enum Schema<'t> {
    Table(TypeRef<'t>),
    Custom(&'t CustomSchema),
}

/// Gives the stored CustomResourceDefinition; `None` once it is gone.
pub type Source = Arc<dyn Fn() -> Option<Box<dyn AsRef<[u8]>>> + Send + Sync>;

/// The schema of one version of a custom kind, read out of its CustomResourceDefinition when it is first needed: most of a
/// thousand definitions are never asked for.
pub struct CustomSchema {
    source: Source,
    version: String,
    /// Whether status is a part of its own.
    pub splits_status: bool,
    node: OnceLock<structural::Node>,
}

/// As much of a CustomResourceDefinition as holds schemas.
#[derive(serde::Deserialize)]
struct Definition {
    spec: DefinitionSpec,
}

#[derive(serde::Deserialize)]
struct DefinitionSpec {
    versions: Vec<DefinitionVersion>,
}

#[derive(serde::Deserialize)]
struct DefinitionVersion {
    name: String,
    #[serde(default)]
    schema: Value,
}

impl CustomSchema {
    pub fn new(source: Source, version: &str, splits_status: bool) -> Self {
        Self { source, version: version.to_owned(), splits_status, node: OnceLock::new() }
    }

    /// `openAPIV3Schema` as it is stored; null if the definition has none or cannot be read.
    pub fn json(&self) -> Value {
        let Some(bytes) = (self.source)() else { return Value::Null };
        let definition = serde_json::from_slice::<Definition>((*bytes).as_ref());
        let versions = definition.map(|definition| definition.spec.versions).unwrap_or_default();
        let mut found = versions.into_iter().find(|version| version.name == self.version);
        found
            .as_mut()
            .and_then(|version| version.schema.get_mut("openAPIV3Schema"))
            .map(Value::take)
            .unwrap_or_default()
    }

    /// The nodes. A schema that is gone or does not parse, which validation does not let into the store, prunes nothing.
    pub fn node(&self) -> &structural::Node {
        self.node.get_or_init(|| match self.json() {
            Value::Null => structural::Node::open(),
            schema => structural::Node::parse(&schema).unwrap_or_else(|_| structural::Node::open()),
        })
    }
}

impl std::fmt::Debug for CustomSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CustomSchema").field("version", &self.version).finish_non_exhaustive()
    }
}

impl<'t> Schema<'t> {
    /// The type of the table, for what only built-in kinds have: protobuf, strategic merge.
    pub fn table(self) -> Option<TypeRef<'t>> {
        match self {
            Schema::Table(ty) => Some(ty),
            Schema::Custom(_) => None,
        }
    }

    /// Parses JSON, prunes it and notes what was wrong with it.
    pub fn decode(self, body: &[u8]) -> Result<Decoded, DecodeError> {
        match self {
            Schema::Table(ty) => decode(body, Some(ty)),
            Schema::Custom(custom) => {
                let Decoded { value, mut problems } = decode(body, None)?;
                let conformed = conform_custom(custom, value)?;
                problems.extend(conformed.problems);
                Ok(Decoded { value: conformed.value, problems })
            }
        }
    }

    /// What [`Schema::decode`] does with the configuration of an apply: its owner owns what it says, so that no defaults come. What
    /// is in objects of which nothing is declared is pruned in silence.
    pub fn decode_configuration(self, body: &[u8]) -> Result<Decoded, DecodeError> {
        match self {
            Schema::Table(ty) => super::decode::decode_configuration(body, ty),
            Schema::Custom(custom) => {
                let Decoded { value, mut problems } = decode(body, None)?;
                let pruned = prune_custom(custom, value)?;
                problems.extend(pruned.malformed);
                problems.extend(unknown_fields(pruned.undeclared));
                Ok(Decoded { value: pruned.value, problems })
            }
        }
    }

    /// What [`Schema::decode`] does, for an object that is JSON already.
    pub fn conform(self, value: Value) -> Result<Decoded, DecodeError> {
        match self {
            Schema::Table(ty) => conform(ty, value),
            Schema::Custom(custom) => conform_custom(custom, value),
        }
    }

    pub fn apply_defaults(self, value: &mut Value) {
        match self {
            Schema::Table(ty) => apply_defaults(ty, value),
            Schema::Custom(custom) => custom.node().set_defaults(value),
        }
    }

    /// Adds the errors of values that the schema alone refuses. Those of custom kinds are their strategy's to find, since what an
    /// update leaves as it was is not checked again.
    pub fn check(self, value: &Value, errors: &mut FieldErrors) {
        if let Schema::Table(ty) = self {
            check_allowed(ty, value, errors);
        }
    }

    /// Whether writes of the main resource leave the status alone.
    pub(crate) fn splits_status(self) -> bool {
        match self {
            Schema::Table(ty) => ty.field("status").is_some(),
            Schema::Custom(custom) => custom.splits_status,
        }
    }
}

impl<'t> From<TypeRef<'t>> for Schema<'t> {
    fn from(ty: TypeRef<'t>) -> Self {
        Schema::Table(ty)
    }
}

impl<'t> From<TypeRef<'t>> for Option<Schema<'t>> {
    fn from(ty: TypeRef<'t>) -> Self {
        Some(Schema::Table(ty))
    }
}

fn conform_custom(custom: &CustomSchema, value: Value) -> Result<Decoded, DecodeError> {
    let pruned = prune_custom(custom, value)?;
    let mut unknown = [pruned.undeclared, pruned.open].concat();
    unknown.sort();
    let problems = pruned.malformed.into_iter().chain(unknown_fields(unknown)).collect();
    let mut value = pruned.value;
    custom.node().apply_defaults(&mut value);
    Ok(Decoded { value, problems })
}

fn unknown_fields(paths: Vec<String>) -> impl Iterator<Item = String> {
    paths.into_iter().map(|path| format!("unknown field {path:?}"))
}

/// A custom object without what its schema does not know.
struct Pruned {
    value: Value,
    /// Paths of fields that objects with declared fields do not declare.
    undeclared: Vec<String>,
    /// Paths of fields of objects of which nothing is declared.
    open: Vec<String>,
    /// What was wrong with metadata.
    malformed: Vec<String>,
}

fn prune_custom(custom: &CustomSchema, mut value: Value) -> Result<Pruned, DecodeError> {
    let Some(map) = value.as_object_mut() else {
        return Err(DecodeError::Type {
            what: "value".to_owned(),
            target: "value of type map[string]interface {}".to_owned(),
        });
    };
    let node = custom.node();
    let mut malformed = structural::coerce_metadata(map, false, "").map_err(DecodeError::Form)?;
    let (undeclared, open) = node.prune_noting(&mut value);
    malformed.extend(node.coerce_embedded(&mut value, false).map_err(DecodeError::Form)?);
    Ok(Pruned { value, undeclared, open, malformed })
}

/// Brings a custom object out of the store into the form that its schema asks for now: what is not in it any more goes, what is
/// malformed goes, defaults come.
pub fn refresh(custom: &CustomSchema, value: &mut Value) {
    let node = custom.node();
    if let Some(map) = value.as_object_mut() {
        // Lenient: there is nothing to refuse in what was accepted once.
        drop(structural::coerce_metadata(map, true, ""));
    }
    node.prune(value);
    drop(node.coerce_embedded(value, true));
    node.apply_defaults(value);
}
