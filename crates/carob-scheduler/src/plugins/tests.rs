//! What upstream documents of each filter and score, as tables over small clusters, decided by the whole core.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::Core;
use crate::model::{
    AffinityTerm, Effect, HostPort, Labels, NodeInfo, NodeRequirement, NodeSelectorTerm, Operator, PodTemplate,
    PreferredNodeTerm, Requirement, Selector, SpreadConstraint, Str, Taint, Toleration, TolerationOperator,
    WeightedTerm, WhenUnsatisfiable,
};
use crate::plugin::Plugin;
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::testing::{node, plain, pod};

const HOST: &str = "kubernetes.io/hostname";

/// Nodes of the same size with these labels beside their hostname.
fn cluster(nodes: &[(&str, &[(&str, &str)])]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, labels) in nodes {
        let mut info = node(name, 10_000, 10_000);
        info.labels = labels.iter().copied().chain([(HOST, *name)]).collect();
        snapshot.set_node(info);
    }
    snapshot
}

fn zones() -> Snapshot {
    cluster(&[("a1", &[("zone", "a")]), ("a2", &[("zone", "a")]), ("b1", &[("zone", "b")]), ("x", &[])])
}

fn app(name: &str) -> PodTemplate {
    let mut template = plain(0, 0);
    template.labels = Labels::from_iter([("app", name)]);
    template
}

fn put(snapshot: &mut Snapshot, template: PodTemplate, node: &str) {
    let name = format!("p{}", snapshot.nodes().map(|(_, node)| node.pods().len()).sum::<usize>());
    snapshot.add_pod(pod(&name, template), node);
}

/// The nodes that fit.
fn fits(snapshot: &Snapshot, template: &PodTemplate) -> Vec<String> {
    let table =
        Core::new(vec![Profile::default_for("default-scheduler")]).evaluate(&pod("new", template.clone()), snapshot);
    table.into_iter().filter(|(_, verdict)| verdict.is_ok()).map(|(name, _)| name.to_string()).collect()
}

/// Why a node does not fit.
fn reason(snapshot: &Snapshot, template: &PodTemplate, node: &str) -> Option<(String, bool)> {
    let table =
        Core::new(vec![Profile::default_for("default-scheduler")]).evaluate(&pod("new", template.clone()), snapshot);
    let (_, verdict) = table.into_iter().find(|(name, _)| &**name == node)?;
    verdict.err().map(|rejection| (rejection.reasons.join("; "), rejection.resolvable))
}

/// A plugin's scores by node, weighted.
fn scores(snapshot: &Snapshot, template: &PodTemplate, plugin: Plugin) -> BTreeMap<String, i64> {
    let table =
        Core::new(vec![Profile::default_for("default-scheduler")]).evaluate(&pod("new", template.clone()), snapshot);
    let score = |scores: crate::core::NodeScores| {
        scores.by_plugin.into_iter().find(|(by, _)| *by == plugin).map(|(_, score)| score)
    };
    table.into_iter().filter_map(|(name, verdict)| Some((name.to_string(), score(verdict.ok()?)?))).collect()
}

fn scored(expected: &[(&str, i64)]) -> BTreeMap<String, i64> {
    expected.iter().map(|(name, score)| ((*name).to_owned(), *score)).collect()
}

fn toleration(key: &str, operator: TolerationOperator, value: &str, effect: Option<Effect>) -> Toleration {
    Toleration { key: key.into(), operator, value: value.into(), effect }
}

