//! Gangs that prefer a place, and gangs that make room for themselves.

use serde_json::{Value, json};

use crate::api::Api;
use crate::{Cluster, condition, node, node_of, pod, with_slow_victims};

fn group(min_count: usize) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "gang", "namespace": "default"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": min_count}}}})
}

fn member(name: &str, memory: &str, priority: i32) -> Value {
    let mut member = pod(name, &[memory], priority);
    member["spec"]["schedulingGroup"] = json!({"podGroupName": "gang"});
    member
}

#[tokio::test]
async fn a_gang_goes_where_its_group_prefers_to_be() {
    let api = Api::default();
    for (name, rack) in [("a", "1"), ("b", "2"), ("c", "2"), ("d", "3")] {
        let mut node = node(name, "2Gi");
        node["metadata"]["labels"]["rack"] = rack.into();
        api.put("nodes", node);
    }
    let mut group = group(2);
    group["metadata"]["annotations"] = json!({"carob.io/preferred-topology": "rack"});
    api.put("podgroups", group);
    let cluster = Cluster::start(api);
    for name in ["m0", "m1"] {
        cluster.api.put("pods", member(name, "2Gi", 0));
    }
    let mut nodes = [cluster.node_of("m0").await, cluster.node_of("m1").await];
    nodes.sort();
    assert_eq!(nodes, ["b", "c"], "the only rack with two places");
    cluster.end().await;
}

#[tokio::test]
async fn a_gang_keeps_its_promises_while_its_victims_leave_one_after_the_other() {
    let api = with_slow_victims();
    api.put("podgroups", group(2));
    let cluster = Cluster::start(api);
    for name in ["m0", "m1"] {
        cluster.api.put("pods", member(name, "2Gi", 100));
    }
    let leaving = |api: &Api, name: &str| {
        api.get("pods", "default", name).is_some_and(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
    };
    let both = |api: &Api| (leaving(api, "lesser-left") && leaving(api, "lesser-right")).then_some(());
    cluster.until("both victims are leaving", both).await;
    let promised = |api: &Api| {
        let promised =
            |name: &str| api.get("pods", "default", name)?["status"]["nominatedNodeName"].as_str().map(str::to_owned);
        Some([promised("m0")?, promised("m1")?])
    };
    let before = cluster.until("both are promised room", promised).await;
    cluster.api.remove("pods", "default", "lesser-left");
    // The room that is free by now is not for others, though they ask for it.
    cluster.api.put("pods", pod("thief", &["2Gi"], 0));
    let refused = |api: &Api| condition(api, "pods", "thief", "PodScheduled").filter(|c| c["status"] == "False");
    cluster.until("the other finds no room", refused).await;
    assert_eq!(promised(&cluster.api), Some(before.clone()), "the promises stand");
    assert!(node_of(&cluster.api, "m0").is_none() && node_of(&cluster.api, "m1").is_none(), "nobody goes ahead");
    cluster.api.remove("pods", "default", "lesser-right");
    let after = [cluster.node_of("m0").await, cluster.node_of("m1").await];
    assert_eq!(after, before);
    cluster.end().await;
}
