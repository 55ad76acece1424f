//! Tells exporters which Pods have which devices: the `PodResources` API, v1 (`pkg/kubelet/apis/podresources/server_v1.go`).
//! Which CPUs a container has is not said, since none has its own.

use std::sync::Arc;

use carob_devices::pod_resources_v1::{ContainerDevices, ContainerResources, NumaNode, PodResources, TopologyInfo};
use carob_devices::{PodResourcesSource, serve_pod_resources};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::Devices;
use super::state::Holder;
use crate::pod::{PodId, PodView};
use crate::server::PodSource;

/// What answers on `pod-resources/kubelet.sock`.
struct Source {
    devices: Devices,
    pods: Arc<dyn PodSource>,
}

impl Devices {
    /// Answers about the devices of these Pods until the shutdown.
    pub(crate) async fn tell_who_has_them(self, pods: Arc<dyn PodSource>) {
        let source: Arc<dyn PodResourcesSource> = Arc::new(Source { devices: self.clone(), pods });
        let serve = |listener| serve_pod_resources(listener, Arc::clone(&source), self.0.shutdown.clone());
        tokio::select! {
            () = self.keep_serving(self.0.pod_resources_dir.clone(), serve) => {}
            () = self.0.shutdown.cancelled() => {}
        }
    }
}

impl Source {
    fn of_pod(&self, pod: &Pod) -> PodResources {
        let id = PodId::of(pod);
        let spec = pod.spec.iter();
        let sidecars = spec.clone().flat_map(|spec| spec.init_containers.iter().flatten());
        let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
        let apps = spec.flat_map(|spec| &spec.containers);
        let containers = sidecars.chain(apps).map(|container| self.of_container(&id.uid, container)).collect();
        PodResources { name: id.name, namespace: id.namespace, containers }
    }

    fn of_container(&self, uid: &str, container: &Container) -> ContainerResources {
        let holder = Holder { uid: uid.to_owned(), container: container.name.clone() };
        let known = self.devices.known();
        let given = known.state.given().filter(|(held_by, ..)| **held_by == holder);
        let devices = given.flat_map(|(_, resource, given)| {
            given.devices.iter().flat_map(|id| shown(resource, id, given.nodes.get(id)))
        });
        ContainerResources { name: container.name.clone(), devices: devices.collect(), cpu_ids: Vec::new() }
    }
}

impl PodResourcesSource for Source {
    fn list(&self) -> Vec<PodResources> {
        let pods = self.pods.pods();
        pods.iter().filter(|pod| !PodView::new(pod).is_terminal()).map(|pod| self.of_pod(pod)).collect()
    }

    fn get(&self, namespace: &str, name: &str) -> Option<PodResources> {
        self.pods.pod(namespace, name).map(|pod| self.of_pod(&pod))
    }

    fn allocatable(&self) -> Vec<ContainerDevices> {
        self.devices.known().state.healthy().flat_map(|(resource, id, nodes)| shown(resource, id, nodes)).collect()
    }
}

/// One device, once per NUMA node that it is at.
fn shown(resource: &str, id: &str, nodes: Option<&Vec<i64>>) -> Vec<ContainerDevices> {
    let one =
        |topology| ContainerDevices { resource_name: resource.to_owned(), device_ids: vec![id.to_owned()], topology };
    match nodes {
        None => vec![one(None)],
        Some(nodes) => nodes.iter().map(|id| one(Some(TopologyInfo { nodes: vec![NumaNode { id: *id }] }))).collect(),
    }
}
