//! Volumes of a real CSI driver, which runs beside the server and does what a test wants of it.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, CsiDriver, until_none};
use serde_json::{Value, json};

const DRIVER: &str = "hostpath.example";

fn start_driver(cluster: &Cluster, capabilities: &[&str]) -> Result<CsiDriver> {
    CsiDriver::start(cluster, env!("CARGO_BIN_EXE_csi-test-driver"), DRIVER, capabilities, 0)
}

/// Writes a manifest and creates what is in it.
fn create(cluster: &Cluster, name: &str, manifest: &Value) -> Result<()> {
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, manifest.to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn driver_object(spec: Value) -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": spec})
}

/// A volume of the driver with the handle `<name>-handle`, and a claim of the same name that is bound to it.
fn volume(name: &str, change: &Value) -> Value {
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "default", "name": name},
        "csi": {"driver": DRIVER, "volumeHandle": format!("{name}-handle"), "volumeAttributes": {"colour": "red"}}}});
    merge(&mut volume["spec"], change);
    let mode = volume["spec"]["volumeMode"].as_str().unwrap_or("Filesystem").to_owned();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": volume["spec"]["accessModes"], "storageClassName": "", "volumeName": name, "volumeMode": mode,
        "resources": {"requests": {"storage": "1Gi"}}}});
    json!({"apiVersion": "v1", "kind": "List", "items": [volume, claim]})
}

fn merge(target: &mut Value, change: &Value) {
    match change {
        Value::Object(fields) => {
            for (key, value) in fields {
                merge(&mut target[key], value);
            }
        }
        Value::Null => {}
        other => *target = other.clone(),
    }
}

/// A Pod with the volume at `/data` that runs `script`, then stays.
fn user(name: &str, source: Value, script: &str) -> Value {
    let mut volume = source;
    volume["name"] = "data".into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "busybox",
            "command": ["sh", "-ec", format!("{script}; touch /tmp/done; sleep 3600")],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/done"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [volume]}})
}

fn claimed(claim: &str) -> Value {
    json!({"persistentVolumeClaim": {"claimName": claim}})
}

fn calls_of(driver: &CsiDriver, method: &str) -> Result<usize> {
    Ok(driver.calls(method)?.len())
}

/// Waits for the words in the events of a reason.
fn told(cluster: &Cluster, reason: &str, words: &str) -> Result<()> {
    until_none(&format!("no event {reason} with {words:?}"), || {
        let events = cluster.kubectl(&["get", "events", &format!("--field-selector=reason={reason}")])?;
        Ok(if events.contains(words) { Vec::new() } else { vec![events] })
    })
}

/// What the node has of the driver's volumes, by paths and mounts.
fn left(cluster: &Cluster) -> Result<Vec<String>> {
    let kubelet = cluster.data_dir().join("kubelet");
    let kubelet = kubelet.to_str().context("a UTF-8 path")?;
    let find = format!(
        "find {kubelet} -name mount -o -name globalmount -o -name vol_data.json; grep -o '{kubelet}[^ ]*' /proc/self/mountinfo || true"
    );
    Ok(cluster.host.run("sh", ["-c", &find])?.lines().map(str::to_owned).collect())
}

