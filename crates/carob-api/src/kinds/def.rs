//! One resource of the API as a value.

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

use super::{ActedOnBy, CustomKind, Persistence, SubresourceDef, builder::Row};
use crate::{
    schema::{self, CustomSchema, Schema, TypeRef},
    strategy::Strategy,
    table::{self, ColumnDef, CustomColumn, IncludeObject},
};

type Text = Cow<'static, str>;

/// One resource: what it is called, which form its objects have, and all that the registry does by its kind.
#[derive(Debug)]
pub struct ResourceDef {
    group: Text,
    versions: Vec<Arc<VersionDef>>,
    hub_api_version: Text,
    hub_schema: SchemaSource,
    prefix: Option<Text>,
    kind: Text,
    list_kind: Text,
    plural: Text,
    singular: Text,
    short_names: Vec<Text>,
    categories: Vec<Text>,
    verbs: &'static [&'static str],
    subresources: &'static [SubresourceDef],
    selectable: Vec<SelectableField>,
    columns: Columns,
    strategy: StrategySource,
    custom: Option<CustomKind>,
    pub namespaced: bool,
    pub acted_on_by: ActedOnBy,
    /// Since when the kind is deprecated, and what to use: `v1.33+; use discovery.k8s.io/v1 EndpointSlice`.
    pub deprecated: Option<&'static str>,
    /// Its stored version is served by default though it is not stable: what carob does for every user, such as gangs.
    pub always_served: bool,
    /// A deletion is answered with the object's last state instead of a Status.
    pub returned_when_deleted: bool,
    pub persistence: Persistence,
}

#[derive(Debug)]
enum StrategySource {
    Table(&'static dyn Strategy),
    Custom(Box<dyn Strategy>),
}

#[derive(Debug, Clone)]
enum SchemaSource {
    None,
    Table(TypeRef<'static>),
    Custom(Arc<CustomSchema>),
}

impl SchemaSource {
    fn get(&self) -> Option<Schema<'_>> {
        match self {
            SchemaSource::None => None,
            SchemaSource::Table(ty) => Some(Schema::Table(*ty)),
            SchemaSource::Custom(custom) => Some(Schema::Custom(custom)),
        }
    }
}

impl From<Option<TypeRef<'static>>> for SchemaSource {
    fn from(ty: Option<TypeRef<'static>>) -> Self {
        ty.map_or(SchemaSource::None, SchemaSource::Table)
    }
}

/// One version of a resource.
#[derive(Debug)]
pub struct VersionDef {
    name: Text,
    schema: SchemaSource,
}

/// What a custom kind's definition says of one of its versions.
pub(super) struct CustomParts {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) list_kind: String,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) short_names: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) namespaced: bool,
    pub(super) schema: Arc<CustomSchema>,
    pub(super) subresources: &'static [SubresourceDef],
    pub(super) selectable: Vec<SelectableField>,
    pub(super) columns: Vec<CustomColumn>,
    pub(super) strategy: Box<dyn Strategy>,
    pub(super) custom: CustomKind,
}

/// A field that a field selector may name.
#[derive(Debug, Clone)]
pub struct SelectableField {
    pub name: Text,
    /// Path in the hub form, with dots.
    pub path: Text,
    /// Path of the field that stands in for an empty one; empty where none does.
    pub stand_in: Text,
    /// Value when the field is unset.
    pub unset: Text,
}

/// What `kubectl get` shows of a kind.
#[derive(Debug)]
pub enum Columns {
    BuiltIn(&'static [ColumnDef]),
    Custom(Vec<CustomColumn>),
}

impl Columns {
    /// `columnDefinitions` of a Table.
    pub fn definitions(&self) -> Value {
        match self {
            Columns::BuiltIn(columns) => table::column_definitions(columns),
            Columns::Custom(columns) => table::custom::definitions(columns),
        }
    }

    /// One row of a Table.
    pub fn row(&self, obj: &Value, now: Timestamp, include: IncludeObject) -> Value {
        match self {
            Columns::BuiltIn(columns) => table::row(columns, obj, now, include),
            Columns::Custom(columns) => table::custom::row(columns, obj, now, include),
        }
    }
}

impl VersionDef {
    /// `v1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn schema(&self) -> Option<Schema<'_>> {
        self.schema.get()
    }

