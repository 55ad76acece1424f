//! When a server is ready: its parts are, and Pods find their ServiceAccount.

use carob_client::{Informers, Selection};
use carob_kit::{Health, PartState};
use k8s_openapi::api::core::v1::{Node, NodeCondition, ServiceAccount};

use crate::config::Settings;

/// Waits for the parts, and for the default ServiceAccount, if something makes it.
///
/// Cancel safe.
pub(crate) async fn wait(informers: &Informers, settings: &Settings, health: &Health) {
    let account = async {
        if settings.controllers {
            let accounts = informers.of::<ServiceAccount>();
            let changes = accounts.subscribe();
            while accounts.get(Some("default"), "default").is_none() {
                changes.next().await;
            }
        }
    };
    tokio::join!(health.all_ready(), account);
}

/// What a server that is not ready waits for, for people.
pub(crate) fn missing(informers: &Informers, settings: &Settings, health: &Health) -> String {
    let unready = health.parts().into_iter().filter(|part| part.state != PartState::Ready);
    let mut missing: Vec<String> = unready.map(|part| format!("{} {}", part.name, part.state)).collect();
    missing.extend(node_message(informers, settings));
    if missing.is_empty() { "the ServiceAccount default/default is not made".to_owned() } else { missing.join("; ") }
}

/// What the API shows of a node that is not ready.
fn node_message(informers: &Informers, settings: &Settings) -> Option<String> {
    let fields = Some(format!("metadata.name={}", settings.node_name));
    let node = informers.of_selected::<Node>(Selection { fields, ..Selection::default() });
    let node = node.get(None, &settings.node_name)?;
    let unmet = |condition: &&NodeCondition| condition.type_ == "Ready" && condition.status != "True";
    node.status.as_ref()?.conditions.iter().flatten().find(unmet)?.message.clone()
}
