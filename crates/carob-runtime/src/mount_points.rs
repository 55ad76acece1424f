//! The places of the mounts that nearly every container has, in a layer below its image.
//!
//! An image holds few of them, so each container would get them in its writable layer: a dozen files and directories, each
//! made in overlayfs's work directory first. On ext4 that is what a container costs most, since a new inode is looked for
//! among those that were deleted within the last minutes (kernel `fs/ext4/ialloc.c`, `recently_deleted`).
//!
//! Containers with mounts at the same of these places share a layer. What the image holds itself comes before it.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::RuntimeError;
use crate::files::{make_directory, make_root_directory};
use crate::paths::Paths;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Directory(&'static str),
    File(&'static str),
}

/// Every choice of them is a layer, so there are no more than two to the power of their number.
const PLACES: [Place; 7] = [
    Place::Directory("dev"),
    Place::Directory("proc"),
    Place::Directory("sys"),
    Place::Directory("var/run/secrets/kubernetes.io/serviceaccount"),
    Place::File("etc/hostname"),
    Place::File("etc/hosts"),
    Place::File("etc/resolv.conf"),
];

impl Place {
    fn path(self) -> &'static str {
        match self {
            Self::Directory(path) | Self::File(path) => path,
        }
    }
}

/// The layer for a container with this OCI configuration. It is made where it is missing, and stays.
pub(crate) fn layer_for(paths: &Paths, config: &Value) -> Result<PathBuf, RuntimeError> {
    let chosen = choice(config);
    let layer = paths.mount_points().join(name(&chosen));
    if !layer.exists() {
        make(&layer, &chosen)?;
    }
    Ok(layer)
}

fn choice(config: &Value) -> Vec<Place> {
    let mounts = config["mounts"].as_array();
    let destinations: Vec<&str> =
        mounts.into_iter().flatten().filter_map(|mount| mount["destination"].as_str()).collect();
    let is_mounted = |place: &Place| destinations.iter().any(|path| path.strip_prefix('/') == Some(place.path()));
    PLACES.into_iter().filter(is_mounted).collect()
}

/// A bit for each place, so that another choice has another name.
fn name(chosen: &[Place]) -> String {
    let is_chosen = |(_, place): &(usize, &Place)| chosen.contains(place);
    let bits = PLACES.iter().enumerate().filter(is_chosen).fold(0_u8, |bits, (at, _)| bits | 1 << at);
    format!("{bits:02x}")
}

/// Under another name first, so that nobody uses half a layer. One that a crash of the machine has left half made only
/// helps less.
fn make(layer: &Path, chosen: &[Place]) -> Result<(), RuntimeError> {
    let fresh = layer.with_extension(carob_kit::random_suffix(10));
    make_directory(layer.parent().unwrap_or(layer))?;
    make_root_directory(&fresh)?;
    for place in chosen {
        match place {
            Place::Directory(path) => make_root_directory(&fresh.join(path))?,
            Place::File(path) => {
                let path = fresh.join(path);
                make_root_directory(path.parent().unwrap_or(&fresh))?;
                fs_err::write(&path, "").map_err(RuntimeError::file("write", &path))?;
            }
        }
    }
    match fs_err::rename(&fresh, layer) {
        Ok(()) => Ok(()),
        // Another container was faster.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            crate::files::remove_directory(&fresh)
        }
        Err(error) => Err(RuntimeError::file("rename", &fresh)(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(destinations: &[&str]) -> Value {
        let mounts: Vec<Value> = destinations.iter().map(|path| json!({"destination": path, "type": "bind"})).collect();
        json!({"mounts": mounts})
    }

    #[test]
    fn a_layer_holds_the_places_of_these_mounts_and_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(directory.path(), &directory.path().join("run"));
        let all = config(&["/proc", "/dev", "/dev/pts", "/etc/hosts", "/srv/data"]);
        let layer = layer_for(&paths, &all).expect("made");
        assert!(layer.join("proc").is_dir() && layer.join("dev").is_dir());
        assert_eq!(fs_err::read(layer.join("etc/hosts")).expect("a file"), b"");
        for absent in ["dev/pts", "sys", "srv", "etc/hostname", "var"] {
            assert!(!layer.join(absent).exists(), "{absent}");
        }
        assert_eq!(layer_for(&paths, &all).expect("there already"), layer);
        let fewer = layer_for(&paths, &config(&["/proc"])).expect("made");
        assert_ne!(fewer, layer);
        assert!(!fewer.join("etc").exists());
        let names = crate::files::names_in(&paths.mount_points()).expect("readable");
        assert_eq!(names.len(), 2, "nothing half made is left: {names:?}");
    }

    #[test]
    fn who_comes_second_leaves_the_first_one_s_layer() {
        let directory = tempfile::tempdir().expect("a directory");
        let layer = directory.path().join("01");
        make(&layer, &[Place::Directory("dev")]).expect("made");
        make(&layer, &[Place::Directory("dev")]).expect("made by another");
        assert_eq!(crate::files::names_in(directory.path()).expect("readable"), ["01"]);
    }
}