    /// Alpha and beta versions are served only when asked for, as upstream does, but for [`ResourceDef::always_served`].
    pub fn is_stable(&self) -> bool {
        !self.name.contains("alpha") && !self.name.contains("beta")
    }
}

fn texts(list: &'static [&'static str]) -> Vec<Text> {
    list.iter().map(|text| Cow::Borrowed(*text)).collect()
}

impl ResourceDef {
    pub(super) fn of_row(row: &'static Row) -> Self {
        let schema_in = |package: &str| schema::builtin().get(&format!("{package}.{}", row.kind));
        let versions = row.versions.iter();
        Self {
            group: row.group.into(),
            versions: versions
                .map(|version| {
                    Arc::new(VersionDef { name: version.name.into(), schema: schema_in(version.package).into() })
                })
                .collect(),
            hub_api_version: row.stored_api_version.into(),
            hub_schema: schema_in(row.stored_package).into(),
            prefix: row.prefix.map(Cow::Borrowed),
            kind: row.kind.into(),
            list_kind: format!("{}List", row.kind).into(),
            plural: row.plural.into(),
            singular: row.kind.to_lowercase().into(),
            short_names: texts(row.short_names),
            categories: texts(row.categories),
            verbs: row.verbs,
            subresources: row.subresources,
            selectable: row
                .selectable
                .iter()
                .map(|field| SelectableField {
                    name: field.name.into(),
                    path: field.path.into(),
                    stand_in: field.stand_in.into(),
                    unset: field.unset.into(),
                })
                .collect(),
            columns: Columns::BuiltIn(row.columns),
            strategy: StrategySource::Table(row.strategy),
            custom: None,
            namespaced: row.namespaced,
            acted_on_by: row.acted_on_by,
            deprecated: row.deprecated,
            always_served: row.always_served,
            returned_when_deleted: row.returned_when_deleted,
            persistence: row.persistence,
        }
    }

    pub(super) fn of_custom(parts: CustomParts) -> Self {
        let texts = |list: Vec<String>| list.into_iter().map(Cow::Owned).collect();
        let schema = SchemaSource::Custom(parts.schema);
        Self {
            hub_api_version: format!("{}/{}", parts.group, parts.version).into(),
            hub_schema: schema.clone(),
            prefix: Some(format!("{}/{}", parts.group, parts.plural).into()),
            versions: vec![Arc::new(VersionDef { name: parts.version.into(), schema })],
            group: parts.group.into(),
            kind: parts.kind.into(),
            list_kind: parts.list_kind.into(),
            plural: parts.plural.into(),
            singular: parts.singular.into(),
            short_names: texts(parts.short_names),
            categories: texts(parts.categories),
            verbs: super::builder::ALL_VERBS,
            subresources: parts.subresources,
            selectable: parts.selectable,
            columns: Columns::Custom(parts.columns),
            strategy: StrategySource::Custom(parts.strategy),
            custom: Some(parts.custom),
            namespaced: parts.namespaced,
            acted_on_by: ActedOnBy::Controllers,
            deprecated: None,
            always_served: true,
            returned_when_deleted: false,
            persistence: Persistence::Durable,
        }
    }

    /// What only custom kinds have.
    pub fn custom(&self) -> Option<&CustomKind> {
        self.custom.as_ref()
    }

    /// Empty for the core group.
    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// `PodList`.
    pub fn list_kind(&self) -> &str {
        &self.list_kind
    }

    pub fn plural(&self) -> &str {
        &self.plural
    }

    /// `pod`.
    pub fn singular(&self) -> &str {
        &self.singular
    }

    pub fn short_names(&self) -> &[Text] {
        &self.short_names
    }

    pub fn categories(&self) -> &[Text] {
        &self.categories
    }

