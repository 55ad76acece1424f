//! Keeps the Node objects and Leases of all virtual nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use carob_client::Informer;
use carob_kit::{Backoff, Clock, chain};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::object::Placed;
use super::pods::ClientOf;
use crate::machine::lease::{self, RENEW_EVERY};
use crate::machine::object;
use crate::machine::register::{REPORT_EVERY, status_body};

/// Time between two turns. Leases are renewed a turn's share at once: one timer for all nodes, and one commit of the store
/// for many writes.
const TURN: Duration = Duration::from_secs(1);
/// Writes that are under way at once.
const WRITES_MAX: usize = 64;
/// Waits between tries to register while the API does not answer.
const RETRY_BASE: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
#[error("{operation} of the virtual node {name}")]
struct WriteError {
    operation: &'static str,
    name: String,
    #[source]
    source: Box<kube::Error>,
}

/// See the module.
pub(super) struct Heartbeat {
    pub(super) placed: Arc<[Placed]>,
    pub(super) nodes: Informer<Node>,
    pub(super) client_of: ClientOf,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) kubelet_version: String,
}

impl Heartbeat {
    /// Registers all nodes; tries again those that failed, until the shutdown.
    pub(super) async fn register(&self, shutdown: &CancellationToken) {
        let mut left: Vec<usize> = (0..self.placed.len()).collect();
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        while !left.is_empty() {
            let failed = self.each(left, |index| self.register_one(index)).await;
            left = failed.into_iter().collect();
            if left.is_empty() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(retry.fail()) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Keeps the registered nodes alive until the shutdown. A Node that was deleted stays so until the next start, as with
    /// a kubelet that runs on.
    pub(super) async fn run(&self, shutdown: &CancellationToken) {
        let mut turns = tokio::time::interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut overdue = BTreeSet::new();
        let (renewal, report) = (turns_per(RENEW_EVERY), turns_per(REPORT_EVERY));
        let mut turn = 0;
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                _ = turns.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let due = (turn % renewal..self.placed.len()).step_by(renewal);
            let due: BTreeSet<usize> = due.chain(overdue).collect();
            overdue = self.each(due, |index| self.renew(index)).await;
            let due = (turn % report..self.placed.len()).step_by(report);
            // What fails here is written again by the next report; the lease is what keeps a node alive.
            self.each(due, |index| self.report(index)).await;
            turn += 1;
        }
    }

    /// Does something for several nodes, some at a time. Answers for which it failed, and says why for the first.
    async fn each<F>(&self, indices: impl IntoIterator<Item = usize>, work: impl Fn(usize) -> F) -> BTreeSet<usize>
    where
        F: Future<Output = Result<(), WriteError>>,
    {
        let done = futures_util::stream::iter(indices.into_iter().map(|index| {
            let work = work(index);
            async move { (index, work.await) }
        }));
        let done: Vec<_> = done.buffer_unordered(WRITES_MAX).collect().await;
        let failed: Vec<_> = done.into_iter().filter_map(|(index, how)| Some((index, how.err()?))).collect();
        if let Some((_, error)) = failed.first() {
            tracing::warn!(nodes = failed.len(), error = %chain(error), "virtual nodes could not be kept alive");
        }
        failed.into_iter().map(|(index, _)| index).collect()
    }

    async fn register_one(&self, index: usize) -> Result<(), WriteError> {
        let placed = &self.placed[index];
        let name = &placed.node.name;
        let client = (self.client_of)(name);
        let failed = |operation| move |source| WriteError { operation, name: name.clone(), source: Box::new(source) };
        if let Some(known) = self.nodes.get(None, name) {
            let object = placed.object(&self.kubelet_version, self.clock.now());
            let held = known.metadata.labels.iter().flatten().collect::<BTreeSet<_>>();
            if object.metadata.labels.iter().flatten().any(|label| !held.contains(&label)) {
                let body = json!({"metadata": {"labels": object.metadata.labels}});
                let api = Api::<Node>::all(client);
                let patched = api.patch(name, &PatchParams::default(), &Patch::Strategic(&body)).await;
                patched.map_err(failed("the registration"))?;
            }
            return self.report(index).await;
        }
        let object = placed.object(&self.kubelet_version, self.clock.now());
        let made = Api::all(client.clone()).create(&PostParams::default(), &object).await;
        let made = made.map_err(failed("the registration"))?;
        let uid = made.metadata.uid.unwrap_or_default();
        lease::renew(&client, name, &uid, self.clock.now(), false).await.map_err(failed("the lease"))
    }

    async fn renew(&self, index: usize) -> Result<(), WriteError> {
        let name = &self.placed[index].node.name;
        let Some(node) = self.nodes.get(None, name) else { return Ok(()) };
        let uid = node.metadata.uid.as_deref().unwrap_or_default();
        let renewed = lease::renew(&(self.client_of)(name), name, uid, self.clock.now(), true).await;
        let operation = "the renewal of the lease";
        renewed.map_err(|source| WriteError { operation, name: name.clone(), source: Box::new(source) })
    }

    /// Writes the status if it is not what the API shows, or has been shown for long.
    async fn report(&self, index: usize) -> Result<(), WriteError> {
        let placed = &self.placed[index];
        let name = &placed.node.name;
        let Some(node) = self.nodes.get(None, name) else { return Ok(()) };
        let now = self.clock.now();
        let status = placed.status(&self.kubelet_version, node.status.as_ref(), now);
        let shown = node.status.as_ref();
        let heard = shown.and_then(|shown| shown.conditions.as_ref()?.first()?.last_heartbeat_time.clone());
        let fresh = heard.is_some_and(|heard| crate::plan::after(heard.0, REPORT_EVERY) > now);
        if fresh && shown.is_some_and(|shown| !object::differs(shown, &status)) {
            return Ok(());
        }
        let api = Api::<Node>::all((self.client_of)(name));
        let patched = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status_body(&status))).await;
        let operation = "the status update";
        patched.map(drop).map_err(|source| WriteError { operation, name: name.clone(), source: Box::new(source) })
    }
}

fn turns_per(time: Duration) -> usize {
    usize::try_from(time.as_secs() / TURN.as_secs()).unwrap_or(1).max(1)
}
