//! What is mounted in a container, in order: pure.

use std::path::{Path, PathBuf};

use carob_cri::v1;
use carob_shim::params::IdRange;
use serde_json::{Value, json};

use crate::user_namespace::{self, UserNamespaceError};

use super::{HostFacts, SandboxView, Security, SpecError, SpecInput, StagedMount};

/// Anonymous volumes of one image.
const VOLUMES_MAX: usize = 100;

pub(super) const CGROUP_DIRECTORY: &str = "/sys/fs/cgroup";

/// All mounts, and what has to be laid together for them. One that the container asks for at the place of a standard one
/// replaces it.
pub(super) fn mounts(input: &SpecInput<'_>, security: &Security) -> Result<(Vec<Value>, Vec<StagedMount>), SpecError> {
    let sandbox = input.sandbox;
    let asked = checked(&input.config.mounts, sandbox.user_ids)?;
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
    let taken = mounts.iter().filter_map(|mount| mount["destination"].as_str());
    let taken: Vec<PathBuf> =
        taken.chain(asked.iter().map(|mount| mount.container_path.as_str())).map(cleaned).collect();
    let mut staging = Staging { rootfs: input.rootfs, user_ids: sandbox.user_ids, staged: Vec::new() };
    let mut placed = Vec::new();
    for path in volumes(input, &taken)? {
        placed.push((depth(&path), staging.volume(path)));
    }
    for mount in asked {
        let made = match input.images.get(&mount.container_path) {
            Some(layers) => staging.image(&mount.container_path, layers),
            None => bind(mount),
        };
        placed.push((depth(Path::new(&mount.container_path)), made));
    }
    if input.sandbox.user_ids.is_some() {
        for mount in mounts.iter_mut().chain(placed.iter_mut().map(|(_, mount)| mount)) {
            staging.bind(mount, asked)?;
        }
    }
    for device in input.devices.iter().filter(|device| !device.is_in_dev()) {
        let mut source = device.node.path.clone();
        if sandbox.user_ids.is_some() {
            source = staging.add(StagedMount::Bind { source: source.into(), mapped: false });
        }
        let path = &device.container_path;
        let options = ["bind", "rprivate"];
        let mount = json!({"destination": path, "type": "bind", "source": source, "options": options});
        placed.push((depth(Path::new(path)), mount));
    }
    // Those above come before those below; otherwise in the order asked for.
    placed.sort_by_key(|(depth, _)| *depth);
    mounts.extend(placed.into_iter().map(|(_, mount)| mount));
    Ok((mounts, staging.staged))
}

/// The places of the image's anonymous volumes (`VOLUME` of a Dockerfile). A mount at the same place goes before one.
fn volumes(input: &SpecInput<'_>, taken: &[PathBuf]) -> Result<Vec<PathBuf>, SpecError> {
    let listed = input.image.config().as_ref().and_then(|image| image.volumes().clone()).unwrap_or_default();
    let mut places: Vec<PathBuf> = Vec::new();
    for path in listed.iter().map(|path| cleaned(path)) {
        if path.parent().is_some() && !taken.contains(&path) && !places.contains(&path) {
            places.push(path);
        }
    }
    if places.len() > VOLUMES_MAX {
        return Err(SpecError::Mount { path: listed[0].clone(), reason: "the image has more than 100 volumes" });
    }
    Ok(places)
}

/// An absolute path without empty parts, `.` and `..`.
fn cleaned(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    clean
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

/// File systems that are laid together before the container's root is: each gets a number, and is bound by it.
struct Staging<'a> {
    rootfs: &'a str,
    user_ids: Option<IdRange>,
    staged: Vec<StagedMount>,
}

impl Staging<'_> {
    fn add(&mut self, what: StagedMount) -> String {
        self.staged.push(what);
        format!("{}/{}", self.rootfs, self.staged.len() - 1)
    }

    fn volume(&mut self, path: PathBuf) -> Value {
        let source = self.add(StagedMount::Volume(path.clone()));
        json!({"destination": path, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"]})
    }

    /// Has a container in a user namespace bind a copy. The sandbox's own files are its users'; those of a volume are where that
    /// is asked for, and control groups cannot be.
    fn bind(&mut self, mount: &mut Value, asked: &[v1::Mount]) -> Result<(), SpecError> {
        let source = mount["source"].as_str().unwrap_or_default().to_owned();
        if mount["type"] != "bind" || Path::new(&source).starts_with(self.rootfs) {
            return Ok(());
        }
        let place = mount["destination"].as_str().unwrap_or_default();
        let mapped = match asked.iter().find(|asked| asked.container_path == place) {
            // Of an image: it belongs to the users that it was made for.
            Some(asked) if asked.image.is_some() => true,
            Some(asked) => match user_namespace::of_mount(asked)? {
                Some(ids) if Some(ids) != self.user_ids => return Err(UserNamespaceError::Other.into()),
                ids => ids.is_some(),
            },
            None => !Path::new(place).starts_with(CGROUP_DIRECTORY),
        };
        mount["source"] = self.add(StagedMount::Bind { source: source.into(), mapped }).into();
        Ok(())
    }

    /// An image's files, to be read and run only (KEP-4639). A merge of one layer would be refused by overlayfs: it is bound as it is.
    fn image(&mut self, place: &str, layers: &[PathBuf]) -> Value {
        let source = match layers {
            [only] => only.display().to_string(),
            layers => self.add(StagedMount::Image(layers.to_vec())),
        };
        let options = ["rbind", "rprivate", "ro", "nosuid", "nodev"];
        json!({"destination": place, "type": "bind", "source": source, "options": options})
    }
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

fn checked(asked: &[v1::Mount], user_ids: Option<IdRange>) -> Result<&[v1::Mount], SpecError> {
    for mount in asked {
        let refused = |reason| Err(SpecError::Mount { path: mount.container_path.clone(), reason });
        let is_mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        if is_mapped && user_ids.is_none() {
            return refused("its owners can be mapped in a user namespace only");
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
    Ok(asked)
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
