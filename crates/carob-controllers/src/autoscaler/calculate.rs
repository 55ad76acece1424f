//! How many Pods a metric asks for (`pkg/controller/podautoscaler/replica_calculator.go`). Pure.
//!
//! Amounts are thousandths of a core or of a byte.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carob_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::condition::{FALSE, find};
use crate::pods;

/// After a Pod's start its use of the processor counts only while it is ready
/// (`--horizontal-pod-autoscaler-cpu-initialization-period`).
const INITIALIZATION: Duration = Duration::from_secs(300);
/// A Pod that became unready within so long of its start has never been ready
/// (`--horizontal-pod-autoscaler-initial-readiness-delay`).
const INITIAL_READINESS: Duration = Duration::from_secs(30);
/// Relative change that is not worth a change of size (`--horizontal-pod-autoscaler-tolerance`).
pub(super) const TOLERANCE: f64 = 0.1;
pub(super) const CPU: &str = "cpu";

/// What a Pod uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measure {
    pub(super) milli: i64,
    pub(super) at: Timestamp,
    pub(super) window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerances {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerances {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// Percent of what the Pods request.
    Utilization(i32),
    /// Per Pod.
    AverageValue(i64),
}

/// What is asked of one metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) resource: &'a str,
    /// Of one container instead of the whole Pod.
    pub(super) container: Option<&'a str>,
    pub(super) target: Target,
    pub(super) tolerances: Tolerances,
    pub(super) current: i32,
    pub(super) now: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) utilization: Option<i32>,
    pub(super) average_milli: i64,
}

/// The Pods by what their measures are worth.
#[derive(Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

/// How far the use is from the target, and what that follows from.
struct Ratio {
    ratio: f64,
    utilization: Option<i32>,
    average_milli: i64,
}

/// The number of Pods that would bring the use to its target.
pub(super) fn propose(
    question: Question<'_>,
    pods: &[Arc<Pod>],
    mut measures: BTreeMap<String, Measure>,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(question, pods, &measures);
    measures.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if measures.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match question.target {
        Target::Utilization(_) => requests(question, pods)?,
        Target::AverageValue(_) => BTreeMap::new(),
    };
    let values = measures.into_iter().map(|(name, measure)| (name, measure.milli)).collect();
    decide(question, &groups, values, &requests)
}

fn decide(
    question: Question<'_>,
    groups: &Groups,
    mut values: BTreeMap<String, i64>,
    requests: &BTreeMap<String, i64>,
) -> Result<Proposal, String> {
    let first = ratio(question.target, &values, requests)?;
    let proposal = |replicas| Proposal { replicas, utilization: first.utilization, average_milli: first.average_milli };
    let up_with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        let stay = question.tolerances.covers(first.ratio);
        return Ok(proposal(if stay { question.current } else { scaled(first.ratio, groups.ready) }));
    }
    for name in &groups.missing {
        // On the way down a Pod that is not known counts as one that uses its share, on the way up as one that uses nothing.
        let down = match question.target {
            Target::Utilization(target) => {
                let request = i128::from(requests.get(name).copied().unwrap_or(0));
                i64::try_from(request * i128::from(target.max(100)) / 100).unwrap_or(i64::MAX)
            }
            Target::AverageValue(target) => target,
        };
        match first.ratio.partial_cmp(&1.0) {
            Some(Ordering::Less) => values.insert(name.clone(), down),
            Some(Ordering::Greater) => values.insert(name.clone(), 0),
            Some(Ordering::Equal) | None => None,
        };
    }
    if up_with_unready {
        values.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
    }
    let second = ratio(question.target, &values, requests)?.ratio;
    let turns = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    if question.tolerances.covers(second) || turns {
        return Ok(proposal(question.current));
    }
    let replicas = scaled(second, values.len());
    let turns = (second < 1.0 && replicas > question.current) || (second > 1.0 && replicas < question.current);
    Ok(proposal(if turns { question.current } else { replicas }))
}

/// `ratio` times `pods`, rounded up.
#[expect(clippy::cast_possible_truncation, reason = "it saturates")]
fn scaled(ratio: f64, pods: usize) -> i32 {
    (ratio * pods as f64).ceil() as i32
}

