//! CustomResourceDefinitions and the objects of custom kinds.

use crate::support::Rig;
use serde_json::{Value, json};

pub(crate) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const MERGE: &str = "merge-patch+json";

fn spec_schema() -> Value {
    json!({
        "type": "object", "required": ["size"],
        "properties": {
            "size": { "type": "integer", "minimum": 1 },
            "color": { "type": "string", "enum": ["red", "blue"], "default": "red" },
            "replicas": { "type": "integer" },
            "parts": {
                "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": { "type": "object", "required": ["name"], "properties": {
                    "name": { "type": "string" }, "weight": { "type": "integer" },
                } },
            },
            "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
        },
    })
}

fn version(name: &str, storage: bool) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": { "openAPIV3Schema": { "type": "object", "properties": {
            "spec": spec_schema(),
            "status": { "type": "object", "properties": {
                "replicas": { "type": "integer" }, "phase": { "type": "string" }, "selector": { "type": "string" },
            } },
        } } },
        "subresources": { "status": {}, "scale": {
            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        } },
        "additionalPrinterColumns": [
            { "name": "Size", "type": "integer", "jsonPath": ".spec.size" },
            { "name": "Phase", "type": "string", "jsonPath": ".status.phase", "priority": 1 },
        ],
        "selectableFields": [{ "jsonPath": ".spec.color" }],
    })
}

fn definition(plural: &str, kind: &str, versions: &[Value]) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.example.com") },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": plural, "kind": kind, "shortNames": [plural[..2].to_owned()], "categories": ["all"] },
            "versions": versions,
        },
    })
}

fn widget(name: &str) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": name }, "spec": { "size": 3 } })
}

