//! ResourceQuotas: counts what a namespace uses of what they limit (`pkg/controller/resourcequota`).
//!
//! This keeps the status. Refusing what is too much is the API server's admission.

mod scope;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use carob_api::Quantity;
use carob_api::quantity::Format;
use carob_client::{Asker, Change, During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::Resource;
use kube::api::{Api, PostParams};
use kube::core::metadata::PartialObjectMeta;

use crate::context::Context;
use crate::discovery;
use crate::ownership::version;
use crate::statuses;
use crate::versions::Versions;
use usage::Usage;

/// Kinds of the core group that a quota may count under their own name.
const PLAIN_COUNTS: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
const COUNT_PREFIX: &str = "count/";

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

    /// The quotas of the namespace of an object that came, went or changed what it takes.
    fn quotas_of<K: Resource>(
        quotas: &Informer<ResourceQuota>,
        change: Change<'_, K>,
        takes: impl Fn(&K) -> Usage,
    ) -> Vec<ObjectKey> {
        if change.old.map(|old| takes(old)) == change.new.map(|new| takes(new)) {
            return Vec::new();
        }
        quotas.list_in(&change.key().namespace).iter().map(|quota| ObjectKey::of(&**quota)).collect()
    }

    pub(crate) fn quotas_of_pod(quotas: &Informer<ResourceQuota>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
        // A deletion's time decides by itself later; what an event changes is the same at any time.
        Self::quotas_of(quotas, change, |pod| usage::pod(pod, jiff::Timestamp::MIN))
    }

    pub(crate) fn quotas_of_service(quotas: &Informer<ResourceQuota>, change: Change<'_, Service>) -> Vec<ObjectKey> {
        Self::quotas_of(quotas, change, usage::service)
    }

    pub(crate) fn quotas_of_claim(
        quotas: &Informer<ResourceQuota>,
        change: Change<'_, PersistentVolumeClaim>,
    ) -> Vec<ObjectKey> {
        Self::quotas_of(quotas, change, usage::claim)
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
            if change.old.is_none() || change.new.is_none() {
                for quota in quotas.list_in(&change.key().namespace) {
                    ask.ask(ObjectKey::of(&*quota));
                }
            }
        });
        self.counted.lock().expect("no holder of the informers panics").insert(id, informer.clone());
        Ok(Some(informer))
    }

    async fn used(&self, namespace: &str, spec: &ResourceQuotaSpec) -> Result<Usage, ReconcileError> {
        let mut used = Usage::new();
        let now = self.context.now();
        let pods = self.pods.list_in(namespace);
        let pods = pods.iter().filter(|pod| scope::matches(spec, pod)).map(|pod| usage::pod(pod, now));
        let services = self.services.list_in(namespace);
        let claims = self.claims.list_in(namespace);
        let others = services
            .iter()
            .map(|service| usage::service(service))
            .chain(claims.iter().map(|claim| usage::claim(claim)));
        for (name, amount) in pods.chain(others).flatten() {
            usage::add(&mut used, name, amount);
        }
        for name in spec.hard.iter().flatten().map(|(name, _)| name) {
            if let Some((group, plural)) = counted_resource(name)
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

/// The group and plural of a resource that a quota counts as objects, other than those with rules of their own.
fn counted_resource(name: &str) -> Option<(&str, &str)> {
    if PLAIN_COUNTS.contains(&name) {
        return Some(("", name));
    }
    let resource = name.strip_prefix(COUNT_PREFIX)?;
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let own_rules = group.is_empty() && matches!(plural, "pods" | "services" | "persistentvolumeclaims");
    (!own_rules).then_some((group, plural))
}

/// What a quota limits, with what is used of it; what nothing uses is used by none.
fn status(spec: &ResourceQuotaSpec, used: &Usage) -> ResourceQuotaStatus {
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
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_by_resource_and_group() {
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

    #[test]
    fn the_status_shows_what_is_limited_and_nothing_else() {
        let text = |text: &str| Text(text.to_owned());
        let hard = [("pods".to_owned(), text("5")), ("requests.memory".to_owned(), text("1Gi"))];
        let spec = ResourceQuotaSpec { hard: Some(hard.into_iter().collect()), ..ResourceQuotaSpec::default() };
        let used = Usage::from([("pods".to_owned(), usage::one()), ("services".to_owned(), usage::one())]);
        let shown: Vec<_> =
            status(&spec, &used).used.into_iter().flatten().map(|(name, text)| (name, text.0)).collect();
        assert_eq!(shown, [("pods".to_owned(), "1".to_owned()), ("requests.memory".to_owned(), "0".to_owned())]);
    }
}
