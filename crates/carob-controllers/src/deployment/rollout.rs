//! The next step of a Deployment: which of its ReplicaSets gets which size (`pkg/controller/deployment`, rolling.go,
//! recreate.go, sync.go). Pure: one call decides one step, and the step's effects come back as the next call's input.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::sets::{
    Count, Sets, actual, available, desired_then, is_rolling, max_surge, max_then, max_unavailable, replicas, size,
};

/// A set and the size that it should have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    pub(super) set: Arc<ReplicaSet>,
    pub(super) to: Count,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Make the set of the current template, of that size.
    Create {
        replicas: Count,
    },
    /// Scale these; sizes that are right already only have their annotations checked.
    Scale(Vec<Scale>),
    Nothing,
}

/// Decides the next step. `old_pods_running` says whether a Pod of an old set has not ended yet.
pub(super) fn next_step(deployment: &Deployment, sets: &Sets, old_pods_running: bool) -> Step {
    let Some(spec) = &deployment.spec else { return Step::Nothing };
    if spec.paused == Some(true) || was_resized(deployment, sets) {
        let scales = resize(deployment, sets);
        if !scales.is_empty() || spec.paused == Some(true) {
            return if scales.is_empty() { Step::Nothing } else { Step::Scale(scales) };
        }
    }
    if is_rolling(spec) { roll(deployment, sets) } else { recreate(deployment, sets, old_pods_running) }
}

/// Whether the wanted number changed since the sets were last scaled (isScalingEvent).
fn was_resized(deployment: &Deployment, sets: &Sets) -> bool {
    let wanted = replicas(deployment);
    sets.active().any(|set| desired_then(set).is_some_and(|then| then != wanted))
}

/// The size of a new set that is about to be made, or that exists, within what the surge allows (NewRSNewReplicas).
fn new_size(deployment: &Deployment, sets: &Sets) -> Count {
    let wanted = replicas(deployment);
    if !deployment.spec.as_ref().is_some_and(is_rolling) {
        return wanted;
    }
    let held = sets.new.as_ref().map_or(0, |set| size(set));
    let most = wanted + max_surge(deployment);
    let room = most - sets.sum(size);
    if room <= 0 { held } else { held + room.min(wanted - held) }
}

fn roll(deployment: &Deployment, sets: &Sets) -> Step {
    let Some(new) = &sets.new else { return Step::Create { replicas: new_size(deployment, sets) } };
    let wanted = replicas(deployment);
    let to = if size(new) > wanted { wanted } else { new_size(deployment, sets) };
    if to != size(new) {
        return Step::Scale(vec![Scale { set: Arc::clone(new), to }]);
    }
    let scales = shrink_old(deployment, sets, new);
    if scales.is_empty() { Step::Nothing } else { Step::Scale(scales) }
}

/// Takes Pods from the old sets as far as enough others are available: those first that are not available anyway.
fn shrink_old(deployment: &Deployment, sets: &Sets, new: &ReplicaSet) -> Vec<Scale> {
    let least = replicas(deployment) - max_unavailable(deployment);
    let new_unavailable = size(new) - available(new);
    let mut cleanable = sets.sum(size) - least - new_unavailable;
    if cleanable <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<Count> = sets.old.iter().map(|set| size(set)).collect();
    for (set, size) in sets.old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).clamp(0, cleanable);
        *size -= unhealthy;
        cleanable -= unhealthy;
    }
    let mut spare = sets.sum(available) - least;
    for size in &mut sizes {
        let taken = (*size).min(spare).max(0);
        *size -= taken;
        spare -= taken;
    }
    changed(&sets.old, &sizes)
}

fn changed(sets: &[Arc<ReplicaSet>], sizes: &[Count]) -> Vec<Scale> {
    let pairs = sets.iter().zip(sizes).filter(|(set, to)| size(set) != **to);
    pairs.map(|(set, to)| Scale { set: Arc::clone(set), to: *to }).collect()
}

fn recreate(deployment: &Deployment, sets: &Sets, old_pods_running: bool) -> Step {
    let shrink: Vec<Scale> = changed(&sets.old, &vec![0; sets.old.len()]);
    if !shrink.is_empty() {
        return Step::Scale(shrink);
    }
    if old_pods_running {
        return Step::Nothing;
    }
    let wanted = replicas(deployment);
    match &sets.new {
        None => Step::Create { replicas: wanted },
        Some(new) if size(new) != wanted => Step::Scale(vec![Scale { set: Arc::clone(new), to: wanted }]),
        Some(_) => Step::Nothing,
    }
}

