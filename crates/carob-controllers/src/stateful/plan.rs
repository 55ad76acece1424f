//! The next steps of a StatefulSet, and what its status counts (`pkg/controller/statefulset/stateful_set_control.go`). Pure.
//!
//! The number of replicas is the user's and may be as large as its type: no more is planned than one burst of Pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::identity::revision_of;
use crate::availability;
use crate::pod_control::BURST;
use crate::pods;

/// What a StatefulSet asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) first: i32,
    pub(super) replicas: i32,
    /// One Pod after the other, each waiting for the one before it.
    pub(super) ordered: bool,
    /// Whether Pods of older revisions are replaced by us, not by the user.
    pub(super) rolling: bool,
    /// Ordinals below keep the current revision.
    pub(super) partition: i32,
    pub(super) max_unavailable: i32,
    pub(super) min_ready_secs: i32,
    pub(super) current: &'a str,
    pub(super) update: &'a str,
    pub(super) now: Timestamp,
}

/// A Pod to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) ordinal: i32,
    /// Of the revision that is being rolled out, not of the one before.
    pub(super) updated: bool,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<NewPod>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Ended Pods, which are deleted to be made again.
    pub(super) ended: Vec<Arc<Pod>>,
    /// Pods beyond the number of replicas; those of them that go now are in `delete` too.
    pub(super) condemned: Vec<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) replicas: i32,
    pub(super) ready: i32,
    pub(super) available: i32,
    pub(super) current: i32,
    pub(super) updated: i32,
}

impl Wish<'_> {
    fn is_replica(&self, ordinal: i32) -> bool {
        (self.first..self.first.saturating_add(self.replicas)).contains(&ordinal)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_healthy(pod) && availability::is_available(pod, self.min_ready_secs, self.now)
    }

    /// Whether a new Pod of that ordinal is made of the new revision.
    fn takes_update(&self, ordinal: i32) -> bool {
        !self.rolling || ordinal >= self.first.saturating_add(self.partition)
    }
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_healthy(pod: &Pod) -> bool {
    is_running_and_ready(pod) && !pods::is_deleting(pod)
}

/// Plans from the Pods that there are, by ordinal.
pub(super) fn plan(wish: &Wish<'_>, all: &BTreeMap<i32, Arc<Pod>>) -> Plan {
    let condemned_ordinals = all.keys().copied().filter(|ordinal| !wish.is_replica(*ordinal)).collect();
    let mut plan = Plan { condemned: condemned_ordinals, ..Plan::default() };
    if replicas(wish, all, &mut plan) && condemned(wish, all, &mut plan) && wish.rolling {
        roll(wish, all, &mut plan);
    }
    plan
}

/// Makes what is missing, in order, one burst at most. Answers whether the next part may begin.
fn replicas(wish: &Wish<'_>, all: &BTreeMap<i32, Arc<Pod>>, plan: &mut Plan) -> bool {
    for ordinal in wish.first..wish.first.saturating_add(wish.replicas) {
        if plan.create.len() >= BURST {
            return false;
        }
        let goes_on = match all.get(&ordinal) {
            None => {
                plan.create.push(NewPod { ordinal, updated: wish.takes_update(ordinal) });
                false
            }
            Some(pod) if pods::is_deleting(pod) => false,
            Some(pod) if pods::is_finished(pod) => {
                plan.ended.push(Arc::clone(pod));
                false
            }
            Some(pod) => wish.is_available(pod),
        };
        if wish.ordered && !goes_on {
            return false;
        }
    }
    true
}

/// Deletes what is too much, the highest ordinal first. Answers whether the next part may begin.
fn condemned(wish: &Wish<'_>, all: &BTreeMap<i32, Arc<Pod>>, plan: &mut Plan) -> bool {
    let mut victims = all.iter().rev().filter(|(ordinal, _)| !wish.is_replica(**ordinal)).map(|(_, pod)| pod);
    if !wish.ordered {
        plan.delete.extend(victims.filter(|pod| !pods::is_deleting(pod)).cloned());
        return true;
    }
    let Some(last) = victims.next() else { return true };
    // One that is not available goes only if all before it are: what may be wrong with those would otherwise go unseen.
    let first_unavailable =
        all.iter().find(|(ordinal, pod)| !wish.is_replica(**ordinal) && !wish.is_available(pod)).map(|(_, pod)| pod);
    let halts = !wish.is_available(last) && first_unavailable.is_some_and(|first| !Arc::ptr_eq(first, last));
    if !pods::is_deleting(last) && !halts {
        plan.delete.push(Arc::clone(last));
    }
    false
}

