//! What an object takes of a quota (`pkg/quota/v1/evaluator/core`). Pure.

use std::collections::BTreeMap;

use carob_api::Quantity;
use carob_api::quantity::Format;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::pods;

/// Amounts by the name that a quota has for them.
pub(super) type Usage = BTreeMap<String, Quantity>;

const STORAGE_CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io";
/// The annotation that named a claim's class before there was a field.
const STORAGE_CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn one() -> Quantity {
    Quantity::from_units(1, Format::DecimalSi)
}

pub(super) fn add(usage: &mut Usage, name: impl Into<String>, amount: Quantity) {
    let held = usage.entry(name.into()).or_insert_with(|| Quantity::from_units(0, amount.format()));
    *held = held.saturating_add(amount);
}

/// An amount that cannot be read, which validation does not let in, counts as none.
fn amount(text: &Text) -> Quantity {
    Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero())
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(container: &Container, limits: bool) -> Amounts {
    let resources = container.resources.as_ref();
    let listed =
        resources.and_then(|resources| if limits { resources.limits.as_ref() } else { resources.requests.as_ref() });
    listed.into_iter().flatten().map(|(name, text)| (name.clone(), amount(text))).collect()
}

fn sum(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let held = into.entry(name.clone()).or_insert_with(|| Quantity::from_units(0, amount.format()));
        *held = held.saturating_add(*amount);
    }
}

fn raise(into: &mut Amounts, to: &Amounts) {
    for (name, amount) in to {
        let held = into.entry(name.clone()).or_insert(*amount);
        *held = (*held).max(*amount);
    }
}

/// What a Pod needs at most at one time: its containers and sidecars together, or an init container with the sidecars that
/// began before it, and its overhead (`component-helpers/resource`, PodRequests).
fn pod_amounts(pod: &Pod, limits: bool) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let mut running = Amounts::new();
    for container in &spec.containers {
        sum(&mut running, &amounts(container, limits));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = amounts(container, limits);
        if container.restart_policy.as_deref() == Some("Always") {
            sum(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut at_once = sidecars.clone();
            sum(&mut at_once, &own);
            raise(&mut starting, &at_once);
        }
    }
    sum(&mut running, &sidecars);
    raise(&mut running, &starting);
    let mut overhead: Amounts =
        spec.overhead.iter().flatten().map(|(name, text)| (name.clone(), amount(text))).collect();
    // What has no limit gets none from the overhead.
    overhead.retain(|name, _| !limits || running.contains_key(name));
    sum(&mut running, &overhead);
    running
}

/// Whether a Pod still takes anything: not when it ended, nor when it should have been gone for a while.
pub(super) fn pod_counts(pod: &Pod, now: Timestamp) -> bool {
    let overdue = pod.metadata.deletion_timestamp.as_ref().is_some_and(|at| at.0 < now);
    !pods::is_finished(pod) && !overdue
}

pub(super) fn pod(pod: &Pod, now: Timestamp) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one())]);
    if !pod_counts(pod, now) {
        return usage;
    }
    add(&mut usage, "pods", one());
    for (name, amount) in pod_amounts(pod, false) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            add(&mut usage, name.clone(), amount);
        }
        add(&mut usage, format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_amounts(pod, true) {
        add(&mut usage, format!("limits.{name}"), amount);
    }
    usage
}

pub(super) fn service(service: &Service) -> Usage {
    let mut usage = Usage::from([("services".to_owned(), one()), ("count/services".to_owned(), one())]);
    let Some(spec) = &service.spec else { return usage };
    let ports = i64::try_from(spec.ports.as_ref().map_or(0, Vec::len)).unwrap_or(i64::MAX);
    let ports = Quantity::from_units(ports, Format::DecimalSi);
    match spec.type_.as_deref() {
        Some("NodePort") => add(&mut usage, "services.nodeports", ports),
        Some("LoadBalancer") => {
            add(&mut usage, "services.loadbalancers", one());
            if spec.allocate_load_balancer_node_ports != Some(false) {
                add(&mut usage, "services.nodeports", ports);
            }
        }
        _ => {}
    }
    usage
}

pub(super) fn claim(claim: &PersistentVolumeClaim) -> Usage {
    let counted = ["persistentvolumeclaims", "count/persistentvolumeclaims"];
    let mut usage: Usage = counted.into_iter().map(|name| (name.to_owned(), one())).collect();
    let annotated =
        claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(STORAGE_CLASS_ANNOTATION));
    let spec = claim.spec.as_ref();
    let class = annotated.or(spec.and_then(|spec| spec.storage_class_name.as_ref())).filter(|class| !class.is_empty());
    let requested = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage")).map(amount);
    // A claim that was grown takes what it has got, even while less is asked for.
    let granted = claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage")).map(amount);
    let size = requested.max(granted);
    if let Some(size) = size {
        add(&mut usage, "requests.storage", size);
    }
    if let Some(class) = class {
        add(&mut usage, format!("{class}{STORAGE_CLASS_SUFFIX}/persistentvolumeclaims"), one());
        if let Some(size) = size {
            add(&mut usage, format!("{class}{STORAGE_CLASS_SUFFIX}/requests.storage"), size);
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn show(usage: &Usage) -> String {
        usage.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    fn of<T: serde::de::DeserializeOwned>(object: Value) -> T {
        serde_json::from_value(object).expect("the object decodes")
    }

    #[test]
    fn a_pod_takes_what_it_needs_at_most_at_one_time() {
        let container =
            |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}}});
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = json!("Always");
        let two: Pod = of(json!({"metadata": {}, "spec": {
            "containers": [container("100m"), container("300m")],
            "initContainers": [sidecar, container("350m")],
            "overhead": {"cpu": "10m"},
        }}));
        assert_eq!(
            show(&pod(&two, Timestamp::UNIX_EPOCH)),
            "count/pods=1 cpu=610m limits.memory=3Gi pods=1 requests.cpu=610m"
        );
        let ended: Pod = of(json!({"metadata": {}, "spec": {"containers": []}, "status": {"phase": "Failed"}}));
        assert_eq!(show(&pod(&ended, Timestamp::UNIX_EPOCH)), "count/pods=1");
    }

    #[test]
    fn services_and_claims_take_ports_and_storage() {
        let balanced: Service =
            of(json!({"metadata": {}, "spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}));
        assert_eq!(
            show(&service(&balanced)),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2"
        );
        let gold: PersistentVolumeClaim = of(
            json!({"metadata": {}, "spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}}),
        );
        assert_eq!(
            show(&claim(&gold)),
            "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
             gold.storageclass.storage.k8s.io/requests.storage=5Gi persistentvolumeclaims=1 requests.storage=5Gi"
        );
    }
}
