//! PodDisruptionBudgets: how many Pods may be taken away now (`pkg/controller/disruption`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use carob_client::{
    Change, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference,
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::core::Selector;

use crate::context::Context;
use crate::ownership::selects;
use crate::percent::{Round, scaled};
use crate::pods;
use crate::statuses;
use crate::versions::Versions;

/// How long an eviction that was let through is believed in while its Pod is not seen to go (DeletionTimeout).
const DELETION_MAX: Duration = Duration::from_secs(120);
const CONDITION: &str = "DisruptionAllowed";

pub(crate) struct DisruptionController {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    owners: Owners,
    recorder: EventRecorder,
    written: Versions,
}

/// Where the wanted number of Pods is written.
struct Owners {
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    controllers: Informer<ReplicationController>,
    stateful: Informer<StatefulSet>,
}

impl Owners {
    /// The uid and the wanted number of Pods of the topmost owner that has one, starting from a Pod's controller.
    fn scale(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let same = |meta: &ObjectMeta| meta.uid.as_ref() == Some(&owner.uid);
        let found = |replicas: Option<i32>| Some((owner.uid.clone(), replicas.unwrap_or(1)));
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = self.sets.get(Some(namespace), &owner.name).filter(|set| same(&set.metadata))?;
                match pods::controller(&set.metadata).filter(|owner| owner.kind == "Deployment") {
                    Some(deployment) => self.scale(namespace, deployment),
                    None => found(set.spec.as_ref()?.replicas),
                }
            }
            ("apps", "Deployment") => {
                let deployment = self.deployments.get(Some(namespace), &owner.name);
                found(deployment.filter(|deployment| same(&deployment.metadata))?.spec.as_ref()?.replicas)
            }
            ("", "ReplicationController") => {
                let controller = self.controllers.get(Some(namespace), &owner.name);
                found(controller.filter(|controller| same(&controller.metadata))?.spec.as_ref()?.replicas)
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful.get(Some(namespace), &owner.name);
                found(set.filter(|set| same(&set.metadata))?.spec.as_ref()?.replicas)
            }
            _ => None,
        }
    }
}

/// How many Pods there should be, and how many of them have to be healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    expected: i32,
    healthy: i32,
}

/// `scale` is the sum of what the Pods' owners want.
fn need(spec: &PodDisruptionBudgetSpec, pods: i32, scale: i32) -> Need {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let healthy = scale.saturating_sub(scaled(most, scale, Round::Up));
            Need { expected: scale, healthy: healthy.max(0) }
        }
        (None, Some(IntOrString::Int(least))) => Need { expected: pods, healthy: *least },
        (None, Some(percent)) => Need { expected: scale, healthy: scaled(percent, scale, Round::Up) },
        (None, None) => Need { expected: pods, healthy: 0 },
    }
}

fn allowed(need: Need, healthy: i32) -> i32 {
    if need.expected <= 0 { 0 } else { healthy.saturating_sub(need.healthy).max(0) }
}

/// The evictions that were let through and whose Pods have not been seen to go, and when the first of them is given up.
fn still_disrupted(
    noted: &BTreeMap<String, Time>,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let waiting = |name: &str| {
        let pod = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        pod.is_some_and(|pod| !pods::is_deleting(pod))
    };
    let mut first: Option<Duration> = None;
    let mut kept = BTreeMap::new();
    for (name, since) in noted.iter().filter(|(name, _)| waiting(name)) {
        let end = since.0.checked_add(DELETION_MAX).unwrap_or(Timestamp::MAX);
        if let Some(left) = Duration::try_from(end.duration_since(now)).ok().filter(|left| !left.is_zero()) {
            first = Some(first.map_or(left, |first| first.min(left)));
            kept.insert(name.clone(), since.clone());
        }
    }
    (kept, first)
}

