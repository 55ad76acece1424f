//! What happens in a history, step by step.

use carob_api::storage::SELECTED_NODE;
use carob_client::snapshots::VolumeSnapshot;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{CONTROLLERS, Cluster, NODES, from, settle};
use crate::drive::Step;
use crate::gate::{Fate, RESOURCES};
use crate::kubelet::Looked;
use crate::oracle::{Oracle, Seen};

/// Numbers of steps' kinds.
pub(crate) const KINDS: u64 = 44;
const CLAIMS: u64 = 4;
const PODS: u64 = 4;
const SNAPSHOTS: u64 = 2;
/// More steps on the disk than any one piece of work has.
const DISK_STEPS_MAX: u64 = 12;
/// Writes that pass after a step are fewer than these.
const PASSES_MAX: u64 = 12;
/// Rounds in which all that is to come to an end has to.
const ROUNDS_MAX: usize = 40;
/// The environment variable that has each step shown as it is done.
const SHOW: &str = "CAROB_SOAK_SHOW";

struct History {
    cluster: Cluster,
    oracle: Oracle,
    /// Counts what Pods write.
    count: u64,
    /// What was done so far, in words.
    told: Vec<String>,
    _root: tempfile::TempDir,
}

pub(crate) async fn run(steps: &[Step]) -> Result<(), String> {
    let root = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(root.path()).await;
    let mut history = History { cluster, oracle: Oracle::default(), count: 0, told: Vec::new(), _root: root };
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

fn pick(number: u64, of: u64) -> usize {
    usize::try_from(number.checked_rem(of).unwrap_or(0)).expect("there are few")
}

fn claim_name(number: u64) -> String {
    format!("c{}", number % CLAIMS)
}

fn snapshot_name(number: u64) -> String {
    format!("s{}", number % SNAPSHOTS)
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn is_kept(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Retain")
}

fn pod_name(number: u64) -> String {
    format!("p{}", number % PODS)
}

impl History {
    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.cluster.client.clone(), "default")
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), "default")
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.cluster.client.clone())
    }

    fn snapshots(&self) -> Api<VolumeSnapshot> {
        Api::namespaced(self.cluster.client.clone(), "default")
    }

    fn tell(&mut self, what: impl Into<String>) {
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
        self.oracle.check(&self.cluster, &Seen::of(&self.cluster).await)
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
            0..=3 => self.make_claim(a, b).await,
            4..=7 => self.make_pod(a, b).await,
            8..=12 => self.schedule(a, b).await,
            13..=17 => self.look(a).await?,
            18..=19 => self.delete_pod(a, b).await,
            20..=21 => self.delete_claim(a).await,
            22..=24 => self.end_process(a, b).await,
            25..=27 => self.begin_process(a).await,
            28 => self.hold(a, b),
            29 => self.let_go(a),
            30 => self.cluster.sweep(pick(a, 2)).await,
            31 => self.grow(a, b).await,
            32..=33 => self.make_copy(a, b).await,
            34..=35 => self.make_snapshot(a, b).await,
            36 => self.delete_snapshot(a).await,
            37 => self.keep(a).await,
            38 => self.delete_volume(a).await,
            39 => self.reuse(a).await,
            _ => drop(self.pass(a)),
        }
        Ok(())
    }

    async fn make_claim(&mut self, a: u64, b: u64) {
        let class = ["local", "local", "kept", "now", "now-kept"][pick(b, 5)];
        let mode = if (b / 5).is_multiple_of(4) { "Block" } else { "Filesystem" };
        let name = claim_name(a);
        let claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode,
            "storageClassName": class, "resources": {"requests": {"storage": "64Ki"}}}});
        if self.claims().create(&PostParams::default(), &from(claim)).await.is_ok() {
            self.tell(format!("claim {name} of {class}, {mode}"));
        }
    }

    async fn make_pod(&mut self, a: u64, b: u64) {
        let name = pod_name(a);
        let Some(held) = self.some_claim(b).await else { return };
        let claim = held.metadata.name.clone().unwrap_or_default();
        let block = held.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block");
        let mut container = json!({"name": "main", "image": "i"});
        if block {
            container["volumeDevices"] = json!([{"name": "v", "devicePath": "/dev/v"}]);
        } else {
            container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }
        let pod = json!({"metadata": {"name": name}, "spec": {"automountServiceAccountToken": false,
            "schedulerName": "nobody", "containers": [container],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
        if self.pods().create(&PostParams::default(), &from(pod)).await.is_ok() {
            self.tell(format!("pod {name} with {claim}"));
        }
    }

    async fn schedule(&mut self, a: u64, b: u64) {
        for pod in 0..PODS {
            self.schedule_pod(&pod_name(a + pod), b).await;
        }
    }

    /// As a scheduler does it: chooses a node for the claim, and once the claim is bound, binds the Pod to where its volume is.
    async fn schedule_pod(&mut self, name: &str, b: u64) {
        let Some(pod) = self.pods().get_opt(name).await.expect("it answers") else { return };
        let spec = pod.spec.clone().unwrap_or_default();
        if spec.node_name.is_some() || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let mut sources = spec.volumes.iter().flatten().filter_map(|volume| volume.persistent_volume_claim.clone());
        let Some(source) = sources.next_back() else { return };
        let Some(claim) = self.claims().get_opt(&source.claim_name).await.expect("it answers") else { return };
        let spec = claim.spec.clone().unwrap_or_default();
        if claim.metadata.deletion_timestamp.is_some() {
            return;
        }
        let phase = claim.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        if phase != "Bound" {
            let delayed = spec.storage_class_name.as_deref().is_some_and(|class| matches!(class, "local" | "kept"));
            if !delayed || spec.volume_name.is_some() {
                return;
            }
            let node = NODES[pick(b, 2)];
            let held = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
            // A scheduler changes its choice only when the provisioner has given it back, or the node is gone.
            if held.is_some() && !b.is_multiple_of(7) {
                return;
            }
            let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version,
                "annotations": {SELECTED_NODE: node}}});
            self.patch_claim(&source.claim_name, &patch).await;
            self.tell(format!("{node} is chosen for {}", source.claim_name));
            return;
        }
        let Some(node) = self.node_of(&spec.volume_name.unwrap_or_default()).await else { return };
        let target = ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..Default::default() };
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let body = Binding { metadata, target };
        let bound: Result<Value, kube::Error> =
            self.pods().create_subresource("binding", name, &PostParams::default(), &body).await;
        self.tell(format!("{name} is bound to {node}: {}", bound.is_ok()));
    }

    /// The node whose disk a volume is on.
    async fn node_of(&self, volume: &str) -> Option<&'static str> {
        let volume = self.volumes().get_opt(volume).await.expect("it answers")?;
        let path = crate::kubelet::path_of(&volume);
        let here = self.cluster.hosts.iter().find(|host| path.starts_with(&host.volumes_dir));
        here.map(|host| host.name)
    }

    async fn patch_claim(&self, name: &str, patch: &Value) {
        // Others may have written it meanwhile: then a later step does it.
        drop(self.claims().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await);
    }

    /// A node looks at all Pods.
    async fn look(&mut self, a: u64) -> Result<(), String> {
        for pod in 0..PODS {
            self.look_at(pick(a, 2), &pod_name(pod)).await?;
        }
        Ok(())
    }

    async fn look_at(&mut self, at: usize, pod: &str) -> Result<(), String> {
        let looked: Looked = self.cluster.look_at_pod(at, pod, &mut self.count).await;
        if !looked.what.is_empty() {
            self.tell(looked.what.clone());
        }
        self.oracle.noted(&looked)
    }

    async fn delete_pod(&mut self, a: u64, b: u64) {
        let (name, force) = (pod_name(a), b.is_multiple_of(4));
        let params = if force { DeleteParams::default().grace_period(0) } else { DeleteParams::default() };
        if self.pods().delete(&name, &params).await.is_ok() {
            self.tell(format!("pod {name} is deleted{}", if force { " with force" } else { "" }));
        }
    }

    async fn delete_claim(&mut self, a: u64) {
        let name = claim_name(a);
        if self.claims().delete(&name, &DeleteParams::default()).await.is_ok() {
            self.tell(format!("claim {name} is deleted"));
        }
    }

    async fn grow(&mut self, a: u64, b: u64) {
        let (name, size) = (claim_name(a), format!("{}Ki", 128 * (1 + b % 4)));
        let Some(claim) = self.claims().get_opt(&name).await.expect("it answers") else { return };
        let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version},
            "spec": {"resources": {"requests": {"storage": size}}}});
        let patched = self.claims().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if patched.is_ok() {
            self.tell(format!("{name} asks for {size}"));
        }
    }

    /// A claim that begins with what another one has, or with a snapshot.
    async fn make_copy(&mut self, a: u64, b: u64) {
        let (name, class) = (claim_name(a), ["local", "now"][pick(b, 2)]);
        let (source, mode) = if b.is_multiple_of(3) {
            let of = snapshot_name(b / 3);
            let Some(held) = self.snapshots().get_opt(&of).await.expect("it answers") else { return };
            let claim = held.spec.source.persistent_volume_claim_name.unwrap_or_default();
            let mode = self.mode_of(&claim).await.unwrap_or_else(|| "Filesystem".to_owned());
            (json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": of}), mode)
        } else {
            let Some(held) = self.some_claim(b / 3).await else { return };
            let of = held.metadata.name.clone().unwrap_or_default();
            let mode = held.spec.and_then(|spec| spec.volume_mode).unwrap_or_default();
            (json!({"kind": "PersistentVolumeClaim", "name": of}), mode)
        };
        let claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode,
            "storageClassName": class, "dataSource": source, "resources": {"requests": {"storage": "512Ki"}}}});
        if self.claims().create(&PostParams::default(), &from(claim)).await.is_ok() {
            self.tell(format!("claim {name} of {class}, {mode}, begins with {source}"));
        }
    }

    /// One of the claims that there are.
    async fn some_claim(&self, number: u64) -> Option<PersistentVolumeClaim> {
        let mut all = self.claims().list(&ListParams::default()).await.expect("it answers").items;
        let at = pick(number, u64::try_from(all.len()).expect("there are few"));
        (at < all.len()).then(|| all.swap_remove(at))
    }

    async fn mode_of(&self, claim: &str) -> Option<String> {
        let claim = self.claims().get_opt(claim).await.expect("it answers")?;
        claim.spec?.volume_mode
    }

    async fn make_snapshot(&mut self, a: u64, b: u64) {
        let name = snapshot_name(a);
        let Some(claim) = self.some_claim(b).await.and_then(|claim| claim.metadata.name) else { return };
        let snapshot = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": name}, "spec": {"source": {"persistentVolumeClaimName": claim}}});
        let made = self.snapshots().create(&PostParams::default(), &from(snapshot)).await;
        if made.is_ok() {
            self.tell(format!("snapshot {name} of {claim}"));
        }
    }

    async fn delete_snapshot(&mut self, a: u64) {
        let name = snapshot_name(a);
        if self.snapshots().delete(&name, &DeleteParams::default()).await.is_ok() {
            self.tell(format!("snapshot {name} is deleted"));
        }
    }

    /// One of the volumes, in the order of their making.
    async fn volume(&self, a: u64) -> Option<PersistentVolume> {
        let mut all = self.volumes().list(&ListParams::default()).await.expect("it answers").items;
        all.sort_by_key(|volume| volume.metadata.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok()));
        let at = pick(a, u64::try_from(all.len()).expect("there are few"));
        (at < all.len()).then(|| all.swap_remove(at))
    }

    /// The user has a volume kept that a claim has. Once it is released, it is too late.
    async fn keep(&mut self, a: u64) {
        let Some(volume) = self.volume(a).await.filter(|volume| phase(volume) == "Bound") else { return };
        let name = volume.metadata.name.clone().unwrap_or_default();
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
        let held = self.claims().get_opt(&claim.name.unwrap_or_default()).await.expect("it answers");
        if held.is_none_or(|held| held.metadata.uid != claim.uid || held.metadata.deletion_timestamp.is_some()) {
            return;
        }
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
        let patched = self.volumes().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        self.tell(format!("{name} is to be kept: {}", patched.is_ok()));
    }

    async fn delete_volume(&mut self, a: u64) {
        let Some(volume) = self.volume(a).await else { return };
        let name = volume.metadata.name.unwrap_or_default();
        let deleted = self.volumes().delete(&name, &DeleteParams::default()).await;
        self.tell(format!("{name} is deleted: {}", deleted.is_ok()));
    }

    /// The user gives a released volume that was kept to whichever claim wants it.
    async fn reuse(&mut self, a: u64) {
        let Some(volume) = self.volume(a).await else { return };
        if !is_kept(&volume) || phase(&volume) != "Released" {
            return;
        }
        let name = volume.metadata.name.clone().unwrap_or_default();
        let patch =
            json!({"metadata": {"resourceVersion": volume.metadata.resource_version}, "spec": {"claimRef": null}});
        if self.volumes().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
            self.oracle.given_away(&crate::kubelet::path_of(&volume));
            self.tell(format!("{name} is free for any claim"));
        }
    }

    /// Answers whether a write waited.
    fn pass(&mut self, number: u64) -> bool {
        let passed = self.cluster.gate.pass(None, number, Fate::Answered);
        let any = passed.is_some();
        if let Some(what) = passed {
            self.tell(what);
        }
        any
    }

    async fn end_process(&mut self, a: u64, b: u64) {
        let last = (b.is_multiple_of(3)).then_some(b / 3);
        if a.is_multiple_of(3) {
            let done = self.cluster.end_controllers(last).await;
            self.tell(format!("the controllers end, last done: {done:?}"));
            return;
        }
        let at = pick(a / 3, 2);
        if b % 3 == 1 {
            let steps = 1 + b / 3 % DISK_STEPS_MAX;
            if let Some(running) = &self.cluster.hosts[at].running {
                running.process.end_after(steps);
                self.tell(format!("{} will end after {steps} steps on its disk", NODES[at]));
            }
            return;
        }
        let done = self.cluster.end_host(at, last).await;
        self.tell(format!("{} ends, last done: {done:?}", NODES[at]));
    }

    async fn begin_process(&mut self, a: u64) {
        match pick(a, 3) {
            0 => self.cluster.begin_controllers(),
            at => {
                self.cluster.begin_host(at - 1).await;
                self.cluster.sweep(at - 1).await;
            }
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

    /// All processes run and all objects are deleted: then nothing is left.
    async fn end(&mut self) -> Result<(), String> {
        self.tell("the end: all processes run, and all objects are deleted");
        for at in 0..NODES.len() {
            if let Some(running) = &self.cluster.hosts[at].running {
                running.process.go_on();
            }
        }
        self.cluster.gate.open();
        self.cluster.begin_controllers();
        for at in 0..NODES.len() {
            self.cluster.begin_host(at).await;
        }
        self.round().await?;
        let mut seen = self.round().await?;
        Oracle::check_sizes(&seen)?;
        let all = ListParams::default();
        self.pods().delete_collection(&DeleteParams::default(), &all).await.expect("deleted");
        self.snapshots().delete_collection(&DeleteParams::default(), &all).await.expect("deleted");
        self.claims().delete_collection(&DeleteParams::default(), &all).await.expect("deleted");
        for _ in 0..ROUNDS_MAX {
            seen = self.round().await?;
            let released = |volume: &&PersistentVolume| {
                is_kept(volume) && phase(volume) != "Bound" && volume.metadata.deletion_timestamp.is_none()
            };
            for volume in seen.volumes.iter().filter(released) {
                let name = volume.metadata.name.clone().unwrap_or_default();
                self.volumes().delete(&name, &DeleteParams::default()).await.expect("deleted");
            }
            if self.oracle.check_end(&self.cluster, &seen).is_ok() {
                return Ok(());
            }
        }
        self.oracle.check_end(&self.cluster, &seen)
    }

    /// Lets everything go on for a while, the nodes' Pods included.
    async fn round(&mut self) -> Result<Seen, String> {
        for _ in 0..20 {
            settle().await;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        for at in 0..NODES.len() {
            for pod in 0..PODS {
                self.look_at(at, &pod_name(pod)).await?;
            }
            self.cluster.sweep(at).await;
        }
        let seen = Seen::of(&self.cluster).await;
        self.oracle.check(&self.cluster, &seen)?;
        Ok(seen)
    }
}
