//! The life of one Pod without processes. Pure.
//!
//! A virtual node decides with the real node's plan and shows with its status functions. What is virtual is in between:
//! the steps of a plan are done by writing down that they are, and times of a [`Script`] stand for what takes time.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use super::stages::{AnnotationError, Script, Stage, Stages};
use crate::admission::Rejection;
use crate::plan::{
    ContainerPhase, Exit, Failure, FailureReason, Intent, KillReason, Observed, ObservedContainer, ObservedSandbox,
    PodAction, ProbeFacts, Volumes, after, cycle, next_delay, plan_pod, spec_hash,
};
use crate::pod::{Member, PodView, Role};
use crate::status::{NodeFacts, runtime_id, status_for};

/// Exit code of a container that has not ended by its deadline: killed by SIGKILL (128 + 9, as shells count).
const EXIT_KILLED: i32 = 137;
/// Time until something that could not be done is tried again (kubelet `backOffPeriod`).
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Restarts after which a back-off no longer grows: ten doublings are past its maximum.
const RESTARTS_THAT_COUNT: u32 = 10;
/// Plans in one step of a life. Each carries the Pod on by at least one container or stage, so that more mean that a plan
/// asks for the same thing again.
const PLANS_MAX: usize = 1000;

/// What a Pod's life needs from around it.
pub(super) struct World<'a> {
    pub(super) script: &'a Script,
    pub(super) facts: &'a NodeFacts,
    pub(super) now: Timestamp,
}

/// One Pod in its world.
struct Scene<'a> {
    pod: &'a Pod,
    script: &'a Script,
    /// What the Pod's annotations make of its rule; a mistake in them keeps its containers from starting.
    stages: Result<Stages, AnnotationError>,
    now: Timestamp,
}

impl<'a> Scene<'a> {
    fn new(pod: &'a Pod, world: &World<'a>) -> Self {
        Self { pod, script: world.script, stages: world.script.stages(pod), now: world.now }
    }

    fn stages(&self) -> Stages {
        self.stages.clone().unwrap_or_default()
    }

    fn time(&self, stage: Stage, container: &str, attempt: u32) -> Duration {
        self.script.time(&self.stages(), stage, self.pod, container, attempt)
    }
}

/// Where a life gets the address of its sandbox.
pub(super) trait AddressPool {
    fn take(&mut self) -> Option<IpAddr>;
    fn give_back(&mut self, address: IpAddr);
}

/// Something that a stage's end brings.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Start { name: String, attempt: u32, restart_delay: Duration },
    Ready { id: String },
    Exit { id: String, code: i32 },
}

/// What became of a Pod.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) status: PodStatus,
    /// When to look again if nothing happens before.
    pub(super) wake_at: Option<Timestamp>,
    /// All is given back: a deletion can be confirmed.
    pub(super) finished: bool,
}

/// One Pod's life so far.
#[derive(Debug)]
pub(super) struct Life {
    observed: Observed,
    due: Vec<(Timestamp, Event)>,
    stopping: Option<KillReason>,
    rejection: Option<Rejection>,
}

impl Life {
    /// Begins the life of a Pod, or takes up the one that its status tells of.
    pub(super) fn of(pod: &Pod, world: &World<'_>) -> Self {
        let mut life = Self { observed: Observed::default(), due: Vec::new(), stopping: None, rejection: None };
        let view = PodView::new(pod);
        if let Some(status) = pod.status.as_ref().filter(|status| status.start_time.is_some()) {
            life.remember(&view, status, world);
        }
        if let Some(deletion) = view.deletion() {
            let began = deletion.checked_sub(view.grace()).unwrap_or(deletion);
            life.stopping = Some(KillReason::PodDeleted);
            life.observed.stopping_since = Some(began.min(world.now));
        }
        life
    }

    /// Fails the Pod before anything of it has started.
    pub(super) fn reject(&mut self, rejection: Rejection) {
        self.rejection = Some(rejection);
    }

