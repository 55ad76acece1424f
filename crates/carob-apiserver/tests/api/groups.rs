//! Groups of Pods: served without being asked for, made from Workloads that there are, with priorities of their own.

use crate::support::{Rig, pod};
use serde_json::{Value, json};

const V1ALPHA2: &str = "/apis/scheduling.k8s.io/v1alpha2";
const GROUPS: &str = "/apis/scheduling.k8s.io/v1alpha2/namespaces/default/podgroups";
const WORKLOADS: &str = "/apis/scheduling.k8s.io/v1alpha2/namespaces/default/workloads";
const LABEL_GROUPS: &str = "/apis/scheduling.x-k8s.io/v1alpha1/namespaces/default/podgroups";

fn group(name: &str, spec: Value) -> Value {
    let mut group = json!({ "metadata": { "name": name }, "spec": spec });
    group["spec"]["schedulingPolicy"] = json!({ "gang": { "minCount": 3 } });
    group
}

#[tokio::test]
async fn both_groups_are_in_discovery_and_in_openapi() {
    let rig = Rig::new().await;
    let resources = rig.get(V1ALPHA2).await.expect(200);
    let names: Vec<&str> =
        resources["resources"].as_array().expect("a list").iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["podgroups", "podgroups/status", "workloads"]);
    let preferred = rig.get("/apis/scheduling.k8s.io").await.expect(200);
    assert_eq!(preferred["preferredVersion"]["version"], "v1");
    let document = rig.get("/openapi/v3/apis/scheduling.x-k8s.io/v1alpha1").await.expect(200);
    let schema = &document["components"]["schemas"]["io.x-k8s.scheduling.v1alpha1.PodGroup"];
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["group"], "scheduling.x-k8s.io");
    let document = rig.get("/openapi/v3/apis/scheduling.k8s.io/v1alpha2").await.expect(200);
    let field = &document["components"]["schemas"]["io.k8s.api.scheduling.v1alpha2.GangSchedulingPolicy"]["properties"]
        ["minCount"];
    assert!(field["description"].as_str().is_some_and(|text| !text.is_empty()), "{field}");
}

#[tokio::test]
async fn a_group_of_a_workload_needs_the_workload_and_its_template() {
    let rig = Rig::new().await;
    let from = |template: &str| {
        let workload = json!({ "workloadName": "w", "podGroupTemplateName": template });
        group("g", json!({ "podGroupTemplateRef": { "workload": workload } }))
    };
    let refused = rig.post(GROUPS, &from("t")).await;
    assert_eq!(
        (refused.code, refused.message()),
        (403, "podgroups.scheduling.k8s.io \"g\" is forbidden: PodGroup rejected: Workload \"w\" not found")
    );
    let template = json!({ "name": "t", "schedulingPolicy": { "gang": { "minCount": 3 } } });
    rig.post(WORKLOADS, &json!({ "metadata": { "name": "w" }, "spec": { "podGroupTemplates": [template] } }))
        .await
        .expect(201);
    let refused = rig.post(GROUPS, &from("other")).await;
    assert!(
        refused.message().ends_with("PodGroupTemplate \"other\" not found in Workload \"w\""),
        "{}",
        refused.message()
    );
    let made = rig.post(GROUPS, &from("t")).await.expect(201);
    assert_eq!(made["spec"]["disruptionMode"], "Pod");
    let mut changed = made.clone();
    changed["spec"]["schedulingPolicy"]["gang"]["minCount"] = json!(4);
    let refused = rig.put(&format!("{GROUPS}/g"), &changed).await;
    assert!(refused.code == 422 && refused.message().contains("field is immutable"), "{}", refused.message());
}

#[tokio::test]
async fn a_groups_priority_comes_from_its_class() {
    let rig = Rig::new().await;
    let class = json!({ "metadata": { "name": "high" }, "value": 1000 });
    rig.post("/apis/scheduling.k8s.io/v1/priorityclasses", &class).await.expect(201);
    let made = rig.post(GROUPS, &group("a", json!({ "priorityClassName": "high" }))).await.expect(201);
    assert_eq!(made["spec"]["priority"], 1000);
    let made = rig.post(GROUPS, &group("b", json!({}))).await.expect(201);
    assert_eq!(made["spec"].get("priority"), None);
    let refused = rig.post(GROUPS, &group("c", json!({ "priority": 7 }))).await;
    assert!(
        refused.code == 403 && refused.message().contains("must not be provided in podGroup spec"),
        "{}",
        refused.message()
    );
    let refused = rig.post(GROUPS, &group("d", json!({ "priorityClassName": "none" }))).await;
    assert!(refused.message().ends_with("no PriorityClass with name none was found"), "{}", refused.message());
}

#[tokio::test]
async fn a_pod_may_name_its_group_and_not_change_it() {
    let rig = Rig::new().await;
    let mut member = pod("p");
    member["spec"]["schedulingGroup"] = json!({ "podGroupName": "g" });
    let mut made = rig.post("/api/v1/namespaces/default/pods", &member).await.expect(201);
    made["spec"]["schedulingGroup"]["podGroupName"] = json!("other");
    let refused = rig.put("/api/v1/namespaces/default/pods/p", &made).await;
    assert!(
        refused.code == 422 && refused.message().contains("pod updates may not change fields"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_labels_group_has_a_status_and_columns() {
    let rig = Rig::new().await;
    let group = json!({ "metadata": { "name": "g" }, "spec": { "minMember": 3, "minResources": { "cpu": "1" } } });
    let made = rig.post(LABEL_GROUPS, &group).await;
    assert!(
        made.warnings().iter().any(|warning| warning.contains("spec.minResources has no effect")),
        "{:?}",
        made.warnings()
    );
    assert_eq!(made.expect(201)["metadata"]["generation"], 1);
    let status = json!({ "status": { "phase": "Running", "running": 3 } });
    rig.patch(&format!("{LABEL_GROUPS}/g/status"), "merge-patch+json", &status).await.expect(200);
    let accept = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
    let table = rig.send("GET", LABEL_GROUPS, &accept, "").await.expect(200);
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    assert_eq!(cells[..6], [json!("g"), json!("Running"), json!(3), json!(3), json!(0), json!(0)]);
}
