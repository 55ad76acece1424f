//! A volume for a Pod: attached, staged, published, given to the Pod's group.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode};
use carob_csi::{Capabilities, v1};
use carob_kit::fs::make_private;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::CSIDriver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::attached::attached;
use super::drivers::Registered;
use super::error::{ATTACH, CsiError, SET_UP, STAGE};
use super::paths::{VolumeId, ephemeral_handle, target};
use super::records::{self, Record};
use super::{Csi, Inner};
use crate::objects::TokenWish;
use crate::plan::after;
use crate::volumes::ownership::{self, Group};

/// How long a volume is waited for before its Pod says what it waits for. The operation goes on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a volume is published again where its driver asks for that (`requiresRepublish`; a kubelet does it with each look
/// at the Pod).
const REPUBLISH_EVERY: Duration = Duration::from_secs(60);
/// Lifetime of a token for which the driver names none (the API's default).
const TOKEN_LIFETIME_S: i64 = 3600;
/// Of all that a Pod's containers are shown, only root and the driver have to get here.
pub(super) const DIR_MODE: u32 = 0o750;

/// What a volume is made from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A volume that lasts, behind a claim.
    Persistent(Arc<PersistentVolume>, Box<CSIPersistentVolumeSource>),
    /// One that begins and ends with its Pod, by its name in the Pod.
    Ephemeral(String, Box<CSIVolumeSource>),
}

/// A volume that a Pod needs.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) pod: Arc<Pod>,
    pub(crate) source: Source,
    pub(crate) read_only: bool,
    pub(crate) group: Option<u32>,
    pub(crate) on_root_mismatch: bool,
    /// Its containers get it as a device.
    pub(crate) block: bool,
}

/// A volume that a Pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) path: PathBuf,
    /// When it has to be published again.
    pub(crate) refresh_at: Option<Timestamp>,
    /// Who knows how full it is.
    pub(super) volume: VolumeId,
}

/// As a driver is told things.
pub(super) type Words = BTreeMap<String, String>;

type Outcome = Result<Published, Arc<CsiError>>;

/// Work on one volume of one Pod.
pub(super) struct Operation {
    done: watch::Receiver<Option<Outcome>>,
    /// The Pod ends: what is waited for comes too late. A call that was made is heard to its end.
    end: CancellationToken,
    /// What it waits for.
    doing: Mutex<&'static str>,
}

impl Operation {
    fn doing(&self) -> &'static str {
        *self.doing.lock().expect("no holder panics")
    }

    fn now(&self, what: &'static str) {
        *self.doing.lock().expect("no holder panics") = what;
    }

    /// Ends the operation as soon as that is possible, and waits for its end.
    pub(super) async fn end(&self) {
        self.end.cancel();
        let mut done = self.done.clone();
        // A task that panicked has ended too.
        let _ended = done.wait_for(Option::is_some).await.is_ok();
    }
}

impl Wanted {
    pub(super) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(super) fn name(&self) -> &str {
        match &self.source {
            Source::Persistent(volume, _) => volume.metadata.name.as_deref().unwrap_or_default(),
            Source::Ephemeral(name, _) => name,
        }
    }

    pub(super) fn volume(&self) -> VolumeId {
        match &self.source {
            Source::Persistent(_, source) => {
                VolumeId { driver: source.driver.clone(), handle: source.volume_handle.clone() }
            }
            Source::Ephemeral(name, source) => {
                VolumeId { driver: source.driver.clone(), handle: ephemeral_handle(self.uid(), name) }
            }
        }
    }

    /// What is written down of the volume before its driver hears of it.
    pub(super) fn record(&self, volume: &VolumeId, node_name: &str) -> Record {
        Record {
            name: self.name().to_owned(),
            volume_handle: volume.handle.clone(),
            driver_name: volume.driver.clone(),
            node_name: node_name.to_owned(),
            volume_lifecycle_mode: self.mode().to_owned(),
            attachment_id: volume.attachment(node_name),
            fs_group: String::new(),
        }
    }