#[test]
fn a_volume_is_staged_once_published_per_pod_and_given_back() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    create(&cluster, "driver", &driver_object(json!({"attachRequired": false, "podInfoOnMount": true})))?;
    create(&cluster, "volume", &volume("a", &json!({})))?;
    create(&cluster, "early", &user("early", claimed("a"), "echo early >/data/early"))?;
    told(&cluster, "FailedMount", "driver name hostpath.example not found in the list of registered CSI drivers")?;
    let driver = start_driver(&cluster, &["stage"])?;
    cluster.wait("condition=Ready", "pod/early")?;
    let node = cluster.get(&["csinodes"])?["items"][0].clone();
    let expected = json!([{"name": DRIVER, "nodeID": "node-id", "topologyKeys": ["topology.hostpath.example/node"]}]);
    assert_eq!(node["spec"]["drivers"], expected, "{node}");
    let node = cluster.get(&["nodes"])?["items"][0].clone();
    let ids = &node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"];
    assert_eq!(ids, &json!(r#"{"hostpath.example":"node-id"}"#));
    assert_eq!(node["metadata"]["labels"]["topology.hostpath.example/node"], "here");
    create(&cluster, "second", &user("second", claimed("a"), "cat /data/early >/data/second"))?;
    cluster.wait("condition=Ready", "pod/second")?;
    assert_eq!(fs_err::read_to_string(driver.volume("a-handle").join("second"))?, "early\n");
    assert_eq!(calls_of(&driver, "NodeStageVolume")?, 1);
    let published = driver.calls("NodePublishVolume")?;
    assert_eq!(published.len(), 2);
    let uid = cluster.get(&["pod", "early"])?["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    let first = &published[0];
    let path = first["path"].as_str().context("a path")?;
    assert!(path.ends_with(&format!("/kubelet/pods/{uid}/volumes/kubernetes.io~csi/a/mount")), "{path}");
    assert_eq!(first["attributes"]["colour"], "red");
    assert_eq!(first["attributes"]["csi.storage.k8s.io/pod.name"], "early");
    assert_eq!(first["attributes"]["csi.storage.k8s.io/ephemeral"], "false");
    // A server that is killed finds what it had, and what ended meanwhile is given back.
    cluster.kill_server()?;
    cluster.start_server()?;
    assert_eq!(cluster.kubectl(&["exec", "second", "--", "cat", "/data/second"])?.trim(), "early");
    cluster.kubectl(&["delete", "pod", "early"])?;
    assert_eq!(calls_of(&driver, "NodeUnpublishVolume")?, 1);
    assert_eq!(calls_of(&driver, "NodeUnstageVolume")?, 0, "the other Pod has it");
    cluster.kubectl(&["delete", "pod", "second"])?;
    assert_eq!(calls_of(&driver, "NodeUnpublishVolume")?, 2);
    assert_eq!(calls_of(&driver, "NodeUnstageVolume")?, 1);
    assert_eq!(left(&cluster)?, Vec::<String>::new());
    assert!(driver.volume("a-handle").join("second").exists(), "the content is the driver's");
    Ok(())
}

#[test]
fn an_inline_volume_lives_with_its_pod() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let driver = start_driver(&cluster, &["stage"])?;
    let inline = json!({"csi": {"driver": DRIVER, "volumeAttributes": {"size": "1"},
        "nodePublishSecretRef": {"name": "key"}}});
    create(&cluster, "refused", &user("refused", inline.clone(), "true"))?;
    told(
        &cluster,
        "FailedMount",
        "volume mode \"Ephemeral\" not supported by driver hostpath.example (no CSIDriver object)",
    )?;
    cluster.kubectl(&["delete", "pod", "refused"])?;
    let spec = json!({"attachRequired": true, "podInfoOnMount": true, "volumeLifecycleModes": ["Ephemeral"],
        "tokenRequests": [{"audience": "driver"}], "fsGroupPolicy": "File"});
    create(&cluster, "driver", &driver_object(spec))?;
    cluster.kubectl(&["create", "secret", "generic", "key", "--from-literal=word=open"])?;
    let mut pod = user("inline", inline, "echo mine >/data/file; stat -c %g /data/file /data");
    pod["spec"]["securityContext"] = json!({"fsGroup": 4242});
    create(&cluster, "inline", &pod)?;
    cluster.wait("condition=Ready", "pod/inline")?;
    assert_eq!(cluster.kubectl(&["logs", "inline"])?, "4242\n4242\n", "the Pod's group has the volume");
    assert_eq!(calls_of(&driver, "NodeStageVolume")?, 0, "there is nothing to stage");
    let published = driver.calls("NodePublishVolume")?.pop().context("it is published")?;
    assert_eq!(published["attributes"]["csi.storage.k8s.io/ephemeral"], "true");
    assert_eq!(published["attributes"]["size"], "1");
    assert_eq!(published["secrets"]["word"], "open");
    assert_eq!(published["capability"]["mode"], "SINGLE_NODE_WRITER");
    let tokens = published["attributes"]["csi.storage.k8s.io/serviceAccount.tokens"].as_str().context("tokens")?;
    let tokens: Value = serde_json::from_str(tokens)?;
    assert!(tokens["driver"]["token"].as_str().is_some_and(|token| token.split('.').count() == 3), "{tokens}");
    assert!(tokens["driver"]["expirationTimestamp"].is_string(), "{tokens}");
    cluster.kubectl(&["delete", "pod", "inline"])?;
    assert_eq!(left(&cluster)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_driver_that_hangs_holds_up_its_own_pods_alone_and_one_that_lies_or_dies_is_told() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let mut driver = start_driver(&cluster, &["stage"])?;
    create(&cluster, "driver", &driver_object(json!({"attachRequired": false})))?;
    for name in ["a", "b"] {
        create(&cluster, name, &volume(name, &json!({})))?;
    }
    driver.fail("NodeStageVolume", Some("hang"))?;
    create(&cluster, "hung", &user("hung", claimed("a"), "true"))?;
    told(&cluster, "FailedMount", "has not answered NodeStageVolume within 10 s")?;
    create(&cluster, "other", &user("other", json!({"emptyDir": {}}), "true"))?;
    cluster.wait("condition=Ready", "pod/other")?;
    cluster.kubectl(&["delete", "pod", "hung", "--force", "--grace-period=0"])?;
    // Whatever hung goes with the driver, and the volume is given back by the next one.
    driver.kill()?;
    driver.fail("NodeStageVolume", None)?;
    driver.fail("NodePublishVolume", Some("lie"))?;
    driver.start_again(&cluster)?;
    create(&cluster, "told", &user("told", claimed("b"), "echo b >/data/file"))?;
    told(&cluster, "FailedMount", "has published no directory")?;
    driver.fail("NodePublishVolume", Some("garbage"))?;
    told(&cluster, "FailedMount", "the answer cannot be read")?;
    driver.fail("NodePublishVolume", Some("die-after"))?;
    told(&cluster, "FailedMount", "the connection broke before the answer")?;
    driver.fail("NodePublishVolume", None)?;
    driver.start_again(&cluster)?;
    cluster.wait("condition=Ready", "pod/told")?;
    cluster.kubectl(&["delete", "pod", "told", "other"])?;
    until_none("what the node has of volumes", || left(&cluster))
}

/// The attachments, with the node of each and whether it is on its way out.
fn attachments(cluster: &Cluster) -> Result<Vec<(String, String, bool)>> {
    let all = cluster.get(&["volumeattachments"])?;
    let shown = |object: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let going = object["metadata"]["deletionTimestamp"].is_string();
        (text(&object["metadata"]["name"]), text(&object["spec"]["nodeName"]), going)
    };
    Ok(all["items"].as_array().context("a list")?.iter().map(shown).collect())
}

/// Waits until the attachments are to these nodes.
fn attached_to(cluster: &Cluster, nodes: &[&str]) -> Result<Vec<String>> {
    until_none(&format!("the attachments are not to {nodes:?}"), || {
        let mut found: Vec<_> = attachments(cluster)?.into_iter().map(|(_, node, _)| node).collect();
        found.sort();
        Ok(if found == nodes { Vec::new() } else { vec![found] })
    })?;
    Ok(attachments(cluster)?.into_iter().map(|(name, ..)| name).collect())
}

/// Says of an attachment what the driver's external-attacher would say.
fn say_of_attachment(cluster: &Cluster, name: &str, status: Value) -> Result<()> {
    let mut object = cluster.get(&["volumeattachment", name])?;
    object["status"] = status;
    let path = cluster.host.dir().join("attachment.json");
    fs_err::write(&path, object.to_string())?;
    let url = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}/status");
    cluster.kubectl(&["replace", "--raw", &url, "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

#[test]
fn a_volume_is_attached_before_it_is_staged_and_detached_when_nobody_uses_it() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let driver = start_driver(&cluster, &["stage"])?;
    create(&cluster, "driver", &driver_object(json!({"attachRequired": true})))?;
    create(&cluster, "volume", &volume("a", &json!({})))?;
    let node = cluster.get(&["nodes"])?["items"][0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    create(&cluster, "user", &user("user", claimed("a"), "echo x >/data/file"))?;
    let attachment = attached_to(&cluster, &[&node])?.remove(0);
    told(&cluster, "FailedMount", "has not answered the attachment of the volume")?;
    let error =
        json!({"attached": false, "attachError": {"message": "the disk is out", "time": "2026-01-01T00:00:00Z"}});
    say_of_attachment(&cluster, &attachment, error)?;
    told(&cluster, "FailedAttachVolume", "AttachVolume.Attach failed for volume \"a\" : the disk is out")?;
    assert_eq!(calls_of(&driver, "NodeStageVolume")?, 0, "it is not attached");
    say_of_attachment(&cluster, &attachment, json!({"attached": true, "attachmentMetadata": {"device": "/dev/x"}}))?;
    cluster.wait("condition=Ready", "pod/user")?;
    told(&cluster, "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"a\"")?;
    for method in ["NodeStageVolume", "NodePublishVolume"] {
        assert_eq!(driver.calls(method)?[0]["context"]["device"], "/dev/x", "{method}");
    }
    let status = cluster.get(&["node", &node])?["status"].clone();
    assert_eq!(status["volumesInUse"], json!(["kubernetes.io/csi/hostpath.example^a-handle"]));
    assert_eq!(status["volumesAttached"][0]["name"], "kubernetes.io/csi/hostpath.example^a-handle");
    // Nobody detaches it because of a restart.
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.kubectl(&["exec", "user", "--", "cat", "/data/file"])?;
    assert_eq!(attached_to(&cluster, &[&node])?, [attachment]);
    // A second node cannot have it, until the first has given it back.
    create(&cluster, "ghost", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}}))?;
    let mut waiting = user("waiting", claimed("a"), "true");
    waiting["spec"]["nodeName"] = "ghost".into();
    create(&cluster, "waiting", &waiting)?;
    told(&cluster, "FailedAttachVolume", "Multi-Attach error for volume \"a\" Volume is already used by pod(s) user")?;
    cluster.kubectl(&["delete", "pod", "user"])?;
    attached_to(&cluster, &["ghost"])?;
    assert_eq!(calls_of(&driver, "NodeUnstageVolume")?, 1, "it was given back before");
    let status = cluster.get(&["node", &node])?["status"].clone();
    assert_eq!([&status["volumesInUse"], &status["volumesAttached"]], [&Value::Null, &Value::Null]);
    cluster.kubectl(&["delete", "pod", "waiting", "--force", "--grace-period=0"])?;
    attached_to(&cluster, &[]).map(drop)
}

