//! What the containers of a Pod have been given, which may be less or more than they ask for since: a resize is granted as a
//! whole or not at all, and not before there is room (kubelet `pkg/kubelet/allocation`, KEP-1287). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use crate::pod::PodView;

/// Why a Pod does not get what it asks for: reason and message of its condition `PodResizePending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub reason: &'static str,
    pub message: String,
}

/// The resources of each container by its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allocation(BTreeMap<String, ResourceRequirements>);

impl Allocation {
    /// What the spec asks for.
    pub fn asked(pod: &Pod) -> Self {
        let one = |container: &Container| (container.name.clone(), container.resources.clone().unwrap_or_default());
        Self(pod.spec.iter().flat_map(containers).map(one).collect())
    }

    /// What the containers had when the node was last heard of: what their statuses show, else what the spec asks for.
    pub fn remembered(pod: &Pod) -> Self {
        let view = PodView::new(pod);
        let mut all = Self::asked(pod);
        for (name, given) in &mut all.0 {
            let shown = view.last_status(name).filter(|status| status.container_id.is_some());
            if let Some(resources) = shown.and_then(|status| status.resources.clone()) {
                *given = resources;
            }
        }
        all
    }

    /// Whether the spec asks for just this.
    pub fn is_asked(&self, pod: &Pod) -> bool {
        let none = ResourceRequirements::default();
        pod.spec
            .iter()
            .flat_map(containers)
            .all(|container| self.0.get(&container.name) == Some(container.resources.as_ref().unwrap_or(&none)))
    }

    /// The Pod as it would be if it asked for this.
    pub fn impose(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if self.is_asked(pod) {
            return Arc::clone(pod);
        }
        let mut imposed = Pod::clone(pod);
        let spec = imposed.spec.get_or_insert_default();
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(given) = self.0.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
        Arc::new(imposed)
    }
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(cpu: &str, shown: Value) -> Arc<Pod> {
        let resources = json!({"requests": {"cpu": cpu}});
        let spec = json!({"containers": [{"name": "a", "resources": resources}, {"name": "b"}]});
        let statuses = json!([{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": "carob://1", "resources": shown}]);
        let status = json!({"containerStatuses": statuses});
        Arc::new(serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).expect("a Pod"))
    }

    #[test]
    fn what_was_given_stays_until_more_is_granted() {
        let (before, after) = (pod("1", json!({})), pod("2", json!({"requests": {"cpu": "1"}})));
        let given = Allocation::asked(&before);
        assert!(given.is_asked(&before) && !given.is_asked(&after));
        assert!(Arc::ptr_eq(&given.impose(&before), &before));
        let imposed = given.impose(&after);
        assert_eq!(Allocation::asked(&imposed), given);
        assert_eq!(Allocation::remembered(&after), given, "the status tells what the container has");
        let unseen = pod("2", Value::Null);
        assert!(Allocation::remembered(&unseen).is_asked(&unseen));
    }
}
