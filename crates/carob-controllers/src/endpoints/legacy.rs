//! The Endpoints of Services that select Pods (`pkg/controller/endpoint`).

use std::collections::BTreeMap;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints, Pod, Service};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use super::address::{self, addresses, families, is_endpoint};
use super::subsets::{self, Target};
use crate::context::Context;
use crate::namespaces;
use crate::ownership::{selects, version};
use crate::pods;
use crate::versions::Versions;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub(crate) struct EndpointsController {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    written: Versions,
}

impl EndpointsController {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            services: context.informers.of(),
            pods: context.informers.of(),
            endpoints: context.informers.of(),
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

    pub(crate) fn endpoints(&self) -> &Informer<Endpoints> {
        &self.endpoints
    }

    fn targets(&self, service: &Service) -> Option<Vec<Target>> {
        let selector = super::selector(service)?;
        let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
        let family = families(service).into_iter().next().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let selected = self.pods.list_in(namespace).into_iter();
        let selected = selected.filter(|pod| selects(&selector, &pod.metadata) && is_endpoint(pod, publish));
        let target = |pod: &Pod| {
            let address = EndpointAddress {
                ip: addresses(pod, &family).into_iter().next()?,
                hostname: address::hostname(service, pod),
                node_name: pods::node_name(pod).map(str::to_owned),
                target_ref: Some(address::pod_reference(pod)),
            };
            Some(Target { address, ready: publish || pods::is_ready(pod), ports: ports(service, pod) })
        };
        // A Pod in which none of the Service's ports is found is no endpoint, unless the Service has no ports.
        let portless = service.spec.as_ref().is_none_or(|spec| spec.ports.as_ref().is_none_or(Vec::is_empty));
        Some(selected.filter_map(|pod| target(&pod)).filter(|target| portless || !target.ports.is_empty()).collect())
    }

    /// The object as it should be, made from the one there is.
    fn wanted(&self, service: &Service, held: Option<&Endpoints>) -> Option<Endpoints> {
        let mut targets = self.targets(service)?;
        let truncated = subsets::truncate(&mut targets);
        let subsets = subsets::pack(&targets);
        let mut metadata = held.map_or_else(ObjectMeta::default, |held| held.metadata.clone());
        metadata.name = service.metadata.name.clone();
        let mut labels: BTreeMap<String, String> = address::labels(service);
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        metadata.labels = Some(labels);
        let mut annotations = metadata.annotations.take().unwrap_or_default();
        annotations.remove(OVER_CAPACITY);
        if truncated {
            annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
        }
        metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        Some(Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let kept_by_us = |endpoints: &Endpoints| {
            endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
        };
        if !self.endpoints.get_key(key).is_some_and(|endpoints| kept_by_us(&endpoints)) {
            return Ok(());
        }
        let api: Api<Endpoints> = self.context.api(&key.namespace);
        let deleted = api.delete(&key.name, &DeleteParams::default()).await;
        deleted.unless_gone(|| format!("delete endpoints {key}")).map(drop)
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some(EndpointPort {
            name: port.name.clone(),
            port: address::port_number(port, pod)?,
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    };
    listed.filter_map(port).collect()
}

impl Reconcile for EndpointsController {
    /// A Service, and the Endpoints of its name.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.services.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.endpoints).await;
        let Some(service) = self.services.get_key(&key) else {
            self.delete(&key).await?;
            self.written.forget(&key);
            return Ok(Requeue::No);
        };
        let held = self.endpoints.get_key(&key);
        let Some(wanted) = self.wanted(&service, held.as_deref()) else { return Ok(Requeue::No) };
        if service.metadata.deletion_timestamp.is_some() || held.as_deref() == Some(&wanted) {
            return Ok(Requeue::No);
        }
        let api: Api<Endpoints> = self.context.api(&key.namespace);
        let written = match held {
            Some(_) => api.replace(&key.name, &PostParams::default(), &wanted).await,
            None => match api.create(&PostParams::default(), &wanted).await {
                Err(kube::Error::Api(status)) if namespaces::is_terminating(&status) => return Ok(Requeue::No),
                created => created,
            },
        };
        self.written.note(&key, version(&written.during(|| format!("write endpoints {key}"))?));
        Ok(Requeue::No)
    }
}
