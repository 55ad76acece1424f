//! All containers of a Pod start over, in place, after one of them ended with a code that one of its rules names (KEP-5532).
//!
//! Each run carries the cycle that it was started in. An exit that a rule names ends the cycle: runs of it are outdated, those
//! that still run are killed, and then all start in their order, as in a Pod that is new. Volumes, addresses and the
//! sandbox stay. That is decided from the runs alone, so it goes on where it was after a restart of the node.
//!
//! The kubelet removes the old runs, and with them their logs, exit codes and back-off; here they stay until others push
//! them out, so a container that ends at once each time backs off like any other.

use super::{ContainerPhase, Draft, KillReason, Observed, ObservedContainer};
use crate::pod::{PodView, Role};

/// The cycle that the next run belongs to.
pub fn cycle(view: &PodView<'_>, runs: &[ObservedContainer]) -> u32 {
    let members = view.members();
    let next = |run: &ObservedContainer| {
        let member = members.iter().find(|member| member.name() == run.name);
        let ends_it = |code| member.is_some_and(|member| member.restarts_all_after(code));
        run.cycle.saturating_add(u32::from(run.exit().is_some_and(|exit| ends_it(exit.code))))
    };
    runs.iter().map(next).max().unwrap_or(0)
}

/// Whether the containers are about to start over: a cycle has ended and nothing of the next one is there.
pub(crate) fn is_under_way(view: &PodView<'_>, observed: &Observed) -> bool {
    let mut runs = restartable(view, observed).peekable();
    runs.peek().is_some() && runs.all(|run| observed.is_outdated(run))
}

/// Kills what still runs of a cycle that has ended. Answers whether something of it is left, and the next one has to wait.
pub(super) fn clear(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) -> bool {
    let alive =
        |run: &&ObservedContainer| matches!(run.phase, ContainerPhase::Running { .. } | ContainerPhase::Unknown);
    let left: Vec<_> = restartable(view, observed).filter(|run| observed.is_outdated(run)).filter(alive).collect();
    for run in &left {
        // There is no grace (kubelet `kuberuntime_manager.go`, ContainersToReset).
        draft.kill(observed, run, draft.now, KillReason::RestartAll);
    }
    // What is being started since before the cycle ended is outdated once it is there.
    let starting = observed.busy.starting.iter().any(|name| !is_ephemeral(view, name));
    !left.is_empty() || (starting && is_under_way(view, observed))
}

fn restartable<'a>(view: &PodView<'_>, observed: &'a Observed) -> impl Iterator<Item = &'a ObservedContainer> {
    observed.containers.iter().filter(|run| !is_ephemeral(view, &run.name))
}

fn is_ephemeral(view: &PodView<'_>, name: &str) -> bool {
    view.member(name).is_some_and(|member| member.role == Role::Ephemeral)
}
