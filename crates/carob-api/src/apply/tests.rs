use proptest::prelude::*;

use super::*;
use crate::schema::{CustomSchema, TypeRef, builtin};

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

/// A default that nobody owns goes with the struct that it was added to.
#[test]
fn defaults_go_with_what_they_were_added_to() {
    let rolling = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2}}, "replicas": 1});
    let mut live = applied(None, rolling, "me", T1);
    live["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = json!("25%");
    live["spec"]["paused"] = json!(true);
    let left = applied(Some(&live), json!({"strategy": {"type": "Recreate"}, "replicas": 1}), "me", T2);
    assert_eq!(left["spec"], json!({"strategy": {"type": "Recreate"}, "replicas": 1, "paused": true}));
    assert_eq!(left["metadata"]["name"], "d");
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
    let merged = apply(deployment(), Some(&live), &config, &writer("me", T1), true).expect("forced");
    assert_eq!(merged["metadata"]["finalizers"], json!(["c", "a", "b"]));
    let spec = &merged["spec"]["template"]["spec"];
    assert_eq!(spec["containers"], json!([{"name": "x"}, {"name": "z"}, {"name": "y", "image": "i"}]));
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
    let mut object = json!({"metadata": {"name": "d", "annotations": {}}, "spec": {}});
    for index in 0..15 {
        let old = (index > 0).then(|| object.clone());
        object["metadata"]["annotations"][format!("k{index:02}")] = json!("v");
        let name = format!("m{index:02}");
        let time = format!("2026-01-02T03:04:{index:02}Z");
        track_update(deployment(), old.as_ref(), &mut object, &writer(&name, &time)).expect("tracked");
    }
    let entries = meta::items_at(&object, &["metadata", "managedFields"]);
    assert_eq!(entries.len(), 10);
    let ancient =
        fields_of(&object, "ancient-changes")["f:metadata"]["f:annotations"].as_object().expect("fields").len();
    // The map itself and the first six annotations.
    assert_eq!(ancient, 7);
}

#[test]
fn the_order_of_lists_is_upstreams() {
    for (live, config, expect) in [
        ("a b c", "c x", "a b c x"),
        ("a b c", "x c", "a b x c"),
        ("a b c", "c a", "b c a"),
        ("a b c", "x y", "a b c x y"),
        ("a b c d", "d x b y", "a c d x b y"),
        ("", "b a", "b a"),
    ] {
        let list = |names: &str| -> Value {
            let items: Vec<Value> = names.split_whitespace().map(|name| json!({"name": name})).collect();
            template(json!(items))
        };
        let object = applied(None, list(live), "other", T1);
        let merged = applied(Some(&object), list(config), "me", T2);
        let items = meta::items_at(&merged, &["spec", "template", "spec", "containers"]);
        let names: Vec<&str> = items.iter().filter_map(|item| item["name"].as_str()).collect();
        assert_eq!(names.join(" "), expect, "{live} + {config}");
    }
}

