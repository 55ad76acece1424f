//! What an object takes of a quota.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{Amounts, add, one};
use crate::meta;
use crate::pod::value::{self, quantity};
use crate::pod::{is_huge_pages, is_pod_level};
use crate::quantity::{Format, Quantity};

const STORAGE_CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io";
/// The annotation that named a claim's class before there was a field.
const STORAGE_CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Kinds of the core group that a quota may count under their own name.
const PLAIN_COUNTS: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
const COUNT_PREFIX: &str = "count/";
/// Kinds of the core group with rules of their own.
const RULED: [&str; 3] = ["pods", "services", "persistentvolumeclaims"];
/// What every container has to say how much it wants of where a quota limits it (`validationSet`).
const COMPUTE: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// What a new object of this resource takes.
pub fn of(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    match (group, plural) {
        ("", "pods") => pod(object, now),
        ("", "services") => service(object),
        ("", "persistentvolumeclaims") => claim(object),
        ("", plain) => {
            let own = PLAIN_COUNTS.contains(&plain).then(|| plain.to_owned());
            own.into_iter().chain([format!("{COUNT_PREFIX}{plain}")]).map(|name| (name, one())).collect()
        }
        (group, plural) => Amounts::from([(format!("{COUNT_PREFIX}{plural}.{group}"), one())]),
    }
}

/// The group and plural of a resource that a quota counts as objects under this name, other than those with rules of
/// their own.
pub fn counted_resource(name: &str) -> Option<(&str, &str)> {
    if PLAIN_COUNTS.contains(&name) {
        return Some(("", name));
    }
    let resource = name.strip_prefix(COUNT_PREFIX)?;
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let own_rules = group.is_empty() && RULED.contains(&plural);
    (!own_rules).then_some((group, plural))
}

/// Whether a Pod still takes anything: not when it ended, nor when it should have been gone for a while.
fn pod_counts(pod: &Value, now: Timestamp) -> bool {
    let deadline = meta::deletion_timestamp(pod).and_then(|text| text.parse::<Timestamp>().ok());
    let finished = matches!(meta::str_at(pod, &["status", "phase"]), Some("Failed" | "Succeeded"));
    !finished && deadline.is_none_or(|deadline| deadline >= now)
}

fn pod(pod: &Value, now: Timestamp) -> Amounts {
    let mut taken = Amounts::from([("count/pods".to_owned(), one())]);
    if !pod_counts(pod, now) {
        return taken;
    }
    add(&mut taken, "pods", one());
    for (name, amount) in value::requests(pod) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || is_huge_pages(&name) {
            add(&mut taken, name.clone(), amount);
        }
        add(&mut taken, format!("requests.{name}"), amount);
    }
    for (name, amount) in value::limits(pod) {
        add(&mut taken, format!("limits.{name}"), amount);
    }
    taken
}

fn service(service: &Value) -> Amounts {
    let mut taken = Amounts::from([("services".to_owned(), one()), ("count/services".to_owned(), one())]);
    let ports = i64::try_from(meta::items_at(service, &["spec", "ports"]).len()).unwrap_or(i64::MAX);
    let ports = Quantity::from_units(ports, Format::DecimalSi);
    match meta::str_at(service, &["spec", "type"]) {
        Some("NodePort") => add(&mut taken, "services.nodeports", ports),
        Some("LoadBalancer") => {
            add(&mut taken, "services.loadbalancers", one());
            if meta::bool_at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(false) {
                add(&mut taken, "services.nodeports", ports);
            }
        }
        _ => {}
    }
    taken
}

fn claim(claim: &Value) -> Amounts {
    let counted = ["persistentvolumeclaims", "count/persistentvolumeclaims"];
    let mut taken: Amounts = counted.into_iter().map(|name| (name.to_owned(), one())).collect();
    let named = meta::str_at(claim, &["spec", "storageClassName"]);
    let class = meta::annotation(claim, STORAGE_CLASS_ANNOTATION).or(named).filter(|class| !class.is_empty());
    let requested = meta::at(claim, &["spec", "resources", "requests", "storage"]).map(quantity);
    // A claim that was grown takes what it has got, even while less is asked for.
    let granted = meta::at(claim, &["status", "capacity", "storage"]).map(quantity);
    let size = requested.max(granted);
    if let Some(size) = size {
        add(&mut taken, "requests.storage", size);
    }
    if let Some(class) = class {
        add(&mut taken, format!("{class}{STORAGE_CLASS_SUFFIX}/persistentvolumeclaims"), one());
        if let Some(size) = size {
            add(&mut taken, format!("{class}{STORAGE_CLASS_SUFFIX}/requests.storage"), size);
        }
    }
    taken
}

