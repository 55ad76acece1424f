//! What a request gives out beside its answer: Warning headers, annotations for the audit log, the time it waited for others.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Warnings that are kept of one request; more are left out. Their headers have a limit in bytes beside it.
const WARNINGS_MAX: usize = 256;
/// Audit annotations that are kept of one request; more are left out.
const ANNOTATIONS_MAX: usize = 256;

/// Shared by all that works on one request.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
    waited: Duration,
}

impl Notes {
    /// Tells the client something, whether its request succeeds or fails.
    pub fn warn(&self, text: impl Into<String>) {
        let mut kept = self.kept();
        if kept.warnings.len() < WARNINGS_MAX {
            kept.warnings.push(text.into());
        }
    }

    /// Annotates the request's audit event. The first value of a key stays (apiserver `pkg/audit`, `addAuditAnnotationLocked`).
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        let mut kept = self.kept();
        if kept.annotations.len() < ANNOTATIONS_MAX {
            kept.annotations.entry(key.into()).or_insert_with(|| value.into());
        }
    }

    pub fn warn_all(&self, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            self.warn(text);
        }
    }

    pub fn warnings(&self) -> Vec<String> {
        self.kept().warnings.clone()
    }

    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.kept().annotations.clone()
    }

    /// Time that was spent waiting for others: for a seat, for webhooks.
    pub fn waited(&self, time: Duration) {
        let mut kept = self.kept();
        kept.waited = kept.waited.saturating_add(time);
    }

    pub fn time_waited(&self) -> Duration {
        self.kept().waited
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_have_a_limit_and_keep_the_first_annotation() {
        let notes = Notes::default();
        for index in 0..=WARNINGS_MAX {
            notes.warn(index.to_string());
        }
        assert_eq!(notes.warnings().len(), WARNINGS_MAX);
        notes.annotate("a", "1");
        notes.annotate("a", "2");
        assert_eq!(notes.annotations()["a"], "1");
    }
}
