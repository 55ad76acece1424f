//! Gangs: enough members get a node in one decision, or none does. Nothing is held while a gang is tried or waits, so gangs
//! cannot block each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::Core;
use crate::model::{GangRef, PodInfo, Str};
use crate::plugin::PluginSet;
use crate::queue::GangSpec;
use crate::snapshot::{NodeSlot, Snapshot};
use crate::verdict::{Placement, Preempt, Preemption, Unschedulable, Verdict};

/// A gang to place.
#[derive(Clone, Copy, Debug)]
pub struct GangRequest<'a> {
    pub gang: &'a GangRef,
    pub spec: &'a GangSpec,
    /// The members without a node, in the order in which they are placed.
    pub pods: &'a [Arc<PodInfo>],
    /// How many members have a node.
    pub placed: usize,
}

/// What was decided about a gang.
#[derive(Clone, Debug)]
pub enum GangVerdict {
    /// These members get these nodes, and are on them in the snapshot already. Members beyond the minimum that found none
    /// wait on.
    Placed {
        placed: Vec<(Arc<PodInfo>, Placement)>,
        waiting: Vec<(Arc<PodInfo>, Unschedulable)>,
    },
    Unschedulable(GangFailure),
}

/// Why a gang got no nodes.
#[derive(Clone, Debug)]
pub struct GangFailure {
    pub gang: GangRef,
    pub min_count: usize,
    /// How many members could have had a node, those that have one included.
    pub scheduled: usize,
    pub remaining: usize,
    /// What the members that found no node were told.
    pub failed: Vec<(Arc<PodInfo>, Unschedulable)>,
    /// Victims whose eviction makes room for the whole gang, with the member that is promised the room. Empty: none do.
    pub preemption: Vec<(Arc<PodInfo>, Preempt)>,
}

impl GangFailure {
    /// The message of the group's and its members' condition.
    pub fn message(&self) -> String {
        let Self { gang, min_count, scheduled, remaining, .. } = self;
        let why = self.failed.first().map(|(_, why)| format!(". {}", why.message())).unwrap_or_default();
        format!(
            "pod group \"{}\": minCount ({min_count}) cannot be satisfied: {scheduled} scheduled, {remaining} remaining{why}",
            gang.name
        )
    }

    pub fn plugins(&self) -> PluginSet {
        let mut plugins: PluginSet = [crate::plugin::Plugin::GangScheduling].into_iter().collect();
        for plugin in self.failed.iter().flat_map(|(_, why)| why.plugins().iter().collect::<Vec<_>>()) {
            plugins.insert(plugin);
        }
        plugins
    }
}

/// Where a gang may be placed: all nodes, or those of one topology domain, by slot.
type Domain = Option<Vec<bool>>;

impl Core {
    /// Places a gang, or leaves the snapshot as it was. `mates` names the Pods that have to go together with a victim.
    pub fn schedule_gang(
        &mut self,
        request: GangRequest<'_>,
        snapshot: &mut Snapshot,
        seed: u64,
        mates: &dyn Fn(&PodInfo, &Snapshot) -> Vec<Arc<PodInfo>>,
    ) -> GangVerdict {
        let domains = domains(request, snapshot);
        let mut best: Option<Attempt> = None;
        for domain in &domains {
            let attempt = self.attempt(request, domain, snapshot, seed);
            if attempt.placed.len() + request.placed >= request.spec.min_count && !attempt.placed.is_empty() {
                return GangVerdict::Placed { placed: attempt.placed, waiting: attempt.failed };
            }
            attempt.undo(snapshot);
            if best.as_ref().is_none_or(|best| attempt.placed.len() > best.placed.len()) {
                best = Some(attempt);
            }
        }
        let best = best.unwrap_or_default();
        let preemption =
            domains.iter().find_map(|domain| self.preempt(request, domain, snapshot, seed, mates)).unwrap_or_default();
        GangVerdict::Unschedulable(GangFailure {
            gang: request.gang.clone(),
            min_count: request.spec.min_count,
            scheduled: best.placed.len() + request.placed,
            remaining: request.pods.len() - best.placed.len(),
            failed: best.failed,
            preemption,
        })
    }

    fn attempt(&mut self, request: GangRequest<'_>, domain: &Domain, snapshot: &mut Snapshot, seed: u64) -> Attempt {
        let mut attempt = Attempt::default();
        for (index, pod) in request.pods.iter().enumerate() {
            match self.schedule_within(pod, snapshot, seed ^ index as u64, domain.as_deref()) {
                Verdict::Placed(placement) => {
                    snapshot.add_pod(Arc::clone(pod), &placement.node);
                    attempt.placed.push((Arc::clone(pod), placement));
                }
                Verdict::Unschedulable(why) => {
                    attempt.failed.push((Arc::clone(pod), why));
                    let left = request.pods.len() - index - 1;
                    if attempt.placed.len() + request.placed + left < request.spec.min_count {
                        break;
                    }
                }
            }
        }
        attempt
    }

