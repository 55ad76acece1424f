//! The fixed roles of the cluster's own parts, each under the user name that upstream gives it
//! (plugin/pkg/auth/authorizer/rbac/bootstrappolicy).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::{Attributes, Authorizer, Decision, Rule};
use crate::identity::UserInfo;

/// Knows users by name only: what a component may do never depends on groups that a certificate claims.
pub(crate) struct Components;

static ROLES: LazyLock<BTreeMap<&'static str, Vec<Rule>>> = LazyLock::new(|| {
    BTreeMap::from([
        ("system:kube-scheduler", scheduler()),
        ("system:kube-controller-manager", controller_manager()),
        ("system:kube-proxy", proxy()),
        ("system:kube-dns", dns()),
        // What the API server asks of the API on its own behalf.
        ("system:apiserver", vec![Rule::everything()]),
    ])
});

fn scheduler() -> Vec<Rule> {
    const READ: &str = "get list watch";
    vec![
        Rule::on("create patch update", "core", "events"),
        Rule::on("create patch update", "events.k8s.io", "events"),
        Rule::on("get list watch create update patch", "coordination.k8s.io", "leases leasecandidates"),
        Rule::on(READ, "core", "nodes namespaces services replicationcontrollers"),
        Rule::on("get list watch delete", "core", "pods"),
        Rule::on("create", "core", "bindings pods/binding pods/eviction"),
        Rule::on("patch update", "core", "pods/status"),
        Rule::on("get list watch update patch", "core", "persistentvolumes persistentvolumeclaims"),
        Rule::on(READ, "apps", "replicasets statefulsets daemonsets deployments"),
        Rule::on(READ, "batch", "jobs"),
        Rule::on(READ, "policy", "poddisruptionbudgets"),
        Rule::on(READ, "storage.k8s.io", "storageclasses csinodes csidrivers csistoragecapacities volumeattachments"),
        Rule::on(READ, "scheduling.k8s.io", "priorityclasses workloads podgroups"),
        Rule::on("patch update", "scheduling.k8s.io", "podgroups/status"),
        Rule::on(READ, "scheduling.x-k8s.io", "podgroups"),
        Rule::on("patch update", "scheduling.x-k8s.io", "podgroups/status"),
        Rule::on(READ, "resource.k8s.io", "deviceclasses resourceslices devicetaintrules"),
        Rule::on("get list watch update patch", "resource.k8s.io", "resourceclaims resourceclaims/status"),
        Rule::on("create", "authentication.k8s.io", "tokenreviews"),
        Rule::on("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]
}

/// All controllers run under one identity. Garbage collection and namespace deletion read, patch and delete any kind; what
/// controllers create and change is listed.
fn controller_manager() -> Vec<Rule> {
    const WRITE: &str = "create update patch";
    vec![
        Rule::on("get list watch delete deletecollection patch", "*", "*"),
        Rule::on(
            WRITE,
            "core",
            "events endpoints pods configmaps secrets serviceaccounts serviceaccounts/token namespaces namespaces/status \
             namespaces/finalize nodes nodes/status pods/status pods/finalizers services services/status \
             replicationcontrollers replicationcontrollers/status persistentvolumes persistentvolumes/status \
             persistentvolumeclaims persistentvolumeclaims/status resourcequotas resourcequotas/status pods/eviction",
        ),
        Rule::on("update", "*", "*/scale"),
        Rule::on(WRITE, "events.k8s.io", "events"),
        Rule::on(WRITE, "apps", "*"),
        Rule::on(WRITE, "batch", "*"),
        Rule::on(WRITE, "autoscaling", "*"),
        Rule::on(WRITE, "coordination.k8s.io", "leases leasecandidates"),
        Rule::on(WRITE, "discovery.k8s.io", "endpointslices"),
        Rule::on(WRITE, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
        Rule::on(WRITE, "certificates.k8s.io", "*"),
        Rule::on("approve sign", "certificates.k8s.io", "signers"),
        Rule::on(WRITE, "storage.k8s.io", "volumeattachments volumeattachments/status"),
        Rule::on(WRITE, "resource.k8s.io", "*"),
        Rule::on(WRITE, "networking.k8s.io", "servicecidrs servicecidrs/status ipaddresses"),
        Rule::on(WRITE, "rbac.authorization.k8s.io", "clusterroles"),
        Rule::on("create", "authentication.k8s.io", "tokenreviews"),
        Rule::on("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]
}

fn proxy() -> Vec<Rule> {
    vec![
        Rule::on("list watch", "core", "services endpoints"),
        Rule::on("get list watch", "core", "nodes"),
        Rule::on("list watch", "discovery.k8s.io", "endpointslices"),
        Rule::on("list watch", "networking.k8s.io", "servicecidrs"),
        Rule::on("create patch update", "core", "events"),
        Rule::on("create patch update", "events.k8s.io", "events"),
    ]
}

fn dns() -> Vec<Rule> {
    vec![
        Rule::on("list watch", "core", "services endpoints pods namespaces"),
        Rule::on("get", "core", "nodes"),
        Rule::on("list watch", "discovery.k8s.io", "endpointslices"),
    ]
}

fn role_of(user: &UserInfo) -> &'static [Rule] {
    ROLES.get(user.name.as_str()).map_or(&[], Vec::as_slice)
}

impl Authorizer for Components {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        if role_of(user).iter().any(|rule| rule.allows(attributes)) {
            return Decision::Allow;
        }
        Decision::NoOpinion(String::new())
    }

    fn rules(&self, user: &UserInfo, _namespace: &str) -> Vec<Rule> {
        role_of(user).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ResourceAttributes;
    use super::*;

    #[test]
    fn the_scheduler_binds_but_reads_no_secrets() {
        let scheduler = UserInfo::component("system:kube-scheduler");
        let ask_in = |group: &str, verb: &str, resource: &str, subresource: &str| {
            let resource = ResourceAttributes { group, resource, subresource, namespace: "ns", ..Default::default() };
            Components.authorize(&scheduler, &Attributes { verb, resource: Some(resource), path: "" })
        };
        let ask = |verb: &str, resource: &str, subresource: &str| ask_in("", verb, resource, subresource);
        assert_eq!(ask("create", "pods", "binding"), Decision::Allow);
        assert_eq!(ask("patch", "persistentvolumes", ""), Decision::Allow);
        for group in ["scheduling.k8s.io", "scheduling.x-k8s.io"] {
            assert_eq!(ask_in(group, "watch", "podgroups", ""), Decision::Allow);
            assert_eq!(ask_in(group, "patch", "podgroups", "status"), Decision::Allow);
            assert_ne!(ask_in(group, "delete", "podgroups", ""), Decision::Allow);
        }
        assert_eq!(ask("watch", "pods", ""), Decision::Allow);
        for (verb, resource) in [("get", "secrets"), ("create", "pods"), ("update", "nodes")] {
            assert_eq!(ask(verb, resource, ""), Decision::NoOpinion(String::new()), "{verb} {resource}");
        }
    }
}
