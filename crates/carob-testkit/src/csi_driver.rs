//! A real CSI driver of the hostpath kind: a volume is a directory, or for block volumes a file, below its own directory.
//!
//! It fails as a test tells it, and notes its calls (`peer.rs`).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use carob_csi::v1::node_service_capability::{self, Rpc, rpc};
use carob_csi::v1::volume_capability::AccessType;
use carob_csi::{paths, plugin, v1};
use carob_grpc::{Routes, serve};
use fs_err as fs;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::peer::{LIMITS, Peer, call, listen};

/// How a driver of a test is.
#[derive(Debug, Clone)]
pub struct CsiDriverConfig {
    pub name: String,
    /// A kubelet's root directory.
    pub kubelet_dir: PathBuf,
    /// Where volumes, faults and the list of calls are.
    pub dir: PathBuf,
    /// `stage`, `expand`, `stats`, `mount-group`.
    pub capabilities: Vec<String>,
    /// Volumes that the node takes; 0 for any number.
    pub limit: i64,
}

impl CsiDriverConfig {
    /// Reads what [`CsiDriver`](crate::CsiDriver) starts its program with.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut values = BTreeMap::new();
        for argument in arguments {
            let (key, value) = argument.split_once('=').with_context(|| format!("{argument} is no KEY=VALUE"))?;
            values.insert(key.to_owned(), value.to_owned());
        }
        let mut take = |key: &str| values.remove(key).with_context(|| format!("{key} is missing"));
        let config = Self {
            name: take("name")?,
            kubelet_dir: take("kubelet-dir")?.into(),
            dir: take("dir")?.into(),
            capabilities: take("capabilities")?.split(',').map(str::to_owned).collect(),
            limit: take("limit")?.parse()?,
        };
        if let Some(key) = values.keys().next() {
            bail!("{key} is unknown");
        }
        Ok(config)
    }
}

/// Serves until the process is ended. Says `ready` when it listens.
pub fn serve_csi_driver(config: CsiDriverConfig) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run(config))
}

async fn run(config: CsiDriverConfig) -> Result<()> {
    for dir in ["volumes", "faults"] {
        fs::create_dir_all(config.dir.join(dir))?;
    }
    let own = config.kubelet_dir.join("plugins").join(&config.name).join("csi.sock");
    let registration = config.kubelet_dir.join("plugins_registry").join(format!("{}-reg.sock", config.name));
    let driver = Arc::new(Driver { endpoint: own.display().to_string(), config });
    let node = serve(listen(&own)?, node_routes(&driver), LIMITS, CancellationToken::new());
    let register = serve(listen(&registration)?, registration_routes(&driver), LIMITS, CancellationToken::new());
    writeln!(std::io::stdout(), "ready")?;
    tokio::join!(node, register);
    Ok(())
}

struct Driver {
    config: CsiDriverConfig,
    endpoint: String,
}

impl Peer for Driver {
    fn dir(&self) -> &Path {
        &self.config.dir
    }
}

fn registration_routes(driver: &Arc<Driver>) -> Routes {
    let routes = Routes::new(paths::MESSAGE_LEN_MAX);
    let routes = call(routes, driver, paths::registration::GET_INFO, Driver::plugin_info, |_| json!({}));
    call(
        routes,
        driver,
        paths::registration::NOTIFY_STATUS,
        |_, _| Ok(plugin::RegistrationStatusResponse {}),
        |status| {
            let status: &plugin::RegistrationStatus = status;
            json!({"registered": status.plugin_registered, "error": status.error})
        },
    )
}