#[test]
fn a_block_volume_is_a_device_and_goes_with_its_pod() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let driver = start_driver(&cluster, &["stage"])?;
    create(&cluster, "driver", &driver_object(json!({"attachRequired": false})))?;
    create(&cluster, "volume", &volume("a", &json!({"volumeMode": "Block"})))?;
    let script = "echo written >/dev/xvda; head -c 7 /dev/xvda; echo";
    let mut pod = user("user", claimed("a"), script);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/xvda"}]);
    container["volumeMounts"] = json!([]);
    create(&cluster, "user", &pod)?;
    cluster.wait("condition=Ready", "pod/user")?;
    assert_eq!(cluster.kubectl(&["logs", "user"])?, "written\n");
    for method in ["NodeStageVolume", "NodePublishVolume"] {
        assert_eq!(driver.calls(method)?[0]["capability"]["kind"], "block", "{method}");
    }
    let published = driver.calls("NodePublishVolume")?[0]["path"].as_str().context("a path")?.to_owned();
    assert!(published.contains("/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/a/"), "{published}");
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.kubectl(&["delete", "pod", "user"])?;
    assert_eq!(calls_of(&driver, "NodeUnstageVolume")?, 1);
    assert_eq!(left(&cluster)?, Vec::<String>::new());
    assert!(fs_err::read(driver.volume("a-handle").with_extension("img"))?.starts_with(b"written"));
    Ok(())
}

