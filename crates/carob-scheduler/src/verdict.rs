//! The outcome of one decision, and how it reads in conditions and events.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::model::{PodInfo, Str};
use crate::plugin::{Plugin, PluginSet};
use crate::snapshot::NodeSlot;

/// Why a node cannot take a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub plugin: Plugin,
    /// Whether the eviction of Pods from the node could help (upstream: Unschedulable, not UnschedulableAndUnresolvable).
    pub resolvable: bool,
    pub reasons: Vec<Cow<'static, str>>,
}

impl Rejection {
    pub(crate) fn unresolvable(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, resolvable: false, reasons: vec![reason.into()] }
    }

    pub(crate) fn resolvable(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, resolvable: true, reasons: vec![reason.into()] }
    }
}

/// What `schedule` decided about a Pod.
#[derive(Clone, Debug)]
pub enum Verdict {
    Placed(Placement),
    Unschedulable(Unschedulable),
}

/// The node that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub slot: NodeSlot,
    pub node: Str,
    /// The sum of the weighted scores.
    pub score: i64,
}

/// No node can take the Pod now.
#[derive(Clone, Debug)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// A rejection of the Pod as such, by a plugin that did not need to look at nodes.
    pub whole: Option<Arc<Rejection>>,
    /// Per node; empty where the Pod was rejected as a whole.
    pub rejections: Arc<[(Str, Arc<Rejection>)]>,
    pub preemption: Preemption,
}

/// What preemption can do for a Pod that no node can take.
#[derive(Clone, Debug)]
pub enum Preemption {
    /// It was not tried: the profile does not preempt, or there are no nodes.
    Off,
    /// The Pod may not preempt now; in upstream's words.
    NotEligible(&'static str),
    /// No set of victims helps; per node, in upstream's words.
    Useless(Vec<(usize, Cow<'static, str>)>),
    /// These victims make room.
    Proposed(Preempt),
}

/// A node and the Pods that have to go for the Pod to fit there, the most important first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preempt {
    pub slot: NodeSlot,
    pub node: Str,
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of the victims a PodDisruptionBudget protects.
    pub violations: usize,
}

impl Unschedulable {
    /// The plugins that rejected the Pod somewhere: events that cannot help them need not wake it.
    pub fn plugins(&self) -> PluginSet {
        self.whole
            .iter()
            .map(|whole| whole.plugin)
            .chain(self.rejections.iter().map(|(_, rejection)| rejection.plugin))
            .collect()
    }

    /// The message of the PodScheduled condition and the FailedScheduling event, worded as upstream's FitError
    /// (pkg/scheduler/framework/types.go).
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut message = format!("0/{} nodes are available:", self.nodes);
        match &self.whole {
            Some(whole) => {
                for reason in &whole.reasons {
                    append(&mut message, format_args!(" {reason}."));
                }
            }
            None => {
                let histogram = self.histogram();
                if !histogram.is_empty() {
                    append(&mut message, format_args!(" {}.", sorted(histogram)));
                }
            }
        }
        if let Some(preemption) = self.preemption.message(self.nodes) {
            append(&mut message, format_args!(" preemption: {preemption}"));
        }
        message
    }

    fn histogram(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        // Neighbours mostly share their rejection, so it is counted by the run.
        for run in self.rejections.chunk_by(|(_, one), (_, next)| Arc::ptr_eq(one, next)) {
            for reason in run.iter().take(1).flat_map(|(_, rejection)| &rejection.reasons) {
                *counts.entry(&**reason).or_insert(0) += run.len();
            }
        }
        counts
    }
}

impl Preemption {
    fn message(&self, nodes: usize) -> Option<String> {
        match self {
            Self::Off | Self::Proposed(_) => None,
            Self::NotEligible(reason) => Some((*reason).to_owned()),
            Self::Useless(reasons) => {
                let mut counts = BTreeMap::new();
                for (count, reason) in reasons.iter().filter(|(count, _)| *count > 0) {
                    *counts.entry(&**reason).or_insert(0) += count;
                }
                Some(format!("0/{nodes} nodes are available: {}.", sorted(counts)))
            }
        }
    }
}

/// "2 this, 3 that", sorted as strings, as upstream sorts them.
fn sorted(counts: BTreeMap<&str, usize>) -> String {
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}

fn append(message: &mut String, text: std::fmt::Arguments<'_>) {
    message.write_fmt(text).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(rejections: &[(&str, &str)], preemption: Preemption) -> Unschedulable {
        let rejections: Vec<_> = rejections
            .iter()
            .map(|(node, reason)| {
                (Str::from(*node), Arc::new(Rejection::resolvable(Plugin::NodeResourcesFit, (*reason).to_owned())))
            })
            .collect();
        Unschedulable { nodes: rejections.len(), whole: None, rejections: rejections.into(), preemption }
    }

    #[test]
    fn the_message_is_upstreams() {
        let memory = "Insufficient memory";
        let taint = "node(s) had untolerated taint(s)";
        let preemption = Preemption::Useless(vec![
            (2, "Preemption is not helpful for scheduling".into()),
            (3, "No preemption victims found for incoming pod".into()),
        ]);
        let verdict = failed(&[("a", memory), ("b", taint), ("c", memory), ("d", taint), ("e", memory)], preemption);
        assert_eq!(
            verdict.message(),
            "0/5 nodes are available: 2 node(s) had untolerated taint(s), 3 Insufficient memory. preemption: 0/5 nodes are \
             available: 2 Preemption is not helpful for scheduling, 3 No preemption victims found for incoming pod."
        );
    }

    #[test]
    fn without_nodes_the_message_says_so() {
        assert_eq!(failed(&[], Preemption::Off).message(), "no nodes available to schedule pods");
    }

    #[test]
    fn a_pod_that_may_not_preempt_says_why() {
        let verdict = failed(
            &[("a", "Insufficient cpu")],
            Preemption::NotEligible("not eligible due to preemptionPolicy=Never."),
        );
        assert_eq!(
            verdict.message(),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
        );
    }
}
