//! StatefulSets: Pods with names and storage of their own, in order (`pkg/controller/statefulset`).

mod claims;
mod identity;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_client::{
    Change, During, EventKind, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::Api;
use kube::core::Selector;

use crate::availability;
use crate::context::Context;
use crate::ownership::{self, Owner, still_owner};
use crate::percent::{Round, scaled};
use crate::pod_control::{BURST, PodControl, said, slow_start};
use crate::pods;
use crate::revisions::{History, Revisions, template_of};
use crate::statuses;
use crate::versions::Versions;
use claims::Claims;
use plan::{Counts, NewPod, Plan, Wish};

pub(crate) struct StatefulController {
    context: Context,
    sets: Informer<StatefulSet>,
    control: PodControl,
    revisions: Revisions,
    claims: Claims,
    written: Versions,
}

impl StatefulController {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            sets: context.informers.of(),
            control: PodControl::new(context.clone(), "statefulset-controller"),
            revisions: Revisions::new(context.clone()),
            claims: Claims::new(context.clone()),
            written: Versions::default(),
            context,
        }
    }

    pub(crate) fn sets(&self) -> &Informer<StatefulSet> {
        &self.sets
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        self.control.pods()
    }

    pub(crate) fn revisions(&self) -> &Informer<ControllerRevision> {
        self.revisions.informer()
    }

    pub(crate) fn claims(&self) -> &Informer<PersistentVolumeClaim> {
        self.claims.informer()
    }

    pub(crate) fn sets_of_pod(sets: &Informer<StatefulSet>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
        ownership::owners_of(sets, change, |set| Selector::try_from(set.spec.as_ref()?.selector.clone()).ok())
    }

    /// A Pod may wait for an old claim of its claim's name to go.
    pub(crate) fn sets_of_claim(
        sets: &Informer<StatefulSet>,
        change: Change<'_, PersistentVolumeClaim>,
    ) -> Vec<ObjectKey> {
        let has_claims =
            |set: &StatefulSet| set.spec.as_ref().is_some_and(|spec| spec.volume_claim_templates.is_some());
        if change.new.is_some() {
            return Vec::new();
        }
        let own = sets.list_in(&change.key().namespace);
        own.iter().filter(|set| has_claims(set)).map(|set| ObjectKey::of(&**set)).collect()
    }

    /// The set's Pods by ordinal, those that we deleted shown as such.
    async fn claim(&self, owner: &Owner, spec: &StatefulSetSpec) -> Result<BTreeMap<i32, Arc<Pod>>, ReconcileError> {
        let selector = ownership::selector(&spec.selector, &owner.key)?;
        let api: Api<StatefulSet> = self.context.api(&owner.key.namespace);
        let candidates = self.context.indexes.pods_by_owner.candidates(&owner.uid, &owner.key.namespace).into_iter();
        let candidates = candidates.filter(|pod| identity::ordinal(&owner.key.name, pod).is_some()).collect();
        let claimed =
            ownership::claim(&self.control.api(owner), owner, &selector, candidates, still_owner(&api, owner)).await?;
        self.control.note_version(owner, claimed.version);
        self.control.prune(owner, claimed.objects.iter().map(|pod| &**pod));
        let seen = |pod: Arc<Pod>| {
            if pods::is_deleting(&pod) || !self.control.is_deleted(owner, &pod) {
                return pod;
            }
            let mut deleted = (*pod).clone();
            deleted.metadata.deletion_timestamp = Some(self.context.time());
            Arc::new(deleted)
        };
        let numbered =
            claimed.objects.into_iter().filter_map(|pod| Some((identity::ordinal(&owner.key.name, &pod)?, seen(pod))));
        Ok(numbered.collect())
    }

    async fn create(
        &self,
        owner: &Owner,
        set: &StatefulSet,
        history: &History,
        current: &str,
        new: NewPod,
    ) -> Result<(), ReconcileError> {
        let reference = reference(set);
        if !self.claims.ensure(&self.control, owner, set, &reference, new.ordinal).await? {
            return Ok(());
        }
        let named = history.all.iter().find(|revision| revision.name_any() == current);
        let revision = if new.updated { &history.update } else { named.unwrap_or(&history.update) };
        let pod = identity::new_pod(owner, set, revision, &template_of(revision)?, new.ordinal);
        let name = pod.name_any();
        let created = self.control.try_create(owner, &pod).await;
        self.tell(&reference, owner, "create", &name, created.as_ref().err());
        match created {
            // A Pod of that name that is not ours: its owner has to see to it, and we try again.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Err(ReconcileError::Unusable(format!(
                "pod {}/{name} exists and is not of {}",
                owner.key.namespace, owner.key
            ))),
            created => created.during(|| format!("create pod {}/{name}", owner.key.namespace)).map(drop),
        }
    }

    async fn delete(&self, owner: &Owner, reference: &ObjectReference, pod: &Pod) -> Result<(), ReconcileError> {
        let name = pod.name_any();
        let deleted = self.control.try_delete(owner, pod).await;
        self.tell(reference, owner, "delete", &name, deleted.as_ref().err());
        deleted.during(|| format!("delete pod {}/{name}", owner.key.namespace)).map(drop)
    }

    /// An Event in the words of this controller, which differ from those of the others.
    fn tell(&self, reference: &ObjectReference, owner: &Owner, verb: &str, pod: &str, error: Option<&kube::Error>) {
        let title = if verb == "create" { "Create" } else { "Delete" };
        let (kind, reason, message) = match error {
            None => {
                let message = format!("{verb} Pod {pod} in StatefulSet {} successful", owner.key.name);
                (EventKind::Normal, format!("Successful{title}"), message)
            }
            Some(error) => {
                let message =
                    format!("{verb} Pod {pod} in StatefulSet {} failed error: {}", owner.key.name, said(error));
                (EventKind::Warning, format!("Failed{title}"), message)
            }
        };
        self.control.recorder().record(reference.clone(), kind, &reason, message);
    }

    async fn act(
        &self,
        owner: &Owner,
        set: &StatefulSet,
        history: &History,
        wish: &Wish<'_>,
        all: &BTreeMap<i32, Arc<Pod>>,
        plan: &Plan,
    ) -> Result<(), ReconcileError> {
        for (ordinal, pod) in all {
            self.claims.keep_owners(owner, set, *ordinal, pod, plan.condemned.contains(ordinal)).await?;
        }
        let reference = reference(set);
        for pod in &plan.ended {
            let failed = pods::phase(pod) == pods::FAILED;
            let (reason, what) =
                if failed { ("RecreatingFailedPod", "failed") } else { ("RecreatingTerminatedPod", "terminated") };
            let message = format!("StatefulSet {} is recreating {what} Pod {}", owner.key, pod.name_any());
            self.control.recorder().record(reference.clone(), EventKind::Warning, reason, message);
            self.delete(owner, &reference, pod).await?;
        }
        let create = |index: usize| self.create(owner, set, history, wish.current, plan.create[index]);
        let (_, error) = slow_start(plan.create.len(), create).await;
        if let Some(error) = error {
            return Err(error);
        }
        let delete = |index: usize| self.delete(owner, &reference, &plan.delete[index]);
        let (_, error) = slow_start(plan.delete.len().min(BURST), delete).await;
        error.map_or(Ok(()), Err)
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        wish: &Wish<'_>,
        counts: &Counts,
        collisions: i32,
    ) -> Result<(), ReconcileError> {
        let wanted = StatefulSet { status: Some(status(set, wish, counts, collisions)), ..set.clone() };
        if statuses::same(&set.status, &wanted.status) {
            return Ok(());
        }
        statuses::write(&self.context, &self.written, key, &wanted).await
    }

    async fn history(
        &self,
        owner: &Owner,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
    ) -> Result<History, ReconcileError> {
        self.revisions.settled(owner).await;
        let selector = ownership::selector(&spec.selector, &owner.key)?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let api: Api<StatefulSet> = self.context.api(&owner.key.namespace);
        let alive = still_owner(&api, owner);
        self.revisions.history(owner, &selector, &spec.template, collisions, alive).await
    }
}

