//! A profile: which plugins run for the Pods of one schedulerName, with which weights and arguments.

use crate::model::{NodeChoice, Resource, Str};
use crate::plugin::{Plugin, PluginSet};

/// The highest score that a plugin gives a node (framework.MaxNodeScore).
pub const MAX_SCORE: i64 = 100;

/// A score as a whole number, rounded towards zero as Go converts. Scores are far within what an i64 holds.
#[expect(clippy::cast_possible_truncation, reason = "scores and sizes are far below 2^63")]
pub(crate) fn whole(score: f64) -> i64 {
    score as i64
}

/// How NodeResourcesFit scores.
#[derive(Clone, Debug, PartialEq)]
pub enum FitStrategy {
    /// Prefers nodes with much left.
    LeastAllocated,
    /// Prefers nodes that are nearly full.
    MostAllocated,
    /// A piecewise linear function: utilization in percent to a score from 0 to 10, by rising utilization.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// A resource and its weight within a resource plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceWeight {
    pub resource: Resource,
    pub weight: i64,
}

impl ResourceWeight {
    fn cpu_and_memory() -> Vec<Self> {
        [Resource::Cpu, Resource::Memory].map(|resource| Self { resource, weight: 1 }).to_vec()
    }
}

/// A default topology spread constraint, for Pods that name none and that a Service or controller selects.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadDefault {
    pub max_skew: i64,
    pub topology_key: Str,
    pub hard: bool,
}

#[derive(Clone, Debug)]
pub struct Profile {
    pub scheduler_name: Str,
    /// Plugins that run as filters (or, for queue plugins, at all).
    pub filters: PluginSet,
    weights: [i64; Plugin::ALL.len()],
    pub fit: FitStrategy,
    pub fit_resources: Vec<ResourceWeight>,
    /// Extended resources, and groups of them by prefix, that NodeResourcesFit does not check.
    pub ignored_resources: Vec<Str>,
    pub ignored_groups: Vec<Str>,
    pub balanced_resources: Vec<ResourceWeight>,
    pub spread_defaults: Vec<SpreadDefault>,
    /// `defaultingType: System`: the defaults do not need every topology key on a node.
    pub spread_system_defaulted: bool,
    /// InterPodAffinity's `hardPodAffinityWeight`.
    pub hard_affinity_weight: i64,
    /// InterPodAffinity's `ignorePreferredTermsOfExistingPods`.
    pub ignore_preferred_of_existing: bool,
    /// NodeAffinity's `addedAffinity`.
    pub added_affinity: Option<NodeChoice>,
}

impl Profile {
    /// Upstream's default profile (pkg/scheduler/apis/config/v1/default_plugins.go).
    pub fn default_for(scheduler_name: &str) -> Self {
        let mut weights = [0; Plugin::ALL.len()];
        let defaults = [
            (Plugin::TaintToleration, 3),
            (Plugin::NodeAffinity, 2),
            (Plugin::NodeResourcesFit, 1),
            (Plugin::PodTopologySpread, 2),
            (Plugin::InterPodAffinity, 2),
            (Plugin::NodeResourcesBalancedAllocation, 1),
            (Plugin::ImageLocality, 1),
        ];
        for (plugin, weight) in defaults {
            weights[plugin as usize] = weight;
        }
        Self {
            scheduler_name: scheduler_name.into(),
            filters: PluginSet::all(),
            weights,
            fit: FitStrategy::LeastAllocated,
            fit_resources: ResourceWeight::cpu_and_memory(),
            ignored_resources: Vec::new(),
            ignored_groups: Vec::new(),
            balanced_resources: ResourceWeight::cpu_and_memory(),
            spread_defaults: Self::system_spread(),
            spread_system_defaulted: true,
            hard_affinity_weight: 1,
            ignore_preferred_of_existing: false,
            added_affinity: None,
        }
    }

    /// The constraints of `defaultingType: System` (podtopologyspread/plugin.go).
    pub fn system_spread() -> Vec<SpreadDefault> {
        vec![
            SpreadDefault { max_skew: 3, topology_key: "kubernetes.io/hostname".into(), hard: false },
            SpreadDefault { max_skew: 5, topology_key: "topology.kubernetes.io/zone".into(), hard: false },
        ]
    }

    /// The weight of a plugin's score; zero where it does not score.
    pub fn weight(&self, plugin: Plugin) -> i64 {
        self.weights[plugin as usize]
    }

    pub fn set_weight(&mut self, plugin: Plugin, weight: i64) {
        self.weights[plugin as usize] = weight;
    }

    pub fn runs(&self, plugin: Plugin) -> bool {
        self.filters.has(plugin)
    }

    /// Whether NodeResourcesFit leaves this extended resource to others.
    pub fn ignores(&self, resource: &str) -> bool {
        self.ignored_resources.iter().any(|ignored| &**ignored == resource)
            || resource
                .split_once('/')
                .is_some_and(|(group, _)| self.ignored_groups.iter().any(|ignored| &**ignored == group))
    }
}
