//! The plan for a Pod that is to end: its containers, then the sidecars from the last to the first, then the sandbox.

use std::time::Duration;

use jiff::Timestamp;

use super::{Draft, GRACE_S_MIN, KillReason, Observed, ObservedContainer, PodAction, after};
use crate::pod::{PodView, Role};

pub(super) fn plan(
    view: &PodView<'_>,
    observed: &Observed,
    deadline: Timestamp,
    reason: KillReason,
    draft: &mut Draft,
) {
    if observed.finished {
        return;
    }
    let deadline = deadline.max(after(draft.now, Duration::from_secs(GRACE_S_MIN)));
    let (sidecars, others): (Vec<_>, Vec<_>) = observed.running().partition(|run| is_sidecar(view, run));
    if !others.is_empty() {
        for container in &others {
            draft.kill(observed, container, deadline, reason);
        }
        return;
    }
    // What is being started is cancelled by whoever carries the plan out, and shows up here once it is gone.
    if !observed.busy.starting.is_empty() {
        return;
    }
    let last = sidecars.into_iter().max_by_key(|run| position(view, run));
    if let Some(sidecar) = last {
        draft.kill(observed, sidecar, deadline, reason);
        return;
    }
    if observed.busy.pod || observed.busy.volumes || !observed.busy.killing.is_empty() {
        return;
    }
    match observed.sandbox.as_ref().filter(|sandbox| sandbox.ready) {
        Some(sandbox) => draft.push(PodAction::StopSandbox { id: sandbox.id.clone() }),
        None => draft.push(PodAction::Finish),
    }
}

fn is_sidecar(view: &PodView<'_>, run: &ObservedContainer) -> bool {
    view.init_members().iter().any(|member| member.role == Role::Sidecar && member.name() == run.name)
}

fn position(view: &PodView<'_>, run: &ObservedContainer) -> Option<usize> {
    view.init_members().iter().position(|member| member.name() == run.name)
}
