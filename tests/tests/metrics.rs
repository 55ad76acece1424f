//! What Pods use, shown by `kubectl top`, told to Prometheus, and followed by an autoscaler under load.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use carob_testkit::{Cluster, until_none};
use serde_json::Value;

/// Burns a processor until a file says otherwise.
const LOAD: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: load}
spec:
  selector: {matchLabels: {app: load}}
  template:
    metadata: {labels: {app: load}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: Never
        command: [sh, -c, 'while true; do if [ -e /flag/idle ]; then sleep 1; fi; done']
        resources: {requests: {cpu: 20m, memory: 8Mi}, limits: {cpu: 100m}}
        livenessProbe: {exec: {command: ['true']}, periodSeconds: 1, timeoutSeconds: 20}
        volumeMounts: [{name: flag, mountPath: /flag}]
      volumes: [{name: flag, hostPath: {path: FLAG, type: Directory}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: load}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: load}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: blind}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: other}
  maxReplicas: 3
  metrics:
  - {type: External, external: {metric: {name: queue}, target: {type: Value, value: '3'}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: other}
spec:
  selector: {matchLabels: {app: other}}
  template:
    metadata: {labels: {app: other}}
    spec: {containers: [{name: main, image: busybox, imagePullPolicy: Never, command: [sleep, infinity]}]}
";

fn condition(autoscaler: &Value, kind: &str) -> String {
    let all = autoscaler["status"]["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|condition| condition["type"] == kind));
    found.map(|found| format!("{} {}", found["status"], found["reason"]).replace('"', "")).unwrap_or_default()
}

/// Waits until the autoscaler fits.
fn until(cluster: &Cluster, name: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    until_none("autoscalers that are not where they are to be", || {
        let found = cluster.get(&["hpa", name])?;
        Ok(if fits(&found) { Vec::new() } else { vec![found["status"].to_string()] })
    })
    .with_context(|| cluster.describe(&format!("hpa/{name}")))?;
    cluster.get(&["hpa", name])
}

fn raw(cluster: &Cluster, path: &str) -> Result<String> {
    cluster.kubectl(&["get", "--raw", path])
}

#[test]
fn use_is_measured_and_followed() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let flag = cluster.host.dir().join("flag");
    fs_err::create_dir(&flag)?;
    let manifest = cluster.host.dir().join("load.yaml");
    fs_err::write(&manifest, LOAD.replace("FLAG", flag.to_str().context("a UTF-8 path")?))?;
    cluster.kubectl(&["apply", "-f", manifest.to_str().context("a UTF-8 path")?])?;
    cluster.wait("condition=Available", "deployment/load")?;

    // What nodes and Pods use, in both forms.
    until_none("pods whose use is not known", || {
        let top = cluster.kubectl(&["top", "pods", "--no-headers", "-l", "app=load"]).unwrap_or_default();
        let words: Vec<&str> = top.split_whitespace().collect();
        let known = words.len() >= 3 && words[0].starts_with("load-") && words[1].ends_with('m');
        Ok(if known { Vec::new() } else { vec![top] })
    })?;
    let nodes = cluster.kubectl(&["top", "nodes", "--no-headers"])?;
    assert!(nodes.contains(cluster.host.name()) && nodes.contains('%'), "{nodes}");
    let one: Value = serde_json::from_str(&raw(&cluster, "/apis/metrics.k8s.io/v1beta1/nodes")?)?;
    assert_eq!(one["items"][0]["kind"], "NodeMetrics");

    // The same as the node tells it.
    let node = format!("/api/v1/nodes/{}/proxy", cluster.host.name());
    let resource = raw(&cluster, &format!("{node}/metrics/resource"))?;
    assert!(resource.contains("container_start_time_seconds{container=\"main\",namespace=\"default\""), "{resource}");
    let cadvisor = raw(&cluster, &format!("{node}/metrics/cadvisor"))?;
    for name in
        ["container_memory_rss{container=\"main\"", "container_network_receive_bytes_total{", "machine_cpu_cores "]
    {
        assert!(cadvisor.contains(name), "{name} in {cadvisor}");
    }
    until_none("probes that are not counted", || {
        let probes = raw(&cluster, &format!("{node}/metrics/probes"))?;
        let counted = probes.contains("probe_type=\"Liveness\",result=\"successful\"}");
        Ok(if counted { Vec::new() } else { vec![probes] })
    })?;
    let summary: Value = serde_json::from_str(&raw(&cluster, &format!("{node}/stats/summary"))?)?;
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{summary}");
    assert!(summary["pods"][0]["ephemeral-storage"]["usedBytes"].is_u64(), "{summary}");

    // Up under load, and down again when it ends.
    let grown = until(&cluster, "load", |found| found["status"]["currentReplicas"] == 3)?;
    assert_eq!(condition(&grown, "ScalingActive"), "True ValidMetricFound");
    let events = cluster.kubectl(&["get", "events", "--field-selector", "reason=SuccessfulRescale"])?;
    assert!(events.contains("cpu resource utilization (percentage of request) above target"), "{events}");
    fs_err::write(flag.join("idle"), "")?;
    until(&cluster, "load", |found| found["status"]["currentReplicas"] == 1)?;

    // What nothing serves is said as upstream says it.
    let blind = until(&cluster, "blind", |found| !condition(found, "ScalingActive").is_empty())?;
    assert_eq!(condition(&blind, "ScalingActive"), "False FailedGetExternalMetric");
    assert_eq!(condition(&blind, "AbleToScale"), "True SucceededGetScale");
    Ok(())
}

/// A Pod that ends with a code of its own, one with a claim, and one that no node takes.
const FIGURES: &str = "
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: main, image: busybox, command: [sh, -c, exit 139]}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeps}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, command: [sleep, infinity], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
---
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  nodeSelector: {nowhere: here}
  containers: [{name: main, image: busybox}]
