//! How the API server reaches the schedulers of this machine: the one in this process, and those that are processes of their
//! own, by their sockets.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use carob_apiserver::{BoxError, Explainer};
use carob_scheduler::{Explanations, endpoint};
use serde_json::Value;

/// Where schedulers of an instance have their sockets.
pub(crate) fn sockets_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("schedulers")
}

/// All schedulers of this instance.
pub(crate) struct Schedulers {
    own: Explanations,
    sockets: PathBuf,
}

impl Schedulers {
    pub(crate) fn new(own: Explanations, run_dir: &Path) -> Self {
        Self { own, sockets: sockets_dir(run_dir) }
    }
}

#[async_trait]
impl Explainer for Schedulers {
    async fn explain(&self, namespace: &str, name: &str) -> Result<Option<Value>, BoxError> {
        match self.own.get(namespace, name) {
            Some(explanation) => Ok(Some(serde_json::to_value(explanation)?)),
            None => Ok(endpoint::ask(&self.sockets, namespace, name).await?),
        }
    }
}
