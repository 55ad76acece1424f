//! What a node's agent may do: what concerns its own Node and the Pods bound to it
//! (plugin/pkg/auth/authorizer/node). Where upstream leaves it to the NodeRestriction admission plugin which object a write
//! may name, so does this.

use std::sync::Arc;

use carob_api::references::Referred;

use super::graph::{NodeGraph, OfNode};
use super::rules::Question;
use super::{Attributes, Authorizer, Decision, ResourceAttributes, Rule, default_roles};
use crate::admission::Reader;
use crate::identity::UserInfo;
use crate::local_volumes::is_claim_of;

/// The group of VolumeSnapshots.
const SNAPSHOTS: &str = "snapshot.storage.k8s.io";

/// See the module.
pub(crate) struct Nodes {
    graph: Arc<NodeGraph>,
    reader: Reader,
    /// The rules of the ClusterRole `system:node`, for all that is not decided object by object.
    rules: Vec<Rule>,
}

/// Why not; empty where upstream says nothing.
type Refusal = Result<(), String>;

impl Nodes {
    pub(crate) fn new(graph: Arc<NodeGraph>, reader: Reader) -> Self {
        Self { graph, reader, rules: default_roles::rules_of("system:node") }
    }

    fn decide(&self, node: &str, attributes: &Attributes<'_>, at: &ResourceAttributes<'_>) -> Refusal {
        let verb = attributes.verb;
        match (at.group, at.resource) {
            ("", "secrets") => self.read(node, verb, at, Referred::Secret),
            ("", "configmaps") => self.read(node, verb, at, Referred::ConfigMap),
            ("", "persistentvolumeclaims") if at.subresource == "status" => match verb {
                "update" | "patch" => {
                    let reaches = || self.graph.reaches(node, Referred::Claim, at.namespace, at.name);
                    related(node, at, reaches() || is_claim_of(&self.reader, node, at.namespace, at.name))
                }
                _ => Err("can only get/update/patch this type".to_owned()),
            },
            ("", "persistentvolumeclaims") => of_provisioner(verb, at, "patch"),
            ("", "persistentvolumes") => of_provisioner(verb, at, "create patch delete"),
            ("storage.k8s.io", "storageclasses") | (SNAPSHOTS, "volumesnapshots") => of_provisioner(verb, at, ""),
            (SNAPSHOTS, "volumesnapshotcontents") => match (verb, at.subresource) {
                ("patch", "status") => Ok(()),
                _ => of_provisioner(verb, at, "patch"),
            },
            ("resource.k8s.io", "resourceclaims") => self.get(node, verb, at, Referred::ResourceClaim),
            ("storage.k8s.io", "volumeattachments") => {
                only_get(verb, at)?;
                related(node, at, self.graph.owns(node, OfNode::VolumeAttachment, at.name))
            }
            ("", "serviceaccounts") => self.service_account(node, verb, at),
            ("coordination.k8s.io", "leases") => lease(node, verb, at),
            ("storage.k8s.io", "csinodes") => csi_node(node, verb, at),
            ("resource.k8s.io", "resourceslices") => self.slice(node, verb, at),
            ("certificates.k8s.io", "podcertificaterequests") => self.certificate_request(node, verb, at),
            ("", "nodes") => own_node(node, verb, at),
            ("", "pods") => self.pod(node, verb, at),
            _ => {
                let question = Question::new(attributes);
                let allowed = self.rules.iter().any(|rule| rule.allows(&question));
                if allowed { Ok(()) } else { Err(String::new()) }
            }
        }
    }

    fn reached(&self, node: &str, at: &ResourceAttributes<'_>, kind: Referred) -> Refusal {
        related(node, at, self.graph.reaches(node, kind, at.namespace, at.name))
    }

    fn get(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>, kind: Referred) -> Refusal {
        only_get(verb, at)?;
        self.reached(node, at, kind)
    }

    fn read(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>, kind: Referred) -> Refusal {
        if !matches!(verb, "get" | "list" | "watch") {
            return Err("can only read resources of this type".to_owned());
        }
        if !at.subresource.is_empty() {
            return Err("cannot read subresource".to_owned());
        }
        if at.namespace.is_empty() {
            return Err("can only read namespaced object of this type".to_owned());
        }
        self.reached(node, at, kind)
    }

    fn service_account(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
        if verb == "get" && at.subresource.is_empty() {
            return self.read(node, verb, at, Referred::ServiceAccount);
        }
        if verb != "create" || at.name.is_empty() {
            return Err("can only create tokens for individual service accounts".to_owned());
        }
        if at.subresource != "token" {
            return Err("can only create token subresource of serviceaccount".to_owned());
        }
        self.reached(node, at, Referred::ServiceAccount)
    }

