//! Two instances on one machine, told apart by directories and ports alone.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Process};
use serde_json::Value;

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {
    "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "busybox",
    "command": ["httpd", "-f", "-p", "80", "-h", "/etc"]}]}}"#;

/// A second server on the host of a cluster, with the cluster's cgroup root.
struct Neighbour<'c> {
    cluster: &'c Cluster,
    data_dir: String,
    run_dir: String,
}

impl Neighbour<'_> {
    fn new(cluster: &Cluster) -> Result<Neighbour<'_>> {
        let path = |path: PathBuf| path.into_os_string().into_string().ok().context("a UTF-8 path");
        let dir = cluster.host.dir().join("neighbour");
        Ok(Neighbour { cluster, data_dir: path(dir.join("data"))?, run_dir: path(dir.join("run"))? })
    }

    fn start(&self) -> Result<Process> {
        let root = self.cluster.host.cgroup_root();
        let own = ["--https-listen-port=7443", "--kubelet-port=11250", "--cgroup-root", &root];
        let mut words = vec!["server", "--data-dir", &self.data_dir, "--run-dir", &self.run_dir];
        words.extend(own);
        self.cluster.start_carob(&words)
    }

    fn import(&self, archive: &str) -> Result<()> {
        let words = ["image", "--data-dir", &self.data_dir, "--run-dir", &self.run_dir, "import", archive];
        self.cluster.carob(&words).map(drop)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}/admin.kubeconfig", self.data_dir);
        self.cluster.kubectl(&[&[kubeconfig.as_str()], arguments].concat())
    }

    fn pod(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", "pod", "web", "--output=json"])?)?)
    }
}

fn address(pod: &Value) -> Result<Ipv4Addr> {
    Ok(pod["status"]["podIP"].as_str().context("the Pod has an address")?.parse()?)
}

#[test]
fn two_instances_share_a_machine() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let manifest = cluster.host.dir().join("web.json");
    fs_err::write(&manifest, POD)?;
    let manifest = manifest.to_str().context("a UTF-8 path")?;
    cluster.kubectl(&["create", "-f", manifest])?;
    cluster.wait("condition=Ready", "pod/web")?;
    let first = cluster.get(&["pod", "web"])?;

    let (links, mounts) = (cluster.host.links()?, cluster.host.mounts()?);
    let neighbour = Neighbour::new(&cluster)?;
    let server = neighbour.start()?;
    let archive = carob_testkit::images()?.join("busybox.tar");
    neighbour.import(archive.to_str().context("a UTF-8 path")?)?;
    neighbour.kubectl(&["create", "-f", manifest])?;
    neighbour.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"])?;
    let second = neighbour.pod()?;
    assert_eq!(address(&first)?.octets()[..2], [10, 244]);
    assert_eq!(address(&second)?.octets()[..2], [10, 245]);

    // A server that starts sweeps away what belongs to no Pod of its own, and nothing of its neighbour's.
    server.kill()?;
    let server = neighbour.start()?;
    assert_eq!(neighbour.pod()?["status"], second["status"], "the neighbour's Pod runs on");
    assert_eq!(cluster.get(&["pod", "web"])?["status"], first["status"], "the first instance's Pod runs on");
    for pod in [&first, &second] {
        let url = format!("http://{}/hostname", address(pod)?);
        assert_eq!(cluster.host.run("busybox", ["wget", "-q", "-O", "-", &url])?, "web\n");
    }
    neighbour.kubectl(&["delete", "pod", "web"])?;
    server.terminate()?;
    assert_eq!(cluster.host.links()?, links, "without Pods a server that ends leaves no interface");
    assert_eq!(cluster.host.mounts()?, mounts, "nor a mount");
    cluster.kubectl(&["delete", "pod", "web"]).map(drop)
}