impl DisruptionController {
    pub(crate) fn new(context: Context) -> Self {
        let owners = Owners {
            sets: context.informers.of(),
            deployments: context.informers.of(),
            controllers: context.informers.of(),
            stateful: context.informers.of(),
        };
        Self {
            budgets: context.informers.of(),
            pods: context.informers.of(),
            owners,
            recorder: context.recorder("controllermanager"),
            context,
            written: Versions::default(),
        }
    }

    pub(crate) fn budgets(&self) -> &Informer<PodDisruptionBudget> {
        &self.budgets
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    pub(crate) fn deployments(&self) -> &Informer<Deployment> {
        &self.owners.deployments
    }

    pub(crate) fn sets(&self) -> &Informer<ReplicaSet> {
        &self.owners.sets
    }

    pub(crate) fn controllers(&self) -> &Informer<ReplicationController> {
        &self.owners.controllers
    }

    pub(crate) fn stateful(&self) -> &Informer<StatefulSet> {
        &self.owners.stateful
    }

    pub(crate) fn budgets_of_pod(budgets: &Informer<PodDisruptionBudget>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
        let concerned = |budget: &PodDisruptionBudget| {
            let selector = selector(budget);
            selector.is_some_and(|selector| change.versions().any(|pod| selects(&selector, &pod.metadata)))
        };
        let own = budgets.list_in(&change.key().namespace);
        own.iter().filter(|budget| concerned(budget)).map(|budget| ObjectKey::of(&**budget)).collect()
    }

    /// The budgets of a namespace in which an owner changed how many Pods it wants.
    pub(crate) fn budgets_in<K: Resource>(
        budgets: &Informer<PodDisruptionBudget>,
        change: Change<'_, K>,
    ) -> Vec<ObjectKey> {
        // Only a new generation changes the wanted number; statuses change all the time.
        let generation = |object: &K| object.meta().generation;
        if change.old.map(|old| generation(old)) == change.new.map(|new| generation(new)) {
            return Vec::new();
        }
        budgets.list_in(&change.key().namespace).iter().map(|budget| ObjectKey::of(&**budget)).collect()
    }

    /// The sum of what the Pods' owners want. Pods without one that says so are named: they count for nothing.
    fn scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> (i32, Vec<String>) {
        let (mut seen, mut sum, mut unmanaged) = (HashSet::new(), 0i32, Vec::new());
        for pod in pods {
            let owner = pods::controller(&pod.metadata).and_then(|owner| self.owners.scale(namespace, owner));
            match owner {
                Some((uid, replicas)) if seen.insert(uid.clone()) => sum = sum.saturating_add(replicas),
                Some(_) => {}
                None => unmanaged.extend(pod.metadata.name.clone()),
            }
        }
        (sum, unmanaged)
    }

    fn tell_unmanaged(&self, budget: &PodDisruptionBudget, unmanaged: &[String]) {
        let spec = budget.spec.as_ref();
        let by_scale = spec.is_some_and(|spec| {
            spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
        });
        if by_scale && !unmanaged.is_empty() {
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {:?}) were found to be unmanaged. As a result, \
                 the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account \
                 for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                spec.and_then(|spec| spec.selector.as_ref())
            );
            self.recorder.record(reference(budget), EventKind::Warning, "UnmanagedPods", message);
        }
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), ReconcileError> {
        if statuses::same(&budget.status, &status) {
            return Ok(());
        }
        let wanted = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        statuses::write(&self.context, &self.written, key, &wanted).await
    }
}

/// What a budget selects: without a selector nothing, with an empty one everything.
fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    Selector::try_from(budget.spec.as_ref()?.selector.clone()?).ok()
}

fn conditions(budget: &PodDisruptionBudget, allowed: i32, now: &Time) -> Vec<Condition> {
    let mut conditions = budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut new = Condition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        last_transition_time: now.clone(),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == CONDITION) {
        Some(held) => {
            if held.status == new.status {
                new.last_transition_time = held.last_transition_time.clone();
            }
            *held = new;
        }
        None => conditions.push(new),
    }
    conditions
}

