//! The audit log of a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carob_apiserver::{AuditLogConfig, AuditPolicy, UserInfo};
use serde_json::{Value, json};

use crate::support::{Rig, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn rig(dir: &Path, rules: Value) -> (Rig, PathBuf) {
    let path = dir.join("audit.log");
    let policy = json!({ "kind": "Policy", "apiVersion": "audit.k8s.io/v1", "rules": rules });
    let policy = AuditPolicy::parse(policy).expect("sound");
    let log = AuditLogConfig { path: path.clone(), max_size_mb: 0, max_backups: 0, max_age_days: 0 };
    (Rig::with(|config| config.audit = Some((policy, log))).await, path)
}

/// The events of a user once there are so many: the thread that writes them is not waited for by requests.
async fn events(path: &Path, user: &str, count: usize) -> Vec<Value> {
    loop {
        let text = fs_err::read_to_string(path).expect("it is there");
        let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own: Vec<Value> = all.filter(|event| event["user"]["username"] == user).collect();
        if own.len() >= count {
            return own;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn brief(events: &[Value]) -> Vec<String> {
    let one = |event: &Value| format!("{} {} {}", event["stage"], event["verb"], event["responseStatus"]["code"]);
    events.iter().map(one).map(|text| text.replace('"', "")).collect()
}

#[tokio::test]
async fn requests_are_recorded_as_the_policy_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let (rig, path) = rig(
        dir.path(),
        json!([
            { "level": "None", "verbs": ["delete"] },
            { "level": "RequestResponse", "users": ["jane"], "omitStages": ["RequestReceived"], "omitManagedFields": true },
            { "level": "Metadata" },
        ]),
    )
    .await;
    let jane = rig.as_user(Arc::new(UserInfo::new("jane", ["system:masters".to_owned()])));
    let made = jane.post(MAPS, &config_map("a")).await;
    let id = made.headers["audit-id"].to_str().expect("ASCII").to_owned();
    made.expect(201);
    jane.get(&format!("{MAPS}/missing")).await.expect(404);
    jane.delete(&format!("{MAPS}/a")).await.expect(200);
    let found = events(&path, "jane", 2).await;
    assert_eq!(brief(&found), ["ResponseComplete create 201", "ResponseComplete get 404"]);
    let create = &found[0];
    assert_eq!((&create["auditID"], &create["userAgent"]), (&json!(id), &json!("rig/1")));
    assert_eq!(create["requestURI"], MAPS);
    assert_eq!(create["requestObject"]["data"], json!({ "k": "v" }));
    assert_eq!(create["responseObject"]["metadata"]["name"], "a");
    assert!(create["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(create["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(found[1]["responseStatus"]["reason"], "NotFound");

    let nobody = rig.as_user(Arc::new(UserInfo::new("nobody", [])));
    nobody.get(MAPS).await.expect(403);
    let found = events(&path, "nobody", 2).await;
    assert_eq!(brief(&found), ["RequestReceived list null", "ResponseComplete list 403"]);
    assert_eq!(found[1]["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert!(found[1].get("responseObject").is_none());
    let metrics = rig.get("/metrics").await.expect(200);
    assert!(metrics.as_str().is_some_and(|text| text.contains("apiserver_audit_event_total ")));
}

#[tokio::test]
async fn a_watch_is_recorded_when_it_begins_and_when_it_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let (rig, path) = rig(dir.path(), json!([{ "level": "Metadata", "verbs": ["watch"] }])).await;
    let watch = rig.as_user(UserInfo::master("watcher")).watch(&format!("{MAPS}?watch=1")).await;
    let started = events(&path, "watcher", 2).await;
    assert_eq!(brief(&started), ["RequestReceived watch null", "ResponseStarted watch 200"]);
    drop(watch);
    let ended = events(&path, "watcher", 3).await;
    assert_eq!(brief(&ended)[2], "ResponseComplete watch 200");
    assert!(ended.iter().all(|event| event["auditID"] == ended[0]["auditID"]));
}
