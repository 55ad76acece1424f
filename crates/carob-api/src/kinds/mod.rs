//! The table of kinds: every resource that the API serves, as data.
//!
//! A new simple kind costs one entry in one of the group modules and, at most, one strategy.

mod access;
mod admission;
mod builder;
mod cluster;
mod convert;
mod core;
#[cfg(test)]
mod tests;
mod workloads;

use std::borrow::Cow;

use serde_json::Value;

pub use convert::{ConversionError, convert};

use crate::{
    meta,
    schema::{self, TypeRef},
    strategy::{Part, Strategy},
    table::ColumnDef,
};

/// One resource of the API in all its versions.
#[derive(Debug)]
pub struct ResourceDef {
    /// Empty for the core group.
    pub group: &'static str,
    /// The preferred version first.
    pub versions: &'static [VersionDef],
    /// apiVersion and schema of the stored form.
    pub storage: StorageForm,
    pub kind: &'static str,
    pub plural: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [SubresourceDef],
    /// Fields that a field selector may name besides metadata.name and metadata.namespace.
    pub selectable: &'static [SelectableField],
    pub columns: &'static [ColumnDef],
    pub strategy: &'static dyn Strategy,
    pub acted_on_by: ActedOnBy,
    /// Served by default though its versions are not stable: what carob does for every user, such as gangs.
    pub always_served: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionDef {
    /// `v1`.
    pub name: &'static str,
    /// Package of the schema table, `apps.v1`.
    pub package: &'static str,
}

impl VersionDef {
    /// Alpha and beta versions are served only when asked for, as upstream does, but for [`ResourceDef::always_served`].
    pub fn is_stable(&self) -> bool {
        !self.name.contains("alpha") && !self.name.contains("beta")
    }
}

/// How objects of a resource are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageForm {
    /// apiVersion of stored objects. Events of both groups are stored as core v1.
    pub api_version: &'static str,
    /// Package of the schema table.
    pub package: &'static str,
    /// The middle of the etcd key, `/registry/<prefix>/...`; `None` for kinds that are answered, not stored.
    pub prefix: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
pub struct SubresourceDef {
    pub name: &'static str,
    /// apiVersion and kind of the body, where it is not the resource's own: pods/eviction takes policy/v1 Eviction.
    pub body: Option<(&'static str, &'static str)>,
    pub verbs: &'static [&'static str],
    pub role: SubresourceRole,
}

/// How the registry handles a subresource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubresourceRole {
    /// Same object; the strategy decides which part may change.
    Part(Part),
    Scale,
    Binding,
    Eviction,
    Token,
    Log,
    /// carob's own: why the Pod has no node.
    Why,
    /// exec, attach, portforward, proxy.
    Connect,
}

#[derive(Debug, Clone, Copy)]
pub struct SelectableField {
    pub name: &'static str,
    /// Path in the stored form, with dots.
    pub path: &'static str,
    /// Value when the field is unset.
    pub unset: &'static str,
}

/// The part of carob that acts on objects of a kind; creating one that nothing acts on answers with a Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActedOnBy {
    ApiServer,
    Scheduler,
    Controllers,
    Node,
    Proxy,
    Nothing,
}

const GROUPS: [&[ResourceDef]; 5] =
    [core::RESOURCES, workloads::RESOURCES, cluster::RESOURCES, access::RESOURCES, admission::RESOURCES];

/// Every resource, the core group first.
pub fn all() -> impl Iterator<Item = &'static ResourceDef> {
    GROUPS.into_iter().flatten()
}

/// Finds a resource by what a path names.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static ResourceDef> {
    all().find(|def| def.plural == plural && def.group == group && def.version(version).is_some())
}

/// Finds a resource by what an object names.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static ResourceDef> {
    all().find(|def| def.kind == kind && def.group == group && def.version(version).is_some())
}

/// Schema of any kind, also of those without a resource (Scale, Eviction, DeleteOptions, Status).
pub fn schema_of(api_version: &str, kind: &str) -> Option<TypeRef<'static>> {
    let (group, version) = meta::group_version(api_version);
    let package = group.split('.').next().unwrap_or_default();
    let lookup = |package: &str| schema::builtin().get(&format!("{package}.{version}.{kind}"));
    match group {
        "" => lookup("core").or_else(|| lookup("meta")),
        "meta.k8s.io" => lookup("meta"),
        "internal.apiserver.k8s.io" => lookup("apiserverinternal"),
        "scheduling.x-k8s.io" => lookup("coscheduling"),
        "flowcontrol.apiserver.k8s.io" | "rbac.authorization.k8s.io" => lookup(package),
        // DeleteOptions and the like are registered in every group.
        _ => lookup(package).or_else(|| schema::builtin().get(&format!("meta.v1.{kind}"))),
    }
}

impl ResourceDef {
    pub fn version(&self, name: &str) -> Option<&'static VersionDef> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `pod`.
    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }

    /// Whether a version is served without being asked for.
    pub fn is_served_by_default(&self, version: &VersionDef) -> bool {
        self.always_served || version.is_stable()
    }

    /// Schema of one version; `None` for an unknown version.
    pub fn schema(&self, version: &str) -> Option<TypeRef<'static>> {
        let package = self.version(version)?.package;
        schema::builtin().get(&format!("{package}.{}", self.kind))
    }

    /// Schema of the stored form.
    pub fn storage_schema(&self) -> Option<TypeRef<'static>> {
        schema::builtin().get(&format!("{}.{}", self.storage.package, self.kind))
    }

    pub fn subresource(&self, name: &str) -> Option<&'static SubresourceDef> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
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
        match (self.storage.prefix, namespace) {
            (None, _) => String::new(),
            (Some(prefix), None) => format!("/registry/{prefix}/"),
            (Some(prefix), Some(namespace)) => format!("/registry/{prefix}/{namespace}/"),
        }
    }

    /// Value of a selectable field in a stored object; `None` if field selectors may not name it.
    pub fn selectable_value<'a>(&self, obj: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        let (path, unset) = match field {
            "metadata.name" => (field, ""),
            "metadata.namespace" if self.namespaced => (field, ""),
            _ => {
                let selectable = self.selectable.iter().find(|s| s.name == field)?;
                (selectable.path, selectable.unset)
            }
        };
        let value = path.split('.').try_fold(obj, |value, key| value.get(key));
        Some(match value {
            Some(Value::String(text)) => Cow::Borrowed(text),
            None | Some(Value::Null) => Cow::Owned(unset.to_owned()),
            Some(other) => Cow::Owned(other.to_string()),
        })
    }

    /// `apps/v1`.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }
}
