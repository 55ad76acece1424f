//! The ReplicaSets of a Deployment: which is the new one, what they count, and the annotations that carry revisions and
//! sizes (`pkg/controller/deployment/util/deployment_util.go`). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::percent::{Round, scaled};

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not take over.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Length up to which old revisions are kept in one annotation (maxRevHistoryLengthInChars).
const HISTORY_CHARS_MAX: usize = 2000;

/// Numbers of Pods. Each is an `i32` in its object, but sums of a few of them are not.
pub(super) type Count = i64;

/// As an object holds it.
pub(super) fn narrow(count: Count) -> i32 {
    i32::try_from(count).unwrap_or(if count < 0 { i32::MIN } else { i32::MAX })
}

pub(super) fn replicas(deployment: &Deployment) -> Count {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).into()
}

pub(super) fn is_rolling(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate")
}

/// How many Pods there may be above, and missing below, the wanted number. Never both none (ResolveFenceposts).
pub(super) fn fenceposts(deployment: &Deployment) -> (Count, Count) {
    let Some(spec) = deployment.spec.as_ref().filter(|spec| is_rolling(spec)) else { return (0, 0) };
    let replicas = narrow(replicas(deployment));
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let surge = rolling.max_surge.map_or(0, |value| scaled(&value, replicas, Round::Up));
    let unavailable = rolling.max_unavailable.map_or(0, |value| scaled(&value, replicas, Round::Down));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge.into(), unavailable.into()) }
}

pub(super) fn max_surge(deployment: &Deployment) -> Count {
    fenceposts(deployment).0
}

pub(super) fn max_unavailable(deployment: &Deployment) -> Count {
    if replicas(deployment) == 0 { 0 } else { fenceposts(deployment).1.min(replicas(deployment)) }
}

pub(super) fn size(set: &ReplicaSet) -> Count {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).into()
}

/// Pods that a set has now, of which so many are ready, and so many available.
pub(super) fn actual(set: &ReplicaSet) -> Count {
    set.status.as_ref().map_or(0, |status| status.replicas.into())
}

pub(super) fn ready(set: &ReplicaSet) -> Count {
    set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0).into()
}

pub(super) fn available(set: &ReplicaSet) -> Count {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0).into()
}

pub(super) fn terminating(set: &ReplicaSet) -> Count {
    set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0).into()
}

/// The ReplicaSets of a Deployment, told apart. The old ones are ordered by age, the oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Sets {
    pub(super) new: Option<Arc<ReplicaSet>>,
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    pub(super) fn new(deployment: &Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Self {
        sets.sort_by_cached_key(|set| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone()));
        let template = deployment.spec.as_ref().map(|spec| without_hash(&spec.template));
        let is_new = |set: &Arc<ReplicaSet>| {
            let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).map(without_hash);
            own == template
        };
        // The oldest that matches: two can exist for a moment after a hash collision.
        let new = sets.iter().position(is_new).map(|index| sets.remove(index));
        Self { new, old: sets }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> + Clone {
        self.old.iter().chain(&self.new)
    }

    /// Those that should have Pods.
    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> + Clone {
        self.all().filter(|set| size(set) > 0)
    }

    pub(super) fn sum(&self, count: impl Fn(&ReplicaSet) -> Count) -> Count {
        self.all().map(|set| count(set)).sum()
    }

    /// The revision that a new template gets.
    pub(super) fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or(0).saturating_add(1)
    }
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

fn annotation<'a>(annotations: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    annotations?.get(key).map(String::as_str)
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    number(set, REVISION).unwrap_or(0)
}

fn number<T: std::str::FromStr>(set: &ReplicaSet, key: &str) -> Option<T> {
    annotation(set.metadata.annotations.as_ref(), key)?.parse().ok()
}

/// The Deployment's size when the set was last scaled.
pub(super) fn desired_then(set: &ReplicaSet) -> Option<Count> {
    number::<i32>(set, DESIRED).map(Count::from)
}

/// The most Pods that the Deployment could have then.
pub(super) fn max_then(set: &ReplicaSet) -> Option<Count> {
    number::<i32>(set, MAX).map(Count::from)
}

/// The annotations that record the size at which a set is scaled now.
pub(super) fn size_annotations(deployment: &Deployment) -> [(String, String); 2] {
    let desired = replicas(deployment);
    [(DESIRED.to_owned(), desired.to_string()), (MAX.to_owned(), narrow(desired + max_surge(deployment)).to_string())]
}

/// The annotations that the new set should have, being of that revision.
pub(super) fn new_set_annotations(
    deployment: &Deployment,
    held: &BTreeMap<String, String>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = held.clone();
    let copied =
        deployment.metadata.annotations.iter().flatten().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()));
    annotations.extend(copied.map(|(key, value)| (key.clone(), value.clone())));
    let old = annotation(Some(held), REVISION);
    if old.and_then(|old| old.parse::<i64>().ok()).unwrap_or(0) < revision {
        annotations.insert(REVISION.to_owned(), revision.to_string());
        if let Some(old) = old {
            annotations.insert(REVISION_HISTORY.to_owned(), history(annotation(Some(held), REVISION_HISTORY), old));
        }
    }
    annotations
}

/// The list of former revisions with one more, the oldest leaving when it grows too long.
fn history(held: Option<&str>, old: &str) -> String {
    let mut revisions: Vec<&str> =
        held.into_iter().flat_map(|held| held.split(',')).filter(|text| !text.is_empty()).collect();
    revisions.push(old);
    let mut text = revisions.join(",");
    while text.len() > HISTORY_CHARS_MAX
        && let Some((_, rest)) = text.split_once(',')
    {
        text = rest.to_owned();
    }
    text
}
