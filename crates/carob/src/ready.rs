//! When a server is ready: its node takes Pods, and Pods find their ServiceAccount.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Api;
use kube::runtime::wait::await_condition;

use tokio::sync::watch;

use crate::config::Settings;

/// How long a start may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the node to be Ready, if there is one, for virtual nodes, and for the default ServiceAccount, if something
/// makes it.
pub(crate) async fn wait(
    client: &kube::Client,
    settings: &Settings,
    mut virtual_nodes: watch::Receiver<bool>,
) -> Result<()> {
    let node = async {
        if settings.node {
            let api = Api::<Node>::all(client.clone());
            await_condition(api, &settings.node_name, |node: Option<&Node>| node.is_some_and(is_ready))
                .await
                .with_context(|| format!("wait for the node {}", settings.node_name))?;
        }
        anyhow::Ok(())
    };
    let account = async {
        if settings.controllers {
            let api = Api::<ServiceAccount>::namespaced(client.clone(), "default");
            await_condition(api, "default", |account: Option<&ServiceAccount>| account.is_some())
                .await
                .context("wait for the default ServiceAccount")?;
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

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
