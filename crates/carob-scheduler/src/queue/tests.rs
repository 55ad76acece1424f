use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::{GangSource, PodTemplate, Str};
use crate::testing::{node, plain, pod};

const START: Duration = Duration::from_secs(100);

fn secs(seconds: u64) -> Duration {
    START + Duration::from_secs(seconds)
}

fn with_priority(priority: i32) -> PodTemplate {
    let mut template = plain(1, 1);
    template.priority = priority;
    template
}

fn popped(queue: &mut Queue, now: Duration) -> Option<String> {
    queue.pop(now).map(|next| match next {
        Next::Pod(pod) => pod.key.name.to_string(),
        Next::Gang { gang, pods, .. } => format!("{}×{}", gang.name, pods.len()),
    })
}

fn unit(name: &str) -> Unit {
    Unit::Pod(PodKey::new("default", name))
}

fn by(plugin: Plugin) -> PluginSet {
    [plugin].into_iter().collect()
}

#[test]
fn higher_priority_goes_first_then_who_came_first() {
    let mut queue = Queue::default();
    for (name, priority) in [("a", 0), ("b", 0), ("c", 10), ("d", -1)] {
        queue.upsert(pod(name, with_priority(priority)), START);
    }
    let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, START)).collect();
    assert_eq!(order, ["c", "a", "b", "d"]);
}

