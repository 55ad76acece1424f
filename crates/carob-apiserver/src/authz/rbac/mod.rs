//! RBAC: Roles and ClusterRoles, granted to users by RoleBindings and ClusterRoleBindings (plugin/pkg/auth/authorizer/rbac).
//!
//! Rules are parsed once, when their role is stored. Bindings are indexed by their subjects, so a decision looks only at
//! what its user has been granted, however many bindings there are.

mod escalation;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use carob_store::{Entry, Store};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::rules::Question;
use super::{Attributes, Authorizer, Decision, Rule};
use crate::current::{Follower, View, prefix_of};
use crate::identity::{SERVICE_ACCOUNT_USER_PREFIX, UserInfo};

pub(crate) use escalation::missing;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// The authorizer; clones share what they know.
#[derive(Clone, Debug)]
pub(crate) struct Rbac(Arc<Follower<Grants>>);

/// The name of a Role with its namespace, or of a ClusterRole with an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RoleKey {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl RoleKey {
    /// The role that a binding in `namespace` refers to.
    pub(crate) fn referred(kind: &str, name: &str, namespace: &str) -> Self {
        let namespace = if kind == "ClusterRole" { "" } else { namespace };
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// As upstream's lister says that there is none.
    pub(crate) fn not_found(&self) -> String {
        let kind = if self.namespace.is_empty() { "clusterrole" } else { "role" };
        format!("{kind}.{GROUP} {:?} not found", self.name)
    }
}

/// To whom something is granted: a user by name, service accounts included, or a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Grantee {
    User(Box<str>),
    Group(Box<str>),
}

#[derive(Debug)]
struct Binding {
    name: Box<str>,
    /// Empty for a ClusterRoleBinding.
    namespace: Box<str>,
    role_kind: Box<str>,
    role: RoleKey,
    subjects: Vec<Subject>,
}

#[derive(Debug, Deserialize)]
struct Subject {
    kind: Box<str>,
    name: Box<str>,
    #[serde(default)]
    namespace: Box<str>,
}

#[derive(Debug)]
struct Grant {
    binding: Arc<Binding>,
    /// Which of the binding's subjects this is.
    subject: usize,
}

/// Grants of one namespace, or of the whole cluster.
type Granted = HashMap<Grantee, Vec<Grant>>;

#[derive(Debug, Default)]
struct Grants {
    prefixes: Prefixes,
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    bindings: HashMap<Arc<str>, Arc<Binding>>,
    /// By namespace; the cluster's under the empty one.
    granted: HashMap<Box<str>, Granted>,
}

#[derive(Debug, Default)]
struct Prefixes {
    cluster_roles: String,
    roles: String,
    cluster_bindings: String,
    bindings: String,
}

#[derive(Deserialize)]
struct StoredRole {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredBinding {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Deserialize)]
struct RoleRef {
    kind: Box<str>,
    name: Box<str>,
}

impl Rbac {
    pub(crate) fn new(store: &Store) -> Self {
        let prefixes = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];
        let prefixes = prefixes.map(|plural| prefix_of((GROUP, "v1", plural)));
        let [cluster_roles, roles, cluster_bindings, bindings] = prefixes.clone();
        let prefixes_known = Prefixes { cluster_roles, roles, cluster_bindings, bindings };
        let grants = Grants { prefixes: prefixes_known, ..Grants::default() };
        Self(Arc::new(Follower::new(store, prefixes, grants)))
    }

    /// The rules of a role, if there is one.
    pub(crate) fn rules_of(&self, role: &RoleKey) -> Option<Arc<[Rule]>> {
        self.0.ask(|grants| grants.roles.get(role).cloned())
    }

    /// What a user has been granted in a namespace and in the cluster, and what could not be found out.
    pub(crate) fn granted(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, BTreeSet<String>) {
        self.0.ask(|grants| {
            let (mut rules, mut errors) = (Vec::new(), BTreeSet::new());
            grants.visit(user, namespace, |grant| {
                match grants.roles.get(&grant.binding.role) {
                    Some(found) => rules.extend(found.iter().cloned()),
                    None => drop(errors.insert(grant.binding.role.not_found())),
                }
                false
            });
            (rules, errors)
        })
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        self.0.ask(|grants| match grants.find(user, attributes) {
            Ok(_) => Decision::Allow,
            Err(errors) if errors.is_empty() => Decision::NoOpinion(String::new()),
            Err(errors) => Decision::NoOpinion(format!("RBAC: {}", aggregate(&errors))),
        })
    }

    fn explain(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Option<String> {
        self.0.ask(|grants| {
            let grant = grants.find(user, attributes).ok()?;
            Some(format!("RBAC: allowed by {}", grant.describe()))
        })
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.granted(user, namespace).0
    }
}

