//! Virtual nodes beside or instead of the real one: what controllers, the scheduler and people see of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use carob_testkit::{Cluster, manifest, until_none};
use serde_json::{Value, json};

/// A server without a real node, with the virtual nodes of `config`.
fn start(config: &Value) -> Result<Cluster> {
    Cluster::start_prepared(|dir| {
        let path = dir.join("virtual-nodes.yaml");
        fs_err::write(&path, config.to_string())?;
        let path = path.to_str().context("a UTF-8 path")?;
        Ok(vec!["--disable-agent".to_owned(), format!("--virtual-nodes-config={path}")])
    })
}

fn create(cluster: &Cluster, object: &Value) -> Result<()> {
    let mut command = cluster.kubectl_command(&["create", "-f", "-"]);
    let mut kubectl = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    kubectl.stdin.take().context("standard input is piped")?.write_all(object.to_string().as_bytes())?;
    ensure!(kubectl.wait()?.success(), "kubectl create failed for {object}");
    Ok(())
}

fn items(cluster: &Cluster, arguments: &[&str]) -> Result<Vec<Value>> {
    let list = cluster.get(arguments)?;
    Ok(list["items"].as_array().context("a list has items")?.clone())
}

/// How many objects have each value at `pointer`.
fn tally(objects: &[Value], pointer: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for object in objects {
        *counts.entry(object.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned()).or_default() += 1;
    }
    counts
}

/// The notes' process group, three containers of 1 GB each, as JSON.
fn rsyslogd(cluster: &Cluster) -> Result<Value> {
    let text = cluster.kubectl(&["create", "--dry-run=client", "--output=json", "-f", &manifest("rsyslogd.yaml")?])?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn the_process_group_of_the_notes_goes_to_the_node_that_holds_all_of_it() -> Result<()> {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let large = json!({"name": "node-1", "capacity": {"memory": "3Gi"}});
    let small = json!({"name": "node-2", "capacity": {"memory": "2560Mi"}});
    for nodes in [[&large, &small], [&small, &large]] {
        let cluster = start(&json!({ "nodes": nodes }))?;
        let whole = rsyslogd(&cluster)?;
        for order in ORDERS {
            let mut pod = whole.clone();
            pod["spec"]["containers"] = order.iter().map(|index| whole["spec"]["containers"][*index].clone()).collect();
            create(&cluster, &pod)?;
            cluster.wait("condition=Ready", "pod/rsyslogd")?;
            assert_eq!(cluster.get(&["pod", "rsyslogd"])?["spec"]["nodeName"], "node-1", "containers {order:?}");
            cluster.kubectl(&["delete", "pod", "rsyslogd"])?;
        }
        for names in [["node-1", "node-2"], ["node-2", "node-1"]] {
            cluster.kubectl(&["cordon", "node-1", "node-2"])?;
            create(&cluster, &whole)?;
            let reason = r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].reason}=Unschedulable"#;
            cluster.wait(reason, "pod/rsyslogd")?;
            for name in names {
                cluster.kubectl(&["uncordon", name])?;
            }
            cluster.wait("condition=Ready", "pod/rsyslogd")?;
            assert_eq!(cluster.get(&["pod", "rsyslogd"])?["spec"]["nodeName"], "node-1", "nodes come as {names:?}");
            cluster.kubectl(&["delete", "pod", "rsyslogd"])?;
        }
        assert_eq!(items(&cluster, &["pods"])?, Vec::<Value>::new());
    }
    Ok(())
}

