//! Sets of completion indexes as a status spells them: `1,3-5,7` (`pkg/controller/job/indexed_job_utils.go`). Pure.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;

pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Indexes as intervals: the last one of each by its first one, neither overlapping nor touching.
///
/// A status may name billions of indexes in a few bytes, so nothing here takes longer than there are intervals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(BTreeMap<i32, i32>);

impl Indexes {
    /// Reads a status; what is beyond `completions`, or is no index, is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut indexes = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                indexes.insert_interval(first.max(0), last.min(completions.saturating_sub(1)));
            }
        }
        indexes
    }

    pub(super) fn insert(&mut self, index: i32) {
        self.insert_interval(index, index);
    }

    fn insert_interval(&mut self, mut first: i32, mut last: i32) {
        if first > last {
            return;
        }
        // Every interval that overlaps or touches the new one becomes a part of it.
        while let Some((&held_first, &held_last)) = self.0.range(..=last.saturating_add(1)).next_back()
            && held_last.saturating_add(1) >= first
        {
            self.0.remove(&held_first);
            first = first.min(held_first);
            last = last.max(held_last);
        }
        self.0.insert(first, last);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        self.0.range(..=index).next_back().is_some_and(|(_, last)| *last >= index)
    }

    /// How many there are; 2^31 of them, which is one more than `i32` holds, count as one less.
    pub(super) fn len(&self) -> i32 {
        let sum: i64 = self.0.iter().map(|(first, last)| i64::from(*last) - i64::from(*first) + 1).sum();
        i32::try_from(sum).unwrap_or(i32::MAX)
    }

    /// Those that are in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::default();
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(&(&our_first, &our_last)), Some(&(&their_first, &their_last))) = (ours.peek(), theirs.peek()) {
            common.insert_interval(our_first.max(their_first), our_last.min(their_last));
            if our_last < their_last {
                ours.next()
            } else {
                theirs.next()
            };
        }
        common
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (first, last) in &other.0 {
            union.insert_interval(*first, *last);
        }
        union
    }

    /// The indexes below `completions` that are not in it, in order. Lazy: take no more than are needed.
    pub(super) fn missing(&self, completions: i32) -> impl Iterator<Item = i32> {
        let ends = self.0.iter().map(|(first, last)| (*first, *last)).chain([(completions, completions)]);
        let mut next = 0;
        ends.flat_map(move |(first, last)| {
            let gap = next..first.min(completions);
            next = last.saturating_add(1);
            gap
        })
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (first, last)) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                // Two in a row are spelt as two.
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The completion index of a Pod.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    let index = pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()?;
    (index >= 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_spelt_in_runs() {
        let cases = [
            ("", "", 0),
            ("0", "0", 1),
            ("0,1", "0,1", 2),
            ("0-2", "0-2", 3),
            ("1,3-5,7", "1,3-5,7", 5),
            ("3-5,6,8-20", "3-6,8,9", 6),
            ("nonsense,2", "2", 1),
        ];
        for (text, expected, count) in cases {
            let indexes = Indexes::parse(text, 10);
            assert_eq!((indexes.to_string().as_str(), indexes.len()), (expected, count), "{text}");
        }
    }

    #[test]
    fn intervals_that_touch_or_overlap_are_one() {
        let cases = [
            ("0-3,4-6", "0-6"),
            ("0-3,2-6", "0-6"),
            ("5-9,0-1,2-4", "0-9"),
            ("0-9,3", "0-9"),
            ("0,2,4,1-3", "0-4"),
            ("9-3", ""),
            ("2147483646,2147483645", "2147483645,2147483646"),
        ];
        for (text, expected) in cases {
            assert_eq!(Indexes::parse(text, i32::MAX).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn sets_of_billions_are_handled_as_intervals() {
        let all = Indexes::parse("0-2147483646", i32::MAX);
        assert_eq!((all.len(), all.0.len()), (i32::MAX, 1));
        assert!(all.contains(1_000_000_000) && !all.contains(i32::MAX));
        assert_eq!(all.missing(i32::MAX).next(), None);
        let most = Indexes::parse("1-999999999,1000000001-2147483645", i32::MAX);
        assert_eq!(most.missing(i32::MAX).collect::<Vec<_>>(), [0, 1_000_000_000, 2_147_483_646]);
        assert_eq!(Indexes::default().missing(i32::MAX).take(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(all.intersection(&most).to_string(), most.to_string());
        assert_eq!(most.union(&Indexes::parse("0,1000000000", i32::MAX)).to_string(), "0-2147483645");
        let beyond = Indexes::parse("0-2147483646", 3);
        assert_eq!((beyond.to_string().as_str(), beyond.missing(3).count()), ("0-2", 0));
        assert_eq!(Indexes::parse("1,5", 10).missing(3).collect::<Vec<_>>(), [0, 2]);
    }
}
