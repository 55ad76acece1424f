//! emptyDir volumes: a directory, or a tmpfs for `medium: Memory`.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;

use carob_api::quantity::Quantity;
use fs_err as fs;
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Anyone in the Pod may write (kubelet `pkg/volume/emptydir`).
const MODE: u32 = 0o777;
/// With a group, new files belong to it.
const MODE_GROUP: u32 = 0o2777;

/// Makes the volume at `path` unless it is there: what containers have put into it stays. One in memory holds no more than
/// `memory_max`.
pub(super) fn prepare(
    path: &Path,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
    memory_max: Option<i64>,
) -> io::Result<()> {
    let memory = match source.medium.as_deref() {
        None | Some("") => false,
        Some("Memory") => true,
        Some(other) => return Err(io::Error::other(format!("the emptyDir medium {other:?} is not supported"))),
    };
    let size_limit = match source.size_limit.as_ref().filter(|_| memory) {
        None => None,
        Some(text) => Some(Quantity::parse(&text.0).map_err(io::Error::other)?.value()).filter(|bytes| *bytes > 0),
    };
    let made = !path.exists();
    let fresh = if memory {
        in_memory(path, [size_limit, memory_max].into_iter().flatten().min())?
    } else {
        fs::create_dir_all(path)?;
        made
    };
    if fresh {
        if group.is_some() {
            super::atomic::chown(path, None, group)?;
        }
        let mode = if group.is_some() { MODE_GROUP } else { MODE };
        fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// Makes the directory `path` with a tmpfs on it. Answers whether the tmpfs is new.
pub(super) fn in_memory(path: &Path, size_limit_bytes: Option<i64>) -> io::Result<bool> {
    fs::create_dir_all(path)?;
    if is_mount_point(path)? {
        return Ok(false);
    }
    let options = size_limit_bytes.map_or_else(|| "mode=0755".to_owned(), |bytes| format!("mode=0755,size={bytes}"));
    let options = std::ffi::CString::new(options)?;
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|error| io::Error::other(format!("mount a tmpfs at {}: {error}", path.display())))?;
    Ok(true)
}

/// Unmounts what [`prepare`] or [`in_memory`] mounted; the directory itself is its caller's.
pub(super) fn release(path: &Path) -> io::Result<()> {
    while is_mount_point(path)? {
        unmount(path, UnmountFlags::DETACH)
            .map_err(|error| io::Error::other(format!("unmount {}: {error}", path.display())))?;
    }
    Ok(())
}

pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_tmpfs_and_its_content_survives_a_second_look() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("v");
        let source = EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: None };
        prepare(&path, &source, None, Some(1 << 20)).expect("mounted");
        let size = rustix::fs::statvfs(&path).expect("there");
        assert_eq!(size.f_blocks * size.f_frsize, 1 << 20, "as much as the Pod may use");
        assert!(is_mount_point(&path).expect("there"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o777);
        fs::write(path.join("kept"), "x").expect("written");
        prepare(&path, &source, None, None).expect("still mounted");
        assert!(path.join("kept").exists());
        release(&path).expect("unmounted");
        assert!(!is_mount_point(&path).expect("there"));
        assert!(!path.join("kept").exists());
    }

    #[test]
    fn a_group_owns_what_is_put_into_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("v");
        prepare(&path, &EmptyDirVolumeSource::default(), Some(4242), None).expect("made");
        let meta = fs::metadata(&path).expect("there");
        assert_eq!((meta.permissions().mode() & 0o7777, meta.gid()), (0o2777, 4242));
    }
}