    /// The addresses that the Pod has.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.observed.sandbox.iter().flat_map(|sandbox| sandbox.ips.iter().copied())
    }

    /// Lives up to now, and tells how the Pod is.
    pub(super) fn step(&mut self, pod: &Pod, world: &World<'_>, pool: &mut dyn AddressPool) -> Outcome {
        let pod = self.as_rejected(pod);
        let scene = Scene::new(&pod, world);
        let mut wake_at = None;
        let mut intent = Intent::Run;
        for _ in 0..PLANS_MAX {
            self.pass(&scene);
            self.observed.cycle = cycle(&PodView::new(&pod), &self.observed.containers);
            let plan = plan_pod(&pod, &self.observed, world.now);
            (intent, wake_at) = (plan.intent, plan.wake_at);
            let cancelled = self.note(intent, world.now);
            if plan.actions.is_empty() && !cancelled {
                break;
            }
            for action in plan.actions {
                self.act(&scene, action, pool);
            }
        }
        let next = self.due.iter().map(|(at, _)| *at).min();
        Outcome {
            status: status_for(&pod, &self.observed, intent, world.facts, world.now),
            wake_at: [wake_at, next].into_iter().flatten().min(),
            finished: self.observed.finished,
        }
    }

    /// The Pod as the node sees it: failed, if the node refused it.
    fn as_rejected<'a>(&self, pod: &'a Pod) -> Cow<'a, Pod> {
        let Some(rejection) = &self.rejection else { return Cow::Borrowed(pod) };
        let mut pod = pod.clone();
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Failed".to_owned());
        status.reason = Some(rejection.reason.clone().into_owned());
        status.message = Some(rejection.message.clone());
        Cow::Owned(pod)
    }

    /// Lets happen what is due, in the order of its times.
    fn pass(&mut self, scene: &Scene<'_>) {
        while let Some(first) = (0..self.due.len()).min_by_key(|index| self.due[*index].0) {
            if self.due[first].0 > scene.now {
                break;
            }
            let (at, event) = self.due.remove(first);
            match event {
                Event::Start { name, attempt, restart_delay } => {
                    if let Some(member) = PodView::new(scene.pod).member(&name) {
                        self.start(scene, &member, attempt, restart_delay, at);
                    }
                }
                Event::Ready { id } => self.ready(&id),
                Event::Exit { id, code } => self.exit(&id, code, at),
            }
        }
    }

    /// Remembers that the Pod is being ended. Answers whether something that was starting has been cancelled for it.
    fn note(&mut self, intent: Intent, now: Timestamp) -> bool {
        let Intent::Stop { reason, .. } = intent else { return false };
        if self.stopping.is_none() || (reason == KillReason::PodDeleted && self.stopping != Some(reason)) {
            self.stopping = Some(reason);
            self.observed.stopping_since = Some(now);
        }
        self.due.retain(|(_, event)| !matches!(event, Event::Start { .. }));
        let Observed { busy, containers, .. } = &mut self.observed;
        let before = busy.starting.len();
        // What runs and is not ready yet stays so to its end.
        busy.starting.retain(|name| containers.iter().any(|run| run.name == *name && run.is_running()));
        busy.starting.len() != before
    }

    fn act(&mut self, scene: &Scene<'_>, action: PodAction, pool: &mut dyn AddressPool) {
        match action {
            PodAction::MountVolumes => self.observed.volumes = Volumes::Mounted,
            PodAction::CreateSandbox { attempt, .. } => self.create_sandbox(scene, attempt, pool),
            PodAction::StartContainer { name, attempt, restart_delay } => {
                self.begin(scene, name, attempt, restart_delay);
            }
            PodAction::KillContainer { id, name, deadline, .. } => self.kill(scene, id, &name, deadline),
            PodAction::RemoveContainer { id, .. } => self.observed.containers.retain(|run| run.id != id),
            PodAction::StopSandbox { .. } => self.stop_sandbox(pool),
            PodAction::RemoveSandbox { id } => self.observed.older_sandboxes.retain(|sandbox| sandbox.id != id),
            // What takes no resources has them changed by being told so: its runs carry no limits that could differ.
            PodAction::LimitPod { .. } | PodAction::Resize { .. } => {}
            PodAction::Finish => self.observed.finished = true,
        }
    }

    /// Begins to start a container: its image is fetched, then it is made.
    fn begin(&mut self, scene: &Scene<'_>, name: String, attempt: u32, restart_delay: Duration) {
        if let Err(error) = &scene.stages {
            let reason = FailureReason::CreateContainerConfigError;
            let failure = Failure { reason, message: error.to_string(), retry_at: after(scene.now, RETRY_AFTER) };
            self.observed.start_failures.insert(name, failure);
            return;
        }
        let pull = if attempt == 0 { scene.time(Stage::Pull, &name, attempt) } else { Duration::ZERO };
        let at = after(scene.now, pull + scene.time(Stage::Start, &name, attempt));
        self.observed.start_failures.remove(&name);
        self.observed.busy.starting.insert(name.clone());
        self.due.push((at, Event::Start { name, attempt, restart_delay }));
    }

    fn kill(&mut self, scene: &Scene<'_>, id: String, name: &str, deadline: Timestamp) {
        let attempt = self.observed.containers.iter().find(|run| run.id == id).map_or(0, |run| run.attempt);
        let done = after(scene.now, scene.time(Stage::Terminate, name, attempt));
        let (at, code) = if done <= deadline { (done, 0) } else { (deadline, EXIT_KILLED) };
        self.due.retain(|(_, event)| !matches!(event, Event::Exit { id: other, .. } if *other == id));
        self.observed.busy.killing.insert(id.clone(), deadline);
        self.due.push((at, Event::Exit { id, code }));
    }

    fn create_sandbox(&mut self, scene: &Scene<'_>, attempt: u32, pool: &mut dyn AddressPool) {
        self.stop_sandbox(pool);
        let ips = if PodView::new(scene.pod).host_network() {
            Vec::new()
        } else if let Some(address) = pool.take() {
            vec![address]
        } else {
            self.observed.sandbox_failure = Some(Failure {
                reason: FailureReason::PodSetup,
                message: "the virtual node has no address left".to_owned(),
                retry_at: after(scene.now, RETRY_AFTER),
            });
            return;
        };
        self.observed.sandbox_failure = None;
        self.observed.sandbox = Some(ObservedSandbox { id: sandbox_id(scene.pod, attempt), attempt, ready: true, ips });
    }

    fn stop_sandbox(&mut self, pool: &mut dyn AddressPool) {
        if let Some(sandbox) = &mut self.observed.sandbox {
            sandbox.ready = false;
            sandbox.ips.drain(..).for_each(|address| pool.give_back(address));
        }
    }

    /// A container runs from `at` on.
    fn start(&mut self, scene: &Scene<'_>, member: &Member<'_>, attempt: u32, restart_delay: Duration, at: Timestamp) {
        let Some(sandbox_id) = self.observed.sandbox.as_ref().map(|sandbox| sandbox.id.clone()) else { return };
        let phase = ContainerPhase::Running { started_at: at };
        let cycle = self.observed.cycle;
        let run = ObservedContainer { cycle, ..run(scene.pod, member, attempt, sandbox_id, at, restart_delay, phase) };
        self.plan_ahead(scene, member, &run, at);
        self.observed.containers.insert(0, run);
    }

    /// Notes when a run that began at `at` becomes ready and when it ends by itself.
    fn plan_ahead(&mut self, scene: &Scene<'_>, member: &Member<'_>, run: &ObservedContainer, at: Timestamp) {
        let time = |stage| after(at, scene.time(stage, member.name(), run.attempt));
        // Not ready is what a container is whose postStart hook runs on, so no probe is needed to delay it.
        self.observed.busy.starting.insert(member.name().to_owned());
        self.due.push((time(Stage::Ready), Event::Ready { id: run.id.clone() }));
        let stages = scene.stages();
        let end = match member.role {
            Role::Init => Some((time(Stage::Init), 0)),
            Role::App => stages.run.is_some().then(|| (time(Stage::Run), stages.exit_code)),
            Role::Sidecar | Role::Ephemeral => None,
        };
        if let Some((at, code)) = end {
            self.due.push((at, Event::Exit { id: run.id.clone(), code }));
        }
    }

    fn ready(&mut self, id: &str) {
        let Some(run) = self.observed.containers.iter().find(|run| run.id == id) else { return };
        self.observed.busy.starting.remove(&run.name);
        let facts = ProbeFacts { startup: Some(true), liveness: None, readiness: Some(true) };
        self.observed.probes.insert(id.to_owned(), facts);
    }

    fn exit(&mut self, id: &str, code: i32, at: Timestamp) {
        self.due.retain(|(_, event)| !matches!(event, Event::Ready { id: other } if other == id));
        self.observed.busy.killing.remove(id);
        self.observed.probes.remove(id);
        let Some(run) = self.observed.containers.iter_mut().find(|run| run.id == id) else { return };
        self.observed.busy.starting.remove(&run.name);
        let started_at = match run.phase {
            ContainerPhase::Running { started_at } => Some(started_at),
            ContainerPhase::Created | ContainerPhase::Exited(_) | ContainerPhase::Unknown => None,
        };
        let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
        let message = String::new();
        run.phase = ContainerPhase::Exited(Exit { code, reason, message, started_at, finished_at: at });
    }

    /// Takes over what the API shows of a Pod that lived before this process.
    fn remember(&mut self, view: &PodView<'_>, status: &PodStatus, world: &World<'_>) {
        let pod = view.pod;
        let scene = Scene::new(pod, world);
        let shown: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        let is_true = |type_: &str| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.any(|condition| condition.type_ == type_ && condition.status == "True")
        };
        let has_sandbox = is_true("PodReadyToStartContainers");
        let id = sandbox_id(pod, 0);
        if has_sandbox {
            let ips = if view.host_network() { Vec::new() } else { shown };
            self.observed.sandbox = Some(ObservedSandbox { id: id.clone(), attempt: 0, ready: true, ips });
            self.observed.volumes = Volumes::Mounted;
        }
        // The exit that had all containers start over may be one of those before the newest: it is over unless it says so.
        let restarting = is_true("AllContainersRestarting");
        for member in view.members() {
            let Some(shown) = view.last_status(member.name()) else { continue };
            for (age, run) in remembered(pod, &member, shown, &id).into_iter().enumerate() {
                let run = ObservedContainer { cycle: u32::from(age == 0 && !restarting), ..run };
                if let ContainerPhase::Running { started_at } = run.phase {
                    self.plan_ahead(&scene, &member, &run, started_at);
                }
                self.observed.containers.push(run);
            }
        }
    }
}

