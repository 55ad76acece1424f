//! DaemonSets: one Pod on every Node that fits (`pkg/controller/daemon`).

mod fit;
mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_client::{Change, EventKind, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference};
use carob_kit::Backoff;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::core::Selector;

use crate::availability;
use crate::context::Context;
use crate::ownership::{self, Owner, still_owner};
use crate::percent::{Round, scaled};
use crate::pod_control::{BURST, PodControl, pod_from_template, slow_start};
use crate::pods;
use crate::revisions::{HASH_LABEL, History, Revisions, hash_of};
use crate::statuses;
use crate::versions::Versions;
use plan::{Counts, Plan, Site, Update};

/// The generation that a DaemonSet's template had before there were revisions; Pods still carry it as a label.
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
/// How long a daemon that ended is left on its Node before the next one is made (upstream's back-off of failed daemons).
const FAILURE_WAIT_FIRST: Duration = Duration::from_secs(1);
const FAILURE_WAIT_LONGEST: Duration = Duration::from_secs(900);

pub(crate) struct DaemonController {
    context: Context,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    control: PodControl,
    revisions: Revisions,
    written: Versions,
    failures: Mutex<HashMap<(String, String), Failures>>,
}

/// How often a daemon ended on one Node, and until when the last one is left there.
struct Failures {
    backoff: Backoff,
    until: Duration,
}

impl DaemonController {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            sets: context.informers.of(),
            nodes: context.informers.of(),
            control: PodControl::new(context.clone(), "daemonset-controller"),
            revisions: Revisions::new(context.clone()),
            written: Versions::default(),
            failures: Mutex::default(),
            context,
        }
    }

    pub(crate) fn sets(&self) -> &Informer<DaemonSet> {
        &self.sets
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        self.control.pods()
    }

    pub(crate) fn revisions(&self) -> &Informer<ControllerRevision> {
        self.revisions.informer()
    }

    pub(crate) fn sets_of_pod(sets: &Informer<DaemonSet>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
        ownership::owners_of(sets, change, |set| Selector::try_from(set.spec.as_ref()?.selector.clone()).ok())
    }

    /// All DaemonSets, when something of a Node changes that decides where daemons belong.
    pub(crate) fn sets_of_node(sets: &Informer<DaemonSet>, change: Change<'_, Node>) -> Vec<ObjectKey> {
        let decisive = |node: &Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
            (node.metadata.labels.clone(), taints)
        };
        let same = change.old.map(|node| decisive(node)) == change.new.map(|node| decisive(node));
        if same { Vec::new() } else { sets.keys() }
    }

    async fn claim(&self, owner: &Owner, spec: &DaemonSetSpec) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let selector = ownership::selector(&spec.selector, &owner.key)?;
        let api: Api<DaemonSet> = self.context.api(&owner.key.namespace);
        let candidates = self.context.indexes.pods_by_owner.candidates(&owner.uid, &owner.key.namespace);
        let claimed =
            ownership::claim(&self.control.api(owner), owner, &selector, candidates, still_owner(&api, owner)).await?;
        self.control.note_version(owner, claimed.version);
        Ok(claimed.objects)
    }

    fn sites(&self, owner: &Owner, spec: &DaemonSetSpec, all: &[Arc<Pod>]) -> Vec<Site> {
        let template = spec.template.spec.clone().unwrap_or_default();
        let mut on_node: HashMap<&str, Vec<Arc<Pod>>> = HashMap::new();
        for pod in all {
            on_node.entry(fit::node_of(pod).unwrap_or_default()).or_default().push(self.as_deleted(owner, pod));
        }
        let mut site = |node: &Arc<Node>| {
            let name = node.metadata.name.clone().unwrap_or_default();
            Site { fit: fit::fit(&template, node), pods: on_node.remove(name.as_str()).unwrap_or_default(), node: name }
        };
        self.nodes.list().iter().map(&mut site).collect()
    }

    /// A Pod that we deleted counts as being deleted, though the informer may not show it.
    fn as_deleted(&self, owner: &Owner, pod: &Arc<Pod>) -> Arc<Pod> {
        if pods::is_deleting(pod) || !self.control.is_deleted(owner, pod) {
            return Arc::clone(pod);
        }
        let mut deleted = (**pod).clone();
        deleted.metadata.deletion_timestamp = Some(self.context.time());
        Arc::new(deleted)
    }

    /// Leaves out ended daemons whose time to be deleted has not come, so that one that cannot run is not made again and
    /// again without a pause. Answers when the next one's time comes.
    fn hold_back(&self, owner: &Owner, plan: &mut Plan) -> Option<Duration> {
        let now = self.context.clock.monotonic();
        let mut failures = self.failures.lock().expect("no holder of the failures panics");
        // Long after the last failure it counts as the first one again.
        failures.retain(|_, failures| failures.until + 2 * FAILURE_WAIT_LONGEST > now);
        let mut next: Option<Duration> = None;
        plan.ended.retain(|pod| {
            let node = fit::node_of(pod).unwrap_or_default().to_owned();
            let fresh = || Failures { backoff: Backoff::new(FAILURE_WAIT_FIRST, FAILURE_WAIT_LONGEST), until: now };
            let failed = failures.entry((owner.uid.clone(), node)).or_insert_with(fresh);
            match failed.until.checked_sub(now).filter(|left| !left.is_zero()) {
                Some(left) => {
                    next = Some(next.map_or(left, |next| next.min(left)));
                    false
                }
                None => {
                    failed.until = now + failed.backoff.fail();
                    true
                }
            }
        });
        next
    }

    async fn act(
        &self,
        owner: &Owner,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        hash: &str,
        plan: &Plan,
    ) -> Result<(), ReconcileError> {
        let reference = reference(set);
        for pod in &plan.ended {
            if let Some((reason, message)) = plan::epitaph(pod) {
                self.control.recorder().record(reference.clone(), EventKind::Warning, reason, message);
            }
        }
        let new = |node: &String| new_pod(owner, set, spec, hash, node);
        let create: Vec<Pod> = plan.create.iter().take(BURST).map(new).collect();
        let make = |index: usize| {
            let (pod, reference) = (&create[index], &reference);
            async move { self.control.create(owner, reference, pod).await.map(drop) }
        };
        let (_, created) = slow_start(create.len(), make).await;
        let victims: Vec<&Arc<Pod>> = plan.delete.iter().chain(&plan.ended).take(BURST).collect();
        let delete = |index: usize| self.control.delete(owner, &reference, victims[index]);
        let (_, deleted) = slow_start(victims.len(), delete).await;
        created.or(deleted).map_or(Ok(()), Err)
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        counts: &Counts,
        collisions: i32,
    ) -> Result<(), ReconcileError> {
        let mut wanted = set.clone();
        let held = set.status.clone().unwrap_or_default();
        let positive = |count: i32| (count > 0).then_some(count);
        wanted.status = Some(DaemonSetStatus {
            desired_number_scheduled: counts.desired,
            current_number_scheduled: counts.current,
            number_misscheduled: counts.misscheduled,
            number_ready: counts.ready,
            number_available: positive(counts.available),
            number_unavailable: positive(counts.desired - counts.available),
            updated_number_scheduled: positive(counts.updated),
            observed_generation: set.metadata.generation,
            collision_count: positive(collisions).or(held.collision_count),
            conditions: held.conditions,
        });
        if statuses::same(&set.status, &wanted.status) {
            return Ok(());
        }
        statuses::write(&self.context, &self.written, key, &wanted).await
    }

    async fn history(&self, owner: &Owner, set: &DaemonSet, spec: &DaemonSetSpec) -> Result<History, ReconcileError> {
        self.revisions.settled(owner).await;
        let selector = ownership::selector(&spec.selector, &owner.key)?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let api: Api<DaemonSet> = self.context.api(&owner.key.namespace);
        let alive = still_owner(&api, owner);
        self.revisions.history(owner, &selector, &spec.template, collisions, alive).await
    }
}

