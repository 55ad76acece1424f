//! Images as volumes: which directories are merged where an image, or a part of one, is mounted.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use carob_cri::v1;

use crate::error::RuntimeError;
use crate::images::Images;

/// Says that a directory hides those of the same name below it (kernel `Documentation/filesystems/overlayfs.rst`).
const OPAQUE: &str = "trusted.overlay.opaque";

/// For each mount of an image its directories, topmost first, by its place in the container.
pub(crate) fn resolve(
    images: &dyn Images,
    mounts: &[v1::Mount],
) -> Result<BTreeMap<String, Vec<PathBuf>>, RuntimeError> {
    let mut resolved = BTreeMap::new();
    for mount in mounts {
        let Some(image) = &mount.image else { continue };
        let absent = || RuntimeError::NoImage(image.image.clone());
        let record = images.find(&image.image).ok_or_else(absent)?;
        let layers = images.layers(&record.id).ok_or_else(absent)?;
        images.touch(&record.id);
        let refused =
            |reason| RuntimeError::ImagePath { image: image.image.clone(), path: mount.image_sub_path.clone(), reason };
        let parts = match part(&layers, Path::new(&mount.image_sub_path)) {
            Ok(parts) => parts.map_err(refused)?,
            Err(source) => {
                let path = PathBuf::from(&mount.image_sub_path);
                return Err(RuntimeError::File { operation: "look up in the image", path, source });
            }
        };
        resolved.insert(mount.container_path.clone(), parts);
    }
    Ok(resolved)
}

/// What of each layer lies under `path`, as overlayfs would merge it. The inner error is the image's or the Pod's fault.
fn part(layers: &[PathBuf], path: &Path) -> io::Result<Result<Vec<PathBuf>, &'static str>> {
    let mut merged = layers.to_vec();
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Ok(Err("the path must be relative and stay inside the image"));
            }
        };
        let mut next = Vec::new();
        for directory in &merged {
            let entry = directory.join(name);
            let found = match fs_err::symlink_metadata(&entry) {
                Ok(found) => found,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is_whiteout(&found) {
                break;
            }
            if !found.is_dir() {
                // A file hides what is below it, and is hidden by a directory above it.
                if next.is_empty() && found.is_file() {
                    next.push(entry);
                } else if next.is_empty() {
                    return Ok(Err("the path leads through a link or a special file"));
                }
                break;
            }
            let opaque = is_opaque(&entry)?;
            next.push(entry);
            if opaque {
                break;
            }
        }
        if next.is_empty() {
            return Ok(Err("there is no such path in the image"));
        }
        merged = next;
    }
    Ok(Ok(merged))
}

/// A file that says: gone from here on.
fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    let mut value = [0u8; 1];
    match rustix::fs::lgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP | rustix::io::Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_image_is_merged_as_the_whole_would_be() {
        let image = tempfile::tempdir().expect("a directory");
        let layer = |name: &str, files: &[&str]| {
            for file in files {
                let path = image.path().join(name).join(file);
                fs_err::create_dir_all(path.parent().expect("a parent")).expect("directories");
                fs_err::write(path, name).expect("a file");
            }
            image.path().join(name)
        };
        let layers =
            [layer("top", &["a/b/new", "file/deep"]), layer("middle", &["x"]), layer("base", &["a/b/old", "file"])];
        let link = layers[1].join("link");
        fs_err::os::unix::fs::symlink("/etc", link).expect("a link");
        let gone = layers[0].join("x");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            gone,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            rustix::fs::makedev(0, 0),
        )
        .expect("a whiteout");
        let look = |path: &str| {
            part(&layers, Path::new(path)).expect("readable").map(|parts| {
                let name = |part: &PathBuf| part.strip_prefix(image.path()).expect("inside").display().to_string();
                parts.iter().map(name).collect::<Vec<_>>().join(" ")
            })
        };
        for (path, expect) in [
            ("", Ok("top middle base")),
            ("a/./b", Ok("top/a/b base/a/b")),
            ("a/b/old", Ok("base/a/b/old")),
            ("file", Ok("top/file")),
            ("x", Err("there is no such path in the image")),
            ("link/passwd", Err("the path leads through a link or a special file")),
            ("../top", Err("the path must be relative and stay inside the image")),
            ("/a", Err("the path must be relative and stay inside the image")),
        ] {
            assert_eq!(look(path), expect.map(str::to_owned), "{path}");
        }
        rustix::fs::lsetxattr(layers[0].join("a/b"), OPAQUE, b"y", rustix::fs::XattrFlags::empty()).expect("marked");
        assert_eq!(look("a/b").as_deref(), Ok("top/a/b"));
    }
}
