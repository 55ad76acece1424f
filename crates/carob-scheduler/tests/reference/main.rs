//! The fast scheduler, which remembers and catches up, decides as the slow one, which computes everything again: the same
//! feasible nodes, reasons, scores and victims, and the same fate of gangs, after any history.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a small random cluster")]

mod cluster;
#[path = "../drive/mod.rs"]
mod drive;
mod slow;
mod slow_gangs;
mod slow_volumes;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use carob_scheduler::{
    Budget, Core, GangRef, GangRequest, GangSource, GangSpec, GangVerdict, Labels, PodInfo, PodTemplate, Preemption,
    Profile, Selector, Snapshot, Str, Verdict,
};
use drive::Step;
use proptest::prelude::*;
use slow::World;

/// What `cargo test` runs: within a second or two.
const USUAL_HISTORIES: u64 = 256;
const NODES: u64 = 8;
const TEMPLATES: u64 = 1000;

struct History {
    snapshot: Snapshot,
    profile: Profile,
    core: Core,
    templates: HashMap<u64, Arc<PodTemplate>>,
    placed: Vec<Arc<PodInfo>>,
    services: Vec<(String, Selector)>,
    pods: i64,
    seen: Seen,
}

/// What has happened in histories, by name, so that a comparison of nothing is noticed.
type Seen = BTreeSet<String>;

/// What some history of any few hundred meets.
const MUST_BE_SEEN: [&str; 20] = [
    "NodeUnschedulable",
    "NodeName",
    "TaintToleration",
    "NodeAffinity",
    "NodePorts",
    "NodeResourcesFit",
    "VolumeRestrictions",
    "NodeVolumeLimits",
    "VolumeBinding",
    "VolumeZone",
    "PodTopologySpread",
    "InterPodAffinity",
    "placed",
    "preemption",
    "whole",
    "gang placed",
    "gang placed as preferred",
    "gang within its topology",
    "gang without room",
    "gang preemption",
];

