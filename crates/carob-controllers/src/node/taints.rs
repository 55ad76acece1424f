//! Taints that follow from a Node's conditions, and what Pods tolerate. Pure.

use carob_api::pod as rules;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::condition::{self, FALSE, TRUE, UNKNOWN};

pub(crate) const NO_SCHEDULE: &str = "NoSchedule";
pub(crate) const NO_EXECUTE: &str = "NoExecute";
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, its status, and the taint that keeps new Pods away meanwhile
/// (`pkg/controller/nodelifecycle`, nodeConditionToTaintKeyStatusMap).
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", FALSE, NOT_READY),
    ("Ready", UNKNOWN, UNREACHABLE),
    ("MemoryPressure", TRUE, "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", TRUE, "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", TRUE, "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", TRUE, "node.kubernetes.io/pid-pressure"),
];

/// The taints that the Node should have, others' included; `None` when it has them.
///
/// `evict` says whether an unhealthy Node also loses its Pods.
pub(crate) fn wanted(node: &Node, evict: bool, now: &Time) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let held = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let conditions = &node.status.as_ref().and_then(|status| status.conditions.clone());
    let status_of = |kind: &str| condition::find(conditions, kind).map(|condition| condition.status.as_str());
    let mut ours: Vec<(&str, &str, bool)> = Vec::new();
    for (kind, status, key) in BY_CONDITION {
        ours.push((key, NO_SCHEDULE, status_of(kind) == Some(status)));
    }
    ours.push((UNSCHEDULABLE, NO_SCHEDULE, spec.and_then(|spec| spec.unschedulable) == Some(true)));
    ours.push((NOT_READY, NO_EXECUTE, evict && status_of("Ready") == Some(FALSE)));
    ours.push((UNREACHABLE, NO_EXECUTE, evict && status_of("Ready") == Some(UNKNOWN)));

    let mut taints = held.to_vec();
    for (key, effect, present) in ours {
        let is_it = |taint: &Taint| taint.key == key && taint.effect == effect;
        if !present {
            taints.retain(|taint| !is_it(taint));
        } else if !taints.iter().any(is_it) {
            let time_added = Some(now.clone());
            taints.push(Taint { key: key.to_owned(), effect: effect.to_owned(), time_added, value: None });
        }
    }
    (taints != held).then_some(taints)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let toleration = rules::Toleration {
        key: toleration.key.as_deref().unwrap_or_default(),
        operator: toleration.operator.as_deref().unwrap_or_default(),
        value: toleration.value.as_deref().unwrap_or_default(),
        effect: toleration.effect.as_deref().unwrap_or_default(),
    };
    let value = taint.value.as_deref().unwrap_or_default();
    toleration.bears(rules::Taint { key: &taint.key, value, effect: &taint.effect })
}

/// How long a Pod may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    Forever,
    Seconds(u64),
    NotAtAll,
}

/// How long tolerations let a Pod stay under these NoExecute taints: the shortest limit of all that bear one of them
/// (`pkg/controller/tainteviction`, getMinTolerationTime).
pub(crate) fn stay(taints: &[&Taint], tolerations: &[Toleration]) -> Stay {
    let mut used: Vec<&Toleration> = Vec::new();
    for taint in taints {
        match tolerations.iter().find(|toleration| tolerates(toleration, taint)) {
            Some(toleration) => used.push(toleration),
            None => return Stay::NotAtAll,
        }
    }
    let limits = used.iter().filter_map(|toleration| toleration.toleration_seconds);
    match limits.min() {
        None => Stay::Forever,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(0) | Err(_) => Stay::NotAtAll,
            Ok(seconds) => Stay::Seconds(seconds),
        },
    }
}

/// Whether every taint of that effect on the Node is borne.
pub(crate) fn all_tolerated(node: &Node, effect: &str, tolerations: &[Toleration]) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints
        .filter(|taint| taint.effect == effect)
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus};

    use super::*;
    use crate::condition::Condition;

    fn epoch() -> Time {
        Time(Timestamp::UNIX_EPOCH)
    }

    fn node(conditions: &[(&str, &str)], taints: &[(&str, &str)]) -> Node {
        let condition = |(kind, status): &(&str, &str)| NodeCondition::new(kind, status, "", "", &epoch());
        let taint =
            |(key, effect): &(&str, &str)| Taint { key: (*key).into(), effect: (*effect).into(), ..Taint::default() };
        Node {
            spec: Some(NodeSpec { taints: Some(taints.iter().map(taint).collect()), ..NodeSpec::default() }),
            status: Some(NodeStatus {
                conditions: Some(conditions.iter().map(condition).collect()),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    fn check(node: &Node, evict: bool, expected: Option<&[&str]>) {
        let shown = wanted(node, evict, &epoch())
            .map(|taints| taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect::<Vec<_>>());
        assert_eq!(
            shown.as_deref(),
            expected.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>()).as_deref()
        );
    }

    #[test]
    fn taints_follow_conditions_and_leave_those_of_others_alone() {
        check(&node(&[("Ready", TRUE)], &[]), true, None);
        check(
            &node(&[("Ready", TRUE)], &[(NOT_READY, NO_SCHEDULE), ("mine", NO_SCHEDULE)]),
            true,
            Some(&["mine:NoSchedule"]),
        );
        check(
            &node(&[("Ready", FALSE)], &[]),
            true,
            Some(&["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"]),
        );
        check(
            &node(&[("Ready", UNKNOWN)], &[(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
            true,
            Some(&["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"]),
        );
        check(
            &node(&[("Ready", UNKNOWN)], &[(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
            false,
            Some(&["node.kubernetes.io/unreachable:NoSchedule"]),
        );
        check(
            &node(&[("Ready", TRUE), ("DiskPressure", TRUE)], &[]),
            true,
            Some(&["node.kubernetes.io/disk-pressure:NoSchedule"]),
        );
    }

    #[test]
    fn the_shortest_toleration_of_the_taints_limits_the_stay() {
        let taint = |key: &str, value: &str| Taint {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            effect: NO_EXECUTE.to_owned(),
            time_added: None,
        };
        let exists = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(NO_EXECUTE.to_owned()),
            toleration_seconds: seconds,
            value: None,
        };
        let equal = Toleration { key: Some("a".to_owned()), value: Some("1".to_owned()), ..Toleration::default() };
        let (a1, a2, b) = (taint("a", "1"), taint("a", "2"), taint("b", ""));
        let cases: [(&[&Taint], Vec<Toleration>, Stay); 8] = [
            (&[], vec![], Stay::Forever),
            (&[&a1], vec![], Stay::NotAtAll),
            (&[&a1], vec![exists("a", None)], Stay::Forever),
            (&[&a1], vec![exists("a", Some(300))], Stay::Seconds(300)),
            (&[&a1, &b], vec![exists("a", Some(300)), exists("b", Some(60))], Stay::Seconds(60)),
            (&[&a1, &b], vec![exists("a", Some(300))], Stay::NotAtAll),
            (&[&a1], vec![exists("a", Some(-1))], Stay::NotAtAll),
            (&[&a2], vec![equal], Stay::NotAtAll),
        ];
        for (taints, tolerations, expected) in cases {
            assert_eq!(stay(taints, &tolerations), expected, "{taints:?} {tolerations:?}");
        }
    }
}
