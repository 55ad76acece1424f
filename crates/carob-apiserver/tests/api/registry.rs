//! What the generic registry does with well-formed requests.

use crate::support::{Rig, config_map, pod};
use serde_json::{Value, json};

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MERGE: &str = "merge-patch+json";

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a decimal resourceVersion")
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().expect("a list").iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn deprecated_kinds_say_so_whatever_is_asked() {
    let rig = Rig::new().await;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let says = [r#"299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice""#];
    assert_eq!(rig.get(endpoints).await.warnings(), says);
    assert_eq!(rig.get(&format!("{endpoints}/none")).await.warnings(), says);
    let object = json!({ "metadata": { "name": "e" }, "subsets": [] });
    assert_eq!(rig.post(endpoints, &object).await.warnings(), says);
    assert_eq!(
        rig.get("/api/v1/componentstatuses").await.warnings(),
        [r#"299 - "v1 ComponentStatus is deprecated in v1.19+""#]
    );
    assert_eq!(rig.get(CMS).await.warnings(), [""; 0]);
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let rig = Rig::new().await;
    let created = rig.post(CMS, &config_map("a")).await.expect(201);
    assert_eq!((created["kind"].as_str(), created["apiVersion"].as_str()), (Some("ConfigMap"), Some("v1")));
    assert_eq!(created["metadata"]["namespace"], "default");
    assert_eq!(created["metadata"]["uid"].as_str().map(str::len), Some(36));
    assert!(created["metadata"]["creationTimestamp"].is_string());
    let read = rig.get(&format!("{CMS}/a")).await.expect(200);
    assert_eq!(read, created, "what is read is what was answered");
    let conflict = rig.post(CMS, &config_map("a")).await;
    assert_eq!(conflict.message(), "configmaps \"a\" already exists");
    assert_eq!(conflict.expect(409)["reason"], "AlreadyExists");

    let mut changed = read.clone();
    changed["data"]["k"] = json!("w");
    let updated = rig.put(&format!("{CMS}/a"), &changed).await.expect(200);
    assert!(revision(&updated) > revision(&read));
    let stale = rig.put(&format!("{CMS}/a"), &changed).await;
    assert_eq!(
        stale.message(),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    assert_eq!(stale.code, 409);

    let gone = rig.delete(&format!("{CMS}/a")).await.expect(200);
    assert_eq!((gone["kind"].as_str(), gone["status"].as_str()), (Some("Status"), Some("Success")));
    assert_eq!(gone["details"]["uid"], created["metadata"]["uid"]);
    let absent = rig.get(&format!("{CMS}/a")).await;
    assert_eq!(absent.message(), "configmaps \"a\" not found");
    assert_eq!(absent.expect(404)["details"], json!({ "name": "a", "kind": "configmaps" }));
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_not_one() {
    let rig = Rig::new().await;
    let created = rig.post(CMS, &config_map("a")).await.expect(201);
    let same = rig.put(&format!("{CMS}/a"), &created).await.expect(200);
    assert_eq!(revision(&same), revision(&created));
    let patched = rig.patch(&format!("{CMS}/a"), MERGE, &json!({ "data": { "k": "v" } })).await.expect(200);
    assert_eq!(revision(&patched), revision(&created));
}

#[tokio::test]
async fn dry_runs_answer_as_if_and_leave_no_trace() {
    let rig = Rig::new().await;
    let before = rig.store.current();
    rig.post(&format!("{CMS}?dryRun=All"), &config_map("a")).await.expect(201);
    rig.get(&format!("{CMS}/a")).await.expect(404);
    assert_eq!(rig.store.current(), before);
    rig.post(CMS, &config_map("a")).await.expect(201);
    let before = rig.store.current();
    rig.post(&format!("{CMS}?dryRun=All"), &config_map("a")).await.expect(409);
    let patched = rig.patch(&format!("{CMS}/a?dryRun=All"), MERGE, &json!({ "data": { "x": "y" } })).await.expect(200);
    assert_eq!(patched["data"]["x"], "y");
    rig.delete(&format!("{CMS}/a?dryRun=All")).await.expect(200);
    assert_eq!(rig.get(&format!("{CMS}/a")).await.expect(200)["data"], json!({ "k": "v" }));
    assert_eq!(rig.store.current(), before);
}

#[tokio::test]
async fn generated_names_have_a_random_end() {
    let rig = Rig::new().await;
    let body = json!({ "metadata": { "generateName": "gen-" } });
    let one = rig.post(CMS, &body).await.expect(201);
    let two = rig.post(CMS, &body).await.expect(201);
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    assert!(name(&one).starts_with("gen-") && name(&one).len() == 9, "{}", name(&one));
    assert_ne!(name(&one), name(&two));
}

#[tokio::test]
async fn the_patch_types_do_what_they_are_for() {
    let rig = Rig::new().await;
    rig.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p");
    let strategic = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "other" }] } });
    let patched = rig.patch(&path, "strategic-merge-patch+json", &strategic).await.expect(200);
    assert_eq!(patched["spec"]["containers"][0]["image"], "other");
    assert_eq!(
        patched["spec"]["containers"][0]["terminationMessagePath"], "/dev/termination-log",
        "merged, not replaced"
    );
    let merged =
        rig.patch(&path, MERGE, &json!({ "metadata": { "labels": { "a": null, "c": "d" } } })).await.expect(200);
    assert_eq!(merged["metadata"]["labels"], json!({ "c": "d" }));
    let json_patch = json!([{ "op": "replace", "path": "/metadata/labels/c", "value": "e" }]);
    let patched = rig.patch(&path, "json-patch+json", &json_patch).await.expect(200);
    assert_eq!(patched["metadata"]["labels"], json!({ "c": "e" }));
    rig.patch(&format!("{PODS}/absent"), MERGE, &json!({})).await.expect(404);
}

