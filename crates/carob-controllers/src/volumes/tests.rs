use std::sync::Arc;

use carob_api::storage::{BIND_COMPLETED, PROVISIONED_BY, SELECTED_NODE};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::decide::{ClaimStep, Notice, Surroundings, VolumeStep, claim_step, others, volume_step};
use super::writes::claim_status;

fn merged<T: serde::de::DeserializeOwned>(mut object: Value, change: Value) -> T {
    carob_api::patch::merge_patch(&mut object, &change).expect("it applies");
    serde_json::from_value(object).expect("the test's object is of its kind")
}

fn claim(change: Value) -> PersistentVolumeClaim {
    let object = json!({
        "metadata": {"name": "c", "namespace": "ns", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "5Gi"}}},
    });
    merged(object, change)
}

fn volume(name: &str, change: Value) -> Arc<PersistentVolume> {
    let object = json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "hostPath": {"path": "/x"},
            "persistentVolumeReclaimPolicy": "Retain"},
        "status": {"phase": "Available"},
    });
    Arc::new(merged(object, change))
}

fn class(provisioner: &str, waits: bool) -> Arc<StorageClass> {
    let mode = if waits { "WaitForFirstConsumer" } else { "Immediate" };
    Arc::new(merged(
        json!({"metadata": {"name": "k"}, "provisioner": provisioner, "volumeBindingMode": mode}),
        json!({}),
    ))
}

fn for_claim(uid: Option<&str>) -> Value {
    json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": uid}}})
}

/// The step in a word, with the volume or the reason.
fn shown(step: ClaimStep) -> String {
    match step {
        ClaimStep::Bind(volume) => format!("bind {}", volume.metadata.name.clone().unwrap_or_default()),
        ClaimStep::SetClass(class) => format!("class {class}"),
        ClaimStep::Wait { notice: Some(notice), .. } => format!("wait {}", notice.reason),
        ClaimStep::Wait { notice: None, .. } => "wait".to_owned(),
        ClaimStep::Lost(notice) => format!("lost {}", notice.reason),
    }
}

#[test]
fn what_was_made_for_a_claim_that_has_another_volume_is_given_up() {
    let made = volume(
        "made",
        json!({"metadata": {"annotations": {PROVISIONED_BY: "p"}},
        "spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "u"}, "persistentVolumeReclaimPolicy": "Delete"}}),
    );
    let (own, bound) = (volume("own", for_claim(Some("u"))), claim(json!({"spec": {"volumeName": "own"}})));
    let naming = [Arc::clone(&own), Arc::clone(&made)];
    let names = |claim: &PersistentVolumeClaim| {
        others(claim, &own, &naming).map(|other| other.metadata.name.clone().unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(names(&bound), ["made"]);
    assert_eq!(volume_step(&made, Some(&bound)), VolumeStep::Release);
    assert_eq!(names(&claim(json!({}))), Vec::<String>::new(), "either may become its volume still");
}

#[test]
fn a_claim_gets_the_smallest_volume_that_fits() {
    let fits = |wanted: Value, offered: Value| {
        let around = Surroundings { volumes: vec![volume("v", offered)], ..Surroundings::default() };
        shown(claim_step(&claim(wanted), &around)) == "bind v"
    };
    let cases = [
        ("it does", json!({}), json!({}), true),
        ("too small", json!({}), json!({"spec": {"capacity": {"storage": "4Gi"}}}), false),
        ("of a class", json!({}), json!({"spec": {"storageClassName": "k"}}), false),
        ("a device", json!({}), json!({"spec": {"volumeMode": "Block"}}), false),
        ("other modes", json!({"spec": {"accessModes": ["ReadWriteMany"]}}), json!({}), false),
        ("not selected", json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}), json!({}), false),
        (
            "selected",
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            true,
        ),
        ("not looked at yet", json!({}), json!({"status": {"phase": "Pending"}}), false),
        ("going", json!({}), json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), false),
        ("meant for it, whatever its class", json!({}), for_claim(None), true),
        ("bound to it", json!({}), for_claim(Some("u")), true),
        ("of an earlier claim of that name", json!({}), for_claim(Some("old")), false),
        ("other attributes", json!({"spec": {"volumeAttributesClassName": "a"}}), json!({}), false),
    ];
    for (case, wanted, offered, expected) in cases {
        assert_eq!(fits(wanted, offered), expected, "{case}");
    }
    let size = |size: &str| json!({"spec": {"capacity": {"storage": size}}});
    let more = json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": "5Gi"}}});
    let volumes =
        vec![volume("big", size("20Gi")), volume("b", size("8Gi")), volume("a", size("8Gi")), volume("m", more)];
    let around = Surroundings { volumes, ..Surroundings::default() };
    assert_eq!(shown(claim_step(&claim(json!({})), &around)), "bind a");
}

#[test]
fn a_claim_that_waits_says_for_what() {
    let step = |change: Value, class: Option<Arc<StorageClass>>, unscheduled: &[&str]| {
        let unscheduled = unscheduled.iter().map(ToString::to_string).collect();
        shown(claim_step(&claim(change), &Surroundings { class, unscheduled, ..Surroundings::default() }))
    };
    let of_class = json!({"spec": {"storageClassName": "k"}});
    assert_eq!(step(json!({}), None, &[]), "wait FailedBinding");
    assert_eq!(step(of_class.clone(), None, &[]), "wait ProvisioningFailed");
    assert_eq!(step(of_class.clone(), Some(class("x.io/p", false)), &[]), "wait ExternalProvisioning");
    assert_eq!(
        step(of_class.clone(), Some(class("kubernetes.io/no-provisioner", false)), &[]),
        "wait ProvisioningFailed"
    );
    assert_eq!(step(of_class.clone(), Some(class("x.io/p", true)), &[]), "wait WaitForFirstConsumer");
    assert_eq!(step(of_class, Some(class("x.io/p", true)), &["p"]), "wait WaitForPodScheduled");
    let selected = json!({"metadata": {"annotations": {SELECTED_NODE: "n"}}, "spec": {"storageClassName": "k"}});
    assert_eq!(step(selected, Some(class("x.io/p", true)), &["p"]), "wait ExternalProvisioning");
    let none = json!({"spec": {"storageClassName": null}});
    let around = Surroundings { default_class: Some("k".to_owned()), ..Surroundings::default() };
    assert_eq!(shown(claim_step(&claim(none), &around)), "class k");
    assert_eq!(shown(claim_step(&claim(json!({})), &around)), "wait FailedBinding", "no class is a choice");
}

#[test]
fn a_claim_keeps_its_volume_or_is_lost() {
    let bound = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "v"}});
    let step = |named| shown(claim_step(&claim(bound.clone()), &Surroundings { named, ..Surroundings::default() }));
    assert_eq!(step(Some(volume("v", for_claim(Some("u"))))), "bind v");
    assert_eq!(step(Some(volume("v", for_claim(Some("other"))))), "lost ClaimMisbound");
    assert_eq!(step(None), "lost ClaimLost");
    let asked = json!({"spec": {"volumeName": "v"}});
    let step = |named| shown(claim_step(&claim(asked.clone()), &Surroundings { named, ..Surroundings::default() }));
    assert_eq!(step(None), "wait");
    assert_eq!(step(Some(volume("v", json!({})))), "bind v");
    assert_eq!(step(Some(volume("v", for_claim(Some("other"))))), "wait FailedBinding");
    assert_eq!(step(Some(volume("v", json!({"spec": {"capacity": {"storage": "1"}}})))), "wait VolumeMismatch");
}

