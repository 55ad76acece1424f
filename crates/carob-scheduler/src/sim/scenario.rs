//! What is simulated: nodes, what arrives when, and under which policies.

use std::time::Duration;

use carob_api::quantity::{Quantity, QuantityError};
use serde::Deserialize;
use serde_json::Value;

use crate::config::parse_duration;

/// Nodes that one scenario may have.
const NODES_MAX: usize = 200_000;
/// Jobs that may arrive in one scenario.
const JOBS_MAX: usize = 2_000_000;

/// The scenario cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("read the scenario")]
    Decode(#[source] serde_json::Error),
    #[error("read the quantity {text:?} of {field}")]
    Quantity {
        field: String,
        text: String,
        #[source]
        cause: QuantityError,
    },
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
}

/// CPU in thousandths of a core, memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub milli_cpu: i64,
    pub memory: i64,
}

/// A kind of node and how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKind {
    pub name: String,
    pub count: usize,
    pub size: Amounts,
}

/// When the jobs of a group arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// All at one moment.
    At(Duration),
    /// At equal distances from the start.
    Every(Duration),
    /// At random with this mean distance.
    Poisson(Duration),
}

/// Jobs of one kind. A job is so many Pods, each of these containers; it does its work once all of them have a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub jobs: usize,
    pub pods: usize,
    pub containers: Vec<Amounts>,
    pub arrivals: Arrivals,
    /// Absent: runs on.
    pub duration: Option<Duration>,
    /// The duration is the mean of an exponential distribution.
    pub random_duration: bool,
    pub priority: i32,
}

/// How Swarm ranks nodes for the first container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The node with the fewest containers.
    Spread,
    /// The fullest node that still fits.
    Binpack,
    Random,
}

/// What counts as a conflict when an optimistic transaction is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conflict {
    /// The node changed in any way since it was looked at.
    Coarse,
    /// The node has no room any more.
    Fine,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Each Pod as one, the Pods of a job one by one.
    Pod,
    /// Each job as one.
    Gang,
    /// Each job as one within a cell of the nodes, higher priority preempts.
    Borg { cells: usize },
    /// Containers one by one, bound to the node of their Pod's first.
    Swarm { strategy: Strategy },
    /// Containers one by one, held until the job is complete, or given back after a while.
    Mesos { hold: Option<Duration> },
    /// Several schedulers decide on copies and commit optimistically.
    Omega { schedulers: usize, conflict: Conflict, decision: Duration, per_pod: Duration },
}