#[test]
fn taints_are_tolerated_by_key_value_and_effect() {
    use TolerationOperator::{Equal, Exists, Gt, Lt};
    let tainted = |value: &str, effect| {
        let mut snapshot = Snapshot::default();
        let mut info = node("n", 1000, 1000);
        info.taints = vec![Taint { key: "dedicated".into(), value: value.into(), effect }];
        snapshot.set_node(info);
        snapshot
    };
    let cases = [
        ("none", vec![], Effect::NoSchedule, false),
        ("equal", vec![toleration("dedicated", Equal, "5", None)], Effect::NoSchedule, true),
        ("another value", vec![toleration("dedicated", Equal, "6", None)], Effect::NoSchedule, false),
        ("exists", vec![toleration("dedicated", Exists, "", None)], Effect::NoExecute, true),
        ("everything", vec![toleration("", Exists, "", None)], Effect::NoExecute, true),
        (
            "another effect",
            vec![toleration("dedicated", Exists, "", Some(Effect::NoExecute))],
            Effect::NoSchedule,
            false,
        ),
        ("preferred only", vec![], Effect::PreferNoSchedule, true),
        ("less than", vec![toleration("dedicated", Lt, "6", None)], Effect::NoSchedule, true),
        ("greater than", vec![toleration("dedicated", Gt, "6", None)], Effect::NoSchedule, false),
    ];
    for (case, tolerations, effect, expected) in cases {
        let mut template = plain(0, 0);
        template.tolerations = tolerations.into();
        let snapshot = tainted("5", effect);
        assert_eq!(!fits(&snapshot, &template).is_empty(), expected, "{case}");
        if !expected {
            let why = ("node(s) had untolerated taint(s)".to_owned(), false);
            assert_eq!(reason(&snapshot, &template, "n"), Some(why), "{case}");
        }
    }
}

#[test]
fn fewer_intolerable_preferred_taints_score_more() {
    let mut snapshot = Snapshot::default();
    for (name, count) in [("none", 0), ("one", 1), ("two", 2)] {
        let mut info = node(name, 1000, 1000);
        let taint = |n: i32| Taint { key: format!("t{n}").into(), value: "".into(), effect: Effect::PreferNoSchedule };
        info.taints = (0..count).map(taint).collect();
        snapshot.set_node(info);
    }
    let expected = scored(&[("none", 300), ("one", 150), ("two", 0)]);
    assert_eq!(scores(&snapshot, &plain(0, 0), Plugin::TaintToleration), expected);
}

#[test]
fn cordoned_nodes_take_only_pods_that_tolerate_the_cordon() {
    let mut snapshot = Snapshot::default();
    let mut info = node("n", 1000, 1000);
    info.unschedulable = true;
    snapshot.set_node(info);
    let why = ("node(s) were unschedulable".to_owned(), false);
    assert_eq!(reason(&snapshot, &plain(0, 0), "n"), Some(why));
    let mut daemon = plain(0, 0);
    daemon.tolerations = [toleration("node.kubernetes.io/unschedulable", TolerationOperator::Exists, "", None)].into();
    assert_eq!(fits(&snapshot, &daemon), ["n"]);
}

#[test]
fn a_pod_that_names_its_node_goes_nowhere_else() {
    let mut template = plain(0, 0);
    template.wants_node = Some("b1".into());
    assert_eq!(fits(&zones(), &template), ["b1"]);
    let why = ("node(s) didn't match the requested node name".to_owned(), false);
    assert_eq!(reason(&zones(), &template, "a1"), Some(why));
}

fn zone_is(operator: Operator, values: &[&str]) -> NodeSelectorTerm {
    NodeSelectorTerm([NodeRequirement::Label(Requirement::new("zone", operator, values))].into())
}

#[test]
fn node_affinity_is_any_of_its_terms_and_all_of_the_selector() {
    let name_is =
        NodeSelectorTerm([NodeRequirement::Name(Requirement::new("metadata.name", Operator::In, &["x"]))].into());
    type Case<'a> = (&'a str, Option<Vec<NodeSelectorTerm>>, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        ("no condition", None, &[], &["a1", "a2", "b1", "x"]),
        ("selector", None, &[("zone", "a")], &["a1", "a2"]),
        ("one term", Some(vec![zone_is(Operator::NotIn, &["a"])]), &[], &["b1", "x"]),
        ("either term", Some(vec![zone_is(Operator::In, &["b"]), name_is]), &[], &["b1", "x"]),
        ("both", Some(vec![zone_is(Operator::Exists, &[])]), &[(HOST, "a2")], &["a2"]),
        ("no terms match nothing", Some(vec![]), &[], &[]),
    ];
    for (case, required, selector, expected) in cases {
        let mut template = plain(0, 0);
        template.node_choice.required = required.map(Into::into);
        template.node_choice.labels = selector.iter().copied().collect();
        assert_eq!(fits(&zones(), &template), expected, "{case}");
    }
}

