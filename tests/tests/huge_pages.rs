//! Huge pages: what a node has of them, who gets some, and volumes that are made of them.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, HugePages, until_none};
use serde_json::{Value, json};

fn create(cluster: &Cluster, pod: &Value) -> Result<()> {
    let path = cluster.host.dir().join("pod.json");
    fs_err::write(&path, pod.to_string())?;
    cluster.kubectl(&["create", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn refused(cluster: &Cluster, pod: &Value) -> Result<String> {
    let path = cluster.host.dir().join("pod.json");
    fs_err::write(&path, pod.to_string())?;
    cluster.kubectl_fails(&["create", "-f", path.to_str().context("a UTF-8 path")?])
}

fn pod(name: &str, limits: &Value, volumes: &Value) -> Value {
    let mounts: Vec<Value> = volumes
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap_or_default())}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1, "volumes": volumes,
        "containers": [{"name": "main", "image": "busybox", "imagePullPolicy": "Never", "command": ["sleep", "infinity"],
            "resources": {"limits": limits}, "volumeMounts": mounts}]}})
}

fn until_node_has(cluster: &Cluster, pages: &str) -> Result<()> {
    until_none(&format!("a node with other huge pages than {pages}"), || {
        let status = cluster.get(&["node", cluster.host.name()])?["status"].clone();
        let shown = ["capacity", "allocatable"].map(|which| status[which]["hugepages-2Mi"].clone());
        Ok(if shown == [pages, pages] { Vec::new() } else { vec![shown] })
    })
}

#[test]
fn pods_have_huge_pages() -> Result<()> {
    let before: u64 = fs_err::read_to_string(HugePages::COUNT)?.trim().parse()?;
    let had = if before == 0 { "0".to_owned() } else { format!("{}Mi", before * 2) };
    let pages = HugePages::add(4)?;
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    until_node_has(&cluster, &format!("{}Mi", (before + 4) * 2))?;

    let volumes = json!([
        {"name": "any", "emptyDir": {"medium": "HugePages"}},
        {"name": "sized", "emptyDir": {"medium": "HugePages-2Mi", "sizeLimit": "2Mi"}},
    ]);
    let mut two = pod("two", &json!({"memory": "64Mi", "hugepages-2Mi": "4Mi"}), &volumes);
    two["spec"]["securityContext"] = json!({"fsGroup": 4242});
    create(&cluster, &two)?;
    cluster.wait("condition=Ready", "pod/two")?;
    let inside = |pod: &str, script: &str| cluster.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    let mounts = inside("two", "grep hugetlbfs /proc/mounts")?;
    assert_eq!(mounts.lines().filter(|line| line.contains("pagesize=2M")).count(), 2, "{mounts}");
    assert_eq!(inside("two", "stat -c '%a %g' /any")?.trim(), "2777 4242");
    let free = "awk '/HugePages_Free/ {print $2}' /proc/meminfo";
    let was_free: u64 = inside("two", free)?.trim().parse()?;
    inside("two", "fallocate -l 4194304 /any/file")?;
    let is_free: u64 = inside("two", free)?.trim().parse()?;
    assert_eq!(was_free - is_free, 2, "the file is made of huge pages");
    inside("two", "rm /any/file; fallocate -l 2097152 /sized/file")?;
    cluster.kubectl_fails(&["exec", "two", "--", "fallocate", "-l", "4194304", "/sized/more"])?;

    // The Pod as a whole has them; and the scheduler counts them.
    let mut whole = pod("whole", &json!({}), &json!([{"name": "any", "emptyDir": {"medium": "HugePages"}}]));
    whole["spec"]["resources"] = json!({"limits": {"memory": "64Mi", "hugepages-2Mi": "2Mi"}});
    create(&cluster, &whole)?;
    cluster.wait("condition=Ready", "pod/whole")?;
    inside("whole", "fallocate -l 2097152 /any/file")?;
    let more = format!("{}Mi", (before + 2) * 2);
    let greedy = pod("greedy", &json!({"memory": "64Mi", "hugepages-2Mi": more}), &json!([]));
    create(&cluster, &greedy)?;
    cluster.wait("condition=PodScheduled=False", "pod/greedy")?;
    let conditions = cluster.get(&["pod", "greedy"])?["status"]["conditions"].clone();
    assert!(conditions.to_string().contains("Insufficient hugepages-2Mi"), "{conditions}");
    let mut past = greedy;
    (past["metadata"]["name"], past["spec"]["nodeName"]) = (json!("past"), json!(cluster.host.name()));
    create(&cluster, &past)?;
    cluster.wait("jsonpath={.status.reason}=OutOfhugepages-2Mi", "pod/past")?;

    // What a volume is made of has to be asked for, by its size where there are several.
    create(&cluster, &pod("unasked", &json!({"memory": "64Mi"}), &volumes))?;
    until_none("a word on it", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=unasked"])?;
        let said = events.contains("hugePages storage requested, but there is no resource request for huge pages");
        Ok(if said { Vec::new() } else { vec![events] })
    })?;
    for (limits, words) in [
        (json!({"memory": "64Mi", "hugepages-2Mi": "3Mi"}), "3Mi is not positive integer multiple of hugepages-2Mi"),
        (json!({"hugepages-2Mi": "2Mi"}), "HugePages require cpu or memory"),
    ] {
        let said = refused(&cluster, &pod("wrong", &limits, &json!([])))?;
        assert!(said.contains(words), "{said}");
    }

    cluster.kubectl(&["delete", "pod", "--all"])?;
    let left: Vec<String> = cluster.host.mounts()?.into_iter().filter(|at| at.contains("empty-dir")).collect();
    assert_eq!(left, Vec::<String>::new());
    drop(pages);
    // The node says what there is now.
    until_node_has(&cluster, &had)
}
