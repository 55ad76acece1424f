//! The rules, for Pods as JSON.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Asked, Qos, Total};
use crate::{meta, quantity::Quantity};

/// Amounts by resource.
pub type ResourceList = BTreeMap<String, Quantity>;

/// A map of quantities of an object. One that cannot be read, which validation does not let in, counts as none.
pub fn amounts_at(object: &Value, path: &[&str]) -> ResourceList {
    let listed = meta::at(object, path).and_then(Value::as_object);
    listed.into_iter().flatten().map(|(name, value)| (name.clone(), quantity(value))).collect()
}

/// A quantity as JSON; one that cannot be read counts as none.
pub fn quantity(value: &Value) -> Quantity {
    value.as_str().and_then(|text| Quantity::parse(text).ok()).unwrap_or_else(Quantity::zero)
}

/// Whether two `resources` ask for the same, however it is written.
pub fn same_resources(one: &Value, other: &Value) -> bool {
    ["requests", "limits"].iter().all(|which| amounts_at(one, &[which]) == amounts_at(other, &[which]))
}

fn total(spec: &Value, which: &str) -> Total<ResourceList> {
    let mut total = Total::default();
    for container in meta::items_at(spec, &["containers"]) {
        total.container(&amounts_at(container, &["resources", which]));
    }
    for container in meta::items_at(spec, &["initContainers"]) {
        let is_sidecar = meta::str_at(container, &["restartPolicy"]) == Some("Always");
        total.init_container(&amounts_at(container, &["resources", which]), is_sidecar);
    }
    total
}

/// What the containers of a PodSpec ask for at most at one time, as `requests` or as `limits`.
pub fn of_containers(spec: &Value, which: &str) -> ResourceList {
    total(spec, which).of_containers()
}

/// What a Pod requests in all.
pub fn requests(pod: &Value) -> ResourceList {
    let own = amounts_at(pod, &["spec", "resources", "requests"]);
    total(&pod["spec"], "requests").requests(Some(&own), Some(&amounts_at(pod, &["spec", "overhead"])))
}

/// What a Pod may take in all, of what has a limit.
pub fn limits(pod: &Value) -> ResourceList {
    let own = amounts_at(pod, &["spec", "resources", "limits"]);
    total(&pod["spec"], "limits").limits(Some(&own), Some(&amounts_at(pod, &["spec", "overhead"])))
}

/// The class of a Pod, from its spec.
pub fn qos(pod: &Value) -> Qos {
    let asked = |resources: &Value| {
        let amount = |which: &str, name: &str| meta::at(resources, &[which, name]).map(quantity);
        ["cpu", "memory"].map(|name| Asked::new(amount("requests", name), amount("limits", name)))
    };
    let lists = ["containers", "initContainers"].map(|list| meta::items_at(pod, &["spec", list]));
    let containers = lists.into_iter().flatten().map(|container| asked(&container["resources"]));
    super::qos(meta::at(pod, &["spec", "resources"]).map(asked), containers)
}
