//! Registers the Node, renews its Lease and keeps its status true.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carob_client::Informer;
use carob_cri::Cri;
use carob_cri::v1::{
    ListImagesRequest, NetworkConfig, RuntimeConfig, StatusRequest, UpdateRuntimeConfigRequest, VersionRequest,
};
use carob_kit::fs::RealFs;
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
use super::object::{self, MACHINE_ANNOTATION, NodeIdentity, Owner, Reading};
use crate::csi::Csi;
use crate::devices::Devices;
use crate::events::{Events, Subject};
use crate::eviction::Pressures;

/// A status that has not changed is written this often (kubelet `nodeStatusReportFrequency`).
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(300);
/// Where the node keeps its ranges of Pod addresses, in its data directory.
const POD_CIDRS: &str = "pod-cidrs";
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
    #[error("another machine is the node {0}: delete that Node, or choose another name with --node-name")]
    Taken(String),
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
    /// What the node is short of.
    pub pressures: watch::Receiver<Pressures>,
    /// Whether the machine is about to shut down.
    pub closing: watch::Receiver<bool>,
    /// Which volumes of drivers are in use.
    pub csi: Csi,
    /// Which devices of plug-ins there are.
    pub devices: Devices,
    /// Set once the Node is in the API and shown ready.
    pub ready: watch::Sender<bool>,
    /// Set once the Node is known to be this machine's: nothing is done for it before.
    pub ours: watch::Sender<bool>,
}

#[derive(Default)]
struct Told {
    status: Option<NodeStatus>,
    at: Option<Timestamp>,
    /// Whether the lease is known to be there.
    lease: bool,
    pod_cidrs: Vec<String>,
    /// Whether Pods are kept away from the node.
    unschedulable: Option<bool>,
    /// The silent machine, or none, whose Node this was when it was taken.
    taken_from: Option<Option<String>>,
    /// The Node was deleted, and that was logged.
    left: bool,
}

