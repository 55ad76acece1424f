//! A Pod is available once it has been ready for long enough (`pkg/api/v1/pod`, IsPodAvailable). Pure.

use std::time::Duration;

use carob_client::Requeue;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

/// The moment from which a ready Pod counts as available.
fn available_from(pod: &Pod, min_ready_secs: i32) -> Option<Timestamp> {
    let ready = pods::condition(pod, "Ready").filter(|ready| ready.status == crate::condition::TRUE)?;
    if min_ready_secs <= 0 {
        return Some(Timestamp::MIN);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    since.checked_add(Duration::from_secs(u64::try_from(min_ready_secs).unwrap_or(0))).ok()
}

pub(crate) fn is_available(pod: &Pod, min_ready_secs: i32, now: Timestamp) -> bool {
    available_from(pod, min_ready_secs).is_some_and(|from| from <= now)
}

/// When the next of these Pods becomes available by the passing of time alone.
pub(crate) fn next_change<'a>(pods: impl Iterator<Item = &'a Pod>, min_ready_secs: i32, now: Timestamp) -> Requeue {
    let coming = pods.filter_map(|pod| available_from(pod, min_ready_secs)).filter(|from| *from > now).min();
    match coming.and_then(|from| Duration::try_from(from.duration_since(now)).ok()) {
        // A moment later, since a timer may fire early by a fraction.
        Some(wait) => Requeue::After(wait + Duration::from_millis(10)),
        None => Requeue::No,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::condition::Condition;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn ready_since(second: i64, status: &str) -> Pod {
        let ready = PodCondition::new("Ready", status, "", "", &Time(at(second)));
        Pod { status: Some(PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() }), ..Pod::default() }
    }

    #[test]
    fn availability_comes_with_time() {
        let pod = ready_since(100, "True");
        assert!(is_available(&pod, 0, at(100)));
        assert!(!is_available(&pod, 10, at(109)));
        assert!(is_available(&pod, 10, at(110)));
        assert!(!is_available(&ready_since(0, "False"), 0, at(100)));
        let pods = [ready_since(100, "True"), ready_since(105, "True"), ready_since(0, "False")];
        let wait = next_change(pods.iter(), 10, at(104));
        assert_eq!(wait, Requeue::After(Duration::from_millis(6010)));
        assert_eq!(next_change(pods.iter(), 10, at(115)), Requeue::No);
    }
}
