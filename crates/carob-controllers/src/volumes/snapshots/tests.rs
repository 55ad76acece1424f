use carob_api::storage::{LOCAL_POOL_LABEL, PROVISIONED_BY};
use carob_client::snapshots::{BOUND_PROTECTION, SOURCE_PROTECTION};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::*;

fn with<T: DeserializeOwned>(mut object: Value, change: &Value) -> Arc<T> {
    carob_api::patch::merge_patch(&mut object, change).expect("it applies");
    Arc::new(serde_json::from_value(object).expect("an object of that kind"))
}

fn snapshot(change: Value) -> Arc<VolumeSnapshot> {
    let object = json!({"metadata": {"name": "s", "namespace": "ns", "uid": "su", "resourceVersion": "1"},
        "spec": {"source": {"persistentVolumeClaimName": "c"}}});
    with(object, &change)
}

/// As after the first step.
fn kept(change: Value) -> Arc<VolumeSnapshot> {
    let mut object = json!({"metadata": {
        "finalizers": [SOURCE_PROTECTION, BOUND_PROTECTION], "annotations": {DRIVER: LOCAL_PROVISIONER}}});
    carob_api::patch::merge_patch(&mut object, &change).expect("it applies");
    snapshot(object)
}

fn content(change: Value) -> Arc<VolumeSnapshotContent> {
    let object = json!({"metadata": {"name": "snapcontent-su", "uid": "xu", "finalizers": [CONTENT_PROTECTION]}, "spec": {
        "driver": LOCAL_PROVISIONER, "deletionPolicy": "Delete", "source": {"volumeHandle": "pool/v"},
        "volumeSnapshotRef": {"namespace": "ns", "name": "s", "uid": "su"}}});
    with(object, &change)
}

