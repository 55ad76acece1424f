use std::sync::Arc;

use carob_grpc::{Routes, ServerLimits, Status, serve};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::paths::{GET_ALLOCATABLE_RESOURCES, GET_POD_RESOURCES, LIST_POD_RESOURCES, MESSAGE_LEN_MAX};
use crate::pod_resources_v1::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};

/// Exporters of a machine, which hold a connection each.
const LIMITS: ServerLimits = ServerLimits { connections_max: 32, streams_max: 8 };

/// Which Pods have which devices.
pub trait PodResourcesSource: Send + Sync + 'static {
    /// Of all Pods that are not over.
    fn list(&self) -> Vec<PodResources>;
    fn get(&self, namespace: &str, name: &str) -> Option<PodResources>;
    /// All devices that can be given.
    fn allocatable(&self) -> Vec<ContainerDevices>;
}

/// Answers whoever asks which Pods have which devices, until the shutdown.
pub async fn serve_pod_resources(
    listener: UnixListener,
    source: Arc<dyn PodResourcesSource>,
    shutdown: CancellationToken,
) {
    let (of_list, of_get) = (Arc::clone(&source), Arc::clone(&source));
    let routes = Routes::new(MESSAGE_LEN_MAX)
        .unary(LIST_POD_RESOURCES, move |_: ListPodResourcesRequest| {
            let pod_resources = of_list.list();
            async move { Ok(ListPodResourcesResponse { pod_resources }) }
        })
        .unary(GET_POD_RESOURCES, move |asked: GetPodResourcesRequest| {
            let found = of_get.get(&asked.pod_namespace, &asked.pod_name);
            async move {
                let missing = || format!("pod {} in namespace {} not found", asked.pod_name, asked.pod_namespace);
                let pod_resources = Some(found.ok_or_else(|| Status::unknown(missing()))?);
                Ok(GetPodResourcesResponse { pod_resources })
            }
        })
        .unary(GET_ALLOCATABLE_RESOURCES, move |_: AllocatableResourcesRequest| {
            let devices = source.allocatable();
            async move { Ok(AllocatableResourcesResponse { devices, cpu_ids: Vec::new() }) }
        });
    serve(listener, routes, LIMITS, shutdown).await;
}
