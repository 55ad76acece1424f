//! Carries out the steps of a plan, each as a task, and takes in how they ended.

use std::sync::Arc;

use carob_cri::CriError;
use carob_kit::chain;
use jiff::Timestamp;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::kill::{self, Kill};
use super::resize::ResizeError;
use super::sandbox::{self, CleanError, SandboxError};
use super::start::{self, Start, Started};
use super::{Killing, Worker};
use crate::config::resources::{self, Limits};
use crate::events::Subject;
use crate::plan::{Failure, FailureReason, Group, Intent, KillReason, PodAction, Volumes, after, spec_hash};
use crate::pod::PodView;
use crate::volumes::payload::references;
use crate::volumes::{MountError, Mounted, UnmountError};

/// Time until volumes that failed are tried again, or refreshed again (kubelet `reconcilerSyncLoop` and back-off, about).
const VOLUMES_RETRY: std::time::Duration = std::time::Duration::from_secs(2);

/// How a step ended.
pub(super) enum Done {
    Mounted(Result<Mounted, MountError>),
    Refreshed(Result<Mounted, MountError>),
    Sandbox(Result<(), SandboxError>),
    Stopped(Result<(), CriError>),
    Started { name: String, spec_hash: String, how: Started },
    Killed { id: String, deadline: Timestamp, how: Result<(), CriError> },
    Removed { id: String, how: Result<(), CleanError> },
    PodLimited { limits: Option<Limits>, how: Result<(), ResizeError> },
    Resized(Result<(), ResizeError>),
    Finished(Result<(), UnmountError>),
    Wrote(Box<super::report::Wrote>),
    Confirmed(Result<(), crate::api::WriteError>),
}

impl Worker {
    pub(super) fn carry_out(&mut self, actions: Vec<PodAction>) {
        self.hold_until = None;
        for action in actions {
            match action {
                PodAction::MountVolumes => self.mount(),
                PodAction::CreateSandbox { attempt, replaces } => self.create_sandbox(attempt, replaces),
                PodAction::StartContainer { name, attempt, restart_delay } => {
                    self.start(name, attempt, restart_delay);
                }
                PodAction::KillContainer { id, name, deadline, reason } => self.kill(id, name, deadline, reason),
                PodAction::RemoveContainer { id, name, attempt } => self.remove_run(id, name, attempt),
                PodAction::RemoveSandbox { id } => self.remove_sandbox(id),
                PodAction::StopSandbox { id } => {
                    self.observed.busy.pod = true;
                    let tools = Arc::clone(&self.tools);
                    self.steps.spawn(async move { Done::Stopped(sandbox::stop(&tools, &id).await) });
                }
                PodAction::LimitPod { limits } => self.limit_pod(limits),
                PodAction::Resize { changes } => self.resize(changes),
                PodAction::Finish => self.finish(),
            }
        }
    }

    fn mount(&mut self) {
        self.observed.busy.volumes = true;
        self.mounted.refresh_at = None;
        let (tools, pod) = (Arc::clone(&self.tools), Arc::clone(&self.pod));
        let facts = tools.field_facts(&pod, &self.pod_ips());
        self.steps.spawn(async move { Done::Mounted(tools.volumes.mount(&pod, &facts).await) });
    }

    /// Brings the files of volumes up to date when their time has come.
    pub(super) fn refresh_volumes(&mut self, intent: Intent, now: Timestamp) {
        let due = self.mounted.refresh_at.is_some_and(|at| at <= now);
        if !due || self.refreshing || !self.volumes_mounted() || intent != Intent::Run {
            return;
        }
        self.refreshing = true;
        self.mounted.refresh_at = None;
        let (tools, pod) = (Arc::clone(&self.tools), Arc::clone(&self.pod));
        let facts = tools.field_facts(&pod, &self.pod_ips());
        self.steps.spawn(async move { Done::Refreshed(tools.volumes.mount(&pod, &facts).await) });
    }

    pub(super) fn refresh_at(&self) -> Option<Timestamp> {
        self.mounted.refresh_at.filter(|_| !self.refreshing && self.volumes_mounted() && self.stopping.is_none())
    }

    fn pod_ips(&self) -> Vec<std::net::IpAddr> {
        self.observed.sandbox.as_ref().map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }

    fn create_sandbox(&mut self, attempt: u32, replaces: Option<String>) {
        self.observed.busy.pod = true;
        let (tools, pod) = (Arc::clone(&self.tools), Arc::clone(&self.pod));
        // A quantity that cannot be read fails the sandbox too, which tells of it.
        self.observed.resize.group = resources::pod(&pod).map_or(Group::AsMade, |made| Group::Set(Limits::of(&made)));
        self.steps.spawn(async move { Done::Sandbox(sandbox::create(&tools, &pod, attempt, replaces).await) });
    }

