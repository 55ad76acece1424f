use serde_json::Value;

use super::*;

fn shipped(name: &str) -> Scenario {
    let text = fs_err::read_to_string(format!("{}/scenarios/{name}.yaml", env!("CARGO_MANIFEST_DIR")))
        .expect("a shipped scenario");
    let value: Value = serde_saphyr::from_str(&text).expect("YAML");
    Scenario::parse(value).expect("a valid scenario")
}

fn outcome(report: &Report, policy: &str) -> Outcome {
    report.outcome(policy).unwrap_or_else(|| panic!("{policy} is in {}", report.scenario)).clone()
}

#[test]
fn rsyslogd_goes_to_the_node_that_has_room_for_all_of_it() {
    let mut scenario = shipped("rsyslogd");
    for seed in 0..50 {
        scenario.seed = seed;
        let report = simulate(&scenario);
        let pod = outcome(&report, "pod");
        assert_eq!((pod.placed, pod.stranded), (1, 0), "seed {seed}");
        assert!(pod.spans.iter().all(|span| span.node == "node-1"), "seed {seed}");
        let swarm = outcome(&report, "swarm-binpack");
        assert_eq!((swarm.placed, swarm.stranded), (0, 1), "seed {seed}");
        assert!(swarm.spans.iter().all(|span| span.node == "node-2"), "seed {seed}");
    }
}

/// All orders of three things.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn the_order_of_arrival_changes_nothing_for_a_pod_and_does_not_help_swarm() {
    for order in ORDERS {
        for nodes_turned in [false, true] {
            let mut scenario = shipped("rsyslogd");
            // What tells main, imklog and imuxsock apart is their CPU.
            let containers = [300, 200, 100].map(|milli_cpu| Amounts { milli_cpu, memory: 1 << 30 });
            scenario.groups[0].containers = order.iter().map(|at| containers[*at]).collect();
            if nodes_turned {
                scenario.nodes.reverse();
            }
            for seed in 0..20 {
                scenario.seed = seed;
                let report = simulate(&scenario);
                let pod = outcome(&report, "pod");
                assert_eq!((pod.placed, pod.stranded, pod.deadlocked), (1, 0, 0), "{order:?}, seed {seed}");
                assert!(pod.spans.iter().all(|span| span.node == "node-1"), "{order:?}, seed {seed}");
                let swarm = outcome(&report, "swarm-binpack");
                assert_eq!((swarm.placed, swarm.stranded), (0, 1), "{order:?}, seed {seed}");
                let held: Vec<&str> = swarm.spans.iter().map(|span| &*span.node).collect();
                assert_eq!(held, ["node-2", "node-2"], "the third container has no room: {order:?}, seed {seed}");
            }
        }
    }
}

#[test]
fn swarm_strands_rsyslogd_about_every_other_time_when_the_first_node_is_chance() {
    let mut scenario = shipped("rsyslogd");
    let stranded = (0..200).filter(|seed| {
        scenario.seed = *seed;
        outcome(&simulate(&scenario), "swarm-spread").stranded == 1
    });
    let stranded = stranded.count();
    assert!((70..130).contains(&stranded), "{stranded} of 200");
}

#[test]
fn hoarding_deadlocks_and_deciding_about_all_at_once_does_not() {
    let mut scenario = shipped("deadlock");
    let (mut deadlocks, mut wasted) = (0, 0.0);
    for seed in 0..50 {
        scenario.seed = seed;
        let report = simulate(&scenario);
        let gang = outcome(&report, "gang");
        assert_eq!((gang.placed, gang.deadlocked, gang.stranded), (2, 0, 0), "seed {seed}");
        assert!(gang.wasted_gb_seconds.abs() < 1e-9, "a gang holds nothing while it waits");
        let mesos = outcome(&report, "mesos");
        deadlocks += usize::from(mesos.deadlocked == 2);
        wasted += mesos.wasted_gb_seconds;
    }
    assert!(deadlocks > 25, "{deadlocks} of 50 runs");
    assert!(wasted > 0.0);
}

/// A small cluster that gets tight, and groups of some sizes that come and go.
fn random_scenario(seed: u64) -> Scenario {
    let mut dice = world::Dice(seed);
    let mut below = |limit: u64| dice.next() % limit;
    let groups: Vec<Value> = (0..=below(4))
        .map(|number| {
            let containers: Vec<Value> = (0..=below(3))
                .map(|_| serde_json::json!({"cpu": format!("{}m", 100 + below(900)), "memory": format!("{}Mi", 100 + below(900))}))
                .collect();
            serde_json::json!({"name": format!("g{number}"), "jobs": 1 + below(12), "pods": 1 + below(6), "containers": containers,
                "poisson": format!("{}s", 1 + below(10)), "duration": format!("{}s", 5 + below(60)), "randomDuration": below(2) == 0,
                "priority": below(3)})
        })
        .collect();
    let nodes = serde_json::json!([
        {"name": "large", "count": 1 + below(4), "cpu": 4, "memory": "4Gi"},
        {"name": "small", "count": 1 + below(4), "cpu": 2, "memory": "2Gi"}]);
    let policies = serde_json::json!([{"kind": "gang"}, {"kind": "borg", "cells": 2}]);
    let value = serde_json::json!({"name": "chance", "seed": seed, "until": "10m", "nodes": nodes, "groups": groups, "policies": policies});
    Scenario::parse(value).expect("valid")
}

