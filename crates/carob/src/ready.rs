//! When a server is ready: its node takes Pods, and Pods find their ServiceAccount.

use std::time::Duration;

use anyhow::{Context, Result};
use carob_client::{Informer, Informers, Selection};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Resource;
use tokio::sync::watch;

use crate::config::Settings;

/// How long a start may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the node to be Ready, if there is one, for virtual nodes, and for the default ServiceAccount, if something
/// makes it.
pub(crate) async fn wait(
    informers: &Informers,
    settings: &Settings,
    mut virtual_nodes: watch::Receiver<bool>,
) -> Result<()> {
    let node = async {
        if settings.node {
            let fields = Some(format!("metadata.name={}", settings.node_name));
            let nodes = informers.of_selected::<Node>(Selection { fields, ..Selection::default() });
            until(&nodes, || nodes.get(None, &settings.node_name).is_some_and(|node| is_ready(&node))).await;
        }
        anyhow::Ok(())
    };
    let account = async {
        if settings.controllers {
            let accounts = informers.of::<ServiceAccount>();
            until(&accounts, || accounts.get(Some("default"), "default").is_some()).await;
        }
        anyhow::Ok(())
    };
    let virtual_nodes = async {
        // Whoever could tell that they are ready has ended: so has the server, which says why.
        if virtual_nodes.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, async { tokio::try_join!(node, virtual_nodes, account) })
        .await
        .with_context(|| format!("the nodes were not ready within {} s", PATIENCE.as_secs()))??;
    Ok(())
}

/// Waits until something holds of the objects of an informer.
async fn until<K: Resource + Send + Sync + 'static>(informer: &Informer<K>, holds: impl Fn() -> bool) {
    let changes = informer.subscribe();
    while !holds() {
        changes.next().await;
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