    pub(super) fn mode(&self) -> &'static str {
        match self.source {
            Source::Persistent(..) => "Persistent",
            Source::Ephemeral(..) => "Ephemeral",
        }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        match &self.source {
            Source::Persistent(_, source) => source.volume_attributes.clone(),
            Source::Ephemeral(_, source) => source.volume_attributes.clone(),
        }
        .unwrap_or_default()
    }

    fn fs_type(&self) -> String {
        match &self.source {
            Source::Persistent(_, source) => source.fs_type.clone(),
            Source::Ephemeral(_, source) => source.fs_type.clone(),
        }
        .unwrap_or_default()
    }

    fn access_modes(&self) -> &[String] {
        match &self.source {
            Source::Persistent(volume, _) => {
                volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
            }
            Source::Ephemeral(..) => &[],
        }
    }

    fn mount_flags(&self) -> Vec<String> {
        match &self.source {
            Source::Persistent(volume, _) => volume.spec.as_ref().and_then(|spec| spec.mount_options.clone()),
            Source::Ephemeral(..) => None,
        }
        .unwrap_or_default()
    }

    /// How the driver is to show the volume. `group`: where the driver gives the files to it.
    pub(super) fn capability(&self, can: Capabilities, group: Option<u32>) -> v1::VolumeCapability {
        let mode = self.access_modes().first().map_or("ReadWriteOnce", String::as_str);
        let access_mode = Some(AccessMode { mode: access_mode(mode, can).into() });
        if self.block {
            return v1::VolumeCapability { access_mode, access_type: Some(AccessType::Block(BlockVolume {})) };
        }
        let mount = MountVolume {
            fs_type: self.fs_type(),
            mount_flags: self.mount_flags(),
            volume_mount_group: group.map(|gid| gid.to_string()).unwrap_or_default(),
        };
        v1::VolumeCapability { access_mode, access_type: Some(AccessType::Mount(mount)) }
    }

    /// Whether the node gives the files to the Pod's group (`pkg/volume/csi/csi_mounter.go`, supportsFSGroup).
    fn is_given_to_group(&self, policy: &str) -> bool {
        if self.group.is_none() || self.read_only || policy == "None" {
            return false;
        }
        if policy == "File" {
            return true;
        }
        let of_one_node = |mode: &String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
        let is_single = matches!(self.source, Source::Ephemeral(..)) || self.access_modes().iter().any(of_one_node);
        !self.fs_type().is_empty() && is_single
    }

    /// The Pod as a driver is told of it (getPodInfoAttrs).
    fn pod_info(&self) -> [(String, String); 5] {
        let account = self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let is_ephemeral = matches!(self.source, Source::Ephemeral(..)).to_string();
        [
            ("pod.name", self.pod.metadata.name.clone().unwrap_or_default()),
            ("pod.namespace", self.namespace().to_owned()),
            ("pod.uid", self.uid().to_owned()),
            ("serviceAccount.name", account.unwrap_or_default().to_owned()),
            ("ephemeral", is_ephemeral),
        ]
        .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
    }
}

fn access_mode(mode: &str, can: Capabilities) -> access_mode::Mode {
    use access_mode::Mode;
    match mode {
        "ReadWriteOnce" if can.single_node_multi_writer => Mode::SingleNodeMultiWriter,
        "ReadWriteOncePod" if can.single_node_multi_writer => Mode::SingleNodeSingleWriter,
        "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    }
}

impl Csi {
    /// Makes the volume ready for the Pod. Doing it again does what is due again and no more.
    pub(crate) async fn mount(&self, wanted: Wanted) -> Result<Published, Arc<CsiError>> {
        let key = (wanted.uid().to_owned(), wanted.name().to_owned());
        let now = self.0.clock.now();
        let operation = {
            let mut state = self.0.state();
            let known = state.published.get(&key).filter(|known| known.refresh_at.is_none_or(|at| at > now));
            if let Some(known) = known {
                return Ok(known.clone());
            }
            let driver = wanted.volume().driver;
            let begin = || self.begin(wanted);
            (Arc::clone(state.operations.entry(key.clone()).or_insert_with(begin)), driver)
        };
        let (operation, driver) = operation;
        let mut done = operation.done.clone();
        let outcome = match tokio::time::timeout(PATIENCE, done.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            // It panicked, which is logged where it did.
            Ok(Err(_)) => None,
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Err(Arc::new(CsiError::Slow { driver, call: operation.doing(), seconds }));
            }
        };
        let mut state = self.0.state();
        if state.operations.get(&key).is_some_and(|held| Arc::ptr_eq(held, &operation)) {
            state.operations.remove(&key);
        }
        let outcome = outcome.unwrap_or_else(|| Err(Arc::new(CsiError::Ended)));
        if let Ok(published) = &outcome {
            state.published.insert(key, published.clone());
        }
        outcome
    }

    fn begin(&self, wanted: Wanted) -> Arc<Operation> {
        let (sender, done) = watch::channel(None);
        let operation =
            Arc::new(Operation { done, end: CancellationToken::new(), doing: Mutex::new("NodeGetCapabilities") });
        let (inner, own) = (Arc::clone(&self.0), Arc::clone(&operation));
        tokio::spawn(async move {
            let outcome = inner.set_up(&wanted, &own).await.map_err(Arc::new);
            // Nobody may be there to hear it any more.
            drop(sender.send(Some(outcome)));
        });
        operation
    }
}

