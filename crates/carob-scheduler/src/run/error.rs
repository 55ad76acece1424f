//! What can go wrong when a decision is carried out.

/// A request that did not succeed: what it was for, and the cause.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    #[error("bind pod {pod} to node {node}")]
    Bind {
        pod: String,
        node: String,
        #[source]
        cause: Box<kube::Error>,
    },
    #[error("write the status of pod {pod}")]
    Status {
        pod: String,
        #[source]
        cause: Box<kube::Error>,
    },
    #[error("write the status of pod group {group}")]
    GroupStatus {
        group: String,
        #[source]
        cause: Box<kube::Error>,
    },
    #[error("evict pod {pod}")]
    Evict {
        pod: String,
        #[source]
        cause: Box<kube::Error>,
    },
    #[error("prepare claim {claim} for node {node}")]
    Claim {
        claim: String,
        node: String,
        #[source]
        cause: Box<kube::Error>,
    },
    #[error("claim {claim} is gone")]
    ClaimGone { claim: String },
    // Upstream's words (volumebinding, checkBindings).
    #[error("provisioning failed for PVC {claim:?}")]
    NotProvisioned { claim: String },
    #[error("the claims of pod {pod} were not bound within {seconds} s")]
    ClaimTimeout { pod: String, seconds: u64 },
}

impl ActError {
    fn cause(&self) -> Option<&kube::Error> {
        match self {
            Self::Bind { cause, .. }
            | Self::Status { cause, .. }
            | Self::GroupStatus { cause, .. }
            | Self::Evict { cause, .. }
            | Self::Claim { cause, .. } => Some(cause),
            Self::ClaimGone { .. } | Self::NotProvisioned { .. } | Self::ClaimTimeout { .. } => None,
        }
    }

    /// The object is gone.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.cause(), Some(kube::Error::Api(status)) if status.is_not_found())
    }
}
