//! The EndpointSlices of Services that select Pods (`pkg/controller/endpointslice`).

use std::collections::BTreeSet;
use std::sync::Arc;

use carob_client::{
    Change, During, EventKind, EventRecorder, Grouped, Informer, ObjectKey, Reconcile, ReconcileError, Requeue,
    Subject, reference,
};
use carob_kit::chain;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use super::address::{self, addresses, endpoint, families, is_endpoint};
use super::plan::{self, Plan};
use super::{MANAGED_BY, SERVICE_NAME};
use crate::context::Context;
use crate::namespaces;
use crate::ownership::{Owner, selects, version};
use crate::pods;
use crate::versions::Versions;

const MANAGER: &str = "endpointslice-controller.k8s.io";

pub(crate) struct SliceController {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    slices_of: Arc<Grouped<ObjectKey, EndpointSlice>>,
    recorder: EventRecorder,
    written: Versions,
}

/// Slices of one manager, by their Service. The informer is the one that every part reads: a selection of its own would hold
/// most slices once more.
pub(super) fn slices_of(
    slices: &Informer<EndpointSlice>,
    manager: &'static str,
) -> Arc<Grouped<ObjectKey, EndpointSlice>> {
    Grouped::new(slices, move |slice| service_of(slice, manager).into_iter().collect())
}

impl SliceController {
    pub(crate) fn new(context: Context) -> Self {
        let slices = context.informers.of();
        Self {
            services: context.informers.of(),
            pods: context.informers.of(),
            nodes: context.informers.of(),
            slices_of: slices_of(&slices, MANAGER),
            slices,
            recorder: context.recorder("endpoint-slice-controller"),
            context,
            written: Versions::default(),
        }
    }

    pub(crate) fn services(&self) -> &Informer<Service> {
        &self.services
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    pub(crate) fn slices(&self) -> &Informer<EndpointSlice> {
        &self.slices
    }

    fn plan(&self, service: &Service) -> Option<Plan> {
        let selector = super::selector(service)?;
        let key = ObjectKey::of(service);
        let mut groups = Vec::new();
        let families = families(service);
        for pod in self.pods.list_in(&key.namespace) {
            if !selects(&selector, &pod.metadata) || !is_endpoint(&pod, true) {
                continue;
            }
            let node = pods::node_name(&pod).and_then(|name| self.nodes.get(None, name));
            for family in families.iter().filter(|family| !addresses(&pod, family).is_empty()) {
                let endpoint = endpoint(service, &pod, node.as_deref(), family);
                plan::add(&mut groups, family, address::ports(service, &pod), endpoint);
            }
        }
        for family in &families {
            plan::add_placeholder(&mut groups, family);
        }
        let existing = kept(self.slices_of.get(&key));
        Some(plan::plan(&existing, groups, &meta(service)))
    }
}

/// Those that are not on their way out.
pub(super) fn kept(mut slices: Vec<Arc<EndpointSlice>>) -> Vec<Arc<EndpointSlice>> {
    slices.retain(|slice| slice.metadata.deletion_timestamp.is_none());
    slices
}

/// The Service that a slice of that manager is of.
fn service_of(slice: &EndpointSlice, manager: &str) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let name = labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|by| by == manager))?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name))
}

/// The Services that a slice of that manager is or was of, in a change that someone else made to it.
pub(super) fn services_of(change: Change<'_, EndpointSlice>, manager: &str) -> BTreeSet<ObjectKey> {
    change.versions().filter_map(|slice| service_of(slice, manager)).collect()
}

fn meta(service: &Service) -> ObjectMeta {
    let owner = Owner::of(service);
    let mut labels = address::labels(service);
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    ObjectMeta {
        generate_name: Some(format!("{}-", service.name_any())),
        labels: Some(labels),
        owner_references: Some(vec![owner.reference]),
        ..ObjectMeta::default()
    }
}

/// Writes what was planned, and notes the versions.
pub(super) async fn carry_out(
    api: &Api<EndpointSlice>,
    plan: Plan,
    key: &ObjectKey,
    written: &Versions,
) -> Result<(), ReconcileError> {
    // New ones first: an endpoint that moves is rather seen twice than not at all.
    for slice in &plan.create {
        match api.create(&PostParams::default(), slice).await {
            Ok(created) => written.note(key, version(&created)),
            Err(kube::Error::Api(status)) if namespaces::is_terminating(&status) => return Ok(()),
            Err(error) => return Err(error).during(|| format!("create an endpoint slice for {key}")),
        }
    }
    for slice in &plan.update {
        let name = slice.name_any();
        let updated = api.replace(&name, &PostParams::default(), slice).await;
        written.note(key, version(&updated.during(|| format!("update endpoint slice {}/{name}", key.namespace))?));
    }
    for slice in &plan.delete {
        let name = slice.name_any();
        let deleted = api.delete(&name, &DeleteParams::default()).await;
        deleted.unless_gone(|| format!("delete endpoint slice {}/{name}", key.namespace))?;
    }
    Ok(())
}

impl Reconcile for SliceController {
    /// A Service.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.services.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.slices).await;
        let Some(service) = self.services.get_key(&key) else {
            // Its slices name it as their owner: they are collected.
            self.written.forget(&key);
            return Ok(Requeue::No);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::No);
        }
        let Some(plan) = self.plan(&service) else { return Ok(Requeue::No) };
        let done = carry_out(&self.context.api(&key.namespace), plan, &key, &self.written).await;
        if let Err(error) = &done
            && !error.is_conflict()
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {}", chain(error));
            self.recorder.record(reference(&*service), EventKind::Warning, "FailedToUpdateEndpointSlices", message);
        }
        done.map(|()| Requeue::No)
    }
}

/// The Services whose slices someone else changed or deleted.
pub(crate) fn services_of_slice(services: &Informer<Service>, change: Change<'_, EndpointSlice>) -> Vec<ObjectKey> {
    let selects = |key: &ObjectKey| services.get_key(key).is_some_and(|service| super::selector(&service).is_some());
    services_of(change, MANAGER).into_iter().filter(selects).collect()
}
