//! Volumes of the class `local` on agents: made where the scheduler says, kept over the agent's end, gone with their claims, and
//! nobody's but the node's that has them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use carob_testkit::{Agent, Cluster, Host, Switch, until_none};
use serde_json::{Value, json};

const SERVER: &str = "203.0.113.1";
const URL: &str = "https://203.0.113.1:6443";
/// Names and addresses of the agents.
const AGENTS: [(&str, &str); 2] = [("one", "203.0.113.11"), ("two", "203.0.113.12")];

struct Machines {
    cluster: Cluster,
    agents: Vec<Agent>,
    /// Its directory is there until the others are gone.
    _switch: Switch,
}

impl Machines {
    /// A server and two agents that have joined, each with its flags.
    fn start(flags: [&[&str]; 2]) -> Result<Self> {
        let switch = Switch::new()?;
        let host = |address: &str| -> Result<Host> {
            let host = Host::new()?;
            switch.plug(&host, address)?;
            Ok(host)
        };
        let cluster = Cluster::start_on(host(SERVER)?, &["--node-name=server", &format!("--node-ip={SERVER}")])?;
        cluster.import(&["busybox"])?;
        let token = format!("--token={}", cluster.carob(&["token", "create"])?.trim());
        let mut agents = Vec::new();
        for ((name, address), flags) in AGENTS.into_iter().zip(flags) {
            let mut agent = Agent::on(host(address)?, address);
            let name = format!("--node-name={name}");
            agent.start(&[&["--server", URL, &token, &name], flags].concat())?;
            agent.import(&["busybox"])?;
            agents.push(agent);
        }
        for (name, _) in AGENTS {
            cluster.wait("condition=Ready", &format!("node/{name}"))?;
        }
        Ok(Self { cluster, agents, _switch: switch })
    }

    fn volumes_dir(&self, node: &str) -> PathBuf {
        match AGENTS.iter().position(|(name, _)| *name == node) {
            Some(number) => self.agents[number].host.dir().join("data/volumes"),
            None => self.cluster.data_dir().join("volumes"),
        }
    }

    /// What is in a node's directory of volumes, beside its id.
    fn kept(&self, node: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs_err::read_dir(self.volumes_dir(node))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != "id");
        Ok(names)
    }

    fn create(&self, objects: &[Value]) -> Result<()> {
        let path = self.cluster.host.dir().join("objects.json");
        fs_err::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        self.cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
    }

    /// No directory, device or mount of a volume is left on any agent.
    fn nothing_is_left(&self) -> Result<()> {
        for (agent, (name, _)) in self.agents.iter().zip(AGENTS) {
            if self.volumes_dir(name).exists() {
                until_none("directories of volumes", || self.kept(name))?;
            }
            let ours = agent.host.dir().display().to_string();
            until_none("devices of volumes", || {
                let shown = agent.host.run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"])?;
                Ok(shown.lines().filter(|file| file.contains(&ours)).map(str::to_owned).collect())
            })?;
            until_none("mounts of volumes", || {
                Ok(agent.host.mounts()?.into_iter().filter(|mount| mount.contains("pvc-")).collect())
            })?;
        }
        Ok(())
    }

    /// What the API answers to kubectl with the certificate of the first agent's node.
    fn as_node(&self, arguments: &[&str]) -> Result<Result<String, String>> {
        let agent = &self.agents[0];
        let file = |name: &str| agent.host.dir().join("data/agent").join(name).display().to_string();
        let mut command = agent.host.command("kubectl");
        command.env("KUBECONFIG", "/dev/null").args(["--server", URL, "--certificate-authority", &file("ca.crt")]);
        command.args(["--client-certificate", &file("client.pem"), "--client-key", &file("client.pem")]);
        let output = command.args(arguments).stdin(Stdio::null()).output()?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) })
    }

    fn refuses(&self, arguments: &[&str]) -> Result<()> {
        match self.as_node(arguments)? {
            Ok(said) => anyhow::bail!("kubectl {} was allowed to node one: {said}", arguments.join(" ")),
            Err(said) => ensure!(said.to_lowercase().contains("forbidden"), "kubectl {}: {said}", arguments.join(" ")),
        }
        Ok(())
    }

    fn bound(&self, claim: &str) -> Result<String> {
        let claim = self.cluster.get(&["pvc", claim])?;
        Ok(claim["spec"]["volumeName"].as_str().context("it is bound to a volume")?.to_owned())
    }
}

fn claim(name: &str, source: Option<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}, "dataSource": source}})
}

/// A Pod on that node, chosen by the scheduler, that has the claim at `/data` and is ready once `script` has ended well.
fn user(name: &str, node: &str, claim: &str, script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0, "nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-ec", format!("{script}; touch /tmp/done; sleep 3600")],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/done"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

