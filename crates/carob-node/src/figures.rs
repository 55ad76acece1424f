//! What the node counts of its own work, by the kubelet's names (`pkg/kubelet/metrics/metrics.go`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use carob_kit::metrics::{Exposition, Histogram, Kind, Series};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

/// Upper bounds of the time that a Pod takes to run, in seconds.
const POD_START_BOUNDS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Of a call to the runtime: 5 ms, and 13 times as long again each by a factor of 2.5.
const OPERATION_BOUNDS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];
/// Kinds of containers times codes, or reasons, that are told apart.
const SETS_MAX: usize = 512;

/// Counts since the node's start.
#[derive(Debug)]
pub struct NodeFigures {
    sandboxes: AtomicU64,
    sandbox_errors: AtomicU64,
    containers: Series<u64>,
    container_errors: Series<u64>,
    terminated: Series<u64>,
    pod_starts: Mutex<Histogram>,
    operations: Series<Histogram>,
    operation_errors: Series<u64>,
    evictions: Series<u64>,
}

impl Default for NodeFigures {
    fn default() -> Self {
        Self {
            sandboxes: AtomicU64::new(0),
            sandbox_errors: AtomicU64::new(0),
            containers: Series::new(&["container_type"], SETS_MAX),
            container_errors: Series::new(&["container_type", "code"], SETS_MAX),
            terminated: Series::new(&["container_type", "exit_code", "reason"], SETS_MAX),
            pod_starts: Mutex::new(Histogram::new(POD_START_BOUNDS)),
            operations: Series::new(&["operation_type"], SETS_MAX),
            operation_errors: Series::new(&["operation_type"], SETS_MAX),
            evictions: Series::new(&["eviction_signal"], SETS_MAX),
        }
    }
}

impl NodeFigures {
    /// A call to the runtime has ended.
    pub fn operation(&self, name: &str, has_failed: bool, took: Duration) {
        self.operations.observe_time(&[name], OPERATION_BOUNDS, took);
        if has_failed {
            self.operation_errors.count(&[name]);
        }
    }

    /// A Pod got its sandbox, or did not.
    pub fn sandbox_made(&self, has_failed: bool) {
        self.sandboxes.fetch_add(1, Ordering::Relaxed);
        self.sandbox_errors.fetch_add(u64::from(has_failed), Ordering::Relaxed);
    }

    /// A container could not be started; `code` is the reason in its status.
    pub fn container_failed(&self, status: &PodStatus, container: &str, code: &str) {
        self.container_errors.count(&[kind_of(status, container), code]);
    }

    pub fn evicted(&self, signal: &str) {
        self.evictions.count(&[signal]);
    }

    /// A Pod that was first seen so long ago has another status now: counts what has begun and ended since.
    pub fn changed(&self, old: &PodStatus, new: &PodStatus, seen_for: Duration) {
        let is_running = |status: &PodStatus| status.phase.as_deref() == Some("Running");
        if is_running(new) && matches!(old.phase.as_deref(), None | Some("Pending")) {
            self.pod_starts.lock().unwrap_or_else(PoisonError::into_inner).observe_time(seen_for);
        }
        let before = runs(old);
        for (id, run) in runs(new) {
            let known = before.get(id);
            if known.is_none() {
                self.containers.count(&[run.kind]);
            }
            if let Some((code, reason)) = run.end
                && known.is_none_or(|known| known.end.is_none())
            {
                self.terminated.count(&[run.kind, &code.to_string(), reason]);
            }
        }
    }

    pub fn write(&self, out: &mut Exposition) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let help = "Cumulative number of pods started";
        out.single("kubelet_started_pods_total", Kind::Counter, help, count(&self.sandboxes));
        let help = "Cumulative number of errors when starting pods";
        out.single("kubelet_started_pods_errors_total", Kind::Counter, help, count(&self.sandbox_errors));
        self.containers.write(out, "kubelet_started_containers_total", "Cumulative number of containers started");
        let help = "Cumulative number of errors when starting containers";
        self.container_errors.write(out, "kubelet_started_containers_errors_total", help);
        let help = "Cumulative number of container terminations.";
        self.terminated.write(out, "kubelet_terminated_containers_total", help);
        let help = "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
        let starts = self.pod_starts.lock().unwrap_or_else(PoisonError::into_inner);
        out.family("kubelet_pod_start_duration_seconds", Kind::Histogram, help).histogram(&[], &starts);
        drop(starts);
        let help = "Cumulative number of runtime operations by operation type.";
        let family = out.family("kubelet_runtime_operations_total", Kind::Counter, help);
        self.operations.each(|labels, times| family.sample(labels, times.count()));
        let help = "Duration in seconds of runtime operations. Broken down by operation type.";
        self.operations.write(out, "kubelet_runtime_operations_duration_seconds", help);
        let help = "Cumulative number of runtime operation errors by operation type.";
        self.operation_errors.write(out, "kubelet_runtime_operations_errors_total", help);
        self.evictions.write(out, "kubelet_evictions", "Cumulative number of pod evictions by eviction signal");
    }
}

