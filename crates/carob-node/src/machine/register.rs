//! Registers the Node, renews its Lease and keeps its status true.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carob_client::Informer;
use carob_cri::Cri;
use carob_cri::v1::{
    ListImagesRequest, NetworkConfig, RuntimeConfig, StatusRequest, UpdateRuntimeConfigRequest, VersionRequest,
};
use carob_kit::{Backoff, Clock, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::facts::{self, MachineFacts};
use super::lease::{self, RENEW_EVERY};
use super::news::{self, News};
use super::object::{self, NodeIdentity, Reading};
use crate::events::{Events, Subject};

/// A status that has not changed is written this often (kubelet `nodeStatusReportFrequency`).
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(300);
const RETRY_BASE: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("{operation} of the node {name}")]
    Api {
        operation: &'static str,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("look at the machine")]
    Machine(#[source] std::io::Error),
}

pub struct Registrar {
    pub client: Client,
    pub cri: Arc<dyn Cri>,
    pub clock: Arc<dyn Clock>,
    pub identity: NodeIdentity,
    pub machine: MachineFacts,
    pub data_dir: PathBuf,
    /// The node's own object.
    pub nodes: Informer<Node>,
    pub events: Arc<dyn Events>,
    /// Set once the Node is in the API and shown ready.
    pub ready: watch::Sender<bool>,
}

struct Told {
    status: Option<NodeStatus>,
    at: Option<Timestamp>,
    /// Whether the lease is known to be there.
    lease: bool,
    pod_cidrs: Vec<String>,
    /// Whether Pods are kept away from the node.
    unschedulable: Option<bool>,
}

impl Registrar {
    /// Keeps the Node registered until the shutdown. The Node stays: its Pods run on.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut told = Told { status: None, at: None, lease: false, pod_cidrs: Vec::new(), unschedulable: None };
        self.announce(std::iter::once(news::starting()));
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        let changes = self.nodes.subscribe();
        loop {
            let wait = match self.round(&mut told).await {
                Ok(()) => {
                    retry.reset();
                    RENEW_EVERY
                }
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(error = %chain(&error), ?delay, "the node could not tell the API how it is");
                    delay
                }
            };
            // Every arm is cancel safe.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.until_changed(&changes, &told) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Ready when the Node got address ranges that the runtime does not know yet, or was deleted.
    async fn until_changed(&self, changes: &carob_client::Subscription, told: &Told) {
        loop {
            let _changed = changes.next().await;
            let node = self.nodes.list().into_iter().next();
            let ranges = node.as_deref().map(pod_cidrs);
            let deleted = node.is_none() && told.status.is_some() && self.nodes.is_synced();
            if deleted || ranges.is_some_and(|ranges| !ranges.is_empty() && ranges != told.pod_cidrs) {
                return;
            }
        }
    }

    async fn round(&mut self, told: &mut Told) -> Result<(), RegisterError> {
        let known = self.nodes.list().into_iter().next().filter(|_| self.nodes.is_synced());
        let node = match known {
            Some(node) => Node::clone(&node),
            None => {
                *told = Told { status: None, at: None, lease: told.lease, pod_cidrs: Vec::new(), unschedulable: None };
                self.register().await?
            }
        };
        self.pass_ranges_on(&node, told).await;
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        self.announce(news::schedulable(&self.identity.name, told.unschedulable.replace(unschedulable), unschedulable));
        self.write_status(&node, told).await?;
        self.renew(&node, told).await
    }

    async fn register(&self) -> Result<Node, RegisterError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = object::node(&self.identity, self.machine.architecture);
        let name = &self.identity.name;
        match api.create(&PostParams::default(), &node).await {
            Ok(node) => Ok(node),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // It is there from an earlier life: its labels may be old, the rest is the cluster's.
                let body = json!({"metadata": {"labels": node.metadata.labels}});
                let patched = api.patch(name, &PatchParams::default(), &Patch::Strategic(&body)).await;
                patched.map_err(|error| self.error("the registration", error))
            }
            Err(error) => Err(self.error("the registration", error)),
        }
    }

    /// The kubelet names a node by its name in place of its uid, and people's tools look for that.
    fn announce(&self, news: impl IntoIterator<Item = News>) {
        let subject = Subject::node(&self.identity.name, &self.identity.name);
        for News { warning, reason, message } in news {
            if warning {
                self.events.warning(&subject, reason, message);
            } else {
                self.events.normal(&subject, reason, message);
            }
        }
    }

    fn error(&self, operation: &'static str, source: kube::Error) -> RegisterError {
        RegisterError::Api { operation, name: self.identity.name.clone(), source: Box::new(source) }
    }

    /// Tells the runtime which addresses the node's Pods may have. A runtime that refuses stays not ready, which is told.
    async fn pass_ranges_on(&self, node: &Node, told: &mut Told) {
        let ranges = pod_cidrs(node);
        if ranges.is_empty() || ranges == told.pod_cidrs {
            return;
        }
        let network_config = Some(NetworkConfig { pod_cidr: ranges.join(",") });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        match self.cri.update_runtime_config(request).await {
            Ok(_) => told.pod_cidrs = ranges,
            Err(error) => tracing::warn!(%error, ?ranges, "the runtime does not take the node's address ranges"),
        }
    }

    async fn write_status(&self, node: &Node, told: &mut Told) -> Result<(), RegisterError> {
        let now = self.clock.now();
        let reading = self.read().await?;
        let old = told.status.as_ref().or(node.status.as_ref());
        let status = object::status(&self.identity, &reading, old, now);
        let changed = told.status.as_ref().is_none_or(|shown| object::differs(shown, &status));
        let overdue = told.at.is_none_or(|at| crate::plan::after(at, REPORT_EVERY) <= now);
        if changed || overdue {
            let api: Api<Node> = Api::all(self.client.clone());
            let body = status_body(&status);
            let patched =
                api.patch_status(&self.identity.name, &PatchParams::default(), &Patch::Strategic(&body)).await;
            patched.map_err(|error| self.error("the status update", error))?;
            self.announce(news::news(&self.identity.name, old, &status));
            let ready = is_ready(&status);
            self.ready.send_if_modified(|shown| std::mem::replace(shown, ready) != ready);
            told.status = Some(status);
            told.at = Some(now);
        }
        Ok(())
    }

    async fn read(&self) -> Result<Reading, RegisterError> {
        let strain = facts::strain(&self.data_dir).map_err(RegisterError::Machine)?;
        let runtime = self.cri.status(StatusRequest { verbose: false }).await.map_err(|error| error.message);
        let version = self.cri.version(VersionRequest::default()).await;
        let runtime_version = version
            .map(|version| format!("{}://{}", version.runtime_name, version.runtime_version))
            .unwrap_or_default();
        // A list that cannot be had is shown empty: it is there for people and a scheduler's bonus.
        let images =
            self.cri.list_images(ListImagesRequest::default()).await.map(|list| list.images).unwrap_or_default();
        Ok(Reading { machine: self.machine.clone(), strain, runtime_version, runtime, images })
    }

    async fn renew(&self, node: &Node, told: &mut Told) -> Result<(), RegisterError> {
        let uid = node.metadata.uid.as_deref().unwrap_or_default();
        let renewed = lease::renew(&self.client, &self.identity.name, uid, self.clock.now(), told.lease).await;
        renewed.map_err(|error| self.error("the renewal of the lease", error))?;
        told.lease = true;
        Ok(())
    }
}

fn pod_cidrs(node: &Node) -> Vec<String> {
    let spec = node.spec.as_ref();
    let several = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    if several.is_empty() { spec.and_then(|spec| spec.pod_cidr.clone()).into_iter().collect() } else { several }
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The status as a patch: addresses are written whole, or those that are gone would stay (they merge by type).
pub(crate) fn status_body(status: &NodeStatus) -> serde_json::Value {
    let mut body = json!({ "status": status });
    if let Some(addresses) = body["status"]["addresses"].as_array_mut() {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    body
}
