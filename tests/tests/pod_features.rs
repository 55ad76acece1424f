//! What Pods may ask for beside processes: other resources while they run, a runtime class, an image as a volume.

use anyhow::{Context, Result};
use carob_testkit::Cluster;

const SHRUNK: &str = r#"{"spec":{"containers":[{"name":"c","resources":{
    "requests":{"cpu":"15m","memory":"30Mi"},"limits":{"cpu":"25m","memory":"40Mi"}}}]}}"#;
const GROWN: &str = r#"{"spec":{"containers":[{"name":"c","resources":{
    "requests":{"cpu":"30m","memory":"50Mi"},"limits":{"cpu":"60m","memory":"60Mi"}}}]}}"#;
const RESIZED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: resized}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    command: [sleep, infinity]
    resources: {requests: {cpu: 20m, memory: 35Mi}, limits: {cpu: 30m, memory: 45Mi}}
    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}]
";

/// A Pod whose container starts over with other memory.
const WHOLE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  terminationGracePeriodSeconds: 0
  resources: {requests: {cpu: 20m, memory: 40Mi}, limits: {cpu: 60m, memory: 80Mi}}
  containers:
  - name: c
    image: busybox
    command: [sleep, infinity]
    resources: {requests: {cpu: 20m, memory: 40Mi}, limits: {cpu: 50m, memory: 50Mi}}
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
  - {name: free, image: busybox, command: [sleep, infinity]}
";

/// Asks for `CPU`, and leaves at once when it is told to.
const HOG: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: busybox, command: [sleep, infinity], resources: {requests: {cpu: CPU}}}
";

const CLASSES: &str = "
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: own}
handler: carob
overhead: {podFixed: {cpu: 10m, memory: 1Mi}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: other}
handler: runsc
";

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  runtimeClassName: own
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'cat /image/etc/debian_version /part/debian_version; touch /image/x; printf unended; exit 3']
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts: [{name: image, mountPath: /image}, {name: image, mountPath: /part, subPath: etc}]
  volumes:
  - {name: image, image: {reference: debian}}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  runtimeClassName: other
  containers: [{name: c, image: busybox, command: [sleep, infinity]}]
";

fn apply(cluster: &Cluster, text: &str) -> Result<()> {
    let path = cluster.host.dir().join("manifest.yaml");
    fs_err::write(&path, text)?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("the host's path is UTF-8")?]).map(drop)
}

/// Weight, quota and memory limit as the container itself sees them, on cgroup v1.
fn limits(cluster: &Cluster) -> Result<String> {
    let files = "cd /sys/fs/cgroup; echo $(cat cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes)";
    Ok(cluster.kubectl(&["exec", "resized", "--", "sh", "-c", files])?.trim().to_owned())
}

fn resize(cluster: &Cluster, patch: &str, memory: &str) -> Result<()> {
    cluster.kubectl(&["patch", "pod", "resized", "--subresource", "resize", "--patch", patch])?;
    let shown = format!("jsonpath={{.status.containerStatuses[0].resources.limits.memory}}={memory}");
    cluster.wait(&shown, "pod/resized")
}

#[test]
fn resources_change_while_a_container_runs() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    apply(&cluster, RESIZED)?;
    cluster.wait("condition=Ready", "pod/resized")?;
    let before = cluster.get(&["pod", "resized"])?;
    assert_eq!(limits(&cluster)?, "20 3000 47185920");
    resize(&cluster, SHRUNK, "40Mi")?;
    assert_eq!(limits(&cluster)?, "15 2500 41943040");
    cluster.kill_server()?;
    cluster.start_server()?;
    resize(&cluster, GROWN, "60Mi")?;
    assert_eq!(limits(&cluster)?, "30 6000 62914560");
    let after = cluster.get(&["pod", "resized"])?;
    let status = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0].clone();
    assert_eq!(status(&after)["containerID"], status(&before)["containerID"]);
    assert_eq!((&status(&after)["restartCount"], &after["metadata"]["generation"]), (&0.into(), &3.into()));
    let too_much =
        r#"{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"9000"},"limits":{"cpu":"9000"}}}]}}"#;
    cluster.kubectl(&["patch", "pod", "resized", "--subresource", "resize", "--patch", too_much])?;
    cluster.wait("condition=PodResizePending", "pod/resized")?;
    assert_eq!(limits(&cluster)?, "30 6000 62914560");

    let node = cluster.get(&["node", cluster.host.name()])?;
    let cores: u32 = node["status"]["allocatable"]["cpu"].as_str().context("whole cores")?.parse()?;
    apply(&cluster, &HOG.replace("CPU", &format!("{}m", cores * 1000 - 600)))?;
    cluster.wait("condition=Ready", "pod/hog")?;
    let patch =
        r#"{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"700m"},"limits":{"cpu":"800m"}}}]}}"#;
    cluster.kubectl(&["patch", "pod", "resized", "--subresource", "resize", "--patch", patch])?;
    cluster.wait(r#"jsonpath={.status.conditions[?(@.type=="PodResizePending")].reason}=Deferred"#, "pod/resized")?;
    assert_eq!(limits(&cluster)?, "30 6000 62914560");
    cluster.kubectl(&["delete", "pod", "hog", "--now"])?;
    cluster.wait("jsonpath={.status.containerStatuses[0].resources.limits.cpu}=800m", "pod/resized")?;
    assert_eq!(limits(&cluster)?, "716 80000 62914560");
    Ok(())
}

