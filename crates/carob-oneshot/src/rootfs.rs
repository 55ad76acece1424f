//! The root filesystem of a container: layers under a writable one, in a mount namespace that ends with the container.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use carob_shim::params::Layers;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use crate::error::{Error, Result};
use crate::users::Users;

/// The most of `/etc/passwd` or `/etc/group` that is read, in bytes.
const IMAGE_FILE_BYTES_MAX: u64 = 1 << 20;

/// Lays an image's layers over each other; the mount is nowhere yet. `spare` is a directory that may be mounted over.
///
/// `volatile` spares the sync of all files when the container ends: its writable layer is never used again after a
/// crash of the machine (kernel `Documentation/filesystems/overlayfs.rst`).
///
/// In a user namespace of `users` the image's files are those of the same users; what is written is theirs on the host too.
pub(crate) fn overlay(layers: &Layers, spare: &Path, users: Option<&Users>) -> Result<OwnedFd> {
    let own = Some((layers.upper.as_path(), layers.work.as_path()));
    let Some(users) = users else { return merge(&layers.lower, own, spare) };
    users.give_to_root(&layers.upper)?;
    users.with_layers(&layers.lower, spare, |lower| merge(lower, own, spare))
}

/// Lays directories over each other, the topmost first; what is written goes into the first of `own`, and without that nothing
/// can be written.
pub(crate) fn merge(lower: &[PathBuf], own: Option<(&Path, &Path)>, spare: &Path) -> Result<OwnedFd> {
    layer_by_layer(lower, own, spare).map_err(failed(spare))
}

/// Attaches a root filesystem at `target`.
pub(crate) fn attach(image: &OwnedFd, target: &Path) -> Result<()> {
    move_mount(image.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(io::Error::from)
        .map_err(failed(target))
}

pub(crate) fn failed(target: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Mount { what: "the image's layers", target: target.to_owned(), source }
}

/// One call a layer (`lowerdir+`, Linux 6.8), so no limit on the length of their paths; older kernels take all of them
/// in one string of at most a page. Before 6.5 overlayfs collects options unread and refuses them when it is created.
fn layer_by_layer(lower: &[PathBuf], own: Option<(&Path, &Path)>, spare: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let add_each = || -> rustix::io::Result<()> {
        lower.iter().try_for_each(|lower| fsconfig_set_string(context.as_fd(), "lowerdir+", lower))?;
        if let Some((upper, work)) = own {
            fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
            fsconfig_set_string(context.as_fd(), "workdir", work)?;
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
        fsconfig_create(context.as_fd())
    };
    match add_each() {
        Ok(()) => {}
        Err(rustix::io::Errno::INVAL) => return in_one_string(lower, own, spare),
        Err(error) => return Err(error.into()),
    }
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn in_one_string(lower: &[PathBuf], own: Option<(&Path, &Path)>, spare: &Path) -> io::Result<OwnedFd> {
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = own {
        options.push_str(&format!(",upperdir={},workdir={},volatile", upper.display(), work.display()));
    }
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("overlay", spare, "overlay", rustix::mount::MountFlags::empty(), options.as_c_str())?;
    detach(spare)
}

/// Takes the mount at a directory away from there.
pub(crate) fn detach(place: &Path) -> io::Result<OwnedFd> {
    let mount = open_tree(CWD, place, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    unmount(place, UnmountFlags::DETACH)?;
    Ok(mount)
}

/// Reads a file of the image, following its links inside the image only. A file that is not there is empty.
pub(crate) fn read_image_file(rootfs: &Path, path: &Path) -> Result<String> {
    let failed = |source| Error::ReadImageFile { path: path.to_owned(), source };
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(error.into()))?;
    // A FIFO in place of the file must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    let mut bytes = Vec::new();
    file.take(IMAGE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > IMAGE_FILE_BYTES_MAX {
        return Err(Error::ImageFileTooLong { path: path.to_owned(), max: IMAGE_FILE_BYTES_MAX });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_image_stay_inside_it() {
        let image = tempfile::tempdir().expect("a directory");
        let etc = image.path().join("etc");
        fs_err::create_dir(&etc).expect("a directory");
        fs_err::write(image.path().join("users"), "inside").expect("a file");
        std::os::unix::fs::symlink("/users", etc.join("passwd")).expect("a link");
        std::os::unix::fs::symlink("/../../../etc/hostname", etc.join("group")).expect("a link");
        let read = |path: &str| read_image_file(image.path(), Path::new(path)).expect("readable or absent");
        assert_eq!(read("/etc/passwd"), "inside");
        assert_eq!(read("/etc/group"), "", "the host's file is out of reach");
        fs_err::write(etc.join("long"), vec![b'x'; 1 + (1 << 20)]).expect("a file");
        let error = read_image_file(image.path(), Path::new("/etc/long")).expect_err("over the limit");
        assert!(matches!(error, Error::ImageFileTooLong { .. }), "{error}");
    }
}
