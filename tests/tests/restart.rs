//! `kill -9` of the server: every Pod runs on, and the next server takes them up as they are.

use anyhow::{Context, Result};
use carob_testkit::Cluster;

const COUNTER: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "counter"}, "spec": {
    "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "busybox",
    "command": ["sh", "-c", "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.05; done"]}]}}"#;

/// Writes the counting Pod's manifest and returns its path.
fn counter(cluster: &Cluster) -> Result<String> {
    let path = cluster.host.dir().join("counter.json");
    fs_err::write(&path, COUNTER)?;
    Ok(path.to_str().context("a UTF-8 path")?.to_owned())
}

#[test]
fn a_killed_server_restarts_nothing_and_loses_no_line() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    cluster.kubectl(&["create", "-f", &counter(&cluster)?])?;
    cluster.wait("condition=Ready", "pod/counter")?;
    let before = cluster.get(&["pod", "counter"])?;
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.kubectl(&["exec", "counter", "--", "true"])?;
    let after = cluster.get(&["pod", "counter"])?;
    assert_eq!(before["status"], after["status"], "no status changes");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    let log = cluster.kubectl(&["logs", "counter"])?;
    let ticks = log.lines().filter_map(|line| line.strip_prefix("tick "));
    let numbers: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
    assert!(numbers.len() > 10, "{log}");
    assert!(numbers.iter().zip(1..).all(|(found, expected)| *found == expected), "a gap in the log");
    cluster.kubectl(&["delete", "pod", "counter"]).map(drop)
}

#[test]
fn a_deleted_pod_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let manifest = counter(&cluster)?;
    let (mounts, links) = (cluster.host.mounts()?, cluster.host.links()?);
    let processes = cluster.host.processes()?.len();
    for _ in 0..2 {
        cluster.kubectl(&["create", "-f", &manifest])?;
        cluster.wait("condition=Ready", "pod/counter")?;
        cluster.kubectl(&["delete", "pod", "counter"])?;
    }
    assert_eq!(cluster.host.mounts()?, mounts);
    assert_eq!(cluster.host.links()?, links);
    let left = cluster.host.processes()?;
    assert_eq!(left.len(), processes, "{left:?}");
    let cgroups = cluster.host.cgroups()?;
    let pods: Vec<_> = cgroups.iter().filter(|path| path.to_string_lossy().contains("/pod")).collect();
    assert!(pods.is_empty(), "{pods:?}");
    Ok(())
}
