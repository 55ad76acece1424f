//! Plug-ins register with the node by sockets in one directory (`pkg/kubelet/pluginmanager`): a socket that appears is asked
//! what it is, and one that goes takes the driver along. Device plug-ins may register here too.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carob_client::Informer;
use carob_csi::plugin::PluginInfo;
use carob_csi::{Driver, DriverError, Registration};
use carob_kit::{Backoff, chain};
use fs_err as fs;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Csi;
use super::drivers::{Registered, Version};
use super::node_record::{NodeRecord, RecordError};
use super::records::is_file_name;
use crate::devices::{ConnectError, DEVICE_PLUGIN, Devices};
use crate::dir_watch::DirWatch;
use crate::files::{Files, FilesError};

/// Sockets that are looked at; a node has a handful.
const SOCKETS_MAX: usize = 256;
/// Waits between tries of one plug-in (`pkg/util/goroutinemap/exponentialbackoff`).
const RETRY_BASE: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);
const FILES_OF: &str = "plugins";
/// What a driver says it is.
const CSI_PLUGIN: &str = "CSIPlugin";

#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("failed to get plugin info using RPC GetInfo")]
    Info(#[source] DriverError),
    #[error("RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {socket}")]
    Kind { kind: String, socket: String },
    #[error("RegisterPlugin error -- plugin validation failed with err: {0}")]
    Invalid(String),
    #[error("RegisterPlugin error -- plugin registration failed with err: ask the driver about this node")]
    NodeInfo(#[source] DriverError),
    #[error("RegisterPlugin error -- plugin registration failed with err: {0}")]
    NodeId(&'static str),
    #[error("RegisterPlugin error -- plugin registration failed with err")]
    Record(#[source] RecordError),
    #[error("RegisterPlugin error -- plugin registration failed with err")]
    Device(#[source] ConnectError),
    #[error("tell the plug-in how its registration went")]
    Notify(#[source] DriverError),
}

#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("watch for plug-ins")]
    Watch(#[from] io::Error),
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Registers plug-ins for as long as the node runs.
pub(crate) struct Plugins {
    pub(crate) csi: Csi,
    devices: Devices,
    files: Files,
    record: Arc<NodeRecord>,
    pub(crate) nodes: Informer<Node>,
    ours: watch::Receiver<bool>,
}

/// Which file a socket is: one that was made again under its name is another.
type Identity = (u64, u64, Option<SystemTime>);

/// A socket, and the task that keeps what is behind it registered.
struct Socket {
    identity: Identity,
    gone: CancellationToken,
    task: JoinHandle<()>,
}

impl Plugins {
    /// `ours` is set once the Node is this machine's.
    pub(crate) fn new(
        csi: Csi,
        devices: Devices,
        files: Files,
        client: kube::Client,
        nodes: Informer<Node>,
        ours: watch::Receiver<bool>,
    ) -> Self {
        let record = Arc::new(NodeRecord::new(client, csi.0.node_name.clone()));
        Self { csi, devices, files, record, nodes, ours }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut sockets = HashMap::new();
        let work = async {
            if self.ours.wait_for(|ours| *ours).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::join!(self.keep_record(), self.follow(&mut sockets))
        };
        // Drivers run on without the node, so none is unregistered at its end.
        tokio::select! {
            _never = work => {}
            () = shutdown.cancelled() => {}
        }
        for socket in sockets.into_values() {
            socket.task.abort();
        }
    }

    /// Has the API know the drivers of this Node, also when the Node was made again.
    async fn keep_record(&self) {
        let changes = self.nodes.subscribe();
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        let mut told = None;
        loop {
            let uid = self.nodes.list().first().and_then(|node| node.metadata.uid.clone());
            if uid.is_some() && uid != told {
                match self.tell_all().await {
                    Ok(()) => {
                        retry.reset();
                        told = uid;
                    }
                    Err(error) => {
                        let delay = retry.fail();
                        tracing::warn!(error = %chain(&error), ?delay, "the API could not be told of this node's drivers");
                        tokio::time::sleep(delay).await;
                        continue;
                    }
                }
            }
            let _changed = changes.next().await;
        }
    }

    async fn tell_all(&self) -> Result<(), RecordError> {
        self.record.begin().await?;
        for (name, registered) in self.csi.0.drivers.all() {
            self.record.install(&name, &registered.info).await?;
        }
        Ok(())
    }

    async fn follow(&self, sockets: &mut HashMap<OsString, Socket>) {
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        loop {
            let Err(error) = self.follow_directory(sockets, &mut retry).await;
            let delay = retry.fail();
            tracing::warn!(error = %chain(&error), ?delay, "plug-ins cannot register");
            tokio::time::sleep(delay).await;
        }
    }

    async fn follow_directory(
        &self,
        sockets: &mut HashMap<OsString, Socket>,
        retry: &mut Backoff,
    ) -> Result<std::convert::Infallible, DirectoryError> {
        let dirs = &self.csi.0.dirs;
        let (registry, plugins) = (dirs.registry(), dirs.plugins());
        let made = registry.clone();
        let make = move || [made, plugins].iter().try_for_each(fs::create_dir_all);
        self.files.run(FILES_OF, "make the directories of plug-ins", make).await??;
        // The watch begins before the first look, so that nothing is missed in between.
        let watch = DirWatch::of_whole_files(&registry)?;
        loop {
            let dir = registry.clone();
            let found = self.files.run(FILES_OF, "look for plug-ins", move || sockets_in(&dir)).await??;
            retry.reset();
            self.compare(&registry, found, sockets).await;
            watch.changed().await?;
        }
    }

    async fn compare(
        &self,
        registry: &Path,
        found: HashMap<OsString, Identity>,
        sockets: &mut HashMap<OsString, Socket>,
    ) {
        let gone: Vec<OsString> = sockets
            .iter()
            .filter(|(name, socket)| found.get(*name) != Some(&socket.identity))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some(socket) = sockets.remove(&name) else { continue };
            socket.gone.cancel();
            if let Err(error) = socket.task.await {
                tracing::error!(%error, "a plug-in's task did not end well");
            }
        }
        for (name, identity) in found {
            if sockets.contains_key(&name) {
                continue;
            }
            let gone = CancellationToken::new();
            let member = Member {
                csi: self.csi.clone(),
                devices: self.devices.clone(),
                record: Arc::clone(&self.record),
                socket: registry.join(&name),
            };
            let task = tokio::spawn(member.keep(gone.clone()));
            sockets.insert(name, Socket { identity, gone, task });
        }
    }
}

/// The sockets in the directory; names that begin with a dot are passed over, as all that is none.
fn sockets_in(dir: &Path) -> io::Result<HashMap<OsString, Identity>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let meta = match fs::symlink_metadata(dir.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if !meta.file_type().is_socket() {
            continue;
        }
        if found.len() == SOCKETS_MAX {
            tracing::warn!(dir = %dir.display(), "there are more than {SOCKETS_MAX} sockets of plug-ins: some are passed over");
            break;
        }
        // Not every file system knows when a file was made.
        found.insert(name, (meta.dev(), meta.ino(), meta.created().ok()));
    }
    Ok(found)
}

/// A plug-in by its socket.
struct Member {
    csi: Csi,
    devices: Devices,
    record: Arc<NodeRecord>,
    socket: PathBuf,
}

impl Member {
    /// Keeps the plug-in registered until its socket is gone.
    async fn keep(self, gone: CancellationToken) {
        let socket = self.socket.display().to_string();
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        let info = loop {
            let registered = tokio::select! {
                registered = self.register() => registered,
                () = gone.cancelled() => return,
            };
            match registered {
                Ok(info) => break info,
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(error = %chain(&error), socket, ?delay, "a plug-in could not be registered");
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = gone.cancelled() => return,
                    }
                }
            }
        };
        tracing::info!(name = info.name, kind = info.r#type, socket, "a plug-in is registered");
        gone.cancelled().await;
        self.withdraw(&info).await;
        tracing::info!(name = info.name, kind = info.r#type, socket, "a plug-in is gone");
        if info.r#type != CSI_PLUGIN {
            return;
        }
        if let Err(error) = self.record.uninstall(&info.name).await {
            tracing::warn!(error = %chain(&error), driver = info.name, "the API could not be told that a driver is gone");
        }
    }

    async fn withdraw(&self, info: &PluginInfo) {
        if info.r#type == DEVICE_PLUGIN {
            self.devices.disconnect(&info.name).await;
        } else {
            self.csi.0.drivers.set(&info.name, None);
        }
    }

    async fn register(&self) -> Result<PluginInfo, PluginError> {
        let registration = Registration::at(self.socket.clone());
        let info = registration.info().await.map_err(PluginError::Info)?;
        let registered = self.accept(&info).await;
        let told = registration.notify(registered.as_ref().err().map(|error| chain(error).to_string())).await;
        registered?;
        if let Err(error) = told {
            self.withdraw(&info).await;
            return Err(PluginError::Notify(error));
        }
        Ok(info)
    }

    fn endpoint(&self, info: &PluginInfo) -> PathBuf {
        if info.endpoint.is_empty() { self.socket.clone() } else { PathBuf::from(&info.endpoint) }
    }

    async fn accept(&self, info: &PluginInfo) -> Result<(), PluginError> {
        if info.r#type == DEVICE_PLUGIN {
            let versions = &info.supported_versions;
            return self.devices.accept(&info.name, versions, self.endpoint(info)).await.map_err(PluginError::Device);
        }
        if info.r#type != CSI_PLUGIN {
            let (kind, socket) = (info.r#type.clone(), self.socket.display().to_string());
            return Err(PluginError::Kind { kind, socket });
        }
        let invalid = |why: String| PluginError::Invalid(format!("CSI driver {:?}: {why}", info.name));
        if !is_file_name(&info.name) {
            return Err(invalid("its name cannot be that of a directory".to_owned()));
        }
        let version = Version::highest(&info.supported_versions).ok_or_else(|| {
            invalid(format!("none of the versions specified {:?} are supported", info.supported_versions))
        })?;
        let drivers = &self.csi.0.drivers;
        if let Some(held) = drivers.get(&info.name).filter(|held| held.version >= version) {
            return Err(invalid(format!(
                "another driver with the same name is already registered with a higher supported version: {}",
                held.version
            )));
        }
        let driver = Driver::at(self.endpoint(info));
        let of_node = driver.node_info().await.map_err(PluginError::NodeInfo)?;
        if of_node.node_id.is_empty() {
            return Err(PluginError::NodeId("driverNodeID must not be empty"));
        }
        self.record.install(&info.name, &of_node).await.map_err(PluginError::Record)?;
        drivers.set(&info.name, Some(Arc::new(Registered { driver, version, info: of_node })));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_count_and_one_that_is_made_again_is_another() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "").expect("written");
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(dir.path().join(name)).expect("bound");
        let (_hidden, _shown) = (bind(".hidden"), bind("a.sock"));
        let found = sockets_in(dir.path()).expect("readable");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a.sock"]);
        fs::remove_file(dir.path().join("a.sock")).expect("removed");
        let _again = bind("a.sock");
        assert_ne!(sockets_in(dir.path()).expect("readable"), found);
    }
}