impl Registrar {
    /// Keeps the Node registered until the shutdown, or until it is another machine's. The Node stays: its Pods run on.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut told = Told::default();
        self.announce(std::iter::once(news::starting()));
        self.recall_ranges().await;
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        let changes = self.nodes.subscribe();
        let mut short = self.pressures.clone();
        let mut closing = self.closing.clone();
        let mut in_use = self.csi.attachments().in_use.subscribe();
        let mut devices = self.devices.changes();
        loop {
            let wait = match self.round(&mut told).await {
                Ok(()) => {
                    retry.reset();
                    RENEW_EVERY
                }
                Err(error) => {
                    let lost = matches!(error, RegisterError::Taken(_)) && *self.ours.borrow();
                    let delay = retry.fail();
                    tracing::warn!(error = %chain(&error), ?delay, "the node could not tell the API how it is");
                    if lost {
                        return;
                    }
                    delay
                }
            };
            // Every arm is cancel safe.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.until_changed(&changes, &told) => {}
                Ok(()) = short.changed() => {}
                Ok(()) = closing.changed() => {}
                Ok(()) = in_use.changed() => {}
                Ok(()) = devices.changed() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Ready when the Node got address ranges that the runtime does not know yet, was deleted, is another machine's, or counts as
    /// silent.
    async fn until_changed(&self, changes: &carob_client::Subscription, told: &Told) {
        loop {
            let _changed = changes.next().await;
            let node = self.nodes.list().into_iter().next();
            let ranges = node.as_deref().map(pod_cidrs);
            let deleted = node.is_none() && told.status.is_some() && self.nodes.is_synced();
            let lost = node.as_deref().is_some_and(|node| {
                let overwritten = told.status.as_ref().is_some_and(|shown| object::is_overwritten(node, shown));
                overwritten || object::owner(&self.identity, node) == Owner::Other
            });
            if deleted || lost || ranges.is_some_and(|ranges| !ranges.is_empty() && ranges != told.pod_cidrs) {
                return;
            }
        }
    }

    async fn round(&mut self, told: &mut Told) -> Result<(), RegisterError> {
        let known = self.nodes.list().into_iter().next().filter(|_| self.nodes.is_synced());
        let node = match known {
            Some(node) => self.claim(Node::clone(&node), told).await?,
            None if self.identity.stays_deleted && (told.left || told.status.is_some()) => {
                if !std::mem::replace(&mut told.left, true) {
                    tracing::warn!(
                        node = self.identity.name,
                        "the Node was deleted: this machine has left the cluster"
                    );
                }
                return Ok(());
            }
            None => {
                *told = Told { lease: told.lease, ..Told::default() };
                self.register(told).await?
            }
        };
        told.left = false;
        self.ours.send_if_modified(|ours| !std::mem::replace(ours, true));
        self.pass_ranges_on(&node, told).await;
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        self.announce(news::schedulable(&self.identity.name, told.unschedulable.replace(unschedulable), unschedulable));
        self.write_status(&node, told).await?;
        self.renew(&node, told).await
    }

    async fn register(&self, told: &mut Told) -> Result<Node, RegisterError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = object::node(&self.identity, self.machine.architecture);
        let name = &self.identity.name;
        let failed = |error| self.error("the registration", error);
        match api.create(&PostParams::default(), &node).await {
            Ok(node) => Ok(node),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let held = self.claim(api.get(name).await.map_err(failed)?, told).await?;
                // It is there from an earlier run: its labels may be old, the rest is the cluster's.
                let labels = node.metadata.labels;
                if labels.iter().flatten().all(|label| held.metadata.labels.iter().flatten().any(|own| own == label)) {
                    return Ok(held);
                }
                let body = json!({"metadata": {"labels": labels}});
                let patched = api.patch(name, &PatchParams::default(), &Patch::Strategic(&body)).await;
                patched.map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes sure that the Node is this machine's. One whose machine is silent is taken, by whoever is the first.
    async fn claim(&self, node: Node, told: &mut Told) -> Result<Node, RegisterError> {
        match object::owner(&self.identity, &node) {
            Owner::Ours => Ok(node),
            // The informer shows it as it was before it was taken.
            Owner::Free(held) if told.taken_from.as_ref() == Some(&held) => Ok(node),
            Owner::Other => Err(RegisterError::Taken(self.identity.name.clone())),
            Owner::Free(held) => {
                let body = json!({"metadata": {
                    "resourceVersion": node.metadata.resource_version,
                    "annotations": {MACHINE_ANNOTATION: self.identity.machine_id},
                }});
                let api: Api<Node> = Api::all(self.client.clone());
                let patched = api.patch(&self.identity.name, &PatchParams::default(), &Patch::Strategic(&body)).await;
                let patched = patched.map_err(|error| self.error("the registration", error))?;
                told.taken_from = Some(held);
                Ok(patched)
            }
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
            Ok(_) => {
                self.remember(&ranges);
                told.pod_cidrs = ranges;
            }
            Err(error) => tracing::warn!(%error, ?ranges, "the runtime does not take the node's address ranges"),
        }
    }

    /// Gives the runtime the ranges that the node had last: static Pods do not wait for an API.
    async fn recall_ranges(&self) {
        let text = match fs_err::read_to_string(self.data_dir.join(POD_CIDRS)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return tracing::warn!(%error, "cannot read which address ranges the node had"),
            Ok(text) => text,
        };
        let network_config = Some(NetworkConfig { pod_cidr: text.trim().to_owned() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        if let Err(error) = self.cri.update_runtime_config(request).await {
            tracing::warn!(%error, ranges = text.trim(), "the runtime does not take the address ranges that the node had");
        }
    }

    fn remember(&self, ranges: &[String]) {
        let path = self.data_dir.join(POD_CIDRS);
        let text = ranges.join(",");
        if fs_err::read_to_string(&path).is_ok_and(|known| known == text) {
            return;
        }
        if let Err(error) = carob_kit::fs::write_atomic(&RealFs, &path, text.as_bytes()) {
            tracing::warn!(%error, "cannot remember which address ranges the node has");
        }
    }

    async fn write_status(&self, node: &Node, told: &mut Told) -> Result<(), RegisterError> {
        let now = self.clock.now();
        let reading = self.read().await?;
        // While the node was silent, others have written that nothing is known of it.
        let overwritten = told.status.as_ref().is_some_and(|shown| object::is_overwritten(node, shown));
        let old = told.status.as_ref().filter(|_| !overwritten).or(node.status.as_ref());
        let in_use = self.csi.attachments().in_use.borrow().clone();
        let mut status = object::status(&self.identity, &reading, old, now);
        status.volumes_in_use = Some(in_use.iter().cloned().collect()).filter(|names: &Vec<String>| !names.is_empty());
        let changed = overwritten || told.status.as_ref().is_none_or(|shown| object::differs(shown, &status));
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
            self.csi.attachments().reported.send_replace(in_use);
            told.status = Some(status);
            told.at = Some(now);
        }
        Ok(())
    }

    async fn read(&self) -> Result<Reading, RegisterError> {
        let strain = facts::strain(&self.data_dir).map_err(RegisterError::Machine)?;
        let huge_pages = facts::huge_pages().map_err(RegisterError::Machine)?;
        let runtime = self.cri.status(StatusRequest { verbose: false }).await.map_err(|error| error.message);
        let version = self.cri.version(VersionRequest::default()).await;
        let runtime_version = version
            .map(|version| format!("{}://{}", version.runtime_name, version.runtime_version))
            .unwrap_or_default();
        // A list that cannot be had is shown empty: it is there for people and a scheduler's bonus.
        let images =
            self.cri.list_images(ListImagesRequest::default()).await.map(|list| list.images).unwrap_or_default();
        let (pressures, closing) = (self.pressures.borrow().clone(), *self.closing.borrow());
        let devices = self.devices.amounts();
        Ok(Reading {
            machine: self.machine.clone(),
            strain,
            huge_pages,
            runtime_version,
            runtime,
            images,
            pressures,
            closing,
            devices,
        })
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
    // A field that is left out would stay as it was.
    if status.volumes_in_use.is_none() {
        body["status"]["volumesInUse"] = serde_json::Value::Null;
    }
    if let Some(addresses) = body["status"]["addresses"].as_array_mut() {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    body
}
