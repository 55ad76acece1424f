//! What plug-ins were asked for a sandbox.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use carob_net::Kept;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Network;

const VERSION: u32 = 1;

/// A sandbox that plug-ins know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) sandbox_id: String,
    pub(crate) netns: Namespace,
    pub(crate) args: String,
    /// What the plug-ins that are capable of it are told.
    pub(crate) runtime: Map<String, Value>,
    /// As it was when they were called: they take back by the same.
    pub(crate) network: Network,
    /// What the last of them answered; none where it did not come to that.
    pub(crate) result: Option<Value>,
}

impl Kept for Record {
    const VERSION: u32 = VERSION;

    fn sandbox_id(&self) -> &str {
        &self.sandbox_id
    }
}

impl Record {
    pub(crate) fn new(
        sandbox_id: &str,
        netns: Namespace,
        args: String,
        runtime: Map<String, Value>,
        network: Network,
    ) -> Self {
        Self { version: VERSION, sandbox_id: sandbox_id.to_owned(), netns, args, runtime, network, result: None }
    }
}

/// A network namespace, told from another that has come to be at its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Namespace {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs_err::metadata(path)?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// The path that opens it; empty where it has gone, as plug-ins want it then.
    pub(crate) fn path_if_there(&self) -> String {
        match Self::of(&self.path) {
            Ok(now) if now == *self => self.path.display().to_string(),
            Ok(_) | Err(_) => String::new(),
        }
    }
}