    /// Looks for victims that make room for the minimum of the gang at once. The snapshot is as before afterwards.
    fn preempt(
        &mut self,
        request: GangRequest<'_>,
        domain: &Domain,
        snapshot: &mut Snapshot,
        seed: u64,
        mates: &dyn Fn(&PodInfo, &Snapshot) -> Vec<Arc<PodInfo>>,
    ) -> Option<Vec<(Arc<PodInfo>, Preempt)>> {
        let mut trial = Trial::default();
        for (index, pod) in request.pods.iter().enumerate() {
            match self.schedule_within(pod, snapshot, seed ^ index as u64, domain.as_deref()) {
                Verdict::Placed(placement) => {
                    trial.assume(pod, placement.slot, &placement.node, Vec::new(), 0, snapshot)
                }
                Verdict::Unschedulable(Unschedulable { preemption: Preemption::Proposed(plan), .. }) => {
                    let mut victims = plan.victims;
                    for victim in victims.clone() {
                        let together = mates(&victim, snapshot)
                            .into_iter()
                            .filter(|mate| mate.template.priority < pod.template.priority);
                        victims.extend(together);
                    }
                    victims.sort_by(|a, b| a.importance().cmp(&b.importance()));
                    victims.dedup_by(|a, b| a.uid == b.uid);
                    trial.assume(pod, plan.slot, &plan.node, victims, plan.violations, snapshot);
                }
                Verdict::Unschedulable(_) => {}
            }
        }
        let enough = trial.plans.len() + request.placed >= request.spec.min_count;
        trial.undo(snapshot);
        (enough && trial.plans.iter().any(|(_, plan)| !plan.victims.is_empty())).then_some(trial.plans)
    }
}

/// Members placed so far, and what the others were told.
#[derive(Debug, Default)]
struct Attempt {
    placed: Vec<(Arc<PodInfo>, Placement)>,
    failed: Vec<(Arc<PodInfo>, Unschedulable)>,
}

impl Attempt {
    fn undo(&self, snapshot: &mut Snapshot) {
        for (pod, _) in &self.placed {
            snapshot.remove_pod(&pod.uid);
        }
    }
}

/// A gang placed on room that its victims would leave.
#[derive(Debug, Default)]
struct Trial {
    plans: Vec<(Arc<PodInfo>, Preempt)>,
    evicted: Vec<(Arc<PodInfo>, Str)>,
}

impl Trial {
    fn assume(
        &mut self,
        pod: &Arc<PodInfo>,
        slot: NodeSlot,
        node: &Str,
        victims: Vec<Arc<PodInfo>>,
        violations: usize,
        snapshot: &mut Snapshot,
    ) {
        let home = |uid: &str, snapshot: &Snapshot| {
            let (slot, _) = snapshot.pod(uid)?;
            Some(Arc::clone(&snapshot.node(slot)?.info.name))
        };
        for victim in &victims {
            if let Some(home) = home(&victim.uid, snapshot) {
                snapshot.remove_pod(&victim.uid);
                self.evicted.push((Arc::clone(victim), home));
            }
        }
        snapshot.add_pod(Arc::clone(pod), node);
        self.plans.push((Arc::clone(pod), Preempt { slot, node: Arc::clone(node), victims, violations }));
    }

    fn undo(&self, snapshot: &mut Snapshot) {
        for (pod, _) in &self.plans {
            snapshot.remove_pod(&pod.uid);
        }
        for (victim, home) in &self.evicted {
            snapshot.add_pod(Arc::clone(victim), home);
        }
    }
}

