//! What groups say of themselves: the condition of a PodGroup, the phase and counts of a label's group. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::label_group::LabelGroupStatus;
use crate::convert::label_group;
use crate::model::{GangRef, GangSource, PodKey, Str};

/// The types of a PodGroup's conditions (k8s.io/api scheduling/v1alpha2 types.go).
const SCHEDULED: &str = "PodGroupScheduled";
const DISRUPTED: &str = "DisruptionTarget";

/// The condition that a group is to get; nothing if it says so already.
pub(super) fn scheduled(old: &[Condition], placed: bool, message: &str, now: Timestamp) -> Option<Condition> {
    let (status, reason) = if placed { ("True", "Scheduled") } else { ("False", "Unschedulable") };
    condition(old, SCHEDULED, (status, reason), message, now)
}

/// The condition of a group whose Pods go to make room for others.
pub(super) fn disrupted(old: &[Condition], message: &str, now: Timestamp) -> Option<Condition> {
    condition(old, DISRUPTED, ("True", "PreemptionByScheduler"), message, now)
}

fn condition(
    old: &[Condition],
    kind: &str,
    (status, reason): (&str, &str),
    message: &str,
    now: Timestamp,
) -> Option<Condition> {
    let old = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
    if old.is_some_and(|old| old.reason == reason && old.message == message) {
        return None;
    }
    Some(Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: old.map_or(Time(now), |old| old.last_transition_time.clone()),
        observed_generation: None,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Placed,
    Running,
    Succeeded,
    Failed,
}

impl Stage {
    fn of(pod: &Pod) -> Self {
        match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Running") => Self::Running,
            Some("Succeeded") => Self::Succeeded,
            Some("Failed") => Self::Failed,
            _ if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) => Self::Placed,
            _ => Self::Waiting,
        }
    }
}

#[derive(Debug)]
struct Member {
    stage: Stage,
    owners: BTreeSet<String>,
}

impl Member {
    fn of(pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let owners = pod.metadata.owner_references.iter().flatten();
        Self { stage: Stage::of(pod), owners: owners.map(|owner| format!("{namespace}/{}", owner.name)).collect() }
    }
}

/// The members of the groups that labels name, ended ones included.
#[derive(Debug, Default)]
pub(super) struct Census {
    groups: HashMap<GangRef, HashMap<PodKey, Member>>,
    home: HashMap<PodKey, GangRef>,
    changed: HashSet<GangRef>,
}

impl Census {
    /// Takes in a Pod as it is now, or that it is gone.
    pub(super) fn observe(&mut self, key: &PodKey, pod: Option<&Pod>) {
        let group = pod.and_then(|pod| Some((pod, label_group(pod)?))).map(|(pod, name)| {
            let gang =
                GangRef { namespace: Arc::clone(&key.namespace), name: Str::from(name), source: GangSource::Label };
            (pod, gang)
        });
        if let Some(old) = self.home.get(key).filter(|old| group.as_ref().is_none_or(|(_, gang)| gang != *old)).cloned()
        {
            self.leave(key, &old);
        }
        if let Some((pod, gang)) = group {
            self.home.insert(key.clone(), gang.clone());
            self.groups.entry(gang.clone()).or_default().insert(key.clone(), Member::of(pod));
            self.changed.insert(gang);
        }
    }

    fn leave(&mut self, key: &PodKey, gang: &GangRef) {
        self.home.remove(key);
        if let Some(members) = self.groups.get_mut(gang) {
            members.remove(key);
            if members.is_empty() {
                self.groups.remove(gang);
            }
        }
        self.changed.insert(gang.clone());
    }

    /// The group's object changed, so it may say something else.
    pub(super) fn touch(&mut self, gang: &GangRef) {
        self.changed.insert(gang.clone());
    }

    /// Some groups whose status may be out of date; the others come next time.
    pub(super) fn take_changed(&mut self, max: usize) -> Vec<GangRef> {
        let some: Vec<GangRef> = self.changed.iter().take(max).cloned().collect();
        for gang in &some {
            self.changed.remove(gang);
        }
        some
    }

