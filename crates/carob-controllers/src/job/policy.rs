//! What a Job's failure policy says of a Pod that failed (`pkg/controller/job/pod_failure_policy.go`). Pure.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pods;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the limit.
    Count,
    /// It does not.
    Ignore,
    /// Its index has failed, and is not tried again.
    FailIndex,
    /// The whole Job has failed, for this reason.
    FailJob(String),
}

pub(super) fn judge(job: &Job, pod: &Pod) -> Verdict {
    let rules = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref()).map(|policy| &policy.rules);
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let Some(match_text) = matches(rule, pod) else { continue };
        let message = format!("{match_text} matching {} rule at index {index}", rule.action);
        match rule.action.as_str() {
            "Ignore" => return Verdict::Ignore,
            "FailIndex" => return Verdict::FailIndex,
            "FailJob" => return Verdict::FailJob(message),
            _ => return Verdict::Count,
        }
    }
    Verdict::Count
}

/// What about the Pod matches the rule, in words.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exit_code(codes, pod)?;
        return Some(format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"));
    }
    let patterns = rule.on_pod_conditions.iter().flatten();
    let mut found = patterns.filter(|pattern| {
        let held = pods::condition(pod, &pattern.type_);
        held.is_some_and(|held| held.status == pattern.status.as_deref().unwrap_or("True"))
    });
    let kind = &found.next()?.type_;
    Some(format!("Pod {namespace}/{name} has condition {kind}"))
}

fn exit_code<'a>(codes: &PodFailurePolicyOnExitCodesRequirement, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let failed = |container: &'a ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        (code != 0).then_some((container.name.as_str(), code))
    };
    let named = |name: &str| codes.container_name.as_deref().is_none_or(|wanted| wanted == name);
    let meant = |code: i32| match codes.operator.as_str() {
        "In" => codes.values.contains(&code),
        "NotIn" => !codes.values.contains(&code),
        _ => false,
    };
    containers.filter_map(failed).find(|(name, code)| named(name) && meant(*code))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern};
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;
    use crate::condition::Condition;

    fn job(rules: Vec<PodFailurePolicyRule>) -> Job {
        let spec = JobSpec { pod_failure_policy: Some(PodFailurePolicy { rules }), ..JobSpec::default() };
        Job { spec: Some(spec), ..Job::default() }
    }

    fn on_codes(action: &str, container: Option<&str>, operator: &str, values: &[i32]) -> PodFailurePolicyRule {
        let on_exit_codes = PodFailurePolicyOnExitCodesRequirement {
            container_name: container.map(str::to_owned),
            operator: operator.to_owned(),
            values: values.to_vec(),
        };
        PodFailurePolicyRule { action: action.to_owned(), on_exit_codes: Some(on_exit_codes), on_pod_conditions: None }
    }

    fn on_condition(action: &str, kind: &str) -> PodFailurePolicyRule {
        let pattern =
            PodFailurePolicyOnPodConditionsPattern { type_: kind.to_owned(), status: Some("True".to_owned()) };
        PodFailurePolicyRule { action: action.to_owned(), on_exit_codes: None, on_pod_conditions: Some(vec![pattern]) }
    }

    fn pod(code: i32, condition: Option<&str>) -> Pod {
        let terminated = ContainerStateTerminated { exit_code: code, ..ContainerStateTerminated::default() };
        let state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
        let container = ContainerStatus { name: "main".into(), state: Some(state), ..ContainerStatus::default() };
        let now = Time(jiff::Timestamp::UNIX_EPOCH);
        let conditions = condition.map(|kind| vec![PodCondition::new(kind, "True", "", "", &now)]);
        Pod {
            metadata: ObjectMeta { namespace: Some("ns".into()), name: Some("p".into()), ..ObjectMeta::default() },
            status: Some(PodStatus { container_statuses: Some(vec![container]), conditions, ..PodStatus::default() }),
            ..Pod::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let fail = |text: &str| Verdict::FailJob(text.to_owned());
        let cases = vec![
            (vec![], pod(1, None), Verdict::Count),
            (
                vec![on_codes("FailJob", None, "In", &[3])],
                pod(3, None),
                fail("Container main for pod ns/p failed with exit code 3 matching FailJob rule at index 0"),
            ),
            (vec![on_codes("FailJob", None, "In", &[3])], pod(4, None), Verdict::Count),
            (vec![on_codes("FailJob", Some("other"), "In", &[3])], pod(3, None), Verdict::Count),
            (vec![on_codes("FailIndex", None, "NotIn", &[3])], pod(4, None), Verdict::FailIndex),
            (vec![on_codes("FailIndex", None, "NotIn", &[3])], pod(0, None), Verdict::Count),
            (
                vec![on_condition("Ignore", "DisruptionTarget"), on_codes("FailJob", None, "In", &[1])],
                pod(1, Some("DisruptionTarget")),
                Verdict::Ignore,
            ),
            (
                vec![on_codes("Count", None, "In", &[9]), on_condition("FailJob", "ConfigIssue")],
                pod(1, Some("ConfigIssue")),
                fail("Pod ns/p has condition ConfigIssue matching FailJob rule at index 1"),
            ),
        ];
        for (rules, pod, expected) in cases {
            assert_eq!(judge(&job(rules.clone()), &pod), expected, "{rules:?}");
        }
    }
}