/// Replaces Pods of older revisions, the highest ordinal first, as many as may be missing at a time.
fn roll(wish: &Wish<'_>, all: &BTreeMap<i32, Arc<Pod>>, plan: &mut Plan) {
    let is_replica = |ordinal: &i32| wish.is_replica(*ordinal);
    let missing = i32::try_from(plan.create.len()).unwrap_or(i32::MAX);
    let unavailable = all.iter().filter(|(ordinal, pod)| is_replica(ordinal) && !wish.is_available(pod)).count();
    let unavailable = i32::try_from(unavailable).unwrap_or(i32::MAX);
    let mut left = wish.max_unavailable.max(1).saturating_sub(missing).saturating_sub(unavailable);
    for (ordinal, pod) in all.iter().rev().filter(|(ordinal, _)| is_replica(ordinal)) {
        if !wish.takes_update(*ordinal) {
            return;
        }
        if pods::is_deleting(pod) || pods::is_finished(pod) {
            continue;
        }
        if revision_of(pod) != wish.update {
            // One that is not available costs nothing more.
            let costs = wish.is_available(pod);
            if costs && left <= 0 {
                return;
            }
            left -= i32::from(costs);
            plan.delete.push(Arc::clone(pod));
            if wish.max_unavailable <= 1 {
                return;
            }
        } else if !wish.is_available(pod) && left <= 0 {
            // The one that was replaced last has to be well first.
            return;
        }
    }
}

