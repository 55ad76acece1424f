//! What leads from an object to the nodes that need it: Pods bound to a node, what those name, and the volumes behind their
//! claims (plugin/pkg/auth/authorizer/node/graph.go).

use std::collections::HashMap;
use std::sync::Arc;

use carob_api::meta;
use carob_api::references::{self, Referred};
use carob_store::{Entry, Store};
use memchr::memmem;
use serde_json::Value;
use tracing::warn;

use crate::current::{Follower, View, prefix_of};

/// Answers for the node authorizer; always up to date with the store.
#[derive(Debug)]
pub(crate) struct NodeGraph(Follower<Graph>);

/// The kinds whose objects belong to one node each, by a field of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OfNode {
    VolumeAttachment,
    ResourceSlice,
    PodCertificateRequest,
}

const PODS: (&str, &str, &str) = ("", "v1", "pods");
const VOLUMES: (&str, &str, &str) = ("", "v1", "persistentvolumes");
const ATTACHMENTS: (&str, &str, &str) = ("storage.k8s.io", "v1", "volumeattachments");
const SLICES: (&str, &str, &str) = ("resource.k8s.io", "v1", "resourceslices");
const REQUESTS: (&str, &str, &str) = ("certificates.k8s.io", "v1beta1", "podcertificaterequests");

impl NodeGraph {
    pub(crate) fn new(store: &Store) -> Self {
        let prefixes = [PODS, VOLUMES, ATTACHMENTS, SLICES, REQUESTS].map(prefix_of);
        let [pods, volumes, _attachments, slices, requests] = prefixes.clone();
        let graph = Graph { prefixes: Prefixes { pods, volumes, slices, requests }, ..Graph::default() };
        Self(Follower::new(store, prefixes, graph))
    }

    /// Whether a Pod of `node` leads to the object.
    pub(crate) fn reaches(&self, node: &str, kind: Referred, namespace: &str, name: &str) -> bool {
        self.0.ask(|graph| graph.reaches(node, &Target::new(kind, namespace, name)))
    }

    /// Whether the Pod is bound to `node`.
    pub(crate) fn runs(&self, node: &str, namespace: &str, pod: &str) -> bool {
        self.0.ask(|graph| graph.runs(node, namespace, pod))
    }

    /// Whether an object of a node is this one's. The name of one in a namespace is `namespace/name`.
    pub(crate) fn owns(&self, node: &str, kind: OfNode, name: &str) -> bool {
        self.0.ask(|graph| graph.owned.get(&(kind, name.into())).is_some_and(|owner| **owner == *node))
    }
}

/// An object that Pods name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Target {
    kind: Referred,
    namespace: Box<str>,
    name: Box<str>,
}

impl Target {
    fn new(kind: Referred, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

#[derive(Debug, Default)]
struct Graph {
    prefixes: Prefixes,
    /// Pods that are bound, by their keys.
    pods: HashMap<Arc<str>, BoundPod>,
    /// From what Pods name to their nodes, each with the number of Pods that name it there.
    nodes: HashMap<Arc<Target>, HashMap<Arc<str>, usize>>,
    volumes: HashMap<Box<str>, Volume>,
    /// Names of the volumes that need a Secret.
    volumes_of_secret: HashMap<Target, Vec<Box<str>>>,
    owned: HashMap<(OfNode, Box<str>), Box<str>>,
}

/// What has none of them is a VolumeAttachment.
#[derive(Debug, Default)]
struct Prefixes {
    pods: String,
    volumes: String,
    slices: String,
    requests: String,
}

impl Prefixes {
    /// The kind of an object that belongs to a node, and its name with its namespace.
    fn of_node<'k>(&self, key: &'k str) -> (OfNode, &'k str) {
        if let Some(name) = key.strip_prefix(&self.requests) {
            return (OfNode::PodCertificateRequest, name);
        }
        let is_slice = key.starts_with(&self.slices);
        (if is_slice { OfNode::ResourceSlice } else { OfNode::VolumeAttachment }, last(key))
    }
}

#[derive(Debug)]
struct BoundPod {
    node: Arc<str>,
    /// Of the Pod's incarnation: a Pod that replaced another of its name has a later one.
    created: carob_store::Revision,
    names: Box<[Arc<Target>]>,
}

#[derive(Debug)]
struct Volume {
    claim: Target,
    secrets: Vec<Target>,
}

impl Graph {
    fn reaches(&self, node: &str, target: &Target) -> bool {
        if self.nodes.get(target).is_some_and(|nodes| nodes.contains_key(node)) {
            return true;
        }
        let volumes = self.volumes_of_secret.get(target).into_iter().flatten();
        volumes.into_iter().any(|volume| self.volume_leads_to(node, volume))
    }

    fn volume_leads_to(&self, node: &str, name: &str) -> bool {
        let nodes = self.volumes.get(name).and_then(|volume| self.nodes.get(&volume.claim));
        nodes.is_some_and(|nodes| nodes.contains_key(node))
    }

    fn runs(&self, node: &str, namespace: &str, pod: &str) -> bool {
        let key = format!("{}{namespace}/{pod}", self.prefixes.pods);
        self.pods.get(key.as_str()).is_some_and(|pod| *pod.node == *node)
    }

