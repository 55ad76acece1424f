//! How the node and the attach/detach controller agree: the node says which volumes it uses before it looks whether they are
//! attached, and the controller says that one is attached no longer before it looks whether it is used. So neither takes a
//! volume from under the other (`pkg/controller/volume/attachdetach`, `pkg/kubelet/volumemanager`).

use std::collections::BTreeSet;

use carob_client::Informer;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Volumes by the names that a Node has for them.
pub type Names = BTreeSet<String>;

/// The node's side.
pub struct Attachments {
    /// What `status.volumesInUse` has to say.
    pub in_use: watch::Sender<Names>,
    /// What it says by now.
    pub reported: watch::Sender<Names>,
    /// What `status.volumesAttached` says, as far as it is known here.
    pub attached: watch::Sender<Names>,
}

impl Default for Attachments {
    fn default() -> Self {
        let none = || watch::Sender::new(Names::new());
        Self { in_use: none(), reported: none(), attached: none() }
    }
}

impl Attachments {
    /// Follows what the node's own object says is attached, until the shutdown.
    pub(crate) async fn follow(&self, nodes: Informer<Node>, shutdown: CancellationToken) {
        let changes = nodes.subscribe();
        loop {
            let now = nodes.list().first().map(|node| attached(node)).unwrap_or_default();
            self.attached.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
            // Cancel safe: the list is read again in any case.
            tokio::select! {
                _changed = changes.next() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    pub(super) fn set_in_use(&self, name: &str, is_used: bool) {
        self.in_use.send_if_modified(|names| if is_used { names.insert(name.to_owned()) } else { names.remove(name) });
    }

    /// Ready once the node has said that it uses the volume, and heard that it is attached.
    pub(super) async fn wait(&self, name: &str) {
        let contains = |names: &Names| names.contains(name);
        // The senders live as long as this.
        let (mut reported, mut attached) = (self.reported.subscribe(), self.attached.subscribe());
        let _told = reported.wait_for(contains).await.is_ok();
        let _there = attached.wait_for(contains).await.is_ok();
    }
}

/// The volumes that a Node says are attached.
pub(super) fn attached(node: &Node) -> Names {
    let volumes = node.status.iter().flat_map(|status| status.volumes_attached.iter().flatten());
    volumes.map(|volume| volume.name.clone()).collect()
}
