//! Conditions in a status: one meaning for the many types that Kubernetes has of them.

use k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetCondition};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerCondition;
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::{NamespaceCondition, NodeCondition, PodCondition, ReplicationControllerCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) const TRUE: &str = "True";
pub(crate) const FALSE: &str = "False";
pub(crate) const UNKNOWN: &str = "Unknown";

/// What the conditions of all kinds have in common.
pub(crate) trait Condition: Clone + PartialEq {
    fn new(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> Self;
    fn kind(&self) -> &str;
    fn status(&self) -> &str;
    fn transition(&mut self) -> &mut Option<Time>;
    /// Whether all but the times are equal.
    fn says_the_same(&self, other: &Self) -> bool;
}

macro_rules! conditions {
    ($($name:ident),*) => {$(
        impl Condition for $name {
            fn new(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> Self {
                let mut new = Self::default();
                new.type_ = kind.to_owned();
                new.status = status.to_owned();
                new.reason = (!reason.is_empty()).then(|| reason.to_owned());
                new.message = (!message.is_empty()).then(|| message.to_owned());
                new.last_transition_time = Some(now.clone());
                new
            }

            fn kind(&self) -> &str {
                &self.type_
            }

            fn status(&self) -> &str {
                &self.status
            }

            fn transition(&mut self) -> &mut Option<Time> {
                &mut self.last_transition_time
            }

            fn says_the_same(&self, other: &Self) -> bool {
                self.status == other.status && self.reason == other.reason && self.message == other.message
            }
        }
    )*};
}

conditions!(
    DeploymentCondition,
    HorizontalPodAutoscalerCondition,
    JobCondition,
    NamespaceCondition,
    NodeCondition,
    PodCondition,
    ReplicaSetCondition,
    ReplicationControllerCondition
);

pub(crate) fn find<'a, C: Condition>(conditions: &'a Option<Vec<C>>, kind: &str) -> Option<&'a C> {
    conditions.iter().flatten().find(|condition| condition.kind() == kind)
}

pub(crate) fn is_true<C: Condition>(conditions: &Option<Vec<C>>, kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status() == TRUE)
}

/// Puts a condition in, keeping the time of transition where the status stays. Answers whether anything changed.
pub(crate) fn set<C: Condition>(conditions: &mut Option<Vec<C>>, mut new: C) -> bool {
    let list = conditions.get_or_insert_default();
    let Some(old) = list.iter_mut().find(|old| old.kind() == new.kind()) else {
        list.push(new);
        return true;
    };
    if old.says_the_same(&new) {
        return false;
    }
    if old.status() == new.status() {
        *new.transition() = old.transition().clone();
    }
    *old = new;
    true
}

/// Takes a condition out. Answers whether it was there.
pub(crate) fn remove<C: Condition>(conditions: &mut Option<Vec<C>>, kind: &str) -> bool {
    let Some(list) = conditions else { return false };
    let before = list.len();
    list.retain(|condition| condition.kind() != kind);
    list.len() < before
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("in range"))
    }

    #[test]
    fn the_time_of_transition_moves_only_with_the_status() {
        let mut conditions: Option<Vec<PodCondition>> = None;
        let ready =
            |status: &str, message: &str, second| PodCondition::new("Ready", status, "Because", message, &at(second));
        assert!(set(&mut conditions, ready(TRUE, "a", 1)));
        assert!(!set(&mut conditions, ready(TRUE, "a", 2)), "nothing new");
        assert!(set(&mut conditions, ready(TRUE, "b", 3)));
        assert_eq!(find(&conditions, "Ready").and_then(|c| c.last_transition_time.clone()), Some(at(1)));
        assert!(set(&mut conditions, ready(FALSE, "b", 4)));
        assert_eq!(find(&conditions, "Ready").and_then(|c| c.last_transition_time.clone()), Some(at(4)));
        assert!(remove(&mut conditions, "Ready"));
        assert!(!remove(&mut conditions, "Ready"));
    }
}