#[test]
fn a_volume_is_let_go_as_its_policy_says() {
    let bound_to = |name: &str| claim(json!({"spec": {"volumeName": name}}));
    let step = |change: Value, claim: Option<&PersistentVolumeClaim>| {
        let mut all = for_claim(Some("u"));
        carob_api::patch::merge_patch(&mut all, &change).expect("it applies");
        volume_step(&volume("v", all), claim)
    };
    assert_eq!(volume_step(&volume("v", json!({})), None), VolumeStep::Phase("Available"));
    assert_eq!(volume_step(&volume("v", for_claim(None)), None), VolumeStep::Phase("Available"));
    assert_eq!(step(json!({}), Some(&bound_to("v"))), VolumeStep::Phase("Bound"));
    assert_eq!(step(json!({}), Some(&claim(json!({})))), VolumeStep::AskClaim);
    assert!(matches!(
        step(json!({"spec": {"volumeMode": "Block"}}), Some(&claim(json!({})))),
        VolumeStep::Mismatch { .. }
    ));
    assert_eq!(step(json!({}), Some(&bound_to("w"))), VolumeStep::Unbind { entirely: false });
    assert_eq!(step(json!({}), None), VolumeStep::Release);
    let policy = |policy: &str| json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
    let reason = |step: VolumeStep| match step {
        VolumeStep::Fail(Notice { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(step(policy("Delete"), None)), "VolumeFailedDelete");
    assert_eq!(reason(step(policy("Recycle"), None)), "VolumeFailedRecycle");
    let made = json!({"metadata": {"annotations": {PROVISIONED_BY: "carob.io/local"}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    assert_eq!(step(made.clone(), None), VolumeStep::Release);
    assert_eq!(step(made, Some(&bound_to("w"))), VolumeStep::Release, "it was made for the claim and is not needed");
}

#[test]
fn a_claim_shows_the_attributes_class_that_its_volume_had_when_it_was_bound() {
    let of_gold = volume("v", json!({"spec": {"volumeAttributesClassName": "gold"}}));
    let shown = |claim: &PersistentVolumeClaim| {
        claim_status(claim, "Bound", Some(&of_gold))
            .map(|patch| patch["status"]["currentVolumeAttributesClassName"].clone())
    };
    assert_eq!(shown(&claim(json!({"status": {"phase": "Pending"}}))), Some(json!("gold")));
    // Whoever changes the volume writes the class then.
    let changed = json!({"spec": {"volumeAttributesClassName": "silver"}, "status": {"phase": "Bound",
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "currentVolumeAttributesClassName": "silver"}});
    assert_eq!(shown(&claim(changed)), None);
    let lost = claim(json!({"status": {"phase": "Bound", "currentVolumeAttributesClassName": "gold"}}));
    let status = claim_status(&lost, "Lost", None).expect("a change")["status"].clone();
    assert_eq!(status["currentVolumeAttributesClassName"], Value::Null);
}
