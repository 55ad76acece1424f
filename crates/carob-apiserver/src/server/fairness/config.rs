//! FlowSchemas and PriorityLevelConfigurations as requests need them (apiserver `pkg/util/flowcontrol/rule.go`). Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use carob_api::meta;
use serde_json::Value;

use crate::authz::Attributes;
use crate::identity::{SERVICE_ACCOUNT_USER_PREFIX, UserInfo};

/// What is done with requests beyond the seats of their level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    Reject,
    Queue { queues: usize, hand: usize, len_max: usize },
}

impl Beyond {
    /// How many queues there are.
    pub(super) fn queues(self) -> usize {
        match self {
            Self::Reject => 0,
            Self::Queue { queues, .. } => queues,
        }
    }
}

/// A priority level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) name: String,
    pub(super) uid: String,
    /// `None` for the level whose requests are never held up.
    pub(super) limit: Option<Limit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) shares: u32,
    pub(super) lendable_percent: u32,
    /// Of the level's own seats; `None` for no limit.
    pub(super) borrowing_percent: Option<u32>,
    pub(super) beyond: Beyond,
}

/// A flow schema.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) uid: String,
    precedence: i64,
    level: String,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distinguisher {
    /// All requests are one flow.
    None,
    ByUser,
    ByNamespace,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    urls: Vec<UrlRule>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug)]
struct UrlRule {
    verbs: Vec<String>,
    urls: Vec<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// The first that matches decides.
    schemas: Vec<Arc<Schema>>,
    pub(super) levels: BTreeMap<String, Arc<Level>>,
}