    /// The status that a group is to get; nothing if it says so already.
    pub(super) fn status(
        &self,
        gang: &GangRef,
        min_member: i32,
        old: &LabelGroupStatus,
        now: Timestamp,
    ) -> Option<LabelGroupStatus> {
        if matches!(old.phase.as_str(), "Finished" | "Failed") {
            return None;
        }
        let members: Vec<&Member> = self.groups.get(gang).into_iter().flat_map(HashMap::values).collect();
        let count = |wanted: &[Stage]| {
            let found = members.iter().filter(|member| wanted.contains(&member.stage)).count();
            i32::try_from(found).unwrap_or(i32::MAX)
        };
        let (running, succeeded, failed) =
            (count(&[Stage::Running]), count(&[Stage::Succeeded]), count(&[Stage::Failed]));
        let min = min_member.max(1);
        let gathered = count(&[Stage::Waiting, Stage::Placed]).saturating_add(running + succeeded + failed) >= min;
        let placed = count(&[Stage::Placed]).saturating_add(running + succeeded + failed);
        let phase = match () {
            () if succeeded >= min => "Finished",
            () if failed > 0 && failed + running + succeeded >= min => "Failed",
            () if succeeded + running >= min => "Running",
            () if placed >= min => "Scheduling",
            () => "Pending",
        };
        let mut owners: BTreeSet<&str> = members.iter().flat_map(|member| &member.owners).map(String::as_str).collect();
        owners.extend(old.occupied_by.split(',').filter(|owner| !owner.is_empty()));
        let new = LabelGroupStatus {
            phase: phase.to_owned(),
            occupied_by: owners.into_iter().collect::<Vec<_>>().join(","),
            running,
            succeeded,
            failed,
            schedule_start_time: old.schedule_start_time.clone().or_else(|| gathered.then_some(Time(now))),
        };
        (new != *old).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_is_written_once_and_keeps_its_time() {
        let first = scheduled(&[], false, "why", Timestamp::UNIX_EPOCH).expect("it is new");
        assert_eq!((first.status.as_str(), first.reason.as_str()), ("False", "Unschedulable"));
        let later = Timestamp::from_second(60).expect("a time");
        let held = std::slice::from_ref(&first);
        assert_eq!(scheduled(held, false, "why", later), None);
        let reworded = scheduled(held, false, "why not", later).expect("the message is new");
        assert_eq!(reworded.last_transition_time, first.last_transition_time);
        let placed = scheduled(held, true, "", later).expect("the status is new");
        assert_eq!((placed.reason.as_str(), placed.last_transition_time), ("Scheduled", Time(later)));
        let leaving = disrupted(held, "for another", later).expect("it is another condition");
        assert_eq!((leaving.type_.as_str(), leaving.status.as_str()), ("DisruptionTarget", "True"));
    }

    fn key(name: &str) -> PodKey {
        PodKey::new("default", name)
    }

    fn group() -> GangRef {
        GangRef { namespace: "default".into(), name: "g".into(), source: GangSource::Label }
    }

    fn observe(census: &mut Census, name: &str, phase: &str, node: Option<&str>) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"scheduling.x-k8s.io/pod-group": "g"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "1"}]},
            "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}
        }))
        .expect("a Pod");
        census.observe(&key(name), Some(&pod));
    }

    #[test]
    fn a_groups_phase_follows_its_members() {
        let mut census = Census::default();
        let mut status = LabelGroupStatus::default();
        let mut step = |census: &mut Census, expected: &str| {
            assert!(census.take_changed(9).contains(&group()));
            status = census.status(&group(), 2, &status, Timestamp::UNIX_EPOCH).expect("it changed");
            assert_eq!(status.phase, expected);
            status.clone()
        };
        observe(&mut census, "a", "Pending", None);
        let alone = step(&mut census, "Pending");
        assert_eq!((alone.schedule_start_time, alone.occupied_by.as_str()), (None, "default/j"));
        observe(&mut census, "b", "Pending", None);
        assert!(step(&mut census, "Pending").schedule_start_time.is_some());
        observe(&mut census, "a", "Pending", Some("n"));
        observe(&mut census, "b", "Pending", Some("n"));
        step(&mut census, "Scheduling");
        observe(&mut census, "a", "Running", Some("n"));
        observe(&mut census, "b", "Running", Some("n"));
        assert_eq!(step(&mut census, "Running").running, 2);
        observe(&mut census, "a", "Succeeded", Some("n"));
        assert_eq!(step(&mut census, "Running").succeeded, 1);
        observe(&mut census, "b", "Succeeded", Some("n"));
        let finished = step(&mut census, "Finished");
        census.observe(&key("a"), None);
        assert_eq!(census.status(&group(), 2, &finished, Timestamp::UNIX_EPOCH), None, "the end is the end");
    }

    #[test]
    fn a_member_that_fails_fails_the_group_once_enough_had_started() {
        let mut census = Census::default();
        observe(&mut census, "a", "Failed", Some("n"));
        let of = |census: &Census| census.status(&group(), 2, &LabelGroupStatus::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(of(&census).expect("new").phase, "Pending");
        observe(&mut census, "b", "Running", Some("n"));
        assert_eq!(of(&census).expect("new").phase, "Failed");
    }
}
