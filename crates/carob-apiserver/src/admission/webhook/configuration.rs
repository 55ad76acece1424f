//! One stored configuration, compiled.

use std::sync::Arc;
use std::time::Duration;

use carob_api::meta;
use serde_json::Value;

use super::conditions::Conditions;
use super::review::ReviewVersion;
use crate::admission::matching::MatchResources;
use crate::webhook::{Hook, WebhookClient};

/// Where a webhook does not say (pkg/apis/admissionregistration/v1/defaults.go), seconds.
const TIMEOUT_DEFAULT_S: u64 = 10;
/// The longest that validation lets through, seconds.
const TIMEOUT_MAX_S: u64 = 30;

#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) webhooks: Vec<Webhook>,
}

#[derive(Debug)]
pub(super) struct Webhook {
    /// Tells the webhooks of all configurations apart.
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) configuration: Arc<str>,
    pub(super) resources: Result<MatchResources, String>,
    pub(super) conditions: Conditions,
    pub(super) fails_open: bool,
    pub(super) timeout: Duration,
    pub(super) has_no_side_effects: bool,
    pub(super) reinvoked: bool,
    pub(super) review: Option<ReviewVersion>,
    /// Or why it cannot be called.
    pub(super) hook: Result<Hook, String>,
}

impl Configuration {
    pub(super) fn of(bytes: &[u8], client: &WebhookClient) -> Result<Self, serde_json::Error> {
        let object: Value = serde_json::from_slice(bytes)?;
        let name: Arc<str> = Arc::from(meta::name(&object));
        let webhooks = meta::items_at(&object, &["webhooks"]).iter().enumerate();
        Ok(Self { webhooks: webhooks.map(|(index, webhook)| Webhook::of(&name, index, webhook, client)).collect() })
    }
}

impl Webhook {
    fn of(configuration: &Arc<str>, index: usize, webhook: &Value, client: &WebhookClient) -> Self {
        let text = |field: &str| meta::str_at(webhook, &[field]).unwrap_or_default();
        let seconds = meta::i64_at(webhook, &["timeoutSeconds"]).and_then(|seconds| u64::try_from(seconds).ok());
        let seconds = seconds.unwrap_or(TIMEOUT_DEFAULT_S).clamp(1, TIMEOUT_MAX_S);
        Self {
            uid: format!("{configuration}/{}/{index}", text("name")),
            name: text("name").to_owned(),
            configuration: Arc::clone(configuration),
            resources: MatchResources::of(webhook, "rules").map_err(|error| error.to_string()),
            conditions: Conditions::of(webhook),
            fails_open: text("failurePolicy") == "Ignore",
            timeout: Duration::from_secs(seconds),
            has_no_side_effects: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvoked: text("reinvocationPolicy") == "IfNeeded",
            review: ReviewVersion::first(meta::items_at(webhook, &["admissionReviewVersions"])),
            hook: client.hook(&webhook["clientConfig"]).map_err(|error| carob_kit::chain(&error).to_string()),
        }
    }
}