/// Several errors as apimachinery's aggregate prints them.
pub(crate) fn aggregate(errors: &BTreeSet<String>) -> String {
    let all: Vec<&str> = errors.iter().map(String::as_str).collect();
    if let [one] = all.as_slice() { (*one).to_owned() } else { format!("[{}]", all.join(", ")) }
}

impl Grants {
    /// The grant that allows the action, or which roles could not be asked.
    fn find(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Result<&Grant, BTreeSet<String>> {
        let question = Question::new(attributes);
        let namespace = attributes.resource.as_ref().map_or("", |resource| resource.namespace);
        let mut errors = BTreeSet::new();
        let found = self.visit(user, namespace, |grant| match self.roles.get(&grant.binding.role) {
            Some(rules) => rules.iter().any(|rule| rule.allows(&question)),
            None => {
                errors.insert(grant.binding.role.not_found());
                false
            }
        });
        found.ok_or(errors)
    }

    /// Goes through what a user has been granted until `stop` says that it is enough; answers with where that was.
    fn visit<'a>(
        &'a self,
        user: &UserInfo,
        namespace: &str,
        mut stop: impl FnMut(&'a Grant) -> bool,
    ) -> Option<&'a Grant> {
        let scopes = ["", namespace].into_iter().take(if namespace.is_empty() { 1 } else { 2 });
        for granted in scopes.filter_map(|scope| self.granted.get(scope)) {
            let own = std::iter::once(Grantee::User(user.name.as_str().into()));
            let groups = user.groups.iter().map(|group| Grantee::Group(group.as_str().into()));
            for grantee in own.chain(groups) {
                let grants = granted.get(&grantee).into_iter().flatten();
                for grant in grants {
                    if stop(grant) {
                        return Some(grant);
                    }
                }
            }
        }
        None
    }

    fn put_role(&mut self, entry: &Entry, prefix_len: usize) {
        let key = role_key(&entry.key[prefix_len..]);
        match parse::<StoredRole>(entry) {
            Some(role) => {
                self.roles.insert(key, role.rules.unwrap_or_default().into());
            }
            None => {
                self.roles.remove(&key);
            }
        }
    }

    fn put_binding(&mut self, entry: &Entry, prefix_len: usize) {
        self.remove_binding(&entry.key);
        let Some(stored) = parse::<StoredBinding>(entry) else { return };
        let RoleKey { namespace, name } = role_key(&entry.key[prefix_len..]);
        let role = RoleKey::referred(&stored.role_ref.kind, &stored.role_ref.name, &namespace);
        let subjects = stored.subjects.unwrap_or_default();
        let binding = Binding { name, namespace, role_kind: stored.role_ref.kind, role, subjects };
        let binding = Arc::new(binding);
        let granted = self.granted.entry(binding.namespace.clone()).or_default();
        for (index, subject) in binding.subjects.iter().enumerate() {
            if let Some(grantee) = subject.grantee(&binding.namespace) {
                let grant = Grant { binding: Arc::clone(&binding), subject: index };
                granted.entry(grantee).or_default().push(grant);
            }
        }
        self.bindings.insert(Arc::clone(&entry.key), binding);
    }

    fn remove_binding(&mut self, key: &str) {
        let Some(binding) = self.bindings.remove(key) else { return };
        let Some(granted) = self.granted.get_mut(&binding.namespace) else { return };
        for grantee in binding.subjects.iter().filter_map(|subject| subject.grantee(&binding.namespace)) {
            let Some(grants) = granted.get_mut(&grantee) else { continue };
            grants.retain(|grant| !Arc::ptr_eq(&grant.binding, &binding));
            if grants.is_empty() {
                granted.remove(&grantee);
            }
        }
        if granted.is_empty() {
            self.granted.remove(&binding.namespace);
        }
    }