#[test]
fn preferred_node_terms_add_up_and_are_normalized() {
    let mut template = plain(0, 0);
    let prefers = |weight, term| PreferredNodeTerm { weight, term };
    template.node_choice.preferred =
        [prefers(10, zone_is(Operator::Exists, &[])), prefers(30, zone_is(Operator::In, &["b"]))].into();
    let expected = scored(&[("a1", 50), ("a2", 50), ("b1", 200), ("x", 0)]);
    assert_eq!(scores(&zones(), &template, Plugin::NodeAffinity), expected);
}

#[test]
fn host_ports_conflict_by_port_protocol_and_address() {
    let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
    let cases = [
        ("another port", port("0.0.0.0", "TCP", 81), true),
        ("the same", port("0.0.0.0", "TCP", 80), false),
        ("another protocol", port("0.0.0.0", "UDP", 80), true),
        ("one address against all", port("127.0.0.1", "TCP", 80), false),
    ];
    for (case, wants, expected) in cases {
        let mut snapshot = cluster(&[("n", &[])]);
        let mut taken = plain(0, 0);
        taken.host_ports = [port("0.0.0.0", "TCP", 80), port("127.0.0.1", "TCP", 90)].into();
        put(&mut snapshot, taken, "n");
        let mut template = plain(0, 0);
        template.host_ports = [wants].into();
        assert_eq!(!fits(&snapshot, &template).is_empty(), expected, "{case}");
    }
    assert!(!port("127.0.0.1", "TCP", 90).conflicts(&port("127.0.0.2", "TCP", 90)), "different addresses share a port");
}

fn near(selector: Selector, key: &str) -> AffinityTerm {
    AffinityTerm {
        selector,
        namespaces: ["default".into()].into(),
        namespace_selector: Selector::Nothing,
        topology_key: key.into(),
    }
}

fn is_app(name: &str) -> Selector {
    Selector::equal(&[("app", name)])
}

#[test]
fn required_pod_affinity_follows_pods_into_their_domain() {
    let mut snapshot = zones();
    put(&mut snapshot, app("db"), "a1");
    let with = |terms: Vec<AffinityTerm>| {
        let mut template = app("web");
        template.affinity.required = terms.into();
        template
    };
    let cases: [(&str, Vec<AffinityTerm>, &[&str]); 5] = [
        ("by zone", vec![near(is_app("db"), "zone")], &["a1", "a2"]),
        ("by host", vec![near(is_app("db"), HOST)], &["a1"]),
        ("nobody matches", vec![near(is_app("cache"), "zone")], &[]),
        ("all terms must match one pod", vec![near(is_app("db"), "zone"), near(is_app("cache"), "zone")], &[]),
        ("the first of its kind goes where the key is", vec![near(is_app("web"), "zone")], &["a1", "a2", "b1"]),
    ];
    for (case, terms, expected) in cases {
        assert_eq!(fits(&snapshot, &with(terms)), expected, "{case}");
    }
    let why = ("node(s) didn't match pod affinity rules".to_owned(), false);
    assert_eq!(reason(&snapshot, &with(vec![near(is_app("db"), "zone")]), "b1"), Some(why));
}

#[test]
fn anti_affinity_keeps_away_in_both_directions() {
    let mut snapshot = zones();
    put(&mut snapshot, app("db"), "a1");
    let mut shy = app("web");
    shy.affinity.required_anti = [near(is_app("db"), "zone")].into();
    assert_eq!(fits(&snapshot, &shy), ["b1", "x"]);
    let why = ("node(s) didn't match pod anti-affinity rules".to_owned(), true);
    assert_eq!(reason(&snapshot, &shy, "a2"), Some(why));
    put(&mut snapshot, shy, "b1");
    let why = ("node(s) didn't satisfy existing pods anti-affinity rules".to_owned(), true);
    assert_eq!(reason(&snapshot, &app("db"), "b1"), Some(why));
    assert_eq!(fits(&snapshot, &app("db")), ["a1", "a2", "x"]);
}

