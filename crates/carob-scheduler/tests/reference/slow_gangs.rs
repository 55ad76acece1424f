//! Gangs of equal members in the slow scheduler: one member after another wherever one fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_scheduler::{GangSpec, PodInfo, PodTemplate, Preempt, Str};

use crate::cluster;
use crate::slow::World;

/// What becomes of a gang.
pub(crate) struct Fate {
    pub(crate) fits: bool,
    /// The first of the preferred keys that it can be within.
    pub(crate) preferred: Option<Str>,
    /// Whether room could be made for it; unknown where Pods on one node matter to another.
    pub(crate) fits_by_eviction: Option<bool>,
}

impl World<'_> {
    pub(crate) fn gang(&self, pod: &PodTemplate, spec: &GangSpec) -> Fate {
        let fits = |keys: &[Str], evict: bool| {
            self.domains(keys).iter().any(|domain| self.capacity(pod, domain, spec.min_count, evict) >= spec.min_count)
        };
        let possible = self.rejects_whole(pod).is_none();
        let within = |key: &&Str| {
            let keys: Vec<Str> = spec.topology.iter().chain([*key]).cloned().collect();
            fits(&keys, false)
        };
        let repels = |other: &Arc<PodInfo>| !other.template.affinity.required_anti.is_empty();
        let mut pods = self.sites.iter().flat_map(|site| site.pods.iter().chain(&site.promised));
        let coupled = pods.any(repels) || !pod.volumes.is_empty();
        Fate {
            fits: possible && fits(&spec.topology, false),
            preferred: spec.preferred.iter().find(within).cloned(),
            fits_by_eviction: (!coupled).then(|| pod.may_preempt && possible && fits(&spec.topology, true)),
        }
    }

    /// The nodes that have all keys, by their values.
    fn domains(&self, keys: &[Str]) -> Vec<Vec<usize>> {
        let mut domains: BTreeMap<Vec<&Str>, Vec<usize>> = BTreeMap::new();
        for (at, site) in self.sites.iter().enumerate() {
            if let Some(values) = keys.iter().map(|key| site.info.labels.get(key)).collect::<Option<Vec<_>>>() {
                domains.entry(values).or_default().push(at);
            }
        }
        domains.into_values().collect()
    }

    /// How many members fit, up to `most`.
    fn capacity(&self, pod: &PodTemplate, domain: &[usize], most: usize, evict: bool) -> usize {
        let mut world = World { sites: self.sites.clone(), ..*self };
        if evict {
            for site in &mut world.sites {
                site.pods.retain(|other| other.template.priority >= pod.priority);
            }
        }
        let template = Arc::new(pod.clone());
        let mut count = 0;
        for at in domain {
            while count < most && world.rejects(pod, *at).is_none() {
                world.sites[*at].pods.push(cluster::pod(&format!("member-{count}"), &template, 0));
                count += 1;
            }
        }
        count
    }

    /// Whether what a plan evicts makes room for its members, and for no fewer than the minimum.
    pub(crate) fn room_is_made(
        &self,
        pod: &PodTemplate,
        spec: &GangSpec,
        plan: &[(Arc<PodInfo>, Preempt)],
    ) -> Result<(), String> {
        if plan.is_empty() {
            return Ok(());
        }
        if plan.len() != spec.min_count {
            return Err(format!("{} members of {} are promised room", plan.len(), spec.min_count));
        }
        let victims: Vec<_> = plan.iter().flat_map(|(_, plan)| &plan.victims).collect();
        if let Some(victim) = victims.iter().find(|victim| victim.template.priority >= pod.priority) {
            return Err(format!("{} is not less important", victim.key));
        }
        let mut world = World { sites: self.sites.clone(), ..*self };
        for site in &mut world.sites {
            site.pods.retain(|other| !victims.contains(&other));
        }
        for (member, plan) in plan {
            let at = world.sites.iter().position(|site| site.info.name == plan.node).expect("a node");
            if let Some(rejected) = world.rejects(pod, at) {
                return Err(format!("{} does not fit on {}: {rejected:?}", member.key, plan.node));
            }
            world.sites[at].pods.push(Arc::clone(member));
        }
        Ok(())
    }
}
