//! NodeResourcesFit: the node has room for what the Pod requests; three strategies score what is left.

use std::borrow::Cow;

use super::Site;
use crate::model::{PodTemplate, Resource};
use crate::plugin::Plugin;
use crate::profile::{FitStrategy, MAX_SCORE, Profile, ResourceWeight, whole};
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> Option<Rejection> {
    let mut rejection = Rejection { plugin: Plugin::NodeResourcesFit, resolvable: true, reasons: Vec::new() };
    if node.pods().len() as i64 + 1 > node.info.max_pods {
        rejection.reasons.push("Too many pods".into());
    }
    let (wants, has, used) = (&pod.requests, &node.info.allocatable, node.requested());
    let mut check = |wants: i64, has: i64, used: i64, reason: Cow<'static, str>| {
        if wants > 0 && wants > has.saturating_sub(used) {
            rejection.reasons.push(reason);
            rejection.resolvable &= wants <= has;
        }
    };
    check(wants.cpu.0, has.cpu.0, used.cpu.0, "Insufficient cpu".into());
    check(wants.memory.0, has.memory.0, used.memory.0, "Insufficient memory".into());
    check(wants.ephemeral.0, has.ephemeral.0, used.ephemeral.0, "Insufficient ephemeral-storage".into());
    for (name, amount) in wants.scalars().iter().filter(|(name, _)| !site.profile.ignores(name)) {
        let (has, used) = (has.scalar(name), used.scalar(name));
        if *amount > has.saturating_sub(used) {
            check(*amount, has, used, format!("Insufficient {name}").into());
        }
    }
    (!rejection.reasons.is_empty()).then_some(rejection)
}

pub(crate) fn score(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> i64 {
    let Profile { fit, fit_resources, .. } = site.profile;
    let amounts = fit_resources.iter().filter_map(|weighted| Some((weighted.weight, scored(pod, node, weighted)?)));
    match fit {
        FitStrategy::LeastAllocated => {
            weighted_mean(
                amounts,
                |requested, capacity| {
                    if requested > capacity { 0 } else { share(capacity - requested, capacity) }
                },
            )
        }
        FitStrategy::MostAllocated => {
            weighted_mean(amounts, |requested, capacity| share(requested.min(capacity), capacity))
        }
        FitStrategy::RequestedToCapacityRatio(shape) => ratio(amounts, shape),
    }
}

/// `part` of `whole` in points of the maximal score, rounded down.
fn share(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(MAX_SCORE) / i128::from(whole)).unwrap_or(MAX_SCORE)
}

/// What would be requested of a resource with the Pod, and how much there is; absent where it does not count.
fn scored(pod: &PodTemplate, node: &NodeState, weighted: &ResourceWeight) -> Option<(i64, i64)> {
    let capacity = node.info.allocatable.amount(&weighted.resource);
    let (cpu, memory) = node.scored();
    let requested = match &weighted.resource {
        Resource::Cpu => (cpu + pod.scored_cpu).0,
        Resource::Memory => (memory + pod.scored_memory).0,
        Resource::Ephemeral => (node.requested().ephemeral + pod.requests.ephemeral).0,
        Resource::Scalar(name) => {
            let wants = pod.requests.scalar(name);
            if wants == 0 {
                return None;
            }
            node.requested().scalar(name).saturating_add(wants)
        }
    };
    (capacity > 0).then_some((requested, capacity))
}

fn weighted_mean(amounts: impl Iterator<Item = (i64, (i64, i64))>, score: impl Fn(i64, i64) -> i64) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (weight, (requested, capacity)) in amounts {
        sum += score(requested, capacity) * weight;
        weights += weight;
    }
    if weights == 0 { 0 } else { sum / weights }
}

/// requested_to_capacity_ratio.go: resources that score nothing do not count as weight, and the mean is rounded.
fn ratio(amounts: impl Iterator<Item = (i64, (i64, i64))>, shape: &[(i64, i64)]) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (weight, (requested, capacity)) in amounts {
        let utilization = if requested > capacity { 100 } else { share(requested, capacity) };
        let score = interpolate(shape, utilization);
        if score > 0 {
            sum += score * weight;
            weights += weight;
        }
    }
    if weights == 0 { 0 } else { whole((sum as f64 / weights as f64).round()) }
}

