//! The plug-ins themselves: how they register, and what they list (`pkg/kubelet/cm/devicemanager/plugin/v1beta1`).

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carob_api::names::qualified_name;
use carob_api::pod::is_extended;
use carob_csi::DriverError;
use carob_devices::v1beta1::RegisterRequest;
use carob_devices::{CallError, DevicePlugin, PluginOptions, VERSION, serve_registration};
use carob_kit::fs::make_private;
use carob_kit::{Backoff, chain};
use fs_err as fs;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::state::{ListError, RESOURCES_MAX};
use super::{Devices, FILES_OF};

/// What a plug-in says it is that registers in the directory of all plug-ins.
pub(crate) const DEVICE_PLUGIN: &str = "DevicePlugin";
/// The node's socket (`pluginapi.KubeletSocket`).
const SOCKET: &str = "kubelet.sock";
const DIR_MODE: u32 = 0o750;
const RETRY_BASE: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("requested API version {0:?} is not supported by kubelet. Supported version is [{VERSION:?}]")]
    Version(String),
    #[error("the ResourceName {0:?} is invalid")]
    Name(String),
    #[error("the endpoint {0:?} is not the name of a socket in the directory of device plug-ins")]
    Endpoint(String),
    #[error("there are plug-ins of {RESOURCES_MAX} resources already")]
    TooMany,
    #[error("failed to get device plugin options")]
    Options(#[source] DriverError),
}

/// Why a plug-in is not listened to any more.
#[derive(Debug, thiserror::Error)]
enum Left {
    #[error("it has ended its list of devices")]
    Ended,
    #[error("its list of devices broke off")]
    Broke(#[source] CallError),
    #[error(transparent)]
    List(ListError),
}

/// A plug-in that has registered.
#[derive(Clone)]
pub(super) struct Plugin {
    pub(super) client: DevicePlugin,
    pub(super) options: PluginOptions,
    /// Tells it from those that served the resource before.
    number: u64,
    stop: CancellationToken,
}

impl Devices {
    /// Takes registrations until the shutdown.
    pub(crate) async fn run(self) {
        let work = async {
            tokio::join!(self.take_registrations(), self.expire_always());
        };
        tokio::select! {
            () = work => {}
            () = self.0.shutdown.cancelled() => {}
        }
    }