impl History {
    fn new(profile: Profile) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.facts_mut().change_volumes(|facts| {
            facts.classes.extend(cluster::classes());
            (0..16).for_each(|number| cluster::change_volumes(facts, number, number));
        });
        for number in 0..NODES / 2 {
            snapshot.set_node(cluster::node(number, number));
        }
        Self {
            snapshot,
            core: Core::new(vec![profile.clone()]),
            profile,
            templates: HashMap::new(),
            placed: Vec::new(),
            services: Vec::new(),
            pods: 0,
            seen: Seen::new(),
        }
    }

    fn note(&mut self, what: &str) {
        if !self.seen.contains(what) {
            self.seen.insert(what.to_owned());
        }
    }

    fn pod(&mut self, number: u64) -> Arc<PodInfo> {
        let number = number % TEMPLATES;
        let template = Arc::clone(self.templates.entry(number).or_insert_with(|| Arc::new(cluster::template(number))));
        self.pods += 1;
        cluster::pod(&format!("p{}", self.pods), &template, self.pods / 3)
    }

    fn step(&mut self, (what, a, b): Step) -> Result<(), TestCaseError> {
        let node = format!("n{}", a % NODES);
        match what {
            0..=2 => drop(self.snapshot.set_node(cluster::node(a % NODES, b % 20))),
            3 => self.snapshot.remove_node(&node),
            4 => {
                let pod = self.pod(b);
                self.snapshot.add_pod(Arc::clone(&pod), &node);
                self.placed.push(pod);
            }
            5 if !self.placed.is_empty() => {
                let pod = self.placed.swap_remove((a % self.placed.len() as u64) as usize);
                self.snapshot.remove_pod(&pod.uid);
            }
            6 => {
                let pod = self.pod(b);
                self.snapshot.nominate(pod, &node);
            }
            7 => {
                let name = ["default", "other"][(a % 2) as usize];
                let labels = Labels::from_iter([("team", if b % 2 == 0 { "x" } else { "y" })]);
                self.snapshot.facts_mut().set_namespace(name.into(), Some(labels));
            }
            8 => {
                let selector = cluster::selector(&mut drive::Dice::new(b));
                self.services.retain(|(namespace, _)| namespace != "default");
                self.services.push(("default".to_owned(), selector.clone()));
                self.snapshot.facts_mut().set_service("default".into(), "s".into(), Some(selector));
            }
            9 => {
                let selector = Selector::equal(&[("app", if a % 2 == 0 { "x" } else { "y" })]);
                let disrupted = Default::default();
                let budget = Budget {
                    namespace: "default".into(),
                    name: "b".into(),
                    selector,
                    allowed: (b % 2) as i32,
                    disrupted,
                };
                self.snapshot.facts_mut().set_budget("default".into(), "b".into(), Some(budget));
            }
            10 | 11 => self.snapshot.facts_mut().change_volumes(|facts| cluster::change_volumes(facts, a, b)),
            12 if !self.placed.is_empty() => {
                let at = (a % self.placed.len() as u64) as usize;
                let leaving = Arc::new(PodInfo { terminating: true, ..(*self.placed[at]).clone() });
                if let Some((slot, _)) = self.snapshot.pod(&leaving.uid) {
                    let node = Arc::clone(&self.snapshot.node(slot).expect("it holds a Pod").info.name);
                    self.snapshot.add_pod(Arc::clone(&leaving), &node);
                    self.placed[at] = leaving;
                }
            }
            13 | 14 => self.gang(a, b)?,
            _ => self.schedule(a, b)?,
        }
        Ok(())
    }

    /// A gang of equal members without terms of their own: whether it fits does not depend on the order of choices.
    fn gang(&mut self, a: u64, b: u64) -> Result<(), TestCaseError> {
        self.pods += 1;
        let gang =
            GangRef { namespace: "default".into(), name: format!("g{}", self.pods).into(), source: GangSource::Field };
        let mut template = cluster::template(b % TEMPLATES);
        (template.affinity, template.spread, template.gang) = (Default::default(), Box::default(), Some(gang.clone()));
        let template = Arc::new(template);
        let keys = |keys: &[&str]| keys.iter().map(|key| Str::from(*key)).collect::<Vec<_>>();
        let (zone, rack) = ("topology.kubernetes.io/zone", "rack");
        let spec = GangSpec {
            min_count: 1 + (a % 4) as usize,
            topology: keys([&[][..], &[], &[zone], &[zone, rack]][(a / 4 % 4) as usize]),
            preferred: keys([&[][..], &[rack], &[rack, zone]][(a / 16 % 3) as usize]),
            ..GangSpec::default()
        };
        let pods: Vec<_> = (0..spec.min_count + (a / 48 % 2) as usize)
            .map(|number| cluster::pod(&format!("p{}-{number}", self.pods), &template, self.pods))
            .collect();
        let world = World::new(&self.snapshot, &self.profile, &self.services);
        let expected = world.gang(&template, &spec);
        let before: Vec<usize> = world.sites.iter().map(|site| site.pods.len()).collect();
        let request = GangRequest { gang: &gang, spec: &spec, pods: &pods, placed: 0 };
        match self.core.schedule_gang(request, &mut self.snapshot, a, &|_, _| Vec::new()) {
            GangVerdict::Placed { placed, waiting } => {
                prop_assert!(expected.fits, "{} fits only in the fast scheduler", gang);
                prop_assert!(placed.len() >= spec.min_count && placed.len() + waiting.len() == pods.len());
                let together = spec.topology.iter().chain(&expected.preferred);
                for key in together {
                    let values = placed.iter().map(|(_, placement)| {
                        self.snapshot.node(placement.slot).and_then(|node| node.info.labels.get(key)).cloned()
                    });
                    let values: BTreeSet<_> = values.collect();
                    prop_assert!(
                        values.len() == 1 && !values.contains(&None),
                        "{} is in {:?} of {}",
                        gang,
                        values,
                        key
                    );
                }
                self.placed.extend(placed.into_iter().map(|(pod, _)| pod));
                self.note("gang placed");
                if expected.preferred.is_some() {
                    self.note("gang placed as preferred");
                }
                if !spec.topology.is_empty() {
                    self.note("gang within its topology");
                }
            }
            GangVerdict::Unschedulable(failure) => {
                prop_assert!(!expected.fits, "{} fits only in the slow scheduler", gang);
                let world = World::new(&self.snapshot, &self.profile, &self.services);
                let after: Vec<usize> = world.sites.iter().map(|site| site.pods.len()).collect();
                prop_assert_eq!(before, after, "{} holds something", gang);
                if let Some(possible) = expected.fits_by_eviction {
                    prop_assert_eq!(!failure.preemption.is_empty(), possible, "room for {} by eviction", gang);
                }
                let found = if failure.preemption.is_empty() { "gang without room" } else { "gang preemption" };
                if let Err(problem) = world.room_is_made(&template, &spec, &failure.preemption) {
                    return Err(TestCaseError::fail(format!("{gang}: {problem}")));
                }
                self.note(found);
            }
        }
        Ok(())
    }

    fn schedule(&mut self, seed: u64, number: u64) -> Result<(), TestCaseError> {
        let pod = self.pod(number);
        let world = World::new(&self.snapshot, &self.profile, &self.services);
        if let Some(reason) = world.rejects_whole(&pod.template) {
            let verdict = self.core.schedule(&pod, &self.snapshot, seed);
            let told = match &verdict {
                Verdict::Unschedulable(verdict) => verdict.whole.as_ref().map(|whole| whole.reasons.join("; ")),
                Verdict::Placed(_) => None,
            };
            prop_assert!(world.sites.is_empty() || told == Some(reason), "{} was told {:?}", pod.key, told);
            self.note("whole");
            return Ok(());
        }
        let rejected: Vec<_> = (0..world.sites.len()).map(|at| world.rejects(&pod.template, at)).collect();
        let fits: Vec<usize> = (0..rejected.len()).filter(|at| rejected[*at].is_none()).collect();
        let scores = world.scores(&pod.template, &fits);
        let table = self.core.evaluate(&pod, &self.snapshot);
        prop_assert_eq!(table.len(), world.sites.len());
        for (at, (name, verdict)) in table.iter().enumerate() {
            prop_assert_eq!(name, &world.sites[at].info.name);
            match verdict {
                Err(rejection) => {
                    let reasons = rejection.reasons.iter().map(ToString::to_string).collect();
                    prop_assert_eq!(
                        Some((rejection.plugin, rejection.resolvable, reasons)),
                        rejected[at].clone(),
                        "{} on {}",
                        pod.key,
                        name
                    );
                }
                Ok(scored) => {
                    let index = fits.iter().position(|fit| *fit == at);
                    prop_assert!(
                        index.is_some(),
                        "{name} fits {} only in the fast scheduler: {:?}",
                        pod.key,
                        rejected[at]
                    );
                    prop_assert_eq!(
                        &scored.by_plugin,
                        &scores[index.expect("checked")],
                        "scores of {} on {}",
                        pod.key,
                        name
                    );
                }
            }
        }
        for (plugin, ..) in rejected.iter().flatten() {
            if !self.seen.contains(plugin.name()) {
                self.seen.insert(plugin.name().to_owned());
            }
        }
        let totals: Vec<i64> = scores.iter().map(|row| row.iter().map(|(_, score)| score).sum()).collect();
        match self.core.schedule(&pod, &self.snapshot, seed) {
            Verdict::Placed(placement) => {
                let best = totals.iter().max();
                let at = world.sites.iter().position(|site| site.info.name == placement.node).expect("a node");
                let index = fits.iter().position(|fit| *fit == at);
                prop_assert_eq!(
                    index.map(|index| &totals[index]),
                    best,
                    "{} was placed on {}",
                    pod.key,
                    placement.node
                );
                let node = placement.node.to_string();
                self.snapshot.add_pod(Arc::clone(&pod), &node);
                self.placed.push(pod);
                self.note("placed");
            }
            Verdict::Unschedulable(verdict) => {
                prop_assert!(fits.is_empty());
                let again = self.core.schedule(&pod, &self.snapshot, seed);
                let same = matches!(&again, Verdict::Unschedulable(again) if again.message() == verdict.message());
                prop_assert!(same, "{} was told another reason the second time", pod.key);
                check_preemption(&world, &pod, &rejected, &verdict.preemption)?;
                if matches!(verdict.preemption, Preemption::Proposed(_)) {
                    self.note("preemption");
                }
            }
        }
        Ok(())
    }
}

