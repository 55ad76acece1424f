use std::time::Duration;

use serde_json::json;

use super::*;
use crate::model::Resource;
use crate::plugin::Plugin;
use crate::profile::FitStrategy;

fn parse_with(extra: Value) -> Result<Parsed, ConfigError> {
    let mut file = json!({"apiVersion": API_VERSION, "kind": "KubeSchedulerConfiguration"});
    file.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    parse(file, "me")
}

fn profile(profile: Value) -> Profile {
    let parsed = parse_with(json!({"profiles": [profile]})).expect("a valid configuration");
    parsed.config.profiles.into_iter().next().expect("one profile")
}

#[test]
fn an_empty_configuration_is_the_default() {
    let parsed = parse_with(json!({})).expect("valid");
    assert_eq!(parsed.config.profiles.len(), 1);
    assert_eq!(parsed.config.profiles[0].weight(Plugin::TaintToleration), 3);
    assert!(parsed.warnings.is_empty());
    assert!(parsed.config.election.is_none());
}

#[test]
fn plugins_are_disabled_enabled_and_weighed() {
    let changed = profile(json!({"schedulerName": "packer", "plugins": {
        "multiPoint": {"enabled": [{"name": "ImageLocality", "weight": 7}]},
        "score": {"disabled": [{"name": "TaintToleration"}], "enabled": [{"name": "NodeResourcesFit", "weight": 5}]},
        "filter": {"disabled": [{"name": "NodePorts"}]},
        "postFilter": {"disabled": [{"name": "*"}]}}}));
    assert_eq!(&*changed.scheduler_name, "packer");
    assert_eq!(changed.weight(Plugin::ImageLocality), 7);
    assert_eq!(changed.weight(Plugin::TaintToleration), 0);
    assert_eq!(changed.weight(Plugin::NodeResourcesFit), 5);
    assert!(changed.runs(Plugin::TaintToleration), "it still filters");
    assert!(!changed.runs(Plugin::NodePorts));
    assert!(!changed.runs(Plugin::DefaultPreemption));
    assert!(changed.runs(Plugin::DefaultBinder));
}

#[test]
fn all_scores_can_be_switched_off_but_one() {
    let changed =
        profile(json!({"plugins": {"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeAffinity"}]}}}));
    let scoring: Vec<_> = Plugin::ALL.into_iter().filter(|plugin| changed.weight(*plugin) != 0).collect();
    assert_eq!(scoring, [Plugin::NodeAffinity]);
    assert_eq!(changed.weight(Plugin::NodeAffinity), 1);
}

#[test]
fn arguments_reach_the_profile() {
    let changed = profile(json!({"pluginConfig": [
        {"name": "NodeResourcesFit", "args": {"apiVersion": API_VERSION, "kind": "NodeResourcesFitArgs",
            "ignoredResourceGroups": ["example.com"],
            "scoringStrategy": {"type": "RequestedToCapacityRatio", "resources": [{"name": "example.com/gpu", "weight": 3}],
                "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}}},
        {"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 9}},
        {"name": "PodTopologySpread", "args": {"defaultingType": "List", "defaultConstraints": [
            {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]}},
        {"name": "NodeAffinity", "args": {"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]}}}}]}));
    assert_eq!(changed.fit, FitStrategy::RequestedToCapacityRatio(vec![(0, 0), (100, 10)]));
    assert_eq!(changed.fit_resources[0].resource, Resource::Scalar("example.com/gpu".into()));
    assert!(changed.ignores("example.com/gpu"));
    assert_eq!(changed.hard_affinity_weight, 9);
    assert!(changed.spread_defaults[0].hard);
    assert!(changed.added_affinity.is_some_and(|added| added.required.is_some()));
}

#[test]
fn the_lease_and_the_pauses_are_read() {
    let parsed = parse_with(json!({"leaderElection": {"leaseDuration": "30s", "resourceName": "mine"},
        "podInitialBackoffSeconds": 2, "podMaxBackoffSeconds": 20}))
    .expect("valid");
    let election = parsed.config.election.expect("an election");
    assert_eq!((election.name.as_str(), election.lease_duration), ("mine", Duration::from_secs(30)));
    assert_eq!(parsed.config.max_backoff, Duration::from_secs(20));
    let off = parse_with(json!({"leaderElection": {"leaderElect": false}})).expect("valid");
    assert!(off.config.election.is_none());
}

#[test]
fn what_is_done_otherwise_is_told() {
    let parsed = parse_with(json!({"percentageOfNodesToScore": 10, "parallelism": 16})).expect("valid");
    assert_eq!(parsed.warnings.len(), 2, "{:?}", parsed.warnings);
}

#[test]
fn mistakes_are_refused_with_their_field() {
    let cases = [
        (
            json!({"profiles": [{"plugins": {"filter": {"enabled": [{"name": "Nonsense"}]}}}]}),
            "\"Nonsense\" is not a plugin",
        ),
        (json!({"profiles": [{}, {}]}), "is there twice"),
        (json!({"profiles": [{"plugins": {"bind": {"disabled": [{"name": "*"}]}}}]}), "cannot be done without"),
        (json!({"extenders": [{}]}), "not supported"),
        (json!({"podInitialBackoffSeconds": 0}), "must be greater than 0"),
        (json!({"leaderElection": {"leaseDuration": "soon"}}), "is not a duration"),
        (json!({"unheard": 1}), "read the scheduler's configuration"),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 101}}]}]}),
            "[0, 100]",
        ),
    ];
    for (file, expected) in cases {
        let error = parse_with(file).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}
