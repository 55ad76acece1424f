//! Static Pods: run by what manifests say, shown in the API by mirror Pods.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use carob_kit::{Backoff, chain};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Assigned, DECIDE_BASE, DECIDE_MAX, Fleet, From, Known};
use crate::api::WriteError;
use crate::manifests::Manifests;
use crate::manifests::mirror::{self, MirrorAction};
use crate::plan::after;
use crate::pod::{PodId, PodView};
use crate::worker::Shown;

impl Fleet {
    /// Brings what runs in line with what the manifests say.
    pub(super) async fn compare_manifests(self: &Arc<Self>, known: &mut Known) {
        let wanted = self.manifests.borrow().clone();
        if wanted.complete && !std::mem::replace(&mut known.manifests, true) {
            // Before those that replace them begin.
            self.end_strays(From::Manifests).await;
        }
        self.apply_manifests(&wanted);
        self.sweep_once(known).await;
    }

    fn apply_manifests(self: &Arc<Self>, wanted: &Manifests) {
        let now = self.tools.clock.now();
        for (uid, worker) in self.workers().iter() {
            if worker.id.is_static() && wanted.of_uid(uid).is_none() {
                worker.end(now);
            }
        }
        for pod in wanted.pods.values() {
            self.deliver_static(pod);
        }
        self.mirrors.notify_one();
    }

    /// Gives a static Pod its worker, once the one that had the name before has ended.
    fn deliver_static(self: &Arc<Self>, pod: &Arc<Pod>) {
        let id = PodId::of(pod);
        let has_name = |worker: &Assigned| {
            worker.id.is_static() && (&worker.id.namespace, &worker.id.name) == (&id.namespace, &id.name)
        };
        if self.workers().values().any(has_name) {
            return;
        }
        let rejection = self.refuse(pod, &self.room());
        self.take_in(pod, rejection);
    }

    /// A static Pod's worker has ended: its name is free for another.
    pub(super) fn static_pod_ended(self: &Arc<Self>) {
        let wanted = self.manifests.borrow().clone();
        self.apply_manifests(&wanted);
    }

    /// The static Pods with their statuses.
    pub(super) fn static_pods(&self) -> Vec<Arc<Pod>> {
        self.workers().values().filter(|worker| worker.id.is_static()).map(Assigned::pod).collect()
    }

    pub(super) fn static_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let is_it = |worker: &&Assigned| {
            worker.id.is_static() && (worker.id.namespace.as_str(), worker.id.name.as_str()) == (namespace, name)
        };
        self.workers().values().find(is_it).map(Assigned::pod)
    }

    /// Where the API shows a Pod.
    pub(super) fn shown(&self, pod: &Pod) -> Shown {
        let id = PodId::of(pod);
        if !id.is_static() {
            return Shown::Itself;
        }
        let mirror = self.pods.get(Some(&id.namespace), &id.name).filter(|mirror| mirror::shows(mirror, pod));
        mirror.map_or(Shown::Nowhere, |mirror| Shown::Mirror {
            uid: PodId::of(&mirror).uid,
            status: Box::new(mirror.status.clone().unwrap_or_default()),
        })
    }

    /// Tells the workers of static Pods where the API shows them, and has mirrors looked after.
    pub(super) fn show_mirrors(&self) {
        for worker in self.workers().values().filter(|worker| worker.id.is_static()) {
            let pod = Arc::clone(&worker.orders.borrow().pod);
            let shown = self.shown(&pod);
            worker.orders.send_if_modified(|order| {
                let moved = order.shown.uid() != shown.uid();
                if moved {
                    order.shown = shown;
                }
                moved
            });
        }
        self.mirrors.notify_one();
    }

    /// Makes and removes mirrors until it is dropped.
    pub(super) async fn keep_mirrors(self: Arc<Self>) {
        let nodes = self.nodes.subscribe();
        let mut retry = Backoff::new(DECIDE_BASE, DECIDE_MAX);
        loop {
            let wait = match self.bring_mirrors_up_to_date().await {
                Ok(()) => {
                    retry.reset();
                    None
                }
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(error = %chain(&error), ?delay, "the mirror of a static pod is not as it is to be");
                    Some(delay)
                }
            };
            // Every arm is cancel safe.
            tokio::select! {
                () = self.mirrors.notified() => {}
                // The node's object has the uid that every mirror names.
                _ = nodes.next() => {}
                () = crate::worker::sleep_for(wait) => {}
            }
        }
    }

    async fn bring_mirrors_up_to_date(&self) -> Result<(), WriteError> {
        // Before that it is not known whether the Node of this name is this machine.
        if !self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let manifests = self.manifests.borrow().clone();
        let ending: BTreeSet<(String, String)> = {
            let workers = self.workers();
            let of_manifests = workers.values().filter(|worker| worker.id.is_static());
            of_manifests.map(|worker| (worker.id.namespace.clone(), worker.id.name.clone())).collect()
        };
        let Some(node) = self.nodes.list().into_iter().next() else { return Ok(()) };
        let node_uid = node.metadata.uid.as_deref().unwrap_or_default();
        let mut outcome = Ok(());
        for action in mirror::plan(&manifests, &ending, &self.pods.list()) {
            // One that fails does not keep the others waiting.
            match self.carry_out(action, node_uid).await {
                Ok(()) | Err(WriteError::Gone(_)) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    async fn carry_out(&self, action: MirrorAction, node_uid: &str) -> Result<(), WriteError> {
        match action {
            MirrorAction::Create(pod) => {
                let mirror = mirror::mirror_of(&pod, &self.tools.settings.node_name, node_uid);
                self.tools.pods.create(&PodId::of(&pod), &mirror).await
            }
            MirrorAction::Delete(id) => {
                tracing::info!(pod = %id, "removing a mirror pod that stands for no static pod of this node");
                self.tools.pods.confirm_deletion(&id).await
            }
        }
    }
}

impl Assigned {
    /// The Pod with its status as its worker sees it.
    fn pod(&self) -> Arc<Pod> {
        let mut pod = Arc::clone(&self.orders.borrow().pod);
        // A panic while it was held has left a whole status.
        let status: PodStatus = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Arc::make_mut(&mut pod).status = Some(status);
        pod
    }

    /// Has a Pod that no manifest wants any more end with the grace that it asks for.
    fn end(&self, now: jiff::Timestamp) {
        self.orders.send_if_modified(|order| {
            if order.gone {
                return false;
            }
            let grace = PodView::new(&order.pod).grace();
            let meta = &mut Arc::make_mut(&mut order.pod).metadata;
            meta.deletion_timestamp = Some(Time(after(now, grace)));
            meta.deletion_grace_period_seconds = i64::try_from(grace.as_secs()).ok();
            order.gone = true;
            true
        });
    }
}