impl std::fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod => f.write_str("pod"),
            Self::Gang => f.write_str("gang"),
            Self::Borg { cells } => write!(f, "borg-{cells}"),
            Self::Swarm { strategy: Strategy::Spread } => f.write_str("swarm-spread"),
            Self::Swarm { strategy: Strategy::Binpack } => f.write_str("swarm-binpack"),
            Self::Swarm { strategy: Strategy::Random } => f.write_str("swarm-random"),
            Self::Mesos { hold: None } => f.write_str("mesos"),
            Self::Mesos { hold: Some(hold) } => write!(f, "mesos-{}s", hold.as_secs()),
            Self::Omega { schedulers, conflict: Conflict::Coarse, .. } => write!(f, "omega-{schedulers}-coarse"),
            Self::Omega { schedulers, conflict: Conflict::Fine, .. } => write!(f, "omega-{schedulers}-fine"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub name: String,
    pub seed: u64,
    pub until: Duration,
    pub nodes: Vec<NodeKind>,
    pub groups: Vec<Group>,
    pub policies: Vec<PolicyKind>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    seed: u64,
    until: String,
    nodes: Vec<FileNode>,
    groups: Vec<FileGroup>,
    policies: Vec<FilePolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    name: String,
    #[serde(default = "one")]
    count: usize,
    cpu: Value,
    memory: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileGroup {
    name: String,
    #[serde(default = "one")]
    jobs: usize,
    #[serde(default = "one")]
    pods: usize,
    containers: Vec<FileContainer>,
    at: Option<String>,
    every: Option<String>,
    poisson: Option<String>,
    duration: Option<String>,
    #[serde(default)]
    random_duration: bool,
    #[serde(default)]
    priority: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContainer {
    #[serde(default)]
    cpu: Value,
    #[serde(default)]
    memory: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FilePolicy {
    kind: String,
    strategy: Option<Strategy>,
    hold: Option<String>,
    cells: Option<usize>,
    schedulers: Option<usize>,
    conflict: Option<Conflict>,
    decision: Option<String>,
    per_pod: Option<String>,
}

fn one() -> usize {
    1
}

impl Scenario {
    pub fn parse(value: Value) -> Result<Self, ScenarioError> {
        let file: File = serde_json::from_value(value).map_err(ScenarioError::Decode)?;
        let scenario = Self {
            until: duration("until", &file.until)?,
            nodes: file.nodes.iter().map(node).collect::<Result<_, _>>()?,
            groups: file.groups.iter().map(group).collect::<Result<_, _>>()?,
            policies: file.policies.iter().map(policy).collect::<Result<_, _>>()?,
            name: file.name,
            seed: file.seed,
        };
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let nodes = self.nodes.iter().fold(0usize, |sum, kind| sum.saturating_add(kind.count));
        if nodes == 0 || nodes > NODES_MAX {
            return Err(invalid("nodes", format!("{nodes} nodes; from 1 to {NODES_MAX} can be simulated")));
        }
        let jobs =
            self.groups.iter().fold(0usize, |sum, group| sum.saturating_add(group.jobs.saturating_mul(group.pods)));
        if jobs > JOBS_MAX {
            return Err(invalid("groups", format!("{jobs} pods; up to {JOBS_MAX} can be simulated")));
        }
        match self.groups.iter().find(|group| group.containers.is_empty() || group.pods == 0) {
            Some(group) => Err(invalid("groups", format!("{} has no containers or no pods", group.name))),
            None => Ok(()),
        }
    }
}

fn invalid(field: &str, problem: impl Into<String>) -> ScenarioError {
    ScenarioError::Invalid { field: field.to_owned(), problem: problem.into() }
}

fn duration(field: &str, text: &str) -> Result<Duration, ScenarioError> {
    parse_duration(text).ok_or_else(|| invalid(field, format!("{text:?} is not a duration")))
}

fn optional(field: &str, text: Option<&String>) -> Result<Option<Duration>, ScenarioError> {
    text.map(|text| duration(field, text)).transpose()
}

/// A quantity as text, or as a plain number, as YAML has it both ways.
fn quantity(field: &str, value: &Value) -> Result<Option<Quantity>, ScenarioError> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Quantity::parse(&text).map(Some).map_err(|cause| ScenarioError::Quantity { field: field.to_owned(), text, cause })
}

fn amounts(cpu: &Value, memory: &Value) -> Result<Amounts, ScenarioError> {
    Ok(Amounts {
        milli_cpu: quantity("cpu", cpu)?.map_or(0, |quantity| quantity.milli()),
        memory: quantity("memory", memory)?.map_or(0, |quantity| quantity.value()),
    })
}

fn node(file: &FileNode) -> Result<NodeKind, ScenarioError> {
    Ok(NodeKind { name: file.name.clone(), count: file.count, size: amounts(&file.cpu, &file.memory)? })
}

fn group(file: &FileGroup) -> Result<Group, ScenarioError> {
    let arrivals = match (&file.at, &file.every, &file.poisson) {
        (at, None, None) => Arrivals::At(optional("at", at.as_ref())?.unwrap_or_default()),
        (None, Some(every), None) => Arrivals::Every(duration("every", every)?),
        (None, None, Some(mean)) => Arrivals::Poisson(duration("poisson", mean)?),
        _ => return Err(invalid("groups", format!("{} says more than one of at, every and poisson", file.name))),
    };
    let containers = file.containers.iter().map(|one| amounts(&one.cpu, &one.memory)).collect::<Result<_, _>>()?;
    Ok(Group {
        name: file.name.clone(),
        jobs: file.jobs,
        pods: file.pods,
        containers,
        arrivals,
        duration: optional("duration", file.duration.as_ref())?,
        random_duration: file.random_duration,
        priority: file.priority,
    })
}

fn policy(file: &FilePolicy) -> Result<PolicyKind, ScenarioError> {
    let default = |text: &Option<String>, field: &str, otherwise: Duration| -> Result<Duration, ScenarioError> {
        Ok(optional(field, text.as_ref())?.unwrap_or(otherwise))
    };
    Ok(match file.kind.as_str() {
        "pod" => PolicyKind::Pod,
        "gang" => PolicyKind::Gang,
        "borg" => PolicyKind::Borg { cells: file.cells.unwrap_or(2).max(1) },
        "swarm" => PolicyKind::Swarm { strategy: file.strategy.unwrap_or(Strategy::Spread) },
        "mesos" => PolicyKind::Mesos { hold: optional("hold", file.hold.as_ref())? },
        "omega" => PolicyKind::Omega {
            schedulers: file.schedulers.unwrap_or(2).max(1),
            conflict: file.conflict.unwrap_or(Conflict::Fine),
            // The Omega paper's service scheduler: 0.1 s a job and 5 ms a task.
            decision: default(&file.decision, "decision", Duration::from_millis(100))?,
            per_pod: default(&file.per_pod, "perPod", Duration::from_millis(5))?,
        },
        other => return Err(invalid("policies", format!("{other:?} is not a policy"))),
    })
}
