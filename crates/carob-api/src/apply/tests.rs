use proptest::prelude::*;

use super::*;
use crate::schema::builtin;

const T1: &str = "2026-01-02T03:04:05Z";
const T2: &str = "2026-01-02T03:05:05Z";

fn deployment() -> TypeRef<'static> {
    builtin().get("apps.v1.Deployment").expect("a type of the table")
}

fn writer<'a>(manager: &'a str, time: &str) -> Writer<'a> {
    Writer { manager, api_version: "apps/v1", subresource: "", now: time.parse().expect("a time") }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn applied(live: Option<&Value>, spec: Value, manager: &str, time: &str) -> Value {
    apply(deployment(), live, &config(spec), &writer(manager, time), false).unwrap_or_else(|e| panic!("{e}"))
}

fn fields_of<'a>(obj: &'a Value, manager: &str) -> &'a Value {
    let entry = meta::items_at(obj, &["metadata", "managedFields"]).iter().find(|e| e["manager"] == manager);
    entry.map_or(&Value::Null, |entry| &entry["fieldsV1"])
}

fn template(containers: Value) -> Value {
    json!({"template": {"spec": {"containers": containers}}})
}

#[test]
fn an_apply_owns_what_it_says() {
    let object = applied(
        None,
        json!({"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x", "args": ["1"], "ports": [{"containerPort": 80}]}]}}}),
        "me",
        T1,
    );
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": T1, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:template": {
                    "f:metadata": {"f:labels": {"f:a": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:args": {}, "f:image": {}, "f:name": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}},
                },
            }},
        }])
    );
    // The same again, later: nothing changes, not even the time.
    assert_eq!(applied(Some(&object), object_spec(&object), "me", T2), object);
}

fn object_spec(object: &Value) -> Value {
    object["spec"].clone()
}

#[test]
fn what_is_applied_no_longer_goes() {
    let both = applied(
        None,
        template(
            json!([{"name": "a", "image": "x", "resources": {"limits": {"cpu": "1"}}}, {"name": "b", "image": "y"}]),
        ),
        "me",
        T1,
    );
    let one = applied(Some(&both), template(json!([{"name": "a", "image": "x"}])), "me", T2);
    assert_eq!(one["spec"], template(json!([{"name": "a", "image": "x"}])));
    assert_eq!(one["metadata"]["managedFields"][0]["time"], T2);
}

#[test]
fn what_another_owns_stays() {
    let live = applied(None, template(json!([{"name": "a", "image": "x", "tty": true}])), "me", T1);
    let shared = applied(Some(&live), template(json!([{"name": "a", "image": "x", "workingDir": "/w"}])), "you", T1);
    let left = applied(Some(&shared), json!({"replicas": 1}), "me", T2);
    assert_eq!(
        left["spec"]["template"],
        json!({"spec": {"containers": [{"name": "a", "image": "x", "workingDir": "/w"}]}})
    );
    assert_eq!(left["spec"]["replicas"], 1);
    assert_eq!(fields_of(&left, "me"), &json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn conflicts_are_upstreams() {
    let mut live = applied(None, json!({"replicas": 1, "paused": true}), "ci", T1);
    let conflict = |live: &Value, spec: Value| {
        apply(deployment(), Some(live), &config(spec), &writer("me", T2), false).expect_err("conflicts")
    };
    let status = conflict(&live, json!({"replicas": 2}));
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"ci\": .spec.replicas");
    let cause = &status.details.as_ref().expect("details").causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".spec.replicas"));

    let old = live.clone();
    live["spec"]["minReadySeconds"] = json!(5);
    live["spec"]["template"] = json!({"spec": {"containers": [{"name": "c", "image": "x"}]}});
    track_update(deployment(), Some(&old), &mut live, &writer("kubectl", T1)).expect("tracked");
    let status = conflict(
        &live,
        json!({"minReadySeconds": 6, "replicas": 3, "template": {"spec": {"containers": [{"name": "c", "image": "y"}]}}}),
    );
    assert_eq!(
        status.message,
        format!(
            "Apply failed with 3 conflicts: conflicts with \"ci\":\n- .spec.replicas\n\
             conflicts with \"kubectl\" using apps/v1 at {T1}:\n- .spec.minReadySeconds\n- .spec.template.spec.containers[name=\"c\"].image"
        )
    );
    // The same value is no conflict but owned by both.
    let shared = applied(Some(&live), json!({"replicas": 1}), "me", T2);
    assert_eq!(fields_of(&shared, "me"), &json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(fields_of(&shared, "ci")["f:spec"]["f:replicas"], json!({}));

    let forced =
        apply(deployment(), Some(&live), &config(json!({"replicas": 2})), &writer("me", T2), true).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(fields_of(&forced, "ci"), &json!({"f:spec": {"f:paused": {}}}));
}

