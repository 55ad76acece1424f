//! Pods on two machines that talk: over a link that both share, and through the tunnel where they share none.

use anyhow::{Context, Result};
use carob_testkit::{Agent, Cluster, Host, until_none};
use serde_json::{Value, json};

const SERVER: &str = "203.0.113.1";
const AGENT: &str = "203.0.113.2";
/// More than fits into one packet.
const BYTES: usize = 100_000;

fn create(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs_err::write(&path, list.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

/// A Pod that answers each connection with many bytes and then its name.
fn pod(node: &str) -> Value {
    let serve = format!("yes | head -c {BYTES}; echo; hostname");
    let script = format!("echo '{serve}' >/tmp/serve; exec nc -ll -p 8080 -e sh /tmp/serve");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}"), "labels": {"node": node}}, "spec": {
        "nodeName": node, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", script]}]}})
}

fn service(node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("on-{node}")}, "spec": {
        "type": "NodePort", "selector": {"node": node}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

/// Leaves two hosts no network in common: each has an address of its own, and a route to the other's.
fn part(host: &Host, own: &str, other: &str) -> Result<()> {
    let script = "dev=$(ip -o -4 addr show to $1 | awk '{print $2}') && ip addr flush dev $dev && \
                  ip addr add $1/32 dev $dev && ip route add $2/32 dev $dev src $1";
    host.run("sh", ["-c", script, "sh", own, other]).map(drop)
}

fn check(is_parted: bool) -> Result<()> {
    let host = Host::new()?;
    let mut agent = Agent::linked(&host, SERVER, AGENT)?;
    if is_parted {
        part(&host, SERVER, AGENT)?;
        part(&agent.host, AGENT, SERVER)?;
    }
    let node_ip = format!("--node-ip={SERVER}");
    let cluster = Cluster::start_on(host, &["--node-name=server", &node_ip])?;
    let token = cluster.carob(&["token", "create"])?;
    let url = format!("https://{SERVER}:6443");
    agent.start(&["--node-name=worker", "--server", &url, "--token", token.trim()])?;
    cluster.wait("condition=Ready", "node/worker")?;
    cluster.import(&["busybox"])?;
    agent.import(&["busybox"])?;
    create(&cluster, &[pod("server"), pod("worker"), service("server"), service("worker")])?;
    for name in ["on-server", "on-worker"] {
        cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    }
    let tunnels =
        |host: &Host| -> Result<usize> { Ok(host.links()?.into_iter().filter(|name| name.starts_with("cv")).count()) };
    for (from, to) in [("server", "worker"), ("worker", "server")] {
        let target = cluster.get(&["pod", &format!("on-{to}")])?;
        let address = target["status"]["podIP"].as_str().context("an address")?.to_owned();
        let ask = |target: &str, port: &str| -> Result<String> {
            let line = format!("nc -w 10 {target} {port} </dev/null");
            cluster.kubectl(&["exec", &format!("on-{from}"), "--", "sh", "-c", &line])
        };
        // The routes follow the Node objects within a moment.
        until_none(&format!("{from} does not reach {to}"), || {
            let said = ask(&address, "8080").unwrap_or_default();
            Ok(if said.len() > BYTES { Vec::new() } else { vec![said.len()] })
        })?;
        for (what, target, port) in
            [("the Pod's address", address.as_str(), "8080"), ("its Service", &format!("on-{to}"), "80")]
        {
            let said = ask(target, port).with_context(|| format!("{from} to {to} by {what}"))?;
            assert!(said.len() > BYTES && said.trim_end().ends_with(&format!("on-{to}")), "{from} to {to} by {what}");
        }
    }
    // A NodePort of the server leads to the Pod of the other node, for the host too.
    let service = cluster.get(&["service", "on-worker"])?;
    let port = service["spec"]["ports"][0]["nodePort"].to_string();
    let said = cluster.host.run("busybox", ["sh", "-c", &format!("nc -w 10 {SERVER} {port} </dev/null")])?;
    assert!(said.trim_end().ends_with("on-worker"), "by the NodePort {port}");
    let expected = usize::from(is_parted);
    assert_eq!((tunnels(&cluster.host)?, tunnels(&agent.host)?), (expected, expected), "tunnels");
    // A node that is gone leaves no route.
    agent.terminate()?;
    cluster.kubectl(&["delete", "node", "worker"])?;
    until_none("routes to a node that is gone", || {
        let routes = cluster.host.run("ip", ["route", "show", "proto", "202"])?;
        Ok(routes.lines().map(str::to_owned).collect())
    })
}

#[test]
fn pods_of_nodes_on_one_link_are_routed() -> Result<()> {
    check(false)
}

#[test]
fn pods_of_nodes_that_share_no_link_go_through_a_tunnel() -> Result<()> {
    check(true)
}
