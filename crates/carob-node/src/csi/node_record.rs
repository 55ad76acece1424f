//! What the API knows of a node's drivers: the CSINode, an annotation with the node's ids, and labels of topology
//! (`pkg/volume/csi/nodeinfomanager`).

use std::collections::BTreeMap;

use carob_csi::v1::NodeGetInfoResponse;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Mutex;

const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// Writes that others came in between of.
const TRIES_MAX: usize = 5;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{what} of the node")]
    Api {
        what: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the annotation {NODE_IDS} of the node is not a JSON object of texts")]
    Annotation(#[source] serde_json::Error),
    #[error("detected topology value collision: driver reported {key:?}:{new:?} but existing label is {key:?}:{old:?}")]
    Topology { key: String, new: String, old: String },
    #[error("the node is not registered")]
    NoNode,
    #[error("others wrote to the CSINode {TRIES_MAX} times in between")]
    Contended,
}

pub(crate) struct NodeRecord {
    client: Client,
    node: String,
    /// Drivers register at once, and all of them are in one object.
    turn: Mutex<()>,
}

impl NodeRecord {
    pub(crate) fn new(client: Client, node: String) -> Self {
        Self { client, node, turn: Mutex::default() }
    }

    /// Makes the CSINode, so that a node without drivers is told from one that nothing is known of.
    pub(super) async fn begin(&self) -> Result<(), RecordError> {
        let _turn = self.turn.lock().await;
        let node = self.read_node().await?;
        self.change(&node, &|_| false).await
    }

    pub(super) async fn install(&self, driver: &str, info: &NodeGetInfoResponse) -> Result<(), RecordError> {
        let _turn = self.turn.lock().await;
        let node = self.read_node().await?;
        let topology = info.accessible_topology.clone().unwrap_or_default().segments;
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let collides = topology.iter().find(|(key, new)| labels.get(*key).is_some_and(|old| old != *new));
        if let Some((key, new)) = collides {
            let old = labels.get(key).cloned().unwrap_or_default();
            return Err(RecordError::Topology { key: key.clone(), new: new.clone(), old });
        }
        let mut ids = node_ids(&node)?;
        let known = ids.insert(driver.to_owned(), info.node_id.clone());
        if known.as_ref() != Some(&info.node_id) || topology.keys().any(|key| !labels.contains_key(key)) {
            self.write_node(&ids, &topology).await?;
        }
        let entry = entry(driver, info);
        self.change(&node, &|drivers| {
            if drivers.contains(&entry) {
                return false;
            }
            drivers.retain(|held| held.name != entry.name);
            drivers.push(entry.clone());
            true
        })
        .await
    }

    pub(super) async fn uninstall(&self, driver: &str) -> Result<(), RecordError> {
        let _turn = self.turn.lock().await;
        let node = self.read_node().await?;
        self.change(&node, &|drivers| {
            let before = drivers.len();
            drivers.retain(|held| held.name != driver);
            drivers.len() != before
        })
        .await?;
        let mut ids = node_ids(&node)?;
        if ids.remove(driver).is_some() {
            self.write_node(&ids, &BTreeMap::new()).await?;
        }
        Ok(())
    }

    async fn read_node(&self) -> Result<Node, RecordError> {
        let found = Api::<Node>::all(self.client.clone()).get_opt(&self.node).await;
        found.map_err(failed("read the object"))?.ok_or(RecordError::NoNode)
    }

    async fn write_node(
        &self,
        ids: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), RecordError> {
        let text = (!ids.is_empty()).then(|| json!(ids).to_string());
        let body = json!({"metadata": {"annotations": {NODE_IDS: text}, "labels": labels}});
        let api = Api::<Node>::all(self.client.clone());
        let patched = api.patch_metadata(&self.node, &PatchParams::default(), &Patch::Merge(&body)).await;
        patched.map(drop).map_err(failed("write the ids of drivers"))
    }

    /// Changes the drivers of the CSINode, which is made where there is none of this Node.
    async fn change(
        &self,
        node: &Node,
        change: &(dyn Fn(&mut Vec<CSINodeDriver>) -> bool + Sync),
    ) -> Result<(), RecordError> {
        let api = Api::<CSINode>::all(self.client.clone());
        for _ in 0..TRIES_MAX {
            let written = match api.get_opt(&self.node).await.map_err(failed("read the CSINode"))? {
                Some(found) if is_of(&found, node) => {
                    let mut object = found;
                    if !change(&mut object.spec.drivers) {
                        return Ok(());
                    }
                    api.replace(&self.node, &PostParams::default(), &object).await
                }
                // It is of a Node that had the name before.
                Some(_) => {
                    let deleted = api.delete(&self.node, &DeleteParams::default()).await;
                    deleted.map(drop).map_err(failed("remove the old CSINode"))?;
                    continue;
                }
                None => {
                    let mut object = csi_node(node, &self.node);
                    change(&mut object.spec.drivers);
                    api.create(&PostParams::default(), &object).await
                }
            };
            match written {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed("write the CSINode")(error)),
            }
        }
        Err(RecordError::Contended)
    }
}

fn failed(what: &'static str) -> impl FnOnce(kube::Error) -> RecordError {
    move |source| RecordError::Api { what, source: Box::new(source) }
}

fn node_ids(node: &Node) -> Result<BTreeMap<String, String>, RecordError> {
    let text = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_IDS)).filter(|text| !text.is_empty());
    text.map_or_else(|| Ok(BTreeMap::new()), |text| serde_json::from_str(text).map_err(RecordError::Annotation))
}

fn is_of(object: &CSINode, node: &Node) -> bool {
    let owners = object.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.kind == "Node" && Some(&owner.uid) == node.metadata.uid.as_ref())
}

fn csi_node(node: &Node, name: &str) -> CSINode {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
    CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } }
}

/// A limit that is no number of volumes is none (installDriverToCSINode).
fn entry(driver: &str, info: &NodeGetInfoResponse) -> CSINodeDriver {
    let count = (info.max_volumes_per_node > 0).then(|| i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX));
    let topology = info.accessible_topology.as_ref().map(|topology| topology.segments.keys().cloned().collect());
    CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: topology.filter(|keys: &Vec<String>| !keys.is_empty()),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_says_of_the_node_is_shown_as_far_as_it_can_be() {
        let info =
            |limit| NodeGetInfoResponse { node_id: "id".to_owned(), max_volumes_per_node: limit, ..Default::default() };
        let count = |limit| entry("d", &info(limit)).allocatable.and_then(|allocatable| allocatable.count);
        assert_eq!([count(-1), count(0), count(7), count(i64::MAX)], [None, None, Some(7), Some(i32::MAX)]);
    }

    #[test]
    fn ids_of_other_drivers_are_kept_and_nonsense_is_told() {
        let node = |text: &str| Node {
            metadata: ObjectMeta {
                annotations: Some(BTreeMap::from([(NODE_IDS.to_owned(), text.to_owned())])),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        assert_eq!(node_ids(&node(r#"{"d": "1"}"#)).expect("it is one").len(), 1);
        assert!(node_ids(&node("")).expect("none is fine").is_empty());
        node_ids(&node("[]")).expect_err("not an object");
    }
}
