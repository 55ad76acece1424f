//! Notation of the table: each entry is a constant expression.

use super::{ActedOnBy, ResourceDef, SelectableField, StorageForm, SubresourceDef, SubresourceRole, VersionDef};
use crate::{
    strategy::{Generic, Part, Rules, Strategy},
    table::{ColumnDef, columns},
};

pub(super) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
pub(super) const CREATE: &[&str] = &["create"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

pub(super) static PLAIN: Generic = Generic(Rules::PLAIN);
pub(super) static STATUS: Generic = Generic(Rules::STATUS);
pub(super) static COUNTED: Generic = Generic(Rules::COUNTED);
pub(super) static WORKLOAD: Generic = Generic(Rules::WORKLOAD);

/// `resource!("apps" / "apps" ["v1"] Deployment "deployments")`: group, package of the schema table, versions, kind,
/// plural. The first version is the one stored.
macro_rules! resource {
    ($group:literal / $package:literal [$first:literal $(, $version:literal)*] $kind:literal $plural:literal) => {
        $crate::kinds::builder::stored(
            $group,
            &[
                $crate::kinds::VersionDef { name: $first, package: concat!($package, ".", $first) }
                $(, $crate::kinds::VersionDef { name: $version, package: concat!($package, ".", $version) })*
            ],
            concat!($group, "/", $first),
            $kind,
            $plural,
        )
    };
}
pub(super) use resource;

/// An entry with the most common properties. `grouped` is group and version, with a leading slash in the core group.
pub(super) const fn stored(
    group: &'static str,
    versions: &'static [VersionDef],
    grouped: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> ResourceDef {
    let api_version = if group.is_empty() { versions[0].name } else { grouped };
    ResourceDef {
        group,
        versions,
        storage: StorageForm { api_version, package: versions[0].package, prefix: Some(plural) },
        kind,
        plural,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        selectable: &[],
        columns: columns::NAME_AND_CREATED,
        strategy: &PLAIN,
        acted_on_by: ActedOnBy::ApiServer,
        always_served: false,
    }
}

impl ResourceDef {
    pub(super) const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    pub(super) const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    pub(super) const fn in_all(mut self) -> Self {
        self.categories = &["all"];
        self
    }

    pub(super) const fn in_categories(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }

    pub(super) const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    /// Answered, not stored: reviews and bindings.
    pub(super) const fn answered(mut self) -> Self {
        self.storage.prefix = None;
        self.verbs = CREATE;
        self
    }

    pub(super) const fn subresources(mut self, subresources: &'static [SubresourceDef]) -> Self {
        self.subresources = subresources;
        self
    }

    pub(super) const fn key(mut self, prefix: &'static str) -> Self {
        self.storage.prefix = Some(prefix);
        self
    }

    /// Stored in another version or group than the first listed.
    pub(super) const fn stored_as(mut self, api_version: &'static str, package: &'static str) -> Self {
        self.storage.api_version = api_version;
        self.storage.package = package;
        self
    }

    pub(super) const fn selectable(mut self, fields: &'static [SelectableField]) -> Self {
        self.selectable = fields;
        self
    }

    pub(super) const fn columns(mut self, columns: &'static [ColumnDef]) -> Self {
        self.columns = columns;
        self
    }

    pub(super) const fn strategy(mut self, strategy: &'static dyn Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    pub(super) const fn always_served(mut self) -> Self {
        self.always_served = true;
        self
    }

    pub(super) const fn by(mut self, part: ActedOnBy) -> Self {
        self.acted_on_by = part;
        self
    }
}

/// A field whose selector name is its path and whose unset value is empty.
pub(super) const fn field(name: &'static str) -> SelectableField {
    SelectableField { name, path: name, unset: "" }
}

pub(super) const fn field_unset(name: &'static str, unset: &'static str) -> SelectableField {
    SelectableField { name, path: name, unset }
}

pub(super) const fn field_at(name: &'static str, path: &'static str, unset: &'static str) -> SelectableField {
    SelectableField { name, path, unset }
}

const fn part(name: &'static str, part: Part) -> SubresourceDef {
    SubresourceDef { name, body: None, verbs: GET_PATCH_UPDATE, role: SubresourceRole::Part(part) }
}

pub(super) const STATUS_PART: SubresourceDef = part("status", Part::Status);
pub(super) const EPHEMERAL_CONTAINERS: SubresourceDef = part("ephemeralcontainers", Part::EphemeralContainers);
pub(super) const RESIZE: SubresourceDef = part("resize", Part::Resize);
pub(super) const APPROVAL: SubresourceDef = part("approval", Part::Approval);
pub(super) const FINALIZE: SubresourceDef =
    SubresourceDef { name: "finalize", body: None, verbs: &["update"], role: SubresourceRole::Part(Part::Finalize) };
pub(super) const SCALE: SubresourceDef = SubresourceDef {
    name: "scale",
    body: Some(("autoscaling/v1", "Scale")),
    verbs: GET_PATCH_UPDATE,
    role: SubresourceRole::Scale,
};

pub(super) const fn action(
    name: &'static str,
    api_version: &'static str,
    kind: &'static str,
    role: SubresourceRole,
) -> SubresourceDef {
    SubresourceDef { name, body: Some((api_version, kind)), verbs: CREATE, role }
}

pub(super) const fn connect(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> SubresourceDef {
    SubresourceDef { name, body: Some(("v1", kind)), verbs, role: SubresourceRole::Connect }
}
