//! What happens in a history, step by step.

use std::time::Duration;

use carob_client::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, ListParams};

use crate::audit::audit;
use crate::cluster::{CONTROLLERS, Cluster, NODES, settle};
use crate::drive::Step;
use crate::gate::{Fate, RESOURCES};
use crate::oracle::{Oracle, Seen};

/// Numbers of steps' kinds.
pub(crate) const KINDS: u64 = 72;
/// More steps on the disk than any one piece of work has.
const DISK_STEPS_MAX: u64 = 12;
/// Writes that pass after a step are fewer than these.
const PASSES_MAX: u64 = 8;
/// Of so many writes the answer to one comes later.
const LATE_ONCE_IN: u64 = 4;
/// Writes that pass before one is waited for no longer.
const PATIENCE: u64 = 24;
/// Rounds in which all that is to come to an end has to.
const ROUNDS_MAX: usize = 40;
const ROUND: Duration = Duration::from_secs(1);
/// The environment variable that has each step shown as it is done.
const SHOW: &str = "CAROB_SOAK_SHOW";

pub(crate) struct History {
    pub(crate) cluster: Cluster,
    pub(crate) oracle: Oracle,
    /// What the API had when it was last looked at, and how many writes there had been.
    seen: Option<(u64, Seen)>,
    /// Counts what Pods write.
    count: u64,
    /// What was done so far, in words.
    told: Vec<String>,
    _root: tempfile::TempDir,
}

pub(crate) async fn run(steps: &[Step]) -> Result<(), String> {
    let root = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(root.path()).await;
    let oracle = Oracle::default();
    let mut history = History { cluster, oracle, seen: None, count: 0, told: Vec::new(), _root: root };
    let done = history.all(steps).await;
    if std::env::var_os(SHOW).is_some() {
        show(&history.told);
    }
    done.map_err(|problem| format!("{problem}\nafter:\n  {}", history.told.join("\n  ")))
}

#[expect(clippy::print_stdout, reason = "who asks for it wants to read it")]
fn show(told: &[String]) {
    println!("{}", told.join("\n"));
}

pub(crate) fn pick(number: u64, of: u64) -> usize {
    usize::try_from(number.checked_rem(of).unwrap_or(0)).expect("there are few")
}

