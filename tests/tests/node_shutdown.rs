//! The machine shuts down: its Pods end in order, each with its time, and the shutdown waits for them.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Host, Logind, until_none};
use serde_json::{Value, json};

/// A Pod that notes its end in a file of the machine, after a hook that does so.
fn pod(cluster: &Cluster, name: &str, class: Option<&str>) -> Value {
    let script =
        format!("trap 'sleep 0.5; echo {name} ends >> /log/order; exit 0' TERM; while true; do sleep 0.1; done");
    let hook = format!("echo hook of {name} >> /log/order");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "priorityClassName": class,
        "containers": [{"name": "main", "image": "busybox", "imagePullPolicy": "Never", "command": ["sh", "-c", script],
            "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", hook]}}},
            "volumeMounts": [{"name": "log", "mountPath": "/log"}]}],
        "volumes": [{"name": "log", "hostPath": {"path": cluster.host.dir().join("log"), "type": "DirectoryOrCreate"}}]}})
}

fn create(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join("objects.json");
    fs_err::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn order(cluster: &Cluster) -> Result<Vec<String>> {
    let text = fs_err::read_to_string(cluster.host.dir().join("log/order"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Status, reason and message of the Node's condition `Ready`.
fn ready(cluster: &Cluster) -> Result<[Value; 3]> {
    let node = cluster.get(&["node", cluster.host.name()])?;
    let conditions = node["status"]["conditions"].as_array().context("conditions")?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").context("Ready")?;
    Ok(["status", "reason", "message"].map(|key| ready[key].clone()))
}

fn until_shutting_down(cluster: &Cluster) -> Result<()> {
    let wanted = ["False", "KubeletNotReady", "node is shutting down"];
    until_none("a node that says nothing of the shutdown", || {
        let shown = ready(cluster)?;
        Ok(if shown == wanted { Vec::new() } else { vec![shown] })
    })
}

fn until_locked(logind: &Logind) -> Result<()> {
    until_none("a machine that may shut down at once", || {
        let locks = logind.locks()?;
        Ok(if locks == ["shutdown carob delay"] { Vec::new() } else { vec![locks] })
    })
}

fn is_terminated(pod: &Value) -> bool {
    let words = "Pod was terminated in response to imminent node shutdown.";
    let status = &pod["status"];
    let disrupted = |one: &Value| {
        one["type"] == "DisruptionTarget"
            && one["status"] == "True"
            && one["reason"] == "TerminationByKubelet"
            && one["message"] == words
    };
    (&status["phase"], &status["reason"], &status["message"]) == (&json!("Failed"), &json!("Terminated"), &json!(words))
        && status["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(disrupted))
}

#[test]
fn a_shutdown_waits_for_pods_and_critical_ones_end_last() -> Result<()> {
    let host = Host::new()?;
    let logind = Logind::start(&host)?;
    let flags = ["--shutdown-grace-period=12s", "--shutdown-grace-period-critical-pods=6s"];
    let mut cluster = Cluster::start_on(host, &flags)?;
    cluster.import(&["busybox"])?;
    until_locked(&logind)?;
    assert_eq!(logind.delay_max().as_secs(), 12, "logind waits as long as Pods have");
    let mut stuck = pod(&cluster, "stuck", None);
    stuck["spec"]["terminationGracePeriodSeconds"] = json!(600);
    stuck["spec"]["containers"][0]["command"] = json!(["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]);
    // It is being deleted already, has been asked to end, and would take its ten minutes.
    let mut leaving = pod(&cluster, "leaving", None);
    leaving["spec"]["terminationGracePeriodSeconds"] = json!(600);
    let asked = "trap 'echo leaving is asked >> /log/order' TERM; while true; do sleep 0.1; done";
    leaving["spec"]["containers"][0]["command"] = json!(["sh", "-c", asked]);
    let mut done = pod(&cluster, "done", None);
    done["spec"]["restartPolicy"] = json!("Never");
    done["spec"]["containers"][0]["command"] = json!(["true"]);
    let critical = pod(&cluster, "critical", Some("system-node-critical"));
    create(&cluster, &[pod(&cluster, "plain", None), critical, stuck, leaving, done])?;
    for name in ["plain", "critical", "stuck", "leaving"] {
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    cluster.wait("jsonpath={.status.phase}=Succeeded", "pod/done")?;
    cluster.kubectl(&["delete", "pod", "leaving", "--wait=false"])?;
    until_none("the signal", || {
        let order = order(&cluster).unwrap_or_default();
        Ok(if order.iter().any(|line| line == "leaving is asked") { Vec::new() } else { vec![order] })
    })?;

    logind.prepare_for_shutdown(true)?;
    until_shutting_down(&cluster)?;
    let mut late = pod(&cluster, "late", None);
    late["spec"]["nodeName"] = json!(cluster.host.name());
    create(&cluster, &[late])?;
    cluster.wait("jsonpath={.status.reason}=NodeShutdown", "pod/late")?;
    let late = cluster.get(&["pod", "late"])?["status"].clone();
    assert_eq!(late["message"], "Pod was rejected as the node is shutting down.");
    assert_eq!(late["phase"], "Failed");
    until_none("locks", || logind.locks())?;

    let hooks = |name: &str| format!("hook of {name}");
    let order = order(&cluster)?;
    let place = |line: &str| order.iter().position(|one| one == line).with_context(|| format!("{line} in {order:?}"));
    assert!(place(&hooks("plain"))? < place("plain ends")?);
    assert!(place("plain ends")? < place(&hooks("critical"))?, "{order:?}");
    assert!(place(&hooks("critical"))? < place("critical ends")?);
    assert!(place(&hooks("stuck"))? < place(&hooks("critical"))?);
    until_none("pods that say nothing of the shutdown", || {
        let pods = ["plain", "critical", "stuck"].map(|name| cluster.get(&["pod", name]));
        let pods: Vec<Value> = pods.into_iter().collect::<Result<_>>()?;
        Ok(pods.into_iter().filter(|pod| !is_terminated(pod)).collect())
    })?;
    let exit = |name: &str| -> Result<Value> {
        Ok(cluster.get(&["pod", name])?["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].clone())
    };
    assert_eq!([exit("plain")?, exit("critical")?, exit("stuck")?], [json!(0), json!(0), json!(137)]);
    assert_eq!(cluster.get(&["pod", "done"])?["status"]["phase"], "Succeeded");
    cluster.kubectl(&["wait", "--for=delete", "pod/leaving", "--timeout=120s"])?;
    assert_eq!(order.iter().filter(|line| *line == "leaving is asked").count(), 1, "{order:?}");
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=NodeShutdown", "--all-namespaces"])?;
    assert!(events.contains("Shutdown manager detected shutdown event"), "{events}");

    // A server that starts again meanwhile does not take the node for ready.
    cluster.kill_server()?;
    cluster.start_api()?;
    until_shutting_down(&cluster)?;
    logind.prepare_for_shutdown(false)?;
    until_locked(&logind)?;
    cluster.wait("condition=Ready", &format!("node/{}", cluster.host.name()))?;
    let mut after = pod(&cluster, "after", None);
    after["spec"]["terminationGracePeriodSeconds"] = json!(1);
    create(&cluster, &[after])?;
    cluster.wait("condition=Ready", "pod/after")?;
    assert!(is_terminated(&cluster.get(&["pod", "plain"])?), "what has ended stays so");

    cluster.kill_server()?;
    let conf = "/run/systemd/logind.conf.d/99-carob.conf";
    cluster.host.run("test", ["-f", conf])?;
    cluster.carob(&["uninstall", "--yes", "--cgroup-root", &cluster.host.cgroup_root()])?;
    cluster.host.run("test", ["!", "-e", conf])?;
    Ok(())
}

#[test]
fn pods_of_lower_priority_end_first() -> Result<()> {
    let host = Host::new()?;
    let logind = Logind::start(&host)?;
    let flags = ["--shutdown-grace-period-by-pod-priority=100000=20s,0=20s,1000=20s,5=20s"];
    let cluster = Cluster::start_on(host, &flags)?;
    cluster.import(&["busybox"])?;
    let class = |name: &str, value: i32| json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value});
    create(&cluster, &[class("low", -10), class("middle", 99_999), class("high", 500_000)])?;
    create(&cluster, &["middle", "high", "low"].map(|name| pod(&cluster, name, Some(name))))?;
    for name in ["low", "middle", "high"] {
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    until_locked(&logind)?;
    logind.prepare_for_shutdown(true)?;
    until_none("locks", || logind.locks())?;
    let lines = ["low", "middle", "high"].map(|name| [format!("hook of {name}"), format!("{name} ends")]);
    assert_eq!(order(&cluster)?, lines.concat());
    Ok(())
}

#[test]
fn without_logind_it_is_said_once_and_logind_is_found_later() -> Result<()> {
    const SAID: &str = "a shutdown of the machine does not wait for Pods";
    let host = Host::new()?;
    // The machine may have a bus of its own.
    host.add_disk(std::path::Path::new("/run/dbus"), 1)?;
    let cluster = Cluster::start_on(host, &["--shutdown-grace-period=30s"])?;
    cluster.import(&["busybox"])?;
    create(&cluster, &[pod(&cluster, "plain", None)])?;
    cluster.wait("condition=Ready", "pod/plain")?;
    until_none("a word on it", || Ok(if cluster.log()?.contains(SAID) { Vec::new() } else { vec![cluster.log()?] }))?;
    let logind = Logind::start(&cluster.host)?;
    until_locked(&logind)?;
    assert_eq!(cluster.log()?.matches(SAID).count(), 1);
    cluster.kubectl(&["delete", "pod", "plain"])?;
    Ok(())
}
