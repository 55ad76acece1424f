//! One run of a container as the runtime is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use carob_cri::v1::{
    ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig, Mount, MountPropagation,
    Signal,
};
use k8s_openapi::api::core::v1::{Pod, VolumeDevice, VolumeMount};

use super::resources::{self, ResourceError};
use super::{labels, notes, security};
use crate::devices::WithDevices;
use crate::env::expand::{expand, expand_all};
use crate::paths::PodDirs;
use crate::pod::{Member, PodId};
use crate::user_ranges::UserRange;

/// Where a container leaves its last words if it names no other place (`v1.TerminationMessagePathDefault`).
pub const TERMINATION_PATH_DEFAULT: &str = "/dev/termination-log";

#[derive(Debug, thiserror::Error)]
pub enum ContainerConfigError {
    #[error(transparent)]
    Resources(#[from] ResourceError),
    #[error("volume {volume:?} of the mount at {path} does not exist")]
    NoVolume { volume: String, path: String },
    #[error("failed to expand subPathExpr {expression:?}: {variable} is not set")]
    SubPathExpr { expression: String, variable: String },
}

/// One run of a container.
#[derive(Debug)]
pub(crate) struct RunFacts<'a> {
    pub attempt: u32,
    pub restart_delay: Duration,
    /// How many times all containers of the Pod have started over.
    pub cycle: u32,
    /// The image's id, from the pull.
    pub image_ref: String,
    pub env: Vec<KeyValue>,
    /// Where each volume of the Pod is.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// The volumes that no container may write to.
    pub read_only: &'a BTreeSet<String>,
    /// The volumes that are block devices, with the device.
    pub devices: &'a BTreeMap<String, PathBuf>,
    /// The images that are volumes of the Pod and mounted in the container, by volume.
    pub volume_images: &'a BTreeMap<String, ImageSpec>,
    /// What comes with the devices of plug-ins, but for the variables, which are in `env`.
    pub with_devices: WithDevices,
    /// The container whose processes an ephemeral one looks at.
    pub target_id: Option<String>,
    pub machine: resources::Machine,
    /// Of a Pod with a user namespace of its own.
    pub users: Option<UserRange>,
    pub seccomp_default: bool,
}

/// A mount whose source is an entry of a volume that has yet to be pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubPathMount {
    /// The place in [`ContainerConfig::mounts`].
    pub mount_index: usize,
    pub volume: PathBuf,
    pub sub_path: String,
    pub target: PathBuf,
}

/// A config, and what must be done on disk before the runtime sees it.
#[derive(Debug)]
pub struct Prepared {
    pub config: ContainerConfig,
    pub sub_paths: Vec<SubPathMount>,
    pub termination_log: PathBuf,
}

pub(crate) fn config(
    pod: &Pod,
    member: &Member<'_>,
    facts: RunFacts<'_>,
    dirs: &PodDirs,
) -> Result<Prepared, ContainerConfigError> {
    let id = PodId::of(pod);
    let spec = &*member.spec;
    let values: BTreeMap<&str, &str> =
        facts.env.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
    let lookup = |name: &str| values.get(name).map(|value| (*value).to_owned());
    let expand_list = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| expand(word, &lookup)).collect()
    };
    let (mut mounts, sub_paths) = volume_mounts(&id, member, &facts, &lookup, dirs)?;
    let mounted = |mounts: &[Mount], path: &str| mounts.iter().any(|mount| mount.container_path == path);
    if !mounted(&mounts, "/etc/hosts") {
        mounts.push(file_mount("/etc/hosts", dirs.hosts(&id.uid)));
    }
    let termination_log = dirs.termination_log(&id.uid, member.name(), facts.attempt);
    let termination_path = spec.termination_message_path.as_deref().unwrap_or(TERMINATION_PATH_DEFAULT);
    if !termination_path.is_empty() && !mounted(&mounts, termination_path) {
        mounts.push(file_mount(termination_path, termination_log.clone()));
    }
    if let Some(users) = facts.users {
        mounts.iter_mut().filter(|mount| mount.image.is_none()).for_each(|mount| map_owners(mount, users));
    }
    // As upstream: its owners are the machine's, and a mount that the Pod asks for wins.
    let of_devices = facts.with_devices.mounts.iter();
    let added: Vec<Mount> = of_devices.filter(|mount| !mounted(&mounts, &mount.container_path)).cloned().collect();
    mounts.extend(added);
    let (command, args) = (expand_list(&spec.command), expand_list(&spec.args));
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: member.name().to_owned(), attempt: facts.attempt }),
        image: Some(ImageSpec {
            image: facts.image_ref.clone(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command,
        args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        mounts,
        devices: devices(member, &facts)?,
        cdi_devices: facts.with_devices.cdi_devices.clone(),
        labels: container_labels(&id, member.name()),
        annotations: container_notes(member, &facts, termination_path),
        log_path: PodDirs::log_name(member.name(), facts.attempt),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container(pod, spec, &facts.machine)?),
            security_context: Some(security::container(
                pod,
                spec,
                facts.users,
                facts.target_id.as_deref(),
                facts.seccomp_default,
            )),
        }),
        stop_signal: stop_signal(spec.lifecycle.as_ref().and_then(|hooks| hooks.stop_signal.as_deref())).into(),
        envs: facts.env,
    };
    Ok(Prepared { config, sub_paths, termination_log })
}