fn node_routes(driver: &Arc<Driver>) -> Routes {
    let mut routes = Routes::new(paths::MESSAGE_LEN_MAX);
    routes = call(routes, driver, paths::node::GET_INFO, Driver::node_info, |_| json!({}));
    routes = call(routes, driver, paths::node::GET_CAPABILITIES, Driver::capabilities, |_| json!({}));
    routes = call(routes, driver, paths::node::STAGE_VOLUME, Driver::stage, |request: &v1::NodeStageVolumeRequest| {
        json!({"volume": request.volume_id, "path": request.staging_target_path, "secrets": request.secrets,
            "context": request.publish_context, "attributes": request.volume_context,
            "capability": capability(request.volume_capability.as_ref())})
    });
    routes = call(routes, driver, paths::node::UNSTAGE_VOLUME, Driver::unstage, |request| {
        let request: &v1::NodeUnstageVolumeRequest = request;
        json!({"volume": request.volume_id, "path": request.staging_target_path})
    });
    routes =
        call(routes, driver, paths::node::PUBLISH_VOLUME, Driver::publish, |request: &v1::NodePublishVolumeRequest| {
            json!({"volume": request.volume_id, "path": request.target_path, "staging": request.staging_target_path,
            "secrets": request.secrets, "context": request.publish_context, "attributes": request.volume_context,
            "readonly": request.readonly, "capability": capability(request.volume_capability.as_ref())})
        });
    routes = call(routes, driver, paths::node::UNPUBLISH_VOLUME, Driver::unpublish, |request| {
        let request: &v1::NodeUnpublishVolumeRequest = request;
        json!({"volume": request.volume_id, "path": request.target_path})
    });
    routes =
        call(routes, driver, paths::node::EXPAND_VOLUME, Driver::expand, |request: &v1::NodeExpandVolumeRequest| {
            json!({"volume": request.volume_id, "path": request.volume_path, "staging": request.staging_target_path,
            "bytes": request.capacity_range.map(|range| range.required_bytes), "secrets": request.secrets})
        });
    call(
        routes,
        driver,
        paths::node::GET_VOLUME_STATS,
        Driver::stats,
        |request: &v1::NodeGetVolumeStatsRequest| json!({"volume": request.volume_id, "path": request.volume_path}),
    )
}

fn capability(capability: Option<&v1::VolumeCapability>) -> Value {
    let Some(capability) = capability else { return Value::Null };
    let mode = capability.access_mode.map(|mode| mode.mode().as_str_name());
    match &capability.access_type {
        Some(AccessType::Mount(mount)) => json!({"mode": mode, "kind": "mount", "fsType": mount.fs_type,
            "flags": mount.mount_flags, "group": mount.volume_mount_group}),
        Some(AccessType::Block(_)) => json!({"mode": mode, "kind": "block"}),
        None => json!({"mode": mode}),
    }
}

#[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "all calls have one form")]
impl Driver {
    fn volume(&self, handle: &str) -> PathBuf {
        self.config.dir.join("volumes").join(handle)
    }

