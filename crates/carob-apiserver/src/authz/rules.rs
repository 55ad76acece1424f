//! Rules as `rbac.authorization.k8s.io` writes them: what they allow, and which of them another set of rules covers.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};

use super::{Attributes, ResourceAttributes};

/// A PolicyRule: every field lists alternatives, `*` stands for anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub api_groups: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub resources: Vec<String>,
    /// Empty means every name.
    #[serde(deserialize_with = "list")]
    pub resource_names: Vec<String>,
    /// A trailing `*` matches any rest.
    #[serde(rename = "nonResourceURLs", deserialize_with = "list")]
    pub non_resource_urls: Vec<String>,
}

/// `null` is an empty list.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// One action, prepared for being compared with many rules.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    verb: &'a str,
    path: &'a str,
    /// The resource, and how rules spell it with its subresource.
    resource: Option<(&'a ResourceAttributes<'a>, Cow<'a, str>)>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(attributes: &'a Attributes<'a>) -> Self {
        let spelt = |at: &'a ResourceAttributes<'a>| {
            let full = if at.subresource.is_empty() { Cow::Borrowed(at.resource) } else { at.full_resource().into() };
            (at, full)
        };
        Self { verb: attributes.verb, path: attributes.path, resource: attributes.resource.as_ref().map(spelt) }
    }
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

    pub(crate) fn allows(&self, question: &Question<'_>) -> bool {
        if !has(&self.verbs, question.verb) {
            return false;
        }
        let Some((at, full)) = &question.resource else {
            return self.non_resource_urls.iter().any(|pattern| url_covers(pattern, question.path));
        };
        has(&self.api_groups, at.group)
            && self.covers_resource(full)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == at.name))
    }

    /// `*/scale` covers the subresource of every resource.
    fn covers_resource(&self, full: &str) -> bool {
        has(&self.resources, full)
            || full.split_once('/').is_some_and(|(_, subresource)| {
                self.resources.iter().any(|rule| rule.strip_prefix("*/") == Some(subresource))
            })
    }

    /// Whether whoever has this rule has all of `part`.
    pub(super) fn covers(&self, part: &Part<'_>) -> bool {
        if !has(&self.verbs, part.verb) {
            return false;
        }
        match &part.on {
            On::Url(url) => self.non_resource_urls.iter().any(|own| url_covers(own, url)),
            On::Resource { group, resource, name } => {
                has(&self.api_groups, group)
                    && self.covers_resource(resource)
                    && (self.resource_names.is_empty()
                        || name.is_some_and(|name| self.resource_names.iter().any(|own| own == name)))
            }
        }
    }

    /// Whether `own` rules together give all that `rule` gives.
    pub(crate) fn all_cover(own: &[Self], rule: &Self) -> bool {
        rule.parts().all(|part| own.iter().any(|own| own.covers(&part)))
    }

    /// The rule taken apart into pieces that one rule covers or not.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let names = || {
            let all = self.resource_names.is_empty().then_some(None);
            all.into_iter().chain(self.resource_names.iter().map(|name| Some(name.as_str())))
        };
        let on_resources = self.api_groups.iter().flat_map(move |group| {
            self.resources.iter().flat_map(move |resource| {
                self.verbs.iter().flat_map(move |verb| {
                    names().map(move |name| Part { verb, on: On::Resource { group, resource, name } })
                })
            })
        });
        let on_urls = self
            .non_resource_urls
            .iter()
            .flat_map(|url| self.verbs.iter().map(move |verb| Part { verb, on: On::Url(url) }));
        on_resources.chain(on_urls)
    }
}

/// One verb on one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part<'a> {
    pub(super) verb: &'a str,
    pub(super) on: On<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum On<'a> {
    Resource {
        group: &'a str,
        resource: &'a str,
        /// `None` means every name.
        name: Option<&'a str>,
    },
    Url(&'a str),
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn url_covers(pattern: &str, path: &str) -> bool {
    pattern == path || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_as_rbac_rules_do() {
        let pods = Rule::on("get list", "core", "pods pods/log */scale");
        let check = |verb: &str, group: &str, resource: &str, subresource: &str| {
            let resource = ResourceAttributes { group, resource, subresource, ..Default::default() };
            pods.allows(&Question::new(&Attributes { verb, resource: Some(resource), path: "" }))
        };
        assert!(check("get", "", "pods", ""));
        assert!(check("list", "", "pods", "log"));
        assert!(check("get", "", "replicationcontrollers", "scale"));
        assert!(!check("delete", "", "pods", ""));
        assert!(!check("get", "apps", "pods", ""));
        assert!(!check("get", "", "pods", "exec"));
        let urls = Rule::urls("get", "/openapi/* /version");
        let url = |path: &str| urls.allows(&Question::new(&Attributes { verb: "get", resource: None, path }));
        assert!(url("/openapi/v3") && url("/version") && !url("/versions") && !url("/metrics"));
    }

    #[test]
    fn a_rule_is_read_as_it_is_stored() {
        let rule: Rule = serde_json::from_str(
            r#"{"verbs":["get"],"apiGroups":[""],"resources":["pods"],"resourceNames":null,"nonResourceURLs":["/x"]}"#,
        )
        .expect("it is a rule");
        assert_eq!((rule.api_groups[0].as_str(), rule.non_resource_urls[0].as_str()), ("", "/x"));
        assert!(rule.resource_names.is_empty());
    }

    #[test]
    fn rules_cover_what_they_allow() {
        let own = Rule::on("get list", "core", "pods */scale");
        let covered = |rule: &Rule| rule.parts().all(|part| own.covers(&part));
        assert!(covered(&Rule::on("get", "core", "pods")) && covered(&Rule::on("list", "core", "services/scale")));
        assert!(!covered(&Rule::on("*", "core", "pods")) && !covered(&Rule::on("get", "core", "pods/log")));
        let named = Rule { resource_names: vec!["a".to_owned()], ..Rule::on("get", "core", "pods") };
        assert!(covered(&named));
        assert!(!Rule::on("get", "core", "pods").parts().any(|part| named.covers(&part)), "one name is not all");
        let urls = Rule::urls("get", "/a*");
        assert!(Rule::urls("get", "/a/b /a*").parts().all(|part| urls.covers(&part)));
        assert!(!Rule::urls("get", "*").parts().any(|part| urls.covers(&part)));
    }
}
