//! Quality of service classes (kubernetes pkg/apis/core/helper/qos).

use serde_json::Value;

use super::resources::amount;
use crate::{meta, quantity::Quantity};

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// Class of a Pod from its requests and limits of CPU and memory.
pub fn qos_class(pod: &Value) -> &'static str {
    let own = meta::at(pod, &["spec", "resources"]);
    let is_set = |list: Option<&Value>| COMPUTE.iter().any(|name| positive(list, name).is_some());
    if let Some(own) = own
        && (is_set(own.get("limits")) || is_set(own.get("requests")))
    {
        return class_of(&[own]);
    }
    let containers = ["containers", "initContainers"].map(|list| meta::items_at(pod, &["spec", list]));
    let resources: Vec<&Value> = containers.into_iter().flatten().map(|container| &container["resources"]).collect();
    class_of(&resources)
}

fn positive(list: Option<&Value>, name: &str) -> Option<Quantity> {
    amount(list, name).filter(|quantity| !quantity.is_zero() && !quantity.is_negative())
}

fn class_of(resources: &[&Value]) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for own in resources {
        for name in COMPUTE {
            let (request, limit) = (positive(own.get("requests"), name), positive(own.get("limits"), name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
