//! Removes a directory with all that is in it, and nothing else: no link is followed, no mount is entered, however deep it goes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories that are open at a time. What is deeper is first moved to the top.
const DEPTH_MAX: usize = 32;

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Removes the directory `name` of `parent`. Nothing there is fine.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let root = match open(parent, &name) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(named(error, &name)),
    };
    let mut moved = 0;
    loop {
        let before = moved;
        clear(root.as_fd(), root.as_fd(), 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR).map_err(|error| named(error, &name))
}

fn open(parent: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(parent, name, OPEN, Mode::empty(), INSIDE)
}

fn named(error: Errno, name: &CString) -> io::Error {
    let why =
        if error == Errno::XDEV { "something is mounted there".to_owned() } else { io::Error::from(error).to_string() };
    io::Error::new(io::Error::from(error).kind(), format!("remove {}: {why}", name.to_string_lossy()))
}

/// Removes what is in `dir`. Directories at the greatest depth move to `root`, where the next run finds them.
fn clear(root: BorrowedFd<'_>, dir: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // The file system did not say what it is.
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(named(error, &name)),
            }
        }
        if depth == DEPTH_MAX {
            *moved += 1;
            let target = CString::new(format!(".carob-moved-{moved}"))?;
            match rustix::fs::renameat_with(dir, &name, root, &target, RenameFlags::NOREPLACE) {
                // A name of a run that was broken off: the next number is tried when this run is over.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => continue,
                Err(error) => return Err(named(error, &name)),
            }
        }
        let inner = match open(dir, &name) {
            Ok(inner) => inner,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(named(error, &name)),
        };
        clear(root, inner.as_fd(), depth + 1, moved)?;
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // What was too deep did not all find a place at the top yet.
            Err(Errno::NOTEMPTY) if *moved > 0 => {}
            Err(error) => return Err(named(error, &name)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use fs_err as fs;

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed_and_depth_does_not_matter() {
        let dir = tempfile::tempdir().expect("a directory");
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        fs::create_dir(&kept).expect("made");
        fs::write(kept.join("file"), "x").expect("written");
        fs::create_dir(&gone).expect("made");
        symlink(&kept, gone.join("link")).expect("linked");
        let deep: std::path::PathBuf = std::iter::repeat_n("d", 3 * DEPTH_MAX).collect();
        fs::create_dir_all(gone.join(&deep)).expect("made");
        fs::write(gone.join(deep).join("file"), "x").expect("written");
        let parent = fs::File::open(dir.path()).expect("open");
        remove(parent.as_fd(), "gone").expect("removed");
        remove(parent.as_fd(), "gone").expect("removed twice");
        assert!(!gone.exists() && kept.join("file").exists());
    }
}
