//! The files and directories of a sandbox, and the mounts that go with them. Blocking.

use std::io;
use std::path::{Path, PathBuf};

use carob_cri::v1;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::error::RuntimeError;
use crate::paths::Paths;

type Result<T> = std::result::Result<T, RuntimeError>;

/// How large a Pod's `/dev/shm` may grow, in bytes (containerd `internal/cri/server/podsandbox`, `defaultShmSize`).
const SHM_BYTES: u64 = 64 << 20;

/// A directory that only root enters.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(RuntimeError::file("make directory", path))
}

/// A directory of a container's root: it is entered by users who are not root.
pub(crate) fn make_root_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(RuntimeError::file("make directory", path))
}

/// Removes a directory with all below it; nothing happens when there is none.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    match fs_err::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RuntimeError::file("remove", path)(error)),
    }
}

/// The names in a directory; none when there is no directory.
pub(crate) fn names_in(path: &Path) -> Result<Vec<String>> {
    let failed = |error| RuntimeError::file("read directory", path)(error);
    let entries = match fs_err::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Makes the one place where containers mount their roots: a mount of its own that is private, so that nothing mounted
/// there comes back to the host, whatever propagation a container asks for.
pub(crate) fn prepare_rootfs_target(target: &Path) -> Result<()> {
    make_directory(target)?;
    let mounts = carob_sys::mountinfo::read().map_err(RuntimeError::file("read the mounts above", target))?;
    let target = fs_err::canonicalize(target).map_err(RuntimeError::file("find", target))?;
    if mounts.iter().any(|mount| mount.target == target) {
        return Ok(());
    }
    let mount = || -> rustix::io::Result<()> {
        rustix::mount::mount_bind(&target, &target)?;
        rustix::mount::mount_change(&target, MountPropagationFlags::PRIVATE)
    };
    mount().map_err(|error| RuntimeError::file("mount", &target)(error.into()))
}

/// Takes off the mount that a runtime keeps in its run directory for the next one to find. Without it there is nothing to do.
pub(crate) fn release_run_dir(run_dir: &Path) -> Result<()> {
    let target = Paths::new(Path::new(""), run_dir).rootfs();
    match rustix::mount::unmount(&target, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(RuntimeError::file("unmount", target)(error.into())),
    }
}

pub(crate) fn mount_shm(target: &Path) -> Result<()> {
    make_directory(target)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=1777,size={SHM_BYTES}"))
        .map_err(|error| RuntimeError::file("mount", target)(error.into()))?;
    rustix::mount::mount("shm", target, "tmpfs", flags, options.as_c_str())
        .map_err(|error| RuntimeError::file("mount", target)(error.into()))
}

/// Takes a mount off; nothing happens when nothing is mounted or there is no such directory.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(RuntimeError::file("unmount", target)(error.into())),
    }
}

/// Files that every container of a sandbox sees, unless it mounts its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SandboxFiles {
    pub(crate) hostname: Option<PathBuf>,
    pub(crate) resolv_conf: Option<PathBuf>,
}

/// Writes `/etc/hostname` and `/etc/resolv.conf`. A Pod in the host's network has the host's.
pub(crate) fn write_sandbox_files(paths: &Paths, sandbox: &str, config: &v1::PodSandboxConfig) -> Result<SandboxFiles> {
    let directory = paths.sandbox(sandbox);
    let mut files = sandbox_files(paths, sandbox, config);
    if let Some(path) = &files.hostname {
        fs_err::write(path, format!("{}\n", config.hostname)).map_err(RuntimeError::file("write", path))?;
    }
    let path = directory.join("resolv.conf");
    match &config.dns_config {
        Some(dns) => fs_err::write(&path, resolv_conf(dns)).map_err(RuntimeError::file("write", &path))?,
        // As a copy, since a container that writes its own must not write the host's.
        None => match fs_err::copy("/etc/resolv.conf", &path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => files.resolv_conf = None,
            Err(error) => return Err(RuntimeError::file("copy /etc/resolv.conf to", &path)(error)),
        },
    }
    Ok(files)
}

/// The files that [`write_sandbox_files`] has written, as far as they exist.
pub(crate) fn sandbox_files(paths: &Paths, sandbox: &str, config: &v1::PodSandboxConfig) -> SandboxFiles {
    let directory = paths.sandbox(sandbox);
    SandboxFiles {
        hostname: (!config.hostname.is_empty()).then(|| directory.join("hostname")),
        resolv_conf: Some(directory.join("resolv.conf")),
    }
}

/// resolv.conf(5).
fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_the_pod_says() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let dns = v1::DnsConfig {
            servers: words(&["10.96.0.10", "::1"]),
            searches: words(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: words(&["ndots:5"]),
        };
        let expected = "search default.svc.cluster.local svc.cluster.local\n\
            nameserver 10.96.0.10\nnameserver ::1\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
        assert_eq!(resolv_conf(&v1::DnsConfig::default()), "");
    }

    #[test]
    fn removing_twice_is_removing_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b");
        make_directory(&path).expect("made");
        remove_directory(&path).expect("removed");
        remove_directory(&path).expect("nothing to remove");
        unmount(&path).expect("nothing to unmount");
        assert_eq!(names_in(&path).expect("no directory, no names"), Vec::<String>::new());
    }
}
