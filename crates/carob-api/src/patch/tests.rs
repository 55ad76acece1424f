use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema;

fn patched(doc: &Value, patch: &Value) -> Result<Value, String> {
    let mut doc = doc.clone();
    json_patch(&mut doc, patch).map(|()| doc).map_err(|e| e.to_string())
}

#[test]
fn json_patch_operations() {
    let doc = json!({"a": {"b": [1, 2, 3]}, "c~d": 1, "e/f": 2, "n": null});
    for (patch, expect) in [
        (
            json!([{"op": "add", "path": "/x", "value": 1}]),
            json!({"a": {"b": [1, 2, 3]}, "c~d": 1, "e/f": 2, "n": null, "x": 1}),
        ),
        (
            json!([{"op": "add", "path": "/a/b/1", "value": 9}, {"op": "remove", "path": "/a/b/0"}]),
            json!({"a": {"b": [9, 2, 3]}, "c~d": 1, "e/f": 2, "n": null}),
        ),
        (
            json!([{"op": "add", "path": "/a/b/-", "value": 4}]),
            json!({"a": {"b": [1, 2, 3, 4]}, "c~d": 1, "e/f": 2, "n": null}),
        ),
        (
            json!([{"op": "replace", "path": "/c~0d", "value": 5}, {"op": "remove", "path": "/e~1f"}]),
            json!({"a": {"b": [1, 2, 3]}, "c~d": 5, "n": null}),
        ),
        (
            json!([{"op": "move", "from": "/a/b", "path": "/m"}]),
            json!({"a": {}, "c~d": 1, "e/f": 2, "n": null, "m": [1, 2, 3]}),
        ),
        (
            json!([{"op": "copy", "from": "/a/b/2", "path": "/a/b/0"}]),
            json!({"a": {"b": [3, 1, 2, 3]}, "c~d": 1, "e/f": 2, "n": null}),
        ),
        (
            json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "test", "path": "/missing", "value": null}]),
            doc.clone(),
        ),
        (json!([{"op": "replace", "path": "", "value": {"z": 1}}]), json!({"z": 1})),
        // What the library takes beyond the RFC.
        (
            json!([{"op": "replace", "path": "/x", "value": 1}, {"op": "add", "path": "/y"}, {"op": "copy", "from": "/no", "path": "/z"}]),
            json!({"a": {"b": [1, 2, 3]}, "c~d": 1, "e/f": 2, "n": null, "x": 1, "y": null, "z": null}),
        ),
        (
            json!([{"op": "add", "path": "/a/b/-1", "value": 4}, {"op": "replace", "path": "/a/b/-2", "value": 9},
                {"op": "remove", "path": "/a/b/-4"}, {"op": "test", "path": "/a/b/+0", "value": 2}]),
            json!({"a": {"b": [2, 9, 4]}, "c~d": 1, "e/f": 2, "n": null}),
        ),
    ] {
        assert_eq!(patched(&doc, &patch), Ok(expect), "{patch}");
    }
}

