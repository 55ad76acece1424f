//! Bearer tokens that are known beforehand: the join token of agents, the administrator's token.

use std::fmt;

use super::{Authenticated, TokenAuthenticator, TokenError, secrets_equal};
use crate::identity::Identity;

/// A token and whom it stands for. Its `Debug` leaves the token out.
#[derive(Clone)]
pub struct StaticToken {
    pub token: String,
    pub user: Identity,
}

impl fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticToken").field("user", &self.user.name).finish_non_exhaustive()
    }
}

/// See [`StaticToken`].
#[derive(Debug, Default)]
pub struct StaticTokens {
    tokens: Vec<StaticToken>,
}

impl StaticTokens {
    pub fn new(tokens: Vec<StaticToken>) -> Self {
        Self { tokens }
    }
}

impl TokenAuthenticator for StaticTokens {
    fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Authenticated, TokenError> {
        let found = self.tokens.iter().find(|known| secrets_equal(known.token.as_bytes(), token.as_bytes()));
        let known = found.ok_or(TokenError::NotMine)?;
        Ok(Authenticated { user: known.user.clone(), audiences: audiences.to_vec() })
    }
}
