//! Replaces the files of a volume all at once, under the eyes of their readers (kubelet `pkg/volume/util/atomic_writer.go`).
//!
//! The files live in a directory of their own, `..<time>.<random>`; `..data` is a symbolic link to it, and each entry at the
//! top of the volume is a symbolic link through `..data`. One rename of `..data` changes everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;

use super::payload::{File, Payload};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` show exactly the files of `payload`. Answers whether anything had to change.
///
/// The group, where given, may read everything (`fsGroup`).
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    let current = fs::read_link(dir.join(DATA)).ok().map(|target| dir.join(target));
    if let Some(current) = &current
        && same(current, &payload.files, group)?
    {
        link_entries(dir, &payload.files)?;
        return Ok(false);
    }
    let stamp = now.strftime("%Y_%m_%d_%H_%M_%S");
    let fresh_name = format!("..{stamp}.{}", carob_kit::random_suffix(10));
    let fresh = dir.join(&fresh_name);
    let filled = fill(&fresh, &payload.files, group).and_then(|()| publish(dir, &fresh_name));
    if let Err(error) = filled {
        // What was written so far is invisible; it must not stay behind.
        return Err(fs::remove_dir_all(&fresh).err().unwrap_or(error));
    }
    link_entries(dir, &payload.files)?;
    if let Some(old) = current {
        remove_all(&old)?;
    }
    Ok(true)
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn same(current: &Path, files: &BTreeMap<String, File>, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    collect(current, current, &mut found)?;
    if found.len() != files.len() || !files.keys().all(|path| found.contains(path)) {
        return Ok(false);
    }
    for (path, file) in files {
        let path = current.join(path);
        let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
        if mode != mode_for(file, group) || fs::read(&path)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            collect(root, &path, found)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.insert(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn mode_for(file: &File, group: Option<u32>) -> u32 {
    if group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn fill(root: &Path, files: &BTreeMap<String, File>, group: Option<u32>) -> io::Result<()> {
    make_dir(root, group)?;
    for (path, file) in files {
        let target = root.join(path);
        let mut parents: Vec<&Path> = target.ancestors().skip(1).take_while(|parent| *parent != root).collect();
        parents.reverse();
        for parent in parents {
            if !parent.exists() {
                make_dir(parent, group)?;
            }
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        out.write_all(&file.data)?;
        if file.uid.is_some() || group.is_some() {
            chown(&target, file.uid, group)?;
        }
        // Last, since a change of owner clears mode bits and the umask cut what open was given.
        fs::set_permissions(&target, PermissionsExt::from_mode(mode_for(file, group)))?;
    }
    Ok(())
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir(path)?;
    if group.is_some() {
        chown(path, None, group)?;
    }
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(path, PermissionsExt::from_mode(mode))
}

pub(super) fn chown(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    std::os::unix::fs::lchown(path, uid, gid)
        .map_err(|error| io::Error::new(error.kind(), format!("chown {}: {error}", path.display())))
}

fn publish(dir: &Path, fresh: &str) -> io::Result<()> {
    let link = dir.join(DATA_NEW);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    symlink(fresh, &link)
        .map_err(|error| io::Error::new(error.kind(), format!("symlink {}: {error}", link.display())))?;
    fs::rename(&link, dir.join(DATA))
}

/// Gives each first path component its link through `..data` and removes links to what is gone.
fn link_entries(dir: &Path, files: &BTreeMap<String, File>) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        let target = PathBuf::from(DATA).join(name);
        if fs::read_link(&link).ok().as_ref() != Some(&target) {
            symlink(&target, &link)
                .map_err(|error| io::Error::new(error.kind(), format!("symlink {}: {error}", link.display())))?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, uid: None };
        let files = files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect();
        Payload { files, refresh_at: None }
    }

    fn visible(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names.retain(|name| !name.starts_with(".."));
        names
    }

    #[test]
    fn readers_see_the_old_files_or_the_new_ones_never_a_mixture() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = Timestamp::UNIX_EPOCH;
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None, now).expect("written"));
        assert_eq!(visible(dir.path()), ["a", "d"]);
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).expect("readable"), "2");
        assert_eq!(fs::read_link(dir.path().join("a")).expect("a link"), Path::new("..data/a"));
        let open_before = fs::read_link(dir.path().join("..data")).expect("a link");

        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None, now).expect("written"));
        assert_eq!(fs::read_link(dir.path().join("..data")).expect("a link"), open_before, "nothing changed");

        assert!(write(dir.path(), &payload(&[("a", "3"), ("c", "4")]), None, now).expect("written"));
        assert_eq!(visible(dir.path()), ["a", "c"]);
        assert_eq!(fs::read_to_string(dir.path().join("a")).expect("readable"), "3");
        assert!(!dir.path().join(open_before).exists(), "the old files are gone");
    }

    #[test]
    fn modes_are_exact_and_the_group_may_read() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &payload(&[("a", "1")]), Some(4242), Timestamp::UNIX_EPOCH).expect("written");
        let meta = fs::metadata(dir.path().join("a")).expect("there");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 4242);
        let root = fs::metadata(dir.path().join("..data")).expect("there");
        assert_eq!(root.permissions().mode() & 0o7777, 0o2755);
    }
}
