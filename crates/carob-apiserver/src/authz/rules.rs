//! Rules as `rbac.authorization.k8s.io` writes them, for the fixed roles of the cluster's own parts.

use super::Attributes;

/// A PolicyRule: every field lists alternatives, `*` stands for anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty means every name.
    pub resource_names: Vec<String>,
    /// A trailing `*` matches any rest.
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// `verbs` and `resources` are lists separated by spaces; `group` is `core` for the empty one.
    pub(crate) fn on(verbs: &str, group: &str, resources: &str) -> Self {
        let group = if group == "core" { "" } else { group };
        Self { verbs: words(verbs), api_groups: vec![group.to_owned()], resources: words(resources), ..Self::default() }
    }

    pub(crate) fn urls(verbs: &str, urls: &str) -> Self {
        Self { verbs: words(verbs), non_resource_urls: words(urls), ..Self::default() }
    }

    pub(crate) fn everything() -> Self {
        Self { non_resource_urls: words("*"), ..Self::on("*", "*", "*") }
    }

    pub(crate) fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        let Some(resource) = &attributes.resource else {
            return self.non_resource_urls.iter().any(|pattern| url_matches(pattern, attributes.path));
        };
        has(&self.api_groups, resource.group)
            && self.covers_resource(&resource.full_resource(), resource.subresource)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == resource.name))
    }

    /// `*/scale` covers the subresource of every resource.
    fn covers_resource(&self, full: &str, subresource: &str) -> bool {
        has(&self.resources, full)
            || (!subresource.is_empty()
                && self.resources.iter().any(|rule| rule.strip_prefix("*/") == Some(subresource)))
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn url_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ResourceAttributes;
    use super::*;

    #[test]
    fn rules_match_as_rbac_rules_do() {
        let pods = Rule::on("get list", "core", "pods pods/log */scale");
        let check = |verb: &str, group: &str, resource: &str, subresource: &str| {
            let resource = ResourceAttributes { group, resource, subresource, ..Default::default() };
            pods.allows(&Attributes { verb, resource: Some(resource), path: "" })
        };
        assert!(check("get", "", "pods", ""));
        assert!(check("list", "", "pods", "log"));
        assert!(check("get", "", "replicationcontrollers", "scale"));
        assert!(!check("delete", "", "pods", ""));
        assert!(!check("get", "apps", "pods", ""));
        assert!(!check("get", "", "pods", "exec"));
        let urls = Rule::urls("get", "/openapi/* /version");
        let url = |path: &str| urls.allows(&Attributes { verb: "get", resource: None, path });
        assert!(url("/openapi/v3") && url("/version") && !url("/versions") && !url("/metrics"));
    }
}