    pub fn verbs(&self) -> &'static [&'static str] {
        self.verbs
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresources(&self) -> &'static [SubresourceDef] {
        self.subresources
    }

    pub fn subresource(&self, name: &str) -> Option<&'static SubresourceDef> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Fields that a field selector may name besides metadata.name and metadata.namespace.
    pub fn selectable(&self) -> &[SelectableField] {
        &self.selectable
    }

    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    pub fn strategy(&self) -> &dyn Strategy {
        match &self.strategy {
            StrategySource::Table(strategy) => *strategy,
            StrategySource::Custom(strategy) => strategy.as_ref(),
        }
    }

    /// The preferred version first.
    pub fn versions(&self) -> &[Arc<VersionDef>] {
        &self.versions
    }

    pub fn version(&self, name: &str) -> Option<&Arc<VersionDef>> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// Whether a version is served without being asked for.
    pub fn is_served_by_default(&self, version: &VersionDef) -> bool {
        let is_stored = self.versions.first().is_some_and(|stored| stored.name == version.name);
        version.is_stable() || (self.always_served && is_stored)
    }

    /// Schema of one version; `None` for an unknown version.
    pub fn schema(&self, version: &str) -> Option<Schema<'_>> {
        self.version(version)?.schema()
    }

    /// The versions in which objects of this resource are served, whichever of them this is the definition of.
    pub fn equivalent_versions(&self) -> impl Iterator<Item = &str> {
        let custom = self.custom().map(|custom| custom.served_versions.as_slice()).unwrap_or_default();
        let own = if custom.is_empty() { self.versions() } else { &[] };
        custom.iter().map(String::as_str).chain(own.iter().map(|version| version.name()))
    }

    /// apiVersion of the hub form: the one that strategies, admission and validation see. Built-in kinds are stored in it.
    pub fn hub_api_version(&self) -> &str {
        &self.hub_api_version
    }

    /// Schema of the hub form.
    pub fn hub_schema(&self) -> Option<Schema<'_>> {
        self.hub_schema.get()
    }

    /// apiVersion of stored objects: the hub form's, but for custom kinds, whose hub is the version of the request.
    pub fn stored_api_version(&self) -> &str {
        self.custom.as_ref().map_or(&*self.hub_api_version, |custom| &custom.stored_api_version)
    }

    /// Whether there are objects of the kind; others are answered, not stored.
    pub fn is_stored(&self) -> bool {
        self.prefix.is_some()
    }

    /// The middle of the etcd key, `/registry/<prefix>/...`.
    pub fn key_prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// `/registry/pods/default/web`; `namespace` is empty for cluster-scoped resources. Empty for kinds that are not
    /// stored.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        let mut key = self.storage_prefix((!namespace.is_empty()).then_some(namespace));
        key.push_str(name);
        key
    }

    /// `/registry/pods/` or `/registry/pods/default/`: ends with a slash. Empty for kinds that are not stored.
    pub fn storage_prefix(&self, namespace: Option<&str>) -> String {
        match (&self.prefix, namespace) {
            (None, _) => String::new(),
            (Some(prefix), None) => format!("/registry/{prefix}/"),
            (Some(prefix), Some(namespace)) => format!("/registry/{prefix}/{namespace}/"),
        }
    }

    /// Value of a selectable field in an object of the hub form; `None` if field selectors may not name it.
    pub fn selectable_value<'a>(&'a self, obj: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        let (path, stand_in, unset): (&str, &str, &'a str) = match field {
            "metadata.name" => (field, "", ""),
            "metadata.namespace" if self.namespaced => (field, "", ""),
            _ => {
                let selectable = self.selectable.iter().find(|s| s.name == field)?;
                (&*selectable.path, &*selectable.stand_in, &*selectable.unset)
            }
        };
        let at = |path: &str| path.split('.').try_fold(obj, |value, key| value.get(key));
        let is_set = |value: &&Value| value.as_str() != Some("");
        Some(match at(path).filter(is_set).or_else(|| at(stand_in)) {
            Some(Value::String(text)) => Cow::Borrowed(text),
            None | Some(Value::Null) => Cow::Borrowed(unset),
            Some(other) => Cow::Owned(other.to_string()),
        })
    }

    /// `apps/v1`.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }
}
