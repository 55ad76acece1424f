//! `kill -9` of the server: every Pod runs on, and the next server takes them up as they are.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};

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
    assert!(numbers.len() > 1, "{log}");
    assert!(numbers.iter().zip(1..).all(|(found, expected)| *found == expected), "a gap in the log");
    cluster.kubectl(&["delete", "pod", "counter"]).map(drop)
}

/// What a host holds that Pods could leave behind.
struct Remains {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    processes: usize,
}

impl Remains {
    fn of(cluster: &Cluster) -> Result<Self> {
        let host = &cluster.host;
        Ok(Self { mounts: host.mounts()?, links: host.links()?, processes: host.processes()?.len() })
    }

    /// Fails unless the host comes back to this.
    fn nothing_more(&self, cluster: &Cluster) -> Result<()> {
        let host = &cluster.host;
        until_none("mounts", || Ok(host.mounts()?.difference(&self.mounts).cloned().collect()))?;
        until_none("links", || Ok(host.links()?.difference(&self.links).cloned().collect()))?;
        until_none("cgroups of Pods", || {
            Ok(host.cgroups()?.into_iter().filter(|path| path.to_string_lossy().contains("/pod")).collect())
        })?;
        until_none("processes", || {
            let now: Vec<_> = host.processes()?.into_iter().collect();
            Ok(if now.len() > self.processes { now } else { Vec::new() })
        })
    }
}

#[test]
fn a_deleted_pod_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let manifest = counter(&cluster)?;
    let before = Remains::of(&cluster)?;
    for _ in 0..2 {
        cluster.kubectl(&["create", "-f", &manifest])?;
        cluster.wait("condition=Ready", "pod/counter")?;
        cluster.kubectl(&["delete", "pod", "counter"])?;
    }
    before.nothing_more(&cluster)
}

/// Kills of the server in [`a_server_killed_at_random_moments_loses_nothing`].
const KILLS: u64 = 50;

#[test]
fn a_server_killed_at_random_moments_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let before = Remains::of(&cluster)?;
    cluster.kubectl(&["create", "-f", &counter(&cluster)?])?;
    cluster.wait("condition=Ready", "pod/counter")?;
    let container = |cluster: &Cluster| -> Result<String> {
        let pod = cluster.get(&["pod", "counter"])?;
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["restartCount"], 0);
        Ok(status["containerID"].to_string())
    };
    let id = container(&cluster)?;
    let mut acknowledged = Vec::new();
    for round in 0..KILLS {
        // The load: writers that count what the server has acknowledged, until it is killed under them.
        let script = "i=0; while kubectl create configmap $0-$i >/dev/null 2>&1; do echo $0-$i; i=$((i+1)); done";
        let mut writers = Vec::new();
        for writer in 0..2 {
            let mut command = cluster.host.command("sh");
            command.env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig"));
            command.args(["-c", script, &format!("round-{round}-{writer}")]).stdout(Stdio::piped());
            writers.push(command.spawn()?);
        }
        // Spread over the time that a few writes take; the same moments in every run.
        std::thread::park_timeout(Duration::from_millis(round * 7919 % 400));
        cluster.kill_server()?;
        for writer in writers {
            let output = writer.wait_with_output()?;
            acknowledged.extend(String::from_utf8(output.stdout)?.lines().map(str::to_owned));
        }
        cluster.start_server()?;
    }
    assert_eq!(container(&cluster)?, id, "the same container still runs");
    let names = cluster.kubectl(&["get", "configmaps", "--output=name"])?;
    let names: BTreeSet<&str> = names.lines().filter_map(|line| line.strip_prefix("configmap/")).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !names.contains(name.as_str())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(acknowledged.len() as u64 > KILLS, "the load wrote only {}", acknowledged.len());
    cluster.kubectl(&["delete", "pod", "counter"])?;
    before.nothing_more(&cluster)
}
