//! What the containers of a Pod have been given, which may be less or more than they ask for since: a resize is granted as a
//! whole or not at all, and not before there is room (kubelet `pkg/kubelet/allocation`, KEP-1287). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::PodView;

/// Why a Pod does not get what it asks for: reason and message of its condition `PodResizePending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub reason: &'static str,
    pub message: String,
}

/// The resources of a Pod as a whole, where it asks for some, and those of each container by its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allocation {
    whole: Option<ResourceRequirements>,
    containers: BTreeMap<String, ResourceRequirements>,
}

impl Allocation {
    /// What the spec asks for.
    pub fn asked(pod: &Pod) -> Self {
        let one = |container: &Container| (container.name.clone(), container.resources.clone().unwrap_or_default());
        let whole = pod.spec.as_ref().and_then(|spec| spec.resources.clone());
        Self { whole, containers: pod.spec.iter().flat_map(containers).map(one).collect() }
    }

    /// What the Pod had when the node was last heard of: what its status shows, else what the spec asks for.
    pub fn remembered(pod: &Pod) -> Self {
        let view = PodView::new(pod);
        let mut all = Self::asked(pod);
        for (name, given) in &mut all.containers {
            let shown = view.last_status(name).filter(|status| status.container_id.is_some());
            if let Some(resources) = shown.and_then(|status| status.resources.clone()) {
                *given = resources;
            }
        }
        let running = pod.status.as_ref().filter(|status| status.phase.as_deref() == Some("Running"));
        if let (Some(whole), Some(shown)) = (&mut all.whole, running.and_then(|status| status.resources.as_ref())) {
            take_over(whole.requests.as_mut(), shown.requests.as_ref());
            take_over(whole.limits.as_mut(), shown.limits.as_ref());
        }
        all
    }

    /// Whether the spec asks for just this.
    pub fn is_asked(&self, pod: &Pod) -> bool {
        let none = ResourceRequirements::default();
        let all = |spec: &PodSpec| {
            self.whole == spec.resources
                && containers(spec).all(|container| {
                    self.containers.get(&container.name) == Some(container.resources.as_ref().unwrap_or(&none))
                })
        };
        pod.spec.as_ref().is_none_or(all)
    }

    /// The Pod as it would be if it asked for this.
    pub fn impose(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if self.is_asked(pod) {
            return Arc::clone(pod);
        }
        let mut imposed = Pod::clone(pod);
        let spec = imposed.spec.get_or_insert_default();
        spec.resources.clone_from(&self.whole);
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(given) = self.containers.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
        Arc::new(imposed)
    }
}

/// A Pod's status shows what it has in all, of which only what the Pod asks for as a whole was given to it as such.
fn take_over(given: Option<&mut BTreeMap<String, Quantity>>, shown: Option<&BTreeMap<String, Quantity>>) {
    for (name, amount) in given.into_iter().flatten() {
        if let Some(shown) = shown.and_then(|shown| shown.get(name)) {
            amount.clone_from(shown);
        }
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

    #[test]
    fn what_a_pod_was_given_as_a_whole_stays_too() {
        let pod = |cpu: &str| -> Arc<Pod> {
            let spec = json!({"containers": [{"name": "a"}], "resources": {"limits": {"cpu": cpu}}});
            let shown = json!({"requests": {"memory": "1Gi"}, "limits": {"cpu": "1"}});
            let status = json!({"phase": "Running", "resources": shown});
            Arc::new(serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).expect("a Pod"))
        };
        let (before, after) = (pod("1"), pod("2"));
        let given = Allocation::asked(&before);
        assert!(!given.is_asked(&after));
        assert_eq!(Allocation::asked(&given.impose(&after)), given);
        assert_eq!(Allocation::remembered(&after), given, "and only what it asked for so");
    }
}
