//! The device files of the host: looked up for containers that ask for some or for all.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use carob_cri::v1;

use crate::error::RuntimeError;
use crate::spec::{DeviceNode, GrantedDevice};

/// What of `/dev` a privileged container does not get: it has its own, or they are nothing to share (containerd
/// `pkg/oci/utils_unix.go`, `HostDevices`).
const NOT_SHARED: [&str; 9] = ["pts", "ptmx", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];

/// The most devices that one container gets: a directory such as `/dev` has some hundreds.
const DEVICES_MAX: usize = 4096;

/// The devices that a container gets. Blocking.
pub(crate) fn granted(config: &v1::ContainerConfig, privileged: bool) -> Result<Vec<GrantedDevice>, RuntimeError> {
    let mut granted = Vec::new();
    if privileged {
        collect(Path::new("/dev"), "/dev", "rwm", &NOT_SHARED, &mut granted)?;
        return Ok(granted);
    }
    for device in &config.devices {
        let host =
            fs_err::canonicalize(&device.host_path).map_err(RuntimeError::file("find device", &device.host_path))?;
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let before = granted.len();
        collect(&host, &device.container_path, permissions, &[], &mut granted)?;
        if granted.len() == before {
            let none = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a device");
            return Err(RuntimeError::file("grant", &device.host_path)(none));
        }
    }
    Ok(granted)
}

/// Adds a device file, or those of a directory, links aside.
fn collect(
    host: &Path,
    container: &str,
    permissions: &str,
    skipped: &[&str],
    granted: &mut Vec<GrantedDevice>,
) -> Result<(), RuntimeError> {
    let metadata = match fs_err::symlink_metadata(host) {
        Ok(metadata) => metadata,
        // It went away while the directory was read.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RuntimeError::file("look at", host)(error)),
    };
    if metadata.is_dir() {
        for name in crate::files::names_in(host)? {
            if !skipped.contains(&name.as_str()) {
                collect(&host.join(&name), &format!("{container}/{name}"), permissions, &[], granted)?;
            }
        }
        return Ok(());
    }
    let block = metadata.file_type().is_block_device();
    if (block || metadata.file_type().is_char_device()) && granted.len() < DEVICES_MAX {
        let node = DeviceNode {
            path: host.display().to_string(),
            block,
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        };
        granted.push(GrantedDevice { node, container_path: container.to_owned(), permissions: permissions.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking_for(host: &str) -> v1::ContainerConfig {
        let device = v1::Device { container_path: "/dev/x".into(), host_path: host.into(), permissions: "r".into() };
        v1::ContainerConfig { devices: vec![device], ..v1::ContainerConfig::default() }
    }

    #[test]
    fn a_device_is_found_and_nothing_else_is_one() {
        let granted = granted(&asking_for("/dev/null"), false).expect("every machine has it");
        assert_eq!(granted.len(), 1);
        assert_eq!((granted[0].node.major, granted[0].node.minor, granted[0].node.block), (1, 3, false));
        assert_eq!(granted[0].container_path, "/dev/x");
        for path in ["/etc/passwd", "/no/such/device"] {
            super::granted(&asking_for(path), false).expect_err(path);
        }
    }

    #[test]
    fn a_privileged_container_gets_all_but_terminals() {
        let all = granted(&v1::ContainerConfig::default(), true).expect("readable");
        let has = |path: &str| all.iter().any(|device| device.container_path == path);
        assert!(has("/dev/null"));
        assert!(!all.iter().any(|device| device.container_path.starts_with("/dev/pts/")));
        assert!(!has("/dev/console") && !has("/dev/ptmx"));
    }
}