fn asks_itself(pod: &Value) -> bool {
    let named = |which| meta::at(pod, &["spec", "resources", which]).and_then(Value::as_object);
    ["requests", "limits"].into_iter().filter_map(named).flatten().any(|(name, _)| is_pod_level(name))
}

/// Which of the limited amounts some containers of a Pod do not specify, and which containers (Constraints).
/// Of a Pod that says itself how much it wants, containers need not say it.
pub(super) fn unspecified<'a>(pod: &Value, limited: impl Iterator<Item = &'a str>) -> BTreeMap<String, Vec<String>> {
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if asks_itself(pod) {
        return missing;
    }
    let lists = ["containers", "initContainers"];
    let containers = || lists.into_iter().flat_map(|list| meta::items_at(pod, &["spec", list]));
    for name in limited.filter(|name| COMPUTE.contains(name)) {
        let (which, resource) = match name.split_once('.') {
            Some((which, resource)) => (which, resource),
            None => ("requests", name),
        };
        let silent = containers().filter(|container| meta::at(container, &["resources", which, resource]).is_none());
        let mut names: Vec<String> =
            silent.filter_map(|container| meta::str_at(container, &["name"])).map(str::to_owned).collect();
        names.sort();
        if !names.is_empty() {
            missing.insert(name.to_owned(), names);
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(amounts: &Amounts) -> String {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_pod_takes_what_it_needs_at_most_at_one_time() {
        let container =
            |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}}});
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = json!("Always");
        let two = json!({"metadata": {}, "spec": {
            "containers": [container("100m"), container("300m")],
            "initContainers": [sidecar, container("350m")],
            "overhead": {"cpu": "10m"},
        }});
        assert_eq!(
            show(&pod(&two, Timestamp::UNIX_EPOCH)),
            "count/pods=1 cpu=610m limits.memory=3Gi pods=1 requests.cpu=610m"
        );
        let ended = json!({"metadata": {}, "spec": {"containers": []}, "status": {"phase": "Failed"}});
        assert_eq!(show(&pod(&ended, Timestamp::UNIX_EPOCH)), "count/pods=1");
        let overdue = json!({"metadata": {"deletionTimestamp": "1969-12-31T23:59:59Z"}, "spec": {"containers": []}});
        assert_eq!(show(&pod(&overdue, Timestamp::UNIX_EPOCH)), "count/pods=1");
    }

    #[test]
    fn services_and_claims_take_ports_and_storage() {
        let balanced = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            show(&service(&balanced)),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2"
        );
        let gold = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}});
        assert_eq!(
            show(&claim(&gold)),
            "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
             gold.storageclass.storage.k8s.io/requests.storage=5Gi persistentvolumeclaims=1 requests.storage=5Gi"
        );
    }

    #[test]
    fn other_objects_are_counted_by_resource_and_group() {
        let taken = |group, plural| show(&of(group, plural, &json!({}), Timestamp::UNIX_EPOCH));
        assert_eq!(taken("", "secrets"), "count/secrets=1 secrets=1");
        assert_eq!(taken("", "endpoints"), "count/endpoints=1");
        assert_eq!(taken("apps", "replicasets"), "count/replicasets.apps=1");
        let cases = [
            ("configmaps", Some(("", "configmaps"))),
            ("count/configmaps", Some(("", "configmaps"))),
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/widgets.example.com", Some(("example.com", "widgets"))),
            ("count/pods", None),
            ("pods", None),
            ("requests.cpu", None),
        ];
        for (name, expected) in cases {
            assert_eq!(counted_resource(name), expected, "{name}");
        }
    }
}
