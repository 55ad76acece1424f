//! What a Pod asks of a node that not every version of a node can do, under the names by which nodes declare it in
//! `status.declaredFeatures` (KEP-5328; k8s.io/component-helpers/nodedeclaredfeatures).

const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";
const RESIZE_POD: &str = "InPlacePodLevelResourcesVerticalScaling";
const RESIZE_INIT_CONTAINERS: &str = "InPlacePodVerticalScalingInitContainers";
/// The node's streams are WebSockets too. It decides nothing about Pods: API servers look at it.
const WEB_SOCKETS: &str = "ExtendWebSocketsToKubelet";

/// What our nodes can do, in the order in which they say so.
pub const DECLARED_FEATURES: [&str; 4] = [WEB_SOCKETS, RESIZE_POD, RESIZE_INIT_CONTAINERS, RESTART_ALL];

/// What a Pod needs of the node that it is to run on, by the actions of its containers' restart rules.
pub fn features_to_run<'a>(mut restart_actions: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    restart_actions.any(|action| action == "RestartAllContainers").then_some(RESTART_ALL)
}

/// What a change of a running Pod needs of its node, sorted.
pub fn features_to_resize(pod: bool, init_containers: bool) -> impl Iterator<Item = &'static str> {
    [(pod, RESIZE_POD), (init_containers, RESIZE_INIT_CONTAINERS)].into_iter().filter(|one| one.0).map(|one| one.1)
}