#[tokio::test]
async fn events_are_found_by_who_reported_them() {
    let rig = Rig::new().await;
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "e", "namespace": "default" },
        "regarding": { "namespace": "default" }, "type": "Normal", "reason": "Tested", "action": "Test",
        "eventTime": "2026-01-02T03:04:05.000006Z", "reportingController": "tester", "reportingInstance": "one",
    });
    rig.post("/apis/events.k8s.io/v1/namespaces/default/events", &event).await.expect(201);
    let found = async |selector: &str| {
        let list = rig.get(&format!("/api/v1/namespaces/default/events?fieldSelector={selector}")).await.expect(200);
        list["items"].as_array().map_or(0, Vec::len)
    };
    for (selector, count) in [("source%3Dtester", 1), ("source%3Dother", 0), ("reportingComponent%3Dtester", 1)] {
        assert_eq!(found(selector).await, count, "{selector}");
    }
}

#[tokio::test]
async fn a_json_patch_finds_a_status_that_nobody_has_written() {
    let rig = Rig::new().await;
    let claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    let claim =
        json!({ "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": { "name": "c" }, "spec": {} });
    rig.post(claims, &claim).await.expect(201);
    let status = format!("{claims}/c/status");
    let nothing = json!([{ "op": "test", "path": "/status", "value": {} }]);
    rig.patch(&status, "json-patch+json", &nothing).await.expect(200);
    let allocated = json!([{ "op": "add", "path": "/status/allocation", "value": {} }]);
    let patched = rig.patch(&status, "json-patch+json", &allocated).await.expect(200);
    assert_eq!(patched["status"], json!({ "allocation": {} }));
    let deep = json!([{ "op": "add", "path": "/status/allocation/devices/results", "value": [] }]);
    rig.patch(&status, "json-patch+json", &deep).await.expect(422);
}

#[tokio::test]
async fn an_apply_owns_what_it_says_and_argues_about_the_rest() {
    let rig = Rig::new().await;
    let apply = async |manager: &str, query: &str, data: Value| {
        let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data });
        rig.patch(&format!("{CMS}/a?fieldManager={manager}{query}"), "apply-patch+yaml", &config).await
    };
    let created = apply("one", "", json!({ "k": "v", "mine": "1" })).await.expect(201);
    let managers = created["metadata"]["managedFields"].as_array().expect("managers").clone();
    assert_eq!(managers.len(), 1, "{managers:?}");
    assert_eq!((managers[0]["manager"].as_str(), managers[0]["operation"].as_str()), (Some("one"), Some("Apply")));
    let conflict = apply("two", "", json!({ "k": "w" })).await;
    assert_eq!(conflict.body["details"]["causes"][0]["field"], ".data.k");
    assert_eq!(conflict.code, 409);
    apply("two", "&force=true", json!({ "k": "w" })).await.expect(200);
    let left = apply("one", "", json!({})).await.expect(200);
    assert_eq!(left["data"], json!({ "k": "w" }), "what one alone owned goes with its claim");
    let again = apply("one", "", json!({})).await.expect(200);
    assert_eq!(revision(&again), revision(&left));
}

