//! Pods that ask for devices of plug-ins: they are taken in once they have them.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use carob_kit::chain;
use k8s_openapi::api::core::v1::Pod;

use super::{Assigned, Fleet};
use crate::admission::{Rejection, Room, unexpected};
use crate::pod::{PodId, PodView};

impl Assigned {
    /// Whether containers of the Pod may run: its object may be gone before they are.
    fn may_run(&self) -> bool {
        // A panic while it was held has left a whole status.
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let apps = status.container_statuses.iter().flatten();
        let mut all = apps.chain(status.init_container_statuses.iter().flatten());
        // Nobody has looked yet where there is no phase.
        status.phase.is_none() || all.any(|shown| shown.state.as_ref().is_some_and(|state| state.running.is_some()))
    }
}

impl Fleet {
    pub(super) fn wants_devices(&self, pod: &Pod) -> bool {
        let view = PodView::new(pod);
        !view.is_terminal() && view.deletion().is_none() && self.tools.devices.wants(pod)
    }

    /// Asks plug-ins, which may take a while, before the Pod is taken in.
    pub(super) fn ask_for_devices(self: &Arc<Self>, pod: &Arc<Pod>) {
        let (fleet, asked) = (Arc::clone(self), Arc::clone(pod));
        self.decide_later(pod, async move {
            let room = fleet.room();
            fleet.decide(&asked, &room).await;
        });
    }

    /// Takes a Pod in, or refuses it, by what the node can give and by what plug-ins say.
    pub(super) async fn decide(self: &Arc<Self>, asked: &Pod, room: &Room) {
        let given = match self.refuse(asked, room) {
            None if self.wants_devices(asked) => self.give_devices(asked).await,
            None | Some(_) => Ok(()),
        };
        let id = PodId::of(asked);
        let current = self.pods.get(Some(&id.namespace), &id.name).filter(|pod| PodId::of(pod) == id);
        // Another Pod may have taken the room while plug-ins were asked.
        let rejection = current.as_ref().and_then(|pod| self.refuse(pod, room)).or(given.err());
        if current.is_none() || rejection.is_some() {
            self.tools.devices.forget(&id.uid);
        }
        if let Some(pod) = current {
            self.take_in(&pod, rejection);
        }
    }

    async fn give_devices(&self, pod: &Pod) -> Result<(), Rejection> {
        // Before the API's Pods are known it cannot be said which are over.
        if self.begun.load(Ordering::Acquire) {
            self.tools.devices.keep_only(&self.not_over());
        }
        let given = self.tools.devices.admit(pod).await;
        given.map_err(|error| unexpected(format!("Allocate failed due to {}, which is unexpected", chain(&error))))
    }

    /// The uids of Pods that may still use what they were given.
    fn not_over(&self) -> HashSet<String> {
        let mut uids = self.undecided().clone();
        for (uid, worker) in self.workers().iter() {
            let order = worker.orders.borrow();
            let over = if order.gone { !worker.may_run() } else { PodView::new(&order.pod).is_terminal() };
            if !over {
                uids.insert(uid.clone());
            }
        }
        uids
    }

    /// Has Pods with devices show how these are.
    pub(super) async fn follow_devices(self: Arc<Self>) {
        let mut changes = self.tools.devices.changes();
        while changes.changed().await.is_ok() {
            let holders = self.tools.devices.holders();
            for (uid, worker) in self.workers().iter() {
                if holders.contains(uid) {
                    worker.wake.notify_one();
                }
            }
        }
        // What sends them is there for as long as the tools are.
        std::future::pending().await
    }
}
