//! The data that expressions read: the request as an AdmissionRequest, the namespace, the authorizer.

use carob_cel::{Authorizer, Check, Decision, ResourceTarget, Subject, Target};
use serde_json::{Value, json};

use crate::admission::Admission;
use crate::authz::{self, Authorization};
use crate::identity::{GROUP_SERVICE_ACCOUNTS, SERVICE_ACCOUNT_USER_PREFIX, UserInfo};

/// The variable `request` (apiserver pkg/admission/plugin/cel/condition.go, CreateAdmissionRequest). `version` is the one by which the
/// request was matched.
pub(super) fn request(write: &Admission<'_>, version: &str) -> Value {
    let (requested_group, requested_version) = carob_api::meta::group_version(write.api_version);
    let kind_version = if write.is_of_resource() { version } else { requested_version };
    let user = write.user;
    json!({
        "kind": { "group": requested_group, "version": kind_version, "kind": write.kind },
        "resource": { "group": write.def.group(), "version": version, "resource": write.def.plural() },
        "subResource": write.subresource,
        "requestKind": { "group": requested_group, "version": requested_version, "kind": write.kind },
        "requestResource": { "group": write.def.group(), "version": write.version, "resource": write.def.plural() },
        "requestSubResource": write.subresource,
        "name": write.name,
        "namespace": write.namespace,
        "operation": write.operation.as_str(),
        "userInfo": { "username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra },
        "dryRun": write.dry_run,
        "options": write.options,
    })
}

/// The variable `namespaceObject`: what upstream shows of a namespace, and no managed fields.
pub(super) fn namespace_object(mut namespace: Value) -> Value {
    if let Some(metadata) = namespace.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("ownerReferences");
    }
    namespace
}

/// The resource of `authorizer.requestResource`.
pub(crate) fn request_resource(write: &Admission<'_>) -> ResourceTarget {
    ResourceTarget {
        group: write.def.group().to_owned(),
        resource: write.def.plural().to_owned(),
        subresource: write.subresource.to_owned(),
        namespace: write.namespace.to_owned(),
        name: write.name.to_owned(),
        ..ResourceTarget::default()
    }
}

/// The server's own authorization, asked by expressions.
pub(crate) struct Asker<'a> {
    pub(crate) authorization: &'a Authorization,
    pub(crate) user: &'a UserInfo,
}

impl Authorizer for Asker<'_> {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        let account;
        let user = match check.subject {
            Subject::Requester => self.user,
            Subject::ServiceAccount { namespace, name } => {
                let groups = [GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
                account = UserInfo::new(format!("{SERVICE_ACCOUNT_USER_PREFIX}{namespace}:{name}"), groups);
                &account
            }
        };
        let attributes = match &check.target {
            Target::Path(path) => authz::Attributes { verb: check.verb, resource: None, path },
            Target::Resource(target) => authz::Attributes {
                verb: check.verb,
                resource: Some(authz::ResourceAttributes {
                    group: &target.group,
                    version: "*",
                    namespace: &target.namespace,
                    resource: &target.resource,
                    subresource: &target.subresource,
                    name: &target.name,
                    field_equals: required_fields(&target.field_selector),
                }),
                path: "",
            },
        };
        match self.authorization.decide(user, &attributes) {
            authz::Decision::Allow => Decision { allowed: true, ..Decision::default() },
            authz::Decision::Deny(reason) | authz::Decision::NoOpinion(reason) => {
                Decision { allowed: false, reason, error: None }
            }
        }
    }
}

/// What a field selector requires. One that cannot be read restricts nothing, so it allows no more than none does.
fn required_fields(selector: &str) -> Vec<(String, String)> {
    let Ok(selector) = carob_api::selector::FieldSelector::parse(selector) else { return Vec::new() };
    let paths = selector.terms().iter().map(|term| term.path.clone());
    paths.filter_map(|path| selector.required_value(&path).map(|value| (path.clone(), value.to_owned()))).collect()
}
