//! Volumes that last: claims are bound, their data outlives Pods and servers, and goes when it should and only then.

use std::path::Path;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};
use serde_json::{Value, json};

/// Writes a manifest and creates what is in it.
fn create(cluster: &Cluster, name: &str, manifest: &Value) -> Result<()> {
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, manifest.to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn claim(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}})
}

/// A Pod that has the claim at `/data` and runs `script`, then stays.
fn user(name: &str, claim: &str, script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-ec", format!("{script}; touch /tmp/done; sleep 3600")],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/done"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

/// The name of the volume that a claim is bound to.
fn volume_of(cluster: &Cluster, claim: &str) -> Result<String> {
    let claim = cluster.get(&["pvc", claim])?;
    assert_eq!(claim["status"]["phase"], "Bound", "{claim}");
    Ok(claim["spec"]["volumeName"].as_str().context("it is bound to a volume")?.to_owned())
}

fn data_of(cluster: &Cluster, volume: &str) -> std::path::PathBuf {
    cluster.data_dir().join("volumes").join(volume)
}

fn gone(what: &str, path: &Path) -> Result<()> {
    until_none(what, || Ok(if path.exists() { vec![path.to_owned()] } else { Vec::new() }))
}

#[test]
fn a_stateful_set_keeps_its_data_over_its_pods_and_the_server() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "busybox",
                "command": ["sh", "-ec", "echo $(hostname) >>/data/lives; sleep 3600"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}}]}});
    create(&cluster, "set", &set)?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"])?;
    let volumes = [volume_of(&cluster, "data-db-0")?, volume_of(&cluster, "data-db-1")?];
    assert_ne!(volumes[0], volumes[1], "each has its own");
    cluster.kubectl(&["delete", "pod", "db-0", "db-1"])?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"])?;
    for pod in ["db-0", "db-1"] {
        let lives = cluster.kubectl(&["exec", pod, "--", "cat", "/data/lives"])?;
        assert_eq!(lives.lines().collect::<Vec<_>>(), [pod, pod], "two lives with one volume");
    }
    cluster.kill_server()?;
    cluster.start_server()?;
    assert_eq!(cluster.kubectl(&["exec", "db-1", "--", "cat", "/data/lives"])?.lines().count(), 2);
    assert_eq!([volume_of(&cluster, "data-db-0")?, volume_of(&cluster, "data-db-1")?], volumes);
    // The set's end leaves the claims; theirs takes the volumes along.
    cluster.kubectl(&["delete", "statefulset", "db"])?;
    assert!(data_of(&cluster, &volumes[0]).join("data/lives").exists());
    cluster.kubectl(&["delete", "pvc", "--all"])?;
    for volume in &volumes {
        gone("the volume's directory", &data_of(&cluster, volume))?;
    }
    until_none("volumes", || Ok(cluster.get(&["pv"])?["items"].as_array().cloned().unwrap_or_default()))
}

#[test]
fn a_claim_in_use_stays_and_what_is_retained_is_not_touched() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    create(&cluster, "claim", &claim("kept"))?;
    create(&cluster, "pod", &user("user", "kept", "echo precious >/data/file"))?;
    cluster.wait("condition=Ready", "pod/user")?;
    let volume = volume_of(&cluster, "kept")?;
    cluster.kubectl(&["patch", "pv", &volume, "-p", r#"{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}"#])?;
    cluster.kubectl(&["delete", "pvc", "kept", "--wait=false"])?;
    let claim_now = cluster.get(&["pvc", "kept"])?;
    assert!(claim_now["metadata"]["deletionTimestamp"].is_string(), "it waits for its Pod");
    assert_eq!(cluster.kubectl(&["exec", "user", "--", "cat", "/data/file"])?.trim(), "precious");
    cluster.kubectl(&["delete", "pod", "user"])?;
    cluster.kubectl(&["wait", "--for=delete", "pvc/kept", "--timeout=30s"])?;
    until_none("volumes that are not released", || {
        let phase = cluster.get(&["pv", &volume])?["status"]["phase"].clone();
        Ok(if phase == "Released" { Vec::new() } else { vec![phase] })
    })?;
    let file = data_of(&cluster, &volume).join("data/file");
    // A claim of the same name is another one: it gets a volume of its own.
    create(&cluster, "again", &claim("kept"))?;
    create(&cluster, "other", &user("other", "kept", "test ! -e /data/file"))?;
    cluster.wait("condition=Ready", "pod/other")?;
    assert_ne!(volume_of(&cluster, "kept")?, volume);
    assert_eq!(fs_err::read_to_string(&file)?.trim(), "precious");
    cluster.kubectl(&["delete", "pv", &volume])?;
    assert_eq!(fs_err::read_to_string(&file)?.trim(), "precious", "retained data is its owner's");
    Ok(())
}

#[test]
fn a_volume_made_by_hand_is_bound_and_lost_directories_are_told() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let dir = cluster.host.dir().join("by-hand");
    fs_err::create_dir(&dir)?;
    fs_err::write(dir.join("file"), "mine")?;
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "mine"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": dir, "type": "Directory"}}});
    let mut wanted = claim("mine");
    wanted["spec"]["storageClassName"] = "".into();
    create(&cluster, "claim", &wanted)?;
    create(&cluster, "volume", &volume)?;
    until_none("unbound claims", || {
        let phase = cluster.get(&["pvc", "mine"])?["status"]["phase"].clone();
        Ok(if phase == "Bound" { Vec::new() } else { vec![phase] })
    })?;
    create(&cluster, "pod", &user("reader", "mine", "true"))?;
    cluster.wait("condition=Ready", "pod/reader")?;
    assert_eq!(cluster.kubectl(&["exec", "reader", "--", "cat", "/data/file"])?.trim(), "mine");
    cluster.kubectl(&["delete", "pod", "reader"])?;
    fs_err::remove_dir_all(&dir)?;
    create(&cluster, "late", &user("late", "mine", "true"))?;
    until_none("words on the missing directory", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=reason=FailedMount"])?;
        Ok(if events.contains("is not a directory") { Vec::new() } else { vec![events] })
    })
}
