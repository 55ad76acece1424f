//! What is recorded of which request (apiserver `pkg/audit/policy`, `pkg/apis/audit`). Pure.

use carob_api::names;
use serde::Deserialize;
use serde_json::Value;

use crate::authz::Attributes;
use crate::identity::UserInfo;

/// How much of a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When of a request it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A Policy of audit.k8s.io/v1.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditPolicy {
    kind: String,
    api_version: String,
    #[serde(default, rename = "metadata")]
    _metadata: Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("read an audit policy")]
    Decode(#[source] serde_json::Error),
    #[error("{0} is no Policy of audit.k8s.io/v1")]
    Kind(String),
    #[error("an audit policy without rules records nothing")]
    NoRules,
    #[error("rules[{rule}].{field}: {why}")]
    Invalid { rule: usize, field: &'static str, why: String },
}

/// What is recorded of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) level: Level,
    omit_stages: Vec<Stage>,
    pub(crate) omit_managed_fields: bool,
}

impl Scope {
    pub(crate) fn records(&self, stage: Stage) -> bool {
        self.level > Level::None && !self.omit_stages.contains(&stage)
    }
}

impl AuditPolicy {
    pub fn parse(value: Value) -> Result<Self, PolicyError> {
        let policy: Self = serde_json::from_value(value).map_err(PolicyError::Decode)?;
        if (policy.kind.as_str(), policy.api_version.as_str()) != ("Policy", "audit.k8s.io/v1") {
            return Err(PolicyError::Kind(format!("{} {}", policy.api_version, policy.kind)));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::NoRules);
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            rule.check().map_err(|(field, why)| PolicyError::Invalid { rule: index, field, why })?;
        }
        Ok(policy)
    }

    /// The first rule that is about a request decides.
    pub(crate) fn scope(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Scope {
        match self.rules.iter().find(|rule| rule.matches(user, attributes)) {
            Some(rule) => Scope {
                level: rule.level,
                omit_stages: rule.omit_stages.iter().chain(&self.omit_stages).copied().collect(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
            None => {
                Scope { level: Level::None, omit_stages: Vec::new(), omit_managed_fields: self.omit_managed_fields }
            }
        }
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|own| own == value)
}

impl Rule {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if is_of_resources && !self.non_resource_urls.is_empty() {
            return Err((
                "nonResourceURLs",
                "rules cannot apply to both regular resources and non-resource URLs".to_owned(),
            ));
        }
        for url in self.non_resource_urls.iter().filter(|url| *url != "*") {
            if !url.starts_with('/') {
                let why = "non-resource URL rules must begin with a '/' character";
                return Err(("nonResourceURLs", format!("Invalid value: {url:?}: {why}")));
            }
            if url.trim_end_matches('*').contains('*') || url.ends_with("**") {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                return Err(("nonResourceURLs", format!("Invalid value: {url:?}: {why}")));
            }
        }
        for resources in &self.resources {
            let group = &resources.group;
            let problems =
                if matches!(group.as_str(), "" | "*") { Vec::new() } else { names::dns1123_subdomain(group) };
            if !problems.is_empty() {
                return Err(("resources.group", format!("Invalid value: {group:?}: {}", problems.join(","))));
            }
            if !resources.resource_names.is_empty() && resources.resources.is_empty() {
                return Err((
                    "resources.resourceNames",
                    "using resourceNames requires at least one resource".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn matches(&self, user: &UserInfo, attributes: &Attributes<'_>) -> bool {
        if !self.users.is_empty() && !has(&self.users, &user.name) {
            return false;
        }
        if !self.user_groups.is_empty() && !user.groups.iter().any(|group| has(&self.user_groups, group)) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, attributes.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return self.matches_resource(attributes);
        }
        if self.non_resource_urls.is_empty() {
            return true;
        }
        attributes.resource.is_none() && self.non_resource_urls.iter().any(|url| path_matches(attributes.path, url))
    }

    fn matches_resource(&self, attributes: &Attributes<'_>) -> bool {
        let Some(at) = &attributes.resource else { return false };
        if !self.namespaces.is_empty() && !has(&self.namespaces, at.namespace) {
            return false;
        }
        let whole = if at.subresource.is_empty() {
            at.resource.to_owned()
        } else {
            format!("{}/{}", at.resource, at.subresource)
        };
        let is_it = |pattern: &String| {
            *pattern == whole
                || pattern == "*"
                || (!at.subresource.is_empty() && pattern.strip_prefix("*/") == Some(at.subresource))
                || pattern.strip_suffix("/*") == Some(at.resource)
        };
        self.resources.is_empty()
            || self.resources.iter().any(|own| {
                let named = own.resource_names.is_empty() || has(&own.resource_names, at.name);
                (own.group == at.group || own.group == "*")
                    && (own.resources.is_empty() || (named && own.resources.iter().any(is_it)))
            })
    }
}

fn path_matches(path: &str, pattern: &str) -> bool {
    pattern == "*" || pattern == path || pattern.strip_suffix('*').is_some_and(|begin| path.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authz::ResourceAttributes;

    fn policy(rules: Value) -> Result<AuditPolicy, String> {
        let value = json!({ "kind": "Policy", "apiVersion": "audit.k8s.io/v1", "rules": rules, "omitStages": ["RequestReceived"] });
        AuditPolicy::parse(value).map_err(|error| carob_kit::chain(&error).to_string())
    }

    fn on(resource: &'static str, subresource: &'static str, namespace: &'static str) -> Attributes<'static> {
        let resource =
            ResourceAttributes { resource, subresource, namespace, name: "x", ..ResourceAttributes::default() };
        Attributes { verb: "get", resource: Some(resource), path: "" }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = policy(json!([
            { "level": "None", "users": ["system:kube-proxy"], "verbs": ["watch"] },
            { "level": "RequestResponse", "resources": [{ "group": "", "resources": ["pods"] }], "omitStages": ["Panic"] },
            { "level": "Request", "resources": [{ "group": "", "resources": ["*/scale", "secrets/*"] }], "omitManagedFields": true },
            { "level": "None", "nonResourceURLs": ["/healthz*"] },
            { "level": "Metadata", "namespaces": ["kube-system"] },
        ]));
        let policy = policy.expect("sound");
        let user = UserInfo::new("jane", []);
        let level = |attributes: &Attributes<'_>| policy.scope(&user, attributes).level;
        assert_eq!(level(&on("pods", "", "a")), Level::RequestResponse);
        assert_eq!(level(&on("pods", "log", "a")), Level::None, "no rule is about it");
        assert_eq!(level(&on("deployments", "scale", "a")), Level::Request);
        assert_eq!(level(&on("secrets", "status", "a")), Level::Request);
        assert_eq!(level(&on("configmaps", "", "kube-system")), Level::Metadata);
        let path = |path: &'static str| Attributes { verb: "get", resource: None, path };
        assert_eq!(level(&path("/healthz/etcd")), Level::None);
        assert_eq!(level(&path("/version")), Level::None);
        let scope = policy.scope(&user, &on("pods", "", "a"));
        assert!(!scope.records(Stage::RequestReceived) && !scope.records(Stage::Panic));
        assert!(scope.records(Stage::ResponseComplete) && !scope.omit_managed_fields);
        assert!(policy.scope(&user, &on("secrets", "status", "a")).omit_managed_fields);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (rules, error) in [
            (json!([]), "an audit policy without rules records nothing"),
            (json!([{ "level": "All" }]), "read an audit policy: unknown variant `All`"),
            (json!([{ "level": "None", "stages": [] }]), "read an audit policy: unknown field `stages`"),
            (
                json!([{ "level": "None", "nonResourceURLs": ["healthz"] }]),
                "rules[0].nonResourceURLs: Invalid value: \"healthz\"",
            ),
            (
                json!([{ "level": "None", "nonResourceURLs": ["/a*b"] }]),
                "rules[0].nonResourceURLs: Invalid value: \"/a*b\"",
            ),
            (
                json!([{ "level": "None", "resources": [{ "resourceNames": ["a"] }] }]),
                "rules[0].resources.resourceNames: using resourceNames requires at least one resource",
            ),
        ] {
            let found = policy(rules).expect_err("refused");
            assert!(found.starts_with(error), "{found}");
        }
    }
}
