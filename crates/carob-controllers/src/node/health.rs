//! Whether a Node still speaks. Pure: what was seen, and when, comes in as values.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::condition::{self, Condition, UNKNOWN};

/// The longest silence after which a Node does not count as gone yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeGrace {
    /// `--node-monitor-grace-period`.
    pub monitor: Duration,
    /// For one that has not spoken yet (`--node-startup-grace-period`).
    pub startup: Duration,
}

impl Default for NodeGrace {
    fn default() -> Self {
        Self { monitor: Duration::from_secs(50), startup: Duration::from_secs(60) }
    }
}

/// Conditions that are no longer known of a silent Node.
const KEPT_BY_NODE: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The last sign of life, measured by our own clock, so that a Node's wrong clock does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sign {
    renewed: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
    seen_at: Duration,
    /// Whether it has spoken at all.
    pub(crate) spoke: bool,
}

impl Sign {
    /// What is known after looking at the Node and its Lease at `now`, after `previous`.
    pub(crate) fn next(previous: Option<&Self>, node: &Node, lease: Option<&Lease>, now: Duration) -> Self {
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
        let ready = ready(node);
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0);
        // A condition that we wrote ourselves is no sign of life.
        let ours = ready.is_some_and(|ready| ready.reason.as_deref().is_some_and(is_our_reason));
        let spoke = renewed.is_some() || (ready.is_some() && !ours);
        match previous {
            Some(old) if old.renewed == renewed && old.heartbeat == heartbeat => {
                Self { spoke: spoke || old.spoke, ..old.clone() }
            }
            _ => Self { renewed, heartbeat, seen_at: now, spoke },
        }
    }

    /// When the Node counts as silent, on the clock that `now` was read from.
    pub(crate) fn deadline(&self, grace: NodeGrace) -> Duration {
        self.seen_at + if self.spoke { grace.monitor } else { grace.startup }
    }
}

fn is_our_reason(reason: &str) -> bool {
    matches!(reason, "NodeStatusUnknown" | "NodeStatusNeverUpdated")
}

pub(crate) fn ready(node: &Node) -> Option<&NodeCondition> {
    condition::find(&node.status.as_ref()?.conditions, "Ready")
}

pub(crate) fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|ready| ready.status == condition::TRUE)
}

/// The conditions of a Node that fell silent that have to change (`pkg/controller/nodelifecycle`, tryUpdateNodeHealth).
pub(crate) fn silent_conditions(node: &Node, now: &Time) -> Vec<NodeCondition> {
    let held = node.status.as_ref().and_then(|status| status.conditions.clone());
    let mut changed = Vec::new();
    for kind in KEPT_BY_NODE {
        match condition::find(&held, kind) {
            None => {
                let mut never = NodeCondition::new(
                    kind,
                    UNKNOWN,
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                    now,
                );
                never.last_heartbeat_time = node.metadata.creation_timestamp.clone();
                changed.push(never);
            }
            Some(condition) if condition.status != UNKNOWN => {
                let mut unknown =
                    NodeCondition::new(kind, UNKNOWN, "NodeStatusUnknown", "Kubelet stopped posting node status.", now);
                unknown.last_heartbeat_time = condition.last_heartbeat_time.clone();
                changed.push(unknown);
            }
            Some(_) => {}
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::api::core::v1::NodeStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lease(second: i64) -> Lease {
        let renew_time = Some(MicroTime(Timestamp::from_second(second).expect("in range")));
        Lease { spec: Some(LeaseSpec { renew_time, ..LeaseSpec::default() }), ..Lease::default() }
    }

    fn node(conditions: Vec<NodeCondition>) -> Node {
        let status = Some(NodeStatus { conditions: Some(conditions), ..NodeStatus::default() });
        Node { status, ..Node::default() }
    }

    #[test]
    fn a_node_is_silent_fifty_seconds_after_its_last_renewal_was_seen() {
        let node = node(vec![]);
        let first = Sign::next(None, &node, Some(&lease(1000)), secs(5));
        assert_eq!(first.deadline(NodeGrace::default()), secs(55));
        let unchanged = Sign::next(Some(&first), &node, Some(&lease(1000)), secs(40));
        assert_eq!(unchanged.deadline(NodeGrace::default()), secs(55));
        // The clock of the node jumped back: it speaks all the same.
        let renewed = Sign::next(Some(&unchanged), &node, Some(&lease(10)), secs(45));
        assert_eq!(renewed.deadline(NodeGrace::default()), secs(95));
    }

    #[test]
    fn a_node_that_never_spoke_has_ten_seconds_more_and_our_own_words_do_not_count() {
        let silent = node(silent_conditions(&node(vec![]), &Time(Timestamp::UNIX_EPOCH)));
        let sign = Sign::next(None, &silent, None, secs(0));
        assert!(!sign.spoke);
        assert_eq!(sign.deadline(NodeGrace::default()), secs(60));
    }

    #[test]
    fn a_silent_node_has_its_conditions_unknown_once() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let spoken = node(vec![NodeCondition::new("Ready", "True", "KubeletReady", "", &now)]);
        let changed = silent_conditions(&spoken, &now);
        let shown: Vec<String> =
            changed.iter().map(|c| format!("{} {}", c.type_, c.reason.clone().unwrap_or_default())).collect();
        assert_eq!(
            shown,
            [
                "Ready NodeStatusUnknown",
                "MemoryPressure NodeStatusNeverUpdated",
                "DiskPressure NodeStatusNeverUpdated",
                "PIDPressure NodeStatusNeverUpdated",
            ]
        );
        assert_eq!(silent_conditions(&node(changed), &now), vec![]);
    }
}
