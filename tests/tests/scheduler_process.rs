//! The scheduler as a process of its own: two of them, one leader, and the other when that one is killed.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Process};
use serde_json::{Value, json};

/// A Pod that gets a node but never starts: its image is nowhere.
fn create(cluster: &Cluster, name: &str, cpu: &str) -> Result<()> {
    let container =
        json!({"name": "c", "image": "nowhere", "imagePullPolicy": "Never", "resources": {"requests": {"cpu": cpu}}});
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}});
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, pod.to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?])?;
    Ok(())
}

fn start_scheduler(cluster: &Cluster) -> Result<Process> {
    let kubeconfig = cluster.data_dir().join("scheduler.kubeconfig");
    cluster.start_carob(&["scheduler", "--kubeconfig", kubeconfig.to_str().context("a UTF-8 path")?])
}

fn leader(cluster: &Cluster) -> Result<String> {
    let lease = cluster.get(&["lease", "kube-scheduler", "--namespace=kube-system"])?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn of_two_schedulers_one_leads_and_the_other_takes_over() -> Result<()> {
    let cluster = Cluster::start_with(&["--disable=scheduler"])?;
    create(&cluster, "first", "1m")?;
    let why = cluster.carob(&["why", "pod/first"])?;
    assert!(why.contains("no scheduler has looked at the Pod yet"), "{why}");
    let mut schedulers = vec![start_scheduler(&cluster)?, start_scheduler(&cluster)?];
    cluster.wait("condition=PodScheduled", "pod/first")?;
    let old = leader(&cluster)?;
    let place = schedulers.iter().position(|one| one.first_line.trim().ends_with(&old));
    schedulers.swap_remove(place.with_context(|| format!("{old} is one of the two"))?).kill()?;
    create(&cluster, "second", "1m")?;
    cluster.wait("condition=PodScheduled", "pod/second")?;
    let new = leader(&cluster)?;
    assert!(schedulers[0].first_line.trim().ends_with(&new) && new != old, "{new} leads after {old}");
    create(&cluster, "large", "1000")?;
    cluster.wait("condition=PodScheduled=False", "pod/large")?;
    let why = cluster.carob(&["why", "large", "--output=json"])?;
    let why: Value = serde_json::from_str(&why)?;
    assert_eq!(why["scheduling"]["reasons"][0]["plugin"], "NodeResourcesFit", "{why:#}");
    Ok(())
}
