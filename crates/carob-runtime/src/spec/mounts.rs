//! What is mounted in a container, in order: pure.

use std::path::{Path, PathBuf};

use carob_cri::v1;
use serde_json::{Value, json};

use super::{HostFacts, SandboxView, Security, SpecError, SpecInput};

pub(super) const CGROUP_DIRECTORY: &str = "/sys/fs/cgroup";

/// All mounts. One that the container asks for at the place of a standard one replaces it.
pub(super) fn mounts(input: &SpecInput<'_>, security: &Security) -> Result<Vec<Value>, SpecError> {
    let sandbox = input.sandbox;
    let asked = ordered(&input.config.mounts)?;
    let mut mounts: Vec<Value> = standard(sandbox, security.privileged);
    if shown_groups(input, security.privileged).is_empty() {
        mounts.extend(cgroups(input.host, sandbox, security.privileged));
    }
    let files = [("/etc/hostname", &sandbox.hostname_file), ("/etc/resolv.conf", &sandbox.resolv_conf_file)];
    let access = if security.readonly_rootfs { "ro" } else { "rw" };
    for (path, source) in files {
        if let Some(source) = source {
            mounts.push(json!({"destination": path, "type": "bind", "source": source,
                "options": ["rbind", "rprivate", access]}));
        }
    }
    mounts.retain(|mount| !asked.iter().any(|asked| mount["destination"] == *asked.container_path));
    for mount in asked {
        mounts.push(match input.images.get(&mount.container_path) {
            Some(layers) => image(&mount.container_path, layers)?,
            None => bind(mount),
        });
    }
    Ok(mounts)
}

fn standard(sandbox: &SandboxView, privileged: bool) -> Vec<Value> {
    let access = if privileged { "rw" } else { "ro" };
    let shm = &sandbox.shm;
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/dev/shm", "type": "bind", "source": shm,
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"]}),
    ]
}

/// The container's own groups; a privileged one gets all of v2. They are mounted by their paths, since libcontainer would
/// look for them in trees that it is not shown, and on v1 in the wrong procfs where a container shares the PID namespace of
/// its Pod.
fn cgroups(host: &HostFacts, sandbox: &SandboxView, privileged: bool) -> Vec<Value> {
    let access = if privileged { "rw" } else { "ro" };
    let group = below_root(&sandbox.cgroup);
    if host.cgroup_trees.is_empty() {
        let options = ["nosuid", "noexec", "nodev", "relatime", access];
        return vec![if privileged {
            json!({"destination": CGROUP_DIRECTORY, "type": "cgroup", "source": "cgroup", "options": options})
        } else {
            let source = Path::new(CGROUP_DIRECTORY).join(group);
            let options = [["bind", "rprivate"].as_slice(), &options].concat();
            json!({"destination": CGROUP_DIRECTORY, "type": "bind", "source": source, "options": options})
        }];
    }
    let mut mounts = vec![json!({"destination": CGROUP_DIRECTORY, "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", "mode=755"]})];
    mounts.extend(host.cgroup_trees.iter().map(|(name, tree)| {
        json!({"destination": format!("{CGROUP_DIRECTORY}/{name}"), "type": "bind", "source": tree.join(group),
            "options": ["bind", "rprivate", "nosuid", "noexec", "nodev", access]})
    }));
    mounts
}

/// The container's own groups on v1, where nothing that it mounts has to do with them: by name, where they are. With all of
/// them in the configuration, a container spends two fifths of its making on their places.
pub(super) fn shown_groups(input: &SpecInput<'_>, privileged: bool) -> Vec<(String, PathBuf)> {
    let asked = &input.config.mounts;
    let is_near = |mount: &v1::Mount| {
        let path = Path::new(&mount.container_path);
        path.starts_with("/sys") || path.parent().is_none()
    };
    if !own_groups_only(asked, privileged) || asked.iter().any(is_near) {
        return Vec::new();
    }
    let group = below_root(&input.sandbox.cgroup);
    input.host.cgroup_trees.iter().map(|(name, tree)| (name.clone(), tree.join(group))).collect()
}

fn below_root(group: &Path) -> &Path {
    group.strip_prefix("/").unwrap_or(group)
}

/// Whether no volume shows cgroup filesystems of the host, so that the container's maker needs none but its own groups.
pub(super) fn own_groups_only(asked: &[v1::Mount], privileged: bool) -> bool {
    let trees = Path::new(CGROUP_DIRECTORY);
    let holds_groups = |mount: &v1::Mount| {
        let path = Path::new(&mount.host_path);
        !mount.host_path.is_empty() && (path.starts_with(trees) || trees.starts_with(path))
    };
    !privileged && !asked.iter().any(holds_groups)
}

/// Those above come before those below; otherwise in the order asked for.
fn ordered(asked: &[v1::Mount]) -> Result<Vec<&v1::Mount>, SpecError> {
    for mount in asked {
        let refused = |reason| Err(SpecError::Mount { path: mount.container_path.clone(), reason });
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return refused("id-mapped mounts are not supported");
        }
        if !mount.container_path.starts_with('/') {
            return refused("the path is not absolute");
        }
        if mount.host_path.is_empty() && mount.image.is_none() {
            return refused("there is no host path");
        }
        if mount.recursive_read_only
            && (!mount.readonly || mount.propagation != v1::MountPropagation::PropagationPrivate as i32)
        {
            return refused("a mount that is read-only in depth must be read-only and private");
        }
    }
    let mut sorted: Vec<&v1::Mount> = asked.iter().collect();
    sorted.sort_by_key(|mount| mount.container_path.split('/').filter(|part| !part.is_empty()).count());
    Ok(sorted)
}

/// An image's files, to be read only (KEP-4639). A merge of one layer would be refused by overlayfs: it is bound as it is.
fn image(place: &str, layers: &[PathBuf]) -> Result<Value, SpecError> {
    /// Options of one mount(2) have to fit a page, bytes.
    const OPTIONS_LEN_MAX: usize = 4095;
    if let [only] = layers {
        let options = ["rbind", "rprivate", "ro", "noexec", "nosuid", "nodev"];
        return Ok(json!({"destination": place, "type": "bind", "source": only, "options": options}));
    }
    let paths: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
    let lower = format!("lowerdir={}", paths.join(":"));
    if lower.len() > OPTIONS_LEN_MAX {
        return Err(SpecError::Mount { path: place.to_owned(), reason: "the image has too many layers" });
    }
    let options = ["ro", "noexec", "nosuid", "nodev", &lower];
    Ok(json!({"destination": place, "type": "overlay", "source": "overlay", "options": options}))
}

fn bind(mount: &v1::Mount) -> Value {
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationHostToContainer => "rslave",
        v1::MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    json!({"destination": mount.container_path, "type": "bind", "source": mount.host_path,
        "options": ["rbind", propagation, access]})
}

/// How mounts of the host travel into the container's root, as the most open of its mounts needs it.
pub(super) fn rootfs_propagation(asked: &[v1::Mount]) -> Option<&'static str> {
    let any = |wanted| asked.iter().any(|mount| mount.propagation() == wanted);
    if any(v1::MountPropagation::PropagationBidirectional) {
        Some("shared")
    } else if any(v1::MountPropagation::PropagationHostToContainer) {
        Some("slave")
    } else {
        None
    }
}
