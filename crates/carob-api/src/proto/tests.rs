use serde_json::{Value, json};

use super::*;
use crate::schema::builtin;

fn round_trip(ty: &str, object: &Value) -> Value {
    let ty = builtin().get(ty).expect("a type of the table");
    let bytes = encode(ty, object).expect("encoded");
    decode(&bytes, |_, _| Some(ty)).expect("decoded")
}

/// Bytes of a field: its tag, its length, itself.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_bytes(&mut out, number, bytes);
    out
}

#[test]
fn a_pod_goes_round() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "p", "labels": { "a": "b" }, "creationTimestamp": "2026-01-02T03:04:05Z", "generation": 7,
            "managedFields": [{ "manager": "m", "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": {} } }]
        },
        "spec": {
            "containers": [{
                "name": "c", "image": "i", "args": ["x", "y"],
                "resources": { "limits": { "cpu": "100m" } },
                "livenessProbe": { "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 3 },
                "readinessProbe": { "tcpSocket": { "port": "web" } },
                "env": [{ "name": "e", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]
            }],
            "ephemeralContainers": [{ "name": "d", "image": "j", "targetContainerName": "c" }],
            "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "w", "hostPath": { "path": "/p" } }],
            "terminationGracePeriodSeconds": 0, "hostNetwork": true
        },
        "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "" }] }
    });
    assert_eq!(round_trip("core.v1.Pod", &pod), pod);
}

#[test]
fn the_bytes_are_those_of_generated_proto() {
    // core/v1 ConfigMap: metadata = 1 (ObjectMeta: name = 1), data = 2 (map of key = 1, value = 2).
    let data = [field(1, b"k"), field(2, b"v")].concat();
    let raw = [field(1, &field(1, b"n")), field(2, &data)].concat();
    let type_meta = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
    let expected = [b"k8s\0".to_vec(), field(1, &type_meta), field(2, &raw), field(3, b""), field(4, b"")].concat();
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "n" }, "data": { "k": "v" } });
    assert_eq!(encode(builtin().get("core.v1.ConfigMap").expect("a type"), &object).expect("encoded"), expected);
}

#[test]
fn zeros_of_plain_go_fields_are_no_fields() {
    // Go writes the name, the empty generateName and an empty creationTimestamp of every ObjectMeta.
    let meta = [field(1, b"n"), field(2, b""), field(8, b"")].concat();
    let body = envelope("v1", "ConfigMap", &field(1, &meta), "");
    let decoded = decode(&body, |_, _| builtin().get("core.v1.ConfigMap")).expect("decoded");
    assert_eq!(decoded, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "n" } }));
}

#[test]
fn other_scalars_go_round() {
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": { "a": "aGVsbG8=" }, "immutable": false });
    assert_eq!(round_trip("core.v1.Secret", &secret), secret);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {},
        "spec": { "renewTime": "2026-01-02T03:04:05.000006Z", "leaseDurationSeconds": 15 }
    });
    assert_eq!(round_trip("coordination.v1.Lease", &lease), lease);
    let budget = json!({ "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {}, "spec": { "maxUnavailable": "50%" } });
    assert_eq!(round_trip("policy.v1.PodDisruptionBudget", &budget), budget);
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": { "extra": { "scopes": ["a", "b"] }, "user": "u" }, "status": { "allowed": false }
    });
    assert_eq!(round_trip("authorization.v1.SubjectAccessReview", &review), review);
    let revision = json!({ "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {}, "data": { "x": [1] }, "revision": -1 });
    assert_eq!(round_trip("apps.v1.ControllerRevision", &revision), revision);
}

#[test]
fn hostile_bodies_are_refused() {
    #[track_caller]
    fn check(body: &[u8], expected: &str) {
        let error = decode(body, |_, _| builtin().get("core.v1.Pod")).expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let pod = |raw: &[u8]| envelope("v1", "Pod", raw, "");
    check(b"{}", "expected prefix [107 56 115 0]");
    check(b"k8s\0\x0a\xff", "ends inside a field");
    check(&pod(b"\x0a\x05ab"), "ends inside a field");
    check(&pod(&[0xff; 12]), "more than 64 bits");
    check(&pod(b"\x0b"), "wire type 3 is not in use");
    check(&pod(b"\x02\x00"), "field number 0 is not allowed");
    check(&pod(&field(1, &field(1, b"\xff"))), "is not UTF-8");
    check(&pod(b"\x08\x01"), "field Pod.metadata has the wrong wire type");
    let mut nested = Vec::new();
    for _ in 0..DEPTH_MAX + 10 {
        // JSONSchemaProps.not = 26 nests without end.
        nested = field(26, &nested);
    }
    let schema = builtin().get("apiextensions.v1.JSONSchemaProps").expect("a type");
    let error = decode(&envelope("", "", &nested, ""), |_, _| Some(schema)).expect_err("refused");
    assert!(error.to_string().contains("nested more than"), "{error}");
}

#[test]
fn unknown_fields_are_passed_over_and_packed_lists_read() {
    let mut raw = field(1, &field(1, b"n"));
    wire::put_number(&mut raw, 15, 3);
    let decoded = decode(&envelope("v1", "Pod", &raw, ""), |_, _| builtin().get("core.v1.Pod")).expect("decoded");
    assert_eq!(decoded["metadata"]["name"], "n");
    // PodSecurityContext.supplementalGroups = 4, a list of int64.
    let context = builtin().get("core.v1.PodSecurityContext").expect("a type");
    let decoded = decode(&envelope("", "", &field(4, &[5, 0xac, 2]), ""), |_, _| Some(context)).expect("decoded");
    assert_eq!(decoded, json!({ "supplementalGroups": [5, 300] }));
}
