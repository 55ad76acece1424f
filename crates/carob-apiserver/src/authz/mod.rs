//! May this user do this? A chain of authorizers, each of which allows, denies or has no opinion; nobody's opinion is a no.

mod components;
mod default_roles;
mod graph;
mod impersonate;
mod node;
mod rbac;
mod rules;

use std::sync::Arc;

use carob_api::Status;
use carob_api::status::GroupResource;
use carob_store::Store;

use crate::admission::Reader;
use crate::error::ApiResult;
use crate::identity::{GROUP_MASTERS, UserInfo};

pub(crate) use components::Components;
pub(crate) use default_roles::{AUTOUPDATE, all as default_objects};
pub(crate) use graph::NodeGraph;
pub(crate) use impersonate::{HEADER_PREFIX as IMPERSONATION_PREFIX, impersonated};
pub(crate) use node::Nodes;
pub(crate) use rbac::{GROUP as RBAC_GROUP, Rbac, RoleKey, missing};
pub use rules::Rule;

/// One action, as authorization sees it (apiserver `pkg/authorization/authorizer`, `Attributes`).
#[derive(Debug, Clone, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    /// `None` for paths that name no resource.
    pub resource: Option<ResourceAttributes<'a>>,
    pub path: &'a str,
}

#[derive(Debug, Clone, Default)]
pub struct ResourceAttributes<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub namespace: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    /// Paths that the request's field selector requires to equal a value.
    pub field_equals: Vec<(String, String)>,
}

impl ResourceAttributes<'_> {
    /// `pods` or `pods/log`, as rules spell it.
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            return self.resource.to_owned();
        }
        format!("{}/{}", self.resource, self.subresource)
    }

    pub(crate) fn requires(&self, path: &str, value: &str) -> bool {
        self.field_equals.iter().any(|(own, wanted)| own == path && wanted == value)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// No later authorizer is asked. The reason is shown to the user.
    Deny(String),
    /// The next authorizer is asked; the reason is shown if none allows.
    NoOpinion(String),
}

/// One link of the chain.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision;

    /// Why the action is allowed, for access reviews; `None` where there is nothing to say, or it is not allowed.
    fn explain(&self, _user: &UserInfo, _attributes: &Attributes<'_>) -> Option<String> {
        None
    }

    /// What the user may do in `namespace`, for SelfSubjectRulesReview; never more than [`Authorizer::authorize`] allows.
    fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<Rule>;
}

/// Members of `system:masters` may do everything.
struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, user: &UserInfo, _attributes: &Attributes<'_>) -> Decision {
        if user.in_group(GROUP_MASTERS) { Decision::Allow } else { Decision::NoOpinion(String::new()) }
    }

    /// Upstream lists what RBAC grants to the group, which is `cluster-admin`.
    fn rules(&self, _user: &UserInfo, _namespace: &str) -> Vec<Rule> {
        Vec::new()
    }
}

/// The authorizers that know everything from the start.
fn fixed() -> Vec<Box<dyn Authorizer>> {
    vec![Box::new(Masters), Box::new(Components)]
}

/// The chain itself.
#[derive(Clone)]
pub(crate) struct Authorization {
    chain: Arc<[Box<dyn Authorizer>]>,
}

impl Authorization {
    /// The built-in authorizers over what is stored, then `more`: where webhooks come in.
    pub(crate) fn new(store: &Store, rbac: Rbac, more: Vec<Box<dyn Authorizer>>) -> Self {
        let graph = Arc::new(NodeGraph::new(store));
        let mut chain = fixed();
        chain.push(Box::new(Nodes::new(graph, Reader::new(store.clone()))));
        chain.push(Box::new(rbac));
        chain.extend(more);
        Self { chain: chain.into() }
    }

    /// What needs no store.
    #[cfg(test)]
    pub(crate) fn builtin() -> Self {
        Self { chain: fixed().into() }
    }

    pub(crate) fn decide(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        let mut reasons = Vec::new();
        for authorizer in self.chain.iter() {
            match authorizer.authorize(user, attributes) {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    /// Why the authorizer that allows the action allows it, if it says.
    pub(crate) fn explain(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Option<String> {
        for authorizer in self.chain.iter() {
            match authorizer.authorize(user, attributes) {
                Decision::Allow => return authorizer.explain(user, attributes),
                Decision::Deny(_) => return None,
                Decision::NoOpinion(_) => {}
            }
        }
        None
    }

    /// The 403 that upstream would answer, unless the action is allowed.
    pub(crate) fn check(&self, user: &UserInfo, attributes: &Attributes<'_>) -> ApiResult<()> {
        match self.decide(user, attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(user, attributes, &reason).into()),
        }
    }

    pub(crate) fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.chain.iter().flat_map(|authorizer| authorizer.rules(user, namespace)).collect()
    }
}

/// Worded as apiserver `pkg/endpoints/handlers/responsewriters/errors.go`.
pub(crate) fn forbidden(user: &UserInfo, attributes: &Attributes<'_>, reason: &str) -> Status {
    let Some(resource) = &attributes.resource else {
        let why = format!("User {:?} cannot {} path {:?}", user.name, attributes.verb, attributes.path);
        return Status::forbidden(GroupResource::new("", ""), "", &with_reason(why, reason));
    };
    let place = if resource.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", resource.namespace)
    };
    let what = resource.full_resource();
    let why = format!(
        "User {:?} cannot {} resource {what:?} in API group {:?} {place}",
        user.name, attributes.verb, resource.group
    );
    Status::forbidden(GroupResource::new(resource.group, resource.resource), resource.name, &with_reason(why, reason))
}

fn with_reason(text: String, reason: &str) -> String {
    if reason.is_empty() { text } else { format!("{text}: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(user: &UserInfo, verb: &str, resource: ResourceAttributes<'_>) -> Result<(), String> {
        let chain = Authorization::builtin();
        let attributes = Attributes { verb, resource: Some(resource), path: "" };
        chain.check(user, &attributes).map_err(|error| error.to_string())
    }

    #[test]
    fn refusals_are_worded_as_upstream_words_them() {
        let user = UserInfo::component("x");
        let pods = ResourceAttributes { resource: "pods", namespace: "default", ..Default::default() };
        assert_eq!(
            ask(&user, "list", pods.clone()).unwrap_err(),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let log = ResourceAttributes { subresource: "log", name: "p", ..pods };
        assert_eq!(
            ask(&user, "get", log).unwrap_err(),
            r#"pods "p" is forbidden: User "x" cannot get resource "pods/log" in API group "" in the namespace "default""#
        );
        let nodes = ResourceAttributes { resource: "nodes", ..Default::default() };
        assert_eq!(
            ask(&user, "list", nodes).unwrap_err(),
            r#"nodes is forbidden: User "x" cannot list resource "nodes" in API group "" at the cluster scope"#
        );
        let status = forbidden(&user, &Attributes { verb: "get", path: "/metrics", resource: None }, "");
        assert_eq!(status.message, r#"forbidden: User "x" cannot get path "/metrics""#);
    }

    #[test]
    fn masters_may_do_everything() {
        let secrets = ResourceAttributes { resource: "secrets", namespace: "kube-system", ..Default::default() };
        assert_eq!(ask(&UserInfo::master("admin"), "delete", secrets), Ok(()));
    }
}