#[test]
fn affinity_reaches_other_namespaces_by_name_and_by_label() {
    let mut snapshot = zones();
    snapshot.facts_mut().set_namespace("team-x".into(), Some(Labels::from_iter([("team", "x")])));
    let mut db = app("db");
    db.namespace = "team-x".into();
    put(&mut snapshot, db, "b1");
    let cases: [(&str, &[&str], Selector, &[&str]); 4] = [
        ("its own only", &["default"], Selector::Nothing, &[]),
        ("named", &["team-x"], Selector::Nothing, &["b1"]),
        ("by label", &[], Selector::equal(&[("team", "x")]), &["b1"]),
        ("all", &[], Selector::everything(), &["b1"]),
    ];
    for (case, namespaces, namespace_selector, expected) in cases {
        let mut template = app("web");
        let namespaces = namespaces.iter().map(|name| Str::from(*name)).collect();
        template.affinity.required =
            [AffinityTerm { namespaces, namespace_selector, ..near(is_app("db"), HOST) }].into();
        assert_eq!(fits(&snapshot, &template), expected, "{case}");
    }
}

#[test]
fn preferences_for_other_pods_count_both_ways() {
    let mut snapshot = zones();
    put(&mut snapshot, app("db"), "a1");
    put(&mut snapshot, app("noise"), "b1");
    let mut template = app("web");
    template.affinity.preferred = [WeightedTerm { weight: 10, term: near(is_app("db"), "zone") }].into();
    template.affinity.preferred_anti = [WeightedTerm { weight: 10, term: near(is_app("noise"), HOST) }].into();
    let expected = scored(&[("a1", 200), ("a2", 200), ("b1", 0), ("x", 100)]);
    assert_eq!(scores(&snapshot, &template, Plugin::InterPodAffinity), expected);
    // What the Pods that are there prefer or require counts too: a required term with the weight 1.
    let mut fan = app("fan");
    fan.affinity.required = [near(is_app("web"), HOST)].into();
    let mut snapshot = zones();
    put(&mut snapshot, fan, "b1");
    let expected = scored(&[("a1", 0), ("a2", 0), ("b1", 200), ("x", 0)]);
    assert_eq!(scores(&snapshot, &app("web"), Plugin::InterPodAffinity), expected);
}

fn spread(max_skew: i64, key: &str, when: WhenUnsatisfiable) -> SpreadConstraint {
    SpreadConstraint {
        max_skew,
        topology_key: key.into(),
        when,
        selector: is_app("web"),
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    }
}

fn spreading(constraint: SpreadConstraint) -> PodTemplate {
    let mut template = app("web");
    template.spread = [constraint].into();
    template
}

#[test]
fn spread_keeps_the_skew_within_its_limit() {
    let hard = |max_skew| spread(max_skew, "zone", WhenUnsatisfiable::DoNotSchedule);
    let mut snapshot = zones();
    put(&mut snapshot, app("web"), "a1");
    put(&mut snapshot, app("web"), "a2");
    let cases: [(&str, SpreadConstraint, &[&str]); 6] = [
        ("a skew of 1", hard(1), &["b1"]),
        ("a skew of 2", hard(2), &["b1"]),
        ("a skew of 3", hard(3), &["a1", "a2", "b1"]),
        ("too few domains count as an empty one", SpreadConstraint { min_domains: 3, ..hard(1) }, &["b1"]),
        (
            "what does not match itself adds nothing",
            SpreadConstraint { selector: is_app("db"), ..hard(1) },
            &["a1", "a2", "b1"],
        ),
        ("by host", spread(1, HOST, WhenUnsatisfiable::DoNotSchedule), &["b1", "x"]),
    ];
    for (case, constraint, expected) in cases {
        assert_eq!(fits(&snapshot, &spreading(constraint)), expected, "{case}");
    }
    let constraint = hard(1);
    let missing = "node(s) didn't match pod topology spread constraints (missing required label)".to_owned();
    assert_eq!(reason(&snapshot, &spreading(constraint.clone()), "x"), Some((missing, false)));
    let skewed = "node(s) didn't match pod topology spread constraints".to_owned();
    assert_eq!(reason(&snapshot, &spreading(constraint), "a1"), Some((skewed, true)));
}