fn around() -> Surroundings {
    let claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "cu", "finalizers": [CLAIM_PROTECTION]},
        "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
    let volume = json!({"metadata": {"name": "v", "annotations": {PROVISIONED_BY: LOCAL_PROVISIONER}}, "spec": {
        "claimRef": {"uid": "cu"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": LOCAL_POOL_LABEL, "operator": "In", "values": ["pool"]}]}]}}}});
    let class = json!({"metadata": {"name": "local", "annotations": {DEFAULT_CLASS: "true"}},
        "driver": LOCAL_PROVISIONER, "deletionPolicy": "Retain"});
    Surroundings {
        claim: Some(with(claim, &json!({}))),
        volume: Some(with(volume, &json!({}))),
        classes: vec![with(class, &json!({}))],
        ..Surroundings::default()
    }
}

#[test]
fn a_snapshot_gets_a_content_after_all_is_kept() {
    let mut around = around();
    let Step::Finalizers(all) = snapshot_step(&snapshot(json!({})), &around) else { panic!("it is to be kept") };
    assert_eq!(all, [SOURCE_PROTECTION, BOUND_PROTECTION]);
    let Step::Create(made) = snapshot_step(&kept(json!({})), &around) else { panic!("a content is to be made") };
    assert_eq!(made["metadata"]["name"], "snapcontent-su");
    assert_eq!(made["spec"]["source"]["volumeHandle"], "pool/v");
    assert_eq!([&made["spec"]["deletionPolicy"], &made["spec"]["sourceVolumeMode"]], ["Retain", "Filesystem"]);
    let claim = around.claim.as_deref().cloned().expect("there is one");
    around.claim = Some(with(serde_json::to_value(claim).expect("JSON"), &json!({"metadata": {"finalizers": null}})));
    assert!(matches!(snapshot_step(&kept(json!({})), &around), Step::ProtectClaim(_)));
}

#[test]
fn what_is_of_another_driver_is_left_alone() {
    let csi = json!({"metadata": {"name": "v", "annotations": {PROVISIONED_BY: "csi.example"}}});
    let others = Surroundings { volume: Some(with(csi, &json!({}))), ..around() };
    assert_eq!(snapshot_step(&snapshot(json!({})), &others), Step::Nothing);
    let of_other = content(json!({"spec": {"driver": "csi.example"}}));
    let bound = Surroundings { content: Some(of_other), ..around() };
    assert_eq!(snapshot_step(&snapshot(json!({})), &bound), Step::Nothing);
    let going = snapshot(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": [BOUND_PROTECTION]}}));
    assert_eq!(snapshot_step(&going, &bound), Step::Nothing);
    let class = json!({"metadata": {"name": "gold"}, "driver": "csi.example", "deletionPolicy": "Delete"});
    let named = snapshot(json!({"spec": {"volumeSnapshotClassName": "gold"}}));
    let classed = Surroundings { classes: vec![with(class, &json!({}))], ..around() };
    assert_eq!(snapshot_step(&named, &classed), Step::Nothing);
    let claim = around().claim.expect("there is one");
    assert_eq!(freed_claim(&claim, others.volume.as_deref(), &[]), None);
    assert_eq!(freed_claim(&claim, around().volume.as_deref(), &[]), Some(Vec::new()));
    assert_eq!(freed_claim(&claim, around().volume.as_deref(), &[snapshot(json!({}))]), None);
    assert_eq!(freed_claim(&claim, None, &[]), Some(Vec::new()), "its volume is gone: nothing is taken of it any more");
}

#[test]
fn what_cannot_be_had_says_why_once_and_over_no_other_controller() {
    let fails = |around: Surroundings| match snapshot_step(&kept(json!({})), &around) {
        Step::Fail(_, why) => why,
        other => panic!("it cannot be had: {other:?}"),
    };
    assert!(fails(Surroundings { claim: None, ..around() }).ends_with("\"c\" not found"));
    assert!(fails(Surroundings { volume: None, ..around() }).contains("not yet bound to a PV"));
    assert!(fails(Surroundings { classes: Vec::new(), ..around() }).contains("cannot find default snapshot class"));
    let two = [around().classes, around().classes].concat();
    assert!(fails(Surroundings { classes: two, ..around() }).contains("more than one default"));
    let now = Timestamp::UNIX_EPOCH;
    let status = failure(&snapshot(json!({})), "why", now).expect("it is told");
    assert_eq!(
        (status.ready_to_use, status.error.clone().and_then(|error| error.message)),
        (Some(false), Some("carob.io/local: why".to_owned()))
    );
    let told = snapshot(json!({"status": status}));
    assert_eq!(failure(&told, "why", now), None, "once");
    assert!(failure(&told, "another reason", now).is_some());
    let of_other = snapshot(json!({"status": {"error": {"message": "cannot find CSI PersistentVolumeSource"}}}));
    assert_eq!(failure(&of_other, "why", now), None);
}

#[test]
fn a_content_and_its_snapshot_point_at_each_other() {
    let step = |snapshot: &VolumeSnapshot, change: Value| {
        snapshot_step(snapshot, &Surroundings { content: Some(content(change)), ..around() })
    };
    let Step::Status(waiting) = step(&kept(json!({})), json!({})) else { panic!("it says what it is bound to") };
    assert_eq!(
        (waiting.bound_volume_snapshot_content_name.as_deref(), waiting.ready_to_use),
        (Some("snapcontent-su"), Some(false))
    );
    let ready = json!({"status": {"readyToUse": true, "restoreSize": 1024, "creationTime": 1_500_000_000}});
    let Step::Status(status) = step(&kept(json!({})), ready.clone()) else { panic!("it is ready") };
    assert_eq!(serde_json::to_value(&status).expect("JSON")["creationTime"], "1970-01-01T00:00:01Z");
    assert_eq!(status.restore_size.as_ref().map(|size| size.0.as_str()), Some("1024"));
    assert_eq!(step(&kept(json!({"status": status})), ready), Step::Nothing);
    let other = json!({"spec": {"volumeSnapshotRef": {"uid": "another"}}});
    assert!(matches!(step(&kept(json!({})), other), Step::Fail("SnapshotContentMisbound", _)));
    let gone = Surroundings { content: None, ..around() };
    let was_bound = kept(json!({"status": {"boundVolumeSnapshotContentName": "snapcontent-su"}}));
    assert!(matches!(snapshot_step(&was_bound, &gone), Step::Fail("SnapshotContentMissing", _)));
    // One that the user made beforehand.
    let source = json!({"persistentVolumeClaimName": null, "volumeSnapshotContentName": "mine"});
    let named = kept(json!({"spec": {"source": source}}));
    let mine = json!({"metadata": {"name": "mine", "finalizers": null}, "spec": {
        "source": {"volumeHandle": null, "snapshotHandle": "pool/x"}, "volumeSnapshotRef": {"uid": null}}});
    assert!(matches!(step(&named, mine), Step::Bind(_)));
    assert!(matches!(step(&named, json!({})), Step::Fail("SnapshotContentMismatch", _)));
}

#[test]
fn a_content_that_the_user_deletes_waits_for_a_word_of_its_snapshot() {
    let going = |mut change: Value| {
        change["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        waits_for_snapshot(&content(change))
    };
    assert!(going(json!({})) && !waits_for_snapshot(&content(json!({}))));
    for other in [
        json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}}),
        json!({"spec": {"driver": "other"}}),
        json!({"spec": {"volumeSnapshotRef": {"uid": null}}}),
    ] {
        assert!(!going(other.clone()), "{other}");
    }
}

#[test]
fn a_snapshot_goes_after_its_content_and_not_while_volumes_are_made_of_it() {
    let going = kept(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let step = |change: Value, restoring: &[&str]| {
        let restoring = restoring.iter().map(|name| (*name).to_owned()).collect();
        snapshot_step(&going, &Surroundings { content: Some(content(change)), restoring, ..Surroundings::default() })
    };
    assert!(matches!(step(json!({}), &["d"]), Step::Wait("SnapshotDeletePending", _)));
    assert!(matches!(step(json!({}), &[]), Step::TellContent(_)));
    let told = json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}});
    assert!(matches!(step(told.clone(), &[]), Step::DeleteContent(_)));
    let mut also_going = told.clone();
    also_going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(step(also_going, &[]), Step::Nothing);
    let mut retained = told;
    retained["spec"] = json!({"deletionPolicy": "Retain"});
    assert_eq!(step(retained, &[]), Step::Finalizers(Vec::new()));
    // Whose it was is known although nothing but the snapshot is left.
    assert_eq!(snapshot_step(&going, &Surroundings::default()), Step::Finalizers(Vec::new()));
    let other = json!({"spec": {"volumeSnapshotRef": {"uid": "another"}}});
    assert_eq!(step(other, &[]), Step::Finalizers(Vec::new()), "the content of another one is not touched");
}
