//! Pods on carob's own runtime, on a network that Debian's CNI plug-ins make.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Host, until_none};
use serde_json::{Value, json};

const CLUSTER: &str = "--cluster-cidr=10.88.0.0/16";
const SUBNET: &str = "10.88.0.0/24";

/// A bridge, as the manual pages of the plug-ins show one.
fn configuration(addresses: &Path) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
          "ipam": { "type": "host-local", "dataDir": addresses, "ranges": [[{ "subnet": SUBNET }]],
                    "routes": [{ "dst": "0.0.0.0/0" }] } },
        { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
    ] })
}

struct Network {
    cluster: Cluster,
    file: PathBuf,
    addresses: PathBuf,
}

impl Network {
    fn start() -> Result<Self> {
        let host = Host::new()?;
        let (dir, addresses) = (host.dir().join("net.d"), host.dir().join("addresses"));
        fs_err::create_dir_all(&dir)?;
        let file = dir.join("10-pods.conflist");
        fs_err::write(&file, configuration(&addresses).to_string())?;
        let dir = dir.to_str().context("a UTF-8 path")?;
        let cluster = Cluster::start_on(host, &[CLUSTER, "--cni-conf-dir", dir, "--cni-bin-dir", "/usr/lib/cni"])?;
        cluster.import(&["busybox"])?;
        Ok(Self { cluster, file, addresses })
    }

    fn apply(&self, manifest: &Value) -> Result<()> {
        let path = self.cluster.host.dir().join("manifest.json");
        fs_err::write(&path, manifest.to_string())?;
        self.cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
    }

    /// Addresses that host-local has given away.
    fn held(&self) -> Result<Vec<String>> {
        let dir = self.addresses.join("pods");
        let names = fs_err::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<std::io::Result<_>>()?;
        Ok(names.into_iter().filter(|name| name.starts_with("10.88.")).collect())
    }

    fn identity(&self) -> Result<String> {
        let pod = self.cluster.get(&["pod", "web"])?;
        let shown = &pod["status"]["containerStatuses"][0];
        Ok(format!("{} {} {}", shown["containerID"], pod["status"]["podIP"], shown["restartCount"]))
    }
}

fn pod(name: &str, port: Value, script: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "main", "image": "busybox", "command": ["sh", "-c", script], "ports": [port] }],
    } })
}

#[test]
fn plugins_make_the_network_of_pods_and_leave_nothing() -> Result<()> {
    let mut network = Network::start()?;
    let web = "mkdir /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www";
    network.apply(&pod("web", json!({ "containerPort": 80, "hostPort": 8080 }), web))?;
    network.apply(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } }))?;
    network.apply(&pod("client", json!({ "containerPort": 1 }), "exec sleep 1000000"))?;
    for name in ["pod/web", "pod/client"] {
        network.cluster.wait("condition=Ready", name)?;
    }
    let address = network.cluster.get(&["pod", "web"])?["status"]["podIP"].as_str().context("an address")?.to_owned();
    assert!(address.starts_with("10.88.0."), "{address}");
    assert_eq!(network.held()?.len(), 2);

    // By its address, by its Service's name, by the port of the host; and over its own loopback interface.
    let cluster = &network.cluster;
    for url in [format!("http://{address}/"), "http://web.default/".to_owned()] {
        assert_eq!(cluster.kubectl(&["exec", "client", "--", "wget", "-qO-", &url])?.trim(), "web", "{url}");
    }
    assert_eq!(cluster.kubectl(&["exec", "web", "--", "wget", "-qO-", "http://127.0.0.1/"])?.trim(), "web");
    let gateway = cluster.kubectl(&["exec", "client", "--", "wget", "-qO-", "http://10.88.0.1:8080/"])?;
    assert_eq!(gateway.trim(), "web");

    // A server that comes back finds them as they were.
    let before = network.identity()?;
    network.cluster.kill_server()?;
    network.cluster.start_server()?;
    network.cluster.wait("condition=Ready", "pod/web")?;
    assert_eq!(network.identity()?, before);

    // Without a configuration the node says so, and is not ready; with one it is again.
    let aside = network.file.with_extension("aside");
    fs_err::rename(&network.file, &aside)?;
    network.cluster.kubectl(&["wait", "--for=condition=Ready=False", "nodes", "--all", "--timeout=60s"])?;
    let node = network.cluster.get(&["nodes"])?["items"][0].clone();
    assert!(node["status"]["conditions"].to_string().contains("cni plugin not initialized"), "{node}");
    fs_err::rename(&aside, &network.file)?;
    network.cluster.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"])?;

    network.cluster.kubectl(&["delete", "pods", "--all", "--wait"])?;
    until_none("addresses that are held", || network.held())
}
