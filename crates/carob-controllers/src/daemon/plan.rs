//! Which daemons to make and to delete, and what the status counts (`pkg/controller/daemon`, daemon_controller.go and
//! update.go). Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::fit::Fit;
use crate::availability;
use crate::pods::{self, FAILED, SUCCEEDED};
use crate::revisions::HASH_LABEL;

/// One Node, and the daemons that are on it or tied to it.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) node: String,
    pub(super) fit: Fit,
    pub(super) pods: Vec<Arc<Pod>>,
}

/// How far an update may go at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update<'a> {
    /// The hash of the present template.
    pub(super) hash: &'a str,
    /// Whether Pods of older templates are replaced by us, not by the user.
    pub(super) rolling: bool,
    pub(super) max_unavailable: usize,
    pub(super) max_surge: usize,
    pub(super) min_ready_secs: i32,
    pub(super) now: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a daemon.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Daemons that ended, though a daemon never should. They are deleted too.
    pub(super) ended: Vec<Arc<Pod>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) desired: i32,
    pub(super) current: i32,
    pub(super) misscheduled: i32,
    pub(super) ready: i32,
    pub(super) available: i32,
    pub(super) updated: i32,
}

fn is_updated(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).is_some_and(|label| label == hash)
}

fn is_available(pod: &Pod, update: &Update<'_>) -> bool {
    !pods::is_deleting(pod) && availability::is_available(pod, update.min_ready_secs, update.now)
}

/// The daemons of one Node that count.
struct Here {
    old: Option<Arc<Pod>>,
    new: Option<Arc<Pod>>,
}

pub(super) fn plan(sites: &[Site], update: &Update<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut here: Vec<(&Site, Here)> = Vec::new();
    for site in sites {
        let (deleting, alive): (Vec<_>, Vec<_>) = site.pods.iter().cloned().partition(|pod| pods::is_deleting(pod));
        if !site.fit.may_stay {
            plan.delete.extend(alive);
            continue;
        }
        let (ended, mut running): (Vec<_>, Vec<_>) = alive.into_iter().partition(|pod| pods::is_finished(pod));
        plan.ended.extend(ended.iter().cloned());
        if running.is_empty() && ended.is_empty() && deleting.is_empty() && site.fit.should_run {
            plan.create.push(site.node.clone());
        }
        running.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
        here.push((site, keep(running, update, &mut plan)));
    }
    if update.rolling {
        if update.max_surge > 0 { surge(&here, update, &mut plan) } else { replace(&here, update, &mut plan) }
    }
    plan
}

/// Keeps one daemon, or, while an update adds new ones beside old ones, one of each; the oldest stays.
fn keep(running: Vec<Arc<Pod>>, update: &Update<'_>, plan: &mut Plan) -> Here {
    let mut here = Here { old: None, new: None };
    for pod in running {
        let slot = if is_updated(&pod, update.hash) { &mut here.new } else { &mut here.old };
        if slot.is_none() {
            *slot = Some(pod);
        } else {
            plan.delete.push(pod);
        }
    }
    if update.max_surge == 0 && here.new.is_some() {
        plan.delete.extend(here.old.take());
    }
    here
}

/// Deletes old daemons, those first that are not available anyway, as many as may be missing at a time.
fn replace(here: &[(&Site, Here)], update: &Update<'_>, plan: &mut Plan) {
    let mut unavailable = 0;
    let mut candidates = Vec::new();
    for (site, here) in here.iter().filter(|(site, _)| site.fit.should_run) {
        match (&here.new, &here.old) {
            (Some(new), _) => unavailable += usize::from(!is_available(new, update)),
            (None, Some(old)) if is_available(old, update) => candidates.push(Arc::clone(old)),
            (None, Some(old)) => {
                unavailable += 1;
                plan.delete.push(Arc::clone(old));
            }
            (None, None) => unavailable += usize::from(site.fit.should_run),
        }
    }
    plan.delete.extend(candidates.into_iter().take(update.max_unavailable.saturating_sub(unavailable)));
}

/// Adds new daemons beside old ones, and takes the old ones away once the new ones are available.
fn surge(here: &[(&Site, Here)], update: &Update<'_>, plan: &mut Plan) {
    let mut surging = 0;
    let (mut at_once, mut candidates) = (Vec::new(), Vec::new());
    for (site, here) in here.iter().filter(|(site, _)| site.fit.should_run) {
        match (&here.new, &here.old) {
            (Some(new), Some(old)) if is_available(new, update) => plan.delete.push(Arc::clone(old)),
            (Some(_), Some(_)) => surging += 1,
            (None, Some(old)) if is_available(old, update) => candidates.push(site.node.clone()),
            // It is of no use as it is: its successor needs no place in the surge.
            (None, Some(_)) => at_once.push(site.node.clone()),
            (_, None) => {}
        }
    }
    plan.create.extend(at_once);
    plan.create.extend(candidates.into_iter().take(update.max_surge.saturating_sub(surging)));
}

