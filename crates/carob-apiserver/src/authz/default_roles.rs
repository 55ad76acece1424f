//! The roles and bindings that every cluster has, from `default_roles.txt`: names and rules are those of v1.36
//! (plugin/pkg/auth/authorizer/rbac/bootstrappolicy), with the rules on PodGroups and Workloads that upstream adds with the
//! feature gate GenericWorkload, and those on Pods' certificates and the authorities to trust (ClusterTrustBundle,
//! PodCertificateRequest), since those kinds are always served here, what kubeadm adds for machines that join
//! (cmd/kubeadm/app/phases/bootstraptoken), and what a node's proxy, DNS server and serving certificate need, since they act as
//! the node (`carob:`).
//!
//! In the file a line names an object, and the indented lines below a role are its rules: verbs, API groups (`core` is the
//! empty one), resources, names; or verbs, `url`, paths. `to=` and `from=` are labels and selectors of aggregation. Every
//! `system:controller:` role is bound to the ServiceAccount of that name in kube-system.

use serde_json::{Map, Value, json};

use super::Rule;
use super::rbac::GROUP;

const TABLE: &str = include_str!("default_roles.txt");
const CONTROLLER_PREFIX: &str = "system:controller:";
/// The annotation of objects whose missing rules and subjects are put back at each start.
pub(crate) const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The plural of its kind, its namespace, and the object.
pub(crate) type DefaultObject = (&'static str, String, Value);

/// All of them.
pub(crate) fn all() -> Vec<DefaultObject> {
    let blocks = blocks();
    let controllers = blocks.iter().filter_map(|block| block.controller()).map(|name| {
        let role = format!("{CONTROLLER_PREFIX}{name}");
        let subject = json!({ "kind": "ServiceAccount", "namespace": "kube-system", "name": name });
        binding("", &role, "ClusterRole", &role, vec![subject])
    });
    blocks.iter().map(Block::object).chain(controllers).collect()
}

/// The rules of a default ClusterRole; none if there is no such role.
pub(crate) fn rules_of(cluster_role: &str) -> Vec<Rule> {
    rules_of_all(|name| name == cluster_role)
}

/// The rules of all controllers together.
pub(crate) fn rules_of_controllers() -> Vec<Rule> {
    rules_of_all(|name| name.starts_with(CONTROLLER_PREFIX))
}

fn rules_of_all(wanted: impl Fn(&str) -> bool) -> Vec<Rule> {
    let blocks = blocks();
    let roles = blocks.iter().filter(|block| block.kind() == "ClusterRole" && wanted(block.head[1]));
    roles.flat_map(Block::rules).collect()
}

/// One object's lines.
struct Block {
    head: Vec<&'static str>,
    rules: Vec<Vec<&'static str>>,
}

fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for line in TABLE.lines() {
        let words = line.split_whitespace().collect();
        match blocks.last_mut() {
            Some(block) if line.starts_with(' ') => block.rules.push(words),
            _ => blocks.push(Block { head: words, rules: Vec::new() }),
        }
    }
    blocks
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(|word| if word == "core" { String::new() } else { word.to_owned() }).collect()
}

impl Block {
    fn kind(&self) -> &'static str {
        self.head[0]
    }

    fn controller(&self) -> Option<&'static str> {
        (self.kind() == "ClusterRole").then(|| self.head[1].strip_prefix(CONTROLLER_PREFIX)).flatten()
    }

    fn rules(&self) -> impl Iterator<Item = Rule> {
        self.rules.iter().map(|words| match words.as_slice() {
            [verbs, "url", urls] => Rule { verbs: list(verbs), non_resource_urls: list(urls), ..Rule::default() },
            [verbs, groups, resources, names @ ..] => Rule {
                verbs: list(verbs),
                api_groups: list(groups),
                resources: list(resources),
                resource_names: names.iter().flat_map(|names| list(names)).collect(),
                ..Rule::default()
            },
            _ => Rule::default(),
        })
    }

    fn object(&self) -> DefaultObject {
        match self.head.as_slice() {
            ["ClusterRole", name, options @ ..] => {
                let mut labels = Map::new();
                let mut role = json!({ "rules": self.rules().map(|rule| rule_json(&rule)).collect::<Vec<_>>() });
                for option in options {
                    if let Some(to) = option.strip_prefix("to=") {
                        labels.insert(aggregate_label(to), "true".into());
                    }
                    if let Some(from) = option.strip_prefix("from=") {
                        let selector = json!({ "matchLabels": { aggregate_label(from): "true" } });
                        role["aggregationRule"] = json!({ "clusterRoleSelectors": [selector] });
                        role["rules"] = Value::Null;
                    }
                }
                finish("ClusterRole", "", name, labels, role)
            }
            ["Role", namespace, name] => {
                let rules: Vec<Value> = self.rules().map(|rule| rule_json(&rule)).collect();
                finish("Role", namespace, name, Map::new(), json!({ "rules": rules }))
            }
            ["RoleBinding", namespace, name, role, subjects @ ..] => {
                binding(namespace, name, "Role", role, subjects.iter().map(|subject| subject_json(subject)).collect())
            }
            [_, name, role, subjects @ ..] => {
                binding("", name, "ClusterRole", role, subjects.iter().map(|subject| subject_json(subject)).collect())
            }
            _ => finish("", "", "", Map::new(), json!({})),
        }
    }
}

