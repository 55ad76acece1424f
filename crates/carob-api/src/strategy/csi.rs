//! What CSI drivers say of themselves (kubernetes pkg/apis/storage/validation): CSIDrivers, CSINodes and
//! CSIStorageCapacities.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Part, Rules, Strategy, old_forms, pod, resource_names::NOT_NEGATIVE, workload::IMMUTABLE, workload::immutable,
};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    quantity::Quantity,
};

/// Longest name of a driver, bytes.
const DRIVER_LEN_MAX: usize = 63;
/// Longest name that a driver has for a node, bytes.
const NODE_ID_LEN_MAX: usize = 192;
const FS_GROUP_POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
const LIFECYCLE_MODES: [&str; 2] = ["Persistent", "Ephemeral"];
/// Shortest time between two reports of a driver's limits, seconds.
const REPORT_SECONDS_MIN: i64 = 10;
/// Shortest and longest life of a token, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

#[derive(Debug)]
pub(super) struct Driver;

impl Strategy for Driver {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::COUNTED };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        if meta::at(obj, &["spec"]).is_some() && meta::items_at(obj, &["spec", "volumeLifecycleModes"]).is_empty() {
            meta::set(obj, &["spec", "volumeLifecycleModes"], serde_json::json!(["Persistent"]));
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        old_forms::of_csi_driver(new, old).into_iter().collect()
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        // Upstream's name of the field in this place.
        for (field, shown) in [
            ("attachRequired", "attachedRequired"),
            ("podInfoOnMount", "podInfoOnMount"),
            ("storageCapacity", "storageCapacity"),
            ("seLinuxMount", "seLinuxMount"),
        ] {
            if meta::at(spec, &[field]).is_none() {
                errors.push(FieldError::required(&path.child(shown), ""));
            }
        }
        if let Some(policy) = meta::str_at(spec, &["fsGroupPolicy"]).filter(|given| !FS_GROUP_POLICIES.contains(given))
        {
            errors.push(FieldError::not_supported(&path.child("fsGroupPolicy"), policy, &FS_GROUP_POLICIES));
        }
        token_errors(meta::items_at(spec, &["tokenRequests"]), &path.child("tokenRequests"), &mut errors);
        for mode in
            meta::texts(spec, &["volumeLifecycleModes"]).into_iter().filter(|mode| !LIFECYCLE_MODES.contains(mode))
        {
            errors.push(FieldError::not_supported(&path.child("volumeLifecycleModes"), mode, &LIFECYCLE_MODES));
        }
        let period = meta::i64_at(spec, &["nodeAllocatableUpdatePeriodSeconds"]);
        if let Some(period) = period.filter(|period| *period < REPORT_SECONDS_MIN) {
            let path = path.child("nodeAllocatableUpdatePeriodSeconds");
            let message = format!("must be greater than or equal to {REPORT_SECONDS_MIN} seconds");
            errors.push(FieldError::invalid(&path, period, message));
        }
        let in_secrets = meta::bool_at(spec, &["serviceAccountTokenInSecrets"]);
        if let Some(given) = in_secrets.filter(|_| meta::items_at(spec, &["tokenRequests"]).is_empty()) {
            let message = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            errors.push(FieldError::invalid(&path.child("serviceAccountTokenInSecrets"), given, message));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let attach = |driver: &Value| driver["spec"]["attachRequired"].clone();
        if attach(new) != attach(old) {
            let path = FieldPath::new("spec").child("attachedRequired");
            errors.push(FieldError::invalid(&path, attach(new), IMMUTABLE));
        }
        immutable(new, old, &["spec", "volumeLifecycleModes"], &mut errors);
        errors
    }
}

fn token_errors(requests: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    let mut audiences = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let (audience, path) = (meta::text(request, &["audience"]), path.index(index));
        if !audiences.insert(audience) {
            errors.push(FieldError::duplicate(&path.child("audience"), audience));
            continue;
        }
        let Some(seconds) = meta::i64_at(request, &["expirationSeconds"]) else { continue };
        let (least, greatest) = TOKEN_SECONDS;
        let message = if seconds < least {
            "may not specify a duration less than 10 minutes"
        } else if seconds > greatest {
            "may not specify a duration larger than 2^32 seconds"
        } else {
            continue;
        };
        errors.push(FieldError::invalid(&path.child("expirationSeconds"), seconds, message));
    }
}

#[derive(Debug)]
pub(super) struct Node;

impl Strategy for Node {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::PLAIN };
        &RULES
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let mut known = BTreeSet::new();
        for (index, driver) in meta::items_at(obj, &["spec", "drivers"]).iter().enumerate() {
            let path = FieldPath::new("spec").child("drivers").index(index);
            let name = meta::text(driver, &["name"]);
            driver_name_errors(name, &path.child("name"), &mut errors);
            driver_errors(driver, &path, &mut errors);
            if !known.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            topology_errors(driver, &path, &mut errors);
        }
        errors
    }

    /// A driver that stays may change its limits, and nothing else.
    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let drivers = |node| meta::items_at(node, &["spec", "drivers"]);
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            meta::remove(&mut driver, &["allocatable"]);
            driver
        };
        let mut errors = FieldErrors::new();
        for was in drivers(old) {
            for is in drivers(new).iter().filter(|is| is["name"] == was["name"] && fixed(is) != fixed(was)) {
                errors.push(FieldError::invalid(&FieldPath::new("spec").child("drivers"), fixed(is), IMMUTABLE));
            }
        }
        errors
    }
}

