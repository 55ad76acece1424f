//! Which Pods go first when there are too many (`pkg/controller/controller_utils.go`, ActivePodsWithRanks). Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Ordered so that what should go first comes first.
type Rank = (bool, u8, bool, i32, Reverse<usize>, Reverse<Timestamp>, Reverse<i32>, Reverse<Timestamp>, String);

/// The `count` Pods of `active` to delete. `siblings` are all Pods that do the same work; a Node with many of them gives
/// one up rather than a Node with few.
pub(super) fn victims(active: &[Arc<Pod>], siblings: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    if count == active.len() {
        return active.to_vec();
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in siblings {
        *on_node.entry(pods::node_name(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut ranked = active.to_vec();
    ranked.sort_by_cached_key(|pod| rank(pod, &on_node));
    ranked.truncate(count);
    ranked
}

fn rank(pod: &Pod, on_node: &HashMap<&str, usize>) -> Rank {
    let node = pods::node_name(pod);
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let ready_since =
        pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0);
    let ready_since = ready_since.filter(|_| pods::is_ready(pod)).unwrap_or(Timestamp::MIN);
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0);
    (
        node.is_some(),
        phase,
        pods::is_ready(pod),
        deletion_cost(pod),
        Reverse(node.and_then(|node| on_node.get(node)).copied().unwrap_or(0)),
        Reverse(ready_since),
        Reverse(restarts(pod)),
        Reverse(created),
        pod.metadata.name.clone().unwrap_or_default(),
    )
}

/// An annotation that is no number counts as none.
fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST_ANNOTATION));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;
    use crate::condition::Condition;

    #[derive(Clone, Copy)]
    struct Case {
        name: &'static str,
        node: &'static str,
        phase: &'static str,
        ready_since: Option<i64>,
        cost: &'static str,
        restarts: i32,
        created: i64,
    }

    const PLAIN: Case =
        Case { name: "", node: "n", phase: "Running", ready_since: Some(50), cost: "", restarts: 0, created: 10 };

    fn time(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("in range"))
    }

    fn pod(case: Case) -> Arc<Pod> {
        let annotations = (!case.cost.is_empty())
            .then(|| [(DELETION_COST_ANNOTATION.to_owned(), case.cost.to_owned())].into_iter().collect());
        let ready = case.ready_since.map(|since| vec![PodCondition::new("Ready", "True", "", "", &time(since))]);
        let container = ContainerStatus { restart_count: case.restarts, ..ContainerStatus::default() };
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(case.name.to_owned()),
                annotations,
                creation_timestamp: Some(time(case.created)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec { node_name: Some(case.node.to_owned()), ..PodSpec::default() }),
            status: Some(PodStatus {
                phase: Some(case.phase.to_owned()),
                conditions: ready,
                container_statuses: Some(vec![container]),
                ..PodStatus::default()
            }),
        })
    }

    #[test]
    fn each_criterion_decides_when_those_before_it_do_not() {
        let goes_first = [
            ("unassigned", Case { node: "", ..PLAIN }),
            ("pending", Case { phase: "Pending", ..PLAIN }),
            ("unknown", Case { phase: "Unknown", ..PLAIN }),
            ("not ready", Case { ready_since: None, ..PLAIN }),
            ("cheap", Case { cost: "-5", ..PLAIN }),
            ("crowded", Case { node: "m", ..PLAIN }),
            ("ready for a shorter time", Case { ready_since: Some(60), ..PLAIN }),
            ("restarted more", Case { restarts: 2, ..PLAIN }),
            ("younger", Case { created: 20, ..PLAIN }),
        ];
        for (why, case) in goes_first {
            let other = pod(Case { name: "other", ..PLAIN });
            let first = pod(Case { name: "first", ..case });
            let active = vec![other, first];
            let crowd: Vec<_> =
                active.iter().cloned().chain((0..2).map(|_| pod(Case { node: "m", ..PLAIN }))).collect();
            let chosen = victims(&active, &crowd, 1);
            assert_eq!(chosen[0].metadata.name.as_deref(), Some("first"), "{why}");
        }
    }
}