impl History {
    pub(crate) fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.cluster.client.clone(), "default")
    }

    pub(crate) fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.cluster.client.clone())
    }

    pub(crate) fn snapshots(&self) -> Api<VolumeSnapshot> {
        Api::namespaced(self.cluster.client.clone(), "default")
    }

    pub(crate) fn contents(&self) -> Api<VolumeSnapshotContent> {
        Api::all(self.cluster.client.clone())
    }

    pub(crate) fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    async fn all(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(*step).await?;
            self.check().await?;
            // Some of what it led to is done before the next one.
            let (_, a, b) = *step;
            for number in 0..(a + b) % PASSES_MAX {
                if !self.pass((a ^ b).wrapping_add(number)) {
                    break;
                }
                self.check().await?;
            }
        }
        self.end().await
    }

    async fn check(&mut self) -> Result<(), String> {
        settle().await;
        self.end_what_broke().await;
        let writes = self.cluster.gate.writes();
        if self.seen.as_ref().is_none_or(|(before, _)| *before != writes) {
            self.seen = Some((writes, Seen::of(&self.cluster).await));
        }
        let (_, seen) = self.seen.as_ref().expect("it was looked at");
        self.oracle.check(&self.cluster, seen)
    }

    /// A process that came to its end in the midst of work is gone before anything else happens.
    async fn end_what_broke(&mut self) {
        for (at, name) in NODES.into_iter().enumerate() {
            if self.cluster.hosts[at].running.as_ref().is_some_and(|running| running.process.has_ended()) {
                self.tell(format!("{name} ended in the midst"));
                self.cluster.end_host(at, None).await;
            }
        }
    }

    async fn step(&mut self, (what, a, b): Step) -> Result<(), String> {
        match what {
            0..=4 => self.make_claim(a, b).await,
            5..=8 => self.make_pod(a, b).await,
            9..=11 => self.schedule(b).await,
            12..=14 => self.look(pick(a, 2)).await?,
            15..=16 => self.delete_pod(a, b).await,
            17..=19 => self.delete_claim(a).await,
            20..=22 => self.end_process(a, b).await,
            23..=27 => self.end_at_write(a, b).await?,
            28..=30 => self.begin_process(pick(a, 3), b).await,
            31 => self.hold(a, b),
            32 => self.let_go(a),
            33 => self.cluster.sweep(pick(a, 2)).await,
            34..=35 => self.grow(a, b).await,
            36..=38 => self.make_copy(a, b).await,
            39..=41 => self.make_snapshot(a, b).await,
            42..=43 => self.delete_snapshot(a).await,
            44 => self.delete_content(a).await,
            45..=46 => self.change_policy(a, b).await,
            47 => self.delete_volume(a).await,
            48..=49 => self.reuse(a).await,
            50..=51 => self.make_volume(a, b).await,
            52..=61 => self.go_on(a, 2 + b % PATIENCE).await?,
            62..=65 => self.end_at_look(pick(a, 2), 1 + b % 4).await?,
            66..=68 => self.hold(a, b),
            69 => self.let_go(a),
            _ => {
                self.tell("all processes run");
                self.come_to_rest().await?;
                self.cluster.gate.close();
            }
        }
        Ok(())
    }

    /// A node looks at all Pods.
    async fn look(&mut self, at: usize) -> Result<(), String> {
        for pod in self.cluster.pods().list(&ListParams::default()).await.expect("it answers").items {
            let looked = self.cluster.look_at_pod(at, pod, &mut self.count).await;
            if !looked.what.is_empty() {
                self.tell(looked.what.clone());
            }
            self.oracle.noted(&looked)?;
        }
        Ok(())
    }

    /// Answers whether a write waited.
    fn pass(&mut self, number: u64) -> bool {
        let fate = if (number / LATE_ONCE_IN).is_multiple_of(LATE_ONCE_IN) { Fate::Late } else { Fate::Answered };
        let passed = self.cluster.gate.pass(None, number, fate);
        let any = passed.is_some();
        if let Some(what) = passed {
            self.tell(what);
        }
        any
    }

    /// Scheduler and nodes do what there is for them to do.
    async fn work(&mut self, b: u64) -> Result<(), String> {
        self.schedule(b).await;
        for at in 0..NODES.len() {
            self.look(at).await?;
            self.cluster.sweep(at).await;
        }
        self.check().await
    }

    /// So many writes pass, as long as there are any.
    async fn go_on(&mut self, a: u64, writes: u64) -> Result<(), String> {
        for number in 0..writes {
            if !self.pass(a.wrapping_add(number)) {
                self.work(a).await?;
                if !self.pass(a) {
                    return Ok(());
                }
            }
            self.check().await?;
        }
        Ok(())
    }

    async fn end_process(&mut self, a: u64, b: u64) {
        let last = (b.is_multiple_of(3)).then_some(b / 3);
        if a.is_multiple_of(3) {
            self.end_controllers(last).await;
            return;
        }
        let at = pick(a / 3, 2);
        if b % 3 == 1 {
            let (steps, ends) = (1 + b / 3 % DISK_STEPS_MAX, (a / 6).is_multiple_of(2));
            if let Some(running) = &self.cluster.hosts[at].running {
                if ends {
                    running.process.end_after(steps)
                } else {
                    running.process.fail_after(steps)
                }
                let what = if ends { "end" } else { "fail" };
                self.tell(format!("{} will {what} after {steps} steps on its disk", NODES[at]));
            }
            return;
        }
        self.end_host(at, last).await;
    }

    async fn end_controllers(&mut self, last: Option<u64>) {
        let done = self.cluster.end_controllers(last).await;
        self.tell(format!("the controllers end, last done: {done:?}"));
    }

    async fn end_host(&mut self, at: usize, last: Option<u64>) {
        let done = self.cluster.end_host(at, last).await;
        self.tell(format!("{} ends, last done: {done:?}", NODES[at]));
    }

    /// Ends a process where it is about to write, which is after what it did on its disk, or has just written.
    async fn end_at_write(&mut self, a: u64, b: u64) -> Result<(), String> {
        let who = pick(a, 3);
        let name = [NODES[0], NODES[1], CONTROLLERS][who];
        for number in 0..PATIENCE {
            if self.cluster.gate.has_of(name) {
                let last = b.is_multiple_of(2).then_some(b / 2);
                if who < NODES.len() {
                    self.end_host(who, last).await
                } else {
                    self.end_controllers(last).await
                }
                break;
            }
            if !self.pass(b.wrapping_add(number)) {
                self.work(b).await?;
            }
            self.check().await?;
        }
        if (b / 2).is_multiple_of(2) {
            self.begin_process((1 + who) % 3, b / 4).await;
        }
        Ok(())
    }

    /// Ends a node in the midst of what it does for Pods.
    async fn end_at_look(&mut self, at: usize, steps: u64) -> Result<(), String> {
        if let Some(running) = &self.cluster.hosts[at].running {
            running.process.end_after(steps);
            self.tell(format!("{} will end after {steps} steps", NODES[at]));
        }
        self.look(at).await?;
        self.cluster.sweep(at).await;
        Ok(())
    }

    /// Begins the controllers, or a node, which may end again in the midst of what it does first.
    async fn begin_process(&mut self, which: usize, b: u64) {
        let Some(at) = which.checked_sub(1) else { return self.cluster.begin_controllers() };
        let end_after = b.is_multiple_of(3).then_some(1 + b / 3 % DISK_STEPS_MAX);
        let runs = self.cluster.begin_host(at, end_after).await;
        if let Some(steps) = end_after {
            self.tell(format!("{} begins, and will end after {steps} steps on its disk; it runs: {runs}", NODES[at]));
        }
        if (b / 3).is_multiple_of(2) {
            self.cluster.sweep(at).await;
        }
    }

    fn hold(&mut self, a: u64, b: u64) {
        let who = [CONTROLLERS, NODES[0], NODES[1]][pick(a, 3)];
        let resource = RESOURCES[pick(b, 5)];
        self.cluster.gate.hold(who, resource, true);
        self.tell(format!("{who} sees no changes of {resource} for now"));
    }

    fn let_go(&mut self, a: u64) {
        for resource in RESOURCES {
            self.cluster.gate.hold([CONTROLLERS, NODES[0], NODES[1]][pick(a, 3)], resource, false);
        }
    }

    /// All processes run until nothing is left to do, and everything has what it is for.
    async fn come_to_rest(&mut self) -> Result<(), String> {
        self.end_what_broke().await;
        for host in &self.cluster.hosts {
            if let Some(running) = &host.running {
                running.process.go_on();
            }
        }
        self.cluster.gate.open();
        self.cluster.begin_controllers();
        for at in 0..NODES.len() {
            self.cluster.begin_host(at, None).await;
        }
        let mut audited = Ok(());
        for _ in 0..ROUNDS_MAX {
            tokio::time::sleep(ROUND).await;
            self.work(0).await?;
            tokio::time::sleep(ROUND).await;
            self.check().await?;
            let (_, seen) = self.seen.as_ref().expect("it was looked at");
            audited = audit(&self.cluster, &self.oracle, seen);
            if audited.is_ok() {
                break;
            }
        }
        audited
    }

    /// All objects are deleted, kind by kind: then nothing is left.
    async fn end(&mut self) -> Result<(), String> {
        self.tell("the end: all processes run, and all objects are deleted");
        self.come_to_rest().await?;
        let (now, all) = (DeleteParams::default(), ListParams::default());
        self.cluster.pods().delete_collection(&now, &all).await.expect("deleted");
        self.come_to_rest().await?;
        self.snapshots().delete_collection(&now, &all).await.expect("deleted");
        self.claims().delete_collection(&now, &all).await.expect("deleted");
        self.come_to_rest().await?;
        self.volumes().delete_collection(&now, &all).await.expect("deleted");
        self.come_to_rest().await?;
        let (_, seen) = self.seen.as_ref().expect("it was looked at");
        let left = seen.claims.len() + seen.volumes.len() + seen.snapshots.len() + seen.contents.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} objects are left at the end")) }
    }
}