    /// Answers on `kubelet.sock` in a directory for as long as it is polled.
    pub(super) async fn keep_serving<W: Future<Output = ()>>(&self, dir: PathBuf, serve: impl Fn(UnixListener) -> W) {
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        loop {
            match self.listen(dir.clone()).await {
                // It ends with the shutdown.
                Ok(listener) => return serve(listener).await,
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(error = %chain(&error), dir = %dir.display(), ?delay, "cannot listen there");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    async fn listen(&self, dir: PathBuf) -> io::Result<UnixListener> {
        let listen = move || {
            make_private(&dir, DIR_MODE)?;
            // A plug-in sees by its own socket's end that it has to register again.
            remove_sockets(&dir)?;
            let listener = std::os::unix::net::UnixListener::bind(dir.join(SOCKET))?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        UnixListener::from_std(self.0.files.run(FILES_OF, "listen for device plug-ins", listen).await??)
    }

    async fn take_registrations(&self) {
        let serve = |listener| {
            let devices = self.clone();
            let register = move |request: RegisterRequest| {
                let devices = devices.clone();
                async move {
                    let resource = request.resource_name.clone();
                    let registered = devices.register(request).await;
                    registered.map_err(|error| {
                        tracing::warn!(error = %chain(&error), resource, "a device plug-in was refused");
                        chain(&error).to_string()
                    })
                }
            };
            serve_registration(listener, register, self.0.shutdown.clone())
        };
        self.keep_serving(self.0.dir.clone(), serve).await;
    }

    /// Drops resources whose plug-ins do not come back.
    async fn expire_always(&self) {
        let mut changes = self.changes();
        loop {
            let wait = self.known().state.next_expiry().map(|at| {
                let left = at.duration_since(self.0.clock.now());
                Duration::try_from(left).unwrap_or_default()
            });
            tokio::select! {
                () = crate::worker::sleep_for(wait) => {
                    if self.known().state.expire(self.0.clock.now()) {
                        self.changed().await;
                    }
                }
                Ok(()) = changes.changed() => {}
            }
        }
    }

    async fn register(&self, request: RegisterRequest) -> Result<(), ConnectError> {
        let RegisterRequest { version, endpoint, resource_name, options: _ } = request;
        if version != VERSION {
            return Err(ConnectError::Version(version));
        }
        if endpoint.is_empty() || endpoint == "." || endpoint == ".." || endpoint.contains(['/', '\0']) {
            return Err(ConnectError::Endpoint(endpoint));
        }
        self.connect(&resource_name, self.0.dir.join(endpoint)).await
    }

    /// Takes in a plug-in that has registered in the directory of all plug-ins.
    pub(crate) async fn accept(
        &self,
        resource: &str,
        versions: &[String],
        socket: PathBuf,
    ) -> Result<(), ConnectError> {
        if !versions.iter().any(|version| version == VERSION) {
            return Err(ConnectError::Version(versions.join(", ")));
        }
        self.connect(resource, socket).await
    }

    /// Has the plug-in at a socket serve a resource from now on, in place of any other.
    async fn connect(&self, resource: &str, socket: PathBuf) -> Result<(), ConnectError> {
        if !is_extended(resource) || !qualified_name(resource).is_empty() {
            return Err(ConnectError::Name(resource.to_owned()));
        }
        let client = DevicePlugin::at(socket);
        let options = client.options().await.map_err(|error| ConnectError::Options(error.into()))?;
        let stop = self.0.shutdown.child_token();
        let number = {
            let mut guard = self.known();
            let known = &mut *guard;
            if !known.state.connect(resource) {
                return Err(ConnectError::TooMany);
            }
            known.connections += 1;
            let number = known.connections;
            let plugin = Plugin { client: client.clone(), options, number, stop: stop.clone() };
            if let Some(before) = known.plugins.insert(resource.to_owned(), plugin) {
                before.stop.cancel();
            }
            known.plugins.retain(|name, _| known.state.is_device(name));
            number
        };
        tracing::info!(resource, "a device plug-in is registered");
        let (devices, resource) = (self.clone(), resource.to_owned());
        tokio::spawn(async move {
            let left = tokio::select! {
                left = devices.follow(&resource, &client, number) => left,
                () = stop.cancelled() => return,
            };
            tracing::warn!(error = %chain(&left), resource, "a device plug-in is gone");
            devices.leave(&resource, number).await;
        });
        Ok(())
    }

    /// The plug-in of a resource is gone, by what its socket says.
    pub(crate) async fn disconnect(&self, resource: &str) {
        let plugin = self.known().plugins.get(resource).cloned();
        if let Some(plugin) = plugin {
            plugin.stop.cancel();
            tracing::info!(resource, "a device plug-in is gone");
            self.leave(resource, plugin.number).await;
        }
    }

    async fn leave(&self, resource: &str, number: u64) {
        let now = self.0.clock.now();
        {
            let mut known = self.known();
            if known.plugins.get(resource).is_none_or(|plugin| plugin.number != number) {
                return;
            }
            known.state.leave(resource, now);
        }
        self.changed().await;
    }

    /// Takes over what the plug-in lists until it stops.
    async fn follow(&self, resource: &str, client: &DevicePlugin, number: u64) -> Left {
        let mut lists = client.list_and_watch();
        loop {
            let list = match lists.next().await {
                Ok(Some(list)) => list,
                Ok(None) => return Left::Ended,
                Err(error) => return Left::Broke(error),
            };
            let listed = {
                let mut known = self.known();
                if known.plugins.get(resource).is_none_or(|plugin| plugin.number != number) {
                    return Left::Ended;
                }
                known.state.list(resource, list.devices)
            };
            match listed {
                Ok(0) => {}
                Ok(twice) => tracing::warn!(resource, twice, "a device plug-in lists devices more than once"),
                Err(error) => return Left::List(error),
            }
            self.changed().await;
        }
    }

    /// Notes and tells that the devices are others.
    async fn changed(&self) {
        if let Err(error) = self.write().await {
            tracing::warn!(error = %chain(&error), "it cannot be noted which devices there are");
        }
        self.0.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn remove_sockets(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
