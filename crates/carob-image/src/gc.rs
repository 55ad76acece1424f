//! Which images to let go when the disk fills: decided here, done by the store.

use std::time::Duration;

use crate::record::ImageId;

/// The kubelet's image garbage collection settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcPolicy {
    /// At this share of the file system in use, images are removed (kubelet `imageGCHighThresholdPercent`: 85).
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
    /// Bytes that should have been freed and could not be, because every remaining image is in use, kept or too young.
    pub short_bytes: u64,
}

/// An image that nothing uses and that is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: ImageId,
    pub(crate) unused_for: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GcPlan {
    pub(crate) bytes_to_free: u64,
    /// What to remove, in order. Those for space only while bytes are left to be freed: what one frees depends on the
    /// layers that it shares.
    pub(crate) order: Vec<(ImageId, bool)>,
}

/// Images past the maximum age go first and in any case; then, if the disk is too full, the longest unused.
pub(crate) fn plan(policy: &GcPolicy, mut candidates: Vec<Candidate>, used_bytes: u64, total_bytes: u64) -> GcPlan {
    let share = |percent: u8| u64::try_from(u128::from(total_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX);
    let is_too_full = total_bytes > 0 && used_bytes >= share(policy.high_threshold_percent);
    let bytes_to_free = if is_too_full { used_bytes.saturating_sub(share(policy.low_threshold_percent)) } else { 0 };
    candidates.sort_by(|a, b| b.unused_for.cmp(&a.unused_for).then_with(|| a.id.cmp(&b.id)));
    let is_expired = |candidate: &Candidate| policy.maximum_age.is_some_and(|age| candidate.unused_for > age);
    let (expired, rest): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_expired);
    let for_space = rest.into_iter().filter(|candidate| is_too_full && candidate.unused_for >= policy.minimum_age);
    let order = expired.into_iter().map(|candidate| (candidate.id, false));
    GcPlan { bytes_to_free, order: order.chain(for_space.map(|candidate| (candidate.id, true))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn candidate(name: &str, unused_secs: u64) -> Candidate {
        let id = ImageId(Digest::of(name.as_bytes()));
        Candidate { id, unused_for: Duration::from_secs(unused_secs) }
    }

    fn check(policy: &GcPolicy, used: u64, bytes_to_free: u64, order: &[(&str, bool)]) {
        let candidates = vec![candidate("young", 10), candidate("old", 900), candidate("older", 5000)];
        let expect = order.iter().map(|(name, for_space)| (candidate(name, 0).id, *for_space)).collect();
        assert_eq!(plan(policy, candidates, used, 1000), GcPlan { bytes_to_free, order: expect });
    }

    #[test]
    fn the_longest_unused_go_first_and_only_when_the_disk_is_full() {
        let policy = GcPolicy::default();
        check(&policy, 849, 0, &[]);
        check(&policy, 850, 50, &[("older", true), ("old", true)]);
        check(&policy, 1000, 200, &[("older", true), ("old", true)]);
    }

    #[test]
    fn images_past_the_maximum_age_go_in_any_case() {
        let policy = GcPolicy { maximum_age: Some(Duration::from_hours(1)), ..GcPolicy::default() };
        check(&policy, 100, 0, &[("older", false)]);
        check(&policy, 900, 100, &[("older", false), ("old", true)]);
    }

    #[test]
    fn a_file_system_without_a_size_is_never_full() {
        assert_eq!(plan(&GcPolicy::default(), vec![candidate("old", 900)], 0, 0).order, []);
    }
}
