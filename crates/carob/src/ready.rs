//! When a server is ready: its node takes Pods, and Pods find their ServiceAccount.

use std::time::Duration;

use anyhow::{Result, bail};
use carob_client::{Informers, Selection};
use k8s_openapi::api::core::v1::{Node, NodeCondition, ServiceAccount};
use tokio::sync::watch;

use crate::config::Settings;

/// How long a start may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What turns true once nodes are registered and ready.
#[derive(Debug, Clone)]
pub(crate) struct NodesReady {
    /// As this server's node says, whatever an earlier life of it left in the API.
    pub(crate) node: watch::Receiver<bool>,
    pub(crate) virtual_nodes: watch::Receiver<bool>,
}

/// Waits for the nodes, and for the default ServiceAccount, if something makes it.
pub(crate) async fn wait(informers: &Informers, settings: &Settings, nodes: NodesReady) -> Result<()> {
    let account = async {
        if settings.controllers {
            let accounts = informers.of::<ServiceAccount>();
            let changes = accounts.subscribe();
            while accounts.get(Some("default"), "default").is_none() {
                changes.next().await;
            }
        }
    };
    let all = async { tokio::join!(until(nodes.node), until(nodes.virtual_nodes), account) };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        bail!("the server was not ready within {} s{}", PATIENCE.as_secs(), shown(informers, settings));
    }
    Ok(())
}

async fn until(mut ready: watch::Receiver<bool>) {
    // Whoever could tell that they are ready has ended: so has the server, which says why.
    if ready.wait_for(|ready| *ready).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the API shows of a node that is not ready.
fn shown(informers: &Informers, settings: &Settings) -> String {
    let fields = Some(format!("metadata.name={}", settings.node_name));
    let node = informers.of_selected::<Node>(Selection { fields, ..Selection::default() });
    let node = node.get(None, &settings.node_name);
    let conditions = node.as_deref().and_then(|node| node.status.as_ref()?.conditions.as_ref());
    let unmet = |condition: &&NodeCondition| condition.type_ == "Ready" && condition.status != "True";
    let message = conditions.into_iter().flatten().find(unmet).and_then(|condition| condition.message.clone());
    message.map_or_else(String::new, |message| format!(": {message}"))
}
