use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, SuccessPolicy, SuccessPolicyRule};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodSpec, PodStatus, PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::decide::{Decision, decide};
use super::status;
use super::tally::{FINALIZER, INDEX_FAILURES, Tally, UNCOUNTED_MAX, Wish};
use super::{INDEX, indexes::index_of};
use crate::pod_control::BURST;

const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A Pod of that phase which ended, if it did, at that second.
fn pod(uid: &str, phase: &str, ended: i64) -> Pod {
    let finished =
        ContainerStateTerminated { finished_at: Some(Time(at(ended))), ..ContainerStateTerminated::default() };
    let state = matches!(phase, "Failed" | "Succeeded")
        .then(|| ContainerState { terminated: Some(finished), ..ContainerState::default() });
    let container = ContainerStatus { state, ..ContainerStatus::default() };
    Pod {
        metadata: ObjectMeta {
            uid: Some(uid.to_owned()),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        status: Some(PodStatus {
            phase: Some(phase.to_owned()),
            container_statuses: Some(vec![container]),
            ..PodStatus::default()
        }),
        ..Pod::default()
    }
}

fn indexed(mut pod: Pod, index: i32, failures: i32) -> Pod {
    let annotations = [(INDEX.to_owned(), index.to_string()), (INDEX_FAILURES.to_owned(), failures.to_string())];
    pod.metadata.annotations = Some(annotations.into_iter().collect());
    pod
}

fn job(spec: JobSpec, status: JobStatus) -> Job {
    Job { spec: Some(spec), status: Some(status), ..Job::default() }
}

fn spec(parallelism: i32, completions: Option<i32>) -> JobSpec {
    JobSpec { parallelism: Some(parallelism), completions, backoff_limit: Some(6), ..JobSpec::default() }
}

fn look(job: &Job, pods: &[Pod]) -> (Decision, Job) {
    let pods: Vec<Arc<Pod>> = pods.iter().cloned().map(Arc::new).collect();
    let wish = Wish::of(job);
    let tally = Tally::new(&wish, &pods);
    let decision = decide(&wish, &tally, &pods, at(NOW));
    let after = status::after(&wish, &tally, &decision, &Time(at(NOW)));
    (decision, after)
}

/// What is decided, in words.
fn show(job: &Job, pods: &[Pod]) -> String {
    let (decision, _) = look(job, pods);
    if let Some(end) = decision.end {
        return format!("{} deleting {}", end.reason, decision.delete.len());
    }
    let indexes: Vec<String> =
        decision.create.iter().filter_map(|new| new.index).map(|index| index.to_string()).collect();
    let wait = decision.look_again.map(|wait| format!(" wait {}", wait.as_secs())).unwrap_or_default();
    let text =
        format!("create {}[{}] delete {}{wait}", decision.create.len(), indexes.join(","), decision.delete.len());
    text.replace("[]", "")
}

#[test]
fn pods_are_made_up_to_the_parallelism_and_what_is_still_needed() {
    let running = |count: usize| (0..count).map(|n| pod(&format!("r{n}"), "Running", 0)).collect::<Vec<_>>();
    let done = |count: i32| JobStatus { succeeded: Some(count), ..JobStatus::default() };
    let cases = vec![
        (job(spec(2, Some(5)), JobStatus::default()), vec![], "create 2 delete 0"),
        (job(spec(2, Some(5)), JobStatus::default()), running(2), "create 0 delete 0"),
        (job(spec(2, Some(5)), done(4)), running(0), "create 1 delete 0"),
        (job(spec(2, Some(5)), done(4)), running(2), "create 0 delete 1"),
        (job(spec(2, Some(5)), done(5)), running(1), "CompletionsReached deleting 1"),
        (job(spec(3, None), JobStatus::default()), running(1), "create 2 delete 0"),
        (job(spec(3, None), done(1)), running(1), "create 0 delete 0"),
        (job(spec(3, None), done(1)), running(0), "CompletionsReached deleting 0"),
        (job(JobSpec { suspend: Some(true), ..spec(3, None) }, JobStatus::default()), running(2), "create 0 delete 2"),
    ];
    for (number, (job, pods, expected)) in cases.into_iter().enumerate() {
        assert_eq!(show(&job, &pods), expected, "case {number}");
    }
}

#[test]
fn failures_are_waited_for_longer_each_time_until_the_limit() {
    let failed = |count: i64| (0..count).map(|n| pod(&format!("f{n}"), "Failed", NOW - 5 - n)).collect::<Vec<_>>();
    let one = job(spec(1, Some(1)), JobStatus::default());
    assert_eq!(show(&one, &failed(1)), "create 0 delete 0 wait 5");
    assert_eq!(show(&one, &failed(3)), "create 0 delete 0 wait 35");
    let with_success: Vec<Pod> = failed(3).into_iter().chain([pod("s", "Succeeded", NOW - 6)]).collect();
    let two = job(spec(1, Some(2)), JobStatus::default());
    assert_eq!(show(&two, &with_success), "create 0 delete 0 wait 5", "one failure since the success");
    assert_eq!(show(&one, &failed(7)), "BackoffLimitExceeded deleting 0");
    let long_ago = [pod("f", "Failed", NOW - 11)];
    assert_eq!(show(&one, &long_ago), "create 1 delete 0");
}

#[test]
fn restarts_in_place_count_where_pods_restart_in_place() {
    let template = PodTemplateSpec {
        spec: Some(PodSpec { restart_policy: Some("OnFailure".to_owned()), ..PodSpec::default() }),
        metadata: None,
    };
    let job = job(JobSpec { template, backoff_limit: Some(2), ..spec(1, Some(1)) }, JobStatus::default());
    let restarted = |count: i32| {
        let mut pod = pod("r", "Running", 0);
        let statuses = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut());
        statuses.expect("it has one")[0].restart_count = count;
        pod
    };
    assert_eq!(show(&job, &[restarted(1)]), "create 0 delete 0");
    assert_eq!(show(&job, &[restarted(2)]), "BackoffLimitExceeded deleting 1");
}

