//! The slow, obvious scheduler: everything is computed again from the nodes and their Pods, plugin by plugin, as the
//! documentation says. It shares no code with the fast one but the model and the selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use carob_scheduler::{
    AffinityTerm, Effect, FitStrategy, HostPort, Labels, NodeInfo, Plugin, PodAffinity, PodInfo, PodTemplate, Profile,
    Requirement, Resources, Selector, Snapshot, SpreadConstraint, WhenUnsatisfiable,
};

pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A node and its Pods, copied out of the snapshot.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) info: Arc<NodeInfo>,
    pub(crate) pods: Vec<Arc<PodInfo>>,
    pub(crate) promised: Vec<Arc<PodInfo>>,
}

pub(crate) struct World<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) profile: &'a Profile,
    pub(crate) services: &'a [(String, Selector)],
    pub(crate) sites: Vec<Site>,
}

pub(crate) type Rejected = (Plugin, bool, Vec<String>);

impl<'a> World<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, profile: &'a Profile, services: &'a [(String, Selector)]) -> Self {
        let site = |node: &carob_scheduler::NodeState| Site {
            info: Arc::clone(&node.info),
            pods: node.pods().to_vec(),
            promised: node.nominated().to_vec(),
        };
        Self { snapshot, profile, services, sites: snapshot.nodes().map(|(_, node)| site(node)).collect() }
    }

    fn namespace(&self, name: &str) -> Labels {
        self.snapshot.facts().namespace(name).cloned().unwrap_or_default()
    }

    fn matches(&self, term: &AffinityTerm, pod: &PodTemplate) -> bool {
        term.selector.matches(&pod.labels)
            && (term.namespaces.contains(&pod.namespace)
                || term.namespace_selector.matches(&self.namespace(&pod.namespace)))
    }

    fn constraints(&self, pod: &PodTemplate) -> (Vec<SpreadConstraint>, bool) {
        if !pod.spread.is_empty() {
            return (pod.spread.to_vec(), true);
        }
        let selecting = self.services.iter().filter(|(namespace, selector)| {
            **namespace == *pod.namespace && !selector.is_empty() && selector.matches(&pod.labels)
        });
        let requirements: Vec<Requirement> = selecting
            .flat_map(|(_, selector)| match selector {
                Selector::All(requirements) => requirements.to_vec(),
                Selector::Nothing => Vec::new(),
            })
            .collect();
        if requirements.is_empty() {
            return (Vec::new(), false);
        }
        let default = |key: &str, max_skew| SpreadConstraint {
            max_skew,
            topology_key: key.into(),
            when: WhenUnsatisfiable::ScheduleAnyway,
            selector: Selector::All(requirements.clone().into()),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        (vec![default(HOSTNAME, 3), default(ZONE, 5)], false)
    }

    /// Why a node rejects a Pod, promises to more important Pods counted in and left out.
    pub(crate) fn rejects(&self, pod: &PodTemplate, at: usize) -> Option<Rejected> {
        let promised: Vec<_> =
            self.sites[at].promised.iter().filter(|other| other.template.priority >= pod.priority).cloned().collect();
        if !promised.is_empty() {
            let mut sites = self.sites.clone();
            sites[at].pods.extend(promised);
            let crowded = World { sites, ..*self };
            // The node-local filters come first, with and without the promises.
            let locally = crowded.rejects_locally(pod, at).or_else(|| self.rejects_locally(pod, at));
            if let Some(rejected) = locally.or_else(|| self.rejects_exclusively(pod)) {
                return Some(rejected);
            }
            if let Some(rejected) = crowded.rejects_globally(pod, at) {
                return Some(rejected);
            }
        }
        self.rejects_locally(pod, at)
            .or_else(|| self.rejects_exclusively(pod))
            .or_else(|| self.rejects_globally(pod, at))
    }

    fn rejects_locally(&self, pod: &PodTemplate, at: usize) -> Option<Rejected> {
        let Site { info, pods, .. } = &self.sites[at];
        let no = |plugin, resolvable, reason: &str| Some((plugin, resolvable, vec![reason.to_owned()]));
        let tolerates = |key: &str, value: &str, effect| {
            let taint = carob_scheduler::Taint { key: key.into(), value: value.into(), effect };
            pod.tolerations.iter().any(|toleration| toleration.tolerates(&taint))
        };
        if info.unschedulable && !tolerates("node.kubernetes.io/unschedulable", "", Effect::NoSchedule) {
            return no(Plugin::NodeUnschedulable, false, "node(s) were unschedulable");
        }
        if pod.wants_node.as_ref().is_some_and(|wants| *wants != info.name) {
            return no(Plugin::NodeName, false, "node(s) didn't match the requested node name");
        }
        if info.taints.iter().any(|t| t.effect != Effect::PreferNoSchedule && !tolerates(&t.key, &t.value, t.effect)) {
            return no(Plugin::TaintToleration, false, "node(s) had untolerated taint(s)");
        }
        let added = self.profile.added_affinity.as_ref().and_then(|added| added.required.as_ref());
        if added.is_some_and(|terms| !terms.iter().any(|term| term.matches(&info.name, &info.labels))) {
            return no(Plugin::NodeAffinity, false, "node(s) didn't match scheduler-enforced node affinity");
        }
        if !Self::admits(pod, info) {
            return no(Plugin::NodeAffinity, false, "node(s) didn't match Pod's node affinity/selector");
        }
        let taken = pods.iter().flat_map(|other| other.template.host_ports.iter());
        let all = |ip: &str| ip == "0.0.0.0";
        let clash = |one: &HostPort, other: &HostPort| {
            one.port == other.port
                && one.protocol == other.protocol
                && (all(&one.ip) || all(&other.ip) || one.ip == other.ip)
        };
        if taken.clone().any(|other| pod.host_ports.iter().any(|port| clash(port, other))) {
            return no(Plugin::NodePorts, true, "node(s) didn't have free ports for the requested pod ports");
        }
        let (mut reasons, mut resolvable) = (Vec::new(), true);
        if pods.len() as i64 >= info.max_pods {
            reasons.push("Too many pods".to_owned());
        }
        let used =
            |amount: fn(&Resources) -> i64| -> i64 { pods.iter().map(|other| amount(&other.template.requests)).sum() };
        let mut check = |name: &str, amount: fn(&Resources) -> i64| {
            let (wants, has) = (amount(&pod.requests), amount(&info.allocatable));
            if wants > 0 && used(amount) + wants > has {
                reasons.push(format!("Insufficient {name}"));
                resolvable &= wants <= has;
            }
        };
        check("cpu", |r| r.cpu.0);
        check("memory", |r| r.memory.0);
        check("ephemeral-storage", |r| r.ephemeral.0);
        if self.profile.ignored_groups.is_empty() {
            check("example.com/gpu", |r| r.scalar("example.com/gpu"));
        }
        if !reasons.is_empty() {
            return Some((Plugin::NodeResourcesFit, resolvable, reasons));
        }
        self.rejects_volumes(pod, at)
    }

    fn admits(pod: &PodTemplate, info: &NodeInfo) -> bool {
        let choice = &pod.node_choice;
        choice.labels.iter().all(|(key, value)| info.labels.get(key) == Some(value))
            && choice
                .required
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(&info.name, &info.labels)))
    }

    fn included(constraint: &SpreadConstraint, pod: &PodTemplate, info: &NodeInfo) -> bool {
        let tolerated = |taint: &carob_scheduler::Taint| {
            taint.effect == Effect::PreferNoSchedule
                || pod.tolerations.iter().any(|toleration| toleration.tolerates(taint))
        };
        (!constraint.honor_affinity || Self::admits(pod, info))
            && (!constraint.honor_taints || info.taints.iter().all(tolerated))
    }

    fn count(site: &Site, constraint: &SpreadConstraint, pod: &PodTemplate) -> i64 {
        let counts = |other: &&Arc<PodInfo>| {
            !other.terminating
                && other.template.namespace == pod.namespace
                && !constraint.selector.is_empty()
                && constraint.selector.matches(&other.template.labels)
        };
        site.pods.iter().filter(counts).count() as i64
    }

    fn rejects_globally(&self, pod: &PodTemplate, at: usize) -> Option<Rejected> {
        self.rejects_spread(pod, at).or_else(|| self.rejects_affinity(pod, at))
    }

    fn rejects_spread(&self, pod: &PodTemplate, at: usize) -> Option<Rejected> {
        let (constraints, _) = self.constraints(pod);
        let hard: Vec<_> = constraints.iter().filter(|c| c.when == WhenUnsatisfiable::DoNotSchedule).collect();
        let has_all = |info: &NodeInfo| hard.iter().all(|c| info.labels.get(&c.topology_key).is_some());
        for constraint in &hard {
            let no = |resolvable, reason: &str| Some((Plugin::PodTopologySpread, resolvable, vec![reason.to_owned()]));
            let Some(own) = self.sites[at].info.labels.get(&constraint.topology_key) else {
                return no(false, "node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
            for site in self.sites.iter().filter(|s| has_all(&s.info) && Self::included(constraint, pod, &s.info)) {
                let domain = site.info.labels.get(&constraint.topology_key).expect("has all keys");
                *domains.entry(domain).or_insert(0) += Self::count(site, constraint, pod);
            }
            let few = (domains.len() as i64) < constraint.min_domains;
            let least = if few { 0 } else { domains.values().min().copied().unwrap_or(0) };
            let itself = i64::from(constraint.selector.matches(&pod.labels));
            if domains.get(&**own).copied().unwrap_or(0) + itself - least > constraint.max_skew {
                return no(true, "node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// Pods that share the node's domain of a topology key.
    fn in_domain(&self, at: usize, key: &str) -> Vec<&Arc<PodInfo>> {
        let Some(value) = self.sites[at].info.labels.get(key) else { return Vec::new() };
        let same = self.sites.iter().filter(|site| site.info.labels.get(key) == Some(value));
        same.flat_map(|site| &site.pods).collect()
    }

    fn rejects_affinity(&self, pod: &PodTemplate, at: usize) -> Option<Rejected> {
        let no = |resolvable, reason: &str| Some((Plugin::InterPodAffinity, resolvable, vec![reason.to_owned()]));
        let terms = &pod.affinity.required;
        let matches_all = |other: &PodTemplate| terms.iter().all(|term| self.matches(term, other));
        let has_keys = terms.iter().all(|term| self.sites[at].info.labels.get(&term.topology_key).is_some());
        let met =
            terms.iter().all(|term| self.in_domain(at, &term.topology_key).iter().any(|p| matches_all(&p.template)));
        let counted = |site: &Site| terms.iter().any(|term| site.info.labels.get(&term.topology_key).is_some());
        let nobody = !self.sites.iter().filter(|s| counted(s)).any(|s| s.pods.iter().any(|p| matches_all(&p.template)));
        if !terms.is_empty() && !(has_keys && (met || (nobody && matches_all(pod)))) {
            return no(false, "node(s) didn't match pod affinity rules");
        }
        let repels = |term: &AffinityTerm| {
            self.in_domain(at, &term.topology_key).iter().any(|p| self.matches(term, &p.template))
        };
        if pod.affinity.required_anti.iter().any(repels) {
            return no(true, "node(s) didn't match pod anti-affinity rules");
        }
        let labels = &self.sites[at].info.labels;
        let repelled = |site: &Site, term: &AffinityTerm| {
            let value = site.info.labels.get(&term.topology_key);
            value.is_some() && value == labels.get(&term.topology_key) && self.matches(term, pod)
        };
        let repelled_by =
            |site: &Site| site.pods.iter().any(|p| p.template.affinity.required_anti.iter().any(|t| repelled(site, t)));
        if self.sites.iter().any(repelled_by) {
            return no(true, "node(s) didn't satisfy existing pods anti-affinity rules");
        }
        None
    }

    /// The weighted scores of the nodes that fit, by plugin in the order of the fast scheduler's table.
    pub(crate) fn scores(&self, pod: &PodTemplate, fits: &[usize]) -> Vec<Vec<(Plugin, i64)>> {
        let taints = self.taint_scores(pod, fits);
        let preferred = self.node_affinity_scores(pod, fits);
        let spread = self.spread_scores(pod, fits);
        let affinity = self.affinity_scores(pod, fits);
        let row = |index: usize| {
            let site = &self.sites[fits[index]];
            vec![
                (Plugin::TaintToleration, 3 * taints[index]),
                (Plugin::NodeAffinity, 2 * preferred[index]),
                (Plugin::NodeResourcesFit, self.allocated(pod, site)),
                (Plugin::PodTopologySpread, 2 * spread[index]),
                (Plugin::InterPodAffinity, 2 * affinity[index]),
                (Plugin::NodeResourcesBalancedAllocation, balanced(pod, site)),
                (Plugin::ImageLocality, self.images(pod, site)),
            ]
        };
        (0..fits.len()).map(row).collect()
    }

    fn taint_scores(&self, pod: &PodTemplate, fits: &[usize]) -> Vec<i64> {
        let bad = |at: &usize| {
            let soft = self.sites[*at].info.taints.iter().filter(|taint| taint.effect == Effect::PreferNoSchedule);
            soft.filter(|taint| !pod.tolerations.iter().any(|t| t.tolerates(taint))).count() as i64
        };
        let raw: Vec<i64> = fits.iter().map(bad).collect();
        let max = raw.iter().copied().max().unwrap_or(0);
        raw.into_iter().map(|raw| if max == 0 { 100 } else { 100 - 100 * raw / max }).collect()
    }

    fn node_affinity_scores(&self, pod: &PodTemplate, fits: &[usize]) -> Vec<i64> {
        let sum = |at: &usize| -> i64 {
            let info = &self.sites[*at].info;
            let added = self.profile.added_affinity.iter().flat_map(|added| &added.preferred);
            let all = pod.node_choice.preferred.iter().chain(added);
            let holds = all.filter(|term| term.term.matches(&info.name, &info.labels));
            holds.map(|term| term.weight).sum()
        };
        let raw: Vec<i64> = fits.iter().map(sum).collect();
        let max = raw.iter().copied().max().unwrap_or(0);
        raw.into_iter().map(|raw| if max == 0 { 0 } else { 100 * raw / max }).collect()
    }

    fn spread_scores(&self, pod: &PodTemplate, fits: &[usize]) -> Vec<i64> {
        let (constraints, needs_all) = self.constraints(pod);
        let soft: Vec<_> = constraints.iter().filter(|c| c.when == WhenUnsatisfiable::ScheduleAnyway).collect();
        if soft.is_empty() {
            return vec![0; fits.len()];
        }
        let has_all = |info: &NodeInfo| soft.iter().all(|c| info.labels.get(&c.topology_key).is_some());
        let counted = |at: usize| !needs_all || has_all(&self.sites[at].info);
        let mut raw = Vec::new();
        for at in fits {
            let mut score = 0.0;
            for constraint in &soft {
                let key = &constraint.topology_key;
                let Some(own) = self.sites[*at].info.labels.get(key) else { continue };
                let candidates = fits.iter().filter(|at| counted(**at));
                let (size, count) = if &**key == HOSTNAME {
                    (candidates.count(), Self::count(&self.sites[*at], constraint, pod))
                } else {
                    let values: BTreeSet<_> = candidates.map(|at| self.sites[*at].info.labels.get(key)).collect();
                    let here = self.sites.iter().filter(|s| {
                        s.info.labels.get(key) == Some(own)
                            && (!needs_all || has_all(&s.info))
                            && Self::included(constraint, pod, &s.info)
                    });
                    (values.len(), here.map(|site| Self::count(site, constraint, pod)).sum())
                };
                score += count as f64 * ((size + 2) as f64).ln() + (constraint.max_skew - 1) as f64;
            }
            raw.push(score.round() as i64);
        }
        let valid: Vec<i64> = fits.iter().zip(&raw).filter(|(at, _)| counted(**at)).map(|(_, raw)| *raw).collect();
        let (min, max) = (valid.iter().copied().min().unwrap_or(0), valid.iter().copied().max().unwrap_or(0));
        let normal = |(at, raw): (&usize, &i64)| match (counted(*at), max) {
            (false, _) => 0,
            (true, 0) => 100,
            (true, _) => 100 * (max + min - raw) / max,
        };
        fits.iter().zip(&raw).map(normal).collect()
    }

    fn affinity_scores(&self, pod: &PodTemplate, fits: &[usize]) -> Vec<i64> {
        let mut raw = vec![0; fits.len()];
        let (hard, nobody) = (self.profile.hard_affinity_weight, PodAffinity::default());
        for site in &self.sites {
            for other in &site.pods {
                let theirs = &other.template;
                let mut terms: Vec<(&AffinityTerm, i64)> = Vec::new();
                terms.extend(
                    pod.affinity
                        .preferred
                        .iter()
                        .filter(|t| self.matches(&t.term, theirs))
                        .map(|t| (&t.term, t.weight)),
                );
                terms.extend(
                    pod.affinity
                        .preferred_anti
                        .iter()
                        .filter(|t| self.matches(&t.term, theirs))
                        .map(|t| (&t.term, -t.weight)),
                );
                terms.extend(theirs.affinity.required.iter().filter(|t| self.matches(t, pod)).map(|t| (t, hard)));
                let existing = if self.profile.ignore_preferred_of_existing { &nobody } else { &theirs.affinity };
                terms.extend(
                    existing.preferred.iter().filter(|t| self.matches(&t.term, pod)).map(|t| (&t.term, t.weight)),
                );
                terms.extend(
                    existing.preferred_anti.iter().filter(|t| self.matches(&t.term, pod)).map(|t| (&t.term, -t.weight)),
                );
                for (term, weight) in terms {
                    let Some(value) = site.info.labels.get(&term.topology_key) else { continue };
                    for (raw, at) in raw.iter_mut().zip(fits) {
                        if self.sites[*at].info.labels.get(&term.topology_key) == Some(value) {
                            *raw += weight;
                        }
                    }
                }
            }
        }
        let (min, max) = (raw.iter().copied().min().unwrap_or(0), raw.iter().copied().max().unwrap_or(0));
        let normal = |raw: i64| if max == min { 0 } else { (100.0 * ((raw - min) as f64 / (max - min) as f64)) as i64 };
        raw.into_iter().map(normal).collect()
    }

    /// The weighted mean over CPU and memory of what the profile's strategy makes of their use.
    fn allocated(&self, pod: &PodTemplate, site: &Site) -> i64 {
        let cpu = site.pods.iter().map(|p| p.template.scored_cpu.0).sum::<i64>() + pod.scored_cpu.0;
        let memory = site.pods.iter().map(|p| p.template.scored_memory.0).sum::<i64>() + pod.scored_memory.0;
        let (mut sum, mut weights) = (0, 0);
        let has = [site.info.allocatable.cpu.0, site.info.allocatable.memory.0];
        for ((used, has), weighted) in [cpu, memory].into_iter().zip(has).zip(&self.profile.fit_resources) {
            if has == 0 {
                continue;
            }
            let score = match &self.profile.fit {
                FitStrategy::LeastAllocated => {
                    if used > has {
                        0
                    } else {
                        (has - used) * 100 / has
                    }
                }
                FitStrategy::MostAllocated => used.min(has) * 100 / has,
                FitStrategy::RequestedToCapacityRatio(shape) => on_line(shape, (used * 100 / has).min(100)),
            };
            let counts = score > 0 || !matches!(self.profile.fit, FitStrategy::RequestedToCapacityRatio(_));
            if counts {
                sum += score * weighted.weight;
                weights += weighted.weight;
            }
        }
        match (&self.profile.fit, weights) {
            (_, 0) => 0,
            (FitStrategy::RequestedToCapacityRatio(_), _) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }

    fn images(&self, pod: &PodTemplate, site: &Site) -> i64 {
        const MIB: i64 = 1024 * 1024;
        if pod.images.is_empty() {
            return 0;
        }
        let mut sum = 0;
        for image in &pod.images {
            let on = self.sites.iter().filter(|site| site.info.image(image).is_some()).count();
            let size = site.info.image(image).map_or(0, |size| size.0);
            sum += (size as f64 * (on as f64 / self.sites.len() as f64)) as i64;
        }
        let max = 1000 * MIB * pod.images.len() as i64;
        100 * (sum.clamp(23 * MIB, max) - 23 * MIB) / (max - 23 * MIB)
    }

    /// The victims on one node, the most important first, and how many a budget protects.
    pub(crate) fn victims(&self, pod: &PodTemplate, at: usize) -> Option<(Vec<Arc<PodInfo>>, usize)> {
        let mut lower: Vec<_> =
            self.sites[at].pods.iter().filter(|other| other.template.priority < pod.priority).cloned().collect();
        lower.sort_by(|a, b| a.importance().cmp(&b.importance()));
        let mut without = World { sites: self.sites.clone(), ..*self };
        without.sites[at].pods.retain(|other| other.template.priority >= pod.priority);
        if lower.is_empty() || without.rejects(pod, at).is_some() {
            return None;
        }
        let protected = self.protected(&lower);
        let (first, then): (Vec<_>, Vec<_>) =
            lower.iter().cloned().partition(|other| protected.contains(&other.uid.to_string()));
        let mut victims = Vec::new();
        for other in first.iter().chain(&then) {
            without.sites[at].pods.push(Arc::clone(other));
            if without.rejects(pod, at).is_some() {
                without.sites[at].pods.pop();
                victims.push(Arc::clone(other));
            }
        }
        let violations = victims.iter().filter(|victim| protected.contains(&victim.uid.to_string())).count();
        victims.sort_by(|a, b| a.importance().cmp(&b.importance()));
        (!victims.is_empty()).then_some((victims, violations))
    }

    fn protected(&self, pods: &[Arc<PodInfo>]) -> BTreeSet<String> {
        let mut allowed: Vec<_> = self.snapshot.facts().budgets().map(|budget| (budget, budget.allowed)).collect();
        let mut protected = BTreeSet::new();
        for pod in pods {
            for (budget, allowed) in &mut allowed {
                if budget.namespace == pod.key.namespace
                    && !pod.template.labels.is_empty()
                    && budget.selector.matches(&pod.template.labels)
                {
                    *allowed -= 1;
                    if *allowed < 0 {
                        protected.insert(pod.uid.to_string());
                    }
                }
            }
        }
        protected
    }
}

/// The score at a utilization, between the two points of the shape beside it.
fn on_line(shape: &[(i64, i64)], at: i64) -> i64 {
    let after = shape.iter().position(|(x, _)| at <= *x).expect("the shape goes up to 100");
    let ((x1, y1), (x0, y0)) = (shape[after], shape[after.saturating_sub(1)]);
    if x1 == x0 { 10 * y1 } else { 10 * y0 + 10 * (y1 - y0) * (at - x0) / (x1 - x0) }
}

fn balanced(pod: &PodTemplate, site: &Site) -> i64 {
    if pod.requests.cpu.0 == 0 && pod.requests.memory.0 == 0 {
        return 0;
    }
    let balance = |extra_cpu: i64, extra_memory: i64| {
        let cpu = site.pods.iter().map(|p| p.template.requests.cpu.0).sum::<i64>() + extra_cpu;
        let memory = site.pods.iter().map(|p| p.template.requests.memory.0).sum::<i64>() + extra_memory;
        let (has_cpu, has_memory) = (site.info.allocatable.cpu.0, site.info.allocatable.memory.0);
        if has_cpu == 0 || has_memory == 0 {
            return 100;
        }
        let fraction = |used: i64, has: i64| (used as f64 / has as f64).min(1.0);
        let deviation = ((fraction(cpu, has_cpu) - fraction(memory, has_memory)) / 2.0).abs();
        ((1.0 - deviation) * 100.0) as i64
    };
    50 + (50 + balance(pod.requests.cpu.0, pod.requests.memory.0) - balance(0, 0)) / 2
}
