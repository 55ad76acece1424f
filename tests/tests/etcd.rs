//! A server whose objects are in a real etcd: killed, cut off, compacted, restored.

use std::path::Path;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Etcd, Host, until_none};
use serde_json::{Value, json};

/// A server and its etcd, on one host.
fn start() -> Result<(Cluster, Etcd)> {
    let host = Host::new()?;
    let etcd = Etcd::start(&host, "127.0.0.1")?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    Ok((Cluster::start_on(host, &[&endpoint])?, etcd))
}

fn apply(cluster: &Cluster, object: &Value) -> Result<()> {
    let path = cluster.host.dir().join("object.json");
    fs_err::write(&path, object.to_string())?;
    cluster.kubectl(&["apply", "-f", text(&path)?]).map(drop)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a UTF-8 path")
}

fn deployment() -> Value {
    let container = json!({ "name": "main", "image": "busybox", "command": ["sleep", "1000000"] });
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": {
        "replicas": 2,
        "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } },
                      "spec": { "terminationGracePeriodSeconds": 0, "containers": [container] } } } })
}

/// Waits until kubectl succeeds, as it does again when what the server needs is there again.
fn until_it_works(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    until_none("kubectl fails", || Ok(cluster.kubectl(arguments).err().into_iter().collect()))
}

#[test]
fn objects_are_in_etcd_and_outlive_both_programs() -> Result<()> {
    let (mut cluster, mut etcd) = start()?;
    cluster.import(&["busybox"])?;
    apply(&cluster, &deployment())?;
    cluster.wait("condition=Available", "deployment/web")?;
    let names = cluster.kubectl(&["get", "pods", "--output=name"])?;

    // Keys and values are upstream's.
    let keys = etcd.keys(&cluster.host)?;
    let has = |key: &str| keys.iter().any(|own| own == key);
    for key in [
        "/registry/deployments/default/web",
        "/registry/services/specs/default/kubernetes",
        "/registry/services/endpoints/default/kubernetes",
        "/registry/namespaces/kube-system",
        "/registry/minions/carob-test",
        "/registry/clusterroles/cluster-admin",
        "/registry/priorityclasses/system-node-critical",
        "/registry/masterleases/198.51.100.1",
    ] {
        let key = key.replace("carob-test", cluster.host.name());
        assert!(has(&key), "{key} is not among {keys:#?}");
    }
    let pods: Vec<_> = keys.iter().filter(|key| key.starts_with("/registry/pods/default/web-")).collect();
    assert_eq!(pods.len(), 2);
    let stored = etcd.get(&cluster.host, pods[0])?.context("it is there")?;
    let stored: Value = serde_json::from_slice(&stored)?;
    assert_eq!((&stored["apiVersion"], &stored["kind"]), (&json!("v1"), &json!("Pod")));
    assert!(stored["metadata"]["resourceVersion"].is_null(), "it is etcd's own");

    // The server is killed and starts again: the same objects, the same Pods.
    let before = cluster.get(&["pods"])?;
    cluster.kill_server()?;
    cluster.start_server()?;
    let after = cluster.get(&["pods"])?;
    assert_eq!(before["items"], after["items"], "nothing has happened to them");

    // etcd is killed: what cannot be known is not answered, what cannot be kept is not taken.
    etcd.kill()?;
    let said = cluster.kubectl_fails(&["create", "configmap", "refused"])?;
    assert!(said.contains("no connection to http://127.0.0.1:2379"), "{said}");
    let said = cluster.kubectl_fails(&["get", "pods"])?;
    assert!(said.contains("no connection to http://127.0.0.1:2379"), "{said}");
    let old = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods?resourceVersion=0"])?;
    assert!(old.contains("\"web-"), "who asks for no more than what is known gets it");
    let said = cluster.kubectl_fails(&["get", "--raw", "/readyz"])?;
    assert!(said.contains("[-]etcd failed"), "{said}");
    etcd.start_again(&cluster.host)?;
    until_it_works(&cluster, &["create", "configmap", "taken"])?;
    until_it_works(&cluster, &["get", "--raw", "/readyz"])?;
    assert_eq!(cluster.kubectl(&["get", "pods", "--output=name"])?, names, "the same Pods");

    // It all goes on: what is scaled down ends, also over a compaction.
    etcd.compact(&cluster.host)?;
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=1"])?;
    until_none("a Pod too many", || {
        let pods = cluster.kubectl(&["get", "pods", "--output=name"])?;
        Ok(pods.lines().skip(1).map(str::to_owned).collect())
    })
}

#[test]
fn an_etcd_that_was_restored_is_refused_until_the_server_starts_again() -> Result<()> {
    let (mut cluster, mut etcd) = start()?;
    cluster.kubectl(&["create", "configmap", "before"])?;
    etcd.kill()?;
    let saved = etcd.save()?;
    etcd.start_again(&cluster.host)?;
    for number in 0..20 {
        until_it_works(&cluster, &["create", "configmap", &format!("after-{number}")])?;
    }
    etcd.kill()?;
    etcd.restore(&saved)?;
    etcd.start_again(&cluster.host)?;
    // Neither what it knew nor what etcd has now: whoever asks is told what there is to do.
    until_none("it is noticed", || {
        let said = cluster.kubectl_fails(&["get", "configmaps"])?;
        Ok(if said.contains("restored from a backup") { Vec::new() } else { vec![said] })
    })?;
    let said = cluster.kubectl_fails(&["create", "configmap", "refused"])?;
    assert!(said.contains("start every server again"), "{said}");
    cluster.kill_server()?;
    cluster.start_server()?;
    let names = cluster.kubectl(&["get", "configmaps", "--output=name"])?;
    assert!(names.contains("configmap/before") && !names.contains("configmap/after-19"), "{names}");
    cluster.kubectl(&["create", "configmap", "taken"]).map(drop)
}
