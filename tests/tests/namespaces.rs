//! What the containers of a Pod share and what they do not, read from the kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use carob_testkit::Cluster;

/// Inode numbers of a container's namespaces, as its own shell sees them.
fn namespaces(cluster: &Cluster, pod: &str, container: &str) -> Result<BTreeMap<String, String>> {
    let script = "for kind in net ipc uts mnt pid; do echo $kind $(readlink /proc/self/ns/$kind); done";
    let text = cluster.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script])?;
    text.lines()
        .map(|line| line.split_once(' ').context("a kind and an inode"))
        .map(|pair| pair.map(|(kind, inode)| (kind.to_owned(), inode.to_owned())))
        .collect()
}

fn start(cluster: &Cluster, name: &str, share: bool) -> Result<()> {
    let container = |name: &str| format!(r#"{{"name": "{name}", "image": "busybox", "command": ["sleep", "3600"]}}"#);
    let manifest = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{"shareProcessNamespace": {share},
            "terminationGracePeriodSeconds": 0, "containers": [{}, {}]}}}}"#,
        container("a"),
        container("b")
    );
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, manifest)?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?])?;
    cluster.wait("condition=Ready", &format!("pod/{name}"))
}

#[test]
fn containers_share_network_ipc_and_host_name_but_neither_files_nor_processes() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    start(&cluster, "apart", false)?;
    let (a, b) = (namespaces(&cluster, "apart", "a")?, namespaces(&cluster, "apart", "b")?);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(a[kind], b[kind], "{kind}");
    }
    for kind in ["mnt", "pid"] {
        assert_ne!(a[kind], b[kind], "{kind}");
    }
    Ok(())
}

#[test]
fn with_a_shared_process_namespace_the_infra_process_is_first_and_reaps() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    start(&cluster, "together", true)?;
    let (a, b) = (namespaces(&cluster, "together", "a")?, namespaces(&cluster, "together", "b")?);
    assert_eq!(a["pid"], b["pid"]);
    assert_ne!(a["mnt"], b["mnt"]);
    let first = cluster.kubectl(&["exec", "together", "-c", "a", "--", "cat", "/proc/1/comm"])?;
    assert_eq!(first.trim(), "pause");
    // An orphan whose parent ended belongs to PID 1; if that did not reap it, it would stay as a zombie.
    let script = "sh -c 'sleep 0.1 & exec true'; sleep 1; grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    let zombies = cluster.kubectl(&["exec", "together", "-c", "b", "--", "sh", "-c", script])?;
    assert_eq!(zombies.trim(), "0");
    let tree = cluster.carob(&["tree", "together"])?;
    assert!(tree.contains("pause") && tree.contains("sleep"), "{tree}");
    Ok(())
}
