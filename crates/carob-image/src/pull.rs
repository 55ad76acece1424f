//! Pulling.

use crate::Reference;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry says that there is no such image or tag.
    #[error("image {reference} does not exist")]
    NotFound { reference: Reference },
}