fn stop_signal(name: Option<&str>) -> Signal {
    let Some(name) = name else { return Signal::RuntimeDefault };
    Signal::from_str_name(&name.replace('+', "PLUS").replace('-', "MINUS")).unwrap_or(Signal::RuntimeDefault)
}

/// Has the container's users own the files of a mount that the same users own on disk.
fn map_owners(mount: &mut Mount, users: UserRange) {
    mount.uid_mappings = vec![users.mapping()];
    mount.gid_mappings = vec![users.mapping()];
}

fn file_mount(container_path: &str, host_path: PathBuf) -> Mount {
    Mount { container_path: container_path.to_owned(), host_path: host_path.display().to_string(), ..Mount::default() }
}

fn container_labels(id: &PodId, name: &str) -> BTreeMap<String, String> {
    [
        (labels::POD_NAME, id.name.as_str()),
        (labels::POD_NAMESPACE, id.namespace.as_str()),
        (labels::POD_UID, id.uid.as_str()),
        (labels::CONTAINER_NAME, name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn container_notes(member: &Member<'_>, facts: &RunFacts<'_>, termination_path: &str) -> BTreeMap<String, String> {
    let policy = member.spec.termination_message_policy.as_deref().unwrap_or("File");
    let own = [
        (notes::RESTART_COUNT, facts.attempt.to_string()),
        (notes::TERMINATION_PATH, termination_path.to_owned()),
        (notes::TERMINATION_POLICY, policy.to_owned()),
        (notes::RESTART_DELAY_S, facts.restart_delay.as_secs().to_string()),
        (notes::CYCLE, facts.cycle.to_string()),
        (notes::SPEC_IMAGE, crate::plan::spec_hash(member)),
        (notes::MEMORY_REQUEST, super::resources::memory_request(&member.spec).to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value));
    // What the node itself notes wins.
    facts.with_devices.annotations.clone().into_iter().chain(own).collect()
}

fn volume_mounts(
    id: &PodId,
    member: &Member<'_>,
    facts: &RunFacts<'_>,
    lookup: &impl crate::env::expand::Lookup,
    dirs: &PodDirs,
) -> Result<(Vec<Mount>, Vec<SubPathMount>), ContainerConfigError> {
    let mut mounts = Vec::new();
    let mut sub_paths = Vec::new();
    for (index, mount) in member.spec.volume_mounts.iter().flatten().enumerate() {
        if let Some(image) = facts.volume_images.get(&mount.name) {
            mounts.push(Mount {
                container_path: absolute(&mount.mount_path),
                readonly: true,
                image: Some(image.clone()),
                image_sub_path: sub_path(mount, lookup)?.unwrap_or_default(),
                ..Mount::default()
            });
            continue;
        }
        let volume = facts.volumes.get(&mount.name).ok_or_else(|| ContainerConfigError::NoVolume {
            volume: mount.name.clone(),
            path: mount.mount_path.clone(),
        })?;
        let mut source = volume.clone();
        if let Some(sub_path) = sub_path(mount, lookup)? {
            let target = dirs.sub_path(&id.uid, &mount.name, member.name(), index);
            source.clone_from(&target);
            sub_paths.push(SubPathMount { mount_index: index, volume: volume.clone(), sub_path, target });
        }
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: source.display().to_string(),
            readonly: mount.read_only.unwrap_or(false) || facts.read_only.contains(&mount.name),
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
                Some("Bidirectional") => MountPropagation::PropagationBidirectional,
                _ => MountPropagation::PropagationPrivate,
            }
            .into(),
            ..Mount::default()
        });
    }
    Ok((mounts, sub_paths))
}

