//! Devices of a real plug-in, which runs beside the server and does what a test wants of it.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, DevicePluginProcess, pod_resources, until_none};
use serde_json::{Value, json};

const CARD: &str = "example.com/card";

fn start_plugin(cluster: &Cluster, devices: &[&str]) -> Result<DevicePluginProcess> {
    DevicePluginProcess::start(cluster, env!("CARGO_BIN_EXE_test-device-plugin"), CARD, devices)
}

/// Waits until the Node says that it has so many cards, and so many for Pods.
fn cards(cluster: &Cluster, capacity: &str, allocatable: &str) -> Result<()> {
    until_none(&format!("the node has other than {capacity} cards, {allocatable} for pods"), || {
        let status = cluster.get(&["nodes"])?["items"][0]["status"].clone();
        let shown = (status["capacity"][CARD].clone(), status["allocatable"][CARD].clone());
        Ok(if shown == (json!(capacity), json!(allocatable)) { Vec::new() } else { vec![shown] })
    })
}

fn create(cluster: &Cluster, pod: &Value) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, pod.to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn pod(name: &str, count: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "busybox", "command": ["sleep", "3600"],
            "resources": {"limits": {CARD: count}}}]}})
}

/// A Pod that comes past the scheduler.
fn bound(cluster: &Cluster, mut pod: Value) -> Result<Value> {
    pod["spec"]["nodeName"] = cluster.get(&["nodes"])?["items"][0]["metadata"]["name"].clone();
    Ok(pod)
}

fn cards_of(cluster: &Cluster, pod: &str) -> Result<String> {
    Ok(cluster.kubectl(&["exec", pod, "--", "sh", "-c", "echo $CARDS"])?.trim().to_owned())
}

/// Waits until a Pod's status has this reason, and the words in its message.
fn refused(cluster: &Cluster, pod: &str, words: &str) -> Result<()> {
    until_none(&format!("pod {pod} is not refused with {words:?}"), || {
        let status = cluster.get(&["pod", pod])?["status"].clone();
        let message = status["message"].as_str().unwrap_or_default();
        let refused = status["reason"] == "UnexpectedAdmissionError" && message.contains(words);
        Ok(if refused { Vec::new() } else { vec![status] })
    })
}

fn health(cluster: &Cluster, pod: &str) -> Result<Value> {
    Ok(cluster.get(&["pod", pod])?["status"]["containerStatuses"][0]["allocatedResourcesStatus"].clone())
}

