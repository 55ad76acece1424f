//! A newer carob in the place of an older one, first on the server's machine, then on an agent's, while Pods run and clients write.
//!
//! `cargo xtask upgrade REVISION` builds the older one. Without it (`CAROB_PREVIOUS_BIN`) the program under test replaces itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use carob_testkit::history::{self, GIVEN, record::Outcome, record::Record};
use carob_testkit::load::{self, KEYS, LAST, NAMESPACE, key};
use carob_testkit::{Agent, Cluster, Host, Load, program, until_none};
use serde_json::{Value, json};

/// The program that [`Load`] runs.
const LOAD: &str = env!("CARGO_BIN_EXE_history-load");
const SERVER: &str = "203.0.113.1";
const AGENT: &str = "203.0.113.2";
const NODES: [&str; 2] = ["server", "worker"];
/// Writes that have to be acknowledged for the run to say anything.
const WRITES_MIN: usize = 20;

struct Machines {
    cluster: Cluster,
    agent: Agent,
}

/// Both run the older program.
fn start(previous: &Path) -> Result<Machines> {
    let host = Host::new()?;
    let mut agent = Agent::linked(&host, SERVER, AGENT)?;
    let flags = vec!["--node-name=server".to_owned(), format!("--node-ip={SERVER}")];
    let cluster = Cluster::start_program(previous.to_owned(), host, flags)?;
    let token = cluster.carob(&["token", "create"])?;
    agent.use_program(previous.to_owned());
    agent.start(&["--node-name=worker", &format!("--server=https://{SERVER}:6443"), "--token", token.trim()])?;
    cluster.wait("condition=Ready", "node/worker")?;
    cluster.import(&["busybox"])?;
    agent.import(&["busybox"])?;
    Ok(Machines { cluster, agent })
}

fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join("objects.json");
    fs_err::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

/// What counts, answers over HTTP and keeps a file in a volume, on one node: behind a claim, or in the directory of the machine that
/// is named.
fn keeper(node: &str, dir: Option<&Path>) -> Value {
    let script = "i=0; mkdir -p /tmp/www; hostname >/tmp/www/index.html; httpd -p 8080 -h /tmp/www; \
                  while true; do i=$((i+1)); echo tick $i; sleep 0.05; done";
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let claims: Vec<Value> = if dir.is_none() { vec![claim] } else { Vec::new() };
    let mut volumes = vec![json!({"name": "settings", "configMap": {"name": "settings"}})];
    volumes.extend(dir.map(|dir| json!({"name": "data", "hostPath": {"path": dir, "type": "DirectoryOrCreate"}})));
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": node}, "spec": {
        "serviceName": "web", "selector": {"matchLabels": {"app": "web", "on": node}},
        "volumeClaimTemplates": claims,
        "template": {"metadata": {"labels": {"app": "web", "on": node}}, "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
            "volumes": volumes,
            "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", script],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                "livenessProbe": {"exec": {"command": ["test", "-e", "/tmp/www/index.html"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "data", "mountPath": "/data"},
                                 {"name": "settings", "mountPath": "/settings"}]}]}}}})
}

/// What asks a Service without an end, and says what was not answered.
fn asker(node: &str) -> Value {
    let script = "while true; do printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $WEB_SERVICE_HOST 80 | grep -q 200 \
                  && echo answered || echo failed; done";
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("asker-{node}")}, "spec": {
        "nodeName": node, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", script]}]}})
}

fn rolled_out(cluster: &Cluster, keeper: &str) -> Result<()> {
    let waited = cluster.kubectl(&["rollout", "status", &format!("statefulset/{keeper}"), "--timeout=120s"]);
    waited.map(drop).with_context(|| cluster.describe(&format!("pod/{keeper}-0")))
}

fn prepare(machines: &Machines) -> Result<()> {
    let cluster = &machines.cluster;
    let settings =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"word": "first"}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "wells.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "wells", "singular": "well", "kind": "Well"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"depth": {"type": "integer", "minimum": 1, "default": 7}}}}}]}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let mut objects = vec![settings, service, definition, namespace];
    objects.extend((0..KEYS).map(|number| load::config_map(&key(number), GIVEN)));
    let dir = machines.agent.host.dir().join("kept");
    objects.extend([keeper(NODES[0], None), keeper(NODES[1], Some(&dir))]);
    apply(cluster, &objects)?;
    cluster.wait("condition=Established", "crd/wells.example.com")?;
    apply(cluster, &[json!({"apiVersion": "example.com/v1", "kind": "Well", "metadata": {"name": "old"}})])?;
    for node in NODES {
        rolled_out(cluster, node)?;
        cluster.kubectl(&["exec", &format!("{node}-0"), "--", "sh", "-c", "echo kept >/data/file"])?;
    }
    apply(cluster, &NODES.map(asker))?;
    for node in NODES {
        cluster.wait("condition=Ready", &format!("pod/asker-{node}"))?;
    }
    Ok(())
}

