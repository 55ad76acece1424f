use serde_json::{Value, json};

use crate::{kinds, lifecycle};

const MOUNTABLE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";

fn warnings(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let def = kinds::all().find(|def| def.kind() == kind).expect("a kind");
    let ready = |object: &Value| {
        let mut object = object.clone();
        let namespace = if def.namespaced { "default" } else { "" };
        lifecycle::prepare_create(def, &mut object, namespace).expect("an object that can be created");
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        lifecycle::complete_create(def, &mut object, &lifecycle::Creation { uid: "u", now, suffix: "bcdfg" });
        object
    };
    def.strategy().warnings(&ready(object), old.map(ready).as_ref())
}

/// What kube-apiserver v1.36.2 answered to these objects.
#[test]
fn warnings_at_create_are_those_of_upstream() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../corpus/warnings.json")).expect("recorded answers");
    for case in &cases {
        let mut expect: Vec<&str> = crate::meta::texts(case, &["warnings"]);
        let kind = crate::meta::text(case, &["kind"]);
        let mut found = warnings(kind, &case["object"], None);
        // Upstream's order is of no use to anyone.
        expect.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expect, "{kind}: {}", case["object"]);
    }
}

#[test]
fn what_stays_as_it_was_is_not_warned_of_again() {
    let spec = json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "A"}, {"name": "A"}]}]});
    let account = json!({"metadata": {"name": "a", "annotations": {MOUNTABLE_SECRETS: "true"}}});
    let driver = json!({"metadata": {"name": "a"}, "spec": {"tokenRequests": [{"audience": "a"}]}});
    let slice = json!({"metadata": {"name": "a"}, "addressType": "FQDN", "endpoints": []});
    for (kind, object) in [
        ("Pod", json!({"metadata": {"name": "a.b"}, "spec": spec})),
        ("Deployment", json!({"metadata": {"name": "a.b"}, "spec": {"template": {"spec": spec}}})),
        ("ServiceAccount", account),
        ("CSIDriver", driver),
        ("EndpointSlice", slice),
    ] {
        assert_ne!(warnings(kind, &object, None), [""; 0], "{kind}");
        assert_eq!(warnings(kind, &object, Some(&object)), [""; 0], "{kind}");
    }
}

/// A zone in a schedule, which older servers took.
#[test]
fn stored_schedules_with_zones_are_warned_of() {
    let job = json!({"metadata": {"name": "a"}, "spec": {"schedule": "TZ=UTC * * * * *", "jobTemplate": {}}});
    assert_eq!(warnings("CronJob", &job, None), [""; 0]);
    let found = warnings("CronJob", &job, Some(&job));
    assert!(found[0].starts_with("cannot use TZ or CRON_TZ in spec.spec.schedule"), "{found:?}");
}

/// The Warning of a kind that nothing acts on is not given for what CSI drivers are made of.
#[test]
fn kinds_of_csi_drivers_are_acted_on() {
    for kind in ["CSIDriver", "CSINode", "VolumeAttachment"] {
        let def = kinds::all().find(|def| def.kind() == kind).expect("a kind");
        assert_eq!(lifecycle::unsupported_kind_warning(def), None);
    }
}
