//! Two machines and a cable: one joins the other's cluster, runs Pods, is cut off, comes back, leaves.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use carob_testkit::{Agent, Cluster, Host, until_none};
use serde_json::{Value, json};

const SERVER: &str = "203.0.113.1";
const AGENT: &str = "203.0.113.2";
const URL: &str = "https://203.0.113.1:6443";

fn token(cluster: &Cluster) -> Result<String> {
    Ok(cluster.carob(&["token", "create"])?.trim().to_owned())
}

/// A server and an agent that has joined it as `worker`.
fn joined(flags: &[&str]) -> Result<(Cluster, Agent)> {
    let (cluster, mut agent) = machines(flags)?;
    join(&cluster, &mut agent)?;
    Ok((cluster, agent))
}

/// A server and a host with a cable to it, both with their addresses there before anything starts.
fn machines(flags: &[&str]) -> Result<(Cluster, Agent)> {
    let host = Host::new()?;
    let agent = Agent::linked(&host, SERVER, AGENT)?;
    let node_ip = format!("--node-ip={SERVER}");
    let mut all = vec!["--node-name=server", node_ip.as_str()];
    all.extend(flags);
    Ok((Cluster::start_on(host, &all)?, agent))
}

fn join(cluster: &Cluster, agent: &mut Agent) -> Result<()> {
    agent.start(&["--node-name=worker", "--server", URL, "--token", &token(cluster)?])?;
    cluster.wait("condition=Ready", "node/worker")
}

fn create(cluster: &Cluster, object: &Value) -> Result<()> {
    let path = cluster.host.dir().join("object.json");
    fs_err::write(&path, object.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn pod(name: &str, node: &str, script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "nodeName": node, "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", script]}]}})
}

fn ready_condition(cluster: &Cluster, node: &str) -> Result<Value> {
    let node = cluster.get(&["node", node])?;
    let conditions = node["status"]["conditions"].as_array().context("a Node has conditions")?;
    conditions.iter().find(|condition| condition["type"] == "Ready").cloned().context("a Node has Ready")
}

#[test]
fn a_machine_joins_with_one_command_and_runs_pods() -> Result<()> {
    let (cluster, agent) = joined(&[])?;
    agent.import(&["busybox"])?;
    let cidr = |node: &str| -> Result<String> {
        let node = cluster.get(&["node", node])?;
        Ok(node["spec"]["podCIDR"].as_str().context("a range of Pod addresses")?.to_owned())
    };
    assert_ne!(cidr("server")?, cidr("worker")?, "each node has a range of its own");
    create(&cluster, &pod("there", "worker", "echo hello from $HOSTNAME; exec sleep 1000000"))?;
    cluster.wait("condition=Ready", "pod/there")?;
    assert_eq!(cluster.kubectl(&["logs", "there"])?.trim(), "hello from there", "by the worker's kubelet API");
    assert_eq!(cluster.kubectl(&["exec", "there", "--", "cat", "/etc/hostname"])?.trim(), "there");
    // Services and names, as on the server's own node: the API is a Service too.
    let answer = cluster.kubectl(&["exec", "there", "--", "nslookup", "kubernetes.default.svc.cluster.local"])?;
    assert!(answer.contains("10.96.0.1"), "{answer}");
    let connect = "nc -w 5 10.96.0.1 443 </dev/null && echo connected";
    assert_eq!(cluster.kubectl(&["exec", "there", "--", "sh", "-c", connect])?.trim(), "connected");
    // Its certificates are its own, and no more than its own.
    let requests = cluster.get(&["certificatesigningrequests"])?;
    let mut signers = BTreeSet::new();
    for request in requests["items"].as_array().context("a list")? {
        let issued = request["status"]["certificate"].is_string();
        signers.insert((request["spec"]["signerName"].as_str().unwrap_or_default().to_owned(), issued));
    }
    let expected = ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"];
    assert_eq!(signers, expected.map(|signer| (signer.to_owned(), true)).into());
    Ok(())
}