#[test]
fn a_pod_has_devices_of_a_plug_in_and_keeps_them_across_restarts() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let mut plugin = start_plugin(&cluster, &["a", "b", "c=Unhealthy"])?;
    cards(&cluster, "3", "2")?;
    create(&cluster, &pod("one", "1"))?;
    cluster.wait("condition=Ready", "pod/one")?;
    // The plug-in preferred it to the first one.
    assert_eq!(cards_of(&cluster, "one")?, "b");
    let script = "stat -c %F /dev/card-b; head -c 3 /dev/card-b | wc -c; cat /etc/cards; ls /dev/card-a 2>&1 || true";
    let seen = cluster.kubectl(&["exec", "one", "--", "sh", "-c", script])?;
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen[..3], ["character special file", "3", "shared"]);
    assert!(seen[3].contains("No such file"), "{seen:?}");
    assert_eq!(plugin.calls("PreStartContainer")?[0]["ids"], json!(["b"]));
    let shown = |health: &str| json!([{"name": CARD, "resources": [{"resourceID": "b", "health": health}]}]);
    assert_eq!(health(&cluster, "one")?, shown("Healthy"));
    // There is one left, which the scheduler knows.
    create(&cluster, &pod("two", "2"))?;
    cluster.wait("condition=PodScheduled=False", "pod/two")?;
    // Restarted, the server knows who has what, and the plug-in registers again.
    cluster.kill_server()?;
    cluster.start_server()?;
    cards(&cluster, "3", "2")?;
    assert_eq!(cards_of(&cluster, "one")?, "b");
    create(&cluster, &bound(&cluster, pod("past", "2"))?)?;
    refused(
        &cluster,
        "past",
        "requested number of devices unavailable for example.com/card. Requested: 2, Available: 1",
    )?;
    create(&cluster, &pod("last", "1"))?;
    cluster.wait("condition=Ready", "pod/last")?;
    assert_eq!(cards_of(&cluster, "last")?, "a");
    let held = |pod: &str, id: &str| ["default", pod, "main", id].map(str::to_owned);
    assert_eq!(pod_resources(&cluster)?, [held("last", "a"), held("one", "b")]);
    // A plug-in that dies takes its devices along, not those who have them.
    plugin.kill()?;
    cards(&cluster, "3", "0")?;
    until_none("a device whose plug-in is gone", || {
        let shown_now = health(&cluster, "one")?;
        Ok(if shown_now == shown("Unknown") { Vec::new() } else { vec![shown_now] })
    })?;
    assert_eq!(cards_of(&cluster, "one")?, "b");
    create(&cluster, &bound(&cluster, pod("early", "1"))?)?;
    refused(&cluster, "early", "no healthy devices present; cannot allocate unhealthy devices example.com/card")?;
    plugin.start_again(&cluster)?;
    cards(&cluster, "3", "2")?;
    // What a Pod had is free when it is over. The scheduler counts what "one" has, healthy or not.
    cluster.kubectl(&["delete", "pod", "last"])?;
    cluster.kubectl(&["delete", "pod", "two"])?;
    plugin.list(&["a", "b=Unhealthy", "d", "e"])?;
    cards(&cluster, "4", "3")?;
    until_none("a device that is well", || {
        let shown_now = health(&cluster, "one")?;
        Ok(if shown_now == shown("Unhealthy") { Vec::new() } else { vec![shown_now] })
    })?;
    create(&cluster, &pod("both", "2"))?;
    cluster.wait("condition=Ready", "pod/both")?;
    assert_eq!(cards_of(&cluster, "both")?, "a,e");
    Ok(())
}

#[test]
fn init_containers_leave_their_devices_to_others_and_bad_plug_ins_hurt_nobody_else() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let mut plugin = start_plugin(&cluster, &["a", "b"])?;
    cards(&cluster, "2", "2")?;
    let mut staged = pod("staged", "1");
    staged["spec"]["initContainers"] = json!([{"name": "first", "image": "busybox", "command": ["test", "-c", "/dev/card-a"],
        "resources": {"limits": {CARD: "2"}}}]);
    create(&cluster, &staged)?;
    cluster.wait("condition=Ready", "pod/staged")?;
    assert_eq!(cards_of(&cluster, "staged")?, "a");
    cluster.kubectl(&["delete", "pod", "staged"])?;
    for (fault, words) in [
        ("garbage", "Allocate failed due to the plug-in of example.com/card did not allocate"),
        ("lie", "the plug-in has answered nothing for the container, which is unexpected"),
        ("error 8", "rpc error: code = ResourceExhausted desc = as the test wants"),
        ("die", "the connection broke before the answer"),
    ] {
        plugin.fail("Allocate", Some(fault))?;
        let name = format!("bad-{}", fault.replace(' ', "-"));
        create(&cluster, &bound(&cluster, pod(&name, "1"))?)?;
        refused(&cluster, &name, words)?;
    }
    plugin.fail("Allocate", Some("hang"))?;
    plugin.start_again(&cluster)?;
    cards(&cluster, "2", "2")?;
    create(&cluster, &pod("hung", "1"))?;
    until_none("the plug-in is not asked", || {
        Ok(if plugin.calls("Allocate")?.len() > 5 { Vec::new() } else { vec![()] })
    })?;
    // Meanwhile its device is set aside, and other Pods start.
    let mut other = pod("other", "0");
    other["spec"]["containers"][0]["resources"] = json!({});
    create(&cluster, &other)?;
    cluster.wait("condition=Ready", "pod/other")?;
    plugin.fail("Allocate", None)?;
    create(&cluster, &pod("fine", "1"))?;
    cluster.wait("condition=Ready", "pod/fine")?;
    // Either end of the call may be the first to see that its time is over.
    refused(&cluster, "hung", "rpc error: code = DeadlineExceeded")?;
    create(&cluster, &pod("again", "1"))?;
    cluster.wait("condition=Ready", "pod/again")?;
    Ok(())
}
