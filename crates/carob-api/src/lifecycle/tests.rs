use serde_json::json;

use super::*;

const NOW: &str = "2026-01-02T03:04:05Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn def(group: &str, plural: &str) -> &'static ResourceDef {
    kinds::all().find(|def| def.group() == group && def.plural() == plural).expect(plural)
}

fn creation() -> Creation<'static> {
    Creation { uid: "u1", now: now(), suffix: "bcdfg" }
}

fn created(def: &ResourceDef, namespace: &'static str, mut obj: Value) -> Result<Value, String> {
    prepare_create(def, &mut obj, namespace).map_err(|s| s.message)?;
    complete_create(def, &mut obj, &creation());
    validate_create(def, &obj).map_err(|s| s.message)?;
    check_unversioned(&obj).map_err(|s| s.message)?;
    Ok(obj)
}

#[test]
fn system_metadata_is_the_servers() {
    let given = json!({"metadata": {"name": "m", "uid": "mine", "creationTimestamp": "2020-01-01T00:00:00Z", "deletionTimestamp": "2020-01-01T00:00:00Z", "generation": 9, "selfLink": "x"}});
    let obj = created(def("", "configmaps"), "ns", given).expect("valid");
    assert_eq!(obj["metadata"], json!({"name": "m", "namespace": "ns", "uid": "u1", "creationTimestamp": NOW}));
    let cluster =
        created(def("", "namespaces"), "", json!({"metadata": {"name": "n", "namespace": "stray"}})).expect("valid");
    assert_eq!(cluster["metadata"].get("namespace"), None);
}

#[test]
fn names_are_generated_within_their_limit() {
    let long = "a".repeat(100);
    for (base, expect) in [("web-", "web-bcdfg".to_owned()), (long.as_str(), format!("{}bcdfg", "a".repeat(58)))] {
        let obj = created(def("", "configmaps"), "ns", json!({"metadata": {"generateName": base}}));
        match obj {
            Ok(obj) => assert_eq!(meta::name(&obj), expect),
            Err(message) => panic!("{base}: {message}"),
        }
    }
}

