//! What happens to containers, for those who listen.

use carob_cri::{ContainerEvents, CriError, v1};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use crate::error::RuntimeError;
use crate::runtime::{Container, Runtime, Sandbox};

impl Runtime {
    pub(crate) fn subscribe(&self) -> ContainerEvents {
        let receiver = self.events.subscribe();
        let next = |state: Option<tokio::sync::broadcast::Receiver<_>>| async move {
            let mut receiver = state?;
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), Some(receiver))),
                Err(RecvError::Lagged(missed)) => Some((Err(CriError::from(RuntimeError::EventsMissed(missed))), None)),
                Err(RecvError::Closed) => None,
            }
        };
        Box::pin(stream::unfold(Some(receiver), next))
    }

    pub(crate) fn announce_container(&self, kind: v1::ContainerEventType, container: &Container) {
        self.announce(kind, &container.id, &container.sandbox);
    }

    /// Events of a sandbox bear its id, as containerd's do.
    pub(crate) fn announce_sandbox(&self, kind: v1::ContainerEventType, sandbox: &Sandbox) {
        self.announce(kind, &sandbox.id, sandbox);
    }

    fn announce(&self, kind: v1::ContainerEventType, id: &str, sandbox: &Sandbox) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: self.now_ns(),
            pod_sandbox_status: Some(crate::status::sandbox_status(&sandbox.record())),
            containers_statuses: self.container_statuses(&sandbox.id),
        };
        // The last listener may have gone since it was counted.
        if self.events.send(event).is_err() {
            tracing::trace!(id, "nobody listens for container events");
        }
    }
}
