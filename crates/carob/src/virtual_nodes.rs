//! The virtual nodes of a server: from its flags to the part that plays them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use carob_apiserver::{ApiServer, DialError, NetworkDialer, NodeAddress, NodeDialer, NodeStream, UserInfo};
use carob_client::Informers;
use carob_kit::Clock;
use carob_node::virtual_nodes::{Config, Parts, VirtualNodes, kubelet};
use serde_json::{Map, Value};

use crate::config::Settings;

/// What `--virtual-nodes` and `--virtual-nodes-config` say; `None` without them.
pub(crate) fn config(count: Option<usize>, file: Option<&Path>, node_name: &str) -> Result<Option<Config>> {
    let config = match (file, count) {
        (None, None | Some(0)) => return Ok(None),
        (None, count) => Config::parse(&Value::Object(Map::new()), count).context("--virtual-nodes")?,
        (Some(path), count) => {
            let text = fs_err::read_to_string(path)?;
            let subject = || format!("read the virtual nodes of {}", path.display());
            let value: Value = serde_saphyr::from_str(&text).with_context(subject)?;
            Config::parse(&value, count).with_context(subject)?
        }
    };
    let clash = config.nodes.iter().any(|node| node.name == node_name);
    ensure!(!clash, "the virtual node {node_name} has the name of this machine's: give another with --node-name");
    Ok(Some(config))
}

/// Puts the virtual nodes together; `None` where the settings ask for none.
pub(crate) fn make(
    settings: &Settings,
    api: &ApiServer,
    informers: &Arc<Informers>,
    clock: &Arc<dyn Clock>,
) -> Option<VirtualNodes> {
    let config = settings.virtual_nodes.clone()?;
    let api = api.clone();
    let parts = Parts {
        informers: Arc::clone(informers),
        client_of: Arc::new(move |node| carob_client::in_process(api.in_process(UserInfo::node(node)))),
        clock: Arc::clone(clock),
        kubelet_version: crate::VERSION.to_owned(),
    };
    Some(VirtualNodes::new(config, parts))
}

/// The way to nodes and Pods, with the virtual nodes answered for.
pub(crate) fn dialer(settings: &Settings, network: NetworkDialer) -> Arc<dyn NodeDialer> {
    let nodes = settings.virtual_nodes.iter().flat_map(|config| &config.nodes);
    let nodes: HashSet<String> = nodes.map(|node| node.name.clone()).collect();
    if nodes.is_empty() { Arc::new(network) } else { Arc::new(Dialer { network, nodes }) }
}

struct Dialer {
    network: NetworkDialer,
    /// Names of the virtual nodes.
    nodes: HashSet<String>,
}

#[async_trait]
impl NodeDialer for Dialer {
    async fn dial_node(&self, address: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError> {
        if self.nodes.contains(&address.node) {
            return Ok(Box::new(kubelet::connect(&address.node)));
        }
        self.network.dial_node(address).await
    }

    async fn dial_pod(&self, address: SocketAddr) -> Result<Box<dyn NodeStream>, DialError> {
        self.network.dial_pod(address).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_file_are_read_together() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nodes.yaml");
        let names = |count, text: Option<&str>| -> Result<Vec<String>> {
            if let Some(text) = text {
                fs_err::write(&path, text)?;
            }
            let config = config(count, text.map(|_| path.as_path()), "host")?;
            Ok(config.into_iter().flat_map(|config| config.nodes).map(|node| node.name).collect())
        };
        assert!(names(None, None).expect("none").is_empty());
        assert!(names(Some(0), None).expect("none").is_empty());
        assert_eq!(names(Some(2), None).expect("two"), ["virtual-1", "virtual-2"]);
        assert_eq!(names(Some(1), Some("seed: 7\n")).expect("one"), ["virtual-1"]);
        assert_eq!(names(None, Some("nodes: [{name: a, capacity: {memory: 3Gi}}]\n")).expect("one"), ["a"]);
        let error = |text: &str| format!("{:#}", names(None, Some(text)).expect_err("refused"));
        assert!(error("nodes: [{name: a, capacity: {memory: 3Gx}}]\n").contains("nodes[0].capacity.memory: \"3Gx\""));
        assert!(error("nodes: [{name: host}]\n").contains("the virtual node host has the name of this machine's"));
        assert!(error("nodes: {\n").contains("nodes.yaml"));
    }
}
