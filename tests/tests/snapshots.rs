//! Snapshots and copies of volumes: a claim gets what was on another one's volume, as it was, and nothing is left of what goes.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};
use serde_json::{Value, json};

fn create(cluster: &Cluster, name: &str, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn claim(name: &str, size: &str, source: Option<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, "dataSource": source}})
}

fn of_snapshot(name: &str) -> Value {
    json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name})
}

fn snapshot(name: &str, source: Value) -> Value {
    json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"source": source}})
}

/// A Pod that has the claim at `/data` and is ready once `script` has ended well.
fn user(name: &str, claim: &str, script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-ec", format!("{script}; touch /tmp/done; sleep 3600")],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/done"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

/// What is in the directory of volumes.
fn kept(cluster: &Cluster) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(cluster.data_dir().join("volumes"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[test]
fn a_claim_begins_as_a_snapshot_or_a_copy_and_all_of_it_goes() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    create(
        &cluster,
        "first",
        &[
            claim("data", "16Mi", None),
            user(
                "writer",
                "data",
                "mkdir /data/dir; echo one >/data/dir/file; chown 7:8 /data/dir/file; ln -s dir/file /data/link",
            ),
        ],
    )?;
    cluster.wait("condition=Ready", "pod/writer")?;
    create(&cluster, "snapshot", &[snapshot("then", json!({"persistentVolumeClaimName": "data"}))])?;
    cluster.wait("jsonpath={.status.readyToUse}=true", "volumesnapshot/then")?;
    cluster.kubectl(&["exec", "writer", "--", "sh", "-c", "echo two >/data/dir/file"])?;
    let same =
        |words: &str| format!("test \"$(cat /data/link)\" = {words}; test \"$(stat -c %u:%g /data/dir/file)\" = 7:8");
    let of_claim = Some(json!({"kind": "PersistentVolumeClaim", "name": "data"}));
    create(
        &cluster,
        "restored",
        &[
            claim("restored", "32Mi", Some(of_snapshot("then"))),
            user("restored", "restored", &same("one")),
            claim("copy", "16Mi", of_claim),
            user("copy", "copy", &same("two")),
        ],
    )?;
    cluster.wait("condition=Ready", "pod/restored")?;
    cluster.wait("condition=Ready", "pod/copy")?;
    assert_eq!(cluster.get(&["pvc", "restored"])?["status"]["capacity"]["storage"], "32Mi");
    // Each is a volume of its own.
    cluster.kubectl(&["exec", "copy", "--", "sh", "-c", "echo three >/data/dir/file"])?;
    assert_eq!(cluster.kubectl(&["exec", "writer", "--", "cat", "/data/link"])?.trim(), "two");

    // The snapshot needs neither the claim nor its volume.
    let handle = cluster.get(&["volumesnapshotcontent"])?["items"][0]["status"]["snapshotHandle"].clone();
    cluster.kubectl(&["delete", "pod", "--all"])?;
    cluster.kubectl(&["delete", "pvc", "--all"])?;
    until_none("volumes", || Ok(cluster.get(&["pv"])?["items"].as_array().cloned().unwrap_or_default()))?;
    let name = handle.as_str().and_then(|handle| handle.split('/').nth(1)).context("a handle")?.to_owned();
    assert_eq!(kept(&cluster)?, ["id", &name]);

    // Kept by its policy, it is one that there is already, and another VolumeSnapshot's.
    let content = cluster.get(&["volumesnapshotcontent"])?["items"][0]["metadata"]["name"].clone();
    let content = content.as_str().context("a name")?;
    let retain = r#"{"spec": {"deletionPolicy": "Retain"}}"#;
    cluster.kubectl(&["patch", "volumesnapshotcontent", content, "--type=merge", "-p", retain])?;
    cluster.kubectl(&["delete", "volumesnapshot", "then"])?;
    cluster.kubectl(&["delete", "volumesnapshotcontent", content])?;
    assert_eq!(kept(&cluster)?, ["id", &name]);
    let known = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": "known"}, "spec": {"driver": "carob.io/local", "deletionPolicy": "Delete",
        "source": {"snapshotHandle": handle}, "volumeSnapshotRef": {"namespace": "default", "name": "found"}}});
    create(
        &cluster,
        "known",
        &[
            known,
            snapshot("found", json!({"volumeSnapshotContentName": "known"})),
            claim("again", "16Mi", Some(of_snapshot("found"))),
            user("again", "again", &same("one")),
        ],
    )?;
    cluster.wait("condition=Ready", "pod/again")?;
    cluster.kubectl(&["delete", "pod", "again"])?;
    cluster.kubectl(&["delete", "pvc", "again"])?;
    cluster.kubectl(&["delete", "volumesnapshot", "found"])?;
    let contents = || Ok(cluster.get(&["volumesnapshotcontent"])?["items"].as_array().cloned().unwrap_or_default());
    until_none("contents", contents)?;
    until_none("what is left", || Ok(kept(&cluster)?.into_iter().filter(|name| name != "id").collect()))
}

#[test]
fn what_a_claim_cannot_begin_with_is_told_and_waited_for() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    create(
        &cluster,
        "first",
        &[
            claim("data", "16Mi", None),
            user("writer", "data", "echo words >/data/file"),
            claim("late", "16Mi", Some(of_snapshot("late"))),
            user("late", "late", "test \"$(cat /data/file)\" = words"),
            claim("small", "8Mi", Some(json!({"kind": "PersistentVolumeClaim", "name": "data"}))),
            user("small", "small", "true"),
        ],
    )?;
    cluster.wait("condition=Ready", "pod/writer")?;
    let told = |claim: &str, words: &str| {
        until_none("words on what is missing", || {
            let why = cluster.carob(&["why", &format!("pvc/{claim}")])?;
            Ok(if why.contains(words) { Vec::new() } else { vec![why] })
        })
    };
    told("late", "is to be made of VolumeSnapshot late, which does not exist")?;
    told("late", "the snapshot late does not exist")?;
    told("small", "which has 16777216 bytes: the claim asks for less")?;
    // It comes after a restart, and is used without being asked for again.
    cluster.kill_server()?;
    cluster.start_server()?;
    create(&cluster, "late-snapshot", &[snapshot("late", json!({"persistentVolumeClaimName": "data"}))])?;
    cluster.wait("condition=Ready", "pod/late")?;
    let invalid = [snapshot("both", json!({"persistentVolumeClaimName": "a", "volumeSnapshotContentName": "b"}))];
    let refused = create(&cluster, "both", &invalid).expect_err("one of the two");
    assert!(format!("{refused:#}").contains("exactly one of"), "{refused:#}");
    Ok(())
}