/// The volumes that the container wants as block devices, and the devices that plug-ins gave it.
fn devices(member: &Member<'_>, facts: &RunFacts<'_>) -> Result<Vec<Device>, ContainerConfigError> {
    let device = |wanted: &VolumeDevice| match facts.devices.get(&wanted.name) {
        Some(host_path) => Ok(Device {
            container_path: wanted.device_path.clone(),
            host_path: host_path.display().to_string(),
            permissions: if facts.read_only.contains(&wanted.name) { "r" } else { "mrw" }.to_owned(),
        }),
        None => {
            let (volume, path) = (wanted.name.clone(), wanted.device_path.clone());
            Err(ContainerConfigError::NoVolume { volume, path })
        }
    };
    let mut all: Vec<Device> = member.spec.volume_devices.iter().flatten().map(device).collect::<Result<_, _>>()?;
    for device in &facts.with_devices.devices {
        if !all.iter().any(|held| held.container_path == device.container_path) {
            all.push(device.clone());
        }
    }
    Ok(all)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn sub_path(
    mount: &VolumeMount,
    lookup: &impl crate::env::expand::Lookup,
) -> Result<Option<String>, ContainerConfigError> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
        return expand_all(expression, lookup)
            .map(Some)
            .map_err(|variable| ContainerConfigError::SubPathExpr { expression: expression.to_owned(), variable });
    }
    Ok(mount.sub_path.clone().filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::PodView;

    fn prepare(container: serde_json::Value) -> Result<Prepared, ContainerConfigError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [container]}}))
        .expect("a Pod");
        let volumes = [("v".to_owned(), PathBuf::from("/vols/v"))].into();
        let facts = RunFacts {
            attempt: 2,
            restart_delay: Duration::from_secs(20),
            cycle: 3,
            image_ref: "sha256:1".to_owned(),
            env: vec![KeyValue { key: "A".to_owned(), value: "x".to_owned() }],
            volumes: &volumes,
            read_only: &["r".to_owned()].into(),
            devices: &[("d".to_owned(), PathBuf::from("/dev/loop7"))].into(),
            volume_images: &[("i".to_owned(), ImageSpec { image: "sha256:2".to_owned(), ..ImageSpec::default() })]
                .into(),
            with_devices: WithDevices {
                devices: vec![Device { container_path: "/dev/card".to_owned(), ..Device::default() }],
                mounts: vec![file_mount("/lib/card", "/lib/card".into()), file_mount("/a", "/b".into())],
                annotations: [(notes::CYCLE.to_owned(), "9".to_owned()), ("card".to_owned(), "1".to_owned())].into(),
                ..WithDevices::default()
            },
            target_id: None,
            machine: resources::Machine { memory_bytes: 1, ..resources::Machine::default() },
            users: None,
            seccomp_default: true,
        };
        let view = PodView::new(&pod);
        let member = &view.app_members()[0];
        config(&pod, member, facts, &PodDirs::new("/pods", "/logs", None))
    }

    #[test]
    fn a_run_carries_what_its_observer_needs() {
        let prepared = prepare(json!({"name": "c", "image": "i:1", "command": ["sh", "$(A)"], "args": ["$(B)"],
            "lifecycle": {"stopSignal": "SIGRTMIN+3"}}))
        .expect("a config");
        let config = prepared.config;
        assert_eq!(
            (config.command.as_slice(), config.args.as_slice()),
            (&["sh".to_owned(), "x".to_owned()][..], &["$(B)".to_owned()][..])
        );
        assert_eq!(config.annotations[notes::RESTART_DELAY_S], "20");
        assert_eq!(config.annotations[notes::CYCLE], "3");
        assert_eq!(config.annotations[notes::SPEC_IMAGE], "i:1");
        assert_eq!(config.annotations[notes::MEMORY_REQUEST], "0");
        assert_eq!(config.log_path, "c/2.log");
        assert_eq!(config.stop_signal(), Signal::Sigrtminplus3);
        let mounts: Vec<_> = config.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
        assert_eq!(mounts, ["/etc/hosts", "/dev/termination-log", "/lib/card", "/a"]);
        assert_eq!(
            (config.annotations["card"].as_str(), config.devices[0].container_path.as_str()),
            ("1", "/dev/card")
        );
    }

    #[test]
    fn mounts_and_sub_paths() {
        let prepared = prepare(json!({"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/a", "readOnly": true},
            {"name": "v", "mountPath": "/etc/hosts", "subPathExpr": "d/$(A)"}]}))
        .expect("a config");
        let mounts = &prepared.config.mounts;
        assert_eq!((mounts[0].host_path.as_str(), mounts[0].readonly), ("/vols/v", true));
        assert_eq!(mounts[1].host_path, "/pods/u/volume-subpaths/v/c/1");
        assert_eq!(
            mounts.iter().filter(|mount| mount.container_path == "/etc/hosts").count(),
            1,
            "the user's own wins"
        );
        assert_eq!(mounts.iter().filter(|mount| mount.container_path == "/a").count(), 1, "over a plug-in's too");
        assert_eq!(prepared.sub_paths[0].sub_path, "d/x");
        let image = prepare(json!({"name": "c", "volumeMounts": [{"name": "i", "mountPath": "/i", "subPath": "d"}]}));
        let image = image.expect("a config").config.mounts.swap_remove(0);
        assert_eq!(image.image.map(|image| image.image).as_deref(), Some("sha256:2"));
        assert_eq!((image.image_sub_path.as_str(), image.host_path.as_str(), image.readonly), ("d", "", true));
        let device = prepare(json!({"name": "c", "volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]}));
        let device = device.expect("a config").config.devices.swap_remove(0);
        assert_eq!((device.host_path.as_str(), device.container_path.as_str()), ("/dev/loop7", "/dev/x"));
        assert_eq!(device.permissions, "mrw");
        let missing = prepare(json!({"name": "c", "volumeMounts": [{"name": "none", "mountPath": "/a"}]}));
        assert!(missing.is_err_and(|error| error.to_string().contains("\"none\"")));
        let unset =
            prepare(json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/a", "subPathExpr": "$(Z)"}]}));
        assert!(unset.is_err_and(|error| error.to_string().contains("Z is not set")));
    }
}