/// Where a request belongs.
#[derive(Debug, Clone)]
pub(crate) struct Classified {
    pub(super) level: Arc<Level>,
    pub(super) schema: Arc<Schema>,
    /// Requests with the same number are one flow.
    pub(super) flow: u64,
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    meta::items_at(value, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn number(value: &Value, path: &[&str]) -> Option<u32> {
    meta::i64_at(value, path).and_then(|number| u32::try_from(number).ok())
}

impl Level {
    pub(super) fn of(object: &Value) -> Self {
        let limited = ["spec", "limited"];
        let at = |field: &'static str| [limited[0], limited[1], field];
        let is_exempt = meta::str_at(object, &["spec", "type"]) == Some("Exempt");
        let queuing = &object["spec"]["limited"]["limitResponse"]["queuing"];
        let size = |field: &str, default: usize| {
            number(queuing, &[field])
                .and_then(|size| usize::try_from(size).ok())
                .filter(|size| *size > 0)
                .unwrap_or(default)
        };
        // Defaults of pkg/apis/flowcontrol/v1/defaults.go.
        let beyond = match meta::str_at(object, &["spec", "limited", "limitResponse", "type"]) {
            Some("Queue") => Beyond::Queue {
                queues: size("queues", 64),
                hand: size("handSize", 8),
                len_max: size("queueLengthLimit", 50),
            },
            _ => Beyond::Reject,
        };
        Self {
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            limit: (!is_exempt).then(|| Limit {
                shares: number(object, &at("nominalConcurrencyShares")).unwrap_or(30),
                lendable_percent: number(object, &at("lendablePercent")).unwrap_or(0).min(100),
                borrowing_percent: number(object, &at("borrowingLimitPercent")),
                beyond,
            }),
        }
    }
}

impl Schema {
    pub(super) fn of(object: &Value) -> Self {
        Self {
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            precedence: meta::i64_at(object, &["spec", "matchingPrecedence"]).unwrap_or(1000),
            level: meta::str_at(object, &["spec", "priorityLevelConfiguration", "name"]).unwrap_or_default().to_owned(),
            distinguisher: match meta::str_at(object, &["spec", "distinguisherMethod", "type"]) {
                Some("ByUser") => Distinguisher::ByUser,
                Some("ByNamespace") => Distinguisher::ByNamespace,
                _ => Distinguisher::None,
            },
            rules: meta::items_at(object, &["spec", "rules"]).iter().map(Rule::of).collect(),
        }
    }

    fn flow(&self, user: &UserInfo, attributes: &Attributes<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.distinguisher {
            Distinguisher::None => {}
            Distinguisher::ByUser => user.name.hash(&mut hasher),
            Distinguisher::ByNamespace => {
                attributes.resource.as_ref().map_or("", |resource| resource.namespace).hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

impl Rule {
    fn of(value: &Value) -> Self {
        let subject = |value: &Value| {
            let of = |kind: &str, field: &str| meta::str_at(value, &[kind, field]).unwrap_or_default().to_owned();
            match meta::str_at(value, &["kind"])? {
                "User" => Some(Subject::User(of("user", "name"))),
                "Group" => Some(Subject::Group(of("group", "name"))),
                "ServiceAccount" => Some(Subject::ServiceAccount {
                    namespace: of("serviceAccount", "namespace"),
                    name: of("serviceAccount", "name"),
                }),
                _ => None,
            }
        };
        Self {
            subjects: meta::items_at(value, &["subjects"]).iter().filter_map(subject).collect(),
            resources: meta::items_at(value, &["resourceRules"])
                .iter()
                .map(|rule| ResourceRule {
                    verbs: texts(rule, "verbs"),
                    groups: texts(rule, "apiGroups"),
                    resources: texts(rule, "resources"),
                    cluster_scope: meta::bool_at(rule, &["clusterScope"]) == Some(true),
                    namespaces: texts(rule, "namespaces"),
                })
                .collect(),
            urls: meta::items_at(value, &["nonResourceRules"])
                .iter()
                .map(|rule| UrlRule { verbs: texts(rule, "verbs"), urls: texts(rule, "nonResourceURLs") })
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, attributes: &Attributes<'_>) -> bool {
        self.subjects.iter().any(|subject| subject.matches(user))
            && match &attributes.resource {
                Some(_) => self.resources.iter().any(|rule| rule.matches(attributes)),
                None => self.urls.iter().any(|rule| rule.matches(attributes)),
            }
    }
}

impl Subject {
    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.groups.iter().any(|group| group == name),
            Self::ServiceAccount { namespace, name } => {
                let own = user.name.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX).and_then(|rest| rest.split_once(':'));
                own.is_some_and(|(of, account)| of == namespace && (name == "*" || account == name))
            }
        }
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|own| own == value || own == "*")
}

impl ResourceRule {
    fn matches(&self, attributes: &Attributes<'_>) -> bool {
        let Some(at) = &attributes.resource else { return false };
        let in_scope = if at.namespace.is_empty() { self.cluster_scope } else { has(&self.namespaces, at.namespace) };
        in_scope
            && has(&self.verbs, attributes.verb)
            && has(&self.groups, at.group)
            && has(&self.resources, &at.full_resource())
    }
}

impl UrlRule {
    fn matches(&self, attributes: &Attributes<'_>) -> bool {
        let path = attributes.path;
        // A URL covers what is below it.
        let covers = |url: &String| {
            let below = url.strip_suffix('*').unwrap_or(url).trim_end_matches('/');
            url == "*" || url == path || path.strip_prefix(below).is_some_and(|rest| rest.starts_with('/'))
        };
        has(&self.verbs, attributes.verb) && self.urls.iter().any(covers)
    }
}

impl Compiled {
    pub(super) fn new(schemas: impl Iterator<Item = Arc<Schema>>, levels: impl Iterator<Item = Arc<Level>>) -> Self {
        let mut schemas: Vec<Arc<Schema>> = schemas.collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Self { schemas, levels: levels.map(|level| (level.name.clone(), level)).collect() }
    }

    /// The schema of the lowest precedence that is about the request and whose level there is; `None` before the system's
    /// objects are made.
    pub(super) fn classify(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Option<Classified> {
        self.schemas.iter().find_map(|schema| {
            let level = self.levels.get(&schema.level)?;
            let matches = schema.rules.iter().any(|rule| rule.matches(user, attributes));
            matches.then(|| Classified {
                level: Arc::clone(level),
                schema: Arc::clone(schema),
                flow: schema.flow(user, attributes),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authz::ResourceAttributes;

    fn schema(name: &str, precedence: i64, level: &str, rule: Value, distinguisher: &str) -> Arc<Schema> {
        Arc::new(Schema::of(&json!({ "metadata": { "name": name }, "spec": {
            "matchingPrecedence": precedence, "priorityLevelConfiguration": { "name": level }, "rules": [rule],
            "distinguisherMethod": { "type": distinguisher },
        } })))
    }

    fn level(name: &str) -> Arc<Level> {
        Arc::new(Level::of(&json!({ "metadata": { "name": name }, "spec": { "type": "Limited", "limited": {} } })))
    }

    fn on(verb: &'static str, resource: &'static str, namespace: &'static str) -> Attributes<'static> {
        let resource = ResourceAttributes { namespace, resource, ..ResourceAttributes::default() };
        Attributes { verb, resource: Some(resource), path: "" }
    }

    #[test]
    fn the_schema_of_the_lowest_precedence_decides() {
        let accounts = json!([{ "kind": "ServiceAccount", "serviceAccount": { "namespace": "ops", "name": "*" } }]);
        let all = json!([{ "kind": "Group", "group": { "name": "system:authenticated" } }]);
        let any = json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"] }]);
        let pods = json!([{ "verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["ops"] }]);
        let urls = json!([{ "verbs": ["get"], "nonResourceURLs": ["/healthz"] }]);
        let compiled = Compiled::new(
            [
                schema(
                    "rest",
                    9000,
                    "low",
                    json!({ "subjects": all, "resourceRules": any, "nonResourceRules": urls }),
                    "ByUser",
                ),
                schema("ops", 500, "high", json!({ "subjects": accounts, "resourceRules": pods }), "ByNamespace"),
                schema("dangling", 1, "none", json!({ "subjects": all, "resourceRules": any }), ""),
            ]
            .into_iter(),
            [level("low"), level("high")].into_iter(),
        );
        let bot = UserInfo::new("system:serviceaccount:ops:bot", []);
        let name = |user: &UserInfo, attributes: &Attributes<'_>| {
            compiled.classify(user, attributes).map(|found| format!("{}/{}", found.schema.name, found.level.name))
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(name(&bot, &on("list", "pods", "ops")), is("ops/high"));
        assert_eq!(name(&bot, &on("list", "pods", "other")), is("rest/low"));
        assert_eq!(name(&bot, &on("get", "pods", "ops")), is("rest/low"));
        assert_eq!(name(&bot, &on("list", "pods", "")), is("rest/low"), "its rule is not about all namespaces");
        let path = |path: &'static str| Attributes { verb: "get", resource: None, path };
        assert_eq!(name(&bot, &path("/healthz")), is("rest/low"));
        assert_eq!(name(&bot, &path("/healthz/etcd")), is("rest/low"));
        assert_eq!(name(&bot, &path("/healthzz")), None);
        assert_eq!(name(&bot, &path("/version")), None);
        let flow = |user: &str| {
            let user = UserInfo::new(user, []);
            compiled.classify(&user, &on("get", "pods", "a")).expect("it is classified").flow
        };
        assert_eq!(flow("jane"), flow("jane"));
        assert_ne!(flow("jane"), flow("john"));
    }
}