#[test]
fn a_machine_that_may_not_join_is_told_why() -> Result<()> {
    let (cluster, agent) = machines(&[])?;
    let good = token(&cluster)?;
    let fails = |token: &str, name: &str| agent.fails(&["--server", URL, "--token", token, "--node-name", name]);
    let (head, _) = good.split_once("::").context("a token has two parts")?;
    let wrong = format!("{head}::abcdef.0123456789abcdef");
    let said = fails(&wrong, "worker")?;
    assert!(said.contains("wrong, was revoked or has expired"), "{said}");
    let other = good.replace(head, &format!("K10{}", "0".repeat(64)));
    let said = fails(&other, "worker")?;
    assert!(said.contains("not the cluster of the token"), "{said}");
    let said = fails("abcdef.0123456789abcdef", "worker")?;
    assert!(said.contains("put K10<hash>:: before it"), "{said}");
    let said = fails(&good, "server")?;
    assert!(said.contains("is ready already"), "two machines of one name: {said}");
    let short = cluster.carob(&["token", "create", "--ttl=1s", "--description=short"])?;
    let id = short.trim().rsplit("::").next().and_then(|last| last.split('.').next()).context("an id")?.to_owned();
    cluster.kubectl(&[
        "wait",
        "--for=delete",
        &format!("secret/bootstrap-token-{id}"),
        "-n=kube-system",
        "--timeout=60s",
    ])?;
    let said = fails(short.trim(), "worker")?;
    assert!(said.contains("wrong, was revoked or has expired"), "{said}");
    cluster.carob(&["token", "revoke", &good])?;
    let said = fails(&good, "worker")?;
    assert!(said.contains("wrong, was revoked or has expired"), "{said}");
    let list = cluster.carob(&["token", "list"])?;
    assert_eq!(list.lines().count(), 1, "only the head is left: {list}");
    let said = agent.fails(&["--server", URL])?;
    assert!(said.contains("has not joined a cluster yet"), "{said}");
    assert!(cluster.get(&["nodes"])?["items"].as_array().is_some_and(|nodes| nodes.len() == 1));
    Ok(())
}