fn group(question: Question<'_>, pods: &[Arc<Pod>], measures: &BTreeMap<String, Measure>) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if pods::is_deleting(pod) || pods::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match measures.get(&name) {
                None => groups.missing.insert(name),
                Some(measure) if question.resource == CPU && is_unready(pod, measure, question.now) => {
                    groups.unready.insert(name)
                }
                Some(_) => {
                    groups.ready += 1;
                    true
                }
            };
        }
    }
    groups
}

/// Whether what a Pod uses of the processor is not yet what it uses when it serves.
fn is_unready(pod: &Pod, measure: &Measure, now: Timestamp) -> bool {
    let status = pod.status.as_ref();
    let condition = status.and_then(|status| find(&status.conditions, "Ready"));
    let start = status.and_then(|status| status.start_time.as_ref());
    let (Some(condition), Some(start)) = (condition, start) else { return true };
    let since = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let after = |time: Timestamp, delay: Duration| time.checked_add(delay).unwrap_or(Timestamp::MAX);
    if after(start.0, INITIALIZATION) > now {
        condition.status == FALSE || measure.at < after(since, measure.window)
    } else {
        condition.status == FALSE && after(start.0, INITIAL_READINESS) > since
    }
}

fn ratio(target: Target, values: &BTreeMap<String, i64>, requests: &BTreeMap<String, i64>) -> Result<Ratio, String> {
    let average = |total: i128, count: usize| i64::try_from(total / count.max(1) as i128).unwrap_or(i64::MAX);
    match target {
        Target::AverageValue(target) => {
            let total: i128 = values.values().map(|value| i128::from(*value)).sum();
            let average_milli = average(total, values.len());
            let ratio = average_milli as f64 / target as f64;
            Ok(Ratio { ratio, utilization: None, average_milli })
        }
        Target::Utilization(target) => {
            let known =
                values.iter().filter_map(|(name, value)| Some((i128::from(*value), i128::from(*requests.get(name)?))));
            let (mut used, mut requested, mut count) = (0i128, 0i128, 0usize);
            for (value, request) in known {
                used += value;
                requested += request;
                count += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let percent = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            let ratio = f64::from(percent) / f64::from(target);
            Ok(Ratio { ratio, utilization: Some(percent), average_milli: average(used, count) })
        }
    }
}

/// What each Pod requests of the resource.
fn requests(question: Question<'_>, pods: &[Arc<Pod>]) -> Result<BTreeMap<String, i64>, String> {
    let one = |pod: &Arc<Pod>| {
        let name = pod.metadata.name.clone().unwrap_or_default();
        Ok((name.clone(), request(question.resource, question.container, pod, &name)?))
    };
    pods.iter().map(one).collect()
}

fn request(resource: &str, container: Option<&str>, pod: &Pod, name: &str) -> Result<i64, String> {
    let amount = |resources: Option<&ResourceRequirements>| -> Option<i64> {
        let text = &resources?.requests.as_ref()?.get(resource)?.0;
        Quantity::parse(text).ok().map(|quantity| quantity.milli())
    };
    let Some(spec) = &pod.spec else { return Err(format!("Pod {name} has no spec")) };
    if container.is_none()
        && let Some(whole) = amount(spec.resources.as_ref())
    {
        return Ok(whole);
    }
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let wanted = |one: &&Container| container.is_none_or(|wanted| one.name == wanted);
    let mut sum = 0i64;
    let mut found = false;
    for one in spec.containers.iter().chain(sidecars).filter(wanted) {
        let missing = || format!("missing request for {resource} in container {} of Pod {name}", one.name);
        sum = sum.saturating_add(amount(one.resources.as_ref()).ok_or_else(missing)?);
        found = true;
    }
    match container {
        Some(wanted) if !found => Err(format!("container {wanted} not found in Pod {name}")),
        Some(_) | None => Ok(sum),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("within the calendar")
    }

    /// A Pod that requests a core and has run for long, or is in the given phase, or unready since its start.
    fn pod(name: &str, phase: &str, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns"},
                "spec": {"containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "600m", "memory": "1Ki"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "400m"}}}]},
                "status": {"phase": phase, "startTime": "1970-01-01T00:00:00Z", "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:00:10Z"}]},
            }))
            .expect("a Pod"),
        )
    }

    fn question(target: Target, current: i32) -> Question<'static> {
        let tolerances = Tolerances { up: TOLERANCE, down: TOLERANCE };
        Question { resource: CPU, container: None, target, tolerances, current, now: at(10_000) }
    }

    fn measures(milli: &[(&str, i64)]) -> BTreeMap<String, Measure> {
        let one = |(name, milli): &(&str, i64)| {
            ((*name).to_owned(), Measure { milli: *milli, at: at(9_990), window: Duration::from_secs(15) })
        };
        milli.iter().map(one).collect()
    }

    #[test]
    fn the_use_is_brought_to_its_target() {
        let three = || vec![pod("p0", "Running", "True"), pod("p1", "Running", "True"), pod("p2", "Running", "True")];
        // Target, what each Pod uses; replicas, percent.
        for (target, used, replicas, percent) in [
            (Target::Utilization(50), [500, 500, 500], 3, Some(50)),
            (Target::Utilization(50), [540, 540, 540], 3, Some(54)),
            (Target::Utilization(50), [900, 1000, 1100], 6, Some(100)),
            (Target::Utilization(50), [100, 100, 100], 1, Some(10)),
            (Target::AverageValue(250), [500, 500, 500], 6, None),
            (Target::AverageValue(250), [260, 260, 260], 3, None),
            (Target::AverageValue(1), [i64::MAX, i64::MAX, i64::MAX], i32::MAX, None),
        ] {
            let used = measures(&[("p0", used[0]), ("p1", used[1]), ("p2", used[2])]);
            let found = propose(question(target, 3), &three(), used).expect("a proposal");
            assert_eq!((found.replicas, found.utilization), (replicas, percent), "{target:?}");
        }
    }

    #[test]
    fn pods_that_are_not_known_damp_the_change() {
        let pods = [pod("p0", "Running", "True"), pod("p1", "Running", "True"), pod("p2", "Pending", "False")];
        let up = propose(question(Target::Utilization(50), 3), &pods, measures(&[("p0", 1000), ("p1", 1000)]));
        assert_eq!(up.expect("a proposal").replicas, 4, "the pending one counts as idle");
        let pods = [pod("p0", "Running", "True"), pod("p1", "Running", "True"), pod("p2", "Running", "True")];
        let missing = propose(question(Target::Utilization(50), 3), &pods, measures(&[("p0", 100), ("p1", 100)]));
        assert_eq!(missing.expect("a proposal").replicas, 3, "the missing one may use all that it requests");
        let never_ready = [pod("p0", "Running", "True"), pod("p1", "Running", "False")];
        let found = propose(question(Target::Utilization(50), 2), &never_ready, measures(&[("p0", 500), ("p1", 9)]));
        assert_eq!(found.expect("a proposal").utilization, Some(50), "one that was never ready is passed over");
        let failed = [pod("p0", "Failed", "False")];
        let error = propose(question(Target::Utilization(50), 1), &failed, measures(&[("p0", 1)])).expect_err("none");
        assert_eq!(error, "did not receive metrics for targeted pods (pods might be unready)");
    }

    #[test]
    fn requests_are_needed_for_a_utilization() {
        let pods = [pod("p0", "Running", "True")];
        let used = || measures(&[("p0", 300)]);
        let of = |resource, container| {
            let question = Question { resource, container, ..question(Target::Utilization(50), 1) };
            propose(question, &pods, used()).map(|proposal| proposal.utilization)
        };
        assert_eq!(of(CPU, Some("a")), Ok(Some(50)));
        assert_eq!(of("memory", None), Err("missing request for memory in container b of Pod p0".to_owned()));
        assert_eq!(of(CPU, Some("z")), Err("container z not found in Pod p0".to_owned()));
        let none = propose(question(Target::Utilization(50), 1), &[], used()).expect_err("no Pods");
        assert_eq!(none, "no pods returned by selector while calculating replica count");
    }
}
