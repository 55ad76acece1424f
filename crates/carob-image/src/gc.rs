//! Which images to let go when the disk fills: decided here, done by the store.

use std::time::Duration;

use crate::ImageId;

/// The kubelet's image garbage collection settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcPolicy {
    /// Above this share of the file system in use, images are removed (kubelet `imageGCHighThresholdPercent`: 85).
    pub high_threshold_percent: u8,
    /// They are removed until the share is this (kubelet `imageGCLowThresholdPercent`: 80).
    pub low_threshold_percent: u8,
    /// No image unused for a shorter time is removed for space (kubelet `imageMinimumGCAge`: 2 minutes).
    pub minimum_age: Duration,
    /// Images unused for longer are removed whatever the disk holds; `None` for never (kubelet `imageMaximumGCAge`: 0).
    pub maximum_age: Option<Duration>,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            minimum_age: Duration::from_mins(2),
            maximum_age: None,
        }
    }
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    pub removed: Vec<ImageId>,
    pub freed_bytes: u64,
    /// Bytes that should have been freed and could not be, because every remaining image is in use, pinned or too young.
    pub short_bytes: u64,
}