/// Fits the sets to a new number of replicas, leaving the proportions of a rollout as they are (sync.go, scale).
fn resize(deployment: &Deployment, sets: &Sets) -> Vec<Scale> {
    let wanted = replicas(deployment);
    if let Some(only) = active_or_latest(sets) {
        let annotated = desired_then(only) == Some(wanted);
        return if size(only) == wanted && annotated {
            Vec::new()
        } else {
            vec![Scale { set: Arc::clone(only), to: wanted }]
        };
    }
    if sets.new.as_ref().is_some_and(|new| is_saturated(new, wanted)) {
        return changed(&sets.old, &vec![0; sets.old.len()]);
    }
    if deployment.spec.as_ref().is_some_and(is_rolling) { proportional(deployment, sets) } else { Vec::new() }
}

/// The one set that has Pods, or the newest if none has; `None` when there are several.
fn active_or_latest(sets: &Sets) -> Option<&Arc<ReplicaSet>> {
    let mut active = sets.active();
    match (active.next(), active.next()) {
        (None, _) => sets.new.as_ref().or(sets.old.last()),
        (Some(only), None) => Some(only),
        (Some(_), Some(_)) => None,
    }
}

fn is_saturated(set: &ReplicaSet, wanted: Count) -> bool {
    size(set) == wanted && desired_then(set) == Some(wanted) && available(set) == wanted
}

fn proportional(deployment: &Deployment, sets: &Sets) -> Vec<Scale> {
    let wanted = replicas(deployment);
    let mut active: Vec<_> = sets.active().cloned().collect();
    let allowed = if wanted > 0 { wanted + max_surge(deployment) } else { 0 };
    let to_add = allowed - active.iter().map(|set| size(set)).sum::<Count>();
    // The largest get the remainder; of equals the newer one grows and the older one shrinks first.
    active.sort_by_cached_key(|set| set.metadata.creation_timestamp.clone());
    if to_add > 0 {
        active.reverse();
    }
    active.sort_by_key(|set| std::cmp::Reverse(size(set)));

    let mut added = 0;
    let mut sizes = Vec::new();
    for set in &active {
        let share = if to_add == 0 || to_add == added { 0 } else { share(deployment, set, to_add - added) };
        added += share;
        sizes.push(size(set) + share);
    }
    if let Some(largest) = sizes.first_mut()
        && to_add != 0
    {
        *largest = (*largest + to_add - added).max(0);
    }
    // Sizes that stay have their annotations renewed, or the resize would never count as done.
    active.into_iter().zip(sizes).map(|(set, to)| Scale { set, to }).collect()
}

/// A set's part of what is to be added or taken, at most what is `left` (GetReplicaSetProportion).
fn share(deployment: &Deployment, set: &ReplicaSet, left: Count) -> Count {
    let held = size(set);
    let wanted = replicas(deployment);
    if wanted == 0 {
        return (-held).max(left);
    }
    let most = wanted + max_surge(deployment);
    let status = deployment.status.as_ref().and_then(|status| status.replicas).map_or(0, Count::from);
    let before = max_then(set).filter(|before| *before > 0).unwrap_or(status);
    if before <= 0 {
        return 0;
    }
    // Rounded half away from zero, as upstream's float arithmetic rounds it; none of the three is negative here.
    let (held_wide, most, before) = (i128::from(held), i128::from(most), i128::from(before));
    let scaled = (held_wide * most * 2 + before) / (2 * before);
    let share = Count::try_from(scaled).unwrap_or(Count::MAX).saturating_sub(held);
    if left > 0 { share.min(left) } else { share.max(left) }
}

/// The old sets that are beyond the history that is kept (cleanupDeployment).
pub(super) fn surplus_history<'a>(deployment: &Deployment, sets: &'a Sets) -> Vec<&'a Arc<ReplicaSet>> {
    let Some(limit) = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit) else { return Vec::new() };
    let mut alive: Vec<_> = sets.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    alive.sort_by_key(|set| super::sets::revision(set));
    alive.truncate(surplus);
    let observed = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.observed_generation);
    alive.retain(|set| size(set) == 0 && actual(set) == 0 && set.metadata.generation <= observed(set));
    alive
}
