//! ClusterRoles that are put together from others by labels (`pkg/controller/clusterroleaggregation`).

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::context::Context;

/// Upstream's name for the fields that this controller owns.
const MANAGER: &str = "clusterrole-aggregation-controller";

pub(crate) struct RoleAggregation {
    context: Context,
    roles: Informer<ClusterRole>,
}

impl RoleAggregation {
    pub(crate) fn new(context: Context) -> Self {
        Self { roles: context.informers.of(), context }
    }

    pub(crate) fn roles(&self) -> &Informer<ClusterRole> {
        &self.roles
    }
}

/// The roles that any change of a role may concern: all that are put together from others.
pub(crate) fn aggregated(roles: &Informer<ClusterRole>) -> Vec<ObjectKey> {
    let all = roles.list();
    all.iter().filter(|role| role.aggregation_rule.is_some()).map(|role| ObjectKey::cluster(role.name_any())).collect()
}

/// The rules that `role` gets from `others`; `None` when it is not put together from others. Pure.
fn rules(role: &ClusterRole, others: &[&ClusterRole]) -> Option<Vec<PolicyRule>> {
    let mut others: Vec<&&ClusterRole> =
        others.iter().filter(|other| other.metadata.name != role.metadata.name).collect();
    others.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.iter().flatten();
    let mut rules: Vec<PolicyRule> = Vec::new();
    // A selector that does not parse selects nothing.
    for selector in selectors.filter_map(|selector| Selector::try_from(selector.clone()).ok()) {
        for other in others.iter().filter(|other| selector.matches(other.labels())) {
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

impl Reconcile for RoleAggregation {
    /// A ClusterRole.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "clusterrole-aggregation"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(role) = self.roles.get_key(&key) else { return Ok(Requeue::No) };
        let others = self.roles.list();
        let others: Vec<&ClusterRole> = others.iter().map(AsRef::as_ref).collect();
        let Some(rules) = rules(&role, &others) else { return Ok(Requeue::No) };
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Requeue::No);
        }
        let api: Api<ClusterRole> = self.context.cluster_api();
        let body = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": &*key.name }, "rules": rules,
        });
        let applied = api.patch(&key.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body)).await;
        applied.during(|| format!("aggregate cluster role {}", key.name))?;
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, verbs: &[&str]) -> ClusterRole {
        let rules: Vec<_> =
            verbs.iter().map(|verb| json!({ "verbs": [verb], "resources": ["pods"], "apiGroups": [""] })).collect();
        let role = json!({ "metadata": { "name": name, "labels": { label: "true" } }, "rules": rules });
        serde_json::from_value(role).expect("it is a role")
    }

    #[test]
    fn rules_come_in_the_order_of_names_and_each_once() {
        let mut view = role("view", "to-view", &[]);
        view.aggregation_rule = serde_json::from_value(json!({
            "clusterRoleSelectors": [{ "matchLabels": { "to-view": "true" } }, { "matchLabels": { "other": "true" } }],
        }))
        .expect("it is a rule");
        let others =
            [role("b", "to-view", &["list", "get"]), role("a", "to-view", &["get"]), role("c", "none", &["delete"])];
        let all: Vec<&ClusterRole> = others.iter().chain([&view]).collect();
        let verbs = |rules: Option<Vec<PolicyRule>>| {
            rules.map(|rules| rules.into_iter().flat_map(|rule| rule.verbs).collect::<Vec<_>>())
        };
        assert_eq!(verbs(rules(&view, &all)), Some(vec!["get".to_owned(), "list".to_owned()]));
        assert_eq!(verbs(rules(&others[0], &all)), None, "it is put together from none");
    }
}
