use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus,
    RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::rollout::{self, Step};
use super::sets::{self, Sets};
use super::status::{self, Progress};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn template(image: &str) -> PodTemplateSpec {
    let container = Container { image: Some(image.to_owned()), ..Container::default() };
    PodTemplateSpec { spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }), metadata: None }
}

/// `surge` and `unavailable` of `None` stand for the strategy Recreate.
fn deployment(replicas: i32, rolling: Option<(i32, i32)>) -> Deployment {
    let strategy = match rolling {
        None => DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None },
        Some((surge, unavailable)) => DeploymentStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            }),
        },
    };
    Deployment {
        metadata: ObjectMeta { name: Some("web".to_owned()), generation: Some(1), ..ObjectMeta::default() },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            strategy: Some(strategy),
            template: template("new"),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(1),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// A set of the image `new` or another, with its size, its available Pods, and the Deployment's size when it was scaled.
fn set(image: &str, created: i64, size: i32, available: i32, then: (i32, i32)) -> Arc<ReplicaSet> {
    let (desired, max) = then;
    let annotations = [
        ("deployment.kubernetes.io/desired-replicas".to_owned(), desired.to_string()),
        ("deployment.kubernetes.io/max-replicas".to_owned(), max.to_string()),
        ("deployment.kubernetes.io/revision".to_owned(), created.to_string()),
    ];
    Arc::new(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("web-{image}-{created}")),
            creation_timestamp: Some(Time(at(created))),
            annotations: Some(annotations.into_iter().collect()),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            template: Some(template(image)),
            ..ReplicaSetSpec::default()
        }),
        status: Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: Some(available),
            available_replicas: Some(available),
            ..ReplicaSetStatus::default()
        }),
    })
}

fn show(deployment: &Deployment, sets: Vec<Arc<ReplicaSet>>, old_pods_running: bool) -> String {
    match rollout::next_step(deployment, &Sets::new(deployment, sets), old_pods_running) {
        Step::Nothing => "nothing".to_owned(),
        Step::Create { replicas } => format!("create {replicas}"),
        Step::Scale(scales) => {
            let text = |scale: &rollout::Scale| {
                let name = scale.set.metadata.name.as_deref().unwrap_or_default();
                format!("{name}: {} to {}", sets::size(&scale.set), scale.to)
            };
            scales.iter().map(text).collect::<Vec<_>>().join(", ")
        }
    }
}

#[test]
fn a_rolling_update_keeps_between_its_fenceposts() {
    let ten = deployment(10, Some((2, 2)));
    let then = (10, 12);
    let cases = [
        (vec![], "create 10"),
        (vec![set("old", 1, 10, 10, then)], "create 2"),
        (vec![set("old", 1, 10, 10, then), set("new", 2, 2, 0, then)], "web-old-1: 10 to 8"),
        (vec![set("old", 1, 8, 8, then), set("new", 2, 2, 0, then)], "web-new-2: 2 to 4"),
        (vec![set("old", 1, 8, 8, then), set("new", 2, 4, 0, then)], "nothing"),
        (vec![set("old", 1, 8, 8, then), set("new", 2, 4, 3, then)], "web-old-1: 8 to 5"),
        (vec![set("old", 1, 0, 0, then), set("new", 2, 10, 10, then)], "nothing"),
        // What is broken goes first, whatever its age.
        (
            vec![set("old", 1, 4, 4, then), set("older", 0, 4, 0, then), set("new", 2, 4, 4, then)],
            "web-older-0: 4 to 0",
        ),
        (vec![set("new", 2, 12, 12, (10, 12))], "web-new-2: 12 to 10"),
    ];
    for (sets, expected) in cases {
        let names: Vec<_> = sets.iter().map(|set| (set.metadata.name.clone(), sets::size(set))).collect();
        assert_eq!(show(&ten, sets, false), expected, "{names:?}");
    }
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let three = deployment(3, None);
    let then = (3, 3);
    assert_eq!(show(&three, vec![set("old", 1, 3, 3, then)], true), "web-old-1: 3 to 0");
    assert_eq!(show(&three, vec![set("old", 1, 0, 0, then)], true), "nothing");
    assert_eq!(show(&three, vec![set("old", 1, 0, 0, then)], false), "create 3");
    let both = vec![set("old", 1, 0, 0, then), set("new", 2, 3, 3, then)];
    assert_eq!(show(&three, both, false), "nothing");
}

