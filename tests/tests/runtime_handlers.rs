//! Another OCI runtime, which a RuntimeClass selects: runc from the distribution's packages.

use anyhow::{Context, Result, ensure};
use carob_testkit::{Cluster, until_none};

const PODS: &str = "
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: other}
handler: runc
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: missing}
handler: kata
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  runtimeClassName: other
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, 'trap \"exit 0\" TERM; echo begun as $(id -u); while true; do sleep 0.1; done']
    resources: {limits: {memory: 64Mi, cpu: 100m}}
    securityContext: {runAsUser: 1000}
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
  - name: terminal
    image: busybox
    imagePullPolicy: Never
    tty: true
    stdin: true
    command: [sh, -c, 'tty; sleep infinity']
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: brief}
spec:
  runtimeClassName: other
  restartPolicy: Never
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, command: [sh, -c, 'echo done; exit 3']}
---
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec:
  runtimeClassName: other
  restartPolicy: Never
  containers: [{name: main, image: busybox, imagePullPolicy: Never, command: [no-such-program]}]
---
apiVersion: v1
kind: Pod
metadata: {name: waiting}
spec:
  runtimeClassName: missing
  containers: [{name: main, image: busybox, imagePullPolicy: Never, command: [sleep, infinity]}]
";

fn apply(cluster: &Cluster, text: &str) -> Result<()> {
    let path = cluster.host.dir().join("pods.yaml");
    fs_err::write(&path, text)?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn events_of(cluster: &Cluster, pod: &str, expected: &str) -> Result<()> {
    until_none("events that are missing", || {
        let events = cluster.kubectl(&["get", "events", &format!("--field-selector=involvedObject.name={pod}")])?;
        Ok(if events.contains(expected) { Vec::new() } else { vec![events] })
    })
}

#[test]
fn a_runtime_class_selects_runc() -> Result<()> {
    let program = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| std::path::Path::new(path).exists());
    let program = program.context("runc is not installed (apt-get install runc)")?;
    let flag = format!("runc={program}");
    let mut cluster = Cluster::start_with(&["--runtime-handler", &flag])?;
    cluster.import(&["busybox"])?;
    let groups = cluster.host.cgroups()?;
    apply(&cluster, PODS)?;
    apply(&cluster, POD)?;
    cluster.wait("condition=Ready", "pod/steady")?;
    assert_eq!(cluster.kubectl(&["logs", "steady", "-c", "main"])?, "begun as 1000\n");
    until_none("terminals", || {
        let said = cluster.kubectl(&["logs", "steady", "-c", "terminal"])?;
        Ok(if said.contains("/dev/") { Vec::new() } else { vec![said] })
    })?;
    let inside = |command: &str| cluster.kubectl(&["exec", "steady", "-c", "main", "--", "sh", "-c", command]);
    assert_eq!(inside("id -u; echo $$ > /dev/null; cat /proc/1/comm")?, "1000\nsh\n");
    let memory =
        inside("cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")?;
    assert_eq!(memory.trim(), "67108864");
    let node = cluster.get(&["node", cluster.host.name()])?;
    let handlers = node["status"]["runtimeHandlers"].as_array().context("handlers")?;
    ensure!(handlers.iter().any(|handler| handler["name"] == "runc"), "{handlers:?}");
    // It is runc that has made it.
    let sandboxes = cluster.host.run_dir().join("sandboxes");
    let numbers = cluster.host.run("find", [sandboxes.as_os_str(), "-name".as_ref(), "pid".as_ref()])?;
    ensure!(numbers.lines().count() >= 2, "runc has written no process's number: {numbers}");

    cluster.wait("jsonpath={.status.phase}=Failed", "pod/brief")?;
    let brief = cluster.get(&["pod", "brief"])?;
    assert_eq!(brief["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!(cluster.kubectl(&["logs", "brief"])?, "done\n");
    events_of(&cluster, "wrong", "executable file not found in $PATH")?;
    events_of(&cluster, "waiting", r#"no runtime for "kata" is configured"#)?;

    // A server that comes back finds it as it was, and can end it.
    let before = cluster.get(&["pod", "steady"])?;
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.kubectl(&["exec", "steady", "-c", "main", "--", "true"])?;
    let after = cluster.get(&["pod", "steady"])?;
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
    cluster.kubectl(&["delete", "pod", "--all"])?;
    until_none("processes that are left", || {
        let left = cluster.host.processes()?.into_iter();
        Ok(left.filter(|(_, name)| ["sh", "sleep", "runc"].contains(&name.as_str())).collect())
    })?;
    let of_a_pod = |path: &&std::path::PathBuf| path.iter().any(|name| name.as_encoded_bytes().starts_with(b"pod"));
    until_none("control groups that are left", || {
        Ok(cluster.host.cgroups()?.difference(&groups).filter(of_a_pod).cloned().collect())
    })
}