#[test]
fn a_configuration_that_names_an_item_twice_is_refused() {
    let twice = template(json!([{"name": "Z"}, {"name": "a"}, {"name": "Z"}]));
    let status = apply(deployment(), None, &config(twice), &writer("me", T1), false).expect_err("refused");
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            500,
            "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.template.spec.containers: \
             duplicate entries for key [name=\"Z\"]"
        )
    );
    // A name is always written, so one that is absent is an empty one, which validation refuses.
    let nameless = applied(None, template(json!([{"image": "x"}])), "me", T1);
    assert!(fields_of(&nameless, "me").to_string().contains(r#"k:{\"name\":\"\"}"#), "{nameless}");
}

/// `kubectl apply --server-side` turns its client-side field manager into an applier by sending managedFields.
#[test]
fn bookkeeping_that_a_client_sends_is_taken_if_it_can_be_read() {
    let mut live = config(json!({"replicas": 1, "paused": true}));
    track_update(deployment(), None, &mut live, &writer("kubectl-client-side-apply", T1)).expect("tracked");
    let mut migrated = live.clone();
    migrated["metadata"]["managedFields"][0]["manager"] = json!("kubectl");
    migrated["metadata"]["managedFields"][0]["operation"] = json!("Apply");
    let sent = migrated.clone();
    track_update(deployment(), Some(&live), &mut migrated, &writer("kubectl", T2)).expect("tracked");
    assert_eq!(migrated["metadata"]["managedFields"], sent["metadata"]["managedFields"]);
    // What the migrated applier no longer says goes.
    let pruned = applied(Some(&migrated), json!({"replicas": 1}), "kubectl", T2);
    assert_eq!(pruned["spec"], json!({"replicas": 1}));
    for broken in [
        json!([{"manager": "x", "operation": "Sing", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": {}}]),
        json!([{"manager": "x", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": {"nonsense": {}}}]),
        json!([{"manager": "x", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {}}]),
        json!([]),
    ] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = broken;
        track_update(deployment(), Some(&live), &mut new, &writer("x", T2)).expect("tracked");
        assert_eq!(new, live);
    }
    let mut by_status = live.clone();
    by_status["metadata"]["managedFields"] = sent["metadata"]["managedFields"].clone();
    let status = Writer { subresource: "status", ..writer("x", T2) };
    track_update(deployment(), Some(&live), &mut by_status, &status).expect("tracked");
    assert_eq!(by_status, live);
}

#[test]
fn what_was_there_before_the_first_apply_has_an_owner() {
    let live = config(json!({"replicas": 1, "paused": true}));
    let status = apply(deployment(), Some(&live), &config(json!({"replicas": 2})), &writer("me", T1), false);
    assert!(status.expect_err("conflicts").message.contains("conflict with \"before-first-apply\" using apps/v1"));
    let merged = applied(Some(&live), json!({"replicas": 1}), "me", T1);
    assert_eq!(fields_of(&merged, "before-first-apply"), &json!({"f:spec": {"f:paused": {}, "f:replicas": {}}}));
    // An update leaves an object without bookkeeping as it is.
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(5);
    let given = new.clone();
    track_update(deployment(), Some(&live), &mut new, &writer("x", T2)).expect("tracked");
    assert_eq!(new, given);
}

#[test]
fn kubectl_may_change_what_it_applied_on_the_client_side() {
    let last = config(json!({"replicas": 1, "paused": true}));
    let mut live = last.clone();
    live["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()});
    track_update(deployment(), None, &mut live, &writer("kubectl-client-side-apply", T1)).expect("tracked");
    let apply_as = |live: &Value, manager: &str| {
        apply(deployment(), Some(live), &config(json!({"replicas": 2})), &writer(manager, T2), false)
    };
    assert_eq!(apply_as(&live, "kubectl").expect("its own")["spec"]["replicas"], 2);
    apply_as(&live, "me").expect_err("another manager's");
    live["spec"]["replicas"] = json!(7);
    apply_as(&live, "kubectl").expect_err("changed since");
}

/// Work that grows with the square of the items would take minutes here, and the tests' time-out would end it.
#[test]
fn ten_thousand_items_are_applied_in_bounded_work() {
    let items = |from: usize| -> Value {
        let items: Vec<Value> = (from..from + 10_000).map(|n| json!({"name": format!("c{n}"), "image": "x"})).collect();
        template(json!(items))
    };
    let first = applied(None, items(0), "me", T1);
    let second = applied(Some(&first), items(5000), "me", T2);
    let containers = meta::items_at(&second, &["spec", "template", "spec", "containers"]);
    assert_eq!(containers.len(), 10_000);
    assert_eq!(containers[9_999]["name"], "c14999");
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
        let (a, b) = (typed::set_of(typed::Node::root(deployment().into()), &config(a)), typed::set_of(typed::Node::root(deployment().into()), &config(b)));
        let mut union = a.clone();
        union.subtract(&b);
        prop_assert!(union.intersection(&b).is_empty());
        union.extend(&a.intersection(&b));
        prop_assert_eq!(union.paths(), a.paths());
        prop_assert_eq!(FieldSet::from_json(&a.to_json()).expect("what to_json writes").paths(), a.paths());
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

#[test]
fn structs_that_are_always_there_are_not_owned_themselves() {
    let mut object = config(
        json!({"selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "Recreate"}, "template": {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}], "securityContext": {"runAsUser": 1}}}}),
    );
    track_update(deployment(), None, &mut object, &writer("me", T1)).expect("tracked");
    // `resources` is a struct in a new item, which has no empty one to be compared with; `securityContext` is a pointer.
    assert_eq!(
        fields_of(&object, "me"),
        &json!({"f:spec": {
            "f:selector": {}, "f:strategy": {"f:type": {}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:resources": {".": {}, "f:limits": {".": {}, "f:cpu": {}}}}},
                    "f:securityContext": {".": {}, "f:runAsUser": {}},
                },
            },
        }})
    );
    let definition = builtin().get("apiextensions.v1.CustomResourceDefinition").expect("a type of the table");
    let mut object = json!({"spec": {"group": "g", "names": {"kind": "K", "plural": "ks"}}});
    track_update(definition, None, &mut object, &writer("me", T1)).expect("tracked");
    let names = &fields_of(&object, "me")["f:spec"]["f:names"];
    assert_eq!(names, &json!({"f:kind": {}, "f:plural": {}}));
}

#[test]
fn null_merges_nothing_into_a_container_that_holds_something() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "map": {"type": "object", "properties": {"a": {"type": "string"}}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "string"}}, "text": {"type": "string"},
    }}}});
    let definition = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}).to_string();
    let source = move || Some(Box::new(definition.clone()) as Box<dyn AsRef<[u8]>>);
    let custom = CustomSchema::new(std::sync::Arc::new(source), "v1", false);
    let live = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "d"},
        "spec": {"map": {"a": "x"}, "set": ["a"], "list": ["a"], "text": "x"}});
    let mut config = live.clone();
    config["spec"] = json!({"map": null, "set": null, "list": null, "text": null});
    let merged = apply(Schema::Custom(&custom), Some(&live), &config, &writer("me", T1), true).expect("applied");
    assert_eq!(merged["spec"], json!({"map": {"a": "x"}, "set": ["a"], "list": null, "text": null}));
    let mut empty = live.clone();
    empty["spec"] = json!({"map": {}});
    let merged = apply(Schema::Custom(&custom), Some(&empty), &config, &writer("me", T1), true).expect("applied");
    assert_eq!(merged["spec"]["map"], Value::Null);
}

#[test]
fn keys_of_items_are_written_as_go_writes_them() {
    let mut pod = json!({"spec": {"containers": [{"name": "a<b&c>"}]}});
    let ty = builtin().get("core.v1.Pod").expect("a type of the table");
    track_update(ty, None, &mut pod, &writer("me", T1)).expect("tracked");
    let containers = &fields_of(&pod, "me")["f:spec"]["f:containers"];
    assert_eq!(containers, &json!({"k:{\"name\":\"a\\u003cb\\u0026c\\u003e\"}": {".": {}, "f:name": {}}}));
}
