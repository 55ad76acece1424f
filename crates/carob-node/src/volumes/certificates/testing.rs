//! Certificates of Pods for tests.

use std::sync::{Arc, Mutex};

use carob_kit::ManualClock;
use jiff::Timestamp;

use super::PodCertificates;
use crate::events::{Events, Subject};
use crate::files::Files;
use crate::objects::Objects;
use crate::paths::PodDirs;

/// What Pods were told: reasons and messages.
#[derive(Default)]
pub(super) struct Told(pub(super) Mutex<Vec<String>>);

impl Events for Told {
    fn normal(&self, _: &Subject, reason: &str, message: String) {
        self.warning(&Subject::node("n", ""), reason, message);
    }

    fn warning(&self, _: &Subject, reason: &str, message: String) {
        self.0.lock().expect("no holder panics").push(format!("{reason}: {message}"));
    }
}

/// For tests of what has none.
pub(crate) fn of(objects: &Arc<dyn Objects>) -> PodCertificates {
    let dirs = PodDirs::new("/nonexistent/pods", "/nonexistent/logs", None);
    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
    PodCertificates::new(
        Files::in_runtime(),
        dirs,
        Arc::clone(objects),
        Arc::new(Told::default()),
        clock,
        "n".to_owned(),
    )
}