#[test]
fn json_patch_refusals() {
    let doc = json!({"a": [1], "s": "x"});
    for (patch, expect) in [
        (json!({}), "cannot unmarshal object"),
        (json!([1]), "json: cannot unmarshal number into Go value of type"),
        (json!([{"op": 1}]), "cannot unmarshal number into Go struct field jsonPatchOp.op of type string"),
        (
            json!([{"op": "remove", "path": "/x"}]),
            "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
        ),
        (
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            r#"add operation does not apply: doc is missing path: "/x/y": missing value"#,
        ),
        (json!([{"op": "add", "path": "", "value": {}}]), r#"doc is missing path: "": missing value"#),
        (
            json!([{"op": "add", "path": "/a/5", "value": 1}]),
            "error in add for path: '/a/5': Unable to access invalid index: 5: invalid index referenced",
        ),
        (json!([{"op": "add", "path": "/a/-3", "value": 1}]), "Unable to access invalid index: -3"),
        (
            json!([{"op": "add", "path": "/a/x", "value": 1}]),
            r#"value was not a proper array index: 'x': strconv.Atoi: parsing "x": invalid syntax"#,
        ),
        (
            json!([{"op": "replace", "path": "/a/5", "value": 1}]),
            "replace operation does not apply: doc is missing key: /a/5: missing value",
        ),
        (json!([{"op": "replace", "path": "", "value": 1}]), "replace operation value must be object or array"),
        (json!([{"op": "test", "path": "/a/0", "value": 2}]), "testing value /a/0 failed: test failed"),
        (json!([{"op": "test", "path": "/a/0"}]), "testing value /a/0 failed: test failed"),
        (json!([{"op": "jump", "path": "/a"}]), "Unexpected kind: jump"),
        (json!([{"op": "add", "path": "/s/t", "value": 1}]), "doc is missing path"),
        (json!([{"op": "add"}]), "add operation failed to decode path: missing value"),
        (json!([{"op": "test"}]), "test operation failed to decode path: operation missing path field: missing value"),
        (json!([{"op": "move", "path": "/a"}]), "move operation failed to decode from: operation, missing from field"),
        (
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
            "move operation does not apply: doc is missing destination path: /a/0: missing value",
        ),
        (json!([{"path": "/a"}, null]), "Unexpected kind: unknown"),
        (json!([null]), "Unexpected kind: unknown"),
        (
            json!([{"op": "copy", "from": "/z/0", "path": "/y"}]),
            "copy operation does not apply: doc is missing from path: /z/0",
        ),
    ] {
        let error = patched(&doc, &patch).expect_err(&patch.to_string());
        assert!(error.contains(expect), "{patch}: {error}");
    }
    let many: Vec<Value> =
        (0..=JSON_PATCH_OPERATIONS_MAX).map(|_| json!({"op": "test", "path": "/s", "value": "x"})).collect();
    let error = json_patch(&mut doc.clone(), &Value::Array(many)).expect_err("too many");
    assert_eq!(error.to_status().code, 413);
    let big = json!({"big": "x".repeat(1024 * 1024)});
    let copies: Vec<Value> = (0..4).map(|i| json!({"op": "copy", "from": "/big", "path": format!("/c{i}")})).collect();
    let error = patched(&big, &Value::Array(copies)).expect_err("copies too much");
    assert!(error.contains("accumulated size increase"), "{error}");
}

/// Each copy puts a value into itself and so doubles its depth: a hundred kilobytes would make a value that overflows the
/// stack of whatever walks it.
#[test]
fn a_json_patch_makes_nothing_that_is_too_deep() {
    let list = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let inside = "/0".repeat(60);
    for operations in [
        json!([{"op": "add", "path": "/x", "value": list}, {"op": "copy", "from": "/x", "path": format!("/x{inside}")}]),
        json!([{"op": "add", "path": "/x", "value": list}, {"op": "add", "path": "/y", "value": list},
            {"op": "move", "from": "/x", "path": format!("/y{inside}")}]),
        json!([{"op": "add", "path": "/x", "value": list}, {"op": "replace", "path": format!("/x{inside}"), "value": list}]),
    ] {
        let error = patched(&json!({}), &operations).expect_err("too deep");
        assert_eq!(error, "exceeded max depth of 120");
    }
}

#[test]
fn a_json_patch_has_a_bound_on_its_work() {
    let doc = json!({"x": vec![0; 300_000]});
    let inserts: Vec<Value> = (0..1000).map(|_| json!({"op": "add", "path": "/x/0", "value": 0})).collect();
    let error = json_patch(&mut doc.clone(), &Value::Array(inserts)).expect_err("moves three hundred million items");
    assert_eq!((error.to_status().code, error), (413, PatchError::TooMuchWork { max: JSON_PATCH_STEPS_MAX }));
    let wide = json!({"x": {"y": vec![0; 300_000]}});
    let moves = (0..500).flat_map(|_| [("/x", "/z"), ("/z", "/x")]);
    let moves: Vec<Value> = moves.map(|(from, path)| json!({"op": "move", "from": from, "path": path})).collect();
    let error = json_patch(&mut wide.clone(), &Value::Array(moves)).expect_err("measures as many");
    assert_eq!(error, PatchError::TooMuchWork { max: JSON_PATCH_STEPS_MAX });
}

#[test]
fn members_of_operations_that_mean_nothing_are_told() {
    let patch = json!([{"op": "test", "path": "/s", "value": "x"}, {"op": "test", "why": 1}]);
    assert_eq!(json_patch_problems(&patch), ["json patch unknown field \"[1].why\""]);
}

#[test]
fn merge_patch_follows_rfc_7386() {
    // The cases of the RFC's appendix A that have an object for a patch.
    for (doc, patch, expect) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        let mut actual = doc.clone();
        merge_patch(&mut actual, &patch).expect("an object");
        assert_eq!(actual, expect, "{doc} + {patch}");
    }
    assert_eq!(merge_patch(&mut json!({}), &json!([])).map_err(|e| e.to_status().code), Err(400));
}