    fn put_pod(&mut self, entry: &Entry) {
        let known = self.pods.get(&entry.key);
        if known.is_some_and(|known| known.created == entry.create_revision) && !may_name_more(&entry.value) {
            return;
        }
        self.remove_pod(&entry.key);
        // Most writes of Pods that are not bound end here, without being parsed.
        if !contains(&entry.value, b"\"nodeName\":\"") {
            return;
        }
        let Some(pod) = parse(entry) else { return };
        let Some(node) = meta::str_at(&pod, &["spec", "nodeName"]).filter(|node| !node.is_empty()) else { return };
        let node: Arc<str> = node.into();
        let namespace = meta::namespace(&pod);
        // A node must never reach anything through a Pod that it made itself.
        let mirror = meta::annotation(&pod, "kubernetes.io/config.mirror").is_some();
        let mut named = if mirror { Vec::new() } else { references::of_pod(&pod) };
        named.sort_unstable();
        named.dedup();
        let names = named.into_iter().map(|(kind, name)| self.count(&Target::new(kind, namespace, &name), &node));
        let names = names.collect();
        self.pods.insert(Arc::clone(&entry.key), BoundPod { node, created: entry.create_revision, names });
    }

    /// Counts one Pod of `node` that names `target`.
    fn count(&mut self, target: &Target, node: &Arc<str>) -> Arc<Target> {
        let target =
            self.nodes.get_key_value(target).map_or_else(|| Arc::new(target.clone()), |(known, _)| Arc::clone(known));
        *self.nodes.entry(Arc::clone(&target)).or_default().entry(Arc::clone(node)).or_default() += 1;
        target
    }

    fn remove_pod(&mut self, key: &str) {
        let Some(BoundPod { node, names, .. }) = self.pods.remove(key) else { return };
        for target in names {
            let Some(nodes) = self.nodes.get_mut(&target) else { continue };
            if let Some(pods) = nodes.get_mut(&node) {
                *pods -= 1;
                if *pods == 0 {
                    nodes.remove(&node);
                }
            }
            if nodes.is_empty() {
                self.nodes.remove(&target);
            }
        }
    }

    fn put_volume(&mut self, entry: &Entry) {
        let name = last(&entry.key);
        self.remove_volume(name);
        let Some(volume) = parse(entry) else { return };
        let Some(claim) = meta::at(&volume, &["spec", "claimRef"]) else { return };
        let text = |field: &str| meta::str_at(claim, &[field]).unwrap_or_default();
        let claim = Target::new(Referred::Claim, text("namespace"), text("name"));
        let secrets = references::secrets_of_volume(&volume);
        let secrets: Vec<Target> =
            secrets.iter().map(|(namespace, name)| Target::new(Referred::Secret, namespace, name)).collect();
        for secret in &secrets {
            self.volumes_of_secret.entry(secret.clone()).or_default().push(name.into());
        }
        self.volumes.insert(name.into(), Volume { claim, secrets });
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else { return };
        for secret in volume.secrets {
            let Some(volumes) = self.volumes_of_secret.get_mut(&secret) else { continue };
            volumes.retain(|own| **own != *name);
            if volumes.is_empty() {
                self.volumes_of_secret.remove(&secret);
            }
        }
    }

    fn put_owned(&mut self, entry: &Entry) {
        let owner = parse(entry).and_then(|object| meta::str_at(&object, &["spec", "nodeName"]).map(Box::from));
        let (kind, name) = self.prefixes.of_node(&entry.key);
        let key = (kind, name.into());
        match owner {
            Some(owner) => self.owned.insert(key, owner),
            None => self.owned.remove(&key),
        };
    }
}

impl View for Graph {
    fn clear(&mut self, prefix: &str) {
        if prefix == self.prefixes.pods {
            self.pods.clear();
            self.nodes.clear();
        } else if prefix == self.prefixes.volumes {
            self.volumes.clear();
            self.volumes_of_secret.clear();
        } else {
            let (gone, _) = self.prefixes.of_node(prefix);
            self.owned.retain(|(kind, _), _| *kind != gone);
        }
    }

    fn put(&mut self, entry: &Entry) {
        if entry.key.starts_with(&self.prefixes.pods) {
            self.put_pod(entry);
        } else if entry.key.starts_with(&self.prefixes.volumes) {
            self.put_volume(entry);
        } else {
            self.put_owned(entry);
        }
    }

    fn remove(&mut self, key: &str) {
        if key.starts_with(&self.prefixes.pods) {
            self.remove_pod(key);
        } else if key.starts_with(&self.prefixes.volumes) {
            self.remove_volume(last(key));
        } else {
            let (kind, name) = self.prefixes.of_node(key);
            self.owned.remove(&(kind, name.into()));
        }
    }
}

/// What a bound Pod names is fixed, but for ephemeral containers and the claims that its status tells of.
fn may_name_more(pod: &[u8]) -> bool {
    [&b"\"ephemeralContainers\""[..], b"\"resourceClaimStatuses\"", b"\"extendedResourceClaimStatus\""]
        .iter()
        .any(|field| contains(pod, field))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memmem::find(haystack, needle).is_some()
}

/// The object's name, which is what its key ends with.
fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

fn parse(entry: &Entry) -> Option<Value> {
    let parsed = serde_json::from_slice(&entry.value);
    parsed.inspect_err(|error| warn!(key = %entry.key, %error, "a stored object cannot be read")).ok()
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Options, Txn};
    use serde_json::json;

