//! The durable backend.

/// The operation that fails when the disk has no room for another segment.
pub(crate) const GROW: &str = "preallocate";
