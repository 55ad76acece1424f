//! Gangs on a real server: all members get a node in one decision, or none does, and everybody says what is missing.

use anyhow::{Context, Result};
use carob_testkit::Cluster;
use serde_json::{Value, json};

const MEMBERS: [&str; 3] = ["m0", "m1", "m2"];

/// A quarter of the node's CPU, in thousandths: what a member asks for.
fn share(cluster: &Cluster) -> Result<u64> {
    let nodes = cluster.get(&["nodes"])?;
    let cpu = nodes["items"][0]["status"]["allocatable"]["cpu"].as_str().context("the node says its CPUs")?;
    let milli = match cpu.strip_suffix('m') {
        Some(milli) => milli.parse()?,
        None => cpu.parse::<u64>()? * 1000,
    };
    Ok(milli / 4)
}

/// A Pod that gets a node but never starts: its image is nowhere.
fn pod(name: &str, milli_cpu: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "nowhere", "imagePullPolicy": "Never",
            "resources": {"requests": {"cpu": format!("{milli_cpu}m")}}}]}})
}

fn create(cluster: &Cluster, object: &Value) -> Result<()> {
    let name = object["metadata"]["name"].as_str().context("a name")?;
    let path = cluster.host.dir().join(format!("{name}-{}.json", object["kind"].as_str().unwrap_or_default()));
    fs_err::write(&path, object.to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?])?;
    Ok(())
}

fn nodes_of_members(cluster: &Cluster) -> Result<Vec<Option<String>>> {
    let node = |name: &&str| -> Result<Option<String>> {
        Ok(cluster.get(&["pod", name])?["spec"]["nodeName"].as_str().map(str::to_owned))
    };
    MEMBERS.iter().map(node).collect()
}

/// With the blocker there is room for two members of three.
fn start_with_room_for_two() -> Result<(Cluster, u64)> {
    let cluster = Cluster::start()?;
    let share = share(&cluster)?;
    create(&cluster, &pod("blocker", 2 * share))?;
    cluster.wait("condition=PodScheduled", "pod/blocker")?;
    Ok((cluster, share))
}

fn check_that_nobody_goes_ahead(cluster: &Cluster) -> Result<()> {
    assert_eq!(nodes_of_members(cluster)?, [None, None, None]);
    for name in MEMBERS {
        let why = cluster.carob(&["why", &format!("pod/{name}")])?;
        assert!(why.contains("minCount (3) cannot be satisfied: 2 scheduled, 1 remaining"), "{why}");
        assert!(why.contains("1 node: Insufficient cpu (NodeResourcesFit)"), "{why}");
    }
    Ok(())
}

fn make_room(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "pod", "blocker", "--wait=false"])?;
    for name in MEMBERS {
        cluster.wait("condition=PodScheduled", &format!("pod/{name}"))?;
    }
    assert!(nodes_of_members(cluster)?.iter().all(Option::is_some));
    let why = cluster.carob(&["why", "m0"])?;
    assert!(why.contains("has not started on node"), "{why}");
    Ok(())
}

#[test]
fn a_pod_group_is_placed_as_a_whole_or_not_at_all() -> Result<()> {
    let (cluster, share) = start_with_room_for_two()?;
    for name in MEMBERS {
        let mut member = pod(name, share);
        member["spec"]["schedulingGroup"] = json!({"podGroupName": "gang"});
        create(&cluster, &member)?;
        cluster.wait("condition=PodScheduled=False", &format!("pod/{name}"))?;
    }
    let why = cluster.carob(&["why", "pod/m0"])?;
    assert!(why.contains("waiting for pod's pod group \"gang\" to appear"), "{why}");
    let policy = json!({"gang": {"minCount": 3}});
    create(
        &cluster,
        &json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "Workload", "metadata": {"name": "job"},
            "spec": {"podGroupTemplates": [{"name": "workers", "schedulingPolicy": policy}]}}),
    )?;
    let template = json!({"workload": {"workloadName": "job", "podGroupTemplateName": "workers"}});
    create(
        &cluster,
        &json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "gang"},
            "spec": {"podGroupTemplateRef": template, "schedulingPolicy": policy}}),
    )?;
    const GROUP: &str = "podgroup.scheduling.k8s.io/gang";
    cluster.wait("condition=PodGroupScheduled=False", GROUP)?;
    let group = cluster.get(&[GROUP])?;
    let message = group["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("2 scheduled, 1 remaining. 0/1 nodes are available: 1 Insufficient cpu."), "{message}");
    check_that_nobody_goes_ahead(&cluster)?;
    make_room(&cluster)?;
    cluster.wait("condition=PodGroupScheduled", GROUP)?;
    assert!(cluster.describe(GROUP).contains("3 pods have a node"), "{}", cluster.describe(GROUP));
    Ok(())
}

#[test]
fn the_group_of_the_coscheduling_plugins_label_is_placed_as_a_whole_or_not_at_all() -> Result<()> {
    let (cluster, share) = start_with_room_for_two()?;
    create(
        &cluster,
        &json!({"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup", "metadata": {"name": "gang"},
            "spec": {"minMember": 3, "scheduleTimeoutSeconds": 600}}),
    )?;
    for name in MEMBERS {
        let mut member = pod(name, share);
        member["metadata"]["labels"] = json!({"scheduling.x-k8s.io/pod-group": "gang"});
        create(&cluster, &member)?;
        cluster.wait("condition=PodScheduled=False", &format!("pod/{name}"))?;
    }
    check_that_nobody_goes_ahead(&cluster)?;
    const GROUP: &str = "podgroup.scheduling.x-k8s.io/gang";
    cluster.wait("jsonpath={.status.phase}=Pending", GROUP)?;
    make_room(&cluster)?;
    cluster.wait("jsonpath={.status.phase}=Scheduling", GROUP)
}
