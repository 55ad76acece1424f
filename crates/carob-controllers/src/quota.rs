//! ResourceQuotas: counts what a namespace uses of what they limit (`pkg/controller/resourcequota`).
//!
//! Admission counts what comes, in the same transaction order as it admits it. This counts again what a quota begins with and
//! what changes or goes, which admission does not see; it leaves what comes to admission, since a count by caches could take
//! back what was just given away.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_api::Quantity;
use carob_api::quantity::Format;
use carob_api::quota::{self, Amounts};
use carob_client::{Asker, Change, During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::Resource;
use kube::api::{Api, PostParams};
use kube::core::metadata::PartialObjectMeta;
use serde_json::Value;

use crate::context::Context;
use crate::discovery;
use crate::ownership::version;
use crate::statuses;
use crate::versions::Versions;

/// After a count that admission may have overtaken, another one follows when what it admitted has long arrived here.
const COUNT_AGAIN: Duration = Duration::from_secs(5);

pub(crate) struct QuotaController {
    context: Context,
    ask: Asker<ObjectKey>,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    /// Other resources that some quota counts, by group and plural.
    counted: Mutex<HashMap<(String, String), Informer<PartialObjectMeta>>>,
    written: Versions,
}

impl QuotaController {
    pub(crate) fn new(context: Context, ask: Asker<ObjectKey>) -> Self {
        Self {
            ask,
            quotas: context.informers.of(),
            pods: context.informers.of(),
            services: context.informers.of(),
            claims: context.informers.of(),
            counted: Mutex::default(),
            context,
            written: Versions::default(),
        }
    }

    /// The quotas of the namespace of an object that went, that changed what it takes, or that came under other quotas.
    fn quotas_of<K: Resource + serde::Serialize>(
        quotas: &Informer<ResourceQuota>,
        change: Change<'_, K>,
        plural: &str,
    ) -> Vec<ObjectKey> {
        let Some(old) = change.old else { return Vec::new() };
        let quotas = quotas.list_in(&change.key().namespace);
        if quotas.is_empty() {
            return Vec::new();
        }
        let (old, new) = (json(old), change.new.map(json));
        // A deletion's time decides by itself later; what an event changes is the same at any time.
        let takes = |object: &Value| quota::of("", plural, object, Timestamp::MIN);
        let same = new.as_ref().is_some_and(|new| takes(new) == takes(&old));
        let concerned = |quota: &&Arc<ResourceQuota>| {
            let Some(new) = new.as_ref().filter(|_| same) else { return true };
            let limits = quota.spec.as_ref().map(json).unwrap_or_default();
            quota::matches(&limits, "", plural, new) != quota::matches(&limits, "", plural, &old)
        };
        quotas.iter().filter(concerned).map(|quota| ObjectKey::of(&**quota)).collect()
    }

    pub(crate) fn quotas_of_pod(quotas: &Informer<ResourceQuota>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
        Self::quotas_of(quotas, change, "pods")
    }

    pub(crate) fn quotas_of_service(quotas: &Informer<ResourceQuota>, change: Change<'_, Service>) -> Vec<ObjectKey> {
        Self::quotas_of(quotas, change, "services")
    }

    pub(crate) fn quotas_of_claim(
        quotas: &Informer<ResourceQuota>,
        change: Change<'_, PersistentVolumeClaim>,
    ) -> Vec<ObjectKey> {
        Self::quotas_of(quotas, change, "persistentvolumeclaims")
    }

    /// A quota that is new, limits something else, or whose status says that it does.
    pub(crate) fn changed(change: Change<'_, ResourceQuota>) -> Option<ObjectKey> {
        let Some(new) = change.new else { return Some(change.key()) };
        let shown = new.status.as_ref().and_then(|status| status.hard.as_ref());
        let limits = new.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        let same_spec = change.old.is_some_and(|old| old.spec == new.spec);
        (!same_spec || shown != limits).then(|| change.key())
    }

    /// The watched metadata of a resource that a quota counts; `None` if it is not served.
    async fn counted(&self, group: &str, plural: &str) -> Result<Option<Informer<PartialObjectMeta>>, ReconcileError> {
        let id = (group.to_owned(), plural.to_owned());
        let held = self.counted.lock().expect("no holder of the informers panics").get(&id).cloned();
        if let Some(informer) = held {
            return Ok(Some(informer));
        }
        let served = discovery::served(&self.context.client).await?;
        let named = |served: &discovery::Served| served.resource.group == group && served.resource.plural == plural;
        let Some(served) = served.into_iter().find(|served| served.namespaced && named(served)) else {
            return Ok(None);
        };
        let informer = self.context.informers.of_metadata(&served.resource);
        let (quotas, ask) = (self.quotas.clone(), self.ask.clone());
        informer.on_change(move |change| {
            if change.new.is_none() {
                for quota in quotas.list_in(&change.key().namespace) {
                    ask.ask(ObjectKey::of(&*quota));
                }
            }
        });
        self.counted.lock().expect("no holder of the informers panics").insert(id, informer.clone());
        Ok(Some(informer))
    }

    async fn used(&self, namespace: &str, spec: &ResourceQuotaSpec) -> Result<Amounts, ReconcileError> {
        let (now, limits) = (self.context.now(), json(spec));
        let pods = self.pods.list_in(namespace).into_iter().map(|pod| ("pods", json(&*pod)));
        let services = self.services.list_in(namespace).into_iter().map(|service| ("services", json(&*service)));
        let claims = self.claims.list_in(namespace).into_iter().map(|claim| ("persistentvolumeclaims", json(&*claim)));
        let counted =
            pods.chain(services).chain(claims).filter(|(plural, object)| quota::matches(&limits, "", plural, object));
        let mut used = Amounts::new();
        for (name, amount) in counted.flat_map(|(plural, object)| quota::of("", plural, &object, now)) {
            quota::add(&mut used, name, amount);
        }
        for name in spec.hard.iter().flatten().map(|(name, _)| name) {
            if let Some((group, plural)) = quota::counted_resource(name)
                && let Some(informer) = self.counted(group, plural).await?
            {
                informer.synced().await;
                let count = i64::try_from(informer.list_in(namespace).len()).unwrap_or(i64::MAX);
                used.insert(name.clone(), Quantity::from_units(count, Format::DecimalSi));
            }
        }
        Ok(used)
    }
}

/// What the rules of counting read.
fn json(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).expect("an API object always serialises")
}

