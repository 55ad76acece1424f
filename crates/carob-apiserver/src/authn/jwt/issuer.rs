//! What an issuer publishes: where its keys are (OpenID Connect Discovery 1.0), and the keys.
//!
//! Nothing is fetched before a token of the issuer comes. Keys are fetched again when a token is signed by none that is known, or when
//! they are an hour old; all tokens that wait for them share one fetch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carob_kit::{Clock, chain};
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::config::IssuerConfig;
use super::keys::{Algorithm, Compact, KeySet};
use crate::webhook::{FetchError, WebhookClient};

/// Where an issuer's configuration is, below its URL (OpenID Connect Discovery 1.0, section 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// How long one fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a configuration or a set of keys that are read.
const REPLY_LEN_MAX: usize = 1024 * 1024;
/// Tokens that nobody signed make us ask no more often than this.
const FETCH_INTERVAL: Duration = Duration::from_secs(2);
/// Keys are fetched again after this, so that one that was withdrawn does not count for ever.
const KEYS_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("issuer did not match the issuer returned by provider, expected {expected:?} got {got:?}")]
    Issuer { expected: String, got: String },
    #[error("the issuer's configuration names no jwks_uri")]
    NoKeys,
    #[error("{url} is no JSON Web Key Set")]
    NoSet { url: String },
}

/// An issuer and what is known of it.
pub(super) struct Issuer {
    pub(super) config: IssuerConfig,
    http: WebhookClient,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
    /// Held by who fetches.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    keys_url: Option<String>,
    /// On the monotonic clock.
    keys_at: Duration,
    tried_at: Option<Duration>,
    failure: Option<String>,
}

impl Issuer {
    pub(super) fn new(config: IssuerConfig, http: WebhookClient, clock: Arc<dyn Clock>) -> Self {
        Self { config, http, clock, known: Mutex::default(), fetching: tokio::sync::Mutex::default() }
    }

    /// The claims of a token, once one of the issuer's keys has verified it.
    pub(super) async fn verified<'t>(&self, token: &'t Compact<'_>) -> Result<&'t Map<String, Value>, String> {
        if !Algorithm::named(&token.algorithm).is_some_and(|algorithm| self.config.algorithms.contains(&algorithm)) {
            let expected: Vec<&str> = self.config.algorithms.iter().map(|one| one.name()).collect();
            let got = &token.algorithm;
            return Err(format!(
                "verify token: oidc: id token signed with unsupported algorithm, expected {expected:?} got {got:?}"
            ));
        }
        let tried = self.fresh_keys();
        if let Some(claims) = tried.as_ref().and_then(|keys| token.verified(keys)) {
            return Ok(claims);
        }
        let keys = self.newer_keys(tried.as_ref()).await?;
        token
            .verified(&keys)
            .ok_or_else(|| "verify token: failed to verify signature: no key of the issuer fits".to_owned())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys, if they are not too old.
    fn fresh_keys(&self) -> Option<Arc<KeySet>> {
        let known = self.known();
        let age = self.clock.monotonic().saturating_sub(known.keys_at);
        known.keys.clone().filter(|_| age < KEYS_AGE_MAX)
    }

    /// Keys other than those that were `tried`; the same ones if there are none.
    async fn newer_keys(&self, tried: Option<&Arc<KeySet>>) -> Result<Arc<KeySet>, String> {
        let _turn = self.fetching.lock().await;
        let now = self.clock.monotonic();
        let keys_url = {
            let known = self.known();
            let is_other = |keys: &&Arc<KeySet>| tried.is_none_or(|tried| !Arc::ptr_eq(keys, tried));
            let is_recent = known.tried_at.is_some_and(|at| now.saturating_sub(at) < FETCH_INTERVAL);
            if is_recent
                || known
                    .keys
                    .as_ref()
                    .filter(is_other)
                    .is_some_and(|_| now.saturating_sub(known.keys_at) < KEYS_AGE_MAX)
            {
                return known.keys.clone().ok_or_else(|| self.not_initialized(known.failure.as_deref()));
            }
            known.keys_url.clone()
        };
        let fetched = self.fetch(keys_url).await;
        let mut known = self.known();
        known.tried_at = Some(self.clock.monotonic());
        match fetched {
            Ok((url, keys)) => {
                info!(issuer = self.config.url, keys = keys.len(), "keys of an issuer of tokens are there");
                known.keys_url = Some(url);
                known.keys_at = self.clock.monotonic();
                known.failure = None;
                Ok(Arc::clone(known.keys.insert(Arc::new(keys))))
            }
            Err(error) => {
                let failure = chain(&error).to_string();
                warn!(issuer = self.config.url, error = failure, "keys of an issuer of tokens cannot be fetched");
                // It may have moved them.
                known.keys_url = None;
                let keys = known.keys.clone().ok_or_else(|| self.not_initialized(Some(&failure)));
                known.failure = Some(failure);
                keys
            }
        }
    }

    fn not_initialized(&self, failure: Option<&str>) -> String {
        format!(
            "authenticator for issuer {:?} is not initialized: {}",
            self.config.url,
            failure.unwrap_or("no keys are there")
        )
    }

    async fn fetch(&self, keys_url: Option<String>) -> Result<(String, KeySet), KeysError> {
        let url = match keys_url {
            Some(url) => url,
            None => self.find_keys().await?,
        };
        let set = self.get(&url).await?;
        let keys = KeySet::parse(&set).ok_or_else(|| KeysError::NoSet { url: url.clone() })?;
        Ok((url, keys))
    }

    async fn find_keys(&self) -> Result<String, KeysError> {
        let expected = &self.config.url;
        let url = match &self.config.discovery_url {
            Some(url) => url.clone(),
            None => format!("{}{WELL_KNOWN}", expected.trim_end_matches('/')),
        };
        let found = self.get(&url).await?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        let got = text("issuer");
        if got != *expected {
            return Err(KeysError::Issuer { expected: expected.clone(), got });
        }
        Some(text("jwks_uri")).filter(|url| !url.is_empty()).ok_or(KeysError::NoKeys)
    }

    async fn get(&self, url: &str) -> Result<Value, FetchError> {
        self.http.get(url, self.config.roots.as_deref(), FETCH_TIMEOUT, REPLY_LEN_MAX).await
    }
}
