//! Following the Pods of a run: their containers' output, a line at a time, and how they end.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::LogParams;
use kube::{Api, ResourceExt};
use tokio::task::JoinSet;

/// How a container that failed ended, and when: the first of a run decides its exit code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Failure {
    /// RFC 3339, which sorts as text.
    finished: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) exit_code: i32,
}

/// Whether a Pod has ended for good.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The first of the Pod's containers that ended with a code other than zero.
pub(crate) fn first_failure(pod: &Pod) -> Option<Failure> {
    let failed = statuses(pod).filter_map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then(|| Failure {
            finished: ended.finished_at.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
            pod: pod.name_any(),
            container: status.name.clone(),
            exit_code: ended.exit_code,
        })
    });
    failed.min()
}

pub(super) fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let main = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter().chain(main).flatten()
}

/// Prints the output of every container once it has started.
pub(crate) struct Logs {
    client: kube::Client,
    /// Containers whose output is being followed: Pod UID, container, restart.
    followed: BTreeSet<(String, String, i32)>,
    readers: JoinSet<()>,
    out: Arc<Mutex<std::io::Stdout>>,
}

impl Logs {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            client,
            followed: BTreeSet::new(),
            readers: JoinSet::new(),
            out: Arc::new(Mutex::new(std::io::stdout())),
        }
    }

    /// Begins to follow what has started since the last look.
    pub(crate) fn look(&mut self, pod: &Pod) {
        let (Some(uid), Some(namespace)) = (pod.uid(), pod.namespace()) else { return };
        for status in statuses(pod) {
            let has_started =
                status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some());
            if !has_started || !self.followed.insert((uid.clone(), status.name.clone(), status.restart_count)) {
                continue;
            }
            let api = Api::namespaced(self.client.clone(), &namespace);
            let (pod, container, out) = (pod.name_any(), status.name.clone(), Arc::clone(&self.out));
            self.readers.spawn(async move {
                if let Err(error) = follow(&api, &pod, &container, &out).await {
                    tracing::warn!(pod, container, error = format!("{error:#}"), "its output cannot be followed");
                }
            });
        }
    }

    /// Waits until the output of containers that have ended is printed.
    pub(crate) async fn finish(mut self) {
        while self.readers.join_next().await.is_some() {}
    }
}

async fn follow(api: &Api<Pod>, pod: &str, container: &str, out: &Mutex<std::io::Stdout>) -> Result<()> {
    let parameters = LogParams { container: Some(container.to_owned()), follow: true, ..LogParams::default() };
    let mut lines = api.log_stream(pod, &parameters).await.context("ask for the output")?.lines();
    while let Some(line) = lines.try_next().await.context("read the output")? {
        let mut out = out.lock().expect("no holder of the output panics");
        writeln!(out, "{pod}/{container} | {line}").context("print the output")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str, ended: &[(&str, i32, &str)]) -> Pod {
        let containers: Vec<_> = ended
            .iter()
            .map(|(name, code, at)| {
                json!({ "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                        "state": { "terminated": { "exitCode": code, "finishedAt": at } } })
            })
            .collect();
        serde_json::from_value(
            json!({ "metadata": { "name": "p" }, "status": { "phase": phase, "containerStatuses": containers } }),
        )
        .expect("a Pod")
    }

    #[test]
    fn the_first_failure_in_time_decides() {
        let pod = pod(
            "Failed",
            &[("a", 3, "2026-01-01T00:00:09Z"), ("b", 7, "2026-01-01T00:00:01Z"), ("c", 0, "2026-01-01T00:00:00Z")],
        );
        let failure = first_failure(&pod).expect("a failure");
        assert_eq!((failure.container.as_str(), failure.exit_code), ("b", 7));
        assert!(has_ended(&pod));
    }

    #[test]
    fn a_pod_that_runs_has_neither_ended_nor_failed() {
        let pod = pod("Running", &[("a", 0, "2026-01-01T00:00:00Z")]);
        assert!(!has_ended(&pod) && first_failure(&pod).is_none());
    }
}
