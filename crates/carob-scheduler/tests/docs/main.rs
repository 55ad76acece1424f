//! The figures and pictures of docs/scheduling.md are what the simulator gives for its shipped scenarios and their seeds.
//!
//! `CAROB_DOCS=all` looks at the large scenarios too (`cargo xtask soak` does), `CAROB_DOCS=write` writes all of them again.

mod chart;

use std::fmt::Write;
use std::path::PathBuf;

use carob_scheduler::sim::{Conflict, Outcome, PolicyKind, Report, Scenario, Strategy, simulate};
use chart::{Chart, Line};

/// Runs whose outcomes are counted.
const RUNS: u64 = 200;

/// A part of the page: its name, what it is made of, and whether it takes long.
struct Part {
    name: &'static str,
    make: fn() -> Made,
    large: bool,
}

/// What stands in the page, and the pictures beside it.
struct Made {
    text: String,
    pictures: Vec<(&'static str, String)>,
}

const PARTS: [Part; 8] = [
    Part { name: "rsyslogd", make: || scenario("rsyslogd", Some("rsyslogd.svg")), large: false },
    Part { name: "stranded", make: stranded, large: false },
    Part { name: "deadlock", make: || scenario("deadlock", Some("deadlock.svg")), large: false },
    Part { name: "deadlocks", make: deadlocks, large: false },
    Part { name: "cells", make: || scenario("cells", Some("cells.svg")), large: false },
    Part { name: "omega", make: omega, large: true },
    Part { name: "day", make: || scenario("day", Some("day.svg")), large: true },
    Part { name: "huge", make: || scenario("huge", None), large: true },
];

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn shipped(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = fs_err::read_to_string(path).expect("a shipped scenario");
    Scenario::parse(serde_saphyr::from_str(&text).expect("YAML")).expect("a valid scenario")
}

fn scenario(name: &str, picture: Option<&'static str>) -> Made {
    let report = simulate(&shipped(name));
    let pictures = picture.map(|picture| (picture, report.svg())).into_iter().collect();
    Made { text: block(&report.table()), pictures }
}

fn block(text: &str) -> String {
    format!("```\n{text}```\n")
}

fn outcome<'a>(report: &'a Report, policy: &PolicyKind) -> &'a Outcome {
    report.outcome(&policy.to_string()).expect("the policy was run")
}

/// How many of the runs, by seed, end as asked.
fn count(scenario: &Scenario, policy: &PolicyKind, ends: impl Fn(&Outcome) -> bool) -> u64 {
    let mut scenario = Scenario { policies: vec![policy.clone()], ..scenario.clone() };
    let run = |seed: u64| {
        scenario.seed = seed;
        u64::from(ends(outcome(&simulate(&scenario), policy)))
    };
    (0..RUNS).map(run).sum()
}

fn stranded() -> Made {
    let scenario = shipped("rsyslogd");
    let mut text = format!("| policy | stranded in {RUNS} runs |\n|---|---|\n");
    let swarm = |strategy| PolicyKind::Swarm { strategy };
    let policies = [
        PolicyKind::Pod,
        PolicyKind::Gang,
        swarm(Strategy::Spread),
        swarm(Strategy::Random),
        swarm(Strategy::Binpack),
        PolicyKind::Mesos { hold: None },
    ];
    for policy in policies {
        let stranded = count(&scenario, &policy, |outcome| outcome.stranded > 0);
        writeln!(text, "| {policy} | {stranded} |").expect("writing to a String cannot fail");
    }
    Made { text, pictures: Vec::new() }
}

/// Two groups of four on ever more nodes.
fn deadlocks() -> Made {
    let mut scenario = shipped("deadlock");
    let mut text = String::from(
        "| nodes for two groups of four | mesos deadlocks | omega strands or deadlocks | gang strands or deadlocks |\n\
         |---|---|---|---|\n",
    );
    let policies = [PolicyKind::Mesos { hold: None }, omega_of(2, Conflict::Fine), PolicyKind::Gang];
    let mut lines = [Vec::new(), Vec::new()];
    for nodes in 4..=8 {
        scenario.nodes[0].count = nodes;
        let stuck = |policy| count(&scenario, policy, |outcome| outcome.stranded + outcome.deadlocked > 0);
        let [mesos, omega, gang] = [0, 1, 2].map(|at| stuck(&policies[at]));
        let percent = |count: u64| count as f64 / RUNS as f64 * 100.0;
        writeln!(text, "| {nodes} | {:.1} % | {:.1} % | {:.1} % |", percent(mesos), percent(omega), percent(gang))
            .expect("writing to a String cannot fail");
        lines[0].push((nodes as f64, percent(mesos)));
        lines[1].push((nodes as f64, percent(gang)));
    }
    let [mesos, gang] = lines;
    let chart = Chart {
        title: "How often hoarding deadlocks",
        subtitle: "two groups of four Pods that arrive together; 200 runs a point",
        x: "nodes, each with room for one Pod",
        y: "runs that deadlock",
        unit: " %",
        lines: vec![
            Line { name: "Mesos: hold until complete", points: mesos },
            Line { name: "carob: all at once or nothing", points: gang },
        ],
    };
    Made { text, pictures: vec![("deadlocks.svg", chart.svg())] }
}

