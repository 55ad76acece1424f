//! Which writes a webhook, a policy or a binding is about: rules, selectors, match policy (apiserver
//! pkg/admission/plugin/policy/matching, plugin/webhook/predicates).

use carob_api::meta;
use carob_api::selector::{LabelSelector, SelectorError};
use serde_json::Value;

use super::{Admission, Operation, Reader};

/// The group whose policies and webhooks are never subject to any.
const GROUP: &str = "admissionregistration.k8s.io";
const EXEMPT_KINDS: [&str; 6] = [
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

/// `MatchResources` of `admissionregistration.k8s.io`.
#[derive(Debug)]
pub(crate) struct MatchResources {
    namespaces: LabelSelector,
    objects: LabelSelector,
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    exact: bool,
    /// Without a rule a policy is about everything, a webhook about nothing.
    all_without_rules: bool,
}

/// The version of the resource by which a write was matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matched {
    pub(crate) version: String,
}

#[derive(Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: Option<String>,
}

/// Whether a write is of a kind that no policy is asked about: else a policy could lock everybody out.
pub(crate) fn is_exempt(write: &Admission<'_>) -> bool {
    write.def.group() == GROUP && EXEMPT_KINDS.contains(&write.kind)
}

fn texts(json: &Value, field: &str) -> Vec<String> {
    meta::items_at(json, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    fn of(json: &Value) -> Self {
        Self {
            operations: texts(json, "operations"),
            groups: texts(json, "apiGroups"),
            versions: texts(json, "apiVersions"),
            resources: texts(json, "resources"),
            names: texts(json, "resourceNames"),
            scope: meta::str_at(json, &["scope"]).map(str::to_owned),
        }
    }

    fn matches(&self, write: &Admission<'_>, version: &str) -> bool {
        self.has_scope(write)
            && has(&self.operations, write.operation.as_str())
            && has(&self.groups, write.def.group())
            && has(&self.versions, version)
            && self.has_resource(write)
            && (self.names.is_empty() || self.names.iter().any(|name| name == write.name))
    }

    fn has_scope(&self, write: &Admission<'_>) -> bool {
        let in_namespace = !write.namespace.is_empty() && !write.is("", "namespaces");
        match self.scope.as_deref() {
            None | Some("*") => true,
            Some("Namespaced") => in_namespace,
            Some("Cluster") => !in_namespace,
            Some(_) => false,
        }
    }

    fn has_resource(&self, write: &Admission<'_>) -> bool {
        let is = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        self.resources.iter().any(|pattern| {
            let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
            is(resource, write.def.plural()) && is(subresource, write.subresource)
        })
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

impl MatchResources {
    /// `rules` is the field of the rules: `resourceRules` of policies, `rules` of webhooks.
    pub(crate) fn of(json: &Value, rules: &str) -> Result<Self, SelectorError> {
        let selector = |field: &str| match meta::at(json, &[field]) {
            Some(selector) => LabelSelector::from_json(selector),
            None => LabelSelector::from_json(&Value::Object(serde_json::Map::new())),
        };
        let of_field = |field: &str| meta::items_at(json, &[field]).iter().map(Rule::of).collect();
        Ok(Self {
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
            rules: of_field(rules),
            excluded: of_field("excludeResourceRules"),
            all_without_rules: rules == "resourceRules",
            exact: meta::str_at(json, &["matchPolicy"]) == Some("Exact"),
        })
    }

    /// By which version the write is matched, if it is. A namespace that is not there is an error only for what matches
    /// otherwise.
    pub(crate) fn matches(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
        reader: &Reader,
    ) -> Result<Option<Matched>, String> {
        let namespace = self.matches_namespace(write, object, reader);
        if namespace == Ok(false) || !self.matches_object(object, old) || self.by_rules(&self.excluded, write).is_some()
        {
            return Ok(None);
        }
        let matched = if self.rules.is_empty() && self.all_without_rules {
            Some(Matched { version: write.version.to_owned() })
        } else {
            self.by_rules(&self.rules, write)
        };
        match (matched, namespace) {
            (None, _) => Ok(None),
            (Some(_), Err(why)) => Err(why),
            (matched, Ok(_)) => Ok(matched),
        }
    }

    fn by_rules(&self, rules: &[Rule], write: &Admission<'_>) -> Option<Matched> {
        if rules.iter().any(|rule| rule.matches(write, write.version)) {
            return Some(Matched { version: write.version.to_owned() });
        }
        if self.exact {
            return None;
        }
        // A rule for one version of a resource is also about requests for its others.
        let versions = || write.def.equivalent_versions().filter(|version| *version != write.version);
        rules.iter().find_map(|rule| {
            versions()
                .find(|version| rule.matches(write, version))
                .map(|version| Matched { version: version.to_owned() })
        })
    }

    fn matches_namespace(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        reader: &Reader,
    ) -> Result<bool, String> {
        let is_namespace = write.is("", "namespaces");
        if self.namespaces.is_empty() || (write.namespace.is_empty() && !is_namespace) {
            return Ok(true);
        }
        let written = is_namespace
            && write.subresource.is_empty()
            && matches!(write.operation, Operation::Create | Operation::Update);
        if written {
            return Ok(self.namespaces.matches(object.and_then(meta::labels)));
        }
        let name = if is_namespace { write.name } else { write.namespace };
        match reader.get("", "namespaces", "", name) {
            Some(namespace) => Ok(self.namespaces.matches(meta::labels(&namespace))),
            None => Err(format!("namespaces {name:?} not found")),
        }
    }

    fn matches_object(&self, object: Option<&Value>, old: Option<&Value>) -> bool {
        self.objects.is_empty()
            || [object, old].into_iter().flatten().any(|object| self.objects.matches(meta::labels(object)))
    }
}
