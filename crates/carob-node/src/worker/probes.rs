//! The probe tasks of one Pod: started and ended as its containers come and go.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::plan::{ContainerPhase, Observed, ObservedContainer, ProbeFacts};
use crate::pod::{Member, PodView, Role};
use crate::probe::watch::{Begin, Finding, run};
use crate::probe::{ProbeKind, Prober, Target};

/// Findings of a Pod's probes that wait for its worker; beyond, probes wait too.
const FINDINGS_MAX: usize = 64;

pub(super) struct Probes {
    prober: Prober,
    tasks: HashMap<(String, ProbeKind), AbortHandle>,
    sender: mpsc::Sender<Finding>,
}

impl Probes {
    pub(super) fn new(prober: Prober) -> (Self, mpsc::Receiver<Finding>) {
        let (sender, receiver) = mpsc::channel(FINDINGS_MAX);
        (Self { prober, tasks: HashMap::new(), sender }, receiver)
    }

    /// Brings the tasks in line with what runs. A Pod that is `stopping` is asked for readiness only.
    pub(super) fn sync(
        &mut self,
        view: &PodView<'_>,
        observed: &Observed,
        pod_ip: Option<IpAddr>,
        stopping: bool,
        now: Timestamp,
    ) {
        let mut wanted = Vec::new();
        for member in view.members().into_iter().filter(|member| member.role != Role::Ephemeral) {
            let Some(container) = observed.newest(member.name()) else { continue };
            let ContainerPhase::Running { started_at } = container.phase else { continue };
            if observed.busy.starting.contains(member.name()) {
                continue;
            }
            for kind in kinds(&member, observed.probe(&container.id), stopping) {
                wanted.push((container.id.clone(), kind));
                self.ensure(&member, container, kind, pod_ip, started_at, observed, now);
            }
        }
        // A task that has come to its end keeps its place until its container is gone, or it would start over.
        let runs = |id: &str| observed.running().any(|container| container.id == id);
        self.tasks.retain(|(id, kind), task| {
            let keep = wanted.contains(&(id.clone(), *kind)) || (runs(id) && task.is_finished());
            if !keep {
                task.abort();
            }
            keep
        });
    }

    #[expect(clippy::too_many_arguments, reason = "one task's inputs, used once")]
    fn ensure(
        &mut self,
        member: &Member<'_>,
        container: &ObservedContainer,
        kind: ProbeKind,
        pod_ip: Option<IpAddr>,
        started_at: Timestamp,
        observed: &Observed,
        now: Timestamp,
    ) {
        let key = (container.id.clone(), kind);
        if self.tasks.contains_key(&key) {
            return;
        }
        let spec = Arc::new(member.spec.clone().into_owned());
        let target = Target { container_id: container.id.clone(), container: spec, pod_ip };
        let verdict = fact(observed.probe(&container.id), kind);
        let begin = Begin { now, started_at, verdict };
        let task = tokio::spawn(run(self.prober.clone(), kind, target, begin, self.sender.clone()));
        self.tasks.insert(key, task.abort_handle());
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

/// What to ask of a container now: nothing but its start until that has succeeded.
fn kinds(member: &Member<'_>, facts: ProbeFacts, stopping: bool) -> Vec<ProbeKind> {
    let has = |kind: ProbeKind| kind.of(&member.spec).is_some();
    if has(ProbeKind::Startup) && facts.startup != Some(true) {
        return if stopping { Vec::new() } else { vec![ProbeKind::Startup] };
    }
    let all = [ProbeKind::Liveness, ProbeKind::Readiness];
    all.into_iter().filter(|kind| has(*kind) && (!stopping || *kind == ProbeKind::Readiness)).collect()
}

pub(super) fn fact(facts: ProbeFacts, kind: ProbeKind) -> Option<bool> {
    match kind {
        ProbeKind::Startup => facts.startup,
        ProbeKind::Liveness => facts.liveness,
        ProbeKind::Readiness => facts.readiness,
    }
}

pub(super) fn note(facts: &mut ProbeFacts, kind: ProbeKind, verdict: bool) {
    match kind {
        ProbeKind::Startup => facts.startup = Some(verdict),
        ProbeKind::Liveness => facts.liveness = Some(verdict),
        ProbeKind::Readiness => facts.readiness = Some(verdict),
    }
}
