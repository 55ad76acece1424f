//! The table of kinds: every resource that the API serves, as data.

use crate::{schema::TypeRef, strategy::Strategy, table::ColumnDef};

/// One resource of the API in all its versions.
#[derive(Debug)]
pub struct ResourceDef {
    /// Empty for the core group.
    pub group: &'static str,
    /// Served versions, the preferred first. All kinds of v1.36 convert between versions without a change of form
    /// unless [`VersionDef::convert`] says otherwise.
    pub versions: &'static [VersionDef],
    pub storage_version: &'static str,
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [SubresourceDef],
    /// The middle of the etcd key: `/registry/<storage_prefix>/...`.
    pub storage_prefix: &'static str,
    /// Fields that a field selector may name besides metadata.name and metadata.namespace.
    pub selectable: &'static [SelectableField],
    pub columns: &'static [ColumnDef],
    pub strategy: &'static dyn Strategy,
    pub acted_on_by: ActedOnBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionDef { pub name: &'static str, /** Type name in the schema table. */ pub type_name: &'static str }

#[derive(Debug, Clone, Copy)]
pub struct SubresourceDef {
    pub name: &'static str,
    /// Group, version and kind of the body, when it is not the resource's own: pods/eviction takes policy/v1 Eviction.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [&'static str],
    /// How the registry handles it.
    pub role: SubresourceRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubresourceRole {
    /// Same object, the strategy decides which part may change ([`crate::strategy::Part`]).
    Part(crate::strategy::Part),
    Scale,
    /// pods/binding and bindings.
    Binding,
    Eviction,
    Token,
    Log,
    /// exec, attach, portforward, proxy.
    Connect,
}

#[derive(Debug, Clone, Copy)]
pub struct SelectableField { pub name: &'static str, /** Value when the field is unset. */ pub unset: &'static str }

/// The part of carob that acts on objects of a kind; creating one that nothing acts on answers with a Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActedOnBy { ApiServer, Scheduler, Controllers, Node, Proxy, Nothing }

/// Every resource, core group first, then groups in discovery order.
pub fn all() -> &'static [ResourceDef] { todo!() }
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static ResourceDef> { todo!() }
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static ResourceDef> { todo!() }

impl ResourceDef {
    pub fn version(&self, name: &str) -> Option<&'static VersionDef> { self.versions.iter().find(|v| v.name == name) }
    /// Schema of one version; `None` for an unknown version.
    pub fn schema(&self, version: &str) -> Option<TypeRef<'static>> { todo!() }
    pub fn subresource(&self, name: &str) -> Option<&'static SubresourceDef> { self.subresources.iter().find(|s| s.name == name) }
    /// `/registry/pods/default/web`; namespace is empty for cluster-scoped resources.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String { todo!() }
    /// `/registry/pods/` or `/registry/pods/default/`: ends with a slash.
    pub fn storage_prefix_of(&self, namespace: Option<&str>) -> String { todo!() }
    /// Value of a selectable field in an object, or `None` if field selectors may not name it.
    pub fn selectable_value<'a>(&self, obj: &'a serde_json::Value, field: &str) -> Option<std::borrow::Cow<'a, str>> { todo!() }
    pub fn api_version(&self, version: &str) -> String { if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) } }
}
