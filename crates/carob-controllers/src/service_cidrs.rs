//! ServiceCIDRs: each has a condition that says whether Services get addresses of it, and stays as long as one has an address
//! that is in no other (`pkg/controller/servicecidrs`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use carob_client::{Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use carob_client::{Subject, reference};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::core::metadata::PartialObjectMeta;
use serde_json::json;

use crate::context::Context;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";
const READY_MESSAGE: &str = "Kubernetes Service CIDR is ready";
const TERMINATING: &str = "Terminating";
const TERMINATING_MESSAGE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
/// How long a deletion waits at least: API servers that have not seen it yet may give an address away
/// (`pkg/controller/servicecidrs`, deletionGracePeriod).
const GRACE: Duration = Duration::from_secs(10);
/// The label of addresses that the API server has given to Services, and its value.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

pub(crate) struct ServiceCidrs {
    context: Context,
    cidrs: Informer<ServiceCIDR>,
    /// Names only, which the garbage collector watches anyway: there are as many as Services.
    addresses: Informer<PartialObjectMeta>,
    recorder: EventRecorder,
}

impl ServiceCidrs {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            cidrs: context.informers.of(),
            addresses: context.informers.of_metadata(&ApiResource::erase::<IPAddress>(&())),
            recorder: context.recorder("service-cidr-controller"),
            context,
        }
    }

    pub(crate) fn cidrs(&self) -> &Informer<ServiceCIDR> {
        &self.cidrs
    }

    pub(crate) fn addresses(&self) -> &Informer<PartialObjectMeta> {
        &self.addresses
    }

    /// The one that changed, and those that share addresses with it: one may be able to go now.
    pub(crate) fn of_cidr(cidrs: &Informer<ServiceCIDR>, change: Change<'_, ServiceCIDR>) -> Vec<ObjectKey> {
        let own = ranges(change.latest());
        let overlaps = |other: &&Arc<ServiceCIDR>| {
            let other = ranges(other);
            own.iter().any(|own| other.iter().any(|other| own.contains(other) || other.contains(own)))
        };
        let mut keys: Vec<ObjectKey> =
            cidrs.list().iter().filter(overlaps).map(|cidr| ObjectKey::of(&**cidr)).collect();
        keys.push(change.key());
        keys
    }

    /// Those on their way out that an address keeps or kept.
    pub(crate) fn of_address(cidrs: &Informer<ServiceCIDR>, change: Change<'_, PartialObjectMeta>) -> Vec<ObjectKey> {
        let Ok(address) = change.key().name.parse::<IpAddr>() else { return Vec::new() };
        let all = cidrs.list();
        let going = all.iter().filter(|cidr| is_going(cidr) && holds(cidr, address));
        going.map(|cidr| ObjectKey::of(&**cidr)).collect()
    }

    /// Whether a Service has an address that is in no other ServiceCIDR.
    async fn is_needed(&self, cidr: &ServiceCIDR) -> Result<bool, ReconcileError> {
        let others = self.cidrs.list();
        let names = self.addresses.keys();
        let api = self.context.cluster_api::<IPAddress>();
        for address in dependents(cidr, &others, names.iter().filter_map(|key| key.name.parse().ok())) {
            let found = api.get_opt(&address.to_string()).await.during(|| format!("get IP address {address}"))?;
            let is_given = found
                .and_then(|found| found.metadata.labels)
                .is_some_and(|labels| labels.get(MANAGED_BY).map(String::as_str) == Some(ALLOCATOR));
            if is_given {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn set_condition(
        &self,
        cidr: &ServiceCIDR,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), ReconcileError> {
        let held = cidr.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let condition = Condition {
            type_: READY.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: self.context.time(),
            observed_generation: None,
        };
        let Some(conditions) = with_condition(held, condition) else { return Ok(()) };
        let name = cidr.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "metadata": { "resourceVersion": cidr.metadata.resource_version }, "status": { "conditions": conditions },
        });
        let api = self.context.cluster_api::<ServiceCIDR>();
        let written = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let written = written.unless_gone(|| format!("write the condition of service CIDR {name}")).map(drop);
        if let (Err(error), "True") = (&written, status)
            && !error.is_conflict()
        {
            let message = "The ServiceCIDR Status can not be set to Ready=True";
            self.recorder.record(reference(cidr), EventKind::Warning, "KubernetesServiceCIDRError", message);
        }
        written
    }

    async fn set_finalizers(&self, cidr: &ServiceCIDR, finalizers: Vec<String>) -> Result<(), ReconcileError> {
        let name = cidr.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({ "metadata": {
            "uid": cidr.metadata.uid, "resourceVersion": cidr.metadata.resource_version, "finalizers": finalizers,
        } });
        let api = self.context.cluster_api::<ServiceCIDR>();
        let written = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        written.unless_gone(|| format!("write the finalizers of service CIDR {name}")).map(drop)
    }
}