#[test]
fn a_merge_patch_leaves_no_nulls_in_new_objects_of_lists() {
    for (doc, patch, expect) in [
        (json!({}), json!({"a": [{"b": null, "c": 1}, null]}), json!({"a": [{"c": 1}, null]})),
        (json!({"a": [1]}), json!({"a": [{"b": null}]}), json!({"a": [{}]})),
        (json!({"a": "x"}), json!({"a": {"b": {"c": null}}}), json!({"a": {"b": {}}})),
        (json!({"a": {"x": 1}}), json!({"a": [{"b": null}]}), json!({"a": [{"b": null}]})),
    ] {
        let mut actual = doc.clone();
        merge_patch(&mut actual, &patch).expect("an object");
        assert_eq!(actual, expect, "{doc} + {patch}");
    }
}

fn strategic(kind: &str, doc: &Value, patch: &Value) -> Result<Value, String> {
    let ty = schema::builtin().get(kind).expect("a type of the table");
    let mut doc = doc.clone();
    strategic_merge(ty, &mut doc, patch).map(|()| doc).map_err(|e| e.to_string())
}

#[test]
fn strategic_merge_of_lists() {
    let pod = json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y", "ports": [{"containerPort": 80}]}], "nodeName": "n"}});
    for (patch, expect) in [
        (
            json!({"spec": {"containers": [{"name": "b", "image": "z"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "z", "ports": [{"containerPort": 80}]}], "nodeName": "n"}}),
        ),
        (
            json!({"spec": {"containers": [{"name": "c", "image": "z", "env": null}]}}),
            json!({"spec": {"containers": [{"name": "c", "image": "z"}, {"name": "a", "image": "x"}, {"name": "b", "image": "y", "ports": [{"containerPort": 80}]}], "nodeName": "n"}}),
        ),
        (
            json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}),
            json!({"spec": {"containers": [{"name": "b", "image": "y", "ports": [{"containerPort": 80}]}], "nodeName": "n"}}),
        ),
        (
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c", "image": "z"}]}}),
            json!({"spec": {"containers": [{"name": "c", "image": "z"}], "nodeName": "n"}}),
        ),
        (json!({"spec": {"$patch": "replace", "nodeName": "m"}}), json!({"spec": {"nodeName": "m"}})),
        (json!({"spec": {"$patch": "delete"}}), json!({"spec": {}})),
        (
            json!({"spec": {"nodeName": null, "missing": null}}),
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y", "ports": [{"containerPort": 80}]}]}}),
        ),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            json!({"spec": {"containers": [{"name": "b", "image": "y", "ports": [{"containerPort": 80}]}, {"name": "a", "image": "x"}], "nodeName": "n"}}),
        ),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "image": "z"}]}}),
            json!({"spec": {"containers": [{"name": "c", "image": "z"}, {"name": "a", "image": "x"}, {"name": "b", "image": "y", "ports": [{"containerPort": 80}]}], "nodeName": "n"}}),
        ),
        (
            json!({"spec": {"containers": [{"name": "b", "args": ["1"]}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y", "args": ["1"], "ports": [{"containerPort": 80}]}], "nodeName": "n"}}),
        ),
    ] {
        assert_eq!(strategic("core.v1.Pod", &pod, &patch), Ok(expect), "{patch}");
    }
    // Atomic for strategic merge: replaced.
    let tolerations = json!({"spec": {"tolerations": [{"key": "a"}]}});
    let patch = json!({"spec": {"tolerations": [{"key": "b"}]}});
    assert_eq!(strategic("core.v1.Pod", &tolerations, &patch), Ok(patch.clone()));
}

#[test]
fn strategic_merge_of_primitive_lists() {
    let doc = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    for (patch, expect) in [
        (json!({"metadata": {"finalizers": ["d", "a"]}}), json!(["d", "a", "b", "c"])),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}}), json!(["a", "c"])),
        (
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "a"], "$deleteFromPrimitiveList/finalizers": ["b"]}}),
            json!(["c", "a"]),
        ),
        (
            json!({"metadata": {"$setElementOrder/finalizers": ["d", "c", "a"], "finalizers": ["d"]}}),
            // `b` is not in the order: it stays before what followed it.
            json!(["d", "b", "c", "a"]),
        ),
    ] {
        let actual = strategic("core.v1.Pod", &doc, &patch).map(|v| v["metadata"]["finalizers"].clone());
        assert_eq!(actual, Ok(expect), "{patch}");
    }
}

