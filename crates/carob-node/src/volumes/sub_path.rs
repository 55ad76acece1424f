//! subPath: one entry of a volume, opened so that no link in it leads out, and pinned by a bind mount before the container
//! could exchange it (CVE-2017-1002101, CVE-2021-25741).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

use fs_err as fs;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{UnmountFlags, mount_bind_recursive, unmount};

#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("subPath {0:?} must be relative and may not contain '..'")]
    Form(String),
    #[error("open the subPath {sub_path:?} of {}", volume.display())]
    Open {
        sub_path: String,
        volume: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount the subPath at {}", target.display())]
    Mount {
        target: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Nothing below the volume may lead out of it, neither by `..` nor by a link, absolute or not (openat2(2)).
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Binds the entry `sub_path` of `volume` to `target`, which is made. A missing entry becomes a directory.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<(), SubPathError> {
    let entry = open(volume, sub_path)?;
    let mount = |source| SubPathError::Mount { target: target.to_owned(), source };
    let is_dir = rustix::fs::fstat(&entry).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
    let is_dir = is_dir.map_err(|error| mount(error.into()))?;
    release(target).map_err(mount)?;
    make_target(target, is_dir).map_err(mount)?;
    mount_bind_recursive(format!("/proc/self/fd/{}", entry.as_raw_fd()), target).map_err(|error| mount(error.into()))
}

fn make_target(target: &Path, is_dir: bool) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir { fs::create_dir(target) } else { fs::write(target, []) }
}

/// Undoes [`bind`]. Nothing there is fine.
pub fn release(target: &Path) -> io::Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let removed = match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Opens the file `path` of `volume` to be read.
pub fn open_file(volume: &Path, path: &str) -> io::Result<std::fs::File> {
    let fine = Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !fine || path.is_empty() || path.contains('\0') {
        return Err(io::Error::other(SubPathError::Form(path.to_owned())));
    }
    let root = fs::File::open(volume)?;
    // A pipe that nobody writes to would hold the reader for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat2(&root, path, flags, Mode::empty(), INSIDE)?.into())
}

fn open(volume: &Path, sub_path: &str) -> Result<OwnedFd, SubPathError> {
    let relative = Path::new(sub_path);
    let fine = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !fine || sub_path.is_empty() || sub_path.contains('\0') {
        return Err(SubPathError::Form(sub_path.to_owned()));
    }
    let error = |errno: rustix::io::Errno| SubPathError::Open {
        sub_path: sub_path.to_owned(),
        volume: volume.to_owned(),
        source: errno.into(),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags | OFlags::DIRECTORY, Mode::empty()).map_err(error)?;
    match rustix::fs::openat2(&root, relative, flags, Mode::empty(), INSIDE) {
        Err(rustix::io::Errno::NOENT) => make_dirs(root, relative).map_err(error),
        Err(rustix::io::Errno::XDEV) => match inside(volume, relative) {
            // What the link led to may have changed since: this open stays inside all the same.
            Some(inside) => rustix::fs::openat2(&root, inside, flags, Mode::empty(), INSIDE).map_err(error),
            None => Err(error(rustix::io::Errno::XDEV)),
        },
        opened => opened.map_err(error),
    }
}

/// The entry behind links that name it by its absolute path on this machine, if it is in the volume (kubelet
/// `pkg/volume/util/subpath`, doBindSubPath).
fn inside(volume: &Path, relative: &Path) -> Option<std::path::PathBuf> {
    let (volume, entry) = (fs::canonicalize(volume).ok()?, fs::canonicalize(volume.join(relative)).ok()?);
    entry.strip_prefix(volume).ok().filter(|inside| *inside != Path::new("")).map(Path::to_path_buf)
}

/// Makes the directories of `relative` one by one, each opened without leaving `root`, and with its mode (kubelet
/// `pkg/volume/util/subpath/subpath_linux.go`, doSafeMakeDir).
fn make_dirs(root: OwnedFd, relative: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut so_far = std::path::PathBuf::new();
    let mut parent = rustix::io::dup(&root)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    for part in relative.components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        parent = match rustix::fs::openat2(&root, &so_far, flags, Mode::empty(), INSIDE) {
            Err(rustix::io::Errno::NOENT) => {
                let made = match rustix::fs::mkdirat(&parent, name, mode) {
                    Ok(()) => true,
                    Err(rustix::io::Errno::EXIST) => false,
                    Err(error) => return Err(error),
                };
                let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = rustix::fs::openat2(&root, &so_far, readable, Mode::empty(), INSIDE)?;
                if made {
                    // mkdirat(2) leaves out what the umask says, and the set-group-ID bit.
                    rustix::fs::fchmod(&directory, mode)?;
                }
                directory
            }
            opened => opened?,
        };
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_path_leads_out_of_the_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("inner")).expect("made");
        fs::write(volume.join("inner/file"), "x").expect("written");
        fs::create_dir(dir.path().join("secret")).expect("made");
        symlink("inner", volume.join("fine")).expect("linked");
        symlink("../secret", volume.join("relative")).expect("linked");
        symlink("/etc", volume.join("absolute")).expect("linked");
        symlink(volume.join("inner"), volume.join("stays")).expect("linked");
        symlink("/proc/self/root", volume.join("magic")).expect("linked");
        for (sub_path, allowed) in [
            ("inner", true),
            ("inner/file", true),
            ("fine/file", true),
            ("stays/file", true),
            ("stays", true),
            ("made/on/demand", true),
            ("relative", false),
            ("relative/deeper", false),
            ("absolute", false),
            ("absolute/new", false),
            ("magic", false),
            ("../secret", false),
            ("/etc", false),
            ("inner/../../secret", false),
            ("", false),
        ] {
            assert_eq!(open(&volume, sub_path).is_ok(), allowed, "{sub_path}");
        }
        assert!(volume.join("made/on/demand").is_dir());
        let mode = |path: &str| {
            let meta = fs::symlink_metadata(volume.join(path)).expect("there");
            std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o7777
        };
        let wide = std::os::unix::fs::PermissionsExt::from_mode(0o3777);
        fs::set_permissions(&volume, wide).expect("changed");
        open(&volume, "like/it").expect("made");
        assert_eq!((mode("like"), mode("like/it")), (0o3777, 0o3777), "as the volume itself");
    }

    #[test]
    fn an_entry_is_pinned_and_released() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("a")).expect("made");
        fs::write(volume.join("a/file"), "first").expect("written");
        let (as_dir, as_file) = (dir.path().join("targets/0"), dir.path().join("targets/1"));
        bind(&volume, "a", &as_dir).expect("bound");
        bind(&volume, "a/file", &as_file).expect("bound");
        bind(&volume, "a", &as_dir).expect("bound again");
        assert_eq!(fs::read_to_string(as_dir.join("file")).expect("readable"), "first");
        assert_eq!(fs::read_to_string(&as_file).expect("readable"), "first");
        release(&as_dir).expect("released");
        release(&as_file).expect("released");
        release(&as_file).expect("released twice");
        assert!(!as_dir.exists() && !as_file.exists());
        assert_eq!(fs::read_to_string(volume.join("a/file")).expect("readable"), "first");
    }
}