#[test]
fn updates_take_fields_over() {
    let live = applied(None, json!({"replicas": 1, "paused": true}), "ci", T1);
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(2);
    new["spec"].as_object_mut().expect("an object").remove("paused");
    new["metadata"]["labels"] = json!({"a": "b"});
    new["metadata"]["resourceVersion"] = json!("7");
    track_update(deployment(), Some(&live), &mut new, &writer("kubectl-edit", T2)).expect("tracked");
    assert_eq!(fields_of(&new, "ci"), &Value::Null);
    assert_eq!(
        fields_of(&new, "kubectl-edit"),
        &json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:replicas": {}}})
    );
    // A write that changes nothing changes no bookkeeping.
    let mut same = new.clone();
    track_update(deployment(), Some(&new), &mut same, &writer("other", T2)).expect("tracked");
    assert_eq!(same, new);
    let mut reset = new.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(deployment(), Some(&new), &mut reset, &writer("other", T2)).expect("tracked");
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn a_created_object_belongs_to_its_creator() {
    let mut new = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"run": "p"}, "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "x"}], "dnsPolicy": "ClusterFirst"}, "status": {"phase": "Pending"}});
    let pod = builtin().get("core.v1.Pod").expect("a type of the table");
    let writer = Writer { api_version: "v1", ..writer("kubectl-run", T1) };
    track_update(pod, None, &mut new, &writer).expect("tracked");
    assert_eq!(
        fields_of(&new, "kubectl-run"),
        &json!({"f:metadata": {"f:labels": {".": {}, "f:run": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}, "f:dnsPolicy": {}}})
    );
    let old = new.clone();
    new["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    track_update(pod, Some(&old), &mut new, &Writer { subresource: "status", manager: "kubelet", ..writer })
        .expect("tracked");
    let entry = &new["metadata"]["managedFields"][1];
    assert_eq!((&entry["manager"], &entry["subresource"]), (&json!("kubelet"), &json!("status")));
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:phase": {}, "f:conditions": {".": {}, "k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
}

#[test]
fn a_configuration_may_not_bring_its_own_bookkeeping() {
    let mut config = config(json!({}));
    config["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let status = apply(deployment(), None, &config, &writer("me", T1), false).expect_err("refused");
    assert_eq!((status.code, status.message.as_str()), (400, "metadata.managedFields must be nil"));
}

#[test]
fn lists_merge_by_their_type() {
    let live = json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"template": {"spec": {
        "containers": [{"name": "x"}, {"name": "y"}], "tolerations": [{"key": "k"}]}}}});
    let config = json!({"metadata": {"finalizers": ["c", "a"]}, "spec": {"template": {"spec": {
        "containers": [{"name": "z"}, {"name": "y", "image": "i"}], "tolerations": [{"key": "l"}]}}}});
    let merged = apply(deployment(), Some(&live), &config, &writer("me", T1), false).expect("no conflict");
    assert_eq!(merged["metadata"]["finalizers"], json!(["c", "a", "b"]));
    let spec = &merged["spec"]["template"]["spec"];
    assert_eq!(spec["containers"], json!([{"name": "z"}, {"name": "x"}, {"name": "y", "image": "i"}]));
    assert_eq!(spec["tolerations"], json!([{"key": "l"}]));
}

#[test]
fn without_a_schema_lists_are_owned_as_a_whole() {
    let object =
        apply(None, None, &json!({"spec": {"list": [{"a": 1}], "map": {"k": {"x": 1}}}}), &writer("me", T1), false)
            .expect("applied");
    assert_eq!(fields_of(&object, "me"), &json!({"f:spec": {"f:list": {}, "f:map": {"f:k": {"f:x": {}}}}}));
}

#[test]
fn the_number_of_managers_is_bounded() {
    let mut object = json!({"metadata": {"name": "d"}, "spec": {}});
    for index in 0..15 {
        let old = object.clone();
        object["metadata"]["annotations"][format!("k{index:02}")] = json!("v");
        let name = format!("m{index:02}");
        let time = format!("2026-01-02T03:04:{index:02}Z");
        track_update(deployment(), Some(&old), &mut object, &writer(&name, &time)).expect("tracked");
    }
    let entries = meta::items_at(&object, &["metadata", "managedFields"]);
    assert_eq!(entries.len(), 10);
    let ancient =
        fields_of(&object, "ancient-changes")["f:metadata"]["f:annotations"].as_object().expect("fields").len();
    // The map itself and the first six annotations.
    assert_eq!(ancient, 7);
}

proptest! {
    /// Applying A, then B, as one manager leaves what applying B alone leaves.
    #[test]
    fn the_last_configuration_counts(a in spec(), b in spec()) {
        let twice = applied(Some(&applied(None, a, "me", T1)), b.clone(), "me", T2);
        let once = applied(None, b, "me", T2);
        prop_assert_eq!(sorted(&twice["spec"]), sorted(&once["spec"]));
        prop_assert_eq!(fields_of(&twice, "me"), fields_of(&once, "me"));
    }

    #[test]
    fn field_sets_obey_set_algebra(a in spec(), b in spec()) {
        let (a, b) = (typed::set_of(root(Some(deployment())), &config(a)), typed::set_of(root(Some(deployment())), &config(b)));
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        let mut union = a.difference(&b);
        union.extend(&a.intersection(&b));
        prop_assert_eq!(union.paths(), a.paths());
        prop_assert_eq!(FieldSet::from_json(&a.to_json()).paths(), a.paths());
    }
}

/// Containers sorted by name: their order is not what these tests are about.
fn sorted(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(items) = meta::at_mut(&mut spec, &["template", "spec", "containers"]).and_then(Value::as_array_mut) {
        items.sort_by_key(|item| item["name"].as_str().map(str::to_owned));
    }
    spec
}

fn spec() -> impl Strategy<Value = Value> {
    let container = (proptest::option::of("[x-z]"), proptest::option::of(any::<bool>()));
    let containers = proptest::collection::btree_map("[a-c]", container, 1..4);
    let labels = proptest::collection::btree_map("[a-c]", "[x-z]", 0..3);
    (proptest::option::of(0..5_i32), containers, labels).prop_map(|(replicas, containers, labels)| {
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (image, tty))| {
                let mut container = json!({"name": name});
                if let Some(image) = image {
                    container["image"] = json!(image);
                }
                if let Some(tty) = tty {
                    container["tty"] = json!(tty);
                }
                container
            })
            .collect();
        let mut spec = json!({"template": {"spec": {"containers": containers}}});
        if !labels.is_empty() {
            spec["template"]["metadata"] = json!({"labels": labels});
        }
        if let Some(replicas) = replicas {
            spec["replicas"] = json!(replicas);
        }
        spec
    })
}