#[test]
fn errors_back_off_from_one_to_ten_seconds() {
    let mut queue = Queue::default();
    queue.upsert(pod("a", plain(1, 1)), START);
    let mut now = START;
    let mut pauses = Vec::new();
    for _ in 0..6 {
        assert_eq!(popped(&mut queue, now).as_deref(), Some("a"));
        queue.failed(&unit("a"), now);
        let until = queue.deadline().expect("it backs off");
        assert_eq!(popped(&mut queue, until.saturating_sub(Duration::from_millis(1))), None);
        pauses.push(until.saturating_sub(now).as_secs());
        now = until;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_rejected_pod_waits_for_an_event_that_helps() {
    let mut queue = Queue::default();
    queue.upsert(pod("a", plain(1000, 1)), START);
    assert!(popped(&mut queue, START).is_some());
    queue.rejected(&unit("a"), by(Plugin::NodeResourcesFit), START);
    assert_eq!(popped(&mut queue, secs(60)), None);
    let small = node("small", 500, 500);
    queue.wake(&ClusterEvent::NodeAdded(&small), secs(60));
    assert_eq!(popped(&mut queue, secs(60)), None, "a node that is too small cannot help");
    let large = node("large", 2000, 500);
    queue.wake(&ClusterEvent::NodeAdded(&large), secs(60));
    assert_eq!(popped(&mut queue, secs(60)).as_deref(), Some("a"));
}

#[test]
fn an_event_during_the_pause_is_used_when_there_is_nothing_else_to_do() {
    let mut queue = Queue::default();
    queue.upsert(pod("a", plain(1, 1)), START);
    assert!(popped(&mut queue, START).is_some());
    queue.rejected(&unit("a"), by(Plugin::NodeResourcesFit), START);
    let gone = pod("gone", plain(1, 1));
    queue.wake(&ClusterEvent::PodGone(&gone), START);
    queue.upsert(pod("b", plain(1, 1)), START);
    assert_eq!(popped(&mut queue, START).as_deref(), Some("b"));
    assert_eq!(popped(&mut queue, START).as_deref(), Some("a"));
}

#[test]
fn without_any_event_it_is_tried_again_after_five_minutes() {
    let mut queue = Queue::default();
    queue.upsert(pod("a", plain(1, 1)), START);
    assert!(popped(&mut queue, START).is_some());
    queue.rejected(&unit("a"), by(Plugin::NodeAffinity), START);
    assert_eq!(queue.deadline(), Some(secs(300)));
    assert_eq!(popped(&mut queue, secs(299)), None);
    assert_eq!(popped(&mut queue, secs(300)).as_deref(), Some("a"));
}

#[test]
fn gates_hold_a_pod_until_they_are_gone() {
    let mut queue = Queue::default();
    let mut gated = (*pod("a", plain(1, 1))).clone();
    gated.gates = ["example.com/wait".into()].into();
    queue.upsert(Arc::new(gated.clone()), START);
    assert_eq!(popped(&mut queue, START), None);
    gated.gates = Box::default();
    queue.upsert(Arc::new(gated), START);
    assert_eq!(popped(&mut queue, START).as_deref(), Some("a"));
}

#[test]
fn a_pod_that_is_removed_is_not_handed_out() {
    let mut queue = Queue::default();
    queue.upsert(pod("a", plain(1, 1)), START);
    queue.remove(&PodKey::new("default", "a"), START);
    assert_eq!(popped(&mut queue, START), None);
    assert!(queue.is_empty());
}

fn gang_ref(source: GangSource) -> GangRef {
    GangRef { namespace: "default".into(), name: "g".into(), source }
}

fn member(name: &str, source: GangSource) -> Arc<crate::model::PodInfo> {
    let mut template = plain(1, 1);
    template.gang = Some(gang_ref(source));
    pod(name, template)
}

fn spec(min_count: usize) -> GangSpec {
    GangSpec { min_count, ..GangSpec::default() }
}

#[test]
fn a_gang_waits_for_its_object_and_its_members_and_then_goes_as_one() {
    let gang = gang_ref(GangSource::Field);
    let mut queue = Queue::default();
    queue.upsert(member("a", GangSource::Field), START);
    assert_eq!(queue.gang_wait(&gang, START), Some(GangWait::NoGroup { name: "g".into() }));
    queue.set_gang(&gang, Some(spec(3)), START);
    queue.upsert(member("b", GangSource::Field), START);
    let wait = queue.gang_wait(&gang, START).expect("one is missing").message();
    assert!(wait.ends_with("pod group \"g\" has 2 of 3, 1 missing"), "{wait}");
    assert_eq!(popped(&mut queue, START), None);
    queue.upsert(member("c", GangSource::Field), START);
    assert_eq!(popped(&mut queue, START).as_deref(), Some("g×3"));
}

#[test]
fn members_that_have_a_node_count_and_the_rest_is_tried_together() {
    let gang = gang_ref(GangSource::Field);
    let mut queue = Queue::default();
    queue.set_gang(&gang, Some(spec(2)), START);
    queue.set_placed(&gang, &Str::from("there"), true, START);
    queue.upsert(member("a", GangSource::Field), START);
    assert_eq!(popped(&mut queue, START).as_deref(), Some("g×1"));
}

#[test]
fn a_label_without_a_group_object_means_nothing() {
    let mut queue = Queue::default();
    queue.upsert(member("a", GangSource::Label), START);
    assert_eq!(popped(&mut queue, START).as_deref(), Some("a"));
}

#[test]
fn a_group_that_waits_longer_than_its_timeout_says_so() {
    let gang = gang_ref(GangSource::Label);
    let mut queue = Queue::default();
    queue.set_gang(&gang, Some(GangSpec { timeout: Some(Duration::from_secs(10)), ..spec(2) }), START);
    queue.upsert(member("a", GangSource::Label), START);
    let overdue = |now| match queue.gang_wait(&gang, now) {
        Some(GangWait::Members { overdue, .. }) => overdue,
        other => panic!("the gang is incomplete, not {other:?}"),
    };
    assert!(!overdue(secs(10)));
    assert!(overdue(secs(11)));
}

#[test]
fn a_rejected_gang_is_woken_by_what_helps_any_member() {
    let gang = gang_ref(GangSource::Field);
    let mut queue = Queue::default();
    queue.set_gang(&gang, Some(spec(2)), START);
    queue.upsert(member("a", GangSource::Field), START);
    queue.upsert(member("b", GangSource::Field), START);
    assert!(popped(&mut queue, START).is_some());
    queue.rejected(&Unit::Gang(gang), by(Plugin::NodeResourcesFit), START);
    assert_eq!(popped(&mut queue, secs(20)), None);
    let gone = pod("gone", plain(1, 1));
    queue.wake(&ClusterEvent::PodGone(&gone), secs(20));
    assert_eq!(popped(&mut queue, secs(20)).as_deref(), Some("g×2"));
}

#[test]
fn a_node_that_declares_more_wakes_who_waits_for_that() {
    let mut template = plain(1, 1);
    template.needs_feature = Some("B".into());
    let declaring = |features: &[&str]| {
        let mut info = crate::testing::node("n", 1000, 1000);
        info.declared_features = features.iter().map(|feature| (*feature).into()).collect();
        info
    };
    let (none, other, all) = (declaring(&[]), declaring(&["A"]), declaring(&["A", "B"]));
    for (event, wakes) in [
        (ClusterEvent::NodeChanged { old: &none, new: &other }, false),
        (ClusterEvent::NodeChanged { old: &other, new: &all }, true),
        (ClusterEvent::NodeAdded(&other), false),
        (ClusterEvent::NodeAdded(&all), true),
    ] {
        let mut queue = Queue::default();
        queue.upsert(pod("a", template.clone()), START);
        assert!(popped(&mut queue, START).is_some());
        queue.rejected(&unit("a"), by(Plugin::NodeDeclaredFeatures), START);
        queue.wake(&event, START);
        assert_eq!(popped(&mut queue, secs(60)).is_some(), wakes, "{event:?}");
    }
}
