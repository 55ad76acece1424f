//! The scheduler of a running cluster: changes in, decisions out. One task owns all state; writes to the API are tasks of
//! their own, a bounded number at once.

mod act;
mod cluster;
mod decide;
mod error;
mod group_status;
mod groups;
mod inbox;
mod label_group;
mod suspects;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use carob_client::{ElectionConfig, ElectionError, EventRecorder, EventSource, Informers, LeaderElector, sentence};
use carob_kit::{Backoff, Clock, catch_panic};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use kube::Resource;
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use act::Actor;
use cluster::{Cluster, Todo};
use decide::Done;
use inbox::{Changed, Inbox, Kind, Served, Sources};
use label_group::LabelGroup;
use suspects::{Doing, Judgement, Suspects};

use crate::core::Core;
use crate::explain::Explanations;
use crate::figures::Figures;
use crate::model::{GangRef, Str};
use crate::profile::Profile;
use crate::queue::{INITIAL_BACKOFF, MAX_BACKOFF, Queue};

/// Writes to the API that may be under way at once. The store commits what arrives together together, so more than a few
/// are worth it; decisions wait beyond this.
const WRITES_MAX: usize = 128;
/// Decisions between two looks at what changed.
const DECISIONS_PER_TURN: usize = 32;
/// Changes that are taken in between two decisions at most.
const CHANGES_PER_TURN: usize = 4096;
/// How long a Pod's claims may take to be bound (VolumeBindingArgs.bindTimeoutSeconds).
const CLAIMS_BOUND_WITHIN: Duration = Duration::from_secs(600);
/// Waits after a panic before all that is remembered is built again.
const REBUILD_FIRST: Duration = Duration::from_millis(100);
const REBUILD_LONGEST: Duration = Duration::from_secs(30);
/// How long writes that are under way may take to end after the shutdown.
const LAST_WRITES_WITHIN: Duration = Duration::from_secs(5);

/// How the scheduler is to run.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub profiles: Vec<Profile>,
    /// Absent: this scheduler is the only one.
    pub election: Option<ElectionConfig>,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// How long a Pod's claims may take to be bound.
    pub claims_bound_within: Duration,
    /// Decides among nodes that are equally good.
    pub seed: u64,
    /// Where it is kept why Pods have no node; clone it before, to read it.
    pub explanations: Explanations,
    /// What is counted of its work; clone it before, to read it.
    pub figures: Figures,
}

impl Default for SchedulerConfig {
    /// One profile for the default scheduler, no election.
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default_for("default-scheduler")],
            election: None,
            initial_backoff: INITIAL_BACKOFF,
            max_backoff: MAX_BACKOFF,
            claims_bound_within: CLAIMS_BOUND_WITHIN,
            seed: carob_kit::random_u64(),
            explanations: Explanations::default(),
            figures: Figures::default(),
        }
    }
}

/// The scheduler cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    #[error("compete for the scheduler's lease")]
    Election(#[source] ElectionError),
}

/// The scheduler of a running cluster.
#[derive(Debug)]
pub struct Scheduler;