#[test]
fn a_resize_in_the_middle_of_a_rollout_keeps_the_proportions() {
    // 10 replicas with a surge of 3 had become 8 old and 5 new ones when 15 were asked for.
    let fifteen = deployment(15, Some((3, 2)));
    let sets = vec![set("old", 1, 8, 8, (10, 13)), set("new", 2, 5, 5, (10, 13))];
    assert_eq!(show(&fifteen, sets, false), "web-old-1: 8 to 11, web-new-2: 5 to 7");
    let five = deployment(5, Some((3, 2)));
    let sets = vec![set("old", 1, 8, 8, (10, 13)), set("new", 2, 5, 5, (10, 13))];
    assert_eq!(show(&five, sets, false), "web-old-1: 8 to 5, web-new-2: 5 to 3");
    let one_set = vec![set("new", 2, 5, 5, (10, 13))];
    assert_eq!(show(&five, one_set, false), "web-new-2: 5 to 5", "the annotations are renewed");
    let none = deployment(0, Some((3, 2)));
    let sets = vec![set("old", 1, 8, 8, (10, 13)), set("new", 2, 5, 5, (10, 13))];
    assert_eq!(show(&none, sets, false), "web-old-1: 8 to 0, web-new-2: 5 to 0");
}

#[test]
fn sums_of_numbers_as_large_as_their_type_do_not_wrap() {
    const MAX: i32 = i32::MAX;
    let most = deployment(MAX, Some((MAX, MAX)));
    let then = (MAX, MAX);
    let cases = [
        (vec![], format!("create {MAX}")),
        (vec![set("old", 1, MAX, MAX, then)], format!("create {MAX}")),
        (
            vec![set("old", 1, MAX, MAX, then), set("older", 0, MAX, MAX, then), set("new", 2, MAX, MAX, then)],
            format!("web-older-0: {MAX} to 0, web-old-1: {MAX} to 0"),
        ),
        // What a client may write into a status.
        (vec![set("old", 1, 0, MAX, then), set("new", 2, 1, MIN, then)], format!("web-new-2: 1 to {MAX}")),
    ];
    const MIN: i32 = i32::MIN;
    for (sets, expected) in cases {
        assert_eq!(show(&most, sets.clone(), false), expected);
        let sets = Sets::new(&most, sets);
        let status = status::status(&most, &sets, &Progress::Nothing, at(100));
        assert!(status.replicas.is_none_or(|replicas| replicas >= 0), "{status:?}");
    }
    let other = vec![set("old", 1, MAX, 0, (1, 1)), set("new", 2, MAX, 0, (1, 1))];
    let kept = format!("web-old-1: {MAX} to {MAX}, web-new-2: {MAX} to {MAX}");
    assert_eq!(show(&most, other, false), kept, "both may be as large as they are");
}

#[test]
fn a_pause_stops_rollouts_but_not_resizes() {
    let mut paused = deployment(10, Some((2, 2)));
    paused.spec.as_mut().expect("it has one").paused = Some(true);
    assert_eq!(show(&paused, vec![set("old", 1, 10, 10, (10, 12))], false), "nothing");
    assert_eq!(show(&paused, vec![set("old", 1, 5, 5, (5, 7))], false), "web-old-1: 5 to 10");
    assert_eq!(show(&paused, vec![], false), "nothing");
}

#[test]
fn both_fenceposts_at_zero_would_stand_still_so_one_may_be_missing() {
    let cases = [((0, 0), (0, 1)), ((1, 0), (1, 0)), ((0, 2), (0, 2))];
    for (given, expected) in cases {
        assert_eq!(sets::fenceposts(&deployment(10, Some(given))), expected);
    }
}

