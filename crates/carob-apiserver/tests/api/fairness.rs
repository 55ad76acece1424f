//! Priority levels and flow schemas at work.

use std::sync::Arc;
use std::time::Duration;

use carob_apiserver::{Limits, UserInfo};
use serde_json::json;

use crate::support::Rig;

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

#[tokio::test]
async fn a_schema_classifies_and_a_level_without_seats_refuses() {
    let rig = Rig::with(|config| {
        config.limits = Limits { seats: 0, request_timeout: Duration::from_secs(1), ..Limits::default() };
    })
    .await;
    let exempt = rig.get("/api/v1/pods").await;
    let schema = rig.get(&format!("{GROUP}/flowschemas/exempt")).await.expect(200);
    assert_eq!(exempt.headers["x-kubernetes-pf-flowschema-uid"], *schema["metadata"]["uid"].as_str().expect("text"));
    exempt.expect(200);
    let scheduler = rig.as_user(Arc::new(UserInfo::new("system:kube-scheduler", [])));
    let refused = scheduler.get("/api/v1/pods").await;
    assert_eq!((refused.code, &refused.headers["retry-after"]), (429, &"1".parse().expect("a value")));
    assert_eq!(refused.body, json!("Too many requests, please try again later.\n"));
    // Watches take no seat.
    scheduler.watch("/api/v1/pods?watch=1").await;
    // Who makes a schema of his own for them gets them through.
    let own = json!({
        "metadata": { "name": "mine" },
        "spec": {
            "matchingPrecedence": 50, "priorityLevelConfiguration": { "name": "exempt" },
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": "system:kube-scheduler" } }],
                "resourceRules": [{ "verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "clusterScope": true }],
            }],
        },
    });
    let made = rig.post(&format!("{GROUP}/flowschemas"), &own).await.expect(201);
    let answer = scheduler.get("/api/v1/pods").await;
    assert_eq!(answer.headers["x-kubernetes-pf-flowschema-uid"], *made["metadata"]["uid"].as_str().expect("text"));
    answer.expect(200);
    let metrics = rig.get("/metrics").await.expect(200);
    let text = metrics.as_str().expect("text");
    assert!(text.contains("apiserver_flowcontrol_rejected_requests_total{flow_schema="), "{text}");
    assert!(text.contains("flow_schema=\"mine\",priority_level=\"exempt\"} 1"), "{text}");
}

#[tokio::test]
async fn a_schema_says_whether_its_level_is_there() {
    let rig = Rig::new().await;
    let api = rig.api.clone();
    let keeper = tokio::spawn(async move { api.keep_system(std::future::pending()).await });
    let schema = json!({
        "metadata": { "name": "mine" },
        "spec": { "matchingPrecedence": 50, "priorityLevelConfiguration": { "name": "my-level" } },
    });
    let mut events = rig.watch(&format!("{GROUP}/flowschemas?watch=1&fieldSelector=metadata.name%3Dmine")).await;
    rig.post(&format!("{GROUP}/flowschemas"), &schema).await.expect(201);
    let mut seen = async |status: &str, reason: &str| loop {
        let event = events.next().await.expect("the watch goes on");
        let condition = &event["object"]["status"]["conditions"][0];
        if condition["type"] == "Dangling" && condition["status"] == status {
            assert_eq!(condition["reason"], reason);
            break;
        }
    };
    seen("True", "NotFound").await;
    let level = json!({
        "metadata": { "name": "my-level" },
        "spec": { "type": "Limited", "limited": { "nominalConcurrencyShares": 1, "limitResponse": { "type": "Reject" } } },
    });
    rig.post(&format!("{GROUP}/prioritylevelconfigurations"), &level).await.expect(201);
    seen("False", "Found").await;
    rig.delete(&format!("{GROUP}/prioritylevelconfigurations/my-level")).await.expect(200);
    seen("True", "NotFound").await;
    keeper.abort();
}