#[test]
fn a_deadline_ends_a_job_that_runs_too_long() {
    let started = |secs| JobStatus { start_time: Some(Time(at(NOW - secs))), ..JobStatus::default() };
    let spec = JobSpec { active_deadline_seconds: Some(30), ..spec(1, Some(1)) };
    let running = [pod("r", "Running", 0)];
    assert_eq!(show(&job(spec.clone(), started(10)), &running), "create 0 delete 0 wait 20");
    assert_eq!(show(&job(spec.clone(), started(30)), &running), "DeadlineExceeded deleting 1");
    let suspended = JobSpec { suspend: Some(true), ..spec };
    assert_eq!(show(&job(suspended, started(30)), &running), "create 0 delete 1");
}

fn indexed_spec(parallelism: i32, completions: i32) -> JobSpec {
    JobSpec { completion_mode: Some("Indexed".to_owned()), ..spec(parallelism, Some(completions)) }
}

#[test]
fn indexes_that_are_free_get_pods_and_doubles_lose_them() {
    let done = |text: &str| JobStatus { completed_indexes: Some(text.to_owned()), ..JobStatus::default() };
    let running = |index| indexed(pod(&format!("r{index}"), "Running", 0), index, 0);
    let mut double = running(1);
    double.metadata.uid = Some("double".to_owned());
    double.metadata.creation_timestamp = Some(Time(at(5)));
    let cases = [
        (done("0-1"), vec![running(3)], "create 2[2,4] delete 0"),
        (done("0,2"), vec![running(1), double], "create 2[3,4] delete 1"),
        (done("0-3"), vec![running(4), running(3)], "create 0 delete 1"),
        (done("0-4"), vec![], "CompletionsReached deleting 0"),
    ];
    for (status, pods, expected) in cases {
        assert_eq!(show(&job(indexed_spec(3, 5), status.clone()), &pods), expected, "{status:?}");
    }
}

