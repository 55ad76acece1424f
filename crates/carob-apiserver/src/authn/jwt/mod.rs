//! Tokens of other issuers: OpenID Connect, or any JWT (apiserver `plugin/pkg/authenticator/token/oidc`). Which issuers, and what their
//! claims mean, an [`AuthenticationConfig`] says.

mod claims;
mod config;
mod issuer;
mod keys;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use carob_kit::Clock;

pub(crate) use config::Anonymous;
pub use config::{AuthenticationConfig, AuthenticationConfigError};

use self::issuer::Issuer;
use self::keys::Compact;
use super::{Authenticated, TokenError};
use crate::webhook::WebhookClient;

/// The issuers of a configuration.
pub(super) struct JwtIssuers {
    issuers: Vec<Issuer>,
    /// What a user of their tokens may do is for these audiences: those of this API server.
    audiences: Vec<String>,
    clock: Arc<dyn Clock>,
}

impl JwtIssuers {
    pub(super) fn new(
        config: AuthenticationConfig,
        audiences: Vec<String>,
        http: &WebhookClient,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let issuer = |config| Issuer::new(config, http.clone(), Arc::clone(clock));
        Self { issuers: config.issuers.into_iter().map(issuer).collect(), audiences, clock: Arc::clone(clock) }
    }

    /// As [`super::TokenAuthenticator::authenticate`], but that the issuer may have to be asked for its keys.
    pub(super) async fn authenticate(&self, token: &str, wanted: &[String]) -> Result<Authenticated, TokenError> {
        if self.issuers.is_empty() {
            return Err(TokenError::NotMine);
        }
        let token = Compact::parse(token).ok_or(TokenError::NotMine)?;
        let named = token.unverified_issuer().ok_or(TokenError::NotMine)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.config.url == named).ok_or(TokenError::NotMine)?;
        let audiences: Vec<String> =
            self.audiences.iter().filter(|one| wanted.is_empty() || wanted.contains(one)).cloned().collect();
        if audiences.is_empty() {
            return Err(TokenError::NotMine);
        }
        let invalid = |why: String| TokenError::Invalid(format!("oidc: {why}"));
        let claims = issuer.verified(&token).await.map_err(invalid)?;
        let user = claims::user_of(&issuer.config, claims, self.clock.now().as_second()).map_err(invalid)?;
        Ok(Authenticated { user: Arc::new(user), audiences })
    }
}