#[test]
fn a_stateful_set_has_its_volumes_on_every_node() -> Result<()> {
    let mut machines = Machines::start([&[], &[]])?;
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "podManagementPolicy": "Parallel",
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}]}},
            "containers": [{"name": "main", "image": "busybox",
                "command": ["sh", "-ec", "echo $(hostname) >>/data/lives; sleep 3600"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}}]}});
    machines.create(&[set])?;
    let rollout = |machines: &Machines| {
        machines.cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"]).map(drop)
    };
    rollout(&machines)?;
    let pods = ["db-0", "db-1", "db-2"];
    let mut places = Vec::new();
    for pod in pods {
        let node = machines.cluster.get(&["pod", pod])?["spec"]["nodeName"].as_str().context("a node")?.to_owned();
        let volume = machines.bound(&format!("data-{pod}"))?;
        assert!(machines.volumes_dir(&node).join(&volume).join("data/lives").exists(), "{volume} is on {node}");
        places.push(node);
    }
    assert_eq!(places.iter().map(String::as_str).collect::<BTreeSet<_>>(), ["one", "server", "two"].into());

    machines.cluster.kubectl(&["delete", "pod", "db-0", "db-1", "db-2"])?;
    rollout(&machines)?;
    for (agent, (name, _)) in machines.agents.iter_mut().zip(AGENTS) {
        agent.kill()?;
        agent.start(&["--server", URL, &format!("--node-name={name}")])?;
    }
    for (pod, node) in pods.iter().zip(&places) {
        let lives = machines.cluster.kubectl(&["exec", pod, "--", "cat", "/data/lives"])?;
        assert_eq!(lives.lines().collect::<Vec<_>>(), [*pod, *pod], "two lives with one volume");
        assert_eq!(machines.cluster.get(&["pod", pod])?["spec"]["nodeName"], node.as_str(), "where its volume is");
    }
    // More room while a Pod has it, and while none does.
    let grow = |pod: &str, size: &str| -> Result<()> {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
        machines.cluster.kubectl(&["patch", "pvc", &format!("data-{pod}"), "-p", &patch])?;
        machines.cluster.wait(&format!("jsonpath={{.status.capacity.storage}}={size}"), &format!("pvc/data-{pod}"))
    };
    pods.iter().try_for_each(|pod| grow(pod, "32Mi"))?;
    machines.cluster.kubectl(&["scale", "statefulset/db", "--replicas=0"])?;
    machines.cluster.kubectl(&["wait", "--for=delete", "pod", "-l", "app=db", "--timeout=60s"])?;
    pods.iter().try_for_each(|pod| grow(pod, "48Mi"))?;
    machines.cluster.kubectl(&["delete", "statefulset/db"])?;
    machines.cluster.kubectl(&["delete", "pvc", "--all"])?;
    machines.nothing_is_left()?;
    until_none("volumes", || Ok(machines.cluster.get(&["pv"])?["items"].as_array().cloned().unwrap_or_default()))
}

