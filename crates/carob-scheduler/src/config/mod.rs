//! KubeSchedulerConfiguration, `kubescheduler.config.k8s.io/v1`: read, checked, and turned into profiles. What it asks for
//! and this scheduler does otherwise is told, not dropped.

mod args;
mod duration;
mod plugins;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use duration::parse as parse_duration;

use carob_client::ElectionConfig;
use serde::Deserialize;
use serde_json::Value;

use crate::profile::Profile;
use crate::run::SchedulerConfig;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read the scheduler's configuration")]
    Decode(#[source] serde_json::Error),
    #[error("read the arguments of plugin {plugin}")]
    DecodeArgs {
        plugin: String,
        #[source]
        cause: serde_json::Error,
    },
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    #[error("read the selector in {field}")]
    Selector {
        field: String,
        #[source]
        cause: crate::convert::ConvertError,
    },
}

impl ConfigError {
    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }
}

/// A configuration as read, with what of it is done otherwise here.
#[derive(Debug)]
pub struct Parsed {
    pub config: SchedulerConfig,
    pub warnings: Vec<String>,
}

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<FileProfile>,
    leader_election: Option<FileElection>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    parallelism: Option<i32>,
    percentage_of_nodes_to_score: Option<i32>,
    client_connection: Option<Value>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    delay_cache_until_active: Option<bool>,
    #[serde(default)]
    extenders: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: Option<plugins::Plugins>,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileElection {
    leader_elect: Option<bool>,
    lease_duration: Option<String>,
    renew_deadline: Option<String>,
    retry_period: Option<String>,
    resource_lock: Option<String>,
    resource_name: Option<String>,
    resource_namespace: Option<String>,
}

/// Reads a configuration. `identity` is who competes for the lease, unique among the candidates.
pub fn parse(value: Value, identity: &str) -> Result<Parsed, ConfigError> {
    let file: File = serde_json::from_value(value).map_err(ConfigError::Decode)?;
    if file.api_version != API_VERSION || file.kind != "KubeSchedulerConfiguration" {
        let problem = format!("{} {} is not {API_VERSION} KubeSchedulerConfiguration", file.api_version, file.kind);
        return Err(ConfigError::invalid("apiVersion", problem));
    }
    if !file.extenders.is_empty() {
        return Err(ConfigError::invalid("extenders", "scheduler extenders are not supported"));
    }
    let mut warnings = Vec::new();
    note_unused(&file, &mut warnings);
    let mut config = SchedulerConfig::default();
    config.initial_backoff =
        seconds(file.pod_initial_backoff_seconds, config.initial_backoff, "podInitialBackoffSeconds")?;
    config.max_backoff = seconds(file.pod_max_backoff_seconds, config.max_backoff, "podMaxBackoffSeconds")?;
    if config.max_backoff < config.initial_backoff {
        return Err(ConfigError::invalid(
            "podMaxBackoffSeconds",
            "must be greater than or equal to podInitialBackoffSeconds",
        ));
    }
    config.election = file.leader_election.map_or_else(|| Ok(None), |election| self::election(election, identity))?;
    if !file.profiles.is_empty() {
        config.profiles = profiles(file.profiles, &mut config.claims_bound_within, &mut warnings)?;
    }
    Ok(Parsed { config, warnings })
}

fn note_unused(file: &File, warnings: &mut Vec<String>) {
    let fields = [
        ("parallelism", file.parallelism.is_some(), "decisions are taken by one thread"),
        ("percentageOfNodesToScore", file.percentage_of_nodes_to_score.is_some(), "all nodes are scored"),
        ("clientConnection", file.client_connection.is_some(), "the connection is the one that the command line names"),
        ("healthzBindAddress", file.healthz_bind_address.is_some(), "health is served by carob"),
        ("metricsBindAddress", file.metrics_bind_address.is_some(), "metrics are served by carob"),
        ("enableProfiling", file.enable_profiling.is_some(), "there is no profiling endpoint"),
        ("enableContentionProfiling", file.enable_contention_profiling.is_some(), "there is no profiling endpoint"),
        ("delayCacheUntilActive", file.delay_cache_until_active.is_some(), "informers start when the lease is held"),
    ];
    warnings.extend(
        fields.iter().filter(|(_, set, _)| *set).map(|(field, _, why)| format!("{field} has no effect: {why}")),
    );
}

fn seconds(value: Option<u64>, default: Duration, field: &str) -> Result<Duration, ConfigError> {
    match value {
        Some(0) => Err(ConfigError::invalid(field, "must be greater than 0")),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Ok(default),
    }
}

fn election(file: FileElection, identity: &str) -> Result<Option<ElectionConfig>, ConfigError> {
    if file.leader_elect == Some(false) {
        return Ok(None);
    }
    if file.resource_lock.as_deref().is_some_and(|lock| lock != "leases") {
        return Err(ConfigError::invalid("leaderElection.resourceLock", "only \"leases\" is supported"));
    }
    let namespace = file.resource_namespace.unwrap_or_else(|| "kube-system".to_owned());
    let name = file.resource_name.unwrap_or_else(|| "kube-scheduler".to_owned());
    let mut election = ElectionConfig::new(namespace, name, identity);
    let set = |target: &mut Duration, text: Option<String>, field: &str| -> Result<(), ConfigError> {
        if let Some(text) = text {
            *target = duration::parse(&text)
                .ok_or_else(|| ConfigError::invalid(field, format!("{text:?} is not a duration")))?;
        }
        Ok(())
    };
    set(&mut election.lease_duration, file.lease_duration, "leaderElection.leaseDuration")?;
    set(&mut election.renew_deadline, file.renew_deadline, "leaderElection.renewDeadline")?;
    set(&mut election.retry_period, file.retry_period, "leaderElection.retryPeriod")?;
    Ok(Some(election))
}

fn profiles(
    files: Vec<FileProfile>,
    bound: &mut Duration,
    warnings: &mut Vec<String>,
) -> Result<Vec<Profile>, ConfigError> {
    let mut profiles: Vec<Profile> = Vec::new();
    for (index, file) in files.into_iter().enumerate() {
        let field = format!("profiles[{index}]");
        let name = file.scheduler_name.unwrap_or_else(|| "default-scheduler".to_owned());
        if profiles.iter().any(|profile| *profile.scheduler_name == *name) {
            return Err(ConfigError::invalid(format!("{field}.schedulerName"), format!("{name:?} is there twice")));
        }
        if file.percentage_of_nodes_to_score.is_some() {
            warnings.push(format!("{field}.percentageOfNodesToScore has no effect: all nodes are scored"));
        }
        let mut profile = Profile::default_for(&name);
        if let Some(plugins) = &file.plugins {
            plugins::apply(plugins, &mut profile, &format!("{field}.plugins"))?;
        }
        for config in file.plugin_config {
            let mut target = args::Target { profile: &mut profile, bound, warnings };
            args::apply(&config.name, config.args, &mut target)?;
        }
        profiles.push(profile);
    }
    Ok(profiles)
}
