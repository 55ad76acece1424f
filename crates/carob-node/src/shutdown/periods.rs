//! How long Pods get when the machine shuts down, by their priority (kubelet `pkg/kubelet/nodeshutdown`). Pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

/// Pods of this priority and above are the cluster's own (`scheduling.SystemCriticalPriority`).
const SYSTEM_CRITICAL: i32 = 2_000_000_000;
/// Where Pods are that name no class, unless one is the default (`scheduling.DefaultPriorityWhenNoDefaultClassExists`).
const NO_CLASS: i32 = 0;

/// Periods that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeriodsError {
    #[error("critical Pods get {critical:?} of a period of {total:?}: it cannot be more")]
    Critical { critical: Duration, total: Duration },
    #[error("a period is 0s or at least 1s, and not {grace:?}")]
    Short { grace: Duration },
    #[error("{text:?} is not PRIORITY=DURATION, such as 0=30s")]
    Format { text: String },
    #[error("the priority {priority} has two periods")]
    Twice { priority: i32 },
}

/// As in the kubelet's configuration.
fn long_enough(grace: Duration) -> Result<(), PeriodsError> {
    let is_short = !grace.is_zero() && grace < Duration::from_secs(1);
    if is_short { Err(PeriodsError::Short { grace }) } else { Ok(()) }
}

/// How long Pods from a priority on get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    pub priority: i32,
    pub grace: Duration,
}

/// The periods of a shutdown, the lowest priority first. Without one, Pods are not ended before a shutdown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Periods(Vec<Period>);

impl Periods {
    /// One period for all, of which the last part is the critical Pods'.
    pub fn of(total: Duration, critical: Duration) -> Result<Self, PeriodsError> {
        [total, critical].into_iter().try_for_each(long_enough)?;
        let others = total.checked_sub(critical).ok_or(PeriodsError::Critical { critical, total })?;
        if total.is_zero() {
            return Ok(Self::default());
        }
        Ok(Self(vec![
            Period { priority: NO_CLASS, grace: others },
            Period { priority: SYSTEM_CRITICAL, grace: critical },
        ]))
    }

    /// A period for each priority.
    pub fn by_priority(mut periods: Vec<Period>) -> Result<Self, PeriodsError> {
        periods.iter().try_for_each(|period| long_enough(period.grace))?;
        periods.sort_unstable();
        match periods.windows(2).find(|two| two[0].priority == two[1].priority) {
            Some(two) => Err(PeriodsError::Twice { priority: two[0].priority }),
            None => Ok(Self(periods)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How long a shutdown has to wait at most.
    pub fn total(&self) -> Duration {
        self.0.iter().fold(Duration::ZERO, |sum, period| sum.saturating_add(period.grace))
    }

    /// The Pods of each period, in the order in which they end. A Pod is of the highest period that is not above its priority, or of
    /// the lowest one.
    pub fn groups(&self, pods: &[Arc<Pod>]) -> Vec<(Duration, Vec<Arc<Pod>>)> {
        let mut groups: Vec<(Duration, Vec<Arc<Pod>>)> =
            self.0.iter().map(|period| (period.grace, Vec::new())).collect();
        for pod in pods {
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(NO_CLASS);
            let above = self.0.partition_point(|period| period.priority <= priority);
            if let Some((_, group)) = groups.get_mut(above.saturating_sub(1)) {
                group.push(Arc::clone(pod));
            }
        }
        groups.retain(|(_, pods)| !pods.is_empty());
        groups
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pod(priority: i32) -> Arc<Pod> {
        let spec = PodSpec { priority: Some(priority), ..PodSpec::default() };
        Arc::new(Pod { spec: Some(spec), ..Pod::default() })
    }

    fn priorities(periods: &Periods, of: &[i32]) -> Vec<(u64, Vec<i32>)> {
        let pods: Vec<_> = of.iter().map(|priority| pod(*priority)).collect();
        let shown = |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|spec| spec.priority).expect("it has one");
        let groups = periods.groups(&pods).into_iter();
        groups.map(|(grace, pods)| (grace.as_secs(), pods.iter().map(shown).collect())).collect()
    }

    #[test]
    fn critical_pods_come_last() {
        let periods = Periods::of(30 * SECOND, 10 * SECOND).expect("it makes sense");
        assert_eq!(periods.total(), 30 * SECOND);
        let groups = priorities(&periods, &[2_000_001_000, 0, -5, 1000, 2_000_000_000]);
        assert_eq!(groups, [(20, vec![0, -5, 1000]), (10, vec![2_000_001_000, 2_000_000_000])]);
        assert!(Periods::of(Duration::ZERO, Duration::ZERO).expect("it is off").is_empty());
        assert_eq!(
            Periods::of(SECOND, 2 * SECOND),
            Err(PeriodsError::Critical { critical: 2 * SECOND, total: SECOND })
        );
        assert_eq!(Periods::of(SECOND / 2, Duration::ZERO), Err(PeriodsError::Short { grace: SECOND / 2 }));
    }

    #[test]
    fn a_pod_is_of_the_highest_period_that_is_not_above_it() {
        let period = |priority, seconds| Period { priority, grace: seconds * SECOND };
        let periods = Periods::by_priority(vec![period(1000, 5), period(10, 3), period(100_000, 7)]).expect("distinct");
        let groups = priorities(&periods, &[0, 10, 999, 1000, 5_000_000]);
        assert_eq!(groups, [(3, vec![0, 10, 999]), (5, vec![1000]), (7, vec![5_000_000])]);
        assert_eq!(Periods::by_priority(vec![period(1, 1), period(1, 2)]), Err(PeriodsError::Twice { priority: 1 }));
    }
}
