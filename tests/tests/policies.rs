//! Network policies on a real server: what passes and what does not, from a Pod's first packet on.

use anyhow::{Context, Result, ensure};
use carob_testkit::{Cluster, until_none};
use serde_json::{Value, json};

fn create(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs_err::write(&path, list.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn pod(namespace: &str, name: &str, command: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}}, "spec": {
        "terminationGracePeriodSeconds": 0, "restartPolicy": "Never",
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", command]}]}})
}

/// Sends back what it is sent, on two ports.
const ECHO: &str = "nc -ll -p 8080 -e cat & exec nc -ll -p 9090 -e cat";

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

fn address(cluster: &Cluster, name: &str) -> Result<String> {
    let pod = cluster.get(&["pod", name])?;
    Ok(pod["status"]["podIP"].as_str().with_context(|| format!("{name} has no address"))?.to_owned())
}

/// Whether a Pod is answered there.
fn is_answered(cluster: &Cluster, (namespace, client): (&str, &str), target: &str, port: u16) -> Result<bool> {
    let line = format!("echo hello | nc -w 2 {target} {port} | grep -q hello && echo yes || echo no");
    let said = cluster.kubectl(&["exec", "-n", namespace, client, "--", "sh", "-c", &line])?;
    Ok(said.trim() == "yes")
}

#[test]
fn a_pod_is_isolated_before_its_first_packet() -> Result<()> {
    /// Pods that try to be faster than their rules.
    const PODS: usize = 8;
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let deny = policy("quiet", json!({"podSelector": {"matchLabels": {"quiet": "true"}}, "policyTypes": ["Egress"]}));
    create(&cluster, &[pod("default", "server", ECHO), deny])?;
    cluster.wait("condition=Ready", "pod/server")?;
    let server = address(&cluster, "server")?;
    let attempt = format!("echo hello | nc -w 3 {server} 8080 2>/dev/null | grep hello || echo silence");
    let mut pods = vec![pod("default", "free", &attempt)];
    for number in 0..PODS {
        let mut quiet = pod("default", &format!("quiet-{number}"), &attempt);
        quiet["metadata"]["labels"]["quiet"] = "true".into();
        pods.push(quiet);
    }
    create(&cluster, &pods)?;
    let said = |name: &str| {
        cluster.wait("jsonpath={.status.phase}=Succeeded", &format!("pod/{name}"))?;
        cluster.kubectl(&["logs", name])
    };
    assert_eq!(said("free")?.trim(), "hello", "a Pod that no policy selects");
    for number in 0..PODS {
        assert_eq!(said(&format!("quiet-{number}"))?.trim(), "silence", "Pod {number} was faster than its rules");
    }
    Ok(())
}

#[test]
fn what_policies_allow_passes_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let sleep = "exec sleep 1000000";
    let other =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"team": "b"}}});
    create(
        &cluster,
        &[
            other,
            pod("default", "server", ECHO),
            pod("default", "friend", sleep),
            pod("default", "stranger", sleep),
            pod("other", "friend", sleep),
        ],
    )?;
    for name in ["server", "friend", "stranger"] {
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "-n", "other", "pod/friend", "--timeout=120s"])?;
    let server = address(&cluster, "server")?;
    let clients = [("default", "friend"), ("default", "stranger"), ("other", "friend")];
    let seen = |port: u16| -> Result<Vec<bool>> {
        clients.into_iter().map(|client| is_answered(&cluster, client, &server, port)).collect()
    };
    assert_eq!(seen(8080)?, [true, true, true], "without a policy");
    let friends = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
    let team = json!([{"namespaceSelector": {"matchLabels": {"team": "b"}}}]);
    let range =
        json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("{}/32", address(&cluster, "stranger")?)]}}]);
    let web = json!([{"port": 8080}]);
    for (what, rules, web_seen, other_seen) in [
        ("nothing", json!([]), [false, false, false], [false, false, false]),
        ("everything", json!([{}]), [true, true, true], [true, true, true]),
        ("friends", json!([{"from": friends}]), [true, false, false], [true, false, false]),
        ("a namespace, on one port", json!([{"from": team, "ports": web}]), [false, false, true], [false; 3]),
        ("a range with an exception", json!([{"from": range}]), [true, false, true], [true, false, true]),
        (
            "two rules",
            json!([{"from": friends}, {"from": team, "ports": web}]),
            [true, false, true],
            [true, false, false],
        ),
    ] {
        let spec =
            json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": rules});
        create(&cluster, &[policy("p", spec)])?;
        // The rules follow the object within a moment.
        until_none(what, || {
            let found = (seen(8080)?, seen(9090)?);
            let is_right = found.0 == web_seen && found.1 == other_seen;
            Ok(if is_right { Vec::new() } else { vec![found] })
        })?;
    }
    Ok(())
}

#[test]
fn a_connection_follows_a_policy_that_comes_later() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    create(&cluster, &[pod("default", "server", ECHO)])?;
    cluster.wait("condition=Ready", "pod/server")?;
    let server = address(&cluster, "server")?;
    let talk = format!("(while true; do echo word; usleep 100000; done) | nc {server} 8080 >/tmp/heard");
    create(&cluster, &[pod("default", "client", &talk)])?;
    cluster.wait("condition=Ready", "pod/client")?;
    let heard = || -> Result<usize> {
        let text = cluster.kubectl(&["exec", "client", "--", "sh", "-c", "cat /tmp/heard | wc -l"])?;
        Ok(text.trim().parse()?)
    };
    until_none("a connection that is not answered", || Ok(if heard()? > 5 { Vec::new() } else { vec!["silence"] }))?;
    let deny = json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]});
    create(&cluster, &[policy("deny", deny)])?;
    let mut before = 0;
    until_none("a connection that a policy forbids", || {
        let now = heard()?;
        let has_stopped = now == std::mem::replace(&mut before, now);
        cluster.host.run("sleep", ["1"])?;
        Ok(if has_stopped { Vec::new() } else { vec![now] })
    })?;
    cluster.kubectl(&["delete", "networkpolicy", "deny"])?;
    let stopped_at = heard()?;
    until_none("a connection that is allowed again", || Ok(if heard()? > stopped_at { Vec::new() } else { vec![()] }))?;
    let pod = cluster.get(&["pod", "client"])?;
    ensure!(pod["status"]["phase"] == "Running", "it is the same connection: {pod}");
    Ok(())
}
