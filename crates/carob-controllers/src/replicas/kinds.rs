//! ReplicaSet and ReplicationController as [`Replicated`].

use carob_client::{ObjectKey, ReconcileError};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Selector;

use super::{Counts, Failure, Replicated};
use crate::condition::{self, Condition, TRUE};
use crate::ownership;
use crate::statuses;

const FAILURE: &str = "ReplicaFailure";

/// Upstream leaves a zero out of a status.
fn unless_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn conditions<C: Condition>(held: Option<Vec<C>>, failure: Option<Failure>, now: Timestamp) -> Option<Vec<C>> {
    let mut conditions = held;
    match failure {
        // One failure is much like the next: the first stays.
        Some(_) if condition::is_true(&conditions, FAILURE) => {}
        Some(failure) => {
            condition::set(&mut conditions, C::new(FAILURE, TRUE, failure.reason, &failure.message, &Time(now)));
        }
        None => {
            condition::remove(&mut conditions, FAILURE);
        }
    }
    conditions.filter(|conditions| !conditions.is_empty())
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_secs(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Selector, ReconcileError> {
        let key = ObjectKey::of(self);
        let spec =
            self.spec.as_ref().ok_or_else(|| ReconcileError::Unusable(format!("ReplicaSet {key} has no spec")))?;
        ownership::selector(&spec.selector, &key)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn has_status_of(&self, other: &Self) -> bool {
        statuses::same(&other.status, &self.status)
    }

    fn with_status(&self, counts: &Counts, failure: Option<Failure>, now: Timestamp) -> Self {
        let held = self.status.clone().unwrap_or_default();
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: unless_zero(counts.fully_labeled),
            ready_replicas: unless_zero(counts.ready),
            available_replicas: unless_zero(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: conditions::<ReplicaSetCondition>(held.conditions, failure, now),
        };
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_secs(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Selector, ReconcileError> {
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        if labels.is_empty() {
            let key = ObjectKey::of(self);
            return Err(ReconcileError::Unusable(format!("ReplicationController {key} selects everything")));
        }
        Ok(labels.into_iter().collect())
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn has_status_of(&self, other: &Self) -> bool {
        statuses::same(&other.status, &self.status)
    }

    fn with_status(&self, counts: &Counts, failure: Option<Failure>, now: Timestamp) -> Self {
        let held = self.status.clone().unwrap_or_default();
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: unless_zero(counts.fully_labeled),
            ready_replicas: unless_zero(counts.ready),
            available_replicas: unless_zero(counts.available),
            observed_generation: self.metadata.generation,
            conditions: conditions::<ReplicationControllerCondition>(held.conditions, failure, now),
        };
        Self { status: Some(status), ..self.clone() }
    }
}