fn condition(definition: &Value, ty: &str) -> Option<String> {
    let conditions = definition["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == ty)?;
    Some(format!("{} {}", found["status"].as_str()?, found["reason"].as_str()?))
}

/// Makes a definition and waits, by a watch, until it says what it waits for.
pub(crate) async fn define(rig: &Rig, object: &Value, ty: &str) -> Value {
    let created = rig.post(DEFINITIONS, object).await.expect(201);
    let name = created["metadata"]["name"].as_str().expect("a name").to_owned();
    until(rig, &name, |object| condition(object, ty).is_some()).await
}

pub(crate) async fn until(rig: &Rig, name: &str, done: impl Fn(&Value) -> bool) -> Value {
    let mut events = rig.watch(&format!("{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3D{name}")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        if done(&event["object"]) {
            return event["object"].clone();
        }
    }
}

async fn widgets() -> Rig {
    let rig = Rig::new().await;
    define(&rig, &definition("widgets", "Widget", &[version("v1", true)]), "Established").await;
    rig
}

#[tokio::test]
async fn a_kind_is_served_once_it_is_established_and_after_a_restart() {
    let rig = Rig::new().await;
    rig.get(WIDGETS).await.expect(404);
    let object = define(&rig, &definition("widgets", "Widget", &[version("v1", true)]), "Established").await;
    assert_eq!(condition(&object, "Established").as_deref(), Some("True InitialNamesAccepted"));
    assert_eq!(condition(&object, "NamesAccepted").as_deref(), Some("True NoConflicts"));
    assert_eq!(object["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
    let list = rig.get(WIDGETS).await.expect(200);
    assert_eq!((&list["kind"], &list["items"]), (&json!("WidgetList"), &json!([])));

    let store = rig.store.clone();
    rig.post(WIDGETS, &widget("a")).await.expect(201);
    let again = Rig::on(store).await;
    assert_eq!(again.get(&format!("{WIDGETS}/a")).await.expect(200)["spec"]["size"], 3, "by the very first request");
}

#[tokio::test]
async fn a_kind_in_discovery_has_a_definition_that_says_so_and_the_reverse() {
    let rig = Rig::new().await;
    for n in 0..20_u8 {
        let plural = format!("{}things", char::from(b'a' + n));
        let listed = async || {
            let answer = rig.get("/apis/example.com/v1").await;
            let kinds = if answer.code == 200 { answer.expect(200)["resources"].clone() } else { json!([]) };
            kinds.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["name"] == plural))
        };
        let object = definition(&plural, &format!("Thing{n}"), &[version("v1", true)]);
        if n % 2 == 0 {
            define(&rig, &object, "Established").await;
            assert!(listed().await, "{plural} is established");
        } else {
            rig.post(DEFINITIONS, &object).await.expect(201);
            while !listed().await {
                tokio::task::yield_now().await;
            }
            let read = rig.get(&format!("{DEFINITIONS}/{plural}.example.com")).await.expect(200);
            assert_eq!(condition(&read, "Established").as_deref(), Some("True InitialNamesAccepted"), "{plural}");
            rig.put(&format!("{DEFINITIONS}/{plural}.example.com"), &read).await.expect(200);
        }
    }
}

#[tokio::test]
async fn objects_are_defaulted_pruned_and_validated() {
    let rig = widgets().await;
    let mut object = widget("a");
    object["spec"]["stray"] = json!(1);
    object["spec"]["free"] = json!({ "any": "thing" });
    object["status"] = json!({ "phase": "mine" });
    let answer = rig.post(WIDGETS, &object).await;
    assert_eq!(answer.warnings(), [r#"299 - "unknown field \"spec.stray\"""#]);
    let created = answer.expect(201);
    assert_eq!(created["spec"], json!({ "size": 3, "color": "red", "free": { "any": "thing" } }));
    assert_eq!((created.get("status"), &created["metadata"]["generation"]), (None, &json!(1)));

    let strict = rig.post(&format!("{WIDGETS}?fieldValidation=Strict"), &object).await;
    assert_eq!(
        (strict.code, strict.message()),
        (
            400,
            r#"Widget in version "v1" cannot be handled as a Widget: strict decoding error: unknown field "spec.stray""#
        )
    );
    let twice =
        br#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"b"},"spec":{"size":1,"size":2}}"#;
    let twice = rig
        .send(
            "POST",
            &format!("{WIDGETS}?fieldValidation=Strict"),
            &[("content-type", "application/json")],
            twice.to_vec(),
        )
        .await;
    assert!(twice.message().contains(r#"duplicate field "spec.size""#), "{}", twice.message());

    let mut wrong = widget("b");
    wrong["spec"] = json!({ "size": 0, "color": "green", "parts": [{ "name": "x" }, { "name": "x" }] });
    let refused = rig.post(WIDGETS, &wrong).await;
    let message = refused.message().to_owned();
    for part in [
        r#"Widget.example.com "b" is invalid: "#,
        "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        r#"spec.color: Unsupported value: "green": supported values: "red", "blue""#,
        r#"spec.parts[1]: Duplicate value: {"name":"x"}"#,
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn every_verb_works_on_a_custom_kind() {
    let rig = widgets().await;
    let created = rig.post(WIDGETS, &widget("a")).await.expect(201);
    let path = format!("{WIDGETS}/a");
    let mut watch = rig.watch(&format!("{WIDGETS}?watch=1")).await;
    assert_eq!(watch.brief().await, ("ADDED".to_owned(), "a".to_owned()));

    let patched = rig.patch(&path, MERGE, &json!({ "spec": { "size": 4 } })).await.expect(200);
    assert_eq!((&patched["spec"]["size"], &patched["metadata"]["generation"]), (&json!(4), &json!(2)));
    assert_eq!(watch.brief().await, ("MODIFIED".to_owned(), "a".to_owned()));
    let json_patch = json!([{ "op": "replace", "path": "/spec/color", "value": "blue" }]);
    assert_eq!(rig.patch(&path, "json-patch+json", &json_patch).await.expect(200)["spec"]["color"], "blue");
    rig.patch(&path, "strategic-merge-patch+json", &json!({ "spec": { "size": 5 } })).await.expect(415);
    rig.patch(&path, MERGE, &json!({ "spec": { "size": "x" } })).await.expect(422);
    let unknown = format!("{path}?fieldValidation=Strict");
    let unknown = rig.patch(&unknown, MERGE, &json!({ "spec": { "stray": 1 } })).await;
    assert_eq!(
        (unknown.code, unknown.message()),
        (422, r#" "" is invalid: patch: Invalid value: "{...}": strict decoding error: unknown field "spec.stray""#)
    );
    let other = rig.patch(&path, MERGE, &json!({ "metadata": { "uid": "x" } })).await;
    assert!(other.code == 422 && other.message().contains("metadata.uid: Invalid value: \"x\": field is immutable"));

    let apply = format!("{path}?fieldManager=me");
    let mut config = widget("a");
    config["spec"]["size"] = json!("x");
    let refused = rig.patch(&apply, "apply-patch+yaml", &config).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            500,
            "failed to create typed patch object (default/a; example.com/v1, Kind=Widget): .spec.size: \
             expected numeric (int or float), got string"
        )
    );
    config["spec"] = json!({ "size": 4, "replicas": null });
    let refused = rig.patch(&apply, "apply-patch+yaml", &config).await;
    assert!(
        refused.code == 422 && refused.message().contains("must be of type integer: \"null\""),
        "{}",
        refused.message()
    );
    let mut config = widget("new");
    config["metadata"]["uid"] = json!("x");
    rig.patch(&format!("{WIDGETS}/new?fieldManager=me"), "apply-patch+yaml", &config).await.expect(409);

    let stale = rig.put(&path, &created).await;
    assert_eq!(stale.code, 409);
    let mut current = rig.get(&path).await.expect(200);
    current["spec"]["size"] = json!(6);
    rig.put(&path, &current).await.expect(200);
    current["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    let without = rig.put(&path, &current).await;
    assert_eq!(without.code, 422, "a custom object is replaced only by who knows its revision");

    let status = json!({ "metadata": { "labels": { "a": "b" } }, "status": { "replicas": 2, "phase": "Good", "selector": "x=y" } });
    let with_status = rig.patch(&format!("{path}/status"), MERGE, &status).await.expect(200);
    assert_eq!((&with_status["status"]["phase"], with_status["metadata"].get("labels")), (&json!("Good"), None));
    assert_eq!(with_status["metadata"]["generation"], 4, "a status is no change of the object");
    rig.patch(&format!("{path}/status"), MERGE, &json!({ "status": { "replicas": "x" } })).await.expect(422);
    rig.patch(&path, MERGE, &json!({ "status": { "phase": "Bad" } })).await.expect(200);
    assert_eq!(rig.get(&path).await.expect(200)["status"]["phase"], "Good");

    let scale = rig.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(scale["status"], json!({ "replicas": 2, "selector": "x=y" }));
    let scaled = rig.patch(&format!("{path}/scale"), MERGE, &json!({ "spec": { "replicas": 7 } })).await.expect(200);
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(7)));
    assert_eq!(rig.get(&path).await.expect(200)["spec"]["replicas"], 7);

    let blue = rig.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dblue")).await.expect(200);
    assert_eq!(blue["items"].as_array().map(Vec::len), Some(1));
    rig.get(&format!("{WIDGETS}?fieldSelector=spec.size%3D1")).await.expect(400);

    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = rig.send("GET", WIDGETS, &table, "").await.expect(200);
    assert_eq!(table["rows"][0]["cells"], json!(["a", 6, "Good"]));
    assert_eq!(table["columnDefinitions"][2]["priority"], 1);

    rig.delete(WIDGETS).await.expect(200);
    rig.get(&path).await.expect(404);
}

#[tokio::test]
async fn an_apply_merges_lists_by_their_keys() {
    let rig = widgets().await;
    let applied = |parts: Value| {
        let mut object = widget("a");
        object["spec"]["parts"] = parts;
        object
    };
    let path = |manager: &str| format!("{WIDGETS}/a?fieldManager={manager}");
    let one = applied(json!([{ "name": "x", "weight": 1 }]));
    rig.patch(&path("one"), "apply-patch+yaml", &one).await.expect(201);
    let mut two = applied(json!([{ "name": "y", "weight": 2 }]));
    two["spec"].as_object_mut().expect("a spec").remove("size");
    let merged = rig.patch(&path("two"), "apply-patch+yaml", &two).await.expect(200);
    assert_eq!(merged["spec"]["parts"], json!([{ "name": "x", "weight": 1 }, { "name": "y", "weight": 2 }]));
    let conflict = applied(json!([{ "name": "y", "weight": 3 }]));
    let refused = rig.patch(&path("one"), "apply-patch+yaml", &conflict).await;
    assert_eq!(
        (refused.code, refused.message()),
        (409, "Apply failed with 1 conflict: conflict with \"two\": .spec.parts[name=\"y\"].weight")
    );
    let gone = rig.patch(&path("one"), "apply-patch+yaml", &applied(json!([]))).await.expect(200);
    assert_eq!(gone["spec"]["parts"], json!([{ "name": "y", "weight": 2 }]));
}

#[tokio::test]
async fn an_apply_does_not_own_what_defaults_add() {
    let rig = widgets().await;
    let applied =
        rig.patch(&format!("{WIDGETS}/a?fieldManager=me"), "apply-patch+yaml", &widget("a")).await.expect(201);
    assert_eq!(applied["spec"], json!({ "size": 3, "color": "red" }));
    assert_eq!(applied["metadata"]["managedFields"][0]["fieldsV1"], json!({ "f:spec": { "f:size": {} } }));
    let mut blue = widget("a");
    blue["spec"] = json!({ "color": "blue" });
    let blue = rig.patch(&format!("{WIDGETS}/a?fieldManager=you"), "apply-patch+yaml", &blue).await.expect(200);
    assert_eq!(blue["spec"], json!({ "size": 3, "color": "blue" }));
}

/// Nothing is declared of `open` but that it is an object: what is in it goes in silence, where an undeclared field is refused.
#[tokio::test]
async fn an_apply_refuses_what_objects_with_fields_do_not_declare() {
    let rig = Rig::new().await;
    let mut version = version("v1", true);
    version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["open"] = json!({ "type": "object" });
    define(&rig, &definition("widgets", "Widget", &[version]), "Established").await;
    let mut object = widget("a");
    object["spec"]["open"] = json!({ "kind": "ConfigMap" });
    let path = format!("{WIDGETS}/a?fieldManager=me");
    let applied = rig.patch(&path, "apply-patch+yaml", &object).await.expect(201);
    assert_eq!(applied["spec"]["open"], json!({}));
    object["spec"]["stray"] = json!(1);
    let refused = rig.patch(&path, "apply-patch+yaml", &object).await;
    assert!(
        refused.code == 500 && refused.message().ends_with(".spec.stray: field not declared in schema"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn defaults_may_be_empty() {
    let rig = Rig::new().await;
    let mut version = version("v1", true);
    let spec = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    spec["group"] = json!({ "type": "string", "default": "" });
    spec["paused"] = json!({ "type": "boolean", "default": false });
    spec["count"] = json!({ "type": "integer", "default": 0 });
    let defined = define(&rig, &definition("widgets", "Widget", &[version]), "Established").await;
    let stored = &defined["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    assert_eq!((&stored["group"]["default"], &stored["paused"]["default"]), (&json!(""), &json!(false)));
    let created = rig.post(WIDGETS, &widget("a")).await.expect(201);
    assert_eq!(created["spec"], json!({ "size": 3, "color": "red", "group": "", "paused": false, "count": 0 }));
}

#[tokio::test]
async fn a_kind_with_a_column_that_cannot_be_read_shows_its_age() {
    let rig = Rig::new().await;
    let mut version = version("v1", true);
    version["additionalPrinterColumns"] = json!([
        { "name": "Size", "type": "integer", "jsonPath": ".spec.size" },
        { "name": "Hosts", "type": "string", "jsonPath": ".spec.http[].hosts" },
    ]);
    define(&rig, &definition("widgets", "Widget", &[version]), "Established").await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = rig.send("GET", WIDGETS, &accept, "").await.expect(200);
    let names: Vec<&str> =
        table["columnDefinitions"].as_array().expect("columns").iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names, ["Name", "Age"]);
}

/// A map that is owned as a whole is still the same map after an update.
#[tokio::test]
async fn rules_may_compare_what_is_in_an_atomic_map() {
    let rig = Rig::new().await;
    let mut version = version("v1", true);
    version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["from"] = json!({
        "type": "object", "x-kubernetes-map-type": "atomic", "properties": {
            "major": { "type": "integer", "x-kubernetes-validations": [{ "rule": "self == oldSelf", "message": "stays" }] },
        },
    });
    define(&rig, &definition("widgets", "Widget", &[version]), "Established").await;
    let mut object = widget("a");
    object["spec"]["from"] = json!({ "major": 1 });
    rig.post(WIDGETS, &object).await.expect(201);
    let patch = json!({ "spec": { "from": { "major": 2 } } });
    let refused = rig.patch(&format!("{WIDGETS}/a"), "merge-patch+json", &patch).await;
    assert!(refused.code == 422 && refused.message().contains("stays"), "{}", refused.message());
}

#[tokio::test]
async fn names_that_are_taken_are_refused_until_they_are_free() {
    let rig = widgets().await;
    let mut rival = definition("gadgets", "Widget", &[version("v1", true)]);
    rival["spec"]["names"]["singular"] = json!("gadget");
    let object = define(&rig, &rival, "NamesAccepted").await;
    assert_eq!(condition(&object, "NamesAccepted").as_deref(), Some("False ListKindConflict"));
    assert_eq!(condition(&object, "Established").as_deref(), Some("False NotAccepted"));
    rig.get("/apis/example.com/v1/namespaces/default/gadgets").await.expect(404);
    rig.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    until(&rig, "gadgets.example.com", |object| {
        condition(object, "Established").as_deref() == Some("True InitialNamesAccepted")
    })
    .await;
    rig.get("/apis/example.com/v1/namespaces/default/gadgets").await.expect(200);
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along() {
    let rig = widgets().await;
    rig.post(WIDGETS, &widget("a")).await.expect(201);
    let mut held = widget("b");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    rig.post(WIDGETS, &held).await.expect(201);
    let deleted = rig.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    assert_eq!(deleted["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    until(&rig, "widgets.example.com", |object| {
        condition(object, "Terminating").as_deref() == Some("True InstanceDeletionInProgress")
    })
    .await;
    let mut watch = rig.watch(&format!("{WIDGETS}?watch=1&fieldSelector=metadata.name%3Db")).await;
    while !watch.next().await.is_some_and(|event| event["object"]["metadata"]["deletionTimestamp"].is_string()) {}
    let refused = rig.post(WIDGETS, &widget("c")).await;
    assert_eq!(
        (refused.code, refused.message()),
        (405, "create not allowed while custom resource definition is terminating")
    );
    let mut gone = rig.watch(&format!("{DEFINITIONS}?watch=1&resourceVersion={}", rig.store.current())).await;
    rig.patch(&format!("{WIDGETS}/b"), MERGE, &json!({ "metadata": { "finalizers": null } })).await.expect(200);
    while gone.next().await.is_some_and(|event| event["type"] != "DELETED") {}
    assert_eq!(rig.store.count("/registry/example.com/widgets/"), 0);
}

#[tokio::test]
async fn versions_are_views_of_one_object() {
    let rig = Rig::new().await;
    let mut old = version("v1", true);
    old["deprecated"] = json!(true);
    define(&rig, &definition("widgets", "Widget", &[old.clone(), version("v2", false)]), "Established").await;
    rig.post(WIDGETS, &widget("a")).await.expect(201);
    let v2 = "/apis/example.com/v2/namespaces/default/widgets";
    let read = rig.get(&format!("{v2}/a")).await.expect(200);
    assert_eq!((&read["apiVersion"], &read["spec"]["size"]), (&json!("example.com/v2"), &json!(3)));
    let list = rig.get(WIDGETS).await;
    assert_eq!(list.warnings(), [r#"299 - "example.com/v1 Widget is deprecated; use example.com/v2 Widget""#]);
    let group = rig.get("/apis/example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v2");

    // The storage version changes; what was stored before is still answered in both.
    let path = format!("{DEFINITIONS}/widgets.example.com");
    old["storage"] = json!(false);
    let change = json!({ "spec": { "versions": [old, version("v2", true)] } });
    let changed = rig.patch(&path, MERGE, &change).await.expect(200);
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    rig.patch(&format!("{v2}/a"), MERGE, &json!({ "spec": { "size": 8 } })).await.expect(200);
    assert_eq!(rig.get(&format!("{WIDGETS}/a")).await.expect(200)["spec"]["size"], 8);
    let one = json!({ "spec": { "versions": [version("v2", true)] } });
    let refused = rig.patch(&path, MERGE, &one).await;
    assert!(refused.message().contains("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions"));
}

#[tokio::test]
async fn a_default_that_comes_later_is_read_back() {
    let rig = widgets().await;
    rig.post(WIDGETS, &widget("a")).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let mut object = rig.get(&path).await.expect(200);
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let properties = object.pointer_mut(schema).and_then(Value::as_object_mut).expect("a schema");
    properties.insert("added".to_owned(), json!({ "type": "string", "default": "later" }));
    properties.remove("color");
    object["spec"]["versions"][0]["selectableFields"] = json!([]);
    rig.put(&path, &object).await.expect(200);
    let mut tries = 0;
    let read = loop {
        let read = rig.get(&format!("{WIDGETS}/a")).await.expect(200);
        if read["spec"].get("added").is_some() || tries == 1000 {
            break read;
        }
        tries += 1;
        tokio::task::yield_now().await;
    };
    assert_eq!(read["spec"], json!({ "size": 3, "added": "later" }));
    let list = rig.get(WIDGETS).await.expect(200);
    assert_eq!(list["items"][0]["spec"], json!({ "size": 3, "added": "later" }));
}

#[tokio::test]
async fn documents_follow_the_kinds() {
    let rig = Rig::new().await;
    let names = |groups: &Value| -> Vec<String> {
        let groups = groups["groups"].as_array().into_iter().flatten();
        groups.filter_map(|group| group["name"].as_str().map(str::to_owned)).collect()
    };
    assert!(!names(&rig.get("/apis").await.expect(200)).contains(&"example.com".to_owned()));
    define(&rig, &definition("widgets", "Widget", &[version("v1", true)]), "Established").await;
    assert!(names(&rig.get("/apis").await.expect(200)).contains(&"example.com".to_owned()));
    let resources = rig.get("/apis/example.com/v1").await.expect(200);
    let found: Vec<&str> =
        resources["resources"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(found, ["widgets", "widgets/scale", "widgets/status"]);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["wi"]));
    let aggregated = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let all = rig.send("GET", "/apis", &aggregated, "").await.expect(200);
    assert!(
        all["items"]
            .as_array()
            .is_some_and(|items| items.iter().any(|group| group["metadata"]["name"] == "example.com"))
    );

    let document = rig.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["minimum"], 1);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    let described = schema["properties"]["apiVersion"]["description"].as_str().expect("described");
    assert!(described.starts_with("APIVersion defines"), "{described}");
    let index = rig.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().expect("listed").to_owned();
    let v2 = rig.get("/openapi/v2").await.expect(200);
    assert!(v2["definitions"]["com.example.v1.Widget"]["properties"]["metadata"].is_object());
    let protobuf = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    assert_eq!(rig.send("GET", "/openapi/v2", &protobuf, "").await.code, 200);

    let path = format!("{DEFINITIONS}/widgets.example.com");
    let change = json!({ "spec": { "versions": [version("v1", true), version("v2", false)] } });
    rig.patch(&path, MERGE, &change).await.expect(200);
    let other = "/apis/example.com/v2/namespaces/default/widgets";
    while rig.get(other).await.code == 404 {
        tokio::task::yield_now().await;
    }
    let index = rig.get("/openapi/v3").await.expect(200);
    assert!(index["paths"].get("apis/example.com/v2").is_some());
    assert_eq!(index["paths"]["apis/example.com/v1"]["serverRelativeURL"], url, "what stays the same keeps its hash");
    rig.delete(&path).await.expect(200);
    while rig.get(WIDGETS).await.code != 404 {
        tokio::task::yield_now().await;
    }
    assert!(rig.get("/openapi/v3").await.expect(200)["paths"].get("apis/example.com/v1").is_none());
    assert!(rig.get("/openapi/v2").await.expect(200)["definitions"].get("com.example.v1.Widget").is_none());
}

#[tokio::test]
async fn what_keeps_unknown_fields_is_described_by_nothing_in_the_older_document() {
    let rig = Rig::new().await;
    let mut open = version("v1", true);
    let embedded = json!({ "type": "object", "x-kubernetes-embedded-resource": true, "properties": { "spec": { "type": "object" } } });
    open.as_object_mut()
        .expect("an object")
        .retain(|name, _| ["name", "served", "storage", "schema"].contains(&name.as_str()));
    open["schema"]["openAPIV3Schema"] = json!({
        "type": "object", "description": "Anything", "x-kubernetes-preserve-unknown-fields": true,
        "properties": { "template": embedded },
    });
    define(&rig, &definition("widgets", "Widget", &[open]), "Established").await;
    let v2 = rig.get("/openapi/v2").await.expect(200);
    let mut described = v2["definitions"]["com.example.v1.Widget"].clone();
    described.as_object_mut().expect("an object").remove("x-kubernetes-group-version-kind");
    assert_eq!(described, json!({ "type": "object" }));
    let v3 = rig.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    let template = &v3["components"]["schemas"]["com.example.v1.Widget"]["properties"]["template"];
    assert_eq!(template["required"], json!(["kind", "apiVersion"]));
    assert!(template["properties"]["metadata"]["description"].as_str().is_some(), "{template}");
}

#[tokio::test]
async fn definitions_that_are_not_structural_are_refused() {
    let rig = Rig::new().await;
    for (schema, part) in [
        (
            json!({ "type": "object", "properties": { "a": { "$ref": "#/definitions/b" } } }),
            "$ref: Forbidden: $ref is not supported",
        ),
        (json!({ "type": "object", "properties": { "a": {} } }), "must not be empty for specified object fields"),
        (
            json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "(" } } }),
            "must be a valid regular expression",
        ),
    ] {
        let mut wrong = version("v1", true);
        wrong["schema"]["openAPIV3Schema"] = schema;
        wrong["selectableFields"] = json!([]);
        let refused = rig.post(DEFINITIONS, &definition("widgets", "Widget", &[wrong])).await;
        assert!(refused.code == 422 && refused.message().contains(part), "{}", refused.message());
    }
}

/// A definition whose spec has these rules.
fn with_rules(rules: &Value) -> Value {
    let mut ruled = version("v1", true);
    ruled["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = rules.clone();
    definition("widgets", "Widget", &[ruled])
}

const UNCHECKED: &str = ", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
     correct the existing errors to complete validation]";

#[tokio::test]
async fn rules_hold_and_say_why_not() {
    let rig = Rig::new().await;
    let rules = json!([
        { "rule": "self.size < 10", "message": "size must be small", "fieldPath": ".size" },
        { "rule": "!has(self.replicas) || self.replicas <= self.size",
          "messageExpression": "'at most as many as a ' + self.color + ' one has'", "reason": "FieldValueForbidden" },
        { "rule": "self.size >= oldSelf.size", "message": "size never shrinks" },
    ]);
    define(&rig, &with_rules(&rules), "Established").await;
    let path = format!("{WIDGETS}/a");
    rig.post(WIDGETS, &widget("a")).await.expect(201);
    let mut wrong = widget("b");
    wrong["spec"] = json!({ "size": 12, "replicas": 13 });
    let refused = rig.post(WIDGETS, &wrong).await;
    assert_eq!(
        refused.message(),
        "Widget.example.com \"b\" is invalid: [spec.size: Invalid value: size must be small, spec: Forbidden: at most as many as a red one has]"
    );
    assert_eq!(refused.code, 422);
    // What the schema finds is told with what the rules find, unless they cannot be run on it.
    wrong["spec"] = json!({ "size": 12, "color": 1 });
    let refused = rig.post(WIDGETS, &wrong).await;
    assert!(refused.message().ends_with(UNCHECKED), "{}", refused.message());
    rig.patch(&path, MERGE, &json!({ "spec": { "size": 5 } })).await.expect(200);
    let shrunk = rig.patch(&path, MERGE, &json!({ "spec": { "size": 4 } })).await;
    assert_eq!(shrunk.message(), "Widget.example.com \"a\" is invalid: spec: Invalid value: size never shrinks");

    // A rule that comes later warns as long as what it is about stays as it was.
    let mut object = rig.get(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations";
    let added = json!({ "rule": "self.color == 'blue'", "message": "blue only" });
    object.pointer_mut(spec).and_then(Value::as_array_mut).expect("rules").push(added);
    rig.put(&format!("{DEFINITIONS}/widgets.example.com"), &object).await.expect(200);
    let warned = loop {
        let patched = rig.patch(&path, MERGE, &json!({ "metadata": { "labels": { "a": "b" } } })).await;
        if !patched.warnings().is_empty() {
            break patched;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(warned.warnings(), [r#"299 - "spec: Invalid value: blue only""#]);
    warned.expect(200);
    rig.patch(&path, MERGE, &json!({ "spec": { "size": 6 } })).await.expect(422);
}

#[tokio::test]
async fn rules_that_do_not_compile_or_cost_too_much_are_refused() {
    let rig = Rig::new().await;
    for (rule, part) in [
        (
            "self.nothing > 1",
            "x-kubernetes-validations[0].rule: Invalid value: {\"rule\":\"self.nothing > 1\"}: compilation failed: ERROR: <input>:1:5: undefined field 'nothing'",
        ),
        ("self.size", "cel expression must evaluate to a bool"),
        (
            "self.parts.all(x, self.parts.all(y, x.name == y.name))",
            "Forbidden: estimated rule cost exceeds budget by factor of more than 100x",
        ),
    ] {
        let refused = rig.post(DEFINITIONS, &with_rules(&json!([{ "rule": rule }]))).await;
        assert!(refused.code == 422 && refused.message().contains(part), "{}", refused.message());
    }
}
