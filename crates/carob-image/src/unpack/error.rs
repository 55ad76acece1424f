//! Why an archive was not unpacked: every refusal names the entry.

use std::io;
use std::path::PathBuf;

use crate::tarball::TarError;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("open directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("recognise the layer's compression")]
    Magic(#[source] io::Error),
    #[error("read the layer's archive")]
    Tar(#[from] TarError),
    #[error("read what follows the end of the layer's archive")]
    Tail(#[source] io::Error),
    #[error("layer has more than {max} entries: entry {entry:?}")]
    TooManyEntries { entry: String, max: u64 },
    #[error("layer has more than {max} bytes: entry {entry:?}")]
    TooManyBytes { entry: String, max: u64 },
    #[error("entry {entry:?} has a path of {len} bytes, at most {max} are allowed")]
    PathTooLong { entry: String, len: usize, max: usize },
    #[error("entry {entry:?} lies deeper than {max} directories")]
    TooDeep { entry: String, max: usize },
    #[error("entry {entry:?} has a path with \"..\" that leads out of the layer")]
    ParentInPath { entry: String },
    #[error("entry {entry:?} has a path with a NUL in it")]
    NulInPath { entry: String },
    #[error("entry {entry:?} has an empty path")]
    EmptyPath { entry: String },
    #[error("entry {entry:?} would replace the layer's root directory by something else")]
    ReplacesRoot { entry: String },
    #[error("entry {entry:?} lies behind {component:?}, which is no directory")]
    NotADirectory { entry: String, component: String },
    #[error("entry {entry:?} lies behind more than {max} symbolic links")]
    SymlinkLoop { entry: String, max: usize },
    #[error("entry {entry:?} is a hard link to {target:?}, which leads out of the layer")]
    EscapingLink { entry: String, target: String },
    #[error("entry {entry:?} is a hard link to {target:?}, which does not exist")]
    DanglingLink { entry: String, target: String },
    #[error("entry {entry:?} is a symbolic link to nowhere")]
    EmptySymlink { entry: String },
    #[error("entry {entry:?} is a whiteout without a name")]
    EmptyWhiteout { entry: String },
    #[error("entry {entry:?} has {what} {id}, which is not a valid id")]
    Id { entry: String, what: &'static str, id: u64 },
    /// The file system refused it.
    #[error("{operation} entry {entry:?}")]
    Write {
        operation: &'static str,
        entry: String,
        #[source]
        source: io::Error,
    },
}
