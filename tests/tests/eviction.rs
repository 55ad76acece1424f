//! A node that is short of disk gives up the Pods that take most of it, and says so.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};
use serde_json::Value;

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, 'head -c 225000000 /dev/zero > /data/big; sleep infinity']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  containers: [{name: main, image: busybox, imagePullPolicy: Never, command: [sleep, infinity]}]
";

const LATE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  nodeName: NODE
  containers: [{name: main, image: busybox, imagePullPolicy: Never, command: [sleep, infinity]}]
";

fn has_disk_pressure(cluster: &Cluster) -> Result<bool> {
    let node = cluster.get(&["node", cluster.host.name()])?;
    let conditions = node["status"]["conditions"].as_array().context("conditions")?;
    Ok(conditions.iter().any(|condition| condition["type"] == "DiskPressure" && condition["status"] == "True"))
}

fn apply(cluster: &Cluster, text: &str) -> Result<()> {
    let path = cluster.host.dir().join("pods.yaml");
    fs_err::write(&path, text)?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

#[test]
fn the_greediest_pod_goes_when_the_disk_fills() -> Result<()> {
    let mut cluster = Cluster::start_with(&[
        "--eviction-hard",
        "nodefs.available<35%",
        "--eviction-pressure-transition-period",
        "20s",
    ])?;
    // Once more, on a small disk of its own.
    cluster.kill_server()?;
    cluster.host.add_disk(&cluster.data_dir(), 300)?;
    cluster.start_server()?;
    cluster.import(&["busybox"])?;
    apply(&cluster, PODS)?;
    cluster.wait("condition=Ready", "pod/modest")?;
    cluster.wait("jsonpath={.status.reason}=Evicted", "pod/hog")?;
    let hog = cluster.get(&["pod", "hog"])?;
    let message = hog["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: "), "{message}");
    let conditions = hog["status"]["conditions"].as_array().context("conditions")?;
    let disrupted = |one: &Value| one["type"] == "DisruptionTarget" && one["reason"] == "TerminationByKubelet";
    assert!(conditions.iter().any(disrupted), "{conditions:?}");
    assert!(has_disk_pressure(&cluster)?);
    let events = cluster.kubectl(&["get", "events", "--all-namespaces"])?;
    assert!(events.contains("EvictionThresholdMet") && events.contains("Attempting to reclaim ephemeral-storage"));

    // Nobody new is taken in meanwhile.
    apply(&cluster, &LATE.replace("NODE", cluster.host.name()))?;
    cluster.wait("jsonpath={.status.reason}=Evicted", "pod/late")?;
    let late = cluster.get(&["pod", "late"])?;
    assert_eq!(late["status"]["message"], "The node had condition: [DiskPressure]. ");

    cluster.kubectl(&["delete", "pod", "hog", "late"])?;
    until_none("pressure without a cause", || {
        Ok(if has_disk_pressure(&cluster)? { vec!["disk"] } else { Vec::new() })
    })?;
    let modest = cluster.get(&["pod", "modest"])?;
    assert_eq!(
        (&modest["status"]["phase"], &modest["status"]["containerStatuses"][0]["restartCount"]),
        (&"Running".into(), &0.into())
    );
    Ok(())
}