#[test]
fn a_volume_grows_under_its_pod_and_says_how_full_it_is() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let driver = start_driver(&cluster, &["stage", "expand", "stats"])?;
    create(&cluster, "driver", &driver_object(json!({"attachRequired": false})))?;
    create(&cluster, "volume", &volume("a", &json!({})))?;
    create(&cluster, "user", &user("user", claimed("a"), "true"))?;
    cluster.wait("condition=Ready", "pod/user")?;
    let node = cluster.get(&["nodes"])?["items"][0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    let summary = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/stats/summary")])?;
    let summary: Value = serde_json::from_str(&summary)?;
    let volumes = summary["pods"].as_array().into_iter().flatten().filter_map(|pod| pod["volume"].as_array().cloned());
    let data = volumes.flatten().find(|volume| volume["pvcRef"]["name"] == "a").context("the volume is shown")?;
    assert_eq!(
        (&data["capacityBytes"], &data["usedBytes"], &data["inodesFree"]),
        (&json!(1_000_000), &json!(7_000), &json!(97))
    );
    // What the external-resizer does when the driver's controller has made the volume larger.
    cluster.kubectl(&["patch", "pv", "a", "-p", r#"{"spec": {"capacity": {"storage": "2Gi"}}}"#])?;
    let mut claim = cluster.get(&["pvc", "a"])?;
    claim["status"]["allocatedResourceStatuses"] = json!({"storage": "NodeResizePending"});
    claim["status"]["conditions"] = json!([{"type": "FileSystemResizePending", "status": "True"}]);
    let path = cluster.host.dir().join("claim.json");
    fs_err::write(&path, claim.to_string())?;
    let url = "/api/v1/namespaces/default/persistentvolumeclaims/a/status";
    cluster.kubectl(&["replace", "--raw", url, "-f", path.to_str().context("a UTF-8 path")?])?;
    until_none("a claim that has not grown", || {
        let status = cluster.get(&["pvc", "a"])?["status"].clone();
        let grown = status["capacity"]["storage"] == "2Gi" && status["conditions"].is_null();
        Ok(if grown { Vec::new() } else { vec![status] })
    })?;
    let expanded = driver.calls("NodeExpandVolume")?;
    assert_eq!((expanded.len(), &expanded[0]["bytes"]), (1, &json!(2_i64 << 30)));
    assert!(expanded[0]["path"].as_str().is_some_and(|path| path.ends_with("/kubernetes.io~csi/a/mount")));
    told(&cluster, "FileSystemResizeSuccessful", "MountVolume.NodeExpandVolume succeeded for volume \"a\"")
}