#[test]
fn an_index_fails_by_its_own_limit_and_the_job_at_its_end() {
    let spec = JobSpec { backoff_limit_per_index: Some(1), backoff_limit: Some(i32::MAX), ..indexed_spec(2, 2) };
    let failed = |uid: &str, index, failures| indexed(pod(uid, "Failed", NOW - 100), index, failures);
    let first = job(spec.clone(), JobStatus::default());
    let (decision, _) = look(&first, &[failed("a", 0, 0)]);
    assert_eq!(
        decision.create.iter().map(|new| (new.index, new.failures)).collect::<Vec<_>>(),
        [(Some(0), Some(1)), (Some(1), Some(0))]
    );
    let spent = [failed("a", 0, 0), failed("b", 0, 1)];
    assert_eq!(show(&first, &spent), "create 1[1] delete 0", "the other index goes on");
    let (_, after) = look(&first, &spent);
    assert_eq!(after.status.and_then(|status| status.failed_indexes).as_deref(), Some("0"));
    let succeeded = indexed(pod("s", "Succeeded", NOW - 50), 1, 0);
    let all = [failed("a", 0, 0), failed("b", 0, 1), succeeded];
    assert_eq!(show(&first, &all), "FailedIndexes deleting 0");
    let strict = job(JobSpec { max_failed_indexes: Some(0), ..spec }, JobStatus::default());
    assert_eq!(show(&strict, &spent), "MaxFailedIndexesExceeded deleting 0");
}

#[test]
fn a_success_policy_ends_a_job_early() {
    let rule = |indexes: Option<&str>, count| SuccessPolicyRule {
        succeeded_indexes: indexes.map(str::to_owned),
        succeeded_count: count,
    };
    let with = |rule| JobSpec { success_policy: Some(SuccessPolicy { rules: vec![rule] }), ..indexed_spec(3, 5) };
    let done = JobStatus { completed_indexes: Some("0,3".to_owned()), ..JobStatus::default() };
    let cases = [
        (rule(Some("0,3"), None), "SuccessPolicy deleting 1"),
        (rule(Some("0-2"), Some(1)), "SuccessPolicy deleting 1"),
        (rule(None, Some(2)), "SuccessPolicy deleting 1"),
        (rule(Some("0-1"), None), "create 2[2,4] delete 0"),
    ];
    for (rule, expected) in cases {
        let running = [indexed(pod("r", "Running", 0), 1, 0)];
        assert_eq!(index_of(&running[0]), Some(1));
        assert_eq!(show(&job(with(rule.clone()), done.clone()), &running), expected, "{rule:?}");
    }
}

/// The story of one Pod's end: listed as uncounted, released, counted; only then is the Job complete.
#[test]
fn an_end_is_counted_once_whatever_is_interrupted() {
    let start = job(spec(1, Some(1)), JobStatus::default());
    let mut ended = pod("u1", "Succeeded", NOW - 1);
    let (_, listed) = look(&start, &[ended.clone()]);
    let status = listed.status.clone().expect("it has one");
    assert_eq!(status.succeeded, None);
    assert_eq!(status.uncounted_terminated_pods.and_then(|pods| pods.succeeded), Some(vec!["u1".to_owned()]));
    assert!(status::finished_at(&listed).is_none());

    let (_, again) = look(&listed, &[ended.clone()]);
    assert_eq!(again.status, listed.status, "nothing changes while the finalizer is there");

    ended.metadata.finalizers = None;
    let (_, counted) = look(&listed, &[ended.clone()]);
    let status = counted.status.clone().expect("it has one");
    assert_eq!(status.succeeded, Some(1));
    assert!(status::finished_at(&counted).is_some());
    let kinds: Vec<_> = status.conditions.iter().flatten().map(|condition| condition.type_.clone()).collect();
    assert_eq!(kinds, ["SuccessCriteriaMet", "Complete"]);

    let (_, gone) = look(&listed, &[]);
    assert_eq!(gone.status.and_then(|status| status.succeeded), Some(1), "a pod that is gone was counted too");
}