/// One run of a container, as a status shows it.
struct Run<'a> {
    kind: &'static str,
    /// Exit code and reason.
    end: Option<(i32, &'a str)>,
}

fn by_kind(status: &PodStatus) -> impl Iterator<Item = (&'static str, &ContainerStatus)> {
    let main = status.container_statuses.iter().flatten().map(|shown| ("container", shown));
    let init = status.init_container_statuses.iter().flatten().map(|shown| ("init_container", shown));
    let debug = status.ephemeral_container_statuses.iter().flatten().map(|shown| ("ephemeral_container", shown));
    main.chain(init).chain(debug)
}

fn kind_of(status: &PodStatus, container: &str) -> &'static str {
    by_kind(status).find(|(_, shown)| shown.name == container).map_or("container", |(kind, _)| kind)
}

/// The runs that a status shows, the present ones and those before, by the container's id.
fn runs(status: &PodStatus) -> BTreeMap<&str, Run<'_>> {
    let mut runs = BTreeMap::new();
    for (kind, shown) in by_kind(status) {
        let ends =
            [&shown.last_state, &shown.state].into_iter().flatten().filter_map(|state| state.terminated.as_ref());
        if let Some(id) = shown.container_id.as_deref() {
            runs.insert(id, Run { kind, end: None });
        }
        for end in ends {
            if let Some(id) = end.container_id.as_deref() {
                runs.insert(id, Run { kind, end: Some((end.exit_code, end.reason.as_deref().unwrap_or_default())) });
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(value: serde_json::Value) -> PodStatus {
        serde_json::from_value(value).expect("a status")
    }

    fn text(figures: &NodeFigures) -> String {
        let mut out = Exposition::default();
        figures.write(&mut out);
        out.into_text()
    }

    #[test]
    fn beginnings_and_ends_are_counted_once() {
        let figures = NodeFigures::default();
        let pending =
            status(json!({"phase": "Pending", "containerStatuses": [{"name": "c", "state": {"waiting": {}}}]}));
        let running = status(json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "containerID": "carob://1", "state": {"running": {}}}]}));
        let again = status(json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "containerID": "carob://2", "state": {"running": {}},
             "lastState": {"terminated": {"containerID": "carob://1", "exitCode": 139, "reason": "Error"}}}],
            "initContainerStatuses": [{"name": "i", "containerID": "carob://3",
                "state": {"terminated": {"containerID": "carob://3", "exitCode": 0, "reason": "Completed"}}}]}));
        figures.changed(&pending, &running, Duration::from_millis(700));
        figures.changed(&running, &again, Duration::from_secs(9));
        figures.changed(&again, &again, Duration::from_secs(9));
        let shown = text(&figures);
        for line in [
            "kubelet_started_containers_total{container_type=\"container\"} 2",
            "kubelet_started_containers_total{container_type=\"init_container\"} 1",
            "kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"139\",reason=\"Error\"} 1",
            "kubelet_terminated_containers_total{container_type=\"init_container\",exit_code=\"0\",reason=\"Completed\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"0.5\"} 0",
            "kubelet_pod_start_duration_seconds_bucket{le=\"1\"} 1",
            "kubelet_pod_start_duration_seconds_count 1",
        ] {
            assert!(shown.lines().any(|own| own == line), "{line}: {shown}");
        }
    }

    #[test]
    fn failures_are_counted_by_what_failed() {
        let figures = NodeFigures::default();
        figures.operation("run_podsandbox", false, Duration::from_millis(10));
        figures.operation("run_podsandbox", true, Duration::from_millis(10));
        let pod = status(json!({"initContainerStatuses": [{"name": "i", "state": {"waiting": {}}}]}));
        figures.container_failed(&pod, "i", "ErrImagePull");
        let shown = text(&figures);
        for line in [
            "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 2",
            "kubelet_runtime_operations_errors_total{operation_type=\"run_podsandbox\"} 1",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"run_podsandbox\",le=\"0.0125\"} 2",
            "kubelet_started_containers_errors_total{container_type=\"init_container\",code=\"ErrImagePull\"} 1",
        ] {
            assert!(shown.lines().any(|own| own == line), "{line}: {shown}");
        }
    }
}