fn omega_of(schedulers: usize, conflict: Conflict) -> PolicyKind {
    let (decision, per_pod) = (std::time::Duration::from_millis(100), std::time::Duration::from_millis(5));
    PolicyKind::Omega { schedulers, conflict, decision, per_pod }
}

fn omega() -> Made {
    let scenario = shipped("omega");
    let report = simulate(&scenario);
    let rate = |policy: &PolicyKind| {
        let outcome = outcome(&report, policy);
        100.0 * outcome.conflicts as f64 / outcome.transactions.max(1) as f64
    };
    let points = |conflict: Conflict| -> Vec<(f64, f64)> {
        let of = |policy: &PolicyKind| match policy {
            PolicyKind::Omega { schedulers, conflict: of, .. } if *of == conflict => {
                Some((*schedulers as f64, rate(policy)))
            }
            _ => None,
        };
        scenario.policies.iter().filter_map(of).collect()
    };
    let (fine, coarse) = (points(Conflict::Fine), points(Conflict::Coarse));
    let mut text = block(&report.table());
    text.push_str("\n| schedulers | conflicts a transaction, fine | coarse |\n|---|---|---|\n");
    for ((schedulers, fine), (_, coarse)) in fine.iter().zip(&coarse) {
        writeln!(text, "| {schedulers} | {fine:.1} % | {coarse:.1} % |").expect("writing to a String cannot fail");
    }
    let chart = Chart {
        title: "Conflicts rise with the number of schedulers",
        subtitle: "4 000 jobs of five Pods in ten minutes on 1 000 nodes",
        x: "schedulers",
        y: "transactions rolled back",
        unit: " %",
        lines: vec![
            Line { name: "coarse: the node changed", points: coarse },
            Line { name: "fine: the node has no room", points: fine },
            Line { name: "carob: one decision at a time", points: vec![(1.0, 0.0), (10.0, 0.0)] },
        ],
    };
    Made { text, pictures: vec![("omega.svg", chart.svg())] }
}

/// Where a part stands in the page.
fn place(page: &str, name: &str) -> std::ops::Range<usize> {
    let (begin, end) = (format!("<!-- {name}: made by tests/docs -->\n"), format!("<!-- end of {name} -->"));
    let from = page.find(&begin).unwrap_or_else(|| panic!("the page has no place for {name}")) + begin.len();
    let to = page[from..].find(&end).unwrap_or_else(|| panic!("{name} does not end")) + from;
    from..to
}

#[test]
fn the_page_says_what_the_simulator_gives() {
    let wish = std::env::var("CAROB_DOCS").unwrap_or_default();
    let (write, all) = (wish == "write", wish == "write" || wish == "all");
    let path = docs().join("scheduling.md");
    let mut page = fs_err::read_to_string(&path).expect("the page");
    for part in PARTS.iter().filter(|part| all || !part.large) {
        let made = (part.make)();
        let place = place(&page, part.name);
        if write {
            page.replace_range(place, &made.text);
        } else {
            assert_eq!(&page[place], made.text, "{} in docs/scheduling.md", part.name);
        }
        for (name, picture) in made.pictures {
            let path = docs().join(name);
            assert!(picture.len() < 60_000, "{name} is {} bytes large", picture.len());
            if write {
                fs_err::write(&path, &picture).expect("the picture can be written");
            } else {
                let committed = fs_err::read_to_string(&path).expect("a committed picture");
                assert!(committed == picture, "docs/{name} is not what the simulator draws");
            }
        }
    }
    if write {
        fs_err::write(&path, &page).expect("the page can be written");
    }
}
