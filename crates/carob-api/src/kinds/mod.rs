//! The kinds that the API serves, as values: built-in ones come from a table, custom ones are made while the server runs, and
//! both are [`ResourceDef`]s of one catalogue ([`Kinds`]).
//!
//! A new simple built-in kind costs one entry in one of the group modules and, at most, one strategy.

mod access;
mod admission;
mod builder;
mod catalogue;
mod cluster;
mod convert;
mod core;
mod custom;
mod def;
#[cfg(test)]
mod tests;
mod workloads;

use std::sync::Arc;

pub use catalogue::{Group, Kinds, api_service_priorities, version_priority};
pub use convert::{ConversionError, convert};
pub use custom::{Condition, Conversion, CustomKind, Definition, DefinitionError, Names, Scale};
pub use def::{Columns, ResourceDef, SelectableField, VersionDef};

use crate::{
    meta,
    schema::{self, TypeRef},
    strategy::Part,
};

/// How long objects of a kind last, and how soon a write of them is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// On the disk before the answer, kept until deleted.
    Durable,
    /// As [`Persistence::Durable`], but for updates that leave `spec.holderIdentity` as it is: losing the last second of
    /// renewals in a power loss misleads no reader.
    DurableChangeOfHolder,
    /// Kept for an hour (kube-apiserver `--event-ttl`), on the disk within a second.
    Hour,
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

/// The part of carob that acts on objects of a kind; creating one that nothing acts on answers with a Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActedOnBy {
    ApiServer,
    Scheduler,
    Controllers,
    Node,
    Proxy,
    Ingress,
    Nothing,
}

const GROUPS: [&[builder::Row]; 5] =
    [core::RESOURCES, workloads::RESOURCES, cluster::RESOURCES, access::RESOURCES, admission::RESOURCES];

/// Every built-in resource, the core group first.
pub fn all() -> impl Iterator<Item = &'static Arc<ResourceDef>> {
    Kinds::builtin().all()
}

/// Finds a built-in resource by what a path names.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Arc<ResourceDef>> {
    Kinds::builtin().resource(group, version, plural)
}

/// Finds a built-in resource by what an object names.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<ResourceDef>> {
    Kinds::builtin().kind(group, version, kind)
}

/// Schema of any built-in kind, also of those without a resource (Scale, Eviction, DeleteOptions, Status).
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
