//! Static Pods: from a directory and from a URL, with mirrors in the API that nobody can delete for good.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};
use serde_json::Value;

/// Counts without end, so that a restart shows.
const COUNTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: counter, labels: {app: counter}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, 'trap \"exit 0\" TERM; echo begun WORD; while true; do sleep 0.1; done']
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
";

/// Serves `/www/pods.json` on the node's loopback.
const SERVER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  hostNetwork: true
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, command: [busybox, httpd, -f, -p, '127.0.0.1:8099', -h, /www],
     volumeMounts: [{name: www, mountPath: /www}]}
  volumes: [{name: www, hostPath: {path: WWW, type: Directory}}]
";

fn manifests(cluster: &Cluster) -> PathBuf {
    cluster.host.dir().join("manifests")
}

/// As a careful writer does: the file has its name once it is whole.
fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    fs_err::write(dir.join(".new"), text)?;
    Ok(fs_err::rename(dir.join(".new"), dir.join(name))?)
}

/// Waits until the API shows the Pod by this name as ready, and as `fits`.
fn mirror(cluster: &Cluster, name: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    until_none("mirrors that are not as they are to be", || {
        let list = cluster.get(&["pods"])?;
        let pods = list["items"].as_array().context("a list of Pods")?;
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
            pod["metadata"]["name"] == name && conditions.is_some_and(|all| all.iter().any(ready)) && fits(pod)
        };
        Ok(if pods.iter().any(is_ready) { Vec::new() } else { vec![name.to_owned()] })
    })
    .with_context(|| cluster.describe(&format!("pod/{name}")))?;
    cluster.get(&["pod", name])
}

fn container_id(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["containerID"]
}

fn started(prepare: impl FnOnce(&Path) -> Result<Vec<String>>) -> Result<Cluster> {
    let cluster = Cluster::start_prepared(|dir| {
        let path = dir.join("manifests").to_str().context("a UTF-8 path")?.to_owned();
        let mut flags = vec!["--pod-manifest-path".to_owned(), path];
        flags.extend(prepare(dir)?);
        Ok(flags)
    })?;
    cluster.import(&["busybox"])?;
    // Not before the images are there, and not before the server: the place is found when it comes.
    fs_err::create_dir(manifests(&cluster))?;
    Ok(cluster)
}

#[test]
fn a_file_is_a_pod() -> Result<()> {
    let mut cluster = started(|_| Ok(Vec::new()))?;
    let dir = manifests(&cluster);
    put(&dir, "counter.yaml", &COUNTER.replace("WORD", "one"))?;
    let name = format!("counter-{}", cluster.host.name());
    let first = mirror(&cluster, &name, |_| true)?;
    let meta = &first["metadata"];
    let hash = &meta["annotations"]["kubernetes.io/config.hash"];
    assert_eq!(&meta["annotations"]["kubernetes.io/config.mirror"], hash);
    assert_eq!(meta["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(meta["ownerReferences"][0]["kind"], "Node");
    assert_eq!(cluster.kubectl(&["logs", &name])?.trim(), "begun one");
    assert_eq!(cluster.kubectl(&["exec", &name, "--", "echo", "in"])?.trim(), "in");

    // The API's word does not end it, by grace or by force: another mirror stands for the same container.
    for how in [&["--wait=false"][..], &["--force", "--grace-period=0"]] {
        let before = mirror(&cluster, &name, |_| true)?;
        cluster.kubectl(&[&["delete", "pod", &name][..], how].concat())?;
        let again = mirror(&cluster, &name, |pod| pod["metadata"]["uid"] != before["metadata"]["uid"])?;
        assert_eq!(container_id(&again), container_id(&first));
        assert_eq!(again["status"]["containerStatuses"][0]["restartCount"], 0);
    }

    // A server that comes back finds it as it was.
    let before = mirror(&cluster, &name, |_| true)?;
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.kubectl(&["exec", &name, "--", "true"])?;
    let after = mirror(&cluster, &name, |_| true)?;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"], before["status"], "no status changes");

    // Nonsense beside it is told of at the node, and costs nothing else.
    put(&dir, "nonsense.yaml", "kind: [")?;
    until_none("nonsense that is not told of", || {
        let said = cluster.kubectl(&["get", "events", "--all-namespaces", "--output=wide"])?;
        let told = said.lines().any(|line| line.contains("FailedValidation") && line.contains("nonsense.yaml"));
        Ok(if told { Vec::new() } else { vec![said] })
    })?;

    // Another text is another Pod.
    put(&dir, "counter.yaml", &COUNTER.replace("WORD", "two"))?;
    let changed = mirror(&cluster, &name, |pod| &pod["metadata"]["annotations"]["kubernetes.io/config.hash"] != hash)?;
    assert_ne!(container_id(&changed), container_id(&first));
    assert_eq!(cluster.kubectl(&["logs", &name])?.trim(), "begun two");

    fs_err::remove_file(dir.join("counter.yaml"))?;
    until_none("mirrors of what is gone", || {
        let left = cluster.kubectl(&["get", "pods", "--output=name"])?;
        Ok(left.lines().map(str::to_owned).collect())
    })?;
    until_none("processes of what is gone", || {
        Ok(cluster.host.processes()?.into_iter().filter(|(_, name)| name == "sh" || name == "sleep").collect())
    })
}

#[test]
fn a_url_is_a_list_of_pods() -> Result<()> {
    let cluster = started(|dir| {
        fs_err::create_dir(dir.join("www"))?;
        Ok(vec!["--manifest-url".to_owned(), "http://127.0.0.1:8099/pods.json".to_owned()])
    })?;
    let www = cluster.host.dir().join("www");
    let pod: Value = serde_json::json!({
        "metadata": {"name": "fetched"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "busybox",
            "imagePullPolicy": "Never", "command": ["sleep", "infinity"]}]},
    });
    let list = serde_json::json!({"apiVersion": "v1", "kind": "PodList", "items": [pod]});
    put(&www, "pods.json", &list.to_string())?;
    let path = www.to_str().context("a UTF-8 path")?;
    put(&manifests(&cluster), "server.yaml", &SERVER.replace("WWW", path))?;
    let name = format!("fetched-{}", cluster.host.name());
    let fetched = mirror(&cluster, &name, |_| true)?;
    assert_eq!(fetched["metadata"]["annotations"]["kubernetes.io/config.source"], "http");
    Ok(())
}
