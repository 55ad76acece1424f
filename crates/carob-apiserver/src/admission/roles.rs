//! Nobody grants by RBAC what they do not have (pkg/registry/rbac).

use async_trait::async_trait;
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use serde_json::Value;

use super::{Admission, Operation, Validator};
use crate::authz::{Attributes, Authorization, Decision, RBAC_GROUP, Rbac, ResourceAttributes, RoleKey, Rule, missing};
use crate::identity::GROUP_MASTERS;

/// Checks writes of Roles, ClusterRoles and their bindings.
pub(super) struct NoEscalation {
    pub(super) authz: Authorization,
    pub(super) rbac: Rbac,
}

#[async_trait]
impl Validator for NoEscalation {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.def.group() == RBAC_GROUP && matches!(write.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        // What the garbage collector changes grants nothing.
        if write.user.in_group(GROUP_MASTERS) || old.is_some_and(|old| only_collected(object, old)) {
            return Ok(());
        }
        match write.def.plural() {
            "roles" | "clusterroles" => self.role(write, object, old),
            _ => self.binding(write, object),
        }
    }
}

impl NoEscalation {
    fn role(&self, write: &Admission<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        if self.may(write, "escalate", write.def.plural(), write.name) {
            return Ok(());
        }
        let wanted = rules_in(object)?;
        self.confirm(write, &wanted)?;
        let aggregates = |role: &Value| !meta::items_at(role, &["aggregationRule", "clusterRoleSelectors"]).is_empty();
        if aggregates(object) || old.is_some_and(aggregates) {
            let everything = [Rule::on("*", "*", "*"), Rule::urls("*", "*")];
            let why = "must have cluster-admin privileges to use the aggregationRule";
            self.confirm(write, &everything).map_err(|_| forbidden(write, why))?;
        }
        Ok(())
    }

    fn binding(&self, write: &Admission<'_>, object: &Value) -> Result<(), Status> {
        let text = |field: &str| meta::str_at(object, &["roleRef", field]).unwrap_or_default();
        let (kind, name) = (text("kind"), text("name"));
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if self.may(write, "bind", plural, name) {
            return Ok(());
        }
        let role = RoleKey::referred(kind, name, write.namespace);
        let Some(rules) = self.rbac.rules_of(&role) else {
            return Err(Status::not_found(GroupResource::new(RBAC_GROUP, plural.trim_end_matches('s')), name));
        };
        self.confirm(write, &rules)
    }

    fn may(&self, write: &Admission<'_>, verb: &str, resource: &str, name: &str) -> bool {
        let resource = ResourceAttributes {
            group: RBAC_GROUP,
            version: "*",
            namespace: write.namespace,
            resource,
            name,
            ..ResourceAttributes::default()
        };
        let attributes = Attributes { verb, resource: Some(resource), path: "" };
        self.authz.decide(write.user, &attributes) == Decision::Allow
    }

    fn confirm(&self, write: &Admission<'_>, wanted: &[Rule]) -> Result<(), Status> {
        let (own, errors) = self.rbac.granted(write.user, write.namespace);
        match missing(write.user, &own, wanted, &errors) {
            None => Ok(()),
            Some(why) => Err(forbidden(write, &why)),
        }
    }
}

fn forbidden(write: &Admission<'_>, why: &str) -> Status {
    Status::forbidden(GroupResource::new(RBAC_GROUP, write.def.plural()), write.name, why)
}

fn rules_in(object: &Value) -> Result<Vec<Rule>, Status> {
    match object.get("rules") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(rules) => serde_json::from_value(rules.clone()).map_err(|error| Status::bad_request(error.to_string())),
    }
}

/// Whether an update changes nothing but finalizers and owners (`IsOnlyMutatingGCFields`).
pub(super) fn only_collected(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
            meta::remove(&mut object, &["metadata", field]);
        }
        object
    };
    rest(new) == rest(old)
}