impl Scheduler {
    /// Schedules until `shutdown`; with an election configured, while it holds the lease.
    pub async fn run(
        client: kube::Client,
        informers: Arc<Informers>,
        config: SchedulerConfig,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> Result<(), SchedulerError> {
        let Some(election) = config.election.clone() else {
            lead(client, informers, config, clock, shutdown).await;
            return Ok(());
        };
        let mut elector =
            LeaderElector::new(client.clone(), Arc::clone(&clock), election).map_err(SchedulerError::Election)?;
        while !shutdown.is_cancelled() {
            let (client, informers, config, clock) =
                (client.clone(), Arc::clone(&informers), config.clone(), Arc::clone(&clock));
            let ended = elector.run(shutdown.clone(), |term| lead(client, informers, config, clock, term)).await;
            debug!(?ended, "the scheduler's term ended");
        }
        Ok(())
    }
}

async fn lead(
    client: kube::Client,
    informers: Arc<Informers>,
    config: SchedulerConfig,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let served = tokio::select! {
        () = shutdown.cancelled() => return,
        served = served(&client) => served,
    };
    let sources = Sources::new(&informers, served);
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = sources.synced() => {}
    }
    let suspects = Suspects::default();
    let mut pause = Backoff::new(REBUILD_FIRST, REBUILD_LONGEST);
    loop {
        let (client, config, clock_of_loop) = (client.clone(), config.clone(), Arc::clone(&clock));
        let begun = Loop::new(client, sources.clone(), config, clock_of_loop, suspects.clone(), &shutdown);
        let Err(panicked) = catch_panic(begun.run(shutdown.clone())).await else { return };
        let doing = suspects.panicked(&sources, clock.monotonic());
        let wait = pause.fail();
        error!(?doing, ?wait, "the scheduler {panicked}; it begins again from what the API holds");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Asks the API which kinds of groups it serves, until it answers.
async fn served(client: &kube::Client) -> Served {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let groups = serves::<PodGroup>(client).await;
        let label_groups = serves::<LabelGroup>(client).await;
        match (groups, label_groups) {
            (Ok(groups), Ok(label_groups)) => return Served { groups, label_groups },
            (Err(error), _) | (_, Err(error)) => {
                warn!(error = %sentence(&error), "cannot find out which groups of pods the API serves");
                tokio::time::sleep(backoff.fail()).await;
            }
        }
    }
}

/// Whether a kind of group is there, and may be read: an informer of one that may not would never be complete.
async fn serves<K>(client: &kube::Client) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let one = ListParams::default().limit(1);
    match Api::<K>::all(client.clone()).list(&one).await {
        Ok(_) => Ok(true),
        // A server without the group answers in plain text, which is no Status with a reason.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let group_version = K::api_version(&());
            warn!(%group_version, "the scheduler may not read these groups of pods: it schedules without them");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// All state of the scheduler.
struct Loop {
    core: Core,
    cluster: Cluster,
    sources: Sources,
    inbox: Arc<Inbox>,
    actor: Actor,
    claims_changed: watch::Sender<u64>,
    writes: JoinSet<Done>,
    /// When held gangs will have waited longer than they want to.
    overdue: HashMap<GangRef, Duration>,
    clock: Arc<dyn Clock>,
    suspects: Suspects,
    figures: Figures,
    seed: u64,
}

impl Loop {
    fn new(
        client: kube::Client,
        sources: Sources,
        config: SchedulerConfig,
        clock: Arc<dyn Clock>,
        suspects: Suspects,
        shutdown: &CancellationToken,
    ) -> Self {
        let names: Vec<_> = config.profiles.iter().map(|profile| Arc::clone(&profile.scheduler_name)).collect();
        let recorder = |name: &Str| {
            let source = EventSource { component: name.to_string(), host: None };
            let recorder = EventRecorder::new(client.clone(), Arc::clone(&clock), source, shutdown.clone());
            (name.clone(), recorder)
        };
        let recorders = Arc::new(names.iter().map(recorder).collect());
        let (claims_changed, changed) = watch::channel(0);
        let inbox = Inbox::new();
        sources.feed(&inbox);
        let actor = Actor {
            client,
            recorders,
            claims: sources.claims.clone(),
            volumes: sources.volumes.clone(),
            claims_changed: changed,
            claims_bound_within: config.claims_bound_within,
        };
        Self {
            core: Core::new(config.profiles),
            cluster: Cluster::new(Queue::new(config.initial_backoff, config.max_backoff), names, config.explanations),
            sources,
            inbox,
            actor,
            claims_changed,
            writes: JoinSet::new(),
            overdue: HashMap::new(),
            clock,
            suspects,
            figures: config.figures,
            seed: config.seed,
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        info!(nodes = self.sources.nodes.len(), pods = self.sources.pods.len(), "the scheduler starts");
        loop {
            self.take_in();
            if self.decide_some() {
                // Let the writes and the informers run before more is decided.
                tokio::task::yield_now().await;
                if shutdown.is_cancelled() {
                    break;
                }
                continue;
            }
            self.tell_phases();
            self.tell_overdue();
            self.figures.show_waiting(self.cluster.queue.counts());
            let deadline = self.cluster.queue.deadline().filter(|_| self.writes.len() < WRITES_MAX);
            let deadline = [deadline, self.next_overdue()].into_iter().flatten().min();
            let pause = deadline.map(|deadline| deadline.saturating_sub(self.clock.monotonic()));
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = self.inbox.next() => self.change(&changed),
                Some(done) = self.writes.join_next() => self.finished(done),
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
        }
        self.cluster.explanations.clear();
        let last = async { while self.writes.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES_WITHIN, last).await.is_err() {
            warn!("writes were still under way when the scheduler had to end");
        }
    }

    /// Takes in what is there without waiting.
    fn take_in(&mut self) {
        while let Some(done) = self.writes.try_join_next() {
            self.finished(done);
        }
        for _ in 0..CHANGES_PER_TURN {
            let Some(changed) = self.inbox.ready() else { break };
            self.change(&changed);
        }
        if self.inbox.take_behind() {
            self.look_at_everything();
        }
    }

    fn change(&mut self, changed: &Changed) {
        let now = self.clock.monotonic();
        if let Judgement::Leave { first } = self.suspects.begin(Doing::Change(changed.clone()), &self.sources, now) {
            if first {
                error!(object = %changed.key, kind = ?changed.kind, "it made the scheduler panic, and is left out until it changes");
            }
            return;
        }
        match self.cluster.apply(changed, &self.sources, now) {
            Todo::Nothing => {}
            Todo::TellHeld { gang, arrived } => self.tell_held(&gang, arrived.as_ref()),
        }
        self.suspects.end();
        if changed.kind == Kind::Claim {
            self.claims_changed.send_modify(|changes| *changes += 1);
        }
    }

    fn look_at_everything(&mut self) {
        warn!("more changed than the scheduler could follow: it looks at everything anew");
        let gone = self
            .cluster
            .known
            .keys()
            .map(|key| carob_client::ObjectKey { namespace: key.namespace.clone(), name: key.name.clone() });
        let pods: Vec<_> = gone.map(|key| Changed { kind: Kind::Pod, key }).collect();
        let nodes = self.cluster.snapshot.nodes().map(|(_, node)| carob_client::ObjectKey::cluster(&node.info.name));
        let nodes: Vec<_> = nodes.map(|key| Changed { kind: Kind::Node, key }).collect();
        for changed in nodes.into_iter().chain(pods).chain(self.sources.all()) {
            self.change(&changed);
        }
    }

    /// Decides about a few Pods; whether there may be more to do at once.
    fn decide_some(&mut self) -> bool {
        for _ in 0..DECISIONS_PER_TURN {
            if self.writes.len() >= WRITES_MAX || !self.decide_next() {
                return false;
            }
        }
        true
    }
}