/// The domains to try, those with most free CPU first; members that have a node tie the others to their domain.
fn domains(request: GangRequest<'_>, snapshot: &Snapshot) -> Vec<Domain> {
    let keys = &request.spec.topology;
    if keys.is_empty() {
        return vec![None];
    }
    let mut by_values: BTreeMap<Vec<&Str>, (Vec<bool>, i64)> = BTreeMap::new();
    let mut tied: Option<Vec<&Str>> = None;
    for (slot, node) in snapshot.nodes() {
        let Some(values) = keys.iter().map(|key| node.info.labels.get(key)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        if node.pods().iter().any(|pod| pod.template.gang.as_ref() == Some(request.gang)) {
            tied = Some(values.clone());
        }
        let (nodes, free) = by_values.entry(values).or_insert_with(|| (vec![false; snapshot.slots()], 0));
        nodes[slot.index()] = true;
        *free += (node.info.allocatable.cpu - node.requested().cpu).0;
    }
    if let Some(tied) = tied {
        by_values.retain(|values, _| *values == tied);
    }
    let mut domains: Vec<_> = by_values.into_values().collect();
    domains.sort_by_key(|(_, free)| std::cmp::Reverse(*free));
    domains.into_iter().map(|(nodes, _)| Some(nodes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GangSource, Labels, PodTemplate};
    use crate::profile::Profile;
    use crate::testing::{node, plain, pod};

    fn gang() -> GangRef {
        GangRef { namespace: "default".into(), name: "g".into(), source: GangSource::Field }
    }

    fn members(count: usize, template: &PodTemplate) -> Vec<Arc<PodInfo>> {
        let mut template = template.clone();
        template.gang = Some(gang());
        (0..count).map(|n| pod(&format!("m{n}"), template.clone())).collect()
    }

    fn cluster(nodes: &[(&str, &str, i64)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, rack, cpu) in nodes {
            let mut info = node(name, *cpu, 1000);
            info.labels = Labels::from_iter([("rack", *rack)]);
            snapshot.set_node(info);
        }
        snapshot
    }

    fn decide(pods: &[Arc<PodInfo>], spec: &GangSpec, snapshot: &mut Snapshot) -> GangVerdict {
        let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
        let gang = gang();
        core.schedule_gang(GangRequest { gang: &gang, spec, pods, placed: 0 }, snapshot, 1, &|_, _| Vec::new())
    }

    fn spec(min_count: usize, topology: &[&str]) -> GangSpec {
        GangSpec { min_count, topology: topology.iter().map(|key| Str::from(*key)).collect(), ..GangSpec::default() }
    }

    #[test]
    fn all_or_nothing() {
        let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000)]);
        let pods = members(3, &plain(1000, 1));
        let GangVerdict::Unschedulable(failure) = decide(&pods, &spec(3, &[]), &mut snapshot) else {
            panic!("only two fit")
        };
        assert!(snapshot.nodes().all(|(_, node)| node.pods().is_empty()), "nothing is held");
        assert!(
            failure
                .message()
                .starts_with("pod group \"g\": minCount (3) cannot be satisfied: 2 scheduled, 1 remaining. 0/2")
        );
        let GangVerdict::Placed { placed, waiting } = decide(&pods, &spec(2, &[]), &mut snapshot) else {
            panic!("two are enough")
        };
        assert_eq!((placed.len(), waiting.len()), (2, 1));
    }

    #[test]
    fn a_topology_keeps_the_gang_in_one_domain() {
        let nodes = [("a", "1", 1000), ("b", "2", 1000), ("c", "2", 1000)];
        let GangVerdict::Placed { placed, .. } =
            decide(&members(2, &plain(1000, 1)), &spec(2, &["rack"]), &mut cluster(&nodes))
        else {
            panic!("rack 2 has room")
        };
        let mut names: Vec<_> = placed.iter().map(|(_, placement)| placement.node.to_string()).collect();
        names.sort();
        assert_eq!(names, ["b", "c"]);
        let verdict = decide(&members(3, &plain(1000, 1)), &spec(3, &["rack"]), &mut cluster(&nodes));
        assert!(matches!(verdict, GangVerdict::Unschedulable(_)), "no rack has three places");
    }

    #[test]
    fn a_gang_preempts_for_all_of_its_minimum_or_not_at_all() {
        let mut important = plain(1000, 1);
        important.priority = 10;
        let fill = |nodes: &[(&str, i32)]| {
            let mut snapshot = cluster(&nodes.iter().map(|(name, _)| (*name, "1", 1000)).collect::<Vec<_>>());
            for (name, priority) in nodes {
                let mut template = plain(1000, 1);
                template.priority = *priority;
                snapshot.add_pod(pod(&format!("v-{name}"), template), name);
            }
            snapshot
        };
        let mut both = fill(&[("a", 0), ("b", 0)]);
        let GangVerdict::Unschedulable(failure) = decide(&members(2, &important), &spec(2, &[]), &mut both) else {
            panic!("full")
        };
        assert_eq!(failure.preemption.iter().map(|(_, plan)| plan.victims.len()).sum::<usize>(), 2);
        assert!(both.pod("v-a").is_some() && both.pod("v-b").is_some(), "a proposal evicts nobody");
        let mut one = fill(&[("a", 0), ("b", 100)]);
        let GangVerdict::Unschedulable(failure) = decide(&members(2, &important), &spec(2, &[]), &mut one) else {
            panic!("full")
        };
        assert!(failure.preemption.is_empty(), "half a gang is no reason to evict");
    }
}