#[test]
fn an_agents_volumes_are_copied_shown_as_devices_and_found_again() -> Result<()> {
    let mut machines = Machines::start([&[], &["--disable=local-storage"]])?;
    let cluster = &machines.cluster;
    machines
        .create(&[claim("data", None), user("writer", "one", "data", "echo one >/data/file; chown 7:8 /data/file")])?;
    cluster.wait("condition=Ready", "pod/writer")?;
    let snapshot = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "then"},
        "spec": {"source": {"persistentVolumeClaimName": "data"}}});
    machines.create(&[snapshot])?;
    cluster.wait("jsonpath={.status.readyToUse}=true", "volumesnapshot/then")?;
    cluster.kubectl(&["exec", "writer", "--", "sh", "-c", "echo two >/data/file"])?;
    let of_snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "then"});
    let of_claim = json!({"kind": "PersistentVolumeClaim", "name": "data"});
    let same = |words: &str| format!("test $(cat /data/file) = {words}; test $(stat -c %u:%g /data/file) = 7:8");
    let (mut device, mut painter) =
        (claim("device", None), user("painter", "one", "device", "echo words >/dev/disk; sync"));
    device["spec"]["volumeMode"] = "Block".into();
    let container = &mut painter["spec"]["containers"][0];
    container["volumeMounts"] = json!([]);
    container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/disk"}]);
    machines.create(&[
        claim("restored", Some(of_snapshot)),
        user("restored", "one", "restored", &same("one")),
        claim("copy", Some(of_claim.clone())),
        user("copy", "one", "copy", &same("two")),
        device,
        painter,
        // Not where what it is a copy of is.
        claim("far", Some(of_claim)),
        user("far", "server", "far", "true"),
        // No provisioner is there.
        claim("without", None),
        user("without", "two", "without", "true"),
    ])?;
    for pod in ["restored", "copy", "painter"] {
        cluster.wait("condition=Ready", &format!("pod/{pod}"))?;
    }
    let disk = machines.volumes_dir("one").join(machines.bound("device")?).join("disk");
    assert!(fs_err::read(disk)?.starts_with(b"words"));
    until_none("words on the copy that cannot be had", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=reason=ProvisioningFailed"])?;
        Ok(if events.contains("has its volume on another node") { Vec::new() } else { vec![events] })
    })?;
    cluster.wait("condition=PodScheduled=False", "pod/without")?;
    let without = cluster.get(&["pvc", "without"])?;
    assert!(without["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null(), "{without}");
    let label = cluster.get(&["node", "two"])?["metadata"]["labels"]["carob.io/volumes"].clone();
    assert!(label.is_null(), "{label}");

    cluster.kubectl(&["delete", "pod", "restored", "copy", "painter", "far", "without"])?;
    cluster.kubectl(&["delete", "volumesnapshot", "then"])?;
    cluster.kubectl(&["delete", "pvc", "restored", "copy", "device", "far", "without"])?;
    let volume = machines.bound("data")?;
    until_none("what is left of what was deleted", || {
        Ok(machines.kept("one")?.into_iter().filter(|name| *name != volume).collect())
    })?;
    // A machine that leaves and comes back has its volumes.
    cluster.kubectl(&["delete", "node", "one"])?;
    cluster.kubectl(&["wait", "--for=delete", "pod/writer", "--timeout=120s"])?;
    machines.agents[0].terminate()?;
    machines.agents[0].start(&["--server", URL, "--node-name=one"])?;
    machines.cluster.wait("condition=Ready", "node/one")?;
    machines.create(&[user("reader", "one", "data", &same("two"))])?;
    machines.cluster.wait("condition=Ready", "pod/reader")?;
    machines.cluster.kubectl(&["delete", "pod/reader", "pvc/data"])?;
    machines.nothing_is_left()
}

#[test]
fn a_node_writes_no_volume_but_its_own() -> Result<()> {
    let machines = Machines::start([&[], &[]])?;
    let cluster = &machines.cluster;
    for node in ["one", "two"] {
        machines.create(&[claim(node, None), user(node, node, node, "true")])?;
    }
    machines.create(&[claim("waits", None)])?;
    cluster.wait("condition=Ready", "pod/one")?;
    cluster.wait("condition=Ready", "pod/two")?;
    let (own, other) = (machines.bound("one")?, machines.bound("two")?);
    let pool = cluster.get(&["node", "two"])?["metadata"]["labels"]["carob.io/volumes"].clone();
    let pool = pool.as_str().context("it has a pool")?;
    let patch = |what: &str, name: &str, patch: Value| {
        machines.refuses(&["patch", what, name, "--type=merge", "-p", &patch.to_string()])
    };
    for change in [
        json!({"metadata": {"finalizers": null}}),
        json!({"spec": {"capacity": {"storage": "1Gi"}}}),
        json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
    ] {
        patch("pv", &other, change)?;
    }
    machines.refuses(&["delete", "pv", &other, "--wait=false"])?;
    // Of its own: neither another claim's, nor gone while it is bound.
    patch("pv", &own, json!({"spec": {"claimRef": {"name": "waits"}}}))?;
    patch("pv", &own, json!({"metadata": {"labels": {"a": "b"}}}))?;
    machines.refuses(&["delete", "pv", &own, "--wait=false"])?;
    let chosen = "volume.kubernetes.io/selected-node";
    patch("pvc", "waits", json!({"metadata": {"annotations": {chosen: "one"}}}))?;
    patch("pvc", "two", json!({"metadata": {"annotations": {chosen: null}}}))?;
    patch("pvc", "two", json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}}))?;
    machines.refuses(&[
        "patch",
        "pvc",
        "two",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status": {"capacity": {"storage": "1Gi"}}}"#,
    ])?;
    machines.refuses(&["delete", "pvc", "two", "--wait=false"])?;
    patch("node", "one", json!({"metadata": {"labels": {"carob.io/volumes": pool}}}))?;
    machines.refuses(&["get", "secrets", "--all-namespaces"])?;

    let file = machines.agents[0].host.dir().join("volume.json");
    let path = file.to_str().context("a UTF-8 path")?;
    let waits = cluster.get(&["pvc", "waits"])?["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    let mut stolen = cluster.get(&["pv", &own])?;
    stolen["metadata"] = json!({"name": format!("pvc-{waits}"), "annotations": stolen["metadata"]["annotations"]});
    stolen["spec"]["claimRef"] =
        json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "waits", "uid": waits});
    let mut of_host = stolen.clone();
    of_host["spec"]["local"] = Value::Null;
    of_host["spec"]["hostPath"] = json!({"path": "/"});
    for volume in [stolen, of_host] {
        fs_err::write(&file, volume.to_string())?;
        machines.refuses(&["create", "--validate=false", "-f", path])?;
    }
    // It sees what its provisioner has to.
    let seen = machines.as_node(&["get", "pv"])?.map_err(anyhow::Error::msg)?;
    assert!(seen.contains(&own) && seen.contains(&other), "{seen}");
    let volume = cluster.get(&["pv", &other])?;
    assert_eq!(volume["spec"]["claimRef"]["name"], "two", "{volume}");
    assert_eq!(volume["status"]["phase"], "Bound", "{volume}");
    Ok(())
}