    fn start(&mut self, name: String, attempt: u32, restart_delay: std::time::Duration) {
        let Some(sandbox) = &self.observed.sandbox else { return };
        let target = PodView::new(&self.pod).member(&name).and_then(|member| member.target.map(str::to_owned));
        let target_id = target.and_then(|target| self.observed.current(&target).map(|run| run.id.clone()));
        let stop = CancellationToken::new();
        let start = Start {
            pod: Arc::clone(&self.pod),
            name: name.clone(),
            attempt,
            restart_delay,
            cycle: self.observed.cycle,
            sandbox_id: sandbox.id.clone(),
            sandbox_attempt: sandbox.attempt,
            pod_ips: sandbox.ips.clone(),
            mounted: self.mounted.clone(),
            target_id,
            attempts: Arc::clone(&self.attempts),
            stop: stop.clone(),
        };
        self.observed.busy.starting.insert(name.clone());
        self.starting.insert(name.clone(), stop);
        let tools = Arc::clone(&self.tools);
        let spec_hash = PodView::new(&self.pod).member(&name).map(|member| spec_hash(&member)).unwrap_or_default();
        self.steps.spawn(async move {
            let how = start::run(&tools, start).await;
            Done::Started { name, spec_hash, how }
        });
    }

    fn kill(&mut self, id: String, name: String, deadline: Timestamp, reason: KillReason) {
        let overtaken = CancellationToken::new();
        let before = self.killing.insert(id.clone(), Killing { deadline, overtaken: overtaken.clone() });
        let announce = before.is_none();
        if let Some(slower) = before {
            slower.overtaken.cancel();
        }
        self.observed.busy.killing.insert(id.clone(), deadline);
        let kill = Kill {
            pod: Arc::clone(&self.pod),
            id: id.clone(),
            name,
            deadline,
            reason,
            pod_ips: self.pod_ips(),
            overtaken,
            announce,
        };
        let tools = Arc::clone(&self.tools);
        self.steps.spawn(async move { Done::Killed { id, deadline, how: kill::run(&tools, &kill).await } });
    }

    fn remove_run(&mut self, id: String, name: String, attempt: u32) {
        self.observed.busy.removing.insert(id.clone());
        let (tools, pod) = (Arc::clone(&self.tools), self.id.clone());
        self.steps.spawn(async move {
            let how = sandbox::remove_run(&tools, &pod, &id, &name, attempt).await;
            Done::Removed { id, how }
        });
    }

    fn remove_sandbox(&mut self, id: String) {
        self.observed.busy.removing.insert(id.clone());
        let tools = Arc::clone(&self.tools);
        self.steps.spawn(async move {
            let how = sandbox::remove(&tools, &id).await.map_err(CleanError::from);
            Done::Removed { id, how }
        });
    }

    fn finish(&mut self) {
        self.observed.busy.pod = true;
        let (tools, uid) = (Arc::clone(&self.tools), self.id.uid.clone());
        self.steps.spawn(async move { Done::Finished(tools.volumes.unmount(&uid).await) });
    }

