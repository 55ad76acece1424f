//! How long admission takes (apiserver `pkg/admission/metrics`).

use std::sync::Arc;
use std::time::Duration;

use carob_kit::Clock;
use carob_kit::metrics::{Exposition, Histogram, Series};

/// Upper bounds of an admission's time, in seconds.
const BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
/// Of a webhook's.
const WEBHOOK_BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Names of webhooks times operations that are kept apart.
const WEBHOOK_SETS_MAX: usize = 512;
/// Steps times operations times outcomes: fewer than this.
const STEP_SETS_MAX: usize = 32;

/// A step of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Mutating,
    Validating,
}

impl Step {
    /// As steps and webhooks are labelled.
    fn label(self) -> &'static str {
        match self {
            Self::Mutating => "admit",
            Self::Validating => "validate",
        }
    }
}

pub(crate) struct AdmissionFigures {
    clock: Arc<dyn Clock>,
    steps: Series<Histogram>,
    webhooks: Series<Histogram>,
    rejections: Series<u64>,
}

impl AdmissionFigures {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            steps: Series::new(&["operation", "rejected", "type"], STEP_SETS_MAX),
            webhooks: Series::new(&["name", "operation", "rejected", "type"], WEBHOOK_SETS_MAX),
            rejections: Series::new(&["name", "type", "operation", "error_type", "rejection_code"], WEBHOOK_SETS_MAX),
        }
    }

    /// The moment from which something is timed.
    pub(crate) fn begin(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(crate) fn took(&self, since: Duration) -> Duration {
        self.clock.monotonic().saturating_sub(since)
    }

    pub(crate) fn step(&self, step: Step, operation: &str, is_rejected: bool, since: Duration) {
        let values = [operation, yes_or_no(is_rejected), step.label()];
        self.steps.observe_time(&values, BOUNDS, self.took(since));
    }

    pub(crate) fn webhook(&self, name: &str, step: Step, operation: &str, is_rejected: bool, took: Duration) {
        let values = [name, operation, yes_or_no(is_rejected), step.label()];
        self.webhooks.observe_time(&values, WEBHOOK_BOUNDS, took);
    }

    /// A webhook let a write not pass: it said so with a code, or (`None`) it could not be asked.
    pub(crate) fn rejected(&self, name: &str, step: Step, operation: &str, code: Option<u16>) {
        // Named otherwise there than elsewhere (`ObserveWebhookRejection`'s callers).
        let step = if step == Step::Mutating { "admit" } else { "validating" };
        let (error, code) = match code {
            // Codes that are no codes are one, so that a webhook cannot make up labels.
            Some(code) => ("no_error", if code < 400 { 0 } else { code.min(600) }),
            None => ("calling_webhook_error", 0),
        };
        self.rejections.count(&[name, step, operation, error, &code.to_string()]);
    }

    pub(crate) fn write(&self, out: &mut Exposition) {
        let help = "Admission sub-step latency histogram in seconds, by operation and step.";
        self.steps.write(out, "apiserver_admission_step_admission_duration_seconds", help);
        let help = "Admission webhook latency histogram in seconds, by name, operation and step.";
        self.webhooks.write(out, "apiserver_admission_webhook_admission_duration_seconds", help);
        let help = "Admission webhook rejection count, by name, step, operation, kind of error and code.";
        self.rejections.write(out, "apiserver_admission_webhook_rejection_count", help);
    }
}

fn yes_or_no(is: bool) -> &'static str {
    if is { "true" } else { "false" }
}