fn update<'a>(spec: &DaemonSetSpec, sites: usize, hash: &'a str, now: jiff::Timestamp) -> Update<'a> {
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let rolling = strategy.rolling_update.unwrap_or_default();
    let whole = i32::try_from(sites).unwrap_or(i32::MAX);
    let number =
        |value: Option<&_>| value.map_or(0, |value| usize::try_from(scaled(value, whole, Round::Up)).unwrap_or(0));
    let max_surge = number(rolling.max_surge.as_ref());
    let max_unavailable = number(rolling.max_unavailable.as_ref());
    Update {
        hash,
        rolling: strategy.type_.as_deref() != Some("OnDelete"),
        // Both at none would stand still for ever.
        max_unavailable: if max_surge == 0 { max_unavailable.max(1) } else { max_unavailable },
        max_surge,
        min_ready_secs: spec.min_ready_seconds.unwrap_or(0),
        now,
    }
}

fn new_pod(owner: &Owner, set: &DaemonSet, spec: &DaemonSetSpec, hash: &str, node: &str) -> Pod {
    let mut pod = pod_from_template(&spec.template, owner);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    let generation = set.metadata.annotations.as_ref().and_then(|annotations| annotations.get(GENERATION_ANNOTATION));
    if let Some(generation) = generation {
        labels.insert(GENERATION_LABEL.to_owned(), generation.clone());
    }
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.tolerations = Some(fit::tolerations(pod_spec));
    fit::pin(pod_spec, node);
    pod
}

impl Reconcile for DaemonController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "daemonset"
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
        let Some(spec) = set.spec.as_ref().filter(|_| set.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::No);
        };
        let owner = Owner::of(&*set);
        self.control.settled(&owner).await;
        let history = self.history(&owner, &set, spec).await?;
        let all = self.claim(&owner, spec).await?;
        self.control.prune(&owner, all.iter().map(|pod| &**pod));
        let sites = self.sites(&owner, spec, &all);
        let desired = sites.iter().filter(|site| site.fit.should_run).count();
        let hash = hash_of(&history.update);
        let update = update(spec, desired, hash, self.context.now());
        let mut plan = plan::plan(&sites, &update);
        let held_back = self.hold_back(&owner, &mut plan);
        let acted = self.act(&owner, &set, spec, hash, &plan).await;
        self.write_status(&key, &set, &plan::count(&sites, &update), history.collisions).await?;
        acted?;
        let in_use = |revision: &ControllerRevision| {
            let hash = hash_of(revision);
            revision.metadata.name == history.update.metadata.name
                || all.iter().any(|pod| {
                    pod.metadata
                        .labels
                        .as_ref()
                        .and_then(|labels| labels.get(HASH_LABEL))
                        .is_some_and(|label| label == hash)
                })
        };
        self.revisions.trim(&owner, &history, spec.revision_history_limit.unwrap_or(10), in_use).await?;
        let change = availability::next_change(all.iter().map(|pod| &**pod), update.min_ready_secs, update.now);
        Ok(match (change, held_back) {
            (Requeue::After(change), Some(held_back)) => Requeue::After(change.min(held_back)),
            (Requeue::No, Some(held_back)) => Requeue::After(held_back),
            (change, None) => change,
        })
    }
}