#[test]
fn a_machine_that_is_cut_off_goes_on_and_comes_back() -> Result<()> {
    let (cluster, agent) = joined(&["--node-monitor-grace-period=15s"])?;
    agent.import(&["busybox"])?;
    // It ends once after it was cut off, and has to run again without the API.
    let shared = agent.host.dir().join("shared");
    let script = "echo >> /shared/starts; while [ ! -e /shared/stop ]; do sleep 0.2; done; rm /shared/stop; exit 1";
    let mut stubborn = pod("stubborn", "worker", script);
    stubborn["spec"]["volumes"] =
        json!([{"name": "shared", "hostPath": {"path": shared, "type": "DirectoryOrCreate"}}]);
    stubborn["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    create(&cluster, &stubborn)?;
    cluster.wait("condition=Ready", "pod/stubborn")?;
    let before = cluster.get(&["pod", "stubborn"])?;
    agent.host.set_link(&cluster.host, false)?;
    cluster.wait("condition=Ready=Unknown", "node/worker")?;
    fs_err::write(shared.join("stop"), "")?;
    until_none("a second run of the container", || {
        let starts = fs_err::read_to_string(shared.join("starts"))?.lines().count();
        Ok(if starts == 2 { vec![] } else { vec![starts] })
    })?;
    let pod = cluster.get(&["pod", "stubborn"])?;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "the API knows nothing of it yet");
    agent.host.set_link(&cluster.host, true)?;
    cluster.wait("condition=Ready=True", "node/worker")?;
    cluster.wait("jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/stubborn")?;
    cluster.wait("condition=Ready=True", "pod/stubborn")?;
    let after = cluster.get(&["pod", "stubborn"])?;
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"], "it is the same Pod");
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    assert_eq!(ready_condition(&cluster, "worker")?["status"], "True");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_leaves_its_pods_and_a_node_that_is_deleted_leaves_nothing() -> Result<()> {
    let (cluster, mut agent) = machines(&[])?;
    let (mounts, links) = (agent.host.mounts()?, agent.host.links()?);
    join(&cluster, &mut agent)?;
    agent.import(&["busybox"])?;
    create(&cluster, &pod("kept", "worker", "exec sleep 1000000"))?;
    cluster.wait("condition=Ready", "pod/kept")?;
    let before = cluster.get(&["pod", "kept"])?;
    agent.kill()?;
    // Without a token: it has joined.
    agent.start(&["--node-name=worker", "--server", URL])?;
    cluster.kubectl(&["exec", "kept", "--", "true"])?;
    let after = cluster.get(&["pod", "kept"])?;
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"], "nothing was restarted");
    cluster.kubectl(&["delete", "node", "worker"])?;
    cluster.kubectl(&["wait", "--for=delete", "pod/kept", "--timeout=120s"])?;
    until_none("cgroups of Pods", || {
        Ok(agent.host.cgroups()?.into_iter().filter(|path| path.to_string_lossy().contains("/pod")).collect())
    })?;
    agent.terminate()?;
    until_none("processes", || Ok(agent.host.processes()?.into_values().collect()))?;
    assert!(cluster.kubectl_fails(&["get", "node", "worker"])?.contains("NotFound"), "it is not registered again");
    agent.uninstall()?;
    assert!(!agent.host.dir().join("data").exists());
    assert_eq!(agent.host.mounts()?, mounts, "no mount is left");
    assert_eq!(agent.host.links()?, links, "no interface is left");
    assert!(agent.host.cgroups()?.is_empty(), "no group is left: {:?}", agent.host.cgroups()?);
    Ok(())
}

/// Objects that a writer makes while the cluster is saved.
const WRITES: usize = 50;
/// Seconds that Pods sleep which the restored cluster does not have.
const STRAY_SLEEPS: &str = "1000001";

#[test]
fn a_cluster_is_saved_while_it_runs_and_restored_under_its_agents() -> Result<()> {
    let (mut cluster, agent) = joined(&[])?;
    agent.import(&["busybox"])?;
    cluster.import(&["busybox"])?;
    // Processes are known by how long they sleep.
    let keeper =
        |name: &str| format!("exec sleep {}", if name.starts_with("stray") { STRAY_SLEEPS } else { "1000000" });
    for (name, node) in [("kept-here", "server"), ("kept-there", "worker")] {
        create(&cluster, &pod(name, node, &keeper(name)))?;
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    let identity = |cluster: &Cluster, name: &str| -> Result<Value> {
        Ok(cluster.get(&["pod", name])?["status"]["containerStatuses"][0]["containerID"].clone())
    };
    let before = [identity(&cluster, "kept-here")?, identity(&cluster, "kept-there")?];

    // It is saved in the midst of writes: those that were acknowledged before are in it.
    let script = format!("for i in $(seq {WRITES}); do kubectl create configmap before-$i >/dev/null || exit 1; done");
    let mut writer = cluster.host.command("sh");
    writer.env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig")).args(["-c", &script]);
    let mut writer = writer.spawn()?;
    cluster.kubectl(&["create", "configmap", "acknowledged"])?;
    let file = cluster.host.dir().join("saved.tar");
    let file = file.to_str().context("a UTF-8 path")?;
    let said = cluster.carob(&["save", file])?;
    assert!(said.starts_with("saved "), "{said}");
    assert!(writer.wait()?.success(), "the server went on");
    // What comes later is lost by the restoring, and Pods of it must not stay.
    for (name, node) in [("stray-here", "server"), ("stray-there", "worker")] {
        create(&cluster, &pod(name, node, &keeper(name)))?;
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    cluster.kubectl(&["create", "configmap", "later"])?;
    let revision = cluster.get(&["configmap", "later"])?["metadata"]["resourceVersion"].clone();
    let revision: u64 = revision.as_str().context("a revision")?.parse()?;

    cluster.kill_server()?;
    let said = cluster.carob(&["restore", file]).expect_err("the store is still there").to_string();
    assert!(said.contains("move away what is left"), "{said}");
    for name in ["store", "pki"] {
        fs_err::rename(cluster.data_dir().join(name), cluster.host.dir().join(name))?;
    }
    let said = cluster.carob(&["restore", file])?;
    assert!(said.starts_with("restored "), "{said}");
    cluster.start_server()?;

    cluster.kubectl(&["get", "configmap", "acknowledged"])?;
    cluster.kubectl_fails(&["get", "configmap", "later"])?;
    let watch = format!("/api/v1/configmaps?watch=true&timeoutSeconds=1&resourceVersion={revision}");
    let said = cluster.kubectl(&["get", "--raw", &watch])?;
    assert!(said.contains("410") && said.contains("too old resource version"), "{said}");
    cluster.kubectl(&["create", "configmap", "afterwards"])?;
    let next = cluster.get(&["configmap", "afterwards"])?["metadata"]["resourceVersion"].clone();
    assert!(next.as_str().context("a revision")?.parse::<u64>()? > revision, "{next} was issued before");

    cluster.wait("condition=Ready", "node/worker")?;
    until_none("a process of a Pod that the restored cluster does not have", || {
        let mut found = Vec::new();
        for host in [&cluster.host, &agent.host] {
            let words = host.run("sh", ["-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"])?;
            found.extend(words.lines().filter(|word| *word == STRAY_SLEEPS).map(str::to_owned));
        }
        Ok(found)
    })?;
    for name in ["kept-here", "kept-there"] {
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    assert_eq!([identity(&cluster, "kept-here")?, identity(&cluster, "kept-there")?], before, "they ran on");
    // What the agent's node is given now, it runs.
    create(&cluster, &pod("fresh", "worker", "exec sleep 1000000"))?;
    cluster.wait("condition=Ready", "pod/fresh")
}

/// Lets nobody reach the kubelet API from outside, and says so at once.
const BEHIND_NAT: &str = "nft add table inet nat_test && \
    nft 'add chain inet nat_test input { type filter hook input priority -200; }' && \
    nft 'add rule inet nat_test input iifname != lo tcp dport 10250 reject with tcp reset'";

#[test]
fn a_node_that_nobody_can_reach_is_reached_through_its_tunnel() -> Result<()> {
    let (mut cluster, mut agent) = joined(&[])?;
    agent.import(&["busybox"])?;
    agent.host.run("sh", ["-c", BEHIND_NAT])?;
    let script = "echo hello; echo from-the-pod >/tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    create(&cluster, &pod("there", "worker", script))?;
    cluster.wait("condition=Ready", "pod/there")?;
    let said = cluster.kubectl_fails(&["logs", "there"])?;
    assert!(said.contains("dial"), "the direct way is closed: {said}");

    agent.terminate()?;
    let flags = ["--node-name=worker", "--server", URL, "--tunnel"];
    agent.start(&flags)?;
    let is_reached = |cluster: &Cluster| {
        until_none("a node that is not reached through its tunnel", || {
            Ok(cluster.kubectl(&["logs", "there"]).err().into_iter().collect())
        })
    };
    is_reached(&cluster)?;
    assert_eq!(cluster.kubectl(&["logs", "there"])?.trim(), "hello");
    assert_eq!(cluster.kubectl(&["exec", "there", "--", "echo", "executed"])?.trim(), "executed");
    // More than windows and buffers hold.
    let count = cluster.kubectl(&["exec", "there", "--", "sh", "-c", "head -c 20000000 /dev/zero"])?;
    assert_eq!(count.len(), 20_000_000);
    let forward = "kubectl port-forward pod/there 18080:8080 >/dev/null & \
                   for i in $(seq 100); do curl -sf http://127.0.0.1:18080/index.html && break; sleep 0.1; done; kill $!";
    let mut command = cluster.host.command("sh");
    command.env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig")).args(["-c", forward]);
    let output = command.output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "from-the-pod");

    // It is opened again after the server was away.
    cluster.kill_server()?;
    cluster.start_server()?;
    is_reached(&cluster)?;
    // Whose a tunnel is follows from who asks, so an administrator opens none.
    let said = cluster.kubectl_fails(&["get", "--raw", "/carob/v1/tunnel"])?;
    assert!(said.contains("only the agent of a node"), "{said}");
    agent.kill()?;
    until_none("logs of a node whose agent is gone", || {
        Ok(cluster.kubectl(&["logs", "there"]).ok().into_iter().collect())
    })
}