/// What a kube-apiserver v1.36.2 answered to the same.
#[tokio::test]
async fn an_apply_owns_what_it_says_is_empty() {
    const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/d";
    let rig = Rig::new().await;
    let all = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": {
            "paused": false, "minReadySeconds": 0, "selector": { "matchLabels": { "a": "b" } },
            "template": {
                "metadata": { "labels": { "a": "b" } },
                "spec": { "hostNetwork": false, "containers": [{ "name": "c", "image": "i", "command": [], "stdin": false }] },
            },
        },
    });
    let paused = |paused: bool| json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" }, "spec": { "paused": paused } });
    let apply = async |path: &str, manager: &str, query: &str, config: &Value| {
        rig.patch(&format!("{path}?fieldManager={manager}{query}"), "apply-patch+yaml", config).await
    };
    let owned = |object: &Value, at: usize| object["metadata"]["managedFields"][at]["fieldsV1"].clone();

    let created = apply(DEPLOYMENT, "a", "", &all).await.expect(201);
    let of_container = json!({ ".": {}, "f:command": {}, "f:image": {}, "f:name": {}, "f:stdin": {} });
    let mut of_a = json!({ "f:spec": {
        "f:minReadySeconds": {}, "f:paused": {}, "f:selector": {},
        "f:template": {
            "f:metadata": { "f:labels": { "f:a": {} } },
            "f:spec": { "f:containers": { "k:{\"name\":\"c\"}": of_container }, "f:hostNetwork": {} },
        },
    } });
    assert_eq!(owned(&created, 0), of_a);
    assert_eq!(created["spec"].get("paused"), None);
    let again = apply(DEPLOYMENT, "a", "", &all).await.expect(200);
    assert_eq!(revision(&again), revision(&created));
    for value in [false, true] {
        let conflict = apply(DEPLOYMENT, "b", "", &paused(value)).await;
        assert_eq!((conflict.code, &conflict.body["details"]["causes"][0]["field"]), (409, &json!(".spec.paused")));
    }
    let forced = apply(DEPLOYMENT, "b", "&force=true", &paused(true)).await.expect(200);
    of_a["f:spec"].as_object_mut().expect("an object").remove("f:paused");
    assert_eq!((owned(&forced, 0), owned(&forced, 1)), (of_a, json!({ "f:spec": { "f:paused": {} } })));
    assert_eq!(forced["spec"]["paused"], true);
    let conflict = apply(DEPLOYMENT, "a", "", &all).await;
    assert_eq!((conflict.code, &conflict.body["details"]["causes"][0]["field"]), (409, &json!(".spec.paused")));

    let bare = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "n" }, "data": null, "immutable": false });
    let created = apply(&format!("{CMS}/n"), "a", "", &bare).await.expect(201);
    assert_eq!(owned(&created, 0), json!({ "f:data": {}, "f:immutable": {} }));
    assert_eq!(created.get("data"), None);
}

#[tokio::test]
async fn status_and_the_rest_are_written_apart() {
    let rig = Rig::new().await;
    rig.post(PODS, &pod("p")).await.expect(201);
    let status = json!({ "metadata": { "labels": { "x": "y" } }, "spec": { "nodeName": "n" }, "status": { "message": "hello" } });
    let patched = rig.patch(&format!("{PODS}/p/status"), MERGE, &status).await.expect(200);
    assert_eq!(patched["status"]["message"], "hello");
    assert_eq!(patched["spec"].get("nodeName"), None);
    let patched = rig.patch(&format!("{PODS}/p"), MERGE, &json!({ "status": { "message": "bye" } })).await.expect(200);
    assert_eq!(patched["status"]["message"], "hello");
    assert_eq!(rig.get(&format!("{PODS}/p/status")).await.expect(200)["metadata"]["name"], "p");
}

