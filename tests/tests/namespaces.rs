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

/// Starts a Pod whose users are not the machine's. Answers how they are mapped, as the container sees it.
fn start_with_own_users(cluster: &Cluster, name: &str) -> Result<Vec<u32>> {
    let manifest = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{"hostUsers": false,
            "terminationGracePeriodSeconds": 0, "volumes": [{{"name": "v", "emptyDir": {{}}}}],
            "containers": [{{"name": "a", "image": "busybox", "command": ["sleep", "3600"],
                "volumeMounts": [{{"name": "v", "mountPath": "/v"}}]}}]}}}}"#
    );
    let path = cluster.host.dir().join(format!("{name}.json"));
    fs_err::write(&path, manifest)?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?])?;
    cluster.wait("condition=Ready", &format!("pod/{name}"))?;
    let map = cluster.kubectl(&["exec", name, "--", "cat", "/proc/1/uid_map"])?;
    map.split_whitespace().map(|number| number.parse().context("a number")).collect()
}

#[test]
fn root_of_a_pod_with_its_own_users_is_nobody_on_the_machine() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let (one, other) = (start_with_own_users(&cluster, "one")?, start_with_own_users(&cluster, "other")?);
    for map in [&one, &other] {
        assert!(map[0] == 0 && map[1] > 0 && map[1] % 65536 == 0 && map[2] == 65536, "{map:?}");
    }
    assert_ne!(one[1], other[1], "no two Pods share users");
    let run = |script: &str| cluster.kubectl(&["exec", "one", "--", "sh", "-c", script]);
    // Root of its own files, of the image's and of the volume's, and of what is written to them.
    let owners = run("touch /v/x /tmp-x /dev/shm/x && stat -c %u / /bin/sh /v /v/x /tmp-x /dev/shm/x /etc/hosts")?;
    assert_eq!(owners.split_whitespace().collect::<Vec<_>>(), ["0"; 7]);
    let uid = cluster.kubectl(&["get", "pod", "one", "-o", "jsonpath={.metadata.uid}"])?;
    let file = cluster.data_dir().join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/v/x"));
    let owner = std::os::unix::fs::MetadataExt::uid(&fs_err::metadata(file)?);
    assert_eq!(owner, 0, "a volume's files keep the numbers that the Pod knows, for whoever has the volume next");
    // Of the machine it has nothing: neither the right to mount for it, nor to make devices, nor its sysctls.
    for refused in ["mknod /v/disk b 8 0", "echo 1 > /proc/sys/kernel/panic", "chroot /proc/1/root mknod /d c 1 3"] {
        assert!(run(refused).is_err(), "{refused}");
    }
    let host = cluster.kubectl(&["get", "pod", "one", "-o", "jsonpath={.status.podIP}"])?;
    assert!(run("ip address")?.contains(host.trim()));
    Ok(())
}
