//! Notation of the table: each entry is a constant expression.

use super::{ActedOnBy, Persistence, SubresourceDef, SubresourceRole};
use crate::{
    strategy::{Generic, Part, Rules, Strategy},
    table::{ColumnDef, columns},
};

/// One built-in resource as the table states it; [`super::ResourceDef`] is made of it at start.
pub(super) struct Row {
    pub(super) group: &'static str,
    /// The preferred version first.
    pub(super) versions: &'static [RowVersion],
    /// apiVersion of stored objects. Events of both groups are stored as core v1.
    pub(super) stored_api_version: &'static str,
    /// Package of the schema table that stored objects follow.
    pub(super) stored_package: &'static str,
    /// The middle of the etcd key, `/registry/<prefix>/...`; `None` for kinds that are answered, not stored.
    pub(super) prefix: Option<&'static str>,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) short_names: &'static [&'static str],
    pub(super) categories: &'static [&'static str],
    pub(super) namespaced: bool,
    pub(super) verbs: &'static [&'static str],
    pub(super) subresources: &'static [SubresourceDef],
    pub(super) selectable: &'static [RowField],
    pub(super) columns: &'static [ColumnDef],
    pub(super) strategy: &'static dyn Strategy,
    pub(super) acted_on_by: ActedOnBy,
    pub(super) deprecated: Option<&'static str>,
    pub(super) always_served: bool,
    pub(super) returned_when_deleted: bool,
    pub(super) persistence: Persistence,
}

pub(super) struct RowVersion {
    /// `v1`.
    pub(super) name: &'static str,
    /// Package of the schema table, `apps.v1`.
    pub(super) package: &'static str,
}

pub(super) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
pub(super) const CREATE: &[&str] = &["create"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

pub(super) static PLAIN: Generic = Generic(Rules::PLAIN);
pub(super) static STATUS: Generic = Generic(Rules::STATUS);
pub(super) static STATUS_ALONE: Generic = Generic(Rules::STATUS_ALONE);
pub(super) static WORKLOAD: Generic = Generic(Rules::WORKLOAD);

/// `resource!("apps" / "apps" ["v1"] Deployment "deployments")`: group, package of the schema table, versions, kind,
/// plural. The first version is the one stored.
macro_rules! resource {
    ($group:literal / $package:literal [$first:literal $(, $version:literal)*] $kind:literal $plural:literal) => {
        $crate::kinds::builder::stored(
            $group,
            &[
                $crate::kinds::builder::RowVersion { name: $first, package: concat!($package, ".", $first) }
                $(, $crate::kinds::builder::RowVersion { name: $version, package: concat!($package, ".", $version) })*
            ],
            concat!($group, "/", $first),
            $kind,
            $plural,
        )
    };
}
pub(super) use resource;

/// A field that a field selector may name.
#[derive(Clone, Copy)]
pub(super) struct RowField {
    pub(super) name: &'static str,
    /// Path in the stored form, with dots.
    pub(super) path: &'static str,
    /// Path of the field that stands in for an empty one; empty where none does.
    pub(super) stand_in: &'static str,
    /// Value when the field is unset.
    pub(super) unset: &'static str,
}

/// An entry with the most common properties. `grouped` is group and version, with a leading slash in the core group.
pub(super) const fn stored(
    group: &'static str,
    versions: &'static [RowVersion],
    grouped: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Row {
    let api_version = if group.is_empty() { versions[0].name } else { grouped };
    Row {
        group,
        versions,
        stored_api_version: api_version,
        stored_package: versions[0].package,
        prefix: Some(plural),
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
        deprecated: None,
        always_served: false,
        returned_when_deleted: false,
        persistence: Persistence::Durable,
    }
}

impl Row {
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
        self.prefix = None;
        self.verbs = CREATE;
        self
    }

    pub(super) const fn subresources(mut self, subresources: &'static [SubresourceDef]) -> Self {
        self.subresources = subresources;
        self
    }

    pub(super) const fn key(mut self, prefix: &'static str) -> Self {
        self.prefix = Some(prefix);
        self
    }

    /// Stored in another version or group than the first listed.
    pub(super) const fn stored_as(mut self, api_version: &'static str, package: &'static str) -> Self {
        self.stored_api_version = api_version;
        self.stored_package = package;
        self
    }

    pub(super) const fn selectable(mut self, fields: &'static [RowField]) -> Self {
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

    /// A deletion is answered with the object's last state instead of a Status (`ReturnDeletedObject` in the kind's
    /// storage, pkg/registry).
    pub(super) const fn returned_when_deleted(mut self) -> Self {
        self.returned_when_deleted = true;
        self
    }

    pub(super) const fn persistence(mut self, persistence: Persistence) -> Self {
        self.persistence = persistence;
        self
    }

    /// Since when the kind is deprecated, and what to use.
    pub(super) const fn deprecated(mut self, since: &'static str) -> Self {
        self.deprecated = Some(since);
        self
    }

    pub(super) const fn by(mut self, part: ActedOnBy) -> Self {
        self.acted_on_by = part;
        self
    }
}

/// A field whose selector name is its path and whose unset value is empty.
pub(super) const fn field(name: &'static str) -> RowField {
    RowField { name, path: name, stand_in: "", unset: "" }
}

pub(super) const fn field_unset(name: &'static str, unset: &'static str) -> RowField {
    RowField { name, path: name, stand_in: "", unset }
}

pub(super) const fn field_at(name: &'static str, path: &'static str, unset: &'static str) -> RowField {
    RowField { name, path, stand_in: "", unset }
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