/// The CPU quota of a group below that of the cluster's host, on cgroup v1.
fn quota(cluster: &Cluster, group: &str) -> Result<String> {
    let path = format!("/sys/fs/cgroup/cpu{}/{group}/cpu.cfs_quota_us", cluster.host.cgroup_root());
    Ok(cluster.host.run("cat", [&path])?.trim().to_owned())
}

#[test]
fn a_pod_as_a_whole_is_resized() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    apply(&cluster, WHOLE)?;
    cluster.wait("condition=Ready", "pod/whole")?;
    let pod = cluster.get(&["pod", "whole"])?;
    let status = &pod["status"];
    assert_eq!(status["allocatedResources"], serde_json::json!({"cpu": "20m", "memory": "40Mi"}));
    assert_eq!(status["resources"]["limits"], serde_json::json!({"cpu": "60m", "memory": "80Mi"}));
    let group = format!("kubepods/burstable/pod{}", pod["metadata"]["uid"].as_str().context("a uid")?);
    let id = |pod: &serde_json::Value, place: usize| -> Result<String> {
        let id = pod["status"]["containerStatuses"][place]["containerID"].as_str().context("an id")?;
        Ok(format!("{group}/{}", id.trim_start_matches("carob://")))
    };
    assert_eq!(
        (quota(&cluster, &group)?.as_str(), quota(&cluster, &id(&pod, 1)?)?.as_str()),
        ("6000", "6000"),
        "a container has its Pod's limit"
    );
    // Less CPU in all than the container had that ends for its other memory, whose group stays.
    let patch = r#"{"spec":{"resources":{"limits":{"cpu":"30m"}},
        "containers":[{"name":"c","resources":{"limits":{"cpu":"30m","memory":"60Mi"}}}]}}"#;
    cluster.kubectl(&["patch", "pod", "whole", "--subresource", "resize", "--patch", patch])?;
    cluster.wait("jsonpath={.status.resources.limits.cpu}=30m", "pod/whole")?;
    let after = cluster.get(&["pod", "whole"])?;
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(id(&after, 1)?, id(&pod, 1)?, "the other one ran on");
    assert_eq!((quota(&cluster, &group)?.as_str(), quota(&cluster, &id(&after, 0)?)?.as_str()), ("3000", "3000"));
    assert_eq!(quota(&cluster, &id(&after, 1)?)?, "3000");
    let refused = r#"{"spec":{"resources":{"limits":{"cpu":null}}}}"#;
    let refused = cluster.kubectl_fails(&["patch", "pod", "whole", "--subresource", "resize", "--patch", refused])?;
    assert!(refused.contains("pod-level resource limits cannot be removed"), "{refused}");
    cluster.kill_server()?;
    cluster.start_server()?;
    let patch = r#"{"spec":{"resources":{"limits":{"cpu":"70m"}}}}"#;
    cluster.kubectl(&["patch", "pod", "whole", "--subresource", "resize", "--patch", patch])?;
    cluster.wait("jsonpath={.status.resources.limits.cpu}=70m", "pod/whole")?;
    assert_eq!(quota(&cluster, &group)?, "7000");
    Ok(())
}

#[test]
fn runtime_classes_and_images_as_volumes() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox", "debian"])?;
    let refused = apply(&cluster, PODS).expect_err("there is no such class yet");
    assert!(format!("{refused:#}").contains(r#"pod rejected: RuntimeClass "own" not found"#), "{refused:#}");
    apply(&cluster, CLASSES)?;
    apply(&cluster, PODS)?;
    cluster.wait("jsonpath={.status.phase}=Failed", "pod/own")?;
    let own = cluster.get(&["pod", "own"])?;
    assert_eq!(own["spec"]["overhead"], serde_json::json!({"cpu": "10m", "memory": "1Mi"}));
    let log = cluster.kubectl(&["logs", "own"])?;
    let (versions, rest) = log.split_at(log.find("touch").context("the volume is read-only")?);
    let versions: Vec<&str> = versions.lines().collect();
    assert!(matches!(versions[..], [whole, part] if whole == part && !whole.is_empty()), "{log}");
    assert_eq!(rest, "touch: /image/x: Read-only file system\nunended");
    let ended = &own["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["message"]), (&3.into(), &log.into()));

    cluster.wait("condition=PodScheduled", "pod/other")?;
    let events = ["events", "--for=pod/other", "--watch", "--types=Warning", "--no-headers"];
    let mut watch = cluster.kubectl_command(&events);
    let mut watch = watch.stdout(std::process::Stdio::piped()).stdin(std::process::Stdio::null()).spawn()?;
    let mut first = String::new();
    let output = watch.stdout.take().context("piped")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut first)?;
    watch.kill()?;
    watch.wait()?;
    assert!(
        first.contains("FailedCreatePodSandBox") && first.contains(r#"no runtime for "runsc" is configured"#),
        "{first}"
    );
    assert_eq!(cluster.get(&["pod", "other"])?["status"]["phase"], "Pending");
    Ok(())
}
