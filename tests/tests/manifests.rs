//! The notes' own manifests, applied with an unmodified kubectl, behave as the notes say.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, manifest};

fn apply(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["apply", "-f", &manifest(name)?]).map(drop)
}

/// Fetches a page from inside the host. A running server need not listen yet, and nobody is told when it does: a refused
/// connection, and nothing else, is tried again.
fn fetch(cluster: &Cluster, url: &str) -> Result<String> {
    let patience = ["--retry", "100", "--retry-connrefused", "--retry-delay", "1", "--retry-max-time", "100"];
    let args = ["--silent", "--show-error", "--fail", "--max-time", "10", url];
    cluster.host.run("curl", patience.into_iter().chain(args))
}

fn pod_ip(cluster: &Cluster, pod: &str) -> Result<String> {
    let pod = cluster.get(&["pod", pod])?;
    Ok(pod["status"]["podIP"].as_str().context("the Pod has an address")?.to_owned())
}

#[test]
fn two_containers_share_a_host_directory() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["nginx", "debian"])?;
    for (name, writer) in [("two-containers", "debian"), ("ubuntu-and-nginx-share-volume", "ubuntu")] {
        apply(&cluster, &format!("{name}.yaml"))?;
        let reason = format!(
            r#"jsonpath={{.status.containerStatuses[?(@.name=="{writer}-container")].state.terminated.reason}}=Completed"#
        );
        cluster.wait(&reason, &format!("pod/{name}"))?;
        let served = fetch(&cluster, &format!("http://{}/", pod_ip(&cluster, name)?))?;
        assert_eq!(served, format!("Hello from the {writer} container\n"));
        let pod = cluster.get(&["pod", name])?;
        assert_eq!(pod["status"]["phase"], "Running", "one container of the two goes on");
    }
    Ok(())
}

#[test]
fn the_log_sidecar_prints_all_lines_and_the_pod_succeeds() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    apply(&cluster, "log-sidecar.yaml")?;
    cluster.wait("jsonpath={.status.phase}=Succeeded", "pod/log-sidecar")?;
    let log = cluster.kubectl(&["logs", "log-sidecar", "-c", "forwarder"])?;
    let expected: Vec<String> = (1..=20).map(|n| format!("line {n}")).collect();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!(lines, expected);
    Ok(())
}

#[test]
fn the_web_application_answers_on_its_host_port() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["sample", "tomcat"])?;
    apply(&cluster, "javaweb-2.yaml")?;
    cluster.wait("condition=Ready", "pod/javaweb-2")?;
    let mut follower = cluster.kubectl_command(&["logs", "--follow", "javaweb-2", "-c", "tomcat"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn()?;
    let log = BufReader::new(follower.stdout.take().context("piped")?);
    let started = log.lines().map_while(Result::ok).any(|line| line.contains("Server startup in"));
    follower.kill()?;
    follower.wait()?;
    assert!(started, "Tomcat did not start: {}", cluster.describe("pod/javaweb-2"));
    let page = fetch(&cluster, "http://127.0.0.1:8001/sample/")?;
    assert!(page.contains("This page came out of the WAR that the init container brought."), "{page}");
    Ok(())
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["nginx"])?;
    apply(&cluster, "lifecycle-demo.yaml")?;
    cluster.wait("condition=Ready", "pod/lifecycle-demo")?;
    let mut follower = cluster.kubectl_command(&["logs", "--follow", "lifecycle-demo"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn()?;
    let mut output = BufReader::new(follower.stdout.take().context("piped")?);
    let mut log = String::new();
    // The Pod goes once its log is followed.
    output.read_line(&mut log)?;
    cluster.kubectl(&["delete", "pod", "lifecycle-demo", "--timeout=100s"])?;
    output.read_to_string(&mut log)?;
    follower.wait()?;
    assert!(log.contains("GET / HTTP/1.1"), "the hook after the start fetched the page:\n{log}");
    Ok(())
}

#[test]
fn probes_restart_and_gate_as_the_notes_say() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    apply(&cluster, "probes.yaml")?;
    cluster.wait("condition=Ready", "pod/goproxy")?;
    let proxy = cluster.get(&["pod", "goproxy"])?;
    let condition = |kind: &str| {
        let conditions = proxy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind);
        found.map(|found| found["lastTransitionTime"].to_string())
    };
    assert!(condition("Ready") > condition("Initialized"), "Ready only once the port answers: {proxy}");
    for pod in ["liveness-exec", "liveness-http"] {
        cluster.wait("jsonpath={.status.containerStatuses[0].restartCount}=1", &format!("pod/{pod}"))?;
        let events = cluster.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}")])?;
        assert!(events.contains("Unhealthy") && events.contains("Liveness probe failed"), "{events}");
        assert!(events.contains("failed liveness probe, will be restarted"), "{events}");
    }
    Ok(())
}

#[test]
fn a_readiness_gate_waits_for_its_condition() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["debian"])?;
    apply(&cluster, "readiness-gate.yaml")?;
    cluster.wait("condition=ContainersReady", "pod/centos")?;
    let pod = cluster.get(&["pod", "centos"])?;
    let conditions = pod["status"]["conditions"].as_array().context("conditions")?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").context("a Ready condition")?;
    assert_eq!(ready["reason"], "ReadinessGatesNotReady");
    let patch = r#"{"status":{"conditions":[{"type":"www.example.com/feature-1","status":"True"}]}}"#;
    cluster.kubectl(&["patch", "pod", "centos", "--subresource=status", "--type=strategic", "-p", patch])?;
    cluster.wait("condition=Ready", "pod/centos")
}

#[test]
fn a_process_group_too_big_for_the_node_stays_pending_with_the_reason() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let big = fs_err::read_to_string(manifest("rsyslogd.yaml")?)?.replace("1Gi", "1000Gi");
    let path = cluster.host.dir().join("big.yaml");
    fs_err::write(&path, big)?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?])?;
    let reason = r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].reason}=Unschedulable"#;
    cluster.wait(reason, "pod/rsyslogd")?;
    let pod = cluster.get(&["pod", "rsyslogd"])?;
    let message = pod["status"]["conditions"][0]["message"].as_str().context("a message")?.to_owned();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient memory."), "{message}");
    cluster.kubectl(&["delete", "pod", "rsyslogd"])?;
    apply(&cluster, "rsyslogd.yaml")?;
    cluster.wait("condition=Ready", "pod/rsyslogd")
}
