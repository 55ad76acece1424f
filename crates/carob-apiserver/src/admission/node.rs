//! Nodes: what their agents may write (plugin/pkg/admission/noderestriction), and how a new one begins.

mod volumes;

use std::collections::BTreeSet;

use async_trait::async_trait;
use carob_api::csr::{SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING};
use carob_api::references;
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use serde_json::{Map, Value, json};

use super::certificates;
use super::reader::Reader;
use super::{Admission, Mutator, Operation, Validator};
use crate::identity::NODE_USER_PREFIX;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// TaintNodesByCondition: nothing is scheduled to a Node before it has said that it is ready
/// (plugin/pkg/admission/nodetaint). The node lifecycle controller takes the taint away.
pub(super) struct NotReadyTaint;

#[async_trait]
impl Mutator for NotReadyTaint {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.operation == Operation::Create && write.def.group().is_empty() && write.def.plural() == "nodes"
    }

    async fn mutate(&self, _write: &Admission<'_>, node: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let conditions = meta::items_at(node, &["status", "conditions"]);
        // A Node that comes ready would lose the taint at once.
        let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let mut taints = meta::items_at(node, &["spec", "taints"]).to_vec();
        if !ready && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
            taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
            meta::set(node, &["spec", "taints"], taints);
        }
        Ok(())
    }
}

/// NodeRestriction: what a node's agent may write is about its own Node and the Pods bound to it.
pub(super) struct NodeRestriction {
    pub(super) reader: Reader,
}

#[async_trait]
impl Validator for NodeRestriction {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.user.as_node().is_some() && write.operation != Operation::Connect
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(node) = write.user.as_node() else { return Ok(()) };
        let request = Request {
            node,
            operation: write.operation,
            subresource: write.subresource,
            namespace: write.namespace,
            name: write.name,
            object: object.unwrap_or(&Value::Null),
            old: old.unwrap_or(&Value::Null),
        };
        let why = match (write.def.group(), write.def.plural()) {
            ("", "pods") => request.pod(&self.reader),
            ("", "nodes") => request.own_node(),
            ("", "persistentvolumeclaims") => request.claim(&self.reader),
            ("", "persistentvolumes") => request.volume(&self.reader),
            ("snapshot.storage.k8s.io", "volumesnapshotcontents") => request.content(&self.reader),
            ("coordination.k8s.io", "leases") => request.lease(),
            ("storage.k8s.io", "csinodes") => request.named("CSINode"),
            ("resource.k8s.io", "resourceslices") => request.slice(),
            ("certificates.k8s.io", "certificatesigningrequests") => request.certificate(),
            ("discovery.k8s.io", "endpointslices") => request.endpoint_slice(&self.reader),
            ("certificates.k8s.io", "podcertificaterequests") => request.pod_certificate(&self.reader),
            _ => Ok(()),
        };
        why.map_err(|why| {
            Status::forbidden(GroupResource::new(write.def.group(), write.def.plural()), write.name, &why)
        })
    }
}

fn node_of(pod: &Value) -> Option<&str> {
    meta::str_at(pod, &["spec", "nodeName"])
}

/// One write of a node's agent.
struct Request<'a> {
    node: &'a str,
    operation: Operation,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
    /// Null where there is none.
    object: &'a Value,
    old: &'a Value,
}

type Outcome = Result<(), String>;