fn sandbox_id(pod: &Pod, attempt: u32) -> String {
    format!("{}.{attempt}", pod.metadata.uid.as_deref().unwrap_or_default())
}

fn run(
    pod: &Pod,
    member: &Member<'_>,
    attempt: u32,
    sandbox_id: String,
    created_at: Timestamp,
    restart_delay: Duration,
    phase: ContainerPhase,
) -> ObservedContainer {
    let image = member.spec.image.clone().unwrap_or_default();
    ObservedContainer {
        id: format!("{}.{}.{attempt}", pod.metadata.uid.as_deref().unwrap_or_default(), member.name()),
        sandbox_id,
        name: member.name().to_owned(),
        attempt,
        created_at,
        phase,
        image_ref: format!("virtual://{image}"),
        image,
        restart_delay,
        cycle: 0,
        memory_request: None,
        spec_hash: spec_hash(member),
        user: None,
        limits: None,
    }
}

/// The runs of a container that its status shows, the newest first.
fn remembered(pod: &Pod, member: &Member<'_>, shown: &ContainerStatus, sandbox_id: &str) -> Vec<ObservedContainer> {
    let attempt = u32::try_from(shown.restart_count).unwrap_or(0);
    let one = |state: Option<&ContainerState>, attempt: u32| {
        let (phase, began) = phase_of(state?)?;
        // The delay noted on a run follows from how many there were before it.
        let delay = (0..attempt.min(RESTARTS_THAT_COUNT)).fold(Duration::ZERO, |delay, _| next_delay(delay));
        Some(run(pod, member, attempt, sandbox_id.to_owned(), began, delay, phase))
    };
    match (one(shown.state.as_ref(), attempt), shown.last_state.as_ref()) {
        (Some(newest), last) => {
            let before = attempt.checked_sub(1).and_then(|attempt| one(last, attempt));
            [Some(newest), before].into_iter().flatten().collect()
        }
        // It waits for its next run: the last one is its newest.
        (None, last) => one(last, attempt).into_iter().collect(),
    }
}

/// What a state that is shown says of a run, and when that run began.
fn phase_of(state: &ContainerState) -> Option<(ContainerPhase, Timestamp)> {
    if let Some(running) = &state.running {
        let started_at = running.started_at.as_ref()?.0;
        return Some((ContainerPhase::Running { started_at }, started_at));
    }
    let end: &ContainerStateTerminated = state.terminated.as_ref()?;
    // An end without an id is one that the node inferred, not a run.
    end.container_id.as_deref().and_then(runtime_id)?;
    let finished_at = end.finished_at.as_ref()?.0;
    let started_at = end.started_at.as_ref().map(|time| time.0);
    let exit = Exit {
        code: end.exit_code,
        reason: end.reason.clone().unwrap_or_default(),
        message: end.message.clone().unwrap_or_default(),
        started_at,
        finished_at,
    };
    Some((ContainerPhase::Exited(exit), started_at.unwrap_or(finished_at)))
}
