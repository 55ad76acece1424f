//! What can go wrong.

/// One failed operation of the Pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("no Pod CIDR has been assigned to this node yet")]
    NoPodCidr,
}
