use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Answer, Script};

fn config_map(name: &str, version: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "namespace": "ns", "name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubectl"}],
        },
        "data": {"version": version.to_string()},
    })
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn list_end(version: u32) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    event("BOOKMARK", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}))
}

fn gone() -> Value {
    event(
        "ERROR",
        json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}),
    )
}

/// Writes down each change as `name old>new`, by resourceVersion.
fn record(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&log);
    informer.on_change(move |change| {
        let version = |object: Option<&Arc<ConfigMap>>| object.and_then(|o| o.metadata.resource_version.clone());
        let (old, new) = (version(change.old).unwrap_or_default(), version(change.new).unwrap_or_default());
        written.lock().expect("no panic").push(format!("{} {old}>{new}", change.key().name));
    });
    log
}

fn taken(log: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut *log.lock().expect("no panic"))
}

/// Lets every task run until nothing is left to do at this time.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ended_is_resumed_where_it_was() {
    let script = Script::new([
        Answer::Ended(vec![
            event("ADDED", config_map("a", 3)),
            event("ADDED", config_map("b", 4)),
            list_end(5),
            event("MODIFIED", config_map("a", 6)),
            event("DELETED", config_map("b", 7)),
        ]),
        Answer::Open(vec![event("ADDED", config_map("c", 9))]),
    ]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    let log = record(&informer);
    informer.synced().await;
    settle().await;
    assert_eq!(taken(&log), ["a >3", "b >4", "a 3>6", "b 4>", "c >9"]);
    informer.reached(9).await;
    let later = tokio::time::timeout(std::time::Duration::from_secs(1), informer.reached(10)).await;
    assert!(later.is_err(), "nothing of version 10 was seen");
    let a = informer.get(Some("ns"), "a").expect("it is there");
    assert_eq!(a.metadata.managed_fields, None, "managed fields are not kept in memory");
    assert_eq!(informer.get(Some("ns"), "b"), None);

    let requests = script.requests();
    assert_eq!(requests.len(), 2);
    assert!(
        requests[0].contains("sendInitialEvents=true") && requests[0].ends_with("resourceVersion="),
        "{requests:?}"
    );
    assert!(!requests[1].contains("sendInitialEvents") && requests[1].ends_with("resourceVersion=7"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_is_gone_leads_to_a_new_list_and_only_what_differs_is_told() {
    let script = Script::new([
        Answer::Open(vec![
            event("ADDED", config_map("kept", 1)),
            event("ADDED", config_map("changed", 2)),
            event("ADDED", config_map("lost", 3)),
            list_end(3),
            gone(),
        ]),
        Answer::Open(vec![
            event("ADDED", config_map("kept", 1)),
            event("ADDED", config_map("changed", 8)),
            list_end(9),
        ]),
    ]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    let kept = informer.get(Some("ns"), "kept").expect("it is there");
    let log = record(&informer);
    taken(&log);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(taken(&log), ["changed 2>8", "lost 3>"]);
    let again = informer.get(Some("ns"), "kept").expect("it is there");
    assert!(Arc::ptr_eq(&kept, &again), "what did not change is not replaced");
}

#[tokio::test(start_paused = true)]
async fn one_undecodable_object_does_not_kill_the_list() {
    let mut broken = config_map("broken", 2);
    broken["data"] = json!("not a map");
    let script = Script::new([Answer::Open(vec![
        event("ADDED", config_map("a", 1)),
        event("ADDED", broken.clone()),
        list_end(3),
        event("ADDED", config_map("c", 4)),
        event("MODIFIED", {
            broken["metadata"]["name"] = json!("c");
            broken
        }),
    ])]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    settle().await;
    let names: Vec<_> = informer.keys().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["ns/a", "ns/c"]);
    assert_eq!(informers.stats()[0].undecodable, 2);
    let c = informer.get(Some("ns"), "c").expect("its last good version is kept");
    assert_eq!(c.metadata.resource_version.as_deref(), Some("4"));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_listed_in_pages() {
    let refusal = json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid",
        "message": "sendInitialEvents is forbidden"});
    let page = |items: Vec<Value>, next: &str| {
        let body =
            json!({"kind": "ConfigMapList", "items": items, "metadata": {"resourceVersion": "9", "continue": next}});
        Answer::Whole { code: 200, body }
    };
    let script = Script::new([
        Answer::Whole { code: 422, body: refusal },
        page(vec![config_map("a", 1)], "more"),
        page(vec![config_map("b", 2)], ""),
        Answer::Open(vec![]),
    ]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    settle().await;
    assert_eq!(informer.len(), 2);
    let requests = script.requests();
    assert!(requests[1].contains("limit=500") && !requests[1].contains("continue"), "{requests:?}");
    assert!(requests[2].contains("continue=more"), "{requests:?}");
    assert!(requests[3].ends_with("resourceVersion=9"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_retried_with_growing_waits() {
    let mut answers: Vec<Answer> = (0..12).map(|_| Answer::Broken).collect();
    answers.push(Answer::Open(vec![list_end(1)]));
    let script = Script::new(answers);
    let informers = Informers::new(script.client());
    let began = tokio::time::Instant::now();
    informers.of::<ConfigMap>().synced().await;
    // 50 ms doubled up to 30 s, each with up to as much again: 50 ms * (2^10 - 1) + 2 * 30 s.
    let waited = began.elapsed().as_secs();
    assert!((111..=223).contains(&waited), "{waited} s");
    assert_eq!(script.requests().len(), 13);
}

#[tokio::test(start_paused = true)]
async fn an_object_replaced_by_a_namesake_is_deleted_first() {
    let mut namesake = config_map("a", 8);
    namesake["metadata"]["uid"] = json!("another");
    let script =
        Script::new([Answer::Open(vec![event("ADDED", config_map("a", 1)), list_end(1), event("MODIFIED", namesake)])]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    let log = record(&informer);
    informer.synced().await;
    settle().await;
    assert_eq!(taken(&log), ["a >1", "a 1>", "a >8"]);
}

#[tokio::test(start_paused = true)]
async fn equal_selections_share_one_watch() {
    let script = Script::new([Answer::Open(vec![list_end(1)]), Answer::Open(vec![list_end(1)])]);
    let informers = Informers::new(script.client());
    let selected = Selection { fields: Some("metadata.name=a".to_owned()), ..Selection::default() };
    informers.of::<ConfigMap>().synced().await;
    informers.of::<ConfigMap>().synced().await;
    informers.of_selected::<ConfigMap>(selected.clone()).synced().await;
    informers.of_selected::<ConfigMap>(selected).synced().await;
    let requests = script.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].contains("fieldSelector=metadata.name%3Da"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_has_each_key_once_and_those_of_deleted_objects() {
    let script = Script::new([Answer::Open(vec![
        event("ADDED", config_map("a", 1)),
        list_end(1),
        event("ADDED", config_map("b", 2)),
        event("MODIFIED", config_map("b", 3)),
        event("DELETED", config_map("a", 4)),
    ])]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    let early = informer.subscribe();
    informer.synced().await;
    settle().await;
    let late = informer.subscribe();
    assert_eq!(early.next().await, Changed::Key(ObjectKey::new("ns", "a")));
    assert_eq!(early.next().await, Changed::Key(ObjectKey::new("ns", "b")));
    let nothing = tokio::time::timeout(std::time::Duration::from_secs(1), early.next()).await;
    assert!(nothing.is_err(), "each key waits once");
    assert_eq!(late.next().await, Changed::Key(ObjectKey::new("ns", "b")), "it begins with what there is");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_fell_behind_is_told_to_look_at_everything() {
    let inbox = Arc::new(Inbox { keys: KeyQueue::new(1), behind: AtomicBool::new(false) });
    let subscription = Subscription { inbox: Arc::clone(&inbox) };
    inbox.keys.push(ObjectKey::cluster("a")).expect("the first fits");
    inbox.keys.push(ObjectKey::cluster("b")).expect_err("the second does not");
    inbox.behind.store(true, Ordering::Release);
    assert_eq!(subscription.next().await, Changed::Key(ObjectKey::cluster("a")));
    assert_eq!(subscription.next().await, Changed::Everything);
}

#[tokio::test(start_paused = true)]
async fn objects_are_found_by_their_groups_as_they_change() {
    let script = Script::new([Answer::Open(vec![
        event("ADDED", config_map("a", 3)),
        event("ADDED", config_map("b", 4)),
        list_end(5),
        event("MODIFIED", config_map("a", 6)),
        event("DELETED", config_map("b", 7)),
    ])]);
    let informers = Informers::new(script.client());
    let informer = informers.of::<ConfigMap>();
    let version = |object: &ConfigMap| object.metadata.resource_version.clone().unwrap_or_default();
    let grouped = Grouped::new(&informer, move |object| vec![version(object), "all".to_owned()]);
    informer.reached(7).await;
    settle().await;
    let names = |group: &str| -> Vec<String> {
        grouped.get(&group.to_owned()).iter().filter_map(|object| object.metadata.name.clone()).collect()
    };
    assert_eq!((names("all"), names("6")), (vec!["a".to_owned()], vec!["a".to_owned()]));
    assert!(names("3").is_empty() && names("4").is_empty());
}
