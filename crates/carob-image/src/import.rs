//! Images from files.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;

/// Where an import reads from.
pub enum ImportSource {
    /// A tar file (also compressed) or a directory with an OCI layout.
    Path(PathBuf),
    /// A tar stream; it is spooled into the store's directory first, for its index may come last.
    Reader(Box<dyn Read + Send>),
}

impl fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "Path({})", path.display()),
            Self::Reader(_) => f.write_str("Reader(..)"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{source_name} holds no image: neither manifest.json nor index.json is in it")]
    NoImage { source_name: String },
}