#[test]
fn history_beyond_the_limit_goes_oldest_first_if_it_is_empty() {
    let kept = deployment(1, Some((1, 0)));
    let then = (1, 2);
    let sets = Sets::new(
        &kept,
        vec![
            set("a", 1, 0, 0, then),
            set("b", 2, 0, 0, then),
            set("c", 3, 0, 0, then),
            set("busy", 0, 1, 1, then),
            set("new", 4, 1, 1, then),
        ],
    );
    let names: Vec<_> =
        rollout::surplus_history(&kept, &sets).iter().filter_map(|set| set.metadata.name.clone()).collect();
    assert_eq!(names, ["web-a-1", "web-b-2"], "the busy one counts but stays");
}

#[test]
fn the_revision_grows_and_the_old_one_goes_into_the_history() {
    let mut web = deployment(1, Some((1, 0)));
    let own = [
        ("team".to_owned(), "blue".to_owned()),
        ("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "{}".to_owned()),
    ];
    web.metadata.annotations = Some(own.into_iter().collect());
    let first = sets::new_set_annotations(&web, &Default::default(), 1);
    let again = sets::new_set_annotations(&web, &first, 3);
    let same = sets::new_set_annotations(&web, &again, 2);
    let show = |annotations: &std::collections::BTreeMap<String, String>| format!("{annotations:?}");
    assert_eq!(show(&first), r#"{"deployment.kubernetes.io/revision": "1", "team": "blue"}"#);
    assert_eq!(
        show(&again),
        r#"{"deployment.kubernetes.io/revision": "3", "deployment.kubernetes.io/revision-history": "1", "team": "blue"}"#
    );
    assert_eq!(same, again);
}

fn conditions(status: &k8s_openapi::api::apps::v1::DeploymentStatus) -> Vec<String> {
    let text = |condition: &k8s_openapi::api::apps::v1::DeploymentCondition| {
        let (reason, message) = (condition.reason.as_deref(), condition.message.as_deref());
        format!(
            "{}={} {}: {}",
            condition.type_,
            condition.status,
            reason.unwrap_or_default(),
            message.unwrap_or_default()
        )
    };
    status.conditions.iter().flatten().map(text).collect()
}

#[test]
fn a_rollout_progresses_completes_or_times_out() {
    let mut web = deployment(2, Some((1, 0)));
    let then = (2, 3);
    let starting = Sets::new(&web, vec![set("new", 2, 2, 0, then)]);
    let began = status::status(&web, &starting, &Progress::Created("web-new-2".to_owned()), at(100));
    assert_eq!(
        conditions(&began),
        [
            "Available=False MinimumReplicasUnavailable: Deployment does not have minimum availability.",
            "Progressing=True ReplicaSetUpdated: ReplicaSet \"web-new-2\" is progressing.",
        ]
    );
    assert_eq!(status::deadline_left(&web, &began, at(100)), Some(std::time::Duration::from_secs(601)));

    web.status = Some(began.clone());
    let late = status::status(&web, &starting, &Progress::Nothing, at(701));
    assert_eq!(
        conditions(&late)[1],
        "Progressing=False ProgressDeadlineExceeded: ReplicaSet \"web-new-2\" has timed out progressing."
    );
    assert_eq!(status::deadline_left(&web, &late, at(701)), None);

    let done = status::status(&web, &Sets::new(&web, vec![set("new", 2, 2, 2, then)]), &Progress::Nothing, at(200));
    assert_eq!(
        conditions(&done),
        [
            "Available=True MinimumReplicasAvailable: Deployment has minimum availability.",
            "Progressing=True NewReplicaSetAvailable: ReplicaSet \"web-new-2\" has successfully progressed.",
        ]
    );
    assert_eq!((done.updated_replicas, done.unavailable_replicas), (Some(2), None));
    assert!(status::is_complete(&web, &done));
}