impl Reconcile for DisruptionController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "disruption"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.budgets.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.budgets).await;
        let Some(budget) = self.budgets.get_key(&key) else {
            self.written.forget(&key);
            return Ok(Requeue::No);
        };
        let Some(spec) = budget.spec.as_ref().filter(|_| budget.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::No);
        };
        let selector = selector(&budget);
        let selected = |pod: &Pod| selector.as_ref().is_some_and(|selector| selects(selector, &pod.metadata));
        let all: Vec<_> = self.pods.list_in(&key.namespace).into_iter().filter(|pod| selected(pod)).collect();
        let (scale, unmanaged) = self.scale(&key.namespace, &all);
        self.tell_unmanaged(&budget, &unmanaged);
        let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
        let (disrupted, look_again) = still_disrupted(&noted, &all, self.context.now());
        let is_healthy = |pod: &&Arc<Pod>| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            pods::is_ready(pod) && !pods::is_deleting(pod) && !disrupted.contains_key(name)
        };
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let healthy = number(all.iter().filter(is_healthy).count());
        let need = need(spec, number(all.len()), scale);
        let allowed = allowed(need, healthy);
        let status = PodDisruptionBudgetStatus {
            current_healthy: Some(healthy),
            desired_healthy: Some(need.healthy),
            disruptions_allowed: Some(allowed),
            expected_pods: Some(need.expected),
            disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
            observed_generation: budget.metadata.generation,
            conditions: Some(conditions(&budget, allowed, &self.context.time())),
        };
        self.write_status(&key, &budget, status).await?;
        Ok(look_again.map_or(Requeue::No, Requeue::After))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_counts_from_the_wanted_number_or_from_the_pods() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        let most =
            |value| PodDisruptionBudgetSpec { max_unavailable: Some(value), ..PodDisruptionBudgetSpec::default() };
        let least =
            |value| PodDisruptionBudgetSpec { min_available: Some(value), ..PodDisruptionBudgetSpec::default() };
        // What the budget asks for, Pods, their owners' scale, healthy ones; expected, needed, allowed.
        let cases = [
            (most(IntOrString::Int(1)), 3, 5, 5, (5, 4, 1)),
            (most(percent("30%")), 5, 5, 5, (5, 3, 2)),
            (most(IntOrString::Int(9)), 5, 5, 2, (5, 0, 2)),
            (least(IntOrString::Int(2)), 3, 5, 3, (3, 2, 1)),
            (least(IntOrString::Int(2)), 3, 5, 1, (3, 2, 0)),
            (least(percent("50%")), 3, 5, 5, (5, 3, 2)),
            (least(IntOrString::Int(0)), 0, 0, 0, (0, 0, 0)),
            (most(IntOrString::Int(i32::MAX)), 3, i32::MAX, 3, (i32::MAX, 0, 3)),
            (most(IntOrString::Int(i32::MIN)), 3, 5, 3, (5, i32::MAX, 0)),
            (least(IntOrString::Int(i32::MAX)), 3, i32::MAX, 3, (3, i32::MAX, 0)),
            (least(IntOrString::Int(i32::MIN)), 3, 5, i32::MAX, (3, i32::MIN, i32::MAX)),
            (most(percent("9223372036854775807%")), 3, i32::MAX, 3, (i32::MAX, 0, 3)),
        ];
        for (spec, pods, scale, healthy, expected) in cases {
            let need = need(&spec, pods, scale);
            assert_eq!((need.expected, need.healthy, allowed(need, healthy)), expected, "{spec:?}");
        }
    }

    #[test]
    fn an_eviction_is_believed_in_for_two_minutes() {
        let pod = |name: &str| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            Arc::new(Pod { metadata, ..Pod::default() })
        };
        let at = |second| Timestamp::from_second(second).expect("in range");
        let noted =
            ["stays", "old", "gone"].map(|name| (name.to_owned(), Time(at(if name == "old" { 0 } else { 100 }))));
        let (kept, next) = still_disrupted(&noted.into_iter().collect(), &[pod("stays"), pod("old")], at(130));
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["stays"]);
        assert_eq!(next, Some(Duration::from_secs(90)));
    }
}