    fn plugin_info(&self, _: &plugin::InfoRequest) -> Result<plugin::PluginInfo> {
        Ok(plugin::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.config.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        })
    }

    fn node_info(&self, _: &v1::NodeGetInfoRequest) -> Result<v1::NodeGetInfoResponse> {
        let segments = BTreeMap::from([(format!("topology.{}/node", self.config.name), "here".to_owned())]);
        Ok(v1::NodeGetInfoResponse {
            node_id: "node-id".to_owned(),
            max_volumes_per_node: self.config.limit,
            accessible_topology: Some(v1::Topology { segments }),
        })
    }

    fn capabilities(&self, _: &v1::NodeGetCapabilitiesRequest) -> Result<v1::NodeGetCapabilitiesResponse> {
        let known = [
            ("stage", rpc::Type::StageUnstageVolume),
            ("expand", rpc::Type::ExpandVolume),
            ("stats", rpc::Type::GetVolumeStats),
            ("mount-group", rpc::Type::VolumeMountGroup),
        ];
        let has = |(word, _): &&(&str, rpc::Type)| self.config.capabilities.iter().any(|held| held == word);
        let capability = |(_, kind): &(&str, rpc::Type)| v1::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc { r#type: (*kind).into() })),
        };
        Ok(v1::NodeGetCapabilitiesResponse { capabilities: known.iter().filter(has).map(capability).collect() })
    }

    fn stage(&self, request: &v1::NodeStageVolumeRequest) -> Result<v1::NodeStageVolumeResponse> {
        let staging = Path::new(&request.staging_target_path);
        if !is_block(request.volume_capability.as_ref()) && !is_mounted(staging)? {
            let volume = self.volume(&request.volume_id);
            fs::create_dir_all(&volume)?;
            mount_bind(&volume, staging)?;
        }
        Ok(v1::NodeStageVolumeResponse {})
    }

    fn unstage(&self, request: &v1::NodeUnstageVolumeRequest) -> Result<v1::NodeUnstageVolumeResponse> {
        let staging = Path::new(&request.staging_target_path);
        while is_mounted(staging)? {
            unmount(staging, UnmountFlags::empty())?;
        }
        Ok(v1::NodeUnstageVolumeResponse {})
    }

    fn publish(&self, request: &v1::NodePublishVolumeRequest) -> Result<v1::NodePublishVolumeResponse> {
        let target = Path::new(&request.target_path);
        if is_mounted(target)? {
            return Ok(v1::NodePublishVolumeResponse {});
        }
        if is_block(request.volume_capability.as_ref()) {
            let file = self.volume(&request.volume_id).with_extension("img");
            if !file.exists() {
                fs::File::create(&file)?.set_len(4 << 20)?;
            }
            let device = output(Command::new("losetup").args(["--find", "--show"]).arg(&file))?;
            fs::File::create(target)?;
            mount_bind(device.trim(), target)?;
            return Ok(v1::NodePublishVolumeResponse {});
        }
        let source = if request.staging_target_path.is_empty() {
            let volume = self.volume(&request.volume_id);
            fs::create_dir_all(&volume)?;
            volume
        } else {
            PathBuf::from(&request.staging_target_path)
        };
        fs::create_dir_all(target)?;
        mount_bind(&source, target)?;
        if request.readonly {
            mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "")?;
        }
        Ok(v1::NodePublishVolumeResponse {})
    }

    fn unpublish(&self, request: &v1::NodeUnpublishVolumeRequest) -> Result<v1::NodeUnpublishVolumeResponse> {
        let target = Path::new(&request.target_path);
        while is_mounted(target)? {
            unmount(target, UnmountFlags::empty())?;
        }
        let found = fs::symlink_metadata(target);
        match found {
            Ok(meta) if meta.is_dir() => fs::remove_dir(target)?,
            Ok(_) => fs::remove_file(target)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let file = self.volume(&request.volume_id).with_extension("img");
        if file.exists() {
            for line in output(Command::new("losetup").arg("--associated").arg(&file))?.lines() {
                let device = line.split(':').next().context("losetup names a device")?;
                output(Command::new("losetup").args(["--detach", device]))?;
            }
        }
        Ok(v1::NodeUnpublishVolumeResponse {})
    }

    fn expand(&self, request: &v1::NodeExpandVolumeRequest) -> Result<v1::NodeExpandVolumeResponse> {
        let capacity_bytes = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        fs::write(self.volume(&request.volume_id).with_extension("size"), capacity_bytes.to_string())?;
        Ok(v1::NodeExpandVolumeResponse { capacity_bytes })
    }

    fn stats(&self, _: &v1::NodeGetVolumeStatsRequest) -> Result<v1::NodeGetVolumeStatsResponse> {
        let usage = |unit: v1::volume_usage::Unit, used, total| v1::VolumeUsage {
            available: total - used,
            total,
            used,
            unit: unit.into(),
        };
        let bytes = usage(v1::volume_usage::Unit::Bytes, 7_000, 1_000_000);
        let inodes = usage(v1::volume_usage::Unit::Inodes, 3, 100);
        Ok(v1::NodeGetVolumeStatsResponse { usage: vec![bytes, inodes], volume_condition: None })
    }
}

fn is_block(capability: Option<&v1::VolumeCapability>) -> bool {
    matches!(capability.and_then(|capability| capability.access_type.as_ref()), Some(AccessType::Block(_)))
}

/// The last mount at a path, whatever it shows.
fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.to_str().context("paths of tests are UTF-8")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(path)))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
