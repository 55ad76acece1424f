//! The arguments of plugins.

use std::time::Duration;

use k8s_openapi::api::core::v1::NodeAffinity;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ConfigError;
use crate::convert::Converter;
use crate::model::{Resource, Str};
use crate::profile::{FitStrategy, Profile, ResourceWeight, SpreadDefault};

/// What arguments change.
pub(super) struct Target<'a> {
    pub(super) profile: &'a mut Profile,
    pub(super) bound: &'a mut Duration,
    pub(super) warnings: &'a mut Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fit {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Strategy {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    resources: Vec<Weighted>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratio {
    shape: Vec<Point>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    utilization: i64,
    score: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weighted {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Balanced {
    #[serde(default)]
    resources: Vec<Weighted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spread {
    #[serde(default)]
    default_constraints: Vec<Constraint>,
    defaulting_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Constraint {
    max_skew: i64,
    topology_key: String,
    when_unsatisfiable: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Affinity {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AddedAffinity {
    added_affinity: Option<NodeAffinity>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Preemption {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Binding {
    bind_timeout_seconds: Option<i64>,
    shape: Option<Vec<Point>>,
}

pub(super) fn apply(plugin: &str, args: Value, target: &mut Target<'_>) -> Result<(), ConfigError> {
    match plugin {
        "NodeResourcesFit" => fit(decode(plugin, args)?, target.profile),
        "NodeResourcesBalancedAllocation" => {
            let args: Balanced = decode(plugin, args)?;
            if !args.resources.is_empty() {
                target.profile.balanced_resources = weights(args.resources, "NodeResourcesBalancedAllocation")?;
            }
            Ok(())
        }
        "PodTopologySpread" => spread(decode(plugin, args)?, target.profile),
        "InterPodAffinity" => affinity(&decode(plugin, args)?, target.profile),
        "NodeAffinity" => added_affinity(&decode(plugin, args)?, target.profile),
        "DefaultPreemption" => {
            let args: Preemption = decode(plugin, args)?;
            if args.min_candidate_nodes_percentage.is_some() || args.min_candidate_nodes_absolute.is_some() {
                target
                    .warnings
                    .push("DefaultPreemption's candidate limits have no effect: all nodes are candidates".to_owned());
            }
            Ok(())
        }
        "VolumeBinding" => binding(&decode(plugin, args)?, target),
        other => Err(ConfigError::invalid("pluginConfig", format!("{other:?} takes no arguments here"))),
    }
}

/// Reads arguments; their own apiVersion and kind may be there and say nothing new.
fn decode<T: DeserializeOwned>(plugin: &str, mut args: Value) -> Result<T, ConfigError> {
    if let Some(object) = args.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    serde_json::from_value(args).map_err(|cause| ConfigError::DecodeArgs { plugin: plugin.to_owned(), cause })
}

fn weights(resources: Vec<Weighted>, field: &str) -> Result<Vec<ResourceWeight>, ConfigError> {
    let convert = |weighted: Weighted| {
        let weight = if weighted.weight == 0 { 1 } else { weighted.weight };
        if !(1..=100).contains(&weight) {
            return Err(ConfigError::invalid(
                field,
                format!("resource weight of {} must be in the range [1, 100]", weighted.name),
            ));
        }
        Ok(ResourceWeight { resource: Resource::named(&weighted.name), weight })
    };
    resources.into_iter().map(convert).collect()
}

fn fit(args: Fit, profile: &mut Profile) -> Result<(), ConfigError> {
    let shared = |names: Vec<String>| names.into_iter().map(Str::from).collect();
    profile.ignored_resources = shared(args.ignored_resources);
    profile.ignored_groups = shared(args.ignored_resource_groups);
    let Some(strategy) = args.scoring_strategy else { return Ok(()) };
    if !strategy.resources.is_empty() {
        profile.fit_resources = weights(strategy.resources, "scoringStrategy.resources")?;
    }
    profile.fit = match (strategy.kind.as_str(), strategy.requested_to_capacity_ratio) {
        ("LeastAllocated", _) => FitStrategy::LeastAllocated,
        ("MostAllocated", _) => FitStrategy::MostAllocated,
        ("RequestedToCapacityRatio", Some(ratio)) => FitStrategy::RequestedToCapacityRatio(shape(&ratio.shape)?),
        ("RequestedToCapacityRatio", None) => {
            return Err(ConfigError::invalid("scoringStrategy.requestedToCapacityRatio", "is required"));
        }
        (other, _) => return Err(ConfigError::invalid("scoringStrategy.type", format!("{other:?} is not a strategy"))),
    };
    Ok(())
}

/// Utilization from 0 to 100 strictly rising, scores from 0 to 10 (config/validation validateFunctionShape).
fn shape(points: &[Point]) -> Result<Vec<(i64, i64)>, ConfigError> {
    let rising = points.windows(2).all(|pair| pair[0].utilization < pair[1].utilization);
    let inside = points.iter().all(|point| (0..=100).contains(&point.utilization) && (0..=10).contains(&point.score));
    if points.is_empty() || !rising || !inside {
        let problem = "needs points of strictly rising utilization in [0, 100] and scores in [0, 10]";
        return Err(ConfigError::invalid("scoringStrategy.requestedToCapacityRatio.shape", problem));
    }
    Ok(points.iter().map(|point| (point.utilization, point.score)).collect())
}

fn spread(args: Spread, profile: &mut Profile) -> Result<(), ConfigError> {
    let system = args.defaulting_type.as_deref().unwrap_or("System") == "System";
    if system {
        if !args.default_constraints.is_empty() {
            return Err(ConfigError::invalid("defaultingType", "when .defaultConstraints are specified, must be List"));
        }
        return Ok(());
    }
    let convert = |constraint: Constraint| {
        let hard = match constraint.when_unsatisfiable.as_str() {
            "DoNotSchedule" => true,
            "ScheduleAnyway" => false,
            other => return Err(ConfigError::invalid("whenUnsatisfiable", format!("{other:?} is not supported"))),
        };
        if constraint.max_skew <= 0 {
            return Err(ConfigError::invalid("maxSkew", "must be greater than zero"));
        }
        Ok(SpreadDefault { max_skew: constraint.max_skew, topology_key: constraint.topology_key.into(), hard })
    };
    profile.spread_defaults = args.default_constraints.into_iter().map(convert).collect::<Result<_, _>>()?;
    profile.spread_system_defaulted = false;
    Ok(())
}

fn affinity(args: &Affinity, profile: &mut Profile) -> Result<(), ConfigError> {
    let weight = args.hard_pod_affinity_weight.unwrap_or(profile.hard_affinity_weight);
    if !(0..=100).contains(&weight) {
        return Err(ConfigError::invalid("hardPodAffinityWeight", "must be in the range [0, 100]"));
    }
    profile.hard_affinity_weight = weight;
    profile.ignore_preferred_of_existing = args.ignore_preferred_terms_of_existing_pods.unwrap_or(false);
    Ok(())
}

fn added_affinity(args: &AddedAffinity, profile: &mut Profile) -> Result<(), ConfigError> {
    let Some(affinity) = &args.added_affinity else { return Ok(()) };
    let choice = Converter::default().node_choice_of(None, Some(affinity));
    let choice = choice.map_err(|cause| ConfigError::Selector { field: "addedAffinity".to_owned(), cause })?;
    profile.added_affinity = Some(choice);
    Ok(())
}

fn binding(args: &Binding, target: &mut Target<'_>) -> Result<(), ConfigError> {
    if let Some(seconds) = args.bind_timeout_seconds {
        let seconds = u64::try_from(seconds)
            .map_err(|_| ConfigError::invalid("bindTimeoutSeconds", "must be greater than or equal to 0"))?;
        *target.bound = Duration::from_secs(seconds);
    }
    if args.shape.is_some() {
        target.warnings.push("VolumeBinding's shape has no effect: volumes are not scored".to_owned());
    }
    Ok(())
}
