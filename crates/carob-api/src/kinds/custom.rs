//! Custom kinds: what a CustomResourceDefinition says, read without its schemas, and the definitions made of it.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{ResourceDef, SelectableField, SubresourceDef, builder, def::CustomParts};
use crate::{
    schema::{CustomSchema, Source},
    strategy::custom::CustomStrategy,
    table::{CustomColumn, JsonPath},
};

/// What a custom kind has beside what every kind has.
#[derive(Debug)]
pub struct CustomKind {
    /// Name of the CustomResourceDefinition.
    pub definition: String,
    /// The versions that are served, the preferred one first.
    pub served_versions: Vec<String>,
    /// apiVersion that objects are stored in from now on; older ones may be stored in another.
    pub stored_api_version: String,
    pub conversion: Conversion,
    pub scale: Option<Scale>,
    /// Warning to whoever uses the version.
    pub deprecation: Option<String>,
    /// The definition is being deleted: no object may be created any more.
    pub is_terminating: bool,
    /// Revision of the definition. What was written after it is in the form that the schema asks for now.
    pub revision: u64,
}

/// How objects get from one version to another.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversion {
    /// Only apiVersion changes.
    None,
    /// A webhook converts; its client configuration and the versions of ConversionReview that it takes.
    Webhook { client: Value, review_versions: Vec<String> },
}

/// Where the scale subresource finds its fields: simple paths such as `.spec.replicas`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    pub spec_replicas_path: String,
    pub status_replicas_path: String,
    #[serde(default)]
    pub label_selector_path: Option<String>,
}