fn aggregate_label(to: &str) -> String {
    format!("{GROUP}/aggregate-to-{to}")
}

fn rule_json(rule: &Rule) -> Value {
    let mut value = json!({ "verbs": rule.verbs });
    for (field, list) in [
        ("apiGroups", &rule.api_groups),
        ("resources", &rule.resources),
        ("resourceNames", &rule.resource_names),
        ("nonResourceURLs", &rule.non_resource_urls),
    ] {
        if !list.is_empty() {
            value[field] = json!(list);
        }
    }
    value
}

/// `User=name`, `Group=name` or `ServiceAccount=namespace/name`.
fn subject_json(text: &str) -> Value {
    let (kind, name) = text.split_once('=').unwrap_or(("User", text));
    match name.split_once('/') {
        Some((namespace, name)) if kind == "ServiceAccount" => {
            json!({ "kind": kind, "namespace": namespace, "name": name })
        }
        _ => json!({ "apiGroup": GROUP, "kind": kind, "name": name }),
    }
}

fn binding(namespace: &str, name: &str, role_kind: &str, role: &str, subjects: Vec<Value>) -> DefaultObject {
    let mut body = json!({ "roleRef": { "apiGroup": GROUP, "kind": role_kind, "name": role } });
    if !subjects.is_empty() {
        body["subjects"] = subjects.into();
    }
    let kind = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
    finish(kind, namespace, name, Map::new(), body)
}

fn finish(kind: &str, namespace: &str, name: &str, mut labels: Map<String, Value>, mut object: Value) -> DefaultObject {
    labels.insert("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".into());
    object["apiVersion"] = format!("{GROUP}/v1").into();
    object["kind"] = kind.into();
    object["metadata"] = json!({ "name": name, "labels": labels, "annotations": { AUTOUPDATE: "true" } });
    let plural = match kind {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        "ClusterRoleBinding" => "clusterrolebindings",
        _ => "rolebindings",
    };
    (plural, namespace.to_owned(), object)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use carob_api::meta;

    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        for block in blocks() {
            assert!(
                matches!(block.kind(), "ClusterRole" | "Role" | "ClusterRoleBinding" | "RoleBinding"),
                "{:?}",
                block.head
            );
            for rule in block.rules() {
                assert!(
                    !rule.verbs.is_empty() && rule.resources.is_empty() != rule.non_resource_urls.is_empty(),
                    "{rule:?}"
                );
            }
        }
        let all = all();
        let count = |kind: &str| all.iter().filter(|one| meta::kind(&one.2) == kind).count();
        assert_eq!((count("ClusterRole"), count("ClusterRoleBinding")), (76, 59));
        assert_eq!((count("Role"), count("RoleBinding")), (11, 11));
        let named: BTreeSet<(&str, &str, &str)> = all
            .iter()
            .map(|(_, namespace, object)| (meta::kind(object), namespace.as_str(), meta::name(object)))
            .collect();
        assert_eq!(named.len(), all.len());
        for (_, namespace, object) in &all {
            let role = (meta::str_at(object, &["roleRef", "kind"]), meta::str_at(object, &["roleRef", "name"]));
            if let (Some(kind), Some(name)) = role {
                let namespace = if kind == "Role" { namespace.as_str() } else { "" };
                assert!(named.contains(&(kind, namespace, name)), "{name} is bound and not there");
            }
        }
    }

    #[test]
    fn objects_look_as_upstreams_do() {
        let all = all();
        let find = |name: &str, kind: &str| {
            let found = all.iter().find(|one| meta::name(&one.2) == name && meta::kind(&one.2) == kind);
            &found.expect("it is a default").2
        };
        let edit = find("edit", "ClusterRole");
        assert_eq!(meta::label(edit, "rbac.authorization.k8s.io/aggregate-to-admin"), Some("true"));
        assert_eq!(
            edit["aggregationRule"],
            json!({ "clusterRoleSelectors": [{ "matchLabels": { "rbac.authorization.k8s.io/aggregate-to-edit": "true" } }] })
        );
        assert_eq!(
            find("system:controller:job-controller", "ClusterRoleBinding")["subjects"],
            json!([{ "kind": "ServiceAccount", "namespace": "kube-system", "name": "job-controller" }])
        );
        assert_eq!(
            find("cluster-admin", "ClusterRole")["rules"],
            json!([
                { "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] },
                { "verbs": ["*"], "nonResourceURLs": ["*"] },
            ])
        );
    }
}
