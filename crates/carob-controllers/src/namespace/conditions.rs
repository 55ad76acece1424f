//! What a namespace's status says about the progress of its deletion, in upstream's words
//! (`pkg/controller/namespace/deletion/status_condition_utils.go`).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ApiResource;

use crate::condition::{Condition, FALSE, TRUE};

/// The sum of one try to empty a namespace.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) discovery_error: Option<String>,
    pub(super) delete_errors: Vec<String>,
    /// Objects that remain, by `resource.group`.
    pub(super) remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    /// How long the longest of them may take.
    pub(super) wait: Duration,
}

impl Outcome {
    pub(super) fn add(
        &mut self,
        resource: &ApiResource,
        objects: usize,
        finalizers: BTreeMap<String, usize>,
        wait: Duration,
    ) {
        if objects > 0 {
            self.remaining.insert(format!("{}.{}", resource.plural, resource.group), objects);
        }
        for (finalizer, count) in finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
        self.wait = self.wait.max(wait);
    }

    /// The first thing that went wrong, if any.
    pub(super) fn error(&self) -> Option<&str> {
        self.discovery_error.as_deref().or(self.delete_errors.first().map(String::as_str))
    }

    pub(super) fn conditions(&self, now: &Time) -> [NamespaceCondition; 5] {
        let condition = |kind: &str, bad: Option<(&str, String)>, ok: (&str, &str)| match bad {
            Some((reason, message)) => NamespaceCondition::new(kind, TRUE, reason, &message, now),
            None => NamespaceCondition::new(kind, FALSE, ok.0, ok.1, now),
        };
        let undiscovered = self.discovery_error.clone().map(|error| ("DiscoveryFailed", error));
        [
            condition(
                "NamespaceDeletionDiscoveryFailure",
                undiscovered,
                ("ResourcesDiscovered", "All resources successfully discovered"),
            ),
            condition(
                "NamespaceDeletionGroupVersionParsingFailure",
                None,
                ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            ),
            condition(
                "NamespaceDeletionContentFailure",
                self.failed(),
                ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            ),
            condition(
                "NamespaceContentRemaining",
                self.some_remain(),
                ("ContentRemoved", "All content successfully removed"),
            ),
            condition(
                "NamespaceFinalizersRemaining",
                self.some_finalizers(),
                ("ContentRemoved", "All content successfully removed"),
            ),
        ]
    }

    fn failed(&self) -> Option<(&'static str, String)> {
        if self.delete_errors.is_empty() {
            return None;
        }
        let mut errors = self.delete_errors.clone();
        errors.sort();
        let count = errors.len();
        let message = format!("Failed to delete all resource types, {count} remaining: {}", errors.join(", "));
        Some(("ContentDeletionFailed", message))
    }

    fn some_remain(&self) -> Option<(&'static str, String)> {
        let text = |(resource, count): (&String, &usize)| format!("{resource} has {count} resource instances");
        let list: Vec<String> = self.remaining.iter().map(text).collect();
        let message = format!("Some resources are remaining: {}", list.join(", "));
        (!list.is_empty()).then_some(("SomeResourcesRemain", message))
    }

    fn some_finalizers(&self) -> Option<(&'static str, String)> {
        let text = |(finalizer, count): (&String, &usize)| format!("{finalizer} in {count} resource instances");
        let list: Vec<String> = self.finalizers.iter().map(text).collect();
        let message = format!("Some content in the namespace has finalizers remaining: {}", list.join(", "));
        (!list.is_empty()).then_some(("SomeFinalizersRemain", message))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};

    use super::*;

    fn show(outcome: &Outcome) -> Vec<String> {
        let text = |condition: NamespaceCondition| {
            let message = condition.message.unwrap_or_default();
            format!("{}={} {}: {message}", condition.type_, condition.status, condition.reason.unwrap_or_default())
        };
        outcome.conditions(&Time(Timestamp::UNIX_EPOCH)).map(text).to_vec()
    }

    #[test]
    fn an_emptied_namespace_has_five_good_conditions() {
        assert_eq!(
            show(&Outcome::default()),
            [
                "NamespaceDeletionDiscoveryFailure=False ResourcesDiscovered: All resources successfully discovered",
                "NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: \
                 All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure=False ContentDeleted: \
                 All content successfully deleted, may be waiting on finalization",
                "NamespaceContentRemaining=False ContentRemoved: All content successfully removed",
                "NamespaceFinalizersRemaining=False ContentRemoved: All content successfully removed",
            ]
        );
    }

    #[test]
    fn what_remains_is_counted_by_resource_and_by_finalizer() {
        let mut outcome = Outcome::default();
        let seconds = Duration::from_secs;
        let finalizers = |count| BTreeMap::from([("example.com/f".to_owned(), count)]);
        outcome.add(&ApiResource::erase::<Pod>(&()), 2, finalizers(1), seconds(15));
        outcome.add(&ApiResource::erase::<ConfigMap>(&()), 1, finalizers(1), seconds(1));
        outcome.delete_errors.push("b".to_owned());
        outcome.delete_errors.push("a".to_owned());
        let shown = show(&outcome);
        assert_eq!(
            shown[2..],
            [
                "NamespaceDeletionContentFailure=True ContentDeletionFailed: \
                 Failed to delete all resource types, 2 remaining: a, b",
                "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: \
                 configmaps. has 1 resource instances, pods. has 2 resource instances",
                "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: \
                 example.com/f in 2 resource instances",
            ]
        );
        assert_eq!(outcome.wait, seconds(15));
    }
}
