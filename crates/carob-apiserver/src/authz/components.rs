//! What this program's own controllers and scheduler may do beyond the roles that upstream gives to parts of their name
//! (the rest is RBAC's, see `default_roles`).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::rules::Question;
use super::{Attributes, Authorizer, Decision, Rule, default_roles};
use crate::identity::UserInfo;

/// Knows users by name only: what a component may do never depends on groups that a certificate claims.
pub(crate) struct Components;

static RULES: LazyLock<BTreeMap<&'static str, Vec<Rule>>> = LazyLock::new(|| {
    BTreeMap::from([
        ("system:kube-scheduler", scheduler()),
        // Upstream gives each controller an account of its own. Here they share one client, and so what all of them have.
        ("system:kube-controller-manager", [default_roles::rules_of_controllers(), controllers()].concat()),
        ("system:local-storage", local_storage()),
    ])
});

fn scheduler() -> Vec<Rule> {
    const READ: &str = "get list watch";
    vec![
        // It evicts where upstream deletes, so that disruption budgets are asked.
        Rule::on("create", "core", "pods/eviction"),
        // Spreading by owner looks at the owners.
        Rule::on(READ, "apps", "deployments daemonsets"),
        Rule::on(READ, "batch", "jobs"),
        Rule::on(READ, "scheduling.k8s.io", "priorityclasses workloads"),
        Rule::on(READ, "scheduling.x-k8s.io", "podgroups"),
        Rule::on("patch update", "scheduling.x-k8s.io", "podgroups/status"),
        // Several schedulers run side by side, each with a Lease of its own.
        Rule::on("get list watch update patch", "coordination.k8s.io", "leases"),
    ]
}

fn controllers() -> Vec<Rule> {
    vec![
        // A node's Pods are evicted for its taints.
        Rule::on("create", "core", "pods/eviction"),
        // What upstream leaves to an administrator: nodes' own serving certificates.
        Rule {
            resource_names: vec!["kubernetes.io/kubelet-serving".to_owned()],
            ..Rule::on("approve", "certificates.k8s.io", "signers")
        },
        Rule::on("create", "core", "secrets serviceaccounts configmaps endpoints"),
        Rule::on("create", "networking.k8s.io", "servicecidrs ipaddresses"),
        // The binder says in a patch what upstream's says in an update.
        Rule::on("patch", "core", "persistentvolumeclaims persistentvolumes/status"),
        // The snapshot controller's part (external-snapshotter, `deploy/kubernetes/snapshot-controller`).
        Rule::on("patch", "snapshot.storage.k8s.io", "volumesnapshots volumesnapshots/status"),
        Rule::on("create delete patch", "snapshot.storage.k8s.io", "volumesnapshotcontents"),
        Rule::on("create", "snapshot.storage.k8s.io", "volumesnapshotclasses"),
    ]
}

/// The provisioner of volumes on a node's disk: what upstream's external provisioners have, and the label on its Node.
fn local_storage() -> Vec<Rule> {
    vec![
        Rule::on("get create delete patch", "core", "persistentvolumes"),
        Rule::on("get patch", "core", "persistentvolumeclaims"),
        Rule::on("patch", "core", "persistentvolumeclaims/status"),
        Rule::on("patch", "core", "nodes"),
        Rule::on("create patch update", "core", "events"),
        Rule::on("get", "snapshot.storage.k8s.io", "volumesnapshots volumesnapshotcontents"),
        Rule::on("patch", "snapshot.storage.k8s.io", "volumesnapshotcontents volumesnapshotcontents/status"),
    ]
}

fn rules_of(user: &UserInfo) -> &'static [Rule] {
    RULES.get(user.name.as_str()).map_or(&[], Vec::as_slice)
}

impl Authorizer for Components {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        let rules = rules_of(user);
        if rules.is_empty() {
            return Decision::NoOpinion(String::new());
        }
        let question = Question::new(attributes);
        if rules.iter().any(|rule| rule.allows(&question)) {
            return Decision::Allow;
        }
        Decision::NoOpinion(String::new())
    }

    fn rules(&self, user: &UserInfo, _namespace: &str) -> Vec<Rule> {
        rules_of(user).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ResourceAttributes;
    use super::*;

    fn may(user: &str, verb: &str, group: &str, resource: &str, subresource: &str) -> bool {
        let resource = ResourceAttributes { group, resource, subresource, namespace: "ns", ..Default::default() };
        let attributes = Attributes { verb, resource: Some(resource), path: "" };
        Components.authorize(&UserInfo::component(user), &attributes) == Decision::Allow
    }

    #[test]
    fn controllers_have_what_upstreams_controllers_have_together() {
        let may = |verb: &str, group: &str, resource: &str, subresource: &str| {
            may("system:kube-controller-manager", verb, group, resource, subresource)
        };
        assert!(may("create", "", "pods", "") && may("delete", "example.com", "anythings", ""));
        assert!(
            may("update", "apps", "deployments", "status") && may("create", "discovery.k8s.io", "endpointslices", "")
        );
        assert!(!may("create", "rbac.authorization.k8s.io", "clusterroles", "") && !may("create", "", "pods", "exec"));
    }

    #[test]
    fn the_scheduler_has_no_more_than_it_needs() {
        let may = |verb: &str, resource: &str, subresource: &str| {
            may("system:kube-scheduler", verb, "", resource, subresource)
        };
        assert!(may("create", "pods", "eviction"));
        for (verb, resource) in [("get", "secrets"), ("create", "pods"), ("update", "nodes")] {
            assert!(!may(verb, resource, ""), "{verb} {resource}");
        }
    }
}