#[test]
fn node_inclusion_policies_say_which_nodes_count() {
    let mut snapshot = zones();
    put(&mut snapshot, app("web"), "a1");
    let mut tainted: NodeInfo =
        (*snapshot.node(snapshot.slot("b1").expect("it is there")).expect("it is there").info).clone();
    tainted.taints = vec![Taint { key: "t".into(), value: "".into(), effect: Effect::NoSchedule }];
    snapshot.set_node(tainted);
    let hard = spread(1, "zone", WhenUnsatisfiable::DoNotSchedule);
    // Zone b is empty but closed: it holds the minimum at zero unless closed nodes are left out.
    let cases: [(&str, bool, &[&str]); 2] = [("ignored", false, &[]), ("honored", true, &["a1", "a2"])];
    for (case, honor_taints, expected) in cases {
        let constraint = SpreadConstraint { honor_taints, ..hard.clone() };
        assert_eq!(fits(&snapshot, &spreading(constraint)), expected, "taints {case}");
    }
    let cases: [(&str, bool, &[&str]); 2] = [("honored", true, &["a1", "a2"]), ("ignored", false, &[])];
    for (case, honor_affinity, expected) in cases {
        let mut template = spreading(SpreadConstraint { honor_affinity, ..hard.clone() });
        template.node_choice.labels = Labels::from_iter([("zone", "a")]);
        assert_eq!(fits(&snapshot, &template), expected, "affinity {case}");
    }
}

#[test]
fn soft_spread_prefers_emptier_domains() {
    let mut snapshot = zones();
    put(&mut snapshot, app("web"), "a1");
    put(&mut snapshot, app("web"), "a1");
    let template = spreading(spread(1, HOST, WhenUnsatisfiable::ScheduleAnyway));
    let expected = scored(&[("a1", 0), ("a2", 200), ("b1", 200), ("x", 200)]);
    assert_eq!(scores(&snapshot, &template, Plugin::PodTopologySpread), expected);
    let template = spreading(spread(1, "zone", WhenUnsatisfiable::ScheduleAnyway));
    let expected = scored(&[("a1", 0), ("a2", 0), ("b1", 200), ("x", 0)]);
    assert_eq!(
        scores(&snapshot, &template, Plugin::PodTopologySpread),
        expected,
        "a node without the key scores nothing"
    );
}

#[test]
fn pods_that_are_leaving_are_not_counted_for_spread() {
    let mut snapshot = zones();
    let mut leaving = (*pod("leaving", app("web"))).clone();
    leaving.terminating = true;
    snapshot.add_pod(Arc::new(leaving), "a1");
    let template = spreading(spread(1, "zone", WhenUnsatisfiable::DoNotSchedule));
    assert_eq!(fits(&snapshot, &template), ["a1", "a2", "b1"]);
}

#[test]
fn pods_of_a_service_are_spread_without_asking() {
    let mut snapshot = zones();
    put(&mut snapshot, app("web"), "a1");
    assert_eq!(scores(&snapshot, &app("web"), Plugin::PodTopologySpread).values().sum::<i64>(), 0);
    snapshot.facts_mut().set_service("default".into(), "web".into(), Some(is_app("web")));
    let scores = scores(&snapshot, &app("web"), Plugin::PodTopologySpread);
    assert!(scores["b1"] > scores["a1"], "{scores:?}");
}

#[test]
fn all_hard_constraints_hold_at_once() {
    let mut snapshot = zones();
    put(&mut snapshot, app("web"), "a1");
    let mut template = app("web");
    let by = |key| spread(1, key, WhenUnsatisfiable::DoNotSchedule);
    template.spread = [by("zone"), by(HOST)].into();
    assert_eq!(fits(&snapshot, &template), ["b1"], "a2 is free, but not its zone");
    put(&mut snapshot, app("web"), "b1");
    assert_eq!(fits(&snapshot, &template), ["a2"], "the zones are even, the hosts are not");
}