    use super::*;

    async fn put(store: &Store, key: &str, object: &Value) {
        store.txn(Txn::put(key, Expect::Any, object.to_string())).await.expect("the store takes it");
    }

    async fn delete(store: &Store, key: &str) {
        store.txn(Txn::delete(key, Expect::Any)).await.expect("it is there");
    }

    fn pod(node: Option<&str>, secret: &str) -> Value {
        let mut pod = json!({
            "metadata": { "namespace": "ns", "name": "p" },
            "spec": { "volumes": [
                { "name": "v", "secret": { "secretName": secret } },
                { "name": "c", "persistentVolumeClaim": { "claimName": "claim" } },
            ] },
        });
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        pod
    }

    #[tokio::test]
    async fn secrets_are_reached_while_a_pod_of_the_node_names_them() {
        let store = Store::in_memory(Options::default());
        let graph = NodeGraph::new(&store);
        let secret = |node: &str, name: &str| graph.reaches(node, Referred::Secret, "ns", name);
        put(&store, "/registry/pods/ns/p", &pod(None, "s")).await;
        assert!(!secret("n1", "s") && !graph.runs("n1", "ns", "p"), "it is not bound yet");
        put(&store, "/registry/pods/ns/p", &pod(Some("n1"), "s")).await;
        assert!(secret("n1", "s") && graph.runs("n1", "ns", "p"));
        assert!(!secret("n2", "s") && !secret("n1", "other") && !graph.runs("n2", "ns", "p"));
        assert!(
            !graph.reaches("n1", Referred::ConfigMap, "ns", "s") && !graph.reaches("n1", Referred::Secret, "x", "s")
        );
        put(&store, "/registry/pods/ns/q", &pod(Some("n1"), "s")).await;
        delete(&store, "/registry/pods/ns/p").await;
        assert!(secret("n1", "s"), "another Pod names it");
        delete(&store, "/registry/pods/ns/q").await;
        assert!(!secret("n1", "s"));
        // Another Pod under the same name.
        put(&store, "/registry/pods/ns/p", &pod(Some("n2"), "t")).await;
        assert!(secret("n2", "t") && !secret("n1", "s"));
    }

    #[tokio::test]
    async fn an_ephemeral_container_brings_its_references_and_a_mirror_pod_none() {
        let store = Store::in_memory(Options::default());
        let graph = NodeGraph::new(&store);
        let mut object = pod(Some("n1"), "s");
        put(&store, "/registry/pods/ns/p", &object).await;
        object["spec"]["ephemeralContainers"] = json!([{ "envFrom": [{ "secretRef": { "name": "late" } }] }]);
        put(&store, "/registry/pods/ns/p", &object).await;
        assert!(graph.reaches("n1", Referred::Secret, "ns", "late"));
        object["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" });
        put(&store, "/registry/pods/ns/m", &object).await;
        delete(&store, "/registry/pods/ns/p").await;
        assert!(!graph.reaches("n1", Referred::Secret, "ns", "late") && graph.runs("n1", "ns", "m"));
    }

    #[tokio::test]
    async fn volumes_lead_through_their_claims() {
        let store = Store::in_memory(Options::default());
        let graph = NodeGraph::new(&store);
        put(&store, "/registry/pods/ns/p", &pod(Some("n1"), "s")).await;
        let volume = json!({
            "metadata": { "name": "pv" },
            "spec": {
                "claimRef": { "namespace": "ns", "name": "claim" },
                "csi": { "nodeStageSecretRef": { "namespace": "kube-system", "name": "key" } },
            },
        });
        put(&store, "/registry/persistentvolumes/pv", &volume).await;
        assert!(graph.reaches("n1", Referred::Secret, "kube-system", "key"));
        assert!(!graph.reaches("n2", Referred::Secret, "kube-system", "key"));
        delete(&store, "/registry/persistentvolumes/pv").await;
        assert!(!graph.reaches("n1", Referred::Secret, "kube-system", "key"));
        let attachment = json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "n1" } });
        put(&store, "/registry/volumeattachments/a", &attachment).await;
        assert!(graph.owns("n1", OfNode::VolumeAttachment, "a") && !graph.owns("n1", OfNode::ResourceSlice, "a"));
        put(&store, "/registry/podcertificaterequests/ns/a", &attachment).await;
        let request = |node: &str, name: &str| graph.owns(node, OfNode::PodCertificateRequest, name);
        assert!(request("n1", "ns/a") && !request("n2", "ns/a") && !request("n1", "other/a"));
        delete(&store, "/registry/podcertificaterequests/ns/a").await;
        assert!(!request("n1", "ns/a") && graph.owns("n1", OfNode::VolumeAttachment, "a"));
    }
}
