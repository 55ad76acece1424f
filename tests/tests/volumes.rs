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
fn a_retained_volume_is_given_to_another_claim_and_goes_with_it() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let policy = |name: &str, policy: &str| {
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": policy}}).to_string();
        cluster.kubectl(&["patch", "pv", name, "-p", &patch])
    };
    create(&cluster, "first", &claim("first"))?;
    create(&cluster, "writer", &user("writer", "first", "echo precious >/data/file"))?;
    cluster.wait("condition=Ready", "pod/writer")?;
    let volume = volume_of(&cluster, "first")?;
    policy(&volume, "Retain")?;
    cluster.kubectl(&["delete", "pod/writer", "pvc/first"])?;
    cluster.wait("jsonpath={.status.phase}=Released", &format!("pv/{volume}"))?;
    // As the documentation of upstream has it: without a claim it can be had again.
    let unclaimed = r#"[{"op": "remove", "path": "/spec/claimRef"}]"#;
    cluster.kubectl(&["patch", "pv", &volume, "--type=json", "-p", unclaimed])?;
    let mut second = claim("second");
    second["spec"]["volumeName"] = json!(volume);
    create(&cluster, "second", &second)?;
    create(&cluster, "reader", &user("reader", "second", "grep precious /data/file"))?;
    cluster.wait("condition=Ready", "pod/reader")?;
    policy(&volume, "Delete")?;
    cluster.kubectl(&["delete", "pod/reader", "pvc/second"])?;
    cluster.kubectl(&["wait", "--for=delete", &format!("pv/{volume}"), "--timeout=60s"])?;
    gone("the volume's directory", &data_of(&cluster, &volume))
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

/// A file that is shown as a block device until this is dropped.
struct Device<'a> {
    cluster: &'a Cluster,
    path: String,
}

impl<'a> Device<'a> {
    fn of(cluster: &'a Cluster, file: &Path) -> Result<Self> {
        let file = file.to_str().context("a UTF-8 path")?;
        let shown = cluster.host.command("losetup").args(["--find", "--show", file]).output()?;
        anyhow::ensure!(shown.status.success(), "losetup: {}", String::from_utf8_lossy(&shown.stderr));
        Ok(Self { cluster, path: String::from_utf8(shown.stdout)?.trim().to_owned() })
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let detached = self.cluster.host.command("losetup").args(["--detach", &self.path]).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking(), "{} stays", self.path);
    }
}

#[test]
fn a_device_that_is_wanted_as_a_directory_is_formatted_once() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let file = cluster.host.dir().join("disk");
    fs_err::File::create(&file)?.set_len(32 << 20)?;
    let device = Device::of(&cluster, &file)?;
    let node = cluster.get(&["node"])?["items"][0]["metadata"]["name"].clone();
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"}, "spec": {
        "capacity": {"storage": "32Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeMode": "Filesystem",
        "persistentVolumeReclaimPolicy": "Retain", "local": {"path": device.path, "fsType": "ext4"},
        "claimRef": {"namespace": "default", "name": "disk"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}});
    let mut wanted = claim("disk");
    (wanted["spec"]["storageClassName"], wanted["spec"]["volumeName"]) = ("".into(), "disk".into());
    create(&cluster, "volume", &volume)?;
    create(&cluster, "claim", &wanted)?;
    let mut first = user("first", "disk", "test -d /data/lost+found; echo words >/data/file");
    first["spec"]["securityContext"] = json!({"fsGroup": 4242});
    create(&cluster, "first", &first)?;
    cluster.wait("condition=Ready", "pod/first")?;
    assert_eq!(cluster.kubectl(&["exec", "first", "--", "stat", "-c", "%g", "/data/file"])?.trim(), "4242");
    let names = cluster.kubectl(&["exec", "first", "--", "ls", "-A", "/data"])?;
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["file", "lost+found"], "nothing of the node is on it");
    // A second Pod has it at the same time, and a third one after both.
    create(&cluster, "second", &user("second", "disk", "test \"$(cat /data/file)\" = words"))?;
    cluster.wait("condition=Ready", "pod/second")?;
    cluster.kubectl(&["delete", "pod", "first", "second"])?;
    create(&cluster, "third", &user("third", "disk", "test \"$(cat /data/file)\" = words"))?;
    cluster.wait("condition=Ready", "pod/third")?;
    cluster.kubectl(&["delete", "pod", "third"])?;
    Ok(())
}

#[test]
fn a_device_is_shown_at_any_path() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let mut wanted = claim("device");
    wanted["spec"]["volumeMode"] = "Block".into();
    let mut pod = user("writer", "device", "echo words >/opt/disk; sync; head -c 5 /opt/disk; echo more >/dev/disk");
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([]);
    container["volumeDevices"] =
        json!([{"name": "data", "devicePath": "/opt/disk"}, {"name": "other", "devicePath": "/dev/disk"}]);
    let mut other = wanted.clone();
    other["metadata"]["name"] = "other".into();
    let volumes = pod["spec"]["volumes"].as_array_mut().context("a list")?;
    volumes.push(json!({"name": "other", "persistentVolumeClaim": {"claimName": "other"}}));
    for (name, object) in [("claim", &wanted), ("other", &other), ("writer", &pod)] {
        create(&cluster, name, object)?;
    }
    cluster.wait("condition=Ready", "pod/writer")?;
    let disk = data_of(&cluster, &volume_of(&cluster, "device")?).join("disk");
    assert!(fs_err::read(disk)?.starts_with(b"words"));
    // The devices are the machine's: they go with the Pod, not with the test's host, and after the Pod's object, whose grace is 0.
    cluster.kubectl(&["delete", "pod", "writer"])?;
    let ours = cluster.data_dir().display().to_string();
    until_none("devices of the Pod", || {
        let shown =
            cluster.host.command("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output()?;
        let shown = String::from_utf8(shown.stdout)?;
        Ok(shown.lines().filter(|file| file.contains(&ours)).map(str::to_owned).collect())
    })
}
