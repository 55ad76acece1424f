//! What a node's agent may do: what concerns its own Node and the Pods bound to it
//! (plugin/pkg/auth/authorizer/node).

use std::sync::Arc;

use super::{Attributes, Authorizer, Decision, ResourceAttributes, Rule};
use crate::identity::UserInfo;

/// Which objects a node's Pods lead to; answered from the store.
pub trait NodeReach: Send + Sync {
    /// Whether a Pod bound to `node` names this `secrets`, `configmaps`, `persistentvolumeclaims`, `serviceaccounts` or
    /// `resourceclaims` object.
    fn reaches(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool;

    /// Whether the Pod is bound to `node`; `None` when there is no such Pod.
    fn runs(&self, node: &str, namespace: &str, pod: &str) -> Option<bool>;
}

/// See the module.
pub(crate) struct Nodes {
    reach: Arc<dyn NodeReach>,
}

impl Nodes {
    pub(crate) fn new(reach: Arc<dyn NodeReach>) -> Self {
        Self { reach }
    }

    fn decide(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
        match (at.group, at.resource) {
            ("", "nodes") => own_node(node, verb, at),
            ("", "pods") => self.pods(node, verb, at),
            ("", "secrets" | "configmaps" | "persistentvolumeclaims") => self.referenced(node, verb, at),
            ("", "serviceaccounts") => self.service_account(node, verb, at),
            ("resource.k8s.io", "resourceclaims") => self.referenced(node, verb, at),
            ("", "events") | ("events.k8s.io", "events") => allow_verbs(verb, "create patch update"),
            ("coordination.k8s.io", "leases") => lease(node, verb, at),
            ("storage.k8s.io", "csinodes") => named_after_node(node, verb, at),
            ("", "services") | ("node.k8s.io", "runtimeclasses") | ("storage.k8s.io", "csidrivers") => {
                allow_verbs(verb, "get list watch")
            }
            ("", "persistentvolumes") | ("storage.k8s.io", "volumeattachments") => allow_verbs(verb, "get"),
            ("authentication.k8s.io", "tokenreviews") => allow_verbs(verb, "create"),
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => {
                allow_verbs(verb, "create")
            }
            ("certificates.k8s.io", "certificatesigningrequests") => allow_verbs(verb, "create get list watch"),
            _ => Err(String::new()),
        }
    }