#[test]
fn whole_jobs_strand_and_deadlock_nowhere_and_hold_nothing_while_they_wait() {
    let mut placed = 0;
    for seed in 0..100 {
        for outcome in simulate(&random_scenario(seed)).outcomes {
            let stuck = (outcome.stranded, outcome.deadlocked, outcome.conflicts);
            assert_eq!(stuck, (0, 0, 0), "{} with seed {seed}", outcome.policy);
            assert!(outcome.wasted_gb_seconds.abs() < 1e-9, "{} with seed {seed} holds something", outcome.policy);
            placed += outcome.placed;
        }
    }
    assert!(placed > 1000, "only {placed} jobs were placed");
}

#[test]
fn giving_back_after_a_while_ends_the_deadlock_at_a_price() {
    let report = simulate(&shipped("deadlock"));
    let patient = outcome(&report, "mesos-10s");
    assert_eq!(patient.deadlocked, 0);
    assert!(patient.retries > 0);
}

#[test]
fn conflicts_rise_with_the_number_of_optimistic_schedulers() {
    let mut scenario = shipped("omega");
    // A tenth of the scenario keeps the test short and shows the same.
    scenario.nodes[0].count = 100;
    scenario.groups[0].jobs = 400;
    let report = simulate(&scenario);
    let rate = |policy: &str| {
        let outcome = outcome(&report, policy);
        outcome.conflicts as f64 / outcome.transactions.max(1) as f64
    };
    assert!(rate("omega-1-fine").abs() < f64::EPSILON, "one scheduler meets nobody, and jobs that end only make room");
    assert!(rate("omega-1-coarse") < rate("omega-2-coarse"));
    assert!(rate("omega-2-coarse") < rate("omega-10-coarse"));
    assert!(rate("omega-10-fine") <= rate("omega-10-coarse"));
    let gang = outcome(&report, "gang");
    assert_eq!((gang.conflicts, gang.stranded, gang.deadlocked), (0, 0, 0));
}

#[test]
fn cells_preempt_for_priority_and_nobody_gets_more_than_there_is() {
    let value = serde_json::json!({"name": "cells", "until": "100s",
        "nodes": [{"name": "n", "count": 4, "cpu": 1, "memory": "1Gi"}],
        "groups": [
            {"name": "low", "jobs": 4, "containers": [{"cpu": 1, "memory": "1Gi"}], "at": "0s", "duration": "1000s"},
            {"name": "high", "jobs": 2, "containers": [{"cpu": 1, "memory": "1Gi"}], "at": "10s", "duration": "20s", "priority": 5}],
        "policies": [{"kind": "borg", "cells": 2}, {"kind": "gang"}]});
    let report = simulate(&Scenario::parse(value).expect("valid"));
    let borg = outcome(&report, "borg-2");
    assert_eq!((borg.preempted, borg.placed), (2, 6));
    let gang = outcome(&report, "gang");
    assert_eq!((gang.preempted, gang.placed), (0, 4));
    for outcome in [borg, gang] {
        assert!(
            outcome.samples.iter().all(|sample| sample.useful + sample.held <= outcome.capacity),
            "{}",
            outcome.policy
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_report() {
    for name in ["rsyslogd", "deadlock"] {
        let scenario = shipped(name);
        assert_eq!(simulate(&scenario), simulate(&scenario), "{name}");
    }
}

#[test]
fn all_shipped_scenarios_can_be_read_and_drawn() {
    for name in ["rsyslogd", "deadlock", "cells", "omega", "day", "huge"] {
        assert!(!shipped(name).policies.is_empty(), "{name}");
    }
    let report = simulate(&shipped("rsyslogd"));
    let svg = report.svg();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains(">node-2<") && svg.contains(">2.7 GB<") && svg.contains("url(#held)"));
    assert_eq!(report.table().lines().count(), 1 + report.outcomes.len());
    let figures = &report.json()["outcomes"][1];
    let expected = serde_json::json!({"policy": "swarm-binpack", "jobs": 1, "placed": 0, "stranded": 1, "deadlocked": 0,
        "wastedGbSeconds": 128.84901888, "conflicts": 0, "transactions": 0, "retries": 0, "preempted": 0,
        "waitP50Seconds": 0.0, "waitP99Seconds": 0.0, "utilisation": 0.0});
    assert_eq!(*figures, expected);
}

#[test]
fn mistakes_in_a_scenario_are_named() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = serde_json::json!({"name": "x", "until": "1s", "nodes": [{"name": "n", "cpu": 1, "memory": 1}],
            "groups": [{"name": "g", "containers": [{"memory": "1Gi"}]}], "policies": [{"kind": "pod"}]});
        change(&mut value);
        Scenario::parse(value).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(with(&|_| {}), Ok(()));
    type Mistake<'a> = (&'a dyn Fn(&mut Value), &'a str);
    let cases: [Mistake<'_>; 5] = [
        (&|value| value["until"] = "soon".into(), "is not a duration"),
        (&|value| value["nodes"] = serde_json::json!([]), "0 nodes"),
        (&|value| value["groups"][0]["containers"] = serde_json::json!([]), "no containers"),
        (&|value| value["policies"][0]["kind"] = "chance".into(), "is not a policy"),
        (&|value| value["groups"][0]["containers"][0]["memory"] = "much".into(), "read the quantity \"much\""),
    ];
    for (change, expected) in cases {
        let error = with(change).expect_err(expected);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}