#[test]
fn metadata_mistakes_are_upstreams() {
    for (metadata, expect) in [
        (json!({}), "metadata.name: Required value: name or generateName is required"),
        (json!({"name": "A"}), "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain"),
        (
            json!({"name": "a", "namespace": "other"}),
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (json!({"name": "a", "resourceVersion": "3"}), "resourceVersion should not be set on objects to be created"),
        (json!({"name": "a", "labels": {"-": "b"}}), "metadata.labels: Invalid value: \"-\": name part must consist"),
        (
            json!({"name": "a", "labels": {"b": "-"}}),
            "metadata.labels: Invalid value: \"-\": a valid label must be an empty string",
        ),
        (
            json!({"name": "a", "annotations": {"x": "y".repeat(300_000)}}),
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
        (json!({"name": "a", "finalizers": ["a b"]}), "metadata.finalizers: Invalid value: \"a b\""),
        (
            json!({"name": "a", "ownerReferences": [{"kind": "K", "name": "n", "apiVersion": "v1"}]}),
            "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
        ),
        (
            json!({"name": "a", "ownerReferences": [
                {"kind": "K", "name": "n", "apiVersion": "v1", "uid": "1", "controller": true}, {"kind": "K", "name": "m", "apiVersion": "v1", "uid": "2", "controller": true}]}),
            "Only one reference can have Controller set to true. Found \"true\" in references for K/n and K/m",
        ),
    ] {
        let message = created(def("", "configmaps"), "ns", json!({"metadata": metadata})).expect_err(expect);
        assert!(message.contains(expect), "{message}");
    }
}

fn stored(def: &ResourceDef, obj: Value) -> Value {
    created(def, if def.namespaced { "ns" } else { "" }, obj).expect("valid")
}

#[test]
fn updates_keep_what_is_not_theirs() {
    let deployments = def("apps", "deployments");
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let mut old = stored(
        deployments,
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
    );
    assert_eq!(old["metadata"]["generation"], 1);
    assert_eq!(
        old["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    old["status"] = json!({"replicas": 1});

    let mut new = old.clone();
    new["spec"]["replicas"] = json!(5);
    new["status"] = json!({"replicas": 9});
    new["metadata"] = json!({"name": "d", "resourceVersion": "4", "generation": 77});
    prepare_update(deployments, Part::Main, &mut new, &old).expect("prepared");
    validate_update(deployments, Part::Main, &new, &old).expect("valid");
    assert_eq!(
        (&new["status"], &new["metadata"]["generation"], &new["metadata"]["uid"]),
        (&json!({"replicas": 1}), &json!(2), &json!("u1"))
    );

    let mut status = old.clone();
    status["status"] = json!({"replicas": 2});
    status["spec"] = json!({});
    prepare_update(deployments, Part::Status, &mut status, &old).expect("prepared");
    assert_eq!(
        (&status["spec"], &status["status"], &status["metadata"]["generation"]),
        (&old["spec"], &json!({"replicas": 2}), &json!(1))
    );

    let mut selector = old.clone();
    selector["spec"]["selector"] = json!({"matchLabels": {"a": "b", "c": "d"}});
    selector["spec"]["template"]["metadata"]["labels"] = json!({"a": "b", "c": "d"});
    prepare_update(deployments, Part::Main, &mut selector, &old).expect("prepared");
    let message = validate_update(deployments, Part::Main, &selector, &old).expect_err("immutable").message;
    assert!(
        message.contains("spec.selector: Invalid value: {") && message.ends_with("field is immutable"),
        "{message}"
    );
}

#[test]
fn a_write_of_the_status_changes_what_its_kind_lets_through_of_metadata() {
    const ALL: [&str; 4] = ["annotations", "finalizers", "labels", "ownerReferences"];
    // Kubernetes `pkg/registry`, `PrepareForUpdate` of the status strategies.
    let kinds: [(&str, &str, &[&str]); 8] = [
        ("apps", "deployments", &["annotations", "finalizers", "ownerReferences"]),
        ("apps", "replicasets", &ALL),
        ("batch", "jobs", &ALL),
        ("", "pods", &["annotations", "finalizers", "labels"]),
        ("", "nodes", &ALL),
        ("storage.k8s.io", "volumeattachments", &[]),
        ("flowcontrol.apiserver.k8s.io", "flowschemas", &[]),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies", &[]),
    ];
    for (group, plural, changed) in kinds {
        let def = def(group, plural);
        let metadata = |of: &str| {
            json!({
                "name": "n", "namespace": "d", "uid": "u1", "resourceVersion": "7",
                "annotations": {"of": of}, "labels": {"of": of}, "finalizers": [format!("of/{of}")],
                "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": of, "uid": of}],
            })
        };
        let old = json!({"metadata": metadata("old")});
        let mut new = json!({"metadata": metadata("new"), "status": {}});
        prepare_update(def, Part::Status, &mut new, &old).expect("prepared");
        let found = ALL.into_iter().filter(|field| new["metadata"][*field] != old["metadata"][*field]);
        assert_eq!(found.collect::<Vec<_>>(), changed, "{group}/{plural}");
    }
}

fn options(value: Value) -> DeleteOptions {
    DeleteOptions::from_json(&value).expect("valid options")
}

fn pod(extra: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
    for (key, value) in extra.as_object().cloned().unwrap_or_default() {
        pod["metadata"][key] = value;
    }
    pod
}

#[test]
fn a_running_pod_is_given_its_grace() {
    let pods = def("", "pods");
    let Deletion::Mark(marked) = plan_deletion(pods, &pod(json!({})), &options(json!({})), now()) else {
        panic!("a running Pod is marked first");
    };
    assert_eq!(
        marked["metadata"],
        json!({"name": "p", "generation": 2, "deletionGracePeriodSeconds": 30, "deletionTimestamp": "2026-01-02T03:04:35Z"})
    );
    assert_eq!(plan_deletion(pods, &marked, &options(json!({})), now()), Deletion::Unchanged);
    assert_eq!(plan_deletion(pods, &marked, &options(json!({"gracePeriodSeconds": 40})), now()), Deletion::Unchanged);
    let Deletion::Mark(sooner) = plan_deletion(pods, &marked, &options(json!({"gracePeriodSeconds": 10})), now())
    else {
        panic!("a shorter period counts");
    };
    assert_eq!(sooner["metadata"]["deletionTimestamp"], "2026-01-02T03:04:15Z");
    assert_eq!(plan_deletion(pods, &marked, &options(json!({"gracePeriodSeconds": 0})), now()), Deletion::Remove);
    let held = pod(json!({"finalizers": ["x/y"], "deletionTimestamp": NOW, "deletionGracePeriodSeconds": 30}));
    let Deletion::Mark(held) = plan_deletion(pods, &held, &options(json!({"gracePeriodSeconds": 0})), now()) else {
        panic!("finalizers hold a Pod without grace");
    };
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
    let mut done = held.clone();
    done["metadata"]["finalizers"] = json!([]);
    assert!(deletion_is_complete(&done, &held) && !deletion_is_complete(&held, &held));
}

#[test]
fn finalizers_and_propagation() {
    let maps = def("", "configmaps");
    let plain = json!({"metadata": {"name": "m"}});
    assert_eq!(plan_deletion(maps, &plain, &options(json!({})), now()), Deletion::Remove);
    for (policy, finalizer) in [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")] {
        let Deletion::Mark(marked) = plan_deletion(maps, &plain, &options(json!({"propagationPolicy": policy})), now())
        else {
            panic!("{policy} waits for the garbage collector");
        };
        assert_eq!(
            marked["metadata"],
            json!({"name": "m", "finalizers": [finalizer], "deletionTimestamp": NOW, "deletionGracePeriodSeconds": 0})
        );
        assert_eq!(plan_deletion(maps, &marked, &options(json!({})), now()), Deletion::Unchanged, "{policy}");
        assert_eq!(
            plan_deletion(maps, &marked, &options(json!({"propagationPolicy": "Background"})), now()),
            Deletion::Remove
        );
    }
    let Deletion::Mark(job) = plan_deletion(def("batch", "jobs"), &plain, &options(json!({})), now()) else {
        panic!("Jobs orphan unless told otherwise");
    };
    assert_eq!(job["metadata"]["finalizers"], json!(["orphan"]));
}

#[test]
fn a_namespace_waits_for_its_content() {
    let namespaces = def("", "namespaces");
    let namespace = stored(namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}));
    assert_eq!(namespace["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(namespace["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
    let Deletion::Mark(marked) = plan_deletion(namespaces, &namespace, &options(json!({})), now()) else {
        panic!("its finalizer holds it");
    };
    assert_eq!(
        (&marked["status"]["phase"], &marked["metadata"]["deletionTimestamp"]),
        (&json!("Terminating"), &json!(NOW))
    );
    assert_eq!(plan_deletion(namespaces, &marked, &options(json!({})), now()), Deletion::Unchanged);
    let mut finalized = marked.clone();
    finalized["spec"] = json!({});
    finalized["metadata"]["labels"] = json!({"stray": "x"});
    prepare_update(namespaces, Part::Finalize, &mut finalized, &marked).expect("prepared");
    assert_eq!(finalized["spec"], json!({"finalizers": []}));
    assert_eq!(finalized["metadata"]["labels"], marked["metadata"]["labels"]);
    assert!(deletion_is_complete(&finalized, &marked) && !deletion_is_complete(&marked, &marked));
    assert_eq!(plan_deletion(namespaces, &finalized, &options(json!({})), now()), Deletion::Remove);
}

#[test]
fn delete_options_are_checked() {
    for (value, expect) in [
        (json!({"propagationPolicy": "Sometimes"}), "propagationPolicy: Unsupported value: \"Sometimes\""),
        (
            json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
            "orphanDependents and deletionPropagation cannot be both set",
        ),
        (json!({"dryRun": ["Some"]}), "dryRun[0]: Unsupported value: \"Some\": supported values: \"All\""),
    ] {
        let status = DeleteOptions::from_json(&value).expect_err(expect);
        assert!(status.code == 422 && status.message.contains(expect), "{}", status.message);
    }
    let options = options(json!({"preconditions": {"uid": "a"}, "dryRun": ["All"]}));
    assert!(options.dry_run);
    let status = options.check_preconditions(def("", "pods"), &json!({"metadata": {"name": "p", "uid": "b"}}), "1");
    assert_eq!(
        status.map_err(|s| s.message),
        Err("Operation cannot be fulfilled on pods \"p\": Precondition failed: UID in precondition: a, UID in object meta: b".to_owned())
    );
}

#[test]
fn what_was_stored_before_a_rule_was_known_can_be_changed() {
    let change = |old: &Value, change: &dyn Fn(&mut Value)| {
        let nodes = def("", "nodes");
        let mut new = old.clone();
        change(&mut new);
        prepare_update(nodes, Part::Main, &mut new, old).expect("prepared");
        validate_update(nodes, Part::Main, &new, old).map_err(|status| status.message)
    };
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    let old = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u", "finalizers": ["one", "two"]},
        "spec": {"taints": [taint("a b")]},
        "status": {"nodeInfo": {"swap": {"capacity": -1}}},
    });
    assert_eq!(change(&old, &|node| node["metadata"]["labels"] = json!({"a": "b"})), Ok(()));
    assert_eq!(change(&old, &|node| node["metadata"]["finalizers"] = json!(["two"])), Ok(()));
    assert_eq!(change(&old, &|node| node["spec"]["taints"] = json!([])), Ok(()));
    let more = change(&old, &|node| node["spec"]["taints"] = json!([taint("a b"), taint("c d")])).expect_err("new");
    assert!(more.contains("\"c d\"") && !more.contains("\"a b\""), "{more}");
    let more = change(&old, &|node| node["metadata"]["finalizers"] = json!(["two", "three"])).expect_err("new");
    assert!(more.contains("\"three\"") && !more.contains("\"two\""), "{more}");
}