/// What a quota limits, with what is used of it; what nothing uses is used by none.
fn status(spec: &ResourceQuotaSpec, used: &Amounts) -> ResourceQuotaStatus {
    let hard = spec.hard.clone().unwrap_or_default();
    let shown = |(name, limit): (&String, &Text)| {
        let format = Quantity::parse(&limit.0).map_or(Format::DecimalSi, |limit| limit.format());
        let amount = used.get(name).copied().unwrap_or_else(|| Quantity::from_units(0, format));
        (name.clone(), Text(amount.to_string()))
    };
    let used: BTreeMap<String, Text> = hard.iter().map(shown).collect();
    ResourceQuotaStatus { hard: Some(hard), used: Some(used) }
}

impl Reconcile for QuotaController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "resourcequota"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.quotas.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.quotas).await;
        let Some(quota) = self.quotas.get_key(&key) else {
            self.written.forget(&key);
            return Ok(Requeue::No);
        };
        let Some(spec) = quota.spec.as_ref().filter(|_| quota.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::No);
        };
        let status = status(spec, &self.used(&key.namespace, spec).await?);
        if statuses::same(&quota.status, &status) {
            return Ok(Requeue::No);
        }
        let wanted = ResourceQuota { status: Some(status), ..(*quota).clone() };
        let api: Api<ResourceQuota> = self.context.api(&key.namespace);
        let written = api.replace_status(&key.name, &PostParams::default(), &wanted).await;
        let written = written.unless_gone(|| format!("write the status of resource quota {key}"))?;
        self.written.note(&key, written.as_ref().map_or(0, version));
        Ok(Requeue::After(COUNT_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_shows_what_is_limited_and_nothing_else() {
        let text = |text: &str| Text(text.to_owned());
        let hard = [("pods".to_owned(), text("5")), ("requests.memory".to_owned(), text("1Gi"))];
        let spec = ResourceQuotaSpec { hard: Some(hard.into_iter().collect()), ..ResourceQuotaSpec::default() };
        let used = Amounts::from([("pods".to_owned(), quota::one()), ("services".to_owned(), quota::one())]);
        let shown: Vec<_> =
            status(&spec, &used).used.into_iter().flatten().map(|(name, text)| (name, text.0)).collect();
        assert_eq!(shown, [("pods".to_owned(), "1".to_owned()), ("requests.memory".to_owned(), "0".to_owned())]);
    }
}
