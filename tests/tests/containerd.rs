//! Pods on Debian's containerd and runc, driven by carob's node.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Containerd, Host, until_none};
use serde_json::{Value, json};

const CIDR: &str = "10.42.0.0/16";
const SUBNET: &str = "10.42.0.0/24";

fn start() -> Result<(Cluster, Containerd)> {
    let host = Host::new()?;
    let containerd = Containerd::start(&host, SUBNET)?;
    containerd.import(&host, &["busybox"])?;
    let endpoint = format!("--container-runtime-endpoint={}", containerd.endpoint());
    let cluster = Cluster::start_on(host, &[&endpoint, &format!("--cluster-cidr={CIDR}")])
        .with_context(|| containerd.log().unwrap_or_default())?;
    Ok((cluster, containerd))
}

/// A web server that says its name, with probes of two kinds.
fn web() -> Value {
    let script = "mkdir /www && hostname > /www/index.html && echo serving && httpd -f -v -p 8080 -h /www";
    let container = json!({
        "name": "web", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["test", "-e", "/www/index.html"]}, "periodSeconds": 1},
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
    });
    let template = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    });
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}})
}

fn apply(cluster: &Cluster, manifest: &Value) -> Result<()> {
    let path = cluster.host.dir().join("manifest.json");
    fs_err::write(&path, manifest.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

/// The Deployment's Pods, by name, once both are there and ready.
fn pods(cluster: &Cluster) -> Result<Vec<Value>> {
    cluster.wait("condition=Available", "deployment/web")?;
    let list = cluster.get(&["pods", "--selector=app=web", "--sort-by=.metadata.name"])?;
    Ok(list["items"].as_array().context("a list")?.clone())
}

/// What must not change while containers run on: ids, addresses, restarts.
fn identity(pods: &[Value]) -> BTreeSet<String> {
    let of = |pod: &Value| {
        let shown = &pod["status"]["containerStatuses"][0];
        format!("{} {} {}", shown["containerID"], pod["status"]["podIP"], shown["restartCount"])
    };
    pods.iter().map(of).collect()
}

#[test]
fn a_deployment_runs_on_containerd_and_leaves_nothing() -> Result<()> {
    let (mut cluster, mut containerd) = start()?;
    let node = cluster.get(&["nodes"])?["items"][0].clone();
    let version = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().context("a version")?;
    assert!(version.starts_with("containerd://1."), "{version}");
    apply(&cluster, &web())?;
    let found = pods(&cluster)?;
    assert_eq!(found.len(), 2);
    for pod in &found {
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("an id")?;
        assert!(id.starts_with("containerd://"), "{id}");
        let address = pod["status"]["podIP"].as_str().context("an address")?;
        assert!(address.starts_with("10.42.0."), "{address} is CNI's to give");
    }
    let name = found[0]["metadata"]["name"].as_str().context("a name")?;
    assert!(cluster.kubectl(&["logs", name])?.contains("serving"));
    assert_eq!(cluster.kubectl(&["exec", name, "--", "hostname"])?.trim(), name);
    let failed = cluster.kubectl_fails(&["exec", name, "--", "sh", "-c", "echo words >&2; exit 7"])?;
    assert!(failed.contains("words") && failed.contains("exit code 7"), "{failed}");
    // A terminal whose input stays open: at its end, script(1) types an end of file, which the terminal may show.
    let terminal = "mkfifo $HOME/keyboard && script -qec 'kubectl exec -it $POD -- sh -c \"test -t 0 && echo a terminal\"' \
                    /dev/null 0<>$HOME/keyboard";
    let said = in_shell(&cluster, terminal, name)?;
    assert_eq!(said.trim(), "a terminal");
    let typed = in_shell(&cluster, "echo typed | kubectl exec -i $POD -- cat", name)?;
    assert_eq!(typed.trim(), "typed");
    let forwarded = "kubectl port-forward $POD 18080:8080 > $HOME/forward & \
                     for i in $(seq 100); do grep -q Forwarding $HOME/forward && break; sleep 0.1; done; \
                     curl -s http://127.0.0.1:18080/; kill $!";
    assert_eq!(in_shell(&cluster, forwarded, name)?.trim(), name);

    let before = identity(&found);
    cluster.kill_server()?;
    cluster.start_server()?;
    assert_eq!(identity(&pods(&cluster)?), before, "a restart of the server restarts nothing");
    assert_eq!(cluster.kubectl(&["exec", name, "--", "hostname"])?.trim(), name);

    containerd.kill()?;
    containerd.start_again(&cluster.host)?;
    assert_eq!(cluster.kubectl(&["exec", name, "--", "hostname"])?.trim(), name, "the node finds it again");
    assert_eq!(identity(&pods(&cluster)?), before, "a restart of containerd restarts nothing");

    // What the liveness probe asks for is gone: the container is stopped, and another one runs in its sandbox.
    cluster.kubectl(&["exec", name, "--", "rm", "/www/index.html"])?;
    until_none("the container is not restarted", || {
        let pod = cluster.get(&["pod", name])?;
        let shown = &pod["status"]["containerStatuses"][0];
        Ok(if shown["restartCount"] == 1 && shown["ready"] == true { Vec::new() } else { vec![shown.clone()] })
    })?;
    assert_eq!(cluster.get(&["pod", name])?["status"]["podIP"], found[0]["status"]["podIP"]);

    cluster.kubectl(&["delete", "deployment", "web"])?;
    until_none("the Pods are still there", || {
        let left = cluster.get(&["pods", "--selector=app=web"])?;
        Ok(left["items"].as_array().cloned().unwrap_or_default())
    })?;
    let host = &cluster.host;
    until_none("containers", || {
        let left = containerd.ctr(host, &["containers", "list", "--quiet"])?;
        Ok(left.lines().map(str::to_owned).collect())
    })?;
    until_none("cgroups of Pods", || {
        Ok(host.cgroups()?.into_iter().filter(|path| path.to_string_lossy().contains("/pod")).collect())
    })
}

fn in_shell(cluster: &Cluster, script: &str, pod: &str) -> Result<String> {
    let mut command = cluster.host.command("sh");
    command.args(["-c", script]).env("POD", pod).env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig"));
    let output = command.stdin(std::process::Stdio::null()).output()?;
    anyhow::ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