/// The name of a CSI driver (core's `ValidateCSIDriverName`).
pub(super) fn driver_name_errors(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > DRIVER_LEN_MAX {
        errors.push(FieldError::too_long(path, DRIVER_LEN_MAX));
    }
    invalid_each(path, name, names::dns1123_subdomain(&name.to_lowercase()), errors);
}

fn driver_errors(driver: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (id, path) = (meta::text(driver, &["nodeID"]), path.child("nodeID"));
    if id.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    if id.len() > NODE_ID_LEN_MAX {
        errors.push(FieldError::invalid(&path, id, format!("must be {NODE_ID_LEN_MAX} characters or less")));
    }
}

fn topology_errors(driver: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut known = BTreeSet::new();
    for key in meta::texts(driver, &["topologyKeys"]) {
        if key.is_empty() {
            errors.push(FieldError::required(path, ""));
        }
        if !known.insert(key) {
            errors.push(FieldError::duplicate(path, key));
        }
        invalid_each(path, key, names::qualified_name(key), errors);
    }
}

#[derive(Debug)]
pub(super) struct StorageCapacity;

impl Strategy for StorageCapacity {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::PLAIN };
        &RULES
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_storage_capacity(new)
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if let Some(selector) = meta::at(obj, &["nodeTopology"]) {
            pod::validate_label_selector(selector, &FieldPath::new("nodeTopology"), &mut errors);
        }
        let class = meta::text(obj, &["storageClassName"]);
        invalid_each(&FieldPath::new("storageClassName"), class, names::dns1123_subdomain(class), &mut errors);
        let capacity = meta::str_at(obj, &["capacity"]);
        if capacity.and_then(|text| text.parse::<Quantity>().ok()).is_some_and(|amount| amount.is_negative()) {
            errors.push(FieldError::invalid(&FieldPath::new("capacity"), capacity, NOT_NEGATIVE));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["nodeTopology"], &mut errors);
        immutable(new, old, &["storageClassName"], &mut errors);
        errors
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &[FieldError]) -> String {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn drivers() {
        let of = |change: Value| {
            let mut spec = json!({"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "seLinuxMount": false});
            for (field, value) in change.as_object().expect("a test's change") {
                spec[field] = value.clone();
            }
            texts(&Driver.validate(&json!({"spec": spec})))
        };
        let cases = [
            (json!({"tokenRequests": [{"audience": "a", "expirationSeconds": 600}]}), ""),
            (json!({"attachRequired": null}), "spec.attachedRequired: Required value"),
            (
                json!({"fsGroupPolicy": "Some"}),
                "spec.fsGroupPolicy: Unsupported value: \"Some\": supported values: \"File\", \"None\", \
                 \"ReadWriteOnceWithFSType\"",
            ),
            (
                json!({"volumeLifecycleModes": ["Some"]}),
                "spec.volumeLifecycleModes: Unsupported value: \"Some\": supported values: \"Persistent\", \"Ephemeral\"",
            ),
            (
                json!({"tokenRequests": [{"audience": "a", "expirationSeconds": 599}, {"audience": "a"}]}),
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 599: may not specify a duration less than 10 \
                 minutes; spec.tokenRequests[1].audience: Duplicate value: \"a\"",
            ),
            (
                json!({"nodeAllocatableUpdatePeriodSeconds": 9}),
                "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds",
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(of(change), expected);
        }
    }

    #[test]
    fn drivers_of_a_node() {
        let node = |drivers: Value| json!({"spec": {"drivers": drivers}});
        let sound = node(json!([{"name": "A.b", "nodeID": "n", "topologyKeys": ["k"], "allocatable": {"count": 5}}]));
        assert_eq!(texts(&Node.validate(&sound)), "");
        assert_eq!(
            texts(
                &Node.validate(&node(json!([{"name": "a", "topologyKeys": ["k", "k"]}, {"name": "a", "nodeID": "n"}])))
            ),
            "spec.drivers[0].nodeID: Required value; spec.drivers[0]: Duplicate value: \"k\"; spec.drivers[1].name: \
             Duplicate value: \"a\""
        );
        let mut changed = sound.clone();
        changed["spec"]["drivers"][0]["allocatable"]["count"] = json!(6);
        assert_eq!(texts(&Node.validate_update(Part::Main, &changed, &sound)), "");
        changed["spec"]["drivers"][0]["nodeID"] = json!("m");
        assert!(texts(&Node.validate_update(Part::Main, &changed, &sound)).ends_with(": field is immutable"));
    }
}
