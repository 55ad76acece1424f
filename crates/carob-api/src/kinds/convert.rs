//! Conversion between versions whose forms differ. All other kinds only change their apiVersion.

use serde_json::{Map, Value, json};

use crate::meta;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConversionError {
    #[error("no conversion of {kind} from {from} to {to}")]
    Unknown { kind: String, from: String, to: String },
}

/// Names of an Event's fields in core/v1 and in events.k8s.io/v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("source", "deprecatedSource"),
];

/// Brings an object into the form of `to`, an apiVersion of the same kind.
pub fn convert(obj: &mut Value, to: &str) -> Result<(), ConversionError> {
    let from = meta::api_version(obj).to_owned();
    if from == to {
        return Ok(());
    }
    match (meta::kind(obj), from.as_str(), to) {
        ("Event", "v1", "events.k8s.io/v1") => rename(obj, &EVENT_FIELDS),
        ("Event", "events.k8s.io/v1", "v1") => rename(obj, &EVENT_FIELDS.map(|(core, events)| (events, core))),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => autoscaler_to_v1(obj),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => autoscaler_to_v2(obj),
        (kind, ..) => {
            if meta::group_version(&from).0 != meta::group_version(to).0 {
                return Err(ConversionError::Unknown { kind: kind.to_owned(), from, to: to.to_owned() });
            }
        }
    }
    meta::set(obj, &["apiVersion"], to);
    Ok(())
}

fn rename(obj: &mut Value, names: &[(&str, &str)]) {
    let map = meta::map_mut(obj, &[]);
    for (from, to) in names {
        if let Some(value) = map.remove(*from) {
            map.insert((*to).to_owned(), value);
        }
    }
}

/// What autoscaling/v1 has no field for travels in annotations, as JSON of v2.
const AUTOSCALER_EXTRAS: [(&[&str], &str); 4] = [
    (&["spec", "metrics"], "autoscaling.alpha.kubernetes.io/metrics"),
    (&["spec", "behavior"], "autoscaling.alpha.kubernetes.io/behavior"),
    (&["status", "currentMetrics"], "autoscaling.alpha.kubernetes.io/current-metrics"),
    (&["status", "conditions"], "autoscaling.alpha.kubernetes.io/conditions"),
];

fn is_cpu_utilization(metric: &Value) -> bool {
    meta::str_at(metric, &["type"]) == Some("Resource") && meta::str_at(metric, &["resource", "name"]) == Some("cpu")
}

fn autoscaler_to_v1(obj: &mut Value) {
    for (list, half, target) in [
        ("metrics", "target", ["spec", "targetCPUUtilizationPercentage"]),
        ("currentMetrics", "current", ["status", "currentCPUUtilizationPercentage"]),
    ] {
        let Some(items) = meta::at_mut(obj, &[target[0], list]).and_then(Value::as_array_mut) else { continue };
        let cpu = items
            .iter()
            .position(|m| is_cpu_utilization(m) && meta::at(m, &["resource", half, "averageUtilization"]).is_some());
        if let Some(index) = cpu {
            let metric = items.remove(index);
            if let Some(value) = meta::at(&metric, &["resource", half, "averageUtilization"]) {
                meta::set(obj, &target, value.clone());
            }
        }
    }
    for (path, annotation) in AUTOSCALER_EXTRAS {
        match meta::remove(obj, path) {
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(value) => meta::set(obj, &["metadata", "annotations", annotation], value.to_string()),
            None => {}
        }
    }
}

fn autoscaler_to_v2(obj: &mut Value) {
    for (path, annotation) in AUTOSCALER_EXTRAS {
        let Some(Value::String(text)) = meta::remove(obj, &["metadata", "annotations", annotation]) else { continue };
        // An annotation that a user broke is kept as it is: it is the user's.
        match serde_json::from_str::<Value>(&text) {
            Ok(value) => meta::set(obj, path, value),
            Err(_) => meta::set(obj, &["metadata", "annotations", annotation], text),
        }
    }
    if meta::at(obj, &["metadata", "annotations"]).and_then(Value::as_object).is_some_and(Map::is_empty) {
        meta::remove(obj, &["metadata", "annotations"]);
    }
    for (list, half, target) in [
        ("metrics", "target", ["spec", "targetCPUUtilizationPercentage"]),
        ("currentMetrics", "current", ["status", "currentCPUUtilizationPercentage"]),
    ] {
        let Some(value) = meta::remove(obj, &target) else { continue };
        let mut amount = json!({"averageUtilization": value});
        if half == "target" {
            meta::set(&mut amount, &["type"], "Utilization");
        }
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", half: amount}});
        let items = meta::map_mut(obj, &[target[0]]).entry(list).or_insert_with(|| json!([]));
        if let Some(items) = items.as_array_mut() {
            items.insert(0, metric);
        }
    }
}