/// Each of these once took memory or time for every Pod or index that it names.
#[test]
fn numbers_as_large_as_their_type_cost_one_burst() {
    const MAX: i32 = i32::MAX;
    let none = JobStatus::default;
    let done = |text: &str| JobStatus { completed_indexes: Some(text.to_owned()), ..none() };
    let rule = SuccessPolicyRule { succeeded_indexes: Some(format!("0-{}", MAX - 1)), succeeded_count: None };
    let policy = Some(SuccessPolicy { rules: vec![rule] });
    let per_index = JobSpec { backoff_limit_per_index: Some(MAX), ..indexed_spec(MAX, MAX) };
    let most_failures = indexed(pod("f", "Failed", NOW - 100_000), 0, MAX - 1);
    let cases = vec![
        (job(spec(MAX, None), none()), vec![], "create 500 delete 0".to_owned()),
        (job(spec(MAX, Some(MAX)), none()), vec![pod("r", "Running", 0)], "create 500 delete 0".to_owned()),
        (
            job(spec(MAX, Some(MAX)), JobStatus { succeeded: Some(MAX - 1), ..none() }),
            vec![],
            "create 1 delete 0".into(),
        ),
        (
            job(spec(MAX, Some(MAX)), JobStatus { succeeded: Some(MAX), ..none() }),
            vec![],
            "CompletionsReached deleting 0".into(),
        ),
        (job(indexed_spec(2, MAX), done("1-2147483645")), vec![], format!("create 2[0,{}] delete 0", MAX - 1)),
        (job(indexed_spec(MAX, MAX), done("0-2147483646")), vec![], "CompletionsReached deleting 0".into()),
        (
            job(JobSpec { success_policy: policy.clone(), ..indexed_spec(1, MAX) }, none()),
            vec![],
            "create 1[0] delete 0".into(),
        ),
        (
            job(JobSpec { success_policy: policy, ..indexed_spec(1, MAX) }, done("0-2147483646")),
            vec![],
            "SuccessPolicy deleting 0".into(),
        ),
        (
            job(spec(1, Some(1)), JobStatus { failed: Some(MAX), ..none() }),
            vec![pod("f", "Failed", NOW)],
            "BackoffLimitExceeded deleting 0".into(),
        ),
    ];
    for (number, (job, pods, expected)) in cases.into_iter().enumerate() {
        assert_eq!(show(&job, &pods), expected, "case {number}");
        let (_, after) = look(&job, &pods);
        assert!(after.status.and_then(|status| status.active).unwrap_or(0) <= 501, "case {number}");
    }
    let (decision, _) = look(&job(indexed_spec(MAX, MAX), none()), &[]);
    assert_eq!(decision.create.len(), BURST);
    let (decision, _) = look(&job(per_index, none()), &[most_failures]);
    assert_eq!((decision.create.len(), decision.create[0].failures), (BURST, Some(MAX)));
    let deadline = JobSpec { active_deadline_seconds: Some(i64::MAX), ..spec(1, Some(1)) };
    let started = JobStatus { start_time: Some(Time(at(1))), ..none() };
    assert_eq!(show(&job(deadline, started), &[]), "create 1 delete 0", "a deadline past the calendar is none");
}

#[test]
fn ends_are_counted_a_status_full_at_a_time() {
    let ended: Vec<Pod> = (0..UNCOUNTED_MAX + 20).map(|n| pod(&format!("u{n}"), "Succeeded", NOW - 1)).collect();
    let count = i32::try_from(ended.len()).expect("few");
    let start = job(spec(count, Some(count)), JobStatus::default());
    let listed = |job: &Job| {
        let uncounted = job.status.as_ref().and_then(|status| status.uncounted_terminated_pods.clone());
        uncounted.and_then(|uncounted| uncounted.succeeded).unwrap_or_default()
    };
    let (decision, first) = look(&start, &ended);
    assert_eq!(decision.end.map(|end| end.reason).as_deref(), Some("CompletionsReached"), "all count for the decision");
    assert_eq!(listed(&first).len(), UNCOUNTED_MAX);
    assert!(status::finished_at(&first).is_none());
    let released: Vec<Pod> = ended
        .into_iter()
        .map(|mut pod| {
            if listed(&first).contains(pod.metadata.uid.as_ref().expect("it has one")) {
                pod.metadata.finalizers = None;
            }
            pod
        })
        .collect();
    let (_, second) = look(&first, &released);
    let status = second.status.clone().expect("it has one");
    assert_eq!((status.succeeded, listed(&second).len()), (i32::try_from(UNCOUNTED_MAX).ok(), 20));
}
