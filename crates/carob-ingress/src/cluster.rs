//! The cluster as requests need it: the informers' stores, and the rules made of Ingresses.

use std::sync::{Arc, RwLock};

use carob_client::{Grouped, Informer, Informers, ObjectKey, Selection};
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use crate::class;
use crate::endpoints::{self, Targets, Unserved};
use crate::proxy::Directory;
use crate::route::{Backend, Routes};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) struct Cluster {
    pub(crate) ingresses: Informer<Ingress>,
    pub(crate) classes: Informer<IngressClass>,
    pub(crate) services: Informer<Service>,
    /// Of type `kubernetes.io/tls`.
    pub(crate) secrets: Informer<Secret>,
    slices: Informer<EndpointSlice>,
    slices_of: Arc<Grouped<ObjectKey, EndpointSlice>>,
    routes: RwLock<Arc<Routes>>,
}

impl Cluster {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(informers: &Informers) -> Arc<Self> {
        let slices = informers.of::<EndpointSlice>();
        let of_tls = Selection { fields: Some("type=kubernetes.io/tls".to_owned()), ..Selection::default() };
        Arc::new(Self {
            ingresses: informers.of(),
            classes: informers.of(),
            services: informers.of(),
            secrets: informers.of_selected(of_tls),
            slices_of: Grouped::new(&slices, |slice| service_of(slice).into_iter().collect()),
            slices,
            routes: RwLock::default(),
        })
    }

    /// Ready once all is known. Cancel safe.
    pub(crate) async fn synced(&self) {
        self.ingresses.synced().await;
        self.classes.synced().await;
        self.services.synced().await;
        self.secrets.synced().await;
        self.slices.synced().await;
    }

    /// The Ingresses that are served here, the oldest first.
    pub(crate) fn served(&self) -> Vec<Arc<Ingress>> {
        let classes = self.classes.list();
        let mut served = self.ingresses.list();
        served.retain(|ingress| class::is_ours(ingress, &classes));
        served.sort_by_cached_key(|ingress| {
            (ingress.metadata.creation_timestamp.as_ref().map(|time| time.0), ObjectKey::of(&**ingress))
        });
        served
    }

    pub(crate) fn replace_routes(&self, routes: Routes) {
        *self.routes.write().expect("no holder of the rules panics") = Arc::new(routes);
    }
}

impl Directory for Cluster {
    fn find(&self, host: &str, path: &str) -> Option<Arc<Backend>> {
        let routes = Arc::clone(&self.routes.read().expect("no holder of the rules panics"));
        routes.find(host, path)
    }

    fn targets(&self, backend: &Backend) -> Result<Targets, Unserved> {
        let service = self.services.get_key(&backend.service).ok_or(Unserved::NoService)?;
        endpoints::targets(&service, &self.slices_of.get(&backend.service), &backend.port)
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service))
}