pub(super) fn count(sites: &[Site], update: &Update<'_>) -> Counts {
    let mut counts = Counts::default();
    for site in sites {
        if !site.fit.should_run {
            counts.misscheduled += i32::from(!site.pods.is_empty());
            continue;
        }
        counts.desired += 1;
        let any = |check: &dyn Fn(&Pod) -> bool| i32::from(site.pods.iter().any(|pod| check(pod)));
        counts.current += any(&|_| true);
        counts.ready += any(&|pod| pods::is_ready(pod) && !pods::is_deleting(pod));
        counts.available += any(&|pod| is_available(pod, update));
        counts.updated += any(&|pod| is_updated(pod, update.hash));
    }
    counts
}

/// The words for a daemon that ended.
pub(super) fn epitaph(pod: &Pod) -> Option<(&'static str, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pods::node_name(pod).unwrap_or_default();
    match pods::phase(pod) {
        FAILED => {
            let message = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
            Some(("FailedDaemonPod", message))
        }
        SUCCEEDED => {
            let message =
                format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
            Some(("SucceededDaemonPod", message))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;
    use crate::condition::Condition;

    const EVERYWHERE: Fit = Fit { should_run: true, may_stay: true };

    /// A daemon written as `<hash>`, with `!` if it is not ready, `x` if it failed, `-` if it is being deleted.
    fn pod(text: &str) -> Arc<Pod> {
        let hash = text.trim_end_matches(['!', 'x', '-']);
        let now = Time(Timestamp::UNIX_EPOCH);
        let ready = if text.ends_with('!') { "False" } else { "True" };
        let phase = if text.ends_with('x') { "Failed" } else { "Running" };
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(text.to_owned()),
                labels: Some([(HASH_LABEL.to_owned(), hash.to_owned())].into_iter().collect()),
                deletion_timestamp: text.ends_with('-').then_some(now.clone()),
                ..ObjectMeta::default()
            },
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                conditions: Some(vec![PodCondition::new("Ready", ready, "", "", &now)]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        })
    }

    /// Nodes separated by `|`, daemons by spaces.
    fn sites(text: &str, fit: Fit) -> Vec<Site> {
        let site = |(number, pods): (usize, &str)| Site {
            node: format!("n{number}"),
            fit,
            pods: pods.split_whitespace().map(pod).collect(),
        };
        text.split('|').enumerate().map(site).collect()
    }

    fn check(text: &str, fit: Fit, max_unavailable: usize, max_surge: usize, expected: &str) {
        let now = Timestamp::UNIX_EPOCH;
        let update = Update { hash: "new", rolling: true, max_unavailable, max_surge, min_ready_secs: 0, now };
        let plan = plan(&sites(text, fit), &update);
        let names =
            |pods: &[Arc<Pod>]| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(" ");
        let shown = format!("+{} -{} ended {}", plan.create.join(" "), names(&plan.delete), names(&plan.ended));
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn every_node_that_fits_has_one_daemon() {
        check("|new", EVERYWHERE, 1, 0, "+n0 - ended ");
        check("new-|newx", EVERYWHERE, 1, 0, "+ - ended newx");
        check("new new", EVERYWHERE, 1, 0, "+ -new ended ");
        check("new|old-", Fit { should_run: false, may_stay: false }, 1, 0, "+ -new ended ");
        check("new|", Fit { should_run: false, may_stay: true }, 1, 0, "+ - ended ");
    }

    #[test]
    fn an_update_replaces_no_more_than_may_be_missing() {
        check("old|old|old", EVERYWHERE, 1, 0, "+ -old ended ");
        check("old|old|new!", EVERYWHERE, 1, 0, "+ - ended ");
        check("old|old|new!", EVERYWHERE, 2, 0, "+ -old ended ");
        check("old!|old!|old", EVERYWHERE, 1, 0, "+ -old! old! ended ");
        check("old|", EVERYWHERE, 1, 0, "+n1 - ended ");
        check("old new", EVERYWHERE, 1, 0, "+ -old ended ");
    }

    #[test]
    fn a_surge_has_the_new_daemon_beside_the_old_one_first() {
        check("old|old|old", EVERYWHERE, 0, 1, "+n0 - ended ");
        check("old new!|old|old", EVERYWHERE, 0, 1, "+ - ended ");
        check("old new|old|old", EVERYWHERE, 0, 1, "+n1 -old ended ");
        check("old!|old", EVERYWHERE, 0, 1, "+n0 n1 - ended ");
    }

    #[test]
    fn the_status_counts_nodes() {
        let update = Update {
            hash: "new",
            rolling: true,
            max_unavailable: 1,
            max_surge: 0,
            min_ready_secs: 0,
            now: Timestamp::UNIX_EPOCH,
        };
        let counts = count(&sites("new|old!|", EVERYWHERE), &update);
        assert_eq!(counts, Counts { desired: 3, current: 2, misscheduled: 0, ready: 1, available: 1, updated: 1 });
        let wrong = count(&sites("new|", Fit { should_run: false, may_stay: true }), &update);
        assert_eq!(wrong, Counts { misscheduled: 1, ..Counts::default() });
    }
}