pub(super) fn count(wish: &Wish<'_>, all: &BTreeMap<i32, Arc<Pod>>) -> Counts {
    let number =
        |check: &dyn Fn(&Pod) -> bool| i32::try_from(all.values().filter(|pod| check(pod)).count()).unwrap_or(i32::MAX);
    let alive = |pod: &Pod| !pods::is_deleting(pod);
    Counts {
        replicas: number(&|_| true),
        ready: number(&is_running_and_ready),
        available: number(&|pod| {
            is_running_and_ready(pod) && availability::is_available(pod, wish.min_ready_secs, wish.now)
        }),
        current: number(&|pod| alive(pod) && revision_of(pod) == wish.current),
        updated: number(&|pod| alive(pod) && revision_of(pod) == wish.update),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;
    use crate::condition::Condition;
    use crate::revisions::HASH_LABEL;

    const WISH: Wish<'static> = Wish {
        first: 0,
        replicas: 3,
        ordered: true,
        rolling: true,
        partition: 0,
        max_unavailable: 1,
        min_ready_secs: 0,
        current: "old",
        update: "new",
        now: Timestamp::UNIX_EPOCH,
    };

    /// Pods by ordinal, written as `<revision>`, with `!` if not ready, `x` if failed, `-` if being deleted; `.` is none.
    fn pods(text: &str) -> BTreeMap<i32, Arc<Pod>> {
        let now = Time(Timestamp::UNIX_EPOCH);
        let pod = |(ordinal, text): (usize, &str)| {
            let revision = text.trim_end_matches(['!', 'x', '-']);
            let status = if text.ends_with('!') { "False" } else { "True" };
            let phase = if text.ends_with('x') { "Failed" } else { "Running" };
            let pod = Pod {
                metadata: ObjectMeta {
                    name: Some(format!("web-{ordinal}")),
                    labels: Some([(HASH_LABEL.to_owned(), revision.to_owned())].into_iter().collect()),
                    deletion_timestamp: text.ends_with('-').then_some(now.clone()),
                    ..ObjectMeta::default()
                },
                status: Some(PodStatus {
                    phase: Some(phase.to_owned()),
                    conditions: Some(vec![PodCondition::new("Ready", status, "", "", &now)]),
                    ..PodStatus::default()
                }),
                ..Pod::default()
            };
            (i32::try_from(ordinal).unwrap_or(i32::MAX), Arc::new(pod))
        };
        text.split_whitespace().enumerate().filter(|(_, text)| *text != ".").map(pod).collect()
    }

    fn check(wish: Wish<'_>, text: &str, expected: &str) {
        let plan = plan(&wish, &pods(text));
        let name = |pod: &Arc<Pod>| pod.metadata.name.clone().unwrap_or_default();
        let mut shown: Vec<String> = plan
            .create
            .iter()
            .map(|new| format!("+{}{}", new.ordinal, if new.updated { "" } else { " old" }))
            .collect();
        shown.extend(plan.delete.iter().map(|pod| format!("-{}", name(pod))));
        shown.extend(plan.ended.iter().map(|pod| format!("again {}", name(pod))));
        assert_eq!(shown.join(", "), expected, "{text}");
    }

    #[test]
    fn ordered_pods_come_one_after_the_other_and_go_in_reverse() {
        check(WISH, "", "+0");
        check(WISH, "new!", "");
        check(WISH, "new", "+1");
        check(WISH, "new . new", "+1");
        check(WISH, "new newx", "again web-1");
        check(WISH, "new new- new", "");
        check(WISH, "new new new new new", "-web-4");
        check(WISH, "new new new new new-", "");
        check(WISH, "new new! new new", "");
        let none = Wish { replicas: 0, ..WISH };
        check(none, "new! new! new!", "");
        check(none, "new new! new!", "");
        check(none, "new new new!", "-web-2");
        check(none, "new! new new", "-web-2");
        check(none, "new!", "-web-0");
        check(Wish { ordered: false, ..none }, "new! new! new!", "-web-2, -web-1, -web-0");
    }

    #[test]
    fn parallel_pods_come_and_go_at_once() {
        let parallel = Wish { ordered: false, ..WISH };
        check(parallel, "", "+0, +1, +2");
        check(parallel, "new! . new", "+1");
        check(parallel, "new new! new new new", "-web-4, -web-3");
    }

    #[test]
    fn replicas_as_many_as_their_type_holds_cost_one_burst() {
        let most = Wish { replicas: i32::MAX, ordered: false, max_unavailable: i32::MAX, ..WISH };
        let created = |wish: &Wish<'_>, text| plan(wish, &pods(text)).create.len();
        assert_eq!(created(&most, ""), BURST);
        assert_eq!(created(&most, "new new! old"), BURST);
        assert_eq!(created(&Wish { first: i32::MAX, ..most }, "new"), 0, "no ordinal is left");
        assert_eq!(created(&Wish { first: i32::MAX - 3, partition: i32::MAX, ..most }, ""), 3);
        assert_eq!(created(&Wish { ordered: true, ..most }, ""), 1);
    }

    #[test]
    fn an_update_goes_from_the_highest_ordinal_down_to_the_partition() {
        check(WISH, "old old old", "-web-2");
        check(WISH, "old old new!", "");
        check(WISH, "old old new", "-web-1");
        check(WISH, "old old .", "+2");
        check(WISH, "old! new new", "");
        check(Wish { ordered: false, ..WISH }, "old! new new", "-web-0");
        check(Wish { partition: 2, ..WISH }, "old old new", "");
        check(Wish { partition: 2, ..WISH }, "old . new", "+1 old");
        check(Wish { rolling: false, ..WISH }, "old old old", "");
        check(Wish { max_unavailable: 2, ordered: false, ..WISH }, "old old old", "-web-2, -web-1");
        check(Wish { max_unavailable: 2, ordered: false, ..WISH }, "old old new!", "-web-1");
    }

    #[test]
    fn a_set_may_begin_with_another_ordinal_than_none() {
        check(Wish { first: 2, replicas: 1, ..WISH }, ". . new", "");
        check(Wish { first: 2, replicas: 2, ..WISH }, "new . new", "+3");
        check(Wish { first: 2, replicas: 1, ..WISH }, "new new new", "-web-1");
    }

    #[test]
    fn the_status_counts_each_pod_by_what_it_is() {
        let counts = count(&WISH, &pods("old new! new- old"));
        assert_eq!(counts, Counts { replicas: 4, ready: 3, available: 3, current: 2, updated: 1 });
    }
}
