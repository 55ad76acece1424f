//! The fast scheduler, which remembers and catches up, decides as the slow one, which computes everything anew: the same
//! feasible nodes, reasons, scores and victims, after any history.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a small random cluster")]

mod cluster;
mod slow;

use std::collections::HashMap;
use std::sync::Arc;

use carob_scheduler::{Budget, Core, Labels, PodInfo, PodTemplate, Preemption, Profile, Selector, Snapshot, Verdict};
use proptest::prelude::*;
use slow::World;

const NODES: u64 = 8;
const TEMPLATES: u64 = 300;

/// One step of a history: what, and two numbers that say which.
type Step = (u8, u64, u64);

struct History {
    snapshot: Snapshot,
    core: Core,
    templates: HashMap<u64, Arc<PodTemplate>>,
    placed: Vec<Arc<PodInfo>>,
    services: Vec<(String, Selector)>,
    pods: i64,
}

impl History {
    fn new() -> Self {
        Self {
            snapshot: Snapshot::default(),
            core: Core::new(vec![Profile::default_for("default-scheduler")]),
            templates: HashMap::new(),
            placed: Vec::new(),
            services: Vec::new(),
            pods: 0,
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
            0..=2 => drop(self.snapshot.set_node(cluster::node(a % NODES, b % 5))),
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
                let selector = cluster::selector(&mut cluster::Dice::new(b));
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
            _ => self.schedule(a, b)?,
        }
        Ok(())
    }

    fn schedule(&mut self, seed: u64, number: u64) -> Result<(), TestCaseError> {
        let pod = self.pod(number);
        let world = World::new(&self.snapshot, &self.services);
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
            }
            Verdict::Unschedulable(verdict) => {
                prop_assert!(fits.is_empty());
                let again = self.core.schedule(&pod, &self.snapshot, seed);
                let same = matches!(&again, Verdict::Unschedulable(again) if again.message() == verdict.message());
                prop_assert!(same, "{} was told another reason the second time", pod.key);
                check_preemption(&world, &pod, &rejected, &verdict.preemption)?;
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fast_scheduler_decides_as_the_slow_one(steps in proptest::collection::vec((0..24u8, 0..1000u64, 0..1000u64), 1..120)) {
        let mut history = History::new();
        for number in 0..NODES / 2 {
            history.snapshot.set_node(cluster::node(number, number));
        }
        for step in steps {
            history.step(step)?;
        }
    }
}