#[test]
fn strategic_merge_retains_keys() {
    let doc = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(strategic("apps.v1.Deployment", &doc, &patch), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
    let stray = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    assert_eq!(strategic("apps.v1.Deployment", &doc, &stray), Err("invalid patch format of retainKeys".to_owned()));
}

#[test]
fn strategic_merge_refusals() {
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    for (patch, expect) in [
        (json!({"spec": {"containers": [{"image": "x"}]}}), "does not contain declared merge key: name"),
        (json!({"$patch": "twist"}), "unknown patch type: twist in map"),
        (json!({"spec": {"$patch": "merge"}}), "unknown patch type: merge in map"),
        (json!({"spec": {"containers": [{"$patch": "merge", "name": "a"}]}}), "merging lists cannot yet be specified"),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}}),
            "doesn't match $setElementOrder list",
        ),
        (json!([]), "must be an object"),
    ] {
        let error = strategic("core.v1.Pod", &pod, &patch).expect_err(&patch.to_string());
        assert!(error.contains(expect), "{patch}: {error}");
    }
}

/// The merge patch that turns `from` into `to`, for trees without nulls.
fn diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let removed = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(value)).map(|(key, value)| {
        let from = from.get(key).unwrap_or(&Value::Null);
        (key.clone(), diff(from, value))
    });
    removed.chain(changed).collect::<serde_json::Map<_, _>>().into()
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0..9_i32).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from)
    ];
    let inner = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    });
    proptest::collection::btree_map("[a-d]", inner, 0..4)
        .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into())
}

fn containers() -> impl Strategy<Value = Vec<(String, String)>> {
    proptest::collection::btree_map("[a-e]", "[x-z]", 0..5)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

fn pod_of(containers: &[(String, String)]) -> Value {
    let containers: Vec<Value> = containers.iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
    json!({"spec": {"containers": containers}})
}

proptest! {
    #[test]
    fn merging_a_diff_gives_the_target(from in tree(), to in tree()) {
        let mut doc = from.clone();
        merge_patch(&mut doc, &diff(&from, &to)).expect("a diff of objects is an object");
        prop_assert_eq!(doc, to);
    }

    /// The patch that kubectl makes of two lists: deletions, changed items, and the whole new order.
    #[test]
    fn strategic_diff_of_containers_gives_the_target(from in containers(), to in containers()) {
        let order: Vec<Value> = to.iter().map(|(name, _)| json!({"name": name})).collect();
        let deleted = from.iter().filter(|(name, _)| !to.iter().any(|(n, _)| n == name));
        let mut items: Vec<Value> = to.iter().filter(|c| !from.contains(c)).map(|(name, image)| json!({"name": name, "image": image})).collect();
        items.extend(deleted.map(|(name, _)| json!({"$patch": "delete", "name": name})));
        let patch = json!({"spec": {"$setElementOrder/containers": order, "containers": items}});
        prop_assert_eq!(strategic("core.v1.Pod", &pod_of(&from), &patch), Ok(pod_of(&to)));
    }

    #[test]
    fn any_patch_is_refused_or_applied(doc in tree(), patch in tree()) {
        let ty = schema::builtin().get("core.v1.Pod").expect("a type of the table");
        let mut target = doc.clone();
        if strategic_merge(ty, &mut target, &patch).is_ok() {
            prop_assert!(target.is_object());
        }
        let mut target = doc.clone();
        let operations = json!([{"op": "add", "path": "/a/b", "value": patch}]);
        prop_assert_eq!(json_patch(&mut target, &operations).is_ok(), doc.pointer("/a").is_some_and(|a| a.is_object()));
    }
}