/// What must not change of the Pods that run on: identity, containers, conditions with their times, addresses.
fn running(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let pods = cluster.get(&["pods"])?;
    let pods = pods["items"].as_array().context("a list")?;
    let of = |pod: &Value| -> Option<(String, Value)> {
        let name = pod["metadata"]["name"].as_str()?.to_owned();
        let mut status = pod["status"].clone();
        // An older program may not know of this field yet.
        status.as_object_mut()?.remove("observedGeneration");
        for condition in status["conditions"].as_array_mut()? {
            condition.as_object_mut()?.remove("observedGeneration");
        }
        Some((name, json!({"uid": pod["metadata"]["uid"], "status": status})))
    };
    pods.iter().map(|pod| of(pod).with_context(|| format!("a Pod with a status: {pod}"))).collect()
}

/// The Pods that were there before do all that they did, and their node does for them what it did.
fn serves(machines: &Machines, before: &BTreeMap<String, Value>) -> Result<()> {
    let cluster = &machines.cluster;
    let now = running(cluster)?;
    for (name, pod) in before {
        assert_eq!(Some(pod), now.get(name), "{name} is as it was");
    }
    for node in NODES {
        let pod = format!("{node}-0");
        assert_eq!(cluster.kubectl(&["exec", &pod, "--", "cat", "/data/file"])?.trim(), "kept");
        let log = cluster.kubectl(&["logs", &pod])?;
        let ticks = log.lines().filter_map(|line| line.strip_prefix("tick "));
        let numbers: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
        ensure!(
            numbers.len() > 1 && numbers.iter().zip(1..).all(|(found, expected)| *found == expected),
            "{pod}: {log}"
        );
        let log = cluster.kubectl(&["logs", &format!("asker-{node}")])?;
        ensure!(log.contains("answered") && !log.contains("failed"), "asker-{node}: {log}");
        // A Pod that comes and goes.
        let script = "echo made on $(cat /etc/hostname)";
        let short = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "short"}, "spec": {
            "nodeName": node, "restartPolicy": "Never",
            "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", script]}]}});
        apply(cluster, &[short])?;
        cluster.wait("jsonpath={.status.phase}=Succeeded", "pod/short")?;
        assert_eq!(cluster.kubectl(&["logs", "short"])?.trim(), "made on short");
        cluster.kubectl(&["delete", "pod", "short"])?;
    }
    assert_eq!(cluster.get(&["well", "old"])?["depth"], 7, "custom objects are served");
    Ok(())
}

/// A volume follows its ConfigMap into containers that the older program started.
fn settings_arrive(cluster: &Cluster, word: &str) -> Result<()> {
    let patch = json!({"data": {"word": word}}).to_string();
    cluster.kubectl(&["patch", "configmap", "settings", "--type=merge", "--patch", &patch])?;
    for node in NODES {
        until_none("an old word in a volume", || {
            let found = cluster.kubectl(&["exec", &format!("{node}-0"), "--", "cat", "/settings/word"])?;
            Ok((found != word).then_some(found).into_iter().collect())
        })?;
    }
    Ok(())
}

/// Containers that the older program started end and start again by the newer one, and their Pods go.
fn ends_what_the_older_started(cluster: &Cluster) -> Result<()> {
    for node in NODES {
        let pod = format!("{node}-0");
        cluster.kubectl(&["exec", &pod, "--", "rm", "/tmp/www/index.html"])?;
        cluster.wait("jsonpath={.status.containerStatuses[0].restartCount}=1", &format!("pod/{pod}"))?;
        cluster.wait("condition=Ready", &format!("pod/{pod}"))?;
        let uid = |cluster: &Cluster| -> Result<Value> { Ok(cluster.get(&["pod", &pod])?["metadata"]["uid"].clone()) };
        let first = uid(cluster)?;
        cluster.kubectl(&["delete", "pod", &pod])?;
        rolled_out(cluster, node)?;
        assert_ne!(uid(cluster)?, first);
        assert_eq!(
            cluster.kubectl(&["exec", &pod, "--", "cat", "/data/file"])?.trim(),
            "kept",
            "in the next Pod as well"
        );
    }
    Ok(())
}

#[test]
fn a_newer_program_takes_over_from_an_older_one() -> Result<()> {
    let newer = program()?;
    let previous = std::env::var_os("CAROB_PREVIOUS_BIN").map_or_else(|| newer.clone(), PathBuf::from);
    let mut machines = start(&previous)?;
    prepare(&machines)?;
    let mut load = Load::start(LOAD, &machines.cluster, "clients")?;
    let mut records = Vec::new();
    let before = running(&machines.cluster)?;
    serves(&machines, &before).context("before")?;

    machines.cluster.replace_program(newer.clone())?;
    serves(&machines, &before).context("a newer server, an older agent")?;
    settings_arrive(&machines.cluster, "second")?;
    load.take(&mut records)?;

    machines.agent.terminate()?;
    machines.agent.use_program(newer);
    machines.agent.start(&["--node-name=worker", &format!("--server=https://{SERVER}:6443")])?;
    serves(&machines, &before).context("both newer")?;
    settings_arrive(&machines.cluster, "third")?;

    load.stop(&mut records)?;
    apply(&machines.cluster, &[load::config_map(LAST, GIVEN)])?;
    load.finish(&mut records)?;
    let is_done = |record: &&Record| matches!(record, Record::Write { outcome: Outcome::Done { .. }, .. });
    ensure!(records.iter().filter(is_done).count() >= WRITES_MIN, "too few writes: {records:?}");
    let faults = history::check(&records);
    ensure!(faults.is_empty(), "{faults:#?}");
    ends_what_the_older_started(&machines.cluster)
}