    /// Takes in the end of a step.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Mounted(how) => self.mounted(how),
            Done::Refreshed(how) => self.refreshed(how),
            Done::Sandbox(how) => self.sandbox_made(how),
            Done::Stopped(how) => {
                self.observed.busy.pod = false;
                self.stale = true;
                self.settle(how, "stop the sandbox");
            }
            Done::Started { name, spec_hash, how } => self.started(name, &spec_hash, how),
            Done::Killed { id, deadline, how } => self.killed(&id, deadline, how),
            Done::Removed { id, how } => {
                self.observed.busy.removing.remove(&id);
                self.stale = true;
                self.settle(how, "remove what is no longer needed");
            }
            Done::PodLimited { limits, how } => self.pod_limited(limits, how),
            Done::Resized(how) => self.resized(how),
            Done::Finished(how) => {
                self.observed.busy.pod = false;
                self.observed.finished = how.is_ok();
                self.observed.volumes = Volumes::Absent;
                self.watchers.abort_all();
                self.settle(how, "give the volumes back");
            }
            Done::Wrote(wrote) => self.wrote(*wrote),
            Done::Confirmed(how) => self.confirmed(how),
        }
    }

    fn settle<E: std::error::Error + 'static>(&mut self, how: Result<(), E>, what: &str) {
        match how {
            Ok(()) => self.retry.reset(),
            Err(error) => self.hold(&error, what),
        }
    }

    /// A task that panicked: a bug, told of; what it was doing is planned again.
    pub(super) fn lost_step(&mut self, error: &JoinError) {
        self.observed.busy = crate::plan::Busy::default();
        self.starting.clear();
        self.killing.clear();
        if std::mem::take(&mut self.refreshing) {
            self.mounted.refresh_at = Some(after(self.tools.clock.now(), VOLUMES_RETRY));
        }
        self.stale = true;
        self.report.forget_write();
        self.hold(error, "carry out a step");
    }

    fn mounted(&mut self, how: Result<Mounted, MountError>) {
        self.observed.busy.volumes = false;
        match how {
            Ok(mounted) => {
                self.take_mounted(mounted);
                self.observed.volumes = Volumes::Mounted;
                self.watch_volumes();
            }
            Err(error) => {
                self.tell_of_volumes(&error);
                let retry_at = after(self.tools.clock.now(), VOLUMES_RETRY);
                let failure = Failure { reason: FailureReason::PodSetup, message: error.to_string(), retry_at };
                self.observed.volumes = Volumes::Failed(failure);
            }
        }
    }

    /// Has the volumes refreshed whenever an object in them changes.
    fn watch_volumes(&mut self) {
        self.watchers.abort_all();
        for reference in references(&self.pod) {
            let mut watch = self.tools.objects.watch(&reference);
            let changed = Arc::clone(&self.volumes_changed);
            self.watchers.spawn(async move {
                loop {
                    watch.changed().await;
                    changed.notify_one();
                }
            });
        }
        for mut certificate in self.tools.volumes.certificates().changes(&self.id.uid) {
            let changed = Arc::clone(&self.volumes_changed);
            self.watchers.spawn(async move {
                loop {
                    certificate.changed().await;
                    changed.notify_one();
                }
            });
        }
    }

    /// A refresh that fails leaves the old files in place; they are tried again.
    fn refreshed(&mut self, how: Result<Mounted, MountError>) {
        self.refreshing = false;
        match how {
            Ok(mounted) => self.take_mounted(mounted),
            Err(error) => {
                self.tell_of_volumes(&error);
                self.mounted.refresh_at = Some(after(self.tools.clock.now(), VOLUMES_RETRY));
            }
        }
    }

    /// Takes in what the volumes are now. What has changed meanwhile may have been read before, and is due again.
    fn take_mounted(&mut self, mut mounted: Mounted) {
        self.tell_of_growth(&mounted);
        mounted.refresh_at = mounted.refresh_at.into_iter().chain(self.mounted.refresh_at).min();
        self.mounted = mounted;
    }

    fn tell_of_growth(&self, mounted: &Mounted) {
        let node = &self.tools.settings.node_name;
        for volume in &mounted.grown {
            let message = format!("MountVolume.NodeExpandVolume succeeded for volume {volume:?} {node}");
            self.tools.events.normal(&Subject::pod(&self.pod), "FileSystemResizeSuccessful", message);
        }
    }

    fn tell_of_volumes(&self, error: &MountError) {
        let subject = Subject::pod(&self.pod);
        for (reason, message) in error.events() {
            self.tools.events.warning(&subject, reason, message);
        }
    }

    fn sandbox_made(&mut self, how: Result<(), SandboxError>) {
        self.observed.busy.pod = false;
        self.stale = true;
        self.observed.sandbox_failure = match how {
            Ok(()) => {
                self.sandbox_retry.reset();
                None
            }
            Err(error) => {
                let retry_at = after(self.tools.clock.now(), self.sandbox_retry.fail());
                let message = chain(&error).to_string();
                Some(Failure { reason: FailureReason::PodSetup, message, retry_at })
            }
        };
    }

    fn started(&mut self, name: String, of_spec: &str, how: Started) {
        self.observed.busy.starting.remove(&name);
        self.starting.remove(&name);
        self.stale = true;
        match how {
            Started::Yes | Started::Cancelled => {
                self.observed.start_failures.remove(&name);
            }
            Started::Failed(failure) => {
                let current = PodView::new(&self.pod).member(&name).is_some_and(|member| spec_hash(&member) == of_spec);
                if !current {
                    return;
                }
                self.observed.start_failures.insert(name, failure);
            }
        }
    }

    fn killed(&mut self, id: &str, deadline: Timestamp, how: Result<(), CriError>) {
        // A kill that was overtaken ends early; the one that overtook it still runs.
        if self.killing.get(id).is_some_and(|killing| killing.deadline == deadline) {
            self.killing.remove(id);
            self.observed.busy.killing.remove(id);
        }
        self.stale = true;
        self.settle(how, "stop a container");
    }
}
