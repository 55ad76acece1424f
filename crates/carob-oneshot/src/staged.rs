//! Mounts that are laid together before the container's tree is made, for the container to bind.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use carob_shim::params::Staged;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, mount, move_mount};

use crate::error::{Error, Result};
use crate::inside::{self, Wanted};
use crate::rootfs::{attach, detach, failed, merge};
use crate::users::{Users, copy_of};

/// The name of the container's root beside the mounts that are staged.
const ROOT: &str = "root";

/// Lays the mounts together; they are nowhere yet. `image` is the container's root, which may be another mount of the same
/// afterwards. `spare` is a directory that may be mounted over.
pub(crate) fn prepare(
    staged: &[Staged],
    image: OwnedFd,
    spare: &Path,
    users: Option<&Users>,
) -> Result<(Vec<OwnedFd>, OwnedFd)> {
    let has_volumes = staged.iter().any(|staged| matches!(staged, Staged::Volume { .. }));
    if has_volumes {
        attach(&image, spare)?;
    }
    let laid = staged.iter().map(|staged| lay(staged, spare, users)).collect::<Result<Vec<_>>>()?;
    let image = if has_volumes { detach(spare).map_err(failed(spare))? } else { image };
    Ok((laid, image))
}

fn lay(staged: &Staged, spare: &Path, users: Option<&Users>) -> Result<OwnedFd> {
    match (staged, users) {
        (Staged::Bind { source, mapped: true }, Some(users)) => users.mapped(source),
        (Staged::Bind { source, .. }, _) => copy_of(source),
        (Staged::Image { lower }, Some(users)) => users.with_layers(lower, spare, |lower| merge(lower, None, spare)),
        (Staged::Image { lower }, None) => {
            // Beside the root, which may be attached at the spare directory itself: old kernels mount here for a moment.
            merge(lower, None, spare)
        }
        (Staged::Volume { path, upper, work }, _) => {
            let made = |source| Error::Make { path: path.clone(), source };
            let content = inside::make(spare, path, Wanted::Directory).map_err(made)?;
            // What overlayfs shows of the merged directory itself is the upper one's.
            let shown = rustix::fs::fstat(&content).map_err(|error| made(error.into()))?;
            let (uid, gid) = (Uid::from_raw(shown.st_uid), Gid::from_raw(shown.st_gid));
            let like_it = || -> rustix::io::Result<()> {
                rustix::fs::chownat(CWD, upper, Some(uid), Some(gid), AtFlags::empty())?;
                rustix::fs::chmodat(CWD, upper, Mode::from_raw_mode(shown.st_mode & 0o7777), AtFlags::empty())
            };
            like_it().map_err(|error| Error::Make { path: upper.clone(), source: error.into() })?;
            let lower = PathBuf::from(format!("/proc/self/fd/{}", content.as_raw_fd()));
            merge(&[lower], Some((upper, work)), spare)
        }
    }
}

/// Attaches the mounts at `place`, each by its number. Answers where the root is to be attached.
pub(crate) fn stage(laid: &[OwnedFd], place: &Path) -> Result<PathBuf> {
    if laid.is_empty() {
        return Ok(place.to_owned());
    }
    let attached = || -> std::io::Result<PathBuf> {
        let options: CString = c"mode=0755".into();
        mount("tmpfs", place, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))?;
        for (number, mount) in laid.iter().enumerate() {
            let target = place.join(number.to_string());
            // A file is bound over a file.
            let kind = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode);
            if kind == FileType::Directory {
                fs_err::create_dir(&target)?;
            } else {
                fs_err::write(&target, "")?;
            }
            move_mount(mount.as_fd(), "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        let root = place.join(ROOT);
        fs_err::create_dir(&root)?;
        Ok(root)
    };
    attached().map_err(|source| Error::Mount { what: "what is staged", target: place.to_owned(), source })
}