impl Request<'_> {
    fn pod(&self, reader: &Reader) -> Outcome {
        let node = self.node;
        match (self.subresource, self.operation) {
            ("", Operation::Create) => {
                let uid = reader.get("", "nodes", "", node).map(|node| meta::uid(&node).to_owned());
                self.mirror_pod(uid.as_deref())
            }
            ("", Operation::Delete) if node_of(self.old) == Some(node) => Ok(()),
            ("", Operation::Delete) => {
                Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            ("", operation) => {
                Err(format!("unexpected operation {operation:?}, node {node:?} can only create and delete mirror pods"))
            }
            ("status", Operation::Update) => self.pod_status(),
            ("eviction", Operation::Create) => match reader.get("", "pods", self.namespace, self.name) {
                Some(pod) if node_of(&pod) != Some(node) => {
                    Err(format!("node {node} can only evict pods with spec.nodeName set to itself"))
                }
                _ => Ok(()),
            },
            ("status" | "eviction", operation) => Err(format!("unexpected operation {operation:?}")),
            (other, _) => {
                Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
        }
    }

    fn mirror_pod(&self, node_uid: Option<&str>) -> Outcome {
        let (node, pod) = (self.node, self.object);
        if meta::annotation(pod, MIRROR_ANNOTATION).is_none() {
            return Err(format!(
                "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
            ));
        }
        if node_of(pod) != Some(node) {
            return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        let owner = match meta::owner_references(pod) {
            [owner] => owner,
            [] => return Err(format!("node {node:?} can only create pods with an owner reference set to itself")),
            _ => {
                return Err(format!("node {node:?} can only create pods with a single owner reference set to itself"));
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
        if owner["controller"] != true {
            return Err(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
        }
        if owner["blockOwnerDeletion"] == true {
            return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
        }
        let Some(uid) = node_uid else { return Err(format!("node {node} is not there to verify its uid")) };
        if owner["uid"] != uid {
            let expected = owner["uid"].as_str().unwrap_or_default();
            return Err(format!("node {node} UID mismatch: expected {expected} got {uid}"));
        }
        match references::first_of_pod(pod) {
            None => Ok(()),
            Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
        }
    }

    fn pod_status(&self) -> Outcome {
        let node = self.node;
        if node_of(self.old) != Some(node) {
            return Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
        }
        if !same_map(meta::labels(self.object), meta::labels(self.old)) {
            return Err(format!("node {node:?} cannot update labels through pod status"));
        }
        let claims = |pod: &Value| {
            let claims = meta::items_at(pod, &["status", "resourceClaimStatuses"]).iter();
            claims.map(|claim| (claim["name"].clone(), claim["resourceClaimName"].clone())).collect::<Vec<_>>()
        };
        if claims(self.object) != claims(self.old) {
            return Err(format!("node {node:?} cannot update resource claim statues"));
        }
        if self.object["status"]["extendedResourceClaimStatus"] != self.old["status"]["extendedResourceClaimStatus"] {
            return Err(format!("node {node:?} cannot update extended resource claim status"));
        }
        Ok(())
    }

    fn own_node(&self) -> Outcome {
        let node = self.node;
        let name = if self.name.is_empty() { meta::name(self.object) } else { self.name };
        if name != node {
            return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        self.pool_label()?;
        match self.operation {
            Operation::Create => self.new_node(),
            Operation::Update => self.changed_node(),
            Operation::Delete | Operation::Connect => Ok(()),
        }
    }

    fn new_node(&self) -> Outcome {
        let node = self.node;
        if !self.object["spec"]["configSource"].is_null() {
            return Err(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
        }
        let labels = forbidden_labels(self.object, &Value::Null);
        if !labels.is_empty() {
            return Err(format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", ")));
        }
        Ok(())
    }

    fn changed_node(&self) -> Outcome {
        let (node, new, old) = (self.node, self.object, self.old);
        let source = &new["spec"]["configSource"];
        if !source.is_null() && *source != old["spec"]["configSource"] {
            return Err(format!("node {node:?} is not allowed to update configSource to a new non-nil configSource"));
        }
        if meta::items_at(new, &["spec", "taints"]) != meta::items_at(old, &["spec", "taints"]) {
            return Err(format!("node {node:?} is not allowed to modify taints"));
        }
        // With an owner that does not exist, a node could have itself deleted (CVE-2025-5187).
        if meta::owner_references(new) != meta::owner_references(old) {
            return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
        let labels = forbidden_labels(new, old);
        if !labels.is_empty() {
            return Err(format!("is not allowed to modify labels: {}", labels.join(", ")));
        }
        Ok(())
    }

    /// Of a claim's status, a node reports the size and how a resize goes.
    fn claim(&self, reader: &Reader) -> Outcome {
        if self.operation != Operation::Update {
            return Err(format!("unexpected operation {:?}", self.operation));
        }
        match self.subresource {
            "status" => {}
            "" => return self.given_back(reader),
            _ => return Err("may only update PVC status".to_owned()),
        }
        let rest = |claim: &Value| {
            let mut claim = claim.clone();
            meta::remove(&mut claim, &["metadata", "resourceVersion"]);
            meta::remove(&mut claim, &["metadata", "managedFields"]);
            for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
                meta::remove(&mut claim, &["status", field]);
            }
            claim
        };
        if rest(self.object) == rest(self.old) {
            return Ok(());
        }
        let node = self.node;
        Err(format!("node {node:?} is not allowed to update fields other than status.quantity and status.conditions"))
    }

    fn lease(&self) -> Outcome {
        if self.namespace != "kube-node-lease" {
            return Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
        }
        self.named("node lease")
    }

    fn named(&self, what: &str) -> Outcome {
        let name = if self.operation == Operation::Create { meta::name(self.object) } else { self.name };
        if name == self.node {
            return Ok(());
        }
        Err(format!("can only access {what} with the same name as the requesting node"))
    }

    fn slice(&self) -> Outcome {
        let (slice, verb) = match self.operation {
            Operation::Create => (self.object, "create"),
            Operation::Delete => (self.old, "delete"),
            Operation::Update | Operation::Connect => return Ok(()),
        };
        if meta::str_at(slice, &["spec", "nodeName"]) == Some(self.node) {
            return Ok(());
        }
        Err(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
    }

    /// A node publishes its own DNS server and nothing else (upstream's nodes write no EndpointSlices).
    fn endpoint_slice(&self, reader: &Reader) -> Outcome {
        let own = reader.get("", "nodes", "", self.node).unwrap_or(Value::Null);
        self.dns_endpoints(meta::items_at(&own, &["status", "addresses"]))
    }

    /// `own` are the addresses that the Node says it has.
    fn dns_endpoints(&self, own: &[Value]) -> Outcome {
        let node = self.node;
        if self.operation == Operation::Update {
            dns_slice_of(self.old, node)?;
        }
        let slice = if self.operation == Operation::Delete { self.old } else { self.object };
        dns_slice_of(slice, node)?;
        let addresses =
            meta::items_at(slice, &["endpoints"]).iter().flat_map(|one| meta::items_at(one, &["addresses"]));
        for address in addresses {
            if !own.iter().any(|known| known["type"] == "InternalIP" && known["address"] == *address) {
                return Err(format!("node {node:?} can only publish its own addresses, not {address}"));
            }
        }
        Ok(())
    }

    /// A node asks for certificates of the Pods that it runs only, and names them as they are. Upstream answers some of these
    /// in another way, for it may be behind; what is read here is not.
    fn pod_certificate(&self, reader: &Reader) -> Outcome {
        if self.operation != Operation::Create {
            return Err(format!("unexpected operation {:?}", self.operation));
        }
        if !self.subresource.is_empty() {
            return Err(format!("unexpected subresource {:?}", self.subresource));
        }
        let text = |field: &str| meta::text(self.object, &["spec", field]);
        let (node, node_name) = (self.node, text("nodeName"));
        if node_name != node {
            return Err(format!(
                "PodCertificateRequest.Spec.NodeName={node_name:?}, which is not the requesting node {node:?}"
            ));
        }
        let missing = |what: &str, name: &str| format!("{what} {name:?} named in the PodCertificateRequest not found");
        let own = reader.get("", "nodes", "", node).ok_or_else(|| missing("node", node))?;
        let pod_name = text("podName");
        let pod = format!("{}/{pod_name}", self.namespace);
        if meta::uid(&own) != text("nodeUID") {
            return Err(format!(
                "PodCertificateRequest for pod {pod:?} names node UID {:?}, inconsistent with the running node ({:?})",
                text("nodeUID"),
                meta::uid(&own)
            ));
        }
        let running = reader.get("", "pods", self.namespace, pod_name).ok_or_else(|| missing("pod", &pod))?;
        if meta::uid(&running) != text("podUID") {
            return Err(format!(
                "PodCertificateRequest for pod {pod:?} contains pod UID ({:?}) which differs from running pod {:?}",
                text("podUID"),
                meta::uid(&running)
            ));
        }
        if node_of(&running) != Some(node) {
            return Err(format!("pod {pod:?} is not running on node {node:?} named in the PodCertificateRequest"));
        }
        if meta::annotation(&running, MIRROR_ANNOTATION).is_some() {
            return Err(format!("pod {pod:?} is a mirror pod"));
        }
        let (account, of_pod) = (text("serviceAccountName"), meta::text(&running, &["spec", "serviceAccountName"]));
        if account != of_pod {
            return Err(format!(
                "PodCertificateRequest for pod {pod:?} contains serviceAccountName ({account:?}) that differs from running \
                 pod ({of_pod:?})"
            ));
        }
        let found = reader.get("", "serviceaccounts", self.namespace, account);
        let found = found.ok_or_else(|| missing("service account", &format!("{}/{account}", self.namespace)))?;
        if meta::uid(&found) != text("serviceAccountUID") {
            return Err(format!(
                "PodCertificateRequest for pod {pod:?} names service account UID {:?}, which differs from the running service \
                 account ({:?})",
                text("serviceAccountUID"),
                meta::uid(&found)
            ));
        }
        Ok(())
    }

    /// A node asks for its own certificates only.
    fn certificate(&self) -> Outcome {
        let signer = meta::str_at(self.object, &["spec", "signerName"]).unwrap_or_default();
        if self.operation != Operation::Create || !matches!(signer, SIGNER_KUBELET_SERVING | SIGNER_KUBELET_CLIENT) {
            return Ok(());
        }
        let request = certificates::parse(self.object).map_err(|error| format!("unable to parse csr: {error}"))?;
        let wanted = format!("{NODE_USER_PREFIX}{}", self.node);
        if request.common_name == wanted { Ok(()) } else { Err(format!("can only create a node CSR with CN={wanted}")) }
    }
}

/// Whether an EndpointSlice is of the cluster's DNS server on `node`.
fn dns_slice_of(slice: &Value, node: &str) -> Outcome {
    let is_dns = meta::namespace(slice) == "kube-system"
        && meta::label(slice, "kubernetes.io/service-name") == Some("kube-dns")
        && meta::items_at(slice, &["endpoints"]).iter().all(|endpoint| endpoint["nodeName"] == node);
    if is_dns { Ok(()) } else { Err(format!("node {node:?} can only write endpoint slices of its own DNS server")) }
}

fn same_map(new: Option<&Map<String, Value>>, old: Option<&Map<String, Value>>) -> bool {
    let empty = Map::new();
    new.unwrap_or(&empty) == old.unwrap_or(&empty)
}

/// The labels that differ and that a node may not set, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let keys = [new, old].into_iter().filter_map(meta::labels).flat_map(Map::keys);
    let changed = keys.filter(|key| meta::label(new, key) != meta::label(old, key));
    let forbidden: BTreeSet<&String> = changed.filter(|key| is_forbidden(key)).collect();
    forbidden.into_iter().cloned().collect()
}

/// Labels that agents may set on their own Node (k8s.io/kubelet `pkg/apis/well_known_labels.go`).
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Prefixes of labels that agents may set too.
const KUBELET_LABEL_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels that isolate workloads: agents may not set them on their own Node.
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";

fn is_forbidden(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    let kubelets = KUBELET_LABELS.contains(&label) || KUBELET_LABEL_DOMAINS.into_iter().any(within);
    let reserved = within("kubernetes.io") || within("k8s.io");
    within(RESTRICTED_DOMAIN) || (reserved && !kubelets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(operation: Operation, subresource: &'a str, object: &'a Value, old: &'a Value) -> Request<'a> {
        Request { node: "n1", operation, subresource, namespace: "ns", name: "n1", object, old }
    }

    #[test]
    fn a_node_labels_itself_with_what_it_knows() {
        for label in [
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
            "example.com/x",
            "plain",
            "notkubernetes.io/x",
        ] {
            assert!(!is_forbidden(label), "{label}");
        }
        for label in [
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
            "kubernetes.io/x",
            "k8s.io/x",
            "x.k8s.io/y",
            "beta.kubernetes.io/fluentd",
        ] {
            assert!(is_forbidden(label), "{label}");
        }
    }

    #[test]
    fn a_node_changes_of_itself_what_cannot_steer_workloads() {
        let old = json!({
            "metadata": { "name": "n1", "labels": { "kubernetes.io/hostname": "n1" } },
            "spec": { "taints": [{ "key": "a", "effect": "NoSchedule" }] },
        });
        let change = |path: &[&str], value: Value| {
            let mut new = old.clone();
            meta::set(&mut new, path, value);
            request(Operation::Update, "", &new, &old).own_node()
        };
        assert_eq!(
            change(&["metadata", "labels"], json!({ "kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux" })),
            Ok(())
        );
        assert_eq!(change(&["metadata", "annotations"], json!({ "a": "b" })), Ok(()));
        let refused = [
            (&["spec", "taints"][..], json!([]), "node \"n1\" is not allowed to modify taints"),
            (
                &["metadata", "ownerReferences"],
                json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y" }]),
                "node \"n1\" is not allowed to modify ownerReferences",
            ),
            (
                &["spec", "configSource"],
                json!({ "configMap": {} }),
                "node \"n1\" is not allowed to update configSource to a new non-nil configSource",
            ),
            (
                &["metadata", "labels"],
                json!({ "node-role.kubernetes.io/control-plane": "", "k8s.io/x": "y" }),
                "is not allowed to modify labels: k8s.io/x, node-role.kubernetes.io/control-plane",
            ),
        ];
        for (path, value, why) in refused {
            assert_eq!(change(path, value), Err(why.to_owned()));
        }
        let other = json!({ "metadata": { "name": "n2" } });
        let request = Request { name: "n2", ..request(Operation::Update, "status", &other, &other) };
        assert_eq!(request.own_node(), Err("node \"n1\" is not allowed to modify node \"n2\"".to_owned()));
    }

    #[test]
    fn a_node_publishes_its_own_dns_server_only() {
        let slice = json!({
            "metadata": {
                "namespace": "kube-system", "name": "kube-dns-n1-ipv4",
                "labels": { "kubernetes.io/service-name": "kube-dns" },
            },
            "endpoints": [{ "addresses": ["192.0.2.1"], "nodeName": "n1" }],
        });
        let own = [json!({ "type": "InternalIP", "address": "192.0.2.1" })];
        let create = |slice: &Value| request(Operation::Create, "", slice, &Value::Null).dns_endpoints(&own);
        assert_eq!(create(&slice), Ok(()));
        for (path, value) in [
            (&["metadata", "namespace"][..], json!("default")),
            (&["metadata", "labels"], json!({ "kubernetes.io/service-name": "metrics-server" })),
            (&["endpoints"], json!([{ "addresses": ["192.0.2.1"], "nodeName": "n2" }])),
            (&["endpoints"], json!([{ "addresses": ["192.0.2.1"] }])),
            (&["endpoints"], json!([{ "addresses": ["192.0.2.2"], "nodeName": "n1" }])),
        ] {
            let mut other = slice.clone();
            meta::set(&mut other, path, value);
            assert!(create(&other).is_err(), "{other}");
            assert!(request(Operation::Delete, "", &Value::Null, &other).dns_endpoints(&own).is_err(), "{other}");
        }
        assert!(request(Operation::Create, "", &slice, &Value::Null).dns_endpoints(&[]).is_err(), "it says no address");
    }

    #[test]
    fn a_mirror_pod_is_its_nodes_and_names_nothing() {
        let good = json!({
            "metadata": {
                "name": "p-n1", "annotations": { MIRROR_ANNOTATION: "hash" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true }],
            },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
        });
        let check = |pod: &Value| request(Operation::Create, "", pod, &Value::Null).mirror_pod(Some("u1"));
        assert_eq!(check(&good), Ok(()));
        let owner = |key: &str, value: Value| {
            let mut pod = good.clone();
            pod["metadata"]["ownerReferences"][0][key] = value;
            check(&pod).expect_err("it is refused")
        };
        assert_eq!(owner("uid", json!("u2")), "node n1 UID mismatch: expected u2 got u1");
        assert!(owner("controller", json!(false)).contains("controller owner reference"));
        assert!(owner("blockOwnerDeletion", json!(true)).contains("must not set blockOwnerDeletion"));
        assert!(owner("name", json!("n2")).contains("owner reference set to itself"));
        assert!(owner("apiVersion", json!("apps/v1")).contains("owner reference set to itself"));
        let mut pod = good.clone();
        pod["spec"]["containers"][0]["env"] =
            json!([{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }]);
        assert_eq!(check(&pod), Err("node \"n1\" can not create pods that reference secrets".to_owned()));
        assert!(request(Operation::Create, "", &good, &Value::Null).mirror_pod(None).is_err(), "no such Node");
    }

    #[test]
    fn a_pods_status_is_all_that_changes_through_it() {
        let old = json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "nodeName": "n1" }, "status": {} });
        let mut new = old.clone();
        new["status"]["phase"] = json!("Running");
        assert_eq!(request(Operation::Update, "status", &new, &old).pod_status(), Ok(()));
        new["metadata"]["labels"]["app"] = json!("other");
        assert!(request(Operation::Update, "status", &new, &old).pod_status().is_err());
        new = old.clone();
        new["status"]["resourceClaimStatuses"] = json!([{ "name": "a", "resourceClaimName": "b" }]);
        assert!(request(Operation::Update, "status", &new, &old).pod_status().is_err());
        let elsewhere = json!({ "spec": { "nodeName": "n2" } });
        assert!(request(Operation::Update, "status", &elsewhere, &elsewhere).pod_status().is_err());
    }

    #[tokio::test]
    async fn a_node_asks_for_certificates_of_the_pods_that_it_runs() {
        let store = carob_store::Store::in_memory(carob_store::Options::default());
        let mirror = json!({ MIRROR_ANNOTATION: "hash" });
        let objects = [
            ("minions/n1", json!({ "metadata": { "name": "n1", "uid": "u1" } })),
            ("serviceaccounts/ns/sa", json!({ "metadata": { "name": "sa", "uid": "u2" } })),
            ("pods/ns/p", pod("n1", &json!({}))),
            ("pods/ns/elsewhere", pod("n2", &json!({}))),
            ("pods/ns/mirror", pod("n1", &mirror)),
        ];
        for (key, object) in objects {
            let put = carob_store::Txn::put(format!("/registry/{key}"), carob_store::Expect::Any, object.to_string());
            store.txn(put).await.expect("the store takes it");
        }
        let reader = Reader::new(store);
        let ask = |field: &str, value: &str| {
            let mut object = json!({ "spec": {
                "nodeName": "n1", "nodeUID": "u1", "podName": "p", "podUID": "u3",
                "serviceAccountName": "sa", "serviceAccountUID": "u2",
            } });
            object["spec"][field] = json!(value);
            request(Operation::Create, "", &object, &Value::Null).pod_certificate(&reader)
        };
        assert_eq!(ask("podName", "p"), Ok(()));
        for (field, value, why) in [
            ("nodeName", "n2", "NodeName=\"n2\", which is not the requesting node \"n1\""),
            ("nodeUID", "x", "names node UID \"x\", inconsistent with the running node (\"u1\")"),
            ("podName", "gone", "pod \"ns/gone\" named in the PodCertificateRequest not found"),
            ("podUID", "x", "contains pod UID (\"x\") which differs from running pod \"u3\""),
            ("podName", "elsewhere", "pod \"ns/elsewhere\" is not running on node \"n1\""),
            ("podName", "mirror", "pod \"ns/mirror\" is a mirror pod"),
            ("serviceAccountName", "other", "serviceAccountName (\"other\") that differs from running pod (\"sa\")"),
            (
                "serviceAccountUID",
                "x",
                "service account UID \"x\", which differs from the running service account (\"u2\")",
            ),
        ] {
            let refused = ask(field, value).expect_err(why);
            assert!(refused.contains(why), "{refused}");
        }
        let null = Value::Null;
        for operation in [Operation::Update, Operation::Delete] {
            assert!(request(operation, "", &null, &null).pod_certificate(&reader).is_err());
        }
        assert!(request(Operation::Create, "status", &null, &null).pod_certificate(&reader).is_err());
    }

    fn pod(node: &str, annotations: &Value) -> Value {
        json!({
            "metadata": { "uid": "u3", "annotations": annotations },
            "spec": { "nodeName": node, "serviceAccountName": "sa" },
        })
    }

    #[tokio::test]
    async fn a_claims_size_is_all_that_a_node_reports_of_it() {
        let old =
            json!({ "metadata": { "name": "c", "resourceVersion": "1" }, "spec": {}, "status": { "phase": "Bound" } });
        let mut new = old.clone();
        new["status"]["capacity"] = json!({ "storage": "2Gi" });
        new["metadata"]["resourceVersion"] = json!("");
        let reader = Reader::new(carob_store::Store::in_memory(carob_store::Options::default()));
        let claim = |subresource: &str, new: &Value| request(Operation::Update, subresource, new, &old).claim(&reader);
        assert_eq!(claim("status", &new), Ok(()));
        assert!(claim("", &new).is_err());
        new["metadata"]["finalizers"] = json!(["x"]);
        assert!(claim("status", &new).is_err());
    }
}