fn ranges(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

fn is_going(cidr: &ServiceCIDR) -> bool {
    cidr.metadata.deletion_timestamp.is_some()
}

/// Whether Services get the address of it: neither the network's own nor the one for broadcasts.
fn holds(cidr: &ServiceCIDR, address: IpAddr) -> bool {
    let is_given = |range: &IpNet| {
        range.contains(&address) && address != range.network() && !(address.is_ipv4() && address == range.broadcast())
    };
    ranges(cidr).iter().any(is_given)
}

/// The addresses that no ServiceCIDR holds but this one, and others that are on their way out too.
fn dependents(
    cidr: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    addresses: impl Iterator<Item = IpAddr>,
) -> impl Iterator<Item = IpAddr> {
    let staying: Vec<&Arc<ServiceCIDR>> = all.iter().filter(|other| !is_going(other)).collect();
    addresses.filter(move |address| holds(cidr, *address) && !staying.iter().any(|other| holds(other, *address)))
}

/// The conditions with the new one in place of its like; `None` where it says nothing new.
fn with_condition(mut held: Vec<Condition>, mut new: Condition) -> Option<Vec<Condition>> {
    match held.iter_mut().find(|condition| condition.type_ == new.type_) {
        None => held.push(new),
        Some(old) if (&old.status, &old.reason, &old.message) == (&new.status, &new.reason, &new.message) => {
            return None;
        }
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
    }
    Some(held)
}

impl Reconcile for ServiceCidrs {
    /// A ServiceCIDR.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "service-cidr"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.cidrs.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(cidr) = self.cidrs.get_key(&key) else { return Ok(Requeue::No) };
        let mut finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
        let is_protected = finalizers.iter().any(|name| name == FINALIZER);
        let Some(deleted) = &cidr.metadata.deletion_timestamp else {
            if !is_protected {
                finalizers.push(FINALIZER.to_owned());
                self.set_finalizers(&cidr, finalizers).await?;
                // Its change comes back here.
                return Ok(Requeue::No);
            }
            self.set_condition(&cidr, "True", "", READY_MESSAGE).await?;
            return Ok(Requeue::No);
        };
        if !is_protected {
            return Ok(Requeue::No);
        }
        if self.is_needed(&cidr).await? {
            self.set_condition(&cidr, "False", TERMINATING, TERMINATING_MESSAGE).await?;
            return Ok(Requeue::No);
        }
        let passed = Duration::try_from(self.context.now().duration_since(deleted.0)).unwrap_or_default();
        if let Some(left) = GRACE.checked_sub(passed).filter(|left| !left.is_zero()) {
            return Ok(Requeue::After(left));
        }
        finalizers.retain(|name| name != FINALIZER);
        self.set_finalizers(&cidr, finalizers).await?;
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(name: &str, ranges: &[&str], is_going: bool) -> Arc<ServiceCIDR> {
        let mut object = json!({ "metadata": { "name": name }, "spec": { "cidrs": ranges } });
        if is_going {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(object).expect("a ServiceCIDR"))
    }

    #[test]
    fn addresses_that_no_other_range_holds_depend_on_theirs() {
        let going = cidr("going", &["10.0.0.0/24", "fd00::/112"], true);
        let addresses = ["10.0.0.0", "10.0.0.7", "10.0.0.255", "10.0.1.7", "fd00::7"];
        let check = |others: &[Arc<ServiceCIDR>]| {
            let all: Vec<_> = others.iter().cloned().chain([going.clone()]).collect();
            let found = dependents(&going, &all, addresses.iter().filter_map(|address| address.parse().ok()));
            found.map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(check(&[]), "10.0.0.7 fd00::7");
        assert_eq!(check(&[cidr("wide", &["10.0.0.0/16"], false)]), "fd00::7");
        assert_eq!(check(&[cidr("same", &["fd00::/112", "10.0.0.0/24"], false)]), "");
        assert_eq!(check(&[cidr("part", &["10.0.0.0/29"], false)]), "10.0.0.7 fd00::7", "there it is for broadcasts");
        assert_eq!(check(&[cidr("going too", &["10.0.0.0/16"], true)]), "10.0.0.7 fd00::7", "both wait");
    }

    #[test]
    fn a_condition_is_written_when_it_is_new() {
        let at = |second| {
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                jiff::Timestamp::from_second(second).expect("in range"),
            )
        };
        let condition = |kind: &str, status: &str, message: &str, second| Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: String::new(),
            message: message.to_owned(),
            last_transition_time: at(second),
            observed_generation: None,
        };
        let other = condition("Other", "True", "", 1);
        let held = with_condition(vec![other.clone()], condition(READY, "True", "a", 2)).expect("it is new");
        assert_eq!(held.len(), 2);
        assert_eq!(with_condition(held.clone(), condition(READY, "True", "a", 3)), None);
        let reworded = with_condition(held.clone(), condition(READY, "True", "b", 3)).expect("another message");
        assert_eq!(reworded[1].last_transition_time, at(2), "the status is the same");
        let lost = with_condition(held, condition(READY, "False", "b", 3)).expect("another status");
        assert_eq!((&lost[0], &lost[1].last_transition_time), (&other, &at(3)));
    }
}