fn check_preemption(
    world: &World<'_>,
    pod: &PodInfo,
    rejected: &[Option<slow::Rejected>],
    preemption: &Preemption,
) -> Result<(), TestCaseError> {
    let resolvable = |at: &usize| matches!(&rejected[*at], Some((_, true, _)));
    let candidates: Vec<_> = (0..world.sites.len())
        .filter(resolvable)
        .filter_map(|at| world.victims(&pod.template, at).map(|(victims, violations)| (at, victims, violations)))
        .collect();
    let cost = |victims: &[Arc<PodInfo>], violations: usize| {
        let highest = victims.iter().map(|victim| victim.template.priority).max();
        let sum: i64 = victims.iter().map(|victim| i64::from(victim.template.priority) + (1 << 31)).sum();
        let top = victims.iter().filter(|victim| Some(victim.template.priority) == highest);
        (violations, highest, sum, victims.len(), std::cmp::Reverse(top.map(|victim| victim.started).min()))
    };
    match preemption {
        Preemption::NotEligible(_) => prop_assert!(!pod.template.may_preempt),
        Preemption::Off => prop_assert!(world.sites.is_empty()),
        Preemption::Useless(_) => prop_assert!(candidates.is_empty(), "preemption would have helped {}", pod.key),
        Preemption::Proposed(plan) => {
            let chosen = candidates.iter().find(|(at, _, _)| world.sites[*at].info.name == plan.node);
            prop_assert!(chosen.is_some(), "preemption on {} does not help {}", plan.node, pod.key);
            let (_, victims, violations) = chosen.expect("checked");
            prop_assert_eq!(victims, &plan.victims, "victims for {} on {}", pod.key, plan.node);
            prop_assert_eq!(*violations, plan.violations);
            let least = candidates.iter().map(|(_, victims, violations)| cost(victims, *violations)).min();
            prop_assert_eq!(Some(cost(victims, *violations)), least);
        }
    }
    Ok(())
}

