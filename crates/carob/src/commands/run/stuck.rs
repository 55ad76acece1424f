//! Why the Pods of a run do not start: pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::follow::{has_ended, statuses};

/// Reasons of waiting containers that no time mends.
const FOR_EVER: [&str; 2] = ["ErrImageNeverPull", "InvalidImageName"];

/// What of a Pod will never start, a line for each.
pub(super) fn for_ever(pod: &Pod) -> Vec<String> {
    waiting(pod).filter(|(_, reason, _)| FOR_EVER.contains(reason)).map(|waits| line(pod, &waits)).collect()
}

/// What has not started within the time, a line for each.
pub(super) fn unstarted(pods: &[Arc<Pod>], timeout: Duration) -> Vec<String> {
    let after = format!("after {} s", timeout.as_secs());
    if pods.is_empty() {
        return vec![format!("{after} there is no Pod yet")];
    }
    pods.iter().filter(|pod| !has_ended(pod)).flat_map(|pod| of_pod(pod, &after)).collect()
}

fn of_pod(pod: &Pod, after: &str) -> Vec<String> {
    let shown: Vec<&ContainerStatus> = statuses(pod).collect();
    if shown.is_empty() {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let unmet = conditions.into_iter().flatten().find(|condition| condition.status == "False");
        let why = match unmet {
            Some(condition) => {
                let reason = condition.reason.as_deref().unwrap_or_default();
                let message = condition.message.as_deref().unwrap_or_default();
                format!("{reason}: {message}")
            }
            None => "nothing is known of its containers".to_owned(),
        };
        return vec![format!("{}: not started {after}: {why}", pod.name_any())];
    }
    let never_ran = |name: &str| {
        let status = shown.iter().find(|status| status.name == name);
        status.is_some_and(|status| {
            let ended_before = status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
            !ended_before && status.restart_count == 0
        })
    };
    waiting(pod)
        .filter(|(name, ..)| never_ran(name))
        .map(|waits| format!("{} (not started {after})", line(pod, &waits)))
        .collect()
}

/// Name, reason and message of the containers that wait.
fn waiting<'a>(pod: &'a Pod) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    statuses(pod).filter_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let text = |value: &'a Option<String>| value.as_deref().unwrap_or_default();
        Some((status.name.as_str(), text(&waiting.reason), text(&waiting.message)))
    })
}

fn line(pod: &Pod, (container, reason, message): &(&str, &str, &str)) -> String {
    let colon = if message.is_empty() { "" } else { ": " };
    format!("{}/{container}: {reason}{colon}{message}", pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "p"}, "status": status});
        Arc::new(serde_json::from_value(pod).expect("a Pod"))
    }

    fn container(state: Value, restarts: i32) -> Value {
        json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "state": state}])
    }

    #[test]
    fn what_does_not_start_says_why() {
        let minute = Duration::from_secs(60);
        let waits = |reason: &str, restarts| {
            let state = json!({"waiting": {"reason": reason, "message": "no"}});
            pod(json!({"phase": "Pending", "containerStatuses": container(state, restarts)}))
        };
        let condition =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]);
        for (pod, expect) in [
            (waits("ImagePullBackOff", 0), vec!["p/c: ImagePullBackOff: no (not started after 60 s)"]),
            (waits("CrashLoopBackOff", 2), vec![]),
            (pod(json!({"conditions": condition})), vec!["p: not started after 60 s: Unschedulable: 0/1"]),
            (pod(json!({})), vec!["p: not started after 60 s: nothing is known of its containers"]),
            (pod(json!({"phase": "Running", "containerStatuses": container(json!({"running": {}}), 0)})), vec![]),
            (pod(json!({"phase": "Failed"})), vec![]),
        ] {
            assert_eq!(unstarted(&[pod], minute), expect);
        }
        assert_eq!(unstarted(&[], minute), ["after 60 s there is no Pod yet"]);
        assert_eq!(for_ever(&waits("ErrImageNeverPull", 0)), ["p/c: ErrImageNeverPull: no"]);
        assert!(for_ever(&waits("ErrImagePull", 0)).is_empty(), "a registry may come back");
    }
}