impl Inner {
    async fn set_up(&self, wanted: &Wanted, operation: &Operation) -> Result<Published, CsiError> {
        let volume = wanted.volume();
        let no_driver = || CsiError::NoDriver { step: SET_UP, driver: volume.driver.clone() };
        let registered = self.drivers.wait(&volume.driver).await.ok_or_else(no_driver)?;
        let object = self.objects.csi_driver(&volume.driver).await?;
        check_mode(wanted, object.as_deref())?;
        // From here on there may be something to give back.
        self.state().users.entry(volume.clone()).or_default().insert(wanted.uid().to_owned());
        let is_persistent = matches!(wanted.source, Source::Persistent(..));
        // A driver without an object may need it (skipAttach).
        let attach = object.as_ref().is_none_or(|object| object.spec.attach_required != Some(false));
        let context = if is_persistent && attach {
            operation.now(ATTACH);
            self.attachment(&volume, &operation.end).await?
        } else {
            BTreeMap::new()
        };
        operation.now("another operation on the volume");
        let lock = self.lock_of(&volume);
        let _turn = lock.lock().await;
        if operation.end.is_cancelled() {
            return Err(CsiError::Ended);
        }
        if wanted.block {
            self.record_device(wanted, &volume).await?;
        }
        operation.now("NodeGetCapabilities");
        let can = registered.driver.capabilities().await.map_err(CsiError::driver(SET_UP))?;
        let staging = if is_persistent && can.stage {
            operation.now("NodeStageVolume");
            Some(self.stage(wanted, &volume, &registered, can, context.clone()).await?)
        } else {
            None
        };
        operation.now("NodePublishVolume");
        let job = Publishing { wanted, volume: &volume, can, staging, context, object: object.as_deref() };
        let path = if wanted.block {
            self.publish_device(job, &registered).await?
        } else {
            self.publish(job, &registered).await?
        };
        let again = object.as_ref().is_some_and(|object| object.spec.requires_republish == Some(true));
        let refresh_at = again.then(|| after(self.clock.now(), REPUBLISH_EVERY));
        Ok(Published { path, refresh_at, volume })
    }

    /// What the attacher says of the attachment, once there is one.
    async fn attachment(
        &self,
        volume: &VolumeId,
        end: &CancellationToken,
    ) -> Result<BTreeMap<String, String>, CsiError> {
        let name = volume.unique_name();
        self.attachments.set_in_use(&name, true);
        tokio::select! {
            () = self.attachments.wait(&name) => {}
            () = end.cancelled() => return Err(CsiError::Ended),
        }
        let attachment = volume.attachment(&self.node_name);
        let not_attached = || CsiError::NotAttached { handle: volume.handle.clone(), attachment: attachment.clone() };
        // What was heard may be old: it may have been detached before the node said that it uses it.
        let node = self.objects.node(&self.node_name).await?;
        if !node.is_some_and(|node| attached(&node).contains(&name)) {
            return Err(not_attached());
        }
        let object = self.objects.attachment(&attachment).await?.ok_or_else(not_attached)?;
        if object.metadata.deletion_timestamp.is_some() {
            return Err(CsiError::Detaching);
        }
        let status = object.status.clone().unwrap_or_default();
        if !status.attached {
            let why = status.attach_error.and_then(|error| error.message);
            return Err(why.map_or_else(not_attached, CsiError::Attach));
        }
        Ok(status.attachment_metadata.unwrap_or_default())
    }