    /// What lies at a key, and how long its prefix is.
    fn place(&self, key: &str) -> (Lies, usize) {
        let prefixes = [
            (&self.prefixes.cluster_roles, Lies::Role),
            (&self.prefixes.roles, Lies::Role),
            (&self.prefixes.cluster_bindings, Lies::Binding),
        ];
        let found = prefixes.into_iter().find(|(prefix, _)| key.starts_with(prefix.as_str()));
        found.map_or((Lies::Binding, self.prefixes.bindings.len()), |(prefix, lies)| (lies, prefix.len()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lies {
    Role,
    Binding,
}

impl View for Grants {
    fn clear(&mut self, prefix: &str) {
        if prefix == self.prefixes.cluster_roles {
            self.roles.retain(|key, _| !key.namespace.is_empty());
        } else if prefix == self.prefixes.roles {
            self.roles.retain(|key, _| key.namespace.is_empty());
        } else {
            let gone: Vec<Arc<str>> = self.bindings.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
            for key in &gone {
                self.remove_binding(key);
            }
        }
    }

    fn put(&mut self, entry: &Entry) {
        match self.place(&entry.key) {
            (Lies::Role, prefix_len) => self.put_role(entry, prefix_len),
            (Lies::Binding, prefix_len) => self.put_binding(entry, prefix_len),
        }
    }

    fn remove(&mut self, key: &str) {
        match self.place(key) {
            (Lies::Role, prefix_len) => drop(self.roles.remove(&role_key(&key[prefix_len..]))),
            (Lies::Binding, _) => self.remove_binding(key),
        }
    }
}

/// `namespace/name` or `name`, which is what follows a prefix.
fn role_key(rest: &str) -> RoleKey {
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    RoleKey { namespace: namespace.into(), name: name.into() }
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let parsed = serde_json::from_slice(&entry.value);
    parsed.inspect_err(|error| warn!(key = %entry.key, %error, "a stored role or binding grants nothing")).ok()
}

impl Subject {
    /// Whom a request must come from; `namespace` is that of the binding.
    fn grantee(&self, namespace: &str) -> Option<Grantee> {
        match &*self.kind {
            "User" => Some(Grantee::User(self.name.clone())),
            "Group" => Some(Grantee::Group(self.name.clone())),
            "ServiceAccount" => {
                let own = if self.namespace.is_empty() { namespace } else { &self.namespace };
                let user = format!("{SERVICE_ACCOUNT_USER_PREFIX}{own}:{}", self.name);
                (!own.is_empty()).then(|| Grantee::User(user.into()))
            }
            _ => None,
        }
    }
}

impl Grant {
    /// As pkg/registry/rbac/validation/rule.go describes bindings.
    fn describe(&self) -> String {
        let binding = &*self.binding;
        let subject = &binding.subjects[self.subject];
        let (kind, name) = if binding.namespace.is_empty() {
            ("ClusterRoleBinding", binding.name.to_string())
        } else {
            ("RoleBinding", format!("{}/{}", binding.name, binding.namespace))
        };
        let whom = if &*subject.kind == "ServiceAccount" {
            let namespace = if subject.namespace.is_empty() { &binding.namespace } else { &subject.namespace };
            format!("{}/{namespace}", subject.name)
        } else {
            subject.name.to_string()
        };
        format!("{kind} {name:?} of {} {:?} to {} {whom:?}", binding.role_kind, binding.role.name, subject.kind)
    }
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Options, Txn};
    use serde_json::{Value, json};

    use super::super::ResourceAttributes;
    use super::*;

    async fn put(store: &Store, key: &str, object: &Value) {
        let key = format!("/registry/{key}");
        store.txn(Txn::put(key, Expect::Any, object.to_string())).await.expect("the store takes it");
    }

    fn role(verb: &str, resource: &str) -> Value {
        json!({ "rules": [{ "verbs": [verb], "apiGroups": [""], "resources": [resource] }] })
    }

    fn binding(kind: &str, role: &str, subjects: &Value) -> Value {
        json!({ "roleRef": { "apiGroup": GROUP, "kind": kind, "name": role }, "subjects": subjects })
    }

    fn ask(rbac: &Rbac, user: &UserInfo, verb: &str, resource: &str, namespace: &str) -> (Decision, Option<String>) {
        let resource = ResourceAttributes { namespace, resource, ..Default::default() };
        let attributes = Attributes { verb, resource: Some(resource), path: "" };
        (rbac.authorize(user, &attributes), rbac.explain(user, &attributes))
    }

    const NOBODY: Decision = Decision::NoOpinion(String::new());

    #[tokio::test]
    async fn bindings_grant_in_their_scope_and_to_their_subjects() {
        let store = Store::in_memory(Options::default());
        let rbac = Rbac::new(&store);
        let user = UserInfo::new("jane", ["dev".to_owned()]);
        put(&store, "clusterroles/reader", &role("get", "pods")).await;
        put(&store, "roles/ns/writer", &role("create", "pods")).await;
        let dev = json!([{ "kind": "Group", "apiGroup": GROUP, "name": "dev" }]);
        put(&store, "rolebindings/ns/read", &binding("ClusterRole", "reader", &dev)).await;
        let (decision, reason) = ask(&rbac, &user, "get", "pods", "ns");
        assert_eq!(decision, Decision::Allow);
        assert_eq!(
            reason.as_deref(),
            Some(r#"RBAC: allowed by RoleBinding "read/ns" of ClusterRole "reader" to Group "dev""#)
        );
        assert_eq!(ask(&rbac, &user, "get", "pods", "other").0, NOBODY);
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, NOBODY);
        assert_eq!(ask(&rbac, &UserInfo::new("joe", []), "get", "pods", "ns").0, NOBODY);
        let account = json!([{ "kind": "ServiceAccount", "name": "sa" }]);
        put(&store, "rolebindings/ns/write", &binding("Role", "writer", &account)).await;
        let sa = UserInfo::new("system:serviceaccount:ns:sa", []);
        let (decision, reason) = ask(&rbac, &sa, "create", "pods", "ns");
        assert_eq!(decision, Decision::Allow);
        assert_eq!(
            reason.as_deref(),
            Some(r#"RBAC: allowed by RoleBinding "write/ns" of Role "writer" to ServiceAccount "sa/ns""#)
        );
        put(
            &store,
            "clusterrolebindings/all",
            &binding("ClusterRole", "reader", &json!([{ "kind": "User", "name": "joe" }])),
        )
        .await;
        assert_eq!(ask(&rbac, &UserInfo::new("joe", []), "get", "pods", "").0, Decision::Allow);
        assert_eq!(ask(&rbac, &UserInfo::new("joe", []), "get", "pods", "any").0, Decision::Allow);
    }

    #[tokio::test]
    async fn every_change_of_a_role_or_binding_counts_at_once() {
        let store = Store::in_memory(Options::default());
        let rbac = Rbac::new(&store);
        let user = UserInfo::new("jane", []);
        let jane = json!([{ "kind": "User", "name": "jane" }]);
        put(&store, "clusterrolebindings/b", &binding("ClusterRole", "r", &jane)).await;
        let missing = Decision::NoOpinion(r#"RBAC: clusterrole.rbac.authorization.k8s.io "r" not found"#.to_owned());
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, missing);
        put(&store, "clusterroles/r", &role("get", "pods")).await;
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, Decision::Allow);
        put(&store, "clusterroles/r", &role("get", "nodes")).await;
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, NOBODY);
        put(&store, "clusterroles/r", &role("get", "pods")).await;
        put(&store, "clusterrolebindings/b", &binding("ClusterRole", "r", &json!(null))).await;
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, NOBODY);
        put(&store, "clusterrolebindings/b", &binding("ClusterRole", "r", &jane)).await;
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, Decision::Allow);
        store.txn(Txn::delete("/registry/clusterrolebindings/b", Expect::Any)).await.expect("it is there");
        assert_eq!(ask(&rbac, &user, "get", "pods", "").0, NOBODY);
    }

    #[tokio::test]
    async fn rules_are_what_was_granted_here() {
        let store = Store::in_memory(Options::default());
        put(&store, "clusterroles/r", &role("get", "pods")).await;
        put(&store, "roles/ns/r", &role("list", "pods")).await;
        let jane = json!([{ "kind": "User", "name": "jane" }, { "kind": "Nonsense", "name": "jane" }]);
        put(&store, "clusterrolebindings/b", &binding("ClusterRole", "r", &jane)).await;
        put(&store, "rolebindings/ns/b", &binding("Role", "r", &jane)).await;
        put(&store, "rolebindings/ns/c", &binding("Role", "none", &jane)).await;
        let rbac = Rbac::new(&store);
        let (rules, errors) = rbac.granted(&UserInfo::new("jane", []), "ns");
        let verbs: Vec<&str> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert_eq!(aggregate(&errors), r#"role.rbac.authorization.k8s.io "none" not found"#);
        assert_eq!(rbac.granted(&UserInfo::new("jane", []), "other").0.len(), 1);
    }
}
