//! Which plugins run where: `multiPoint` first, then the extension points, each able to disable and to enable.

use serde::Deserialize;

use super::ConfigError;
use crate::plugin::{Plugin, PluginSet};
use crate::profile::{MAX_SCORE, Profile};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Plugins {
    multi_point: Set,
    pre_enqueue: Set,
    queue_sort: Set,
    pre_filter: Set,
    filter: Set,
    post_filter: Set,
    pre_score: Set,
    score: Set,
    reserve: Set,
    permit: Set,
    pre_bind: Set,
    bind: Set,
    post_bind: Set,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Set {
    enabled: Vec<Named>,
    disabled: Vec<Named>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    #[serde(default)]
    weight: i64,
}

/// Plugins without which there is no scheduling.
const INDISPENSABLE: [Plugin; 2] = [Plugin::PrioritySort, Plugin::DefaultBinder];

/// What a change of an extension point changes here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Filters,
    Scores,
    Both,
}

pub(super) fn apply(plugins: &Plugins, profile: &mut Profile, field: &str) -> Result<(), ConfigError> {
    let points = [
        ("multiPoint", &plugins.multi_point, Effect::Both),
        ("preEnqueue", &plugins.pre_enqueue, Effect::Filters),
        ("queueSort", &plugins.queue_sort, Effect::Filters),
        ("preFilter", &plugins.pre_filter, Effect::Filters),
        ("filter", &plugins.filter, Effect::Filters),
        ("postFilter", &plugins.post_filter, Effect::Filters),
        ("reserve", &plugins.reserve, Effect::Filters),
        ("permit", &plugins.permit, Effect::Filters),
        ("preBind", &plugins.pre_bind, Effect::Filters),
        ("bind", &plugins.bind, Effect::Filters),
        ("postBind", &plugins.post_bind, Effect::Filters),
        ("preScore", &plugins.pre_score, Effect::Scores),
        ("score", &plugins.score, Effect::Scores),
    ];
    for (point, set, effect) in points {
        change(set, effect, profile, &format!("{field}.{point}"))?;
    }
    let missing = INDISPENSABLE.into_iter().find(|plugin| !profile.runs(*plugin));
    missing.map_or(Ok(()), |plugin| Err(ConfigError::invalid(field, format!("{plugin} cannot be done without"))))
}

fn change(set: &Set, effect: Effect, profile: &mut Profile, field: &str) -> Result<(), ConfigError> {
    for named in &set.disabled {
        let disabled: PluginSet = match named.name.as_str() {
            "*" => Plugin::ALL.into_iter().filter(|plugin| concerns(*plugin, field)).collect(),
            name => [known(name, field)?].into_iter().collect(),
        };
        for plugin in disabled.iter() {
            if effect != Effect::Scores {
                profile.filters.remove(plugin);
            }
            if effect != Effect::Filters {
                profile.set_weight(plugin, 0);
            }
        }
    }
    let defaults = Profile::default_for(&profile.scheduler_name);
    for named in &set.enabled {
        let plugin = known(&named.name, field)?;
        if named.weight < 0 || named.weight > i64::MAX / MAX_SCORE / Plugin::ALL.len() as i64 {
            return Err(ConfigError::invalid(field, format!("weight {} of {plugin} is out of range", named.weight)));
        }
        if effect != Effect::Scores {
            profile.filters.insert(plugin);
        }
        if effect != Effect::Filters && defaults.weight(plugin) != 0 {
            profile.set_weight(plugin, if named.weight == 0 { 1 } else { named.weight });
        }
    }
    Ok(())
}

/// Whether "*" at an extension point means this plugin: queue and binding are not switched off with the filters.
fn concerns(plugin: Plugin, field: &str) -> bool {
    match field.rsplit('.').next() {
        Some("multiPoint") => true,
        Some("preEnqueue") => matches!(plugin, Plugin::SchedulingGates | Plugin::GangScheduling),
        Some("queueSort") => plugin == Plugin::PrioritySort,
        Some("postFilter") => plugin == Plugin::DefaultPreemption,
        Some("bind") => plugin == Plugin::DefaultBinder,
        Some("reserve" | "preBind") => plugin == Plugin::VolumeBinding,
        Some("permit" | "postBind") => false,
        _ => !matches!(
            plugin,
            Plugin::SchedulingGates
                | Plugin::GangScheduling
                | Plugin::PrioritySort
                | Plugin::DefaultPreemption
                | Plugin::DefaultBinder
        ),
    }
}

fn known(name: &str, field: &str) -> Result<Plugin, ConfigError> {
    Plugin::named(name)
        .ok_or_else(|| ConfigError::invalid(field, format!("{name:?} is not a plugin of this scheduler")))
}
