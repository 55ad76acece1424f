//! Where a Service's traffic goes: EndpointSlices, the older Endpoints, and slices that mirror Endpoints which someone else
//! writes.

mod address;
mod legacy;
mod mirror;
mod plan;
mod slices;
mod subsets;

use carob_client::{Change, Informer, ObjectKey};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::core::{Selector, SelectorExt};

pub(crate) use legacy::EndpointsController;
pub(crate) use mirror::MirroringController;
pub(crate) use slices::{SliceController, services_of_slice};

/// The label that names the Service of a slice, and the one that names who keeps it.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What selects a Service's Pods; `None` for one whose endpoints are someone else's business.
fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let labels = spec.selector.clone().filter(|labels| !labels.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| labels.into_iter().collect())
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// The Services that select a Pod, before a change or after it.
pub(crate) fn services_of_pod(services: &Informer<Service>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
    let none = Default::default();
    let selects = |service: &Service| {
        let selector = selector(service);
        let labels = change.versions().map(|pod| pod.metadata.labels.as_ref().unwrap_or(&none));
        selector.is_some_and(|selector| labels.into_iter().any(|labels| selector.matches(labels)))
    };
    let own = services.list_in(&change.key().namespace);
    own.iter().filter(|service| selects(service)).map(|service| ObjectKey::of(&**service)).collect()
}