    fn slice(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
        if !at.subresource.is_empty() {
            return Err("cannot authorize ResourceSlice subresources".to_owned());
        }
        match verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                related(node, at, self.graph.owns(node, OfNode::ResourceSlice, at.name))
            }
            "watch" | "list" | "deletecollection" if at.requires("spec.nodeName", node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                Err("can only list/watch/deletecollection resourceslices with nodeName field selector".to_owned())
            }
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection".to_owned()),
        }
    }

    /// For which Pods a node asks, admission sees.
    fn certificate_request(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
        if !at.subresource.is_empty() {
            return Err("nodes may not access the status subresource of PodCertificateRequests".to_owned());
        }
        match verb {
            "create" => Ok(()),
            "get" => {
                let name = format!("{}/{}", at.namespace, at.name);
                related(node, at, self.graph.owns(node, OfNode::PodCertificateRequest, &name))
            }
            "list" | "watch" if at.requires("spec.nodeName", node) => Ok(()),
            "list" | "watch" => {
                Err("can only list/watch podcertificaterequests with nodeName field selector".to_owned())
            }
            _ => Err(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn pod(&self, node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
        match (verb, at.subresource) {
            ("get", "") => related(node, at, self.graph.runs(node, at.namespace, at.name)),
            ("list" | "watch", "") if at.requires("spec.nodeName", node) => Ok(()),
            ("list" | "watch", "") if !at.name.is_empty() => {
                related(node, at, self.graph.runs(node, at.namespace, at.name))
            }
            ("list" | "watch", "") => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
            ("create" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => Ok(()),
            _ => Err(String::new()),
        }
    }
}

fn related(node: &str, at: &ResourceAttributes<'_>, related: bool) -> Refusal {
    if at.name.is_empty() {
        return Err("No Object name found".to_owned());
    }
    if related { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this object")) }
}

fn only_get(verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
    if verb != "get" {
        return Err("can only get individual resources of this type".to_owned());
    }
    if !at.subresource.is_empty() {
        return Err("cannot get subresource".to_owned());
    }
    Ok(())
}

/// A node's own provisioner of volumes (`carob.io/local`) reads all of a kind, since no selector tells which are its own. Which
/// of them it may write, admission sees.
fn of_provisioner(verb: &str, at: &ResourceAttributes<'_>, writes: &str) -> Refusal {
    if !at.subresource.is_empty() {
        return Err("cannot access subresource".to_owned());
    }
    let is_write = || writes.split(' ').any(|write| write == verb);
    if matches!(verb, "get" | "list" | "watch") || is_write() {
        return Ok(());
    }
    Err(format!("nodes may not {verb} {}", at.resource))
}

fn own_node(node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
    match (verb, at.subresource) {
        ("create" | "update" | "patch", "") | ("update" | "patch", "status") => Ok(()),
        ("get" | "list" | "watch", "") if at.name == node => Ok(()),
        ("get" | "list" | "watch", "") if at.name.is_empty() => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("get" | "list" | "watch", "") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", at.name))
        }
        _ => Err(String::new()),
    }
}

/// A node's heartbeat is the Lease with its name in `kube-node-lease`. What a new one is called, admission sees.
fn lease(node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return Err("can only get, create, update, patch, or delete a node lease".to_owned());
    }
    if at.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    if verb != "create" && at.name != node {
        return Err("can only access node lease with the same name as the requesting node".to_owned());
    }
    Ok(())
}

fn csi_node(node: &str, verb: &str, at: &ResourceAttributes<'_>) -> Refusal {
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return Err("can only get, create, update, patch, or delete a CSINode".to_owned());
    }
    if !at.subresource.is_empty() {
        return Err("cannot authorize CSINode subresources".to_owned());
    }
    if verb != "create" && at.name != node {
        return Err("can only access CSINode with the same name as the requesting node".to_owned());
    }
    Ok(())
}

impl Authorizer for Nodes {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        let (Some(node), Some(resource)) = (user.as_node(), &attributes.resource) else {
            return Decision::NoOpinion(String::new());
        };
        match self.decide(node, attributes, resource) {
            Ok(()) => Decision::Allow,
            Err(reason) => Decision::NoOpinion(reason),
        }
    }

    /// Most depends on single objects, so upstream lists nothing and says that the list is incomplete.
    fn rules(&self, _user: &UserInfo, _namespace: &str) -> Vec<Rule> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use carob_api::storage::{LOCAL_POOL_LABEL, LOCAL_PROVISIONER, PROVISIONED_BY};
    use carob_store::{Expect, Options, Store, Txn};
    use serde_json::json;

    use super::*;

    /// Node `n1` runs Pod `ns/mine`, which mounts Secret `ns/used` and runs as `ns/sa`; `n2` runs `ns/other`.
    async fn nodes() -> Nodes {
        let store = Store::in_memory(Options::default());
        for (pod, node) in [("mine", "n1"), ("other", "n2")] {
            let object = json!({
                "metadata": { "namespace": "ns", "name": pod },
                "spec": {
                    "nodeName": node, "serviceAccountName": format!("sa-{pod}"),
                    "volumes": [{ "name": "v", "secret": { "secretName": format!("used-by-{pod}") } }],
                },
            });
            let txn = Txn::put(format!("/registry/pods/ns/{pod}"), Expect::Any, object.to_string());
            store.txn(txn).await.expect("the store takes it");
        }
        for (name, node) in [("mine", "n1"), ("other", "n2")] {
            let object = json!({ "metadata": { "namespace": "ns", "name": name }, "spec": { "nodeName": node } });
            let key = format!("/registry/podcertificaterequests/ns/{name}");
            store.txn(Txn::put(key, Expect::Any, object.to_string())).await.expect("the store takes it");
        }
        put_local_volumes(&store).await;
        Nodes::new(Arc::new(NodeGraph::new(&store)), Reader::new(store))
    }

    /// Claims with volumes on the disks of `n1` and `n2`, and one that says so of a volume that is another claim's.
    async fn put_local_volumes(store: &Store) {
        let volume = |pool: &str, claim: &str| {
            json!({
                "metadata": { "name": claim, "annotations": { PROVISIONED_BY: LOCAL_PROVISIONER } },
                "spec": { "local": { "path": "/v" }, "claimRef": { "uid": claim }, "nodeAffinity": { "required": {
                    "nodeSelectorTerms": [{ "matchExpressions": [
                        { "key": LOCAL_POOL_LABEL, "operator": "In", "values": [pool] },
                    ] }],
                } } },
            })
        };
        let claim = |uid: &str, volume: &str| json!({ "metadata": { "uid": uid }, "spec": { "volumeName": volume } });
        for (key, object) in [
            ("minions/n1", json!({ "metadata": { "labels": { LOCAL_POOL_LABEL: "pool-1" } } })),
            ("persistentvolumes/here", volume("pool-1", "here")),
            ("persistentvolumes/elsewhere", volume("pool-2", "elsewhere")),
            ("persistentvolumeclaims/ns/local-here", claim("here", "here")),
            ("persistentvolumeclaims/ns/local-elsewhere", claim("elsewhere", "elsewhere")),
            ("persistentvolumeclaims/ns/local-of-another", claim("other", "here")),
        ] {
            let txn = Txn::put(format!("/registry/{key}"), Expect::Any, object.to_string());
            store.txn(txn).await.expect("the store takes it");
        }
    }

    #[tokio::test]
    async fn a_node_reaches_its_own_objects_only() {
        let nodes = nodes().await;
        let user = UserInfo::node("n1");
        let cases = [
            ("get", "", "pods", "", "ns", "mine", true),
            ("get", "", "pods", "", "ns", "other", false),
            ("list", "", "pods", "", "ns", "mine", true),
            ("list", "", "pods", "", "", "", false),
            // These are for admission to look at.
            ("patch", "", "pods", "status", "ns", "other", true),
            ("create", "", "pods", "", "ns", "", true),
            ("create", "", "pods", "eviction", "ns", "mine", true),
            ("update", "", "pods", "", "ns", "mine", false),
            ("deletecollection", "", "pods", "", "ns", "", false),
            ("create", "", "pods", "exec", "ns", "mine", false),
            ("create", "", "pods", "binding", "ns", "mine", false),
            ("get", "", "secrets", "", "ns", "used-by-mine", true),
            ("watch", "", "secrets", "", "ns", "used-by-mine", true),
            ("get", "", "secrets", "", "ns", "used-by-other", false),
            ("list", "", "secrets", "", "ns", "", false),
            ("list", "", "secrets", "", "", "used-by-mine", false),
            ("update", "", "secrets", "", "ns", "used-by-mine", false),
            ("get", "", "serviceaccounts", "", "ns", "sa-mine", true),
            ("create", "", "serviceaccounts", "token", "ns", "sa-mine", true),
            ("create", "", "serviceaccounts", "token", "ns", "sa-other", false),
            ("create", "", "serviceaccounts", "", "ns", "", false),
            ("list", "", "serviceaccounts", "", "ns", "", false),
            // Of volumes on its own disk; whose they are is for admission to look at.
            ("get", "", "persistentvolumes", "", "", "pv", true),
            ("watch", "", "persistentvolumes", "", "", "", true),
            ("create", "", "persistentvolumes", "", "", "", true),
            ("patch", "", "persistentvolumes", "", "", "pv", true),
            ("delete", "", "persistentvolumes", "", "", "pv", true),
            ("update", "", "persistentvolumes", "", "", "pv", false),
            ("deletecollection", "", "persistentvolumes", "", "", "", false),
            ("patch", "", "persistentvolumes", "status", "", "pv", false),
            ("list", "", "persistentvolumeclaims", "", "", "", true),
            ("patch", "", "persistentvolumeclaims", "", "ns", "c", true),
            ("create", "", "persistentvolumeclaims", "", "ns", "", false),
            ("update", "", "persistentvolumeclaims", "", "ns", "c", false),
            ("delete", "", "persistentvolumeclaims", "", "ns", "c", false),
            ("patch", "", "persistentvolumeclaims", "status", "ns", "local-here", true),
            ("patch", "", "persistentvolumeclaims", "status", "ns", "local-elsewhere", false),
            ("patch", "", "persistentvolumeclaims", "status", "ns", "local-of-another", false),
            ("watch", "storage.k8s.io", "storageclasses", "", "", "", true),
            ("create", "storage.k8s.io", "storageclasses", "", "", "", false),
            ("list", "snapshot.storage.k8s.io", "volumesnapshots", "", "", "", true),
            ("patch", "snapshot.storage.k8s.io", "volumesnapshots", "", "ns", "s", false),
            ("patch", "snapshot.storage.k8s.io", "volumesnapshots", "status", "ns", "s", false),
            ("list", "snapshot.storage.k8s.io", "volumesnapshotcontents", "", "", "", true),
            ("patch", "snapshot.storage.k8s.io", "volumesnapshotcontents", "", "", "x", true),
            ("patch", "snapshot.storage.k8s.io", "volumesnapshotcontents", "status", "", "x", true),
            ("create", "snapshot.storage.k8s.io", "volumesnapshotcontents", "", "", "", false),
            ("delete", "snapshot.storage.k8s.io", "volumesnapshotcontents", "", "", "x", false),
            ("get", "", "nodes", "", "", "n1", true),
            ("patch", "", "nodes", "status", "", "n1", true),
            ("get", "", "nodes", "", "", "n2", false),
            ("list", "", "nodes", "", "", "", false),
            ("delete", "", "nodes", "", "", "n1", false),
            ("get", "", "nodes", "proxy", "", "n1", false),
            ("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n1", true),
            ("list", "coordination.k8s.io", "leases", "", "kube-node-lease", "", false),
            ("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n2", false),
            ("update", "coordination.k8s.io", "leases", "", "default", "n1", false),
            ("get", "storage.k8s.io", "csinodes", "", "", "n1", true),
            ("get", "storage.k8s.io", "csinodes", "", "", "n2", false),
            ("create", "resource.k8s.io", "resourceslices", "", "", "", true),
            ("get", "resource.k8s.io", "resourceslices", "", "", "s", false),
            ("create", "", "events", "", "ns", "", true),
            ("get", "", "endpoints", "", "ns", "e", true),
            ("list", "", "services", "", "", "", true),
            ("create", "certificates.k8s.io", "certificatesigningrequests", "", "", "", true),
            ("update", "certificates.k8s.io", "certificatesigningrequests", "approval", "", "c", false),
            ("create", "certificates.k8s.io", "podcertificaterequests", "", "ns", "", true),
            ("get", "certificates.k8s.io", "podcertificaterequests", "", "ns", "mine", true),
            ("get", "certificates.k8s.io", "podcertificaterequests", "", "other", "mine", false),
            ("get", "certificates.k8s.io", "podcertificaterequests", "", "ns", "other", false),
            ("list", "certificates.k8s.io", "podcertificaterequests", "", "", "", false),
            ("update", "certificates.k8s.io", "podcertificaterequests", "status", "ns", "mine", false),
            ("delete", "certificates.k8s.io", "podcertificaterequests", "", "ns", "mine", false),
            ("watch", "certificates.k8s.io", "clustertrustbundles", "", "", "", true),
            ("create", "certificates.k8s.io", "clustertrustbundles", "", "", "b", false),
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

    #[tokio::test]
    async fn a_node_lists_what_is_its_own_by_its_name_only() {
        let nodes = nodes().await;
        let ask = |group, resource, name: &str| {
            let field_equals = vec![("spec.nodeName".to_owned(), name.to_owned())];
            let at = ResourceAttributes { group, resource, field_equals, ..Default::default() };
            nodes.authorize(&UserInfo::node("n1"), &Attributes { verb: "watch", resource: Some(at), path: "" })
        };
        for (group, resource) in [("", "pods"), ("certificates.k8s.io", "podcertificaterequests")] {
            assert_eq!(ask(group, resource, "n1"), Decision::Allow);
            assert_ne!(ask(group, resource, "n2"), Decision::Allow);
        }
    }
}
