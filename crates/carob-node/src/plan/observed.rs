//! What is known of a Pod on this machine, as plain values: the input of the plan and of the status.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::{FailureReason, Resize};
use crate::config::resources::Limits;
use crate::pod::{Member, RestartPolicy};

/// Everything the plan may look at besides the Pod object itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The newest sandbox of the Pod.
    pub sandbox: Option<ObservedSandbox>,
    pub older_sandboxes: Vec<ObservedSandbox>,
    /// Every run of every container that the runtime still knows, newest first.
    pub containers: Vec<ObservedContainer>,
    /// What the probes say, by container id. No entry: no probe has answered yet.
    pub probes: BTreeMap<String, ProbeFacts>,
    pub volumes: Volumes,
    /// Why the last try to make the sandbox failed.
    pub sandbox_failure: Option<Failure>,
    /// Why the last try to start a container failed, by container name.
    pub start_failures: BTreeMap<String, Failure>,
    pub busy: Busy,
    pub resize: Resize,
    /// When the node first saw that the Pod has to end.
    pub stopping_since: Option<Timestamp>,
    /// When the Pod has to be over once it ends, whatever grace it asks for: the machine goes then.
    pub end_by: Option<Timestamp>,
    /// How many times all containers of the Pod have started over. Runs that began before the last time are outdated.
    pub cycle: u32,
    /// All that the Pod held on this machine, save its dead containers, is given back.
    pub finished: bool,
}

/// What is being done for the Pod at this moment. The plan never asks for the same thing twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Busy {
    /// Making or stopping the sandbox, or giving all back.
    pub pod: bool,
    /// Mounting volumes.
    pub volumes: bool,
    /// Names of containers that are being started, hooks included.
    pub starting: BTreeSet<String>,
    /// Containers that are being killed, with the moment by which they will be gone.
    pub killing: BTreeMap<String, Timestamp>,
    /// Containers that are being removed.
    pub removing: BTreeSet<String>,
    /// Limits of the Pod or of its containers are being changed.
    pub resizing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedSandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    pub attempt: u32,
    pub created_at: Timestamp,
    pub phase: ContainerPhase,
    /// The image as the runtime names it, and the id of what was run.
    pub image: String,
    pub image_ref: String,
    /// Back-off that was in force when this run was started; zero for a first run.
    pub restart_delay: Duration,
    /// [`Observed::cycle`] when this run was started.
    pub cycle: u32,
    /// Hash of the part of the spec that cannot change under a running container: its image.
    pub spec_hash: String,
    /// uid, gid and supplementary groups of the first process, where the runtime tells.
    pub user: Option<ObservedUser>,
    /// What it may use, where the runtime tells.
    pub limits: Option<Limits>,
    /// Bytes that it requested when it was made, where that is known.
    pub memory_request: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedUser {
    pub uid: i64,
    pub gid: i64,
    pub supplemental_groups: Vec<i64>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerPhase {
    Created,
    Running {
        started_at: Timestamp,
    },
    Exited(Exit),
    /// The runtime does not know either.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub reason: String,
    /// The termination message, cut to its limits.
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

impl ObservedContainer {
    pub fn is_running(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running { .. })
    }

    pub fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            ContainerPhase::Exited(exit) => Some(exit),
            ContainerPhase::Created | ContainerPhase::Running { .. } | ContainerPhase::Unknown => None,
        }
    }
}

/// The verdicts of a container's probes so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProbeFacts {
    pub startup: Option<bool>,
    pub liveness: Option<bool>,
    pub readiness: Option<bool>,
}

impl ProbeFacts {
    /// The same, with what `older` says where there is no verdict yet.
    pub fn or(self, older: Self) -> Self {
        Self {
            startup: self.startup.or(older.startup),
            liveness: self.liveness.or(older.liveness),
            readiness: self.readiness.or(older.readiness),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Volumes {
    #[default]
    Absent,
    Mounted,
    Failed(Failure),
}

/// A step that failed and may be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureReason,
    pub message: String,
    pub retry_at: Timestamp,
}

impl Observed {
    /// The newest run of a container, in whichever sandbox.
    pub fn newest(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest run of a container in the current sandbox, unless it is outdated.
    pub fn current(&self, name: &str) -> Option<&ObservedContainer> {
        let sandbox = self.sandbox.as_ref()?;
        self.newest(name).filter(|run| run.sandbox_id == sandbox.id && !self.is_outdated(run))
    }

    /// Whether all containers of the Pod have started over, or are to, since this run began.
    pub fn is_outdated(&self, run: &ObservedContainer) -> bool {
        run.cycle < self.cycle
    }

    /// How the newest run of a container ended, if that run is its last: an outdated one is followed by another.
    pub fn ended_for_good(&self, member: &Member<'_>, policy: RestartPolicy) -> Option<&Exit> {
        let run = self.newest(member.name()).filter(|run| !self.is_outdated(run))?;
        run.exit().filter(|exit| !member.restarts_after(policy, exit.code))
    }

    pub fn probe(&self, id: &str) -> ProbeFacts {
        self.probes.get(id).copied().unwrap_or_default()
    }

    pub fn running(&self) -> impl Iterator<Item = &ObservedContainer> {
        self.containers.iter().filter(|container| container.is_running())
    }
}