#[tokio::test]
async fn lists_are_paged_at_one_revision() {
    let rig = Rig::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        rig.post(CMS, &config_map(name)).await.expect(201);
    }
    let first = rig.get(&format!("{CMS}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    rig.delete(&format!("{CMS}/c")).await.expect(200);
    rig.post(CMS, &config_map("bb")).await.expect(201);
    let token = first["metadata"]["continue"].as_str().expect("a token").to_owned();
    let second = rig.get(&format!("{CMS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["c", "d"], "the snapshot of the first page");
    assert_eq!(revision(&second), revision(&first));
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    let both = rig.get(&format!("{CMS}?resourceVersion=5&continue={token}")).await;
    assert_eq!(both.message(), "specifying resource version is not allowed when using continue");

    rig.store.compact(rig.store.current()).expect("the past can be forgotten");
    let expired = rig.get(&format!("{CMS}?limit=2&continue={token}")).await;
    assert_eq!(expired.body["reason"], "Expired");
    let fresh = expired.body["metadata"]["continue"].as_str().expect("a fresh token").to_owned();
    assert_eq!(expired.code, 410);
    let rest = rig.get(&format!("{CMS}?continue={fresh}")).await.expect(200);
    assert_eq!(names(&rest), ["bb", "d", "e"], "from the same key on, as of now");
}

#[tokio::test]
async fn selectors_choose_and_old_revisions_can_be_read() {
    let rig = Rig::new().await;
    for (name, tier) in [("a", "front"), ("b", "back"), ("c", "front")] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({ "tier": tier });
        rig.post(CMS, &object).await.expect(201);
    }
    let list = async |query: &str| rig.get(&format!("{CMS}?{query}")).await.expect(200);
    assert_eq!(names(&list("labelSelector=tier%3Dfront").await), ["a", "c"]);
    assert_eq!(names(&list("labelSelector=tier+notin+(front)").await), ["b"]);
    assert_eq!(names(&list("fieldSelector=metadata.name%3Db").await), ["b"]);
    assert_eq!(names(&list("fieldSelector=metadata.name!%3Db&labelSelector=tier").await), ["a", "c"]);
    let page = list("labelSelector=tier%3Dfront&limit=1").await;
    assert_eq!(names(&page), ["a"]);
    assert_eq!(page["metadata"].get("remainingItemCount"), None, "unknown under a selector");
    let old = revision(&page);
    rig.delete(&format!("{CMS}/a")).await.expect(200);
    assert_eq!(names(&list(&format!("resourceVersion={old}&resourceVersionMatch=Exact")).await), ["a", "b", "c"]);
    assert_eq!(names(&list(&format!("resourceVersion={old}")).await), ["b", "c"]);
    let all = rig.get("/api/v1/configmaps?labelSelector=tier").await.expect(200);
    assert_eq!(names(&all), ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_revision_from_the_future_is_waited_for_and_then_refused() {
    let rig = Rig::new().await;
    let answer = rig.get(&format!("{CMS}?resourceVersion=1000000")).await;
    assert!(answer.message().contains("Too large resource version: 1000000"), "{}", answer.message());
    assert_eq!(answer.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(answer.code, 504);
}

#[tokio::test]
async fn a_watch_replays_and_follows() {
    let rig = Rig::new().await;
    let start = revision(&rig.post(CMS, &config_map("a")).await.expect(201));
    rig.patch(&format!("{CMS}/a"), MERGE, &json!({ "data": { "x": "y" } })).await.expect(200);
    let mut watch = rig.watch(&format!("{CMS}?watch=1&resourceVersion={start}")).await;
    assert_eq!(watch.brief().await, ("MODIFIED".to_owned(), "a".to_owned()));
    rig.post(CMS, &config_map("b")).await.expect(201);
    let added = watch.next().await.expect("an event");
    assert_eq!(added["object"], rig.get(&format!("{CMS}/b")).await.expect(200));
    rig.delete(&format!("{CMS}/b")).await.expect(200);
    let deleted = watch.next().await.expect("an event");
    assert_eq!(deleted["type"], "DELETED");
    assert!(revision(&deleted["object"]) > revision(&added["object"]), "bears the deletion's revision");
}

#[tokio::test]
async fn leaving_a_selection_is_a_deletion_and_entering_it_an_addition() {
    let rig = Rig::new().await;
    rig.post(CMS, &config_map("a")).await.expect(201);
    let mut watch = rig.watch(&format!("{CMS}?watch=1&labelSelector=x%3Dy")).await;
    let label = async |value: Value| {
        rig.patch(&format!("{CMS}/a"), MERGE, &json!({ "metadata": { "labels": { "x": value } } })).await.expect(200)
    };
    label(json!("y")).await;
    assert_eq!(watch.brief().await.0, "ADDED");
    rig.patch(&format!("{CMS}/a"), MERGE, &json!({ "data": { "z": "z" } })).await.expect(200);
    assert_eq!(watch.brief().await.0, "MODIFIED");
    let last = label(json!("n")).await;
    let gone = watch.next().await.expect("an event");
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["metadata"]["labels"]["x"], "y", "as it was last selected");
    assert_eq!(revision(&gone["object"]), revision(&last));
}

#[tokio::test]
async fn a_watch_of_one_name_hears_of_no_other() {
    let rig = Rig::new().await;
    rig.post(CMS, &config_map("a")).await.expect(201);
    for (query, heard) in [
        ("fieldSelector=metadata.name%3Da", true),
        ("fieldSelector=metadata.name%3Da,metadata.namespace%3Ddefault", true),
        ("fieldSelector=metadata.name%3Da,metadata.namespace%3Dother", false),
        ("fieldSelector=metadata.name%3Da,metadata.name%3Dab", false),
        ("fieldSelector=metadata.name%3Da&labelSelector=x", false),
        ("fieldSelector=metadata.namespace%3Ddefault", true),
    ] {
        let list = rig.get(&format!("{CMS}?{query}")).await.expect(200);
        assert_eq!(names(&list), if heard { vec!["a"] } else { vec![] }, "{query}");
    }
    let mut one = rig.watch(&format!("{CMS}?watch=1&fieldSelector=metadata.name%3Da")).await;
    let mut anywhere = rig.watch("/api/v1/configmaps?watch=1&fieldSelector=metadata.name%3Da").await;
    assert_eq!(one.brief().await.0, "ADDED");
    assert_eq!(anywhere.brief().await.0, "ADDED");
    rig.post(CMS, &config_map("ab")).await.expect(201);
    rig.patch(&format!("{CMS}/a"), MERGE, &json!({ "data": { "z": "z" } })).await.expect(200);
    for watch in [&mut one, &mut anywhere] {
        let event = watch.next().await.expect("an event");
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("MODIFIED"), &json!("a")));
    }
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark_of_the_kind() {
    let rig = Rig::new().await;
    for name in ["a", "b"] {
        rig.post(CMS, &config_map(name)).await.expect(201);
    }
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = rig.watch(&format!("{CMS}?{query}")).await;
    assert_eq!(watch.brief().await, ("ADDED".to_owned(), "a".to_owned()));
    assert_eq!(watch.brief().await, ("ADDED".to_owned(), "b".to_owned()));
    let bookmark = watch.next().await.expect("an event");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(revision(&bookmark["object"]), rig.store.current().0);
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_every_minute_and_the_watch_ends_in_time() {
    let rig = Rig::new().await;
    let mut watch =
        rig.watch(&format!("{CMS}?watch=1&resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=90")).await;
    rig.post("/api/v1/namespaces/kube-system/configmaps", &config_map("elsewhere")).await.expect(201);
    let bookmark = watch.next().await.expect("an event");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(revision(&bookmark["object"]), rig.store.current().0);
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_told_so() {
    let rig = Rig::new().await;
    rig.post(CMS, &config_map("a")).await.expect(201);
    rig.store.compact(rig.store.current()).expect("the past can be forgotten");
    let mut watch = rig.watch(&format!("{CMS}?watch=1&resourceVersion=2")).await;
    let error = watch.next().await.expect("an event");
    assert_eq!((error["type"].as_str(), error["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
    assert_eq!(error["object"]["reason"], "Expired");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn streams_end_when_the_server_shuts_down() {
    let rig = Rig::new().await;
    let mut watch = rig.watch(&format!("{CMS}?watch=1")).await;
    rig.api.begin_shutdown();
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let rig = Rig::new().await;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    rig.post(CMS, &object).await.expect(201);
    let waiting = rig.delete(&format!("{CMS}/a")).await.expect(200);
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(waiting["metadata"]["deletionGracePeriodSeconds"], 0);
    let added = rig
        .patch(
            &format!("{CMS}/a"),
            MERGE,
            &json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } }),
        )
        .await;
    assert!(
        added.message().contains("no new finalizers can be added if the object is being deleted"),
        "{}",
        added.message()
    );
    rig.patch(&format!("{CMS}/a"), MERGE, &json!({ "metadata": { "finalizers": null } })).await.expect(200);
    rig.get(&format!("{CMS}/a")).await.expect(404);
}

#[tokio::test]
async fn propagation_becomes_finalizers_and_preconditions_are_kept() {
    let rig = Rig::new().await;
    let uid = rig.post(CMS, &config_map("a")).await.expect(201)["metadata"]["uid"].clone();
    let delete = async |options: Value| {
        let body = json!({ "kind": "DeleteOptions", "apiVersion": "v1" }).as_object().cloned().map(|mut map| {
            map.extend(options.as_object().cloned().unwrap_or_default());
            Value::Object(map)
        });
        rig.send(
            "DELETE",
            &format!("{CMS}/a"),
            &[("content-type", "application/json")],
            body.expect("a map").to_string(),
        )
        .await
    };
    let wrong = delete(json!({ "preconditions": { "uid": "other" } })).await;
    assert!(wrong.message().contains("UID in precondition: other"), "{}", wrong.message());
    assert_eq!(wrong.code, 409);
    delete(json!({ "preconditions": { "resourceVersion": "1" } })).await.expect(409);
    let held = delete(json!({ "preconditions": { "uid": uid }, "propagationPolicy": "Foreground" })).await.expect(200);
    assert_eq!(held["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn pods_are_given_time_to_end() {
    let rig = Rig::new().await;
    rig.post(PODS, &pod("unassigned")).await.expect(201);
    let gone = rig.delete(&format!("{PODS}/unassigned")).await.expect(200);
    assert_eq!(gone["kind"], "Pod", "a Pod's deletion is answered with the Pod");
    rig.get(&format!("{PODS}/unassigned")).await.expect(404);

    let mut assigned = pod("assigned");
    assigned["spec"]["nodeName"] = json!("n");
    rig.post(PODS, &assigned).await.expect(201);
    let ending = rig.delete(&format!("{PODS}/assigned")).await.expect(200);
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    rig.delete(&format!("{PODS}/assigned?gracePeriodSeconds=0")).await.expect(200);
    rig.get(&format!("{PODS}/assigned")).await.expect(404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let rig = Rig::new().await;
    for (name, group) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({ "group": group });
        rig.post(CMS, &object).await.expect(201);
    }
    let deleted = rig.delete(&format!("{CMS}?labelSelector=group%3Dx")).await.expect(200);
    assert_eq!(deleted["kind"], "ConfigMapList");
    assert_eq!(names(&deleted), ["a", "c"]);
    assert_eq!(names(&rig.get(CMS).await.expect(200)), ["b"]);
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_ends() {
    let rig = Rig::new().await;
    let namespace = json!({ "metadata": { "name": "short" } });
    rig.post("/api/v1/namespaces", &namespace).await.expect(201);
    rig.post("/api/v1/namespaces/short/configmaps", &config_map("a")).await.expect(201);
    let ending = rig.delete("/api/v1/namespaces/short").await.expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
    let refused = rig.post("/api/v1/namespaces/short/configmaps", &config_map("b")).await;
    assert_eq!(
        refused.message(),
        "configmaps \"b\" is forbidden: unable to create new content in namespace short because it is being terminated"
    );
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut finalized = ending.clone();
    finalized["spec"]["finalizers"] = json!([]);
    rig.put("/api/v1/namespaces/short/finalize", &finalized).await.expect(200);
    rig.get("/api/v1/namespaces/short").await.expect(404);
    assert!(rig.delete("/api/v1/namespaces/default").await.message().contains("this namespace may not be deleted"));
}

#[tokio::test]
async fn many_writers_of_one_object_all_get_through() {
    let rig = std::sync::Arc::new(Rig::new().await);
    rig.post(CMS, &config_map("a")).await.expect(201);
    let writers: Vec<_> = (0..16)
        .map(|n| {
            let rig = std::sync::Arc::clone(&rig);
            tokio::spawn(async move {
                let patch = json!({ "data": { format!("w{n}"): "x" } });
                rig.patch(&format!("{CMS}/a"), MERGE, &patch).await.expect(200);
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer does not panic");
    }
    let data = rig.get(&format!("{CMS}/a")).await.expect(200);
    assert_eq!(data["data"].as_object().map(serde_json::Map::len), Some(17));
}

#[tokio::test]
async fn services_get_addresses_and_give_them_back() {
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    let rig = Rig::new().await;
    let service = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
    let ports = json!([{ "port": 80 }]);
    let api = rig.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(api["spec"]["clusterIP"], "10.96.0.1", "the first is the API's own");
    let one = rig.post(SERVICES, &service("one", json!({ "type": "NodePort", "ports": ports }))).await.expect(201);
    assert!(one["spec"]["ports"][0]["nodePort"].as_u64().is_some_and(|port| (30000..=32767).contains(&port)));
    let address = one["spec"]["clusterIP"].clone();
    let taken = rig.post(SERVICES, &service("two", json!({ "clusterIP": address, "ports": ports }))).await;
    assert!(taken.message().contains("provided IP is already allocated"), "{}", taken.message());
    assert_eq!(taken.code, 422);
    rig.delete(&format!("{SERVICES}/one")).await.expect(200);
    rig.post(SERVICES, &service("two", json!({ "clusterIP": address, "ports": ports }))).await.expect(201);
}

#[tokio::test]
async fn only_stable_versions_are_served_unless_asked_for() {
    const CANDIDATES: &str = "/apis/coordination.k8s.io/v1beta1/leasecandidates";
    Rig::new().await.get(CANDIDATES).await.expect(404);
    Rig::with(|config| config.unstable_versions = true).await.get(CANDIDATES).await.expect(200);
}

#[tokio::test]
async fn events_of_both_groups_are_the_same_objects() {
    let rig = Rig::new().await;
    let event = json!({
        "metadata": { "name": "e", "namespace": "default" }, "involvedObject": { "kind": "Pod", "name": "p", "namespace": "default" },
        "reason": "Testing", "message": "hello", "type": "Normal",
    });
    rig.post("/api/v1/namespaces/default/events", &event).await.expect(201);
    let other = rig.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!((other["regarding"]["name"].as_str(), other["note"].as_str()), (Some("p"), Some("hello")));
    let list =
        rig.get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp").await.expect(200);
    assert_eq!(names(&list), ["e"]);
    assert_eq!(list["items"][0]["note"], "hello");
}

/// Published manifests say modes in octal, break base64 into lines and name a namespace where there is none.
#[tokio::test]
async fn manifests_are_read_as_they_are_published() {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let rig = Rig::new().await;
    let yaml = [("content-type", "application/yaml")];
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: a, image: a}]\n  \
               volumes: [{name: v, emptyDir: {}}, {name: s, secret: {secretName: s, defaultMode: 0400}}]\n";
    let pod = rig.send("POST", "/api/v1/namespaces/default/pods", &yaml, pod).await.expect(201);
    assert_eq!(pod["spec"]["volumes"][1]["secret"]["defaultMode"], 0o400);

    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  a: |\n    aGVs\n    bG8=\n";
    let secret = rig.send("POST", "/api/v1/namespaces/default/secrets", &yaml, secret).await.expect(201);
    assert_eq!(secret["data"]["a"], "aGVsbG8=");

    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": "r", "namespace": "somewhere" }, "rules": [],
    });
    let path = format!("{ROLES}/r?fieldManager=me");
    let applied = rig.patch(&path, "apply-patch+yaml", &role).await.expect(201);
    assert_eq!(applied["metadata"].get("namespace"), None);
    rig.patch(&path, "apply-patch+yaml", &role).await.expect(200);
    rig.put(&format!("{ROLES}/r"), &role).await.expect(200);
}