";

/// Fails where Prometheus would not read the text: a family has one head, its samples stand behind it, and no sample is there twice.
fn check_format(path: &str, text: &str) -> Result<()> {
    let (mut heads, mut samples) = (BTreeSet::new(), BTreeSet::new());
    let mut family = ("", "");
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            family = head.split_once(' ').with_context(|| format!("{path}: a name and a type in {line:?}"))?;
            ensure!(heads.insert(family.0), "{path}: {} has two heads", family.0);
            ensure!(matches!(family.1, "counter" | "gauge" | "histogram"), "{path}: {line}");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.split_once("} ").or_else(|| line.split_once(' ')).context("a value")?;
            ensure!(samples.insert(sample), "{path}: {sample} is there twice");
            let value = value.split(' ').next().unwrap_or_default();
            ensure!(value.parse::<f64>().is_ok(), "{path}: no number in {line:?}");
            let name = sample.split('{').next().unwrap_or_default();
            let suffix = name.strip_prefix(family.0).with_context(|| format!("{path}: {line:?} below {family:?}"))?;
            let fits = match family.1 {
                "histogram" => matches!(suffix, "_bucket" | "_sum" | "_count"),
                _ => suffix.is_empty(),
            };
            ensure!(fits, "{path}: {line:?} below {family:?}");
        }
    }
    ensure!(!samples.is_empty(), "{path} has no figures");
    Ok(())
}

#[test]
fn figures_have_the_names_that_rules_read() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let manifest = cluster.host.dir().join("figures.yaml");
    fs_err::write(&manifest, FIGURES)?;
    cluster.kubectl(&["apply", "-f", manifest.to_str().context("a UTF-8 path")?])?;
    cluster.wait("condition=Ready", "pod/keeps")?;
    cluster.wait("jsonpath={.status.phase}=Failed", "pod/ends")?;
    cluster.wait("condition=PodScheduled=False", "pod/waits")?;
    let node = format!("/api/v1/nodes/{}/proxy", cluster.host.name());
    let expected = [
        (
            "/metrics".to_owned(),
            &[
                "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",scope=\"resource\",component=\"apiserver\",code=\"201\",dry_run=\"\",system_client=\"\"} 3",
                "apiserver_request_duration_seconds_bucket{verb=\"POST\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",scope=\"resource\",component=\"apiserver\",dry_run=\"\",le=\"+Inf\"} 3",
                "apiserver_longrunning_requests{verb=\"WATCH\",group=\"\",version=\"v1\",resource=\"pods\",",
                "apiserver_admission_step_admission_duration_seconds_count{operation=\"CREATE\",rejected=\"false\",type=\"admit\"} ",
                "workqueue_work_duration_seconds_count{name=\"job\"} ",
                "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 2",
                "scheduler_pending_pods{queue=\"unschedulable\"} 1",
                "process_resident_memory_bytes ",
                "kubernetes_build_info{git_version=\"v1.36.",
            ][..],
        ),
        ("/metrics/slis".to_owned(), &["kubernetes_healthcheck{name=\"etcd\",type=\"livez\"} 1"]),
        (
            format!("{node}/metrics"),
            &[
                "kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"139\",reason=\"Error\"} 1",
                "kubelet_started_containers_total{container_type=\"container\"} 2",
                "kubelet_volume_stats_capacity_bytes{namespace=\"default\",persistentvolumeclaim=\"data\"} ",
                "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 2",
                "kubelet_pod_start_duration_seconds_count ",
            ],
        ),
        (format!("{node}/metrics/cadvisor"), &["container_memory_rss{container=\"main\",id=\""]),
        (format!("{node}/metrics/resource"), &["pod_memory_working_set_bytes{namespace=\"default\",pod=\"keeps\"} "]),
    ];
    for (path, lines) in expected {
        let text = raw(&cluster, &path)?;
        check_format(&path, &text)?;
        for line in lines {
            ensure!(text.lines().any(|own| own.starts_with(line)), "{path} has no {line}\n{text}");
        }
    }
    let cadvisor = raw(&cluster, &format!("{node}/metrics/cadvisor"))?;
    let of_container = |line: &&str| line.starts_with("container_memory_rss{container=\"main\"");
    ensure!(cadvisor.lines().filter(of_container).all(|line| line.contains("image=\"busybox\"")), "{cadvisor}");
    let statuses = cluster.kubectl(&["get", "componentstatuses", "--no-headers"])?;
    let healthy = |name: &str| statuses.lines().any(|line| line.starts_with(name) && line.contains("Healthy"));
    ensure!(["controller-manager", "scheduler", "etcd-0"].into_iter().all(healthy), "{statuses}");
    Ok(())
}
