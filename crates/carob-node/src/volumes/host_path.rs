//! hostPath volumes: the checks that `type` asks for (kubelet `pkg/volume/hostpath`).

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;

#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    #[error("hostPath type check failed: {path} is not {wanted}")]
    Type { path: String, wanted: &'static str },
    #[error("hostPath type {0:?} is unknown")]
    UnknownType(String),
    #[error("prepare the hostPath")]
    Io(#[from] io::Error),
}

/// Checks that `path` is what `type_` says, and makes it where `type_` allows that.
///
/// Without a type nothing is checked, and a missing path becomes a directory, as container runtimes have always done.
pub(super) fn prepare(path: &Path, type_: &str) -> Result<(), HostPathError> {
    let kind = match fs::metadata(path) {
        Ok(meta) => Some(meta.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let (fits, wanted): (Option<bool>, &'static str) = match type_ {
        "" => {
            if kind.is_none() {
                fs::create_dir_all(path)?;
            }
            return Ok(());
        }
        "DirectoryOrCreate" if kind.is_none() => return Ok(fs::create_dir_all(path)?),
        "FileOrCreate" if kind.is_none() => {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
            return Ok(());
        }
        "DirectoryOrCreate" | "Directory" => (kind.map(|kind| kind.is_dir()), "a directory"),
        "FileOrCreate" | "File" => (kind.map(|kind| kind.is_file()), "a file"),
        "Socket" => (kind.map(|kind| kind.is_socket()), "a socket file"),
        "CharDevice" => (kind.map(|kind| kind.is_char_device()), "a character device"),
        "BlockDevice" => (kind.map(|kind| kind.is_block_device()), "a block device"),
        other => return Err(HostPathError::UnknownType(other.to_owned())),
    };
    match fits {
        Some(true) => Ok(()),
        Some(false) | None => Err(HostPathError::Type { path: path.display().to_string(), wanted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_checked() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("written");
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let none = dir.path().join("none");
        for (path, type_, expect) in [
            (dir.path(), "Directory", None),
            (dir.path(), "DirectoryOrCreate", None),
            (dir.path(), "File", Some("is not a file")),
            (&file, "File", None),
            (&file, "FileOrCreate", None),
            (&file, "Directory", Some("is not a directory")),
            (&socket, "Socket", None),
            (&file, "Socket", Some("is not a socket file")),
            (Path::new("/dev/null"), "CharDevice", None),
            (&file, "CharDevice", Some("is not a character device")),
            (&file, "BlockDevice", Some("is not a block device")),
            (&none, "Directory", Some("is not a directory")),
            (&none, "Weird", Some("is unknown")),
        ] {
            let result = prepare(path, type_).map_err(|error| error.to_string());
            match expect {
                None => assert_eq!(result, Ok(()), "{type_}"),
                Some(words) => assert!(result.as_ref().is_err_and(|text| text.ends_with(words)), "{type_}: {result:?}"),
            }
        }
        for (name, type_) in [("d/e", "DirectoryOrCreate"), ("f", "FileOrCreate"), ("g", "")] {
            prepare(&dir.path().join(name), type_).expect("made");
            assert!(dir.path().join(name).exists(), "{type_}");
        }
    }
}
