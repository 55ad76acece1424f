use super::*;
use crate::core::Core;
use crate::facts::Budget;
use crate::model::{HostPort, Labels, PodTemplate, Selector};
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::testing::{node, plain, pod};
use crate::verdict::Verdict;

fn of(priority: i32, cpu: i64) -> PodTemplate {
    let mut template = plain(cpu, 1);
    template.priority = priority;
    template
}

/// Pods: name, priority, CPU and when they started.
type Pods<'a> = &'a [(&'a str, i32, i64, i64)];

/// Nodes of 1000m with the Pods that are on them.
fn cluster(nodes: &[(&str, Pods<'_>)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, pods) in nodes {
        snapshot.set_node(node(name, 1000, 1000));
        for (pod_name, priority, cpu, started) in *pods {
            let mut template = of(*priority, *cpu);
            template.labels = Labels::from_iter([("app", *pod_name)]);
            let info = PodInfo { started: *started, ..(*pod(pod_name, template)).clone() };
            snapshot.add_pod(Arc::new(info), name);
        }
    }
    snapshot
}

fn preemption(template: PodTemplate, snapshot: &Snapshot) -> Preemption {
    let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
    match core.schedule(&pod("new", template), snapshot, 1) {
        Verdict::Unschedulable(verdict) => verdict.preemption,
        Verdict::Placed(placement) => panic!("it fits on {}", placement.node),
    }
}

fn proposed(template: PodTemplate, snapshot: &Snapshot) -> (String, Vec<String>, usize) {
    match preemption(template, snapshot) {
        Preemption::Proposed(plan) => {
            let victims = plan.victims.iter().map(|victim| victim.key.name.to_string()).collect();
            (plan.node.to_string(), victims, plan.violations)
        }
        other => panic!("nothing was proposed: {other:?}"),
    }
}

fn budget(snapshot: &mut Snapshot, app: &str, allowed: i32, disrupted: &[&str]) {
    let budget = Budget {
        namespace: "default".into(),
        name: app.into(),
        selector: Selector::equal(&[("app", app)]),
        allowed,
        disrupted: disrupted.iter().map(|name| Str::from(*name)).collect(),
    };
    snapshot.facts_mut().set_budget("default".into(), app.into(), Some(budget));
}

#[test]
fn no_more_go_than_have_to_the_most_important_stay() {
    type Case<'a> = (&'a str, Pods<'a>, i64, &'a [&'a str]);
    let cases: [Case<'_>; 5] = [
        ("one is enough", &[("a", 1, 500, 0), ("b", 2, 500, 0)], 500, &["a"]),
        ("two are needed, the most important first", &[("a", 1, 500, 0), ("b", 2, 500, 0)], 600, &["b", "a"]),
        ("of equal ones the one that started last", &[("old", 1, 500, 1), ("young", 1, 500, 2)], 500, &["young"]),
        ("one as important stays", &[("a", 1, 500, 0), ("peer", 10, 500, 0)], 500, &["a"]),
        ("a small one that does not matter stays", &[("big", 1, 900, 0), ("small", 0, 100, 0)], 800, &["big"]),
    ];
    for (case, pods, cpu, expected) in cases {
        let (_, victims, _) = proposed(of(10, cpu), &cluster(&[("n", pods)]));
        assert_eq!(victims, expected, "{case}");
    }
}

#[test]
fn the_node_that_costs_least_is_chosen() {
    let cases: [(&str, Pods<'_>, Pods<'_>); 4] = [
        ("the lowest of the highest priorities", &[("a", 5, 1000, 0)], &[("b", 3, 1000, 0)]),
        ("then the lowest sum", &[("a", 5, 500, 0), ("c", 5, 500, 0)], &[("b", 5, 500, 0), ("d", 3, 500, 0)]),
        ("then the fewest", &[("a", 5, 400, 0), ("c", 0, 300, 0), ("e", 0, 300, 0)], &[("b", 5, 1000, 0)]),
        ("then the one whose most important started last", &[("a", 5, 1000, 1)], &[("b", 5, 1000, 2)]),
    ];
    for (case, dear, cheap) in cases {
        for nodes in [[("dear", dear), ("cheap", cheap)], [("cheap", cheap), ("dear", dear)]] {
            assert_eq!(proposed(of(10, 1000), &cluster(&nodes)).0, "cheap", "{case}");
        }
    }
}

#[test]
fn budgets_are_kept_where_they_can_be() {
    let nodes: [(&str, Pods<'_>); 2] = [("n1", &[("guarded", 0, 1000, 0)]), ("n2", &[("free", 5, 1000, 0)])];
    let mut snapshot = cluster(&nodes);
    assert_eq!(proposed(of(10, 1000), &snapshot), ("n1".to_owned(), vec!["guarded".to_owned()], 0));
    budget(&mut snapshot, "guarded", 0, &[]);
    assert_eq!(proposed(of(10, 1000), &snapshot), ("n2".to_owned(), vec!["free".to_owned()], 0), "a budget costs more");
    budget(&mut snapshot, "guarded", 1, &[]);
    assert_eq!(proposed(of(10, 1000), &snapshot).0, "n1", "one disruption is allowed");
    budget(&mut snapshot, "guarded", 0, &["guarded"]);
    assert_eq!(proposed(of(10, 1000), &snapshot).0, "n1", "it is being disrupted already");
    budget(&mut snapshot, "guarded", 0, &[]);
    budget(&mut snapshot, "free", 0, &[]);
    let (node, _, violations) = proposed(of(10, 1000), &snapshot);
    assert_eq!((&*node, violations), ("n1", 1), "where nothing else helps, budgets do not");
}

#[test]
fn of_two_on_a_node_the_one_without_a_budget_goes() {
    let mut snapshot = cluster(&[("n", &[("guarded", 0, 500, 0), ("free", 5, 500, 0)])]);
    assert_eq!(proposed(of(10, 500), &snapshot).1, ["guarded"]);
    budget(&mut snapshot, "guarded", 0, &[]);
    assert_eq!(proposed(of(10, 500), &snapshot).1, ["free"], "who is protected is given back first");
}

#[test]
fn a_pod_that_may_not_preempt_evicts_nobody() {
    let mut template = of(10, 1000);
    template.may_preempt = false;
    let snapshot = cluster(&[("n", &[("a", 0, 1000, 0)])]);
    let reason = match preemption(template, &snapshot) {
        Preemption::NotEligible(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason, "not eligible due to preemptionPolicy=Never.");
    let mut profile = Profile::default_for("default-scheduler");
    profile.filters.remove(Plugin::DefaultPreemption);
    let verdict = Core::new(vec![profile]).schedule(&pod("new", of(10, 1000)), &snapshot, 1);
    assert!(matches!(verdict, Verdict::Unschedulable(verdict) if matches!(verdict.preemption, Preemption::Off)));
}

#[test]
fn where_eviction_does_not_help_it_is_said_why() {
    let mut snapshot = cluster(&[("full", &[("peer", 10, 1000, 0)]), ("small", &[("a", 0, 900, 0)])]);
    let mut small = node("small", 900, 1000);
    small.unschedulable = true;
    snapshot.set_node(small);
    let Preemption::Useless(mut reasons) = preemption(of(10, 1000), &snapshot) else { panic!("nobody helps") };
    reasons.sort();
    assert_eq!(reasons, [(1, NO_VICTIMS.into()), (1, NOT_HELPFUL.into())]);
}

#[test]
fn a_promise_is_kept_while_the_victims_leave() {
    let mut snapshot = cluster(&[("n", &[]), ("other", &[("b", 0, 1000, 0)])]);
    let leaving = PodInfo { terminating: true, preempted: true, ..(*pod("a", of(0, 1000))).clone() };
    snapshot.add_pod(Arc::new(leaving), "n");
    let new = pod("new", of(10, 1000));
    snapshot.nominate(Arc::clone(&new), "n");
    let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
    let Verdict::Unschedulable(verdict) = core.schedule(&new, &snapshot, 1) else { panic!("it is still there") };
    let reason = "not eligible due to a terminating pod on the nominated node.";
    assert!(matches!(verdict.preemption, Preemption::NotEligible(why) if why == reason), "{:?}", verdict.preemption);
    // Others of no more importance do not take the room; more important ones may.
    snapshot.remove_pod("a");
    let peer = core.schedule(&pod("peer", of(10, 1000)), &snapshot, 1);
    assert!(!matches!(&peer, Verdict::Placed(placement) if &*placement.node == "n"), "{peer:?}");
    let boss = core.schedule(&pod("boss", of(20, 1000)), &snapshot, 1);
    assert!(matches!(&boss, Verdict::Placed(placement) if &*placement.node == "n"), "{boss:?}");
    let placed = core.schedule(&new, &snapshot, 1);
    assert!(matches!(&placed, Verdict::Placed(placement) if &*placement.node == "n"), "{placed:?}");
}

#[test]
fn what_is_not_a_resource_can_be_freed_too() {
    let port = HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: 80 };
    let with_port = |priority| {
        let mut template = of(priority, 1);
        template.host_ports = [port.clone()].into();
        template
    };
    let mut snapshot = cluster(&[("n", &[("bystander", 0, 1, 0)])]);
    snapshot.add_pod(pod("holder", with_port(0)), "n");
    assert_eq!(proposed(with_port(10), &snapshot).1, ["holder"]);
}