    /// Stages the volume on this node, which is done once for all Pods.
    async fn stage(
        &self,
        wanted: &Wanted,
        volume: &VolumeId,
        registered: &Registered,
        can: Capabilities,
        publish_context: BTreeMap<String, String>,
    ) -> Result<String, CsiError> {
        let staging = if wanted.block { self.dirs.device_staging(wanted.name()) } else { self.dirs.staging(volume) };
        let staging_target_path = staging.display().to_string();
        if self.state().staged.contains(volume) {
            return Ok(staging_target_path);
        }
        let Source::Persistent(_, source) = &wanted.source else { return Ok(staging_target_path) };
        let secrets = match &source.node_stage_secret_ref {
            Some(secret) => {
                self.secret("NodeStageSecretRef", secret.namespace.as_deref(), secret.name.as_deref()).await?
            }
            None => BTreeMap::new(),
        };
        let record =
            Record { volume_handle: volume.handle.clone(), driver_name: volume.driver.clone(), ..Record::default() };
        // That of a block volume was made before this.
        let (dir, is_block) = (staging.clone(), wanted.block);
        let recorded = self.files.run(wanted.uid(), "make the directory of a staged volume", move || {
            make_private(&dir, DIR_MODE)?;
            if is_block { Ok(()) } else { record.write(dir.parent().unwrap_or(&dir)) }
        });
        recorded.await??;
        let request = v1::NodeStageVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context,
            staging_target_path: staging_target_path.clone(),
            volume_capability: Some(wanted.capability(can, wanted.group.filter(|_| can.mount_group))),
            secrets,
            volume_context: wanted.attributes(),
        };
        // A stage that failed is taken back with the Pod, or when another one succeeds.
        registered.driver.stage(request).await.map_err(CsiError::driver(STAGE))?;
        self.state().staged.insert(volume.clone());
        Ok(staging_target_path)
    }

    async fn publish(&self, job: Publishing<'_>, registered: &Registered) -> Result<PathBuf, CsiError> {
        let Publishing { wanted, volume, can, staging, context, object } = job;
        let uid = wanted.uid().to_owned();
        let dir = self.dirs.volume(&uid, wanted.name());
        let path = target(&dir);
        let (attributes, secrets) = self.words(wanted, object).await?;
        let mut record = wanted.record(volume, &self.node_name);
        let (at, fresh) = (dir.clone(), record.clone());
        let recorded = self.files.run(&uid, "make the directory of a volume", move || {
            let known = Record::read(&at)?;
            if known.is_none() {
                make_private(&at, DIR_MODE)?;
                fresh.write(&at)?;
            }
            Ok::<_, std::io::Error>(known)
        });
        let known = recorded.await??;
        let is_known = known.is_some();
        record.fs_group = known.map(|known| known.fs_group).unwrap_or_default();
        let request = v1::NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: context,
            staging_target_path: staging.unwrap_or_default(),
            target_path: path.display().to_string(),
            volume_capability: Some(wanted.capability(can, wanted.group.filter(|_| can.mount_group))),
            readonly: wanted.read_only,
            secrets,
            volume_context: attributes,
        };
        if let Err(error) = registered.driver.publish(request).await.map_err(CsiError::driver(SET_UP)) {
            // What a Pod may already have is left as it is.
            if error.is_final() && !is_known {
                let at = path.clone();
                self.files.run(&uid, "remove the directory of a volume", move || records::remove(&at)).await??;
            }
            return Err(error);
        }
        let (at, driver) = (path.clone(), volume.driver.clone());
        let is_there = self.files.run(&uid, "look at the volume", move || at.is_dir()).await?;
        if !is_there {
            return Err(CsiError::NotPublished { driver, wanted: "directory", path: path.display().to_string() });
        }
        let policy = object.and_then(|object| object.spec.fs_group_policy.as_deref());
        if !can.mount_group && wanted.is_given_to_group(policy.unwrap_or("ReadWriteOnceWithFSType")) {
            self.give_to_group(wanted, &path, record).await?;
        }
        Ok(path)
    }

    /// What a driver is told of a volume and of its Pod, and what it may keep to itself.
    pub(super) async fn words(&self, wanted: &Wanted, object: Option<&CSIDriver>) -> Result<(Words, Words), CsiError> {
        let (secret, namespace) = match &wanted.source {
            Source::Persistent(_, source) => {
                let secret = source.node_publish_secret_ref.as_ref();
                (secret.and_then(|secret| secret.name.clone()), secret.and_then(|secret| secret.namespace.clone()))
            }
            Source::Ephemeral(_, source) => {
                let secret = source.node_publish_secret_ref.as_ref().map(|secret| secret.name.clone());
                (secret, Some(wanted.namespace().to_owned()))
            }
        };
        let mut secrets = match secret {
            Some(name) => self.secret("NodePublishSecretRef", namespace.as_deref(), Some(&name)).await?,
            None => BTreeMap::new(),
        };
        let mut attributes = wanted.attributes();
        if object.is_some_and(|object| object.spec.pod_info_on_mount == Some(true)) {
            attributes.extend(wanted.pod_info());
        }
        if let Some((key, tokens)) = self.service_account_tokens(wanted, object).await? {
            let in_secrets = object.is_some_and(|object| object.spec.service_account_token_in_secrets == Some(true));
            if in_secrets { &mut secrets } else { &mut attributes }.insert(key, tokens);
        }
        Ok((attributes, secrets))
    }

    /// Gives the files to the Pod's group, once.
    async fn give_to_group(&self, wanted: &Wanted, path: &Path, mut record: Record) -> Result<(), CsiError> {
        let Some(gid) = wanted.group else { return Ok(()) };
        if record.fs_group == gid.to_string() {
            return Ok(());
        }
        record.fs_group = gid.to_string();
        let group = Group { gid, read_only: false, on_root_mismatch: wanted.on_root_mismatch };
        let (path, handle) = (path.to_owned(), record.volume_handle.clone());
        let given = self.files.run(wanted.uid(), "give a volume to a group", move || {
            ownership::set(&path, group)?;
            record.write(path.parent().unwrap_or(&path))
        });
        given.await?.map_err(|source| CsiError::Group { handle, source })
    }

    pub(super) async fn secret(
        &self,
        what: &'static str,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<BTreeMap<String, String>, CsiError> {
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        let failed =
            |why: String| CsiError::Secret { what, namespace: namespace.to_owned(), name: name.to_owned(), why };
        let secret = self.objects.secret(namespace, name).await?;
        let secret = secret.ok_or_else(|| failed(format!("secrets {name:?} not found")))?;
        let mut words = BTreeMap::new();
        for (key, value) in secret.data.iter().flatten() {
            let value = String::from_utf8(value.0.clone()).map_err(|_| failed(format!("{key} is not UTF-8")))?;
            words.insert(key.clone(), value);
        }
        Ok(words)
    }

    /// The tokens of the Pod's service account that the driver asks for, by audience (podServiceAccountTokenAttrs).
    async fn service_account_tokens(
        &self,
        wanted: &Wanted,
        object: Option<&CSIDriver>,
    ) -> Result<Option<(String, String)>, CsiError> {
        let wishes = object.and_then(|object| object.spec.token_requests.as_deref()).unwrap_or_default();
        if wishes.is_empty() {
            return Ok(None);
        }
        let account = wanted.pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let mut tokens = serde_json::Map::new();
        for wish in wishes {
            let seconds = wish.expiration_seconds.unwrap_or(TOKEN_LIFETIME_S);
            let wish = TokenWish {
                namespace: wanted.namespace().to_owned(),
                service_account: account.clone().unwrap_or_default(),
                pod_name: wanted.pod.metadata.name.clone().unwrap_or_default(),
                pod_uid: wanted.uid().to_owned(),
                audience: wish.audience.clone(),
                lifetime: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            };
            let audience = wish.audience.clone();
            let (token, _) = self.tokens.get(wish, &*self.objects, self.clock.now()).await?;
            let status = serde_json::json!({"token": token.text, "expirationTimestamp": token.expires_at.to_string()});
            tokens.insert(audience, status);
        }
        Ok(Some(("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), serde_json::Value::Object(tokens).to_string())))
    }
}

/// What a volume is published with.
pub(super) struct Publishing<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) volume: &'a VolumeId,
    pub(super) can: Capabilities,
    pub(super) staging: Option<String>,
    pub(super) context: Words,
    pub(super) object: Option<&'a CSIDriver>,
}

/// A driver without an object has volumes that last, and no others (supportsVolumeLifecycleMode).
fn check_mode(wanted: &Wanted, object: Option<&CSIDriver>) -> Result<(), CsiError> {
    let mode = wanted.mode();
    let driver = wanted.volume().driver;
    let why = match object {
        None if mode == "Persistent" => return Ok(()),
        None => "no CSIDriver object".to_owned(),
        Some(object) => {
            let modes = object.spec.volume_lifecycle_modes.clone().unwrap_or_default();
            if modes.iter().any(|offered| offered == mode) {
                return Ok(());
            }
            format!("only supports {modes:?}")
        }
    };
    Err(CsiError::Mode { mode, driver, why })
}
