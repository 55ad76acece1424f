//! The way from the API server to schedulers: one trait, so that the composition root decides where they are.

use async_trait::async_trait;
use serde_json::Value;

use crate::body::BoxError;

/// Knows why Pods have no node.
#[async_trait]
pub trait Explainer: Send + Sync {
    /// What a scheduler says about a Pod that it turned down: an object with at least `message`. `None` when none of them
    /// knows of the Pod.
    async fn explain(&self, namespace: &str, name: &str) -> Result<Option<Value>, BoxError>;
}