#[test]
fn what_existing_pods_want_counts_as_the_profile_says() {
    let mut snapshot = zones();
    let mut fan = app("fan");
    fan.affinity.required = [near(is_app("web"), HOST)].into();
    put(&mut snapshot, fan, "b1");
    let mut admirer = app("admirer");
    admirer.affinity.preferred = [WeightedTerm { weight: 10, term: near(is_app("web"), HOST) }].into();
    put(&mut snapshot, admirer, "a1");
    type Case<'a> = (&'a str, i64, bool, &'a [(&'a str, i64)]);
    let cases: [Case<'_>; 4] = [
        ("the default weight of 1", 1, false, &[("a1", 200), ("a2", 0), ("b1", 20), ("x", 0)]),
        ("a heavy requirement", 20, false, &[("a1", 100), ("a2", 0), ("b1", 200), ("x", 0)]),
        ("no weight", 0, false, &[("a1", 200), ("a2", 0), ("b1", 0), ("x", 0)]),
        ("preferences left out", 1, true, &[("a1", 0), ("a2", 0), ("b1", 200), ("x", 0)]),
    ];
    for (case, hard_affinity_weight, ignore_preferred_of_existing, expected) in cases {
        let mut profile = Profile::default_for("default-scheduler");
        profile.hard_affinity_weight = hard_affinity_weight;
        profile.ignore_preferred_of_existing = ignore_preferred_of_existing;
        let table = Core::new(vec![profile]).evaluate(&pod("new", app("web")), &snapshot);
        let got: BTreeMap<String, i64> = table
            .into_iter()
            .filter_map(|(name, verdict)| {
                let scores = verdict.ok()?.by_plugin;
                let (_, score) = scores.into_iter().find(|(plugin, _)| *plugin == Plugin::InterPodAffinity)?;
                Some((name.to_string(), score))
            })
            .collect();
        assert_eq!(got, scored(expected), "{case}");
    }
}

#[test]
fn plugins_that_a_profile_leaves_out_neither_reject_nor_score() {
    let mut snapshot = Snapshot::default();
    let mut closed = node("closed", 1000, 1000);
    closed.taints = vec![Taint { key: "t".into(), value: "".into(), effect: Effect::NoSchedule }];
    closed.unschedulable = true;
    snapshot.set_node(closed);
    let mut profile = Profile::default_for("default-scheduler");
    for plugin in [Plugin::TaintToleration, Plugin::NodeUnschedulable] {
        profile.filters.remove(plugin);
    }
    profile.set_weight(Plugin::NodeResourcesFit, 0);
    let table = Core::new(vec![profile]).evaluate(&pod("new", plain(1, 1)), &snapshot);
    let scores = table[0].1.as_ref().expect("nothing rejects it");
    let fit = scores.by_plugin.iter().find(|(plugin, _)| *plugin == Plugin::NodeResourcesFit);
    assert_eq!(fit.map(|(_, score)| *score), Some(0));
}

#[test]
fn packing_by_an_extended_resource_fills_one_node_first() {
    let mut snapshot = Snapshot::default();
    for (name, used) in [("half", 2), ("empty", 0)] {
        let mut info = node(name, 10_000, 10_000);
        info.allocatable.set_scalar("example.com/gpu".into(), 4);
        snapshot.set_node(info);
        let mut template = plain(0, 0);
        template.requests.set_scalar("example.com/gpu".into(), used);
        put(&mut snapshot, template, name);
    }
    let mut profile = Profile::default_for("default-scheduler");
    profile.fit = crate::profile::FitStrategy::RequestedToCapacityRatio(vec![(0, 0), (100, 10)]);
    profile.fit_resources =
        vec![crate::profile::ResourceWeight { resource: crate::model::Resource::named("example.com/gpu"), weight: 1 }];
    let mut template = plain(0, 0);
    template.requests.set_scalar("example.com/gpu".into(), 1);
    let table = Core::new(vec![profile]).evaluate(&pod("new", template), &snapshot);
    let fit = |name: &str| {
        let (_, verdict) = table.iter().find(|(node, _)| &**node == name).expect("a node");
        let scores = &verdict.as_ref().expect("it fits").by_plugin;
        scores.iter().find(|(plugin, _)| *plugin == Plugin::NodeResourcesFit).map(|(_, score)| *score)
    };
    assert_eq!((fit("half"), fit("empty")), (Some(75), Some(25)));
}

#[test]
fn a_pod_goes_where_what_it_needs_is_declared() {
    let mut snapshot = Snapshot::default();
    for (name, features) in [("old", &[][..]), ("other", &["A"]), ("new", &["A", "B"])] {
        let mut info = node(name, 1000, 1000);
        info.declared_features = features.iter().map(|feature| Str::from(*feature)).collect();
        snapshot.set_node(info);
    }
    let mut template = plain(0, 0);
    assert_eq!(fits(&snapshot, &template).len(), 3);
    template.needs_feature = Some("B".into());
    assert_eq!(fits(&snapshot, &template), ["new"]);
    let why = ("node(s) didn't match Pod's required features".to_owned(), false);
    assert_eq!(reason(&snapshot, &template, "old"), Some(why));
}