fn wish<'a>(spec: &StatefulSetSpec, current: &'a str, update: &'a str, now: jiff::Timestamp) -> Wish<'a> {
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let rolling = strategy.rolling_update.unwrap_or_default();
    let replicas = identity::replicas(spec);
    Wish {
        first: identity::first_ordinal(spec),
        replicas,
        ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        rolling: strategy.type_.as_deref() != Some("OnDelete"),
        partition: rolling.partition.unwrap_or(0),
        max_unavailable: rolling.max_unavailable.map_or(1, |value| scaled(&value, replicas, Round::Up)),
        min_ready_secs: spec.min_ready_seconds.unwrap_or(0),
        current,
        update,
        now,
    }
}

fn status(set: &StatefulSet, wish: &Wish<'_>, counts: &Counts, collisions: i32) -> StatefulSetStatus {
    // A rollout is over when every Pod has the new revision and is ready: then it is the current one.
    let complete = wish.rolling
        && counts.updated == wish.replicas
        && counts.ready == wish.replicas
        && counts.replicas == wish.replicas;
    let (current, revision) = if complete { (counts.updated, wish.update) } else { (counts.current, wish.current) };
    let positive = |count: i32| (count > 0).then_some(count);
    StatefulSetStatus {
        replicas: counts.replicas,
        ready_replicas: positive(counts.ready),
        available_replicas: Some(counts.available),
        current_replicas: positive(current),
        updated_replicas: positive(counts.updated),
        current_revision: Some(revision.to_owned()),
        update_revision: Some(wish.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(collisions),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

impl Reconcile for StatefulController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "statefulset"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.sets.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.sets).await;
        let Some(set) = self.sets.get_key(&key) else {
            self.written.forget(&key);
            self.revisions.forget(&key);
            self.control.forget(&key);
            return Ok(Requeue::No);
        };
        let Some(spec) = &set.spec else { return Ok(Requeue::No) };
        let owner = Owner::of(&*set);
        self.control.settled(&owner).await;
        let all = self.claim(&owner, spec).await?;
        let history = self.history(&owner, &set, spec).await?;
        let update = history.update.name_any();
        let held =
            set.status.as_ref().and_then(|status| status.current_revision.clone()).filter(|name| !name.is_empty());
        let current = held.unwrap_or_else(|| update.clone());
        let wish = wish(spec, &current, &update, self.context.now());
        let acted = if set.metadata.deletion_timestamp.is_some() {
            Ok(())
        } else {
            self.act(&owner, &set, &history, &wish, &all, &plan::plan(&wish, &all)).await
        };
        self.write_status(&key, &set, &wish, &plan::count(&wish, &all), history.collisions).await?;
        acted?;
        let in_use = |revision: &ControllerRevision| {
            let name = revision.name_any();
            name == update || name == current || all.values().any(|pod| identity::revision_of(pod) == name)
        };
        self.revisions.trim(&owner, &history, spec.revision_history_limit.unwrap_or(10), in_use).await?;
        Ok(availability::next_change(all.values().map(|pod| &**pod), wish.min_ready_secs, wish.now))
    }
}