/// The value of a piecewise linear function; outside its points it is level. Scores from 0 to 10 become 0 to 100.
fn interpolate(shape: &[(i64, i64)], at: i64) -> i64 {
    let scale = MAX_SCORE / 10;
    for (index, (x, y)) in shape.iter().enumerate() {
        if at <= *x {
            let Some((before_x, before_y)) = index.checked_sub(1).map(|before| shape[before]) else { return y * scale };
            return before_y * scale + (y - before_y) * scale * (at - before_x) / (x - before_x);
        }
    }
    shape.last().map_or(0, |(_, y)| y * scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Facts;
    use crate::testing::{node, plain, state};

    fn rejection(pod: &PodTemplate, state: &NodeState) -> Option<(Vec<String>, bool)> {
        let profile = Profile::default_for("default-scheduler");
        let site = Site { profile: &profile, facts: &Facts::default(), nodes: 1 };
        filter(pod, state, site).map(|r| (r.reasons.iter().map(ToString::to_string).collect(), r.resolvable))
    }

    #[test]
    fn every_resource_that_is_short_is_named() {
        let full = state(node("n1", 1000, 1000), &[plain(900, 100)]);
        let cases = [
            (plain(100, 900), None),
            (plain(101, 900), Some((vec!["Insufficient cpu"], true))),
            (plain(101, 901), Some((vec!["Insufficient cpu", "Insufficient memory"], true))),
            (plain(1001, 0), Some((vec!["Insufficient cpu"], false))),
            (plain(0, 0), None),
        ];
        for (pod, expected) in cases {
            let expected = expected.map(|(reasons, r)| (reasons.into_iter().map(str::to_owned).collect::<Vec<_>>(), r));
            assert_eq!(rejection(&pod, &full), expected, "{:?}", pod.requests);
        }
    }

    #[test]
    fn the_number_of_pods_is_a_limit_even_for_pods_that_request_nothing() {
        let mut info = node("n1", 1000, 1000);
        info.max_pods = 1;
        let full = state(info, &[plain(0, 0)]);
        assert_eq!(rejection(&plain(0, 0), &full), Some((vec!["Too many pods".to_owned()], true)));
    }

    #[test]
    fn extended_resources_are_checked_unless_ignored() {
        let mut pod = plain(0, 0);
        pod.requests.set_scalar("example.com/gpu".into(), 1);
        let state = state(node("n1", 1000, 1000), &[]);
        assert_eq!(rejection(&pod, &state), Some((vec!["Insufficient example.com/gpu".to_owned()], false)));
        let mut profile = Profile::default_for("default-scheduler");
        profile.ignored_groups.push("example.com".into());
        assert_eq!(filter(&pod, &state, Site { profile: &profile, facts: &Facts::default(), nodes: 1 }), None);
    }

    #[test]
    fn strategies_score_as_upstream() {
        // leastrequested_test.go: (4000-3000)/4000 and (10000-5000)/10000 give (25+50)/2; and so on.
        let shape = vec![(0, 10), (100, 0)];
        let cases = [
            (FitStrategy::LeastAllocated, 4000, 10000, 3000, 5000, 37),
            (FitStrategy::LeastAllocated, 6000, 10000, 3000, 5000, 50),
            (FitStrategy::MostAllocated, 4000, 10000, 3000, 5000, 62),
            (FitStrategy::MostAllocated, 6000, 10000, 3000, 5000, 50),
            (FitStrategy::RequestedToCapacityRatio(shape.clone()), 4000, 10000, 3000, 5000, 38),
            (FitStrategy::RequestedToCapacityRatio(shape), 6000, 10000, 3000, 5000, 50),
        ];
        for (strategy, cpu, memory, wants_cpu, wants_memory, expected) in cases {
            let mut profile = Profile::default_for("default-scheduler");
            profile.fit = strategy.clone();
            let site = Site { profile: &profile, facts: &Facts::default(), nodes: 1 };
            let got = score(&plain(wants_cpu, wants_memory), &state(node("n1", cpu, memory), &[]), site);
            assert_eq!(got, expected, "{strategy:?} {cpu} {memory}");
        }
    }

    #[test]
    fn a_shape_is_level_outside_its_points() {
        let shape = [(20, 2), (80, 8)];
        for (at, expected) in [(0, 20), (20, 20), (50, 50), (80, 80), (100, 80)] {
            assert_eq!(interpolate(&shape, at), expected, "at {at}");
        }
    }
}
