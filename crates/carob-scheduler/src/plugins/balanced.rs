//! NodeResourcesBalancedAllocation: prefers nodes whose resources the Pod would bring nearer to equal use.

use super::Site;
use crate::model::PodTemplate;
use crate::profile::{MAX_SCORE, ResourceWeight, whole};
use crate::snapshot::NodeState;

/// Half the maximum, and up to half of it more or less by how the balance changes (balanced_allocation.go of v1.36: the
/// balance with the Pod is compared with the balance without it). A Pod that requests none of the resources scores zero
/// on every node.
pub(crate) fn score(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> i64 {
    let resources = &site.profile.balanced_resources;
    if resources.iter().all(|weighted| pod.requests.amount(&weighted.resource) == 0) {
        return 0;
    }
    let with = balance(resources, node, Some(pod));
    let without = balance(resources, node, None);
    MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
}

/// One minus the standard deviation of the fractions in use, in points.
fn balance(resources: &[ResourceWeight], node: &NodeState, pod: Option<&PodTemplate>) -> i64 {
    let fraction = |weighted: &ResourceWeight| -> Option<f64> {
        let capacity = node.info.allocatable.amount(&weighted.resource);
        let extra = pod.map_or(0, |pod| pod.requests.amount(&weighted.resource));
        let used = node.requested().amount(&weighted.resource).saturating_add(extra);
        (capacity > 0).then(|| (used as f64 / capacity as f64).min(1.0))
    };
    let deviation = if let [one, two] = resources {
        match (fraction(one), fraction(two)) {
            (Some(one), Some(two)) => ((one - two) / 2.0).abs(),
            _ => 0.0,
        }
    } else {
        deviation(&resources.iter().filter_map(fraction).collect::<Vec<_>>())
    };
    whole((1.0 - deviation) * MAX_SCORE as f64)
}

fn deviation(fractions: &[f64]) -> f64 {
    if let [one, two] = fractions {
        return ((one - two) / 2.0).abs();
    }
    if fractions.len() < 2 {
        return 0.0;
    }
    let count = fractions.len() as f64;
    let mean = fractions.iter().sum::<f64>() / count;
    (fractions.iter().map(|fraction| (fraction - mean).powi(2)).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Facts;
    use crate::profile::Profile;
    use crate::testing::{node, plain, state};

    #[test]
    fn a_better_balance_scores_more() {
        let profile = Profile::default_for("default-scheduler");
        let site = Site { profile: &profile, facts: &Facts::default(), nodes: 1 };
        let lopsided = state(node("n1", 1000, 1000), &[plain(1000, 0)]);
        let even = state(node("n1", 1000, 1000), &[]);
        let cases = [
            ("unchanged", plain(500, 500), &even, 75),
            ("perfect to worst", plain(1000, 0), &even, 50),
            ("worst to perfect", plain(0, 1000), &lopsided, 100),
            ("requests nothing", plain(0, 0), &lopsided, 0),
        ];
        for (case, pod, state, expected) in cases {
            assert_eq!(score(&pod, state, site), expected, "{case}");
        }
    }

    #[test]
    fn three_resources_use_the_standard_deviation() {
        assert!((deviation(&[0.0, 0.5, 1.0]) - (1.0f64 / 6.0).sqrt()).abs() < 1e-12);
        assert_eq!(deviation(&[0.7]), 0.0);
    }
}