#[test]
fn the_fast_scheduler_decides_as_the_slow_one() {
    let seen = Mutex::new(Seen::new());
    let count =
        drive::histories(&drive::Shape { kinds: 30, longest: 120, usual: USUAL_HISTORIES, threads: 1 }, |steps| {
            let mut history = History::new(cluster::profile(steps[0].1));
            for step in steps {
                history.step(*step)?;
            }
            seen.lock().expect("no holder panics").append(&mut history.seen);
            Ok(())
        });
    let seen = seen.into_inner().expect("no holder panics");
    let missed: Vec<_> = MUST_BE_SEEN.iter().filter(|what| !seen.contains(**what)).collect();
    assert!(count < USUAL_HISTORIES || missed.is_empty(), "no history met {missed:?}");
}

/// Shortened histories in which the two once differed.
const ONCE_DIFFERED: [&[drive::Step]; 1] = [
    // A Pod whose terms reach other namespaces left after its namespace's labels had changed.
    &[
        (27, 268, 274),
        (20, 395, 300),
        (5, 504, 420),
        (0, 167, 557),
        (24, 981, 244),
        (27, 136, 778),
        (5, 264, 780),
        (17, 587, 25),
        (21, 507, 940),
        (5, 373, 60),
        (7, 280, 822),
        (5, 816, 870),
        (1, 398, 527),
        (19, 644, 940),
    ],
];

#[test]
fn histories_that_once_differed_do_so_no_more() {
    for steps in ONCE_DIFFERED {
        let mut history = History::new(cluster::profile(steps[0].1));
        for step in steps {
            history.step(*step).unwrap_or_else(|error| panic!("at {step:?}: {error}"));
        }
    }
}