    fn pods(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
        match (verb, at.subresource) {
            // Admission sees to it that the new Pod is a mirror Pod of this node.
            ("create", "") => Ok(()),
            ("list" | "watch", "") if at.requires("spec.nodeName", node) => Ok(()),
            ("list" | "watch", "") => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
            ("get" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => {
                match self.reach.runs(node, at.namespace, at.name) {
                    // A Pod that is gone may be asked for: the answer is that it is gone.
                    Some(true) | None => Ok(()),
                    Some(false) => Err(no_relationship(node, at)),
                }
            }
            _ => Err(String::new()),
        }
    }

    fn referenced(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
        let allowed = if at.resource == "persistentvolumeclaims" && at.subresource == "status" {
            matches!(verb, "get" | "update" | "patch")
        } else {
            at.subresource.is_empty() && matches!(verb, "get" | "list" | "watch")
        };
        if !allowed {
            return Err(format!("can only read resources of this type: {}", at.full_resource()));
        }
        if at.name.is_empty() || at.namespace.is_empty() {
            return Err("can only read namespaced object of this type".to_owned());
        }
        self.reachable(node, at)
    }

    fn reachable(&self, node: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
        if self.reach.reaches(node, at.resource, at.namespace, at.name) {
            return Ok(());
        }
        Err(no_relationship(node, at))
    }

    fn service_account(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
        match (verb, at.subresource) {
            ("get", "") | ("create", "token") => self.reachable(node, at),
            _ => Err(String::new()),
        }
    }
}

fn no_relationship(node: &str, at: &ResourceAttributes<'_>) -> String {
    format!("no relationship found between node '{node}' and this object")
        + if at.subresource.is_empty() { "" } else { " (subresource)" }
}

fn allow_verbs(verb: &str, allowed: &str) -> Result<(), String> {
    if allowed.split(' ').any(|one| one == verb) { Ok(()) } else { Err(String::new()) }
}

fn own_node(node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
    match (verb, at.subresource) {
        // The name is in the body: admission compares it.
        ("create", "") => Ok(()),
        ("get" | "update" | "patch" | "list" | "watch", "") | ("get" | "update" | "patch", "status") => {
            if at.name == node {
                return Ok(());
            }
            Err(format!("node '{node}' cannot read '{}', only its own Node object", at.name))
        }
        _ => Err(String::new()),
    }
}

fn named_after_node(node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
    if verb == "create" || (at.name == node && matches!(verb, "get" | "update" | "patch" | "delete")) {
        return Ok(());
    }
    Err(format!("can only access {} with the same name as the requesting node", at.resource))
}

/// A node's heartbeat is the Lease with its name in `kube-node-lease` (`corev1.NamespaceNodeLease`).
fn lease(node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Result<(), String> {
    if at.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    named_after_node(node, verb, at)
}

impl Authorizer for Nodes {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        let (Some(node), Some(resource)) = (user.as_node(), &attributes.resource) else {
            return Decision::NoOpinion(String::new());
        };
        match self.decide(node, attributes.verb, resource) {
            Ok(()) => Decision::Allow,
            Err(reason) => Decision::NoOpinion(reason),
        }
    }

    /// What depends on single objects cannot be put as a rule and is left out, as upstream leaves it out.
    fn rules(&self, user: &UserInfo, _namespace: &str) -> Vec<Rule> {
        if user.as_node().is_none() {
            return Vec::new();
        }
        vec![
            Rule::on("get list watch", "core", "services"),
            Rule::on("create patch update", "core", "events"),
            Rule::on("get list watch", "node.k8s.io", "runtimeclasses"),
        ]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) struct NoReach;

    impl NodeReach for NoReach {
        fn reaches(&self, _node: &str, _resource: &str, _namespace: &str, _name: &str) -> bool {
            false
        }

        fn runs(&self, _node: &str, _namespace: &str, _pod: &str) -> Option<bool> {
            Some(false)
        }
    }

    /// Node `n1` runs Pod `ns/mine`, which mounts Secret `ns/used`.
    struct OnePod;

    impl NodeReach for OnePod {
        fn reaches(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
            (node, resource, namespace, name) == ("n1", "secrets", "ns", "used")
        }

        fn runs(&self, node: &str, namespace: &str, pod: &str) -> Option<bool> {
            (namespace == "ns").then_some(node == "n1" && pod == "mine")
        }
    }

    #[test]
    fn a_node_reaches_its_own_objects_only() {
        let nodes = Nodes::new(Arc::new(OnePod));
        let user = UserInfo::node("n1");
        let cases = [
            ("get", "", "pods", "", "ns", "mine", true),
            ("patch", "", "pods", "status", "ns", "mine", true),
            ("patch", "", "pods", "status", "ns", "other", false),
            ("update", "", "pods", "", "ns", "mine", false),
            ("create", "", "pods", "exec", "ns", "mine", false),
            ("get", "", "secrets", "", "ns", "used", true),
            ("get", "", "secrets", "", "ns", "unused", false),
            ("list", "", "secrets", "", "ns", "", false),
            ("update", "", "secrets", "", "ns", "used", false),
            ("get", "", "nodes", "", "", "n1", true),
            ("patch", "", "nodes", "status", "", "n1", true),
            ("get", "", "nodes", "", "", "n2", false),
            ("delete", "", "nodes", "", "", "n1", false),
            ("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n1", true),
            ("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n2", false),
            ("update", "coordination.k8s.io", "leases", "", "default", "n1", false),
            ("create", "", "events", "", "ns", "", true),
            ("list", "", "pods", "", "", "", false),
            ("create", "apps", "deployments", "", "ns", "", false),
        ];
        for (verb, group, resource, subresource, namespace, name, allowed) in cases {
            let at = ResourceAttributes { group, namespace, resource, subresource, name, ..Default::default() };
            let decision = nodes.authorize(&user, &Attributes { verb, resource: Some(at), path: "" });
            assert_eq!(
                decision == Decision::Allow,
                allowed,
                "{verb} {group}/{resource}/{subresource} {namespace}/{name}"
            );
        }
    }

    #[test]
    fn a_node_lists_pods_by_its_own_name_only() {
        let nodes = Nodes::new(Arc::new(OnePod));
        let ask = |name: &str| {
            let field_equals = vec![("spec.nodeName".to_owned(), name.to_owned())];
            let at = ResourceAttributes { resource: "pods", field_equals, ..Default::default() };
            nodes.authorize(&UserInfo::node("n1"), &Attributes { verb: "watch", resource: Some(at), path: "" })
        };
        assert_eq!(ask("n1"), Decision::Allow);
        assert_ne!(ask("n2"), Decision::Allow);
    }
}
