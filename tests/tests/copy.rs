//! `kubectl cp` with containers whose images have neither tar nor test.

use std::path::Path;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};

/// Programs are found in `/none` alone: as good as an image without any. `probed` asks for one that is not there.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    env: [{name: PATH, value: /none}]
    command: [/bin/busybox, sleep, infinity]
    volumeMounts: [{name: data, mountPath: /data}]
  - name: modest
    image: busybox
    imagePullPolicy: Never
    env: [{name: PATH, value: /none}]
    command: [/bin/busybox, sleep, infinity]
    securityContext: {runAsUser: 1000, runAsNonRoot: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    env: [{name: PATH, value: /none}]
    command: [/bin/busybox, sleep, infinity]
    readinessProbe: {exec: {command: [test, -d, /]}, periodSeconds: 1}
";

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a UTF-8 path")
}

#[test]
fn files_are_copied_without_tar() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let dir = cluster.host.dir();
    let manifest = dir.join("pods.yaml");
    fs_err::write(&manifest, POD)?;
    cluster.kubectl(&["apply", "-f", text(&manifest)?])?;
    cluster.wait("condition=Ready", "pod/bare")?;

    let tree = dir.join("tree");
    fs_err::create_dir_all(tree.join("deep/empty"))?;
    let big: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    fs_err::write(tree.join("deep/big"), &big)?;
    fs_err::write(tree.join("small"), "small\n")?;
    // Into a directory that is there, and to a name that is not.
    cluster.kubectl(&["cp", "-c", "main", text(&tree)?, "bare:/data"])?;
    cluster.kubectl(&["cp", "-c", "main", text(&tree.join("small"))?, "bare:/data/other"])?;
    let seen = |path: &str| cluster.kubectl(&["exec", "bare", "-c", "main", "--", "/bin/busybox", "cat", path]);
    assert_eq!(seen("/data/tree/small")?, "small\n");
    assert_eq!(seen("/data/other")?, "small\n");
    let back = dir.join("back");
    cluster.kubectl(&["cp", "-c", "main", "bare:/data/tree", text(&back)?])?;
    assert_eq!(fs_err::read(back.join("deep/big"))?, big);
    assert!(back.join("deep/empty").is_dir());

    // It is done as the container's user, and in the container's root.
    let failure = cluster.kubectl_fails(&["cp", "-c", "modest", text(&tree.join("small"))?, "bare:/etc/small"])?;
    assert!(failure.contains("tar: small: ") && failure.contains("Permission denied"), "{failure}");
    let secret = dir.join("secret");
    fs_err::write(&secret, "of the host")?;
    let outside = format!("bare:{}", text(&secret)?);
    let failure = cluster.kubectl_fails(&["cp", "-c", "main", &outside, text(&dir.join("stolen"))?])?;
    assert!(failure.contains("Cannot stat: No such file or directory"), "{failure}");
    let link = ["exec", "bare", "-c", "main", "--", "/bin/busybox", "ln", "-s", text(dir)?, "/data/out"];
    cluster.kubectl(&link)?;
    cluster.kubectl_fails(&["cp", "-c", "main", "bare:/data/out/secret", text(&dir.join("stolen"))?])?;
    cluster.kubectl_fails(&["cp", "-c", "main", text(&tree.join("small"))?, "bare:/data/out/planted"])?;
    assert!(!dir.join("stolen").exists() && !dir.join("planted").exists());

    // Other commands, and probes, find what the image has.
    let failure = cluster.kubectl_fails(&["exec", "bare", "-c", "main", "--", "tar", "tf", "-"])?;
    assert!(failure.contains(r#"exec: "tar": executable file not found in $PATH"#), "{failure}");
    until_none("probes that find no program", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=probed"])?;
        let found = events.contains("Unhealthy") || events.contains("executable file not found");
        Ok(if found { Vec::new() } else { vec![events] })
    })
}