#[test]
fn two_hundred_pods_live_and_go_on_fifty_nodes() -> Result<()> {
    let cluster = Cluster::start_with(&["--disable-agent", "--virtual-nodes=50"])?;
    let nodes = items(&cluster, &["nodes", "--selector=carob.io/virtual=true"])?;
    assert_eq!(nodes.len(), 50);
    assert_eq!(tally(&nodes, "/metadata/labels/topology.kubernetes.io~1zone").len(), 3, "zones");
    cluster.kubectl(&["create", "deployment", "web", "--image=web", "--replicas=200"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let pods = items(&cluster, &["pods", "--selector=app=web"])?;
    assert_eq!(tally(&pods, "/status/phase"), BTreeMap::from([("Running".to_owned(), 200)]));
    assert_eq!(tally(&pods, "/status/podIP").len(), 200, "every Pod has an address of its own");
    let per_node = tally(&pods, "/spec/nodeName");
    assert_eq!(per_node.len(), 50, "every node has some: {per_node:?}");

    let said = cluster.kubectl_fails(&["logs", "deployment/web"])?;
    assert!(said.contains("is virtual: its Pods have no processes"), "{said}");
    let said = cluster.kubectl_fails(&["exec", "deployment/web", "--", "true"])?;
    assert!(said.contains("is virtual: its Pods have no processes"), "{said}");

    let container = json!({"name": "main", "image": "work"});
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
    let spec = json!({"completions": 200, "parallelism": 200, "template": template});
    create(&cluster, &json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"}, "spec": spec}))?;
    cluster.wait("condition=Complete", "job/work")?;
    let pods = items(&cluster, &["pods", "--selector=job-name=work"])?;
    assert_eq!(tally(&pods, "/status/phase"), BTreeMap::from([("Succeeded".to_owned(), 200)]));

    cluster.kubectl(&["delete", "deployment/web", "job/work", "--cascade=foreground"])?;
    until_none("Pods", || Ok(cluster.kubectl(&["get", "pods", "--output=name"])?.lines().map(str::to_owned).collect()))
}

#[test]
fn a_restarted_server_finds_nodes_and_pods_as_they_were() -> Result<()> {
    let config = json!({
        "nodes": [{"count": 5, "name": "virtual-{n}"}],
        "stages": [{"podSelector": {"matchLabels": {"app": "slow"}}, "ready": "1h"}],
    });
    let mut cluster = start(&config)?;
    for name in ["quick", "slow"] {
        cluster.kubectl(&["create", "deployment", name, "--image=web", "--replicas=10"])?;
    }
    cluster.kubectl(&["rollout", "status", "deployment/quick", "--timeout=120s"])?;
    let container = json!({"name": "main", "image": "work"});
    let metadata =
        json!({"name": "short", "annotations": {"virtual.carob.io/run": "4s", "virtual.carob.io/exit-code": "3"}});
    let spec = json!({"restartPolicy": "Never", "containers": [container]});
    create(&cluster, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))?;
    let running = "jsonpath={.status.phase}=Running";
    // The short one may have ended by then, on a slow machine.
    for pod in items(&cluster, &["pods", "--selector=app"])? {
        cluster.wait(running, &format!("pod/{}", pod["metadata"]["name"].as_str().context("a name")?))?;
    }
    let look = |cluster: &Cluster| -> Result<BTreeSet<String>> {
        let pods = items(cluster, &["pods", "--selector=app"])?;
        let nodes = items(cluster, &["nodes"])?;
        let pods =
            pods.iter().map(|pod| json!([pod["metadata"]["uid"], pod["spec"]["nodeName"], pod["status"]]).to_string());
        let nodes = nodes
            .iter()
            .map(|node| json!([node["metadata"]["uid"], node["spec"], node["metadata"]["labels"]]).to_string());
        Ok(pods.chain(nodes).collect())
    };
    let before = look(&cluster)?;
    assert_eq!(before.len(), 25);
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.wait("jsonpath={.status.phase}=Failed", "pod/short")?;
    let ended = cluster.get(&["pod", "short"])?;
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!(look(&cluster)?, before, "nothing of what runs has changed");
    cluster.kubectl(&["delete", "pods", "--all", "--wait=false"])?;
    cluster.kubectl(&["delete", "deployments", "--all", "--cascade=foreground"])?;
    until_none("Pods", || Ok(cluster.kubectl(&["get", "pods", "--output=name"])?.lines().map(str::to_owned).collect()))
}

#[test]
fn a_real_pod_chooses_the_real_node_where_virtual_ones_are_tainted() -> Result<()> {
    let taint = json!({"key": "carob.io/virtual", "effect": "NoSchedule"});
    let config = json!({"nodes": [{"count": 3, "name": "virtual-{n}", "taints": [taint]}]});
    let cluster = Cluster::start_prepared(|dir| {
        let path = dir.join("virtual-nodes.yaml");
        fs_err::write(&path, config.to_string())?;
        Ok(vec![format!("--virtual-nodes-config={}", path.to_str().context("a UTF-8 path")?)])
    })?;
    cluster.import(&["busybox"])?;
    cluster.kubectl(&["run", "real", "--image=busybox", "--", "sleep", "3600"])?;
    cluster.wait("condition=Ready", "pod/real")?;
    assert_eq!(cluster.kubectl(&["exec", "real", "--", "echo", "here"])?.trim(), "here");
    let container = json!({"name": "main", "image": "any"});
    let tolerations = json!([{"key": "carob.io/virtual", "operator": "Exists"}]);
    let spec =
        json!({"nodeSelector": {"carob.io/virtual": "true"}, "tolerations": tolerations, "containers": [container]});
    create(&cluster, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "played"}, "spec": spec}))?;
    cluster.wait("condition=Ready", "pod/played")?;
    cluster.kubectl(&["delete", "pod", "real", "played"]).map(drop)
}