/// A CustomResourceDefinition as the API server uses it.
#[derive(Debug, Clone, Deserialize)]
pub struct Definition {
    pub metadata: Metadata,
    pub spec: Spec,
    #[serde(default)]
    pub status: Status,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    #[serde(default)]
    pub uid: String,
    /// Counts changes of the spec.
    #[serde(default)]
    pub generation: i64,
    #[serde(default)]
    pub deletion_timestamp: Option<IgnoredAny>,
    #[serde(default)]
    pub finalizers: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Spec {
    pub group: String,
    pub names: Names,
    pub scope: String,
    pub versions: Vec<Version>,
    #[serde(default)]
    conversion: ConversionSpec,
}

/// The names of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub kind: String,
    pub list_kind: String,
    pub categories: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub name: String,
    #[serde(default)]
    pub served: bool,
    #[serde(default)]
    pub storage: bool,
    #[serde(default)]
    deprecated: bool,
    #[serde(default)]
    deprecation_warning: Option<String>,
    #[serde(default)]
    subresources: Subresources,
    #[serde(default)]
    additional_printer_columns: Vec<Column>,
    #[serde(default)]
    selectable_fields: Vec<Selectable>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Subresources {
    #[serde(default)]
    status: Option<IgnoredAny>,
    #[serde(default)]
    scale: Option<Scale>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Column {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(default)]
    format: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    priority: i64,
    json_path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selectable {
    json_path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ConversionSpec {
    strategy: String,
    webhook: Webhook,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Webhook {
    client_config: Value,
    conversion_review_versions: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub accepted_names: Names,
    pub conditions: Vec<Condition>,
    pub stored_versions: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub ty: String,
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    pub reason: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A stored CustomResourceDefinition that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read a CustomResourceDefinition")]
pub struct DefinitionError(#[source] serde_json::Error);

impl Definition {
    pub fn parse(bytes: &[u8]) -> Result<Self, DefinitionError> {
        serde_json::from_slice(bytes).map_err(DefinitionError)
    }

    pub fn has_condition(&self, ty: &str) -> bool {
        self.status.conditions.iter().any(|condition| condition.ty == ty && condition.status == "True")
    }

    /// Whether requests for its kind are answered.
    pub fn is_established(&self) -> bool {
        self.has_condition("Established")
    }

    /// The definitions of the versions that are served. `source` gives the stored bytes, which schemas are read from later;
    /// `revision` is the one since which the spec is as it is.
    pub fn resources(&self, source: &Source, revision: u64) -> Vec<Arc<ResourceDef>> {
        let storage = self.spec.versions.iter().find(|version| version.storage);
        let stored = storage.map(|version| version.name.as_str()).unwrap_or_default();
        self.served().into_iter().map(|version| Arc::new(self.resource(version, stored, source, revision))).collect()
    }

    /// The versions that are served, the preferred one first.
    fn served(&self) -> Vec<&Version> {
        let mut served: Vec<&Version> = self.spec.versions.iter().filter(|version| version.served).collect();
        served.sort_by(|a, b| super::version_priority(&b.name).cmp(&super::version_priority(&a.name)));
        served
    }

    /// The definition of the version that objects are stored in, served or not.
    pub fn stored_resource(&self, source: &Source, revision: u64) -> Option<ResourceDef> {
        let version = self.spec.versions.iter().find(|version| version.storage)?;
        Some(self.resource(version, &version.name, source, revision))
    }

    fn resource(&self, version: &Version, stored: &str, source: &Source, revision: u64) -> ResourceDef {
        let (group, names) = (&self.spec.group, &self.status.accepted_names);
        let splits_status = version.subresources.status.is_some();
        let schema = Arc::new(CustomSchema::new(Arc::clone(source), &version.name, splits_status));
        let scale = version.subresources.scale.clone();
        let strategy = CustomStrategy::new(Arc::clone(&schema), splits_status, scale.clone());
        ResourceDef::of_custom(CustomParts {
            group: group.clone(),
            version: version.name.clone(),
            kind: names.kind.clone(),
            list_kind: names.list_kind.clone(),
            plural: names.plural.clone(),
            singular: names.singular.clone(),
            short_names: names.short_names.clone(),
            categories: names.categories.clone(),
            namespaced: self.spec.scope == "Namespaced",
            schema,
            subresources: subresources(splits_status, scale.is_some()),
            selectable: version.selectable_fields.iter().filter_map(selectable).collect(),
            columns: columns(&version.additional_printer_columns),
            strategy: Box::new(strategy),
            custom: CustomKind {
                definition: self.metadata.name.clone(),
                served_versions: self.served().into_iter().map(|version| version.name.clone()).collect(),
                stored_api_version: format!("{group}/{stored}"),
                conversion: self.conversion(),
                scale,
                deprecation: self.deprecation(version),
                is_terminating: self.has_condition("Terminating"),
                revision,
            },
        })
    }

    fn conversion(&self) -> Conversion {
        let spec = &self.spec.conversion;
        if spec.strategy != "Webhook" {
            return Conversion::None;
        }
        Conversion::Webhook {
            client: spec.webhook.client_config.clone(),
            review_versions: spec.webhook.conversion_review_versions.clone(),
        }
    }

    /// Worded as apiextensions-apiserver pkg/apiserver/customresource_handler.go words it.
    fn deprecation(&self, version: &Version) -> Option<String> {
        if !version.deprecated {
            return None;
        }
        if let Some(text) = &version.deprecation_warning {
            return Some(text.clone());
        }
        let (group, kind) = (&self.spec.group, &self.spec.names.kind);
        let text = format!("{group}/{} {kind} is deprecated", version.name);
        let better = |other: &&Version| {
            let order = super::version_priority(&other.name).cmp(&super::version_priority(&version.name));
            other.served && !other.deprecated && order.is_gt()
        };
        Some(match self.spec.versions.iter().filter(better).max_by_key(|other| super::version_priority(&other.name)) {
            Some(other) => format!("{text}; use {group}/{} {kind}", other.name),
            None => text,
        })
    }
}

fn subresources(status: bool, scale: bool) -> &'static [SubresourceDef] {
    match (status, scale) {
        (false, false) => &[],
        (true, false) => &[builder::STATUS_PART],
        (false, true) => &[builder::SCALE],
        (true, true) => &[builder::SCALE, builder::STATUS_PART],
    }
}

/// A selectable field is named by its path without the first dot.
fn selectable(field: &Selectable) -> Option<SelectableField> {
    let keys = JsonPath::parse(&field.json_path).ok()?.keys()?.join(".");
    let name = field.json_path.trim_start_matches('.').to_owned();
    Some(SelectableField { name: name.into(), path: keys.into(), stand_in: "".into(), unset: "".into() })
}

/// A kind without columns shows its age, and so does one with a column whose path cannot be read.
fn columns(stated: &[Column]) -> Vec<CustomColumn> {
    let columns = stated_columns(stated).unwrap_or_default();
    if columns.is_empty() {
        let path = JsonPath::parse(".metadata.creationTimestamp");
        return path.map(age).into_iter().collect();
    }
    columns
}

fn stated_columns(stated: &[Column]) -> Option<Vec<CustomColumn>> {
    let columns = stated.iter().map(|column| {
        let stand_in = || format!("Custom resource definition column (in JSONPath format): {}", column.json_path);
        Some(CustomColumn {
            name: column.name.clone(),
            ty: column.ty.clone(),
            format: column.format.clone(),
            description: if column.description.is_empty() { stand_in() } else { column.description.clone() },
            priority: column.priority,
            path: JsonPath::parse(&column.json_path).ok()?,
        })
    });
    columns.collect()
}

fn age(path: JsonPath) -> CustomColumn {
    CustomColumn {
        name: "Age".to_owned(),
        ty: "date".to_owned(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        path,
    }
}
